"""Small random problems for the tests of the variational model, as the package's containers and as the oracle's.

A layout is ``[source][order]``, a number of components per entry, negative for a dictionary that is held fixed.
"""

import contextlib

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
from oracles import vbnmf as oracle

from bayesfuse import model
from bayesfuse.inference import fit, start
from bayesfuse.vbnmf import Component, Factor, Posterior, combine_logs, make_prior


def _fast_options():
    """Options that make XLA compile sooner; it is free to drop them one day."""
    options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:
        return None
    return options


FAST = _fast_options()


def compiled(function):
    """`jax.jit` for programs that run for milliseconds and compile for seconds: the latter is what to save."""
    return jax.jit(function, compiler_options=FAST)


@contextlib.contextmanager
def unchecked():
    """Without the type checks of the test run, which would refuse an argument before the library can."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def random_prior(rng, layout, *, dtype=np.float64, noise=None, beta=None, temper="kl", shared=False, **settings):
    """A prior whose values vary; a and b stay in (0, 1/2), so that all such priors share one compiled program.

    `shared` gives all orders of a source the same shapes, as most users do.
    """

    def table():
        rows = [[float(v) for v in rng.uniform(0.1, 0.45, len(row))] for row in layout]
        return [[row[0]] * len(row) for row in rows] if shared else rows

    return make_prior(
        [[abs(k) for k in row] for row in layout],
        a=settings.pop("a", None) or table(),
        b=settings.pop("b", None) or table(),
        noise=float(10 ** rng.uniform(-3, 0)) if noise is None else noise,
        beta=float(10 ** rng.uniform(0, 2)) if beta is None else beta,
        order=[rng.dirichlet(np.full(len(row), 4.0)) for row in layout],
        temper=temper,
        dtype=dtype,
        **settings,
    )


def random_factor(rng, shape, prior, dtype, learned=True, spread=1.5):
    """A GIG factor with random parameters, consistent moments included."""
    rho = np.exp(spread * rng.standard_normal(shape)) * float(prior.rate)
    tau = np.exp(2 * spread * rng.standard_normal(shape) - 1)
    return gig_factor(prior, rho, tau, dtype, learned)


def gig_factor(prior, rho, tau, dtype=np.float64, learned=True):
    """The factor with these parameters, moments by the oracle (which compiles nothing)."""
    term = oracle.gig_term(float(prior.shape.nu), float(prior.rate), rho, tau, learned=False)
    return Factor(*(jnp.asarray(v, dtype) for v in (term.mean, 1 / term.inverse, rho, tau)), learned)


def random_posterior(rng, layout, freq, frames, prior, variant, dtype=np.float64):
    """A posterior at no optimum of anything."""
    components = []
    for j, row in enumerate(layout):
        orders = []
        for m, k in enumerate(row):
            if k > 0:
                w = random_factor(rng, (freq, k), prior.dictionaries[j][m], dtype)
            else:
                value = jnp.asarray(rng.gamma(1.0, 1.0, (freq, -k)) + 1e-3, dtype)
                w = Factor(value, value)
            h = random_factor(rng, (abs(k), frames), prior.activations[j][m], dtype)
            orders.append(Component(w, h))
        components.append(tuple(orders))
    log_q = [jnp.asarray(np.log(rng.dirichlet(np.full(len(row), 2.0))), dtype) for row in layout]
    if variant == "marginal":
        return Posterior(tuple(components), (combine_logs(log_q),), None, "marginal")
    variances = jnp.asarray(rng.gamma(1.0, 1.0, (len(layout), freq, frames)) + 1e-2, dtype)
    return Posterior(tuple(components), tuple(log_q), variances, "explicit")


def constant_posterior(rng, layout, freq, frames, prior, variant, dtype=np.float64):
    """A start as `inference.start` makes it: means only, the parameters of learned factors unknown."""

    def factor(shape, learned):
        value = jnp.asarray(rng.gamma(1.0, 1.0, shape) + 0.05, dtype)
        unknown = jnp.full_like(value, jnp.nan) if learned else None
        return Factor(value, value, unknown, unknown, learned)

    components = tuple(
        tuple(Component(factor((freq, abs(k)), k > 0), factor((abs(k), frames), True)) for k in row) for row in layout
    )
    if variant == "marginal":
        return Posterior(components, (combine_logs(prior.order),), None, "marginal")
    variances = jnp.ones((len(layout), freq, frames), dtype)
    return Posterior(components, prior.order, variances, "explicit")


def with_dictionaries(q, values):
    """The posterior with these dictionaries held fixed, ``[source][order]``."""
    components = tuple(
        tuple(
            Component(Factor(jnp.asarray(w), jnp.asarray(w)), c.activations) for c, w in zip(orders, row, strict=True)
        )
        for orders, row in zip(q.components, values, strict=True)
    )
    return Posterior(components, q.log_order, q.source_variance, q.variant)


def random_mixture(rng, freq, frames, dtype=np.complex128):
    scale = np.sqrt(rng.gamma(0.7, 1.0, (freq, frames)))
    return (scale * (rng.standard_normal((freq, frames)) + 1j * rng.standard_normal((freq, frames)))).astype(dtype)


def as_table(q, prior):
    """Terms of the oracle, ``[source][order]``, from the GIG parameters alone (or the value of a Dirac)."""

    def term(factor, gamma_prior):
        if factor.rho is None:
            return oracle.dirac_term(factor.mean)
        shape, rate = float(gamma_prior.shape.nu), float(gamma_prior.rate)
        return oracle.gig_term(shape, rate, np.asarray(factor.rho), np.asarray(factor.tau), factor.learned)

    return [
        [
            oracle.Pair(term(c.dictionary, prior.dictionaries[j][m]), term(c.activations, prior.activations[j][m]))
            for m, c in enumerate(orders)
        ]
        for j, orders in enumerate(q.components)
    ]


def exact(X, q, prior, table=None, auxiliary=None):
    """The oracle's bound of a posterior, and the vectors (q, pi) over orders that the tempered objective needs."""
    table = as_table(q, prior) if table is None else table
    noise = float(prior.noise)
    pi = [np.exp(np.asarray(v)) for v in prior.order]
    weights = [np.exp(np.asarray(v)) for v in q.log_order]
    if q.variant == "marginal":
        parts = oracle.marginal_bound(X, noise, table, weights[0], pi, auxiliary)
        return parts, weights, [oracle.product(pi)]
    mean, covariance = oracle.source_posterior(X, noise, np.asarray(q.source_variance))
    return oracle.explicit_bound(X, noise, table, weights, pi, mean, covariance, auxiliary), weights, pi


# A recording and its fit, of the one shape that several test files share, because compiling it takes seconds ---------

ORDERS = [[1, 3], [2]]
FREQ, FRAMES = 5, 12


def recording(seed=0, frames=FRAMES, dtype=np.float64):
    """A power spectrogram of the size that all laws share, with a silent bin."""
    rng = np.random.default_rng(seed)
    power = rng.gamma(0.5, 1.0, (FREQ, 2)) @ rng.gamma(0.5, 1.0, (2, frames)) * rng.exponential(1.0, (FREQ, frames))
    power[0, 0] = 0.0
    return power.astype(dtype)


def candidates(dtype=np.float64):
    """Fixed dictionaries of two orders for the first source, a learned one of order 2 for the second."""
    rng = np.random.default_rng(99)
    return [[rng.gamma(1.0, 1.0, (FREQ, k)).astype(dtype) for k in ORDERS[0]], [2]]


def fitted(power, variant="marginal", *, seed=0, num_iters=20, prior=None, given=None, **options):
    values = {"noise": 1e-3, "beta": 5.0, "activation_mean": [[1.0, 1.0], [0.5]], **(prior or {})}
    model = make_prior(ORDERS, dtype=power.dtype, **values)
    q0 = start(power, given or candidates(power.dtype), model, variant=variant, seed=seed)
    return fit(power, q0, model, num_iters=num_iters, **options)


# Data drawn from the model --------------------------------------------------------------------------------------------


def synthetic(seed, b, freq=20, frames=30, noise=1e-2, orders=(1, 3), true=1, background=2):
    """A forward draw from given dictionaries: everything that `fit_synthetic` needs, and the truth."""
    rng = np.random.default_rng(seed)
    given = [[rng.gamma(1.0, 1.0, (freq, k)) for k in orders], [rng.gamma(1.0, 1.0, (freq, background))]]
    prior = make_prior([list(orders), [background]], b=b, noise=noise, dtype=np.float64)
    return model.simulate(jax.random.key(seed), given, prior, (freq, frames), orders=[true, 0]), given


def fit_synthetic(truth, given, b, variant="marginal", noise=1e-2, num_iters=60):
    """The fit under the true prior; it normalises the mixture, so that the mean activation is divided by the level."""
    power = np.abs(truth.X) ** 2
    level = power.mean()
    prior = make_prior(
        [[w.shape[1] for w in row] for row in given],
        b=b,
        noise=noise / level,
        activation_mean=[[1 / level] * len(row) for row in given],
        dtype=np.float64,
    )
    return power, fit(power, start(power, given, prior, variant=variant), prior, num_iters=num_iters)

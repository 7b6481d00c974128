"""Small random problems for the tests of the variational model, as the package's containers and as the oracle's.

A layout is ``[source][order]``, a number of components per entry, negative for a dictionary that is held fixed.
"""

import jax.numpy as jnp
import numpy as np
from oracles import vbnmf as oracle

from bayesfuse.vbnmf import Component, Factor, Posterior, combine_logs, make_prior


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

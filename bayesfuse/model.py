"""The generative story of `vbnmf` as a NumPyro program: forward draws, evidence checks, sampling by NUTS.

    K_j ~ Categorical(pi_j),  w_jm,fk ~ Gamma(a, rate),  h_jm,kn ~ Gamma(b, rate),
    s_j,fn ~ CN(0, sum_k w h of order K_j),   x_fn = sum_j s_j,fn + e_fn,   e_fn ~ CN(0, sigma2)

of [JVR14], section 2, with CN(z | 0, v) = exp(-|z|^2 / v) / (pi v). It is written down a second time here, from the
definitions and with nothing of the variational approximation, so that either can be held against the other: data drawn
from it should be explained by `inference.fit`, and its posterior, sampled by NUTS on small problems, is what the
variational one approximates. It shares the `Prior` with the fit (temperature excepted: there is none here).

References
----------
[JVR14] X. Jaureguiberry, E. Vincent, G. Richard. Variational Bayesian model averaging for audio source separation.
    IEEE Workshop on Statistical Signal Processing, 2014.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Complex, Float, Int
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from bayesfuse._precision import precision
from bayesfuse.vbnmf import GammaPrior, Prior, combine_logs

Candidate = int | Float[np.ndarray | Array, "_ _"]


class _Finite(constraints.ParameterFreeConstraint):
    """Finite complex numbers."""

    def __call__(self, x: Any) -> Any:
        return jnp.isfinite(x.real) & jnp.isfinite(x.imag)

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.zeros_like(prototype)


class ComplexNormal(dist.Distribution):
    """Circularly-symmetric complex normal distribution CN(0, power): mean 0, E|z|^2 = power, without a factor of 1/2.

    For observed or forward-drawn coefficients: NUTS, which moves real numbers, cannot have it as a latent site.
    """

    arg_constraints = {"power": constraints.nonnegative}  # noqa: RUF012 (the way NumPyro declares it)
    support = _Finite()  # pyright: ignore[reportAssignmentType] (a property in the base class)

    def __init__(self, power: Any, *, validate_args: bool | None = None) -> None:
        self.power = jnp.asarray(power)
        super().__init__(batch_shape=jnp.shape(self.power), validate_args=validate_args)

    @validate_sample
    def log_prob(self, value: Any) -> Array:
        return -jnp.log(jnp.pi * self.power) - (jnp.real(value) ** 2 + jnp.imag(value) ** 2) / self.power

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        real, imag = jax.random.normal(key, (2, *sample_shape, *self.batch_shape), self.power.dtype)
        return jnp.sqrt(self.power / 2) * jax.lax.complex(real, imag)

    @property
    def mean(self) -> Array:
        return jnp.zeros_like(self.power) + 0j

    @property
    def variance(self) -> Array:
        return self.power


def _gamma(prior: GammaPrior, shape: tuple[int, int]) -> dist.Distribution:
    return dist.Gamma(prior.shape.nu, prior.rate).expand(shape).to_event(2)


def model(
    X: Complex[np.ndarray | Array, "freq frame"] | None,
    candidates: Sequence[Sequence[Candidate]],
    prior: Prior,
    *,
    shape: tuple[int, int] | None = None,
    orders: Sequence[int] | None = None,
    sources: bool = False,
) -> None:
    """The joint distribution of orders, dictionaries, activations, sources and mixture, as a NumPyro program.

    Sites: ``K{j}`` (index of the candidate), ``W{j}_{m}`` [freq, component], ``H{j}_{m}`` [component, frame], ``S{j}``
    [freq, frame] (only with `sources`), and ``X``. Without `sources` they are integrated out,
    x_fn ~ CN(0, sigma2 + sum_j v_j,fn). There are no sites ``K{j}`` where the orders are given, nor where X is
    observed: then they are summed out, which leaves no discrete latent variable for NUTS.

    Parameters
    ----------
    X
        Observed STFT of the mixture, in the unit of the prior (`inference.fit` divides by the root mean power first),
        or None for forward draws.
    candidates
        ``[source][order]``: an integer, the order of a dictionary with its Gamma prior, or a given dictionary.
    prior
        From `vbnmf.make_prior`; its temperature is not used.
    shape
        (freq, frame), needed where X is None.
    orders
        Index of the candidate of every source, to condition on it.
    sources
        Whether the sources are sites of their own.

    Raises
    ------
    ValueError
        If `shape` is missing, if `candidates` and `prior` have different layouts, or for observed X with `sources`,
        which are complex and cannot be latent sites of NUTS.
    """
    if X is None and shape is None:
        raise ValueError("model needs the observed X or, for forward draws, shape=(freq, frame).")
    if X is not None and sources:
        raise ValueError("sources are sites of forward draws only; draw them given X with `estimates.draw`.")
    _check_layout(candidates, prior)
    freq, frames = X.shape if X is not None else shape or (0, 0)
    logits = prior.order
    if orders is not None:
        chosen = [[(m, candidates[j][m])] for j, m in enumerate(orders)]
        logits = tuple(jnp.zeros(1, vector.dtype) for vector in prior.order)
    else:
        chosen = [list(enumerate(row)) for row in candidates]

    def variance(j: int, m: int, candidate: Candidate) -> Array:
        """omega_jm: W H with W drawn or given."""
        if isinstance(candidate, int | np.integer):
            w = jnp.asarray(numpyro.sample(f"W{j}_{m}", _gamma(prior.dictionaries[j][m], (freq, int(candidate)))))
        else:
            w = jnp.asarray(candidate, prior.noise.dtype)
        h = numpyro.sample(f"H{j}_{m}", _gamma(prior.activations[j][m], (w.shape[1], frames)))
        return w @ jnp.asarray(h)

    # [source][order], each [order, freq, frame].
    variances = [jnp.stack([variance(j, m, c) for m, c in row]) for j, row in enumerate(chosen)]
    if X is None:
        picked = []
        for j, table in enumerate(variances):
            order = dist.CategoricalLogits(logits[j])
            k: Any = 0 if orders is not None else numpyro.sample(f"K{j}", order)
            picked.append(table[k])
        if not sources:
            numpyro.sample("X", ComplexNormal(prior.noise + sum(picked)).to_event(2))
            return
        parts = [numpyro.sample(f"S{j}", ComplexNormal(v).to_event(2)) for j, v in enumerate(picked)]
        error = numpyro.sample("E", ComplexNormal(jnp.broadcast_to(prior.noise, (freq, frames))).to_event(2))
        numpyro.deterministic("X", error + sum(parts))
        return
    # One total variance per combination of orders, the last source varying fastest.
    total = prior.noise + variances[0]
    for table in variances[1:]:
        total = (total[:, None] + table[None]).reshape(-1, freq, frames)
    mixing = dist.Categorical(logits=combine_logs(logits))
    numpyro.sample("X", dist.MixtureSameFamily(mixing, ComplexNormal(total).to_event(2)), obs=jnp.asarray(X))


def _check_layout(candidates: Sequence[Sequence[Candidate]], prior: Prior) -> None:
    counts = [len(row) for row in candidates], [len(row) for row in prior.dictionaries]
    if counts[0] != counts[1]:
        raise ValueError(f"candidates has {counts[0]} entries per source, the prior {counts[1]}.")


class Simulation(NamedTuple):
    """One forward draw. Arrays are NumPy.

    Attributes
    ----------
    orders
        Index of the candidate of every source.
    dictionaries, activations
        W [freq, component] and H [component, frame] of the drawn order of every source.
    sources
        STFT coefficients.
    X
        Mixture, the sources plus noise of variance ``prior.noise``.
    """

    orders: Int[np.ndarray, " source"]
    dictionaries: list[Float[np.ndarray, "_ _"]]
    activations: list[Float[np.ndarray, "_ _"]]
    sources: Complex[np.ndarray, "source freq frame"]
    X: Complex[np.ndarray, "freq frame"]


def simulate(
    key: Array,
    candidates: Sequence[Sequence[Candidate]],
    prior: Prior,
    shape: tuple[int, int],
    *,
    orders: Sequence[int] | None = None,
) -> Simulation:
    """Return one draw of everything from the prior, e.g. the synthetic mixtures of [JVR14] section 4.1.

    Parameters
    ----------
    key
        JAX random key.
    candidates
        ``[source][order]``: integers are orders whose dictionaries are drawn, arrays [freq, component] given ones.
    shape
        (freq, frame).
    orders
        Index of the candidate of every source; drawn from the prior by default.

    Raises
    ------
    ValueError
        If `candidates` and `prior` have different layouts or an index in `orders` does not exist.
    """
    _check_layout(candidates, prior)
    with precision(prior.noise):
        if orders is None:
            keys = jax.random.split(key, len(candidates) + 1)
            key = keys[0]
            orders = [int(jax.random.categorical(k, v)) for k, v in zip(keys[1:], prior.order, strict=True)]
        if len(orders) != len(candidates) or not all(
            0 <= m < len(row) for m, row in zip(orders, candidates, strict=True)
        ):
            raise ValueError(f"orders={list(orders)}: expected the index of a candidate for each of the sources.")
        program = numpyro.handlers.seed(model, key)
        trace = numpyro.handlers.trace(program).get_trace(
            None, candidates, prior, shape=shape, orders=orders, sources=True
        )
        kind = np.dtype(prior.noise.dtype)

        def value(name: str) -> np.ndarray:
            return np.asarray(trace[name]["value"])

        dictionaries = [
            value(f"W{j}_{m}") if f"W{j}_{m}" in trace else np.asarray(candidates[j][m], kind)
            for j, m in enumerate(orders)
        ]
        activations = [value(f"H{j}_{m}") for j, m in enumerate(orders)]
        sources = np.stack([value(f"S{j}") for j in range(len(candidates))])
        return Simulation(np.asarray(orders), dictionaries, activations, sources, value("X"))


def posterior_predictive(
    key: Array,
    dictionaries: Sequence[Sequence[Float[np.ndarray | Array, "_ _"]]],
    activations: Sequence[Sequence[Float[np.ndarray | Array, "_ _"]]],
    noise: float,
) -> Complex[np.ndarray, "draw freq frame"]:
    """Return replicates of the mixture, one for each draw of the factors: x ~ CN(0, noise + sum_j W_j H_j).

    Parameters
    ----------
    key
        JAX random key.
    dictionaries, activations
        ``[draw][source]``, as in `estimates.Draws`, or collected from NUTS.
    noise
        sigma2 in the unit of the products W H: for draws from a `Fit`, ``fit.prior.noise * fit.scale**2``.

    Raises
    ------
    ValueError
        If there are no draws, or not as many dictionaries as activations.
    """
    if len(dictionaries) == 0 or len(dictionaries) != len(activations):
        raise ValueError(f"{len(dictionaries)} draws of dictionaries and {len(activations)} of activations.")
    totals = np.stack(
        [
            sum(np.asarray(w) @ np.asarray(h) for w, h in zip(ws, hs, strict=True))
            for ws, hs in zip(dictionaries, activations, strict=True)
        ]
    )
    variances = (totals + noise).astype(totals.dtype)
    with precision(variances):
        return np.asarray(ComplexNormal(jax.device_put(variances)).sample(key))

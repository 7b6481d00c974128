"""Free energy of the variational model of `vbnmf`, in its parts, for both of its bounds."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesfuse import gig
from bayesfuse.vbnmf_posterior import (
    Factor,
    FreeEnergy,
    GammaPrior,
    Posterior,
    Prior,
    Scores,
    Terms,
    Variances,
    combine_logs,
    full_mask,
    over,
    sum_variances,
    valid,
    variances,
)

LOG_PI = math.log(math.pi)


def source_power(power: Float[Array, "freq frame"], q: Posterior, prior: Prior) -> Float[Array, "source freq frame"]:
    """E|s_j|^2 under q(S): squared mean plus variance, without the subtraction C - C^2/den."""
    assert q.source_variance is not None
    variance = q.source_variance
    total = prior.noise + variance.sum(0)
    others = prior.noise + jnp.stack([sum_except(variance, j) for j in range(variance.shape[0])])
    return variance * (others / total) + (variance / total) ** 2 * power


def sum_except(variance: Float[Array, "source freq frame"], j: int) -> Float[Array, "freq frame"]:
    """Sum over the other sources, without subtracting."""
    others = [variance[i] for i in range(variance.shape[0]) if i != j]
    return sum(others, jnp.zeros_like(variance[j]))


def _column_sums(values: Float[Array, "row column"]) -> Float[Array, " column"]:
    """Sums over the rows, as a product: fused into a sum, the logarithms before it would not be vectorised."""
    return jnp.matmul(jnp.ones(values.shape[0], values.dtype), values, precision="highest")


def _gamma_terms(factors: Sequence[Factor], priors: Sequence[GammaPrior], one_shape: bool) -> list[Float[Array, "_ _"]]:
    """E[log p] - E[log q] of every entry of some learned factors."""
    rhos = [f.rho for f in factors if f.rho is not None]
    taus = [f.tau for f in factors if f.tau is not None]
    if not one_shape or len(rhos) < 2:
        triples = zip(priors, rhos, taus, strict=True)
        return [gig.prior_minus_posterior(p.shape, p.rate, rho, tau) for p, rho, tau in triples]
    ends = np.cumsum([rho.size for rho in rhos])[:-1]
    terms = gig.prior_minus_posterior(
        priors[0].shape,
        jnp.concatenate([jnp.broadcast_to(p.rate, rho.size) for p, rho in zip(priors, rhos, strict=True)]),
        jnp.concatenate([rho.reshape(-1) for rho in rhos]),
        jnp.concatenate([tau.reshape(-1) for tau in taus]),
    )
    return [part.reshape(rho.shape) for part, rho in zip(jnp.split(terms, ends), rhos, strict=True)]


def _factor_terms(
    q: Posterior, prior: Prior
) -> tuple[list[list[Float[Array, ""]]], list[list[Float[Array, " frame"]]]]:
    """E[log p] - E[log q] of the dictionaries (a number) and activations (per frame), ``[source][order]``."""
    dictionary, activations = [], []
    for j, orders in enumerate(q.components):
        terms = _gamma_terms([c.activations for c in orders], prior.activations[j], prior.one_shape)
        activations.append([_column_sums(term) for term in terms])
        learned = [m for m, c in enumerate(orders) if c.dictionary.learned]
        terms = _gamma_terms(
            [orders[m].dictionary for m in learned], [prior.dictionaries[j][m] for m in learned], prior.one_shape
        )
        row = [prior.noise * 0] * len(orders)
        for m, term in zip(learned, terms, strict=True):
            row[m] = term.sum()
        dictionary.append(row)
    return dictionary, activations


def combination_scores(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"] | None = None
) -> Scores:
    """Marginal bound of log p(X | combination), per combination and frame.

    sum_f { -log pi - log omega_c - |x|^2 / C_c } plus the Gamma terms of the chosen orders.
    """
    return _combination_scores(power, q, variances(q), prior, full_mask(power, mask))


def combination_terms(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, bands: Float[Array, "band freq"] | None = None
) -> Terms:
    """The parts of `combination_scores`, whose frames are their sums over bands and sources.

    Parameters
    ----------
    bands
        Share of every frequency in each band, columns of sum 1; one band of all frequencies by default.
    """
    v = variances(q)
    groups = jnp.ones((1, power.shape[0]), power.dtype) if bands is None else bands
    dictionary, activations = _factor_terms(q, prior)

    def data(choice: tuple[int, ...]) -> Float[Array, "band frame"]:
        bins = _log_likelihood(power, v, prior, choice) - LOG_PI
        return jnp.matmul(groups, bins, precision="highest")

    return Terms(
        jnp.stack([data(choice) for choice in q.combinations]),
        jnp.stack([jnp.stack([row[choice[j]] for choice in q.combinations]) for j, row in enumerate(activations)]),
        jnp.stack([jnp.stack([row[choice[j]] for choice in q.combinations]) for j, row in enumerate(dictionary)]),
    )


def _log_likelihood(
    power: Float[Array, "freq frame"], v: Variances, prior: Prior, choice: tuple[int, ...]
) -> Float[Array, "freq frame"]:
    """Marginal bound of E[log p(x)] + log pi in every bin."""
    total = sum_variances(prior.noise, v.expected, choice)
    filtered = sum_variances(prior.noise, v.harmonic, choice)
    return -(jnp.log(total) + over(power, filtered))


def _combination_scores(
    power: Float[Array, "freq frame"], q: Posterior, v: Variances, prior: Prior, mask: Float[Array, " frame"]
) -> Scores:
    dictionary, activations = _factor_terms(q, prior)
    frames, constants = [], []
    for choice in q.combinations:
        data = _column_sums(_log_likelihood(power, v, prior, choice)) - power.shape[0] * LOG_PI
        frames.append(valid(mask, data + sum(activations[j][m] for j, m in enumerate(choice))))
        constants.append(sum(dictionary[j][m] for j, m in enumerate(choice)))
    return Scores(jnp.stack(frames), jnp.stack(constants))


def source_scores(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"] | None = None
) -> tuple[Scores, ...]:
    """Explicit variant: log q~(K_j = m) of every source without log pi, [JVR14] eq. 12, per order and frame."""
    return _source_scores(power, q, variances(q), prior, full_mask(power, mask))


def _source_scores(
    power: Float[Array, "freq frame"], q: Posterior, v: Variances, prior: Prior, mask: Float[Array, " frame"]
) -> tuple[Scores, ...]:
    second = source_power(power, q, prior)
    dictionary, activations = _factor_terms(q, prior)
    scores = []
    for j in range(len(q.components)):
        frames = []
        for m, (omega, harmonic) in enumerate(zip(v.expected[j], v.harmonic[j], strict=True)):
            bins = jnp.log(omega) + over(second[j], harmonic)
            frames.append(valid(mask, activations[j][m] - _column_sums(bins) - power.shape[0] * LOG_PI))
        scores.append(Scores(jnp.stack(frames), jnp.stack(dictionary[j])))
    return tuple(scores)


def scores_and_priors(
    power: Float[Array, "freq frame"], q: Posterior, v: Variances, prior: Prior, mask: Float[Array, " frame"]
) -> tuple[tuple[Scores, ...], tuple[Float[Array | np.ndarray, "_"], ...]]:
    if q.variant == "marginal":
        return (_combination_scores(power, q, v, prior, mask),), (combine_logs(prior.order),)
    return _source_scores(power, q, v, prior, mask), prior.order


def _mixing_frames(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"]
) -> Float[Array, " frame"]:
    """Explicit variant: E[log p(x | s)] + H[q(s)] per frame, with log sigma2 cancelled analytically."""
    assert q.source_variance is not None
    variance = q.source_variance
    sources = variance.shape[0]
    signal = variance.sum(0)
    total = prior.noise + signal
    bins = jnp.log(variance).sum(0) - jnp.log(total) - signal / total - (power / total) * (prior.noise / total)
    return valid(mask, _column_sums(bins) + power.shape[0] * (sources + (sources - 1) * LOG_PI))


def free_energy(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"] | None = None
) -> FreeEnergy:
    """Return the lower bound of log p(X), all constants included, in its parts.

    The bound of the untempered model for the q that is given, [JVR16] eqs. 35, 36 in the explicit variant. Defined once
    every learned factor was updated at least once.
    """
    mask = full_mask(power, mask)
    scores, priors = scores_and_priors(power, q, variances(q), prior, mask)
    frames = (
        _mixing_frames(power, q, prior, mask) if q.variant == "explicit" else jnp.zeros(power.shape[1], power.dtype)
    )
    dictionary = prior.noise * 0
    order = prior.noise * 0
    for part, log_q, log_pi in zip(scores, q.log_order, priors, strict=True):
        weights = jnp.exp(log_q)
        # An order with q = 0 may have a bound of minus infinity (a dead model): it does not count.
        frames = frames + jnp.where(weights[:, None] > 0, weights[:, None] * part.frames, 0.0).sum(0)
        dictionary = dictionary + (weights * part.dictionary).sum()
        order = order + jnp.where(weights > 0, weights * (log_pi - log_q), 0.0).sum()
    return FreeEnergy(frames, dictionary, order)


def tempered(energy: FreeEnergy, q: Posterior, prior: Prior) -> Float[Array, ""]:
    """What the tempered objective adds to the free energy; their sum is what no update lowers."""
    priors = (combine_logs(prior.order),) if q.variant == "marginal" else prior.order
    entropy = prior.noise * 0
    for log_q, log_pi in zip(q.log_order, priors, strict=True):
        weights = jnp.exp(log_q)
        reference = log_pi if prior.temper == "kl" else jnp.zeros_like(log_pi)
        entropy = entropy + jnp.where(weights > 0, weights * (reference - log_q), 0.0).sum()
    # At infinite temperature q(K) is constant: the term is 0 or, a constant too, infinite.
    return jnp.where(jnp.isinf(prior.beta), 0.0, (prior.beta - 1.0) * entropy)

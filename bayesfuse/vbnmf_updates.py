"""Coordinate ascent on the bounds of `vbnmf`: every update puts one block of the posterior at its optimum."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bayesfuse import gig
from bayesfuse.vbnmf_energy import scores_and_priors, source_power
from bayesfuse.vbnmf_posterior import (
    Component,
    Factor,
    GammaPrior,
    Posterior,
    Prior,
    Variances,
    expected_variance,
    full_mask,
    harmonic_variance,
    over_square,
    sum_variances,
    valid,
    variances,
)


class _Weights(NamedTuple):
    """How the bound sees the variance of one order: const - slope . E[w h] - curve . phi^2 E[1/w] E[1/h].

    Frames whose mask is 0 have weights, too, which move their own activations and must not reach a dictionary.
    """

    slope: Float[Array, "freq frame"]
    curve: Float[Array, "freq frame"]
    mask: Float[Array, " frame"]


Update = Callable[[Sequence[Component], int, Prior, Sequence[_Weights]], list[Component]]


def _posteriors(
    priors: Sequence[GammaPrior],
    rhos: Sequence[Float[Array, "_ _"]],
    taus: Sequence[Float[Array, "_ _"]],
    one_shape: bool,
) -> list[Factor]:
    """GIG posteriors from their parameters. Matrices of one prior shape go through the Bessel functions together."""
    if one_shape and len(rhos) > 1:
        ends = np.cumsum([rho.size for rho in rhos])[:-1]
        rho = jnp.concatenate([rho.reshape(-1) for rho in rhos])
        tau = jnp.concatenate([tau.reshape(-1) for tau in taus])
        split = [jnp.split(y, ends) for y in gig.moments(priors[0].shape, rho, tau)]
        pairs = [(m.reshape(r.shape), g.reshape(r.shape)) for m, g, r in zip(*split, rhos, strict=True)]
    else:
        pairs = [gig.moments(p.shape, r, t) for p, r, t in zip(priors, rhos, taus, strict=True)]
    return [Factor(m, g, r, t, learned=True) for (m, g), r, t in zip(pairs, rhos, taus, strict=True)]


def _update_dictionaries(
    orders: Sequence[Component], j: int, prior: Prior, weights: Sequence[_Weights]
) -> list[Component]:
    """q(W) of all orders of source j, [JVR14] eq. 17; fixed dictionaries stay as they are."""
    learned = [m for m, c in enumerate(orders) if c.dictionary.learned]
    priors = [prior.dictionaries[j][m] for m in learned]
    rhos, taus = [], []
    for m, p in zip(learned, priors, strict=True):
        w, h = orders[m].dictionary, orders[m].activations
        slope, curve, mask = weights[m]
        rhos.append(p.rate + slope @ valid(mask, h.mean).T)
        taus.append(w.harmonic * (w.harmonic * (curve @ valid(mask, h.harmonic).T)))
    updated = list(orders)
    for m, factor in zip(learned, _posteriors(priors, rhos, taus, prior.one_shape), strict=True):
        updated[m] = Component(factor, orders[m].activations)
    return updated


def _update_activations(
    orders: Sequence[Component], j: int, prior: Prior, weights: Sequence[_Weights]
) -> list[Component]:
    """q(H) of all orders of source j, the mirror image."""
    priors = prior.activations[j]
    rhos, taus = [], []
    for c, p, weight in zip(orders, priors, weights, strict=True):
        w, h = c.dictionary, c.activations
        rhos.append(p.rate + w.mean.T @ weight.slope)
        taus.append(h.harmonic * (h.harmonic * (w.harmonic.T @ weight.curve)))
    factors = _posteriors(priors, rhos, taus, prior.one_shape)
    return [Component(c.dictionary, factor) for c, factor in zip(orders, factors, strict=True)]


def _multiply_activations(
    orders: Sequence[Component], j: int, prior: Prior, weights: Sequence[_Weights]
) -> list[Component]:
    """Maximum-likelihood activations: the multiplicative Itakura-Saito update, mean and harmonic mean equal."""
    updated = []
    for c, weight in zip(orders, weights, strict=True):
        w, h = c.dictionary, c.activations
        slope = w.mean.T @ weight.slope
        mean = h.mean * (w.mean.T @ weight.curve) / slope
        # An exact zero could never revive under a shape below one, whose harmonic mean stays zero.
        mean = jnp.maximum(mean, 1e-6 / c.order)
        updated.append(Component(w, Factor(mean, mean, h.rho, h.tau, learned=True)))
    return updated


def _refreshed(v: Variances, j: int, before: Sequence[Component], after: Sequence[Component]) -> Variances:
    """`v` with the variances of source j made anew where its components changed."""
    expected = [v.expected[j][m] if new is old else expected_variance(new) for m, (old, new) in _pairs(before, after)]
    harmonic = [v.harmonic[j][m] if new is old else harmonic_variance(new) for m, (old, new) in _pairs(before, after)]
    return Variances(
        (*v.expected[:j], tuple(expected), *v.expected[j + 1 :]),
        (*v.harmonic[:j], tuple(harmonic), *v.harmonic[j + 1 :]),
    )


def _pairs(before: Sequence[Component], after: Sequence[Component]) -> list[tuple[int, tuple[Component, Component]]]:
    return list(enumerate(zip(before, after, strict=True)))


def _sweep_marginal(
    power: Float[Array, "freq frame"],
    q: Posterior,
    v: Variances,
    prior: Prior,
    mask: Float[Array, " frame"],
    update: Update,
) -> tuple[Posterior, Variances]:
    """Apply `update` to one source after the other under the marginal bound, with fresh variances.

    The orders of one source never meet in a combination, so that they update independently. A factor that several
    combinations c share sees the average, over q(c) among them, of 1/omega_c and |x|^2/C_c^2; the weights are formed
    in log space, so that they exist when q(c) itself underflows.
    """
    components = list(q.components)
    for j, orders in enumerate(components):
        weights = []
        for m in range(len(orders)):
            users = [i for i, choice in enumerate(q.combinations) if choice[j] == m]
            shares = jax.nn.softmax(q.log_order[0][np.array(users)])
            slope = jnp.zeros_like(power)
            curve = jnp.zeros_like(power)
            for position, i in enumerate(users):
                choice = q.combinations[i]
                slope = slope + shares[position] / sum_variances(prior.noise, v.expected, choice)
                total = sum_variances(prior.noise, v.harmonic, choice)
                curve = curve + shares[position] * over_square(power, total)
            weights.append(_Weights(slope, curve, mask))
        components[j] = tuple(update(orders, j, prior, weights))
        v = _refreshed(v, j, orders, components[j])
    return eqx.tree_at(lambda t: t.components, q, tuple(components)), v


def _sweep_explicit(
    power: Float[Array, "freq frame"],
    q: Posterior,
    v: Variances,
    prior: Prior,
    mask: Float[Array, " frame"],
    update: Update,
) -> tuple[Posterior, Variances]:
    """Apply `update` to every source given q(S), which makes all orders independent: [JVR14] eq. 17."""
    second = source_power(power, q, prior)
    components = list(q.components)
    for j, orders in enumerate(components):
        weights = [
            # Without the noise beside it, 1/omega of a padded frame would grow with every sweep until it overflows.
            _Weights(valid(mask, 1.0 / omega), valid(mask, over_square(second[j], harmonic)), mask)
            for omega, harmonic in zip(v.expected[j], v.harmonic[j], strict=True)
        ]
        components[j] = tuple(update(orders, j, prior, weights))
        v = _refreshed(v, j, orders, components[j])
    return eqx.tree_at(lambda t: t.components, q, tuple(components)), v


def _update_block(
    block: str,
    power: Float[Array, "freq frame"],
    q: Posterior,
    v: Variances,
    prior: Prior,
    mask: Float[Array, " frame"],
) -> tuple[Posterior, Variances]:
    """One block of `step`; the variances that come in belong to q, and so do those that go out."""
    sweep = _sweep_marginal if q.variant == "marginal" else _sweep_explicit
    if block == "S":
        return _update_sources(q, v), v
    if block == "W":
        return sweep(power, q, v, prior, mask, _update_dictionaries)
    if block == "H":
        return sweep(power, q, v, prior, mask, _update_activations)
    if block == "K":
        return _update_orders(power, q, v, prior, mask), v
    raise ValueError(f"sequence: {block!r} is not one of the blocks S, W, H, K.")


def update_dictionaries(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"] | None = None
) -> Posterior:
    """Return q with every learned dictionary at its optimum, one after the other."""
    return step(power, q, prior, mask, sequence="W")


def update_activations(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"] | None = None
) -> Posterior:
    """Return q with all activations at their optimum, one order after the other."""
    return step(power, q, prior, mask, sequence="H")


def update_orders(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"] | None = None
) -> Posterior:
    """Return q with q(K) at its tempered optimum: [JVR16] eq. 18 or [JVR14] eq. 18, as `Prior.temper` says."""
    return step(power, q, prior, mask, sequence="K")


def update_sources(q: Posterior, prior: Prior) -> Posterior:
    """Return q with q(S) at its optimum, 1/C_j = sum_m q_jm / C_jm ([JVR14] eqs. 15, 16); no-op when marginal."""
    return _update_sources(q, variances(q))


def multiplicative_steps(
    power: Float[Array, "freq frame"],
    q: Posterior,
    prior: Prior,
    mask: Float[Array, " frame"],
    count: Int[Array, ""] | int,
) -> Posterior:
    """Return q after maximum-likelihood updates of all activations ([JVR16] eqs. 28-30), to start from."""

    def body(_: Array, state: tuple[Posterior, Variances]) -> tuple[Posterior, Variances]:
        return _sweep_marginal(power, *state, prior, mask, _multiply_activations)

    return jax.lax.fori_loop(0, count, body, (q, variances(q)))[0]


def _update_sources(q: Posterior, v: Variances) -> Posterior:
    if q.variant == "marginal":
        return q
    combined = []
    for harmonic, log_q in zip(v.harmonic, q.log_order, strict=True):
        # An order with q = 0 does not count, not even where its variance is 0 as well.
        inverse = sum(jnp.where(p > 0, p / c, 0.0) for p, c in zip(jnp.exp(log_q), harmonic, strict=True))
        combined.append(1.0 / inverse)
    return eqx.tree_at(lambda t: t.source_variance, q, jnp.stack(combined))


def _update_orders(
    power: Float[Array, "freq frame"], q: Posterior, v: Variances, prior: Prior, mask: Float[Array, " frame"]
) -> Posterior:
    if max(len(orders) for orders in q.components) == 1:
        return q
    log_q = []
    for scores, log_pi in zip(*scores_and_priors(power, q, v, prior, mask), strict=True):
        # Only differences between choices matter: taking them frame by frame keeps them exact in float32, where
        # totals of 1e6 nats are not.
        relative = (scores.frames - scores.frames.mean(0)).sum(-1) + scores.dictionary - scores.dictionary.mean()
        log_prior = log_pi if prior.temper == "kl" else log_pi / prior.beta
        log_q.append(jax.nn.log_softmax(log_prior + relative / prior.beta))
    return eqx.tree_at(lambda t: t.log_order, q, tuple(log_q))


def step(
    power: Float[Array, "freq frame"],
    q: Posterior,
    prior: Prior,
    mask: Float[Array, " frame"] | None = None,
    *,
    sequence: str = "SWHK",
    count: Int[Array, ""] | int = 1,
) -> Posterior:
    """Return q after one or several sweeps of coordinate ascent; the objective of `tempered` never falls.

    Parameters
    ----------
    power
        |X|^2, [freq, frame], in the unit of the prior's noise.
    mask
        1 for frames that count and 0 for padding; all ones by default.
    sequence
        Blocks in the order they are updated: S the sources, W dictionaries, H activations, K model orders.
    count
        Number of sweeps.
    """
    full = full_mask(power, mask)

    def body(_: Array | int, state: tuple[Posterior, Variances]) -> tuple[Posterior, Variances]:
        for block in sequence:
            state = _update_block(block, power, *state, prior, full)
        return state

    start = (q, variances(q))
    if isinstance(count, int) and count == 1:
        return body(0, start)[0]
    return jax.lax.fori_loop(0, count, body, start)[0]

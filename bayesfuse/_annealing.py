"""Annealed importance sampling of log normalising constants, forward and in reverse, over many problems at once.

A path of densities f_beta = exp(base + beta extra) leads from a normalised one (beta = 0), from which one can draw, to
the one whose integral Z is wanted (beta = 1). Chains follow it by Hamiltonian Monte Carlo; the weight of a chain,
log w = sum_t (beta_t - beta_{t-1}) extra(z_{t-1}), has E[w] = Z exactly, however badly the chains mix, and so
log mean w is a stochastic lower bound of log Z. Chains that start from an exact draw of the target and go back have
E[1/w] = 1/Z, and bound it from above [GGA15].

How many temperatures, which and which step sizes is settled in a pilot run whose chains are thrown away: in the run
that counts, they are constants, and the estimate has no bias of adaptation.

References
----------
[N01] R. M. Neal, "Annealed importance sampling", Statistics and Computing 11, 2001.
[GGA15] R. B. Grosse, Z. Ghahramani, R. P. Adams, "Sandwiching the marginal likelihood using bidirectional Monte
Carlo", arXiv:1511.02543, 2015.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Acceptance that the pilot aims at, and how fast the logarithm of its step follows.
_ACCEPTANCE = 0.75
_GAIN = 0.4
_JITTER = 0.3
# Share of the temperatures spread evenly in beta, whatever the pilot has seen.
_EVEN = 0.1


@runtime_checkable
class Target(Protocol):
    """A path; leading axes are chains and then units, each unit with an integral of its own."""

    def draw(self, key: Array, chains: int) -> Float[Array, "chain *unit coordinate"]:
        """Exact draws of the start."""
        ...

    def base(self, state: Float[Array, "chain *unit coordinate"]) -> Float[Array, "chain *unit"]:
        """Logarithm of the normalised density of the start."""
        ...

    def extra(self, state: Float[Array, "chain *unit coordinate"]) -> Float[Array, "chain *unit"]:
        """Logarithm of the target less `base`."""
        ...

    def scale(self, beta: Float[Array, "*unit"]) -> Float[Array, "*unit coordinate"]:
        """Rough standard deviation of every coordinate; 0 for one that must not move."""
        ...


class Schedule(NamedTuple):
    """Inverse temperatures from 0 to 1, and step sizes of the moves at all of them but 0."""

    beta: Float[np.ndarray, "stack temperature *unit"]
    step: Float[np.ndarray, "stack move *unit"]


class Run(NamedTuple):
    """What the chains end with."""

    log_weights: Float[Array, "stack chain *unit"]
    acceptance: Float[Array, "stack move *unit"]
    states: Float[Array, "stack chain *unit coordinate"]


class _Point(NamedTuple):
    state: Array
    base: Array
    extra: Array
    base_slope: Array
    extra_slope: Array


def _point(target: Target, state: Array) -> _Point:
    base, pull_base = jax.vjp(target.base, state)
    extra, pull_extra = jax.vjp(target.extra, state)
    return _Point(state, base, extra, pull_base(jnp.ones_like(base))[0], pull_extra(jnp.ones_like(extra))[0])


def _move(
    key: Array, target: Target, at: _Point, beta: Array, step: Array, leaps: int
) -> tuple[_Point, Float[Array, "chain *unit"]]:
    """One trajectory of Hamiltonian Monte Carlo, and the probability with which each chain took it."""
    momentum_key, jitter_key, accept_key = jax.random.split(key, 3)
    kind = at.base.dtype
    # The jitter does not look at the state, so that the move stays reversible.
    jitter = 1 + _JITTER * jax.random.uniform(jitter_key, at.base.shape, kind, -1.0, 1.0)
    size = (jitter * step)[..., None] * target.scale(beta)
    momentum = jax.random.normal(momentum_key, at.state.shape, kind)

    def slope(point: _Point) -> Array:
        return point.base_slope + beta[..., None] * point.extra_slope

    def leap(_: Array, carry: tuple[_Point, Array]) -> tuple[_Point, Array]:
        point, p = carry
        p = p + 0.5 * size * slope(point)
        point = _point(target, point.state + size * p)
        return point, p + 0.5 * size * slope(point)

    after, p = jax.lax.fori_loop(0, leaps, leap, (at, momentum))
    gain = after.base - at.base + beta * (after.extra - at.extra) + 0.5 * (momentum**2 - p**2).sum(-1)
    # A trajectory that diverged is refused.
    gain = jnp.where(jnp.isnan(gain), -jnp.inf, gain)
    take = jnp.log(jax.random.uniform(accept_key, gain.shape, kind)) < gain
    chosen = jax.tree.map(
        lambda new, old: jnp.where(take.reshape(*take.shape, *[1] * (new.ndim - take.ndim)), new, old), after, at
    )
    return chosen, jnp.exp(jnp.minimum(gain, 0.0))


@eqx.filter_jit
def _pilot(keys: Array, target: Target, beta: Array, chains: int, leaps: int) -> tuple[Array, Array]:
    """Steps that kept the acceptance, and how much `extra` varied between chains, at each of common temperatures."""

    def single(key: Array, target: Target) -> tuple[Array, Array]:
        key, draw = jax.random.split(key)
        point = _point(target, target.draw(draw, chains))
        log_step = jnp.zeros(point.base.shape[1:], point.base.dtype)

        def one(
            carry: tuple[_Point, Array], inputs: tuple[Array, Array]
        ) -> tuple[tuple[_Point, Array], tuple[Array, Array]]:
            point, log_step = carry
            key, value = inputs
            at = jnp.full(log_step.shape, value)
            point, accepted = _move(key, target, point, at, jnp.exp(log_step), leaps)
            log_step = jnp.clip(log_step + _GAIN * (accepted.mean(0) - _ACCEPTANCE), -12.0, 1.0)
            # Of the absolute deviation, for far outliers are common near the start.
            spread = jnp.abs(point.extra - jnp.median(point.extra, 0)).mean(0)
            return (point, log_step), (log_step, spread)

        inputs = (jax.random.split(key, beta.shape[0]), beta)
        return jax.lax.scan(one, (point, log_step), inputs)[1]

    return eqx.filter_vmap(single)(keys, target)


@eqx.filter_jit
def _forward(keys: Array, target: Target, schedule: Schedule, chains: int, leaps: int) -> Run:
    def single(key: Array, target: Target, beta: Array, step: Array) -> Run:
        key, draw = jax.random.split(key)
        point = _point(target, target.draw(draw, chains))

        def one(
            carry: tuple[_Point, Array], inputs: tuple[Array, Array, Array, Array]
        ) -> tuple[tuple[_Point, Array], Array]:
            point, weights = carry
            key, before, after, step = inputs
            weights = weights + (after - before) * point.extra
            point, accepted = _move(key, target, point, after, step, leaps)
            return (point, weights), accepted.mean(0)

        inputs = (jax.random.split(key, step.shape[0]), beta[:-1], beta[1:], step)
        (point, weights), accepted = jax.lax.scan(one, (point, jnp.zeros_like(point.base)), inputs)
        return Run(weights, accepted, point.state)

    return eqx.filter_vmap(single)(keys, target, schedule.beta, schedule.step)


@eqx.filter_jit
def _backward(keys: Array, target: Target, schedule: Schedule, states: Array, leaps: int) -> Run:
    def single(key: Array, target: Target, beta: Array, step: Array, state: Array) -> Run:
        point = _point(target, state)

        def one(
            carry: tuple[_Point, Array], inputs: tuple[Array, Array, Array, Array]
        ) -> tuple[tuple[_Point, Array], Array]:
            point, weights = carry
            key, before, after, step = inputs
            point, accepted = _move(key, target, point, after, step, leaps)
            return (point, weights + (after - before) * point.extra), accepted.mean(0)

        inputs = (jax.random.split(key, step.shape[0]), beta[:-1], beta[1:], step)
        start = (point, jnp.zeros_like(point.base))
        (point, weights), accepted = jax.lax.scan(one, start, inputs, reverse=True)
        return Run(weights, accepted, point.state)

    return eqx.filter_vmap(single)(keys, target, schedule.beta, schedule.step, states)


def plan(key: Array, target: Target, stack: int, *, temperatures: int, chains: int, leaps: int) -> Schedule:
    """Return temperatures at which the chains of a pilot run met equal resistance, and step sizes to go with them.

    Parameters
    ----------
    key
        JAX random key of the pilot run.
    target
        Problems along a leading axis of length `stack`.
    temperatures
        Number of moves; the pilot makes as many.
    chains
        Of the pilot.
    leaps
        Leapfrog steps of a move.
    """
    half = temperatures - temperatures // 2
    grid = np.union1d(np.geomspace(1e-9, 1.0, half), np.linspace(0.0, 1.0, temperatures // 2 + 1))
    kind = jax.tree.leaves(eqx.filter(target, eqx.is_inexact_array))[0].dtype
    found = _pilot(jax.random.split(key, stack), target, jnp.asarray(grid, kind), chains, leaps)
    log_step, spread = (np.asarray(part, np.float64) for part in found)
    shape = spread.shape[2:]
    log_step, spread = (
        np.moveaxis(part.reshape(stack, grid.size, -1), 1, -1).reshape(-1, grid.size) for part in (log_step, spread)
    )
    wanted = np.linspace(0.0, 1.0, temperatures + 1)
    betas, steps = [], []
    for own_step, own_spread in zip(log_step, np.where(np.isfinite(spread), spread, 0.0), strict=True):
        length = np.append(0.0, np.cumsum(0.5 * (own_spread[1:] + own_spread[:-1]) * np.diff(grid)))
        share = (1 - _EVEN) * length / max(length[-1], 1e-300) + _EVEN * grid
        beta = np.interp(wanted, share / share[-1], grid)
        beta[0], beta[-1] = 0.0, 1.0
        betas.append(beta)
        steps.append(np.exp(np.interp(wanted[1:], share / share[-1], own_step)))

    def back(rows: list[np.ndarray]) -> np.ndarray:
        table = np.moveaxis(np.array(rows).reshape(stack, -1, len(rows[0])), -1, 1)
        return table.reshape(stack, len(rows[0]), *shape).astype(kind)

    return Schedule(back(betas), back(steps))


def forward(key: Array, target: Target, schedule: Schedule, *, chains: int, leaps: int) -> Run:
    """Return weights of chains from the start to the target: E[exp(log_weights)] = Z."""
    keys = jax.random.split(key, schedule.beta.shape[0])
    return _forward(keys, target, jax.tree.map(jnp.asarray, schedule), chains, leaps)


def backward(
    key: Array,
    target: Target,
    schedule: Schedule,
    states: Float[Array | np.ndarray, "stack chain *unit coordinate"],
    *,
    leaps: int,
) -> Run:
    """Return weights of chains from exact draws `states` of the target to the start: E[exp(-log_weights)] = 1/Z."""
    keys = jax.random.split(key, schedule.beta.shape[0])
    return _backward(keys, target, jax.tree.map(jnp.asarray, schedule), jnp.asarray(states), leaps)

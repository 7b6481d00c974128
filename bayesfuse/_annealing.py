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

from typing import Any, NamedTuple, Protocol, runtime_checkable

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


class _Plan(NamedTuple):
    """What the chains do at each move, [move, *unit]: where, in which steps, and what counts before and after it."""

    beta: Array
    step: Array
    before: Array
    after: Array


class _Record(NamedTuple):
    """What every move has met, [move, *unit] and `extra` [move, chain, *unit]."""

    acceptance: Array
    log_step: Array
    extra: Array


@eqx.filter_jit
def draw(keys: Array, target: Target, chains: int) -> Float[Array, "stack chain *unit coordinate"]:
    """Return draws of the start, of problems along a leading axis of keys and target."""
    return eqx.filter_vmap(lambda key, target: target.draw(key, chains))(keys, target)


@eqx.filter_jit
def _follow(
    keys: Array, target: Target, states: Array, plan: _Plan, gain: Array, leaps: int
) -> tuple[Array, Array, _Record]:
    """Weights, last states and record of the chains. One program serves the pilot and both directions."""

    def single(key: Array, target: Target, state: Array, plan: _Plan) -> tuple[Array, Array, _Record]:
        point = _point(target, state)

        def one(carry: tuple[_Point, Array, Array], inputs: tuple[Array, _Plan]) -> tuple[Any, _Record]:
            point, weights, factor = carry
            key, at = inputs
            weights = weights + at.before * point.extra
            point, accepted = _move(key, target, point, at.beta, at.step * jnp.exp(factor), leaps)
            weights = weights + at.after * point.extra
            factor = jnp.clip(factor + gain * (accepted.mean(0) - _ACCEPTANCE), -12.0, 1.0)
            return (point, weights, factor), _Record(accepted.mean(0), jnp.log(at.step) + factor, point.extra)

        start = (point, jnp.zeros_like(point.base), jnp.zeros_like(point.base[0]))
        (point, weights, _), record = jax.lax.scan(one, start, (jax.random.split(key, plan.beta.shape[0]), plan))
        return weights, point.state, record

    return eqx.filter_vmap(single)(keys, target, states, plan)


def schedule(key: Array, target: Target, stack: int, *, temperatures: int, chains: int, leaps: int) -> Schedule:
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
    start_key, move_key = jax.random.split(key)
    states = draw(jax.random.split(start_key, stack), target, chains)
    even = temperatures - temperatures // 2
    grid = np.sort(np.append(np.geomspace(1e-9, 1.0, temperatures // 2 + 1)[:-1], np.linspace(0.0, 1.0, even)))
    unit = states.shape[2:-1]
    beta = jnp.broadcast_to(jnp.asarray(grid, states.dtype).reshape(-1, *[1] * len(unit)), (stack, grid.size, *unit))
    plan = _Plan(beta, jnp.ones_like(beta), jnp.zeros_like(beta), jnp.zeros_like(beta))
    record = _follow(jax.random.split(move_key, stack), target, states, plan, jnp.asarray(_GAIN, states.dtype), leaps)[
        2
    ]
    extra = np.asarray(record.extra, np.float64)
    # Of the absolute deviation, for far outliers are common near the start.
    spread = np.abs(extra - np.median(extra, 2, keepdims=True)).mean(2)
    rows = [
        np.moveaxis(np.asarray(part, np.float64), 1, -1).reshape(-1, grid.size)
        for part in (record.log_step, np.where(np.isfinite(spread), spread, 0.0))
    ]
    wanted = np.linspace(0.0, 1.0, temperatures + 1)
    betas, steps = [], []
    for log_step, resistance in zip(*rows, strict=True):
        length = np.append(0.0, np.cumsum(0.5 * (resistance[1:] + resistance[:-1]) * np.diff(grid)))
        share = (1 - _EVEN) * length / max(length[-1], 1e-300) + _EVEN * grid
        betas.append(np.interp(wanted, share / share[-1], grid))
        steps.append(np.exp(np.interp(wanted[1:], share / share[-1], log_step)))

    def back(table: list[np.ndarray]) -> np.ndarray:
        moved = np.moveaxis(np.array(table).reshape(stack, *unit, len(table[0])), -1, 1)
        return moved.astype(states.dtype)

    return Schedule(back(betas), back(steps))


def forward(key: Array, target: Target, route: Schedule, *, chains: int, leaps: int) -> Run:
    """Return weights of chains from the start to the target: E[exp(log_weights)] = Z."""
    start_key, move_key = jax.random.split(key)
    states = draw(jax.random.split(start_key, route.beta.shape[0]), target, chains)
    rise = np.diff(route.beta, axis=1)
    plan = _Plan(*map(jnp.asarray, (route.beta[:, 1:], route.step, rise, np.zeros_like(rise))))
    return _run(move_key, target, states, plan, leaps)


def backward(
    key: Array, target: Target, route: Schedule, states: Float[Array, "stack chain *unit coordinate"], *, leaps: int
) -> Run:
    """Return weights of chains from exact draws `states` of the target to the start: E[exp(-log_weights)] = 1/Z."""
    rise = np.diff(route.beta, axis=1)
    plan = _Plan(*(jnp.asarray(part[:, ::-1]) for part in (route.beta[:, 1:], route.step, np.zeros_like(rise), rise)))
    return _run(key, target, states, plan, leaps)


def _run(key: Array, target: Target, states: Array, plan: _Plan, leaps: int) -> Run:
    keys = jax.random.split(key, states.shape[0])
    weights, states, record = _follow(keys, target, states, plan, jnp.zeros((), states.dtype), leaps)
    return Run(weights, record.acceptance, states)

"""The evidence log p(X | orders) itself, by sampling: what the free energy of `vbnmf` is a lower bound of.

Two samplers, on the problems of `evidence_problem`:

`importance`
    independent draws from the variational posterior, weighted: cheap, and worth what its effective sample size says;
`annealed`
    chains that move from the prior, or from the variational posterior, to the posterior: careful. For recordings drawn
    from the model, chains that go back from the factors they were drawn with bound the evidence from above, so that
    nothing about convergence has to be believed.

Both work on a list of problems at a time (orders, recordings); those of similar size run side by side, and frames and
chains are axes. With fixed dictionaries frames are independent, and there is one evidence per frame. With a learned
dictionary there is one for the recording; a variational posterior covers one of K! relabellings of its K components,
and is no place to start from.

    q = inference.fit(power, ...)
    found = evidence.annealed(key, evidence.of_fit(power, q))
    found[0].total, found[0].total_error

References
----------
[N01] R. M. Neal, "Annealed importance sampling", Statistics and Computing 11, 2001.
[GGA15] R. B. Grosse, Z. Ghahramani, R. P. Adams, "Sandwiching the marginal likelihood using bidirectional Monte
Carlo", arXiv:1511.02543, 2015.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import logsumexp

from bayesfuse import _annealing
from bayesfuse._module import Module
from bayesfuse._precision import precision
from bayesfuse.evidence_problem import Path, Problem, Start, path, problems
from bayesfuse.inference import Fit

__all__ = ["Evidence", "Problem", "Start", "annealed", "importance", "of_fit", "problems"]

# Variances of all bins, chains and problems that are held at a time: 128 MiB in float32.
_BLOCK = 1 << 25
# Draws of `importance` that are held at a time.
_DRAWS = 32
# Orders up to this one run together although the smallest then carries many idle components.
_SMALL = 16


class Evidence(Module):
    """Estimate of log p(X | orders) in nats, per frame or, with a learned dictionary, of the recording.

    Attributes
    ----------
    value
        log of the mean weight: a lower bound in expectation, and the sharper the more chains.
    error
        Its standard error, from the spread of the weights.
    effective_size
        (sum w)^2 / sum w^2, between 1 and the number of draws: near 1 one draw decides, and `error` is too small.
    log_weights
        Of every draw or chain.
    upper
        Estimate from chains that go back from the true factors, an upper bound in expectation; None without them.
    upper_error
        Its standard error given these factors, the one draw of the posterior that all chains leave from.
    acceptance
        Mean probability with which chains moved; NaN for independent draws.
    """

    value: Float[np.ndarray, "*unit"]
    error: Float[np.ndarray, "*unit"]
    effective_size: Float[np.ndarray, "*unit"]
    log_weights: Float[np.ndarray, "draw *unit"]
    upper: Float[np.ndarray, "*unit"] | None
    upper_error: Float[np.ndarray, "*unit"] | None
    acceptance: float

    @property
    def total(self) -> float:
        """Of all frames."""
        return float(self.value.sum())

    @property
    def total_error(self) -> float:
        """Standard error of `total`: frames are sampled independently."""
        return float(np.sqrt((self.error**2).sum()))


def of_fit(power: Float[np.ndarray, "freq frame"], fit: Fit) -> tuple[Problem, ...]:
    """Return the problems of all combinations of orders of a fit, whose evidence compares with its free energies.

    Parameters
    ----------
    power
        |X|^2 that `fit` was given, in its own unit.

    Raises
    ------
    ValueError
        As `problems`.
    """
    change = -2.0 * power.shape[0] * math.log(fit.scale)
    with precision(power):
        normal = np.divide(power, fit.scale**2, dtype=np.float64).astype(power.dtype)
        return problems(normal, fit.posterior, fit.prior, offset=change)


def importance(
    key: Array,
    items: Sequence[Problem],
    *,
    num_draws: int = 256,
    start: Start = "posterior",
    defence: float = 0.02,
) -> list[Evidence]:
    """Return evidences by importance sampling from the variational posterior.

    Parameters
    ----------
    key
        JAX random key.
    items
        From `problems` or `of_fit`.
    num_draws
        Independent draws for every problem and frame.
    start
        ``"prior"`` draws from there instead: for tests.
    defence
        Share of the prior in the distribution of every factor. q alone has lighter tails than the posterior.

    Raises
    ------
    ValueError
        For an empty list, fewer than two draws, or a share outside (0, 1).
    """
    _check("importance", items, start, defence, num_draws=num_draws)
    results: list[Evidence | None] = [None] * len(items)
    with precision(items[0].power):
        for indices, stack in _stacks(items, start, defence, _DRAWS):
            parts = []
            for _ in range(-(-num_draws // _DRAWS)):
                key, draw = jax.random.split(key)
                states = _annealing.draw(jax.random.split(draw, len(indices)), stack, _DRAWS)
                parts.append(np.asarray(_weigh(stack, states), np.float64))
            weights = np.concatenate(parts, axis=1)[:, :num_draws]
            for i, row in zip(indices, weights, strict=True):
                results[i] = _summary(items[i], row)
    return [r for r in results if r is not None]


@eqx.filter_jit
def _weigh(stack: Path, states: Array) -> Float[Array, "stack draw *unit"]:
    return eqx.filter_vmap(lambda path, state: path.extra(state))(stack, states)


def annealed(
    key: Array,
    items: Sequence[Problem],
    *,
    num_chains: int = 16,
    num_temperatures: int = 200,
    num_leaps: int = 5,
    start: Start = "prior",
    defence: float = 0.02,
    truths: Sequence[Float[np.ndarray, "..."] | None] | None = None,
) -> list[Evidence]:
    """Return evidences by annealed importance sampling with Hamiltonian moves ([N01]).

    Temperatures and step sizes are those that suit a pilot run, one set for each problem and frame.

    Parameters
    ----------
    key
        JAX random key.
    items
        From `problems` or `of_fit`.
    num_chains
        Independent chains for every problem and frame.
    num_temperatures
        Moves of every chain: the more the better, and without end.
    num_leaps
        Leapfrog steps of a move.
    start
        ``"prior"``, or ``"posterior"``: from the variational one, which is nearer and yet took longer wherever it was
        measured, for its mode is one of many.
    defence
        Share of the prior in a start from the posterior, of every factor.
    truths
        `Problem.state` of the factors that each mixture was drawn with, for `Evidence.upper` ([GGA15]); None for
        problems of which they are not known, such as those of another order.

    Raises
    ------
    ValueError
        For an empty list, another number of truths than of problems, or settings out of range.
    """
    _check("annealed", items, start, defence, num_draws=num_chains, num_temperatures=num_temperatures)
    if num_leaps < 1:
        raise ValueError(f"annealed got num_leaps={num_leaps}: a move has at least 1 leapfrog step.")
    if truths is not None and len(truths) != len(items):
        raise ValueError(f"annealed got {len(truths)} truths for {len(items)} problems: give one for each, or None.")
    for item, truth in zip(items, truths or (), strict=bool(truths)):
        if truth is not None and np.shape(truth) != _shape(item):
            raise ValueError(
                f"a truth has shape {np.shape(truth)}: expected {_shape(item)}, as Problem.state returns it."
            )
    results: list[Evidence | None] = [None] * len(items)
    with precision(items[0].power):
        for indices, stack in _stacks(items, start, defence, num_chains):
            key, pilot, go, back = jax.random.split(key, 4)
            settings: dict[str, int] = {"chains": num_chains, "leaps": num_leaps}
            route = _annealing.schedule(pilot, stack, len(indices), temperatures=num_temperatures, **settings)
            run = _annealing.forward(go, stack, route, **settings)
            reverse = None
            if truths is not None and any(truths[i] is not None for i in indices):
                logs = np.stack([_padded_truth(items[i], stack, truths[i]) for i in indices])
                states = eqx.filter_vmap(lambda path, row: path.coordinates(row[None]))(stack, logs)
                states = jnp.repeat(states, num_chains, 1)
                reverse = _annealing.backward(back, stack, route, states, leaps=num_leaps).log_weights
            for position, i in enumerate(indices):
                known = reverse is not None and truths is not None and truths[i] is not None
                upper = np.asarray(reverse[position], np.float64) if reverse is not None and known else None
                acceptance = float(np.mean(run.acceptance[position]))
                results[i] = _summary(items[i], np.asarray(run.log_weights[position], np.float64), upper, acceptance)
    return [r for r in results if r is not None]


def _summary(
    item: Problem, log_weights: np.ndarray, reverse: np.ndarray | None = None, acceptance: float = math.nan
) -> Evidence:
    """log mean w and its standard error by the delta method, in the unit of the mixture."""
    frames = item.power.shape[0] if item.dictionary is not None else 1
    offset = float(item.offset) * frames
    value, error, size = _log_mean(log_weights)
    upper = upper_error = None
    if reverse is not None:
        inverse, upper_error, _ = _log_mean(-reverse)
        upper = np.asarray(offset - inverse)
    return Evidence(np.asarray(value + offset), error, size, log_weights + offset, upper, upper_error, acceptance)


def _log_mean(log_weights: Float[np.ndarray, "draw *unit"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log of the mean weight, its standard error, and the effective sample size."""
    count = log_weights.shape[0]
    total = _log_sum(log_weights)
    size = np.exp(2 * total - _log_sum(2 * log_weights))
    error = np.sqrt(np.maximum(count / size - 1, 0.0) / (count - 1))
    return np.asarray(total - math.log(count)), np.asarray(error), np.asarray(size)


def _log_sum(values: Float[np.ndarray, "draw *unit"]) -> Float[np.ndarray, "*unit"]:
    return np.asarray(logsumexp(values, axis=0))


def _stacks(items: Sequence[Problem], start: Start, defence: float, lanes: int) -> Iterator[tuple[list[int], Path]]:
    """Problems of like shape side by side, the smaller orders padded, as many at a time as fit into memory."""
    kinds: dict[Any, list[int]] = {}
    for i, item in enumerate(items):
        fixed = item.weights.shape[1] if item.dictionary is not None else None
        kinds.setdefault((item.power.shape, fixed, item.power.dtype), []).append(i)
    for members in kinds.values():
        members.sort(key=lambda i: -items[i].components)
        while members:
            largest = items[members[0]].components
            together = [i for i in members if largest <= max(2 * items[i].components, _SMALL)]
            size = max(1, _BLOCK // (lanes * items[members[0]].power.size))
            # Parts of one size, for another would be another program.
            size = -(-len(together) // -(-len(together) // size))
            for first in range(0, len(together), size):
                part = together[first : first + size]
                padded = [items[i].padded(largest) for i in part]
                stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)
                yield part, _paths(stack, start, jnp.asarray(defence, stack.power.dtype))
            members = members[len(together) :]


@eqx.filter_jit
def _paths(stack: Problem, start: Start, defence: Array) -> Path:
    return eqx.filter_vmap(lambda problem: path(problem, start, defence))(stack)


def _shape(item: Problem) -> tuple[int, ...]:
    """Of the coordinates of one draw."""
    frames, freq = item.power.shape
    if item.dictionary is None:
        return frames, item.components
    return (freq * item.learned + frames * item.components,)


def _padded_truth(item: Problem, stack: Path, truth: np.ndarray | None) -> np.ndarray:
    """Logarithms of the factors of the padded problem; 0 where they are idle or not known."""
    have, want = item.components, stack.problem.activations.shape.shape[-1]
    widen = functools.partial(np.pad, pad_width=((0, 0), (0, want - have)))
    values = np.asarray(np.zeros(_shape(item)) if truth is None else truth, item.power.dtype)
    if item.dictionary is None:
        return widen(values)
    frames, freq = item.power.shape
    border = freq * item.learned
    columns, rows = values[:border].reshape(freq, -1), values[border:].reshape(frames, -1)
    return np.concatenate([widen(columns).ravel(), widen(rows).ravel()])


def _check(name: str, items: Sequence[Problem], start: Start, defence: float, **counts: int) -> None:
    if len(items) == 0:
        raise ValueError(f"{name} got no problem: build them with evidence.problems or evidence.of_fit.")
    if start not in get_args(Start):
        raise ValueError(f"{name} got start={start!r}: expected one of {', '.join(get_args(Start))}.")
    if not 0 < defence < 1:
        raise ValueError(f"{name} got defence={defence}: expected a share between 0 and 1, such as 0.02.")
    for what, value in counts.items():
        if value < 2:
            raise ValueError(f"{name} got {what}={value}: expected at least 2.")

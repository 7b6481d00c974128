"""Fitting the variational model of `vbnmf` to a recording: start, coordinate ascent, trace.

The model is scale dependent: its priors have mean one. `fit` therefore divides the mixture by its root mean power, so
that posterior and prior live in that unit and `Prior.noise` is relative to the mixture's mean power, and reports free
energies of the mixture as it came, change of variables included. Multiplying the mixture by a constant changes nothing
but that unit.

Frames are padded to a few lengths (`nmf.bucket_length`) under an exact mask, so that recordings of similar length
share one compiled program; numbers never cause a compilation.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesfuse import nmf
from bayesfuse._module import Module
from bayesfuse._precision import precision
from bayesfuse.vbnmf import (
    Component,
    Factor,
    FreeEnergy,
    GammaPrior,
    Posterior,
    Prior,
    Scores,
    Terms,
    Variant,
    combination_scores,
    combination_terms,
    combine_logs,
    free_energy,
    multiplicative_steps,
    source_scores,
    step,
    tempered,
    update_sources,
)

Learned = Literal["quantised", "prior"]
Power = Float[np.ndarray | Array, "freq frame"]
Candidate = int | Factor | Float[np.ndarray | Array, "_ _"]


class Fit(Module):
    """Result of `fit`. Arrays are NumPy, in the dtype of the mixture.

    Attributes
    ----------
    free_energy
        Bound of log p(X) of the mixture in its own unit.
    scores
        The same bound before averaging over orders: one `Scores` over `posterior.combinations` (marginal) or one per
        source over its candidates (explicit, without the terms that all candidates share).
    trace
        Objective (the free energy, tempered) after each of `trace_iterations`; it never falls.
    posterior, prior
        In the unit of the normalised mixture, X / scale.
    scale
        Root mean power of the mixture.
    """

    free_energy: FreeEnergy
    scores: tuple[Scores, ...]
    trace: Float[np.ndarray, " record"]
    trace_iterations: tuple[int, ...]
    posterior: Posterior
    prior: Prior
    scale: float


def normalise(power: Power) -> tuple[Float[np.ndarray, "freq frame"], float]:
    """Return the power divided by its mean, and the root of that mean (1 for silence)."""
    power = np.asarray(power)
    if power.ndim != 2 or 0 in power.shape:
        raise ValueError(f"power has shape {power.shape}: expected a non-empty [freq, frame] array.")
    if not np.issubdtype(power.dtype, np.floating):
        raise ValueError(f"power has dtype {power.dtype}: expected |X|^2 as float32 or float64, not X itself.")
    if not np.all(np.isfinite(power)) or np.min(power) < 0:
        raise ValueError("power must be finite and non-negative; it has NaN, infinite or negative entries.")
    mean = float(np.mean(power, dtype=np.float64))
    if mean == 0:
        return power, 1.0
    # Divided in double precision: the mean of very small float32 powers may itself be no float32 number.
    return np.divide(power, mean, dtype=np.float64).astype(power.dtype), float(np.sqrt(mean))


def start(
    power: Power,
    candidates: Sequence[Sequence[Candidate]],
    prior: Prior,
    *,
    variant: Variant = "marginal",
    seed: int = 0,
    ml_iters: int = 10,
    learned: Learned = "quantised",
) -> Posterior:
    """Return a start for `fit`: dictionaries as given, activations from a few maximum-likelihood updates.

    Parameters
    ----------
    power
        Power of the mixture, [freq, frame], in any unit.
    candidates
        ``[source][order]``: an array [freq, component] is a dictionary held fixed (Dirac); a `Factor` a posterior
        over a dictionary held fixed, e.g. of a VB-trained one; an integer the order of a dictionary to be learned on
        the mixture.
    ml_iters
        Multiplicative updates before the first variational one, all orders at once, q(K) at its prior. [JVR14] starts
        from constants, which is 0.
    learned
        Where a learned dictionary starts. ``"quantised"``: at the vector quantisation of the mixture's frames; beside
        a source whose dictionary is held, of the quieter half of them alone, in which a background is heard without
        the foreground. ``"prior"``: at draws from the dictionary's prior, as in [JVR14].

    Raises
    ------
    ValueError
        For dictionaries with another number of frequencies than the mixture, with negative or non-finite entries or
        with a zero column, for orders below one, and for a layout other than the prior's.
    """
    if [len(row) for row in candidates] != [len(row) for row in prior.dictionaries]:
        raise ValueError(
            f"candidates has {[len(r) for r in candidates]} entries per source, the prior "
            f"{[len(r) for r in prior.dictionaries]}."
        )
    if learned not in get_args(Learned):
        raise ValueError(f"learned={learned!r}: expected one of {', '.join(get_args(Learned))}.")
    normal, _ = normalise(power)
    _check_dtype("prior", prior.noise, normal)
    held = [all(not isinstance(c, int | np.integer) for c in row) for row in candidates]

    def first(j: int, m: int, order: int) -> Float[np.ndarray, "freq component"]:
        number = seed + 1000 * j + m
        if learned == "prior":
            return _drawn_dictionary(number, prior.dictionaries[j][m], normal, order)
        return _quantised_dictionary(number, _quieter_half(normal, order) if any(held) else normal, order)

    with precision(normal):
        components = tuple(
            tuple(_component(normal, candidate, prior, j, m, first) for m, candidate in enumerate(row))
            for j, row in enumerate(candidates)
        )
        q = Posterior(components, (combine_logs(prior.order),), None, "marginal")
        if ml_iters > 0:
            padded, mask, q = pad(normal, q)
            q = _crop(_multiply(padded, q, prior, mask, jnp.asarray(ml_iters)), normal.shape[1])
        if variant == "explicit":
            variance = jax.device_put(np.ones((len(candidates), *normal.shape), normal.dtype))
            q = Posterior(q.components, prior.order, variance, "explicit")
        return q


def _component(
    power: Float[np.ndarray, "freq frame"],
    candidate: Candidate,
    prior: Prior,
    j: int,
    m: int,
    first: Callable[[int, int, int], Float[np.ndarray, "freq component"]],
) -> Component:
    freq, frames = power.shape
    name = f"candidates[{j}][{m}]"
    if isinstance(candidate, int | np.integer):
        if candidate < 1:
            raise ValueError(f"{name}={candidate}: an order is at least 1.")
        if candidate > frames:
            raise ValueError(f"{name}={candidate}: at most one component per frame, of which there are {frames}.")
        weights = first(j, m, int(candidate))
        unknown = jnp.asarray(np.full(weights.shape, np.nan, power.dtype))
        dictionary = Factor(jnp.asarray(weights), jnp.asarray(weights), unknown, unknown, learned=True)
    else:
        factor = candidate if isinstance(candidate, Factor) else Factor(jnp.asarray(candidate), jnp.asarray(candidate))
        weights = np.asarray(factor.mean)
        if weights.ndim != 2 or weights.shape[0] != freq or weights.shape[1] < 1:
            raise ValueError(
                f"{name} has shape {weights.shape}: expected [freq, component] with {freq} frequencies as the mixture; "
                "was it trained with another transform?"
            )
        if not np.all(np.isfinite(weights)) or weights.min() < 0 or np.any(weights.max(0) == 0):
            raise ValueError(f"{name}: a dictionary must be finite and non-negative and have no zero column.")
        held = jax.tree.map(lambda y: jnp.asarray(y, power.dtype), factor)
        dictionary = Factor(held.mean, held.harmonic, held.rho, held.tau)
    mean = prior.activations[j][m]
    constant = jax.device_put(np.full((weights.shape[1], frames), float(mean.shape.nu / mean.rate), power.dtype))
    unknown = jax.device_put(np.full(constant.shape, np.nan, power.dtype))
    return Component(dictionary, Factor(constant, constant, unknown, unknown, learned=True))


def _quieter_half(power: Float[np.ndarray, "freq frame"], order: int) -> Float[np.ndarray, "freq chosen"]:
    """The frames of lower level, averaged in the logarithm so that no loud band decides; at least `order` of them."""
    level = np.log(power + 1e-6).mean(0)
    count = max(power.shape[1] // 2, min(order, power.shape[1]))
    return power[:, np.sort(np.argsort(level, kind="stable")[:count])]


def _drawn_dictionary(
    seed: int, prior: GammaPrior, power: Float[np.ndarray, "freq frame"], order: int
) -> Float[np.ndarray, "freq component"]:
    """Draws from the prior, kept off the zeros that small shapes round to and a harmonic mean never leaves."""
    shape, rate = float(prior.shape.nu), float(prior.rate)
    draws = np.random.default_rng(seed).gamma(shape, 1 / rate, (power.shape[0], order))
    return np.maximum(draws, 1e-12).astype(power.dtype)


def _quantised_dictionary(
    seed: int, power: Float[np.ndarray, "freq frame"], order: int
) -> Float[np.ndarray, "freq component"]:
    """Columns of mean 1, the scale that the dictionary's prior expects; flat noise for want of frames with power."""
    active = int(np.count_nonzero(power.max(0)))
    spare = np.random.default_rng(seed).uniform(0.5, 1.5, (power.shape[0], max(order - active, 0)))
    columns = [spare.astype(power.dtype)]
    if active > 0:
        columns.insert(0, np.asarray(nmf.vector_quantisation(seed, power, min(order, active))))
    weights = np.concatenate(columns, axis=1)
    return (weights / weights.mean(0)).astype(power.dtype)


def _check_dtype(name: str, array: Array | np.ndarray, power: Float[np.ndarray, "freq frame"]) -> None:
    if array.dtype != power.dtype:
        raise ValueError(f"the {name} is {array.dtype}, the mixture {power.dtype}: use one dtype.")


def _check_start(power: Float[np.ndarray, "freq frame"], q: Posterior, prior: Prior) -> None:
    """Whether a start belongs to this mixture and this prior."""
    first = q.components[0][0]
    freq, frames = first.dictionary.mean.shape[0], first.activations.mean.shape[1]
    if power.shape != (freq, frames):
        raise ValueError(
            f"power has shape {power.shape}, but q0 was made for {freq} frequencies and {frames} frames: call `start` "
            "with the same mixture."
        )
    counts = [len(orders) for orders in q.components], [len(orders) for orders in prior.dictionaries]
    if counts[0] != counts[1]:
        raise ValueError(f"q0 has {counts[0]} candidates per source, the prior {counts[1]}.")
    _check_dtype("prior", prior.noise, power)
    _check_dtype("start q0", first.activations.mean, power)


def pad(
    power: Float[np.ndarray, "freq frame"], q: Posterior
) -> tuple[Float[Array, "freq padded"], Float[Array, " padded"], Posterior]:
    """Pad to the bucket: silence, mask 0, and activations of one, which the mask keeps from mattering.

    Padding and cropping are done on the host: in JAX they would be another program for every number of frames.
    """
    extra = nmf.bucket_length(power.shape[1]) - power.shape[1]

    def widen(array: Array | np.ndarray, value: float) -> Array:
        widths = [(0, 0)] * (array.ndim - 1) + [(0, extra)]
        return jax.device_put(np.pad(np.asarray(array), widths, constant_values=value))

    components = tuple(
        tuple(Component(c.dictionary, jax.tree.map(lambda y: widen(y, 1.0), c.activations)) for c in orders)
        for orders in q.components
    )
    variance = None if q.source_variance is None else widen(q.source_variance, 1.0)
    padded = Posterior(components, q.log_order, variance, q.variant)
    return widen(power, 0.0), widen(np.ones(power.shape[1], power.dtype), 0.0), padded


def _crop(q: Posterior, frames: int) -> Posterior:
    def narrow(array: Array | np.ndarray) -> Array:
        return jax.device_put(np.asarray(array)[..., :frames])

    components = tuple(
        tuple(Component(c.dictionary, jax.tree.map(narrow, c.activations)) for c in orders) for orders in q.components
    )
    variance = None if q.source_variance is None else narrow(q.source_variance)
    return Posterior(components, q.log_order, variance, q.variant)


@eqx.filter_jit
def _multiply(power: Array, q: Posterior, prior: Prior, mask: Array, iterations: Array) -> Posterior:
    return multiplicative_steps(power, q, prior, mask, iterations)


@eqx.filter_jit
def _advance(power: Array, q: Posterior, prior: Prior, mask: Array, iterations: Array, sequence: str) -> Posterior:
    return step(power, q, prior, mask, sequence=sequence, count=iterations)


@eqx.filter_jit
def _evaluate(power: Array, q: Posterior, prior: Prior, mask: Array) -> tuple[FreeEnergy, Array]:
    energy = free_energy(power, q, prior, mask)
    return energy, tempered(energy, q, prior)


def conclude(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"]
) -> tuple[Posterior, FreeEnergy, tuple[Scores, ...]]:
    """q(S) for the final factors, and everything that is reported about the result."""
    q = update_sources(q, prior)
    if q.variant == "marginal":
        scores: tuple[Scores, ...] = (combination_scores(power, q, prior, mask),)
    else:
        scores = source_scores(power, q, prior, mask)
    return q, free_energy(power, q, prior, mask), scores


_conclude = eqx.filter_jit(conclude)


def fit(
    power: Power,
    q0: Posterior,
    prior: Prior,
    *,
    num_iters: int = 50,
    tolerance: float | None = None,
    trace_every: int = 10,
    sequence: str | None = None,
    progress: bool = False,
) -> Fit:
    """Return the variational posterior of a mixture after coordinate ascent from `q0`.

    Parameters
    ----------
    power
        |X|^2 of the mixture, [freq, frame], in any unit; float32 or float64, which the results follow.
    q0, prior
        From `start` and `make_prior`. `Prior.noise` is relative to the mean power of the mixture.
    num_iters
        Sweeps at most.
    tolerance
        Stop as soon as the objective gains less than this fraction of its magnitude per sweep, measured over
        `trace_every` sweeps; by default all sweeps are done.
    trace_every
        Sweeps between two evaluations of the objective.
    sequence
        Order of the updates, see `vbnmf.step`; by default sources, dictionaries, activations, orders.
    progress
        Show a progress bar.

    Raises
    ------
    ValueError
        For a power that is not a finite non-negative matrix, a start made for another mixture or prior, or settings
        out of range.
    FloatingPointError
        If the objective becomes NaN or infinite; the message names the iteration and the usual causes.
    """
    if num_iters < 1 or trace_every < 1:
        raise ValueError(f"num_iters={num_iters}, trace_every={trace_every}: both must be at least 1.")
    normal, scale = normalise(power)
    _check_start(normal, q0, prior)
    sequence = sequence or ("WHK" if q0.variant == "marginal" else "SWHK")
    with precision(normal):
        padded, mask, q = pad(normal, q0)
        trace: list[float] = []
        iterations: list[int] = []
        with _bar(num_iters, progress) as bar:
            done = 0
            while done < num_iters:
                count = min(trace_every, num_iters - done)
                q = _advance(padded, q, prior, mask, jnp.asarray(count), sequence)
                energy, extra = _evaluate(padded, q, prior, mask)
                done += count
                trace.append(energy.total + float(extra))
                iterations.append(done)
                bar.update(count)
                if not np.isfinite(trace[-1]):
                    raise FloatingPointError(
                        f"the objective is {trace[-1]} at iteration {done}. Usual causes: a dictionary whose every "
                        "entry is zero at a frequency where the mixture is not, with prior.noise = 0; float32 with a "
                        "prior shape below about 0.02; a start with zeros in every component of a bin."
                    )
                if tolerance is not None and len(trace) > 1:
                    gain = (trace[-1] - trace[-2]) / count
                    if gain < tolerance * abs(trace[-1]):
                        break
        return finished(normal, scale, prior, *_conclude(padded, q, prior, mask), trace, iterations)


def finished(
    normal: Float[np.ndarray, "freq frame"],
    scale: float,
    prior: Prior,
    q: Posterior,
    energy: FreeEnergy,
    scores: tuple[Scores, ...],
    trace: Sequence[float],
    iterations: Sequence[int],
) -> Fit:
    """The fit of a mixture from what was found for it, padded and normalised: cropped, and in the mixture's unit."""
    frames = normal.shape[1]
    change = -2.0 * normal.shape[0] * np.log(scale)
    energy = FreeEnergy(np.asarray(energy.frames)[:frames] + normal.dtype.type(change), energy.dictionary, energy.order)
    # In the explicit variant the change of variables belongs to the mixture, not to a source's score.
    shift = change if q.variant == "marginal" else 0.0
    scores = tuple(Scores(np.asarray(s.frames)[:, :frames] + normal.dtype.type(shift), s.dictionary) for s in scores)
    result = Fit(
        energy,
        scores,
        np.asarray(trace) + change * frames,
        tuple(iterations),
        _crop(q, frames),
        prior,
        scale,
    )
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, result)


@eqx.filter_jit
def _terms(power: Array, q: Posterior, prior: Prior, bands: Array) -> Terms:
    return combination_terms(power, q, prior, bands)


def energy_terms(power: Power, fit: Fit, bands: Float[np.ndarray, "row _"] | None = None) -> Terms:
    """Return the free energy of every combination of orders in parts: likelihood by band, activations, dictionaries.

    For fusion rules that trust the parts differently. The likelihood summed over bands, plus the activations summed
    over sources, are the frames of `fit.scores`, constants of the unit of power included.

    Parameters
    ----------
    power
        |X|^2 that `fit` was given, [freq, frame], in its own unit.
    bands
        Share of every frequency in each band, columns of sum 1; one band of all frequencies by default.

    Raises
    ------
    ValueError
        For a fit of the explicit variant, whose likelihood belongs to no combination, or bands of other frequencies.
    """
    if fit.posterior.variant != "marginal":
        raise ValueError("energy_terms got a fit of the explicit variant: fit with variant='marginal'.")
    power = np.asarray(power)
    groups = np.ones((1, power.shape[0])) if bands is None else np.asarray(bands)
    if groups.ndim != 2 or groups.shape[1] != power.shape[0]:
        raise ValueError(f"bands has shape {groups.shape}: expected [band, {power.shape[0]}], a column per frequency.")
    with precision(power):
        normal = np.divide(power, fit.scale**2, dtype=np.float64).astype(power.dtype)
        padded, _, q = pad(normal, fit.posterior)
        found = _terms(padded, q, fit.prior, jnp.asarray(groups, power.dtype))
        data, activations = (np.asarray(part)[..., : power.shape[1]] for part in (found.data, found.activations))
    unit = -2.0 * np.log(fit.scale) * groups.sum(axis=1)
    return Terms(data + unit[:, None].astype(power.dtype), activations, np.asarray(found.dictionary))


def _bar(total: int, progress: bool):
    from tqdm.auto import tqdm

    return tqdm(total=total, disable=not progress, desc="VB-NMF", unit="it", leave=False)

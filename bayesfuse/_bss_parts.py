"""The parts of estimates of known sources: what a filter of the references explains, and what it does not.

The definitions of the ratios that are made of their energies are in `bss_eval`.
"""

from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bayesfuse import _projection as projection
from bayesfuse._module import Module

AnyArray = np.ndarray | Array


class References(Module):
    """The true sources of a mixture with their statistics, for any number of estimates; made by `prepare`.

    Attributes
    ----------
    signals
        Waveforms times `scale`, zero where they are not finite.
    scale
        A power of two that makes the peak about one.
    finite
        Whether each source is finite throughout.
    joint, own
        Factored normal equations of all sources, and of each.
    taps
        Length L of the filters.
    shape
        Shape of the waveforms as they were given, [source, sample] or [source, channel, sample].
    """

    signals: Float[np.ndarray, "source channel sample"]
    scale: float
    finite: Bool[np.ndarray, " source"]
    joint: projection.Span
    own: tuple[projection.Span, ...]
    taps: int = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)


def prepare(references: Float[AnyArray, "..."], *, taps: int = 512) -> References:
    """The statistics of the true sources of a mixture, to be shared by all calls that score estimates of them.

    Parameters
    ----------
    references
        True sources, [source, sample] or [source, channel, sample].
    taps
        Length L of the filters in samples, 512 in the campaigns.

    Returns
    -------
    References
        For the three `bss_eval_*` functions. The matrix it keeps has (source channels x taps)^2 entries.

    Raises
    ------
    ValueError
        If the shape is another one, a source has no samples, or `taps` is not positive.
    """
    shape = np.shape(references)
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(
            f"prepare got references of shape {shape}; give [source, sample] or [source, channel, sample] with at "
            "least one of each (a single source needs its axis, too)."
        )
    if taps < 1:
        raise ValueError(f"prepare got {taps} taps; filters have at least one, 512 in the evaluation campaigns.")
    signals = np.asarray(references, np.float64).reshape(shape[0], -1, shape[-1])
    signals, finite = zero_where_not_finite(signals)
    peak = np.abs(signals).max()
    scale = float(np.ldexp(1.0, -np.frexp(peak)[1])) if peak > 0 else 1.0
    signals = signals * scale
    correlations = projection.correlate(rows := _rows(signals), rows, taps)
    channels = signals.shape[1]
    own = [slice(start, start + channels) for start in range(0, len(rows), channels)]
    return References(
        signals, scale, finite, projection.span(correlations),
        tuple(projection.span(correlations[part, part]) for part in own), taps, shape,
    )  # fmt: skip


class Pairs(NamedTuple):
    """Which references are compared with which estimates."""

    reference: Int[np.ndarray, " pair"]
    estimate: Int[np.ndarray, " pair"]


class Bank(NamedTuple):
    """Spectra of the projections' filters: on all channels of all references, and on those of one."""

    joint: Any
    own: Any
    size: int


def filter_bank(
    references: References, estimates: Float[np.ndarray, "model source channel sample"], pairs: Pairs, width: int
) -> Bank:
    models, sources, channels, _ = estimates.shape
    taps = references.taps
    cross = projection.correlate(_rows(references.signals), _rows(estimates), taps)
    joint = projection.filters(references.joint, cross).reshape(models, sources, channels, -1, taps)
    cross = cross.reshape(sources, channels, models, sources, channels, taps)
    own = np.empty((models, len(pairs.reference), channels, channels, taps))
    for pair, (reference, estimate) in enumerate(zip(*pairs, strict=True)):
        right = cross[reference, :, :, estimate].reshape(channels, models * channels, taps)
        solved = projection.filters(references.own[reference], right)
        own[:, pair] = solved.reshape(models, channels, channels, taps)
    size = projection.block_length(width, taps)
    return Bank(projection.spectrum(joint, size), projection.spectrum(own, size), size)


def energies(
    bank: Bank,
    references: Float[np.ndarray, "source channel sample"],
    estimates: Float[np.ndarray, "model source channel sample"],
    pairs: Pairs,
    taps: int,
    *,
    of_sources: bool,
) -> dict[str, Float[np.ndarray, "model pair"]]:
    """Energies of the parts of the estimates over a window, with the tails of the filters behind it."""
    step = bank.size - taps + 1
    total: dict[str, Any] = {}
    for start in range(0, references.shape[-1] + taps - 1, step):
        spectra = projection.spectrum(projection.segment(references, start - taps + 1, bank.size), bank.size)
        joint = projection.apply(bank.joint, spectra.reshape(-1, spectra.shape[-1]), taps, bank.size)[:, pairs.estimate]
        own = projection.apply(bank.own, spectra[pairs.reference][:, None], taps, bank.size)
        given = projection.segment(estimates, start, step)[:, pairs.estimate]
        true = projection.segment(references, start, step)[pairs.reference]
        parts = {"estimate": given, "target": own, "interference": joint - own}
        parts |= {"explained": joint, "artefacts": given - joint}
        if of_sources:
            parts |= {"error": given - own}
        else:
            parts |= {"image": true[None], "image_error": given - true, "spatial": own - true}
        for name, part in parts.items():
            total[name] = total.get(name, 0.0) + np.vecdot(part, part).sum(axis=-1)
    return total


def zero_where_not_finite(signals: Float[np.ndarray, "*batch source channel sample"]) -> tuple[Any, Any]:
    """Signals with zeros in place of sources that are not finite throughout, and which are finite."""
    finite: Any = np.isfinite(signals).all(axis=(-2, -1))
    return (signals if finite.all() else np.where(finite[..., None, None], signals, 0.0)), finite


def _rows(signals: Float[np.ndarray, "*batch sample"]) -> Float[np.ndarray, "row sample"]:
    return signals.reshape(-1, signals.shape[-1])

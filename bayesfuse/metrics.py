"""Measures of the quality of an estimated source.

Three different quantities are called SDR in the literature. `sdr` is the global energy ratio of [JVR16] eq. 6,
without any filtering or rescaling of the reference; `si_sdr` allows one gain of the reference [LWEH19]; those of
`bss_eval` allow a filter.

The scale-invariant measures write an estimate as e = a s + i + r: the part a s along its reference s, the part i of
what is left that lies in the span of all references (interference), and the rest r (artefacts). They are
SI-SDR = |a s|^2 / |i + r|^2, SI-SIR = |a s|^2 / |i|^2 and SI-SAR = |a s|^2 / |r|^2 in dB, hence
10^(-SI-SDR / 10) = 10^(-SI-SIR / 10) + 10^(-SI-SAR / 10). Signals are taken as they are: take out a mean before if
it should not count.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.

[LWEH19] J. Le Roux, S. Wisdom, H. Erdogan, J. R. Hershey, "SDR - half-baked or well done?", ICASSP, 2019.
"""

from enum import IntEnum
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

AnyArray = np.ndarray | Array


class Reason(IntEnum):
    """Why a score is NaN in the results of `bss_eval` and in the tables of `scores`.

    Attributes
    ----------
    VALID
        It is not: the score is a number.
    NOT_FINITE
        A waveform that the score depends on has NaN or infinite samples.
    SILENT_REFERENCE, SILENT_ESTIMATE
        The reference, or the estimate, of this source is zero throughout.
    SILENT_OTHER
        The reference or the estimate of another source is zero throughout the window (`bss_eval_v4`).
    NO_ERROR
        The error that the score measures is not above rounding: an estimate identical to its reference up to what
        the score allows, the interference among a single source or between identical references, the artefacts of a
        signal so short that the references span all signals.
    NO_TARGET
        The part of the estimate that should be its reference is not above rounding.
    UNDEFINED
        The score does not exist, such as the ISR of `bss_eval_sources`.
    """

    VALID = 0
    NOT_FINITE = 1
    SILENT_REFERENCE = 2
    SILENT_ESTIMATE = 3
    SILENT_OTHER = 4
    NO_ERROR = 5
    NO_TARGET = 6
    UNDEFINED = 7

    @property
    def label(self) -> str:
        """The name in tables, empty for a valid score."""
        return self.name.lower() if self else ""


def sdr(
    reference: Float[np.ndarray | Array, "..."],
    estimate: Float[np.ndarray | Array, "..."],
    *,
    axis: int | tuple[int, ...] = -1,
) -> Float[np.ndarray | Array, "..."] | np.floating[Any]:
    """Signal-to-distortion ratio `10 log10( sum |s|^2 / sum |s - s~|^2 )` in dB, [JVR16] eq. 6.

    Parameters
    ----------
    reference, estimate
        True and estimated waveforms, time last; their leading axes broadcast (e.g. one reference against
        estimates [model, sample]). Both NumPy or both JAX.
    axis
        Axes of the energy sums: -1, the samples, gives one ratio per channel; (-2, -1) one ratio for all
        channels of [..., channel, sample], which is the squared norm of eq. 6 for multichannel sources.

    Returns
    -------
    Ratio in dB in the dtype of the inputs, without the summed axes. `+inf` for an exact estimate, 0 for a
    silent one, NaN for a silent reference, whatever the estimate (the ratio says nothing about it then; leave
    such items out with `numpy.nanmean`). NaN and infinities in the waveforms give NaN. Does not depend on the
    common scale of the two, however extreme.

    Raises
    ------
    ValueError
        If the waveforms differ in length or number of channels, or are empty.
    """
    axes = _checked_axes(reference, estimate, axis)
    if isinstance(reference, Array) or isinstance(estimate, Array):
        return _ratio_in_decibel(jnp, jnp.asarray(reference), jnp.asarray(estimate), axes)
    # Sums of squares in float64: float32 sums over minutes of audio would lose the digits of a good estimate.
    value = _ratio_in_decibel(np, reference.astype(np.float64), estimate.astype(np.float64), axes)
    return value.astype(np.result_type(reference, estimate))


def si_sdr(
    reference: Float[AnyArray, "..."],
    estimate: Float[AnyArray, "..."],
    *,
    axis: int | tuple[int, ...] = -1,
) -> Float[AnyArray, "..."] | np.floating[Any]:
    """Scale-invariant signal-to-distortion ratio `10 log10( |a s|^2 / |s~ - a s|^2 )` in dB, [LWEH19] eq. 3.

    The gain a = <s~, s> / <s, s> of the reference is the best one, common to all summed axes.

    Parameters
    ----------
    reference, estimate, axis
        As those of `sdr`.

    Returns
    -------
    Ratio in dB in the dtype of the inputs, without the summed axes. `+inf` where the estimate is the reference
    times a gain, `-inf` where the two are orthogonal, both up to rounding; NaN where either is silent or not
    finite. Does not depend on the scale of either.

    Raises
    ------
    ValueError
        If the waveforms differ in length or number of channels, or are empty.
    """
    axes = _checked_axes(reference, estimate, axis)
    # Each reference is the only one of its span: a source axis of length one before the summed axes.
    place = min(axes) - 1
    xp = jnp if isinstance(reference, Array) or isinstance(estimate, Array) else np
    value = _scale_invariant(xp.expand_dims(reference, place), xp.expand_dims(estimate, place), axes, "sdr")
    return value[..., 0]


def si_sir(
    references: Float[AnyArray, "..."],
    estimates: Float[AnyArray, "..."],
    *,
    axis: int | tuple[int, ...] = -1,
) -> Float[AnyArray, "..."]:
    """Scale-invariant signal-to-interference ratio in dB of every source, [LWEH19] section 2.

    Parameters
    ----------
    references, estimates
        True and estimated sources of a mixture, [..., source, sample] for axis=-1 and [..., source, channel, sample]
        for axis=(-2, -1); the axes before the sources broadcast. Both NumPy or both JAX.
    axis
        As that of `sdr`, all axes after the sources.

    Returns
    -------
    Ratio in dB [..., source], with the limits of `si_sdr`: `+inf` for a single source. A silent reference makes
    its own source NaN and adds nothing to the span of the others; a reference that is not finite makes all NaN.

    Raises
    ------
    ValueError
        If the waveforms differ in length, number of channels or of sources, or are empty.
    """
    return _scale_invariant(references, estimates, _checked_sources(references, estimates, axis), "sir")


def si_sar(
    references: Float[AnyArray, "..."],
    estimates: Float[AnyArray, "..."],
    *,
    axis: int | tuple[int, ...] = -1,
) -> Float[AnyArray, "..."]:
    """Scale-invariant signal-to-artefacts ratio in dB of every source, [LWEH19] section 2.

    Parameters, result and errors as those of `si_sir`.
    """
    return _scale_invariant(references, estimates, _checked_sources(references, estimates, axis), "sar")


def _checked_axes(reference: Any, estimate: Any, axis: int | tuple[int, ...]) -> tuple[int, ...]:
    axes = (axis,) if isinstance(axis, int) else axis
    for a in axes:
        if not -min(reference.ndim, estimate.ndim) <= a < 0:
            raise ValueError(f"axis {a} of arrays {reference.shape} and {estimate.shape}: expected -1 or (-2, -1)")
        if reference.shape[a] != estimate.shape[a] or reference.shape[a] == 0:
            raise ValueError(
                f"the reference {reference.shape} and the estimate {estimate.shape} differ, or are empty, "
                f"along axis {a}: align them and cut both to the same samples"
            )
    return axes


def _checked_sources(references: Any, estimates: Any, axis: int | tuple[int, ...]) -> tuple[int, ...]:
    axes = _checked_axes(references, estimates, axis)
    place = min(axes) - 1
    if min(references.ndim, estimates.ndim) < -place or references.shape[place] != estimates.shape[place]:
        raise ValueError(
            f"references {references.shape} and estimates {estimates.shape} need the same number of sources, on the "
            f"axis {place} before the summed ones {axes}: give one estimate per reference"
        )
    return axes


def _ratio_in_decibel(xp: Any, reference: Any, estimate: Any, axes: tuple[int, ...]) -> Any:
    finite = xp.all(xp.isfinite(reference), axis=axes) & xp.all(xp.isfinite(estimate), axis=axes)
    reference = xp.where(xp.isfinite(reference), reference, 0.0)
    estimate = xp.where(xp.isfinite(estimate), estimate, 0.0)
    # Each normalised by its own peak: squares neither overflow nor all underflow, however far the two apart.
    signal_peak, signal = _energy(xp, reference, axes)
    error_peak, error = _energy(xp, reference - estimate, axes)
    sounding, inexact = signal_peak > 0, error_peak > 0
    usual = sounding & inexact
    # The ratios of the limiting cases are not formed, so that NumPy has nothing to warn about.
    ratio = 20.0 * xp.log10(xp.where(usual, signal_peak, 1.0) / xp.where(usual, error_peak, 1.0))
    value = ratio + 10.0 * xp.log10(xp.where(usual, signal, 1.0) / xp.where(usual, error, 1.0))
    return xp.where(finite & sounding, xp.where(inexact, value, xp.inf), xp.nan)


def _energy(xp: Any, signal: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    """Peak of a signal, and its energy divided by the square of the peak (at least 1 unless silent)."""
    peak = xp.max(xp.abs(signal), axis=axes, keepdims=True)
    energy = xp.sum((signal / xp.where(peak > 0, peak, 1.0)) ** 2, axis=axes)
    return xp.squeeze(peak, axis=axes), energy


def _trailing(axes: tuple[int, ...]) -> int:
    """Number of summed axes, which must be the last ones."""
    if set(axes) != set(range(-len(axes), 0)):
        raise ValueError(f"scale-invariant ratios sum over the last axes, got {axes}: expected -1 or (-2, -1)")
    return len(axes)


def _scale_invariant(
    references: Any, estimates: Any, axes: tuple[int, ...], which: Literal["sdr", "sir", "sar"]
) -> Any:
    """A ratio of the scale-invariant decomposition for [..., source, *axes], as [..., source]."""
    in_jax = isinstance(references, Array) or isinstance(estimates, Array)
    xp: Any = jnp if in_jax else np
    dtype = xp.result_type(references, estimates)
    working = dtype if in_jax else np.float64
    count = _trailing(axes)
    s, sounding, s_finite = _unit(xp, xp.asarray(references, dtype=working), count)
    e, heard, e_finite = _unit(xp, xp.asarray(estimates, dtype=working), count)
    target = (e * s).sum(-1, keepdims=True) * s
    rest = e - target
    if which == "sdr":
        parts = rest
    else:
        # A common span: no reference counts more for being louder; directions at rounding level count as none.
        eps = float(xp.finfo(working).eps)
        inverse = xp.linalg.pinv(s @ xp.swapaxes(s, -1, -2), rtol=s.shape[-2] * eps, hermitian=True)
        interference = xp.swapaxes(inverse @ (s @ xp.swapaxes(rest, -1, -2)), -1, -2) @ s
        parts = interference if which == "sir" else rest - interference
    top, bottom = (target**2).sum(-1), (parts**2).sum(-1)
    # Of unit energy, so these are the squares of a few roundings.
    floor = (32.0 * float(xp.finfo(working).eps)) ** 2
    some, inexact = top > floor, bottom > floor
    usual = some & inexact
    value = 10.0 * xp.log10(xp.where(usual, top, 1.0) / xp.where(usual, bottom, 1.0))
    value = xp.where(usual, value, xp.where(some, xp.inf, xp.where(inexact, -xp.inf, xp.nan)))
    finite = e_finite & (s_finite if which == "sdr" else s_finite.all(-1, keepdims=True))
    return xp.where(finite & sounding & heard, value, xp.nan).astype(dtype)


def _unit(xp: Any, signals: Any, num_axes: int) -> tuple[Any, Any, Any]:
    """Signals with the last axes flattened, of unit energy; whether they sound, and whether they were finite."""
    flat = signals.reshape(*signals.shape[: signals.ndim - num_axes], -1)
    finite = xp.isfinite(flat).all(-1)
    peak, energy = _energy(xp, xp.where(xp.isfinite(flat), flat, 0.0), (-1,))
    norm = xp.where(peak > 0, xp.sqrt(energy), 1.0)
    level = xp.where(peak > 0, peak, 1.0)[..., None]
    return xp.where(xp.isfinite(flat), flat, 0.0) / level / norm[..., None], peak > 0, finite

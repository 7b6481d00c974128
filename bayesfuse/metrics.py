"""Measures of the quality of an estimated source.

Three different quantities are called SDR in the literature. This module's `sdr` is the global energy ratio of
[JVR16] eq. 6, without any filtering or rescaling of the reference.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float


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
    axes = (axis,) if isinstance(axis, int) else axis
    for a in axes:
        if not -min(reference.ndim, estimate.ndim) <= a < 0:
            raise ValueError(f"axis {a} of arrays {reference.shape} and {estimate.shape}: expected -1 or (-2, -1)")
        if reference.shape[a] != estimate.shape[a] or reference.shape[a] == 0:
            raise ValueError(
                f"the reference {reference.shape} and the estimate {estimate.shape} differ, or are empty, "
                f"along axis {a}: align them and cut both to the same samples"
            )
    if isinstance(reference, Array) or isinstance(estimate, Array):
        return _ratio_in_decibel(jnp, jnp.asarray(reference), jnp.asarray(estimate), axes)
    # Sums of squares in float64: float32 sums over minutes of audio would lose the digits of a good estimate.
    value = _ratio_in_decibel(np, reference.astype(np.float64), estimate.astype(np.float64), axes)
    return value.astype(np.result_type(reference, estimate))


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

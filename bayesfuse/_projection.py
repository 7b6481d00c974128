"""Least-squares projection of signals on the span of delayed references.

A filter of L taps per reference that explains a signal best solves normal equations whose matrix is block-Toeplitz:
its blocks hold the correlations of two references at lags -(L - 1)..(L - 1). The matrix belongs to the references
alone, so it is factored once for all signals. Correlations and filters go through blocks of FFTs, so that memory does
not grow with the length of the signals.
"""

from typing import Any

import numpy as np
from jaxtyping import Complex, Float, Int
from scipy import fft, linalg

from bayesfuse._module import Module

# Samples per FFT: large beside 512 taps, small enough that a few signals and their spectra stay in the cache.
_BLOCK = 1 << 13


class Span(Module):
    """Factored normal equations of the span of delayed references.

    Attributes
    ----------
    scale
        Inverse norm of every reference, zero for a silent one.
    rows
        Delayed references, counted source by source with the delay fastest, that span all others up to rounding.
    factor
        Lower Cholesky factor of the scaled matrix of scalar products of `rows`.
    """

    scale: Float[np.ndarray, " reference"]
    rows: Int[np.ndarray, " rank"]
    factor: Float[np.ndarray, "rank rank"]


def block_length(length: int, taps: int) -> int:
    """Length of the FFTs for signals of `length` samples and filters of `taps`."""
    size: Any = fft.next_fast_len(min(length + taps - 1, max(_BLOCK, 8 * taps)), real=True)
    return int(size)


def correlate(
    references: Float[np.ndarray, "reference sample"], signals: Float[np.ndarray, "signal sample"], taps: int
) -> Float[np.ndarray, "reference signal tap"]:
    """The scalar products sum_t s_r(t - l) x_q(t) of references delayed by l = 0..taps - 1 and signals."""
    length = references.shape[-1]
    size = block_length(length, taps)
    total = np.zeros((len(references), len(signals), size // 2 + 1), complex)
    for start in range(0, length, size - taps + 1):
        past = spectrum(segment(references, start - taps + 1, size), size)
        now = spectrum(signals[:, start : start + size - taps + 1], size)
        np.conjugate(now, out=now)
        for row, delayed in zip(total, past, strict=True):
            row += delayed * now
    # Block samples count from taps - 1 before its start: lag l lies at taps - 1 - l.
    return _waveform(total, size)[..., taps - 1 :: -1]


def segment(signals: Float[np.ndarray, "*batch sample"], start: int, size: int) -> Float[np.ndarray, "*batch size"]:
    """Samples start..start + size - 1 of signals that are zero before and after what is given."""
    part = signals[..., max(start, 0) : max(start + size, 0)]
    before = max(-start, 0)
    if before == 0 and part.shape[-1] == size:
        return part
    padded = np.zeros((*signals.shape[:-1], size))
    padded[..., before : before + part.shape[-1]] = part
    return padded


def span(correlations: Float[np.ndarray, "reference reference tap"]) -> Span:
    """Factor the normal equations for the references' correlations `correlate(s, s, taps)`.

    Linearly dependent delayed references (identical references, signals shorter than the filters, silent references)
    leave the projection unique and the filters not: a pivoted factorisation then keeps a maximal independent set.
    """
    references, _, taps = correlations.shape
    size = references * taps
    norm = np.sqrt(np.maximum(np.einsum("iil->il", correlations)[:, 0], 0.0))
    scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
    scaled = correlations * scale[:, None, None] * scale[None, :, None]
    tolerance = size * np.finfo(np.float64).eps
    lapack: Any = linalg.lapack
    factor, failed = lapack.dpotrf(_normal_equations(scaled), lower=1, clean=0, overwrite_a=1)
    if not failed and np.diagonal(factor).min() ** 2 > tolerance:
        return Span(scale, np.arange(size), factor)
    factor, pivots, rank, _ = lapack.dpstrf(_normal_equations(scaled), lower=1, tol=tolerance, overwrite_a=1)
    return Span(scale, pivots[:rank].astype(np.int64) - 1, factor[:rank, :rank])


def _normal_equations(correlations: Float[np.ndarray, "reference reference tap"]) -> Float[np.ndarray, "row row"]:
    """The lower triangle of blocks, in the order that LAPACK wants."""
    references, _, taps = correlations.shape
    matrix = np.empty((references * taps, references * taps), order="F")
    for i in range(references):
        for j in range(i + 1):
            # All lags in a row: line k + l of a Toeplitz block is the one before it moved by one.
            lags = np.concatenate([correlations[i, j, ::-1], correlations[j, i, 1:]])
            block = np.lib.stride_tricks.sliding_window_view(lags, taps)[::-1]
            matrix[i * taps : (i + 1) * taps, j * taps : (j + 1) * taps] = block
    return matrix


def filters(s: Span, cross: Float[np.ndarray, "reference signal tap"]) -> Float[np.ndarray, "signal reference tap"]:
    """The filters whose sum over the references is the projection, for `correlate(references, signals)`."""
    references, signals, taps = cross.shape
    scale = np.repeat(s.scale, taps)[:, None]
    right = np.moveaxis(cross, 1, 2).reshape(references * taps, signals) * scale
    solution = np.zeros_like(right)
    if s.rows.size:
        solution[s.rows] = linalg.cho_solve((s.factor, True), right[s.rows], check_finite=False)
    return np.moveaxis((solution * scale).reshape(references, taps, signals), 2, 0)


def apply(
    responses: Complex[np.ndarray, "*signal reference freq"],
    spectra: Complex[np.ndarray, "*#signal reference freq"],
    taps: int,
    size: int,
) -> Float[np.ndarray, "*signal sample"]:
    """Sum of filtered references over a block, without its first taps - 1 samples, which the block before has."""
    total = responses[..., 0, :] * spectra[..., 0, :]
    for index in range(1, responses.shape[-2]):
        total += responses[..., index, :] * spectra[..., index, :]
    return _waveform(total, size)[..., taps - 1 :]


def spectrum(signals: Float[np.ndarray, "*batch sample"], size: int) -> Complex[np.ndarray, "*batch freq"]:
    """Discrete Fourier transform of signals that are followed by zeros up to `size` samples."""
    values: Any = fft.rfft(signals, n=size)
    return values


def _waveform(spectra: Complex[np.ndarray, "*batch freq"], size: int) -> Float[np.ndarray, "*batch size"]:
    values: Any = fft.irfft(spectra, n=size)
    return values

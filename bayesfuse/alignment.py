"""Do the estimates of a separator lie where the mixture lies? Lag, gain, polarity, clipping, and what they sum to.

Other programs return sources late (codecs, look-ahead), scaled (each to full scale, say), inverted, or clipped, and
a weighted sum of such estimates is worse than any of them. All is measured against the mixture alone, so that no
true source is needed:

* the lag of an estimate is where its cross-correlation with the mixture, c(k) = sum_t x(t) y(t + k), peaks in
  magnitude. The spectrum of c is first divided by the square root of its magnitude, which sharpens the peak of sounds
  that are mostly low; estimates by masks of any kind have cross-spectra that are real and not negative, so that
  theirs peaks at zero exactly. Between samples c is interpolated as the trigonometric polynomial it is;
* its polarity is the sign of c there;
* gains are those with which the estimates of all sources, shifted, sum to the mixture. They are known only if some
  do: a separator that returns the voice alone says nothing about its gain.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import scipy.signal
from jaxtyping import Float
from scipy.optimize import minimize_scalar

Waveforms = Float[np.ndarray, "source channel sample"]
# Sources of one mixture between two samples, each shifted back by a lag of its own, [source, channel, sample].
Reader = Callable[[int, int, Sequence[float]], Waveforms]

# The peak of a cross-correlation counts if it exceeds the median of the magnitudes by this factor: the largest of ten
# thousand products of unrelated noises lies at six, an estimate of a source at -20 dB of the mixture far above.
_DISTINCT = 8.0
# Share by which a lag must raise the correlation; less than that costs -37 dB at most to leave as it is.
_WORTH = 1e-4
# Below this energy relative to the mixture an estimate is silent, and has neither lag nor gain.
_SILENT = 1e-7
# Residual relative to the mixture below which estimates count as summing to it: -25 dB.
COMPLETE = 10.0**-2.5
# From this residual on, -60 dB, gains would fit rounding.
_EXACT = 1e-6
# Half the length, in samples, of the filter that shifts by a part of a sample, and the shape of its window.
_TAPS, _KAISER = 32, 9.0
# Samples per channel that are looked at at a time.
BLOCK = 1 << 18


class Placement(NamedTuple):
    """Where the estimates of one separator lie relative to their mixture; arrays are [source], float64.

    Attributes
    ----------
    lag
        Samples by which the estimate comes late; NaN if it is silent or has no distinct peak.
    gain
        Factor that the mixture asks for, negative for an inverted estimate: multiply by it. 1 where the estimates sum
        to the mixture as they are; only its sign is meant, and its magnitude is 1, where no gains make them.
    residual
        ||mixture - sum of the estimates||^2 / ||mixture||^2 after both corrections; NaN for a silent mixture.
    clipped
        Samples in runs at full scale.
    """

    lag: Float[np.ndarray, " source"]
    gain: Float[np.ndarray, " source"]
    residual: float
    clipped: Float[np.ndarray, " source"]

    @property
    def complete(self) -> bool:
        """Whether the corrected estimates sum to the mixture."""
        return self.residual < COMPLETE


def place(
    mixture: Float[np.ndarray, "channel sample"],
    estimates: Float[np.ndarray, "source ..."],
    *,
    max_lag: int,
    sub_sample: bool = True,
) -> Placement:
    """Where the estimates of the sources of one mixture lie; `place_blocks` for arrays.

    Raises
    ------
    ValueError
        If the shapes disagree or `max_lag` is negative.
    """
    if estimates.ndim != 3 or estimates.shape[1:] != mixture.shape:
        raise ValueError(
            f"place got a mixture of shape {mixture.shape} and estimates of shape {estimates.shape}; expected "
            "[channel, sample] and [source, channel, sample] of the same channels and samples."
        )

    def read(start: int, stop: int, lags: Sequence[float]) -> Waveforms:
        return np.stack([_shifted_array(y, start, stop, lag) for y, lag in zip(estimates, lags, strict=True)])

    return place_blocks(
        lambda start, stop: padded(mixture, start, stop),
        read,
        (estimates.shape[0], mixture.shape[-1]),
        max_lag=max_lag,
        sub_sample=sub_sample,
    )


def place_blocks(
    read_mixture: Callable[[int, int], Float[np.ndarray, "channel sample"]],
    read_estimates: Reader,
    shape: tuple[int, int],
    *,
    max_lag: int,
    sub_sample: bool = True,
) -> Placement:
    """Where estimates that are read block by block lie, in memory that does not depend on their length.

    Parameters
    ----------
    read_mixture
        From a first sample and the one after the last to the mixture in between.
    read_estimates
        From the same and a lag per source to the estimates in between, shifted back by their lags; zero beyond the
        ends of the recording.
    shape
        Number of sources, and of samples per channel of the mixture.
    max_lag
        Largest lag looked for, in samples, early or late.
    sub_sample
        Whether lags are found between samples, or whole.

    Raises
    ------
    ValueError
        If `max_lag` is negative.
    """
    if max_lag < 0:
        raise ValueError(f"got max_lag={max_lag}; expected a number of samples from 0 up.")
    count, length = shape
    products, power, clipped = np.zeros((count, 2 * max_lag + 1)), np.zeros(count + 1), np.zeros(count)
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        x = read_mixture(start, stop).astype(np.float64)
        y = read_estimates(start - max_lag, stop + max_lag, [0.0] * count)
        products += _cross_correlation(x, y.astype(np.float64))
        inside = y[..., max_lag : max_lag + stop - start]
        power += [np.sum(x**2), *np.sum(inside.astype(np.float64) ** 2, axis=(1, 2))]
        clipped += [clipped_samples(estimate) for estimate in inside]
    lags, signs = np.full(count, np.nan), np.ones(count)
    for j in range(count):
        if power[1 + j] > _SILENT * power[0]:
            lags[j], signs[j] = _peak(products[j], sub_sample)
    return Placement(lags, *_gains(read_mixture, read_estimates, length, lags, signs), clipped)


def _cross_correlation(
    x: Float[np.ndarray, "channel sample"], y: Float[np.ndarray, "source channel extended"]
) -> Float[np.ndarray, "source lag"]:
    """sum_t x(t) y(t + k) from the first lag at which x lies inside y to the last, summed over channels."""
    size = scipy.fft.next_fast_len(y.shape[-1], real=True)
    fft: Any = scipy.fft
    spectrum = np.conj(fft.rfft(x, size)) * fft.rfft(y, size)
    return fft.irfft(spectrum.sum(axis=1), size)[:, : y.shape[-1] - x.shape[-1] + 1]


def _peak(products: Float[np.ndarray, " lag"], sub_sample: bool) -> tuple[float, float]:
    """Lag and sign of the largest product of the sharpened cross-correlation; a lag of NaN if it is not distinct.

    Sound that repeats itself has not died away where the correlation is cut off, and sharpening lifts the cut: a lag
    must be worth more than none in the correlation itself.
    """
    centre = products.shape[0] // 2
    if not products.any():
        return np.nan, 1.0
    if centre == 0:
        return 0.0, -1.0 if products[0] < 0 else 1.0
    fft: Any = scipy.fft
    size = fft.next_fast_len(2 * products.shape[0], real=True)
    plain = fft.rfft(products, size)
    magnitude = np.abs(plain)
    # The floor keeps bins that hold rounding errors alone from being lifted.
    spectrum = plain / np.sqrt(np.maximum(magnitude, 1e-9 * magnitude.max()))
    curve = fft.irfft(spectrum, size)[: products.shape[0]]
    index = int(np.argmax(np.abs(curve)))
    sign = -1.0 if curve[index] < 0 else 1.0
    if not np.abs(curve[index]) > _DISTINCT * np.median(np.abs(curve)):
        return np.nan, 1.0
    lag = float(index - centre)
    bins = np.arange(spectrum.shape[0])
    # All but the first, and the last of an even number, stand for a negative frequency, too.
    twins = np.where((bins > 0) & (2 * bins < size), 2.0, 1.0) / size

    def value(transformed: np.ndarray, place: float) -> float:
        return float(np.real((twins * transformed) @ np.exp(2j * np.pi * bins * place / size)))

    if sub_sample:
        found: Any = minimize_scalar(
            lambda place: -sign * value(spectrum, float(place)), bounds=(index - 1.0, index + 1.0), method="bounded"
        )
        nearest = float(np.rint(found.x))
        # A hundredth of a sample is not told from none.
        lag = (nearest if abs(found.x - nearest) < 0.01 else float(found.x)) - centre
    if abs(value(plain, lag + centre)) <= (1.0 + _WORTH) * abs(products[centre]):
        return 0.0, -1.0 if products[centre] < 0 else 1.0
    return lag, sign


def _gains(
    read_mixture: Callable[[int, int], Float[np.ndarray, "channel sample"]],
    read_estimates: Reader,
    length: int,
    lags: Float[np.ndarray, " source"],
    signs: Float[np.ndarray, " source"],
) -> tuple[Float[np.ndarray, " source"], float]:
    """Gains with which the shifted estimates sum to the mixture, and the relative residual."""
    known = np.nan_to_num(lags)
    # Only where every shifted estimate is inside its recording.
    first = int(np.ceil(max(0.0, -known.min(initial=0.0))))
    last = length - int(np.ceil(max(0.0, known.max(initial=0.0))))
    if last <= first:
        first, last = 0, length
    products = np.zeros((lags.size + 1, lags.size + 1))
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        both = np.concatenate([read_mixture(start, stop)[None], read_estimates(start, stop, known.tolist())])
        both = both.astype(np.float64).reshape(both.shape[0], -1)
        products += both @ both.T
    energy, cross, gram = products[0, 0], products[0, 1:], products[1:, 1:]
    if energy == 0:
        return signs, np.nan

    def residual(gains: Float[np.ndarray, " source"]) -> float:
        return float(max(energy + gains @ gram @ gains - 2.0 * gains @ cross, 0.0) / energy)

    plain = residual(signs)
    if plain < _EXACT:
        return signs, plain
    sounding = np.diagonal(gram) > _SILENT * energy
    fitted = signs.copy()
    fitted[sounding] = np.linalg.lstsq(gram[np.ix_(sounding, sounding)], cross[sounding], rcond=1e-10)[0]
    best = residual(fitted)
    # Gains that make a sum that is wrong anyway somewhat less wrong would distort good estimates.
    return (fitted, best) if best < min(COMPLETE, 0.1 * plain) else (signs, plain)


def clipped_samples(audio: Float[np.ndarray, "channel sample"]) -> int:
    """Number of samples in runs of three or more equal ones within 0.01 of full scale or beyond it."""
    high = np.abs(audio) >= 0.99
    repeated = high[:, 1:] & (audio[:, 1:] == audio[:, :-1])
    middle = repeated[:, 1:] & repeated[:, :-1]
    run = np.zeros(audio.shape, bool)
    for offset in range(3):
        run[:, offset : offset + middle.shape[1]] |= middle
    return int(run.sum())


def align(
    estimate: Float[np.ndarray, "channel sample"], lag: float, gain: float = 1.0
) -> Float[np.ndarray, "channel sample"]:
    """The estimate shifted back by `lag` samples and multiplied by `gain`; of the same length, zeros moved in.

    Parameters
    ----------
    estimate
        Waveform, float32 or float64; the dtype is kept.
    lag
        Samples by which it comes late, with a fraction: the shift between samples is by a windowed sinc, exact to
        -80 dB up to 0.9 of half the rate.
    gain
        As `Placement.gain`.
    """
    return _shifted_array(estimate, 0, estimate.shape[-1], lag) * estimate.dtype.type(gain)


def shifted(
    read: Callable[[int, int], Float[np.ndarray, "channel sample"]], start: int, stop: int, lag: float
) -> Float[np.ndarray, "channel sample"]:
    """Samples [start, stop) of a recording shifted back by `lag`, from a function that reads the recording.

    Blocks are the same as if the whole recording had been shifted.

    Parameters
    ----------
    read
        From a first sample and the one after the last to the recording in between, zeros beyond its ends.
    """
    whole = int(np.rint(lag))
    fraction = lag - whole
    if fraction == 0:
        return read(start + whole, stop + whole)
    offsets = np.arange(-_TAPS, _TAPS + 1) - fraction
    window = np.i0(_KAISER * np.sqrt(np.maximum(1.0 - (offsets / (_TAPS + 0.5)) ** 2, 0.0)))
    taps = np.sinc(offsets) * window
    around = read(start + whole - _TAPS, stop + whole + _TAPS)
    kernel = (taps / taps.sum())[None, ::-1].astype(around.dtype)
    return scipy.signal.oaconvolve(around, kernel, mode="valid", axes=-1).astype(around.dtype, copy=False)


def padded(audio: Float[np.ndarray, "channel sample"], start: int, stop: int) -> Float[np.ndarray, "channel stretch"]:
    """Samples [start, stop) of audio, with zeros beyond its ends."""
    length = audio.shape[-1]
    inside = audio[..., min(max(start, 0), length) : min(max(stop, 0), length)]
    before = min(max(-start, 0), stop - start)
    return np.pad(inside, [(0, 0), (before, stop - start - before - inside.shape[-1])])


def _shifted_array(estimate: np.ndarray, start: int, stop: int, lag: float) -> np.ndarray:
    return shifted(lambda first, last: padded(estimate, first, last), start, stop, lag)


def pooled(values: Float[np.ndarray, " example"], tolerance: float) -> Float[np.ndarray, " example"]:
    """Measurements of many examples, steadied: the median of those that agree, the example's own elsewhere.

    A separator usually has one lag and one gain, and the median of many measurements is better than each. If at least
    half of the known values lie within `tolerance` of their median, those and the unknown ones (NaN) become it; if
    not, known values stay and unknown ones remain NaN.
    """
    known = values[np.isfinite(values)]
    if known.size == 0:
        return values
    median = float(np.median(known))
    near = np.abs(values - median) <= tolerance
    if 2 * np.count_nonzero(near) < known.size:
        return values
    return np.where(near | np.isnan(values), median, values)

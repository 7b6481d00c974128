"""Waveform to time-frequency and back: the short-time Fourier transform and the quadratic ERB representation.

Both transforms share one tight STFT, so separation in either of them ends in the same exact resynthesis; they
differ only in the *power* representation a model sees (`power`) and in how its gains reach the complex bins
(`expand`). NumPy arrays are transformed with `scipy.fft` (nothing is compiled; `scipy.fft.set_workers` gives
threads), JAX arrays with `jax.numpy` by the same code, differentiable and jittable; dtype in, dtype out.

Conventions
-----------
Window of N samples, hop R, L = N / R frames over every sample. The sine window is scaled so that the squares
of its shifts sum to one and the DFT is unitary: w_k = sqrt(2 / L) sin(pi (k + 1/2) / N), X_fn = N^(-1/2)
sum_k w_k x_(nR - (N - R) + k) exp(-2 i pi f k / N). Hence

* synthesis = adjoint of analysis = its pseudo-inverse (a Parseval tight frame): any signal is reconstructed
  exactly, and of any modified X the synthesis is the least-squares inverse;
* energy is preserved without constants: sum_n sum_f m_f |X_fn|^2 = sum_t x_t^2, with m_f = 1 for the DC bin
  and, N even, the Nyquist bin, and m_f = 2 for the bins that also stand for their negative twin
  (`multiplicity`);
* white noise of variance v has E |X_fn|^2 = v / L in every frame wholly inside the signal.

The first frame begins N - R samples before the signal and the last one ends N - R or more after it, so that
every sample, also the first and the last, is covered by all its L frames; the missing samples count as zeros.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
[GM90] B. R. Glasberg and B. C. J. Moore, "Derivation of auditory filter shapes from notched-noise data",
Hearing Research, 47, 1990.
"""

import operator
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Array, Complex, Float, Num

from bayesfuse._module import Module

AnyArray = np.ndarray | Array
Waveform = Float[AnyArray, "*batch sample"]
Bins = Float[AnyArray, "*batch bin frame"]
Bands = Float[AnyArray, "*batch band frame"]
Coefficients = Complex[AnyArray, "*batch bin frame"]


@runtime_checkable
class Transform(Protocol):
    """What a separator needs of a time-frequency representation; `STFT` and `QERB` are the two at hand."""

    @property
    def name(self) -> str: ...
    @property
    def num_bands(self) -> int: ...
    @property
    def window(self) -> Any: ...  # samples; an int that checkers see as the descriptor of a converted field
    @property
    def hop(self) -> Any: ...
    @property
    def num_bins(self) -> int: ...
    def num_frames(self, length: int) -> int: ...
    def frequencies(self, rate: int | float) -> Float[np.ndarray, " band"]: ...
    def frame_times(self, rate: int | float, n: int) -> Float[np.ndarray, " frame"]: ...
    def analysis(self, x: Num[AnyArray, "*batch sample"]) -> Coefficients: ...
    def synthesis(self, X: Num[AnyArray, "*batch bin frame"], length: int) -> Waveform: ...
    def power(self, X: Num[AnyArray, "*batch bin frame"]) -> Bands: ...
    def expand(self, gains: Bands) -> Bins: ...
    def spread(self, power: Bands) -> Bins: ...
    def to_dict(self) -> dict[str, Any]: ...


class STFT(Module):
    """Short-time Fourier transform with a sine window, a Parseval tight frame (see the module's head).

    Parameters
    ----------
    window
        Window and DFT length in samples.
    hop
        Samples between frames; must divide `window` and be at most half of it.

    Raises
    ------
    ValueError
        If `hop` does not divide `window`, or exceeds half of it (the squared sine windows would not sum to
        one).
    """

    window: int = eqx.field(static=True, default=1024, converter=operator.index)
    hop: int = eqx.field(static=True, default=512, converter=operator.index)

    def __check_init__(self) -> None:
        if self.hop < 1 or self.window < 2 * self.hop or self.window % self.hop:
            raise ValueError(
                f"STFT got window={self.window} and hop={self.hop}; the hop must be at least 1, divide the "
                "window and be at most half of it, as window=1024 and hop=512 do."
            )

    @property
    def name(self) -> str:
        """A label that determines the transform, such as ``stft-1024-512``."""
        return f"stft-{self.window}-{self.hop}"

    @property
    def overlap(self) -> int:
        """Number of frames over each sample, L = window / hop."""
        return self.window // self.hop

    @property
    def num_bins(self) -> int:
        """Number of DFT bins from zero to half the rate."""
        return self.window // 2 + 1

    @property
    def num_bands(self) -> int:
        """Number of rows of `power`; here the number of bins."""
        return self.num_bins

    @property
    def multiplicity(self) -> Float[np.ndarray, " bin"]:
        """How many bins of the full DFT each bin stands for: 1 for DC and Nyquist, 2 between; float64."""
        counts = np.full(self.num_bins, 2.0)
        counts[0] = 1.0
        if self.window % 2 == 0:
            counts[-1] = 1.0
        return counts

    def num_frames(self, length: int) -> int:
        """Number of frames of a signal of `length` samples: ceil(length / hop) + window / hop - 1."""
        if length < 1:
            raise ValueError(f"a signal of {length} samples has no frames; at least one sample is needed.")
        return -(-length // self.hop) + self.overlap - 1

    def frequencies(self, rate: int | float) -> Float[np.ndarray, " bin"]:
        """Bin frequencies in Hz, float64, for a sampling rate in Hz."""
        return np.arange(self.num_bins) * (_positive_rate(rate) / self.window)

    def frame_times(self, rate: int | float, n: int) -> Float[np.ndarray, " frame"]:
        """Centres of the first `n` frames in seconds, float64; sample k occupies [k, k + 1) / rate."""
        return (np.arange(n) * self.hop - (self.window - self.hop) + self.window / 2.0) / _positive_rate(rate)

    def analysis(self, x: Num[AnyArray, "*batch sample"]) -> Coefficients:
        """Complex coefficients of real signals.

        Parameters
        ----------
        x
            Waveforms, float32 or float64, NumPy or JAX; the result has the same precision and kind.

        Raises
        ------
        ValueError
            If `x` is not float32 or float64, or has no samples.
        """
        _require(x, "waveform", ("float32", "float64"), min_rank=1)
        length = x.shape[-1]
        n, rows = self.num_frames(length), self.overlap
        xp = _namespace(x)
        margin = (self.window - self.hop, (n * self.hop) - length)
        padded = xp.pad(x, [(0, 0)] * (x.ndim - 1) + [margin])
        segments = padded.reshape(*x.shape[:-1], n + rows - 1, self.hop)
        frames = xp.concatenate([segments[..., row : row + n, :] for row in range(rows)], axis=-1)
        frames = frames * _sine_window(self.window, self.hop).astype(x.dtype)
        fft: Any = scipy.fft if xp is np else jnp.fft
        return fft.rfft(frames, axis=-1, norm="ortho").swapaxes(-1, -2)

    def synthesis(self, X: Num[AnyArray, "*batch bin frame"], length: int) -> Waveform:
        """Waveforms of `length` samples from complex coefficients; the inverse of `analysis`.

        Of coefficients that are no signal's STFT (masked ones) it is the signal whose STFT is nearest in the
        least-squares sense, negative frequencies included.

        Parameters
        ----------
        X
            Coefficients, complex64 or complex128, NumPy or JAX.
        length
            Number of samples wanted, the length given to `analysis`.

        Raises
        ------
        ValueError
            If `X` is not complex, or its bins and frames do not belong to this transform and `length`.
        """
        _require(X, "coefficients", ("complex64", "complex128"), min_rank=2)
        n, rows = self.num_frames(length), self.overlap
        if X.shape[-2:] != (self.num_bins, n):
            raise ValueError(
                f"coefficients have [bin, frame] = {list(X.shape[-2:])}, but {self.name} of {length} samples "
                f"has {[self.num_bins, n]}; pass the length that was analysed, and the transform that did it."
            )
        fft: Any = scipy.fft if _namespace(X) is np else jnp.fft
        frames = fft.irfft(X.swapaxes(-1, -2), n=self.window, axis=-1, norm="ortho")
        frames = frames * _sine_window(self.window, self.hop).astype(frames.dtype)
        pieces = frames.reshape(*X.shape[:-2], n, rows, self.hop)
        # Segment k of the signal is row r of frame k + rows - 1 - r; the margins are never formed.
        count = n - rows + 1
        total = pieces[..., rows - 1 : rows - 1 + count, 0, :]
        for row in range(1, rows):
            total = total + pieces[..., rows - 1 - row : rows - 1 - row + count, row, :]
        return total.reshape(*X.shape[:-2], count * self.hop)[..., :length]

    def power(self, X: Num[AnyArray, "*batch bin frame"]) -> Bins:
        """Power spectrogram |X|^2."""
        return _squared_magnitude(X)

    def expand(self, gains: Bins) -> Bins:
        """Gains per bin from gains per band: the identity."""
        return gains

    def spread(self, power: Bins) -> Bins:
        """Power per bin from power per band: the identity."""
        return power

    def to_dict(self) -> dict[str, Any]:
        """Plain description, JSON-ready; `transform_from_dict` turns it back into the transform."""
        return {"name": "stft", "window": self.window, "hop": self.hop}


class QERB(Module):
    """Quadratic ERB representation, [JVR16] section VI.B: STFT powers pooled by auditory filters.

    P_bn = sum_f B_bf |X_fn|^2, with X the STFT with half-overlapping sine windows. Row b of B is the squared
    magnitude response (1 + ((f - c_b) / s_b)^2)^(-4) of a fourth-order gammatone filter whose centre c_b is
    one of `bands` points equally spaced on the ERB-rate scale from 0 to rate / 2 inclusive, and whose width
    is s_b = 1.019 ERB(c_b), ERB(c) = 24.7 (1 + 0.00437 c) Hz [GM90]; each *column* is then scaled to sum to
    one over b.

    Exact: the power of every frame, sum_b P_bn = sum_f |X_fn|^2; a gain of one in all bands is one in all
    bins, gains within [lo, hi] stay there, and gains of several sources that sum to one in every band do so
    in every bin, so that estimates still sum to the mixture; `spread` keeps total power, sign and flat
    spectra; resynthesis is the STFT's. Each up to rounding.

    Approximate: the published transform filters the signal and pools the outputs within each window; here the
    filters act on DFT powers, neglecting the window's own spread and the filters' impulse response beyond a
    window, and the image of a filter at negative frequencies. Pooled powers are sums of many bins' powers,
    overlapping ones, while models of |x|^2 treat them as independent bins. There is no inverse from P to
    bins: `expand` and `spread` smooth over one ERB.

    Departure: s_b is at least the bin spacing rate / window, so that a low band narrower than a bin still
    sees a bin (without effect at 16 kHz and window 1024; below 164 Hz at 44.1 kHz).

    Parameters
    ----------
    rate
        Sampling rate in Hz of the signals.
    bands
        Number of bands, at least 2.
    window
        Window length in samples, even; the hop is half of it.

    Raises
    ------
    ValueError
        For a rate that is not positive, fewer than two bands, or an odd window.
    """

    rate: float = eqx.field(static=True, converter=float)
    bands: int = eqx.field(static=True, default=350, converter=operator.index)
    window: int = eqx.field(static=True, default=1024, converter=operator.index)

    def __check_init__(self) -> None:
        _positive_rate(self.rate)
        if self.bands < 2:
            raise ValueError(f"QERB got bands={self.bands}; at least 2 are needed (the default is 350).")
        if self.window < 2 or self.window % 2:
            raise ValueError(f"QERB got window={self.window}; half-overlapping frames need an even window.")

    @property
    def stft(self) -> STFT:
        """The STFT whose powers are pooled."""
        return STFT(self.window, self.window // 2)

    @property
    def name(self) -> str:
        """A label that determines the transform, such as ``qerb-16000-350-1024``."""
        return f"qerb-{self.rate:.17g}-{self.bands}-{self.window}"

    @property
    def hop(self) -> int:
        """Samples between frames."""
        return self.window // 2

    @property
    def num_bins(self) -> int:
        """Number of DFT bins from zero to half the rate."""
        return self.window // 2 + 1

    @property
    def multiplicity(self) -> Float[np.ndarray, " bin"]:
        """How many bins of the full DFT each bin stands for; see `STFT.multiplicity`."""
        return self.stft.multiplicity

    @property
    def num_bands(self) -> int:
        """Number of rows of `power`."""
        return self.bands

    @property
    def matrix(self) -> Float[np.ndarray, "band bin"]:
        """The pooling matrix B, float64, read-only; columns sum to one."""
        return _erb_matrix(self.rate, self.bands, self.window)

    def num_frames(self, length: int) -> int:
        """Number of frames of a signal of `length` samples."""
        return self.stft.num_frames(length)

    def frequencies(self, rate: int | float | None = None) -> Float[np.ndarray, " band"]:
        """Band centres in Hz, float64; a `rate` that is given must be the transform's own."""
        if rate is not None and rate != self.rate:
            raise ValueError(f"this QERB is for {self.rate:g} Hz, not {rate:g} Hz; use QERB({rate:g}) instead.")
        return _erb_centres(self.rate, self.bands)

    def frame_times(self, rate: int | float, n: int) -> Float[np.ndarray, " frame"]:
        """Centres of the first `n` frames in seconds, float64."""
        return self.stft.frame_times(rate, n)

    def analysis(self, x: Num[AnyArray, "*batch sample"]) -> Coefficients:
        """Complex STFT coefficients of real signals; see `STFT.analysis`."""
        return self.stft.analysis(x)

    def synthesis(self, X: Num[AnyArray, "*batch bin frame"], length: int) -> Waveform:
        """Waveforms of `length` samples from STFT coefficients; see `STFT.synthesis`."""
        return self.stft.synthesis(X, length)

    def power(self, X: Num[AnyArray, "*batch bin frame"]) -> Bands:
        """Power per band, P_bn = sum_f B_bf |X_fn|^2."""
        return _product(self.matrix, _squared_magnitude(X))

    def expand(self, gains: Bands) -> Bins:
        """Gains per bin from gains per band, g_fn = sum_b B_bf g_bn: a mean over the bands that hear f."""
        return _product(self.matrix.T, gains)

    def spread(self, power: Bands) -> Bins:
        """Power per bin from power per band, P_fn = sum_b B_bf P_bn / sum_f' B_bf'.

        Each band's power is shared among the bins in proportion to its response. Totals per frame are kept,
        and of a flat spectrum `spread(power(X))` is that spectrum again; other spectra come back smoothed
        over one ERB.
        """
        return _product((self.matrix / self.matrix.sum(axis=1, keepdims=True)).T, power)

    def to_dict(self) -> dict[str, Any]:
        """Plain description, JSON-ready; `transform_from_dict` turns it back into the transform."""
        return {"name": "qerb", "rate": self.rate, "bands": self.bands, "window": self.window}


def check_transform(transform: Any) -> Transform:
    """The transform, if it is one.

    Raises
    ------
    ValueError
        If it is something else, such as the name of one.
    """
    if isinstance(transform, type) or not all(hasattr(transform, name) for name in ("analysis", "power", "to_dict")):
        raise ValueError(f"transform={transform!r}: expected a transform, such as STFT(1024, 512) or QERB(rate).")
    return transform


def transform_from_dict(description: Mapping[str, Any]) -> STFT | QERB:
    """The transform that a `to_dict` describes.

    Raises
    ------
    ValueError
        If the name or the settings are unknown or incomplete.
    """
    settings = dict(description)
    name = settings.pop("name", None)
    kinds: dict[Any, type[STFT] | type[QERB]] = {"stft": STFT, "qerb": QERB}
    if name not in kinds:
        raise ValueError(f"unknown transform {name!r}; expected one of {sorted(kinds)}, as in `to_dict`.")
    expected = sorted(kinds[name].__dataclass_fields__)
    if sorted(settings) != expected:
        raise ValueError(f"transform {name!r} came with settings {sorted(settings)}; expected {expected}.")
    return kinds[name](**settings)


@lru_cache(maxsize=32)
def _sine_window(window: int, hop: int) -> Float[np.ndarray, " sample"]:
    values = np.sqrt(2.0 * hop / window) * np.sin(np.pi * (np.arange(window) + 0.5) / window)
    values.setflags(write=False)
    return values


def _erb_centres(rate: float, bands: int) -> Float[np.ndarray, " band"]:
    # The scale is E(f) = 21.4 log10(1 + 0.00437 f) [GM90]; its constant cancels between the two fixed ends.
    scale = np.linspace(0.0, np.log1p(0.00437 * rate / 2.0), bands)
    return np.expm1(scale) / 0.00437


@lru_cache(maxsize=8)
def _erb_matrix(rate: float, bands: int, window: int) -> Float[np.ndarray, "band bin"]:
    centres = _erb_centres(rate, bands)[:, None]
    spacing = rate / window
    bins = np.arange(window // 2 + 1) * spacing
    width = np.maximum(1.019 * 24.7 * (1.0 + 0.00437 * centres), spacing)
    response = (1.0 + ((bins - centres) / width) ** 2) ** -4
    matrix = response / response.sum(axis=0)
    matrix.setflags(write=False)
    return matrix


def _namespace(x: AnyArray) -> Any:
    return jnp if isinstance(x, jax.Array) else np


def _squared_magnitude(X: Num[AnyArray, "..."]) -> Float[AnyArray, "..."]:
    _require(X, "coefficients", ("complex64", "complex128"), min_rank=2)
    xp = _namespace(X)
    return xp.real(X) ** 2 + xp.imag(X) ** 2


def _product(matrix: Float[np.ndarray, "row column"], x: Bands) -> AnyArray:
    _require(x, "band powers or gains", ("float32", "float64"), min_rank=2)
    if x.shape[-2] != matrix.shape[1]:
        raise ValueError(f"got {x.shape[-2]} rows on the frequency axis, expected {matrix.shape[1]}.")
    if isinstance(x, jax.Array):
        # Accelerators may otherwise round the factors to fewer bits, and gains would no longer sum to one.
        return jnp.matmul(matrix.astype(x.dtype), x, precision="highest")
    return np.matmul(matrix.astype(x.dtype), x)


def _require(x: AnyArray, what: str, dtypes: tuple[str, str], min_rank: int) -> None:
    if not isinstance(x, np.ndarray | jax.Array) or str(x.dtype) not in dtypes:
        came = f"dtype {x.dtype}" if hasattr(x, "dtype") else type(x).__name__
        raise ValueError(f"{what}: got {came}, expected an array of {dtypes[0]} or {dtypes[1]}; convert it.")
    if x.ndim < min_rank or 0 in x.shape:
        raise ValueError(f"{what}: got shape {list(x.shape)}; {min_rank} or more axes, none empty, are needed.")


def _positive_rate(rate: int | float) -> float:
    if not (np.isfinite(rate) and rate > 0):
        raise ValueError(f"got a sampling rate of {rate}; it must be a positive number of Hz, such as 16000.")
    return float(rate)

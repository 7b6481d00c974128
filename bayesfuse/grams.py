"""The scalar products that every fusion rule works on: whole signals, frames, frames and frequency bands.

What a rule must know of the true source s and its estimates s_m is one quadratic form, the squared error
||s - sum_m a_m s_m||^2 = c + a' G a - 2 a' d. Its coefficients, the `Gram`, are computed once; they add up over
samples, frames, bands, channels, files and workers.

What is exact and what is a bound
---------------------------------
* Whole signal: c + a'Ga - 2a'd is the squared error of the waveform sum_m a_m s_m, up to rounding.
* Per frame n, and per frame and band b: the scalar products of the coefficients of the transform's analysis (the frames
  times the sine window, [JVR16] II.C). The transform is a Parseval tight frame and the bands are a partition of its
  bins, so that the Grams of all frames and bands sum to the one of the whole signal, and errors with weights that
  are the same everywhere are those of the waveforms.
* With weights that vary, the sum of the frames' errors is the energy of the error *coefficients*. Overlap-add is the
  adjoint of the analysis and cannot increase the norm: the squared error of the fused waveform is at most that sum. The
  difference is what neighbouring frames of different weights disagree on in their overlap; no sum over frames
  can state it, since it couples them. Minimising each frame for itself, as [JVR16] II.E does, minimises that bound,
  and is never worse on the waveform than the best constant weights.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bayesfuse._checks import check_finite, check_models
from bayesfuse._module import Module
from bayesfuse._simplex import namespace
from bayesfuse._streaming import pieces, slices
from bayesfuse.transforms import QERB

AnyArray = np.ndarray | Array
Block = tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]

# Samples, over all signals, that are worked on at a time in double precision: 8 MiB of waveforms.
_BLOCK = 1 << 20


@runtime_checkable
class FrameTransform(Protocol):
    """What fusion needs of a transform: a tight frame such as `transforms.STFT`, with its framing."""

    @property
    def window(self) -> Any: ...
    @property
    def hop(self) -> Any: ...
    @property
    def num_bins(self) -> int: ...
    @property
    def multiplicity(self) -> Float[np.ndarray, " bin"]: ...
    def num_frames(self, length: int) -> int: ...
    def analysis(self, x: Any) -> Any: ...
    def synthesis(self, X: Any, length: int) -> Any: ...


class Bands(Module):
    """A partition of the bins of a transform into frequency bands of equal width on the ERB-rate scale.

    Every bin belongs to one band and every band has at least one bin: bands narrower than a bin, if there are such
    at low frequencies, are widened to one.

    Parameters
    ----------
    rate
        Sampling rate in Hz.
    count
        Number of bands.
    window
        Window of the transform in samples, even.

    Raises
    ------
    ValueError
        For a rate that is not positive, an odd window, or more bands than bins.
    """

    rate: float = eqx.field(static=True, converter=float)
    count: int = eqx.field(static=True, default=32, converter=operator.index)
    window: int = eqx.field(static=True, default=1024, converter=operator.index)

    def __check_init__(self) -> None:
        if not 1 <= self.count <= self.num_bins:
            raise ValueError(
                f"Bands got count={self.count} for a window of {self.window} samples; it must be from 1 to the "
                f"number of bins, {self.num_bins}."
            )
        QERB(self.rate, self.count + 1, self.window)  # refuses impossible rates and windows

    @property
    def num_bins(self) -> int:
        """Number of bins of the transform."""
        return self.window // 2 + 1

    @property
    def edges(self) -> Int[np.ndarray, " edge"]:
        """Band b holds the bins from edges[b] to edges[b + 1], the latter excluded."""
        points = QERB(self.rate, self.count + 1, self.window).frequencies() * (self.window / self.rate)
        order = np.arange(self.count + 1)
        inner = np.ceil(points).astype(int) - order
        # At least one bin each: increasing by one or more from the bottom, and not beyond what the top leaves.
        edges = np.minimum(np.maximum.accumulate(inner), self.num_bins - self.count) + order
        edges[0], edges[-1] = 0, self.num_bins
        return edges

    @property
    def index(self) -> Int[np.ndarray, " bin"]:
        """The band of each bin."""
        return np.repeat(np.arange(self.count), np.diff(self.edges))

    def frequencies(self) -> Float[np.ndarray, " band"]:
        """The middles of the bands in Hz."""
        edges = self.edges
        return (edges[:-1] + edges[1:] - 1) / 2.0 * (self.rate / self.window)


def check_bands(caller: str, transform: FrameTransform | None, bands: Bands | None) -> None:
    """Raise if there are bands without a transform, or bands of another one."""
    if bands is None:
        return
    if transform is None:
        raise ValueError(f"{caller} got bands but no transform; pass the transform whose bins they divide.")
    if bands.num_bins != transform.num_bins:
        raise ValueError(
            f"{caller} got bands over {bands.num_bins} bins, but the transform has {transform.num_bins}; "
            f"use Bands(rate, window={transform.window})."
        )


class Gram(Module):
    """Scalar products between a true source and its estimates, [JVR16] eqs. 9-10.

    Attributes
    ----------
    energy
        c = <s, s>, in squared units of the signal.
    cross
        d_m = <s, s_m>.
    gram
        G_mm' = <s_m, s_m'>.
    """

    energy: Float[AnyArray, "*batch"]
    cross: Float[AnyArray, "*batch model"]
    gram: Float[AnyArray, "*batch model model"]

    @property
    def num_models(self) -> int:
        """Number of estimates M."""
        return self.cross.shape[-1]

    def __add__(self, other: "Gram") -> "Gram":
        """The Gram of two stretches, files or channels together."""
        if self.cross.shape != other.cross.shape:
            raise ValueError(f"Grams of shapes {self.cross.shape} and {other.cross.shape} of `cross` do not add.")
        return jax.tree.map(operator.add, self, other)

    def sum(self, axis: int = 0) -> "Gram":
        """The Gram of the concatenation along one batch axis (channels, frames, examples): Grams add.

        Parameters
        ----------
        axis
            The batch axis, counted from the first one.
        """
        self._check_axis("sum", axis)
        return jax.tree.map(lambda field: namespace(field).asarray(field.sum(axis=axis)), self)

    def take(self, indices: Any, axis: int = 0) -> "Gram":
        """Some of the entries along one batch axis, for instance the examples of a fold.

        Parameters
        ----------
        indices
            One index, which removes the axis, or several, or a slice.
        axis
            The batch axis, counted from the first one.
        """
        self._check_axis("take", axis)
        where = (slice(None),) * axis + (indices,)
        return jax.tree.map(lambda field: namespace(field).asarray(field[where]), self)

    @staticmethod
    def stack(grams: "Sequence[Gram]") -> "Gram":
        """Several Grams as one, with a new leading axis, for instance of examples.

        Raises
        ------
        ValueError
            If there is none, or if they differ in shape, for instance in the number of models.
        """
        if not grams:
            raise ValueError("Gram.stack got no Gram; give at least one.")
        shapes = sorted({item.cross.shape for item in grams})
        if len(shapes) > 1:
            raise ValueError(f"Gram.stack got shapes {shapes} of `cross`; all must be over the same models.")
        return jax.tree.map(lambda *fields: namespace(*fields).stack(fields), *grams)

    @staticmethod
    def concatenate(grams: "Sequence[Gram]", axis: int = 0) -> "Gram":
        """Several Grams one after the other along a batch axis, for instance of frames.

        Raises
        ------
        ValueError
            If there is none, or if they differ in shape along the other axes.
        """
        if not grams:
            raise ValueError("Gram.concatenate got no Gram; give at least one.")
        for item in grams:
            item._check_axis("concatenate", axis)
        shapes = sorted({(*item.cross.shape[:axis], *item.cross.shape[axis + 1 :]) for item in grams})
        if len(shapes) > 1:
            raise ValueError(
                f"Gram.concatenate got shapes {shapes} of `cross` besides axis {axis}; they must be the same."
            )
        return jax.tree.map(lambda *fields: namespace(*fields).concatenate(fields, axis=axis), *grams)

    def _check_axis(self, caller: str, axis: int) -> None:
        if not 0 <= axis < self.energy.ndim:
            raise ValueError(
                f"Gram.{caller} got axis={axis}, but there are {self.energy.ndim} batch axes; count them from 0."
            )


def gram(
    reference: Float[AnyArray, "*batch sample"],
    estimates: Float[AnyArray, "model ..."],
    *,
    transform: FrameTransform | None = None,
    bands: Bands | None = None,
) -> Gram:
    """The scalar products over the whole signal, per frame, or per frame and band ([JVR16] eqs. 9-10, section VIII).

    Parameters
    ----------
    reference
        True source [..., sample]; source and channel axes are batch axes, `Gram.sum` adds over them: over the
        channels for one weight for all channels, over the sources for weights that the sources share.
    estimates
        One estimate per model [model, ..., sample].
    transform
        None for the whole signal, or the transform whose frames are wanted.
    bands
        The partition of the transform's bins, for scalar products per frame and band.

    Returns
    -------
    Gram
        With the batch axes [...], [..., frame] or [..., frame, band]. In float64 for NumPy arrays of any precision,
        because c + a'Ga - 2a'd cancels for good estimates; in the precision of the input for JAX arrays. NumPy
        arrays are worked through in pieces: besides the result little memory is needed.

    Raises
    ------
    ValueError
        If the shapes differ, if a value is NaN or infinite, or if `bands` came without the transform, or for another.
    """
    _check_signals("gram", reference, estimates)
    check_bands("gram", transform, bands)
    check_finite("gram", reference=reference, estimates=estimates)
    if namespace(reference, estimates) is jnp:
        stacked = jnp.concatenate([reference[None], estimates])
        return _split(_products(stacked, transform, bands))
    blocks = ((s, sm) for s, sm in slices(_BLOCK, np.asarray(reference), np.asarray(estimates)))
    return _collected(_grams(blocks, transform, bands), transform, bands)


def grams_of_blocks(
    blocks: Iterable[Block],
    *,
    transform: FrameTransform | None = None,
    bands: Bands | None = None,
) -> Iterator[Gram]:
    """The Grams of a long signal, stretch by stretch, in bounded memory.

    Parameters
    ----------
    blocks
        Consecutive blocks (reference [..., sample], estimates [model, ..., sample]) of one signal, of any lengths,
        for instance as `audio.blocks` reads them from files. Blocks do not overlap.
    transform, bands
        As in `gram`.

    Yields
    ------
    Gram
        Whole-signal Grams of one block each, to be summed, without a transform; otherwise those of consecutive frames
        [..., frame] or [..., frame, band], the same as `gram` of the whole signal has in these frames. In float64.

    Raises
    ------
    ValueError
        As `gram`, once the block is reached.
    """
    check_bands("grams_of_blocks", transform, bands)
    return _grams(_checked_blocks(blocks), transform, bands)


def gram_of_blocks(
    blocks: Iterable[Block],
    *,
    transform: FrameTransform | None = None,
    bands: Bands | None = None,
) -> Gram:
    """`gram` of a signal that comes in blocks; besides the result, memory for one block is needed.

    Two hours of seven estimates at 16 kHz take 110 MB per frame and 3.6 GB per frame and band of 32: reduce those of
    `grams_of_blocks` one by one instead. Parameters as there.

    Raises
    ------
    ValueError
        As `gram`; also if there is no block.
    """
    return _collected(grams_of_blocks(blocks, transform=transform, bands=bands), transform, bands)


def squared_error(weights: Float[AnyArray, "*#batch model"], g: Gram) -> Float[AnyArray, "*batch"]:
    """Squared error ||s - sum_m a_m s_m||^2 of the fused estimate, from the triple alone ([JVR16] eq. 8).

    Parameters
    ----------
    weights
        Fusion weights a, [..., model], broadcast against the batch axes of `g`.
    g
        Scalar products. The result is not below zero, whatever the rounding.
    """
    check_models("squared_error", weights.shape[-1], g.num_models)
    xp = namespace(weights, g.energy)
    quadratic = xp.einsum("...m,...mn,...n->...", weights, g.gram, weights)
    linear = xp.einsum("...m,...m->...", weights, g.cross)
    return xp.asarray(xp.maximum(g.energy + quadratic - 2.0 * linear, 0.0))


def sdr(weights: Float[AnyArray, "*#batch model"], g: Gram) -> Float[AnyArray, "*batch"]:
    """Signal-to-distortion ratio of the fused estimate in dB, from the triple alone ([JVR16] eq. 6).

    It is inf for an estimate without error, -inf for a silent source with an estimate that is not, NaN if
    both are silent. Parameters as those of `squared_error`.
    """
    error = squared_error(weights, g)
    xp = namespace(error, g.energy)
    with np.errstate(divide="ignore", invalid="ignore"):
        return xp.asarray(10.0 * (xp.log10(g.energy) - xp.log10(error)))


def _grams(blocks: Iterable[Block], transform: FrameTransform | None, bands: Bands | None) -> Iterator[Gram]:
    signals = (np.concatenate([reference[None], estimates]).astype(np.float64) for reference, estimates in blocks)
    if transform is None:
        for block in signals:
            yield _split(_products(block, None, None))
        return
    context = transform.window // transform.hop - 1
    for piece in pieces(signals, hop=transform.hop, before=context, after=0, entries=_BLOCK):
        # A frame ends with the segment of the same number; the final piece has those that reach beyond the signal.
        own = slice(piece.first - piece.start, None if piece.final else piece.stop - piece.start)
        yield _split(_products(piece.audio, transform, bands, own))


def _products(
    signals: Float[AnyArray, "signal ..."],
    transform: FrameTransform | None,
    bands: Bands | None,
    frames: slice = slice(None),
) -> Float[AnyArray, "... signal signal"]:
    """Scalar products of all pairs of signals [signal, ..., sample], with the batch axes [..., frame, band]."""
    xp = namespace(signals)
    values = xp.moveaxis(signals, 0, -2)
    if transform is not None:
        values = xp.moveaxis(transform.analysis(values)[..., frames], -1, -3)
        values = xp.stack([values.real, values.imag], axis=-1)
        values = values * xp.asarray(np.sqrt(transform.multiplicity)[:, None], dtype=values.dtype)
        values = values.reshape(*values.shape[:-2], -1)  # [..., frame, signal, bin and part]
    if bands is None:
        return _self_product(values)
    edges = 2 * bands.edges
    parts = [_self_product(values[..., low:high]) for low, high in itertools.pairwise(edges)]
    return xp.stack(parts, axis=-3)


def _self_product(values: Any) -> Any:
    transposed = values.swapaxes(-1, -2)
    if isinstance(values, jax.Array):
        # Accelerators may otherwise round the factors to fewer bits.
        return jnp.matmul(values, transposed, precision="highest")
    return values @ transposed


def _split(products: Any) -> Gram:
    xp = namespace(products)
    return Gram(xp.asarray(products[..., 0, 0]), products[..., 0, 1:], products[..., 1:, 1:])


def _collected(parts: Iterable[Gram], transform: FrameTransform | None, bands: Bands | None) -> Gram:
    rest = iter(parts)
    first = next(rest, None)
    if first is None:
        raise ValueError("gram got signals of no samples; give at least one.")
    if transform is None:
        return functools.reduce(operator.add, rest, first)
    return Gram.concatenate([first, *rest], axis=first.energy.ndim - (1 if bands is None else 2))


def _checked_blocks(blocks: Iterable[Block]) -> Iterator[Block]:
    expected = None
    for reference, estimates in blocks:
        _check_signals("grams_of_blocks", reference, estimates)
        check_finite("grams_of_blocks", reference=reference, estimates=estimates)
        shape = estimates.shape[:-1]
        if expected not in (None, shape):
            raise ValueError(
                f"grams_of_blocks got estimates {list(shape)} after blocks of {list(expected)}, besides the samples; "
                "all blocks must be of the same signals."
            )
        expected = shape
        yield reference, estimates


def _check_signals(caller: str, reference: Any, estimates: Any) -> None:
    if estimates.ndim != reference.ndim + 1 or estimates.shape[1:] != reference.shape:
        raise ValueError(
            f"{caller} got a reference of shape {reference.shape} and estimates of shape {estimates.shape}; "
            "estimates must have one leading model axis and otherwise the shape of the reference. "
            "Pad or trim the signals to a common length first."
        )
    if estimates.shape[0] == 0:
        raise ValueError(f"{caller} got estimates of no model; give at least one.")

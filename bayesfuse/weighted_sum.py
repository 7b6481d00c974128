"""The weighted sum of the estimates: one function applies the weights of every rule, for signals of any length.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesfuse._checks import check_finite, check_models
from bayesfuse._simplex import namespace
from bayesfuse._streaming import overlap_added, slices
from bayesfuse.grams import Bands, FrameTransform, check_bands

AnyArray = np.ndarray | Array

# Samples, over all signals, of the estimates that are analysed at a time.
_BLOCK = 1 << 20


def fuse(
    weights: Float[AnyArray, "..."],
    estimates: Float[AnyArray, "..."],
    *,
    transform: FrameTransform | None = None,
    bands: Bands | None = None,
    per_source: bool = False,
) -> Float[AnyArray, "..."]:
    """The weighted sum of the estimates of all models, with weights that are constant, per frame, or per band.

    Constant weights give sum_m a_m s_m(t) ([JVR16] eq. 3). Weights per frame scale the frames of the analysis
    of each estimate, weights per frame and band its bins, and the sum is synthesised by overlap-add (eqs. 4-5,
    section VIII); weights that are the same everywhere give the result of constant ones, up to rounding. The
    result is linear in the weights and in the estimates.

    Parameters
    ----------
    weights
        [model], [model, frame] over the frames of `transform`, or [model, frame, band] over its frames and
        `bands`; with ``per_source`` a source axis before these. Of any sign and sum. Rules return the models on
        the last axis: ``numpy.moveaxis(weights, -1, 0)``.
    estimates
        [model, ..., sample], for instance [model, source, channel, sample]; [model, source, ..., sample] with
        ``per_source``.
    transform
        The framing, required for weights per frame.
    bands
        The partition of the bins of `transform`, required for weights per band.
    per_source
        Whether each source has weights of its own; otherwise all share them.

    Returns
    -------
    array
        Fused signals [..., sample], in the precision of the estimates. Besides it and the arguments, NumPy arrays
        take little memory, however long.

    Raises
    ------
    ValueError
        If the numbers of models, sources, frames or bands do not match, `transform` or `bands` is missing, or a
        value is NaN or infinite.

    Notes
    -----
    Departs from the source, where the frames are those of the separators' own STFTs: here the waveforms are
    analysed again, since estimates may come from separators with other transforms or with none.
    """
    axes = _check_weights("fuse", weights, transform, bands, per_source)
    _check_estimates("fuse", weights, estimates, per_source)
    check_finite("fuse", weights=weights, estimates=estimates)
    length = estimates.shape[-1]
    if axes > 1 and transform is not None and weights.shape[per_source + 1] != transform.num_frames(length):
        raise _wrong_frames("fuse", weights.shape[per_source + 1], f"{transform.num_frames(length)}")
    if namespace(weights, estimates) is jnp:
        return _weighted(jnp.asarray(weights), jnp.asarray(estimates), transform, bands, per_source)
    fused = np.empty(estimates.shape[1:], estimates.dtype)
    blocks = (block for (block,) in slices(_BLOCK, np.asarray(estimates)))
    start = 0
    for part in _parts(np.asarray(weights), blocks, transform, bands, per_source):
        fused[..., start : start + part.shape[-1]] = part
        start += part.shape[-1]
    return fused


def fuse_blocks(
    weights: Float[np.ndarray, "..."],
    blocks: Iterable[Float[np.ndarray, "..."]],
    *,
    transform: FrameTransform | None = None,
    bands: Bands | None = None,
    per_source: bool = False,
) -> Iterator[Float[np.ndarray, "..."]]:
    """`fuse` of estimates that come in blocks, in bounded memory.

    Parameters
    ----------
    weights, transform, bands, per_source
        As in `fuse`, for the whole signal.
    blocks
        Consecutive blocks [model, ..., sample] of the estimates, of any lengths, for instance as `audio.blocks` reads
        them from files. Blocks do not overlap.

    Yields
    ------
    array
        Consecutive stretches [..., sample] of the fused signal, the same as `fuse` returns, as many samples in all
        as came in; their lengths are not those of the blocks.

    Raises
    ------
    ValueError
        As `fuse`, once the block is reached; at the end if the weights are for more frames.
    """
    _check_weights("fuse_blocks", weights, transform, bands, per_source)
    check_finite("fuse_blocks", weights=weights)
    return _parts(weights, _checked_blocks(weights, blocks, per_source), transform, bands, per_source)


def _parts(
    weights: np.ndarray,
    blocks: Iterable[np.ndarray],
    transform: FrameTransform | None,
    bands: Bands | None,
    per_source: bool,
) -> Iterator[np.ndarray]:
    if weights.ndim == 1 + per_source or transform is None:
        for block in blocks:
            yield _weighted(weights, block, None, None, per_source)
        return
    total = weights.shape[1 + per_source]

    def weighted(estimates: np.ndarray, frames: range, final: bool) -> np.ndarray:
        if frames.stop > total or (final and frames.stop < total):
            raise _wrong_frames("fuse_blocks", total, f"{frames.stop}" if final else f"at least {frames.stop}")
        part = np.take(weights, frames, axis=1 + per_source)
        return _weighted(part, estimates, transform, bands, per_source)

    yield from overlap_added(blocks, transform, _BLOCK, weighted)


def _weighted(
    weights: Any, estimates: Any, transform: FrameTransform | None, bands: Bands | None, per_source: bool
) -> Any:
    xp = namespace(weights, estimates)
    if per_source:
        each = [_weighted(own, estimates[:, k], transform, bands, False) for k, own in enumerate(weights)]
        return xp.stack(each)
    scales = xp.asarray(weights, dtype=estimates.dtype)
    if scales.ndim == 1 or transform is None:
        return xp.tensordot(scales, estimates, axes=1)
    fused = 0.0
    # One estimate at a time: the analysis of all would take several times their memory.
    for scale, estimate in zip(scales, estimates, strict=True):
        fused = fused + transform.analysis(estimate) * (scale if bands is None else scale[:, bands.index].T)
    return transform.synthesis(fused, estimates.shape[-1])


def _check_weights(
    caller: str, weights: Any, transform: FrameTransform | None, bands: Bands | None, per_source: bool
) -> int:
    """The number of axes of the weights, without that of the sources, if they are valid."""
    axes = weights.ndim - per_source
    if not 1 <= axes <= 3 or 0 in weights.shape:
        source = "source, " if per_source else ""
        raise ValueError(
            f"{caller} got weights of shape {weights.shape}; they must be [{source}model], [{source}model, frame] or "
            f"[{source}model, frame, band]."
        )
    if axes > 1 and transform is None:
        raise ValueError(
            f"{caller} got weights per frame, of shape {weights.shape}, but no transform; "
            "pass the transform whose frames they belong to, for instance transform=STFT()."
        )
    check_bands(caller, transform, bands)
    if axes == 3 and bands is None:
        raise ValueError(f"{caller} got weights per band, of shape {weights.shape}, but no bands; pass their Bands.")
    if bands is not None and (axes < 3 or weights.shape[-1] != bands.count):
        raise ValueError(
            f"{caller} got {bands.count} bands and weights of shape {weights.shape}; with bands, the last axis of the "
            "weights must be over them."
        )
    return axes


def _check_estimates(caller: str, weights: Any, estimates: Any, per_source: bool) -> None:
    if estimates.ndim < 2 + per_source:
        expected = "[model, source, ..., sample]" if per_source else "[model, ..., sample]"
        raise ValueError(f"{caller} got estimates of shape {estimates.shape}; they must be {expected}.")
    check_models(caller, weights.shape[per_source], estimates.shape[0])
    if per_source and weights.shape[0] != estimates.shape[1]:
        raise ValueError(
            f"{caller} got weights for {weights.shape[0]} sources, but the estimates are of {estimates.shape[1]}."
        )


def _checked_blocks(weights: np.ndarray, blocks: Iterable[np.ndarray], per_source: bool) -> Iterator[np.ndarray]:
    expected = None
    for block in blocks:
        _check_estimates("fuse_blocks", weights, block, per_source)
        check_finite("fuse_blocks", estimates=block)
        if expected not in (None, block.shape[:-1]):
            raise ValueError(
                f"fuse_blocks got a block {list(block.shape[:-1])} after blocks of {list(expected)}, besides the "
                "samples; all blocks must be of the same signals."
            )
        expected = block.shape[:-1]
        yield block


def _wrong_frames(caller: str, got: int, expected: str) -> ValueError:
    return ValueError(
        f"{caller} got weights for {got} frames, but the transform has {expected} frames over the samples of the "
        "estimates; use the transform with which the weights were computed."
    )

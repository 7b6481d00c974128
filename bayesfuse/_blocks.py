"""Blocks of a long recording: where they lie, and how they fade into each other."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float


class Block(NamedTuple):
    """Samples [start, stop) of the recording, and the frames of the whole that it answers for, [first, last)."""

    start: int
    stop: int
    first: int
    last: int


def plan(length: int, frames: int, hop: int, rate: int, block: float, overlap: float) -> list[Block]:
    """Blocks of equal length whose edges lie on the grid of frames, so that their frames are frames of the whole.

    Equal, because blocks of other lengths compile other programs, and a short one would know little.

    Parameters
    ----------
    length, frames
        Of the recording, in samples and in frames.
    hop
        Samples from frame to frame.
    rate
        Samples per second.
    block, overlap
        In seconds; an infinite block is one for the whole recording.

    Raises
    ------
    ValueError
        For a block that is not positive or shorter than four hops, or an overlap that is not positive or more than
        half a block.
    """
    if not block > 0:
        raise ValueError(f"block_seconds={block}: expected a positive number of seconds, or inf for a single block.")
    if not block * rate >= 4 * hop:
        raise ValueError(
            f"block_seconds={block}: blocks of fewer than {4 * hop} samples, {4 * hop / rate:.3g} s, are shorter than "
            "their cross-fades; 10 s or more are sensible."
        )
    if not 0 < overlap <= block / 2 or math.isinf(overlap):
        raise ValueError(
            f"block_seconds={block}, overlap_seconds={overlap}: the overlap must be positive and at most half a block."
        )
    if math.isinf(block):
        return [Block(0, length, 0, frames)]
    fade = max(2, 2 * round(overlap * rate / hop / 2)) * hop
    size = max(round(block * rate / hop) * hop, 2 * fade)
    count = max(1, -(-(length - fade) // (size - fade)))
    step = -(-(length - fade) // (count * hop)) * hop
    starts, size = [i * step for i in range(count)], step + fade
    seams = [0] + [(start + fade // 2) // hop for start in starts[1:]] + [frames]
    return [
        Block(start, min(start + size, length), first, last)
        for start, first, last in zip(starts, seams, seams[1:], strict=False)
    ]


def fade(blocks: Sequence[Block], i: int, dtype: np.dtype[Any]) -> Float[np.ndarray, " sample"]:
    """Linear cross-fade of a block with its neighbours; the fades of all blocks add up to one at every sample."""
    block = blocks[i]
    gains = np.ones(block.stop - block.start, dtype)
    if i > 0:
        overlap = blocks[i - 1].stop - block.start
        gains[:overlap] = _ramp(overlap, dtype)
    if i + 1 < len(blocks):
        overlap = block.stop - blocks[i + 1].start
        gains[-overlap:] = 1 - _ramp(overlap, dtype)
    return gains


def _ramp(length: int, dtype: np.dtype[Any]) -> Float[np.ndarray, " sample"]:
    return ((np.arange(length) + 0.5) / length).astype(dtype)

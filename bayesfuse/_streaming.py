"""Long signals in pieces: hop-aligned stretches with the context that framing and overlap-add need."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Piece(NamedTuple):
    """A stretch of a signal that is cut into segments of one hop.

    `audio` [..., sample] begins with segment `start`; the segments [`first`, `stop`) are the piece's own, the others
    context. The `final` piece ends with the signal, possibly within a segment.
    """

    audio: Float[np.ndarray, "*batch sample"]
    start: int
    first: int
    stop: int
    final: bool


def slices(signal: Float[np.ndarray, "*batch sample"], size: int) -> Iterator[Float[np.ndarray, "*batch piece"]]:
    """Consecutive stretches of a signal, views of `size` samples, the last one shorter."""
    for start in range(0, signal.shape[-1], size):
        yield signal[..., start : start + size]


def pieces(
    blocks: Iterable[Float[np.ndarray, "*batch sample"]], *, hop: int, before: int, after: int, entries: int
) -> Iterator[Piece]:
    """Consecutive blocks of any lengths as pieces with context, of which at most one is held at a time.

    Parameters
    ----------
    blocks
        Stretches of one signal [..., sample] in their order.
    hop
        Samples per segment.
    before, after
        Segments of context before and after the piece's own, where the signal has them.
    entries
        Number of samples, over all axes, that the piece's own segments have; at least one segment. The final piece has
        at least one sample of its own.
    """
    held: list[np.ndarray] = []
    size = 1
    start = first = count = 0  # the first segment held, the first not given out yet, the samples held
    for block in blocks:
        if not block.shape[-1]:
            continue
        if not held:
            size = max(entries * block.shape[-1] // (block.size * hop), 1)
        held.append(block)
        count += block.shape[-1]
        # Strictly more than the piece and its context: what is left makes the final piece.
        while count > (first + size + after - start) * hop:
            audio = held[0] if len(held) == 1 else np.concatenate(held, axis=-1)
            stop = first + size
            yield Piece(audio[..., : (stop + after - start) * hop], start, first, stop, False)
            keep = max(stop - before, 0)
            held = [audio[..., (keep - start) * hop :]]
            start, first, count = keep, stop, held[0].shape[-1]
    if held:
        yield Piece(np.concatenate(held, axis=-1), start, first, start - (-count // hop), True)

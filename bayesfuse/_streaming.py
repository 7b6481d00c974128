"""Long signals in pieces: hop-aligned stretches with the context that framing and overlap-add need."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

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


def slices(entries: int, *signals: Float[np.ndarray, "..."]) -> Iterator[tuple[np.ndarray, ...]]:
    """Consecutive stretches, views, of signals of one length, `entries` samples of all of them together at a time."""
    length = signals[0].shape[-1]
    size = max(entries * length // max(sum(signal.size for signal in signals), 1), 1)
    for start in range(0, length, size):
        yield tuple(signal[..., start : start + size] for signal in signals)


def pieces(
    blocks: Iterable[Float[np.ndarray, "..."]], *, hop: int, before: int, after: int, entries: int
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


def overlap_added(
    blocks: Iterable[Float[np.ndarray, "..."]],
    transform: Any,
    entries: int,
    function: Callable[[np.ndarray, range, bool], np.ndarray],
) -> Iterator[Float[np.ndarray, "..."]]:
    """Consecutive stretches of what a function that works by frames makes of a signal in blocks.

    Parameters
    ----------
    blocks
        Stretches of one signal [..., sample] in their order.
    transform
        The framing: `window`, `hop` and `num_frames`.
    entries
        As in `pieces`.
    function
        From samples [..., sample], the numbers of their frames, and whether they end the signal, to as many samples.
        It is called with a context so wide that the frames of the result are complete.
    """
    context = transform.window // transform.hop - 1
    for piece in pieces(blocks, hop=transform.hop, before=context, after=context, entries=entries):
        frames = range(piece.start, piece.start + transform.num_frames(piece.audio.shape[-1]))
        # The outermost frames reach beyond the context, but not into the piece's own segments.
        part = function(piece.audio, frames, piece.final)
        end = None if piece.final else (piece.stop - piece.start) * transform.hop
        yield part[..., (piece.first - piece.start) * transform.hop : end]

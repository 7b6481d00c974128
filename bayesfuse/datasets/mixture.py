"""A mixture with its true sources, and sequences of such things that are read when they are asked for."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
from jaxtyping import Float

PathLike = str | os.PathLike[str]
Waveform = Float[np.ndarray, "channel sample"]
Item = TypeVar("Item", covariant=True)


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture, its true sources, and where to learn from and score on.

    Attributes
    ----------
    name
        Unique within its set.
    mixture
        [channel, sample]; the sum of the sources, to rounding, unless its set says otherwise (`residual_db`).
    sources
        True sources by name, each [channel, sample] like the mixture; empty if they are not known.
    rate
        Sampling rate in Hz.
    segment
        First sample to score and the one after the last.
    context
        First sample, and the one after the last, of a stretch before the target that holds the background
        alone, from which a separator may learn it; None if there is no such stretch.
    group
        Mixtures of one group share recordings of the target: keep them in one fold, resample them together.
    split
        Part of the set: train, val, test...
    metadata
        What else the set says about the mixture.
    after
        Such a stretch behind the target, or None.
    """

    name: str
    mixture: Float[np.ndarray, "channel sample"]
    sources: dict[str, Float[np.ndarray, "channel sample"]]
    rate: int
    segment: tuple[int, int]
    context: tuple[int, int] | None = None
    group: str = ""
    split: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    after: tuple[int, int] | None = None

    @property
    def duration(self) -> float:
        """Length of the mixture in seconds."""
        return self.mixture.shape[-1] / self.rate

    @property
    def residual_db(self) -> float:
        """Energy of mixture minus sum of the sources, relative to the mixture's, in dB; -inf where it is zero.

        NaN if the sources are not known.
        """
        if not self.sources:
            return float("nan")
        error = self.mixture.astype(np.float64) - np.sum(list(self.sources.values()), axis=0, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.sum(error**2) / np.sum(self.mixture.astype(np.float64) ** 2)
            return float(10.0 * np.log10(ratio)) if np.any(error) else -np.inf

    def scored(self, signal: Float[np.ndarray, "*batch sample"]) -> Float[np.ndarray, "*batch scored"]:
        """The part of a signal as long as the mixture that is meant to be scored (a view)."""
        samples = self.mixture.shape[-1]
        if signal.shape[-1] != samples:
            raise ValueError(f"{self.name} has {samples} samples, but the signal has {signal.shape[-1]}.")
        return signal[..., self.segment[0] : self.segment[1]]

    def background(self) -> Float[np.ndarray, "channel context"]:
        """The part of the mixture before the target that holds the background alone (a view)."""
        if self.context is None:
            raise ValueError(f"{self.name} has no stretch of background alone; learn it on other recordings.")
        return self.mixture[:, self.context[0] : self.context[1]]

    def backgrounds(self, guard: int = 0) -> list[Float[np.ndarray, "channel _"]]:
        """All parts of the mixture, before and behind the target, that hold the background alone (views).

        Parameters
        ----------
        guard
            Samples left out next to the target, into which frames with both would reach.

        Raises
        ------
        ValueError
            If there is no such part, or none longer than the guard.
        """
        before, after = self.context, self.after
        ranges = [] if before is None else [(before[0], before[1] - guard)]
        ranges += [] if after is None else [(after[0] + guard, after[1])]
        found = [self.mixture[:, start:stop] for start, stop in ranges if start < stop]
        if guard < 0 or not found:
            raise ValueError(
                f"{self.name} has no stretch of background alone outside a guard of {guard} samples; learn it on "
                "other recordings, or lower the guard."
            )
        return found

    def versus_rest(self, source: str, rest: str = "rest") -> "Mixture":
        """The same mixture with two sources, `source` and, named `rest`, the sum of all others."""
        others = [signal for name, signal in self.sources.items() if name != source]
        if source not in self.sources or not others or rest == source:
            raise ValueError(
                f"{self.name} has sources {list(self.sources)}; need {source!r} and at least one other, to "
                f"be summed under a name of its own instead of {rest!r}."
            )
        two = {source: self.sources[source], rest: np.sum(others, axis=0, dtype=self.mixture.dtype)}
        return replace(self, sources=two)


class Lazy(Sequence[Item], Generic[Item]):
    """A sequence whose items are made when asked for, anew each time; slices are lazy too.

    It can be sent to another process if `make` can.
    """

    def __init__(self, names: Sequence[str], make: Callable[[int], Item]) -> None:
        self.names = tuple(names)
        self._make = make

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> "Lazy[Item]": ...
    def __getitem__(self, index: int | slice) -> "Item | Lazy[Item]":
        positions = range(len(self.names))
        if isinstance(index, slice):
            return self.at(positions[index])
        return self._make(positions[index])

    def at(self, positions: Sequence[int]) -> "Lazy[Item]":
        """The items at some positions, in their order."""
        chosen = tuple(positions)
        return Lazy([self.names[i] for i in chosen], partial(_make_at, self._make, chosen))

    def __iter__(self) -> Iterator[Item]:
        return map(self._make, range(len(self.names)))

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:3]) + (", ..." if len(self.names) > 3 else "")
        return f"<{len(self.names)} items, made when asked for: {shown}>"


def _make_at(make: Callable[[int], Any], positions: tuple[int, ...], index: int) -> Any:
    return make(positions[index])


if TYPE_CHECKING:
    Mixtures = Lazy[Mixture]
    Utterances = Lazy[Waveform]
else:
    # Types checked at run time would make an item to look at it.
    Mixtures = Utterances = Lazy

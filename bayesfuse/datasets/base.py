"""What all data sets have in common: a table of entries, known without reading audio, and mixtures formed on demand."""

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from bayesfuse._folds import group_folds
from bayesfuse.datasets.mixture import Mixture, Mixtures, Utterances


class Entry(NamedTuple):
    """What is known of a mixture before it is read.

    Attributes
    ----------
    name
        Unique in the set.
    split
        Its part of the set.
    group
        Mixtures of one group share recordings of the target.
    metadata
        As `Mixture.metadata` has it, as far as it is known.
    quick
        Whether it belongs to the small balanced subset that some sets mark.
    """

    name: str
    split: str
    group: str
    metadata: Mapping[str, Any] = {}
    quick: bool = False


class Fold(NamedTuple):
    """One fold of a cross-validation: mixtures to learn on, to stop early on (or none), and to test on."""

    train: Mixtures
    validation: Mixtures
    test: Mixtures


if TYPE_CHECKING:
    _Sequence = Sequence[Mixture]
else:
    # Types checked at run time would form a mixture to look at it.
    _Sequence = Sequence


class Dataset(_Sequence, ABC):
    """A set of mixtures in splits: a sequence of `Mixture`, read one at a time, in an order that never changes.

    A further set is a subclass that hands `Entry` and the sampling rate to this constructor and forms the mixture of
    an entry in `_form`; its objects can then be sent to other processes as long as they hold nothing but data.

    Parameters
    ----------
    entries
        One for each mixture, in order; splits are in the order of their first entry.
    rate
        Sampling rate of all mixtures in Hz.

    Raises
    ------
    ValueError
        If there are no entries, or two of one name.
    """

    def __init__(self, entries: Iterable[Entry], rate: int) -> None:
        self.entries = tuple(entries)
        self.rate = rate
        if not self.entries:
            raise ValueError(f"{type(self).__name__} holds no mixtures.")
        name, times = Counter(entry.name for entry in self.entries).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{type(self).__name__} has {times} mixtures called {name!r}; names must be unique.")

    @abstractmethod
    def _form(self, index: int) -> Mixture:
        """The mixture of an entry; its name, split, group and metadata are set from the entry afterwards."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all mixtures."""
        return tuple(entry.name for entry in self.entries)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(dict.fromkeys(entry.split for entry in self.entries))

    @property
    def groups(self) -> tuple[str, ...]:
        """Group of every mixture."""
        return tuple(entry.group for entry in self.entries)

    @property
    def recordings(self) -> dict[str, Utterances]:
        """Other recordings of the set by what they are, such as clean speech to train on; none by default."""
        return {}

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Mixture: ...
    @overload
    def __getitem__(self, index: slice) -> Mixtures: ...
    def __getitem__(self, index: int | slice) -> Mixture | Mixtures:
        positions = range(len(self.entries))
        if isinstance(index, slice):
            return self._all().at(positions[index])
        return self._item(positions[index])

    def __iter__(self) -> Iterator[Mixture]:
        return map(self._item, range(len(self.entries)))

    def __repr__(self) -> str:
        counts = Counter(entry.split for entry in self.entries)
        shown = ", ".join(f"{count} {split}" for split, count in counts.items())
        return f"<{type(self).__name__}: {shown}; {self.rate} Hz>"

    def paths(self, index: int) -> list[Path]:
        """Files that a mixture is formed from, so that others can tell whether they changed; none for drawn ones."""
        return []

    def mixture(self, name: str) -> Mixture:
        """The mixture of a name.

        Raises
        ------
        ValueError
            If there is none.
        """
        if name not in self.names:
            raise ValueError(f"there is no mixture {name!r}; the first is {self.names[0]!r}, see `names`.")
        return self._item(self.names.index(name))

    def mixtures(self, split: str | None = None, quick: bool | None = None) -> Mixtures:
        """Mixtures of a split or, without one, of the set.

        `quick` is True for the small balanced subset that some sets mark, False for the rest, None for both.

        Raises
        ------
        ValueError
            For an unknown split, or a quick subset where none is marked.
        """
        return self._all().at(self._positions(split, quick))

    def folds(
        self, k: int = 5, seed: int = 0, *, split: str | None = None, by: str = "group", validation: bool = False
    ) -> list[Fold]:
        """Folds of a cross-validation that keep groups together; every mixture is tested on once.

        Parameters
        ----------
        k
            Number of folds, at least 2, and 3 with `validation`; not more than there are groups.
        seed
            Of the assignment of groups to folds.
        split
            Only mixtures of this split.
        by
            What is kept together: ``"group"``, or a name in the metadata of all entries, such as ``"speaker"``.
        validation
            Whether one more fold, that tested next, is held out of training, as in [JVR16] VII.A.

        Raises
        ------
        ValueError
            For an unknown split or name, or more folds than groups.
        """
        positions = self._positions(split, None)
        entries = [self.entries[i] for i in positions]
        lacking = [entry.name for entry in entries if by != "group" and by not in entry.metadata]
        if lacking:
            raise ValueError(
                f"by={by!r}: {lacking[0]} has no such metadata; use 'group' or one of {sorted(entries[0].metadata)}."
            )
        labels = [entry.group if by == "group" else entry.metadata[by] for entry in entries]
        count, least = len({str(label) for label in labels}), 3 if validation else 2
        if not least <= k <= count:
            raise ValueError(
                f"folds got k={k} with {count} different values of {by}; expected {least} to {count} folds."
            )
        parts = [held_out for _, held_out in group_folds(labels, k, seed)]
        everything = self._all().at(positions)
        found = []
        for i, test in enumerate(parts):
            stop = parts[(i + 1) % k] if validation else np.empty(0, int)
            train = np.setdiff1d(np.arange(len(positions)), np.concatenate([test, stop]))
            found.append(Fold(*(everything.at(part.tolist()) for part in (train, stop, test))))
        return found

    def _all(self) -> Mixtures:
        return Mixtures(self.names, self._item)

    def _item(self, index: int) -> Mixture:
        entry, item = self.entries[index], self._form(index)
        metadata = {**entry.metadata, **item.metadata}
        return dataclasses.replace(item, name=entry.name, split=entry.split, group=entry.group, metadata=metadata)

    def _positions(self, split: str | None, quick: bool | None) -> list[int]:
        if split is not None and split not in self.splits:
            raise ValueError(f"unknown split {split!r}; there are {', '.join(self.splits)}.")
        chosen = [i for i, entry in enumerate(self.entries) if split is None or entry.split == split]
        if quick is not None:
            chosen = [i for i in chosen if self.entries[i].quick == quick]
            if not chosen:
                kind = "quick" if quick else "other than quick"
                raise ValueError(f"split {split!r} has no mixtures marked as {kind}; use quick=None for all.")
        return chosen

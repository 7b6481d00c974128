"""What is known of the sources of a mixture, turned into dictionaries: recordings, saved dictionaries, or nothing."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bayesfuse import audio
from bayesfuse.dictionary import Dictionary, train_dictionary
from bayesfuse.transforms import Transform

LEARN = "learn"

# An array, a path, a folder, a pattern, a Dictionary, a list of one of these kinds, or "learn".
Recordings = Any


class Known(NamedTuple):
    """What is known of one source, read and checked, before anything is trained.

    Attributes
    ----------
    orders
        Its candidate orders.
    dictionaries
        Trained dictionaries of these orders, or None.
    recordings
        Recordings to train them on, [channel, sample] each, or None. If both are None, the source is to be learned on
        the mixture.
    """

    orders: list[int]
    dictionaries: list[Dictionary] | None = None
    recordings: list[np.ndarray] | None = None

    @property
    def learned(self) -> bool:
        return self.dictionaries is None and self.recordings is None


def read_sources(
    sources: Mapping[str, Recordings],
    orders: Mapping[str, int | Sequence[int]] | None,
    rate: int,
    transform: Transform,
) -> dict[str, Known]:
    """Return what is known of every source, with all that can be found wrong before the first training.

    Arguments are those of `separation.separate`.

    Raises
    ------
    ValueError
        For fewer than two sources, none of them known, orders that are missing, repeated, below one, or more than the
        recordings have frames, recordings that are silent or of another rate, and dictionaries of another rate or
        transform.
    FileNotFoundError
        For files that do not exist.
    """
    if not isinstance(sources, Mapping) or len(sources) < 2:
        given = list(sources) if isinstance(sources, Mapping) else type(sources).__name__
        raise ValueError(
            f"sources={given}: expected a mapping with at least two names, such as "
            '{"speech": "recordings/", "noise": "learn"}.'
        )
    for name in sources:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ValueError(f"sources names {name!r}: expected a text of one or more printable characters.")
    orders = {} if orders is None else orders
    if not isinstance(orders, Mapping):
        raise ValueError(f'orders={orders!r}: expected a mapping, such as {{"speech": [2, 4, 8], "noise": 16}}.')
    unknown = sorted(set(orders) - set(sources))
    if unknown:
        raise ValueError(f"orders names {unknown}, which are not among the sources {list(sources)}.")
    if all(_is_learned(spec) for spec in sources.values()):
        raise ValueError(
            "every source is to be learned on the mixture, which cannot tell one from another: give recordings or a "
            "dictionary of at least one."
        )
    wanted = {name: _orders(name, orders[name]) for name in orders}
    return {name: _load(name, spec, rate, transform, wanted.get(name)) for name, spec in sources.items()}


def train_sources(
    known: Mapping[str, Known],
    rate: int,
    transform: Transform,
    *,
    dtype: np.dtype[Any],
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> dict[str, list[Dictionary | int]]:
    """Return the candidates of every source: dictionaries, trained where need be, or orders to be learned.

    Arguments are those of `separation.separate`; `dtype` is that of the mixture.
    """
    model: dict[str, list[Dictionary | int]] = {}
    for name, source in known.items():
        if source.dictionaries is not None:
            model[name] = list(source.dictionaries)
        elif source.recordings is None:
            model[name] = list(source.orders)
        else:
            recordings = [np.asarray(recording, dtype) for recording in source.recordings]
            model[name] = list(
                train_dictionary(
                    recordings, rate, source.orders, transform=transform, seed=seed, cache=cache, progress=progress
                )
            )
    return model


def _is_learned(spec: Recordings) -> bool:
    return isinstance(spec, str) and spec == LEARN


def _required(name: str, wanted: list[int] | None) -> list[int]:
    if wanted is None:
        raise ValueError(
            f"orders has no entry for {name!r}: say how many components its dictionary may have, such as [2, 4, 8, 16]."
        )
    return wanted


def _orders(name: str, value: Any) -> list[int]:
    if isinstance(value, str) or not isinstance(value, Iterable | int | np.integer):
        raise ValueError(f"orders[{name!r}]={value!r}: expected a whole number or a list of them, such as [2, 4, 8].")
    given = [value] if isinstance(value, int | np.integer) else list(value)
    if not given:
        raise ValueError(f"orders[{name!r}] is empty: expected at least one number of components.")
    for order in given:
        if isinstance(order, bool) or not isinstance(order, int | np.integer) or order < 1:
            raise ValueError(f"orders[{name!r}] contains {order!r}: expected whole numbers of at least 1.")
    if len(set(given)) != len(given):
        raise ValueError(f"orders[{name!r}]={given} repeats an order: list every candidate once.")
    return [int(order) for order in given]


def _load(name: str, spec: Any, rate: int, transform: Transform, wanted: list[int] | None) -> Known:
    if _is_learned(spec):
        return Known(_required(name, wanted))
    many = isinstance(spec, Iterable) and not isinstance(spec, str | os.PathLike | np.ndarray | Dictionary)
    items: list[Any] = list(spec) if many else [spec]
    if not items:
        raise ValueError(f"sources[{name!r}] is empty: give recordings, a dictionary, or {LEARN!r}.")
    if all(isinstance(item, Dictionary) or _is_dictionary_file(item) for item in items):
        loaded = [item if isinstance(item, Dictionary) else Dictionary.load(item) for item in items]
        dictionaries = _matching(name, loaded, rate, transform, wanted)
        return Known([dictionary.order for dictionary in dictionaries], dictionaries=dictionaries)
    for item in items:
        if not isinstance(item, np.ndarray | str | os.PathLike):
            raise ValueError(
                f"sources[{name!r}] holds a {type(item).__name__}: expected recordings (arrays or paths), "
                f"dictionaries, or {LEARN!r}, and not a mixture of kinds."
            )
    required = _required(name, wanted)
    waveforms: list[np.ndarray] = []
    for item in items:
        if isinstance(item, np.ndarray):
            waveforms.append(audio.check_audio(item, rate, name=f"sources[{name!r}]"))
        else:
            waveforms.extend(_read(name, path, rate) for path in audio.collect(item))
    if not any(waveform.any() for waveform in waveforms):
        raise ValueError(f"sources[{name!r}]: all recordings are silent, nothing can be learned from them.")
    frames = sum(waveform.shape[0] * transform.num_frames(waveform.shape[1]) for waveform in waveforms)
    if max(required) > frames:
        raise ValueError(
            f"orders[{name!r}] asks for {max(required)} components, but its recordings have {frames} frames: lower "
            "the order, or give longer recordings."
        )
    return Known(required, recordings=waveforms)


def _is_dictionary_file(item: Any) -> bool:
    return isinstance(item, str | os.PathLike) and Path(item).suffix == ".npz"


def _read(name: str, path: Path, rate: int) -> np.ndarray:
    found = audio.info(path)
    if found.rate != rate:
        raise ValueError(
            f"sources[{name!r}]: {path} has a rate of {found.rate} Hz, the mixture {rate} Hz; resample it first, for "
            "example with bayesfuse.audio.resample."
        )
    return audio.read(path)[0]


def _matching(
    name: str, loaded: list[Dictionary], rate: int, transform: Transform, wanted: list[int] | None
) -> list[Dictionary]:
    for dictionary in loaded:
        if dictionary.rate != rate or dictionary.transform != transform.to_dict():
            raise ValueError(
                f"sources[{name!r}]: the dictionary of order {dictionary.order} is for {dictionary.rate} Hz and "
                f"{dictionary.transform}, the mixture is analysed at {rate} Hz with {transform.to_dict()}."
            )
    by_order = {dictionary.order: dictionary for dictionary in loaded}
    if len(by_order) != len(loaded):
        raise ValueError(f"sources[{name!r}]: orders {[d.order for d in loaded]} repeat; give one dictionary of each.")
    missing = [order for order in wanted or [] if order not in by_order]
    if missing:
        raise ValueError(f"orders[{name!r}] asks for {missing}; the dictionaries have {sorted(by_order)}.")
    return [by_order[order] for order in (wanted or by_order)]

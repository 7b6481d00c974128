"""Dictionaries of an experiment: which recordings each mixture's are learned on, so that none has heard the mixture.

A separator looks better on sources that its dictionary has heard, and a fusion rule that is learned on such estimates
trusts high orders too much. So the material of a source is divided into parts at random, and a mixture whose own
recordings are in it, which it tells by its group, gets dictionaries of all other parts. All others get those of all
the material.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bayesfuse._fingerprint import content_hash
from bayesfuse.datasets.base import Dataset, Entry
from bayesfuse.datasets.opening import open_dataset
from bayesfuse.dictionary import Dictionary, train_dictionary
from bayesfuse.experiment_config import Data, ExperimentConfig, Learned


class Lesson(NamedTuple):
    """What one set of dictionaries, of all orders of a source, is learned on.

    Attributes
    ----------
    source
        Whose dictionaries.
    material
        Name of the recordings, or value of the metadata that the mixtures have in common.
    without
        The part that is left out; None for none.
    """

    source: str
    material: str
    without: int | None

    def __str__(self) -> str:
        return self.material + ("" if self.without is None else f" without part {self.without + 1}")


class Taught(NamedTuple):
    """Dictionaries of all orders of a source, and a hash of what they were learned on and how."""

    dictionaries: tuple[Dictionary, ...]
    digest: str


def open_now(data: Data) -> Dataset:
    """The data set as it is now."""
    return open_dataset(data.kind, data.path, **data.options)


def opened(data: Data, look: str) -> Dataset:
    """The data set, kept open as long as its files look the same: opening it reads manifests and lists folders.

    Parameters
    ----------
    look
        A hash of how they look.
    """
    return _opened(data.kind, data.path, json.dumps(dict(data.options), sort_keys=True), look)


@lru_cache(maxsize=2)
def _opened(kind: str, path: Path | None, options: str, look: str) -> Dataset:
    return open_dataset(kind, path, **json.loads(options))


def lessons_of(config: ExperimentConfig, data: Dataset, entries: Sequence[Entry]) -> list[dict[str, Lesson]]:
    """For each mixture, by source, what its dictionaries are learned on; not those learned on the mixture itself.

    Raises
    ------
    ValueError
        If the set has no such recordings, or a mixture lacks the metadata that name them.
    """
    parts: dict[tuple[str, str], list[set[str]]] = {}
    found: list[dict[str, Lesson]] = []
    for entry in entries:
        mine: dict[str, Lesson] = {}
        for learned in config.dictionaries.sources:
            if learned.learning in ("context", "mixture"):
                continue
            material = _material(learned, entry)
            if (learned.source, material) not in parts:
                parts[learned.source, material] = _parts(_groups(data, learned, material), config)
            held = [i for i, part in enumerate(parts[learned.source, material]) if entry.group in part]
            mine[learned.source] = Lesson(learned.source, material, held[0] if held else None)
        found.append(mine)
    return found


def _material(learned: Learned, entry: Entry) -> str:
    """Which recordings a source is learned on for a mixture."""
    section, about = f"[dictionaries.{learned.source}]", sorted(entry.metadata)
    if learned.learning == "recordings":
        try:
            return learned.recordings.format(**entry.metadata)
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"{section} recordings = {learned.recordings!r} asks for {error}; {entry.name} has metadata {about}."
            ) from error
    if learned.by is not None and learned.by not in entry.metadata:
        raise ValueError(f"{section} by = {learned.by!r}; {entry.name} has the metadata {about}.")
    return "" if learned.by is None else str(entry.metadata[learned.by])


def teach(config: ExperimentConfig, data: Dataset, lesson: Lesson, cache: Path | None) -> Taught:
    """The dictionaries of a lesson.

    Parameters
    ----------
    data
        The data set of the experiment.
    cache
        Folder in which they are kept by content.

    Raises
    ------
    ValueError
        If nothing is left to learn on, or as `train_dictionary`.
    """
    learned = next(item for item in config.dictionaries.sources if item.source == lesson.source)
    groups = _groups(data, learned, lesson.material)
    left_out = set() if lesson.without is None else _parts(groups, config)[lesson.without]
    chosen = [i for i, group in enumerate(groups) if group not in left_out]
    if not chosen:
        raise ValueError(
            f"[dictionaries] cross_fit = {config.dictionaries.cross_fit} leaves nothing of {lesson.material!r} to "
            f"learn {lesson.source} on; it has {len(set(groups))} groups: take fewer parts, or more recordings."
        )
    recordings = [np.asarray(x) for x in _recordings(config, data, learned, lesson.material, chosen)]
    settings = config.dictionaries
    found = train_dictionary(
        recordings,
        data.rate,
        list(learned.orders),
        transform=config.transform,
        seed=config.seed,
        num_iters=settings.iterations,
        max_frames=settings.max_frames,
        cache=cache,
    )
    about = [config.transform.to_dict(), config.seed, settings.iterations, settings.max_frames, learned.orders]
    return Taught(tuple(found), content_hash(about, recordings))


def own_dictionaries(
    config: ExperimentConfig, learned: Learned, backgrounds: Sequence[np.ndarray], rate: int
) -> tuple[Dictionary, ...]:
    """Dictionaries of a source, of all its orders, learned on stretches of the mixture that hold it alone."""
    settings = config.dictionaries
    return tuple(
        train_dictionary(
            list(backgrounds),
            rate,
            list(learned.orders),
            transform=config.transform,
            seed=config.seed,
            num_iters=settings.iterations,
            max_frames=settings.max_frames,
        )
    )


def _groups(data: Dataset, learned: Learned, material: str) -> list[str]:
    """The group of each recording of the material."""
    if learned.learning == "recordings":
        found = data.recordings
        if material not in found:
            names = list(found)
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"
            raise ValueError(f"the set has no recordings {material!r} to learn {learned.source} on; it has {shown}.")
        return list(found[material].names)
    return [data.entries[i].group for i in _positions(data, learned, material)]


def _positions(data: Dataset, learned: Learned, material: str) -> list[int]:
    """Mixtures whose true sources are the material."""
    about = ((i, entry) for i, entry in enumerate(data.entries) if entry.split == learned.split)
    found = [i for i, entry in about if learned.by is None or str(entry.metadata.get(learned.by)) == material]
    if not found:
        raise ValueError(
            f"[dictionaries.{learned.source}]: no mixture of the split {learned.split!r}"
            f"{f' has {learned.by} {material}' if learned.by else ''}; there are the splits {', '.join(data.splits)}."
        )
    return found


def _recordings(
    config: ExperimentConfig, data: Dataset, learned: Learned, material: str, chosen: list[int]
) -> Iterable[np.ndarray]:
    if learned.learning == "recordings":
        return data.recordings[material].at(chosen)
    positions = _positions(data, learned, material)
    return (_source(config.data, data, positions[i], learned.source) for i in chosen)


def _source(about: Data, data: Dataset, index: int, source: str) -> np.ndarray:
    sources: Mapping[str, np.ndarray] = reduced(about, data[index]).sources
    if source not in sources:
        raise ValueError(f"{data.names[index]} has the sources {sorted(sources)}, and no {source} to learn on.")
    return sources[source]


def reduced(about: Data, mixture: Any) -> Any:
    """The mixture with the sources that the experiment tells apart."""
    return mixture if about.target is None else mixture.versus_rest(about.target, about.rest)


def _parts(groups: Sequence[str], config: ExperimentConfig) -> list[set[str]]:
    """The groups, divided at random; no parts without cross-fitting."""
    if not config.dictionaries.cross_fit:
        return []
    names = list(dict.fromkeys(groups))
    shuffled = np.random.default_rng(config.seed).permutation(len(names))
    return [{names[i] for i in part} for part in np.array_split(shuffled, config.dictionaries.cross_fit)]

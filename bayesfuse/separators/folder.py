"""Folders of WAV files, written by any program, as separators.

Layout
------
``mixtures/<name>.wav``, ``estimates/<separator>/<name>/<source>.wav`` with an optional ``free_energy.nc`` beside it,
``references/<name>/<source>.wav``. Names may contain folders (``test/0001``). FLAC and OGG files do as well.

Manifest
--------
Or a CSV file that says where everything is, with the columns ``name,kind,separator,source,path`` and optionally
``group``: one row per file, `kind` one of mixture, estimate, reference, free_energy; `separator` and `source` are
empty where they have no meaning; paths are relative to the manifest. Mixtures of one group (a speaker, a song) are
kept together by cross-validation and by intervals.

Nothing is read until it is asked for: a `Folder` holds paths.
"""

import csv
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from bayesfuse import audio
from bayesfuse.separators.contract import Separation
from bayesfuse.separators.free_energy_file import NAME as FREE_ENERGY
from bayesfuse.separators.free_energy_file import load_free_energy

PathLike = str | os.PathLike[str]
_COLUMNS = ("name", "kind", "separator", "source", "path")
_KINDS = ("mixture", "estimate", "reference", "free_energy")


@dataclass(frozen=True)
class Item:
    """The files of one mixture.

    Attributes
    ----------
    name
        Unique in its folder; ``/`` separates folders.
    mixture
        Its file.
    estimates
        Files by separator and source; what is missing is not there.
    references
        Files of the true sources by source.
    free_energies
        Files by separator.
    group
        Mixtures of one group belong together; by default each is a group of its own.
    """

    name: str
    mixture: Path
    estimates: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    references: Mapping[str, Path] = field(default_factory=dict)
    free_energies: Mapping[str, Path] = field(default_factory=dict)
    group: str = ""

    def estimate(self, separator: str, source: str) -> Path:
        """The file of one estimate; a FileNotFoundError says that there is none."""
        found = self.estimates.get(separator, {}).get(source)
        if found is None:
            raise FileNotFoundError(f"separator {separator} has no {source} of {self.name}")
        return found


@dataclass(frozen=True)
class Folder:
    """Mixtures with the outputs of several separators, and true sources where they are known.

    Attributes
    ----------
    items
        Sorted by name.
    separators
        Sorted.
    """

    items: tuple[Item, ...]
    separators: tuple[str, ...]

    @cached_property
    def separators_of(self) -> dict[str, tuple[str, ...]]:
        """By source, the separators that estimate it in any mixture; all sorted."""
        pairs = {(source, s) for item in self.items for s, files in item.estimates.items() for source in files}
        sources = sorted({source for source, _ in pairs})
        return {source: tuple(sorted(s for other, s in pairs if other == source)) for source in sources}

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of all sources that any separator estimates, sorted."""
        return tuple(self.separators_of)

    def sources_of(self, separator: str) -> tuple[str, ...]:
        """The sources that a separator estimates in any mixture, sorted."""
        return tuple(source for source, separators in self.separators_of.items() if separator in separators)

    def separation(self, separator: str, item: Item) -> Separation:
        """What a separator says of one mixture: its sources in the order of `sources_of`, and its free energy if known.

        Raises
        ------
        FileNotFoundError
            If an estimate is missing.
        ValueError
            If a file cannot be decoded, or the files of one separation differ in channels or length.
        """
        waveforms = [audio.read(item.estimate(separator, source))[0] for source in self.sources_of(separator)]
        if len({waveform.shape for waveform in waveforms}) != 1:
            raise ValueError(
                f"separator {separator} returned sources of shapes {[w.shape for w in waveforms]} for {item.name}; "
                "all must have the same channels and samples."
            )
        file = item.free_energies.get(separator)
        return Separation(np.stack(waveforms), None if file is None else load_free_energy(file)[0])


def read_folder(mixtures: PathLike, estimates: PathLike, references: PathLike | None = None) -> Folder:
    """The folder in the layout of the module's head.

    Parameters
    ----------
    mixtures
        Folder of the mixtures.
    estimates
        Folder with one folder per separator.
    references
        Folder with one folder per mixture whose sources are known.

    Raises
    ------
    FileNotFoundError
        If a folder does not exist.
    ValueError
        If there is no mixture, no separator, two files for one name, or no estimate of any mixture.
    """
    named = files_below(mixtures)
    below = _existing(estimates)
    separators = sorted(entry.name for entry in below.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not separators:
        raise ValueError(
            f"{below} holds no folders; expected one per separator, {below}/<separator>/<name>/<source>.wav."
        )
    root = None if references is None else _existing(references)
    items = []
    for name, mixture in named.items():
        folders = {s: below / s / name for s in separators}
        items.append(
            Item(
                name,
                mixture,
                {s: files for s, folder in folders.items() if (files := sources_in(folder))},
                {} if root is None else sources_in(root / name),
                {s: folder / FREE_ENERGY for s, folder in folders.items() if (folder / FREE_ENERGY).is_file()},
                name,
            )
        )
    return _checked(items, separators, f"{below}/<separator>/<name>/<source>.wav")


def read_manifest(path: PathLike) -> Folder:
    """The folder that a CSV manifest describes; see the module's head.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If columns are missing, a row is incomplete or of an unknown kind, two rows say the same, a name has no
        mixture, or there is no estimate.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no manifest {file}; looked from {Path.cwd()}.")
    found: dict[tuple[str, str, str, str], Path] = {}
    groups: dict[str, str] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.DictReader(text)
            missing = [column for column in _COLUMNS if column not in (rows.fieldnames or [])]
            if missing:
                raise ValueError(f"{file} has no column {', '.join(missing)}; expected {','.join(_COLUMNS)}[,group].")
            for row in rows:
                key = _key(row, f"{file}, line {rows.line_num}")
                if key in found:
                    raise ValueError(
                        f"{file}, line {rows.line_num}: there was a row for {' '.join(key).strip()} before."
                    )
                found[key] = file.parent / row["path"].strip()
                groups[key[0]] = (row.get("group") or "").strip() or groups.get(key[0], key[0])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as CSV in UTF-8: {error}") from error

    orphans = sorted({key[0] for key in found} - {key[0] for key in found if key[1] == "mixture"})
    if orphans:
        raise ValueError(f"{file} has no row of kind mixture for {', '.join(orphans[:5])}; add one for every name.")
    estimates: dict[str, dict[str, dict[str, Path]]] = {name: {} for name in groups}
    references: dict[str, dict[str, Path]] = {name: {} for name in groups}
    energies: dict[str, dict[str, Path]] = {name: {} for name in groups}
    for (name, kind, separator, source), target in sorted(found.items()):
        if kind == "estimate":
            estimates[name].setdefault(separator, {})[source] = target
        elif kind == "reference":
            references[name][source] = target
        elif kind == "free_energy":
            energies[name][separator] = target
    items = [
        Item(name, found[name, "mixture", "", ""], estimates[name], references[name], energies[name], groups[name])
        for name in sorted(groups)
    ]
    separators = sorted({separator for of_item in estimates.values() for separator in of_item})
    return _checked(items, separators, f"rows of kind estimate in {file}")


def _key(row: Mapping[str, str | None], where: str) -> tuple[str, str, str, str]:
    """Name, kind, separator and source of a row; empty where the kind has none."""
    name, kind, separator, source, path = ((row[column] or "").strip() for column in _COLUMNS)
    if kind not in _KINDS:
        raise ValueError(f"{where}: kind {kind!r}; expected one of {', '.join(_KINDS)}.")
    wanted = {"name": name, "path": path}
    wanted |= {"separator": separator} if kind in ("estimate", "free_energy") else {}
    wanted |= {"source": source} if kind in ("estimate", "reference") else {}
    empty = [column for column, value in wanted.items() if not value]
    if empty:
        raise ValueError(f"{where}: a row of kind {kind} needs {', '.join(empty)}.")
    unsafe = [value for column, value in wanted.items() if column != "path" and ".." in Path(value).parts]
    if unsafe:
        raise ValueError(f"{where}: {unsafe[0]!r} cannot be the name of a file to write.")
    return name, kind, wanted.get("separator", ""), wanted.get("source", "")


def _checked(items: Iterable[Item], separators: Iterable[str], expected: str) -> Folder:
    folder = Folder(tuple(items), tuple(separators))
    if not any(item.estimates for item in folder.items):
        names = ", ".join(item.name for item in folder.items[:3])
        raise ValueError(f"no estimate of any mixture ({names}, ...) was found; expected {expected}.")
    return folder


def _existing(path: PathLike) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; looked from {Path.cwd()}.")
    return folder


def files_below(path: PathLike) -> dict[str, Path]:
    """Audio files of a folder and the folders in it, sorted by name: their paths inside it without extension.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If it holds no audio file, or two of one name.
    """
    root = _existing(path)
    found: dict[str, Path] = {}
    for file in audio.collect(root):
        name = file.relative_to(root).with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"{found[name]} and {file} have one name, {name}; remove one of them.")
        found[name] = file
    return dict(sorted(found.items()))


def sources_in(folder: Path) -> dict[str, Path]:
    """Audio files directly in a folder by their names without extension; none if it does not exist."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in audio.AUDIO_EXTENSIONS and not file.name.startswith(".") and file.is_file():
            if file.stem in found:
                raise ValueError(f"{found[file.stem]} and {file} are of one source; remove one of them.")
            found[file.stem] = file
    return found

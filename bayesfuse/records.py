"""Records of an experiment: all that fusion, tables and plots need of separated mixtures, without their audio.

A record holds the scalar products between true sources and estimates over the scored stretch of the mixture (whole,
per frame, per frame and band), the models' free energies by term, scores, timings, the seed and the versions of what
computed them. One file per mixture, ``<folder>/records/<name>.nc``; its attribute `key` is a hash of settings, code and
inputs, by which an experiment tells whether it is still valid. ``<folder>/experiment.json`` says which records belong
to the experiment as it was last run; others are left over from earlier settings.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Float

from bayesfuse.grams import Gram
from bayesfuse.record_file import Kind as Kind
from bayesfuse.record_file import PathLike, read_header, read_record
from bayesfuse.record_file import Record as Record
from bayesfuse.record_file import write_record as write_record

ERRORS = "errors.json"
INDEX = "experiment.json"


class Records(Sequence[Record]):
    """The records of an experiment, read from their files when asked for; made by `open_records`.

    Iterating holds one record in memory at a time.
    """

    def __init__(self, paths: Mapping[str, Path], splits: Mapping[str, str], errors: Mapping[str, str]) -> None:
        self._paths = dict(paths)
        self._splits = dict(splits)
        self.errors = dict(errors)
        """Mixtures without a record because something is wrong with them, and what."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the mixtures, in the order of the records."""
        return tuple(self._paths)

    @property
    def splits(self) -> tuple[str, ...]:
        """The split of each record."""
        return tuple(self._splits[name] for name in self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        names = self.names[index]
        if isinstance(names, str):
            return read_record(self._paths[names])
        return self.select(names=names)

    def __iter__(self) -> Iterator[Record]:
        return self.read()

    def read(self, *, bands: bool = True) -> Iterator[Record]:
        """The records one by one; without their bands, which are nearly all of a file, on request."""
        return (read_record(path, bands=bands) for path in self._paths.values())

    def select(self, *, split: str | None = None, names: Iterable[str] | None = None) -> "Records":
        """The records of a split, or those named, in the order of the names.

        Raises
        ------
        ValueError
            For a name that has no record, or a split that no record is of.
        """
        chosen = list(self._paths) if names is None else list(names)
        missing = [name for name in chosen if name not in self._paths]
        if missing:
            why = "; ".join(self.errors.get(name, "not computed yet") for name in missing[:3])
            raise ValueError(f"there is no record of {', '.join(missing[:3])} ({why}); run the experiment again.")
        if split is not None:
            if split not in set(self._splits.values()):
                raise ValueError(
                    f"no record is of the split {split!r}; there are {', '.join(dict.fromkeys(self.splits)) or 'none'}."
                )
            chosen = [name for name in chosen if self._splits[name] == split]
        return Records({name: self._paths[name] for name in chosen}, self._splits, self.errors)

    def stack(self, kind: Kind = "whole") -> tuple[Gram, Bool[np.ndarray, "..."]]:
        """Scalar products of all records, [example, source], [example, source, frame] or [..., frame, band].

        Parameters
        ----------
        kind
            Which scalar products; bands of many records are many numbers (45 kB per frame, source and 14 models).

        Returns
        -------
        tuple
            The `Gram`, float64, with zeros after the last frame of shorter examples, and which frames there are,
            [example, frame] ([example], all true, for "whole").

        Raises
        ------
        ValueError
            If there is no record, or they are not of the same models and sources.
        """
        self._check_common()
        found = [r.scalar_products(kind) for r in self.read(bands=kind == "bands")]
        if kind == "whole":
            return Gram.stack(found), np.ones(len(found), bool)
        lengths = [g.energy.shape[1] for g in found]
        padded = [
            Gram(*(_padded(np.asarray(part), 1, max(lengths)) for part in (g.energy, g.cross, g.gram))) for g in found
        ]
        return Gram.stack(padded), _mask(lengths)

    def free_energies(self) -> tuple[Float[np.ndarray, "example model term frame"], Bool[np.ndarray, "example frame"]]:
        """Free energies of all records in nats, zero after the last frame of shorter ones, and which frames there are.

        Raises
        ------
        ValueError
            As `stack`.
        """
        self._check_common()
        found = [r.free_energy for r in self.read(bands=False)]
        lengths = [energy.shape[-1] for energy in found]
        return np.stack([_padded(energy, 2, max(lengths)) for energy in found]), _mask(lengths)

    def _check_common(self) -> None:
        if not self._paths:
            raise ValueError("there are no records; run the experiment first, or select others.")
        layouts: dict[Any, str] = {}
        for r in self.read(bands=False):
            layouts.setdefault((r.models, r.sources, r.terms), r.name)
        if len(layouts) > 1:
            parts = [f"{name}: {', '.join((*models, *sources))}" for (models, sources, _), name in layouts.items()]
            raise ValueError(
                f"records of different models or sources do not stack ({'; '.join(parts[:2])}); run the experiment "
                "again, so that all records are of one configuration."
            )

    def __repr__(self) -> str:
        counts = {split: self.splits.count(split) for split in dict.fromkeys(self.splits)}
        shown = ", ".join(f"{count} {split}" for split, count in counts.items())
        return f"<{len(self)} records{f' ({shown})' if shown else ''}, {len(self.errors)} errors>"


def open_records(folder: PathLike) -> Records:
    """The records in the folder of an experiment, those that are there, in the order of its data set.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist or holds no experiment.
    ValueError
        If a file is damaged or of something else.
    """
    root = Path(folder)
    home = root / "records"
    if not home.is_dir():
        raise FileNotFoundError(f"{root} holds no records; give the folder that `bayesfuse experiment` wrote.")
    index = read_index(root)
    found = {}
    for path in sorted(home.rglob("*.nc")):
        if path.name.startswith("."):  # half-written when its process was killed
            continue
        about = read_header(path)
        if index is None or about["settings"] == index["settings"]:
            found[about["name"]] = (path, about["split"])
    names = list(found) if index is None else [name for name in index["names"] if name in found]
    paths, splits = ({name: found[name][part] for name in names} for part in (0, 1))
    return Records(paths, splits, read_errors(root))


def read_index(folder: Path) -> dict[str, Any] | None:
    """What the experiment was when it was last run: `settings`, a hash, `config`, and `names` of all its mixtures.

    None where no experiment has begun.
    """
    path = folder / INDEX
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_errors(folder: Path) -> dict[str, str]:
    """What is wrong with the mixtures that have no record, by name."""
    path = folder / ERRORS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def record_path(folder: Path, name: str) -> Path:
    """The file of a mixture's record.

    Raises
    ------
    ValueError
        If the name cannot be that of a file.
    """
    parts = Path(name).parts
    if not name or ".." in parts or Path(name).is_absolute() or Path(name).name.startswith("."):
        raise ValueError(f"the mixture's name {name!r} cannot be that of a file; rename it in its data set.")
    return folder / "records" / f"{name}.nc"


def estimate_path(folder: Path, model: str, name: str, source: str) -> Path:
    """The sound of a model's estimate of a source, where estimates are kept."""
    return folder / "estimates" / model.replace("/", "_") / name / f"{source}.wav"


def _padded(array: np.ndarray, axis: int, length: int) -> np.ndarray:
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, length - array.shape[axis])
    return np.pad(array, widths)


def _mask(lengths: Sequence[int]) -> Bool[np.ndarray, "example frame"]:
    return np.arange(max(lengths)) < np.array(lengths)[:, None]

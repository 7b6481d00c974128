"""The user's own files: `FolderSet` (as `separators.folder` has them), `ManifestSet` (CSV or JSON), `Recordings`."""

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bayesfuse.datasets.base import Entry
from bayesfuse.datasets.files import Files, FileSet
from bayesfuse.datasets.mixture import PathLike
from bayesfuse.separators.folder import files_below, sources_in

_ALL = "all"
_SPLITS = (
    "train",
    "train-100",
    "train-360",
    "tr",
    "val",
    "valid",
    "validation",
    "dev",
    "devel",
    "cv",
    "test",
    "tt",
    "eval",
)
_FOLDER = (
    "The folder convention is mixtures/NAME.wav and references/NAME/SOURCE.wav (WAV, FLAC or OGG); NAME may contain "
    "folders, of which the first is the split if it is called train, val, test or the like."
)
_CSV = ("name", "kind", "source", "path")
_RANGES = ("segment", "context")
_FIELDS = ("name", "mixture", "sources", "group", "split", *_RANGES, "metadata")
# What is taken for a number in a table of texts; 007 is a name.
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?")
_JSON = '{"items": [{"name": ..., "mixture": ..., "sources": {"speech": ..., ...}}, ...]}'


class FolderSet(FileSet):
    """Mixtures and true sources in the folders that `bayesfuse fuse` reads.

    ``mixtures/<name>.wav`` and ``references/<name>/<source>.wav``, or FLAC and OGG. Names may contain folders: the
    first is the split if it is called train, val, valid, dev, test or as sets call such parts (else the split is all),
    and the folders below it are the group; a mixture that is in none is its own group.

    Parameters
    ----------
    path
        The folder that holds mixtures and references.
    mixtures, references
        Names of these folders in it, or paths of other folders.
    rate, mono, dtype
        As `FileSet` has them.

    Raises
    ------
    FileNotFoundError
        If a folder, or the true sources of a mixture, are missing.
    ValueError
        As `FileSet`, or for two files of one name.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        mixtures: PathLike = "mixtures",
        references: PathLike = "references",
        rate: int | None = None,
        mono: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        self.path = Path(path)
        root = self.path / references
        for folder in (self.path / mixtures, root):
            if not folder.is_dir():
                raise FileNotFoundError(f"no folder {folder}; looked from {Path.cwd()}. {_FOLDER}")
        items, lacking = [], []
        for name, file in files_below(self.path / mixtures).items():
            sources = sources_in(root / name)
            items.append((_entry(name), Files(file, sources)))
            lacking += [] if sources else [name]
        if lacking:
            some = ", ".join(lacking[:5])
            raise FileNotFoundError(
                f"{len(lacking)} of {len(items)} mixtures have no true sources, such as {some}: there is no "
                f"{root / lacking[0]}/SOURCE.wav. {_FOLDER} A folder without true sources is of the kind recordings."
            )
        super().__init__(items, _FOLDER, rate=rate, mono=mono, dtype=dtype)


class Recordings(FileSet):
    """Any folder of audio files, each a mixture without known sources; splits and groups as `FolderSet` has them.

    Parameters and errors are those of `FileSet`; `path` is the folder, which is searched with all folders in it.
    """

    def __init__(self, path: PathLike, *, rate: int | None = None, mono: bool = False, dtype: Any = np.float32) -> None:
        self.path = Path(path)
        items = [(_entry(name), Files(file, {})) for name, file in files_below(self.path).items()]
        super().__init__(items, "Files vanished while they were listed.", rate=rate, mono=mono, dtype=dtype)


class ManifestSet(FileSet):
    """Mixtures and true sources that a CSV or JSON file lists; paths in it are relative to it.

    CSV, one row per file, as for `bayesfuse fuse`: the columns ``name,kind,source,path``, `kind` mixture or reference
    (rows of estimates and free energies are passed over); optionally `group`, `split`, and on the mixture's row
    ``segment_start,segment_stop,context_start,context_stop`` in samples of the file. Other columns of the mixture's
    row are metadata.

    JSON: a list, or an object whose ``items`` is one, of objects with `name` and `sources` (an object from names to
    paths), and optionally `mixture`, `group`, `split`, `segment` and `context` (pairs of samples) and `metadata` (an
    object).

    Without a file of its own the mixture is the sum of the sources; without a group each mixture is its own; without
    a split it is in all.

    Parameters
    ----------
    path
        The CSV or JSON file; the extension tells which.
    rate, mono, dtype
        As `FileSet` has them.

    Raises
    ------
    FileNotFoundError
        If the manifest, or files that it lists, are missing.
    ValueError
        If it cannot be parsed, lacks something, or says something twice; the message says where.
    """

    def __init__(self, path: PathLike, *, rate: int | None = None, mono: bool = False, dtype: Any = np.float32) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"no manifest {self.path}; looked from {Path.cwd()}. It is a CSV file with the columns "
                f"{','.join(_CSV)}, or JSON: {_JSON}."
            )
        if self.path.suffix.lower() not in (".csv", ".json"):
            raise ValueError(f"{self.path}: expected a manifest called .csv or .json, not {self.path.suffix!r}.")
        items = _from_json(self.path) if self.path.suffix.lower() == ".json" else _from_csv(self.path)
        source = f"{self.path} lists them; its paths are relative to {self.path.parent}."
        super().__init__(items, source, rate=rate, mono=mono, dtype=dtype)


def _entry(name: str) -> Entry:
    """Split and group of a name that may contain folders."""
    parts = name.split("/")
    split = parts[0] if len(parts) > 1 and parts[0].lower() in _SPLITS else _ALL
    above = parts[:-1] if split == _ALL else parts[1:-1]
    return Entry(name, split, "/".join(above) or name)


def _from_json(file: Path) -> list[tuple[Entry, Files]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be parsed as JSON ({error}); expected {_JSON}.") from error
    listed = content.get("items") if isinstance(content, dict) else content
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{file} lists no items; expected {_JSON}.")
    return [_item(fields, file.parent, f"{file}, item {number}") for number, fields in enumerate(listed, 1)]


def _from_csv(file: Path) -> list[tuple[Entry, Files]]:
    items: dict[str, dict[str, Any]] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.DictReader(text)
            missing = [column for column in _CSV if column not in (rows.fieldnames or [])]
            if missing:
                raise ValueError(f"{file} has no column {', '.join(missing)}; expected {','.join(_CSV)}[,group,split].")
            for row in rows:
                _take_row(items, {k: (v or "").strip() for k, v in row.items() if k}, f"{file}, line {rows.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as CSV in UTF-8: {error}") from error
    _take_numbers(items)
    return [_item(fields, file.parent, f"{file}, mixture {name}") for name, fields in items.items()]


def _take_numbers(items: Mapping[str, dict[str, Any]]) -> None:
    """Makes numbers of the metadata that are numbers for all mixtures that have them."""
    about = [item["metadata"] for item in items.values() if "metadata" in item]
    for key in {key for metadata in about for key in metadata}:
        having = [metadata for metadata in about if key in metadata]
        if all(_NUMBER.fullmatch(metadata[key]) for metadata in having):
            kind = float if any("." in metadata[key] for metadata in having) else int
            for metadata in having:
                metadata[key] = kind(metadata[key])


def _take_row(items: dict[str, dict[str, Any]], row: dict[str, str], where: str) -> None:
    """Adds a row of a CSV manifest to the fields of its item, in the form of the JSON manifest."""
    name, kind, source, path = (row.pop(column) for column in _CSV)
    if kind in ("estimate", "free_energy"):
        return
    if kind not in ("mixture", "reference") or not name or not path or (kind == "reference" and not source):
        raise ValueError(
            f"{where}: name={name!r}, kind={kind!r}, source={source!r}, path={path!r}; expected a name, the kind "
            "mixture or reference, a path and, for a reference, a source."
        )
    item = items.setdefault(name, {"name": name, "sources": {}})
    if source in item["sources"] if kind == "reference" else "mixture" in item:
        raise ValueError(f"{where}: there was a row for {kind} {source} of {name} before; remove one.")
    for key in ("group", "split"):
        value = row.pop(key, "")
        if value and item.setdefault(key, value) != value:
            raise ValueError(f"{where}: {key} {value!r} of {name}, which was {item[key]!r} before; make them one.")
    if kind == "reference":
        item["sources"][source] = path
        return
    item["mixture"] = path
    for key in _RANGES:
        ends = [row.pop(f"{key}_{end}", "") for end in ("start", "stop")]
        if any(ends):
            if not all(end.isdecimal() for end in ends):
                raise ValueError(f"{where}: {key} from {ends[0]!r} to {ends[1]!r}; expected two counts of samples.")
            item[key] = [int(end) for end in ends]
    item["metadata"] = {key: value for key, value in row.items() if value and key != "separator"}


def _item(fields: Any, folder: Path, where: str) -> tuple[Entry, Files]:
    if not isinstance(fields, Mapping) or not isinstance(fields.get("name"), str) or not fields["name"]:
        raise ValueError(f"{where}: expected an object with a name, as in {_JSON}.")
    unknown = sorted(set(fields) - set(_FIELDS))
    sources, mixture, metadata = fields.get("sources", {}), fields.get("mixture"), fields.get("metadata", {})
    texts = isinstance(sources, Mapping) and all(isinstance(p, str) for p in [*sources.values(), mixture or ""])
    if unknown or not texts or not isinstance(metadata, Mapping) or not (sources or mixture):
        problem = f"unknown {', '.join(unknown)}" if unknown else "no path of a source or mixture, or no object"
        raise ValueError(f"{where}: {problem}; fields are {', '.join(_FIELDS)}, as in {_JSON}.")
    if ".." in Path(fields["name"]).parts:
        raise ValueError(f"{where}: {fields['name']!r} cannot be the name of a file to write.")
    ranges = {}
    for key in _RANGES:
        part = fields.get(key)
        whole = isinstance(part, list) and len(part) == 2 and all(type(end) is int for end in part)
        if part is not None and not (whole and 0 <= part[0] < part[1]):
            raise ValueError(f"{where}: {key} is {part!r}; expected the first sample and the one after the last.")
        ranges[key] = None if part is None else (part[0], part[1])
    name = fields["name"]
    entry = Entry(name, fields.get("split") or _ALL, fields.get("group") or name, dict(metadata))
    paths = {source: folder / path for source, path in sources.items()}
    return entry, Files(None if mixture is None else folder / mixture, paths, **ranges)

"""Records of an experiment: all that fusion, tables and plots need of one separated mixture, without its audio.

A record holds the scalar products between true sources and estimates over the scored stretch of the mixture (whole,
per frame, per frame and band), the models' free energies by term, scores, timings, the seed and the versions of what
computed them. One netCDF-4 file per mixture, ``<folder>/records/<name>.nc``; its attribute `key` is a hash of
settings, code and inputs, by which an experiment tells whether it is still valid. ``<folder>/experiment.json`` says
which records belong to the experiment as it was last run; others are left over from earlier settings.

Scalar products are kept around the reference: with the errors e_m = s_m - s the file has c = <s, s>, <s, e_m> and
<e_m, e_m'>, the last as its upper triangle, in single precision. Every digit of a small error survives, which it would
not as a difference of c, d_m and G_mm'. Reading forms the `Gram` in double precision.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float, Int

from bayesfuse import _netcdf
from bayesfuse.grams import Gram
from bayesfuse.transforms import transform_from_dict

if TYPE_CHECKING:
    pass

PathLike = str | os.PathLike[str]
Kind = Literal["whole", "frames", "bands"]

FORMAT = "bayesfuse record"
SCHEMA_VERSION = 1
ERRORS = "errors.json"
INDEX = "experiment.json"
# Axes of the scalar products of each kind, before those of the models.
_AXES: dict[Kind, tuple[str, ...]] = {
    "whole": ("source",),
    "frames": ("source", "frame"),
    "bands": ("source", "frame", "band"),
}
_TEXTS = ("name", "split", "group", "key", "settings", "stamp")
_NUMBERS = ("rate", "first_frame", "num_frames", "seed")
_DESCRIPTIONS = ("metadata", "transform", "versions")


class Record(eqx.Module):
    """What is kept of one mixture, separated by all models.

    Frames are those of `transform` on the whole mixture that overlap the scored stretch; scalar products are of the
    signals with silence outside that stretch, so that those of all frames, and of all bands, sum to the whole ones.
    Channels are summed.

    Attributes
    ----------
    name, split, group, rate, metadata
        Those of the `Mixture`; the metadata are JSON-ready.
    models
        Labels, such as "VB-NMF 8".
    orders
        Model order of each model, 0 where it has none.
    sources
        Names of the true sources that are scored.
    whole, frames, bands
        Scalar products over [source], [source, frame] and [source, frame, band], float64, in squared units of the
        signal. No bands if they were not asked for.
    terms
        Names of the parts of the free energies: "likelihood", "activations of <source>"..., and "other" for those
        that come from elsewhere as a whole.
    free_energy
        In nats, without the dictionaries' part; the sum over terms is the free energy of the frame. NaN for models
        that have none.
    dictionary_energy
        The part of the dictionaries, in nats; 0 where they are fixed.
    total_free_energy
        Of the whole mixture, all frames and the dictionaries, in nats.
    likelihood
        The term "likelihood" by band, in nats; None without bands.
    scores
        In dB by metric, NaN where there is none.
    mixture_scores
        The same of the mixture itself as an estimate of each source.
    seconds
        Time that each model took, without compiling where that was known.
    first_frame, num_frames
        Index of the first frame here, and how many there are in the whole mixture.
    transform
        Its `to_dict`.
    seed
        Of the separators.
    versions
        Of the software, by name.
    key
        Hash of settings, code and inputs by content: what the record is of.
    settings
        Hash of settings and code alone.
    stamp
        Hash of settings, code and the sizes and times of all input files: if it is the same, so are the inputs.
    """

    name: str
    split: str
    group: str
    rate: int
    metadata: dict[str, Any]
    models: tuple[str, ...]
    orders: Int[np.ndarray, " model"]
    sources: tuple[str, ...]
    whole: Gram
    frames: Gram
    bands: Gram | None
    terms: tuple[str, ...]
    free_energy: Float[np.ndarray, "model term frame"]
    dictionary_energy: Float[np.ndarray, " model"]
    total_free_energy: Float[np.ndarray, " model"]
    likelihood: Float[np.ndarray, "model band frame"] | None
    scores: dict[str, Float[np.ndarray, "model source"]]
    mixture_scores: dict[str, Float[np.ndarray, " source"]]
    seconds: Float[np.ndarray, " model"]
    first_frame: int
    num_frames: int
    transform: dict[str, Any]
    seed: int
    versions: dict[str, str]
    key: str
    settings: str = ""
    stamp: str = ""

    @property
    def frame_times(self) -> Float[np.ndarray, " frame"]:
        """Centres of the frames in seconds from the beginning of the mixture, float64."""
        stop = self.first_frame + self.free_energy.shape[-1]
        return transform_from_dict(self.transform).frame_times(self.rate, stop)[self.first_frame :]

    @property
    def frame_energy(self) -> Float[np.ndarray, "model frame"]:
        """Free energy of every model in every frame, in nats, without the dictionaries' part."""
        return self.free_energy.sum(axis=1)

    def scalar_products(self, kind: Kind) -> Gram:
        """`whole`, `frames` or `bands`; a ValueError if there are no bands."""
        found = {"whole": self.whole, "frames": self.frames, "bands": self.bands}.get(kind)
        if found is None:
            raise ValueError(
                f"the record of {self.name} has no scalar products of kind {kind!r}; expected one of "
                f"{', '.join(_AXES)}, and for bands an experiment with bands in [records]."
            )
        return found


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


def write_record(record: Record, path: PathLike) -> None:
    """Writes a record to one netCDF-4 file, whole or not at all.

    Raises
    ------
    OSError
        If it cannot be written, for instance because the disk is full; a file that was there before stays as it was.
    """
    import xarray as xr

    coordinates = {"source": list(record.sources), "model": list(record.models), "term": list(record.terms)}
    models: dict[str, Any] = {
        "orders": (("model",), record.orders),
        "seconds": (("model",), record.seconds, {"units": "s"}),
    }
    nats = {"units": "nat"}
    energies: dict[str, Any] = {
        "terms": (("model", "term", "frame"), record.free_energy.astype(np.float32), nats),
        "dictionary": (("model",), record.dictionary_energy, nats),
        "total": (("model",), record.total_free_energy, nats),
    }
    if record.likelihood is not None:
        energies["likelihood"] = (("model", "band", "frame"), record.likelihood.astype(np.float32), nats)
    scores = {metric: (("model", "source"), value, {"units": "dB"}) for metric, value in record.scores.items()}
    mixture = {metric: (("source",), value, {"units": "dB"}) for metric, value in record.mixture_scores.items()}
    groups = {
        "/models": xr.Dataset(models),
        "/free_energy": xr.Dataset(energies),
        "/scores": xr.Dataset(scores),
        "/mixture_scores": xr.Dataset(mixture),
    }
    for kind, axes in _AXES.items():
        g = {"whole": record.whole, "frames": record.frames, "bands": record.bands}[kind]
        if g is not None:
            groups[f"/{kind}"] = xr.Dataset(_around_reference(g, axes, np.float64 if kind == "whole" else np.float32))
    tree = xr.DataTree.from_dict({"/": xr.Dataset(coords=coordinates), **groups})
    about = {name: getattr(record, name) for name in (*_TEXTS, *_NUMBERS)}
    about |= {name: json.dumps(getattr(record, name)) for name in _DESCRIPTIONS}
    tree.attrs = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **about}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _netcdf.write_tree(tree, path, compress={"terms", "likelihood"})


def read_header(path: PathLike) -> dict[str, Any]:
    """The attributes of a record's file, without its arrays.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, of something else, or newer than this library.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        with h5py.File(path) as file:
            about: dict[str, Any] = {str(name): _plain(value) for name, value in file.attrs.items()}
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: it is damaged, or no record ({error}).") from error
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} is not a {FORMAT}: its attribute `format` is {about.get('format')!r}.")
    if not 1 <= int(about.get("schema_version", 0)) <= SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {about.get('schema_version')}, and this bayesfuse reads versions up to "
            f"{SCHEMA_VERSION}; upgrade bayesfuse."
        )
    return about


def read_record(path: PathLike, *, bands: bool = True) -> Record:
    """The record in a file of `write_record`.

    Parameters
    ----------
    bands
        Whether to read scalar products and likelihoods by band, which are nearly all of the file.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_header`; also if the file is incomplete.
    """
    import h5py

    about = read_header(path)
    try:
        with h5py.File(path) as handle:
            file: Any = handle
            labels = {name: tuple(_plain(item) for item in file[name][()]) for name in ("source", "model", "term")}
            energies, models = file["free_energy"], file["models"]
            banded = bands and "bands" in file
            scores = {metric: file["scores"][metric][()] for metric in file["scores"] if metric not in labels}
            mixture = {m: file["mixture_scores"][m][()] for m in file["mixture_scores"] if m not in labels}
            return Record(
                models=labels["model"],
                sources=labels["source"],
                terms=labels["term"],
                orders=models["orders"][()],
                seconds=models["seconds"][()],
                whole=_gram_of(file["whole"]),
                frames=_gram_of(file["frames"]),
                bands=_gram_of(file["bands"]) if banded else None,
                free_energy=energies["terms"][()].astype(np.float64),
                dictionary_energy=energies["dictionary"][()],
                total_free_energy=energies["total"][()],
                likelihood=energies["likelihood"][()] if banded and "likelihood" in energies else None,
                scores=scores,
                mixture_scores=mixture,
                **{name: str(about[name]) for name in _TEXTS},
                **{name: int(about[name]) for name in _NUMBERS},
                **{name: json.loads(about[name]) for name in _DESCRIPTIONS},
            )
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read: it is damaged or incomplete ({type(error).__name__}: {error}); delete it, and run "
            "the experiment again."
        ) from error


def _plain(value: Any) -> Any:
    """An attribute or label as HDF5 returns it, as an object of Python."""
    value = value.item() if isinstance(value, np.generic | np.ndarray) else value
    return value.decode() if isinstance(value, bytes) else value


def _around_reference(g: Gram, axes: tuple[str, ...], dtype: Any) -> dict[str, Any]:
    """c, <s, e_m> and the upper triangle of <e_m, e_m'>."""
    energy, cross, gram = (np.asarray(part, np.float64) for part in (g.energy, g.cross, g.gram))
    errors = energy[..., None, None] - cross[..., :, None] - cross[..., None, :] + gram
    rows, columns = np.triu_indices(g.num_models)
    return {
        "energy": (axes, energy.astype(dtype)),
        "cross": ((*axes, "model"), (cross - energy[..., None]).astype(dtype)),
        "errors": ((*axes, "pair"), errors[..., rows, columns].astype(dtype)),
    }


def _gram_of(group: Any) -> Gram:
    """The Gram, in float64, from what `_around_reference` made of it."""
    energy, cross, pairs = (group[name][()].astype(np.float64) for name in ("energy", "cross", "errors"))
    rows, columns = np.triu_indices(cross.shape[-1])
    gram = np.empty((*cross.shape, cross.shape[-1]))
    gram[..., rows, columns] = gram[..., columns, rows] = pairs
    gram += energy[..., None, None] + cross[..., :, None] + cross[..., None, :]
    return Gram(energy, energy[..., None] + cross, gram)


def _padded(array: np.ndarray, axis: int, length: int) -> np.ndarray:
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, length - array.shape[axis])
    return np.pad(array, widths)


def _mask(lengths: Sequence[int]) -> Bool[np.ndarray, "example frame"]:
    return np.arange(max(lengths)) < np.array(lengths)[:, None]

"""One record of an experiment, and its file: what fusion, tables and plots need of a separated mixture.

Scalar products are kept around the reference: with the errors e_m = s_m - s the file has c = <s, s>, <s, e_m> and
<e_m, e_m'>, the last as its upper triangle, in single precision. Every digit of a small error survives, which it would
not as a difference of c, d_m and G_mm'. Reading forms the `Gram` in double precision. The file is netCDF-4.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bayesfuse import _netcdf
from bayesfuse._module import Module
from bayesfuse.grams import Gram
from bayesfuse.transforms import transform_from_dict

PathLike = str | os.PathLike[str]
Kind = Literal["whole", "frames", "bands"]

FORMAT = "bayesfuse record"
SCHEMA_VERSION = 1
# Axes of the scalar products of each kind, before those of the models.
_AXES: dict[Kind, tuple[str, ...]] = {
    "whole": ("source",),
    "frames": ("source", "frame"),
    "bands": ("source", "frame", "band"),
}
_TEXTS = ("name", "split", "group", "key", "settings", "stamp")
_NUMBERS = ("rate", "first_frame", "num_frames", "seed")
_DESCRIPTIONS = ("metadata", "transform", "versions")


class Record(Module):
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
        Model order of each model: the one in its label, the largest of several; 0 where it has none.
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


def write_record(record: Record, path: PathLike) -> None:
    """Writes a record to one netCDF-4 file, whole or not at all.

    Raises
    ------
    OSError
        If it cannot be written, for instance because the disk is full; a file that was there before stays as it was.
    """
    groups: dict[str, dict[str, _Variable]] = {
        "models": {
            "orders": _Variable(("model",), record.orders),
            "seconds": _Variable(("model",), record.seconds, "s"),
        },
        "free_energy": {
            "terms": _Variable(("model", "term", "frame"), record.free_energy.astype(np.float32), "nat", True),
            "dictionary": _Variable(("model",), record.dictionary_energy, "nat"),
            "total": _Variable(("model",), record.total_free_energy, "nat"),
        },
        "scores": {name: _Variable(("model", "source"), value, "dB") for name, value in record.scores.items()},
        "mixture_scores": {
            metric: _Variable(("source",), value, "dB") for metric, value in record.mixture_scores.items()
        },
    }
    if record.likelihood is not None:
        banded = _Variable(("model", "band", "frame"), record.likelihood.astype(np.float32), "nat", True)
        groups["free_energy"]["likelihood"] = banded
    for kind, axes in _AXES.items():
        g = {"whole": record.whole, "frames": record.frames, "bands": record.bands}[kind]
        if g is not None:
            groups[kind] = _around_reference(g, axes, np.float64 if kind == "whole" else np.float32)
    labels = {"source": record.sources, "model": record.models, "term": record.terms}
    about = {name: getattr(record, name) for name in (*_TEXTS, *_NUMBERS)}
    about |= {name: json.dumps(getattr(record, name)) for name in _DESCRIPTIONS}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In memory first: where a disk is full, HDF5 leaves files that it cannot close, and ends the process over them.
    buffer = io.BytesIO()
    _write_file(buffer, labels, groups, {"format": FORMAT, "schema_version": SCHEMA_VERSION, **about})
    with _netcdf.replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


class _Variable(NamedTuple):
    """An array with the names of its axes, its unit, and whether it is worth compressing."""

    axes: tuple[str, ...]
    values: Any
    units: str = ""
    smooth: bool = False


def _write_file(
    path: io.BytesIO,
    labels: Mapping[str, Sequence[str]],
    groups: Mapping[str, Mapping[str, _Variable]],
    about: Mapping[str, Any],
) -> None:
    """Writes a netCDF-4 file without xarray, which takes many times as long for small ones."""
    import h5netcdf
    import h5py

    with h5netcdf.File(path, "w") as file:
        file.attrs.update(about)
        sizes = {name: len(texts) for name, texts in labels.items()}
        for variables in groups.values():
            for variable in variables.values():
                sizes |= dict(zip(variable.axes, np.shape(variable.values), strict=True))
        file.dimensions = sizes
        for name, texts in labels.items():
            file.create_variable(name, (name,), h5py.string_dtype(), data=np.array(texts, object))
        for group, variables in groups.items():
            home = file.create_group(group)
            for name, (axes, values, units, smooth) in variables.items():
                packed: dict[str, Any] = {"compression": "gzip", "compression_opts": 1} if smooth else {}
                # Checksums, so that damage is found when the file is read.
                made = home.create_variable(
                    name, axes, values.dtype, data=values, fletcher32=True, shuffle=smooth, **packed
                )
                if units:
                    made.attrs["units"] = units


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


def _around_reference(g: Gram, axes: tuple[str, ...], dtype: Any) -> dict[str, _Variable]:
    """c, <s, e_m> and the upper triangle of <e_m, e_m'>."""
    energy, cross, gram = (np.asarray(part, np.float64) for part in (g.energy, g.cross, g.gram))
    errors = energy[..., None, None] - cross[..., :, None] - cross[..., None, :] + gram
    rows, columns = np.triu_indices(g.num_models)
    return {
        "energy": _Variable(axes, energy.astype(dtype)),
        "cross": _Variable((*axes, "model"), (cross - energy[..., None]).astype(dtype)),
        "errors": _Variable((*axes, "pair"), errors[..., rows, columns].astype(dtype)),
    }


def _gram_of(group: Any) -> Gram:
    """The Gram, in float64, from what `_around_reference` made of it."""
    energy, cross, pairs = (group[name][()].astype(np.float64) for name in ("energy", "cross", "errors"))
    rows, columns = np.triu_indices(cross.shape[-1])
    gram = np.empty((*cross.shape, cross.shape[-1]))
    gram[..., rows, columns] = gram[..., columns, rows] = pairs
    gram += energy[..., None, None] + cross[..., :, None] + cross[..., None, :]
    return Gram(energy, energy[..., None] + cross, gram)

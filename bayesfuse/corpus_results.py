"""The records of an experiment as one labelled tree, its files, and tables of scores.

    tree = corpus_tree(open_records("experiment"))
    table = score_table(tree)
    scores.summarise(table[table["split"] == "test"], by=["metric", "source", "system", "snr_db"])
    fusion.sdr(weights, gram_of(tree["whole"]))

Groups of the tree, with the dimensions example, source, model, other (models again, of products between two), term,
frame and band:

examples
    what is known of each mixture: rate, number of frames, seed, metadata as JSON
scores, mixture_scores
    one variable per metric, in dB: [example, model, source], and of the mixture itself [example, source]
whole, frames, bands
    scalar products around the reference, `energy` <s, s>, `cross` <s, e_m> and `errors` <e_m, e_m'> with the errors
    e_m = s_m - s of the estimates: [example, source, frame, band, model, other]; `gram_of` makes the `Gram` of them
free_energy
    in nats: `terms` [example, model, term, frame] of the scored stretch, their sums `scored` [example, model], without
    the part of the `dictionary`; the `total` of the whole mixture; `likelihood` [example, model, band, frame]
timing
    `seconds` [example, model]

Split, group and the single-valued metadata of the mixtures are coordinates of the dimension example; kind and order
those of model. Frames count from the first frame of the scored stretch; shorter mixtures are filled up with NaN, and
`examples/frames` says how many there are.

Arrays over frames are read from the records when they are asked for, and `save_corpus` writes them mixture by mixture:
nothing but what is selected need fit into memory.
"""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayesfuse import _corpus_files, lazy_records
from bayesfuse._labelled import DataArray, Dataset, DataTree
from bayesfuse._version import __version__
from bayesfuse.grams import Gram
from bayesfuse.lazy_records import Reader, lazy, light
from bayesfuse.metrics import Reason
from bayesfuse.records import Kind, Record, Records
from bayesfuse.scores import COLUMNS, Table

FORMAT = "bayesfuse corpus"
SCHEMA_VERSION = 1
_NATS = {"units": "nat"}
_DB = {"units": "dB"}
_POWER = {"units": "squared amplitude"}


def corpus_tree(records: Sequence[Record], *, bands: bool = True) -> DataTree:
    """The records as a tree; what is large is read from their files when it is asked for.

    Parameters
    ----------
    records
        Of the same models and sources, from `records.open_records` or any sequence.
    bands
        Whether there is to be a group of scalar products per band, where the records have them.

    Raises
    ------
    ValueError
        If there is no record, two have the same name, or they differ in models, sources, terms or metrics.
    """
    import xarray as xr

    small = [_Small(record) for record in light(records)]
    first = _first(small)
    frames, models, sources = max(s.frames for s in small), len(first.models), len(first.sources)
    reader = Reader(records)
    with_bands = bands and reader(0, bands=True).bands is not None
    count = reader(0, bands=True).scalar_products("bands").energy.shape[-1] if with_bands else 0

    def products(kind: Kind, *axes: tuple[str, int]) -> dict[str, Any]:
        found = {}
        for name, extra in (("energy", 0), ("cross", 1), ("errors", 2)):
            dims = ("example", "source", *(axis for axis, _ in axes), *("model", "other")[:extra])
            shape = (len(small), sources, *(size for _, size in axes), *(models,) * extra)
            pick = functools.partial(getattr(lazy_records, name), kind=kind)
            if kind == "whole":
                found[name] = (dims, np.stack([s.whole[name] for s in small]), _POWER)
            else:
                found[name] = lazy(reader, dims, shape, pick, bands=kind == "bands", attributes=_POWER)
        return found

    def energies(name: str, *axes: tuple[str, int]) -> Any:
        pick = functools.partial(lazy_records.field, name=name)
        dims, shape = zip(("example", len(small)), ("model", models), *axes, strict=True)
        return lazy(reader, dims, shape, pick, bands=name == "likelihood", attributes=_NATS)

    groups: dict[str, dict[str, Any]] = {
        "examples": _about(small),
        "scores": {
            m: (("example", "model", "source"), np.stack([s.scores[m] for s in small]), _DB) for m in first.scores
        },
        "mixture_scores": {
            m: (("example", "source"), np.stack([s.mixture_scores[m] for s in small]), _DB)
            for m in first.mixture_scores
        },
        "whole": products("whole"),
        "frames": products("frames", ("frame", frames)),
        "free_energy": {
            "terms": energies("free_energy", ("term", len(first.terms)), ("frame", frames)),
            "scored": (("example", "model"), np.stack([s.scored for s in small]), _NATS),
            "dictionary": (("example", "model"), np.stack([s.dictionary for s in small]), _NATS),
            "total": (("example", "model"), np.stack([s.total for s in small]), _NATS),
        },
        "timing": {"seconds": (("example", "model"), np.stack([s.seconds for s in small]), {"units": "s"})},
    }
    if with_bands:
        groups["bands"] = products("bands", ("frame", frames), ("band", count))
        groups["free_energy"]["likelihood"] = energies("likelihood", ("band", count), ("frame", frames))
    coordinates = _coordinates(small, frames, count)
    datasets = {f"/{name}": _dataset(variables, coordinates) for name, variables in groups.items()}
    tree = xr.DataTree.from_dict(datasets)
    tree.attrs = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "transform": json.dumps(first.transform),
        "versions": json.dumps(first.versions),
        "errors": json.dumps(records.errors if isinstance(records, Records) else {}),
    }
    return tree


def save_corpus(tree: DataTree, path: str | os.PathLike[str]) -> None:
    """Writes a tree to a netCDF-4 file, or a zarr folder if the name ends in ``.zarr``, whole or not at all.

    What is lazy is read and written in blocks of a few mixtures.

    Raises
    ------
    ValueError
        If the folder around it does not exist, or the path is there as something that is not replaced.
    """
    _check(tree, "save_corpus")
    _corpus_files.write(tree, Path(path))


def open_corpus(path: str | os.PathLike[str], *, chunks: Any = None) -> DataTree:
    """The tree of `save_corpus`; arrays are read from the file when they are asked for. Close it with `.close()`.

    Parameters
    ----------
    chunks
        Of dask arrays, as `xarray.open_datatree` takes them; without it there are none, and dask is not needed.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, of something else, or newer than this library.
    """
    tree = _corpus_files.read(Path(path), chunks)
    try:
        _check(tree, f"{path}")
    except ValueError:
        tree.close()
        raise
    return tree


def gram_of(node: Dataset | DataTree) -> Gram:
    """The `Gram` of one of the groups whole, frames or bands, or of a selection of it; float64, in memory.

    The axes are those of `energy`, then the models'. NaN, which fills up shorter mixtures, becomes zero: nothing.
    """
    parts = (np.nan_to_num(np.asarray(node[name].values, np.float64)) for name in ("energy", "cross", "errors"))
    return lazy_records.from_errors(*parts)


def by_order(data: Dataset) -> Dataset:
    """A group with the dimension model split into kind and order, NaN where a kind has no such order."""
    return data.set_index(model=["kind", "order"]).unstack("model")


def score_table(tree: DataTree, *, mixture: bool = True) -> Table:
    """The table of `scores`: a row per mixture, model, source and metric, a column per coordinate of the mixtures.

    Parameters
    ----------
    mixture
        Whether there are rows of a system "mixture", the score of doing nothing.
    """
    values = list(tree["scores"].to_dataset().data_vars.items())
    if mixture:
        nothing = tree["mixture_scores"].to_dataset().expand_dims(model=["mixture"])
        values = [*nothing.data_vars.items(), *values]
    return tidy(tree, [(str(metric), found, "model") for metric, found in values])


def tidy(tree: DataTree, values: Sequence[tuple[str, DataArray, str]]) -> Table:
    """The table of scores of mixtures in a tree.

    Parameters
    ----------
    values
        The metric, scores [example, source, ...] with one more dimension in any order, and the name of that one,
        whose labels are the systems.
    """
    about = example_columns(tree)
    silent = tree["whole"]["energy"] == 0
    parts = []
    for metric, found, system in values:
        long = (found if system == "system" else found.rename({system: "system"})).transpose(
            "example", "system", "source"
        )
        labels = [long[dim].values for dim in long.dims]
        index = pd.MultiIndex.from_product(labels, names=["name", "system", "source"])
        silence = silent.sel(example=long["example"]).broadcast_like(long).transpose(*long.dims).values
        numbers = long.values.ravel().astype(np.float64)
        why = np.where(silence.ravel(), Reason.SILENT_REFERENCE.label, Reason.UNDEFINED.label)
        rows = pd.DataFrame({"value": numbers, "reason": np.where(np.isnan(numbers), why, "")}, index=index)
        windows = pd.array([pd.NA] * len(rows), dtype="Int64")
        parts.append(rows.reset_index().assign(metric=metric, window=windows).join(about, on="name"))
    table = pd.concat(parts, ignore_index=True)
    return table[[*COLUMNS, *(column for column in about.columns if column != "group")]]


def example_columns(tree: DataTree) -> Table:
    """Coordinates of the mixtures, one row each, with the index `name`."""
    node = tree["scores"]
    columns = {str(name): c.values for name, c in node.coords.items() if c.dims == ("example",) and name != "example"}
    return pd.DataFrame(columns, index=pd.Index(node["example"].values, name="name"))


class _Small:
    """What is kept in memory of each record."""

    def __init__(self, record: Record) -> None:
        self.name, self.split, self.group, self.rate = record.name, record.split, record.group, record.rate
        self.metadata, self.seed = record.metadata, record.seed
        self.models, self.orders, self.sources, self.terms = record.models, record.orders, record.sources, record.terms
        self.frames, self.first_frame = record.free_energy.shape[-1], record.first_frame
        self.num_frames = record.num_frames
        self.scores, self.mixture_scores, self.seconds = record.scores, record.mixture_scores, record.seconds
        self.scored = record.free_energy.sum(axis=(1, 2))
        self.dictionary, self.total = record.dictionary_energy, record.total_free_energy
        self.transform, self.versions = record.transform, record.versions
        names = ("energy", "cross", "errors")
        self.whole = {name: np.asarray(getattr(lazy_records, name)(record, "whole"), np.float64) for name in names}

    @property
    def layout(self) -> tuple[Any, ...]:
        return self.models, self.sources, self.terms, tuple(self.scores), tuple(self.mixture_scores)


def _first(small: Sequence[_Small]) -> _Small:
    """The first one, with which all others must agree."""
    if not small:
        raise ValueError("corpus_tree got no record; run the experiment first, or select others.")
    names = [s.name for s in small]
    twice = sorted({name for name in names if names.count(name) > 1})
    other = next((s for s in small if s.layout != small[0].layout), None)
    if twice or other is not None:
        what = f"two records of {twice[0]}" if twice else ""
        if other is not None:
            what = f"records of different models, sources, terms or metrics, {small[0].name} and {other.name}"
        raise ValueError(f"corpus_tree got {what}; run the experiment again, so that all are of one configuration.")
    return small[0]


def _about(small: Sequence[_Small]) -> dict[str, Any]:
    dims = ("example",)
    counts = ("frames", "first_frame", "num_frames", "seed")
    numbers: dict[str, Any] = {name: (dims, np.array([getattr(s, name) for s in small])) for name in counts}
    numbers |= {"rate": (dims, np.array([s.rate for s in small]), {"units": "Hz"})}
    return numbers | {"metadata": (dims, [json.dumps(s.metadata) for s in small])}


def _coordinates(small: Sequence[_Small], frames: int, bands: int) -> dict[str, Any]:
    first = small[0]
    kinds = [_kind(model, order) for model, order in zip(first.models, first.orders.tolist(), strict=True)]
    models = list(first.models)
    return {
        "example": [s.name for s in small],
        "split": ("example", [s.split for s in small]),
        "group": ("example", [s.group for s in small]),
        **{name: ("example", values) for name, values in _single(small).items()},
        "source": list(first.sources),
        "model": models,
        "other": models,
        "kind": ("model", kinds),
        "order": ("model", first.orders),
        "term": list(first.terms),
        "frame": np.arange(frames),
        "band": np.arange(bands),
    }


def _kind(model: str, order: int) -> str:
    """The label without its order: "VB-NMF" of "VB-NMF 8"."""
    return model.removesuffix(f" {order}") or model


def _single(small: Sequence[_Small]) -> dict[str, list[Any]]:
    """Metadata that are one number, truth value or text wherever they are given."""
    taken = {"example", "split", "group", "source", "model", "other", "kind", "order", "term", "frame", "band"}
    taken |= {*COLUMNS, "sample"}
    columns = {}
    for key in dict.fromkeys(key for s in small for key in s.metadata):
        values = [s.metadata.get(key) for s in small]
        given = [value for value in values if value is not None]
        if key in taken or not given:
            continue
        if all(isinstance(value, str) for value in given):
            columns[key] = ["" if value is None else value for value in values]
        elif all(isinstance(value, bool) for value in values):
            columns[key] = values
        elif all(isinstance(value, int | float) for value in given):
            columns[key] = [np.nan if value is None else value for value in values]
    return columns


def _dataset(variables: Mapping[str, Any], coordinates: Mapping[str, Any]) -> Dataset:
    """The variables with the coordinates of their dimensions."""
    import xarray as xr

    used: set[Any] = set()
    for variable in variables.values():
        used |= set(variable.dims if isinstance(variable, xr.Variable) else variable[0])
    chosen = {
        name: value for name, value in coordinates.items() if (value[0] if isinstance(value, tuple) else name) in used
    }
    return xr.Dataset(variables, chosen)


def _check(tree: DataTree, caller: str) -> None:
    """Raises unless this is a tree of this format and a known version."""
    if tree.attrs.get("format") != FORMAT:
        raise ValueError(
            f"{caller}: not a {FORMAT}, the attribute `format` is {tree.attrs.get('format')!r}; make it with "
            "corpus_tree."
        )
    schema = int(tree.attrs.get("schema_version", 0))
    if not 1 <= schema <= SCHEMA_VERSION:
        raise ValueError(
            f"{caller}: schema version {schema}, and this bayesfuse reads versions up to {SCHEMA_VERSION}; upgrade to "
            f"at least bayesfuse {tree.attrs.get('version')}."
        )

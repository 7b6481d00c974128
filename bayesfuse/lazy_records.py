"""Arrays over the records of an experiment that are read from their files when xarray asks for them."""

import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped
from xarray import Variable
from xarray.backends import BackendArray
from xarray.core import indexing

from bayesfuse.grams import Gram
from bayesfuse.network_costs import around_reference
from bayesfuse.records import Kind, Record, Records

# A function of a record, and its arguments: what is sent to other processes must be a function with a name.
Pick = functools.partial[Any]


def light(records: Sequence[Record]) -> Iterator[Record]:
    """The records one by one, without their bands where they come from files."""
    return records.read(bands=False) if isinstance(records, Records) else iter(records)


class Reader:
    """Records by index, the last one kept: the variables of a tree are asked for one after the other."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self._last: tuple[int, bool, Record] | None = None
        self._lock = threading.Lock()

    def __call__(self, index: int, *, bands: bool) -> Record:
        with self._lock:
            if self._last is None or self._last[0] != index or (bands and not self._last[1]):
                record = self.records[index] if bands else next(light(self.records[index : index + 1]))
                self._last = (index, bands, record)
            return self._last[2]

    def __getstate__(self) -> dict[str, Any]:
        return {"records": self.records}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["records"])


class _OverRecords(BackendArray):
    """Arrays of all records as one [example, ...], shorter ones filled up at the end of their axes."""

    def __init__(self, reader: Reader, pick: Pick, shape: tuple[int, ...], dtype: Any, fill: Any, bands: bool) -> None:
        self.reader, self.pick, self.shape, self.dtype = reader, pick, shape, np.dtype(dtype)
        self.fill, self.bands = fill, bands

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> Shaped[np.ndarray, "..."]:
        wanted = np.arange(self.shape[0])[key[0]]
        rows = [self._row(index, key[1:]) for index in np.atleast_1d(wanted).tolist()]
        if wanted.ndim == 0:
            return rows[0]
        return np.stack(rows) if rows else np.empty((0, *self._row(0, key[1:]).shape), self.dtype)

    def _row(self, index: int, key: tuple[Any, ...]) -> Shaped[np.ndarray, "..."]:
        found = np.asarray(self.pick(self.reader(index, bands=self.bands)))
        row = np.full(self.shape[1:], self.fill, self.dtype)
        row[tuple(slice(size) for size in found.shape)] = found
        # From the last axis on: a number removes its axis.
        for axis, part in reversed(list(enumerate(key))):
            row = row[(slice(None),) * axis + (part,)]
        return row


def lazy(
    reader: Reader,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    pick: Pick,
    *,
    fill: Any = np.nan,
    dtype: Any = np.float32,
    bands: bool = False,
    attributes: dict[str, Any] | None = None,
) -> Variable:
    """A variable whose values are read when they are needed."""
    array = _OverRecords(reader, pick, shape, dtype, fill, bands)
    return Variable(dims, indexing.LazilyIndexedArray(array), attributes)


def energy(record: Record, kind: Kind) -> Any:
    """<s, s>."""
    return record.scalar_products(kind).energy


def cross(record: Record, kind: Kind) -> Any:
    """<s, s_m - s>."""
    g = record.scalar_products(kind)
    return np.asarray(g.cross, np.float64) - np.asarray(g.energy, np.float64)[..., None]


def errors(record: Record, kind: Kind) -> Any:
    """<s_m - s, s_m' - s>."""
    return around_reference(record.scalar_products(kind)).gram


def field(record: Record, name: str) -> Any:
    """An attribute of the record."""
    return getattr(record, name)


def from_errors(energy: Any, cross: Any, errors: Any) -> Gram:
    """The Gram, in float64, of the scalar products around the reference."""
    c, x, e = (np.asarray(part, np.float64) for part in (energy, cross, errors))
    return Gram(c, c[..., None] + x, c[..., None, None] + x[..., :, None] + x[..., None, :] + e)

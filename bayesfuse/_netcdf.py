"""One netCDF-4 file per xarray tree, written whole or not at all, and read back bit by bit."""

import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xarray import DataTree

# What a file that is damaged, cut short or of another format makes h5py, h5netcdf and xarray raise.
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, TypeError)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place if the body succeeds, and vanishes if it does not.

    Raises
    ------
    ValueError
        If the folder does not exist or `path` is a folder.
    """
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}; create it first.")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; give the name of a file.")
    temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tree(tree: "DataTree", path: Path, *, compress: Collection[str]) -> None:
    """Writes the tree to one file through h5netcdf.

    Parameters
    ----------
    compress
        Names of the variables worth compressing, losslessly; the others, noise-like ones, would hardly shrink. All
        carry checksums, so that damage is found when the file is read.
    """
    with replacing(path) as temporary:
        tree.to_netcdf(temporary, engine="h5netcdf", encoding=encoding(tree, compress=compress))


def encoding(tree: "DataTree", *, compress: Collection[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """How the variables of a tree are written, by the path of their node and their name; `compress` as there."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for node in tree.subtree:
        settings = found.setdefault(node.path, {})
        for name, variable in node.to_dataset(inherit=False).variables.items():
            if variable.dtype.kind not in "iuf":
                continue
            # No fill value: every bit pattern, NaN included, is data.
            settings[str(name)] = {"_FillValue": None}
            if variable.size:
                settings[str(name)]["fletcher32"] = True
                if name in compress:
                    settings[str(name)] |= {"zlib": True, "complevel": 1, "shuffle": True}
    return found


def read_tree(path: Path) -> "DataTree":
    """The tree of a file, in memory, as it was written.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file cannot be read as netCDF-4, for instance because it is damaged.
    """
    import xarray as xr

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        # Decoding would guess at units and fill values, and change bits.
        with xr.open_datatree(path, engine="h5netcdf", decode_cf=False) as tree:
            return tree.load()
    except UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read: it is not a netCDF-4 file, or it is damaged ({type(error).__name__}: {error})."
        ) from error


def check_format(tree: "DataTree", path: Path, kind: str, newest: int) -> None:
    """Raises a ValueError unless the tree's `format` is `kind` and its `schema_version` from 1 to `newest`."""
    if tree.attrs.get("format") != kind:
        raise ValueError(f"{path} does not hold {kind}: its attribute `format` is {tree.attrs.get('format')!r}.")
    schema = int(tree.attrs.get("schema_version", 0))
    if not 1 <= schema <= newest:
        raise ValueError(
            f"{path} has schema version {schema}, and this bayesfuse reads versions up to {newest}; upgrade to at "
            f"least bayesfuse {tree.attrs.get('version')}."
        )

"""Files of trees that are larger than memory: written in blocks of examples, opened without reading."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bayesfuse._labelled import DataArray, Dataset, DataTree
from bayesfuse._netcdf import UNREADABLE, encoding, replacing

# Bytes of a block, and of the variables that are written whole.
_BLOCK = 1 << 25
# Puts a variable of the given dimensions, shape, dtype, shape of chunks and attributes; returns what takes the blocks.
Create = Callable[[str, DataArray, tuple[int, ...], dict[str, Any]], Any]


def write(tree: DataTree, path: Path) -> None:
    """Writes the tree to netCDF-4 or, if the name ends in ``.zarr``, to zarr, whole or not at all."""
    large = {
        (node.path, str(name))
        for node in tree.subtree
        for name, variable in node.data_vars.items()
        if "example" in variable.dims and variable.dtype.kind in "iuf" and variable.nbytes > _BLOCK
    }
    small = tree.map_over_datasets(lambda data: data)  # new nodes over the same variables
    for group, name in large:
        small[group] = small[group].to_dataset().drop_vars(name)
    small.attrs = dict(tree.attrs)
    if path.suffix == ".zarr":
        _write_zarr(tree, small, large, path)
        return
    with replacing(path) as temporary:
        small.to_netcdf(temporary, engine="h5netcdf", encoding=encoding(small, compress=()))
        _append_netcdf(tree, large, temporary)


def read(path: Path, chunks: Any) -> DataTree:
    """Opens the tree; raises FileNotFoundError if there is none, and ValueError if it cannot be read."""
    import xarray as xr

    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}.")
    zarr = path.suffix == ".zarr"
    options: dict[str, Any] = {"engine": "zarr", "consolidated": False} if zarr else {"engine": "h5netcdf"}
    if zarr:
        _require_zarr()
    try:
        return xr.open_datatree(path, chunks=chunks, **options)
    except UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read: it is no corpus, or damaged ({type(error).__name__}: {error})."
        ) from error


def _append_netcdf(tree: DataTree, large: set[tuple[str, str]], path: Path) -> None:
    import h5netcdf

    with h5netcdf.File(path, "a") as file:

        def create(group: str, variable: DataArray, chunks: tuple[int, ...], attributes: dict[str, Any]) -> Any:
            home = file if group == "/" else file.groups[group.strip("/")]
            options = {"chunks": chunks, "fletcher32": True}
            made = home.create_variable(str(variable.name), variable.dims, variable.dtype, **options)
            made.attrs.update(attributes)
            return made

        _fill(tree, large, create)


def _write_zarr(tree: DataTree, small: DataTree, large: set[tuple[str, str]], path: Path) -> None:
    zarr = _require_zarr()
    if path.exists():
        raise ValueError(f"cannot write {path}: it exists; delete it, or give another name.")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}; create it first.")
    temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(6)}.zarr")
    try:
        small.map_over_datasets(_text_of_any_length).to_zarr(temporary, consolidated=False, zarr_format=3)
        root = zarr.open_group(temporary, mode="a")

        def create(group: str, variable: DataArray, chunks: tuple[int, ...], attributes: dict[str, Any]) -> Any:
            home = root if group == "/" else root[group.strip("/")]
            return home.create_array(
                str(variable.name), shape=variable.shape, dtype=variable.dtype, chunks=chunks,
                dimension_names=[str(dim) for dim in variable.dims], attributes=attributes,
            )  # fmt: skip

        _fill(tree, large, create)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _text_of_any_length(data: Dataset) -> Dataset:
    """The data set with texts as objects: zarr's format 3 has no settled type for texts of a fixed length."""
    texts = {name: variable.astype(object) for name, variable in data.variables.items() if variable.dtype.kind == "U"}
    return data.assign({k: v for k, v in texts.items() if k in data.data_vars}).assign_coords(
        {k: v for k, v in texts.items() if k in data.coords}
    )


def _require_zarr() -> Any:
    try:
        import zarr  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "a name that ends in .zarr needs the package zarr: pip install 'bayesfuse[zarr]', or end the name in .nc."
        ) from error
    return zarr


def _fill(tree: DataTree, large: set[tuple[str, str]], create: Create) -> None:
    """Copies the large variables block by block, those of one example after the other: they come from one record."""
    targets = {}
    for group, name in sorted(large):
        variable: DataArray = tree[group][name]
        # One chunk per example, or several: what is read is an example, or a few of its frames.
        chunks = _chunks(variable.shape, variable.dtype.itemsize)
        extra = [str(c) for c, v in variable.coords.items() if c not in variable.dims]
        attributes = {**variable.attrs, **({"coordinates": " ".join(extra)} if extra else {})}
        targets[group, name] = create(group, variable, chunks, attributes)
    for block in _blocks(tree, large):
        for (group, name), target in targets.items():
            variable = tree[group][name].transpose("example", ...)
            target[block] = variable[block].values


def _blocks(tree: DataTree, large: set[tuple[str, str]]) -> Iterator[slice]:
    variables = [tree[group][name] for group, name in large]
    if not variables:
        return
    count = variables[0].sizes["example"]
    step = max(1, _BLOCK * count // max(v.nbytes for v in variables))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """One example, halved along its longest axis until it is of a megabyte or so."""
    sizes = [1, *(max(size, 1) for size in shape[1:])]
    while np.prod(sizes) * itemsize > 1 << 20:
        longest = int(np.argmax(sizes))
        sizes[longest] = -(-sizes[longest] // 2)
    return tuple(sizes)

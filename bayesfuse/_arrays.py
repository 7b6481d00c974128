"""Named arrays and a plain description in one netCDF-4 file, whole or not at all, without pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesfuse import _netcdf
from bayesfuse._version import __version__

_SCHEMA_VERSION = 1


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a pytree, named for `write`; `with_leaves` puts them back."""
    return {f"leaf{index}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(tree))}


def with_leaves(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """A pytree of the same structure with the arrays of `leaves` instead of its own.

    Raises
    ------
    ValueError
        If there are not as many.
    """
    structure = jax.tree.structure(tree)
    if structure.num_leaves != len(arrays):
        raise ValueError(f"expected {structure.num_leaves} arrays, found {len(arrays)}.")
    return structure.unflatten([jnp.asarray(arrays[f"leaf{index}"]) for index in range(len(arrays))])


def write(
    path: Path, kind: str, groups: Mapping[str, Mapping[str, np.ndarray | None]], attributes: Mapping[str, Any]
) -> None:
    """Writes groups of arrays, those that are not None, and JSON-ready attributes; replaces `path` once complete.

    Parameters
    ----------
    path
        The file.
    kind
        What it holds, which `read` asks for.
    groups
        Numerical arrays of any shape, by group and name.
    attributes
        The description.
    """
    import xarray as xr

    tree = {"/": xr.Dataset(attrs={"format": kind, "schema_version": _SCHEMA_VERSION, "version": __version__})}
    tree["/"].attrs["description"] = json.dumps(attributes)
    for group, arrays in groups.items():
        variables = {
            name: ([f"{name}_{axis}" for axis in range(array.ndim)], array)
            for name, array in arrays.items()
            if array is not None
        }
        tree[f"/{group}"] = xr.Dataset(variables)
    _netcdf.write_tree(xr.DataTree.from_dict(tree), path, compress=())


def read(path: Path, kind: str) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """The groups and attributes of a file of `write`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file cannot be read, holds something else, or is newer than this library.
    """
    tree = _netcdf.read_tree(path)
    _netcdf.check_format(tree, path, kind, _SCHEMA_VERSION)
    groups = {
        str(name): {str(key): variable.values for key, variable in node.variables.items()}
        for name, node in tree.children.items()
    }
    return groups, {**json.loads(tree.attrs["description"]), "version": tree.attrs.get("version")}

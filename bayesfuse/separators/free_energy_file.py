"""The free energy of one model on one mixture as a small netCDF file, beside the WAV files of its estimates.

The group `free_energy` is that of `Result.save`: `frames` [order, frame] and `dictionary` [order] in nats, and the
attribute `energy_order`; here for one order. The attribute `transform` says over which frames. A saved result of one
order can be read in its place.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bayesfuse import _netcdf
from bayesfuse.transforms import Transform, transform_from_dict
from bayesfuse.vbnmf import FreeEnergy

NAME = "free_energy.nc"
FORMAT = "bayesfuse free energy"
SCHEMA_VERSION = 1
# What `Result.save` writes has the same group.
_FORMATS = (FORMAT, "bayesfuse result")


def save_free_energy(path: str | os.PathLike[str], energy: FreeEnergy, transform: Transform) -> None:
    """Writes a free energy to a netCDF-4 file, all or nothing.

    Parameters
    ----------
    path
        Where to; in a folder of estimates its name is ``free_energy.nc``.
    energy
        Per frame, dictionary and order parts, in nats.
    transform
        The transform whose frames they belong to.

    Raises
    ------
    ValueError
        If the folder does not exist, or a part is NaN or +inf.
    """
    import xarray as xr

    frames = np.asarray(energy.frames, np.float64)
    parts = np.array([energy.dictionary, energy.order], np.float64)
    if frames.ndim != 1 or not ((frames < np.inf).all() and (parts < np.inf).all()):
        raise ValueError(
            f"a free energy of shape {frames.shape} with NaN or +inf, or not [frame], cannot be saved to {path}; "
            "save that of a fit that succeeded."
        )
    units = {"units": "nat"}
    group = xr.Dataset(
        {"frames": (("order", "frame"), frames[None], units), "dictionary": (("order",), parts[:1], units)}
    )
    tree = xr.DataTree.from_dict({"/free_energy": group})
    tree.attrs = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "energy_order": float(parts[1]),
        "transform": json.dumps(transform.to_dict()),
    }
    _netcdf.write_tree(tree, Path(path), compress={"frames"})


def load_free_energy(path: str | os.PathLike[str]) -> tuple[FreeEnergy, Transform]:
    """The free energy in a file of `save_free_energy`, and the transform of its frames.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of something else, of a newer schema, or of several orders.
    """
    tree = _netcdf.read_tree(Path(path))
    attrs: Any = tree.attrs
    if attrs.get("format") not in _FORMATS:
        raise ValueError(f"{path} is not a {FORMAT}: its attribute `format` is {attrs.get('format')!r}.")
    if attrs.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {attrs.get('schema_version')}, and this bayesfuse reads version "
            f"{SCHEMA_VERSION}; upgrade bayesfuse."
        )
    try:
        group = tree["free_energy"].to_dataset()
        frames, dictionary = group["frames"].values, group["dictionary"].values
        order, transform = float(attrs["energy_order"]), transform_from_dict(json.loads(attrs["transform"]))
    except KeyError as error:
        raise ValueError(f"{path} is incomplete: {error} is missing.") from error
    if frames.shape[0] != 1:
        raise ValueError(
            f"{path} holds the free energies of {frames.shape[0]} orders; expected one, of the estimates beside it."
        )
    return FreeEnergy(frames[0], np.asarray(dictionary[0]), np.asarray(order)), transform

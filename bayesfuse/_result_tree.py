"""A result as an xarray tree with named axes, back again, and for ArviZ."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from xarray import DataTree

FORMAT = "bayesfuse result"
SCHEMA_VERSION = 1

ARRAYS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    # field: (group, variable, dimensions)
    "mixture": ("mixture", "mixture", ("channel", "sample")),
    "sources": ("fused", "sources", ("source", "channel", "sample")),
    "estimates": ("estimates", "sources", ("order", "source", "channel", "sample")),
    "weights": ("weights", "weights", ("order", "frame")),
    "log_prior": ("weights", "log_prior", ("order",)),
    "orders": ("weights", "components", ("order", "source")),
    "energy_frames": ("free_energy", "frames", ("order", "frame")),
    "energy_dictionary": ("free_energy", "dictionary", ("order",)),
    "within": ("variance", "within", ("source", "channel", "frequency", "frame")),
    "between": ("variance", "between", ("source", "channel", "frequency", "frame")),
    "trace": ("trace", "objective", ("fit", "iteration")),
}
_OPTIONAL = ("estimates", "within", "between")
_NATS = ("frames", "dictionary", "objective", "log_prior")
# Waveforms of separators and variances are noise to a compressor.
COMPRESSED = frozenset(
    {"sample", "frame", "frequency", "mixture", "weights", "log_prior", "components", "frames", "objective"}
)


def to_tree(result: Any) -> "DataTree":
    """The tree; it shares memory with the result."""
    import xarray as xr

    coordinates = {
        "source": (list(result.source_names), {}),
        "channel": (np.arange(result.mixture.shape[0]), {}),
        "order": (list(result.order_labels), {}),
        "sample": (np.arange(result.mixture.shape[1]) / result.rate, {"units": "s"}),
        "frame": (result.frame_times, {"units": "s"}),
        "frequency": (result.frequencies, {"units": "Hz"}),
        "fit": (list(result.trace_labels), {}),
        "iteration": (result.trace_iterations, {}),
    }
    # One object each: groups then share the coordinate and its index.
    shared = {name: xr.IndexVariable(name, values, attributes) for name, (values, attributes) in coordinates.items()}
    contents: dict[str, dict[str, tuple[tuple[str, ...], Any, dict[str, str]]]] = {}
    for name, (group, variable, dims) in ARRAYS.items():
        array = getattr(result, name)
        if array is not None:
            units = {"units": "nat"} if variable in _NATS else {}
            contents.setdefault(group, {})[variable] = (dims[: array.ndim], array, units)
    contents["free_energy"]["total"] = (("order",), result.free_energy, {"units": "nat"})
    # The frequencies have their place there, even if there are no variances.
    contents.setdefault("variance", {})
    groups = {}
    for group, variables in contents.items():
        used = {dim for dims, _, _ in variables.values() for dim in dims}
        used |= {"frequency", "frame"} if group == "variance" else set()
        groups[f"/{group}"] = xr.Dataset(variables, {dim: shared[dim] for dim in shared if dim in used})
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "version": result.version,
        "method": result.method,
        "rate": result.rate,
        "seed": result.seed,
        "beta_per_frame": result.beta_per_frame,
        "energy_order": result.energy_order,
        "transform": json.dumps(result.transform),
        "settings": json.dumps(result.settings),
    }
    return tree


def fields(tree: "DataTree") -> dict[str, Any]:
    """The fields of the result in a tree; raises a ValueError if it is of something else, newer, or incomplete."""
    if tree.attrs.get("format") != FORMAT:
        raise ValueError(f"not a {FORMAT}: the attribute `format` is {tree.attrs.get('format')!r}.")
    schema = tree.attrs.get("schema_version")
    if not isinstance(schema, int | np.integer) or not 1 <= schema <= SCHEMA_VERSION:
        raise ValueError(
            f"the {FORMAT} has schema version {schema}, and this bayesfuse reads versions up to "
            f"{SCHEMA_VERSION}; upgrade bayesfuse to at least {tree.attrs.get('version', 'the version it is of')}."
        )
    found = {f"{group}/{variable}" for group, node in tree.children.items() for variable in node.data_vars}
    datasets = {group: node.to_dataset() for group, node in tree.children.items()}
    try:
        arrays = {
            name: None if name in _OPTIONAL and f"{group}/{variable}" not in found else datasets[group][variable].values
            for name, (group, variable, _) in ARRAYS.items()
        }
        attrs: Any = tree.attrs
        return dict(
            **arrays,
            rate=attrs["rate"],
            source_names=datasets["fused"]["source"].values,
            order_labels=datasets["weights"]["order"].values,
            beta_per_frame=attrs["beta_per_frame"],
            energy_order=attrs["energy_order"],
            trace_iterations=datasets["trace"]["iteration"].values,
            trace_labels=datasets["trace"]["fit"].values,
            frequencies=datasets["variance"]["frequency"].values,
            frame_times=datasets["free_energy"]["frame"].values,
            method=str(attrs["method"]),
            transform=json.loads(attrs["transform"]),
            settings=json.loads(attrs["settings"]),
            seed=attrs["seed"],
            version=str(attrs["version"]),
        )
    except KeyError as error:
        raise ValueError(f"the {FORMAT} is incomplete: {error} is missing.") from error


def arviz_tree(result: Any, *, chains: int, draws: int | None, seed: int, waveforms: bool) -> "DataTree":
    """Groups by the names that ArviZ gives them; see `Result.to_inference_data`."""
    import xarray as xr

    per_frame = result.weights.shape[1:]
    if draws is None:
        draws = int(np.clip(4_000_000 // (chains * (1 + len(result.source_names)) * max(per_frame, default=1)), 1, 500))
    if chains < 1 or draws < 1:
        raise ValueError(f"chains={chains} and draws={draws}; both must be at least 1.")
    index = draw_order(result.weights, (chains, draws, *per_frame), seed)
    dims = ("chain", "draw", "frame")[: index.ndim]
    source = to_tree(result)
    weights, energies = source["weights"], source["free_energy"]
    coords = {"chain": np.arange(chains), "draw": np.arange(draws), "source": weights["source"].variable}
    if per_frame:
        coords["frame"] = weights["frame"].variable
    posterior: dict[str, Any] = {
        "order_index": (dims, index),
        "components": ((*dims, "source"), result.orders[index]),
    }
    about = {"beta_per_frame": result.beta_per_frame, "method": result.method}
    free_energy = energies.to_dataset()[["total", "frames"]].rename(total="free_energy", frames="free_energy_frames")
    groups = {
        "posterior": xr.Dataset(posterior, coords, {"inference": "vb", "seed": seed}),
        "sample_stats": source["trace"].to_dataset(),
        "fusion": xr.merge([weights.to_dataset(), free_energy]).assign_attrs(about),
    }
    if waveforms:
        groups["observed_data"] = source["mixture"].to_dataset()
        groups["fusion"] = groups["fusion"].merge(source["fused"].to_dataset())
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {**source.attrs, "inference": "vb", "inference_library": "bayesfuse"}
    tree.attrs["inference_library_version"] = result.version
    return tree


def for_arviz(tree: "DataTree") -> Any:
    """What ArviZ takes a tree as: an `InferenceData` with 0.x, the tree itself with 1.x."""
    import arviz

    # ArviZ 1.x has no such class (asking it for one warns), and its functions take the tree.
    container = vars(arviz).get("InferenceData")
    return tree if container is None else container.from_datatree(tree)


def order_labels(names: Sequence[str], orders: Int[np.ndarray, "choice source"]) -> tuple[str, ...]:
    """The varying source's order alone where only one source varies, else every source with its order."""
    varying = np.flatnonzero(np.ptp(orders, axis=0))
    if varying.size <= 1:
        return tuple(str(order) for order in orders[:, varying[0] if varying.size else 0])
    return tuple(", ".join(f"{name}={order}" for name, order in zip(names, row, strict=True)) for row in orders)


def stacked_traces(fits: Sequence[Any]) -> tuple[Float[np.ndarray, "fit record"], Int[np.ndarray, " record"]]:
    """Objectives of several fits, NaN where one stopped earlier than others, and the iterations of the records."""
    records = max((fit.trace_iterations for fit in fits), key=len)
    trace = np.full((len(fits), len(records)), np.nan)
    for row, fit in zip(trace, fits, strict=True):
        row[: len(fit.trace)] = fit.trace
    return trace, np.array(records)


def draw_order(weights: Float[np.ndarray, "order *frame"], shape: tuple[int, ...], seed: int) -> Int[np.ndarray, "..."]:
    """Draws of the index of the order, by inversion; an order of weight 0 is never drawn."""
    cumulative = np.cumsum(weights, axis=0, dtype=np.float64)
    uniform = np.random.default_rng(seed).random(shape)
    index = np.zeros(shape, np.int32)
    for bound in cumulative[:-1] / cumulative[-1]:
        index += uniform >= bound
    return index

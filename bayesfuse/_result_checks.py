"""What the arrays of a result must satisfy: shapes, simplex, finite values."""

import json
import operator
from typing import Any

import numpy as np

METHODS = ("joint", "average", "select", "mean")

# Weights may have been computed in single precision, whatever their dtype now.
_SIMPLEX_TOLERANCE = 1e-5


def check_result(result: Any, axes: dict[str, tuple[str, ...]]) -> None:
    """Raises a ValueError unless the fields of the result, arrays along these axes, agree with each other."""
    _check_names(result)
    _check_shapes(result, axes)
    _check_values(result)


# Converters of the fields, which take what arrays, texts and numbers are in NumPy, JAX and netCDF.


def array(value: Any) -> Any:
    """The value as a NumPy array, not copied if it is one; None as it is."""
    return None if value is None else np.asarray(value)


def texts(value: Any) -> tuple[str, ...]:
    """The texts as a tuple."""
    return tuple(str(text) for text in value)


def integer(value: Any) -> int:
    """The value as an integer of Python, unless that would change it."""
    return operator.index(value)


def number(value: Any) -> float:
    """The value as a float of Python."""
    return float(value)


def through_json(value: Any) -> dict[str, Any]:
    """The dictionary as a JSON file returns it: tuples, for instance, become lists."""
    if not isinstance(value, dict):
        raise ValueError(f"transform or settings is of type {type(value).__name__}; expected a dictionary.")
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{value} cannot be written as JSON: {error}; use texts, numbers and lists of them."
        ) from error


def _check_names(result: Any) -> None:
    for name in ("source_names", "order_labels", "trace_labels"):
        texts = getattr(result, name)
        if not all(text and text.isprintable() for text in texts):
            raise ValueError(f"{name} = {texts}; each must be a text of one or more printable characters.")
        if name != "trace_labels" and len(set(texts)) != len(texts):
            raise ValueError(f"{name} = {texts} repeats a name; each must occur once.")
    if result.method not in METHODS:
        raise ValueError(f"method={result.method!r}; expected one of {list(METHODS)}.")
    if result.rate < 1:
        raise ValueError(f"rate={result.rate}; expected a positive number of samples per second.")
    if not -(2**63) <= result.seed < 2**63:
        raise ValueError(f"seed={result.seed}; expected an integer of 64 bits.")
    if not result.beta_per_frame >= 0:
        raise ValueError(f"beta_per_frame={result.beta_per_frame}; expected a number in [0, inf].")


def _check_shapes(result: Any, axes: dict[str, tuple[str, ...]]) -> None:
    sizes = {
        "source": len(result.source_names),
        "order": len(result.order_labels),
        "fit": len(result.trace_labels),
        "iteration": result.trace_iterations.size,
        "frame": result.frame_times.size,
        "frequency": result.frequencies.size,
        "channel": result.mixture.shape[0] if result.mixture.ndim == 2 else 0,
        "sample": result.mixture.shape[1] if result.mixture.ndim == 2 else 0,
    }
    dims = axes | {"trace_iterations": ("iteration",), "frequencies": ("frequency",), "frame_times": ("frame",)}
    if result.weights.ndim == 1:
        dims["weights"] = ("order",)
    for name, own in dims.items():
        array = getattr(result, name)
        if array is None:
            continue
        expected = tuple(sizes[axis] for axis in own)
        if array.shape != expected:
            raise ValueError(
                f"{name} has shape {array.shape}, but [{', '.join(own)}] of this result is {expected}, by the "
                "mixture, the names and labels, the frequencies and the frame times."
            )
        integers = name in ("orders", "trace_iterations")
        if array.dtype.kind != ("i" if integers else "f"):
            expected = "integers" if integers else "float32 or float64"
            raise ValueError(f"{name} has dtype {array.dtype}; expected {expected}.")
    for axis in ("source", "order", "frame", "channel", "sample"):
        if sizes[axis] == 0:
            raise ValueError(f"the result has no {axis}; it needs at least one (mixture: {result.mixture.shape}).")
    if (result.within is None) != (result.between is None):
        raise ValueError("one of within and between is None; give both parts of the variance, or neither.")


def _check_values(result: Any) -> None:
    finite = ("mixture", "sources", "estimates", "frequencies", "frame_times")
    for name in (*finite, "within", "between"):
        array = getattr(result, name)
        if array is not None and not np.isfinite(array).all():
            raise ValueError(f"{name} has NaN or infinite values; find the fit or file that they come from.")
    for name in ("within", "between", "weights"):
        array = getattr(result, name)
        if array is not None and array.size and not array.min() >= 0:
            raise ValueError(f"{name} has negative or NaN values, the smallest is {array.min()}.")
    total = result.weights.sum(axis=0, dtype=np.float64)
    if np.abs(total - 1.0).max() > _SIMPLEX_TOLERANCE:
        worst = total.flat[np.abs(total - 1.0).argmax()]
        raise ValueError(f"weights sum to {worst} over the orders; they must be on the simplex, and sum to 1.")
    for name in ("energy_frames", "energy_dictionary", "log_prior"):
        if not (getattr(result, name) < np.inf).all():
            raise ValueError(f"{name} has NaN or +inf; expected nats, -inf for an order that is ruled out.")
    if not result.log_prior.max() > -np.inf:
        raise ValueError("log_prior excludes all orders; at least one must be above -inf.")
    if not np.isfinite(result.energy_order):
        raise ValueError(f"energy_order={result.energy_order}; expected a finite number of nats.")
    if not (result.orders >= 1).all():
        raise ValueError(f"orders holds {result.orders.min()}; numbers of components start at 1.")

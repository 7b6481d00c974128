"""Checks of arguments that may be JAX tracers: what is not known yet is not checked, what is known must pass."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.core import Tracer


def check(caller: str, value: Any, accept: Callable[[np.ndarray], Any], complaint: str) -> None:
    """Raise unless the value, if it is known (not inside a JAX transformation), is accepted."""
    if not isinstance(value, Tracer) and not accept(np.asarray(value)):
        raise ValueError(f"{caller} got {complaint}.")


def check_finite(caller: str, **arrays: Any) -> None:
    """Raise if one of the named arrays holds NaN or infinite values."""
    for name, array in arrays.items():
        check(
            caller,
            array,
            lambda v: np.isfinite(v).all(),
            f"{name} with NaN or infinite values; find the model or file they come from and leave it out",
        )


def check_models(caller: str, got: int, expected: int, what: str = "weights") -> None:
    """Raise unless something was given for each of the models."""
    if got != expected:
        raise ValueError(f"{caller} got {what} for {got} models, but there are {expected}; give one per model.")

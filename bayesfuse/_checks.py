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


def check_seed(caller: str, seed: Any) -> None:
    """Raise unless the seed is one that all random number generators take."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**31:
        raise ValueError(f"{caller} got seed={seed!r}; expected a whole number from 0 to 2147483647.")


# Peaks whose squares, and sums of them, are far from the ends of what a dtype can hold.
_LEVELS = {"float32": 1e-16, "float64": 1e-100}


def check_level(name: str, audio: np.ndarray, dtype: np.dtype[Any]) -> None:
    """Raise if the power of a channel [channel, sample] would vanish or overflow in a dtype; silence passes."""
    low = _LEVELS[str(dtype)]
    # As numbers of Python: beside a float32, the limits of float64 would overflow.
    for channel, peak in enumerate(np.abs(audio).max(axis=-1).tolist()):
        if peak and not low <= peak <= 1.0 / low:
            raise ValueError(
                f"{name}: the peak of channel {channel} is {peak:.3g}, outside [{low:g}, {1.0 / low:g}], where powers "
                f"can be computed in {dtype}; rescale the recording, best to a peak between 0.1 and 1."
            )

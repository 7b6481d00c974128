"""Scoped precision: results follow the dtype of the data, and JAX's global configuration is left alone."""

from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np


def precision(*data: Any) -> AbstractContextManager[Any]:
    """Context in which JAX computes in double precision if any of `data` is float64 or complex128.

    Parameters
    ----------
    *data
        Arrays or dtypes. Integers and Python floats do not ask for double precision.
    """
    dtypes = [np.dtype(getattr(item, "dtype", item)) for item in data]
    double = any(dtype in (np.dtype(np.float64), np.dtype(np.complex128)) for dtype in dtypes)
    return jax.enable_x64(double)

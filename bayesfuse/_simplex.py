"""The softmax whose result lies on the simplex at any magnitude, for NumPy and for JAX arrays."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def namespace(*arrays: Any) -> ModuleType:
    """`jax.numpy` if any of the arrays is a JAX array or tracer, else `numpy`."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def indicator(values: Any, axis: int) -> Any:
    """1 at the first largest value along the axis, 0 elsewhere."""
    xp = namespace(values)
    values = xp.moveaxis(xp.asarray(values), axis, -1)
    first = xp.argmax(values, axis=-1)[..., None]
    return xp.moveaxis((xp.arange(values.shape[-1]) == first).astype(values.dtype), -1, axis)


def tempered(values: Any, prior: Any, temperature: Any) -> Any:
    """log prior + (value - largest value) / temperature over the last axis, with its limits at 0 and inf.

    Entries are below +inf and at least one is finite, provided that one of the prior is.
    """
    xp = namespace(values, prior, temperature)
    allowed = prior > -xp.inf
    possible = allowed & (values > -xp.inf)
    # If all are impossible they are equally so, and the prior remains.
    none = ~possible.any(axis=-1, keepdims=True)
    values = xp.where(none, xp.zeros_like(values), values)
    possible = possible | (none & allowed)
    top = xp.where(possible, values, -xp.inf).max(axis=-1, keepdims=True)
    values = xp.where(possible, values, top)
    warm = temperature > 0
    divisor = xp.where(warm, temperature, xp.ones_like(temperature))
    with np.errstate(over="ignore"):
        gap = values - top
        # Two finite numbers can be too far apart for their precision; the halves of them cannot.
        halves = (values / 2.0 - top / 2.0) / divisor
        scaled = xp.where(gap > -xp.inf, xp.maximum(gap, np.finfo(values.dtype).min) / divisor, 2.0 * halves)
    cold = xp.where(gap == 0, xp.zeros_like(gap), -xp.inf)
    return xp.where(possible, prior + xp.where(warm, scaled, cold), -xp.inf)


def softmax(logits: Any) -> Any:
    """Softmax over the last axis whose exact sum is 1 up to half a machine epsilon."""
    xp = namespace(logits)
    terms = xp.exp(logits - logits.max(axis=-1, keepdims=True))
    weights = terms / terms.sum(axis=-1, keepdims=True)
    total, rounding = _exact_sum(weights)
    excess = (total - 1.0) + rounding
    # The largest weight takes up what the divisions left over, unless this is within the tolerance: then
    # symmetric logits keep symmetric weights.
    excess = xp.where(abs(excess) > np.finfo(weights.dtype).eps / 2.0, excess, xp.zeros_like(excess))
    return weights - excess[..., None] * indicator(weights, -1)


def _exact_sum(values: Any) -> tuple[Any, Any]:
    """Sum over the last axis and the sum of its rounding errors, by error-free addition in pairs."""
    xp = namespace(values)
    errors = xp.zeros_like(values[..., 0])
    while values.shape[-1] > 1:
        if values.shape[-1] % 2:
            values = xp.concatenate([values, xp.zeros_like(values[..., :1])], axis=-1)
        a, b = values[..., 0::2], values[..., 1::2]
        values = a + b
        shadow = values - a
        errors = errors + ((a - (values - shadow)) + (b - shadow)).sum(axis=-1)
    return values[..., 0], errors

"""Wiener filter: from the variances of sources and noise to estimates of the source coefficients.

In every bin the mixture is `x = sum_j s_j + e` with independent, circularly-symmetric complex normal
sources `s_j ~ CN(0, C_j)` and noise `e ~ CN(0, noise)`. All functions take NumPy or JAX arrays, return the
same kind, work under `jit`, and never write to their inputs. `noise` is a variance in the unit of the power
|x|^2: a number, or an array that broadcasts to `[..., freq, frame]`.

Silent bins: where the total variance is zero (below the smallest normal number of the dtype), all source
gains are 0 and the noise gain is 1, so that the whole bin goes to the noise estimate and the estimates still
sum to the mixture.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Inexact

Noise = float | Float[np.ndarray | Array, "..."] | np.floating[Any]


def gains(
    variances: Float[np.ndarray | Array, "*batch source freq frame"], noise: Noise = 0.0
) -> Float[np.ndarray | Array, "*batch source freq frame"]:
    """Wiener gain of each source, `C_j / (noise + sum_l C_l)`, [JVR16] eqs. 31, 33.

    Parameters
    ----------
    variances
        Expected power `C_j` of each source, >= 0, axes [..., source, freq, frame].
    noise
        Variance of the observation noise, >= 0.

    Returns
    -------
    Gains in [0, 1], same axes and dtype as `variances`; 0 in silent bins.

    Raises
    ------
    ValueError
        If a NumPy input is negative or not finite (values of JAX arrays are not inspected).
    """
    variances, noise, total = _checked(variances, noise)
    return _divide(variances, total[..., None, :, :], 0.0)


def noise_gain(
    variances: Float[np.ndarray | Array, "*batch source freq frame"], noise: Noise = 0.0
) -> Float[np.ndarray | Array, "*batch freq frame"]:
    """Wiener gain of the observation noise, `noise / (noise + sum_l C_l)`; 1 in silent bins.

    Together with `gains` it sums to one in every bin, to rounding. Arguments and errors are those of `gains`.
    """
    _, noise, total = _checked(variances, noise)
    return _divide(noise, total, 1.0)


def filter(
    X: Inexact[np.ndarray | Array, "*channel freq frame"],
    variances: Float[np.ndarray | Array, "*batch source _freq _frame"],
    noise: Noise = 0.0,
) -> tuple[Inexact[np.ndarray | Array, "..."], Inexact[np.ndarray | Array, "..."]]:
    """Minimum mean square error estimates of the sources and of the noise, [JVR16] eq. 31.

    Parameters
    ----------
    X
        Mixture coefficients, complex (or real), axes [..., freq, frame].
    variances
        Expected power of each source, >= 0, axes [..., source, freq, frame]. The leading axes broadcast
        against those of `X`: variances [source, freq, frame] filter every channel of X [channel, freq, frame]
        alike.
    noise
        Variance of the observation noise, >= 0.

    Returns
    -------
    estimates [..., source, freq, frame] and noise_estimate [..., freq, frame], in the dtype of `X`. Their sum
    over the sources plus the noise is `X` to rounding, in silent bins too.

    Raises
    ------
    ValueError
        If the bins of `X` and `variances` differ, or a NumPy input is negative or not finite.
    """
    if X.shape[-2:] != variances.shape[-2:]:
        raise ValueError(
            f"the mixture has {X.shape[-2:]} (freq, frame) bins and the variances {variances.shape[-2:]}: "
            "compute both with the same transform of the same recording"
        )
    variances, noise, total = _checked(variances, noise)
    dtype = np.finfo(X.dtype).dtype
    source = _divide(variances, total[..., None, :, :], 0.0).astype(dtype)
    rest = _divide(noise, total, 1.0).astype(dtype)
    return source * X[..., None, :, :], rest * X


def posterior_variance(
    variances: Float[np.ndarray | Array, "*batch source freq frame"], noise: Noise = 0.0
) -> Float[np.ndarray | Array, "*batch source freq frame"]:
    """Posterior variance of each source, `C_j (noise + sum_{l != j} C_l) / (noise + sum_l C_l)`.

    The diagonal of the posterior covariance `diag(C) - C C' / den`, formed without the subtraction, so that
    it keeps its relative precision when one source dominates. Unit: power. Zero in silent bins. Arguments and
    errors are those of `gains`.
    """
    variances, noise, total = _checked(variances, noise)
    xp = _namespace(variances)
    num_sources = variances.shape[-3]
    # Sums over the sources before and after j: never a difference, and linear in the number of sources.
    before = [noise]
    after = [xp.zeros_like(total)]
    for j in range(num_sources - 1):
        before.append(before[-1] + variances[..., j, :, :])
        after.append(after[-1] + variances[..., num_sources - 1 - j, :, :])
    others = xp.stack([before[j] + after[num_sources - 1 - j] for j in range(num_sources)], axis=-3)
    # Gain first: the product of two variances would overflow or underflow in float32.
    return _divide(variances, total[..., None, :, :], 0.0) * others


def _namespace(*arrays: Any) -> Any:
    return jnp if any(isinstance(array, Array) for array in arrays) else np


def _divide(numerator: Any, total: Any, silent: float) -> Any:
    xp = _namespace(total)
    # Subnormal totals count as silent: XLA flushes subnormal operands to zero, NumPy does not.
    alive = total >= float(np.finfo(total.dtype).tiny)
    return xp.where(alive, numerator / xp.where(alive, total, 1.0), silent)


def _checked(variances: Any, noise: Any) -> tuple[Any, Any, Any]:
    """Variances, noise of the shape of one source, and total variance, all in the dtype of the variances."""
    xp = _namespace(variances, noise)
    for name, value in (("variances", variances), ("noise", noise)):
        if not isinstance(value, Array):
            # min and max propagate NaN, and need no temporary of the size of the data.
            low, high = np.min(value, initial=0.0), np.max(value, initial=0.0)
            if not (low >= 0.0 and high < np.inf):
                raise ValueError(f"{name} between {low} and {high}: expected finite numbers >= 0 (powers)")
    variances = xp.asarray(variances)
    noise = xp.asarray(noise, dtype=variances.dtype)
    total = noise + xp.sum(variances, axis=-3)
    if total.shape[-2:] != variances.shape[-2:]:
        raise ValueError(
            f"noise of shape {noise.shape} does not broadcast to the bins of variances {variances.shape}: "
            "give a number or an array [..., freq, frame]"
        )
    return variances, xp.broadcast_to(noise, total.shape), total

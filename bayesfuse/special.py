"""Modified Bessel functions of the second kind K_nu: logarithm and ratio of neighbouring orders.

`fixed_order` prepares, once and on the host, everything that depends on the order alone, and evaluates a
million entries for the price of a few exponentials. `log_kve` and `kv_ratio` accept the order as an array and
are differentiable in both arguments.

References
----------
N. M. Temme, "On the numerical evaluation of the modified Bessel function of the third kind", J. Comput. Phys.
19, 1975 (the power series for small arguments).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bayesfuse._bessel_fixed import FixedOrder, Real, fixed_order
from bayesfuse._bessel_general import bessel

__all__ = ["FixedOrder", "fixed_order", "kv_ratio", "log_kve"]


def _arguments(nu: Real, x: Real) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return both as arrays of one shape and of the dtype that JAX's promotion gives them."""
    dtype = jnp.result_type(nu, x)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    order, argument = jnp.broadcast_arrays(jnp.asarray(nu, dtype), jnp.asarray(x, dtype))
    return order, argument


def log_kve(nu: Real, x: Real) -> Float[Array, "..."]:
    """Return log(K_nu(x) e^x), elementwise.

    Accurate over 0 <= nu <= 50 and 1e-300 <= x <= 1e300 (float64; 1e-35 to 1e38 in float32) to 1e-12
    (float64; 1e-5 in float32) absolute or 4 units in the last place, and differentiable in both arguments:
    in float32 the derivative in nu, which vanishes at nu = 0, has a relative error below 3e-4, the one in x
    below 1e-5. Orders below zero mean the same as their opposites.

    Parameters
    ----------
    nu
        Order, real.
    x
        Argument, positive; infinity is returned at zero, NaN below.
    """
    return _log_kve(*_arguments(nu, x))


def kv_ratio(nu: Real, x: Real) -> Float[Array, "..."]:
    """Return K_{nu-1}(x) / K_nu(x), elementwise.

    Relative error below 1e-12 (float64) or 1e-5 (float32) over the domain of `log_kve`; differentiable in
    both arguments. Derivatives beyond the range of the dtype saturate at its largest number; in float32 their
    relative errors are below 1e-4 in nu and 1e-5 in x, the latter plus 4 eps/|2 nu - 1| where dR/dx changes sign.

    Parameters
    ----------
    nu
        Order, not negative.
    x
        Argument, positive; NaN is returned otherwise.
    """
    return _kv_ratio(*_arguments(nu, x))


# Compiled as a whole, so that calls and derivatives outside of any jit are one dispatch as well.
@jax.jit
def _log_kve(order: Float[Array, "..."], argument: Float[Array, "..."]) -> Float[Array, "..."]:
    positive = argument > 0
    value = bessel(jnp.where(order < 0, -order, order), jnp.where(positive, argument, 1.0)).log_kve
    return jnp.where(positive, value, jnp.where(argument == 0, jnp.inf, jnp.nan))


@jax.jit
def _kv_ratio(order: Float[Array, "..."], argument: Float[Array, "..."]) -> Float[Array, "..."]:
    valid = (argument > 0) & (order >= 0)
    value = bessel(jnp.where(valid, order, 1.0), jnp.where(valid, argument, 1.0)).ratio
    return jnp.where(valid, value, jnp.nan)

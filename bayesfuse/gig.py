"""Generalised inverse Gaussian: density proportional to y^(gamma-1) exp(-rho y - tau/y), y > 0.

With z = 2 sqrt(rho tau) and R = K_(gamma-1)(z) / K_gamma(z),

    E[y] = (gamma + T) / rho,  T = tau E[1/y] = (z/2) R,    1/E[1/y] = sqrt(tau/rho) / R.

tau = 0 (gamma > 0) is the Gamma distribution of shape gamma and rate rho, and every result is exact there; the
harmonic mean 1/E[1/y] is what gets stored, because E[1/y] is infinite in that limit for gamma <= 1.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from bayesfuse.special import FixedOrder


def _half_argument(
    order: FixedOrder, rho: Float[Array, "..."], tau: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """Return h = sqrt(rho tau) without overflow, kept off zero; its logarithm; and whether tau counts as zero."""
    h = jnp.sqrt(rho) * jnp.sqrt(tau)
    tiny = 4 * jnp.finfo(order.nu.dtype).tiny
    gamma_limit = h < tiny
    h = jnp.maximum(h, tiny)
    return h, jnp.log(h), gamma_limit


def moments(
    order: FixedOrder, rho: Float[Array, "*shape"], tau: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Return the mean E[y] and the harmonic mean 1/E[1/y] of GIG(order.nu, rho, tau).

    Parameters
    ----------
    order
        gamma > 0, prepared by `special.fixed_order` in the dtype of the data.
    rho, tau
        Coefficients of y (positive) and of 1/y (zero or positive). At tau = 0 the harmonic mean is 0 for gamma <= 1 and
        (gamma - 1)/rho above.
    """
    h, log_h, gamma_limit = _half_argument(order, rho, tau)
    state, _ = order._climb(h, log_h)
    half, below = state.half, state.below
    # In the limit T = 0, and h/R = gamma - 1 + T(gamma - 1) is left with gamma - 1.
    half = jnp.where(gamma_limit, 0.0, half)
    below = jnp.where(gamma_limit, jnp.maximum(order.nu_minus_one, 0.0), below)
    return (order.nu + half) / rho, below / rho


def prior_minus_posterior(
    order: FixedOrder, rate: Float[Array, "..."], rho: Float[Array, "*shape"], tau: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return E_q[log p(y) - log q(y)] = -KL(q || p) for q = GIG(gamma, rho, tau) and p = Gamma(gamma, rate).

    The shape of the prior equals the order of the posterior, so E[log y] drops out:

        gamma log rate - log Gamma(gamma) + gamma - rate E[y] + 2 T + log Z,

    with 2 T + log Z formed from z (R - 1) and log(K_gamma(z) e^z), which do not cancel. In nats, elementwise.
    """
    h, log_h, gamma_limit = _half_argument(order, rho, tau)
    state, log_k = order._climb(h, log_h, logarithm=True)
    assert log_k is not None
    relative = rate / rho
    gamma_part = order.nu * (jnp.log(relative) + 1 - relative)
    small = (2 - relative) * state.half + log_k - order._log_gamma_base
    large = state.excess - relative * state.half + math.log(2) - order.log_gamma + order.nu * log_h + log_k
    tau_part = jnp.where(h < 0.5, small, large)
    return gamma_part + jnp.where(gamma_limit, 0.0, tau_part)

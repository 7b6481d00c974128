"""Generalised inverse Gaussian: density proportional to y^(gamma-1) exp(-rho y - tau/y), y > 0.

With z = 2 sqrt(rho tau) and R = K_(gamma-1)(z) / K_gamma(z),

    E[y] = (gamma + T) / rho,  T = tau E[1/y] = (z/2) R,    1/E[1/y] = sqrt(tau/rho) / R.

tau = 0 (gamma > 0) is the Gamma distribution of shape gamma and rate rho, and every result is exact there;
the harmonic mean 1/E[1/y] is what gets stored, because E[1/y] is infinite in that limit for gamma <= 1.

`moments` and `prior_minus_posterior` are the fast path for one fixed gamma; `Gig` takes any gamma, as an
array, and is differentiable in all three parameters.

References
----------
L. Devroye, "Random variate generation for the generalized inverse Gaussian distribution", Stat. Comput. 24,
2014 (the sampler).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

from bayesfuse._bessel_general import bessel
from bayesfuse._elementary import log_normal
from bayesfuse._module import Module
from bayesfuse.special import FixedOrder

Values = Float[Array, "..."]


class _Parts(NamedTuple):
    """What all statistics of a Gig are made of; gamma may be negative."""

    half: Values  # h = sqrt(rho tau) = z/2
    limit: Bool[Array, "..."]  # tau counts as zero
    mean: Values  # rho E[y] = gamma + T
    excess: Values  # 2 T - z = z (R - 1)
    harmonic: Values  # 1 / E[1/y]
    log_scaled: Values  # log(h^gamma K_gamma(z) e^z)
    scaled_slope: Values  # its derivative in gamma, E[log y] + log rho


@jax.custom_jvp
def _half_over_ratio(order: Values, half: Values, ratio: Values) -> Values:
    """Return h / R, whose derivatives do not cancel although R is close to h / (gamma - 1) for gamma > 1."""
    return half / ratio


@_half_over_ratio.defjvp
def _half_over_ratio_jvp(
    primals: tuple[Values, Values, Values], tangents: tuple[Values, Values, Values]
) -> tuple[Values, Values]:
    order, half, ratio = primals
    d_order, d_half, d_ratio = tangents
    value = _half_over_ratio(order, half, ratio)
    # For gamma > 1 the derivatives of gamma - 1 + T(gamma - 1), which costs Bessel functions of that order too:
    # only derivatives pay for it.
    above = order > 1
    lower, d_lower = jnp.where(above, order - 1, 1.0), jnp.where(above, d_order, 0.0)
    step = jax.jvp(lambda nu, h: h * bessel(nu, 2 * h).ratio, (lower, half), (d_lower, d_half))[1]
    return value, jnp.where(above, d_order + step, (d_half - value * d_ratio) / ratio)


@jax.jit  # one dispatch outside of any jit; inside, what is not used is dropped
def _parts(gamma: Values, rho: Values, tau: Values) -> _Parts:
    down = gamma < 0
    order = jnp.where(down, -gamma, gamma)
    positive = tau > 0
    half = jnp.sqrt(rho) * jnp.sqrt(jnp.where(positive, tau, 1.0))
    # This far from the smallest number the ratio, at least z / (2 gamma), still is a normal one.
    smallest = 256 * jnp.finfo(half.dtype).tiny
    limit = (gamma > 0) & ~(positive & (half >= smallest))
    half = jnp.where(limit, 1.0, jnp.maximum(half, smallest))
    k = bessel(order, 2 * half)
    t = half * k.ratio  # T of |gamma|
    log_half = jnp.log(half)
    shape = jnp.where(limit, gamma, 1.0)
    below = jnp.where(limit, jnp.maximum(gamma - 1, 0.0), _half_over_ratio(order, half, k.ratio))
    return _Parts(
        half=jnp.where(limit, 0.0, half),
        limit=limit,
        mean=jnp.where(limit, gamma, jnp.where(down, t, gamma + t)),
        excess=jnp.where(limit, 0.0, jnp.where(down, k.excess + 2 * order, k.excess)),
        # For gamma < 0 hardly a function of rho: no h^2 / rho, for its derivatives would cancel.
        harmonic=jnp.where(down, tau / (order + t), below / rho),
        log_scaled=jnp.where(
            limit,
            jax.lax.lgamma(shape) - math.log(2),
            jnp.where(down, k.log_scaled - 2 * order * log_half, k.log_scaled),
        ),
        scaled_slope=jnp.where(
            limit,
            jax.lax.digamma(shape),
            jnp.where(down, 2 * log_half - k.scaled_slope, k.scaled_slope),
        ),
    )


class GigStatistics(NamedTuple):
    """Statistics of a `Gig`, each of the broadcast shape of its parameters."""

    mean: Values  # E[y]
    harmonic_mean: Values  # 1 / E[1/y]
    mean_log: Values  # E[log y]
    log_normaliser: Values  # log Z
    entropy: Values  # in nats


class Gig(Module):
    """Generalised inverse Gaussian, density y^(gamma-1) exp(-rho y - tau/y) / Z on y > 0.

    Every statistic has the broadcast shape and the dtype of the parameters, is exact in the Gamma limit,
    and is differentiable in the parameters (at tau = 0 in gamma and rho only).

    Parameters
    ----------
    gamma
        Any real number; |gamma| <= 50 for full accuracy.
    rho, tau
        rho > 0 and tau > 0, or tau = 0 if gamma > 0. A product rho tau that underflows counts as tau = 0.
        The three parameters broadcast against each other.
    """

    gamma: Values
    rho: Values
    tau: Values

    def __init__(self, gamma: Any, rho: Any, tau: Any) -> None:
        dtype = jnp.result_type(gamma, rho, tau)
        if not jnp.issubdtype(dtype, jnp.floating):
            dtype = jnp.result_type(float)
        self.gamma, self.rho, self.tau = (jnp.asarray(value, dtype) for value in (gamma, rho, tau))

    @property
    def shape(self) -> tuple[int, ...]:
        """Broadcast shape of the parameters."""
        return jnp.broadcast_shapes(self.gamma.shape, self.rho.shape, self.tau.shape)

    def _parameters(self) -> tuple[Values, Values, Values]:
        gamma, rho, tau = jnp.broadcast_arrays(self.gamma, self.rho, self.tau)
        return gamma, rho, tau

    def _parts(self) -> _Parts:
        return _parts(*self._parameters())

    def statistics(self) -> GigStatistics:
        """Return means, normaliser and entropy from one evaluation of the Bessel functions.

        The properties of the same names each cost as much as all of them together.
        """
        p = self._parts()
        log_rho = jnp.log(self.rho)
        log_twice = math.log(2) + p.log_scaled
        return GigStatistics(
            mean=p.mean / self.rho,
            harmonic_mean=p.harmonic,
            mean_log=p.scaled_slope - log_rho,
            log_normaliser=log_twice - self.gamma * log_rho - 2 * p.half,
            entropy=(1 - self.gamma) * p.scaled_slope + self.gamma + p.excess + log_twice - log_rho,
        )

    @property
    def mean(self) -> Values:
        """E[y]."""
        return self.statistics().mean

    @property
    def harmonic_mean(self) -> Values:
        """1 / E[1/y], in the Gamma limit max(gamma - 1, 0) / rho."""
        return self.statistics().harmonic_mean

    @property
    def mean_log(self) -> Values:
        """E[log y]."""
        return self.statistics().mean_log

    @property
    def log_normaliser(self) -> Values:
        """log Z = log(2 (tau/rho)^(gamma/2) K_gamma(z)); log Gamma(gamma) - gamma log rho in the limit."""
        return self.statistics().log_normaliser

    @property
    def entropy(self) -> Values:
        """Differential entropy -(gamma-1) E[log y] + gamma + 2 T + log Z, in nats."""
        return self.statistics().entropy

    @property
    def variance(self) -> Values:
        """E[y^2] - E[y]^2 = E[y] (E'[y] - E[y]), E' the mean of the distribution with gamma + 1."""
        gamma, rho, tau = self._parameters()
        here, above = _parts(gamma, rho, tau), _parts(gamma + 1, rho, tau)
        # For large z the two means agree in their leading digits, their distance from z/2 does not.
        difference = jnp.where(here.half > 1, 1 + 0.5 * (above.excess - here.excess), above.mean - here.mean)
        return (here.mean / rho) * (difference / rho)

    @property
    def mode(self) -> Values:
        """The y of largest density; 0 in the Gamma limit for gamma <= 1."""
        gamma, rho, tau = self._parameters()
        half = jnp.sqrt(rho) * jnp.sqrt(tau)
        lead = jnp.abs(gamma - 1)
        largest = jnp.maximum(jnp.maximum(lead, half), jnp.finfo(half.dtype).tiny)
        root = largest * jnp.sqrt((lead / largest) ** 2 + (2 * half / largest) ** 2)
        sum_ = jnp.maximum(lead + root, jnp.finfo(half.dtype).tiny)
        return jnp.where(gamma >= 1, 0.5 * sum_, 2 * half * (half / sum_)) / rho

    def log_prob(self, y: Any) -> Values:
        """Return the logarithm of the density at y > 0."""
        gamma, rho, tau = self._parameters()
        p = _parts(gamma, rho, tau)
        # rho y + tau/y - z is a square: no cancellation at large z.
        plain = rho * y
        safe = jnp.where(p.limit, 1.0, tau)
        square = (jnp.sqrt(rho * y) - jnp.sqrt(safe / y)) ** 2
        energy = jnp.where(p.limit, plain, square)
        return (gamma - 1) * jnp.log(y) - energy + gamma * jnp.log(rho) - math.log(2) - p.log_scaled

    def kl_to_gamma(self, shape: Any, rate: Any) -> Values:
        """Return KL(q || Gamma(shape, rate)) in nats, from this distribution q to a Gamma distribution."""
        p = self._parts()
        shape = jnp.asarray(shape, self.rho.dtype)
        return (
            (self.gamma - shape) * p.scaled_slope
            - self.gamma
            - p.excess
            - math.log(2)
            - p.log_scaled
            + shape * jnp.log(self.rho / rate)
            + jax.lax.lgamma(shape)
            + (rate / self.rho) * p.mean
        )

    def sample(self, key: Key[Array, ""] | UInt32[Array, "2"], shape: tuple[int, ...] = ()) -> Values:
        """Return independent draws of shape `shape + self.shape`, exact for all parameters including tau = 0.

        Devroye's rejection sampler for log y, whose acceptance rate is bounded below uniformly in the
        parameters; draws below the smallest positive number of the dtype are returned as that number.
        """
        full = tuple(shape) + self.shape
        gamma, rho, tau = (jnp.broadcast_to(value, full) for value in (self.gamma, self.rho, self.tau))
        return _sample(key, gamma, rho, tau)


@jax.jit
def _sample(key: Array, gamma: Values, rho: Values, tau: Values) -> Values:
    order = jnp.abs(gamma)
    tiny = jnp.finfo(gamma.dtype).tiny
    omega = jnp.maximum(2 * jnp.sqrt(rho) * jnp.sqrt(tau), 0.0)
    largest = jnp.maximum(jnp.maximum(order, omega), tiny)
    root = largest * jnp.sqrt((order / largest) ** 2 + (omega / largest) ** 2)
    alpha = omega * (omega / jnp.maximum(root + order, tiny))  # root - order

    # log density of v = log y - log(saddle point), up to a constant, and its slope; alpha may be
    # zero where cosh overflows.
    def phi(v: Values) -> Values:
        cosh = jnp.where(alpha > 0, alpha * (2 * jnp.sinh(0.5 * v) ** 2), 0.0)
        return -cosh - order * (jnp.expm1(v) - v)

    def slope(v: Values) -> Values:
        return -jnp.where(alpha > 0, alpha * jnp.sinh(v), 0.0) - order * jnp.expm1(v)

    # The hat: uniform on [-left, right], exponential tails tangent to phi at the points -s and t.
    one = jnp.ones_like(alpha)
    depth = -phi(one)
    narrow, wide = jnp.sqrt(2 / (alpha + order)), jnp.log(4 / (alpha + 2 * order))
    t = jnp.where(depth > 2, narrow, jnp.where(depth < 0.5, wide, 1.0))
    depth = -phi(-one)
    narrow = jnp.sqrt(4 / (alpha * math.cosh(1.0) + order))
    reach = jnp.log1p((1 + jnp.sqrt(1 + 2 * alpha)) / jnp.maximum(alpha, tiny))
    wide = jnp.minimum(1 / jnp.maximum(order, tiny), reach)
    s = jnp.where(depth > 2, narrow, jnp.where(depth < 0.5, wide, 1.0))
    at_t, rate_t, at_s, rate_s = -phi(t), -slope(t), -phi(-s), slope(-s)
    p, r = 1 / rate_s, 1 / rate_t
    right, left = t - r * at_t, s - p * at_s
    q = right + left

    def propose(state: tuple[Array, Values, Bool[Array, "..."]]) -> tuple[Array, Values, Bool[Array, "..."]]:
        key, value, done = state
        key, draw = jax.random.split(key)
        u, v, w = jax.random.uniform(draw, (3, *alpha.shape), alpha.dtype, minval=tiny)
        u = u * (p + q + r)
        log_v = jnp.log(v)
        x = jnp.where(u < q, q * v - left, jnp.where(u < q + r, right - r * log_v, p * log_v - left))
        log_hat = jnp.where(x > right, -at_t - rate_t * (x - t), jnp.where(x < -left, -at_s + rate_s * (x + s), 0.0))
        accept = jnp.log(w) + log_hat <= phi(x)
        return key, jnp.where(done, value, x), done | accept

    start = (key, jnp.zeros_like(alpha), jnp.zeros(alpha.shape, bool))
    _, v, _ = jax.lax.while_loop(lambda state: ~jnp.all(state[2]), propose, start)
    # log of the saddle point: (order + root) / (2 rho), for gamma < 0 that of 1/y
    scale = jnp.where(gamma < 0, tau, rho)
    log_y = v + jnp.log(0.5 * (order + root)) - jnp.log(scale)
    return jnp.maximum(jnp.exp(jnp.where(gamma < 0, -log_y, log_y)), tiny)


def _half_argument(
    order: FixedOrder, rho: Float[Array, "..."], tau: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."], Bool[Array, "..."]]:
    """Return h = sqrt(rho tau) kept off zero, its logarithm, and whether tau counts as zero."""
    info = jnp.finfo(order.nu.dtype)
    tiny = 4 * info.tiny
    # One square root, for the compiler stores each one it meets, of a product that may leave the range.
    product = rho * tau
    shift = 2.0 ** (info.maxexp // 2)
    over, under = product > info.max, (product < info.tiny) & (tau > 0)
    scale = jnp.where(over, 1 / shift, jnp.where(under, shift, 1.0))
    back = jnp.where(over, shift, jnp.where(under, 1 / shift, 1.0))
    h = jnp.sqrt((rho * scale) * (tau * scale)) * back
    gamma_limit = h < tiny
    h = jnp.maximum(h, tiny)
    return h, log_normal(h), gamma_limit


def moments(
    order: FixedOrder, rho: Float[Array, "*shape"], tau: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Return the mean E[y] and the harmonic mean 1/E[1/y] of GIG(order.nu, rho, tau).

    Parameters
    ----------
    order
        gamma > 0, prepared by `special.fixed_order` in the dtype of the data.
    rho, tau
        Coefficients of y (positive) and of 1/y (zero or positive). At tau = 0 the harmonic mean is 0 for
        gamma <= 1 and (gamma - 1)/rho above.
    """
    h, log_h, gamma_limit = _half_argument(order, rho, tau)
    state, _ = order._climb(h, log_h)
    # Both results follow from one array, which the compiler stores: neither R of an order up to one nor,
    # above, h / R = gamma - 1 + T(gamma - 1) leave the range. In the limit T = 0.
    if order.steps > 0:
        half = jnp.where(gamma_limit, 0.0, h * (h / state.below))
        below = jnp.where(gamma_limit, order.nu_minus_one, state.below)
    else:
        half = jnp.where(gamma_limit, 0.0, h * state.ratio)
        below = jnp.where(gamma_limit, 0.0, h / state.ratio)
    return (order.nu + half) / rho, below / rho


def prior_minus_posterior(
    order: FixedOrder, rate: Float[Array, "..."], rho: Float[Array, "*shape"], tau: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return E_q[log p(y) - log q(y)] = -KL(q || p) for q = GIG(gamma, rho, tau) and p = Gamma(gamma, rate).

    The shape of the prior equals the order of the posterior, so E[log y] drops out:

        gamma log rate - log Gamma(gamma) + gamma - rate E[y] + 2 T + log Z,

    with 2 T + log Z formed from z (R - 1) and log(K_gamma(z) e^z), which do not cancel. In nats, elementwise;
    `rate` broadcasts against `rho` and `tau`.
    """
    h, log_h, gamma_limit = _half_argument(order, rho, tau)
    state, log_k = order._climb(h, log_h, logarithm=True)
    relative = rate / rho
    gamma_part = order.nu * (jnp.log(relative) + 1 - relative)
    # log_k is log(2 h^gamma K_gamma / Gamma(gamma)) + log Gamma(base) for small h, log(K_gamma e^z) for
    # large.
    small = (2 - relative) * state.half + log_k - order._log_gamma_base
    large = state.excess - relative * state.half + math.log(2) - order.log_gamma + order.nu * log_h + log_k
    tau_part = jnp.where(h < 0.5, small, large)
    return gamma_part + jnp.where(gamma_limit, 0.0, tau_part)

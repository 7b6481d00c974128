"""Bessel functions K_nu of an arbitrary real order, with derivatives in the order and in the argument.

With w = sqrt(x^2 + nu^2) and the saddle point t* = asinh(nu/x), the integral representation reads

    K_nu(x) = 1/2 exp(nu t* - w) int exp(-(w - nu) (cosh d - 1) - nu (exp(d) - 1 - d)) dd,

an integrand that is analytic in the strip |Im d| < pi/2, so the trapezoidal rule converges geometrically in
the number of nodes. All results are averages under the same integrand; partial integration rearranges them
into sums without cancellation. Below `_SMALL` the leading terms of the power series are exact to rounding.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float, Int

Values = Float[Array, "..."]

# Per precision: argument below which the leading terms of the series suffice; logarithm of the smallest
# contribution that counts; number of nodes, so that their distance stays below pi^2 / (digits in nats) on the
# widest window, about 45 in float64 and 28 in float32.
_SMALL = {"float32": 6e-5, "float64": 2e-8}
_REACH = {"float32": 20.0, "float64": 40.0}
_NODES = {"float32": 56, "float64": 176}
_UNROLL = 4
# Below this value of nu^2 times the curvature of log K_nu in nu, an even function, its slope is nu times its
# curvature: the next term is less than half of that value.
_EVEN = {"float32": 2e-6, "float64": 1e-13}
# Where the second term of the series, relatively (x/2)^(2 nu), has vanished for x below _SMALL.
_ONE_TERM = 0.95


class Bessel(NamedTuple):
    """K_nu at x, as its users need it."""

    log_kve: Values  # log(K_nu(x) e^x)
    ratio: Values  # R = K_(nu-1)(x) / K_nu(x)
    excess: Values  # x (R - 1)
    remainder: Values  # 2 x (R - 1) + 2 nu - 1, which vanishes as x grows
    order_slope: Values  # d log K_nu(x) / d nu
    log_scaled: Values  # log((x/2)^nu K_nu(x) e^x), finite as x vanishes
    scaled_slope: Values  # d log((x/2)^nu K_nu(x)) / d nu


class _Second(NamedTuple):
    """Second derivatives of log K: of itself in the order, and of the step from nu - 1 to nu in both arguments."""

    curvature: Values  # d^2 log K_nu / d nu^2
    ratio_slope: Values  # d log R / d nu
    scaled_ratio_x: Values  # x dR/dx


def _horner(coefficients: np.ndarray, x: Values) -> Values:
    value = jnp.full_like(x, float(coefficients[-1]))
    for c in coefficients[-2::-1]:
        value = value * x + float(c)
    return value


def _economised(series: np.ndarray) -> np.ndarray:
    """Return the polynomial of degree 13 that interpolates a power series on [0, 0.91]."""
    fit = np.polynomial.Chebyshev.interpolate(np.polynomial.Polynomial(series), 13, domain=[0.0, _ONE_TERM**2 + 1e-3])
    return fit.convert(kind=np.polynomial.Polynomial).coef


_K = np.arange(1, 40)
# Of nu^2 on [0, 0.91], without the singularity at nu = 1 so that few terms suffice:
# (log Gamma(1-nu) - log Gamma(1+nu)) / (2 nu) - atanh(nu)/nu
#   = euler - 1 + sum_k (zeta(2k+1) - 1) nu^(2k)/(2k+1)
_ODD_ZETA = _economised(np.concatenate([[np.euler_gamma - 1], scipy.special.zetac(2 * _K + 1) / (2 * _K + 1)]))
# log(pi nu / sin(pi nu)) + log(1 - nu^2) = sum_k (zeta(2k) - 1) nu^(2k)/k
_EVEN_ZETA = _economised(np.concatenate([[0.0], scipy.special.zetac(2 * _K) / _K]))
_ATANH = 1.0 / (2 * np.arange(12) + 1)
# log(sinh(y)/y) = sum_k (-1)^(k+1) zeta(2k)/k (y/pi)^(2k)
_SINHC = np.concatenate(
    [[0.0], (-1.0) ** (_K[:11] + 1) * scipy.special.zeta(2 * _K[:11]) / _K[:11] / math.pi ** (2 * _K[:11])]
)

# log y - psi(y) - 1/(2 y) = sum_k B_2k / (2 k y^(2k))
_STIRLING = scipy.special.bernoulli(18)[2::2] / np.arange(2, 20, 2)


def _log_sinhc(y: Values) -> Values:
    """Return log(sinh(y)/y) for y >= 0."""
    small = y < 0.5
    near = _horner(_SINHC, jnp.where(small, y, 0.0) ** 2)
    far = jnp.where(small, 1.0, y)
    return jnp.where(small, near, far + jnp.log(-jnp.expm1(-2 * far)) - jnp.log(2 * far))


def _shift(nu: Values) -> Values:
    """Return (log Gamma(1-nu) - log Gamma(1+nu)) / (2 nu) for 0 <= nu <= 0.95."""
    small = nu < 0.2
    near = jnp.where(small, nu, 0.0)
    far = jnp.where(small, 0.5, nu)
    atanh = jnp.where(small, _horner(_ATANH, near * near), jnp.arctanh(far) / far)
    return atanh + _horner(_ODD_ZETA, nu * nu)


def _log_two_terms(nu: Values, log_h: Values) -> Values:
    """Return log K_nu for small arguments and 0 <= nu <= 0.95, an even analytic function of nu."""
    span = -log_h - _shift(nu)
    return 0.5 * (_horner(_EVEN_ZETA, nu * nu) - jnp.log1p(-nu * nu)) + jnp.log(span) + _log_sinhc(nu * span)


def _scaled_two_terms(nu: Values, log_h: Values) -> Values:
    """Return h^nu K_nu for small arguments and 0 <= nu <= 0.95."""
    shift = _shift(nu)
    span = -log_h - shift
    y = jnp.maximum(2 * nu * span, jnp.finfo(nu.dtype).tiny)
    log_scale = 0.5 * (_horner(_EVEN_ZETA, nu * nu) - jnp.log1p(-nu * nu)) - nu * shift
    return jnp.exp(log_scale) * span * (-jnp.expm1(-y) / y)


def _digamma(nu: Values) -> Values:
    """Return the digamma function for nu > 0.9, smooth enough to be differentiated."""
    y = nu + 8
    inverse = 1 / (y * y)
    lifted = jnp.log(y) - 0.5 / y - inverse * _horner(_STIRLING, inverse)
    return lifted - sum(1 / (nu + k) for k in range(8))


def _small_slopes(nu: Values, log_h: Values) -> tuple[Values, Values]:
    """Return the derivatives of log(h^nu K_nu) and log K_nu in the order for small arguments and nu >= 0.

    Neither follows from the other: log h would hide the first at large orders and the second at small ones.
    """
    one = nu > _ONE_TERM
    inner, outer = jnp.where(one, 0.5, nu), jnp.where(one, nu, 1.0)
    two = jax.jvp(lambda v: _log_two_terms(v, log_h), (inner,), (jnp.ones_like(inner),))[1]
    digamma = _digamma(outer)
    return jnp.where(one, digamma, two + log_h), jnp.where(one, digamma - log_h, two)


def _riccati(nu: Values, x: Values, ratio: Values) -> Values:
    """Return x dR/dx = x (R^2 - 1) + (2 nu - 1) R, which keeps its sign and digits close to nu = 1/2."""
    return (x * ratio) * ratio + (2 * nu - 1) * ratio - x


def _small(nu: Values, x: Values) -> tuple[Bessel, _Second]:
    """Return everything for x below _SMALL."""
    h = 0.5 * x
    log_h = jnp.log(h)
    one = nu > _ONE_TERM
    few = jnp.where(one, 0.5, nu)
    log_scaled = jnp.where(
        one,
        jax.lax.lgamma(jnp.maximum(nu, _ONE_TERM)) - math.log(2),
        jnp.log(_scaled_two_terms(few, log_h)),
    )
    # Not from log_scaled where nu is small: nu log h may exceed both.
    log_k = jnp.where(one, log_scaled - nu * log_h, _log_two_terms(few, log_h))
    orders = jnp.stack([jnp.abs(nu - 1), nu])
    # Gamma is needed up to 1.95 only: from there on the ratio is h / (nu - 1).
    gamma = 0.5 * jnp.exp(jax.lax.lgamma(jnp.clip(orders, _ONE_TERM, 2.0)))
    two = _scaled_two_terms(jnp.minimum(orders, _ONE_TERM), log_h)
    scaled = jnp.where(orders > _ONE_TERM, gamma, two)
    # h^(2 nu - 1), the nearest of 1/h, 1 and h split off: rounding of log h counts times the exponent left.
    power = 2 * jnp.minimum(nu, 1.0) - 1
    whole = jnp.round(power)
    quotient = jnp.exp((power - whole) * log_h) * (scaled[0] / scaled[1])
    quotient = jnp.where(whole > 0, quotient * h, jnp.where(whole < 0, quotient / h, quotient))
    ratio = jnp.where(nu > 1 + _ONE_TERM, h / jnp.maximum(nu - 1, 0.5), quotient)
    excess = x * ratio - x

    log_h2 = jnp.broadcast_to(log_h, orders.shape)
    (slope, plain), (curvature, _) = jax.jvp(lambda v: _small_slopes(v, log_h2), (orders,), (jnp.ones_like(orders),))
    return (
        Bessel(
            log_k + x,
            ratio,
            excess,
            2 * excess + 2 * nu - 1,
            plain[1],
            log_scaled + x,
            slope[1],
        ),
        _Second(
            curvature[1],
            jnp.where(nu < 1, 2 * log_h - slope[0], slope[0]) - slope[1],
            # R is h / (nu - 1) at large orders, where the terms of Riccati's equation would cancel.
            jnp.where(nu > 1 + _ONE_TERM, ratio, _riccati(nu, x, ratio)),
        ),
    )


def _quadrature(nu: Values, x: Values) -> tuple[Bessel, _Second]:
    """Return everything for x above _SMALL."""
    name = str(x.dtype)
    reach, nodes = _REACH[name], _NODES[name]
    q = nu / x
    root = jnp.sqrt(1 + q * q)
    w = x * root
    gap = x * (x / (w + nu))  # w - nu
    saddle = jnp.log1p(q + q * (q / (1 + root)))  # asinh(nu / x)

    # The window only has to be wide enough: it is not differentiated.
    right = 2 * jnp.arcsinh(jnp.sqrt(0.5 * reach / w))
    c = reach / jnp.maximum(nu - 1, 1e-3)
    left = jnp.minimum(2 * jnp.arcsinh(jnp.sqrt(0.5 * reach / gap)), 0.5 * (c + jnp.sqrt(c * c + 8 * c)))
    left, right = jax.lax.stop_gradient((left, right))
    step = (left + right) / (nodes - 1)
    large = w > 1

    root_gap, root_w = jnp.sqrt(0.5 * gap), jnp.sqrt(0.5 * w)

    def node(k: Values) -> tuple[Values, ...]:
        d = k * step - left
        m = jnp.expm1(d)
        inverse = jnp.exp(-d)  # not 1 / (1 + m): on the left m is -1 to rounding
        g = jnp.exp(-((root_gap * m) ** 2) * inverse - nu * (m - d))
        cosh1 = 0.5 * m * m * inverse
        tanh = m / (m + 2)
        # sinh d - d, by its series where the difference would cancel
        dd = jnp.minimum(d * d, 1.0)
        series = jnp.full_like(d, 1 / math.factorial(17))
        for n in range(15, 1, -2):
            series = series * dd + 1 / math.factorial(n)
        series = series * d * dd
        sinh = jnp.where(jnp.abs(d) < 1, series, m - cosh1 - d)
        odd = jnp.where(large, -sinh, d)
        # The width of the integrand, about 1/sqrt(w), keeps all of them off the smallest numbers.
        scaled_d, scaled_drop = root_w * d, root_w * m * inverse
        scaled_cosh1 = (root_w * m) ** 2 * inverse
        return (
            g,
            g * scaled_cosh1,
            g * scaled_cosh1 * scaled_cosh1,
            g * (0.5 * tanh * tanh + nu * tanh * cosh1),
            g * odd,
            g * scaled_d,
            g * scaled_d * scaled_d,
            g * scaled_drop,
            g * (scaled_d * scaled_drop),
        )

    def body(k: Int[Array, ""], sums: tuple[Values, ...]) -> tuple[Values, ...]:
        for offset in range(_UNROLL):
            terms = node(jnp.asarray(k * _UNROLL + offset, x.dtype))
            sums = tuple(s + t for s, t in zip(sums, terms, strict=True))
        return sums

    zero = jnp.zeros_like(x)
    total, *rest = jax.lax.fori_loop(0, nodes // _UNROLL, body, (zero,) * 9)
    cosh, cosh_square, tail, odd, mean, square, drop, drop_mean = (value / total for value in rest)

    log_area = jnp.log(0.5 * step * total) - nu * (nu / (w + x))
    log_lift = jnp.log(0.5 * (nu + w))  # saddle + log(x/2)
    ratio = x / (nu + w) + (x / w) * (cosh / w)
    far = 2 * nu * (nu / (x + w)) - (nu / w) ** 2 - 2 * (x / w) ** 2 * tail
    excess = jnp.where(x > 1, 0.5 * (far + 1) - nu, x * (ratio - 1))
    remainder = jnp.where(x > 1, far, 2 * excess + 2 * nu - 1)
    offset = odd - jnp.where(large, (nu / w) * (cosh / w), 0.0)
    # d log R / d nu is the covariance of d and exp(-d) - 1 = -m/(1+m) over the mean of exp(-d).
    ratio_slope = (drop * mean - drop_mean) / (0.5 * w) / (1 - drop / root_w)
    curvature = (square - mean * mean) / (0.5 * w)
    # dR/dx is minus the covariance of exp(-t) and cosh t; partial integration leaves moments of cosh d - 1,
    # whose terms cancel at nu = 1/2 only. There, as long as x is small, Riccati's equation does better.
    spread = cosh_square - (1 + nu / w) * cosh * cosh
    covariance = (x / (nu + w)) * (cosh * (nu / w) * (2 - (gap / w) / w) - (x / w) ** 2 * (spread / w))
    scaled_ratio_x = jnp.where((x < 1) & (nu < 1), _riccati(nu, jnp.minimum(x, 1), ratio), covariance)
    # At the smallest orders the odd terms of the sum cancel.
    order_slope = jnp.where((nu < 0.1) & (nu * nu * curvature < _EVEN[name]), nu * curvature, saddle + offset)
    return (
        Bessel(
            nu * saddle + log_area,
            ratio,
            excess,
            remainder,
            order_slope,
            nu * log_lift + log_area,
            log_lift + offset,
        ),
        _Second(curvature, ratio_slope, scaled_ratio_x),
    )


@jax.jit
def _everything(nu: Values, x: Values) -> tuple[Bessel, _Second]:
    limit = _SMALL[str(x.dtype)]
    near = x < limit
    small = _small(nu, jnp.minimum(x, limit))
    moderate = _quadrature(nu, jnp.maximum(x, limit))
    return jax.tree.map(lambda a, b: jnp.where(near, a, b), small, moderate)


@jax.custom_jvp
def bessel(nu: Values, x: Values) -> Bessel:
    """Return K_nu(x) in all its forms for 0 <= nu, 0 < x of one shape and dtype."""
    return _everything(nu, x)[0]


@bessel.defjvp
def _bessel_jvp(primals: tuple[Values, Values], tangents: tuple[Values, Values]) -> tuple[Bessel, Bessel]:
    nu, x = primals
    d_nu, d_x = tangents
    value = bessel(nu, x)
    second = _everything(nu, x)[1]
    largest = jnp.finfo(x.dtype).max
    ratio, excess = value.ratio, value.excess
    # Close to the smallest arguments derivatives leave the range of the type: a finite value keeps 0 inf
    # away.
    ratio_x = jnp.clip(second.scaled_ratio_x / x, -largest, largest)
    ratio_nu = jnp.clip(ratio * second.ratio_slope, -largest, largest)
    excess_x = (ratio - 1) * jnp.where(x > 1, 0.0, 1.0) + jnp.where(x > 1, excess / x, 0.0) + second.scaled_ratio_x
    excess_nu = x * ratio_nu
    d_excess = excess_x * d_x + excess_nu * d_nu
    # Not excess + nu where its leading term is -nu.
    slope_x = jnp.clip(-jnp.where(x > 1, 0.5 * (value.remainder + 1), excess + nu) / x, -largest, largest)
    cross = jnp.clip(-(excess_nu + 1) / x, -largest, largest)
    return value, Bessel(
        slope_x * d_x + value.order_slope * d_nu,
        ratio_x * d_x + ratio_nu * d_nu,
        d_excess,
        2 * d_excess + 2 * d_nu,
        cross * d_x + second.curvature * d_nu,
        -jnp.clip(jnp.where(x > 1, excess / x, ratio - 1), -largest, largest) * d_x + value.scaled_slope * d_nu,
        -(ratio_nu * d_x) + second.curvature * d_nu,
    )

"""Host-side tables for Bessel functions of one fixed order: Temme's series and Chebyshev coefficients.

Everything here is NumPy in extended precision where the platform has it; nothing depends on the argument, so
it runs once per order.
"""

import math
from functools import lru_cache

import numpy as np
import scipy.special

# Temme's series is used below this argument, the expansion in 1 / (z + 1) above.
SPLIT = 1.0
# Terms of the polynomials in z^2/4 below SPLIT and in 2/(z + 1) above, to the rounding level of each
# precision.
TERMS = {"float32": (5, 10), "float64": (8, 23)}
# Length of the power series that the former replace, and the largest argument z^2/4.
_SERIES = 14
_TOP = (SPLIT / 2) ** 2

Vector = np.ndarray


def log_gamma_slope(nu: float) -> float:
    """Return (log Gamma(1 + nu) - log Gamma(1 - nu)) / (2 nu) for |nu| <= 1/2, exact at nu = 0."""
    k = np.arange(1, 40)
    return float(-np.euler_gamma - np.sum(scipy.special.zeta(2 * k + 1) * nu ** (2.0 * k) / (2 * k + 1)))


def _economise(series: Vector, terms: int) -> Vector:
    """Return the `terms` coefficients of the polynomial closest to a power series on [0, _TOP]."""
    count = 2 * terms
    theta = math.pi * (np.arange(count, dtype=np.longdouble) + 0.5) / count
    u = np.cos(theta)
    values = np.polynomial.polynomial.polyval((u + 1) * (_TOP / 2), series)
    chebyshev = np.cos(np.arange(terms)[:, None] * theta) @ values * (np.longdouble(2) / count)
    chebyshev[0] /= 2
    in_u = np.polynomial.Polynomial(np.polynomial.chebyshev.cheb2poly(chebyshev))
    return in_u(np.polynomial.Polynomial(np.array([-1, 2 / _TOP], np.longdouble))).coef


@lru_cache(maxsize=64)  # every fit asks for the same few orders, and the tables take longer than a short fit
def temme_series(mu: float, terms: int) -> dict[str, Vector]:
    """Return the coefficients of h^mu K_mu and h^(1-mu) K_(1-mu), h = z/2, for 0 <= mu <= 1/2.

    With t = h^2 and phi = (t^mu - 1) / mu (which stays regular at mu = 0),

        h^mu K_mu         = f0(t) + phi f1(t)
        h^(1-mu) K_(1-mu) = q(t) - h^(2-2mu) (s0(t) + phi s1(t)),

    each a polynomial in t. For z <= 1 no sum loses more than a bit.
    """
    mu_ = np.longdouble(mu)
    plus, minus = scipy.special.gamma(1 + mu), scipy.special.gamma(1 - mu)
    slope = log_gamma_slope(mu)
    difference = minus * math.expm1(2 * mu * slope) / mu if mu > 0 else 2 * slope
    # Each row: (part free of phi, factor of phi). Temme's p, q, f scaled by h^mu.
    p = np.array([plus / 2, 0], np.longdouble)
    q = np.array([minus / 2, mu * minus / 2], np.longdouble)
    f = np.array([difference / 2, -minus / 2], np.longdouble)
    q_of_power = np.longdouble(minus) / 2  # q as a multiple of t^mu, kept apart: it must not be formed by 1 + mu phi
    rows, q_rows = [f], [q_of_power]
    factorial = np.longdouble(1)
    for k in range(1, _SERIES + 1):
        f = (k * f + p + q) / (k * k - mu_ * mu_)
        p, q, q_of_power = p / (k - mu_), q / (k + mu_), q_of_power / (k + mu_)
        factorial *= k
        rows.append(f / factorial)
        q_rows.append(q_of_power / factorial)
    table = np.array(rows)
    derivative = np.arange(1, _SERIES + 1)[:, None] * table[1:]  # sum over k of k f_k t^(k-1) / k!
    series = {
        "f0": table[:_SERIES, 0],
        "f1": table[:_SERIES, 1],
        "q": np.array(q_rows[:_SERIES]),
        "s0": derivative[:, 0],
        "s1": derivative[:, 1],
    }
    return {name: _economise(values, terms) for name, values in series.items()}


def scaled_excess(nu: float, z: Vector) -> tuple[Vector, Vector]:
    """Return z (K_(nu-1)/K_nu - 1) and log(K_nu(z) e^z sqrt(2 z / pi)) for moderate and large z.

    Trapezoidal rule for K_nu(z) = 1/2 int exp(nu t - z cosh t) dt about its saddle point sinh t = nu / z; the
    leading parts of the ratio are split off by partial integration, so both results keep their digits as z
    grows.
    """
    order, x = np.longdouble(nu), np.asarray(z, np.longdouble)[:, None]
    w = np.sqrt(x * x + order * order)
    reach = 55.0  # exp(-55) is below the rounding level of extended precision
    right = 2 * np.arcsinh(np.sqrt(reach / (2 * w)))
    left = 2 * np.arcsinh(np.sqrt(reach * (w + order) / 2) / x)
    nodes = 400
    delta = -left + (left + right) * np.arange(nodes) / (nodes - 1)
    step = ((left + right) / (nodes - 1))[:, 0]
    m = np.expm1(delta)
    cosh1 = 0.5 * m * m / (1 + m)
    g = np.exp(-(x * x / (w + order)) * cosh1 - order * (m - delta))
    total = g.sum(1)
    tanh = m / (m + 2)
    remainder = -(g * (0.5 * tanh * tanh + order * tanh * cosh1)).sum(1) / total
    x, w = x[:, 0], w[:, 0]
    twice = 2 * order**2 / (x + w) - (order / w) ** 2 + 2 * (x / w) ** 2 * remainder
    saddle = order * np.arcsinh(order / x) - order**2 / (w + x)
    log_g = saddle + np.log(step / 2 * total * np.sqrt(x * (2 / np.longdouble(math.pi))))
    return (twice - 2 * order + 1) / 2, log_g


@lru_cache(maxsize=64)
def tail_expansion(nu: float, terms: int) -> tuple[Vector, Vector]:
    """Return the coefficients in powers of u = 4/(z+1) - 1, z >= 1, of what `scaled_excess` returns."""
    count = 64
    theta = math.pi * (np.arange(count) + 0.5) / count
    s = (np.cos(theta) + 1) / 2
    values = np.stack(scaled_excess(nu, (SPLIT + 1) / s - 1), axis=1).astype(float)
    cosines = np.cos(np.arange(terms)[:, None] * theta[None])
    chebyshev = cosines @ values * (2.0 / count)
    chebyshev[0] /= 2
    powers = [np.polynomial.chebyshev.cheb2poly(column) for column in chebyshev.T]
    return powers[0], powers[1]

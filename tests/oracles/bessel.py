"""Modified Bessel functions in arbitrary precision: the oracle of `special` and `gig`."""

import mpmath as mp

DIGITS = 40


def _hankel(nu, x):
    """sqrt(2 x/pi) K_nu(x) e^x by its asymptotic series, which mpmath's own evaluation shuns for huge x."""
    total = term = mp.mpf(1)
    for k in range(1, 60):
        term *= (4 * nu * nu - (2 * k - 1) ** 2) / (8 * k * x)
        total += term
    return total


def log_kve(nu, x):
    """log(K_nu(x) e^x); the series is good to 60 terms of (2500/x)^k, far below DIGITS for x > 1e7."""
    nu, x = mp.mpf(nu), mp.mpf(x)
    if x > 1e7:
        return mp.log(_hankel(nu, x)) + mp.log(mp.pi / (2 * x)) / 2
    return mp.log(mp.besselk(nu, x)) + x


def ratio(nu, x):
    """K_{nu-1}(x) / K_nu(x)."""
    return mp.exp(log_kve(mp.mpf(nu) - 1, x) - log_kve(nu, x))


def precise(function, *arguments):
    """`function` at float arguments, with enough digits for differences of results at huge arguments."""
    with mp.workdps(DIGITS + 2 * max(0, int(mp.log10(abs(mp.mpf(float(arguments[-1]))) + 1)))):
        return function(*(mp.mpf(float(a)) for a in arguments))


def excess(nu, x):
    """x (R - 1)."""
    return x * (ratio(nu, x) - 1)


def partial(function, which, order=1):
    """Derivative of `function`(nu, x) in nu (0) or x (1), by central differences at high precision."""

    def derivative(nu, x):
        # h^2 truncation against 10^-digits / h^order rounding: 60 digits leave more than 20 of them
        with mp.workdps(mp.mp.dps + 40):
            h = mp.mpf(10) ** -18 * (x if which == 1 else 1)

            def at(step):
                return function(nu + step, x) if which == 0 else function(nu, x + step)

            if order == 1:
                return (at(h) - at(-h)) / (2 * h)
            return (at(h) - 2 * at(mp.mpf(0)) + at(-h)) / (h * h)

    return derivative

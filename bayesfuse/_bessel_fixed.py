"""Bessel functions K_nu of one fixed order, a few exponentials per entry."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bayesfuse._bessel_host import SPLIT, TERMS, tail_expansion, temme_series
from bayesfuse._elementary import log_normal
from bayesfuse._module import Module

Real = Float[Array, "..."] | Float[np.ndarray, "..."] | np.floating | float | int

# Upward recurrences up to this length are written out; longer ones run as a loop to keep compilation short.
_UNROLL = 4


def _polynomial(coefficients: Float[Array, " power"], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return sum_k coefficients[k] x^k by Horner's rule."""
    value = jnp.full_like(x, coefficients[-1])
    for k in range(coefficients.shape[0] - 2, -1, -1):
        value = value * x + coefficients[k]
    return value


def _expm1_over(y: Float[Array, "..."], exp_y: Float[Array, "..."], mu: Float[Array, ""]) -> Float[Array, "..."]:
    """Return (exp(y) - 1) / mu for y <= 0, with exp(y) already known."""
    terms = 7 if y.dtype == jnp.float32 else 14
    inner = jnp.maximum(y, -0.5)  # the series is used on [-1/2, 0] only
    series = jnp.full_like(y, 1 / math.factorial(terms))
    for k in range(terms - 1, 0, -1):
        series = series * inner + 1 / math.factorial(k)
    return jnp.where(y > -0.5, inner * series, exp_y - 1) / mu


class _State(Module):
    """What one order of the recurrence hands to the next, at h = z/2."""

    ratio: Float[Array, "..."]  # R = K_(nu-1) / K_nu
    half: Float[Array, "..."]  # T = h R
    excess: Float[Array, "..."]  # z (R - 1)
    below: Float[Array, "..."]  # h / R, kept without dividing by R


class FixedOrder(Module):
    """Bessel functions K_nu of one order, prepared by `fixed_order`.

    All numbers that depend on the order are array leaves, so a compiled function that takes a `FixedOrder`
    is not traced again for another order of the same kind: the same dtype, the same integer `steps` =
    ceil(nu) - 1, and both or neither half-integer.
    """

    nu: Float[Array, ""]
    nu_minus_one: Float[Array, ""]
    log_gamma: Float[Array, ""]
    rungs: Float[Array, " step"]
    _log_rungs: Float[Array, ""]
    _log_gamma_base: Float[Array, ""]
    _mu: Float[Array, ""]
    _upper: Bool[Array, ""]
    _series: dict[str, Float[Array, " inner"]]
    _tail: tuple[Float[Array, " outer"], Float[Array, " outer"]]
    closed: bool = eqx.field(static=True)

    @property
    def steps(self) -> int:
        """Number of upward recurrences from the base order in (0, 1]."""
        return self.rungs.shape[0]

    def _input(self, x: Any) -> Float[Array, "..."]:
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating) or x.weak_type:
            return x.astype(self.nu.dtype)
        if x.dtype != self.nu.dtype:
            raise ValueError(
                f"argument of dtype {x.dtype}, but this order was prepared for {self.nu.dtype}; "
                f"use fixed_order(nu, {x.dtype})"
            )
        return x

    def _base(
        self, h: Float[Array, "..."], log_h: Float[Array, "..."]
    ) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
        """Return R and z (R - 1) of the base order, and 2 h^nu K_nu (meaningful for z < 1 only)."""
        if self.closed:
            return jnp.ones_like(h), jnp.zeros_like(h), jnp.full_like(h, math.sqrt(math.pi)) * jnp.exp(-2 * h)
        split = SPLIT / 2
        hs = jnp.minimum(h, split)
        t = hs * hs
        y = 2 * self._mu * jnp.minimum(log_h, math.log(split))
        power = jnp.exp(y)  # h^(2 mu)
        phi = _expm1_over(y, power, self._mu)
        root = hs / power  # h^(1 - 2 mu); taken before squaring, which would underflow
        c = self._series
        k_mu = _polynomial(c["f0"], t) + phi * _polynomial(c["f1"], t)
        k_one = _polynomial(c["q"], t) - hs * root * (_polynomial(c["s0"], t) + phi * _polynomial(c["s1"], t))
        scaled = root * k_mu
        inner = jnp.where(self._upper, scaled, k_one) / jnp.where(self._upper, k_one, scaled)
        outer = self._outer(h, 0)
        small = h < split
        ratio = jnp.where(small, inner, 1 + outer * (0.5 / jnp.maximum(h, split)))
        excess = jnp.where(small, 2 * hs * (inner - 1), outer)
        return ratio, excess, 2 * jnp.where(self._upper, k_one, k_mu)

    def _outer(self, h: Float[Array, "..."], which: int) -> Float[Array, "..."]:
        """Return z (R - 1) (0) or log(K_nu e^z sqrt(2 z/pi)) (1) of the base order for z >= 1."""
        u = (SPLIT + 1) / (jnp.maximum(h, SPLIT / 2) + 0.5) - 1
        return _polynomial(self._tail[which], u)

    def _climb(
        self, h: Float[Array, "..."], log_h: Float[Array, "..."], *, logarithm: bool = False
    ) -> tuple[_State, Float[Array, "..."]]:
        """Return the ratios at the full order and, if asked, a logarithm.

        For z < 1 that is log(2 h^nu K_nu) less the sum of the logarithms of the rungs; above, log(K_nu e^z).
        """
        ratio, excess, lead = self._base(h, log_h)
        state = _State(ratio=ratio, half=h * ratio, excess=excess, below=h / ratio)
        small = h < SPLIT / 2

        def step(rung: Float[Array, ""], now: _State) -> tuple[_State, Float[Array, "..."]]:
            below = rung + now.half
            ratio = h / below
            grown = _State(ratio=ratio, half=h * ratio, excess=-(2 * rung + now.excess) * ratio, below=below)
            return grown, jnp.where(small, 1 + now.half / rung, below / jnp.maximum(h, SPLIT / 2))

        product = jnp.where(small, lead, 1.0) if logarithm and not self.closed else jnp.ones_like(h)
        extra = jnp.zeros_like(h)
        if self.steps <= _UNROLL:
            for k in range(self.steps):
                state, factor = step(self.rungs[k], state)
                product = product * factor
        else:

            def body(
                k: Int[Array, ""], carry: tuple[_State, Float[Array, "..."]]
            ) -> tuple[_State, Float[Array, "..."]]:
                grown, factor = step(self.rungs[k], carry[0])
                return grown, carry[1] + jnp.log(factor) if logarithm else carry[1]

            state, extra = jax.lax.fori_loop(0, self.steps, body, (state, extra))
        if not logarithm:
            return state, extra
        outer = jnp.zeros_like(h) if self.closed else self._outer(h, 1)
        outer = outer + 0.5 * math.log(math.pi / 4) - 0.5 * log_h
        inner = jnp.where(small, 0.5 * math.log(math.pi) - 2 * h, 0.0) if self.closed else 0.0
        return state, jnp.log(product) + extra + jnp.where(small, inner, outer)

    def _halved(self, x: Any) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        h = jnp.maximum(0.5 * self._input(x), 4 * jnp.finfo(self.nu.dtype).tiny)
        return h, log_normal(h)

    @eqx.filter_jit
    def log_kve(self, x: Real) -> Float[Array, "..."]:
        """Return log(K_nu(x) e^x) for x > 0."""
        h, log_h = self._halved(x)
        _, value = self._climb(h, log_h, logarithm=True)
        below = 2 * h - self.nu * log_h + self._log_rungs - math.log(2)
        return value + jnp.where(h < SPLIT / 2, below, 0.0)

    @eqx.filter_jit
    def ratio(self, x: Real) -> Float[Array, "..."]:
        """Return R = K_{nu-1}(x) / K_nu(x) for x > 0."""
        return self._climb(*self._halved(x))[0].ratio

    @eqx.filter_jit
    def scaled_ratio_minus_one(self, x: Real) -> Float[Array, "..."]:
        """Return x (R - 1), which tends to 1/2 - nu for large x, without cancellation there."""
        return self._climb(*self._halved(x))[0].excess


def fixed_order(nu: float, dtype: Any = np.float32) -> FixedOrder:
    """Return the Bessel functions of order `nu` in `dtype`, with everything but the argument precomputed.

    The base order nu0 in (0, 1] (nu - nu0 an integer) is evaluated by Temme's series for z < 1 and by a
    polynomial in 2/(z+1) above; the recurrence K_(nu+1) = K_(nu-1) + (2 nu/z) K_nu climbs from there, in
    ratios, where it damps errors. Half-integer orders start from K_(1/2) in closed form.

    Parameters
    ----------
    nu
        Order, a real number in [0, 50].
    dtype
        float32 or float64: precision of the arguments and results.

    Raises
    ------
    ValueError
        If `nu` is outside [0, 50] or `dtype` is not one of the two.
    """
    kind = np.dtype(dtype)
    if kind.name not in TERMS:
        raise ValueError(f"dtype must be float32 or float64, got {kind.name}; cast the data first")
    nu = float(nu)
    if not 0 <= nu <= 50:
        raise ValueError(f"the order must lie in [0, 50], got {nu}; K_nu is even in nu, so pass |nu|")
    steps = max(math.ceil(nu) - 1, 0)
    base = nu - steps
    closed = base == 0.5
    mu = min(base, 1 - base)
    mu = mu if mu > 1e-30 else 0.0  # below, differences of Gamma functions would underflow
    small_terms, large_terms = TERMS[kind.name]
    series = {} if closed else temme_series(mu, small_terms)
    tail = (np.zeros(1), np.zeros(1)) if closed else tail_expansion(base, large_terms)
    rungs = base + np.arange(steps)
    with jax.enable_x64(kind == np.float64):

        def leaf(value: Any) -> Array:
            return jnp.asarray(np.asarray(value, dtype=np.float64), dtype=kind)

        return FixedOrder(
            nu=leaf(nu),
            nu_minus_one=leaf(nu - 1),
            log_gamma=leaf(math.lgamma(nu) if nu > 0 else math.inf),
            rungs=leaf(rungs),
            _log_rungs=leaf(np.sum(np.log(rungs))),
            _log_gamma_base=leaf(math.lgamma(base) if base > 0 else math.inf),
            _mu=leaf(max(mu, 1e-30)),
            _upper=jnp.asarray(base > 0.5),
            _series={name: leaf(value) for name, value in series.items()},
            _tail=(leaf(tail[0]), leaf(tail[1])),
            closed=closed,
        )

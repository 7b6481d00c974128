"""Bessel functions: against arbitrary precision over the whole box, with derivatives, and their laws."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import bessel as oracle

from bayesfuse._elementary import log_normal
from bayesfuse.special import fixed_order, kv_ratio, log_kve

# The box: decades of the argument, and the accuracy of ratio (relative) and logarithm (absolute).
BOX = {np.float32: (-35, 38), np.float64: (-300, 300)}
ACCURACY = {np.float32: 1e-5, np.float64: 1e-12}


def x64(dtype):
    return jax.enable_x64(dtype == np.float64)


def arguments(rng, dtype, count):
    """Half of them anywhere in the box, half where the methods meet and the functions bend."""
    low, high = BOX[dtype]
    wide = 10.0 ** rng.uniform(low, high, count // 2)
    return np.concatenate([wide, 10.0 ** rng.uniform(-9, 4, count - count // 2)]).astype(dtype)


def log_tolerance(dtype, reference):
    return np.maximum(ACCURACY[dtype], 4 * np.spacing(np.abs(reference).astype(dtype)).astype(float))


def reference(function, nu, x):
    return np.array([float(oracle.precise(function, n, a)) for n, a in zip(nu, x, strict=True)])


# Any order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_over_the_box(dtype, seed):
    rng = np.random.default_rng(seed)
    x = arguments(rng, dtype, 150)
    nu = np.where(rng.random(150) < 0.5, rng.uniform(0, 50, 150), 10.0 ** rng.uniform(-6, 1.69, 150))
    nu[:7] = nu[-7:] = [0, 0.5, 0.95, 1, 1.95, 2, 50]
    nu = nu.astype(dtype)
    with x64(dtype):
        logs, ratios = np.asarray(log_kve(nu, x)), np.asarray(kv_ratio(nu, x))
    assert logs.dtype == ratios.dtype == dtype
    expected = reference(oracle.log_kve, nu, x)
    assert np.all(np.abs(logs - expected) <= log_tolerance(dtype, expected))
    np.testing.assert_allclose(ratios, reference(oracle.ratio, nu, x), rtol=ACCURACY[dtype])


def derivative_points(seed, count):
    rng = np.random.default_rng(seed)
    x = 10.0 ** np.concatenate([rng.uniform(-12, 8, count - 4), [-200, -50, 40, 150]])
    nu = np.concatenate([10.0 ** rng.uniform(-2, 1.69, count - 5), [0.0, 0.3, 1.4, 0.7, 12.0]])
    return nu, x


@pytest.mark.parametrize(
    ("function", "exact"), [(log_kve, oracle.log_kve), (kv_ratio, oracle.ratio)], ids=["log_kve", "kv_ratio"]
)
def test_first_derivatives(x64, function, exact):
    nu, x = derivative_points(3, 40)
    both = jax.jit(jax.vmap(jax.grad(function, argnums=(0, 1))))(jnp.asarray(nu), jnp.asarray(x))
    forward = jax.jit(lambda nu, x, d_nu, d_x: jax.jvp(function, (nu, x), (d_nu, d_x))[1])
    for which in (0, 1):
        expected = reference(oracle.partial(exact, which), nu, x)
        # Derivatives in nu are sums of terms of order log x <= 500: 1e-12 of that in absolute terms.
        np.testing.assert_allclose(both[which], expected, rtol=1e-10, atol=1e-12 if which == 0 else 0)
        direction = (jnp.full(len(x), float(k == which)) for k in (0, 1))
        np.testing.assert_allclose(forward(nu, x, *direction), both[which], rtol=1e-13)


def test_first_derivatives_in_single_precision():
    """Over the orders and arguments where the terms of Riccati's equation are up to 4 nu^2/x times their sum."""
    rng = np.random.default_rng(8)
    nu = np.concatenate([rng.uniform(0, 50, 60), 10.0 ** rng.uniform(-6, 0, 30), [44.8, 1e-6, 0.5003]])
    x = np.concatenate([10.0 ** rng.uniform(-4.5, 2, 60), 10.0 ** rng.uniform(-12, 4, 30), [1.073, 0.9, 3.0]])
    nu, x = nu.astype(np.float32), x.astype(np.float32)
    ratio_nu, ratio_x, log_nu, log_x = jax.jit(
        lambda *p: sum((jax.vmap(jax.grad(f, (0, 1)))(*p) for f in (kv_ratio, log_kve)), ())
    )(nu, x)
    # Sums of 56 terms whose exponents, up to 20, are rounded: 20 eps and a few more, twofold in a covariance. In x
    # nu - 1/2 is what remains of terms of size one.
    eps = float(np.finfo(np.float32).eps)
    for value, exact, which, rtol in (
        (ratio_x, oracle.ratio, 1, 80 * eps + 4 * eps / np.maximum(np.abs(2 * nu.astype(float) - 1), eps)),
        (log_x, oracle.log_kve, 1, 80 * eps),
        # A covariance of variables of width nu^(-1/2) about a mean rounded to eps times the exponent.
        (ratio_nu, oracle.ratio, 0, 20 * eps * (1 + 50**0.5 * 6)),
        # An even function of nu: by its curvature as long as nu^2 times that is below 2e-6, then a sum of odd terms
        # of size eps next to sqrt(2e-6).
        (log_nu, oracle.log_kve, 0, 4 * eps / 2e-6**0.5),
    ):
        expected = reference(oracle.partial(exact, which), nu, x)
        assert np.all(np.abs(value - expected) <= rtol * np.abs(expected))


def test_ratio_at_small_orders_and_arguments_in_single_precision():
    """Where the power x^(2 nu - 1) is largest: the logarithm of x, near 80, is rounded to half of 8e-6."""
    rng = np.random.default_rng(9)
    nu = np.append(10.0 ** rng.uniform(-4, -0.5, 4000), 8.1028e-4).astype(np.float32)
    x = np.append(10.0 ** rng.uniform(-35, -28, 4000), 2.82e-35).astype(np.float32)
    ratio = np.asarray(kv_ratio(nu, x))
    with jax.enable_x64(True):  # 1e-12, as tested above
        expected = np.asarray(kv_ratio(nu.astype(float), x.astype(float)))
    np.testing.assert_allclose(ratio, expected, rtol=8e-6)
    assert ratio[-1] == pytest.approx(float(oracle.precise(oracle.ratio, nu[-1], x[-1])), rel=8e-6)


def test_second_derivatives(x64):
    nu, x = derivative_points(4, 14)
    x = np.clip(x, 1e-60, 1e8)  # beyond, 1/x^2 leaves the range

    hessian = jax.jit(jax.vmap(jax.hessian(log_kve, (0, 1))))(jnp.asarray(nu), jnp.asarray(x))
    in_nu, in_x = (reference(oracle.partial(oracle.log_kve, which, 2), nu, x) for which in (0, 1))
    np.testing.assert_allclose(hessian[0][0], in_nu, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(hessian[1][1], in_x, rtol=1e-9)
    # The mixed derivative, -nu/x^2 for large x, is a difference of terms of size 1/x.
    mixed = reference(oracle.partial(oracle.partial(oracle.log_kve, 1), 0), nu, x)
    for value in (hessian[0][1], hessian[1][0]):
        assert np.all(np.abs(value - mixed) <= 1e-9 * np.abs(mixed) + 1e-14 / x)


def test_finite_at_the_corners_of_the_box(dtype):
    low, high = BOX[dtype]
    nu, exponent = np.meshgrid([0, 1e-6, 0.05, 0.5, 0.95, 1, 1.95, 7, 50], [low, -10, -1, 0, 1, 10, high])
    with x64(dtype):
        nu, x = jnp.asarray(nu.ravel(), dtype), jnp.asarray(10.0 ** exponent.ravel(), dtype)
        for function in (log_kve, kv_ratio):
            value = function(nu, x)
            slopes = jax.jit(jax.vmap(jax.grad(function, argnums=(0, 1))))(nu, x)
            assert np.all(np.isfinite(value)) and np.all(np.isfinite(slopes))
    # K falls with x and grows with nu, at a fixed x; where that is lost to rounding the sign is not tested.
    assert np.all(np.asarray(value) > 0)


@given(nu=st.floats(0, 49), exponent=st.floats(-290, 290), near=st.floats(-3, 3), use_near=st.booleans())
@settings(max_examples=60)
def test_recurrence_and_symmetry(nu, exponent, near, use_near):
    """K_(nu+1) = K_(nu-1) + (2 nu/x) K_nu reads 1/R_(nu+1) = R_nu + 2 nu/x; and logarithms fit ratios."""
    with jax.enable_x64(True):
        x = 10.0 ** (near if use_near else exponent)
        upper, lower = 1 / float(kv_ratio(nu + 1, x)), float(kv_ratio(nu, x)) + 2 * nu / x
        assert upper == pytest.approx(lower, rel=2e-12)
        logs = float(log_kve(nu + 1, x)), float(log_kve(nu, x))
        # The difference of two logarithms, each within 4 ulp of itself.
        assert logs[0] - logs[1] == pytest.approx(np.log(upper), abs=2e-12 + 8 * np.spacing(max(map(abs, logs))))
        assert float(log_kve(-nu, x)) == logs[1]


def test_jit_vmap_and_broadcasting():
    nu, x = jnp.asarray([0.2, 3.0, 17.5]), jnp.asarray([1e-3, 0.7, 40.0, 1e6])
    table = log_kve(nu[:, None], x)
    assert table.shape == (3, 4)
    np.testing.assert_allclose(jax.jit(log_kve)(nu[:, None], x), table, rtol=1e-6)
    mapped = jax.vmap(lambda n: jax.vmap(lambda a: log_kve(n, a))(x))(nu)
    np.testing.assert_allclose(mapped, table, rtol=1e-6)
    assert log_kve(0.5, 2).dtype == jnp.float32  # Python numbers take JAX's default
    assert log_kve(np.float64(0.5), 2.0).dtype == jnp.float32


def test_outside_the_domain():
    assert float(log_kve(1.0, 0.0)) == np.inf
    assert np.all(np.isnan([log_kve(1.0, -1.0), kv_ratio(1.0, 0.0), kv_ratio(-0.5, 1.0), log_kve(1.0, np.nan)]))


# One fixed order ------------------------------------------------------------------------------------------

ORDERS = [0.0, 1e-4, 0.05, 0.2, 0.5, 0.51, 0.97, 1.0, 1.3, 2.5, 4.6, 12.5, 50.0]


@pytest.mark.parametrize("nu", ORDERS)
def test_fixed_order_over_the_box(dtype, nu):
    rng = np.random.default_rng(5)
    x = np.concatenate([arguments(rng, dtype, 30), 10.0 ** rng.uniform(-1, 1, 10), [1.0]]).astype(dtype)
    with x64(dtype):
        order = fixed_order(nu, dtype)
        logs, ratios, excesses = (
            np.asarray(f(jnp.asarray(x))) for f in (order.log_kve, order.ratio, order.scaled_ratio_minus_one)
        )
    assert logs.dtype == ratios.dtype == excesses.dtype == dtype
    nus = np.full(len(x), nu)
    # Beyond what is asked. In float32 the power z^(2 nu) costs up to 80 half ulp at the smallest arguments.
    accuracy = {np.float32: 5e-6, np.float64: 2e-13}[dtype]
    np.testing.assert_allclose(ratios, reference(oracle.ratio, nus, x), rtol=accuracy)
    expected = reference(oracle.log_kve, nus, x)
    assert np.all(np.abs(logs - expected) <= log_tolerance(dtype, expected))
    np.testing.assert_allclose(excesses, reference(oracle.excess, nus, x), rtol=accuracy, atol=16 * np.finfo(dtype).eps)


# One compilation for each kind: up to three rungs written out, eight in a loop, closed forms.
@given(nu=st.one_of(st.floats(0, 3), st.floats(8.01, 9), st.integers(0, 4).map(lambda k: k / 2)))
@settings(max_examples=20)
def test_fixed_order_agrees_with_any_order(nu):
    with jax.enable_x64(True):
        x = jnp.logspace(-250, 250, 101).at[:60].set(jnp.logspace(-4, 3, 60))
        order = fixed_order(nu, np.float64)
        np.testing.assert_allclose(order.ratio(x), kv_ratio(nu, x), rtol=5e-13)
        np.testing.assert_allclose(order.log_kve(x), log_kve(nu, x), rtol=1e-14, atol=2e-13)


def test_half_integer_orders_are_closed_forms(dtype):
    with x64(dtype):
        x = jnp.asarray(np.logspace(-3, 30, 12), dtype)
        half, three_halves = fixed_order(0.5, dtype), fixed_order(1.5, dtype)
        np.testing.assert_array_equal(half.ratio(x), 1)
        np.testing.assert_array_equal(half.scaled_ratio_minus_one(x), 0)
        np.testing.assert_allclose(three_halves.ratio(x), x / (1 + x), rtol=3 * np.finfo(dtype).eps)


@jax.jit
def slopes_in_x(nu, x):
    return tuple(jax.vmap(jax.grad(function, 1))(nu, x) for function in (kv_ratio, log_kve))


@pytest.mark.parametrize("nu", [0.2, 0.8, 3.3, 9.1])
def test_fixed_order_is_differentiable(x64, nu):
    order = fixed_order(nu, np.float64)
    x = jnp.asarray([1e-6, 0.01, 0.3, 0.999, 1.001, 5.0, 300.0])
    ratio, logs = jax.jit(lambda order, x: (jax.vmap(jax.grad(order.ratio))(x), jax.vmap(jax.grad(order.log_kve))(x)))(
        order, x
    )
    expected_ratio, expected_logs = slopes_in_x(jnp.full(7, nu), x)
    np.testing.assert_allclose(ratio, expected_ratio, rtol=1e-7)
    np.testing.assert_allclose(logs, expected_logs, rtol=1e-9)


def test_another_order_of_the_same_kind_is_not_traced_again(dtype):
    traces = []

    @jax.jit
    def evaluate(order, x):
        traces.append(order.steps)
        return order.ratio(x)

    with x64(dtype):
        x = jnp.asarray([0.1, 3.0], dtype)
        values = [evaluate(fixed_order(nu, dtype), x) for nu in (0.2, 0.7, 1.0, 0.03)]
    assert traces == [0]
    assert len({float(value[0]) for value in values}) == 4
    with x64(dtype):
        for nu in (0.5, 1.2, 1.9, 1.5, 7.25, 7.75):
            evaluate(fixed_order(nu, dtype), x)
    assert traces == [0, 0, 1, 1, 7]


def test_bad_orders_and_dtypes():
    for nu in (-0.1, 50.5, np.nan):
        with pytest.raises(ValueError, match="order"):
            fixed_order(nu)
    with pytest.raises(ValueError, match="float16"):
        fixed_order(0.2, np.float16)
    with pytest.raises(ValueError, match="float32"), jax.enable_x64(True):
        fixed_order(0.2, np.float64).ratio(jnp.ones(2, np.float32))


def test_logarithm_of_normal_numbers(dtype):
    rng = np.random.default_rng(6)
    info = np.finfo(dtype)
    x = np.concatenate([[info.tiny, 1, info.max], 2.0 ** rng.uniform(info.minexp, info.maxexp, 500)]).astype(dtype)
    x = np.concatenate([x, rng.uniform(0.5, 2, 500).astype(dtype)])
    with x64(dtype):
        value = np.asarray(log_normal(jnp.asarray(x)))
        slope = jax.grad(log_normal)(jnp.asarray(dtype(3)))
    exact = np.array([float(mp.log(mp.mpf(float(v)))) for v in x])
    # Next to 1 the logarithm keeps its relative accuracy: exponent 0, and the series alone.
    np.testing.assert_allclose(value, exact, rtol=4 * info.eps)
    assert float(slope) == pytest.approx(1 / 3, rel=float(info.eps))

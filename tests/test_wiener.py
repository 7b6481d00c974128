"""The Wiener filter against posterior algebra written out with matrices, and its laws as properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesfuse import wiener

DTYPES = [np.float32, np.float64]


def problem(seed, num_sources=3, shape=(5, 4), dtype=np.float64, spread=6.0):
    """Variances over `spread` decades with some exact zeros, a complex mixture and a noise variance."""
    rng = np.random.default_rng(seed)
    variances = 10.0 ** rng.uniform(-spread, spread, (num_sources, *shape))
    variances[rng.random(variances.shape) < 0.1] = 0.0
    X = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    noise = 10.0 ** rng.uniform(-spread, 0)
    return X.astype(np.result_type(dtype, np.complex64)), variances.astype(dtype), dtype(noise)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_sources", [1, 2, 4])
def test_posterior_of_a_gaussian_model(dtype, num_sources):
    """Oracle: the joint covariance of (s, x), conditioned on x with a linear solve bin by bin in float64."""
    X, variances, noise = problem(3, num_sources, dtype=dtype, spread=1.5)
    estimates, _ = wiener.filter(X, variances, noise)
    variance = wiener.posterior_variance(variances, noise)
    # den has num_sources additions, then a division and a product: (J + 4) half-ulps, doubled.
    # The oracle subtracts, so it loses eps64 * C / variance, at most 1e3 * 1e3 here.
    rtol = 2 * (num_sources + 4) * np.finfo(dtype).eps + 1e-9
    for index in np.ndindex(X.shape):
        C = np.diag(variances[(slice(None), *index)].astype(float))
        one = np.ones(num_sources)
        gain = C @ one / (one @ C @ one + float(noise))
        covariance = C - np.outer(gain, one @ C)
        np.testing.assert_allclose(estimates[(slice(None), *index)], gain * X[index], rtol=rtol)
        np.testing.assert_allclose(variance[(slice(None), *index)], np.diag(covariance), rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32 - 1), num_sources=st.integers(1, 5), noisy=st.booleans(), jax_in=st.booleans())
@settings(deadline=None, max_examples=40)
def test_estimates_and_noise_sum_to_the_mixture(dtype, seed, num_sources, noisy, jax_in):
    X, variances, noise = problem(seed, num_sources, dtype=dtype)
    variances[:, 0, 0] = 0.0
    noise = noise if noisy else 0.0
    with jax.enable_x64(dtype is np.float64):
        args = (jnp.asarray(X), jnp.asarray(variances)) if jax_in else (X, variances)
        estimates, rest = wiener.filter(*args, noise)
        assert isinstance(estimates, jax.Array) == jax_in and isinstance(rest, jax.Array) == jax_in
        total = np.asarray(estimates).sum(axis=0) + np.asarray(rest)
        unity = np.asarray(wiener.gains(args[1], noise)).sum(axis=0) + np.asarray(wiener.noise_gain(args[1], noise))
    assert estimates.dtype == X.dtype and rest.dtype == X.dtype
    # Each gain has relative error (J + 2) u, the sum adds J u, the terms add up to |X|: below (2 J + 4) eps.
    bound = (2 * num_sources + 4) * np.finfo(dtype).eps
    assert np.all(np.abs(total - X) <= bound * np.abs(X))
    assert np.all(np.abs(unity - 1) <= bound)
    if not noisy:
        np.testing.assert_array_equal(np.asarray(rest)[0, 0], X[0, 0])  # a silent bin is all noise
        np.testing.assert_array_equal(np.asarray(estimates)[:, 0, 0], 0)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-8, 8))
@settings(deadline=None, max_examples=30)
def test_scale_of_the_recording(dtype, seed, exponent):
    """filter(c X) = c filter(X) and posterior_variance scales with c^2, c = 1e-8..1e8."""
    X, variances, noise = problem(seed, dtype=dtype, spread=3.0)
    scale = 10.0**exponent
    estimates, rest = wiener.filter(X, variances, noise)
    scaled = wiener.filter((scale * X).astype(X.dtype), (scale**2 * variances).astype(dtype), dtype(scale**2 * noise))
    # The inputs are rounded after scaling: three roundings more than the operations on either side.
    rtol = 24 * np.finfo(dtype).eps
    np.testing.assert_allclose(scaled[0], scale * estimates, rtol=rtol)
    np.testing.assert_allclose(scaled[1], scale * rest, rtol=rtol)
    np.testing.assert_allclose(
        wiener.posterior_variance((scale**2 * variances).astype(dtype), dtype(scale**2 * noise)),
        scale**2 * wiener.posterior_variance(variances, noise),
        rtol=rtol,
    )


@pytest.mark.parametrize("jax_in", [False, True])
@pytest.mark.parametrize("level", [1e30, 1e-30])
def test_extreme_variances_in_float32(level, jax_in):
    """Neither a square of variances nor a difference is formed: exact ratios at 1e30 and at 1e-30."""
    variances = np.full((2, 1, 1), level, np.float32) * np.array([3.0, 1.0], np.float32)[:, None, None]
    kind = jnp.asarray if jax_in else np.asarray
    noise = np.float32(level)
    np.testing.assert_allclose(np.ravel(wiener.gains(kind(variances), noise)), [0.6, 0.2], rtol=1e-6)
    expected = np.array([0.6 * 2, 0.2 * 4]) * level
    np.testing.assert_allclose(np.ravel(wiener.posterior_variance(kind(variances), noise)), expected, rtol=1e-6)


def test_posterior_variance_of_a_dominant_source():
    """C = (1, 1e-12): 1 - 1/(1 + 1e-12) would be all rounding in float32; the product form keeps 6 digits."""
    variance = wiener.posterior_variance(np.array([1.0, 1e-12], np.float32)[:, None, None], 0.0)
    np.testing.assert_allclose(variance.ravel(), [1e-12, 1e-12], rtol=1e-6)


def test_channels_noise_per_bin_and_jit():
    X, variances, _ = problem(7)
    stereo = np.stack([X, 2 * X])
    noise = np.full((5, 1), 0.3)
    estimates, rest = wiener.filter(stereo, variances, noise)
    assert estimates.shape == (2, 3, 5, 4) and rest.shape == (2, 5, 4)
    np.testing.assert_allclose(estimates[1], 2 * estimates[0], rtol=1e-15)
    with jax.enable_x64(True):
        compiled, _ = jax.jit(wiener.filter)(stereo, variances, noise)
    np.testing.assert_allclose(compiled, estimates, rtol=1e-14)


def test_inputs_are_only_read():
    X, variances, noise = problem(1)
    for array in (X, variances):
        array.flags.writeable = False
    before = X.copy(), variances.copy()
    wiener.filter(X, variances, noise)
    wiener.posterior_variance(variances, noise)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(variances, before[1])


@pytest.mark.parametrize(
    ("variances", "noise", "message"),
    [
        (np.array([[[-1.0]]]), 0.0, "variances between -1.0"),
        (np.array([[[np.nan]]]), 0.0, "finite numbers"),
        (np.array([[[1.0]]]), -1.0, "noise between"),
        (np.array([[[1.0]]]), np.inf, "noise between"),
        (np.ones((2, 1, 1)), np.ones((3, 2)), "does not broadcast"),
    ],
)
def test_bad_input(variances, noise, message):
    with pytest.raises(ValueError, match=message):
        wiener.gains(variances, noise)


def test_bins_that_differ():
    with pytest.raises(ValueError, match="same transform"):
        wiener.filter(np.ones((3, 4), complex), np.ones((2, 3, 5)), 0.0)

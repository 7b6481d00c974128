"""The global signal-to-distortion ratio: against exact rational arithmetic, and its laws."""

from fractions import Fraction
from math import log10

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesfuse.metrics import sdr

DTYPES = [np.float32, np.float64]


def waveforms(seed, shape=(40,), level=-1.0):
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal(shape)
    return reference, reference + 10.0**level * rng.standard_normal(shape)


@pytest.mark.parametrize("jax_in", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_rational_arithmetic(dtype, jax_in):
    """[JVR16] eq. 6 without rounding: floats are rationals, and so is the ratio of two sums of squares."""
    reference, estimate = (x.astype(dtype) for x in waveforms(0))
    top = sum(Fraction(float(s)) ** 2 for s in reference)
    bottom = sum((Fraction(float(s)) - Fraction(float(e))) ** 2 for s, e in zip(reference, estimate, strict=True))
    with jax.enable_x64(dtype is np.float64):
        kind = jnp.asarray if jax_in else np.asarray
        value = sdr(kind(reference), kind(estimate))
    assert isinstance(value, jax.Array) == jax_in
    assert value.dtype == dtype
    # A relative error of the sums (40 additions of positive numbers, 3 operations each) becomes 4.35 dB times
    # it; the difference s - s~ is exact to u, ten times smaller than s, so its error counts tenfold.
    tolerance = 4.35 * 2 * (40 + 6) * float(np.finfo(dtype).eps)
    assert float(value) == pytest.approx(10 * log10(top / bottom), abs=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32 - 1), decades=st.integers(-18, 18), level=st.floats(-3, 2))
@settings(deadline=None, max_examples=60)
def test_scale_of_both_does_not_matter(dtype, seed, decades, level):
    reference, estimate = waveforms(seed, level=level)
    # A power of two scales without rounding, so nothing but the last step can differ.
    scale = 2.0 ** (3 * decades)
    reference, estimate = reference.astype(dtype), estimate.astype(dtype)
    plain = sdr(reference, estimate)
    scaled = sdr((reference * dtype(scale)), (estimate * dtype(scale)))
    assert scaled == pytest.approx(plain, abs=1e-5 if dtype is np.float32 else 1e-12)


@given(seed=st.integers(0, 2**32 - 1), gain=st.floats(0.0, 3.0))
@settings(deadline=None, max_examples=60)
def test_of_a_scaled_reference(seed, gain):
    """s~ = g s has ratio -20 log10 |1 - g|; a silent estimate (g = 0) has 0 dB, an exact one infinity."""
    reference, _ = waveforms(seed)
    if 0 < abs(1 - gain) < 1e-9:
        return
    expected = np.inf if gain == 1 else -20 * log10(abs(1 - gain))
    # The error of (1 - g) s is u |s|: relative 1e-16 / |1 - g|, at most 1e-7.
    assert sdr(reference, gain * reference) == pytest.approx(expected, abs=1e-5)


def test_limits_and_bad_values():
    tone = np.sin(np.arange(64.0))
    silence = np.zeros(64)
    assert sdr(tone, tone) == np.inf
    assert sdr(tone, silence) == 0.0
    assert np.isnan(sdr(silence, tone))
    assert np.isnan(sdr(silence, silence))
    for bad in (np.nan, np.inf):
        broken = tone.copy()
        broken[3] = bad
        assert np.isnan(sdr(tone, broken)) and np.isnan(sdr(broken, tone)) and np.isnan(sdr(broken, broken))
    # The items of a batch do not touch each other.
    np.testing.assert_array_equal(np.isnan(sdr(np.stack([tone, silence]), tone)), [False, True])


def test_channels_and_models():
    reference, estimate = waveforms(3, (2, 50))
    together = sdr(reference, estimate, axis=(-2, -1))
    assert together == pytest.approx(sdr(reference.ravel(), estimate.ravel()), abs=1e-12)
    per_channel = sdr(reference, estimate)
    assert per_channel.shape == (2,)
    assert per_channel[1] == pytest.approx(sdr(reference[1], estimate[1]), abs=1e-12)
    # A fixed reference against several models' estimates.
    np.testing.assert_allclose(sdr(reference[0], np.stack([estimate[0], 0 * estimate[0]]))[1], 0.0, atol=1e-12)


def test_long_float32_recordings_keep_their_digits():
    """100 s at 16 kHz with errors of 1e-4: a naive float32 accumulation would be off by whole decibels."""
    reference = np.ones(1_600_000, np.float32)
    estimate = reference + np.float32(2.0**-13)
    assert sdr(reference, estimate) == pytest.approx(20 * log10(2.0**13), abs=1e-4)


@pytest.mark.parametrize(
    ("reference", "estimate", "axis"),
    [
        (np.ones(4), np.ones(5), -1),
        (np.ones(0), np.ones(0), -1),
        (np.ones(4), np.ones(4), -2),
        (np.ones(4), np.ones(4), 0),
    ],
)
def test_bad_shapes(reference, estimate, axis):
    with pytest.raises(ValueError, match=r"align them|expected -1"):
        sdr(reference, estimate, axis=axis)

"""The global and the scale-invariant ratios: against exact rational arithmetic, and their laws."""

from fractions import Fraction
from math import log10

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesfuse.metrics import Reason, sdr, si_sar, si_sdr, si_sir

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


# Scale-invariant ratios --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jax_in", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_si_sdr_against_rational_arithmetic(dtype, jax_in):
    """[LWEH19] eq. 3 without rounding: |a s|^2 / |s~ - a s|^2 = c^2 / (|s|^2 |s~|^2 - c^2) with c = <s, s~>."""
    reference, estimate = (x.astype(dtype) for x in waveforms(0))
    s, e = ([Fraction(float(v)) for v in x] for x in (reference, estimate))
    c, ss, ee = (sum(a * b for a, b in zip(x, y, strict=True)) for x, y in ((s, e), (s, s), (e, e)))
    with jax.enable_x64(dtype is np.float64):
        kind = jnp.asarray if jax_in else np.asarray
        value = si_sdr(kind(reference), kind(estimate))
    assert isinstance(value, jax.Array) == jax_in
    assert value.dtype == dtype
    # As for `sdr`: the residual is ten times smaller than the estimate; the gain adds one more sum.
    tolerance = 4.35 * 4 * (40 + 6) * float(np.finfo(dtype).eps)
    assert float(value) == pytest.approx(10 * log10(c**2 / (ss * ee - c**2)), abs=tolerance)


@given(
    seed=st.integers(0, 2**32 - 1), gains=st.tuples(st.floats(-200, 200), st.floats(-200, 200)), level=st.floats(-3, 2)
)
@settings(deadline=None, max_examples=60)
def test_scale_of_either_does_not_matter(seed, gains, level):
    references, estimates = waveforms(seed, (3, 40), level=level)
    for measure in (si_sdr, si_sir, si_sar):
        scaled = measure(10.0 ** gains[0] * references, 10.0 ** gains[1] * estimates)
        np.testing.assert_allclose(scaled, measure(references, estimates), rtol=0, atol=1e-8)


@given(seed=st.integers(0, 2**32 - 1), sources=st.integers(2, 4), level=st.floats(-3, 1))
@settings(deadline=None, max_examples=60)
def test_errors_add_up(seed, sources, level):
    """The interference and the artefacts are orthogonal: their energies add up to that of the distortion."""
    references, estimates = waveforms(seed, (sources, 30), level=level)
    parts = 10 ** (-si_sir(references, estimates) / 10) + 10 ** (-si_sar(references, estimates) / 10)
    np.testing.assert_allclose(parts, 10 ** (-si_sdr(references, estimates) / 10), rtol=1e-8)


def test_orthogonal_parts_have_closed_formulas():
    place = np.eye(4)
    references = np.stack([place[0], place[0] + place[1]])
    estimate = 3.0 * place[0] + 0.5 * place[1] + 0.2 * place[2]
    estimates = np.stack([estimate, references[1]])
    assert si_sdr(references, estimates)[0] == pytest.approx(10 * log10(9 / 0.29))
    assert si_sir(references, estimates)[0] == pytest.approx(10 * log10(9 / 0.25))
    assert si_sar(references, estimates)[0] == pytest.approx(10 * log10(9 / 0.04))


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_limits_of_the_scale_invariant_ratios(kind):
    references, estimates = (kind(x) for x in waveforms(5, (2, 64)))
    assert (si_sdr(references, -3.0 * references) == np.inf).all()
    assert (si_sir(references[:1], estimates[:1]) == np.inf).all()
    twice = kind(np.asarray(references)[[0, 0]])
    assert (si_sir(twice, estimates) == np.inf).all() and np.isfinite(si_sar(twice, estimates)).all()
    place = kind(np.eye(4))
    assert si_sdr(place[0], place[1]) == -np.inf
    assert np.isnan(si_sdr(0 * references, estimates)).all() and np.isnan(si_sdr(references, 0 * estimates)).all()
    # Silent references add nothing; those that are not finite leave nothing.
    silent, broken = np.array(references), np.array(references)
    silent[1], broken[1, 3] = 0.0, np.nan
    np.testing.assert_array_equal(np.isnan(si_sar(kind(silent), estimates)), [False, True])
    assert float(si_sar(kind(silent), estimates)[0]) == pytest.approx(
        float(si_sar(references[:1], estimates[:1])[0]), abs=1e-4
    )
    assert np.isnan(si_sar(kind(broken), estimates)).all()
    np.testing.assert_array_equal(np.isnan(si_sdr(kind(broken), estimates)), [False, True])


def test_channels_models_and_gradients_of_the_scale_invariant_ratios():
    references, estimates = waveforms(6, (3, 2, 2, 50))
    together = si_sdr(references[0], estimates, axis=(-2, -1))
    assert together.shape == (3, 2)
    flat = si_sdr(references[0].reshape(2, -1), estimates.reshape(3, 2, -1))
    np.testing.assert_allclose(together, flat, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        si_sir(references[0], estimates, axis=(-2, -1))[1],
        si_sir(references[0].reshape(2, -1), estimates[1].reshape(2, -1)),
        rtol=0,
        atol=1e-10,
    )
    gradient = jax.grad(lambda e: si_sdr(jnp.asarray(references[0, 0, 0]), e))(jnp.asarray(estimates[0, 0, 0]))
    assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0


@pytest.mark.parametrize(
    ("shapes", "axis", "message"),
    [
        (((2, 4), (3, 4)), -1, "same number of sources"),
        (((4,), (4,)), -1, "same number of sources"),
        (((2, 4), (2, 5)), -1, "align them"),
        (((2, 3, 4), (2, 3, 4)), -2, "over the last axes"),
    ],
)
def test_bad_shapes_of_sources(shapes, axis, message):
    with pytest.raises(ValueError, match=message):
        si_sir(np.ones(shapes[0]), np.ones(shapes[1]), axis=axis)


def test_labels_of_reasons():
    assert [reason.label for reason in Reason][:3] == ["", "not_finite", "silent_reference"]

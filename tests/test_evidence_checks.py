"""Arithmetic on criteria: against SciPy, exact posteriors, and lines that are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bayesfuse.evidence_checks import calibration, learn_gap, rank_correlations


@given(st.integers(2, 9), st.integers(0, 10_000), st.booleans())
@settings(max_examples=60)
def test_rank_correlations_are_spearmans(models, seed, ties):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 3, models))
    if ties:
        a = np.round(a)
    found = rank_correlations(a, b)
    for i in range(3):
        if np.ptp(a[i]) == 0:
            assert np.isnan(found[i])
        else:
            assert found[i] == pytest.approx(stats.spearmanr(a[i], b[i]).statistic, abs=1e-12)
    # Only the ranks count.
    np.testing.assert_allclose(rank_correlations(a, np.exp(b)), found)
    np.testing.assert_allclose(rank_correlations(a, -b), -found)


def test_rank_correlations_refuse_what_has_no_rank():
    with pytest.raises(ValueError, match="two models"):
        rank_correlations(np.zeros((3, 1)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="NaN"):
        rank_correlations(np.array([1.0, np.nan]), np.zeros(2))


def conjugate(count, seed):
    """Recordings drawn from three exponential models of given rates; exact log likelihoods are the evidences."""
    rng = np.random.default_rng(seed)
    scales = np.array([1.0, 2.0, 4.0])
    prior = np.array([0.5, 0.2, 0.3])
    orders = rng.choice(3, size=count, p=prior)
    data = rng.exponential(scales[orders][:, None], (count, 4))
    return stats.expon.logpdf(data[:, None], scale=scales[:, None]).sum(-1), orders, np.log(prior)


def test_exact_posteriors_are_calibrated_and_distorted_ones_are_not():
    evidence, orders, log_prior = conjugate(3000, 0)
    found = calibration(evidence, orders, log_prior)
    assert found.p_value > 1e-3
    assert abs(found.confidence - found.hits) < 4 * np.sqrt(0.25 / 3000)
    assert abs(found.expected_order) < 4 * 0.8 / np.sqrt(3000)
    # A penalty of the later orders, and evidence that is counted twice.
    leaning = calibration(evidence - np.arange(3), orders, log_prior)
    assert leaning.p_value < 1e-6 and leaning.expected_order < -0.1
    sure = calibration(3 * evidence, orders, log_prior)
    assert sure.confidence > sure.hits + 0.05
    assert found.log_score > max(leaning.log_score, sure.log_score)


def test_calibration_refuses_orders_that_do_not_exist():
    with pytest.raises(ValueError, match="one of these orders"):
        calibration(np.zeros((2, 3)), [0, 3])


@given(st.floats(-5, 5), st.floats(-50, 50), st.integers(0, 1000))
@settings(max_examples=30)
def test_a_gap_on_a_line_is_found_and_taken_off(slope, constant, seed):
    rng = np.random.default_rng(seed)
    orders = [2, 8, 32]
    evidence = rng.normal(scale=100.0, size=(4, 5, 3))
    bound = evidence - constant - slope * np.array(orders)
    gap = learn_gap(bound, evidence, orders)
    assert gap.per_component == pytest.approx(slope, abs=1e-9)
    assert gap.constant == pytest.approx(constant, abs=1e-9)
    np.testing.assert_allclose(gap.corrected(bound, orders), evidence, atol=1e-8)
    # Of a recording, frames times as much.
    np.testing.assert_allclose(gap.corrected(bound.sum(1), orders, num_frames=5), evidence.sum(1), atol=1e-7)


def test_gap_explains_what_least_squares_does():
    rng = np.random.default_rng(0)
    orders = np.array([1, 2, 4, 8])
    gaps = 3.0 * orders + rng.normal(size=(50, 4))
    found = learn_gap(np.zeros((50, 4)), gaps, orders.tolist())
    line = stats.linregress(np.tile(orders, 50), gaps.ravel())
    assert found.explained == pytest.approx(line.rvalue**2)
    assert found.per_component == pytest.approx(line.slope)
    with pytest.raises(ValueError, match="different orders"):
        learn_gap(np.zeros((3, 2)), np.zeros((3, 2)), [4, 4])

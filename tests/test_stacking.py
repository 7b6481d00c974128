"""Stacking and pseudo-BMA+ against SciPy, analytic cases, and the laws they must obey."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp

from bayesfuse.stacking import pseudo_bma_weights, stacking_weights


def score(weights, values):
    with np.errstate(divide="ignore"):
        return logsumexp(values + np.log(weights)[:, None], axis=0).mean()


def densities(seed=0, models=4, frames=60, scale=3.0):
    return scale * np.random.default_rng(seed).normal(size=(models, frames))


class TestStacking:
    @settings(max_examples=25)
    @given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([0.01, 1.0, 30.0, 1e3, 1e5]))
    def test_optimal(self, seed, models, scale):
        values = densities(seed, models, scale=scale)
        weights = stacking_weights(values)
        assert weights.min() >= 0 and abs(weights.sum() - 1) < 1e-12
        # By convexity max_m mean_n p_mn / mixture_n - 1 bounds what any other weights could gain.
        with np.errstate(divide="ignore"):
            mixture = logsumexp(values + np.log(weights)[:, None], axis=0)
        assert np.exp(values - mixture).mean(axis=1).max() <= 1 + 1e-9

    @pytest.mark.parametrize("seed", range(4))
    def test_against_slsqp(self, seed):
        values = densities(seed)
        found = minimize(
            lambda a: -score(a, values),
            np.full(4, 0.25),
            bounds=[(1e-12, 1)] * 4,
            constraints=[{"type": "eq", "fun": lambda a: a.sum() - 1}],
            options={"ftol": 1e-12},
        )
        np.testing.assert_allclose(stacking_weights(values), found.x, atol=1e-4)
        assert score(stacking_weights(values), values) >= -found.fun - 1e-9

    def test_analytic(self):
        # Each frame is explained by one model only: the weights are the shares of the frames.
        owner = np.repeat([0, 1, 2], [5, 3, 2])
        values = np.where(np.arange(3)[:, None] == owner, 0.0, -np.inf)
        np.testing.assert_allclose(stacking_weights(values), [0.5, 0.3, 0.2], atol=1e-8)
        dominated = np.stack([np.zeros(9), np.full(9, -1.0)])
        np.testing.assert_allclose(stacking_weights(dominated), [1, 0], atol=1e-9)
        np.testing.assert_allclose(stacking_weights(np.zeros((5, 7))), np.full(5, 0.2))

    def test_frame_constants_and_batches(self):
        values = np.stack([densities(0), densities(1)])
        weights = stacking_weights(values + 1e3 * np.arange(60))
        for batch in range(2):
            np.testing.assert_allclose(weights[batch], stacking_weights(values[batch]), atol=1e-8)

    def test_against_arviz(self):
        import arviz as az

        if int(az.__version__.split(".")[0]) >= 1:
            pytest.skip("written for the interface of ArviZ 0.23")
        # Draws that do not differ make leave-one-out densities the densities themselves.
        values = densities(2, models=3, frames=40, scale=1.0)
        spread = 1e-3 * np.random.default_rng(0).normal(size=(2, 50, 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = {
                str(m): az.from_dict(posterior={"x": spread[..., 0]}, log_likelihood={"y": row + spread})
                for m, row in enumerate(values)
            }
            table = az.compare(data, ic="loo", method="stacking")
        expected = [table.loc[str(m), "weight"] for m in range(3)]
        np.testing.assert_allclose(stacking_weights(values), expected, atol=5e-3)

    def test_bad_input(self):
        for values, message in [
            (np.zeros((2, 0)), "at least one"),
            (np.full((2, 3), np.nan), "NaN"),
            (np.full((2, 3), -np.inf), "all models"),
        ]:
            with pytest.raises(ValueError, match=message):
                stacking_weights(values)
        with pytest.raises(ValueError, match="did not converge"):
            stacking_weights(densities(), max_iters=1)


class TestPseudoBma:
    def test_two_models_against_the_normal_limit(self):
        # The bootstrapped difference of the sums is about normal: mean N d, variance N var.
        difference = np.random.default_rng(0).normal(0.02, 0.3, 400)
        weights = pseudo_bma_weights(np.stack([difference, np.zeros(400)]), draws=4000)
        sums = np.random.default_rng(1).normal(difference.sum(), np.sqrt(400) * difference.std(), 20_000)
        np.testing.assert_allclose(weights[0], (1 / (1 + np.exp(-sums))).mean(), atol=0.02)
        assert abs(weights.sum() - 1) < 1e-15

    @settings(max_examples=10)
    @given(st.integers(0, 1000), st.permutations(range(4)))
    def test_order_and_constants(self, seed, order):
        values = densities(seed, scale=0.2)
        weights = pseudo_bma_weights(values, draws=50)
        np.testing.assert_allclose(
            pseudo_bma_weights(values[order] + np.arange(60), draws=50), weights[order], rtol=1e-9
        )

    def test_groups_are_less_certain(self):
        # The same differences in blocks of ten: ten times fewer independent ones.
        difference = np.repeat(np.random.default_rng(0).normal(0.05, 0.4, 40), 10)
        values = np.stack([difference, np.zeros(400)])
        single = pseudo_bma_weights(values)
        grouped = pseudo_bma_weights(values, groups=np.repeat(np.arange(40), 10))
        assert abs(grouped[0] - 0.5) < abs(single[0] - 0.5)
        np.testing.assert_array_equal(pseudo_bma_weights(values, seed=1), pseudo_bma_weights(values, seed=1))

    def test_bad_input(self):
        with pytest.raises(ValueError, match="draws=0"):
            pseudo_bma_weights(densities(), draws=0)
        with pytest.raises(ValueError, match="finite"):
            pseudo_bma_weights(np.array([[0.0], [-np.inf]]))
        with pytest.raises(ValueError, match="one label"):
            getattr(pseudo_bma_weights, "__wrapped__", pseudo_bma_weights)(densities(), groups=np.zeros(3, int))

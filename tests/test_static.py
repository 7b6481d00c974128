"""Static weights against brute force, other algorithms, and the laws they must obey."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from bayesfuse.fusion import Gram, best_weights, gram, sdr, squared_error
from bayesfuse.objectives import Objective, extended_gram
from bayesfuse.simplex_qp import oracle_weights
from bayesfuse.static import static_weights


def examples(seed=0, count=6, models=3, samples=40, spread=1.0):
    """Estimates whose quality differs much from example to example: the mean SDR then has several maxima."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(count, samples)) * np.exp(rng.normal(size=(count, 1)))
    level = 10 ** rng.uniform(-spread, 0.3, (models, count, 1))
    noise = rng.normal(size=(models, count, samples)) * np.abs(reference).mean(-1, keepdims=True)
    return gram(reference, reference + level * noise)


def mean_sdr(weights, g):
    return sdr(weights, g).mean()


def triangle(steps):
    """All points of the simplex of three models on a grid."""
    i, j = np.meshgrid(np.arange(steps + 1), np.arange(steps + 1))
    keep = i + j <= steps
    return np.stack([i[keep], j[keep], steps - i[keep] - j[keep]], axis=-1) / steps


class TestOnTheSimplex:
    def test_mse_is_the_oracle_of_the_sum(self):
        g = examples()
        np.testing.assert_array_equal(static_weights(g), oracle_weights(g.sum()))

    @pytest.mark.parametrize("seed", range(8))
    def test_sdr_against_a_dense_grid(self, seed):
        g = examples(seed)
        weights = static_weights(g, loss="sdr")
        grid = np.max(np.mean([sdr(triangle(60), g.take([n])) for n in range(6)], axis=0))
        assert mean_sdr(weights, g) >= grid - 1e-9
        assert weights.min() >= 0 and abs(weights.sum() - 1) < 1e-12

    @settings(max_examples=15)
    @given(st.integers(0, 10_000), st.integers(1, 6))
    def test_never_worse_than_mse_or_the_best_single(self, seed, models):
        g = examples(seed, models=models, count=4)
        weights = static_weights(g, loss="sdr", starts=2)
        others = [static_weights(g), np.full(models, 1 / models), *np.eye(models)]
        assert mean_sdr(weights, g) >= max(mean_sdr(other, g) for other in others) - 1e-12

    def test_sdr_is_a_fixed_point_of_reweighted_least_squares(self):
        # Another algorithm: log e <= log e0 + e / e0 - 1, whose minimiser is a quadratic programme.
        g = examples(3, count=30, models=6, spread=0.3)
        weights = static_weights(g, loss="sdr")
        again = weights
        for _ in range(50):
            factor = 1.0 / squared_error(again, g)
            again = oracle_weights(jax.tree.map(lambda f, w=factor: (f * w.reshape(-1, *[1] * (f.ndim - 1))).sum(0), g))
        np.testing.assert_allclose(mean_sdr(again, g), mean_sdr(weights, g), atol=1e-9)

    @settings(max_examples=10)
    @given(st.integers(0, 1000), st.sampled_from([1e-6, 1e6]), st.permutations(range(4)))
    def test_scale_and_order_of_models(self, seed, scale, order):
        g = examples(seed, models=4, spread=0.2)
        louder = jax.tree.map(lambda field: scale**2 * field, g)
        other = Gram(g.energy, g.cross[:, order], g.gram[:, order][:, :, order])
        for loss in ("mse", "sdr"):
            value = mean_sdr(static_weights(g, loss=loss), g)
            np.testing.assert_allclose(mean_sdr(static_weights(louder, loss=loss), g), value, atol=1e-7)
            np.testing.assert_allclose(mean_sdr(static_weights(other, loss=loss), other), value, atol=1e-7)

    def test_objective_against_a_dense_grid(self):
        rng = np.random.default_rng(0)
        references = rng.normal(size=(2, 4, 50))
        estimates = references[0] + rng.normal(0, 0.5, (3, 4, 1)) * references[1] + 0.4 * rng.normal(size=(3, 4, 50))
        g = extended_gram(references, estimates)
        objective = Objective(0.3, 0.6, 0.1)
        points = triangle(40)
        grid = max(objective(point, g).mean() for point in points)
        assert objective(static_weights(g, loss=objective), g).mean() >= grid - 1e-9


class TestOtherConstraints:
    @pytest.mark.parametrize("loss", ["mse", "sdr"])
    @pytest.mark.parametrize("constraint", ["nonnegative", "none"])
    def test_against_scipy(self, loss, constraint):
        g = examples(1, count=20, models=4, spread=0.3)
        weights = static_weights(g, loss=loss, constraint=constraint)

        def cost(a):
            return squared_error(a, g).sum() if loss == "mse" else -mean_sdr(a, g)

        bounds = [(0, None) if constraint == "nonnegative" else (None, None)] * 4
        found = [minimize(cost, s, bounds=bounds, method="L-BFGS-B").fun for s in (np.full(4, 0.25), *np.eye(4))]
        assert cost(weights) <= min(found) * (1 + 1e-8 * np.sign(min(found)))
        assert constraint == "none" or weights.min() >= 0

    def test_larger_sets_are_no_worse(self):
        g = examples(2, count=10, models=4)
        for loss in ("mse", "sdr"):
            values = []
            for constraint in ("simplex", "nonnegative", "none"):
                weights = static_weights(g, loss=loss, constraint=constraint)
                values.append(-squared_error(weights, g).sum() if loss == "mse" else mean_sdr(weights, g))
            assert values[0] <= values[1] + 1e-9 and values[1] <= values[2] + 1e-9

    def test_equal_and_silent_estimates(self):
        rng = np.random.default_rng(0)
        reference = rng.normal(size=(3, 30))
        estimate = reference + rng.normal(size=(3, 30))
        g = gram(reference, np.stack([estimate, estimate, 0 * estimate]))
        for constraint in ("simplex", "nonnegative", "none"):
            for loss in ("mse", "sdr"):
                weights = static_weights(g, loss=loss, constraint=constraint)
                assert np.isfinite(weights).all()
        free = static_weights(g, constraint="none")
        np.testing.assert_allclose(free[0], free[1], rtol=1e-9)
        nothing = gram(reference, np.zeros((2, 3, 30)))
        np.testing.assert_array_equal(static_weights(nothing, constraint="none"), [0.5, 0.5])


class TestRidgeAndSharing:
    @pytest.mark.parametrize("loss", ["mse", "sdr"])
    @pytest.mark.parametrize("constraint", ["simplex", "nonnegative", "none"])
    def test_ridge_pulls_to_the_mean(self, loss, constraint):
        g = examples(4, count=8)
        gaps = [
            np.abs(static_weights(g, loss=loss, constraint=constraint, ridge=ridge) - 1 / 3).max()
            for ridge in (0.0, 1.0, 1e4)
        ]
        assert gaps[0] >= gaps[1] - 1e-9 >= gaps[2] - 2e-9 and gaps[2] < 0.01

    def test_ridge_by_hand(self):
        g = examples(4, count=8)
        strength = 0.3 * np.trace(g.gram.sum(0)) / 3
        weights = static_weights(g, ridge=0.3)
        points = triangle(200)
        total = g.sum()
        costs = squared_error(points, total) + strength * ((points - 1 / 3) ** 2).sum(-1)
        best = squared_error(weights, total) + strength * ((weights - 1 / 3) ** 2).sum()
        assert best <= costs.min() + 1e-12

    def test_per_source_and_shared(self):
        both = Gram.stack([examples(0), examples(1)])
        for loss in ("mse", "sdr"):
            weights = static_weights(both, loss=loss)
            assert weights.shape == (2, 3)
            np.testing.assert_array_equal(weights[1], static_weights(examples(1), loss=loss))
            flat = jax.tree.map(lambda field: field.reshape(-1, *field.shape[2:]), both)
            np.testing.assert_array_equal(static_weights(both, loss=loss, shared=True), static_weights(flat, loss=loss))

    def test_one_model_and_a_perfect_one(self):
        np.testing.assert_array_equal(static_weights(examples(models=1), loss="sdr"), [1.0])
        reference = np.random.default_rng(0).normal(size=(3, 30))
        g = gram(reference, np.stack([reference + 1, reference]))
        np.testing.assert_allclose(static_weights(g, loss="sdr"), [0, 1], atol=1e-7)
        np.testing.assert_array_equal(best_weights(g.sum()), [0, 1])

    def test_bad_input(self):
        g = examples()
        for settings_, message in [
            ({"constraint": "box"}, "constraint='box'"),
            ({"loss": "frame-sdr"}, "frame-sdr"),
            ({"loss": Objective(), "constraint": "none"}, "simplex"),
            ({"ridge": -1.0}, "ridge"),
        ]:
            with pytest.raises(ValueError, match=message):
                getattr(static_weights, "__wrapped__", static_weights)(g, **settings_)  # past the type checks
        with pytest.raises(ValueError, match="axis of examples"):
            static_weights(g.sum())

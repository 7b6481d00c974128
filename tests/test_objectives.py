"""Objectives against waveforms: projections by least squares, and derivatives against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesfuse.fusion import Gram, gram, sdr, squared_error
from bayesfuse.objectives import (
    ExtendedGram,
    Objective,
    error_form,
    extended_gram,
    interference_ratios,
    quadratic_form,
    training_loss,
)


def signals(seed=0, sources=3, models=4, samples=200):
    """Correlated sources and estimates of the first that hold some of each and noise."""
    rng = np.random.default_rng(seed)
    references = rng.normal(size=(sources, samples)) + 0.3 * rng.normal(size=samples)
    mixing = np.concatenate([rng.uniform(0.5, 1.5, (models, 1)), rng.normal(0, 0.3, (models, sources - 1))], axis=1)
    return references, mixing @ references + rng.normal(size=(models, samples)) * rng.uniform(0.1, 1, (models, 1))


def projected(vectors, signal):
    """The projection of a signal onto the span of vectors, by least squares on the samples."""
    return vectors.T @ np.linalg.lstsq(vectors.T, signal, rcond=None)[0]


def measured(weights, references, estimates):
    """SIR and SAR from the waveforms."""
    fused = weights @ estimates
    target = projected(references[:1], fused)
    interference = projected(references, fused) - target
    artifacts = fused - target - interference
    ratio = np.sum(target**2) / np.sum(interference**2), np.sum((target + interference) ** 2) / np.sum(artifacts**2)
    return 10 * np.log10(ratio)


class TestRatios:
    @settings(max_examples=20)
    @given(st.integers(0, 10_000), st.integers(2, 4), st.sampled_from([1e-6, 1.0, 1e6]))
    def test_against_projections_of_the_waveforms(self, seed, sources, scale):
        references, estimates = signals(seed, sources)
        # A source that is far quieter than others is a source like any other.
        references[1:] *= np.logspace(0, -5, sources - 1)[:, None]
        weights = np.random.default_rng(seed).dirichlet(np.ones(4))
        g = extended_gram(scale * references, scale * estimates)
        expected = measured(weights, references, estimates)
        np.testing.assert_allclose(interference_ratios(weights, g), expected, atol=1e-6)

    def test_dependent_and_silent_sources_count_once(self):
        references, estimates = signals()
        weights = np.full(4, 0.25)
        more = np.concatenate([references, references[1:2], 0 * references[:1], 2 * references[:1]])
        expected = interference_ratios(weights, extended_gram(references, estimates))
        np.testing.assert_allclose(interference_ratios(weights, extended_gram(more, estimates)), expected, atol=1e-9)

    def test_no_interference_no_artifacts(self):
        references, _ = signals()
        clean = extended_gram(references, np.stack([2 * references[0], references[1]]))
        sir, sar = interference_ratios(np.array([1.0, 0.0]), clean)
        assert sir > 120 and sar > 120
        sir, sar = interference_ratios(np.array([0.5, 0.5]), clean)
        assert sir < 30 and sar > 120

    def test_frames_and_batches(self):
        references, estimates = signals(samples=400)
        blocks = references.reshape(3, 2, 200), estimates.reshape(4, 2, 200)
        g = extended_gram(*blocks)
        assert g.gram.shape == (2, 4, 4)
        weights = np.array([[0.1, 0.2, 0.3, 0.4], [1.0, 0, 0, 0]])
        for n in range(2):
            expected = measured(weights[n], blocks[0][:, n], blocks[1][:, n])
            np.testing.assert_allclose([r[n] for r in interference_ratios(weights, g)], expected, atol=1e-8)
        for field, expected in zip(
            jax.tree.leaves(g.target), jax.tree.leaves(gram(blocks[0][0], blocks[1])), strict=True
        ):
            np.testing.assert_allclose(field, expected, rtol=1e-12)

    def test_mixtures_and_their_derivative(self, x64):
        references, estimates = signals()
        g = extended_gram(references, estimates)
        objective = Objective(0.5, 0.3, 0.2)
        weights = np.array([0.1, 0.2, 0.3, 0.4])
        sir, sar = interference_ratios(weights, g)
        np.testing.assert_allclose(objective(weights, g), 0.5 * sdr(weights, g.target) + 0.3 * sir + 0.2 * sar)
        on_device = jax.tree.map(jnp.asarray, g)
        gradient = jax.grad(lambda a: objective(a, on_device))(jnp.asarray(weights))
        steps = 1e-6 * np.eye(4)
        expected = [(objective(weights + step, g) - objective(weights - step, g)) / 2e-6 for step in steps]
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)

    def test_bad_input(self):
        references, estimates = signals()
        with pytest.raises(ValueError, match="extended_gram"):
            Objective(0, 1, 0)(np.full(4, 0.25), gram(references[0], estimates))
        with pytest.raises(ValueError, match="no reference"):
            extended_gram(references[:0], estimates)


def examples(seed=0, count=5, frames=6, models=3, sources=2):
    rng = np.random.default_rng(seed)
    references = rng.normal(size=(sources, count, frames, 30)) * rng.gamma(0.5, 1, (1, count, frames, 1))
    estimates = references[0] + 0.3 * references[1] * rng.normal(size=(models, 1, 1, 1))
    estimates = estimates + 0.5 * rng.normal(size=(models, count, frames, 30))
    weights = np.moveaxis(rng.dirichlet(np.ones(models), (count, frames)), -1, 0)
    return references, estimates, weights


class TestTrainingLoss:
    def test_against_waveforms(self, x64):
        references, estimates, weights = examples()
        g = gram(references[0], estimates)
        error = ((references[0] - (weights[..., None] * estimates).sum(0)) ** 2).sum(-1)
        energy = (references[0] ** 2).sum(-1)
        value = float(training_loss("test", g, "mse")(weights))
        np.testing.assert_allclose(value, error.sum() / energy.sum(), rtol=1e-12)
        value = float(training_loss("test", g, "sdr")(weights))
        np.testing.assert_allclose(value, (10 * np.log10(error.sum(1) / energy.sum(1))).mean(), rtol=1e-12)
        mean = energy.mean(axis=1, keepdims=True)
        value = float(training_loss("test", g, "frame-sdr")(weights))
        np.testing.assert_allclose(value, (10 * np.log10(error / mean + 1e-6)).mean(), rtol=1e-10)

    def test_padding_changes_nothing(self, x64):
        references, estimates, weights = examples()
        g = gram(references[0], estimates)
        longer = jax.tree.map(lambda f: np.concatenate([f, 1e3 + 0 * f[:, :2]], axis=1), g)
        frames = np.arange(8) < np.full((5, 1), 6)
        padded = np.concatenate([weights, weights[:, :, :2]], axis=2)
        for loss in ("mse", "sdr", "frame-sdr"):
            expected = training_loss("test", g, loss)(weights)
            np.testing.assert_allclose(training_loss("test", longer, loss, frames=frames)(padded), expected, rtol=1e-12)

    @pytest.mark.parametrize("loss", ["mse", "sdr", "frame-sdr", Objective(0.2, 0.5, 0.3)])
    def test_parts_add_up_and_scale_does_not_matter(self, x64, loss):
        references, estimates, weights = examples()
        g = extended_gram(references, estimates)
        whole = training_loss("test", g, loss)
        parts = [whole.part(slice(0, 2))(weights[:, :2]), whole.part(slice(2, None))(weights[:, 2:])]
        np.testing.assert_allclose(sum(map(float, parts)), float(whole(weights)), rtol=1e-12)
        quiet = jax.tree.map(lambda field: 1e-12 * field, g)
        np.testing.assert_allclose(training_loss("test", quiet, loss)(weights), whole(weights), rtol=1e-9)

    def test_objective_of_whole_signals(self, x64):
        references, estimates, weights = examples(frames=1)
        g = extended_gram(references[:, :, 0], estimates[:, :, 0])
        objective = Objective(0.2, 0.5, 0.3)
        expected = -objective(weights[:, :, 0].T, g).mean()
        np.testing.assert_allclose(training_loss("test", g, objective)(weights[:, :, 0]), expected, rtol=1e-9)

    @pytest.mark.parametrize("loss", ["mse", "sdr", "frame-sdr", Objective(0.2, 0.5, 0.3)])
    def test_gradient(self, x64, loss):
        references, estimates, weights = examples(1, count=2, frames=2)
        criterion = jax.tree.map(jnp.asarray, training_loss("test", extended_gram(references, estimates), loss))
        got = jax.grad(lambda a: criterion(a))(jnp.asarray(weights))
        direction = np.random.default_rng(2).normal(size=weights.shape)
        expected = (criterion(weights + 1e-6 * direction) - criterion(weights - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose((got * direction).sum(), expected, rtol=1e-6)

    def test_perfect_estimate_is_finite(self, x64):
        reference = np.random.default_rng(0).normal(size=(2, 50))
        g = gram(reference, np.stack([reference, 0 * reference]))
        perfect = np.array([[1.0], [0.0]])
        assert -160 < float(training_loss("test", g, "sdr")(perfect)) < -150

    def test_quadratic_form_and_affine_error(self, x64):
        references, estimates, _ = examples(frames=1)
        g = gram(references[0, :, 0], estimates[:, :, 0])
        weights = np.random.default_rng(0).normal(size=(3, 5))
        form = np.moveaxis(error_form(g, affine=True), 0, -1)[None]
        value = quadratic_form(np.concatenate([weights, np.ones((1, 5))]), form)[0]
        np.testing.assert_allclose(value, squared_error(weights.T, g), rtol=1e-10)

    def test_bad_input(self):
        references, estimates, _ = examples()
        g = gram(references[0], estimates)
        with pytest.raises(ValueError, match="loss='si-sdr'"):
            getattr(training_loss, "__wrapped__", training_loss)("f", g, "si-sdr")  # past the type checks
        with pytest.raises(ValueError, match="axis of examples"):
            training_loss("f", gram(references[0, 0, 0], estimates[:, 0, 0]), "mse")
        with pytest.raises(ValueError, match="NaN"):
            training_loss("f", Gram(g.energy * np.nan, g.cross, g.gram), "mse")
        with pytest.raises(ValueError, match=r"silent true source in example\(s\) \[1\]"):
            training_loss("f", gram(references[0] * (np.arange(5) != 1)[:, None, None], estimates), "sdr")
        with pytest.raises(ValueError, match="frames of shape"):
            training_loss("f", g, "sdr", frames=np.ones((5, 7), bool))
        with pytest.raises(ValueError, match="extended_gram"):
            training_loss("f", g, Objective(0, 1, 0))
        assert isinstance(extended_gram(references, estimates), ExtendedGram)

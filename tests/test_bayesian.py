"""Learning of Bayesian fusion: brute force on small problems, exact gradients, limits, and every extension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import differential_evolution

from bayesfuse import bayesian
from bayesfuse.bayesian import learn_vb as learn_vb_at_length
from bayesfuse.bayesian_problem import Form, Problem, Scaled
from bayesfuse.fusion import Gram, gram, learn_beta, sdr, select_weights, squared_error, vb_weights
from bayesfuse.objectives import Objective, extended_gram, training_loss
from bayesfuse.static import static_weights


def learn_vb(*arguments, **settings_):
    """Few descents: these problems are easy, and the search is tested by itself."""
    return learn_vb_at_length(*arguments, **{"starts": 4} | settings_)


def utterances(seed=0, count=10, models=3, samples=60):
    """Gram, free energies [example, model] that tell good models from bad ones with bias and noise, and lengths."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(count, samples))
    level = 10 ** rng.uniform(-1, 0.3, (models, count))
    g = gram(reference, reference + rng.normal(size=(models, count, samples)) * level[..., None])
    lengths = rng.integers(50, 150, count)
    energy = -5.0 * lengths[:, None] * (rng.normal(size=(count, models)) + 0.7 * np.log(level.T))
    return g, energy, lengths


def frames(seed=0, count=6, models=3, length=30, bands=None, samples=12):
    """The same per frame (and band): the best model stays the same over ten frames."""
    rng = np.random.default_rng(seed)
    unit = (count, length) if bands is None else (count, length, bands)
    reference = rng.normal(size=(*unit, samples)) * rng.gamma(0.5, 2, (*unit, 1))
    best = np.repeat(rng.integers(0, models, (count, length // 10)), 10, axis=1)
    level = 0.3 + 0.8 * (np.arange(models)[:, None, None] != best)
    level = level if bands is None else np.repeat(level[..., None], bands, axis=-1)
    g = gram(reference, reference * (1 + level[..., None] * rng.normal(size=(models, *unit, samples))))
    energy = -20.0 * (level + 0.8 * rng.normal(size=level.shape)) + 10.0 * np.arange(models).reshape(
        -1, *[1] * len(unit)
    )
    return g, np.moveaxis(energy, 0, 1)


def utterance_sdr(rule, g, energy, **settings_):
    """Mean SDR of the rule from its own weights, with errors of frames and bands added up."""
    weights = np.moveaxis(rule.weights(energy, **settings_), 1, -1)
    units = tuple(range(1, g.energy.ndim))
    return float(np.mean(10 * np.log10(g.energy.sum(units) / squared_error(weights, g).sum(units))))


class TestPerSignal:
    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize("loss", ["sdr", "mse"])
    def test_against_differential_evolution(self, seed, loss):
        g, energy, lengths = utterances(seed)

        def cost(z):
            weights = vb_weights(energy, np.append(z[:-1], 0.0), np.exp(z[-1]), frames=lengths)
            return -sdr(weights, g).mean() if loss == "sdr" else squared_error(weights, g).sum() / g.energy.sum()

        limits = [(-40, 40), (-40, 40), (-3, 6)]
        brute = differential_evolution(cost, limits, seed=seed, maxiter=40, popsize=10, tol=0, polish=True).fun
        rule, report = learn_vb(g, energy, loss=loss, num_frames=lengths, min_beta=0.0, starts=None)
        weights = rule.weights(energy, num_frames=lengths)
        reached = -sdr(weights, g).mean() if loss == "sdr" else squared_error(weights, g).sum() / g.energy.sum()
        np.testing.assert_allclose(report.training["returned"], reached, rtol=1e-9)
        assert reached <= brute + 1e-6 * abs(brute)
        assert report.basins == len(report.minima) >= 1 and report.starts >= report.basins

    @settings(max_examples=4)
    @given(st.integers(0, 10_000), st.sampled_from(["mse", "sdr"]), st.sampled_from([None, 0.0, 5.0]))
    def test_never_worse_than_static_or_selection(self, seed, loss, min_beta):
        g, energy, lengths = utterances(seed, count=4)
        rule, report = learn_vb(g, energy, loss=loss, num_frames=lengths, min_beta=min_beta)
        static, selected = static_weights(g, loss=loss), select_weights(energy)
        for other in (static, selected):
            value = -sdr(other, g).mean() if loss == "sdr" else squared_error(other, g).sum() / g.energy.sum()
            assert report.training["returned"] <= value + 1e-9 * abs(value)
        bound = 1 / lengths.min() if min_beta is None else min_beta
        assert rule.beta == 0 or rule.beta >= bound * (1 - 1e-12)

    def test_never_worse_than_the_temperature_alone(self):
        g, energy, lengths = utterances(3, count=20, models=5)
        beta = learn_beta(g, energy, lengths)
        rule, _ = learn_vb(g, energy, loss="sdr", num_frames=lengths, min_beta=0.0)
        alone = sdr(vb_weights(energy, None, beta, frames=lengths), g).mean()
        assert utterance_sdr(rule, g, energy, num_frames=lengths) >= alone - 1e-9

    @settings(max_examples=2)
    @given(st.integers(0, 1000))
    def test_invariances(self, seed):
        g, energy, lengths = utterances(seed, count=12)
        reached = learn_vb(g, energy, loss="sdr", num_frames=lengths)[1].training["returned"]
        # Louder audio; a constant per example; twice the duration at the same free energy per frame.
        louder = jax.tree.map(lambda field: 1e-12 * field, g)
        shifted = energy + np.random.default_rng(0).normal(size=(12, 1)) * 1e4
        for other in ((louder, energy, lengths), (g, shifted, lengths)):
            value = learn_vb(*other[:2], loss="sdr", num_frames=other[2])[1].training["returned"]
            np.testing.assert_allclose(value, reached, rtol=1e-6)
        rule, _ = learn_vb(g, energy, loss="sdr", num_frames=lengths, min_beta=0.05)
        twice, _ = learn_vb(g, 2 * energy, loss="sdr", num_frames=2 * lengths, min_beta=0.05)
        np.testing.assert_allclose(twice.beta, rule.beta, rtol=1e-4)

    def test_useless_free_energies_leave_static_fusion(self):
        g, energy, lengths = utterances(1, count=30)
        for loss in ("mse", "sdr"):
            rule, report = learn_vb(g, 0 * energy, loss=loss, num_frames=lengths)
            np.testing.assert_allclose(report.training["returned"], report.training["static"], rtol=1e-6)
            weights = rule.weights(0 * energy[0], num_frames=10)
            np.testing.assert_allclose(weights, static_weights(g, loss=loss), atol=1e-3)

    def test_perfect_free_energies_give_selection(self):
        rng = np.random.default_rng(0)
        reference = rng.normal(size=(8, 50))
        best = rng.integers(0, 2, 8)
        wrong = np.arange(2)[:, None] != best
        g = gram(reference, reference + 5.0 * wrong[..., None] * rng.normal(size=(2, 8, 50)))
        rule, report = learn_vb(g, -1e4 * wrong.T, loss="sdr", num_frames=np.full(8, 100))
        np.testing.assert_allclose(rule.weights(-1e4 * wrong.T, num_frames=100), 1.0 - wrong.T, atol=1e-6)
        assert report.training["returned"] < -100

    def test_ruled_out_models_and_one_model(self):
        g, energy, lengths = utterances(2)
        energy[:, 1] = -np.inf
        energy[0] = -np.inf
        rule, report = learn_vb(g, energy, loss="sdr", num_frames=lengths)
        assert np.isfinite(report.training["returned"])
        np.testing.assert_array_equal(rule.weights(energy, num_frames=lengths)[1:, 1], 0.0)
        one = jax.tree.map(lambda field: field, Gram(g.energy, g.cross[:, :1], g.gram[:, :1, :1]))
        rule, _ = learn_vb(one, np.zeros((10, 1)), num_frames=lengths)
        np.testing.assert_array_equal(rule.weights(np.zeros(1), num_frames=5), [1.0])

    def test_same_seed_same_rule(self):
        g, energy, lengths = utterances(5)
        first, second = (learn_vb(g, energy, loss="sdr", num_frames=lengths, seed=3)[0] for _ in range(2))
        np.testing.assert_array_equal(first.log_prior, second.log_prior)
        np.testing.assert_array_equal(first.beta, second.beta)

    def test_objective(self):
        rng = np.random.default_rng(0)
        references = rng.normal(size=(2, 12, 50))
        leak = rng.normal(0, 0.6, (3, 12, 1))
        estimates = references[0] + leak * references[1] + 0.3 * rng.normal(size=(3, 12, 50))
        g = extended_gram(references, estimates)
        energy = -100.0 * np.abs(leak[..., 0]).T
        objective = Objective(0.4, 0.4, 0.2)
        rule, report = learn_vb(g, energy, loss=objective, num_frames=np.full(12, 20))
        weights = rule.weights(energy, num_frames=20)
        np.testing.assert_allclose(report.training["returned"], -objective(weights, g).mean(), rtol=1e-9)
        assert report.training["returned"] <= -objective(static_weights(g, loss=objective), g).mean() + 1e-9


class TestGradient:
    @pytest.mark.parametrize(("terms", "bands", "sticky"), [(1, 1, False), (2, 1, True), (2, 4, False)])
    def test_against_finite_differences(self, x64, terms, bands, sticky):
        g, energy = frames(count=2, bands=4, length=10)
        criterion = training_loss("test", g, "sdr")
        parts = np.stack([energy, np.random.default_rng(3).normal(size=energy.shape)])[:terms]
        scaled = Scaled.of(bayesian._checked(parts, criterion, True), None, criterion)
        form = Form(3, terms, bands, sticky)
        problem = Problem(scaled.values, scaled.blocked, criterion, form)
        size = (3 + terms) * bands + sticky
        point = np.random.default_rng(4).uniform(0.1, 1, size)
        value, gradient = bayesian._value_and_grad(jnp.asarray(point), problem)
        steps = 1e-6 * np.eye(size)
        expected = [
            (bayesian._value_and_grad(point + s, problem)[0] - bayesian._value_and_grad(point - s, problem)[0]) / 2e-6
            for s in steps
        ]
        assert np.isfinite(value)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)

    def test_blocks_are_the_whole(self, monkeypatch):
        g, energy = frames(count=7)
        whole, _ = learn_vb(g, energy, loss="sdr")
        monkeypatch.setattr(bayesian, "_BLOCK", g.gram.size // 3)
        parts, report = learn_vb(g, energy, loss="sdr")
        np.testing.assert_allclose(parts.beta, whole.beta, rtol=1e-3)
        np.testing.assert_allclose(report.training["returned"], -utterance_sdr(whole, g, energy), rtol=1e-6)


class TestPerFrame:
    @pytest.mark.parametrize("loss", ["mse", "sdr", "frame-sdr"])
    def test_learns_and_reports_what_it_reaches(self, loss):
        g, energy = frames()
        rule, report = learn_vb(g, energy, loss=loss)
        assert report.chosen == "learned" and rule.beta >= 1
        assert report.training["returned"] < min(report.training["static"], report.training["selection"])
        if loss == "sdr":
            np.testing.assert_allclose(utterance_sdr(rule, g, energy), -report.training["returned"], rtol=1e-9)
        # A one-dimensional scan over the temperature with the learned bias of the models cannot do better.
        criterion = training_loss("test", g, loss)
        for factor in (0.5, 0.9, 1.1, 2.0):
            weights = vb_weights(energy, rule.log_prior, rule.beta * factor, axis=1)
            with jax.enable_x64(True):
                assert float(criterion(np.moveaxis(weights, 1, 0))) >= report.training["returned"] - 1e-9

    def test_padding_changes_nothing(self):
        g, energy = frames()
        longer = jax.tree.map(lambda f: np.concatenate([f, 100.0 + f[:, :10]], axis=1), g)
        padded = np.concatenate([energy, 1e3 * energy[..., :10]], axis=2)
        present = np.arange(40) < np.full((6, 1), 30)
        rule, report = learn_vb(g, energy, loss="sdr", sticky=True)
        other, again = learn_vb(longer, padded, loss="sdr", frames=present, sticky=True)
        np.testing.assert_allclose(again.training["static"], report.training["static"], rtol=1e-9)
        np.testing.assert_allclose(other.beta, rule.beta, rtol=1e-3)

    def test_sticky_is_better_where_models_stay(self):
        g, energy = frames(count=10)
        plain, _ = learn_vb(g, energy, loss="sdr")
        rule, report = learn_vb(g, energy, loss="sdr", sticky=True)
        assert 0.2 < rule.stickiness < 1
        value = utterance_sdr(rule, g, energy)
        np.testing.assert_allclose(value, -report.training["returned"], rtol=1e-6)
        assert value > utterance_sdr(plain, g, energy) + 0.1
        other, unseen = frames(seed=1, count=10)
        assert utterance_sdr(rule, other, unseen) > utterance_sdr(plain, other, unseen)

    def test_a_temperature_per_term_finds_the_term_that_knows(self):
        g, energy = frames(count=8)
        terms = np.stack([energy, 20.0 * np.random.default_rng(9).normal(size=energy.shape)])
        total, _ = learn_vb(g, terms.sum(0), loss="sdr")
        rule, report = learn_vb(g, terms, loss="sdr", per_term=True)
        assert rule.beta.shape == (2,) and rule.beta[1] > 5 * rule.beta[0]
        value = utterance_sdr(rule, g, terms)
        np.testing.assert_allclose(value, -report.training["returned"], rtol=1e-9)
        assert value > utterance_sdr(total, g, terms.sum(0))

    def test_bands(self):
        g, energy = frames(count=4, bands=3)
        energy[..., 2] *= -1.0  # in the last band the free energy misleads
        shared, report = learn_vb(g, energy, loss="sdr")
        assert shared.log_prior.shape == (3,) and shared.axes == ("model", "frame", "band")
        np.testing.assert_allclose(utterance_sdr(shared, g, energy), -report.training["returned"], rtol=1e-9)
        own, report = learn_vb(g, energy, loss="sdr", per_band=True)
        assert own.log_prior.shape == (3, 3) and own.beta.shape == (3,)
        value = utterance_sdr(own, g, energy)
        np.testing.assert_allclose(value, -report.training["returned"], rtol=1e-9)
        assert value > utterance_sdr(shared, g, energy)
        assert own.beta[2] > 3 * own.beta[0]

    def test_everything_at_once(self):
        g, energy = frames(count=3, length=10, bands=2)
        terms = np.stack([energy, np.zeros_like(energy)])
        base = learn_vb(g, energy, loss="mse")[1].training["returned"]
        rule, report = learn_vb(g, terms, loss="mse", per_term=True, per_band=True, sticky=True)
        assert rule.beta.shape == (2, 2) and report.training["returned"] <= base + 1e-12


class TestBadInput:
    def test_sizes_and_values(self):
        g, energy, lengths = utterances()
        for arguments, settings_, message in [
            ((g, energy[:-1]), {"num_frames": lengths}, "same examples"),
            ((g, energy), {}, "num_frames=None"),
            ((g, energy), {"num_frames": lengths[:-1]}, "num_frames"),
            ((g, energy), {"num_frames": 0 * lengths}, "positive"),
            ((g, energy * np.nan), {"num_frames": lengths}, "NaN"),
            ((g, energy + np.inf), {"num_frames": lengths}, r"\+inf"),
            ((g, energy), {"num_frames": lengths, "sticky": True}, "sticky=True"),
            ((g, energy), {"num_frames": lengths, "per_band": True}, "per_band=True"),
            ((g, energy), {"num_frames": lengths, "per_term": True}, r"\[term, "),
            ((g, energy), {"num_frames": lengths, "min_beta": -1.0}, "min_beta"),
            ((g, energy), {"num_frames": lengths, "separators": ["one"]}, "separators"),
        ]:
            with pytest.raises(ValueError, match=message):
                learn_vb(*arguments, **settings_)

    def test_silence(self):
        g, energy, lengths = utterances()
        silent = Gram(g.energy * (np.arange(10) != 4), g.cross * (np.arange(10) != 4)[:, None], g.gram)
        with pytest.raises(ValueError, match=r"silent true source in example\(s\) \[4\]"):
            learn_vb(silent, energy, loss="sdr", num_frames=lengths)
        rule, _ = learn_vb(silent, energy, loss="mse", num_frames=lengths)
        assert np.isfinite(rule.weights(energy, num_frames=lengths)).all()

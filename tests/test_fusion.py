"""Fusion weights against mpmath and brute force, their laws, and the weighted sum against the waveforms."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bayesfuse.fusion import (
    Gram,
    best_weights,
    effective_models,
    fuse,
    gram,
    learn_beta,
    mean_weights,
    sdr,
    select_weights,
    squared_error,
    vb_weights,
)
from bayesfuse.transforms import STFT

DTYPES = [np.float32, np.float64]


def exact_softmax(free_energy, log_prior, beta):
    """50-digit softmax(log pi + L / beta) of one vector."""
    with mpmath.workdps(50):
        logits = [
            mpmath.mpf(float(p)) + mpmath.mpf(float(v)) / mpmath.mpf(float(beta))
            for v, p in zip(free_energy, log_prior, strict=True)
        ]
        top = max(logits)
        terms = [mpmath.exp(logit - top) for logit in logits]
        return np.array([float(term / mpmath.fsum(terms)) for term in terms])


def on_the_simplex(weights, axis=-1):
    """None negative, and the exact sum (fsum) within half a machine epsilon of one."""
    eps = np.finfo(weights.dtype).eps
    rows = np.moveaxis(weights, axis, -1).reshape(-1, weights.shape[axis])
    return bool((rows >= 0).all()) and all(abs(math.fsum([*map(float, row), -1.0])) <= eps / 2 for row in rows)


def magnitudes(dtype):
    """Free energies from nought to nearly the largest number of the type, -inf included."""
    info = np.finfo(dtype)
    width = info.bits
    plain = st.floats(-1e3, 1e3, width=width)
    wide = st.floats(float(info.min), float(info.max), width=width)
    return st.one_of(plain, wide, st.just(-np.inf))


BETAS = st.one_of(st.sampled_from([0.0, 1.0, np.inf]), st.floats(1e-300, 1e300), st.floats(0.1, 1e4))


class TestVbWeights:
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e2, 1e5, 1e12])
    def test_against_mpmath(self, dtype, scale):
        rng = np.random.default_rng(0)
        eps = np.finfo(dtype).eps
        for models in (1, 2, 7):
            free_energy = (scale * (rng.normal(size=models) - 3.0)).astype(dtype)
            log_prior = np.log(rng.dirichlet(np.ones(models))).astype(dtype)
            for beta in (0.03, 1.0, 100.0, 1e6):
                beta = float(dtype(beta))
                expected = exact_softmax(free_energy, log_prior, beta)
                weights = vb_weights(free_energy, log_prior, beta)
                # Each logit carries a few relative roundings (difference, division, sum with the prior); exp
                # turns them into relative errors of the weight of that many times the logit.
                logits = np.abs(log_prior.astype(float)) + np.ptp(free_energy.astype(float)) / beta
                assert weights.dtype == dtype
                np.testing.assert_allclose(
                    weights, expected, rtol=np.max(4 + 4 * np.minimum(logits, 750)) * eps, atol=4e-38
                )

    @pytest.mark.parametrize("dtype", DTYPES)
    @settings(max_examples=150)
    @given(data=st.data())
    def test_simplex_at_any_magnitude(self, dtype, data):
        free_energy = data.draw(arrays(dtype, st.integers(1, 12), elements=magnitudes(dtype)))
        log_prior = data.draw(st.none() | arrays(dtype, free_energy.shape, elements=st.floats(-50, 0, width=32)))
        weights = vb_weights(free_energy, log_prior, data.draw(BETAS))
        assert weights.dtype == dtype
        assert on_the_simplex(weights)
        impossible = free_energy == -np.inf
        if not impossible.all():
            assert (weights[impossible] == 0).all()

    @settings(max_examples=40)
    @given(st.integers(-(2**20), 2**20), arrays(np.float64, 5, elements=st.integers(-(2**20), 2**20).map(float)))
    def test_a_common_constant_changes_nothing(self, constant, free_energy):
        # Integers, so that the constant is added without rounding and equality can be asked to the bit.
        np.testing.assert_array_equal(vb_weights(free_energy + constant, None, 1e4), vb_weights(free_energy, None, 1e4))

    @settings(max_examples=40)
    @given(arrays(np.float64, 4, elements=st.floats(-1e3, 1e3)), st.floats(1e-3, 1e6), st.permutations(range(4)))
    def test_models_in_another_order(self, free_energy, beta, order):
        # Sums in another order: a few roundings of the weights, no more.
        np.testing.assert_allclose(
            vb_weights(free_energy[order], None, beta),
            vb_weights(free_energy, None, beta)[order],
            rtol=1e-15,
            atol=4e-16,
        )

    def test_beta_zero_is_selection(self, dtype):
        free_energy = np.array([-5.0, 3.0, 2.9, -np.inf], dtype)
        np.testing.assert_array_equal(vb_weights(free_energy, None, 0.0), select_weights(free_energy))

    def test_beta_zero_shares_between_equals(self, dtype):
        free_energy = np.array([3.0, 3.0, 1.0, 3.0], dtype)
        np.testing.assert_array_equal(vb_weights(free_energy, None, 0.0), np.array([1 / 3, 1 / 3, 0, 1 / 3], dtype))
        prior = np.log(np.array([0.1, 0.2, 0.6, 0.1], dtype))
        np.testing.assert_allclose(
            vb_weights(free_energy, prior, 0.0), [0.25, 0.5, 0, 0.25], rtol=4 * np.finfo(dtype).eps
        )

    def test_beta_zero_is_the_limit(self):
        free_energy, prior = np.array([1.0, 4.0, 4.0]), np.log([0.7, 0.2, 0.1])
        np.testing.assert_allclose(
            vb_weights(free_energy, prior, 0.0), vb_weights(free_energy, prior, 1e-3), rtol=1e-15
        )

    def test_beta_infinite_is_the_prior(self, dtype):
        prior = np.array([0.5, 0.3, 0.2], dtype)
        free_energy = np.array([-1e30, 7.0, 1e30], dtype)
        np.testing.assert_allclose(vb_weights(free_energy, np.log(prior), np.inf), prior, rtol=4 * np.finfo(dtype).eps)
        np.testing.assert_array_equal(vb_weights(free_energy, None, np.inf), mean_weights(3, dtype))

    def test_impossible_models(self):
        free_energy = np.array([-np.inf, 2.0, 2.0])
        for beta in (0.0, 1.0, np.inf):
            np.testing.assert_array_equal(vb_weights(free_energy, None, beta), [0, 0.5, 0.5])
        prior = np.log([0.25, 0.25, 0.5])
        for beta in (0.0, 1.0, np.inf):
            np.testing.assert_allclose(vb_weights(np.full(3, -np.inf), prior, beta), [0.25, 0.25, 0.5], rtol=1e-15)

    def test_a_model_without_prior_is_out_however_good(self):
        free_energy, prior = np.array([1e300, 0.0, 0.0]), np.array([-np.inf, 0.0, 0.0])
        for beta in (0.0, 1.0, 1e-300, np.inf):
            np.testing.assert_array_equal(vb_weights(free_energy, prior, beta), [0, 0.5, 0.5])

    def test_differences_beyond_the_largest_number(self):
        # L / beta = +-1.7: the difference of the free energies overflows, that of the weights is plain.
        free_energy = np.array([1.7e308, -1.7e308])
        expected = 1 / (1 + math.exp(3.4))
        np.testing.assert_allclose(vb_weights(free_energy, None, 1e308)[1], expected, rtol=1e-14)

    def test_equal_free_energies_give_the_mean(self, dtype):
        for models in range(1, 130):
            np.testing.assert_array_equal(vb_weights(np.full(models, -3e5, dtype)), mean_weights(models, dtype))

    def test_per_frame_and_batches(self, dtype):
        rng = np.random.default_rng(1)
        free_energy = rng.normal(size=(2, 3, 4), scale=5.0).astype(dtype)
        prior = np.log(np.array([0.2, 0.5, 0.3], dtype))
        weights = vb_weights(free_energy, prior, 2.0, axis=-2)
        assert on_the_simplex(weights, axis=-2)
        for batch in range(2):
            for frame in range(4):
                np.testing.assert_array_equal(
                    weights[batch, :, frame], vb_weights(free_energy[batch, :, frame], prior, 2.0)
                )
        by_example = vb_weights(free_energy[..., 0], prior, np.array([0.5, 3.0]))
        np.testing.assert_array_equal(by_example[1], vb_weights(free_energy[1, :, 0], prior, 3.0))

    def test_temperature_per_frame(self):
        free_energy = np.array([[-900.0, -1000.0], [-450.0, -500.0]])
        weights = vb_weights(free_energy, None, 0.5, frames=np.array([200, 100]))
        np.testing.assert_array_equal(weights[0], vb_weights(free_energy[0], None, 100.0))
        # Twice the duration at the same free energy per frame: the same weights.
        np.testing.assert_array_equal(weights[0], weights[1])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_jax_agrees_under_jit(self, dtype):
        eps = np.finfo(dtype).eps
        free_energy = np.array([[-1e4, -1e4 + 3, -np.inf], [0.0, 5.0, 5.0], [-3e37, 3e37, 2.9e37]], dtype)
        with jax.enable_x64(dtype == np.float64):
            compiled = jax.jit(lambda values, beta: vb_weights(values, None, beta))
            for beta in (0.0, 0.7, 1e38, np.inf):
                weights = np.asarray(compiled(jnp.asarray(free_energy), jnp.asarray(beta, dtype)))
                assert weights.dtype == dtype
                assert on_the_simplex(weights)
                np.testing.assert_allclose(weights, vb_weights(free_energy, None, beta), rtol=32 * eps)

    def test_gradients(self, x64):
        # d a_m / d L_k = a_m (delta_mk - a_k) / beta, also where free energies are equal.
        for free_energy in ([0.0, 0.0, 0.0], [1.0, 4.0, 4.0], [2.0, -1.0, -np.inf]):
            values = jnp.asarray(free_energy)
            weights = vb_weights(values, None, 2.0)
            expected = (jnp.diag(weights) - jnp.outer(weights, weights)) / 2.0
            got = jax.jacobian(lambda v: vb_weights(v, None, 2.0))(values)
            np.testing.assert_allclose(got, expected, atol=1e-15)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((np.array([0.0, np.nan]),), "NaN"),
            ((np.array([0.0, np.inf]),), r"\+inf"),
            ((np.zeros(0),), "at least one"),
            ((np.zeros(2), np.zeros(3)), "2"),
            ((np.zeros(2), np.full(2, -np.inf)), "excludes all"),
            ((np.zeros(2), np.array([0.0, np.nan])), "log_prior"),
            ((np.zeros(2), None, -1.0), "beta"),
            ((np.zeros(2), None, np.nan), "beta"),
            ((np.zeros((3, 2)), None, np.ones(2)), "broadcast"),
        ],
    )
    def test_bad_input(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            vb_weights(*arguments)

    def test_bad_axis_and_frames(self):
        with pytest.raises(ValueError, match="axis"):
            vb_weights(np.zeros(2), axis=1)
        with pytest.raises(ValueError, match="frames"):
            vb_weights(np.zeros(2), frames=0)


class TestOtherWeights:
    def test_mean(self, dtype):
        weights = mean_weights(7, dtype)
        assert weights.dtype == dtype
        assert on_the_simplex(weights)
        with pytest.raises(ValueError, match="at least one"):
            mean_weights(0)

    def test_selection_takes_the_first_of_equals(self):
        free_energy = np.array([[1.0, 7.0, 7.0], [-np.inf, -np.inf, -np.inf]])
        np.testing.assert_array_equal(select_weights(free_energy), [[0, 1, 0], [1, 0, 0]])
        np.testing.assert_array_equal(select_weights(free_energy.T, axis=0), [[0, 1], [1, 0], [0, 0]])
        with pytest.raises(ValueError, match="NaN"):
            select_weights(np.array([np.nan, 0.0]))

    def test_effective_models(self, dtype):
        weights = np.array([[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]], dtype)
        np.testing.assert_allclose(effective_models(weights), [1, 4, 2], rtol=4 * np.finfo(dtype).eps)
        skew = np.array([0.7, 0.3])
        # exp(H) = prod a_m^(-a_m)
        np.testing.assert_allclose(effective_models(skew[:, None], axis=0), [0.7**-0.7 * 0.3**-0.3], rtol=1e-14)


def signals(seed=0, models=4, shape=(1000,)):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=shape)
    return reference, reference + rng.normal(size=(models, *shape)) * np.array([0.1, 0.5, 1.0, 2.0])[:models].reshape(
        -1, *[1] * len(shape)
    )


class TestGram:
    @settings(max_examples=30)
    @given(st.integers(0, 1000))
    def test_error_is_that_of_the_waveforms(self, seed):
        reference, estimates = signals(seed)
        weights = np.random.default_rng(seed).normal(size=4)
        g = gram(reference, estimates)
        error = np.sum((reference - np.tensordot(weights, estimates, axes=1)) ** 2)
        np.testing.assert_allclose(squared_error(weights, g), error, rtol=1e-10)
        ratio = 10 * np.log10(np.sum(reference**2) / error)
        np.testing.assert_allclose(sdr(weights, g), ratio, atol=1e-9)

    def test_long_signals_and_float32_accumulate_in_double_precision(self):
        # Longer than one block, an error 60 dB down: the cancellation would leave no digit in float32.
        reference = np.random.default_rng(0).normal(size=600_000).astype(np.float32)
        estimates = np.stack([reference * np.float32(1.001), np.zeros_like(reference)])
        g = gram(reference, estimates)
        error = np.sum((reference.astype(float) - estimates[0].astype(float)) ** 2)
        np.testing.assert_allclose(squared_error(np.array([1.0, 0.0]), g), error, rtol=1e-8)

    def test_jax(self, x64):
        reference, estimates = signals()
        g = gram(jnp.asarray(reference), jnp.asarray(estimates))
        expected = gram(reference, estimates)
        np.testing.assert_allclose(g.gram, expected.gram, rtol=1e-12)
        np.testing.assert_allclose(g.cross, expected.cross, rtol=1e-12)
        weights = jnp.full(4, 0.25)
        np.testing.assert_allclose(jax.jit(sdr)(weights, g), sdr(mean_weights(4), expected), rtol=1e-12)

    def test_batches_channels_and_concatenation(self):
        reference, estimates = signals(shape=(2, 300))
        g = gram(reference, estimates)
        assert g.gram.shape == (2, 4, 4)
        flat = gram(reference.ravel(), estimates.reshape(4, -1))
        for whole, part in zip(jax.tree.leaves(g.sum()), jax.tree.leaves(flat), strict=True):
            np.testing.assert_allclose(whole, part, rtol=1e-12)
        stacked = Gram.stack([flat, flat])
        np.testing.assert_allclose(
            squared_error(mean_weights(4), stacked.sum()), 2 * squared_error(mean_weights(4), flat)
        )
        by_channel = squared_error(np.eye(4)[:2], g)
        for channel in range(2):
            error = np.sum((reference[channel] - estimates[channel, channel]) ** 2)
            np.testing.assert_allclose(by_channel[channel], error, rtol=1e-10)

    def test_perfect_and_silent(self):
        reference = np.array([1.0, 2.0])
        assert sdr(np.ones(1), gram(reference, reference[None])) == np.inf
        assert sdr(np.ones(1), gram(0 * reference, reference[None])) == -np.inf
        assert np.isnan(sdr(np.ones(1), gram(0 * reference, 0 * reference[None])))

    def test_best_is_brute_force(self):
        for seed in range(5):
            reference, estimates = signals(seed)
            estimates = estimates[np.random.default_rng(seed).permutation(4)]
            best = np.argmin(np.sum((estimates - reference) ** 2, axis=-1))
            np.testing.assert_array_equal(best_weights(gram(reference, estimates)), np.eye(4)[best])

    def test_bad_input(self):
        reference, estimates = signals()
        with pytest.raises(ValueError, match="common length"):
            gram(reference[:-1], estimates)
        with pytest.raises(ValueError, match="no model"):
            gram(reference, estimates[:0])
        with pytest.raises(ValueError, match="reference with NaN"):
            gram(np.full_like(reference, np.nan), estimates)
        with pytest.raises(ValueError, match="4"):
            squared_error(np.ones(3), gram(reference, estimates))
        with pytest.raises(ValueError, match="same models"):
            Gram.stack([gram(reference, estimates), gram(reference, estimates[:2])])
        with pytest.raises(ValueError, match="no Gram"):
            Gram.stack([])
        with pytest.raises(ValueError, match="axis"):
            gram(reference, estimates).sum(0)


class TestLearnBeta:
    def problem(self, seed, examples=6, models=5):
        """Estimates with errors of a common and an own part, free energies that know the own part roughly."""
        rng = np.random.default_rng(seed)
        frames = rng.integers(50, 200, examples)
        grams, energies = [], []
        for count in frames:
            reference = rng.normal(size=400)
            level = rng.uniform(0.2, 1.0, models)
            noise = rng.normal(size=(models, 400)) * level[:, None]
            grams.append(gram(reference, reference + noise))
            energies.append(-count * 40.0 * (level + rng.normal(size=models, scale=0.1)))
        return grams, np.array(energies), frames

    @pytest.mark.parametrize("loss", ["sdr", "mse"])
    @pytest.mark.parametrize("seed", range(4))
    def test_finds_the_best_of_a_dense_scan(self, loss, seed):
        grams, energies, frames = self.problem(seed)
        g = Gram.stack(grams)

        def score(beta):
            weights = vb_weights(energies, None, beta, frames=frames)
            return sdr(weights, g).mean() if loss == "sdr" else -squared_error(weights, g).sum()

        beta = learn_beta(grams, energies, frames, loss)
        dense = max(score(b) for b in np.geomspace(1e-3, 1e5, 800))
        # The refinement within the valleys can only be better than a scan.
        assert score(beta) >= dense - 1e-9 * abs(dense)
        selection, mean = select_weights(energies), mean_weights(5)
        ends = [sdr(w, g).mean() if loss == "sdr" else -squared_error(w, g).sum() for w in (selection, mean)]
        assert score(beta) >= max(ends)
        assert max(ends) < score(beta), "the problem is such that averaging beats both ends"

    def test_units_are_per_frame(self):
        grams, energies, frames = self.problem(0)
        beta = learn_beta(grams, energies, frames)
        np.testing.assert_allclose(learn_beta(grams, 10 * energies, 10 * frames), beta, rtol=1e-4)
        np.testing.assert_allclose(learn_beta(Gram.stack(grams), energies + 7.0, list(frames)), beta, rtol=1e-4)

    def test_ends_are_reached(self):
        # Perfect knowledge of a perfect model: selection. Errors that cancel in the mean alone: the mean.
        reference = np.ones(10)
        errors = np.linspace(-1, 1, 10)
        perfect = gram(reference, np.stack([reference, reference + errors]))
        opposite = gram(reference, np.stack([reference - errors, reference + errors]))
        energies = np.array([[0.0, -100.0]])
        np.testing.assert_allclose(
            vb_weights(energies, None, learn_beta([perfect], energies, [10]), frames=10), [[1, 0]], atol=1e-7
        )
        np.testing.assert_allclose(
            vb_weights(energies, None, learn_beta([opposite], energies, [10]), frames=10),
            [[0.5, 0.5]],
            atol=1e-3,
        )

    def test_free_energies_without_differences(self):
        grams, energies, frames = self.problem(0)
        beta = learn_beta(grams, np.zeros_like(energies), frames)
        np.testing.assert_array_equal(vb_weights(np.zeros(5), None, beta), mean_weights(5))

    def test_bad_input(self):
        grams, energies, frames = self.problem(0)
        with pytest.raises(ValueError, match="same examples"):
            learn_beta(grams[:-1], energies, frames)
        with pytest.raises(ValueError, match="same examples"):
            learn_beta(grams, energies, frames[:-1])
        with pytest.raises(ValueError, match="num_frames"):
            learn_beta(grams, energies, 0 * frames)
        with pytest.raises(ValueError, match="NaN"):
            learn_beta(grams, energies * np.nan, frames)
        silent = gram(np.zeros(400), np.ones((5, 400)))
        with pytest.raises(ValueError, match=r"silent true source in example\(s\) \[5\]"):
            learn_beta([*grams[:-1], silent], energies, frames)


class TestFuse:
    transform = STFT(window=64, hop=32)

    def test_constant_weights(self, dtype):
        _, estimates = signals(shape=(2, 500))
        estimates = estimates.astype(dtype)
        weights = np.array([0.1, 0.2, 0.3, 0.4])
        fused = fuse(weights, estimates)
        assert fused.dtype == dtype
        expected = sum(w * e.astype(float) for w, e in zip(weights, estimates, strict=True))
        np.testing.assert_allclose(fused, expected, atol=20 * np.finfo(dtype).eps)

    def test_selection_returns_the_estimate_itself(self, dtype):
        _, estimates = signals()
        estimates = estimates.astype(dtype)
        np.testing.assert_array_equal(fuse(np.eye(4, dtype=dtype)[2], estimates), estimates[2])

    @pytest.mark.parametrize("length", [1, 63, 500])
    def test_the_same_weights_in_each_frame_are_constant_weights(self, dtype, length):
        _, estimates = signals(shape=(2, length))
        estimates = estimates.astype(dtype)
        weights = np.array([0.1, 0.2, 0.3, 0.4], dtype)
        frames = self.transform.num_frames(length)
        per_frame = fuse(np.tile(weights[:, None], (1, frames)), estimates, transform=self.transform)
        assert per_frame.dtype == dtype
        # A few roundings of a transform of 64 samples, of values of a few units.
        np.testing.assert_allclose(per_frame, fuse(weights, estimates), atol=100 * np.finfo(dtype).eps)

    def test_per_frame_is_a_fade_by_the_squared_window(self):
        # Framing and overlap-add of a waveform multiply it by sum_n a_mn w(t - nR)^2.
        _, estimates = signals(shape=(500,))
        frames = self.transform.num_frames(500)
        weights = np.random.default_rng(0).dirichlet(np.ones(4), frames).T
        gains = np.zeros((4, 32 * frames + 64))
        for n in range(frames):
            gains[:, 32 * n : 32 * n + 64] += weights[:, n, None] * np.sin(np.pi * (np.arange(64) + 0.5) / 64) ** 2
        # The first frame begins one hop before the signal.
        expected = np.sum(gains[:, 32 : 32 + 500] * estimates, axis=0)
        np.testing.assert_allclose(fuse(weights, estimates, transform=self.transform), expected, atol=1e-13)

    @settings(max_examples=20)
    @given(st.integers(0, 10_000), st.floats(-3, 3), st.booleans())
    def test_linear(self, seed, factor, per_frame):
        rng = np.random.default_rng(seed)
        shape = (3, self.transform.num_frames(200)) if per_frame else (3,)
        transform = self.transform if per_frame else None
        a, b = rng.normal(size=(2, *shape))
        x, y = rng.normal(size=(2, 3, 200))
        both = fuse(a + factor * b, x, transform=transform)
        np.testing.assert_allclose(
            both, fuse(a, x, transform=transform) + factor * fuse(b, x, transform=transform), atol=1e-12
        )
        both = fuse(a, x + factor * y, transform=transform)
        np.testing.assert_allclose(
            both, fuse(a, x, transform=transform) + factor * fuse(a, y, transform=transform), atol=1e-12
        )

    def test_jax(self, x64):
        _, estimates = signals(shape=(300,))
        frames = self.transform.num_frames(300)
        weights = np.random.default_rng(0).dirichlet(np.ones(4), frames).T
        compiled = jax.jit(lambda w, e: fuse(w, e, transform=self.transform))
        got = compiled(jnp.asarray(weights), jnp.asarray(estimates))
        np.testing.assert_allclose(got, fuse(weights, estimates, transform=self.transform), atol=1e-12)

    def test_arguments_are_not_written_to(self):
        _, estimates = signals()
        weights = np.full((4, self.transform.num_frames(1000)), 0.25)
        before = estimates.copy(), weights.copy()
        estimates.flags.writeable = weights.flags.writeable = False
        fuse(weights, estimates, transform=self.transform)
        np.testing.assert_array_equal(estimates, before[0])
        np.testing.assert_array_equal(weights, before[1])

    def test_bad_input(self):
        _, estimates = signals()
        frames = self.transform.num_frames(1000)
        with pytest.raises(ValueError, match="3 models, but there are 4"):
            fuse(np.ones(3), estimates)
        with pytest.raises(ValueError, match="no transform"):
            fuse(np.ones((4, frames)), estimates)
        with pytest.raises(ValueError, match=f"{frames - 1} frames"):
            fuse(np.ones((4, frames - 1)), estimates, transform=self.transform)
        with pytest.raises(ValueError, match="estimates with NaN"):
            fuse(np.ones(4), estimates * np.nan)
        with pytest.raises(ValueError, match="weights with NaN"):
            fuse(np.full(4, np.inf), estimates)
        with pytest.raises(ValueError, match="estimates of shape"):
            fuse(np.ones(4), np.ones(4))

"""Marginals of the sticky chain against the sum over all paths."""

from itertools import pairwise, product

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesfuse._markov import chain_marginals


def enumerated(log_potentials, stickiness):
    """Marginals [model, frame] by summing the probability of every path."""
    models, frames = log_potentials.shape
    marginals = np.zeros((models, frames))
    potentials = np.exp(log_potentials - log_potentials.max(axis=0))
    for path in product(range(models), repeat=frames):
        probability = np.prod([potentials[m, n] for n, m in enumerate(path)])
        for before, after in pairwise(path):
            probability *= stickiness * (before == after) + (1 - stickiness) / models
        marginals[list(path), range(frames)] += probability
    return marginals / marginals.sum(axis=0)


class TestChainMarginals:
    @settings(max_examples=15)
    @given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.99]), st.sampled_from([1.0, 30.0]))
    def test_against_all_paths(self, seed, stickiness, scale):
        potentials = scale * np.random.default_rng(seed).normal(size=(3, 5))
        with jax.enable_x64(True):
            got = np.asarray(chain_marginals(potentials, stickiness))
        np.testing.assert_allclose(got, enumerated(potentials, stickiness), atol=1e-12)

    def test_excluded_models_padding_and_axes(self, x64):
        potentials = np.random.default_rng(0).normal(size=(3, 5))
        potentials[0] = -np.inf
        potentials[1, 2] = -np.inf
        expected = enumerated(potentials, 0.7)
        np.testing.assert_allclose(chain_marginals(potentials, 0.7), expected, atol=1e-14)
        padded = np.pad(potentials, [(0, 0), (0, 4)])
        np.testing.assert_allclose(chain_marginals(padded, 0.7)[:, :5], expected, atol=1e-14)
        bands = np.stack([potentials, potentials[[2, 1, 0]]], axis=-1)
        np.testing.assert_allclose(chain_marginals(bands, 0.7, axis=1)[..., 0], expected, atol=1e-14)

    @pytest.mark.parametrize("stickiness", [0.0, 0.5, 0.9997])
    def test_long_chains_of_extreme_potentials(self, stickiness, x64):
        potentials = 1e3 * np.random.default_rng(1).normal(size=(7, 2000))
        weights = np.asarray(chain_marginals(potentials, stickiness))
        assert np.isfinite(weights).all() and (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(axis=0), 1.0, rtol=1e-12)

"""Masks by networks and their combination against the formulas of the paper, and on sounds that are easy to part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesfuse._training import Training
from bayesfuse.mask_networks import (
    PAPER,
    MaskCombination,
    MaskConfig,
    binary_mask,
    discriminative_cost,
    soft_mask,
    train_masks,
)
from bayesfuse.metrics import sdr
from bayesfuse.transforms import STFT

KEY = jax.random.key(0)
CONFIG = MaskConfig(STFT(64, 16), 1, None, (0.1, 0.1), Training(25, 12, 5e-3, "adam"))


def pair(seed, samples=1200):
    """A low and a high tone, each switched on and off."""
    rng = np.random.default_rng(seed)
    switches = np.repeat(rng.uniform(size=(2, samples // 150)) > 0.4, 150, axis=1)
    frequencies = np.array([500.0, 2500.0]) + rng.uniform(-50, 50, 2)
    tones = np.sin(2 * np.pi * frequencies[:, None] * np.arange(samples) / 8000)
    return (tones * switches + 0.02 * rng.normal(size=(2, samples))).astype(np.float32)


@pytest.fixture(scope="module")
def networks():
    return train_masks(KEY, [pair(i) for i in range(6)], [pair(i) for i in range(6, 12)], [pair(20)], config=CONFIG)


def test_reference_masks():
    first, second = np.array([1.0, 2.0, 3.0, 0.0]), np.array([2.0, 2.0, 1.0, 0.0])
    np.testing.assert_array_equal(binary_mask(first, second), [0, 1, 1, 1])
    np.testing.assert_array_equal(soft_mask(first, second), [1 / 3, 0.5, 0.75, 0.5])


def test_cost_against_loops():
    rng = np.random.default_rng(0)
    q, v = rng.uniform(size=(3, 8)), rng.uniform(size=(3, 8))
    expected = np.zeros(3)
    for n in range(3):
        for f in range(4):
            expected[n] += (q[n, f] - v[n, f]) ** 2 + (q[n, 4 + f] - v[n, 4 + f]) ** 2
            expected[n] -= 0.3 * (q[n, f] - v[n, 4 + f]) ** 2 + 0.2 * (q[n, 4 + f] - v[n, f]) ** 2
    found = discriminative_cost(jnp.asarray(q), jnp.asarray(v), (0.3, 0.2))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_final_mask_is_that_of_the_paper(networks):
    magnitudes = np.abs(networks.transform.analysis(pair(30).sum(0))).T
    found = networks.masks(magnitudes)

    def run(network, x):
        for layer in network.layers:
            x = 1 / (1 + np.exp(-(x @ np.asarray(layer.weight, float).T + np.asarray(layer.bias, float))))
        return x

    binary, soft = (run(n, magnitudes / networks.level) for n in (networks.binary, networks.soft))
    np.testing.assert_allclose(found.binary, binary, atol=1e-5)
    np.testing.assert_allclose(found.soft, soft, atol=1e-5)
    parts = [magnitudes * m for m in (binary, 1 - binary, soft, 1 - soft)]
    outputs = run(networks.combining, np.concatenate(parts, axis=1) / networks.level)
    norms = [np.sqrt((p**2).sum(1)) for p in parts]
    first = ((norms[0] + norms[2]) / 2)[:, None] * outputs[:, :33]
    second = ((norms[1] + norms[3]) / 2)[:, None] * outputs[:, 33:]
    np.testing.assert_allclose(found.combined, first / (first + second), atol=1e-4)


def test_sources_add_up_to_the_mixture_and_are_parted(networks):
    truth = pair(31)
    mixture = truth.sum(0)[None]
    for which in ("binary", "soft", "combined"):
        sources = networks.sources(mixture, which)
        assert sources.shape == (2, 1, 1200) and sources.dtype == np.float32
        np.testing.assert_allclose(sources.sum(0), mixture, atol=1e-5)
        assert min(sdr(truth[j], sources[j, 0]) for j in range(2)) > 4
    assert sdr(truth[0], mixture[0]) < 2
    np.testing.assert_array_equal(networks.sources(0 * mixture), 0)


def test_saved_networks_are_the_same_to_the_bit(networks, tmp_path):
    networks.save(tmp_path / "masks.nc")
    again = MaskCombination.load(tmp_path / "masks.nc")
    assert again.transform == networks.transform and again.level == networks.level
    mixture = pair(32).sum(0)[None]
    np.testing.assert_array_equal(again.sources(mixture), networks.sources(mixture))


def test_checkpoints_give_the_same_networks(networks, tmp_path):
    arguments = (KEY, [pair(i) for i in range(6)], [pair(i) for i in range(6, 12)], [pair(20)])
    for _ in range(2):
        again = train_masks(*arguments, config=CONFIG, checkpoint=tmp_path / "run")
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(networks), strict=True):
            np.testing.assert_array_equal(a, b)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["binary.nc", "combining.nc", "soft.nc"]


def test_settings():
    assert PAPER.momentum == 0 and PAPER.rule.increase == PAPER.rule.decrease == 1
    with pytest.raises(ValueError, match="second set"):
        train_masks(KEY, [pair(0)], [], [pair(1)], config=CONFIG)

"""Ideal masks against their definitions, bin by bin."""

import numpy as np
import pytest

from bayesfuse import masks
from bayesfuse.metrics import sdr
from bayesfuse.transforms import STFT

TRANSFORM = STFT(64, 16)
RULES = [masks.binary_mask, masks.ratio_mask, masks.wiener_mask]


def sources(shape=(3, 2, 400), seed=0):
    # Each source in bursts of its own, so that the bins are shared unevenly.
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * (rng.random((*shape[:-1], shape[-1] // 40)) ** 4).repeat(40, axis=-1)


def test_definitions():
    coefficients = TRANSFORM.analysis(sources())
    magnitude = abs(coefficients)
    np.testing.assert_allclose(masks.ratio_mask(coefficients), magnitude / magnitude.sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(masks.wiener_mask(coefficients), magnitude**2 / (magnitude**2).sum(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(masks.binary_mask(coefficients), magnitude == magnitude.max(axis=0))


@pytest.mark.parametrize("rule", RULES)
def test_estimates_sum_to_the_mixture(rule, dtype):
    references = sources().astype(dtype)
    mixture = references.sum(axis=0)
    estimates = masks.ideal_estimates(rule, mixture, references, transform=TRANSFORM)
    assert estimates.dtype == dtype
    assert estimates.shape == references.shape
    np.testing.assert_allclose(estimates.sum(axis=0), mixture, atol=1e3 * np.finfo(dtype).eps)
    assert (sdr(references, estimates, axis=(-2, -1)) > sdr(references, mixture[None], axis=(-2, -1)) + 3).all()


@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_given_is_one_more_source(rule):
    references = sources()
    mixture = references.sum(axis=0)
    rest = references[1:].sum(axis=0, keepdims=True)
    alone = masks.ideal_estimates(rule, mixture, references[:1], transform=TRANSFORM)
    both = masks.ideal_estimates(rule, mixture, np.concatenate([references[:1], rest]), transform=TRANSFORM)
    np.testing.assert_allclose(alone, both[:1], atol=1e-6)


def test_pieces_are_the_whole(monkeypatch):
    references = sources()
    mixture = references.sum(axis=0)
    whole = masks.ideal_estimates(masks.ratio_mask, mixture, references[:2], transform=TRANSFORM)
    monkeypatch.setattr(masks, "_BLOCK", 700)
    cut = masks.ideal_estimates(masks.ratio_mask, mixture, references[:2], transform=TRANSFORM)
    np.testing.assert_allclose(cut, whole, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_silence(rule):
    silence = np.zeros((2, 1, 100))
    np.testing.assert_array_equal(masks.ideal_estimates(rule, silence[0], silence, transform=TRANSFORM), silence)


def test_bad_input():
    references = sources()
    with pytest.raises(ValueError, match="shape of the mixture"):
        masks.ideal_estimates(masks.ratio_mask, references[0, :, 1:], references, transform=TRANSFORM)
    with pytest.raises(ValueError, match="mixture with NaN"):
        masks.ideal_estimates(masks.ratio_mask, np.nan * references[0], references, transform=TRANSFORM)

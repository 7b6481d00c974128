"""Dictionaries that keep the posterior of their spectra."""

import numpy as np
import pytest

from bayesfuse.dictionary import Dictionary, train_dictionary
from bayesfuse.nmf import itakura_saito
from bayesfuse.separators.vb_nmf import Settings, fit_joint
from bayesfuse.transforms import STFT
from bayesfuse.vb_dictionary import train_vb_dictionary

RATE = 8000
TRANSFORM = STFT(256, 128)


def tones(seed, seconds=1.0):
    """Two alternating harmonic notes with a little noise: two clear spectra."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    low = np.sin(2 * np.pi * 500 * t) * (t % 0.2 < 0.1)
    high = np.sin(2 * np.pi * 1500 * t) * (t % 0.2 >= 0.1)
    return (low + high + 0.01 * rng.standard_normal(t.size)).astype(np.float32)


@pytest.fixture(scope="module")
def dictionary():
    return train_vb_dictionary([tones(0)], RATE, 4, transform=TRANSFORM, num_iters=30)


def test_posterior_is_kept_and_survives_saving(dictionary, tmp_path):
    assert np.all(dictionary.harmonic <= dictionary.weights * (1 + 1e-5))
    # The harmonic mean is strictly below the mean wherever the posterior has a width, that is everywhere.
    assert np.median(dictionary.harmonic / dictionary.weights) < 0.999
    dictionary.save(tmp_path / "d.npz")
    loaded = Dictionary.load(tmp_path / "d.npz")
    np.testing.assert_array_equal(loaded.harmonic, dictionary.harmonic)
    np.testing.assert_array_equal(loaded.weights, dictionary.weights)


def test_spectra_explain_other_recordings_like_those_of_maximum_likelihood(dictionary):
    power = TRANSFORM.power(TRANSFORM.analysis(tones(1)))
    power = power / power.mean()
    ml = train_dictionary([tones(0)], RATE, 4, transform=TRANSFORM, num_iters=30)

    def misfit(candidate):
        fit = fit_joint(power, [[candidate]], Settings(num_iters=30, noise=1e-4))
        component = fit.posterior.components[0][0]
        model = component.dictionary.mean @ component.activations.mean + 1e-4
        return itakura_saito(power, model) / power.size

    # A wrong dictionary (flat spectra) is far worse than either; the two agree within a fraction of that gap.
    flat = Dictionary(np.ones((129, 4), np.float32), RATE, TRANSFORM.to_dict())
    assert abs(misfit(dictionary) - misfit(ml)) < 0.2 * (misfit(flat) - misfit(ml))


def test_mean_activation_on_the_training_data_is_one():
    recordings = [tones(0)]
    trained = train_vb_dictionary(recordings, RATE, 2, transform=TRANSFORM, num_iters=30)
    power = TRANSFORM.power(TRANSFORM.analysis(recordings[0]))
    fit = fit_joint(power / power.mean(), [[trained]], Settings(num_iters=30))
    # The activations are fitted anew under another prior mean (1 in place of 1/2), hence the tolerance.
    assert fit.posterior.components[0][0].activations.mean.mean(1) == pytest.approx(np.ones(2), rel=0.25)


def test_more_components_than_frames():
    with pytest.raises(ValueError, match="order 500 exceeds"):
        train_vb_dictionary([tones(0)], RATE, 500, transform=TRANSFORM)

"""Draws from the model as a data set: what [JVR14] 4.1 prescribes, measured on the draws."""

import pickle

import jax
import numpy as np
import pytest
import set_layouts as made
from scipy import stats

from bayesfuse.datasets import Chime2, Synthetic, learned, open_dataset
from bayesfuse.dictionary import Dictionary
from bayesfuse.transforms import QERB, STFT

WINDOW = STFT(64, 32)
RATE = 8000


def dictionary(order: int, seed: int = 0) -> Dictionary:
    weights = np.random.default_rng(seed).gamma(0.5, 2.0, (WINDOW.num_bins, order)) + 0.01
    return Dictionary(weights, RATE, WINDOW.to_dict())


@pytest.fixture(scope="module")
def data() -> Synthetic:
    return Synthetic([dictionary(2), dictionary(3, 1)], dictionary(2, 2), snrs_db=(-6, 9), draws=2, frames=40, seed=3)


def test_conditions(data):
    assert len(data) == 8 and data.rate == RATE and data.transform == WINDOW
    assert data.names[:3] == ("order2_m6dB_0", "order2_m6dB_1", "order2_9dB_0")
    assert [(e.metadata["order"], e.metadata["snr_db"]) for e in data.entries[::2]] == [
        (2, -6),
        (2, 9),
        (3, -6),
        (3, 9),
    ]
    assert data.groups == data.names and data.splits == ("all",)
    # [JVR14] 4.1: seven orders at six SNRs, 300 frames of 2048 samples.
    paper = Synthetic()
    assert len(paper) == 42 and paper.frames == 300 and paper.transform == STFT(2048, 1024)
    assert paper.transform.num_frames(paper.length) == 300


def test_draws(data):
    draw = data.draw(2)
    np.testing.assert_array_equal(draw.X, draw.speech + draw.background + draw.error)
    energy = [np.sum(np.abs(source) ** 2) for source in (draw.speech, draw.background)]
    np.testing.assert_allclose(10 * np.log10(energy[0] / energy[1]), 9.0, atol=1e-9)
    np.testing.assert_array_equal(draw.dictionaries[0], data.speech[0].weights)
    again = pickle.loads(pickle.dumps(data)).draw(2)
    np.testing.assert_array_equal(draw.X, again.X)
    assert not np.allclose(draw.speech, data.draw(3).speech)  # another draw of the same condition
    assert data.draw(-1).X.shape == (33, 40)


def test_distributions(data):
    """Sources and sensor noise, divided by their deviations, and activations, follow the model's laws."""
    draws = [data.draw(i) for i in range(len(data))]
    for source, gain in (("speech", lambda d: 1.0), ("background", lambda d: d.gain)):
        j = ("speech", "background").index(source)
        power = [
            np.abs(getattr(d, source)) ** 2 / (gain(d) ** 2 * (d.dictionaries[j] @ d.activations[j])) for d in draws
        ]
        assert stats.kstest(np.concatenate(power, axis=None), stats.expon.cdf).pvalue > 1e-3
    noise = np.concatenate([np.abs(d.error) ** 2 / 1e-6 for d in draws], axis=None)
    assert stats.kstest(noise, stats.expon.cdf).pvalue > 1e-3
    activations = np.concatenate([h for d in draws for h in d.activations], axis=None)
    assert stats.kstest(activations, stats.gamma(0.2, scale=5.0).cdf).pvalue > 1e-3


def test_waveforms(data, dtype):
    other = Synthetic(data.speech, data.background, snrs_db=(-6, 9), draws=2, frames=40, seed=3, dtype=dtype)
    item, draw = other[1], other.draw(1)
    assert item.mixture.shape == (1, other.length) and item.mixture.dtype == dtype and item.residual_db < -120
    expected = np.asarray(WINDOW.synthesis(draw.X, other.length))
    np.testing.assert_allclose(item.mixture[0], expected, atol=1e-5 * np.abs(expected).max())
    assert item.metadata == {"order": 2, "snr_db": -6.0, "draw": 1, "gain": draw.gain}
    assert WINDOW.num_frames(other.length) == 40
    # Synthesis projects, which loses the same share of both sources: the level hardly changes.
    levels = [10 * np.log10(np.sum(s.astype(float) ** 2)) for s in item.sources.values()]
    assert abs(levels[0] - levels[1] + 6) < 1.5


def test_dictionaries_drawn_too():
    data = Synthetic([1, 2], 2, snrs_db=[0], frames=40, transform=WINDOW, draws=3, seed=1)
    draws = [data.draw(i) for i in range(len(data))]
    assert [d.dictionaries[0].shape for d in draws[::3]] == [(33, 1), (33, 2)]
    assert not np.allclose(draws[0].dictionaries[0], draws[1].dictionaries[0])
    weights = np.concatenate([w for d in draws for w in d.dictionaries], axis=None)
    assert stats.kstest(weights, stats.gamma(0.2, scale=5.0).cdf).pvalue > 1e-3
    # Activations have the mean 1 / order: all orders are equally loud.
    two = np.concatenate([d.activations[0] for d in draws[3:]], axis=None)
    assert stats.kstest(two, stats.gamma(0.2, scale=5.0 / 2).cdf).pvalue > 1e-3


def test_learned_on_recordings(tmp_path):
    """The recipe of [JVR14] 4.1: halves of the speech that do not overlap, background from the context."""
    chime = Chime2(made.chime2(tmp_path), context=0.2, mono=True)
    data = learned(
        chime, "s1", orders=[1, 2], background_order=2, seconds=0.3, transform=WINDOW, frames=40, snrs_db=[0], seed=1
    )
    assert [d.order for d in data.speech] == [1, 2] and data.background.order == 2 and data.rate == RATE
    kept = data.training_speech("s1")
    assert len(kept) == 1 and kept.names[0] in chime.training_speech("s1").names and data.speakers == ("s1",)
    assert data[0].mixture.shape == (1, data.length)
    with pytest.raises(ValueError, match="no training speech of 's2'"):
        data.training_speech("s2")
    options = {"orders": [1], "background_order": 1, "frames": 80, "snrs_db": [3], "transform": WINDOW}
    opened = open_dataset("synthetic", tmp_path, **options)
    assert isinstance(opened, Synthetic) and opened.names == ("order1_3dB",)


def test_refusals(tmp_path):
    assert len(open_dataset("synthetic", draws=2)) == 84  # nothing is drawn yet
    with pytest.raises(ValueError, match="have no option orders; there are speech, background"):
        open_dataset("synthetic", orders=[2])
    with pytest.raises(ValueError, match="one rate and one STFT"):
        Synthetic([dictionary(2)], Dictionary(dictionary(2).weights, 2 * RATE, WINDOW.to_dict()))
    bands = QERB(RATE, bands=12)
    with pytest.raises(ValueError, match="one rate and one STFT"):
        Synthetic([Dictionary(np.ones((12, 2)), RATE, bands.to_dict())], 2)
    for options in ({"draws": 0}, {"frames": 2}, {"snrs_db": ()}, {"speech": [2, 2]}):
        with pytest.raises(ValueError, match="different orders, at least one SNR and draw"):
            Synthetic(**options)
    with pytest.raises(ValueError, match="seed=-1"):
        Synthetic(seed=-1)
    with pytest.raises(ValueError, match="has no training_speech"):
        learned(Synthetic())


def test_nothing_changes_the_configuration(data):
    before = jax.config.jax_enable_x64
    data.draw(0)
    assert jax.config.jax_enable_x64 == before

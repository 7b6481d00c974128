"""Lag, gain, polarity and clipping of estimates, and their repair, against signals made so."""

import numpy as np
import pytest
import scipy.signal
from small_example import noise, voice
from wav_folder import separate

from bayesfuse import alignment
from bayesfuse.transforms import STFT

LENGTH = 24000
MAX_LAG = 3000


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Mixture [1, sample] and estimates of its two sources that sum to it, both below 0.8 of half the rate."""
    mixture = (voice(LENGTH, 1, np.float64) + noise(LENGTH, 1, np.float64))[None]
    section = scipy.signal.butter(12, 0.75, output="sos")
    mixture = scipy.signal.sosfiltfilt(section, mixture)
    estimates = separate(mixture, 900.0)
    return mixture, np.stack([estimates["voice"], estimates["noise"]])


def late(estimates: np.ndarray, lags, gains) -> np.ndarray:
    """Estimates that come late by `lags` and need `gains`, delayed by the DFT."""
    frequencies = np.fft.rfftfreq(2 * LENGTH)
    spectra = np.fft.rfft(estimates, 2 * LENGTH) * np.exp(-2j * np.pi * frequencies * np.array(lags)[:, None, None])
    return np.fft.irfft(spectra)[..., :LENGTH] / np.array(gains)[:, None, None]


@pytest.mark.parametrize(
    ("lags", "gains"),
    [
        ((0, 0), (1, 1)),
        ((0, 0), (1, -1)),
        ((1105, 1105), (1, 1)),
        ((37.25, 37.25), (1, 1)),
        ((-12.6, -12.6), (-1, 1)),
        ((0, 0), (0.5, 3)),
        ((2257, 2257), (-1, -0.2)),
        ((5, -80.5), (2, 2)),
    ],
)
def test_lag_gain_and_polarity_are_found_and_repaired(pair, lags, gains):
    mixture, estimates = pair
    distorted = late(estimates, lags, gains)
    placed = alignment.place(mixture, distorted, max_lag=MAX_LAG)
    np.testing.assert_allclose(placed.lag, lags, atol=0.05)
    np.testing.assert_allclose(placed.gain, gains, rtol=0.02)
    assert placed.complete and not placed.clipped.any()
    repaired = np.stack(
        [alignment.align(y, float(lag), float(gain)) for y, lag, gain in zip(distorted, lags, gains, strict=True)]
    )
    inside = slice(100, LENGTH - 100 - int(max(0, *lags)))
    error = np.sum((repaired - estimates)[..., inside] ** 2) / np.sum(estimates**2)
    assert error < 1e-6


def test_what_is_right_is_left_alone_to_the_last_bit(pair):
    mixture, estimates = pair
    placed = alignment.place(mixture, estimates, max_lag=MAX_LAG)
    assert placed.lag.tolist() == [0, 0] and placed.gain.tolist() == [1, 1]
    np.testing.assert_array_equal(alignment.align(estimates[0], 0.0), estimates[0])


def test_whole_lags_on_request(pair):
    mixture, estimates = pair
    placed = alignment.place(mixture, late(estimates, (7.4, 7.4), (1, 1)), max_lag=50, sub_sample=False)
    assert placed.lag.tolist() == [7, 7]


def test_one_source_alone_has_a_lag_but_no_gain(pair):
    mixture, estimates = pair
    placed = alignment.place(mixture, late(estimates[1:], (40,), (-2,)), max_lag=MAX_LAG)
    assert placed.lag.tolist() == [40] and placed.gain.tolist() == [-1]
    assert not placed.complete and placed.residual > 0.01


def test_silent_and_unrelated_estimates_have_no_lag(pair):
    mixture, estimates = pair
    unrelated = 0.1 * np.random.default_rng(0).standard_normal(mixture.shape)
    placed = alignment.place(mixture, np.stack([0 * mixture, unrelated]), max_lag=MAX_LAG)
    assert np.isnan(placed.lag).all() and placed.gain.tolist() == [1, 1]
    silent = alignment.place(0 * mixture, estimates, max_lag=MAX_LAG)
    assert np.isnan(silent.residual) and not silent.complete and np.isfinite(silent.gain).all()


def test_scale_does_not_matter(pair):
    mixture, estimates = pair
    distorted = late(estimates, (3.5, 3.5), (2, 1))
    for scale in (1e-6, 1e6):
        placed = alignment.place(scale * mixture, scale * distorted, max_lag=100)
        np.testing.assert_allclose(placed.lag, 3.5, atol=0.05)
        np.testing.assert_allclose(placed.gain, (2, 1), rtol=0.02)


def test_blocks_give_the_same(pair, monkeypatch):
    mixture, estimates = pair
    distorted = late(estimates, (20.3, 20.3), (0.5, 1))
    whole = alignment.place(mixture, distorted, max_lag=200)
    monkeypatch.setattr(alignment, "BLOCK", 1000)
    blocks = alignment.place(mixture, distorted, max_lag=200)
    for one, other in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)
    pieces = [
        alignment.shifted(lambda a, b: alignment.padded(mixture, a, b), start, min(start + 999, LENGTH), -3.3)
        for start in range(0, LENGTH, 999)
    ]
    np.testing.assert_allclose(np.concatenate(pieces, axis=-1), alignment.align(mixture, -3.3), atol=1e-12)


def test_stereo_channels_are_measured_together(pair):
    mixture, estimates = pair
    stereo = np.concatenate([mixture, 0 * mixture])
    both = np.concatenate([estimates, 0 * estimates], axis=1)
    placed = alignment.place(stereo, late(both, (9, 9), (1, 1)), max_lag=100)
    assert placed.lag.tolist() == [9, 9] and placed.complete


def test_shorter_than_the_search():
    rng = np.random.default_rng(0)
    mixture = rng.standard_normal((1, 20))
    placed = alignment.place(mixture, mixture[None], max_lag=50)
    assert placed.gain.tolist() == [1] and placed.complete
    assert alignment.place(mixture, mixture[None], max_lag=0).lag.tolist() == [0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_repair_keeps_precision_and_length(dtype):
    x = np.ones((2, 50), dtype)
    for lag in (0.0, 3.0, 2.5, -70.0):
        y = alignment.align(x, lag, -2.0)
        assert y.dtype == dtype and y.shape == x.shape


def test_runs_at_full_scale_are_clipping():
    time = np.arange(8000) / 8000
    tone = np.sin(2 * np.pi * 50 * time)[None]
    assert alignment.clipped_samples(0.99 * tone) == 0
    assert alignment.clipped_samples(np.clip(2 * tone, -1, 1)) > 3000
    assert alignment.clipped_samples(2 * tone) == 0  # a float file holds this
    assert alignment.clipped_samples(np.zeros((1, 100))) == 0
    assert alignment.clipped_samples(np.ones((1, 2))) == 0


def test_measurements_of_many_files_are_steadied():
    values = np.array([10.0, 10.1, 9.9, 10.05, np.nan, 200.0])
    assert alignment.pooled(values, 0.5).tolist() == [10.05, 10.05, 10.05, 10.05, 10.05, 200.0]
    apart = np.array([1.0, 50.0, 100.0, 150.0, np.nan])
    np.testing.assert_array_equal(alignment.pooled(apart, 0.5), apart)
    assert np.isnan(alignment.pooled(np.array([np.nan]), 0.5)).all()


def test_arguments_are_checked(pair):
    mixture, estimates = pair
    with pytest.raises(ValueError, match="same channels and samples"):
        alignment.place(mixture[:, 1:], estimates, max_lag=10)
    with pytest.raises(ValueError, match="max_lag=-1"):
        alignment.place(mixture, estimates, max_lag=-1)


@pytest.mark.parametrize(("notes", "level"), [(1, 0.02), (4, 0.02), (8, 0.3)])
def test_sustained_notes_are_not_late(notes, level):
    """Bass notes, which repeat themselves over the whole range of lags, and noise, by the ideal masks of an STFT."""
    rate, samples = 16000, 16000 * max(notes, 2)
    rng = np.random.default_rng(notes)
    time = np.arange(samples // notes) / rate
    tones = [55.0 * 2 ** (k / 12) * np.arange(1, 6)[:, None] for k in rng.integers(0, 12, notes)]
    harmonics = [np.sin(2 * np.pi * f * time) / np.arange(1, 6)[:, None] ** 2 * np.exp(-time) for f in tones]
    bass = np.concatenate([h.sum(0) for h in harmonics])
    noise = level * rng.normal(size=samples)
    transform = STFT(2048, 1024)
    powers = [transform.power(transform.analysis(x[None])) for x in (bass, noise)]
    mask = powers[0] / (powers[0] + powers[1] + 1e-12)
    mixture = (bass + noise)[None]
    masked = [transform.synthesis(m * transform.analysis(mixture), samples) for m in (mask, 1 - mask)]
    for sign in (1.0, -1.0):
        placed = alignment.place(mixture, sign * np.stack(masked), max_lag=8000)
        np.testing.assert_allclose(placed.lag, 0.0, atol=0.05)
        np.testing.assert_allclose(np.sign(placed.gain), sign)

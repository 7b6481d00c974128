"""Dictionaries: the container and its file, training, and the cache."""

import json
import os

import numpy as np
import pytest

from bayesfuse import nmf
from bayesfuse.dictionary import Dictionary, train_dictionary
from bayesfuse.transforms import QERB, STFT

SMALL = STFT(window=32, hop=16)  # 17 bands
RATE = 8000


def tones(seed=0, length=4000, dtype=np.float32, silence=0.0):
    """Noise through two resonances that alternate: two spectra, at levels that vary."""
    rng = np.random.default_rng(seed)
    t = np.arange(length)
    envelope = np.where((t // 400) % 2 == 0, np.sin(0.4 * t), np.sin(2.1 * t))
    x = envelope * (0.2 + rng.exponential(size=-(-length // 100)).repeat(100)[:length])
    x += 0.01 * rng.standard_normal(length)
    x[: int(silence * length)] = 0.0
    return x.astype(dtype)


def example(harmonic=False):
    rng = np.random.default_rng(0)
    weights = rng.exponential(size=(17, 3)).astype(np.float32) + 0.1
    return Dictionary(
        weights,
        RATE,
        SMALL.to_dict(),
        harmonic=(0.5 * weights) if harmonic else None,
        activation_mean=np.array([1.0, 2.0, 0.5], np.float32),
        name="speech",
    )


@pytest.mark.parametrize("harmonic", [False, True])
def test_file_without_loss(tmp_path, harmonic):
    dictionary = example(harmonic)
    dictionary.save(tmp_path / "speech.npz")
    loaded = Dictionary.load(tmp_path / "speech.npz")
    for name in ("weights", "activation_mean", "harmonic"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(dictionary, name))
    assert loaded.weights.dtype == np.float32
    assert (loaded.rate, loaded.transform, loaded.name) == (RATE, SMALL.to_dict(), "speech")
    assert loaded.order == 3
    assert os.listdir(tmp_path) == ["speech.npz"]  # nothing temporary stays behind


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "d.npz"
    example().save(path)
    before = path.read_bytes()

    def broken(file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(OSError, match="disk full"):
        example(harmonic=True).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["d.npz"]


def test_files_that_are_not_dictionaries(tmp_path):
    with pytest.raises(FileNotFoundError):
        Dictionary.load(tmp_path / "none.npz")
    path = tmp_path / "d.npz"
    example().save(path)
    whole = path.read_bytes()
    good = dict(np.load(path))
    later = json.loads(str(good["description"]))
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a dictionary file, or is damaged: give one"):
            Dictionary.load(path)
    for change in (
        {"description": np.array(json.dumps(later | {"schema": 99}))},
        {"description": np.array("[]")},
        {"weights": np.zeros((17, 3))},
        {"unknown": np.zeros(3)},
        {"weights": np.array([{}], object)},  # would need pickle
    ):
        np.savez(path, **(good | change))
        with pytest.raises(ValueError, match="train"):
            Dictionary.load(path)


ONES = np.ones((17, 2))


@pytest.mark.parametrize(
    ("weights", "settings", "message"),
    [
        (np.ones((16, 2)), {}, "17 bands"),
        (np.ones((17, 0)), {}, "at least one component"),
        (np.ones(17), {}, "freq, component"),
        (ONES * [1, 0], {}, r"zero in column\(s\) \[1\]"),
        (-ONES, {}, "negative"),
        (ONES * np.nan, {}, "NaN"),
        (ONES, {"harmonic": 2 * ONES}, "harmonic"),
        (ONES, {"harmonic": ONES[:, :1]}, "harmonic"),
        (ONES, {"activation_mean": np.array([1.0, 0.0])}, "activation means"),
        (ONES, {"rate": 0}, "rate"),
        (ONES, {"transform": {"name": "wavelet"}}, "wavelet"),
    ],
)
def test_invalid_dictionaries(weights, settings, message):
    with pytest.raises(ValueError, match=message):
        Dictionary(weights, **({"rate": RATE, "transform": SMALL.to_dict()} | settings))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_training_against_its_recipe(dtype):
    """Oracle: analysis of each channel, NMF, and scaling, written out; and the promise of the scaling."""
    audio = [np.stack([tones(0, dtype=dtype), tones(1, dtype=dtype)]), tones(2, 700, dtype)]
    got = train_dictionary(audio, RATE, 3, transform=SMALL, seed=5, num_iters=20)
    power = np.concatenate([abs(SMALL.analysis(x)) ** 2 for x in (*audio[0], audio[1])], axis=1)
    power = power[:, power.sum(axis=0) > 1e-8 * power.sum(axis=0).mean()]
    power /= power.mean()
    start = nmf.vector_quantisation(5, power, 3)
    fit = nmf.fit(power, [start], learn=[True], num_iters=20)
    scale = fit.activations[0].mean(axis=1)
    # 20 iterations from data that differ by the rounding of a mean and of |X|^2.
    rtol = 3e-3 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(got.weights, fit.dictionaries[0] * scale, rtol=rtol)
    assert got.weights.dtype == dtype and got.weights.min() > 0
    assert (got.rate, got.order, got.transform) == (RATE, 3, SMALL.to_dict())
    np.testing.assert_array_equal(got.activation_mean, 1)
    # The same model with activations of mean 1 has the mean power 1.
    rescaled = fit.activations[0] / scale[:, None]
    np.testing.assert_allclose(rescaled.mean(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(got.weights @ rescaled, fit.variances[0], rtol=3e-3)


def test_level_of_the_recordings_does_not_matter():
    base = train_dictionary([tones(dtype=np.float64)], RATE, 2, transform=SMALL, num_iters=5)
    for gain in (1e-6, 1e6):
        scaled = train_dictionary([gain * tones(dtype=np.float64)], RATE, 2, transform=SMALL, num_iters=5)
        np.testing.assert_allclose(scaled.weights, base.weights, rtol=1e-9)


def test_digital_silence_is_left_out():
    """Half a recording of zeros changes nothing; counted, it would halve the mean power."""
    plain = tones(dtype=np.float64)
    silent = np.concatenate([np.zeros(4000), plain])
    settings = {"transform": SMALL, "num_iters": 5}
    got = train_dictionary([silent], RATE, 1, **settings)
    expected = train_dictionary([plain], RATE, 1, **settings)
    np.testing.assert_allclose(got.weights, expected.weights, rtol=1e-6)


def test_spectra_are_found():
    """Two alternating sinusoids with little noise: two columns, each with its peak at one of them."""
    dictionary = train_dictionary([tones(length=16000)], RATE, 2, transform=SMALL)
    peaks = sorted(dictionary.weights.argmax(axis=0))
    assert peaks == [round(0.4 / np.pi * 16), round(2.1 / np.pi * 16)]


def test_each_order_is_trained_as_if_alone_and_frames_are_limited():
    audio = [tones(i, 400) for i in range(80)]  # more arrays than NumPy takes as arguments
    settings = {"transform": SMALL, "num_iters": 3, "max_frames": 120}
    several = train_dictionary(audio, RATE, [3, 1, 2], **settings)
    assert [d.order for d in several] == [3, 1, 2]
    np.testing.assert_array_equal(several[2].weights, train_dictionary(audio, RATE, 2, **settings).weights)
    everything = train_dictionary(audio, RATE, 2, **(settings | {"max_frames": None}))
    assert not np.array_equal(several[2].weights, everything.weights)


def test_long_recordings_are_analysed_in_pieces(monkeypatch):
    import bayesfuse.dictionary as module

    audio = [tones(0, 4096, np.float64), tones(1, 1000, np.float64)]
    settings = {"transform": SMALL, "num_iters": 3}
    monkeypatch.setattr(module, "_PIECE", 512)
    got = train_dictionary(audio, RATE, 2, **settings)
    monkeypatch.undo()
    parts = [x[i : i + 512] for x in audio for i in range(0, x.size, 512)]
    np.testing.assert_array_equal(got.weights, train_dictionary(parts, RATE, 2, **settings).weights)


def test_quadratic_erb_dictionary():
    qerb = QERB(rate=RATE, bands=12, window=32)
    dictionary = train_dictionary([tones()], RATE, 2, transform=qerb, num_iters=3)
    assert dictionary.weights.shape == (12, 2) and dictionary.transform == qerb.to_dict()


def test_cache(tmp_path, monkeypatch):
    audio = [tones()]
    folder = tmp_path / "new" / "cache"
    settings = {"transform": SMALL, "num_iters": 3, "cache": folder}
    first = train_dictionary(audio, RATE, [1, 2], **settings)
    files = sorted(folder.iterdir())
    assert len(files) == 2

    runs = []
    fit = nmf.fit
    monkeypatch.setattr(nmf, "fit", lambda *args, **kwargs: (runs.append(1), fit(*args, **kwargs))[1])
    again = train_dictionary(audio, RATE, [2, 1], **settings)
    assert not runs
    np.testing.assert_array_equal(again[1].weights, first[0].weights)
    # One order more: only that one is trained.
    train_dictionary(audio, RATE, [1, 2, 3], **settings)
    assert len(runs) == 1
    # Whatever changes the result has another key.
    changed = audio[0].copy()
    changed[17] += 1e-6
    train_dictionary([changed], RATE, 1, **settings)
    for change in ({"seed": 1}, {"num_iters": 4}, {"max_frames": 50}, {"transform": STFT(64, 32)}):
        train_dictionary(audio, RATE, 1, **(settings | change))
    train_dictionary(audio, RATE + 1, 1, **settings)
    train_dictionary([audio[0].astype(np.float64)], RATE, 1, **settings)
    assert len(runs) == 8 and len(list(folder.iterdir())) == 10


def test_a_damaged_cache_file_is_trained_again(tmp_path):
    settings = {"transform": SMALL, "num_iters": 3, "cache": tmp_path}
    first = train_dictionary([tones()], RATE, 2, **settings)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="train"):
        again = train_dictionary([tones()], RATE, 2, **settings)
    np.testing.assert_array_equal(again.weights, first.weights)
    np.testing.assert_array_equal(Dictionary.load(file).weights, first.weights)


@pytest.mark.parametrize(
    ("recordings", "order", "settings", "message"),
    [
        ([], 1, {}, "no recordings"),
        ([np.zeros(0, np.float32)], 1, {}, "recording 0 has shape"),
        ([tones(), np.zeros((2, 0))], 1, {}, "recording 1 has shape"),
        ([np.ones((1, 2, 3))], 1, {}, "shape"),
        ([np.full(100, np.nan)], 1, {}, "NaN"),
        ([np.zeros(500)], 1, {}, "silent"),
        ([tones()], 0, {}, "orders"),
        ([tones()], [], {}, "orders"),
        ([tones()], [2, 4, 2], {}, "different"),
        ([tones()], [2, -1], {}, "orders"),
        ([tones(length=64)], [2, 64], {}, "order 64 exceeds"),
        ([tones()], 2, {"max_frames": 0}, "max_frames"),
        ([tones()], 8, {"max_frames": 7}, "exceeds the 7 frames"),
        ([tones()], 2, {"num_iters": -1}, "num_iters"),
    ],
)
def test_bad_input(recordings, order, settings, message):
    with pytest.raises(ValueError, match=message):
        train_dictionary(recordings, RATE, order, **({"transform": SMALL} | settings))
    with pytest.raises(ValueError, match="rate"):
        train_dictionary([tones()], 0, 1)


def test_progress_bars(capsys):
    train_dictionary([tones()], RATE, [1, 2], transform=SMALL, num_iters=3, progress=True)
    assert "dictionaries" in capsys.readouterr().err
    train_dictionary([tones()], RATE, [1, 2], transform=SMALL, num_iters=3)
    assert capsys.readouterr().err == ""

"""What cannot be separated is refused before any work, in words; what looks odd but can be has a defined result."""

import numpy as np
import pytest
from small_example import ORDERS, RATE, SAMPLES, TRANSFORM, dictionaries, mixture, noise, voice

from bayesfuse import audio, separation
from bayesfuse.dictionary import Dictionary
from bayesfuse.separation import separate
from bayesfuse.separators.vb_nmf import Settings
from bayesfuse.sources import read_sources
from bayesfuse.transforms import STFT


@pytest.fixture
def no_work(monkeypatch):
    """Fails the test if a dictionary is trained or a model fitted."""

    def started(*args, **kwargs):
        raise AssertionError("work began before the input was refused")

    monkeypatch.setattr(separation, "train_sources", started)
    monkeypatch.setattr(separation, "_fit_blocks", started)


MANY = {"speech": list(range(1, 20)), "noise": [1, 2, 3, 4]}


def recordings() -> dict:
    return {"speech": voice(), "noise": noise()}


def attempt(x=None, rate=RATE, sources=None, orders=None, **options):
    # Without the types that the tests check at run time: users do not have them checked.
    return getattr(separate, "__wrapped__", separate)(
        mixture() if x is None else x,
        rate,
        recordings() if sources is None else sources,
        {"speech": ORDERS, "noise": [2]} if orders is None else orders,
        **{"transform": TRANSFORM, **options},
    )


# -------------------------------------------------------------------------------------------------- refused mixtures


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(0, np.float32), "mixture: is empty"),
        (np.zeros((2, 0), np.float32), "mixture: is empty"),
        (np.float32(1.0), "0 axes"),
        ("kitchen.wav", "got the path 'kitchen.wav'.*bayesfuse.read"),
        (1e-30 * mixture(), r"mixture: the peak of channel 0 is .*rescale the recording"),
        (np.float32(1e38) * mixture(), "outside .*rescale"),
        (1e-200 * mixture().astype(np.float64), "outside .1e-100, 1e.100.*float64"),
        (np.stack([mixture(), 1e-25 * mixture()]), "peak of channel 1"),
        (np.zeros((2, 2, 50), np.float32), "3 axes"),
        (np.zeros((4000, 2), np.float32), "looks transposed"),
        (np.zeros(100, np.int16), "got integers"),
        (np.zeros(100, np.complex64), "complex64"),
        (np.where(np.arange(500) == 7, np.nan, 0.1), r"1 of 500 samples are NaN or infinite.*\[0, 7\]"),
        (np.where(np.arange(500) < 3, np.inf, 0.1), "3 of 500 samples are NaN or infinite"),
        (-np.where(np.arange(500) < 3, np.inf, 0.1), "NaN or infinite"),
    ],
)  # fmt: skip
def test_mixtures_that_are_not_audio(no_work, x, message):
    with pytest.raises(ValueError, match=message):
        attempt(x)


@pytest.mark.parametrize("rate", [0, -8000, 44100.5])
def test_rates_that_are_not_rates(no_work, rate):
    with pytest.raises(ValueError, match="sampling rate"):
        attempt(rate=rate)


# ---------------------------------------------------------------------------------------------------- refused models


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ({"speech": [0, 2], "noise": 2}, "'speech'.*contains 0"),
        ({"speech": [-4], "noise": 2}, "contains -4"),
        ({"speech": [2, 4, 2], "noise": 2}, "repeats an order"),
        ({"speech": [], "noise": 2}, "is empty"),
        ({"speech": [2]}, "no entry for 'noise'"),
        ({"speech": [2], "noise": 2, "music": 2}, r"orders names \['music'\]"),
        ({"speech": [500], "noise": 2}, r"500 components, but its recordings have 1\d\d frames"),
        (MANY, "76 combinations, more than 64"),
    ],
)
def test_orders(no_work, orders, message):
    with pytest.raises(ValueError, match=message):
        attempt(orders=orders)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b": 0.0}, "b=0.0: expected the shape of a Gamma prior"),
        ({"b": -1.0}, "b=-1.0"),
        ({"b": np.nan}, "b=nan"),
        ({"b": "best"}, "b='best'"),
        ({"b": 51.0}, "b=51.0: .*at most 50"),
        ({"b": "auto", "method": "average", "orders": MANY}, "b='auto' chooses.*not 76"),
        ({"settings": "fast"}, "settings='fast': expected bayesfuse.Settings"),
        ({"transform": "stft"}, r"transform='stft': expected a transform, such as STFT\(1024, 512\)"),
        ({"transform": STFT}, "expected a transform"),
        ({"seed": -1}, "seed=-1; expected a whole number"),
        ({"seed": 2**31}, "seed=2147483648"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"settings": Settings(a=0.0)}, "a=0.0"),
        ({"settings": Settings(a=-0.2)}, "a=-0.2"),
        ({"settings": Settings(noise=0.0)}, "noise=0.0"),
        ({"settings": Settings(noise=-1e-6)}, "noise=-1e-06"),
        ({"settings": Settings(num_iters=0)}, "num_iters=0"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"beta": np.nan}, "beta=nan"),
        ({"method": "mean", "time_varying": True}, "time_varying"),
        ({"settings": Settings(variant="explicit"), "time_varying": True}, "time_varying"),
        ({"block_seconds": 0.0}, "block_seconds=0.0: expected a positive"),
        ({"block_seconds": np.nan}, "block_seconds=nan"),
        ({"block_seconds": 0.01, "overlap_seconds": 0.0025}, "0.01: blocks of fewer than 512 samples, 0.064 s"),
        ({"overlap_seconds": np.inf, "block_seconds": np.inf}, "overlap must be positive"),
        ({"block_seconds": 2.0, "overlap_seconds": 1.5}, "at most half a block"),
        ({"overlap_seconds": 0.0}, "overlap must be positive"),
        ({"order_prior": {"speech": [0.5, 0.6]}}, "order_prior"),
        ({"order_prior": {"speech": [1.0, 0.0]}}, "order_prior"),
        ({"order_prior": {"speech": [1.0]}}, "expected 2 positive numbers"),
        ({"order_prior": {"music": [1.0]}}, "music"),
    ],
)
def test_priors_and_settings(no_work, options, message):
    with pytest.raises(ValueError, match=message):
        attempt(**options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a", 51.0, "a=51.0: expected the shape"),
        ("b", [0.2], r"b=\[0.2\]: expected the shape"),
        ("beta_per_frame", "x", "beta='x': expected a temperature"),
        ("num_iters", 2.5, "num_iters=2.5: expected a whole number of iterations, at least 1"),
        ("num_iters", True, "num_iters=True"),
        ("ml_iters", -1, "ml_iters=-1: .*at least 0"),
        ("tolerance", -1.0, "tolerance=-1.0: expected a number of 0 or more"),
        ("tolerance", np.nan, "tolerance=nan"),
    ],
)
def test_settings_are_checked_before_work(no_work, name, value, message):
    settings = Settings()
    object.__setattr__(settings, name, value)  # past the run-time type check
    with pytest.raises(ValueError, match=message):
        attempt(settings=settings)


@pytest.mark.parametrize("name", ["method", "variant", "temper"])
def test_choices_that_do_not_exist(no_work, name):
    options = {"method": "magic"}
    if name != "method":
        options = {"settings": Settings()}
        object.__setattr__(options["settings"], name, "magic")  # past the run-time type check
    with pytest.raises(ValueError, match=f"{name}='magic': expected one of"):
        attempt(**options)


# --------------------------------------------------------------------------------------------------- refused sources


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"speech": voice()}, "at least two"),
        ({}, "at least two"),
        ({"speech": "learn", "noise": "learn"}, "every source is to be learned"),
        ({"speech": voice(), "noise": []}, "is empty"),
        ({"speech": voice(), "noise": [np.zeros(0, np.float32)]}, "is empty"),
        ({"speech": voice(), "noise": np.zeros(4000, np.float32)}, "all recordings are silent"),
        ({"speech": voice(), "noise": np.full(4000, np.nan, np.float32)}, "NaN"),
        ({"sp\teech": voice(), "noise": noise()}, "sources names 'sp.*printable"),
        ({"": voice(), "noise": noise()}, "sources names ''"),
        ({"speech": None, "noise": noise()}, "'speech'.*holds a NoneType: expected recordings"),
        ({"speech": voice(), "noise": 1e-30 * noise()}, "'noise'.*rescale"),
        ({"speech": voice(), "noise": 3}, "'noise'.*holds a int"),
        ({"speech": voice(), "noise": [3]}, "holds a int"),
        ({"speech": voice(), "noise": np.zeros(100, np.int16)}, "got integers"),
    ],
)
def test_sources(no_work, sources, message):
    with pytest.raises(ValueError, match=message):
        attempt(sources=sources)


@pytest.mark.parametrize(
    ("sources", "orders", "message"),
    [
        (voice(), None, "sources=ndarray: expected a mapping"),
        ({1: voice(), "noise": noise()}, None, "sources names 1"),
        (recordings(), [2, 4], r"orders=\[2, 4\]: expected a mapping"),
        (recordings(), {"speech": 2.0, "noise": 2}, r"orders\['speech'\]=2.0: expected a whole number or a list"),
        (recordings(), {"speech": "2,4", "noise": 2}, "='2,4': expected"),
    ],
)
def test_arguments_of_other_types(sources, orders, message):
    unchecked = getattr(read_sources, "__wrapped__", read_sources)
    with pytest.raises(ValueError, match=message):
        unchecked(sources, orders, RATE, TRANSFORM)


def test_more_to_learn_than_there_are_frames(no_work):
    with pytest.raises(ValueError, match=r"150 components to be learned on 1\d\d frames"):
        attempt(sources={"speech": voice(), "noise": "learn"}, orders={"speech": 2, "noise": 150})
    with pytest.raises(ValueError, match=r"8 components to be learned on \d frames"):
        attempt(x=mixture()[:1], sources={"speech": voice(), "noise": "learn"}, orders={"speech": 2, "noise": 8})


def test_files_that_are_missing(no_work, tmp_path):
    for path in (tmp_path / "nothing.wav", str(tmp_path / "nothing"), tmp_path / "nothing.npz"):
        with pytest.raises(FileNotFoundError, match="nothing"):
            attempt(sources={"speech": path, "noise": noise()})
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", str(tmp_path / "*.wav")):
        with pytest.raises(ValueError, match="no audio files"):
            attempt(sources={"speech": path, "noise": noise()})


def test_files_that_are_damaged(no_work, tmp_path):
    (tmp_path / "text.wav").write_bytes(b"this is not a wave file")
    (tmp_path / "nothing.wav").write_bytes(b"")
    audio.write(tmp_path / "short.flac", voice(), RATE)
    whole = (tmp_path / "short.flac").read_bytes()
    (tmp_path / "short.flac").write_bytes(whole[: len(whole) // 2])
    audio.write(tmp_path / "cut.wav", voice(), RATE)
    whole = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    for name in ("text.wav", "nothing.wav", "short.flac", "cut.wav"):
        with pytest.raises(ValueError, match=name):
            attempt(sources={"speech": tmp_path / name, "noise": noise()})
    (tmp_path / "speech.npz").write_bytes(b"PK this is not a dictionary")
    with pytest.raises(ValueError, match="not a dictionary file"):
        attempt(sources={"speech": tmp_path / "speech.npz", "noise": noise()})


def test_recordings_of_another_rate(no_work, tmp_path):
    audio.write(tmp_path / "voice.wav", voice(), 2 * RATE)
    with pytest.raises(ValueError, match=r"rate of 16000 Hz, the mixture 8000 Hz.*resample"):
        attempt(sources={"speech": tmp_path / "voice.wav", "noise": noise()})


def test_dictionaries_of_another_kind(no_work):
    known = dictionaries()
    with pytest.raises(ValueError, match="8000 Hz"):
        attempt(rate=16000, sources=known)
    with pytest.raises(ValueError, match=r"'window': 256.*'window': 512"):
        attempt(transform=STFT(512, 256), sources=known)
    with pytest.raises(ValueError, match=r"asks for \[8\]; the dictionaries have \[2, 4\]"):
        attempt(sources=known, orders={"speech": [2, 8]})
    with pytest.raises(ValueError, match="repeat"):
        attempt(sources={"speech": [known["speech"][0]] * 2, "noise": known["noise"]}, orders={})
    with pytest.raises(ValueError, match=r"dictionaries.*not a mixture of kinds|holds a Dictionary"):
        attempt(sources={"speech": [known["speech"][0], voice()], "noise": known["noise"]})


def test_dictionaries_that_are_none():
    """Such a dictionary cannot even be made."""
    good = np.asarray(dictionaries()["speech"][0].weights)
    zero, negative, short = good.copy(), good.copy(), good[:-1]
    zero[:, 1] = 0
    negative[3, 0] = -1
    for weights, message in (
        (zero, "zero"),
        (negative, "negative"),
        (short, "129 bands"),
        (good * np.nan, "finite|NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            Dictionary(weights, RATE, TRANSFORM.to_dict())


def test_nothing_is_left_behind(no_work, tmp_path):
    with pytest.raises(ValueError, match="repeats"):
        attempt(orders={"speech": [2, 2], "noise": 2}, cache=tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- defined results


def result_of(x, **options):
    return separate(x, RATE, dictionaries(), transform=TRANSFORM, method="average", **options)


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 257])
def test_a_few_samples_are_separated(length):
    x = mixture()[5000 : 5000 + length]
    result = result_of(x)
    assert result.sources.shape == (2, 1, length)
    # Sources and the noise's small share sum to the mixture, however short.
    np.testing.assert_allclose(result.sources.sum(axis=0)[0], x, atol=1e-3 * np.abs(x).max())
    assert np.isfinite(result.free_energy).all()


@pytest.mark.parametrize("value", [1.0, -1e-4])
def test_a_constant_is_separated(value):
    # Neither dictionary has a component at 0 Hz alone, so part of it goes to the noise.
    x = np.full(SAMPLES, value, np.float32)
    result = result_of(x)
    assert np.isfinite(result.sources).all() and np.isfinite(result.free_energy).all()
    rest = x - result.sources[:, 0].sum(axis=0)
    assert np.sum(rest**2) < 0.1 * np.sum(x**2)


def test_clipped_audio_is_separated():
    x = np.clip(20 * mixture(), -1, 1)
    result = result_of(x)
    np.testing.assert_allclose(result.sources.sum(axis=0)[0], x, atol=1e-2)


def test_digital_silence_within_a_recording_stays_silent():
    x = mixture()
    x[6000:9000] = 0
    result = result_of(x)
    assert not result.sources[..., 6256:8744].any()
    assert result.sources[..., :5744].any()


@pytest.mark.parametrize("gain", [1e-15, 1e15])
def test_extreme_levels_are_separated(gain):
    reference, result = result_of(mixture()), result_of((np.float32(gain) * mixture()).astype(np.float32))
    peak = np.abs(reference.sources).max()
    np.testing.assert_allclose(result.sources / np.float32(gain), reference.sources, rtol=0, atol=1e-3 * peak)


def test_selection_after_a_choice_of_the_shape():
    """A temperature of zero is as good for choosing b as it is for the fit."""
    result = separate(
        mixture(), RATE, dictionaries(), transform=TRANSFORM, b="auto", beta=0.0, settings=Settings(num_iters=1)
    )
    assert sorted(result.weights) == [0.0, 1.0]


def test_silence_with_a_source_to_be_learned_is_silence():
    sources = {"speech": dictionaries()["speech"][0], "noise": "learn"}
    result = separate(np.zeros(SAMPLES, np.float32), RATE, sources, {"noise": 2}, transform=TRANSFORM)
    assert not result.sources.any()
    assert np.isfinite(result.free_energy).all()

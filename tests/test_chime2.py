"""CHiME-2 track 1 on a tiny set in its layout, whose speech and noise are known."""

import pickle
import shutil

import numpy as np
import pytest
import set_layouts as made
from set_layouts import LEVELS, RATE, UTTERANCES, put, tone

from bayesfuse.datasets import Chime2, guess_kind
from bayesfuse.datasets.chime2 import occurrences

TOP = "CHiME2_Grid/data/chime2-grid"
GAP = RATE // 5


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return made.chime2(tmp_path_factory.mktemp("chime2"))


@pytest.fixture
def root(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "copy")


def background(level: str) -> np.ndarray:
    return tone(700 + LEVELS.index(level), 4 * (GAP + 300) + RATE, 2)


def test_training_mixtures(pristine, dtype):
    data = Chime2(pristine, context=2000 / RATE, dtype=dtype)
    train = data.mixtures("train")
    assert train.names == ("s1_bgaa9a", "s1_lwiy2s", "s2_bgaa9a", "s2_lwiy2s")
    item = train[2]
    speech, noise = tone(200, 300, 2, 0.1), tone(920, 4300, 2)
    np.testing.assert_allclose(item.sources["speech"][:, 2000:2300], speech, atol=1e-7)
    np.testing.assert_allclose(item.sources["noise"], noise, atol=1e-7)
    np.testing.assert_allclose(item.mixture, item.sources["speech"] + item.sources["noise"], atol=1e-7)
    assert (item.segment, item.context, item.after) == ((2000, 2300), (0, 2000), (2300, 4300))
    assert item.metadata["embedded"] == "embedded/id2/bgaa9a.wav" and item.metadata["snr_db"] is None
    level = 10 * np.log10(np.sum(speech**2) / np.sum(noise[:, 2000:2300] ** 2))
    np.testing.assert_allclose(item.metadata["snr_measured_db"], level, atol=1e-3)
    assert item.mixture.dtype == dtype and item.group == "s2_bgaa9a"
    before, after = item.backgrounds(guard=500)
    np.testing.assert_array_equal(before, item.mixture[:, :1500])
    np.testing.assert_array_equal(after, item.mixture[:, 2800:])
    with pytest.raises(ValueError, match="outside a guard of 3000 samples"):
        item.backgrounds(guard=3000)


def test_development_mixtures_are_found_in_their_recordings(pristine):
    data = Chime2(pristine, context=0.3, splits=["devel"])
    assert data.names[:3] == ("s1_bgaa9a_m6dB", "s1_bgaa9a_9dB", "s1_lwiy2s_m6dB") and len(data) == 8
    place = 0
    for number, (speaker, code) in enumerate([(s, c) for s in (1, 2) for c in UTTERANCES]):
        place += RATE if number == 2 else GAP
        for level in LEVELS:
            item = data.mixture(f"s{speaker}_{code}_{level}")
            # 0.3 s reach beyond the neighbours and the end, but for the second of silence before the third utterance.
            low = 2400 if number == 2 else GAP
            high = 2400 if number == 1 else GAP
            noise = background(level)[:, place - low : place + 300 + high]
            np.testing.assert_allclose(item.sources["noise"], noise, atol=1e-7)
            assert (item.segment, item.context, item.after) == (
                (low, low + 300),
                (0, low),
                (low + 300, low + 300 + high),
            )
            speech = tone(100 * speaker + 50 + UTTERANCES.index(code), 300, 2, 0.1)
            np.testing.assert_allclose(item.scored(item.sources["speech"]), speech, atol=1e-7)
            assert item.metadata["snr_db"] == {"m6dB": -6, "9dB": 9}[level]
            assert item.metadata["embedded"].startswith("embedded/CR_lounge")
        place += 300


def test_isolated_utterances_need_nothing_else(root):
    for name in ("annotations", "train/embedded", "devel/embedded"):
        shutil.rmtree(root / TOP / name)
    data = Chime2(root, context=0)
    item = data.mixture("s2_lwiy2s_9dB")
    assert item.context is None and item.after is None and item.segment == (0, 300) and "embedded" not in item.metadata
    np.testing.assert_allclose(item.mixture, item.sources["speech"] + item.sources["noise"], atol=1e-7)
    with pytest.raises(FileNotFoundError, match=r"no embedded recordings in .*train/embedded.*context=0"):
        Chime2(root)
    mono = Chime2(root, context=0, mono=True).mixture("s2_lwiy2s_9dB")
    np.testing.assert_allclose(mono.mixture, item.mixture.mean(0, keepdims=True), atol=1e-7)


def test_speech_to_train_on(pristine):
    data = Chime2(pristine)
    assert data.speakers == ("s1", "s2") and data.splits == ("train", "devel") and data.rate == RATE
    speech = data.training_speech("s2")
    assert speech.names == ("s2_bgaa9a", "s2_lwiy2s")
    np.testing.assert_array_equal(speech[1], tone(201, 300, 2, 0.1).astype(np.float32))
    assert set(speech.names) <= set(data.mixtures("train").names) and set(speech.names) <= set(data.groups)
    assert list(data.recordings) == ["speech train s1", "speech train s2"]
    assert guess_kind(pristine) == guess_kind(pristine / TOP) == "chime2"
    with pytest.raises(FileNotFoundError, match=r"no utterances of s7 .* speakers are s1, s2"):
        data.training_speech("s7")
    fold = data.folds(2, by="speaker")[0]
    assert {name.split("_")[0] for name in fold.test.names}.isdisjoint(name.split("_")[0] for name in fold.train.names)
    files = [path.relative_to(pristine / TOP).as_posix() for path in data.paths(len(data) - 1)]
    assert files[:2] == ["devel/isolated/9dB/s2_lwiy2s.wav", "devel/reverberated/2_lwiy2s.wav"] and len(files) == 4
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy[0].mixture, data[0].mixture)


def test_what_is_missing(root):
    top = root / TOP
    (top / "devel/reverberated/2_bgaa9a.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 files are missing: .*devel/reverberated/s2_bgaa9a\.wav.*splits="):
        Chime2(root)
    assert len(Chime2(root, splits=["train"])) == 4
    shutil.rmtree(top / "annotations")
    put(top / "devel/reverberated/2_bgaa9a.wav", tone(250, 300, 2, 0.1))
    with pytest.raises(FileNotFoundError, match=r"no annotation files in .*annotations/devel, .*context=0"):
        Chime2(root)
    with pytest.raises(FileNotFoundError, match=r"no utterances in .*test/isolated"):
        Chime2(root, splits=["test"])
    with pytest.raises(ValueError, match="context=-1"):
        Chime2(root, context=-1)
    with pytest.raises(ValueError, match=r"splits=\['dev'\]"):
        Chime2(root, splits=["dev"])


def test_samples_that_do_not_belong_together(root):
    put(root / TOP / "train/isolated/id1/bgaa9a.wav", tone(5, 300, 2))
    with pytest.raises(ValueError, match=r"no embedded recording of train holds the samples of .*id1/bgaa9a\.wav"):
        Chime2(root)[0]
    put(root / TOP / "train/reverberated/id1/lwiy2s.wav", tone(5, 300, 1))
    with pytest.raises(ValueError, match=r"id1/lwiy2s\.wav has 1 channels, but .* has 2"):
        Chime2(root)[1]


def test_reverberation_may_be_shorter_or_longer(root):
    for samples in (250, 350):
        speech = tone(100, samples, 2, 0.1)
        put(root / TOP / "train/reverberated/id1/bgaa9a.wav", speech)
        item = Chime2(root)[0]
        kept = np.pad(speech, [(0, 0), (0, 300)])[:, :300] * (np.arange(300) < samples)
        np.testing.assert_allclose(item.scored(item.sources["speech"]), kept, atol=1e-7)
        np.testing.assert_allclose(item.mixture, item.sources["speech"] + item.sources["noise"], atol=1e-7)


def test_occurrences():
    """Against comparison at every place, on few values so that there are many false beginnings."""
    rng = np.random.default_rng(0)
    recording = rng.integers(0, 2, (2, 3000)).astype(float)
    for length in (5, 12, 40):
        for start in (0, 1500, 3000 - length):
            excerpt = recording[:, start : start + length]
            brute = [p for p in range(3000 - length + 1) if (recording[:, p : p + length] == excerpt).all()]
            np.testing.assert_array_equal(occurrences(excerpt, recording), brute)
    assert occurrences(recording[:1, :5], recording).size == 0
    assert occurrences(np.zeros((2, 5)), recording).size == 0
    assert occurrences(recording, recording[:, 1:]).size == 0

"""Readers of music, of talkers, and of the user's own files, on tiny sets in the layouts of the real ones."""

import json
import pickle
import shutil

import numpy as np
import pytest
import set_layouts as made
from set_layouts import RATE, put, tone

from bayesfuse import audio
from bayesfuse.datasets import (
    DSD100,
    KINDS,
    MUSDB18,
    CcMixter,
    FolderSet,
    LibriMix,
    ManifestSet,
    Recordings,
    Wham,
    guess_kind,
    open_dataset,
)
from bayesfuse.datasets.music import MUSDB18_VALIDATION


def assert_sum(item, names, tolerance=1e-6):
    assert list(item.sources) == list(names)
    np.testing.assert_allclose(np.sum(list(item.sources.values()), axis=0), item.mixture, atol=tolerance)


def test_musdb18(tmp_path, dtype):
    data = MUSDB18(made.musdb18(tmp_path / "musdb18hq"), dtype=dtype)
    assert data.names == ("Zeta - Song", "ANiMAL - Rockshow", "Alpha - Song")
    assert data.splits == ("train", "val", "test") and data.rate == RATE and data.groups == data.names
    assert len(set(MUSDB18_VALIDATION)) == 14
    item = data[0]
    assert_sum(item, ("vocals", "drums", "bass", "other"))
    assert item.mixture.dtype == dtype and (item.split, item.group) == ("train", "Zeta - Song")
    np.testing.assert_array_equal(item.sources["drums"], tone(1, channels=2).astype(dtype))
    # The folder above, as the archive leaves it, does as well.
    assert MUSDB18(tmp_path).names == data.names
    assert guess_kind(tmp_path / "musdb18hq") == guess_kind(tmp_path) == "musdb18"


def test_the_mixture_may_be_another_than_the_sum(tmp_path):
    root = made.musdb18(tmp_path)
    mastered = 0.5 * np.sum([tone(20 + i, channels=2) for i in range(4)], axis=0)
    put(root / "test/Alpha - Song/mixture.wav", mastered)
    item = MUSDB18(root).mixture("Alpha - Song")
    np.testing.assert_allclose(item.mixture, mastered, atol=2e-5)
    assert abs(item.residual_db) < 0.01  # the error, half of the sum, is as large as the mixture
    remixed = MUSDB18(root, remix=True).mixture("Alpha - Song")
    np.testing.assert_allclose(remixed.mixture, 2 * mastered, atol=1e-6)
    assert remixed.residual_db < -120


def test_chunks_cover_a_track_once(tmp_path):
    data = CcMixter(made.ccmixter(tmp_path, samples=1000), chunk=300 / RATE)
    assert data.names == ("artist0_1", "artist0_2", "artist0_3", "artist0_4", *(f"artist1_{i}" for i in range(1, 5)))
    whole = CcMixter(tmp_path)[0]
    pieces = data.mixtures("all")[:4]
    np.testing.assert_array_equal(np.concatenate([p.mixture for p in pieces], axis=-1), whole.mixture)
    assert [p.metadata["start_s"] for p in pieces] == [0.0, 250 / RATE, 500 / RATE, 750 / RATE]
    assert_sum(whole, ("vocals", "accompaniment"))
    np.testing.assert_array_equal(whole.sources["vocals"], tone(1, 1000, 2).astype(np.float32))
    # [JVR16] VII.A: chunks of 20 to 30 seconds of tracks of more than a minute.
    for seconds in np.linspace(60.1, 600, 50):
        count = np.ceil(seconds / 30)
        assert 20 <= seconds / count <= 30
    with pytest.raises(ValueError, match="longest duration of a chunk"):
        CcMixter(tmp_path, chunk=0)


def test_dsd100(tmp_path):
    data = DSD100(made.dsd100(tmp_path / "DSD100"))
    assert [(e.name, e.split) for e in data.entries] == [("051 - A", "train"), ("001 - B", "test")]
    for item in data:
        assert_sum(item, ("vocals", "drums", "bass", "other"))
    assert guess_kind(tmp_path / "DSD100") == "dsd100"


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path):
    root = made.musdb18(tmp_path / "m")
    (root / "test/Alpha - Song/bass.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 file is missing: .*Alpha - Song/bass\.wav\. .*zenodo"):
        MUSDB18(root)
    shutil.rmtree(root / "train/Zeta - Song")
    (root / "train/Zeta - Song").mkdir()
    with pytest.raises(FileNotFoundError, match=r"6 files are missing: .*, \.\.\."):
        MUSDB18(root)
    (root / "train/A.stem.mp4").touch()
    with pytest.raises(FileNotFoundError, match=r"\.stem\.mp4 .*decode them to WAV"):
        MUSDB18(root)
    places = {"dsd100": "dsd100", "ccmixter": "loria", "librimix": "LibriMix", "wham": "wham", "chime2": "LDC2017S07"}
    (tmp_path / "empty").mkdir()
    for kind, where in places.items():
        for path in (tmp_path / "empty", tmp_path / "nowhere"):
            with pytest.raises(FileNotFoundError, match=where):
                open_dataset(kind, path)


def test_flac_in_place_of_wav(tmp_path):
    root = made.ccmixter(tmp_path, 1)
    for file in list((root / "artist0").iterdir()):
        audio.write(file.with_suffix(".flac"), audio.read(file)[0], RATE, subtype="PCM_16")
        file.unlink()
    assert_sum(CcMixter(root)[0], ("vocals", "accompaniment"))


LIBRI = {"train-100": ("100-1-0001_200-2-0002", "100-1-0003_300-2-0002"), "test": ("400-5-0001_500-6-0002",)}
WSJ = {"tr": ("01to030v_0.76421_20ga010m_-0.76421",), "tt": ("050a0501_1.2_440c020w_-1.2",)}


def test_librimix(tmp_path):
    made.talkers(tmp_path / "Libri2Mix", LIBRI)
    data = LibriMix(tmp_path)
    assert data.splits == ("train-100", "test") and data.names[0] == "train-100_100-1-0001_200-2-0002"
    item = data[1]
    assert_sum(item, ("s1", "s2", "noise"))
    assert item.metadata == {"speakers": ["100", "300"], "utterances": ["100-1-0003", "300-2-0002"]}
    assert item.group == "100+300"
    assert_sum(LibriMix(tmp_path, mixture="mix_clean", splits=["test"])[0], ("s1", "s2"))
    single = LibriMix(tmp_path, mixture="mix_single")[0]
    assert_sum(single, ("s1", "noise"))
    np.testing.assert_array_equal(single.sources["noise"], tone(2).astype(np.float32))
    assert guess_kind(tmp_path) == guess_kind(tmp_path / "Libri2Mix") == "librimix"
    with pytest.raises(FileNotFoundError, match="dev"):
        LibriMix(tmp_path, splits=["dev"])
    with pytest.raises(FileNotFoundError, match="wav16k"):
        LibriMix(tmp_path, rate=16000)
    with pytest.raises(ValueError, match="expected one of mix_both"):
        LibriMix(tmp_path, mixture="both")
    (tmp_path / "Libri2Mix/wav8k/min/test/s2/400-5-0001_500-6-0002.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"s2/400-5-0001_500-6-0002\.wav\. .*github\.com/JorisCos/LibriMix"):
        LibriMix(tmp_path)


def test_three_talkers(tmp_path):
    made.talkers(tmp_path, {"test": ("1-1-1_2-2-2_3-3-3",)}, count=3)
    item = LibriMix(tmp_path)[0]
    assert_sum(item, ("s1", "s2", "s3", "noise"))
    assert item.metadata["speakers"] == ["1", "2", "3"]


def test_wham_and_wsj0_mix(tmp_path):
    made.talkers(tmp_path, WSJ, rate=16000)
    data = Wham(tmp_path)
    assert data.rate == 16000 and data.splits == ("tr", "tt") and guess_kind(tmp_path) == "wham"
    assert data[0].metadata["snrs_db"] == [0.76421, -0.76421] and data.groups == ("01t+20g", "050+440")
    folder = tmp_path / "wav16k/min/tt"
    (folder / "mix_clean").rename(folder / "mix")
    assert_sum(Wham(tmp_path, mixture="mix", splits=["tt"])[0], ("s1", "s2"))
    put(folder / "s1" / "050a0501_1.2_440c020w_-1.2.wav", tone(0, 399), 16000)
    with pytest.raises(ValueError, match=r"1 channel of 399 samples, but its mixture .* 1 channel of 400 samples"):
        Wham(tmp_path)[1]
    put(tmp_path / "wav8k/min/tt/s1/a.wav", tone(0), 44100)
    put(tmp_path / "wav8k/min/tt/mix/a.wav", tone(0), 44100)
    with pytest.raises(ValueError, match="44100 Hz; expected 8000 Hz"):
        Wham(tmp_path, mixture="mix")


# The user's own files -------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """mixtures/{train,test}/song*/part*.wav and references/.../{voice,rest}.wav"""
    for seed, name in enumerate(("train/song1/part1", "train/song1/part2", "train/single", "test/song2/part1")):
        sources = {"voice": tone(10 * seed), "rest": tone(10 * seed + 1)}
        for source, signal in sources.items():
            put(tmp_path / "references" / name / f"{source}.wav", signal)
        put(tmp_path / "mixtures" / f"{name}.wav", sources["voice"] + sources["rest"])
    return tmp_path


def test_folder(own):
    data = FolderSet(own)
    assert data.names == ("test/song2/part1", "train/single", "train/song1/part1", "train/song1/part2")
    assert data.splits == ("test", "train") and data.groups == ("song2", "train/single", "song1", "song1")
    for item in data:
        assert_sum(item, ("rest", "voice"))
    assert guess_kind(own) == "folder" and guess_kind(own / "mixtures") == "recordings"
    shutil.rmtree(own / "references/train/single")
    with pytest.raises(
        FileNotFoundError, match=r"1 of 4 mixtures have no true sources, such as train/single: .*SOURCE"
    ):
        FolderSet(own)
    with pytest.raises(FileNotFoundError, match=r"no folder .*truth"):
        FolderSet(own, references="truth")
    assert [path.name for path in data.paths(1)] == ["single.wav", "rest.wav", "voice.wav"]
    alone = Recordings(own / "mixtures")
    assert alone.names == data.names and alone[0].sources == {} and np.isnan(alone[0].residual_db)


def test_rates_and_channels(own):
    put(own / "mixtures/train/single.wav", tone(20) + tone(21), 2 * RATE)
    with pytest.raises(ValueError, match=r"single.wav has 16000 Hz, but the set 8000 Hz; set `rate`"):
        FolderSet(own)[1]
    halved = FolderSet(own, rate=RATE // 2)[0]
    assert halved.rate == RATE // 2 and halved.mixture.shape == (1, 200) and halved.segment == (0, 200)
    expected = audio.resample(audio.read(own / "mixtures/test/song2/part1.wav")[0], 2, 1)
    np.testing.assert_allclose(halved.mixture, expected, atol=1e-6)
    for source in ("voice", "rest"):
        put(own / f"references/test/song2/part1/{source}.wav", tone(5, channels=2))
    put(own / "mixtures/test/song2/part1.wav", 2 * tone(5, channels=2))
    np.testing.assert_allclose(FolderSet(own, mono=True)[0].mixture, 2 * tone(5, channels=2).mean(0)[None], atol=1e-6)


ROWS = """name,kind,separator,source,path,group,split,segment_start,segment_stop,context_start,context_stop,snr
a,mixture,,,mixtures/train/song1/part1.wav,one,train,100,300,0,100,3
a,reference,,voice,references/train/song1/part1/voice.wav,,,,,,,
a,reference,,rest,references/train/song1/part1/rest.wav,,,,,,,
a,estimate,nmf,voice,estimates/not_there.wav,,,,,,,
b,reference,,voice,references/test/song2/part1/voice.wav,,,,,,,
b,reference,,rest,references/test/song2/part1/rest.wav,,,,,,,
"""


def test_manifests_in_csv_and_json_say_the_same(own):
    (own / "list.csv").write_text(ROWS)
    sources = {n: f"references/train/song1/part1/{n}.wav" for n in ("voice", "rest")}
    first = {"name": "a", "mixture": "mixtures/train/song1/part1.wav", "sources": sources, "group": "one"}
    first |= {"split": "train", "segment": [100, 300], "context": [0, 100], "metadata": {"snr": 3}}
    second = {"name": "b", "sources": {n: f"references/test/song2/part1/{n}.wav" for n in ("voice", "rest")}}
    (own / "list.json").write_text(json.dumps({"items": [first, second]}))
    (own / "bare.json").write_text(json.dumps([first, second]))
    sets = [ManifestSet(own / name) for name in ("list.csv", "list.json", "bare.json")]
    assert sets[0].entries == sets[1].entries == sets[2].entries and sets[0].files == sets[1].files
    one, two = sets[0]
    assert (one.group, one.split, one.segment, one.context) == ("one", "train", (100, 300), (0, 100))
    assert one.metadata == {"snr": 3} and (two.group, two.split, two.segment) == ("b", "all", (0, 400))
    assert_sum(one, ("voice", "rest"))
    assert_sum(two, ("voice", "rest"))  # the mixture is their sum
    np.testing.assert_array_equal(one.background(), one.mixture[:, :100])
    halved = ManifestSet(own / "list.csv", rate=RATE // 2)[0]
    assert halved.segment == (50, 150) and halved.context == (0, 50)
    assert guess_kind(own / "list.csv") == "manifest"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a,estimate", "a,guess", r"line 5: name='a', kind='guess'"),
        ("a,mixture,,,mixtures/train/song1/part1.wav", "a,mixture,,,", "path=''"),
        ("b,reference,,rest", "b,reference,,voice", "line 7: there was a row for reference voice of b before"),
        (
            ",,voice,references/train/song1/part1/voice.wav,",
            ",,voice,references/x.wav,two",
            "'two' of a, which was 'one'",
        ),
        ("100,300,0,100", "100,,0,100", "segment from '100' to ''; expected two counts"),
        ("100,300,0,100", "300,100,0,100", r"segment is \[300, 100\]; expected the first sample"),
        ("name,kind", "title,kind", "has no column name"),
        ("b,", "../b,", r"'\.\./b' cannot be the name of a file"),
    ],
)
def test_bad_csv(own, old, new, message):
    (own / "list.csv").write_text(ROWS.replace(old, new))
    with pytest.raises(ValueError, match=message):
        ManifestSet(own / "list.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be parsed as JSON"),
        ("{}", "lists no items; expected"),
        ('[{"sources": {}}]', "item 1: expected an object with a name"),
        ('[{"name": "a"}]', "item 1: no path of a source or mixture"),
        ('[{"name": "a", "sources": {"x": 3}}]', "no path of a source"),
        ('[{"name": "a", "mixture": "m.wav", "colour": 1}]', "unknown colour; fields are name, mixture"),
        ('[{"name": "a", "mixture": "m.wav", "segment": [0, 1.5]}]', r"segment is \[0, 1.5\]"),
    ],
)
def test_bad_json(tmp_path, text, message):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ManifestSet(tmp_path / "list.json")


def test_manifest_of_files_that_are_not_there(tmp_path):
    (tmp_path / "list.json").write_text('[{"name": "a", "mixture": "m.wav"}]')
    with pytest.raises(FileNotFoundError, match=r"1 file is missing: .*m\.wav\. .*list\.json lists them"):
        ManifestSet(tmp_path / "list.json")
    with pytest.raises(FileNotFoundError, match="no manifest"):
        ManifestSet(tmp_path / "other.json")
    put(tmp_path / "m.wav", tone(0))
    (tmp_path / "list.json").write_text('[{"name": "a", "mixture": "m.wav", "segment": [0, 500]}]')
    with pytest.raises(ValueError, match="a: its segment ends at sample 500, beyond the mixture, which has 400"):
        ManifestSet(tmp_path / "list.json")[0]
    (tmp_path / "list.json").write_text('[{"name": "a", "mixture": "m.wav"}, {"name": "a", "mixture": "m.wav"}]')
    with pytest.raises(ValueError, match="2 mixtures called 'a'"):
        ManifestSet(tmp_path / "list.json")


def test_sources_that_cannot_be_summed(own):
    put(own / "references/test/song2/part1/rest.wav", tone(1, 300))
    (own / "list.csv").write_text(ROWS)
    with pytest.raises(ValueError, match=r"b: the sources have shapes .* cannot be summed"):
        ManifestSet(own / "list.csv")[1]


# Opening by name ------------------------------------------------------------------------------------------------------


def test_kinds(own):
    data = open_dataset("folder", own, mono=True)
    assert isinstance(data, FolderSet) and data.mono
    with pytest.raises(ValueError, match=r"unknown kind of data 'timit'; there are chime2, musdb18"):
        open_dataset("timit", own)
    with pytest.raises(ValueError, match=r"kind 'folder' have no option chunk; there are mixtures, references, rate"):
        open_dataset("folder", own, chunk=3)
    with pytest.raises(ValueError, match="kind 'wham' need a path"):
        open_dataset("wham")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        guess_kind(own / "nowhere")
    with pytest.raises(ValueError, match="neither a folder nor a manifest"):
        guess_kind(own / "mixtures/train/single.wav")
    for kind in KINDS:
        if kind != "synthetic":
            with pytest.raises(FileNotFoundError, match=r"no folder|no file or folder|no manifest"):
                open_dataset(kind, own / "nowhere")


def test_sets_travel_to_other_processes(own):
    """What a process pool does to a set and to parts of it."""
    data = FolderSet(own)
    for original in (data, data.mixtures("train"), data[1:3], data.folds(2)[0].test):
        copy = pickle.loads(pickle.dumps(original))
        assert copy.names == original.names
        np.testing.assert_array_equal(copy[0].mixture, original[0].mixture)

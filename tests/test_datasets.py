"""Readers of the sets of real recordings, on miniature sets made here and on the sets themselves."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayesfuse import audio
from bayesfuse.datasets import (
    Dataset,
    Lazy,
    MiniBinaural,
    MiniChime,
    MiniMus,
    Mixture,
    guess_kind,
    open_dataset,
)

RATE = 8000


def pcm(seed: int, channels: int, samples: int, level: float = 0.1) -> np.ndarray:
    """Noise on the 16-bit grid, so that a file holds exactly these numbers."""
    noise = level * np.random.default_rng(seed).standard_normal((channels, samples))
    return np.clip(np.rint(noise * 32768), -32768, 32767) / 32768


def save(path: Path, x: np.ndarray, subtype: str | None = "PCM_16") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, x, RATE, subtype=subtype)


def describe(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps({"sample_rate": RATE} | manifest))


def check_of(mixture: np.ndarray, scale: float, **gains: object) -> dict[str, object]:
    levels = {"mixture_rms": np.sqrt(np.mean(mixture**2)), "mixture_peak": np.abs(mixture).max()}
    return {"scale": scale, **levels, **gains}


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Miniature sets in the layout of the real ones; one mixture of the first needs the clipping rule."""
    chime, mus, binaural = (tmp_path / name for name in ("mini-chime", "mini-mus", "mini-binaural"))
    noise = pcm(0, 1, 900)[0]
    save(chime / "noise/hum.flac", noise[None])
    records, utterances = [], []
    for number, (snr, level) in enumerate([(-6, 0.1), (3, 0.5)]):
        voice = pcm(10 + number, 1, 100 + number, level)[0]
        save(chime / f"speech/ann/ann_{number}.flac", voice[None])
        utterances.append({"id": f"ann_{number}", "path": f"speech/ann/ann_{number}.flac", "samples": voice.size})
        onset, offset, total = 200, 37, 200 + voice.size + 50
        stretch = noise[offset : offset + total]
        ratio = sum(v**2 for v in voice) / sum(v**2 for v in stretch[onset : onset + voice.size])
        gain = np.sqrt(ratio / 10 ** (snr / 10))
        mixture = gain * stretch
        mixture[onset : onset + voice.size] += voice
        scale = min(1.0, 0.999 / np.abs(mixture).max())
        records.append(
            {
                "id": f"test_{number}",
                "speaker": "ann",
                "speech": utterances[-1]["path"],
                "noise": "noise/hum.flac",
            }
            | {"noise_category": "hum", "noise_offset": offset, "snr_db": snr, "onset": onset}
            | {"speech_samples": voice.size, "total_samples": total}
            | {"check": check_of(scale * mixture, scale, noise_gain=gain)}
            | ({"quick": True} if number else {})
        )
    assert records[0]["check"]["scale"] == 1.0 > records[1]["check"]["scale"]  # type: ignore[index]
    manifest = {"name": "mini-chime", "speakers": {"ann": {}}, "speech": {"train": {"ann": utterances}}}
    describe(chime, manifest | {"mixtures": {"test": records}})

    stems = {name: pcm(20 + i, 2, 300) for i, name in enumerate(("vocals", "bass", "drums"))}
    for name, stem in stems.items():
        save(mus / f"song/x1/{name}.flac", stem)
    mixture = stems["vocals"] + stems["bass"] + stems["drums"]
    item: dict[str, Any] = {"id": "song_x1", "song": "song", "samples": 300, "start_s_in_song": 1.5}
    item["stems"] = {name: f"song/x1/{name}.flac" for name in stems}
    item["mixture_peak"] = round(np.abs(mixture).max(), 4)
    item["mixture_rms_dbfs"] = round(10 * np.log10(np.mean(mixture**2)), 2)
    item["stem_rms_dbfs"] = {name: round(10 * np.log10(np.mean(s**2)), 2) for name, s in stems.items()}
    describe(mus, {"name": "mini-mus", "split": {"train": ["song_x1"]}, "items": [item]})

    responses = [np.random.default_rng(30 + i).standard_normal((2, 20)).astype(np.float32) for i in range(2)]
    parts, images = [], []
    for number, response in enumerate(responses):
        save(binaural / f"brir/room_az{number}.wav", 0.1 * response, None)
        voice = audio.read(chime / f"speech/ann/ann_{number}.flac", dtype=np.float64)[0][0]
        heard = audio.read(binaural / f"brir/room_az{number}.wav", dtype=np.float64)[0]
        padded = np.concatenate([voice, np.zeros(101 - voice.size)])
        images.append(np.stack([np.convolve(padded, ear) for ear in heard]))
        parts.append(
            {"speaker": f"voice{number}", "speech": f"mini-chime/speech/ann/ann_{number}.flac"}
            | {
                "brir": f"mini-binaural/brir/room_az{number}.wav",
                "azimuth_deg": number,
                "speech_samples": voice.size,
            }
        )
    gain = np.sqrt(np.sum(images[0] ** 2) / np.sum(images[1] ** 2))
    mixture = images[0] + gain * images[1]
    record = {"id": "test_0", "room": "room", "sir_db": 0, "sources": parts, "total_samples": 120}
    record["check"] = check_of(mixture, 1.0, source_gains=[1.0, gain])
    describe(binaural, {"name": "mini-binaural", "mixtures": {"test": [record]}})
    return tmp_path


def assert_consistent(item: Mixture, dtype: type[np.floating]) -> None:
    """What every mixture promises."""
    arrays = [item.mixture, *item.sources.values()]
    assert all(array.dtype == dtype and array.shape == item.mixture.shape for array in arrays)
    total = np.sum(list(item.sources.values()), axis=0)
    # Sources and mixture are rounded one by one.
    bound = (len(arrays) + 1) * np.finfo(dtype).eps * np.max(np.abs(arrays))
    assert np.max(np.abs(total - item.mixture)) <= bound
    start, stop = item.segment
    assert 0 <= start < stop <= item.mixture.shape[1]


def test_speech_in_noise(sets: Path, dtype: type[np.floating]) -> None:
    reader = MiniChime(sets / "mini-chime", dtype=dtype)
    assert (reader.splits, reader.speakers, reader.rate) == (("test",), ("ann",), RATE)
    assert isinstance(reader, Dataset)
    for number, item in enumerate(reader.mixtures("test")):
        assert_consistent(item, dtype)
        assert (item.name, item.split, item.group) == (f"test_{number}", "test", f"ann_{number}")
        assert item.segment == (200, 300 + number) and item.context == (0, 200)
        speech, noise = item.scored(item.sources["speech"]), item.scored(item.sources["noise"])
        # The wanted level, and speech that is the utterance, nothing before or after it.
        level = 10 * np.log10(np.sum(speech**2) / np.sum(noise**2))
        assert abs(level - [-6, 3][number]) < 1e-4
        assert not np.any(item.sources["speech"][:, :200]) and not np.any(item.sources["speech"][:, 300 + number :])
        utterance = reader.training_speech("ann")[number]
        np.testing.assert_allclose(speech, item.metadata["scale"] * utterance, rtol=0, atol=2 * np.finfo(dtype).eps)
        np.testing.assert_array_equal(item.background(), item.sources["noise"][:, :200])
        assert np.abs(item.mixture).max() < 0.9991
        assert item.metadata["quick"] is bool(number)
    assert reader.mixtures("test", quick=True).names == ("test_1",)
    assert reader.mixtures("test", quick=False).names == ("test_0",)


def test_music(sets: Path, dtype: type[np.floating]) -> None:
    reader = MiniMus(sets / "mini-mus", dtype=dtype)
    assert isinstance(reader, Dataset) and reader.splits == ("train",)
    (item,) = reader.mixtures("train")
    assert_consistent(item, dtype)
    assert list(item.sources) == ["vocals", "bass", "drums"] and item.mixture.shape == (2, 300)
    np.testing.assert_array_equal(item.sources["bass"], pcm(21, 2, 300).astype(dtype))
    two = item.versus_rest("vocals", "accompaniment")
    assert_consistent(two, dtype)
    assert list(two.sources) == ["vocals", "accompaniment"] and list(item.sources) == [
        "vocals",
        "bass",
        "drums",
    ]
    np.testing.assert_array_equal(two.sources["accompaniment"], item.sources["bass"] + item.sources["drums"])
    with pytest.raises(ValueError, match="no stretch of background"):
        item.background()
    for source, rest in (("flute", "rest"), ("vocals", "vocals")):
        with pytest.raises(ValueError, match="at least one other"):
            item.versus_rest(source, rest)
    with pytest.raises(ValueError, match="300 samples, but the signal has 299"):
        item.scored(item.mixture[:, 1:])


def test_talkers(sets: Path, dtype: type[np.floating]) -> None:
    reader = MiniBinaural(sets / "mini-binaural", dtype=dtype)
    assert isinstance(reader, Dataset) and reader.speakers == ("ann",)
    (item,) = reader.mixtures("test")
    assert_consistent(item, dtype)
    assert item.mixture.shape == (2, 120) and list(item.sources) == ["voice0", "voice1"]
    energies = [np.sum(source**2) for source in item.sources.values()]
    np.testing.assert_allclose(energies[1], energies[0], rtol=1e-5)
    assert len(reader.training_speech("ann")) == 2
    moved = sets / "elsewhere"
    shutil.move(sets / "mini-chime", moved)
    with pytest.raises(FileNotFoundError, match=r"no folder .*mini-chime; expected the one of the set mini-chime"):
        MiniBinaural(sets / "mini-binaural")
    (again,) = MiniBinaural(sets / "mini-binaural", moved, dtype=dtype).mixtures("test")
    np.testing.assert_array_equal(again.mixture, item.mixture)


def test_files_of_a_mixture(sets: Path) -> None:
    """Those that have to be there, and no others: without them the mixture cannot be formed, without others it can."""
    expected = {
        "mini-chime": {"mini-chime/speech/ann/ann_1.flac", "mini-chime/noise/hum.flac"},
        "mini-mus": {f"mini-mus/song/x1/{stem}.flac" for stem in ("vocals", "bass", "drums")},
        "mini-binaural": {f"mini-chime/speech/ann/ann_{i}.flac" for i in range(2)}
        | {f"mini-binaural/brir/room_az{i}.wav" for i in range(2)},
    }
    for kind, names in expected.items():
        assert guess_kind(sets / kind) == kind
        data = open_dataset(kind, sets / kind)
        files = data.paths(len(data) - 1)
        assert {file.relative_to(sets).as_posix() for file in files} == names
        assert all(file.is_file() for file in files)


def test_sequences_are_lazy(sets: Path) -> None:
    made = []

    def make(index: int) -> int:
        made.append(index)
        return index * index

    items = Lazy([f"n{i}" for i in range(10)], make)
    assert len(items) == 10 and items.names[3] == "n3" and not made
    part = items[2:9:3]
    assert part.names == ("n2", "n5", "n8") and not made
    assert list(part) == [4, 25, 64] and made == [2, 5, 8]
    assert part[::-1][0] == 64 and items[-1] == 81
    assert "10 items" in repr(items)
    with pytest.raises(IndexError):
        items[10]
    shutil.rmtree(sets / "mini-chime" / "noise")
    mixtures = MiniChime(sets / "mini-chime").mixtures("test")  # no file is opened yet
    with pytest.raises(FileNotFoundError, match=r"hum\.flac"):
        mixtures[0]


def test_damage_is_noticed(sets: Path) -> None:
    chime = sets / "mini-chime"
    save(chime / "noise/hum.flac", pcm(99, 1, 900))
    with pytest.raises(ValueError, match=r"test_0 came out with .*the files are damaged"):
        MiniChime(chime).mixtures("test")[0]
    save(chime / "noise/hum.flac", pcm(0, 1, 200))
    with pytest.raises(ValueError, match="holds 200 samples per channel"):
        MiniChime(chime).mixtures("test")[0]
    audio.write(chime / "noise/hum.flac", pcm(0, 1, 900), 2 * RATE)
    with pytest.raises(ValueError, match="has 16000 Hz, but its manifest says 8000 Hz"):
        MiniChime(chime).mixtures("test")[0]
    save(sets / "mini-mus/song/x1/bass.flac", 0.9 * pcm(21, 2, 300))
    with pytest.raises(ValueError, match="song_x1 came out with"):
        MiniMus(sets / "mini-mus").mixtures("train")[0]


def test_missing_and_wrong_folders(sets: Path, tmp_path: Path) -> None:
    for reader in (MiniChime, MiniMus, MiniBinaural):
        with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; expected the one of the set mini-"):
            reader(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"has no manifest\.json"):
            reader(tmp_path)
    with pytest.raises(ValueError, match="describes 'mini-mus'; expected the set 'mini-chime'"):
        MiniChime(sets / "mini-mus")
    for text in ("{", "[1]"):
        (sets / "mini-mus/manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"cannot be parsed|describes None"):
            MiniMus(sets / "mini-mus")
    reader = MiniChime(sets / "mini-chime")
    refused: dict[str, Callable[[], object]] = {
        "unknown split 'dev'; there are test": lambda: reader.mixtures("dev"),
        "unknown speaker 'bob'; there are ann": lambda: reader.training_speech("bob"),
        "unknown split 'dev'; there are train": lambda: reader.training_speech("ann", "dev"),
        "no mixtures marked as quick": lambda: MiniBinaural(sets / "mini-binaural").mixtures("test", quick=True),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()


# Forming a mixture compares it with the set's own `check` values to 1e-5 and raises if they differ; the tests
# below therefore read a sample of each real set, spread over splits, speakers, levels and rooms.


def folder(data_root: Path, name: str) -> Path:
    if not (data_root / name).is_dir():
        pytest.skip(f"no folder {name} in {data_root}")
    return data_root / name


def test_mini_chime_itself(data_root: Path) -> None:
    reader = MiniChime(folder(data_root, "mini-chime"))
    assert reader.speakers == ("bdl", "slt", "kat", "dan") and reader.rate == 16000
    assert [len(reader.mixtures(split)) for split in ("test", "val", "train")] == [384, 192, 870]
    assert len(reader.mixtures("test", quick=True)) == 72 and len(reader.mixtures("val", quick=True)) == 48
    assert [len(reader.training_speech(speaker)) for speaker in reader.speakers] == [240, 240, 240, 150]
    for split, step in (("test", 53), ("val", 41), ("train", 173)):
        for item in reader.mixtures(split)[::step]:
            assert_consistent(item, np.float32)
            assert item.context == (0, 80000) and item.mixture.shape[1] == item.segment[1] + 16000
            speech, noise = (item.scored(item.sources[name]).astype(float) for name in ("speech", "noise"))
            level = 10 * np.log10(np.sum(speech**2) / np.sum(noise**2))
            assert abs(level - item.metadata["snr_db"]) < 1e-4
    record = next(r for r in reader._manifest["mixtures"]["val"] if r["check"]["scale"] < 1)
    clipped = reader.mixtures("val")[reader.mixtures("val").names.index(record["id"])]
    np.testing.assert_allclose(clipped.metadata["scale"], record["check"]["scale"], rtol=1e-5)
    assert abs(np.abs(clipped.mixture).max() - 0.999) < 1e-6


def test_mini_mus_itself(data_root: Path) -> None:
    reader = MiniMus(folder(data_root, "mini-mus"))
    assert [len(reader.mixtures(split)) for split in reader.splits] == [6, 1, 2, 1]
    item = reader.mixtures("test")[0]
    assert_consistent(item, np.float32)
    assert item.rate == 44100 and item.mixture.shape == (2, 1411200) and item.group == "francium"
    assert np.abs(item.mixture).max() <= 0.9
    assert "vocals" not in reader.mixtures("extra_instrumental")[0].sources


def test_mini_binaural_itself(data_root: Path) -> None:
    reader = MiniBinaural(folder(data_root, "mini-binaural"), folder(data_root, "mini-chime"))
    assert [len(reader.mixtures(split)) for split in ("test", "val")] == [48, 24]
    for split in ("test", "val"):
        for item in reader.mixtures(split)[::5]:
            assert_consistent(item, np.float32)
            energies = [np.sum(source.astype(float) ** 2) for source in item.sources.values()]
            np.testing.assert_allclose(energies, energies[0], rtol=1e-5)
            assert len(item.sources) == len(item.metadata["speakers"]) in (2, 3)

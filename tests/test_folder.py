"""Folders of WAV files as separators: layout, manifest, free energies beside the sounds, and how files are read."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from small_example import RATE
from synthetic_results import make_result
from wav_folder import SAMPLES, SEPARATORS, SOURCES, change, put, write_folder

from bayesfuse import audio
from bayesfuse.separators.folder import read_folder, read_manifest
from bayesfuse.separators.free_energy_file import load_free_energy, save_free_energy
from bayesfuse.tracks import differences, open_track
from bayesfuse.transforms import QERB, STFT
from bayesfuse.vbnmf import FreeEnergy

NAMES = ("a", "b", "far/c")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("set"), NAMES)


def manifest_of(root: Path, path: Path, **groups: str) -> Path:
    """A manifest of the same files, with paths relative to itself."""
    folder = read_folder(root / "mixtures", root / "estimates", root / "references")
    rows = []
    for item in folder.items:
        rows.append((item.name, "mixture", "", "", item.mixture))
        rows += [(item.name, "estimate", s, source, f) for s, fs in item.estimates.items() for source, f in fs.items()]
        rows += [(item.name, "reference", "", source, file) for source, file in item.references.items()]
        rows += [(item.name, "free_energy", s, "", file) for s, file in item.free_energies.items()]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "kind", "separator", "source", "path", "group"])
        writer.writerows((*row[:4], os.path.relpath(row[4], path.parent), groups.get(row[0], "")) for row in rows)
    return path


# ------------------------------------------------------------------------------------------------- layout and manifest


def test_the_layout_is_read(root):
    folder = read_folder(root / "mixtures", root / "estimates", root / "references")
    assert [item.name for item in folder.items] == list(NAMES)
    assert folder.separators == tuple(sorted(SEPARATORS))
    assert folder.sources == SOURCES
    assert folder.separators_of == {source: folder.separators for source in SOURCES}
    item = folder.items[2]
    assert item.estimate("dark", "voice") == root / "estimates" / "dark" / "far" / "c" / "voice.wav"
    assert set(item.references) == set(SOURCES) and item.group == "far/c" and not item.free_energies
    assert read_folder(root / "mixtures", root / "estimates").items[0].references == {}


def test_a_manifest_says_the_same(root, tmp_path):
    folder = read_folder(root / "mixtures", root / "estimates", root / "references")
    listed = read_manifest(manifest_of(root, tmp_path / "files.csv", a="speaker 1", b="speaker 1"))
    assert listed.separators == folder.separators and listed.separators_of == folder.separators_of
    for one, other in zip(folder.items, listed.items, strict=True):
        assert one.name == other.name and other.mixture.samefile(one.mixture)
        for separator, files in one.estimates.items():
            assert all(other.estimate(separator, source).samefile(file) for source, file in files.items())
    assert [item.group for item in listed.items] == ["speaker 1", "speaker 1", "far/c"]


def test_a_separator_is_one(root):
    folder = read_folder(root / "mixtures", root / "estimates")
    separation = folder.separation("wide", folder.items[0])
    mixture, _ = audio.read(folder.items[0].mixture)
    np.testing.assert_allclose(separation.sources.sum(axis=0), mixture, atol=1e-6)
    assert separation.free_energy is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["name,kind,source,path"], "no column separator"),
        (["name,kind,separator,source,path", "a,mixture,,,a.wav", "a,guess,x,v,b.wav"], "kind 'guess'"),
        (["name,kind,separator,source,path", "a,mixture,,,"], "needs path"),
        (["name,kind,separator,source,path", "a,estimate,,v,b.wav"], "needs separator"),
        (["name,kind,separator,source,path", "a,reference,,,b.wav"], "needs source"),
        (["name,kind,separator,source,path", "a,mixture,,,a.wav", "a,mixture,,,b.wav"], "before"),
        (["name,kind,separator,source,path", "a,estimate,x,v,b.wav"], "no row of kind mixture for a"),
        (["name,kind,separator,source,path", "a,mixture,,,a.wav"], "no estimate of any mixture"),
        (["name,kind,separator,source,path", "../a,mixture,,,a.wav"], "cannot be the name of a file"),
    ],
)
def test_manifests_that_are_wrong(tmp_path, rows, message):
    (tmp_path / "files.csv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / "files.csv")


def test_manifests_that_cannot_be_read(tmp_path):
    (tmp_path / "files.csv").write_bytes(b"name,kind\xff\xfe\n")
    with pytest.raises(ValueError, match="cannot be read as CSV"):
        read_manifest(tmp_path / "files.csv")
    with pytest.raises(FileNotFoundError, match=r"no manifest .*none\.csv"):
        read_manifest(tmp_path / "none.csv")


def test_folders_that_are_wrong(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_folder(tmp_path / "none", root / "estimates")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no audio files"):
        read_folder(tmp_path / "empty", root / "estimates")
    with pytest.raises(ValueError, match="one per separator"):
        read_folder(root / "mixtures", tmp_path / "empty")
    with pytest.raises(ValueError, match="no estimate of any mixture"):
        read_folder(root / "mixtures", root / "mixtures")
    put(tmp_path / "twice" / "a.wav", np.zeros((1, 10), np.float32))
    put(tmp_path / "twice" / "a.flac", np.zeros((1, 10), np.float32))
    with pytest.raises(ValueError, match="one name"):
        read_folder(tmp_path / "twice", root / "estimates")


# ------------------------------------------------------------------------------------------------------ free energies


@pytest.mark.parametrize("transform", [STFT(256, 64), QERB(16000, 40, 256)])
def test_free_energies_come_back_bit_by_bit(tmp_path, transform):
    energy = FreeEnergy(np.array([-1.5e6, -np.inf, 0.1]), np.asarray(-3.25), np.asarray(-0.5))
    save_free_energy(tmp_path / "free_energy.nc", energy, transform)
    loaded, frames = load_free_energy(tmp_path / "free_energy.nc")
    np.testing.assert_array_equal(loaded.frames, energy.frames)
    assert (loaded.dictionary, loaded.order, frames) == (-3.25, -0.5, transform)


def test_free_energies_that_cannot_be_kept_or_read(tmp_path):
    bad = FreeEnergy(np.array([np.nan]), np.asarray(0.0), np.asarray(0.0))
    with pytest.raises(ValueError, match="NaN"):
        save_free_energy(tmp_path / "x.nc", bad, STFT())
    assert not list(tmp_path.iterdir())
    (tmp_path / "x.nc").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        load_free_energy(tmp_path / "x.nc")
    make_result().save(tmp_path / "several.nc")
    with pytest.raises(ValueError, match="of 4 orders"):
        load_free_energy(tmp_path / "several.nc")


def test_results_write_what_folders_read(tmp_path):
    result = make_result(channels=2)
    (tmp_path / "mixtures").mkdir()
    audio.write(tmp_path / "mixtures" / "song.wav", result.mixture, result.rate)
    written = result.write_estimates(tmp_path / "estimates", "song")
    folder = read_folder(tmp_path / "mixtures", tmp_path / "estimates")
    assert folder.separators == tuple(sorted(f"order-{label}" for label in result.order_labels))
    assert len(written) == len(result.order_labels) * len(result.source_names)
    for index, label in enumerate(result.order_labels):
        separation = folder.separation(f"order-{label}", folder.items[0])
        assert result.estimates is not None and separation.free_energy is not None
        order = [result.source_names.index(source) for source in folder.sources]
        np.testing.assert_array_equal(separation.sources, result.estimates[index][order])
        np.testing.assert_array_equal(separation.free_energy.frames, result.energy_frames[index])
        assert separation.free_energy.total == pytest.approx(result.free_energy[index])
    with pytest.raises(ValueError, match="not kept"):
        make_result(with_estimates=False).write_estimates(tmp_path / "none", "song")


def test_a_result_of_one_order_is_a_free_energy(tmp_path):
    result = make_result(num_orders=1)
    result.save(tmp_path / "free_energy.nc")
    energy, _ = load_free_energy(tmp_path / "free_energy.nc")
    np.testing.assert_array_equal(energy.frames, result.energy_frames[0])


# ------------------------------------------------------------------------------------------------------------- tracks


def test_tracks_read_any_stretch(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (2, 1000)).astype(np.float32)
    put(tmp_path / "x.wav", x)
    track = open_track(tmp_path / "x.wav", audio.info(tmp_path / "x.wav"), adapt=False)
    padded = np.pad(x, [(0, 0), (500, 500)])
    for start, stop in [(0, 1000), (-500, 1500), (-400, -300), (1100, 1200), (999, 1001), (0, 1)]:
        np.testing.assert_array_equal(track.read(start, stop), padded[:, 500 + start : 500 + stop])


@pytest.mark.parametrize("rate", [RATE, 2 * RATE, 11025, 44100, 6000])
def test_other_rates_are_resampled_alike_in_blocks_and_whole(tmp_path, rate):
    x = np.random.default_rng(0).uniform(-1, 1, (1, 4000)).astype(np.float32)
    put(tmp_path / "mixture.wav", np.zeros((1, round(4000 * RATE / rate)), np.float32))
    put(tmp_path / "x.wav", x, rate)
    like = audio.info(tmp_path / "mixture.wav")
    track = open_track(tmp_path / "x.wav", like, adapt=True)
    whole = audio.resample(x, rate, RATE)[:, : like.samples]
    blocks = [track.read(start, min(start + 333, like.samples)) for start in range(0, like.samples, 333)]
    np.testing.assert_allclose(np.concatenate(blocks, axis=-1), whole, atol=1e-6)


def test_channels_and_lengths_are_matched(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (2, 1000)).astype(np.float32)
    put(tmp_path / "stereo.wav", x)
    put(tmp_path / "mono.wav", x[:1, :900])
    put(tmp_path / "three.wav", np.concatenate([x, x[:1]]))
    stereo, mono = (audio.info(tmp_path / f"{name}.wav") for name in ("stereo", "mono"))
    assert differences(mono, stereo) == ["1 channel instead of 2", "900 samples instead of 1000"]
    with pytest.raises(ValueError, match=r"mono\.wav has 1 channel instead of 2.*--align"):
        open_track(tmp_path / "mono.wav", stereo, adapt=False)
    doubled = open_track(tmp_path / "mono.wav", stereo, adapt=True).read(0, 1000)
    np.testing.assert_array_equal(doubled, np.pad(np.repeat(x[:1, :900], 2, axis=0), [(0, 0), (0, 100)]))
    mixed = open_track(tmp_path / "stereo.wav", mono, adapt=True).read(0, 900)
    np.testing.assert_allclose(mixed, x[:, :900].mean(axis=0, keepdims=True), atol=1e-7)
    with pytest.raises(ValueError, match="no one way"):
        open_track(tmp_path / "three.wav", stereo, adapt=True).read(0, 10)


def test_corrections_are_applied(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (1, SAMPLES)).astype(np.float32)
    put(tmp_path / "x.wav", np.pad(x, [(0, 0), (7, 0)])[:, :SAMPLES])
    change(tmp_path / "x.wav", lambda y: y / np.float32(-2.0))
    like = audio.info(tmp_path / "x.wav")
    track = open_track(tmp_path / "x.wav", like, adapt=True, lag=7.0, gain=-2.0)
    np.testing.assert_array_equal(track.read(0, SAMPLES - 7), x[:, : SAMPLES - 7])

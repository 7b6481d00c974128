"""Experiments: what a record says, when it is computed again, and the command line."""

import dataclasses
import importlib
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import small_experiment
from small_experiment import NAMES, RATE, complete, times

from bayesfuse import experiment_dictionaries, metrics
from bayesfuse.cli import main
from bayesfuse.datasets import MiniChime
from bayesfuse.datasets.opening import open_dataset
from bayesfuse.dictionary import train_dictionary
from bayesfuse.experiment_items import make_record
from bayesfuse.experiment_models import Estimate
from bayesfuse.experiments import load_config, open_records, run_experiment
from bayesfuse.grams import Bands, gram, sdr
from bayesfuse.separators import Settings, vb_nmf
from bayesfuse.separators.folder import read_folder
from bayesfuse.transforms import STFT

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def config(tmp_path):
    return load_config(small_experiment.make(tmp_path))


# What is computed -----------------------------------------------------------------------------------------------------


def test_a_record_says_what_the_separators_do(tmp_path, monkeypatch):
    """Against the separators of the library, called one by one, and scalar products of their waveforms."""
    config = load_config(small_experiment.make(tmp_path, names=("a", "b"), variational=True))
    run_experiment(config, tmp_path / "out")
    item = open_dataset("folder", tmp_path / "set")[0]
    [record] = open_records(tmp_path / "out").select(names=["a"])
    assert record.models == ("VB-NMF 1", "VB-NMF 2", "ML-NMF 2") and record.sources == ("speech",)
    assert record.terms == ("likelihood", "activations of speech", "activations of noise", "other")
    # `a` is in one half of the material, and its dictionary of order 2 was learned on the other.
    other = open_dataset("folder", tmp_path / "set")[1]
    transform = STFT(64, 32)
    [one, two] = train_dictionary([other.sources["speech"]], RATE, [1, 2], transform=transform, num_iters=5)
    # The separators' seed comes from a key; that of the experiment is plain.
    monkeypatch.setattr(importlib.import_module("bayesfuse.separators.vb_nmf"), "seed_of", lambda key: 0)
    settings = Settings(num_iters=5, ml_iters=2)
    truth = item.sources["speech"]
    for m, dictionary in enumerate((one, two)):
        found = vb_nmf([dictionary, 1], transform=transform, settings=settings)(jax.random.key(0), item.mixture)
        estimate = found.sources[0]
        np.testing.assert_allclose(record.scores["sdr"][m, 0], metrics.sdr(truth, estimate, axis=(-2, -1)), rtol=1e-4)
        np.testing.assert_allclose(sdr(np.eye(3)[m], record.whole)[0], record.scores["sdr"][m, 0], rtol=1e-4)
        assert found.free_energy is not None
        np.testing.assert_allclose(record.total_free_energy[m], found.free_energy.total, rtol=1e-5)
        np.testing.assert_allclose(record.frame_energy[m], found.free_energy.frames, rtol=1e-3, atol=1e-2)
        banded = gram(truth, estimate[None], transform=transform, bands=Bands(RATE, 4, 64)).sum()
        np.testing.assert_allclose(record.bands.cross[0, ..., m], banded.cross[..., 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(record.mixture_scores["sdr"][0], metrics.sdr(truth, item.mixture, axis=(-2, -1)))
    np.testing.assert_allclose(record.likelihood[:2].sum(1), record.free_energy[:2, 0], rtol=1e-4)
    assert np.isnan(record.free_energy[2]).all() and np.isnan(record.total_free_energy[2])


def test_frames_and_bands_of_a_stretch_sum_to_the_whole(tmp_path, data_root):
    """On a mixture whose scored stretch begins and ends between frames."""
    path = data_root / "mini-chime"
    item = MiniChime(path).mixtures("test")[0]
    config = load_config(REPOSITORY / "benchmarks/mini_chime.toml").replace("data", path=path)
    rng = np.random.default_rng(0)
    noisy = item.sources["speech"] + 1e-3 * rng.normal(size=(14, 1, *item.mixture.shape)).astype(np.float32)
    record = make_record(config, item, [Estimate(x, None, 0.0) for x in noisy])
    truth = item.scored(item.sources["speech"])
    direct = gram(truth, item.scored(noisy[:, 0])).sum()
    np.testing.assert_allclose(sdr(np.eye(14), record.whole.take(0)), sdr(np.eye(14), direct), rtol=1e-9)
    for kind, axes in (("frames", (1,)), ("bands", (1, 2))):
        np.testing.assert_allclose(record.scalar_products(kind).gram.sum(axes), record.whole.gram, rtol=1e-9)
    centres = record.frame_times * item.rate
    assert centres[0] <= item.segment[0] + 512 and centres[-1] >= item.segment[1] - 512
    assert (np.asarray(record.frames.energy) > 0).all() and record.first_frame == item.segment[0] // 512


def test_no_dictionary_has_heard_its_mixture(config, monkeypatch):
    data = open_dataset("folder", config.data.path)
    lessons = experiment_dictionaries.lessons_of(config, data, data.entries)
    assert len({mine["speech"] for mine in lessons}) == 2 and all("noise" not in mine for mine in lessons)
    heard = []
    monkeypatch.setattr(
        experiment_dictionaries, "train_dictionary", lambda recordings, *a, **k: heard.append(recordings) or [None]
    )
    for item, mine in zip(data, lessons, strict=True):
        experiment_dictionaries.teach(config, mine["speech"], None)
        sizes = {recording.shape[-1] for recording in heard[-1]}
        assert len(sizes) == 2 and item.mixture.shape[-1] not in sizes
    off = experiment_dictionaries.lessons_of(config.replace("dictionaries", cross_fit=0), data, data.entries)
    assert {mine["speech"].without for mine in off} == {None}


# Once, whatever happens -----------------------------------------------------------------------------------------------


def test_records_are_kept_checked_or_computed_again(config, tmp_path, capsys):
    out = tmp_path / "out"
    plan = run_experiment(config, out, dry_run=True)
    assert len(plan.computed) == 4 and not out.exists() and "4 would be computed" in str(plan)
    first = run_experiment(config, out)
    assert first.computed == NAMES and first.kept == 0 and "4 records computed" in str(first)
    assert first.audio_seconds == pytest.approx(sum(900 + 20 * i for i in range(4)) / RATE)
    complete(out)
    before = times(out)
    again = run_experiment(config, out)
    assert again.computed == () and again.kept == 4 and times(out) == before
    # Files that look different and hold the same are read, and nothing is computed.
    os.utime(tmp_path / "set/mixtures/b.wav", ns=(1, 1))
    assert len(run_experiment(config, out, dry_run=True).computed) == 4
    experiment_dictionaries._opened.cache_clear()
    touched = run_experiment(config, out)
    assert touched.computed == () and touched.kept == 4
    # Another input, and other settings.
    small_experiment.write(tmp_path / "set/references/b/noise.wav", np.zeros(920))
    small_experiment.write(tmp_path / "set/mixtures/b.wav", np.random.default_rng(9).normal(size=920))
    changed = run_experiment(config, out)
    assert changed.computed == ("b",) and changed.kept == 3
    other = config.replace("records", bands=0)
    assert len(open_records(out)) == 4
    limited = run_experiment(other.replace("data", limit=2), out)
    assert limited.computed == ("a", "b") and [r.bands for r in open_records(out)] == [None, None]


# Command line ---------------------------------------------------------------------------------------------------------


def test_command_line(config, tmp_path, capsys):
    arguments = ["experiment", str(tmp_path / "experiment.toml"), "-o", str(tmp_path / "out"), "--limit", "2"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "2 mixtures: 0 records are there, 2 would be computed" in capsys.readouterr().out
    (tmp_path / "set/mixtures/a.wav").write_bytes(b"RIFF")
    assert main([*arguments, "--quiet"]) == 1
    captured = capsys.readouterr()
    assert "a.wav" in captured.err and not captured.out


def test_estimates_are_kept_in_the_layout_of_fuse(config, tmp_path):
    run_experiment(config.replace("records", keep_estimates=True), tmp_path / "out")
    folder = read_folder(tmp_path / "set/mixtures", tmp_path / "out/estimates", tmp_path / "set/references")
    item = folder.items[0]
    separation = folder.separation("ML-NMF 2", item)
    truth = open_dataset("folder", tmp_path / "set")[0].sources["speech"]
    [record] = open_records(tmp_path / "out").select(names=["a"])
    found = metrics.sdr(truth, separation.sources[0], axis=(-2, -1))
    np.testing.assert_allclose(found, record.scores["sdr"][0, 0], rtol=1e-4)
    # What others separated is an experiment, too.
    text = (tmp_path / "experiment.toml").read_text()
    start, end = text.index("[dictionaries]"), text.index("[records]")
    part = '[[separators]]\nkind = "folder"\nestimates = "out/estimates"\nnames = ["ML-NMF 2"]\n\n'
    (tmp_path / "folder.toml").write_text(text[:start] + part + text[end:])
    run_experiment(load_config(tmp_path / "folder.toml"), tmp_path / "others")
    [other] = open_records(tmp_path / "others").select(names=["a"])
    np.testing.assert_allclose(other.whole.gram, record.whole.gram, rtol=1e-5)


def test_batches_find_what_single_mixtures_find(tmp_path):
    config = load_config(small_experiment.make(tmp_path, variational=True))
    one = dataclasses.replace(config.separators[0], orders=(2,))
    config = dataclasses.replace(config, separators=(one,))
    run_experiment(config, tmp_path / "single")
    summary = run_experiment(config.replace("execution", batch=3), tmp_path / "batch")
    assert summary.computed == NAMES
    for one, other in zip(open_records(tmp_path / "single"), open_records(tmp_path / "batch"), strict=True):
        assert one.key == other.key and one.models == other.models
        np.testing.assert_allclose(one.total_free_energy, other.total_free_energy, rtol=1e-4)
        np.testing.assert_allclose(one.scores["sdr"], other.scores["sdr"], atol=1e-2)

"""Experiments: what a record says, when it is computed again, and the command line."""

import dataclasses
import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
import small_experiment
from small_experiment import NAMES, RATE, complete, times

from bayesfuse import experiment_dictionaries, experiments, metrics
from bayesfuse.cli import main
from bayesfuse.datasets import MiniChime
from bayesfuse.datasets.opening import open_dataset
from bayesfuse.dictionary import train_dictionary
from bayesfuse.experiment_items import make_record, work
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
        experiment_dictionaries.teach(config, data, mine["speech"], None)
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


def test_a_set_that_changes_is_seen(config, tmp_path, monkeypatch):
    """In the process that knew it, and in workers that outlive a run, whose positions would be others."""
    out = tmp_path / "out"
    run_experiment(config, out)
    small_experiment.make(tmp_path, names=(*NAMES, "A"))
    known = []
    monkeypatch.setattr(experiments, "work", lambda task: known.append(task) or work(task))
    with ThreadPoolExecutor(1) as pool:
        assert run_experiment(config, out, executor=pool).computed == ("A", *NAMES)  # dictionaries are others, too
    complete(out, ("A", *NAMES))
    task = next(task for task in known if "A" in task.names)
    assert work(task._replace(names=("b",))).outcomes[0].error.startswith("the data set looks otherwise to a worker")
    assert work(task._replace(indices=(9,))).outcomes[0].error.startswith("the data set looks otherwise")
    assert work(task._replace(settings="of other code")).outcomes[0].error.startswith("a worker runs other code")


def test_metadata_that_change_are_those_of_the_record(config, tmp_path):
    """They do not matter for the results: nothing is computed, and tables by SNR are right."""
    columns = "name,kind,source,path,snr_db,room"

    def run(snrs, room):
        lines = [f"{n},mixture,,set/mixtures/{n}.wav,{snr},{room}" for n, snr in zip(NAMES, snrs, strict=True)]
        lines += [f"{n},reference,{s},set/references/{n}/{s}.wav,," for n in NAMES for s in ("speech", "noise")]
        (tmp_path / "set.csv").write_text("\n".join([columns, *lines]))
        described = config.replace("data", kind="manifest", path=tmp_path / "set.csv")
        summary = run_experiment(described, tmp_path / "out")
        return len(summary.computed), [record.metadata for record in open_records(tmp_path / "out")]

    assert run([-6, 0, 3, 9], "007") == (4, [{"snr_db": snr, "room": "007"} for snr in (-6, 0, 3, 9)])
    assert run([-6, 0.5, 3, 9], "007") == (0, [{"snr_db": snr, "room": "007"} for snr in (-6.0, 0.5, 3.0, 9.0)])


def test_damaged_records_are_computed_again(config, tmp_path, caplog):
    """Where they are looked at, because the inputs look different."""
    out = tmp_path / "out"
    run_experiment(config, out)
    path = out / "records/b.nc"
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    path.write_bytes(content)
    for file in (tmp_path / "set/mixtures").iterdir():
        os.utime(file, ns=(1, 1))
    with caplog.at_level("INFO"):
        assert run_experiment(config, out).computed == ("b",)
    assert "1 records are there" not in caplog.text and "3 to be checked" in caplog.text
    complete(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('sources = ["speech"]', 'sources = ["spech"]'), "no true source spech"),
        (('from = "mixture"', 'from = "context"'), "no stretch of background alone"),
        (('kind = "ml-nmf"\norders = [2]\niterations = 5', 'kind = "folder"\nestimates = "est"\nnames = ["x"]'), "x"),
    ],
)
def test_a_configuration_that_fits_no_mixture_is_refused_at_once(config, tmp_path, change, message):
    text = (tmp_path / "experiment.toml").read_text()
    assert change[0] in text
    (tmp_path / "experiment.toml").write_text(text.replace(*change))
    with pytest.raises(ValueError, match=f"the configuration does not fit the data set: .*{message}"):
        run_experiment(load_config(tmp_path / "experiment.toml"), tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()


def test_options_may_be_lists(tmp_path):
    """Draws from the model, with orders and SNRs of the caller."""
    small_experiment.make(tmp_path)
    text = (tmp_path / "experiment.toml").read_text()
    options = "{ speech = [1, 2], snrs_db = [0, 6], background = 1, frames = 4, rate = 2000 }"
    drawn = f'kind = "synthetic"\ntarget = "speech"\nrest = "noise"\noptions = {options}\n'
    (tmp_path / "drawn.toml").write_text(text.replace('kind = "folder"\npath = "set"\n', drawn))
    config = load_config(tmp_path / "drawn.toml")
    summary = run_experiment(config, tmp_path / "out")
    assert len(summary.computed) == 4 and not summary.failed


def test_the_configuration_of_the_readme(tmp_path):
    small_experiment.make(tmp_path, names=("train/a", "train/b", "test/c"))
    (tmp_path / "set").rename(tmp_path / "my_corpus")
    text = (REPOSITORY / "README.md").read_text()
    (tmp_path / "readme.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    config = load_config(tmp_path / "readme.toml")
    plan = run_experiment(config, tmp_path / "out", dry_run=True)
    assert sorted(plan.computed) == ["test/c", "train/a", "train/b"]


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

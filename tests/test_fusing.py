"""Fusing, training and evaluating a folder through the command line, with everything that can be wrong with files."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_example import RATE
from wav_folder import SAMPLES, SEPARATORS, SOURCES, change, put, write_folder

from bayesfuse import alignment, audio, cli, fusion
from bayesfuse.fusing import STATE
from bayesfuse.separators.free_energy_file import save_free_energy
from bayesfuse.transforms import QERB, STFT
from bayesfuse.vbnmf import FreeEnergy

REPOSITORY = Path(__file__).resolve().parent.parent
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("set"), NAMES)


@pytest.fixture
def root(pristine, tmp_path, monkeypatch) -> Path:
    """A copy of the folder, which is the current one."""
    shutil.copytree(pristine, tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    return tmp_path / "set"


def files(references: bool = True) -> list[str]:
    return ["--mixtures", "mixtures", "--estimates", "estimates"] + ["--references", "references"] * references


def fuse(*words: str, references: bool = False) -> int:
    return cli.main(["fuse", *files(references), "-o", "out", *words])


def read(path: Path | str) -> np.ndarray:
    return audio.read(path)[0]


def estimates(name: str, source: str) -> np.ndarray:
    """[model, channel, sample], models in the order of the folder."""
    return np.stack([read(f"estimates/{separator}/{name}/{source}.wav") for separator in sorted(SEPARATORS)])


def with_free_energies(values: dict[str, float], transform: STFT | QERB = STFT(256, 128)) -> None:  # noqa: B008
    """Writes free energies beside all estimates: the same in every frame."""
    frames = transform.num_frames(SAMPLES)
    for separator, value in values.items():
        for name in NAMES:
            energy = FreeEnergy(np.full(frames, value), np.asarray(0.0), np.asarray(0.0))
            save_free_energy(Path("estimates", separator, name, "free_energy.nc"), energy, transform)


# ------------------------------------------------------------------------------------------------------------- methods


def test_the_mean_is_the_mean(root, capsys):
    assert fuse() == 0
    for name in NAMES:
        for source in SOURCES:
            np.testing.assert_allclose(
                read(f"out/{name}/{source}.wav"), estimates(name, source).mean(axis=0), atol=1e-6
            )
    text = capsys.readouterr().out
    assert "nothing wrong" in text and "6 made, 0 kept, 0 failed" in text


@pytest.mark.parametrize("words", [[], ["--time-varying", "--window", "256"]])
def test_the_oracle_beats_every_separator(root, words):
    assert fuse("--method", "oracle", *words, references=True) == 0
    for name in NAMES:
        true = read(f"references/{name}/voice.wav")
        best = max(fusion.sdr(w, fusion.gram(true, estimates(name, "voice")).sum(0)) for w in np.eye(3))
        fused = fusion.gram(true, read(f"out/{name}/voice.wav")[None]).sum(0)
        assert fusion.sdr(np.ones(1), fused) > best


def test_selection_and_weights_by_free_energy(root):
    with_free_energies({"dark": -2.0, "middle": -1.0, "wide": -3.0})
    assert fuse("--method", "select") == 0
    np.testing.assert_array_equal(read("out/b/voice.wav"), read("estimates/middle/b/voice.wav"))
    weights = fusion.vb_weights(np.array([-2.0, -1.0, -3.0]), beta=0.5)
    expected = np.tensordot(weights, estimates("b", "voice"), axes=1)
    for words in ([], ["--time-varying"]):
        with_free_energies({"dark": -2.0, "middle": -1.0, "wide": -3.0}, QERB(RATE, 20, 256))
        assert fuse("--method", "vb", "--beta", "0.5", "--overwrite", *words) == 0
        np.testing.assert_allclose(read("out/b/voice.wav"), expected, atol=1e-6)


@pytest.mark.parametrize("method", ["vb", "select"])
def test_without_free_energies_there_are_no_weights_by_them(root, method, capsys):
    assert fuse("--method", method) == 2
    assert "no free_energy.nc" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_free_energy_that_is_missing_once_is_one_failure(root, capsys):
    with_free_energies({"dark": -2.0, "middle": -1.0, "wide": -3.0})
    Path("estimates/wide/c/free_energy.nc").unlink()
    assert fuse("--method", "vb") == 1
    assert "c/voice: c: no free energy of wide" in capsys.readouterr().err
    assert Path("out/b/voice.wav").exists() and not Path("out/c").exists()


def test_methods_that_need_more_say_so(root, capsys):
    for method, message in [
        ("static-sdr", "bayesfuse train --method static-sdr"),
        ("network", "bayesfuse train --method network"),
        ("oracle", "give --references"),
    ]:
        assert fuse("--method", method) == 2
        assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------- train, fuse, evaluate, in a row


def test_from_the_oracle_ladder_to_scores(root, capsys):
    """Ladder, training, fusing with the weights, scores: as a user goes through them."""
    assert fuse("--ladder", "--method", "mean", references=True) == 0
    text = capsys.readouterr().out
    assert "best single on average" in text and "oracle fusion per frame and band" in text and "mean of 3 files" in text
    assert cli.main(["train", *files(), "-o", "weights.nc"]) == 0
    text = capsys.readouterr().out
    assert "Learned on 6 pairs" in text and "expected gain over the best single model" in text
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []
    assert cli.main(["fuse", *files(False), "--weights", "weights.nc", "-o", "fused", "--quiet"]) == 0
    command = ["evaluate", "--references", "references", "--estimates", "estimates", "--estimates", "fused"]
    assert cli.main([*command, "-o", "scores.csv"]) == 0
    table = capsys.readouterr().out
    assert all(system in table for system in (*SEPARATORS, "fused"))
    rows = [line.split(",") for line in Path("scores.csv").read_text().splitlines()]
    assert rows[0] == ["name", "group", "system", "source", "metric", "window", "value", "reason"]
    assert len(rows) == 1 + 4 * 3 * 2
    means = {
        system: np.mean([float(row[6]) for row in rows[1:] if row[2] == system and row[3] == "voice"])
        for system in (*SEPARATORS, "fused")
    }
    assert means["fused"] >= max(means[separator] for separator in SEPARATORS)


@pytest.mark.parametrize("method", ["select", "static-mse", "vb"])
def test_weights_of_every_method_are_learned_and_applied(root, method):
    if method == "vb":
        with_free_energies({"dark": -2.0, "middle": -1.0, "wide": -3.0})
    assert cli.main(["train", *files(), "--method", method, "-o", "weights.nc", "--quiet", "--no-check"]) == 0
    assert fuse("--weights", "weights.nc", "--method", method) == 0
    assert read("out/a/voice.wav").shape == (1, SAMPLES)
    assert fuse("--weights", "weights.nc", "--method", "oracle", "--overwrite", references=True) == 2


def test_options_that_weights_have_decided_are_refused(root, capsys):
    assert cli.main(["train", *files(), "-o", "weights.nc", "--quiet"]) == 0
    for option in ("--time-varying", "--per-channel"):
        assert fuse("--weights", "weights.nc", option) == 2
        assert f"{option}: whether weights are shared" in capsys.readouterr().err
    assert fuse("--weights", "weights.nc", "--no-check") == 0
    assert f"s for {3 * SAMPLES / RATE:.1f} s of mixtures: real-time factor" in capsys.readouterr().out


def test_weights_for_other_separators_are_refused_by_name(root, capsys):
    assert cli.main(["train", *files(), "-o", "weights.nc", "--quiet"]) == 0
    Path("estimates/wide").rename("estimates/brand-new")
    assert fuse("--weights", "weights.nc") == 2
    message = capsys.readouterr().err
    assert "missing: wide" in message and "unknown to the weights: brand-new" in message
    assert not Path("out").exists()


def test_a_killed_training_goes_on(root, monkeypatch, capsys):
    from bayesfuse import training

    whole = training.learn
    monkeypatch.setattr(training, "learn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(["train", *files(), "-o", "weights.nc", "--quiet"]) == 130
    assert not Path("weights.nc").exists()
    assert len(list(Path(".weights.nc.work/pairs").rglob("*.npz"))) == 6
    monkeypatch.setattr(training, "learn", whole)
    monkeypatch.setattr(training, "channel_grams", None)  # all are known
    assert cli.main(["train", *files(), "-o", "weights.nc", "--quiet"]) == 0
    assert not Path(".weights.nc.work").exists()


# ------------------------------------------------------------------------------------------------- stereo and precision


@pytest.mark.parametrize("words", [[], ["--time-varying", "--window", "256"]])
def test_stereo_with_weights_per_channel_or_shared(tmp_path, monkeypatch, words):
    write_folder(tmp_path, ["a"], channels=2)
    monkeypatch.chdir(tmp_path)
    errors = {}
    for per_channel in (False, True):
        assert fuse("--method", "oracle", *words, *["--per-channel"] * per_channel, "--overwrite", references=True) == 0
        errors[per_channel] = np.sum((read("references/a/voice.wav") - read("out/a/voice.wav")) ** 2)
    assert errors[True] < errors[False]


def test_blocks_do_not_show(root, monkeypatch):
    from bayesfuse import examples

    words = ["--method", "oracle", "--time-varying", "--window", "256", "--overwrite", "--quiet"]
    assert fuse(*words, references=True) == 0
    whole = read("out/a/voice.wav")
    monkeypatch.setattr(examples, "BLOCK", 999)
    assert fuse(*words, references=True) == 0
    np.testing.assert_allclose(read("out/a/voice.wav"), whole, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- bad input


def damage(kind: str) -> None:
    """Makes the voice that `dark` has of b unusable."""
    path = Path("estimates/dark/b/voice.wav")
    if kind == "missing":
        path.unlink()
    elif kind == "unreadable":
        path.write_bytes(b"RIFF nonsense")
    elif kind == "cut short":
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "NaN":
        import soundfile

        soundfile.write(path, np.full(SAMPLES, np.nan, np.float32), RATE, subtype="FLOAT")
    elif kind == "length":
        change(path, lambda x: x[:, :-10])
    elif kind == "rate":
        put(path, read(path), 2 * RATE)
    elif kind == "channels":
        change(path, lambda x: np.repeat(x, 2, axis=0))


@pytest.mark.parametrize("kind", ["missing", "unreadable", "cut short", "NaN", "length", "rate", "channels"])
def test_one_bad_file_is_reported_and_the_rest_is_done(root, kind, capsys):
    damage(kind)
    assert fuse() == 1
    captured = capsys.readouterr()
    assert "b/voice" in captured.err and "bayesfuse: 1 failed" in captured.err
    assert "dark: 3 mixtures\n" in captured.out  # the report has something to say of it
    done = {path.relative_to("out").as_posix() for path in Path("out").rglob("*.wav")}
    assert done == {f"{name}/{source}.wav" for name in NAMES for source in SOURCES} - {"b/voice.wav"}
    assert cli.main(["train", *files(), "-o", "weights.nc", "--quiet"]) == 1
    assert Path("weights.nc").exists()
    command = ["evaluate", "--references", "references", "--estimates", "estimates", "--quiet", "-o", "scores.csv"]
    assert cli.main(command) == 1
    assert "dark: b" in capsys.readouterr().err and len(Path("scores.csv").read_text().splitlines()) == 1 + 2 * 8


def test_an_unreadable_mixture_is_one_failure(root, capsys):
    Path("mixtures/a.wav").write_bytes(b"nonsense")
    assert fuse() == 1
    assert "mixtures/a.wav cannot be decoded" in capsys.readouterr().err
    assert Path("out/b/voice.wav").exists()


def test_align_repairs_files_that_differ(root, capsys):
    damage("length")
    put(Path("estimates/middle/a/noise.wav"), audio.resample(read("estimates/middle/a/noise.wav"), RATE, 16000), 16000)
    assert fuse("--align") == 0
    assert "16000 Hz instead of 8000 Hz: 1 (a/noise)" in capsys.readouterr().out


def test_late_inverted_and_loud_separators_are_reported_and_repaired(root, capsys):
    assert fuse() == 0
    expected = {name: read(f"out/{name}/voice.wav") for name in NAMES}
    for name in NAMES:
        for source in SOURCES:
            change(Path(f"estimates/dark/{name}/{source}.wav"), lambda x: alignment.align(x, -45.0))
            change(Path(f"estimates/middle/{name}/{source}.wav"), lambda x: -x)
        change(Path(f"estimates/wide/{name}/voice.wav"), lambda x: np.float32(2.0) * x)
    capsys.readouterr()
    assert fuse("--overwrite") == 0
    report = capsys.readouterr().out
    assert "voice: 45.00 samples late in all" in report and "noise: inverted in all" in report
    assert "voice: +6.0 dB too loud in all" in report and "--align" in report
    assert fuse("--overwrite", "--align") == 0
    for name in NAMES:
        error = (read(f"out/{name}/voice.wav") - expected[name])[:, : SAMPLES - 50]
        assert np.abs(error).max() < 0.01 * np.abs(expected[name]).max()


def test_estimates_that_do_not_sum_and_that_clip_are_reported(root, capsys):
    change(Path("estimates/dark/a/voice.wav"), lambda x: 0 * x)
    change(Path("estimates/wide/b/voice.wav"), lambda x: np.clip(9 * x, -1, 1))
    assert fuse() == 0
    report = capsys.readouterr().out
    assert "estimates do not sum to the mixture in 1 (a)" in report and "clipped at full scale: 1 (b/voice)" in report


def test_one_separator_identical_ones_and_perfect_ones(root):
    for separator in ("middle", "wide"):
        shutil.rmtree(f"estimates/{separator}")
    one = read("estimates/dark/a/voice.wav")
    for method in ("mean", "oracle"):
        assert fuse("--method", method, "--overwrite", references=True) == 0
        np.testing.assert_allclose(read("out/a/voice.wav"), one, atol=1e-6)
    shutil.copytree("estimates/dark", "estimates/twin")
    assert fuse("--method", "oracle", "--overwrite", references=True) == 0
    np.testing.assert_allclose(read("out/a/voice.wav"), one, atol=1e-6)
    assert cli.main(["train", *files(), "-o", "weights.nc", "--quiet"]) == 0
    shutil.copytree("references", "estimates/perfect")
    assert fuse("--method", "oracle", "--overwrite", references=True) == 0
    np.testing.assert_allclose(read("out/a/voice.wav"), read("references/a/voice.wav"), atol=1e-5)
    assert cli.main(["train", *files(), "-o", "weights.nc", "--quiet"]) == 0
    command = ["evaluate", "--references", "references", "--estimates", "out", "--quiet", "-o", "scores.csv"]
    assert cli.main(command) == 0


def test_silent_true_sources(root, capsys):
    for name in NAMES:
        change(Path(f"references/{name}/voice.wav"), lambda x: 0 * x)
    assert fuse("--method", "oracle", references=True) == 0
    assert cli.main(["train", *files(), "-o", "weights.nc", "--quiet"]) == 2
    assert "voice that sounds" in capsys.readouterr().err
    assert cli.main(["evaluate", "--references", "references", "--estimates", "out", "-o", "scores.csv"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if " voice " in line)
    assert line.endswith("3 (silent_reference: 3)")
    assert "a,a,out,voice,sdr,,,silent_reference\n" in Path("scores.csv").read_text()


# -------------------------------------------------------------------------------------------- going on where it stopped


def test_existing_outputs_are_kept(root, capsys):
    assert fuse() == 0
    kept = Path("out/a/voice.wav")
    marks = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in Path("out").rglob("*.wav")}
    Path("out/b/noise.wav").unlink()
    capsys.readouterr()
    assert fuse() == 0
    assert "1 made, 5 kept, 0 failed" in capsys.readouterr().out
    for path, mark in marks.items():
        assert path == Path("out/b/noise.wav") or (path.stat().st_mtime_ns, path.stat().st_ino) == mark
    assert fuse("--method", "oracle", references=True) == 2
    assert "another method" in capsys.readouterr().err
    assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == marks[kept]


def test_outputs_of_other_inputs_are_made_anew(root, capsys):
    """A separator that returns something else for one mixture, and then one that is gone."""
    assert fuse("--quiet", "--no-check") == 0
    change(Path("estimates/wide/a/voice.wav"), lambda x: 0.5 * x)
    capsys.readouterr()
    assert fuse("--no-check") == 0 and "2 made, 4 kept" in capsys.readouterr().out
    np.testing.assert_allclose(read("out/a/voice.wav"), estimates("a", "voice").mean(0), atol=1e-6)
    shutil.rmtree("estimates/dark")
    assert fuse("--no-check") == 0 and "6 made, 0 kept" in capsys.readouterr().out
    left = [read(f"estimates/{separator}/b/noise.wav") for separator in ("middle", "wide")]
    np.testing.assert_allclose(read("out/b/noise.wav"), np.mean(left, axis=0), atol=1e-6)
    # The mean knows no true source, the oracle does.
    assert fuse("--no-check", references=True) == 0 and "0 made, 6 kept" in capsys.readouterr().out
    assert fuse("--no-check", "--method", "oracle", "--overwrite", references=True) == 0
    change(Path("references/c/voice.wav"), lambda x: x[:, ::-1])
    capsys.readouterr()
    assert fuse("--no-check", "--method", "oracle", references=True) == 0
    assert "2 made, 4 kept" in capsys.readouterr().out


@pytest.mark.parametrize("output", ["estimates", "estimates/mine", "mixtures", "."])
def test_outputs_do_not_go_among_the_inputs(root, output, capsys):
    before = sorted(Path().rglob("*"))
    assert cli.main(["fuse", *files(False), "-o", output]) == 2
    assert "name another folder" in capsys.readouterr().err and sorted(Path().rglob("*")) == before


def test_separators_without_estimates_and_missing_references_are_named(root, capsys):
    Path("estimates/crashed").mkdir()
    Path("references/b/voice.wav").unlink()
    shutil.rmtree("references/c")
    assert cli.main(["train", *files(), "-o", "weights.nc"]) == 0
    report = capsys.readouterr().out
    assert "no estimate of any mixture; expected crashed/NAME/SOURCE.wav: left out" in report
    assert "No reference, left out: 2 (b/voice, c)." in report


def test_a_bad_mixture_is_not_blamed_on_the_separators(root, capsys):
    mixture = read("mixtures/a.wav").T.copy()
    mixture[9] = np.nan
    soundfile.write("mixtures/a.wav", mixture, RATE, subtype="FLOAT")
    fuse()
    report = capsys.readouterr().out
    assert "unreadable" not in report and "dark: 2 mixtures, nothing wrong" in report


def test_sounds_of_others_are_not_taken_for_ours(root, capsys):
    put(Path("out/a/voice.wav"), np.zeros((1, 10), np.float32))
    assert fuse() == 2
    assert "were not made here" in capsys.readouterr().err
    Path("file").write_text("")
    assert cli.main(["fuse", *files(False), "-o", "file"]) == 2


def test_one_process_at_a_time(root, capsys):
    from bayesfuse._lock import exclusive

    with exclusive(Path("out", STATE, "lock")):
        assert fuse() == 2
    assert "another process" in capsys.readouterr().err
    assert fuse() == 0


def test_several_at_a_time_give_the_same(root):
    from bayesfuse.folder_rules import Mean
    from bayesfuse.fusing import fuse_folder
    from bayesfuse.separators.folder import read_folder

    assert fuse("--quiet") == 0
    folder = read_folder("mixtures", "estimates")
    with ThreadPoolExecutor(2) as pool:
        outcome = fuse_folder(folder, "other", Mean(), executor=pool)
    assert outcome.done == [f"{name}/{source}" for name in NAMES for source in SOURCES]
    for name in outcome.done:
        np.testing.assert_allclose(read(f"other/{name}.wav"), read(f"out/{name}.wav"), atol=1e-7)


def test_tasks_can_be_sent_to_other_processes(root):
    from bayesfuse.examples import Reading
    from bayesfuse.fusing import Task
    from bayesfuse.learned_rules import Learned
    from bayesfuse.separators.folder import read_folder

    assert cli.main(["train", *files(), "-o", "weights.nc", "--quiet"]) == 0
    rule = Learned.load("weights.nc")
    folder = read_folder("mixtures", "estimates")
    task = Task(folder.items[0], folder.separators_of, Path("out"), rule, Reading(), False)
    copy = pickle.loads(pickle.dumps(task))
    assert copy.item == task.item and copy.rule.describe() == rule.describe()


def test_a_kill_in_the_middle_loses_nothing(root):
    """SIGKILL while files are being written; the second run does the rest, and all is as without the kill."""
    names = [f"m{i:03d}" for i in range(40)]
    for name in names:
        shutil.copy("mixtures/a.wav", f"mixtures/{name}.wav")
        for separator in SEPARATORS:
            shutil.copytree(f"estimates/{separator}/a", f"estimates/{separator}/{name}")
    command = [sys.executable, "-m", "bayesfuse", "fuse", *files(False), "-o", "out", "--quiet", "--no-check"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 60
    while len(list(Path("out").glob("*/[!.]*.wav"))) < 10 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("*/[!.]*.wav")}
    assert 10 <= len(before) < 2 * (len(names) + len(NAMES))
    for path in before:
        assert read(path).shape == (1, SAMPLES)  # complete
    put(Path("out/m039/.0123456789abcdef0123456789abcdef.wav"), np.zeros((1, 10), np.float32))  # half-written, say
    assert fuse("--quiet", "--no-check") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    sounds = sorted(path.relative_to("out").as_posix() for path in Path("out").rglob("*.wav"))
    assert sounds == sorted(f"{name}/{source}.wav" for name in (*names, *NAMES) for source in SOURCES)
    for name in names:
        np.testing.assert_array_equal(read(f"out/{name}/voice.wav"), read("out/a/voice.wav"))
    assert json.loads(Path("out", STATE, "settings.json").read_text()) == {"align": False, "method": "mean"}


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fuse", "-o", "out"], "give --mixtures and --estimates"),
        (["fuse", *files(False), "-o", "out", "--beta", "5"], "--beta is for --method vb without --weights"),
        (["fuse", *files(False), "-o", "out", "--time-varying"], "mean has constant weights"),
        (["fuse", *files(False), "-o", "out", "--per-channel"], "--per-channel is for the oracle, and for `bayes"),
        (["train", *files(True), "-o", "w.nc", "--method", "network", "--per-channel"], "shared by the channels"),
        (["fuse", "--manifest", "x.csv", "--mixtures", "mixtures", "-o", "out"], "--manifest lists all files"),
        (["fuse", *files(False), "-o", "out", "--workers", "0"], "--workers: must be a whole number"),
        (["fuse", *files(True), "-o", "out", "--method", "oracle", "--window", "7"], "--window: must be even"),
        (["fuse", *files(False), "-o", "out", "--weights", "none.nc"], "none.nc"),
        (["fuse", *files(False), "-o", "out", "--ladder"], "--references"),
        (["train", *files(False), "-o", "weights.nc"], "--references"),
        (["train", *files(True), "-o", "none/weights.nc"], "no folder none"),
        (["train", *files(True), "-o", "weights.nc", "--time-varying"], "constant weights"),
        (["evaluate", "--references", "references"], "give --references and --estimates"),
        (["evaluate", "--references", "references", "--estimates", "mixtures"], "no estimate of"),
        (["evaluate", "--references", "references", "--estimates", "none"], "no folder none"),
    ],
)
def test_errors_are_one_line_and_write_nothing(root, words, message, capsys):
    before = sorted(Path().rglob("*"))
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and message in captured.err
    assert sorted(Path().rglob("*")) == before


def test_a_manifest_does_for_all_three(root):
    from test_folder import manifest_of

    manifest_of(root, root / "files.csv")
    assert cli.main(["train", "--manifest", "files.csv", "-o", "weights.nc", "--quiet"]) == 0
    assert cli.main(["fuse", "--manifest", "files.csv", "--weights", "weights.nc", "-o", "out", "--quiet"]) == 0
    assert cli.main(["evaluate", "--manifest", "files.csv", "--quiet"]) == 0


@pytest.mark.parametrize("command", ["fuse", "train", "evaluate"])
def test_help_fits_a_page(command, capsys):
    assert cli.main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 75 and all(len(line) <= 120 for line in lines)

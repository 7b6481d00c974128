"""`bayesfuse data check`: what it measures, what it finds odd, and its exit status."""

import subprocess
import sys
from itertools import groupby

import numpy as np
import pandas as pd
import pytest
import set_layouts as made
from set_layouts import RATE, put, tone

from bayesfuse import audio, cli
from bayesfuse._kinds import KINDS
from bayesfuse.datasets import Chime2, FolderSet, ManifestSet, MiniChime, Recordings, check_dataset


@pytest.fixture
def own(tmp_path):
    """Four mixtures of two sources in train and test."""
    for seed, name in enumerate(("train/a", "train/b", "train/c", "test/d")):
        sources = {"voice": tone(10 * seed, 800), "rest": tone(10 * seed + 1, 800)}
        for source, signal in sources.items():
            put(tmp_path / "references" / name / f"{source}.wav", signal)
        put(tmp_path / "mixtures" / f"{name}.wav", sources["voice"] + sources["rest"])
    return tmp_path


def square(samples: int = 800) -> np.ndarray:
    return np.clip(3 * np.sin(np.arange(samples) / 9), -1, 32767 / 32768)[None]


def test_measurements(own):
    put(own / "references/train/b/voice.wav", np.zeros((1, 800)))
    put(own / "mixtures/train/b.wav", tone(11, 800))
    put(own / "references/train/c/voice.wav", square())
    report = check_dataset(FolderSet(own))
    table = report.table
    assert len(table) == 12 and report.broken == {}
    row = table[(table.item == "train/a") & (table.source == "voice")].iloc[0]
    x = tone(0, 800)
    np.testing.assert_allclose(row.rms_db, 10 * np.log10(np.mean(x**2)), atol=1e-5)
    np.testing.assert_allclose(row.peak_db, 20 * np.log10(np.abs(x).max()), atol=1e-5)
    assert (row.seconds, row.rate, row.channels, row.group, row.split) == (0.1, RATE, 1, "train/a", "train")
    assert report.notes["silent"] == ["train/b voice"]
    # Runs of equal samples at full scale, counted one by one.
    runs = [(abs(x), len(list(run))) for x, run in groupby(audio.read(own / "references/train/c/voice.wav")[0][0])]
    flat = sum(length for level, length in runs if level >= 0.99 and length >= 3)
    assert report.notes["clipped"] == [f"train/c voice ({flat} samples)"] and flat > 500
    (odd,) = report.notes["not the sum of their sources to -40 dB"]
    error = np.sum((tone(20, 800) - square()) ** 2) / np.sum((tone(20, 800) + tone(21, 800)) ** 2)
    assert odd == f"train/c ({10 * np.log10(error):.1f} dB)"
    text = report.summary()
    assert "FolderSet: 1 test, 3 train; 8000 Hz" in text and "1 silent: train/b voice" in text
    line = next(line.split() for line in text.splitlines() if line.startswith("train  mixture"))
    assert line[2:5] == ["3", "3", "0.0"]


def test_only_the_scored_stretch_is_measured(tmp_path):
    signal = tone(0, 800)
    signal[:, 400:] = 0
    put(tmp_path / "m.wav", signal)
    (tmp_path / "list.json").write_text('[{"name": "a", "mixture": "m.wav", "segment": [500, 700]}]')
    report = check_dataset(ManifestSet(tmp_path / "list.json"))
    assert report.notes == {"silent": ["a mixture"]} and report.signals[0].seconds == 0.1


def test_broken_items_are_listed_and_the_rest_is_measured(own):
    (own / "references/train/a/voice.wav").write_bytes(b"RIFF0000WAVE")
    whole = (own / "mixtures/train/b.wav").read_bytes()
    (own / "mixtures/train/b.wav").write_bytes(whole[:-500])
    put(own / "references/test/d/rest.wav", tone(31, 700))
    report = check_dataset(FolderSet(own))
    assert set(report.broken) == {"train/a", "train/b", "test/d"} and len(report.signals) == 3
    assert "cut off" in report.broken["train/b"] and "700 samples" in report.broken["test/d"]


def test_parts_of_a_set(own):
    data = FolderSet(own)
    assert {s.split for s in check_dataset(data, ["test"]).signals} == {"test"}
    assert len(check_dataset(data, limit=1).signals) == 6
    with pytest.raises(ValueError, match="unknown split"):
        check_dataset(data, ["val"])


def test_other_recordings_and_levels_of_a_set(tmp_path):
    """Speech to train on is looked at; the SNR that a folder states is compared with that of the samples."""
    data = Chime2(made.chime2(tmp_path), context=0)
    speech = data.path / "train/reverberated/id1/lwiy2s.wav"
    put(speech, np.zeros((2, 300)))
    report = check_dataset(data)
    assert [s.item for s in report.signals if s.split == "speech train s2"] == ["s2_bgaa9a", "s2_lwiy2s"]
    assert "s1_lwiy2s" in report.notes["silent"] and report.table.source.isin(["mixture", "speech", "noise", ""]).all()
    # The tiny set has about +6 dB everywhere, which is near neither -6 nor, to 3 dB, ... of m6dB.
    told = report.notes["more than 3 dB from the SNR they are said to have"]
    assert len([name for name in told if "m6dB" in name]) == 4


def run(capfd, *arguments):
    status = cli.main(["data", "check", *map(str, arguments)])
    out, err = capfd.readouterr()
    return status, out, err


def test_command(own, capfd, tmp_path):
    status, out, err = run(capfd, own, "-o", tmp_path / "levels.csv", "--workers", "2")
    assert status == 0 and out.startswith("folder: FolderSet: 1 test, 3 train") and "nothing silent" in out
    table = pd.read_csv(tmp_path / "levels.csv")
    assert len(table) == 12 and list(table.columns[:4]) == ["item", "split", "group", "source"]
    status, out, err = run(capfd, own, "--split", "test", "--option", "rate=4000", "--kind", "folder", "--limit", "1")
    assert status == 0 and "4000" in out and "train " not in out
    (own / "mixtures/train/a.wav").write_bytes(b"")
    status, out, err = run(capfd, own)
    assert status == 1 and "1 failed" in err and "train/a: ValueError" in err
    (own / "references/test/d/rest.wav").unlink()
    (own / "references/test/d/voice.wav").unlink()
    status, out, err = run(capfd, own)
    assert status == 1 and "1 of 4 mixtures have no true sources, such as test/d" in err


def test_command_says_what_is_wrong_with_its_arguments(own, capfd):
    for arguments, message in (
        ([own / "nowhere"], "no file or folder"),
        ([own, "--kind", "folder", "--option", "chunk=3"], "have no option chunk"),
        ([own, "--kind", "nonsense"], "invalid choice"),
        ([own, "--option", "rate"], "must be KEY=VALUE"),
        ([own, "--split", "val"], "unknown split"),
        ([own, "--quick"], "quick"),
        ([own, "-o", own / "no" / "x.csv"], "no"),
    ):
        status, _, err = run(capfd, *arguments)
        assert status == 2 and message in err and len(err.strip().splitlines()) <= 2, err


def test_help_answers_at_once():
    program = "import sys; from bayesfuse import cli; cli.main(['data', 'check', '--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert all(f"  {kind}" in done.stdout for kind in KINDS) and "'soundfile'" not in done.stdout
    assert "'jax'" not in done.stdout


def test_any_folder_of_recordings(tmp_path, capfd):
    put(tmp_path / "kitchen/one.wav", tone(0))
    put(tmp_path / "kitchen/two.wav", square())
    status, out, _ = run(capfd, tmp_path)
    assert status == 0 and out.startswith("recordings: ") and "1 clipped: kitchen/two mixture" in out
    assert len(Recordings(tmp_path)) == 2


def test_mini_chime_itself(data_root):
    if not (data_root / "mini-chime").is_dir():
        pytest.skip(f"no folder mini-chime in {data_root}")
    report = check_dataset(MiniChime(data_root / "mini-chime"), limit=8)
    assert report.broken == {} and report.notes == {} and len(report.signals) == 3 * 8 * 3

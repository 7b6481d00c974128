"""Trainings that are interrupted, killed or confused with another one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from small_networks import KEY, draw, same, tiny
from wav_folder import write_folder

from bayesfuse import _arrays, _training, cli, folder_network_training
from bayesfuse.folder_network_training import collect_examples, train_network
from bayesfuse.network_rule import KIND, NetworkRule
from bayesfuse.neural import RateRule, train
from bayesfuse.separators.folder import read_folder

REPOSITORY = Path(__file__).resolve().parent.parent
NAMES = ("a", "b", "c")


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    examples, held_out = draw(0, 100), draw(1, 50)
    config = tiny(max_epochs=7, dropout=0.2, rule=RateRule(failures=1))
    whole = train(KEY, examples, held_out, config=config)
    path, original, count = tmp_path / "run.nc", _training._write, iter(range(100))

    def write(*arguments):
        if next(count) in (2, 4):
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(_training, "_write", write)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(KEY, examples, held_out, config=config, checkpoint=path)
    resumed = train(KEY, examples, held_out, config=config, checkpoint=path)
    assert same(resumed, whole) and list(tmp_path.iterdir()) == [path]
    # Done is done: nothing is computed again.
    monkeypatch.setattr(_training, "_advance", None)
    assert same(train(KEY, examples, held_out, config=config, checkpoint=path), whole)


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(tmp_path):
    examples, held_out = draw(0, 100), draw(1, 50)
    path = tmp_path / "run.nc"
    train(KEY, examples, held_out, config=tiny(), checkpoint=path)
    for arguments in (
        (jax.random.key(4), examples, held_out, tiny()),
        (KEY, draw(5, 100), held_out, tiny()),
        (KEY, examples, held_out, tiny(dropout=0.1)),
    ):
        with pytest.raises(ValueError, match="of another training"):
            train(*arguments[:3], config=arguments[3], checkpoint=path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cannot be read"):
        train(KEY, examples, held_out, config=tiny(), checkpoint=path)
    with pytest.raises(ValueError, match="no folder"):
        train(KEY, examples, held_out, config=tiny(), checkpoint=tmp_path / "none" / "run.nc")


def test_a_killed_training_loses_nothing(tmp_path):
    """`kill -9` in the middle, then the same call again: the result of an uninterrupted run, to the bit."""
    program = """
import sys, jax
sys.path.insert(0, "tests")
from bayesfuse.neural import train
from small_networks import KEY, draw, tiny
train(KEY, draw(0, 100), draw(1, 50), config=tiny(max_epochs=int(sys.argv[2])), checkpoint=sys.argv[1])
"""
    path = tmp_path / "run.nc"
    epochs = 100_000
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path), str(epochs)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(1200):
        if path.exists():
            break
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = _training._arrays.read(path, "bayesfuse training checkpoint")[0]["history"]
    epoch = len(before["rate"])
    assert 0 < epoch < epochs
    # The epochs that were saved are those of a run that nobody killed.
    whole = train(KEY, draw(0, 100), draw(1, 50), config=tiny(max_epochs=epoch))
    np.testing.assert_array_equal(whole.history.score, before["score"])


def test_a_killed_command_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """`kill -9` in the middle of the epochs, then the same command again: as if nothing had been."""
    monkeypatch.chdir(write_folder(tmp_path, NAMES))
    folders = ["mixtures", "estimates", "references"]
    words = [word for name in folders for word in (f"--{name}", name)]
    command = ["train", *words, "--method", "network", "--window", "256", "-o", "weights.nc", "--quiet", "--no-check"]
    work = Path(".weights.nc.work/network")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-m", "bayesfuse", *command], env=environment)
    deadline = time.monotonic() + 120
    while not list(work.glob("network-*.nc")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not Path("weights.nc").exists()
    (checkpoint,) = work.glob("network-*.nc")
    saved = len(_arrays.read(checkpoint, "bayesfuse training checkpoint")[0]["history"]["rate"])
    assert len(list(work.rglob("*.npz"))) == 1 + len(NAMES)

    epochs, original = [], _training._advance
    monkeypatch.setattr(_training, "_advance", lambda *rest: (epochs.append(0), original(*rest))[1])
    with monkeypatch.context() as patch:
        for function in ("fit_features", "recording_gram"):
            patch.setattr(folder_network_training, function, None)  # all that is known
        assert cli.main(command) == 0
    resumed = NetworkRule.load("weights.nc")
    assert 0 < saved < resumed.record["epochs"] == saved + len(epochs)
    assert not Path(".weights.nc.work").exists()
    # Nobody killed this one, and it keeps nothing.
    whole, _ = train_network(collect_examples(read_folder(*folders), window=256)[0])
    whole.save("whole.nc")
    expected, found = contents("whole.nc"), contents("weights.nc")
    assert expected.keys() == found.keys() and whole.record == resumed.record
    for group, arrays in expected.items():
        for name in arrays:
            np.testing.assert_array_equal(found[group][name], arrays[name], err_msg=f"{group}/{name}")


def contents(path: str) -> dict[str, dict[str, np.ndarray]]:
    return _arrays.read(Path(path), KIND)[0]

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

from bayesfuse import _training
from bayesfuse.neural import RateRule, train

REPOSITORY = Path(__file__).resolve().parent.parent


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

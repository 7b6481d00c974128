"""Every record is there exactly once, whatever happens: kill -9, a full disk, dead workers, damaged files."""

import dataclasses
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import small_experiment
from small_experiment import NAMES, complete, times

from bayesfuse._lock import exclusive
from bayesfuse.experiments import load_config, open_records, run_experiment

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def config(tmp_path):
    return load_config(small_experiment.make(tmp_path))


def test_a_full_disk_stops_the_run_and_loses_nothing(config, tmp_path, monkeypatch):
    out, original, count = tmp_path / "out", Path.write_bytes, iter(range(100))

    def write(path, content):
        if path.parent.name == "records" and next(count) == 2:
            original(path, b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match=r"record of c .*No space left.*2 of 4 records are complete.*start again"):
        run_experiment(config, out)
    before = times(out)
    assert sorted(before) == ["a.nc", "b.nc"]
    monkeypatch.undo()
    assert run_experiment(config, out).computed == ("c", "d")
    complete(out)
    assert {name: times(out)[name] for name in before} == before


def test_writing_to_a_full_disk_ends_no_process(tmp_path):
    """HDF5 that cannot close a file ends Python later, and a notebook with it."""
    program = """
import gc, resource, sys
sys.path.insert(0, sys.argv[2])
from small_corpus import make_record
from bayesfuse.record_file import write_record
record = make_record("a", "test", 0, "a", seed=0)[0]
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for _ in range(3):
    try:
        write_record(record, sys.argv[1])
    except OSError as error:
        print(error.strerror, flush=True)
    gc.collect()
"""
    arguments = [sys.executable, "-c", program, str(tmp_path / "a.nc"), str(REPOSITORY / "tests")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, 3 * [os.strerror(errno.EFBIG)], "")
    assert not list(tmp_path.iterdir())


def test_a_corrupt_input_is_reported_and_stops_nobody(config, tmp_path, capsys):
    out, path = tmp_path / "out", tmp_path / "set/references/b/speech.wav"
    config = config.replace("dictionaries", sources=tuple(_by_mixture(s) for s in config.dictionaries.sources))
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    summary = run_experiment(config, out)
    assert summary.computed == ("a", "c", "d") and list(summary.failed) == ["b"] and "b:" in str(summary)
    assert open_records(out).errors == summary.failed
    path.unlink()
    for _ in range(2):  # the configuration fits the others
        assert list(run_experiment(config, out).failed) == ["b"]
    path.write_bytes(whole)
    assert run_experiment(config, out).computed == ("b",)
    complete(out)


def _by_mixture(learned):
    return dataclasses.replace(learned, learning="mixture", orders=(2,) if len(learned.orders) > 1 else learned.orders)


def test_two_runs_do_not_share_a_folder(config, tmp_path):
    out = tmp_path / "out"
    with exclusive(out / ".work" / "lock"), pytest.raises(ValueError, match=f"another process is at work in {out}"):
        run_experiment(config, out)
    assert len(run_experiment(config, out).computed) == 4


def test_a_run_that_is_killed_goes_on(config, tmp_path):
    """`kill -9` twice, once while a record is half-written."""
    out = tmp_path / "out"
    program = """
import sys, time
from pathlib import Path
from bayesfuse import experiments
original = Path.write_bytes
def slowly(path, content):
    if len(list(path.parent.glob("[a-z]*.nc"))) == int(sys.argv[3]):
        original(path, b"half")
        print("ready", flush=True)
        time.sleep(60)
    original(path, content)
Path.write_bytes = slowly
experiments.run_experiment(experiments.load_config(sys.argv[1]), sys.argv[2])
"""
    before = {}
    for count in (1, 3):
        arguments = [sys.executable, "-c", program, str(tmp_path / "experiment.toml"), str(out), str(count)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        now = times(out)
        [half] = [name for name in now if name.startswith(".")]
        assert now.pop(half) and len(now) == count
        assert {name: now[name] for name in before} == before
        before = now
    assert run_experiment(config, out).computed == NAMES[3:]
    complete(out)
    assert {name: times(out)[name] for name in before} == before


def test_a_worker_that_dies_costs_nothing(tmp_path):
    """All processes of the pool are killed as soon as there is a record."""
    config = load_config(small_experiment.make(tmp_path, executor="processes", workers=1))
    out = tmp_path / "out"

    def kill():
        while not (out / "records/a.nc").exists():
            time.sleep(0.01)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = run_experiment(config, out)
    killer.join()
    assert sorted(summary.computed) == sorted(NAMES) and summary.statement == "1 process of 1 thread each"
    complete(out)


def test_dask(config, tmp_path):
    pytest.importorskip("distributed", reason="needs the extra dask")
    config = config.replace("execution", executor="dask", workers=1, threads=1)
    summary = run_experiment(config, tmp_path / "out")
    assert sorted(summary.computed) == sorted(NAMES) and summary.statement.startswith("Dask, 1 process")
    complete(tmp_path / "out")
    # The same numbers as here, to rounding.
    run_experiment(config.replace("execution", executor="serial"), tmp_path / "here")
    for there, here in zip(open_records(tmp_path / "out"), open_records(tmp_path / "here"), strict=True):
        np.testing.assert_allclose(there.whole.gram, here.whole.gram, rtol=1e-4)
        assert there.key == here.key

"""Who works on tasks: answers of every executor, workers that die, threads, workers whose parent dies."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor

import pytest
from small_experiment import touch_or_die

from bayesfuse.executors import cores, environment, workers
from bayesfuse.experiment_config import Execution


def begun(folder):
    return {path.name: len(path.read_text()) for path in folder.iterdir()}


def run(pool, folder, names):
    return {task[1]: answer for task, answer in pool.over(touch_or_die, [(str(folder), name) for name in names])}


def test_every_executor_gives_every_answer_once(tmp_path):
    names = [f"n{i}" for i in range(9)]
    with ThreadPoolExecutor(2) as threads:
        for executor in (None, threads):
            with workers(Execution(), executor) as pool:
                assert run(pool, tmp_path, names) == dict(zip(names, names, strict=True))
    assert begun(tmp_path) == dict.fromkeys(names, 2)


def test_a_worker_that_dies_costs_one_task_at_most(tmp_path):
    """`die` kills its process every time, `once` the first time; all others are answered."""
    names = ["a", "once", "b", "die", "c", "d", "e"]
    with workers(Execution("processes", 2, 1)) as pool:
        assert pool.statement == "2 processes of 1 thread each"
        found = run(pool, tmp_path, names)
    assert found == {**{name: name for name in names}, "die": None}
    counts = begun(tmp_path)
    assert 2 <= counts["once"] <= 3 and 2 <= counts["die"] <= 4 and max(counts.values()) <= 4


class Broken(Executor):
    """The executor of a caller, whose process dies of the third task."""

    _max_workers = 1

    def __init__(self):
        self.count = 0

    def submit(self, function, /, *arguments):
        self.count += 1
        future = Future()
        if self.count == 3:
            future.set_exception(BrokenExecutor("a process died"))
        else:
            future.set_result(function(*arguments))
        return future


def test_an_executor_of_the_caller_that_breaks_is_the_callers(tmp_path):
    with workers(Execution(), Broken()) as pool, pytest.raises(BrokenExecutor):
        run(pool, tmp_path, list("abcde"))


def test_threads_of_workers_are_set_before_libraries_load(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    assert environment(3)["OMP_NUM_THREADS"] == "3" and "XLA_FLAGS" not in environment(3)
    assert environment(1)["XLA_FLAGS"].startswith("--mine --xla_cpu_multi_thread_eigen=false")
    before = os.getenv("OPENBLAS_NUM_THREADS")
    with workers(Execution("processes", 1, 3)) as pool:
        [(_, found)] = pool.over(os.getenv, ["OPENBLAS_NUM_THREADS"])
    assert found == "3" and os.getenv("OPENBLAS_NUM_THREADS") == before
    assert 1 <= cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_workers_end_with_the_process_that_started_them():
    program = """
import multiprocessing, time
from bayesfuse.executors import workers
from bayesfuse.experiment_config import Execution
if __name__ == "__main__":
    with workers(Execution("processes", 2, 1)) as pool:
        for _ in pool.over(time.sleep, [0.5, 0.5]):
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    children = process.stdout.readline().split()
    assert children and all(os.path.isdir(f"/proc/{pid}") for pid in children)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for _ in range(100):
        if not any(_alive(pid) for pid in children):
            return
        time.sleep(0.1)
    pytest.fail("workers are still there")


def _alive(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"  # one that has ended, and nobody has asked
    except FileNotFoundError:
        return False

"""Who works on the tasks of an experiment: this process, a pool of processes, Dask, or any executor of the caller.

Processes do not fight for cores: each has its number of threads, which is set before the libraries are loaded that ask
for it. A process of a pool ends when the one that started it does, however that ends.

Nothing heavy is imported here, so that a new process can be told its number of threads first.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from bayesfuse.experiment_config import Execution

Task = TypeVar("Task")
Answer = TypeVar("Answer")

# Variables that BLAS, OpenMP and XLA read when they are loaded.
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NPROC")
# Tasks that each worker has in reserve, so that it need not wait for the next.
_RESERVE = 2
# Times that a task may kill a process in which it is alone before it is given up.
_CHANCES = 2


@dataclass
class Workers:
    """Who works on tasks, and how.

    Attributes
    ----------
    executor
        None for this process.
    width
        Tasks handed out at a time.
    statement
        In words, threads included.
    renew
        Makes a new executor when a process of the old one has died; None if that is not ours to do.
    """

    executor: Executor | None
    width: int
    statement: str
    renew: Callable[[], Executor] | None = None

    def over(self, function: Callable[[Task], Answer], tasks: Iterable[Task]) -> Iterator[tuple[Task, Answer | None]]:
        """Tasks with their answers as they come; None for a task whose worker died of it.

        After a process has died, the tasks that were under way are tried again one at a time, so that the one that
        does it is known.

        Raises
        ------
        BrokenExecutor
            If an executor of the caller has lost a process.
        """
        if self.executor is None:
            yield from ((task, function(task)) for task in tasks)
            return
        waiting, suspects = iter(tasks), deque[tuple[Task, int]]()
        running: dict[Future[Answer], Task] = {}
        ended = False
        while True:
            while not suspects and not ended and len(running) < self.width:
                try:
                    task = next(waiting)
                except StopIteration:
                    ended = True
                else:
                    running[self._submit(function, task)] = task
            alone, deaths = bool(suspects) and not running, 0
            if alone:
                task, deaths = suspects.popleft()
                running[self._submit(function, task)] = task
            if not running:
                return
            broken: list[Task] = []
            done = list(wait(running, return_when=FIRST_COMPLETED).done)
            while done:
                future = done.pop()
                task = running.pop(future)
                try:
                    answer = future.result()
                except BrokenExecutor:
                    if self.renew is None:
                        raise
                    broken.append(task)
                    done = list(running)  # they all end now, in one way or the other
                except Exception as error:
                    if type(error).__name__ != "KilledWorker":  # of Dask, which has tried several times
                        raise
                    yield task, None
                else:
                    yield task, answer
            if broken and self.renew is not None:
                self.executor = self.renew()
                if deaths + 1 == _CHANCES:
                    yield broken[0], None
                elif alone:
                    suspects.append((broken[0], deaths + 1))
                else:
                    suspects.extend((task, 0) for task in broken)

    def _submit(self, function: Callable[[Task], Answer], task: Task) -> "Future[Answer]":
        """The future of a task; a failed one if the executor has broken in the meantime."""
        assert self.executor is not None
        try:
            return self.executor.submit(function, task)
        except BrokenExecutor as error:
            failed: Future[Answer] = Future()
            failed.set_exception(error)
            return failed


@contextlib.contextmanager
def workers(execution: "Execution", executor: Executor | None = None) -> Iterator[Workers]:
    """Those that the configuration asks for, or those behind an executor of the caller.

    Raises
    ------
    ValueError
        If Dask is asked for and not installed.
    """
    threads = execution.threads
    if executor is not None:
        count = int(getattr(executor, "_max_workers", execution.workers))
        yield Workers(executor, _RESERVE * count, f"an executor of the caller, {type(executor).__name__}")
    elif execution.executor == "serial":
        yield Workers(None, 1, "this process, all its threads")
    elif execution.executor == "dask":
        with _dask(execution) as found:
            yield found
    else:
        count, each = execution.workers, threads or max(1, cores() // execution.workers)
        pools: list[ProcessPoolExecutor] = []

        def renew() -> ProcessPoolExecutor:
            # Forking a process that runs JAX's threads can hang.
            context = multiprocessing.get_context("spawn")
            pools.append(ProcessPoolExecutor(count, context, _begin, (each,)))
            return pools[-1]

        try:
            yield Workers(renew(), _RESERVE * count, f"{_processes(count)} of {_threads(each)}", renew)
        finally:
            for pool in pools:
                pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _dask(execution: "Execution") -> Iterator[Workers]:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise ValueError(
            "[execution] executor = 'dask' needs the package distributed: python -m pip install 'bayesfuse[dask]'."
        ) from error
    with contextlib.ExitStack() as stack:
        if execution.address is None:
            each = execution.threads or max(1, cores() // execution.workers)
            where: Any = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=execution.workers,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=None,
                    env=environment(each),
                )
            )
            statement = f"Dask, {_processes(execution.workers)} of {_threads(each)} on this machine"
        else:
            where, statement = execution.address, f"Dask at {execution.address}, threads as its workers were started"
        client = stack.enter_context(distributed.Client(where))
        count = max(1, sum(client.nthreads().values()))
        # Impure: a task that is handed out again is done again.
        yield Workers(client.get_executor(pure=False), _RESERVE * count, statement)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(threads: int) -> dict[str, str]:
    """Environment variables under which libraries start no more than so many threads."""
    found: dict[str, str] = dict.fromkeys(_VARIABLES, str(threads))
    if threads == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        found["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    return found


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''} each"


def _begin(threads: int) -> None:
    """The first thing that a process of a pool does."""
    os.environ.update(environment(threads))
    # Ctrl-C reaches all processes of a terminal; the one that hands out tasks answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: Any) -> None:
    """Ends this process when another one has ended."""
    connection.wait([sentinel])
    os._exit(1)

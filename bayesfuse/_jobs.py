"""What jobs over many files share: doing one item after the other or several at a time, and going on after a kill."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bayesfuse import _netcdf
from bayesfuse._version import __version__

Arrays = dict[str, np.ndarray]
Task = TypeVar("Task")
Answer = TypeVar("Answer")

# What can be wrong with one mixture without being wrong with the others.
ITEM_ERRORS = (ValueError, OSError, FloatingPointError, MemoryError)


def over_items(
    function: Callable[[Task], Answer], tasks: list[Task], executor: Executor | None, title: str, progress: bool
) -> Iterator[Answer]:
    """The answers to all tasks in their order, with a progress bar, here or through an executor."""
    from tqdm import tqdm

    answers: Iterable[Answer] = map(function, tasks) if executor is None else executor.map(function, tasks)
    yield from tqdm(answers, total=len(tasks), desc=title, disable=not progress, leave=False)


@dataclass(frozen=True)
class Records:
    """Arrays by the name of an item, in ``<folder>/<name>.npz``, written all or nothing.

    Attributes
    ----------
    folder
        Where the files are; created when the first is written. None keeps nothing.
    settings
        What else the results depend on, JSON-ready.
    """

    folder: Path | None
    settings: Mapping[str, Any]

    def get(self, name: str, inputs: Iterable[Path], compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of an item: those kept, if settings and input files are the same as then, else computed and kept.

        Parameters
        ----------
        name
            Of the item; ``/`` makes folders.
        inputs
            Files that the result depends on, told apart by path, size and time.
        compute
            Makes the arrays.
        """
        if self.folder is None:
            return compute()
        mark = self._fingerprint(inputs)
        path = self.folder / f"{name}.npz"
        kept = _load(path, mark)
        if kept is None:
            kept = compute()
            path.parent.mkdir(parents=True, exist_ok=True)
            with _netcdf.replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **kept, fingerprint=np.array(mark))
        return kept

    def _fingerprint(self, inputs: Iterable[Path]) -> str:
        files = []
        for path in inputs:
            status = path.stat()
            files.append([str(path.absolute()), status.st_size, status.st_mtime_ns])
        text = json.dumps([__version__, dict(self.settings), files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _load(path: Path, mark: str) -> Arrays | None:
    """The arrays of a file, or None if it is missing, damaged, or of other inputs."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception:  # whatever a damaged archive raises: it is computed again
        return None
    return arrays if str(arrays.pop("fingerprint", "")) == mark else None

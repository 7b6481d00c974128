"""One job at a time in a folder: a lock that the system releases when the process ends, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds a lock on the file `path`, which is made if need be and stays, while the body runs.

    Raises
    ------
    ValueError
        If another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            _acquire(file.fileno())
        except OSError as error:
            raise ValueError(
                f"another process is at work in {path.parent.parent}: wait for it to end, or name another folder."
            ) from error
        yield


if os.name == "nt":  # pragma: no cover
    import msvcrt

    def _acquire(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]

else:
    import fcntl

    def _acquire(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

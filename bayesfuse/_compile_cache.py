"""Compiled programs kept on disk for the next run, by JAX's persistent compilation cache.

Compiling takes most of the time of a first short separation. What it is safe against: entries are found by a hash of
the program, the version of JAX and the compiler's options; the folder is one per kind of processor, since a home
directory can be shared by machines with different instructions; it belongs to the user alone, because programs are
loaded from it. A damaged entry is compiled again.
"""

import hashlib
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def compile_cache(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Keeps compiled programs below `folder` while the body runs; does nothing for None.

    It also leaves JAX as it is if a cache is configured already (``JAX_COMPILATION_CACHE_DIR``) or if the folder
    cannot be used. This is for programs, not for libraries: it changes JAX's configuration, and restores it.
    """
    import jax

    if folder is None or jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        yield
        return
    path = Path(folder) / processor()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = os.access(path, os.W_OK) and _mine(path)
    except OSError:
        usable = False
    if not usable:
        yield
        return
    from jax.experimental.compilation_cache import compilation_cache

    # Of the hundred programs of a run, those below this time are not worth a file.
    settings = {"jax_compilation_cache_dir": str(path), "jax_persistent_cache_min_compile_time_secs": 0.1}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*persistent compilation cache", category=UserWarning)
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def processor() -> str:
    """A name of the instructions that this processor has."""
    text = platform.machine() + platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            text += next((line for line in file if line.lower().startswith(("flags", "features"))), "")
    except OSError:  # not Linux
        pass
    return f"{platform.machine() or 'unknown'}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _mine(path: Path) -> bool:
    """Whether nobody else can write there."""
    status = path.stat()
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)

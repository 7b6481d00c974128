"""What the benchmark scripts share: tables, timing, confidence intervals, files that survive an interruption."""

import contextlib
import hashlib
import json
import math
import os
import platform
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

EXPECTED = Path(__file__).parent / "expected"


# Tables ------------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> str:
    """A table of text: the first column flush left, the others flush right, a rule under the header."""
    body = [[str(cell) for cell in row] for row in rows]
    for row in body:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header {len(header)}: {row}")
    widths = [max(len(line[i]) for line in [list(header), *body]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    lines = [line(header), "-" * (sum(widths) + 2 * (len(widths) - 1)), *map(line, body)]
    return "\n".join(([title, ""] if title else []) + lines)


def expected(name: str) -> dict[str, Any]:
    """The printed numbers of a paper, from `expected/<name>.toml`."""
    with open(EXPECTED / f"{name}.toml", "rb") as file:
        return tomllib.load(file)


# Intervals ---------------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A mean and the half-width of its confidence interval."""

    mean: float
    half: float

    def __str__(self) -> str:
        # Of a single recording there is no interval.
        return f"{self.mean:.2f}" + ("" if math.isnan(self.half) else f" ±{self.half:.2f}")


def clustered_mean(
    values: Sequence[float],
    *groupings: Sequence[Any],
    strata: Sequence[Any] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Mean of values that share recordings, with an interval that does not take such values as independent.

    Parameters
    ----------
    values
        One number per item.
    groupings
        One or two label sequences; items with equal labels in either (the same speech, the same noise) may be
        correlated.
    strata
        Labels of a designed factor with fixed levels, such as the SNR, which is not a source of uncertainty: deviations
        are taken from the mean of the stratum.

    Returns
    -------
    The mean over all items and the half-width of its interval. With r_g the sum of the deviations in group g, a
    grouping has the variance G / (G - 1) sum_g r_g^2 / n^2; for two groupings the variance is that of the first plus
    that of the second minus that of their intersection (Cameron, Gelbach, Miller 2011), but not less than the larger
    of the two; the quantile is Student's with one degree of freedom less than the smaller number of groups. For
    one grouping into single items this is the usual t interval. NaN for fewer than two groups.
    """
    from scipy.stats import t as student

    x = np.asarray(values, np.float64)
    if x.size == 0 or not 1 <= len(groupings) <= 2 or any(len(g) != x.size for g in groupings):
        raise ValueError(f"{x.size} values, {[len(g) for g in groupings]} labels: expected one or two labels per value")
    _, stratum = np.unique([str(s) for s in strata] if strata is not None else ["all"] * x.size, return_inverse=True)
    deviation = x - (np.bincount(stratum, x) / np.bincount(stratum))[stratum]

    def variance(labels: list[str]) -> tuple[float, int]:
        _, member = np.unique(labels, return_inverse=True)
        sums = np.bincount(member, deviation)
        count = sums.size
        return (math.nan if count < 2 else float(count / (count - 1) * np.sum(sums**2) / x.size**2)), count

    parts = [variance([str(label) for label in grouping]) for grouping in groupings]
    total = parts[0][0]
    if len(groupings) == 2:
        both, _ = variance([f"{a}\0{b}" for a, b in zip(*groupings, strict=True)])
        total = max(parts[0][0] + parts[1][0] - both, parts[0][0], parts[1][0])
    count = min(count for _, count in parts)
    if count < 2:
        return Estimate(float(x.mean()), math.nan)
    return Estimate(float(x.mean()), float(student.ppf(0.5 + level / 2, count - 1) * math.sqrt(total)))


# Timing ------------------------------------------------------------------------------------------------------------


class Timing(NamedTuple):
    """Seconds of repeated calls, and of the first call, which compiles."""

    first: float
    repeats: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.repeats))

    @property
    def best(self) -> float:
        return min(self.repeats)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, over the median: how far the machine was from quiet."""
        low, high = np.percentile(self.repeats, [25, 75])
        return float((high - low) / 2 / self.median)


def interleaved(calls: dict[str, Callable[[], Any]], *, repeats: int, warm: bool = True) -> dict[str, Timing]:
    """Timings of several calls in turn, so that a change in the machine's load hits all of them alike.

    Parameters
    ----------
    calls
        Functions without arguments; their results are waited for (`jax.block_until_ready`).
    warm
        Whether to call each once before, for compilation, which is timed apart.
    """
    import jax

    first = dict.fromkeys(calls, 0.0)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + warm):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            elapsed = time.perf_counter() - start
            if warm and turn == 0:
                first[name] = elapsed
            else:
                seconds[name].append(elapsed)
    return {name: Timing(first[name], tuple(times)) for name, times in seconds.items()}


def environment() -> str:
    """One line on the machine: processor, cores, threads of the linear algebra, versions, load."""
    import importlib.metadata as metadata

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "numpy", "scipy", "scikit-learn"))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    return f"{cpu}, {cores} cores; {threads()}; Python {platform.python_version()}, {versions}; load {load:.1f}"


def threads() -> str:
    """Threads of NumPy's BLAS and of OpenMP, as their libraries report them; XLA takes all cores it may use."""
    from threadpoolctl import threadpool_info

    pools = {f"{pool['internal_api']} {pool['num_threads']}" for pool in threadpool_info()}
    return "threads: " + ", ".join([*sorted(pools), "XLA all cores"])


# Files -------------------------------------------------------------------------------------------------------------


def cache_folder(path: str | None) -> Path:
    """The folder for dictionaries, records and compiled programs, made if need be; by default in the user's cache."""
    folder = Path(path or Path.home() / ".cache" / "bayesfuse" / "benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fingerprint(script: str, *settings: str, only: Sequence[str] | None = None) -> str:
    """Hash of a script and of the library's modules that it has loaded: part of the key of what they computed.

    With `only`, the modules whose names begin so, loaded or not; `settings` count, too.
    """
    if only is not None:
        package = Path(sys.modules["bayesfuse"].__file__ or "").parent
        every = {file: ".".join(file.relative_to(package).with_suffix("").parts) for file in package.rglob("*.py")}
        files = {str(file) for file, name in every.items() if name.startswith(tuple(only))}
    else:
        loaded = [module for name, module in sys.modules.items() if name.startswith("bayesfuse.")]
        files = {module.__file__ for module in loaded if module.__file__}
    digest = hashlib.sha256()
    for file in sorted({*files, script}):
        digest.update(Path(file).read_bytes())
    for setting in settings:
        digest.update(setting.encode())
    return digest.hexdigest()[:12]


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file completely or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Records:
    """Results of items in a file of JSON lines, so that a run that was interrupted goes on where it stopped.

    A record has a `key`. Every append is one write of one line; a line cut short by a crash is ignored.

    Parameters
    ----------
    path
        File to read and to append to; None keeps the records in memory.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self._records: dict[str, dict[str, Any]] = {}
        if self.path is None or not self.path.exists():
            return
        text = self.path.read_text()
        if text and not text.endswith("\n"):
            with open(self.path, "a") as file:
                file.write("\n")
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                record = json.loads(line)
                self._records[record["key"]] = record

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._records[key]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._records.values())

    def append(self, record: dict[str, Any]) -> None:
        self._records[record["key"]] = record
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(json.dumps(record) + "\n")


def fail(message: str) -> None:
    """End the script with a message for the person at the terminal."""
    sys.exit(f"error: {message}")

"""Scores of folders of estimates against the true sources, whoever made the estimates."""

import csv
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bayesfuse import audio, fusion
from bayesfuse._jobs import ITEM_ERRORS, Arrays, Records, over_items
from bayesfuse._netcdf import replacing
from bayesfuse.examples import BLOCK
from bayesfuse.separators.folder import Folder, PathLike, sources_in
from bayesfuse.tracks import Track, open_track

COLUMNS = ("system", "name", "group", "source", "metric", "value")

# From the true sources of one mixture and their estimates to scores by metric, [source] each.
Metric = Callable[[Sequence[Track], Sequence[Track]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Job:
    """The files of one mixture to score.

    Attributes
    ----------
    name, group
        Of the mixture.
    references
        Files of the true sources.
    estimates
        Files by system and source.
    """

    name: str
    group: str
    references: Mapping[str, Path]
    estimates: Mapping[str, Mapping[str, Path]]


@dataclass
class Scores:
    """What came out of an evaluation.

    Attributes
    ----------
    rows
        One per system, mixture, source and metric, in the order of `COLUMNS`; values in dB, NaN where the metric is
        not defined (a silent true source).
    failed
        Messages by ``system: name``.
    """

    rows: list[tuple[str, str, str, str, str, float]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """A table of means and medians over mixtures, by source, metric and system, as plain text."""
        cells: dict[tuple[str, str, str], list[float]] = {}
        for system, _, _, source, metric, value in self.rows:
            cells.setdefault((source, metric, system), []).append(value)
        header = ("source", "metric", "system", "mean", "median", "scored", "undefined")
        table = [header]
        for (source, metric, system), values in sorted(cells.items()):
            known = [value for value in values if not np.isnan(value)]
            mean, median = (f"{f(known):.2f}" if known else "-" for f in (np.mean, np.median))
            table.append((source, metric, system, mean, median, str(len(known)), str(len(values) - len(known))))
        widths = [max(len(row[column]) for row in table) for column in range(len(header))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table
        )

    def write(self, path: PathLike) -> None:
        """Writes the rows to a CSV file, all or nothing; NaN is an empty field."""
        with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows((*row[:-1], "" if np.isnan(row[-1]) else repr(float(row[-1]))) for row in self.rows)


def jobs_of_folder(folder: Folder) -> list[Job]:
    """What is to be scored in a folder whose true sources are known: every separator is a system."""
    return [
        Job(item.name, item.group, item.references, item.estimates)
        for item in folder.items
        if item.references and item.estimates
    ]


def jobs_of(references: PathLike, systems: Mapping[str, PathLike]) -> list[Job]:
    """What is to be scored in folders of estimates, each ``<folder>/<name>/<source>.wav``, as `references` is.

    Parameters
    ----------
    references
        Folder of the true sources.
    systems
        Folders by the name of what made the estimates.

    Raises
    ------
    FileNotFoundError
        If a folder does not exist.
    ValueError
        If there are no references, or no estimate has one.
    """
    root = Path(references)
    folders = {name: Path(path) for name, path in systems.items()}
    for folder in (root, *folders.values()):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; looked from {Path.cwd()}.")
    names = sorted({file.parent.relative_to(root).as_posix() for file in audio.collect(root)} - {"."})
    if not names:
        raise ValueError(f"{root} holds no {root}/<name>/<source>.wav")
    jobs = []
    for name in names:
        estimates = {system: sources_in(folder / name) for system, folder in folders.items()}
        jobs.append(Job(name, name, sources_in(root / name), estimates))
    if not any(files for job in jobs for files in job.estimates.values()):
        raise ValueError(
            f"no estimate of {', '.join(names[:3])}, ... in {', '.join(map(str, folders.values()))}; expected "
            "<folder>/<name>/<source>.wav with the names of the references."
        )
    return jobs


def find_systems(references: PathLike, texts: Sequence[str]) -> dict[str, Path]:
    """Folders of estimates by system.

    Parameters
    ----------
    references
        Folder of the true sources.
    texts
        Each a folder ``<folder>/<name>/<source>.wav``, ``NAME=FOLDER`` to call it by another name than its own, or a
        folder with one such folder per system.

    Raises
    ------
    FileNotFoundError
        If a folder does not exist.
    ValueError
        If two systems have one name.
    """
    names = {entry.name for entry in Path(references).iterdir()} if Path(references).is_dir() else set()
    found: list[tuple[str, Path]] = []
    for text in texts:
        name, equals, path = text.partition("=")
        folder = Path(path) if equals and not Path(text).exists() else Path(text)
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; looked from {Path.cwd()}.")
        inside = sorted(e for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))
        if any(entry.name in names for entry in inside) or not inside:
            found.append((name if folder != Path(text) else folder.resolve().name, folder))
        else:
            prefix = f"{name}/" if folder != Path(text) else ""
            found += [(prefix + entry.name, entry) for entry in inside]
    twice = sorted({name for name, _ in found if sum(name == other for other, _ in found) > 1})
    if twice:
        raise ValueError(f"two folders of estimates are called {twice[0]}; call one otherwise with NAME=FOLDER")
    return dict(found)


def evaluate(
    jobs: Sequence[Job],
    metrics: Mapping[str, Metric],
    *,
    align: bool = False,
    keep: Path | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> Scores:
    """Scores of all systems on all mixtures, in the order of the jobs.

    A source that a system returns for some mixtures, and not for this one, is a failure; one that it returns for none
    is not.

    Parameters
    ----------
    jobs
        From `jobs_of` or `jobs_of_folder`.
    metrics
        By name; see `METRICS`.
    align
        Whether estimates of another rate, channel count or length are adapted to the true source; otherwise they fail.
    keep
        Folder to keep scores in, for a job that is interrupted.
    executor, progress
        As for `fusing.fuse_folder`.
    """
    offered: dict[str, set[str]] = {}
    for job in jobs:
        for system, files in job.estimates.items():
            offered.setdefault(system, set()).update(set(files) & set(job.references))
    records = Records(keep, {"job": "evaluate", "metrics": sorted(metrics), "align": align})
    tasks = [
        _Task(job, system, tuple(sorted(offered[system])), metrics, align, records)
        for job in jobs
        for system in job.estimates
        if offered[system]
    ]
    scores = Scores()
    for task, answer in zip(tasks, over_items(_score, tasks, executor, "scoring", progress), strict=True):
        if isinstance(answer, str):
            scores.failed[f"{task.system}: {task.job.name}"] = answer
        else:
            start = (task.system, task.job.name, task.job.group)
            scores.rows += [(*start, source, metric, value) for source, metric, value in answer]
    return scores


@dataclass(frozen=True)
class _Task:
    """All that another process needs to score one system on one mixture."""

    job: Job
    system: str
    sources: tuple[str, ...]
    metrics: Mapping[str, Metric]
    align: bool
    records: Records


def _score(task: _Task) -> list[tuple[str, str, float]] | str:
    """Source, metric and value of each score, or what went wrong."""
    files, true = task.job.estimates[task.system], task.job.references
    sources = [source for source in task.sources if source in true]
    missing = [source for source in sources if source not in files]
    if missing:
        return f"no estimate of {', '.join(missing)}"
    if not sources:
        return []
    inputs = [path for source in sources for path in (true[source], files[source])]
    try:
        kept = task.records.get(f"{task.system}/{task.job.name}", inputs, lambda: _measure(task, sources))
    except ITEM_ERRORS as error:
        return str(error) or type(error).__name__
    return [(s, metric, float(values[i])) for metric, values in kept.items() for i, s in enumerate(sources)]


def _measure(task: _Task, sources: Sequence[str]) -> Arrays:
    references, estimates = [], []
    for source in sources:
        like = audio.info(task.job.references[source])
        references.append(open_track(task.job.references[source], like, adapt=False))
        estimates.append(open_track(task.job.estimates[task.system][source], like, adapt=task.align))
    values: Arrays = {}
    for metric in task.metrics.values():
        values |= {name: np.asarray(value, np.float64) for name, value in metric(references, estimates).items()}
    return values


def sdr(references: Sequence[Track], estimates: Sequence[Track]) -> Mapping[str, np.ndarray]:
    """Global ratio [JVR16] eq. 6 over all channels, in bounded memory; NaN for a silent true source."""
    values = []
    for reference, estimate in zip(references, estimates, strict=True):
        parts = []
        for start in range(0, reference.own.samples, BLOCK):
            stop = min(start + BLOCK, reference.own.samples)
            parts.append(fusion.gram(reference.read(start, stop), estimate.read(start, stop)[None]).sum(0))
        g = fusion.Gram.stack(parts).sum(0)
        values.append(np.nan if g.energy == 0 else fusion.sdr(np.ones(1), g))
    return {"sdr": np.array(values, np.float64)}


METRICS: dict[str, Metric] = {"sdr": sdr}

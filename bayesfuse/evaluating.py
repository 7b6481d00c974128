"""Scores of folders of estimates against the true sources, whoever made the estimates."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayesfuse import audio, fusion, scores
from bayesfuse._jobs import ITEM_ERRORS, Arrays, Records, over_items
from bayesfuse.examples import BLOCK
from bayesfuse.metrics import Reason
from bayesfuse.separators.folder import Folder, PathLike, sources_in
from bayesfuse.tracks import Track, open_track


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


@dataclass(frozen=True)
class Scores:
    """What came out of an evaluation.

    Attributes
    ----------
    table
        The table of `scores`: one row per mixture, system, source, metric and window.
    failed
        Messages by ``system: name``.
    """

    table: Any
    failed: dict[str, str]

    def summary(self) -> str:
        """Means over mixtures with 95 % bootstrap intervals by group, as plain text; windows by their median first."""
        if self.table.empty:
            return "nothing was scored"
        means = scores.summarise(scores.over_windows(self.table)).sort_values(["metric", "source"], kind="stable")
        rows = [("metric", "source", "system", "mean", "95 %", "scored", "without a score")]
        for row in means.itertuples(index=False):
            interval = "" if np.isnan(row.low) else f"{row.low:.2f} to {row.high:.2f}"
            mean = "-" if np.isnan(row.value) else f"{row.value:.2f}"
            missing = f"{row.missing} ({row.reasons})" if row.missing else ""
            rows.append((row.metric, row.source, row.system, mean, interval, str(row.count), missing))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)


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
    measures: Sequence[scores.Measure] = ("sdr",),
    *,
    align: bool = False,
    keep: Path | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> Scores:
    """Scores of all systems on all mixtures, in the order of the jobs.

    A source that a system returns for some mixtures, and not for this one, is a failure; one that it returns for none
    is not. The measure "sdr" alone takes memory that does not grow with the length of the files.

    Parameters
    ----------
    jobs
        From `jobs_of` or `jobs_of_folder`.
    measures
        As for `scores.score`.
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
    records = Records(keep, {"job": "evaluate", "measures": list(measures), "align": align})
    wanted = {system: tuple(sorted(sources)) for system, sources in offered.items() if sources}
    tasks = [_Task(job, wanted, tuple(measures), align, records) for job in jobs]
    tables, failed = [], {}
    for task, (table, wrong) in zip(tasks, over_items(_score, tasks, executor, "scoring", progress), strict=True):
        failed |= {f"{system}: {task.job.name}": text for system, text in wrong.items()}
        tables.append(table)
    full = [table for table in tables if not table.empty]
    return Scores(pd.concat(full, ignore_index=True) if full else pd.DataFrame(columns=list(scores.COLUMNS)), failed)


@dataclass(frozen=True)
class _Task:
    """All that another process needs to score all systems on one mixture."""

    job: Job
    wanted: Mapping[str, tuple[str, ...]]
    measures: tuple[scores.Measure, ...]
    align: bool
    records: Records


def _score(task: _Task) -> tuple[Any, dict[str, str]]:
    """The table of a mixture, and messages by system."""
    job, failed, ready = task.job, {}, {}
    for system, offered in task.wanted.items():
        files = job.estimates.get(system, {})
        sources = tuple(source for source in offered if source in job.references)
        missing = [source for source in sources if source not in files]
        if missing:
            failed[system] = f"no estimate of {', '.join(missing)}"
        elif sources:
            ready[system] = sources
    inputs = [job.references[source] for source in sorted(job.references)]
    inputs += [job.estimates[system][source] for system, sources in ready.items() for source in sources]
    try:
        kept = task.records.get(job.name, inputs, lambda: _measure(task, ready))
    except ITEM_ERRORS as error:
        text = str(error) or type(error).__name__
        return pd.DataFrame(columns=list(scores.COLUMNS)), failed | dict.fromkeys(ready, text)
    failed |= dict(zip(kept["failed"].tolist(), kept["message"].tolist(), strict=True))
    columns = {name: kept[name] for name in ("system", "source", "metric", "window", "value", "reason")}
    table = pd.DataFrame(columns).astype(dict.fromkeys(("system", "source", "metric", "reason"), object))
    table["window"] = table["window"].astype("Int64").mask(table["window"] < 0)
    return table.assign(name=job.name, group=job.group)[list(scores.COLUMNS)], failed


def _measure(task: _Task, ready: Mapping[str, tuple[str, ...]]) -> Arrays:
    """Columns of the table, and what failed in reading."""
    tables, failed = [], {}
    alike: dict[tuple[str, ...], dict[str, list[Track]]] = {}
    for system, sources in ready.items():
        try:
            tracks = [_tracks(task, system, source) for source in sources]
            if "sdr" in task.measures:
                tables.append(_sdr_table(system, sources, tracks))
            alike.setdefault(sources, {})[system] = [estimate for _, estimate in tracks]
        except ITEM_ERRORS as error:
            failed[system] = str(error) or type(error).__name__
    others: list[scores.Measure] = [measure for measure in task.measures if measure != "sdr"]
    for sources, systems in alike.items():
        if others:
            true = [
                open_track(task.job.references[s], audio.info(task.job.references[s]), adapt=False) for s in sources
            ]
            waveforms = [np.stack([t.read(0, true[0].like.samples) for t in tracks]) for tracks in systems.values()]
            references = np.stack([t.read(0, true[0].like.samples) for t in true])
            tables.append(
                scores.score(
                    references,
                    np.stack(waveforms),
                    name=task.job.name,
                    systems=list(systems),
                    sources=sources,
                    measures=others,
                    rate=float(true[0].own.rate),
                )
            )
    joined = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(scores.COLUMNS))
    columns: Arrays = {name: joined[name].to_numpy(str) for name in ("system", "source", "metric", "reason")}
    columns["value"] = joined["value"].to_numpy(np.float64)
    columns["window"] = joined["window"].fillna(-1).to_numpy(np.int64)
    return columns | {"failed": np.array(list(failed), str), "message": np.array(list(failed.values()), str)}


def _tracks(task: _Task, system: str, source: str) -> tuple[Track, Track]:
    """True source and estimate."""
    path = task.job.references[source]
    like = audio.info(path)
    estimate = open_track(task.job.estimates[system][source], like, adapt=task.align)
    return open_track(path, like, adapt=False), estimate


def _sdr_table(system: str, sources: Sequence[str], tracks: Sequence[tuple[Track, Track]]) -> Any:
    """Global ratio [JVR16] eq. 6 over all channels, block by block."""
    rows = []
    for source, (reference, estimate) in zip(sources, tracks, strict=True):
        spans = [(start, start + BLOCK) for start in range(0, reference.own.samples, BLOCK)]
        blocks = ((reference.read(*span), estimate.read(*span)[None]) for span in spans)
        g = fusion.gram_of_blocks(blocks).sum(0)
        value = float(fusion.sdr(np.ones(1), g))
        reason = Reason.VALID
        if not np.isfinite(value):
            reason = Reason.SILENT_REFERENCE if g.energy == 0 else Reason.NO_ERROR
        rows.append((system, source, "sdr", pd.NA, value if reason == Reason.VALID else np.nan, reason.label))
    return pd.DataFrame(rows, columns=["system", "source", "metric", "window", "value", "reason"])

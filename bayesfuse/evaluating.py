"""Scores of folders of estimates against the true sources, whoever made the estimates."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from bayesfuse import audio, scores
from bayesfuse._jobs import ITEM_ERRORS, Arrays, Records, over_items
from bayesfuse.bss_eval import References, prepare
from bayesfuse.separators.folder import Folder, PathLike, sources_in
from bayesfuse.tracks import Track, open_track

# Samples per channel of each signal that are read at a time.
_ROWS = 1 << 15
# What BSS Eval needs per sample of a true source, with the estimate of it and all copies.
_BYTES = 48


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
        """Means over mixtures with 95 % bootstrap intervals by group, as plain text; windows by their median first.

        Where some systems were scored on fewer mixtures, the means over those that all have come after it.
        """
        if self.table.empty:
            return "nothing was scored"
        systems = self.table.groupby("source")["system"].transform("nunique")
        shared = self.table.groupby(["source", "name"])["system"].transform("nunique") == systems
        if shared.all():
            return _listing(self.table)
        note = "not all systems have all mixtures: their means do not compare; "
        if not shared.any():
            return f"{_listing(self.table)}\n\n{note}no mixture was scored for all of them"
        number = self.table.loc[shared, "name"].nunique()
        return f"{_listing(self.table)}\n\n{note}over the {number} that all have:\n{_listing(self.table[shared])}"


def _listing(table: Any) -> str:
    means = scores.summarise(scores.over_windows(table)).sort_values(["metric", "source"], kind="stable")
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
    is not. The measures "sdr", "si_sdr", "si_sir" and "si_sar" take memory that does not grow with the length of the
    files. Those of BSS Eval hold the true sources and the estimates of one system in double precision, about 48 bytes
    per sample, channel and source; a mixture that does not fit into the machine's memory is a failure.

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
    prepared: dict[tuple[str, ...], tuple[np.ndarray, References]] = {}
    plain: list[scores.Measure] = [measure for measure in task.measures if measure in scores.PLAIN]
    others: list[scores.Measure] = [measure for measure in task.measures if measure not in scores.PLAIN]
    for system, sources in ready.items():
        names = {"name": task.job.name, "systems": [system], "sources": sources}
        found = []
        try:
            tracks = [_tracks(task, system, source) for source in sources]
            if plain:
                true, given = _condensed(tracks)
                found.append(scores.score(true, given[None], measures=plain, **names))
            if others:
                _check_memory(task.job.name, others, [reference for reference, _ in tracks])
                if sources not in prepared:
                    true = _whole([reference for reference, _ in tracks])
                    prepared[sources] = true, prepare(true)
                true, known = prepared[sources]
                given = _whole([estimate for _, estimate in tracks])
                rate = float(tracks[0][0].own.rate)
                found.append(scores.score(true, given[None], measures=others, rate=rate, prepared=known, **names))
        except ITEM_ERRORS as error:
            failed[system] = str(error) or type(error).__name__
            continue
        tables += found
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


def _condensed(
    tracks: Sequence[tuple[Track, Track]],
) -> tuple[Float[np.ndarray, "source 1 entry"], Float[np.ndarray, "source 1 entry"]]:
    """A few numbers per signal with the scalar products of the true sources and estimates, which are read in blocks.

    They are the coordinates of the signals in an orthonormal basis of their span, from the QR decomposition of each
    block below the triangle of those before it. All measures of scalar products have the values of the signals, without
    the digits that are lost where scalar products themselves are added up.
    """
    count = len(tracks)
    triangle, heard = np.zeros((0, 2 * count)), np.zeros(count, bool)
    for start in range(0, tracks[0][0].own.samples, _ROWS):
        pairs = [(true.read(start, start + _ROWS), given.read(start, start + _ROWS)) for true, given in tracks]
        true, given = (
            np.stack([x.ravel() for x in signals]).astype(np.float64) for signals in zip(*pairs, strict=True)
        )
        heard |= given.any(axis=1)
        # Differences of the signals, not of their coordinates: that of equal signals is zero.
        rows = np.concatenate([true, given - true]).T
        triangle = np.asarray(np.linalg.qr(np.concatenate([triangle, rows]), mode="r"))
    true, rest = triangle.T[:count], triangle.T[count:]
    return true[:, None], np.where(heard[:, None], true + rest, 0.0)[:, None]


def _whole(tracks: Sequence[Track]) -> Float[np.ndarray, "source channel sample"]:
    return np.stack([track.read(0, tracks[0].like.samples) for track in tracks])


def _check_memory(name: str, measures: Sequence[str], references: Sequence[Track]) -> None:
    """Raises a ValueError if the signals of one system, in double precision, do not fit into the machine's memory."""
    header = references[0].own
    need = _BYTES * len(references) * header.channels * header.samples
    have = _memory()
    if need > have:
        raise ValueError(
            f"{' and '.join(measures)} hold whole signals, of {name} about {need / 2**30:.3g} GiB, but this machine "
            f"has {have / 2**30:.3g} GiB: cut the recording into pieces, or take sdr or si_sdr, which read blocks."
        )


def _memory() -> float:
    """Bytes of the machine's memory, inf if it does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return np.inf

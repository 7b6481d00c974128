"""Experiments: mixtures x separators -> records, computed once, by whatever processes there are, and resumable.

    config = load_config("experiment.toml")
    print(run_experiment(config, "folder", progress=True))
    records = open_records("folder")

Every mixture has one file, which is complete or not there. It is computed if there is none, or if it is of other
settings, other code or other inputs; whoever starts the experiment again after a crash, a full disk or a kill goes on
where it stopped. One process writes, the one that holds the lock of the folder; others compute.

The folder: ``records/<name>.nc``; ``experiment.json``, what the experiment is; ``errors.json``, what is wrong with
mixtures that have no record; ``estimates/<model>/<name>/<source>.wav`` where estimates are kept; and ``.work``, with
dictionaries, compiled programs and the lock, which may be deleted.
"""

import dataclasses
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

from bayesfuse import audio, record_file, records
from bayesfuse._fingerprint import content_hash, files_hash
from bayesfuse._jobs import ITEM_ERRORS
from bayesfuse._lock import exclusive
from bayesfuse._netcdf import replacing
from bayesfuse.datasets.base import Dataset
from bayesfuse.executors import Workers, workers
from bayesfuse.experiment_config import ExperimentConfig, load_config
from bayesfuse.experiment_dictionaries import Lesson, Taught, lessons_of, open_now, opened, reduced, teach
from bayesfuse.experiment_items import STAGES, Outcome, Task, check_fit, peak_memory, settings_hash, work
from bayesfuse.records import Record, Records, open_records, record_path

__all__ = ["ExperimentConfig", "Record", "Records", "Summary", "load_config", "open_records", "run_experiment"]

_LOG = logging.getLogger(__name__)
# Mixtures that are tried before a configuration is blamed.
_TRIED = 3


@dataclasses.dataclass(frozen=True)
class Summary:
    """What an experiment did, or with `dry_run` would do.

    Attributes
    ----------
    total
        Mixtures of the experiment.
    computed
        Names of those whose records were computed (would be: or checked).
    kept
        Number of records that were there.
    failed
        What is wrong with mixtures that have no record, by name.
    seconds
        Of the whole run.
    stages
        Seconds by stage, added over processes: those of `experiment_items.STAGES`, and "write".
    audio_seconds
        Duration of the mixtures that were computed.
    model_seconds
        Seconds by model, added over mixtures, without compiling.
    memory
        Largest memory of any of the processes, in bytes.
    statement
        Who worked, and with how many threads.
    dry_run
        Whether nothing was done.
    """

    total: int
    computed: tuple[str, ...]
    kept: int
    failed: dict[str, str]
    seconds: float = 0.0
    stages: dict[str, float] = dataclasses.field(default_factory=dict)
    audio_seconds: float = 0.0
    model_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    memory: int = 0
    statement: str = ""
    dry_run: bool = False

    @property
    def per_minute(self) -> float:
        """Mixtures computed per minute."""
        return 60.0 * len(self.computed) / self.seconds if self.seconds else 0.0

    def share(self, *stages: str) -> float:
        """Share of the time of all processes that some stages took."""
        total = sum(self.stages.values())
        return sum(self.stages.get(stage, 0.0) for stage in stages) / total if total else 0.0

    def __str__(self) -> str:
        if self.dry_run:
            return (
                f"{self.total} mixtures: {self.kept} records are there, {len(self.computed)} would be computed or "
                f"checked by {self.statement}."
            )
        lines = [
            f"{self.total} mixtures: {len(self.computed)} records computed, {self.kept} were there, "
            f"{len(self.failed)} failed; {self.seconds:.0f} s by {self.statement}."
        ]
        if self.computed and self.audio_seconds:
            compute = self.share("dictionaries", "separate", "score")
            slowest = max(self.model_seconds, key=lambda model: self.model_seconds[model])
            factor = self.audio_seconds / self.model_seconds[slowest]
            lines += [
                f"{self.per_minute:.1f} mixtures per minute; time of all processes: computing {compute:.0%}, reading "
                f"and writing {self.share('read', 'write'):.0%}, compiling {self.share('compile'):.0%}.",
                f"Slowest model {slowest}: {factor:.0f} times faster than real time; largest process "
                f"{self.memory / 2**20:.0f} MiB.",
            ]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.failed.items()])


class _Plan(NamedTuple):
    """What is to be done."""

    data: Dataset
    look: str  # hash of how the files of the set look
    indices: tuple[int, ...]  # positions in the set of the mixtures of the experiment
    names: tuple[str, ...]
    known: dict[int, str | None]  # of those without a record that is surely right, the key of the one there is, if any
    settings: str  # hash of settings and code
    stamp: str  # hash of settings, code and look: a record that has it is right


def run_experiment(
    config: ExperimentConfig,
    folder: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    dry_run: bool = False,
    progress: bool = False,
) -> Summary:
    """Computes all records of an experiment that are not there yet.

    Parameters
    ----------
    config
        From `load_config`.
    folder
        Where records are kept; made if need be.
    executor
        Any executor, whose processes must see the same files; by default the one that the configuration names.
    dry_run
        Only say what would be done; nothing is written.
    progress
        Show progress bars.

    Returns
    -------
    Summary
        Mixtures that failed among it: something is wrong with them, which does not stop the others.

    Raises
    ------
    ValueError
        If the configuration does not fit the data set, or another process is at work in the folder.
    OSError
        If a record cannot be written, for instance because the disk is full.
    concurrent.futures.BrokenExecutor
        If a process of `executor` has died.
    """
    root = Path(folder)
    start = time.perf_counter()
    plan = _plan(config, root)
    kept = len(plan.indices) - len(plan.known)
    lessons = lessons_of(config, plan.data, [plan.data.entries[i] for i in plan.known])
    if plan.known:
        _check_fit(config, plan.data, plan.indices)
    if dry_run:
        statement = type(executor).__name__ if executor is not None else config.execution.executor
        names = tuple(plan.data.names[i] for i in plan.known)
        return Summary(len(plan.indices), names, kept, records.read_errors(root), statement=statement, dry_run=True)
    (root / "records").mkdir(parents=True, exist_ok=True)
    with exclusive(root / ".work" / "lock"):
        _write_json(root / records.INDEX, _index(config, plan))
        run = _Run(config, root, plan, kept, progress)
        with workers(config.execution, executor) as pool:
            check = sum(key is not None for key in plan.known.values())
            more = f", {check} to be checked, because files look different" if check else ""
            _LOG.info("%d mixtures, %d records are there%s; %s", len(plan.indices), kept, more, pool.statement)
            run.go(pool, dict(zip(plan.known, lessons, strict=True)))
        return dataclasses.replace(run.summary(pool.statement), seconds=time.perf_counter() - start)


def _plan(config: ExperimentConfig, root: Path) -> _Plan:
    data = open_now(config.data)
    splits = config.data.splits or data.splits
    position = {name: i for i, name in enumerate(data.names)}
    names = [name for split in splits for name in data.mixtures(split, config.data.quick)[: config.data.limit].names]
    settings = settings_hash(config)
    paths = [config.data.path, *(separator.estimates for separator in config.separators)]
    paths += [path for index in range(len(data)) for path in data.paths(index)]
    look = files_hash(path for path in paths if path is not None)
    stamp = content_hash([settings, look])
    known: dict[int, str | None] = {}
    for name in names:
        path = record_path(root, name)
        try:
            about = record_file.read_header(path) if path.exists() else {}
        except ValueError as error:
            _LOG.warning("%s It is computed again.", error)
            about = {}
        if about.get("stamp") != stamp:
            known[position[name]] = about["key"] if about.get("settings") == settings and _intact(path) else None
    return _Plan(data, look, tuple(position[name] for name in names), tuple(names), known, settings, stamp)


def _check_fit(config: ExperimentConfig, data: Dataset, indices: Sequence[int]) -> None:
    """Raises a ValueError if the configuration fits none of some mixtures: it is at fault, not they."""
    reasons = []
    for index in indices[:: -(-len(indices) // _TRIED)]:
        try:
            mixture = reduced(config.data, data[index])
        except ITEM_ERRORS:
            continue
        try:
            check_fit(config, mixture)
        except (ValueError, FileNotFoundError) as error:
            reasons.append(str(error))
        else:
            return
    if reasons:
        raise ValueError(f"the configuration does not fit the data set: {reasons[0]}")


def _intact(path: Path) -> bool:
    try:
        record_file.read_record(path)
    except ValueError as error:
        _LOG.warning("%s It is computed again.", error)
        return False
    return True


def _index(config: ExperimentConfig, plan: _Plan) -> dict[str, Any]:
    about = config.results_depend_on()
    return {"format": "bayesfuse experiment", "settings": plan.settings, "config": about, "names": list(plan.names)}


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class _Lecture(NamedTuple):
    """What another process needs to learn the dictionaries of a lesson."""

    config: ExperimentConfig
    look: str
    lesson: Lesson
    cache: Path


def _teach(lecture: _Lecture) -> Taught | str:
    try:
        data = opened(lecture.config.data, lecture.look)
        return teach(lecture.config, data, lecture.lesson, lecture.cache)
    except (ValueError, OSError, FloatingPointError) as error:
        return str(error)


class _Run:
    """The state of a run; what it writes, it writes as soon as it has it."""

    def __init__(self, config: ExperimentConfig, root: Path, plan: _Plan, kept: int, progress: bool) -> None:
        self.config, self.root, self.plan, self.progress = config, root, plan, progress
        self.kept = kept
        self.computed: list[str] = []
        self.failed: dict[str, str] = {}
        self.stages: dict[str, float] = dict.fromkeys((*STAGES, "write"), 0.0)
        self.models: Counter[str] = Counter()
        self.audio_seconds = 0.0
        self.memory = 0

    def go(self, pool: Workers, lessons: Mapping[int, Mapping[str, Lesson]]) -> None:
        """Dictionaries first, then the mixtures."""
        _write_json(self.root / records.ERRORS, {})
        for unfinished in (self.root / "records").rglob(".*.nc"):  # of a process that was killed
            unfinished.unlink()
        taught = self._learn(pool, lessons)
        ready: dict[int, dict[str, Taught]] = {}
        for index, mine in lessons.items():
            errors = [found for lesson in mine.values() if isinstance(found := taught[lesson], str)]
            if errors:
                self._fail(self.plan.data.names[index], f"its dictionaries cannot be learned: {errors[0]}")
            else:
                ready[index] = {s: t for s, lesson in mine.items() if isinstance(t := taught[lesson], Taught)}
        tasks = self._tasks(ready)
        with self._bar(len(ready), "mixtures", "mixture") as bar:
            for task, answer in pool.over(work, tasks):
                if answer is None:
                    for index in task.indices:
                        self._fail(self.plan.data.names[index], "its process died, probably for want of memory")
                else:
                    self._take(answer)
                bar.update(len(task.indices))
        _LOG.info("mixtures: %d computed, %d failed", len(self.computed), len(self.failed))

    def summary(self, statement: str) -> Summary:
        peak = max(self.memory, peak_memory())
        return Summary(
            len(self.plan.indices), tuple(self.computed), self.kept, self.failed, 0.0, self.stages, self.audio_seconds,
            dict(self.models), peak, statement,
        )  # fmt: skip

    def _learn(self, pool: Workers, lessons: Mapping[int, Mapping[str, Lesson]]) -> dict[Lesson, Taught | str]:
        wanted = list(dict.fromkeys(lesson for mine in lessons.values() for lesson in mine.values()))
        found: dict[Lesson, Taught | str] = {}
        start = time.perf_counter()
        folder = self.root / ".work" / "dictionaries"
        lectures = [_Lecture(self.config, self.plan.look, lesson, folder) for lesson in wanted]
        with self._bar(len(wanted), "dictionaries", "set") as bar:
            for lecture, answer in pool.over(_teach, lectures):
                found[lecture.lesson] = answer or f"learning {lecture.lesson} killed its process"
                bar.update()
        if wanted:
            _LOG.info("dictionaries: %d sets in %.0f s", len(wanted), time.perf_counter() - start)
        return found

    def _tasks(self, ready: Mapping[int, Mapping[str, Taught]]) -> Iterator[Task]:
        # Several batches at once, among whose mixtures there are enough of similar lengths.
        batch = self.config.execution.batch
        for indices in _batches(list(ready), 1 if batch == 1 else 4 * batch):
            yield Task(
                self.config,
                self.plan.settings,
                self.plan.look,
                indices,
                tuple(self.plan.data.names[i] for i in indices),
                tuple(ready[i] for i in indices),
                tuple(self.plan.known[i] for i in indices),
                self.root / ".work" / "programs",
            )

    def _take(self, answer: Any) -> None:
        for stage, seconds in answer.seconds.items():
            self.stages[stage] += seconds
        self.memory = max(self.memory, answer.memory)
        for outcome in answer.outcomes:
            if outcome.error is not None:
                self._fail(outcome.name, outcome.error)
                continue
            start = time.perf_counter()
            try:
                self._commit(outcome)
            except (OSError, RuntimeError) as error:  # HDF5 may say either
                reason = getattr(error, "strerror", None) or error
                raise OSError(
                    f"the record of {outcome.name} cannot be written ({reason}). {self.kept + len(self.computed)} of "
                    f"{len(self.plan.indices)} records are complete: when there is space, start again to go on."
                ) from error
            self.stages["write"] += time.perf_counter() - start

    def _commit(self, outcome: Outcome) -> None:
        path = record_path(self.root, outcome.name)
        # Without a record, files look different and sound the same: the one that there is gets their new stamp.
        record = outcome.record
        if record is None:
            record = dataclasses.replace(record_file.read_record(path), metadata=dict(outcome.metadata or {}))
        if outcome.estimates is not None:
            self._write_estimates(record, *outcome.estimates)
        # Last: it says that all is done.
        record_file.write_record(dataclasses.replace(record, stamp=self.plan.stamp), path)
        if outcome.record is None:
            self.kept += 1
            return
        self.computed.append(outcome.name)
        self.models.update(dict(zip(record.models, record.seconds.tolist(), strict=True)))
        self.audio_seconds += outcome.duration

    def _write_estimates(self, record: Record, estimates: Any, rate: int) -> None:
        for model, sources in zip(record.models, estimates, strict=True):
            for source, waveform in zip(record.sources, sources, strict=True):
                path = records.estimate_path(self.root, model, record.name, source)
                path.parent.mkdir(parents=True, exist_ok=True)
                audio.write(path, waveform, rate)

    def _fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        _LOG.warning("%s: %s", name, reason)
        _write_json(self.root / records.ERRORS, self.failed)

    def _bar(self, total: int, title: str, unit: str) -> Any:
        from tqdm.auto import tqdm

        return tqdm(total=total, desc=title, unit=unit, disable=not self.progress or not total)


def _batches(indices: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(indices[i : i + size]) for i in range(0, len(indices), size)]

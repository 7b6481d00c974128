"""The oracle ladder of a folder: what fusing its separators could reach, before anything is learned."""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bayesfuse._jobs import ITEM_ERRORS, Arrays, Records, over_items
from bayesfuse.examples import Example, Reading, open_example
from bayesfuse.folder_rules import check_references
from bayesfuse.grams import Bands
from bayesfuse.ladder import Block, Ladder, ladder_of_blocks
from bayesfuse.separators.folder import Folder, Item
from bayesfuse.transforms import STFT

BEST = "best single on average"


def ladder_of_folder(
    folder: Folder,
    *,
    reading: Reading | None = None,
    transform: STFT | None = None,
    keep: Path | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> tuple[Ladder, dict[str, str]]:
    """The ladder of all mixtures with true sources, and messages of those that failed.

    It is about the sources that most separators estimate and mixtures whose true sources of these are all known. The
    rung `BEST` is the separator with the best mean over these very files: see `about_best`. Files are read in blocks.

    Parameters
    ----------
    folder
        Mixtures, estimates, references.
    reading
        How the files are read.
    transform
        Frames of the weights, by default `STFT`.
    keep
        Folder to keep results in, for a job that is interrupted.
    executor, progress
        As for `fusing.fuse_folder`.

    Raises
    ------
    ValueError
        If there are no references, or no ladder could be made of any mixture.
    """
    check_references(folder, "oracle")
    mine = Reading() if reading is None else reading
    framing = STFT() if transform is None else transform
    most = max(map(len, folder.separators_of.values()))
    sources = [source for source, names in folder.separators_of.items() if len(names) == most]
    separators = folder.separators_of[sources[0]]
    sources = tuple(source for source in sources if folder.separators_of[source] == separators)
    tasks = []
    for item in folder.items:
        if all(source in item.references for source in sources):
            part = mine.of(item)
            settings = {"job": "ladder", "transform": framing.to_dict(), **part.describe()}
            tasks.append(_Task(item, sources, separators, part, framing, Records(keep, settings)))
    found, failed = [], {}
    for task, answer in zip(tasks, over_items(_ladder, tasks, executor, "ladder", progress), strict=True):
        if isinstance(answer, str):
            failed[task.item.name] = answer
        else:
            rungs = tuple(answer["rungs"].tolist())
            found.append(Ladder(answer["sdr"], rungs, sources, (task.item.name,)))
    if not found:
        reason = next(iter(failed.values()), f"no mixture has references of all of {', '.join(sources)}")
        raise ValueError(f"there is no ladder to print: {reason}")
    return _with_best(Ladder.concatenate(found), len(separators)), failed


def _with_best(whole: Ladder, count: int) -> Ladder:
    """The ladder with the rung of the separator that is best on average, above the separators."""
    means = np.nan_to_num(whole.mean()[:, :count], nan=-np.inf)
    best = np.take_along_axis(whole.sdr, np.argmax(means, axis=1)[None, :, None], axis=2)
    sdr = np.concatenate([whole.sdr[..., :count], best, whole.sdr[..., count:]], axis=-1)
    return Ladder(sdr, (*whole.rungs[:count], BEST, *whole.rungs[count:]), whole.sources, whole.files)


def about_best(found: Ladder) -> str:
    """Which separators the rung `BEST` of `ladder_of_folder` stands for, what they were chosen on, and what to gain."""
    count = found.rungs.index(BEST)
    means = found.mean()
    sounding = [j for j in range(len(found.sources)) if np.isfinite(means[j, :count]).any()]
    if not sounding:
        return "All references are silent: there is nothing to compare."
    files = "this file itself" if len(found.files) == 1 else f"these {len(found.files)} files themselves"
    level = dict(zip(found.rungs, means.T, strict=True))
    lines = []
    for j in sounding:
        best = int(np.nanargmax(means[j, :count]))
        others = ", ".join(f"{name} {level[name][j]:.2f}" for name in ("mean", "oracle fusion") if name in level)
        lines.append(f"{found.sources[j]}: best single {found.rungs[best]} {means[j, best]:.2f} dB; {others}")
    return "\n".join(
        [
            *lines,
            f"The best single ones were chosen on {files}, with their references: one that is chosen on other files, "
            "as by `bayesfuse train --method select`, can only be worse.",
        ]
    )


@dataclass(frozen=True)
class _Task:
    """All that another process needs to make the ladder of one mixture."""

    item: Item
    sources: tuple[str, ...]
    separators: tuple[str, ...]
    reading: Reading
    transform: STFT
    records: Records


def _ladder(task: _Task) -> Arrays | str:
    """Levels and names of the rungs, or what went wrong."""
    try:
        examples = [open_example(task.item, s, task.separators, task.reading) for s in task.sources]
        files = [examples[0].mixture.path]
        for example in examples:
            files += [example.true_source().path, *(track.path for track in example.estimates)]
        return task.records.get(task.item.name, files, lambda: _rungs(task, examples))
    except ITEM_ERRORS as error:
        return str(error) or type(error).__name__


def _rungs(task: _Task, examples: list[Example]) -> Arrays:
    rate = examples[0].header.rate
    result = ladder_of_blocks(
        _blocks(examples),
        transform=task.transform,
        bands=Bands(rate, window=task.transform.window),
        models=task.separators,
        sources=task.sources,
    )
    return {"sdr": result.sdr, "rungs": np.array(result.rungs, str)}


def _blocks(examples: list[Example]) -> Iterator[Block]:
    """Mixture, true sources and estimates of all sources in consecutive blocks."""
    start = 0
    for pairs in zip(*(example.pairs() for example in examples), strict=True):
        references, estimates = (list(signals) for signals in zip(*pairs, strict=True))
        stop = start + references[0].shape[-1]
        yield examples[0].mixture.read(start, stop), np.stack(references), np.stack(estimates, axis=1)
        start = stop

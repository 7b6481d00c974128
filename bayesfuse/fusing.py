"""Fusing a folder: the outputs of several separators in, one WAV file per mixture and source out.

Files are read and written in blocks, so memory does not grow with their length. A job that was interrupted, even
killed, goes on where it was: outputs appear complete or not at all, those that exist are kept while the files that
they were made from look as they did, and one process at a time works in a folder. A mixture that cannot be fused is
reported and the others are done.
"""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from bayesfuse import audio, fusion
from bayesfuse._fingerprint import content_hash, files_hash
from bayesfuse._jobs import ITEM_ERRORS, over_items
from bayesfuse._lock import exclusive
from bayesfuse._netcdf import replacing
from bayesfuse.examples import Example, Reading, open_example
from bayesfuse.separators.folder import Folder, Item, sources_in
from bayesfuse.transforms import STFT

# What a job keeps about itself, inside its output folder.
STATE = ".bayesfuse"


@runtime_checkable
class Rule(Protocol):
    """A fusion rule for examples of a folder; instances are sent to other processes."""

    def describe(self) -> dict[str, Any]:
        """What determines the result, JSON-ready."""
        ...

    @property
    def informed(self) -> bool:
        """Whether the weights depend on the true sources."""
        ...

    def check(self, folder: Folder) -> None:
        """Raises a ValueError if the rule cannot be applied to any mixture of the folder."""
        ...

    def separators(self, source: str) -> tuple[str, ...] | None:
        """The models that the rule is for, in order; None for any."""
        ...

    def weights(self, example: Example) -> tuple[list[Float[np.ndarray, "model *frame"]], STFT | None]:
        """Weights for all channels together (one entry) or for each; and the transform of their frames."""
        ...


@dataclass
class Outcome:
    """What became of a job.

    Attributes
    ----------
    done
        Outputs that were made, as ``name/source``.
    kept
        Outputs that existed.
    failed
        Messages by output.
    """

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, other: "Outcome") -> None:
        """Takes over what became of another part of the job."""
        self.done += other.done
        self.kept += other.kept
        self.failed |= other.failed


def fuse_folder(
    folder: Folder,
    output: str | Path,
    rule: Rule,
    *,
    reading: Reading | None = None,
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: bool = False,
) -> Outcome:
    """Writes ``<output>/<name>/<source>.wav``, float32, for every mixture and source.

    Parameters
    ----------
    folder
        Mixtures and estimates.
    output
        Folder to write. Outputs that are there are kept if they are from the same rule, settings and files.
    rule
        Makes the weights.
    reading
        How the estimates are read; by default as they are.
    overwrite
        Make all outputs anew, whatever they are from.
    executor
        Fuses several mixtures at a time, for instance a pool of processes; one after the other if None.
    progress
        Whether to show a bar.

    Raises
    ------
    ValueError
        If the folder holds outputs of another rule or settings, or inputs, another process writes it, or the rule is
        for other separators than the folder has.
    """
    reading = Reading() if reading is None else reading
    target = Path(output)
    if target.exists() and not target.is_dir():
        raise ValueError(f"cannot write into {target}: it is a file; give the name of a folder.")
    _check_output(target, folder)
    rule.check(folder)
    with exclusive(target / STATE / "lock"):
        _remember(target, {**rule.describe(), "align": reading.adapt}, overwrite)
        _sweep(target)
        separators = {source: rule.separators(source) or folder.separators_of[source] for source in folder.sources}
        tasks = [Task(item, separators, target, rule, reading.of(item), overwrite) for item in folder.items]
        outcome = Outcome()
        for part in over_items(_fuse_item, tasks, executor, "fusing", progress):
            outcome.add(part)
    return outcome


def _check_output(target: Path, folder: Folder) -> None:
    """Raises a ValueError if outputs would lie among the inputs, where the next run would take them for estimates."""
    place = target.resolve()
    for item in folder.items:
        estimates = [path for files in item.estimates.values() for path in files.values()]
        for path in (item.mixture, *estimates, *item.references.values()):
            if path.resolve().is_relative_to(place):
                raise ValueError(f"cannot write into {target}: it holds the input {path}; name another folder.")


@dataclass(frozen=True)
class Task:
    """All that another process needs to fuse one mixture."""

    item: Item
    separators: Mapping[str, tuple[str, ...]]
    target: Path
    rule: Rule
    reading: Reading
    overwrite: bool


def _fuse_item(task: Task) -> Outcome:
    outcome = Outcome()
    if not task.item.estimates:
        outcome.failed[task.item.name] = "no separator has an estimate of it"
    for source, separators in task.separators.items():
        if not any(source in files for files in task.item.estimates.values()):
            continue  # a song without drums
        name, path = f"{task.item.name}/{source}", task.target / task.item.name / f"{source}.wav"
        made_from, look = task.target / STATE / "inputs" / task.item.name / f"{source}.txt", _look(task, separators)
        if path.is_file() and not task.overwrite and made_from.is_file() and made_from.read_text() == look:
            outcome.kept.append(name)
            continue
        try:
            example = open_example(task.item, source, separators, task.reading)
            weights, transform = task.rule.weights(example)
            path.parent.mkdir(parents=True, exist_ok=True)
            header = example.header
            # In this order a kill leaves no output beside a note about other files, and none to be made twice.
            path.unlink(missing_ok=True)
            made_from.parent.mkdir(parents=True, exist_ok=True)
            with replacing(made_from) as temporary:
                temporary.write_text(look)
            audio.write_blocks(path, fused_blocks(example, weights, transform), header.rate, header.channels)
            outcome.done.append(name)
        except ITEM_ERRORS as error:
            outcome.failed[name] = str(error) or type(error).__name__
    return outcome


def _look(task: Task, separators: tuple[str, ...]) -> str:
    """A hash of how the files look that an output is made from: which separators, their sizes and times."""
    item = task.item
    files = [item.mixture, *item.free_energies.values(), *(item.references.values() if task.rule.informed else ())]
    files += [path for estimates in item.estimates.values() for path in estimates.values()]
    return content_hash([list(separators), task.reading.describe(), files_hash(files)])


def fused_blocks(
    example: Example, weights: list[Float[np.ndarray, "model *frame"]], transform: STFT | None
) -> Iterator[Float[np.ndarray, "channel sample"]]:
    """The fused source in consecutive blocks, the same as if it were fused at once.

    Parameters
    ----------
    weights
        Constant or per frame; one entry for all channels, or one for each.
    transform
        Of the frames.
    """
    each = len(weights) > 1
    return fusion.fuse_blocks(
        np.stack(weights) if each else weights[0], example.blocks(), transform=transform, per_source=each
    )


def _remember(target: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Notes the settings in the output folder, or complains that its outputs are from others."""
    note = target / STATE / "settings.json"
    text = json.dumps(dict(settings), indent=1, sort_keys=True)
    if note.is_file() and note.read_text(encoding="utf-8") != text and not overwrite:
        raise ValueError(
            f"{target} holds outputs of another method or other settings (see {note}): name another folder, or "
            "--overwrite them."
        )
    if not note.is_file() and not overwrite and any(sources_in(entry) for entry in target.iterdir()):
        raise ValueError(f"{target} holds sounds that were not made here: name another folder, or --overwrite them.")
    with replacing(note) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sweep(target: Path) -> None:
    """Removes what a killed process left half-written; nobody else writes here now."""
    for file in target.rglob(".*.wav"):
        if len(file.stem) == 33 and set(file.stem[1:]) <= set("0123456789abcdef"):
            file.unlink(missing_ok=True)

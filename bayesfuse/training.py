"""Learning weights on a folder whose true sources are known.

Scalar products of every mixture are computed once and kept beside the weights file until it is written, so that a
training that was interrupted, even killed, goes on where it was.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from bayesfuse import fusion
from bayesfuse._jobs import ITEM_ERRORS, Arrays, Records, over_items
from bayesfuse.cross_validation import CrossValidation, cross_validate, static_learner, vb_learner
from bayesfuse.examples import Reading, open_example
from bayesfuse.folder_rules import channel_grams, check_free_energies, check_references, energies
from bayesfuse.fusing import Outcome
from bayesfuse.learned_rules import channel_key
from bayesfuse.rules import Rule, StaticRule
from bayesfuse.separators.folder import Folder, Item

METHODS = ("select", "static-mse", "static-sdr", "vb")


class Pairs(NamedTuple):
    """Training examples of one rule.

    Attributes
    ----------
    names, groups
        Of the mixtures.
    grams
        [example], or of each example [frame].
    free_energies
        Of each example [model] or [model, frame]; empty if the method needs none.
    num_frames
        Of each example; empty likewise.
    """

    names: list[str]
    groups: list[str]
    grams: list[fusion.Gram]
    free_energies: list[Float[np.ndarray, "model *frame"]]
    num_frames: list[int]


def train_folder(
    folder: Folder,
    method: str,
    *,
    reading: Reading | None = None,
    time_varying: bool = False,
    per_channel: bool = False,
    keep: Path | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> tuple[dict[str, Rule], dict[str, Pairs], Outcome]:
    """Rules learned on all mixtures with true sources; by source, or by source and channel.

    Parameters
    ----------
    folder
        Mixtures, estimates, references.
    method
        One of `METHODS`: "select" is the separator with the best mean SDR.
    reading
        How the files are read.
    time_varying
        Weights per frame, for "vb", over the frames of the free energies.
    per_channel
        A rule for every channel.
    keep
        Folder to keep scalar products in.
    executor, progress
        As for `fusing.fuse_folder`.

    Returns
    -------
    tuple
        The rules and the examples they were learned on, by the same names, and what became of every mixture and source.

    Raises
    ------
    ValueError
        If nothing can be learned: no references, no free energies for "vb", or no usable mixture of a source.
    """
    check_trainable(folder, method, time_varying)
    pairs, outcome = collect_pairs(
        folder,
        Reading() if reading is None else reading,
        by_energy=method == "vb",
        time_varying=time_varying,
        per_channel=per_channel,
        keep=keep,
        executor=executor,
        progress=progress,
    )
    rules: dict[str, Rule] = {}
    for (source, channel), examples in pairs.items():
        name = source if channel is None else channel_key(source, channel)
        rules[name] = learn(method, examples, folder.separators_of[source], name)
    return rules, {name: pairs[key] for name, key in zip(rules, pairs, strict=True)}, outcome


def check_trainable(folder: Folder, method: str, time_varying: bool) -> None:
    """Raises a ValueError if nothing can be learned on any mixture of the folder; see `train_folder`."""
    if method not in METHODS:
        raise ValueError(f"method {method!r}; expected one of {', '.join(METHODS)}.")
    if time_varying and method != "vb":
        raise ValueError(f"method {method} has constant weights; weights per frame come from vb or network.")
    check_references(folder, method)
    if method == "vb":
        check_free_energies(folder, method)


def learn(method: str, pairs: Pairs, separators: Sequence[str], source: str) -> Rule:
    """The rule of one source by one of `METHODS`.

    Raises
    ------
    ValueError
        If there is no example, or under a measure in dB none whose true source sounds.
    """
    from bayesfuse.bayesian import learn_vb
    from bayesfuse.ladder import best_single
    from bayesfuse.static import static_weights

    g, energies_of, settings = _stacked(method, pairs, source)
    if method == "select":
        return StaticRule(np.eye(len(separators))[int(best_single(g))], separators, source)
    if method != "vb":
        return StaticRule(static_weights(g, loss=_loss(method)), separators, source)
    return learn_vb(g, energies_of, loss=_loss(method), separators=separators, source=source, **settings)[0]


def judge(method: str, pairs: Pairs, source: str) -> CrossValidation | None:
    """What the method gains over the best single separator on mixtures it was not learned on, by cross-validation.

    Mixtures of one group are held out together. None for "select", which is the best single separator, and if there
    are fewer than two groups.
    """
    used = _usable(method, pairs, source)
    groups = [pairs.groups[i] for i in used]
    if method == "select" or len({pairs.groups[i] for i in used if np.sum(pairs.grams[i].energy) > 0}) < 2:
        return None
    g, energies_of, settings = _stacked(method, pairs, source)
    if method == "vb":
        return cross_validate(vb_learner(g, energies_of, loss=_loss(method), **settings), g, groups)
    return cross_validate(static_learner(g, loss=_loss(method)), g, groups)


def _loss(method: str) -> Literal["mse", "sdr"]:
    return "mse" if method == "static-mse" else "sdr"


def _usable(method: str, pairs: Pairs, source: str) -> list[int]:
    """Indices of the examples whose measure is defined; a ValueError if there is none."""
    used = [i for i, g in enumerate(pairs.grams) if _loss(method) == "mse" or np.sum(g.energy) > 0]
    if not used:
        raise ValueError(f"there is no mixture with a true source {source} that sounds: nothing to learn from.")
    return used


def _stacked(
    method: str, pairs: Pairs, source: str
) -> tuple[fusion.Gram, Float[np.ndarray, "example model *frame"], dict[str, Any]]:
    """Scalar products and free energies of all usable examples, padded to the longest, and their lengths."""
    used = _usable(method, pairs, source)
    grams = [pairs.grams[i] for i in used]
    if method != "vb":
        return fusion.Gram.stack(grams), np.zeros((len(grams), grams[0].num_models)), {}
    values = [pairs.free_energies[i] for i in used]
    if grams[0].energy.ndim == 0:
        return fusion.Gram.stack(grams), np.stack(values), {"num_frames": [pairs.num_frames[i] for i in used]}
    lengths = [g.energy.shape[0] for g in grams]
    padded = fusion.Gram.stack([padded_gram(g, max(lengths)) for g in grams])
    free = np.stack([np.pad(v, [(0, 0), (0, max(lengths) - v.shape[1])]) for v in values])
    return padded, free, {"frames": np.arange(max(lengths)) < np.array(lengths)[:, None]}


def collect_pairs(
    folder: Folder,
    reading: Reading,
    *,
    by_energy: bool,
    time_varying: bool,
    per_channel: bool,
    keep: Path | None,
    executor: Executor | None,
    progress: bool,
) -> tuple[dict[tuple[str, int | None], Pairs], Outcome]:
    """Examples by source and channel (None: all channels together), and what became of the mixtures.

    Mixtures without a true source are left out without a word; arguments are those of `train_folder`.
    """
    settings = {"job": "train", "by_energy": by_energy, "time_varying": time_varying, "per_channel": per_channel}
    tasks = []
    for item in folder.items:
        mine = reading.of(item)
        records = Records(keep, {**settings, **mine.describe()})
        tasks += [
            _Task(item, source, separators, mine, by_energy, time_varying, per_channel, records)
            for source, separators in folder.separators_of.items()
            if source in item.references
        ]
    outcome = Outcome()
    pairs: dict[tuple[str, int | None], Pairs] = {}
    for task, found in zip(tasks, over_items(_pair, tasks, executor, "scalar products", progress), strict=True):
        name = f"{task.item.name}/{task.source}"
        if isinstance(found, str):
            outcome.failed[name] = found
            continue
        outcome.done.append(name)
        for c in range(found["energy"].shape[0]):
            examples = pairs.setdefault((task.source, c if per_channel else None), Pairs([], [], [], [], []))
            examples.names.append(task.item.name)
            examples.groups.append(task.item.group)
            examples.grams.append(fusion.Gram(found["energy"], found["cross"], found["gram"]).take(c))
            if by_energy:
                examples.free_energies.append(found["free_energy"])
                examples.num_frames.append(int(found["num_frames"]))
    for source in folder.sources:
        if not any(key[0] == source for key in pairs):
            why = next((text for name, text in outcome.failed.items() if name.endswith(f"/{source}")), "no reference")
            raise ValueError(f"nothing to learn from for {source}: {why}")
    return pairs, outcome


@dataclass(frozen=True)
class _Task:
    """All that another process needs to compute the scalar products of one source of one mixture."""

    item: Item
    source: str
    separators: tuple[str, ...]
    reading: Reading
    by_energy: bool
    time_varying: bool
    per_channel: bool
    records: Records


def _pair(task: _Task) -> Arrays | str:
    """Scalar products and free energies, or what went wrong."""
    item = task.item
    try:
        files = [item.mixture, item.references[task.source]]
        files += [item.estimate(separator, task.source) for separator in task.separators]
        if task.by_energy:
            files += [item.free_energies[s] for s in task.separators if s in item.free_energies]
        return task.records.get(f"{task.source}/{item.name}", files, lambda: _products(task))
    except ITEM_ERRORS as error:
        return str(error) or type(error).__name__


def _products(task: _Task) -> Arrays:
    example = open_example(task.item, task.source, task.separators, task.reading)
    arrays: Arrays = {}
    transform = None
    if task.by_energy:
        arrays["free_energy"], transform = energies(example, task.time_varying)
        arrays["num_frames"] = np.array(example.num_frames())
    grams = channel_grams(example, task.per_channel, transform)
    for name in ("energy", "cross", "gram"):
        arrays[name] = np.stack([getattr(g, name) for g in grams])
    return arrays


def padded_gram(g: fusion.Gram, frames: int) -> fusion.Gram:
    """Frames of zeros at the end."""
    more = frames - g.energy.shape[0]
    parts = (g.energy, g.cross, g.gram)
    return fusion.Gram(*(np.pad(part, [(0, more), *[(0, 0)] * (part.ndim - 1)]) for part in parts))

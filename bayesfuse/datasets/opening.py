"""Data sets by the names that configuration files and the command line use: `KINDS`, `open_dataset`, `guess_kind`."""

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from bayesfuse._kinds import KINDS as KINDS
from bayesfuse.datasets.base import Dataset
from bayesfuse.datasets.mixture import PathLike


def open_dataset(kind: str, path: PathLike | None = None, **options: Any) -> Dataset:
    """The data set of a kind.

    Parameters
    ----------
    kind
        One of `KINDS`.
    path
        Where it is, as `KINDS` says. Only ``"synthetic"`` does without: its dictionaries are then drawn from the prior.
    options
        Keyword arguments of the class (of `Synthetic`, or with a path of `synthetic.learned`).

    Raises
    ------
    ValueError
        For an unknown kind or option; the message lists those there are. Else as the class.
    FileNotFoundError
        As the class: it names what is missing and where to get it.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of data {kind!r}; there are {', '.join(KINDS)}.")
    if path is None and kind != "synthetic":
        raise ValueError(f"data of kind {kind!r} need a path: {KINDS[kind][2]}.")
    known = _options(kind, path)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"data of kind {kind!r} have no option {', '.join(unknown)}; there are {', '.join(known)}.")
    make = _function(kind)
    return make(**options) if path is None else make(path, **options)


def guess_kind(path: PathLike) -> str:
    """The kind of the data at a path, from the names of files and folders.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    ValueError
        If it is a file that is no manifest.
    """
    top = Path(path)
    if top.is_file():
        if top.suffix.lower() in (".csv", ".json"):
            return "manifest"
        raise ValueError(f"{top} is neither a folder nor a manifest called .csv or .json.")
    if not top.is_dir():
        raise FileNotFoundError(f"no file or folder {top}; looked from {Path.cwd()}.")
    described = _described(top / "manifest.json")
    if described is not None:
        return described
    for kind, patterns in _SIGNS.items():
        if any(next(top.glob(pattern), None) is not None for pattern in patterns):
            return kind
    return "recordings"


# Any of these, in this order, gives a layout away; sets may lie one or more folders down, as archives have them.
_SIGNS = {
    "chime2": (
        "*/isolated",
        "*/reverberated",
        "chime2-grid",
        "aasp-chime-grid",
        "data/chime2-grid",
        "*/data/chime2-grid",
    ),
    "librimix": ("wav*k/*/train-*", "wav*k/*/dev", "wav*k/*/test", "Libri[0-9]Mix"),
    "wham": ("wav*k/*/tr", "wav*k/*/cv", "wav*k/*/tt", "*speakers/wav*k"),
    "dsd100": ("Mixtures/Dev", "Mixtures/Test", "DSD100*/Mixtures"),
    "musdb18": ("train/*/vocals.*", "test/*/vocals.*", "train/*.stem.mp4", "test/*.stem.mp4", "musdb18*/train"),
    "ccmixter": ("*/source-01.*", "ccmixter_corpus"),
    "folder": ("mixtures",),
}


def open_synthetic(path: PathLike | None = None, **options: Any) -> Dataset:
    """`Synthetic`: drawn from the prior or, with the path of a set with clean speech, from what is learned there."""
    from bayesfuse.datasets.synthetic import Synthetic, learned

    if path is None:
        return Synthetic(**options)
    return learned(open_dataset(guess_kind(path), path), **options)


def _function(kind: str) -> Any:
    module, name, _ = KINDS[kind]
    return getattr(importlib.import_module(f"bayesfuse.datasets.{module}"), name)


def _options(kind: str, path: PathLike | None) -> list[str]:
    if kind != "synthetic":
        return _keywords(_function(kind))
    from bayesfuse.datasets.synthetic import Synthetic, learned

    drawn = _keywords(Synthetic)
    if path is None:
        return drawn
    # What the recordings determine is not for the user to give.
    return _keywords(learned) + [
        name for name in drawn if name not in ("speech", "background", "rate", "transform", "seed", "training")
    ]


def _keywords(function: Any) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.name not in ("path", "data") and p.kind is not p.VAR_KEYWORD]


def _described(manifest: Path) -> str | None:
    """The set that a manifest says it is of; None for another or no manifest."""
    if not manifest.is_file():
        return None
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return None
    name = content.get("name") if isinstance(content, dict) else None
    return name if name in ("mini-chime", "mini-mus", "mini-binaural") else None

"""Is a data set whole? Counts, durations, rates, levels, silent and clipped signals, and what cannot be read."""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bayesfuse._jobs import ITEM_ERRORS, over_items
from bayesfuse.alignment import clipped_samples
from bayesfuse.datasets.base import Dataset
from bayesfuse.datasets.mixture import Mixture, Waveform

# Mixtures that their sources do not explain better than this, in dB, are worth a look; 16-bit rounding is below -60.
_RESIDUAL_DB = -40.0
# Levels further than this from what the set says of a mixture, in dB, are, too.
_SNR_DB = 3.0
_SHOWN = 5


class Signal(NamedTuple):
    """What was measured of one signal of a mixture, or of a recording.

    Attributes
    ----------
    item, split, group
        Of the mixture; for other recordings the split is what they are.
    source
        ``"mixture"``, the name of a source, or ``""`` for other recordings.
    seconds, rate, channels
        Length, sampling rate in Hz, number of channels.
    rms_db, peak_db
        Levels in dB relative to full scale, over the scored stretch; -inf for silence.
    clipped
        Samples at a flat top.
    """

    item: str
    split: str
    group: str
    source: str
    seconds: float
    rate: int
    channels: int
    rms_db: float
    peak_db: float
    clipped: int


class _Outcome(NamedTuple):
    signals: list[Signal]
    notes: list[tuple[str, str]]  # kind of problem, and where
    broken: str


@dataclass(frozen=True)
class CheckReport:
    """What `check_dataset` found.

    Attributes
    ----------
    title
        What was checked.
    signals
        Measurements of everything that could be read.
    notes
        Names by what is odd about them: silent, clipped, and so on.
    broken
        Reasons by the names of what cannot be read or does not agree with what the set says.
    """

    title: str
    signals: list[Signal]
    notes: dict[str, list[str]]
    broken: dict[str, str]

    @property
    def table(self) -> Any:
        """The measurements as a pandas table, one row per signal."""
        import pandas as pd

        return pd.DataFrame(self.signals, columns=list(Signal._fields))

    def summary(self) -> str:
        """A table of the splits and their signals, and what is odd or broken, as plain text."""
        lines = [self.title, ""]
        parts: dict[tuple[str, str], list[Signal]] = {}
        for signal in self.signals:
            parts.setdefault((signal.split, signal.source), []).append(signal)
        header = ("split", "signal", "count", "groups", "minutes", "seconds each", "Hz", "channels", "RMS dBFS", "peak")
        rows = [header, *(_row(split, source, found) for (split, source), found in parts.items())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        if self.notes:
            lines.append("")
        for kind, names in sorted(self.notes.items()):
            lines.append(f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}")
        if not self.notes and not self.broken:
            lines += ["", "nothing silent, clipped or broken"]
        return "\n".join(lines)


def check_dataset(
    data: Dataset,
    splits: Sequence[str] | None = None,
    *,
    quick: bool | None = None,
    limit: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> CheckReport:
    """Everything in a data set, read once and measured; what fails is reported, not raised.

    Parameters
    ----------
    data
        The set.
    splits
        Only these; None for all.
    quick, limit
        Only the quick subset of each split; only so many mixtures of each. With a limit, and with splits, other
        recordings of the set are left out.
    executor
        Reads several at a time; threads do.
    progress
        Whether to draw a progress bar.

    Raises
    ------
    ValueError
        For an unknown split or a quick subset that is not marked.
    """
    tasks: list[tuple[str, str, Any, int]] = []
    for split in data.splits if splits is None else splits:
        chosen = data.mixtures(split, quick)
        tasks += [(name, split, chosen, i) for i, name in enumerate(chosen.names)][:limit]
    if splits is None and limit is None and quick is None:
        for what, recordings in data.recordings.items():
            tasks += [(name, what, recordings, i) for i, name in enumerate(recordings.names)]
    signals, broken = [], {}
    notes: dict[str, list[str]] = {}
    outcomes = over_items(partial(_inspect, data.rate), tasks, executor, "checking", progress)
    for (name, *_), outcome in zip(tasks, outcomes, strict=True):
        signals += outcome.signals
        if outcome.broken:
            broken[name] = outcome.broken
        for kind, where in outcome.notes:
            notes.setdefault(kind, []).append(where)
    return CheckReport(repr(data).strip("<>"), signals, notes, broken)


def _inspect(rate: int, task: tuple[str, str, Any, int]) -> _Outcome:
    name, split, items, index = task
    try:
        item = items[index]
    except ITEM_ERRORS as error:
        return _Outcome([], [], f"{type(error).__name__}: {error}")
    if not isinstance(item, Mixture):
        signal = _measure(name, split, "", "", item, rate)
        return _Outcome([signal], _oddities(signal), "")
    named = {"mixture": item.mixture, **item.sources}
    signals = [_measure(name, split, item.group, s, item.scored(x), item.rate, x.shape[-1]) for s, x in named.items()]
    notes = [note for signal in signals for note in _oddities(signal)]
    if item.residual_db > _RESIDUAL_DB:
        notes.append((f"not the sum of their sources to {_RESIDUAL_DB:g} dB", f"{name} ({item.residual_db:.1f} dB)"))
    said, found = item.metadata.get("snr_db"), item.metadata.get("snr_measured_db")
    if said is not None and found is not None and not abs(said - found) <= _SNR_DB:
        notes.append((f"more than {_SNR_DB:g} dB from the SNR they are said to have", f"{name} ({found:.1f} dB)"))
    return _Outcome(signals, notes, "")


def _measure(
    item: str, split: str, group: str, source: str, signal: Waveform, rate: int, samples: int | None = None
) -> Signal:
    power, peak = float(np.mean(signal.astype(np.float64) ** 2)), float(np.abs(signal).max())
    rms_db, peak_db = (10 * math.log10(level) if level else -math.inf for level in (power, peak**2))
    seconds = (signal.shape[-1] if samples is None else samples) / rate
    clipped = int(clipped_samples(signal))
    return Signal(item, split, group, source, seconds, rate, signal.shape[0], rms_db, peak_db, clipped)


def _oddities(signal: Signal) -> list[tuple[str, str]]:
    where = f"{signal.item} {signal.source}".strip()
    if signal.peak_db == -math.inf:
        return [("silent", where)]
    return [("clipped", f"{where} ({signal.clipped} samples)")] if signal.clipped else []


def _row(split: str, source: str, found: list[Signal]) -> tuple[str, ...]:
    seconds = [signal.seconds for signal in found]
    levels = [signal.rms_db for signal in found if signal.rms_db > -math.inf]
    groups = {signal.group for signal in found if signal.group}
    return (
        split,
        source or "recording",
        str(len(found)),
        str(len(groups)) if groups else "",
        f"{sum(seconds) / 60:.1f}",
        _spread(seconds, ".1f"),
        _counts([signal.rate for signal in found]),
        _counts([signal.channels for signal in found]),
        _spread(levels, ".0f"),
        f"{max(signal.peak_db for signal in found):.1f}",
    )


def _spread(values: Sequence[float], form: str) -> str:
    """Median, and the smallest and largest where they differ in print."""
    if not values:
        return "-"
    low, middle, high = (format(float(value), form) for value in (min(values), np.median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def _counts(values: Sequence[int]) -> str:
    found = Counter(values)
    return ", ".join(str(value) for value, _ in found.most_common())

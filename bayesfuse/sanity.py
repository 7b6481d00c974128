"""Are the outputs of the separators in a folder fit to be fused? A report per separator, and what repairs them."""

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bayesfuse import alignment, audio
from bayesfuse._jobs import Arrays, Records, over_items
from bayesfuse.separators.folder import Folder, Item
from bayesfuse.tracks import differences, open_track

# Lags below this many samples are none.
_LAG = 0.05
# Gains within this many dB of one are one.
_GAIN_DB = 0.2
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """What was found about one separator on one mixture.

    Attributes
    ----------
    sources
        Of the estimates that could be measured.
    placement
        Where they lie; None if there are none.
    differences
        In what files differ from the mixture, by source.
    missing
        Sources that the separator estimates elsewhere.
    unreadable
        Messages of files that cannot be read, by source.
    """

    sources: tuple[str, ...] = ()
    placement: alignment.Placement | None = None
    differences: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SanityReport:
    """Findings by separator and mixture, and the corrections that follow from them.

    Attributes
    ----------
    findings
        By (separator, name of the mixture).
    corrections
        Lag in samples and gain by (separator, name, source), where they are not 0 and 1. A lag or gain that most
        mixtures agree upon is the median of theirs.
    """

    findings: dict[tuple[str, str], Finding]
    corrections: dict[tuple[str, str, str], tuple[float, float]]

    @property
    def separators(self) -> tuple[str, ...]:
        """All separators, in order."""
        return tuple(dict.fromkeys(separator for separator, _ in self.findings))

    def notes(self, separator: str) -> list[str]:
        """What is wrong with a separator, one text each; none if nothing is."""
        mine = {name: finding for (of, name), finding in self.findings.items() if of == separator}
        if not any(f.sources or f.missing or f.unreadable for f in mine.values()):
            return [f"no estimate of any mixture; expected {separator}/NAME/SOURCE.wav: left out"]
        notes = _counted("missing", [f"{name}/{s}" for name, f in mine.items() for s in f.missing])
        notes += _counted("unreadable", [f"{name}/{s}" for name, f in mine.items() for s, _ in f.unreadable])
        kinds: dict[str, list[str]] = {}
        for name, finding in mine.items():
            for source, text in finding.differences:
                kinds.setdefault(text if " samples " not in text else "another length", []).append(f"{name}/{source}")
        for kind, files in kinds.items():
            notes += _counted(kind, files)
        measured = {name: (f.sources, f.placement) for name, f in mine.items() if f.placement is not None}
        clipped = [f"{n}/{s}" for n, (of, p) in measured.items() for s, c in zip(of, p.clipped, strict=True) if c]
        notes += _counted("clipped at full scale", clipped)
        notes += self._placed(separator, list(mine))
        notes += _sums({name: (len(sources), p) for name, (sources, p) in measured.items()})
        return notes

    def _placed(self, separator: str, names: Sequence[str]) -> list[str]:
        """Lags, gains and polarities by source."""
        lags: dict[tuple[str, str], list[str]] = {}
        gains: dict[tuple[str, str], list[str]] = {}
        for (of, name, source), (lag, gain) in self.corrections.items():
            if of == separator:
                if lag:
                    side = "late" if lag > 0 else "early"
                    lags.setdefault((source, f"{abs(lag):.2f} samples {side}"), []).append(name)
                if gain < 0:
                    gains.setdefault((source, "inverted"), []).append(name)
                if _decibels(gain):
                    text = f"{-_decibels(gain):+.1f} dB too {'quiet' if abs(gain) > 1 else 'loud'}"
                    gains.setdefault((source, text), []).append(name)
        notes = []
        for (source, text), where in sorted({**lags, **gains}.items()):
            notes.append(f"{source}: {text} in {'all' if len(where) == len(names) else _some(where)}")
        return notes

    def table(self) -> str:
        """The report as plain text, a paragraph per separator."""
        lines = []
        for separator in self.separators:
            count = sum(1 for of, _ in self.findings if of == separator)
            notes = self.notes(separator)
            lines.append(f"{separator}: {count} mixture{'s' if count != 1 else ''}, {'' if notes else 'nothing wrong'}")
            lines[-1] = lines[-1].removesuffix(", ")
            lines += [f"  - {note}" for note in notes]
        return "\n".join(lines)


def check(
    folder: Folder,
    *,
    max_lag_seconds: float = 0.5,
    keep: Path | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> SanityReport:
    """What is wrong with every separator's estimates of every mixture.

    Parameters
    ----------
    folder
        Mixtures and estimates. A mixture that cannot be read has no findings: the job over it will say so.
    max_lag_seconds
        Largest lag looked for.
    keep
        Folder to keep measurements in, for a job that is interrupted.
    executor
        Runs the measurements, for instance a pool of processes; here, one after the other, if None.
    progress
        Whether to show a bar.
    """
    records = Records(keep, {"job": "check", "max_lag_seconds": max_lag_seconds})
    tasks = [
        (item, s, folder.sources_of(s), max_lag_seconds, records) for item in folder.items for s in folder.separators
    ]
    results = zip(tasks, over_items(_finding, tasks, executor, "checking", progress), strict=True)
    found = {(s, item.name): finding for (item, s, *_), finding in results if finding is not None}
    findings = {key: found[key] for key in sorted(found)}
    return SanityReport(findings, _corrections(findings))


def _finding(task: tuple[Item, str, tuple[str, ...], float, Records]) -> Finding | None:
    """What is to say about one separator on one mixture; None if the mixture cannot be read."""
    item, separator, sources, max_lag_seconds, records = task
    try:
        mixture = audio.info(item.mixture)
    except (OSError, ValueError):
        return None
    files = item.estimates.get(separator, {})
    missing = tuple(source for source in sources if source not in files or not files[source].exists())
    other: list[tuple[str, str]] = []
    broken: list[tuple[str, str]] = []
    readable: list[str] = []
    for source in sources:
        if source not in missing:
            try:
                own = audio.info(files[source])
            except (OSError, ValueError) as error:
                broken.append((source, str(error)))
                continue
            other += [(source, text) for text in differences(own, mixture)]
            readable.append(source)
    placement = None
    if readable:
        max_lag = max(1, min(round(max_lag_seconds * mixture.rate), mixture.samples // 2))
        inputs = [item.mixture, *(files[source] for source in readable)]
        try:
            kept = records.get(f"{separator}/{item.name}", inputs, lambda: _measure(inputs, mixture, max_lag))
            placement = alignment.Placement(kept["lag"], kept["gain"], float(kept["residual"]), kept["clipped"])
        except (OSError, ValueError) as error:
            at = [s for s in readable if str(files[s]) in str(error)]
            if not at and str(item.mixture) in str(error):
                return None
            if not at and isinstance(error, OSError):
                raise  # measurements cannot be kept: no file of a separator is to blame
            broken.append((at[0] if at else readable[0], str(error)))
            readable = []
    return Finding(tuple(readable), placement, tuple(other), missing, tuple(broken))


def _measure(inputs: Sequence[Path], mixture: audio.AudioInfo, max_lag: int) -> Arrays:
    whole, *estimates = inputs
    reader = open_track(whole, mixture, adapt=False)

    def read(start: int, stop: int, lags: Sequence[float]) -> np.ndarray:
        tracks = [open_track(path, mixture, adapt=True, lag=lag) for path, lag in zip(estimates, lags, strict=True)]
        return np.stack([track.read(start, stop) for track in tracks])

    placed = alignment.place_blocks(reader.read, read, (len(estimates), mixture.samples), max_lag=max_lag)
    return {key: np.asarray(value, np.float64) for key, value in placed._asdict().items()}


def _corrections(findings: dict[tuple[str, str], Finding]) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Lag and gain by separator, name and source, where they matter."""
    columns: dict[tuple[str, str], list[tuple[str, float, float, bool]]] = {}
    for (separator, name), finding in findings.items():
        if finding.placement is not None:
            placed = finding.placement
            for source, lag, gain in zip(finding.sources, placed.lag, placed.gain, strict=True):
                columns.setdefault((separator, source), []).append((name, lag, gain, placed.complete))
    corrections = {}
    for (separator, source), rows in columns.items():
        names, lags, gains, complete = (np.array(column) for column in zip(*rows, strict=True))
        lags = np.nan_to_num(alignment.pooled(lags, 0.5))
        # A magnitude is known where the estimates sum to the mixture; a sign that few see is an accident.
        known = np.where(complete.astype(bool), gains, np.nan)
        majority = np.sign(np.median(gains)) or 1.0
        gains = alignment.pooled(known, 0.05 * float(np.nanmedian(np.abs(known))) if complete.any() else 0.0)
        gains = np.where(np.isnan(gains), majority, gains)
        for name, lag, gain in zip(names, lags, gains, strict=True):
            lag = float(lag) if abs(lag) >= _LAG else 0.0
            gain = float(gain) if _decibels(gain) else math.copysign(1.0, gain)
            if (lag, gain) != (0.0, 1.0):
                corrections[separator, str(name), source] = (lag, gain)
    return corrections


def _decibels(gain: float) -> float:
    """Magnitude of a gain in dB, 0 if it hardly differs from one."""
    level = 20.0 * math.log10(abs(gain)) if gain else -math.inf
    return level if abs(level) >= _GAIN_DB else 0.0


def _sums(placements: dict[str, tuple[int, alignment.Placement]]) -> list[str]:
    """What several corrected estimates leave of the mixture, if that is much."""
    left = {n: p.residual for n, (count, p) in placements.items() if count > 1 and p.residual >= alignment.COMPLETE}
    if not left:
        return []
    level = 10.0 * math.log10(float(np.median(list(left.values()))))
    return [f"estimates do not sum to the mixture in {_some(list(left))}: {level:.1f} dB of it are left over"]


def _counted(what: str, files: Sequence[str]) -> list[str]:
    return [f"{what}: {_some(files)}"] if files else []


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} ({shown})"

"""Sets whose mixtures and true sources are audio files, whatever the layout: `FileSet`, and what its kinds share."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bayesfuse import audio
from bayesfuse._audio_files import AUDIO_EXTENSIONS
from bayesfuse.datasets.base import Dataset, Entry
from bayesfuse.datasets.mixture import Mixture, PathLike, Waveform

_SHOWN = 5  # missing files that a message names
_TRIED = 5  # files that are opened to find out the rate, in case the first are damaged


class Files(NamedTuple):
    """The files of one mixture. Positions count samples of the files, at the rate of the files.

    Attributes
    ----------
    mixture
        Its file; None for the sum of the sources.
    sources
        Files of the true sources by name; without them the mixture is all there is.
    start, stop
        The stretch of all files that is used; None is the end.
    segment, context
        As `Mixture` has them, counted from `start`; without a segment all is scored.
    """

    mixture: Path | None
    sources: Mapping[str, Path]
    start: int = 0
    stop: int | None = None
    segment: tuple[int, int] | None = None
    context: tuple[int, int] | None = None

    @property
    def paths(self) -> list[Path]:
        """All of them, the mixture first."""
        return ([] if self.mixture is None else [self.mixture]) + list(self.sources.values())


class FileSet(Dataset):
    """A set of mixtures in audio files; see its subclasses.

    Parameters
    ----------
    items
        An entry and the files of each mixture.
    source
        What the set is and where to get it, for messages about missing files.
    rate
        Sampling rate in Hz to resample to; None keeps that of the files, which must then be one.
    mono
        Average the channels into one.
    dtype
        float32 or float64, of all audio.

    Raises
    ------
    FileNotFoundError
        If files are missing; it names the first and says where to get them.
    ValueError
        If there are no mixtures, two of one name, or no file can be opened.
    """

    def __init__(
        self,
        items: Iterable[tuple[Entry, Files]],
        source: str,
        *,
        rate: int | None = None,
        mono: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        pairs = list(items)
        self.files = tuple(files for _, files in pairs)
        check_present((path for files in self.files for path in files.paths), source)
        self.mono = mono
        self.dtype = np.dtype(dtype)
        self._resample = None if rate is None else audio.check_rate(rate)
        native = _first_rate(self.files) if rate is None and pairs else rate
        super().__init__((entry for entry, _ in pairs), native or 1)

    def paths(self, index: int) -> list[Path]:
        """The files of the mixture, if it has one, and of its sources."""
        return self.files[index].paths

    def _form(self, index: int) -> Mixture:
        files, name = self.files[index], self.entries[index].name
        sources = {source: self._read(path, files) for source, path in files.sources.items()}
        if files.mixture is None:
            shapes = {source: signal.shape for source, signal in sources.items()}
            if len(set(shapes.values())) != 1:
                raise ValueError(f"{name}: the sources have shapes {shapes} and cannot be summed; make them one shape.")
            mixture = np.sum(list(sources.values()), axis=0, dtype=np.float64).astype(self.dtype)
        else:
            mixture = self._read(files.mixture, files)
            for source, signal in sources.items():
                if signal.shape != mixture.shape:
                    raise ValueError(
                        f"{files.sources[source]} has {_shape(signal)}, but its mixture {files.mixture} has "
                        f"{_shape(mixture)}; true sources must fit their mixture sample by sample."
                    )
        scale = 1.0 if self._resample is None else self._resample / audio.info(files.paths[0]).rate
        ranges = {}
        for what, part in (("segment", files.segment), ("context", files.context)):
            ranges[what] = None if part is None else (round(part[0] * scale), round(part[1] * scale))
            if part is not None and ranges[what][1] > mixture.shape[-1]:
                raise ValueError(
                    f"{name}: its {what} ends at sample {part[1]}, beyond the mixture, which has "
                    f"{round(mixture.shape[-1] / scale)}; correct the one or the other."
                )
        return Mixture(
            name=name,
            mixture=mixture,
            sources=sources,
            rate=self.rate,
            segment=ranges["segment"] or (0, mixture.shape[-1]),
            context=ranges["context"],
        )

    def _read(self, path: Path, files: Files) -> Waveform:
        signal, rate = audio.read(
            path, rate=self._resample, mono=self.mono, start=files.start, stop=files.stop, dtype=self.dtype
        )
        if rate != self.rate:
            raise ValueError(f"{path} has {rate} Hz, but the set {self.rate} Hz; set `rate` to resample others.")
        return signal


def check_present(paths: Iterable[Path], source: str) -> None:
    """Raises a FileNotFoundError that names missing files and says where to get them, if any are missing.

    Folders are listed once each, which is much faster than asking for every file.
    """
    listed: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        if path.parent not in listed:
            listed[path.parent] = {entry.name for entry in path.parent.iterdir()} if path.parent.is_dir() else set()
        if path.name not in listed[path.parent]:
            missing.append(path)
    if missing:
        named = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        count = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
        raise FileNotFoundError(f"{count} missing: {named}. {source}")


def find_root(path: PathLike, inside: Sequence[str], markers: Sequence[str], source: str) -> Path:
    """The folder that holds one of the markers: `path` itself, or a folder in it that an archive makes when unpacked.

    Parameters
    ----------
    path
        What the user named.
    inside
        Names of such folders, relative to `path`, in the order of trial.
    markers
        Names in the folder looked for, any of which will do.
    source
        What the set is and where to get it.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    top = Path(path)
    if not top.is_dir():
        raise FileNotFoundError(f"no folder {top}; looked from {Path.cwd()}. {source}")
    for root in (top, *(top / name for name in inside)):
        if any((root / marker).is_dir() for marker in markers):
            return root
    raise FileNotFoundError(f"{top} holds none of the folders {', '.join(markers)}. {source}")


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in a folder, sorted by name, hidden ones left out; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def audio_file(folder: Path, stem: str) -> Path:
    """The audio file of a name without extension; the WAV file, which need not exist, if there is no other."""
    candidates = (folder / f"{stem}{extension}" for extension in AUDIO_EXTENSIONS)
    return next((path for path in candidates if path.is_file()), folder / f"{stem}.wav")


def _first_rate(files: Sequence[Files]) -> int:
    failures: list[Exception] = []
    for item in files[:_TRIED]:
        try:
            return audio.info(item.paths[0]).rate
        except (ValueError, OSError) as error:
            failures.append(error)
    raise failures[0]


def _shape(signal: Waveform) -> str:
    return f"{signal.shape[0]} channel{'s' if signal.shape[0] > 1 else ''} of {signal.shape[1]} samples"

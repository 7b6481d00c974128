"""Music in tracks with stems: `MUSDB18` (as WAV, such as MUSDB18-HQ), `DSD100`, `CcMixter`."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bayesfuse import audio
from bayesfuse.datasets.base import Entry
from bayesfuse.datasets.files import Files, FileSet, audio_file, find_root, folders_in
from bayesfuse.datasets.mixture import PathLike

# The tracks of the training set that the authors of MUSDB18 and its users set aside for validation.
MUSDB18_VALIDATION = (
    "ANiMAL - Rockshow",
    "Actions - One Minute Smile",
    "Alexander Ross - Goodbye Bolero",
    "Clara Berry And Wooldog - Waltz For My Victims",
    "Fergessen - Nos Palpitants",
    "James May - On The Line",
    "Johnny Lokke - Promises & Lies",
    "Leaf - Summerghost",
    "Meaxic - Take A Step",
    "Patrick Talbot - A Reason To Leave",
    "Skelpolu - Human Mistakes",
    "Traffic Experiment - Sirens",
    "Triviul - Angelsaint",
    "Young Griffo - Pennies",
)
_STEMS = ("vocals", "drums", "bass", "other")
_MUSDB18 = (
    "MUSDB18-HQ has the folders train (100 tracks) and test (50), in them one folder per track with mixture.wav, "
    "vocals.wav, drums.wav, bass.wav and other.wav; get it from https://sigsep.github.io/datasets/musdb.html "
    "(https://zenodo.org/records/3338373, on request)."
)
_DSD100 = (
    "DSD100 has the folders Mixtures/Dev, Mixtures/Test (one folder per track with mixture.wav) and Sources/Dev, "
    "Sources/Test (with vocals.wav, drums.wav, bass.wav and other.wav); get it from "
    "https://sigsep.github.io/datasets/dsd100.html."
)
_CCMIXTER = (
    "The ccMixter corpus has one folder per track with mix.wav, source-01.wav (accompaniment) and source-02.wav "
    "(vocals); get it from https://members.loria.fr/ALiutkus/kam/."
)


class _Track(NamedTuple):
    name: str
    split: str
    files: Files


class _Music(FileSet):
    """Tracks, whole or in chunks; see `MUSDB18`."""

    def __init__(
        self,
        tracks: list[_Track],
        source: str,
        *,
        chunk: float | int | None,
        remix: bool,
        rate: Any,
        mono: bool,
        dtype: Any,
    ) -> None:
        if chunk is not None and not 0 < chunk < math.inf:
            raise ValueError(f"chunk={chunk!r}: expected the longest duration of a chunk in seconds, or None.")
        if remix:
            tracks = [track._replace(files=track.files._replace(mixture=None)) for track in tracks]
        super().__init__(
            (pair for track in tracks for pair in _chunks(track, chunk)), source, rate=rate, mono=mono, dtype=dtype
        )


class MUSDB18(_Music):
    """The set MUSDB18 as WAV files, such as MUSDB18-HQ: 150 tracks, 44.1 kHz stereo.

    Sources are `vocals`, `drums`, `bass` and `other`; `Mixture.versus_rest("vocals", "accompaniment")` gives the two of
    singing voice extraction. Splits are train, val (the 14 tracks of `MUSDB18_VALIDATION`) and test; the group is the
    track. Mixtures are those of the files, which a few tracks' stems do not quite sum to (`Mixture.residual_db`).
    Metadata: track; with chunks also chunk, start_s.

    Parameters
    ----------
    path
        The folder that holds train and test.
    chunk
        Tracks are cut into as few pieces of equal length as are not longer than this, in seconds; None keeps them
        whole. With 30, tracks of more than a minute yield 20 to 30 s, as in [JVR16] VII.A.
    remix
        Whether to take the sum of the stems for the mixture.
    rate, mono, dtype
        As `FileSet` has them.

    Raises
    ------
    FileNotFoundError
        If the folder or files are missing, or holds stems in MP4 containers, which must be decoded first.
    ValueError
        As `FileSet`, and for a chunk that is not positive.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        chunk: float | int | None = None,
        remix: bool = False,
        rate: int | None = None,
        mono: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        self.path = find_root(path, ("musdb18hq", "musdb18"), ("train", "test"), _MUSDB18)
        tracks = []
        for subset in ("train", "test"):
            if any((self.path / subset).glob("*.stem.mp4")):
                raise FileNotFoundError(
                    f"{self.path / subset} holds .stem.mp4 files, which cannot be read: decode them to WAV "
                    f"(musdbconvert of the Python package musdb does), or get the WAV edition. {_MUSDB18}"
                )
            for folder in folders_in(self.path / subset):
                split = "val" if subset == "train" and folder.name in MUSDB18_VALIDATION else subset
                stems = {stem: audio_file(folder, stem) for stem in _STEMS}
                tracks.append(_Track(folder.name, split, Files(audio_file(folder, "mixture"), stems)))
        order = ("train", "val", "test")
        tracks.sort(key=lambda track: order.index(track.split))
        super().__init__(tracks, _MUSDB18, chunk=chunk, remix=remix, rate=rate, mono=mono, dtype=dtype)


class DSD100(_Music):
    """The set DSD100: 100 tracks, 44.1 kHz stereo, of the splits train (Dev) and test.

    Sources, groups, metadata, parameters and errors are those of `MUSDB18`; `path` holds Mixtures and Sources.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        chunk: float | int | None = None,
        remix: bool = False,
        rate: int | None = None,
        mono: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        self.path = find_root(path, ("DSD100", "DSD100subset"), ("Mixtures",), _DSD100)
        tracks = []
        for split, subset in (("train", "Dev"), ("test", "Test")):
            for folder in folders_in(self.path / "Mixtures" / subset):
                stems = {stem: audio_file(self.path / "Sources" / subset / folder.name, stem) for stem in _STEMS}
                tracks.append(_Track(folder.name, split, Files(audio_file(folder, "mixture"), stems)))
        super().__init__(tracks, _DSD100, chunk=chunk, remix=remix, rate=rate, mono=mono, dtype=dtype)


class CcMixter(_Music):
    """The ccMixter corpus of vocals and accompaniment, 44.1 kHz stereo, of which [JVR16] VII.A used 49 tracks.

    Sources are `vocals` and `accompaniment`. There is one split, all: use `folds` with ``k=5, validation=True`` and
    ``chunk=30`` for the plan of [JVR16] VII.A. Groups, metadata, parameters and errors are those of `MUSDB18`; `path`
    holds one folder per track.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        chunk: float | int | None = None,
        remix: bool = False,
        rate: int | None = None,
        mono: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        top = Path(path)
        if not top.is_dir():
            raise FileNotFoundError(f"no folder {top}; looked from {Path.cwd()}. {_CCMIXTER}")
        inside = top / "ccmixter_corpus"
        self.path = inside if inside.is_dir() else top
        sources = {"vocals": "source-02", "accompaniment": "source-01"}
        tracks = [
            _Track(
                folder.name,
                "all",
                Files(audio_file(folder, "mix"), {name: audio_file(folder, stem) for name, stem in sources.items()}),
            )
            for folder in folders_in(self.path)
        ]
        if not tracks:
            raise FileNotFoundError(f"{self.path} holds no folders. {_CCMIXTER}")
        super().__init__(tracks, _CCMIXTER, chunk=chunk, remix=remix, rate=rate, mono=mono, dtype=dtype)


def _chunks(track: _Track, longest: float | None) -> Iterator[tuple[Entry, Files]]:
    """The entries of a track: one, or one for each chunk."""
    about = {"track": track.name}
    files = track.files
    header = None if longest is None else _header(files.paths)
    if longest is None or header is None:
        yield Entry(track.name, track.split, track.name, about), files
        return
    count = math.ceil(header.samples / (longest * header.rate))
    edges = [header.samples * i // count for i in range(count + 1)]
    for number, (start, stop) in enumerate(itertools.pairwise(edges), 1):
        more = about | {"chunk": number, "start_s": start / header.rate}
        name = f"{track.name}_{number:0{len(str(count))}}"
        yield Entry(name, track.split, track.name, more), files._replace(start=start, stop=stop)


def _header(paths: list[Path]) -> audio.AudioInfo | None:
    """The header of the first file; None for a damaged one, which is found again when its mixture is read."""
    try:
        header = audio.info(paths[0])
    except (ValueError, OSError):
        return None
    return header if header.samples else None

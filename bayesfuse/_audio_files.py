"""Which audio files a path, a folder or a pattern stands for, and whether one is whole."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

AUDIO_EXTENSIONS = (".flac", ".oga", ".ogg", ".wav")

# Sizes from here on stand for "unknown": they are 2^32 - 1 less some header, or 2^31 - 1 less some header.
_UNKNOWN_SIZE = 0x7FFFF000

PathLike = str | os.PathLike[str]


def collect(paths: PathLike | Iterable[PathLike]) -> list[Path]:
    """Sorted list of the audio files that a file, folder, glob pattern or several of them stand for.

    Folders are searched recursively for WAV, FLAC and OGG files, hidden ones left out; a pattern may contain
    ``**``. A file named outright is taken whatever its extension. Each file is listed once.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    ValueError
        If a folder or pattern holds no audio file, or there are no paths.
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not several:
        raise ValueError("an empty list of audio files was given; name at least one file, folder or pattern.")
    found: dict[str, Path] = {}
    for path in several:
        for file in _expand(Path(path)):
            found.setdefault(os.path.abspath(file), file)
    return sorted(found.values())


def _expand(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        matches = _audio_below(path)
    elif glob.has_magic(str(path)):
        matches = []
        for match in map(Path, glob.glob(str(path), recursive=True)):
            if match.is_dir():
                matches += _audio_below(match)
            elif match.suffix.lower() in AUDIO_EXTENSIONS:
                matches.append(match)
    else:
        raise FileNotFoundError(f"no file or folder {path}; looked from {Path.cwd()}.")
    if not matches:
        raise ValueError(f"no audio files ({', '.join(AUDIO_EXTENSIONS)}) in {path}.")
    return matches


def _audio_below(folder: Path) -> list[Path]:
    return [
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in AUDIO_EXTENSIONS
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    ]


def check_whole(file: BinaryIO, name: str) -> None:
    """Raises a ValueError for an empty file, and for a WAV file that ends before the samples that its header announces.

    libsndfile takes the samples that are there, as if nothing were missing. Programs that write to a pipe, and cannot
    go back to the header, leave the largest possible size there, or none: these files are what they are.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise ValueError(f"{name} holds no samples: the file is empty.")
    file.seek(0)
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RIFX") or head[8:] != b"WAVE":
        return
    order = "little" if head[:4] == b"RIFF" else "big"
    while len(chunk := file.read(8)) == 8:
        length = int.from_bytes(chunk[4:], order)
        start = file.tell()
        if chunk[:4] == b"data":
            missing = start + length - size
            if missing > 0 and length < _UNKNOWN_SIZE:
                raise ValueError(
                    f"{name} is cut off: its header announces {length} bytes of samples, but {missing} of them are "
                    "missing; copy or record it again, or save what is there as a new file with an audio editor."
                )
            return
        file.seek(start + length + length % 2)

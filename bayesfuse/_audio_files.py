"""Which audio files a path, a folder or a pattern stands for."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

AUDIO_EXTENSIONS = (".flac", ".oga", ".ogg", ".wav")

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

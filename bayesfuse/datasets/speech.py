"""Talkers and noise in the layout of WHAM!, which wsj0-mix and LibriMix share: `Wham`, `LibriMix`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bayesfuse import audio
from bayesfuse.datasets.base import Entry
from bayesfuse.datasets.files import Files, FileSet, find_root, folders_in
from bayesfuse.datasets.mixture import PathLike
from bayesfuse.separators.folder import sources_in

_WHAM = (
    "WHAM! has the folders wav8k or wav16k / min or max / tr, cv, tt / mix_both, mix_clean, mix_single, s1, s2 and "
    "noise (wsj0-2mix: mix, s1, s2); its noise, and scripts that make it from WSJ0 (LDC93S6A), are at "
    "http://wham.whisper.ai."
)
_LIBRIMIX = (
    "LibriMix has the folders wav8k or wav16k / min or max / train-100, train-360, dev, test / mix_clean, mix_both, "
    "mix_single, s1, s2 (s3) and noise; scripts that download LibriSpeech and WHAM! noise and make it are at "
    "https://github.com/JorisCos/LibriMix."
)
_MIXTURES = ("mix_both", "mix_clean", "mix_single", "mix")
_About = Callable[[str], tuple[list[str], dict[str, Any]]]


class _Talkers(FileSet):
    """Folders of equal file names; see `Wham`."""

    def __init__(
        self,
        path: PathLike,
        inside: tuple[str, ...],
        splits: tuple[str, ...],
        about: _About,
        source: str,
        *,
        mixture: str,
        rate: int | None,
        mode: str,
        splits_wanted: Sequence[str] | None,
        dtype: Any,
    ) -> None:
        if mixture not in _MIXTURES or mode not in ("min", "max"):
            raise ValueError(
                f"mixture={mixture!r}, mode={mode!r}: expected one of {', '.join(_MIXTURES)}, and min or max."
            )
        rates = (8000, 16000) if rate is None else (audio.check_rate(rate),)
        root = find_root(path, inside, [_kilo(rate) for rate in rates], source)
        rate = next(rate for rate in rates if (root / _kilo(rate)).is_dir())
        self.path = root / _kilo(rate) / mode
        present = [split for split in splits if (self.path / split).is_dir()]
        wanted = present if splits_wanted is None else list(splits_wanted)
        lacking = [split for split in wanted if split not in present]
        if lacking or not wanted:
            named = ", ".join(str(self.path / split) for split in lacking or splits)
            raise FileNotFoundError(f"no folder {named}. {source}")
        items = []
        for split in wanted:
            items += _items(self.path / split, split, mixture, about, source)
        super().__init__(items, source, dtype=dtype)
        if self.rate != rate:
            raise ValueError(f"{self.path} holds audio of {self.rate} Hz; expected {rate} Hz, as its name says.")


class Wham(_Talkers):
    """The set WHAM!, two talkers in noise, or wsj0-2mix (and wsj0-3mix) in the same layout; mono.

    Sources are `s1`, `s2` (`s3`) and `noise`, as far as the mixture has them. Splits are tr, cv, tt. Talkers recur
    in ever new pairs, so that only the splits keep them apart; the group names the talkers of the mixture. Metadata:
    speakers, utterances, snrs_db (of each talker, from the file's name).

    Parameters
    ----------
    path
        The folder that holds wav8k or wav16k.
    mixture
        ``"mix_both"`` (all talkers and noise), ``"mix_clean"`` (no noise), ``"mix_single"`` (the first talker and
        noise), or ``"mix"``, as wsj0-mix calls the second.
    rate
        8000 or 16000, in Hz: the folder wav8k or wav16k. None takes the first of them that is there.
    mode
        ``"min"`` (cut to the shortest talker) or ``"max"``.
    splits
        Only these; None for all there are.
    dtype
        float32 or float64, of all audio.

    Raises
    ------
    FileNotFoundError
        If folders or files are missing.
    ValueError
        As `FileSet`, and for an unknown mixture or mode.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        mixture: str = "mix_both",
        rate: int | None = None,
        mode: str = "min",
        splits: Sequence[str] | None = None,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(
            path,
            ("2speakers", "wsj0-mix/2speakers", "3speakers", "wham"),
            ("tr", "cv", "tt"),
            _about_wsj,
            _WHAM,
            mixture=mixture,
            rate=rate,
            mode=mode,
            splits_wanted=splits,
            dtype=dtype,
        )


class LibriMix(_Talkers):
    """The set LibriMix, two or three talkers in noise; mono.

    Splits are train-100, train-360, dev, test. Sources, groups, parameters and errors are those of `Wham`; `path` is
    Libri2Mix, Libri3Mix or the folder that holds one of them. Metadata: speakers, utterances.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        mixture: str = "mix_both",
        rate: int | None = None,
        mode: str = "min",
        splits: Sequence[str] | None = None,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(
            path,
            ("Libri2Mix", "Libri3Mix"),
            ("train-100", "train-360", "dev", "test"),
            _about_libri,
            _LIBRIMIX,
            mixture=mixture,
            rate=rate,
            mode=mode,
            splits_wanted=splits,
            dtype=dtype,
        )


def _kilo(rate: int) -> str:
    return f"wav{rate // 1000}k"


def _items(folder: Path, split: str, mixture: str, about: _About, source: str) -> list[tuple[Entry, Files]]:
    mixtures = sources_in(folder / mixture)
    talkers = [entry.name for entry in folders_in(folder) if entry.name[:1] == "s" and entry.name[1:].isdecimal()]
    names = talkers[:1] if mixture == "mix_single" else talkers
    if not mixtures or not names:
        lacking = folder / (mixture if names else "s1")
        raise FileNotFoundError(f"no audio files in {lacking}. {source}")
    names = names + (["noise"] if mixture in ("mix_both", "mix_single") else [])
    items = []
    for name, path in mixtures.items():
        speakers, metadata = about(name)
        # Files of one mixture have one extension.
        files = Files(path, {source: folder / source / path.name for source in names})
        entry = Entry(f"{split}_{name}", split, "+".join(speakers), {"speakers": speakers} | metadata)
        items.append((entry, files))
    return items


def _about_wsj(name: str) -> tuple[list[str], dict[str, Any]]:
    """Of ``01to030v_0.76421_20ga010m_-0.76421``: utterance (whose first three letters are the talker) and level."""
    parts = name.split("_")
    utterances = parts[::2]
    try:
        levels = [float(part) for part in parts[1::2]]
    except ValueError:
        return [name], {"utterances": [name]}
    return [utterance[:3] for utterance in utterances], {"utterances": utterances, "snrs_db": levels}


def _about_libri(name: str) -> tuple[list[str], dict[str, Any]]:
    """Of ``4077-13754-0001_5142-33396-0065``: the utterances, each with its talker before the first dash."""
    utterances = name.split("_")
    return [utterance.split("-")[0] for utterance in utterances], {"utterances": utterances}

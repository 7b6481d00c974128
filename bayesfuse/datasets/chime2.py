"""CHiME-2 track 1 (CHiME2 Grid): `Chime2`."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bayesfuse import audio
from bayesfuse.datasets.base import Dataset, Entry
from bayesfuse.datasets.files import check_present, find_root
from bayesfuse.datasets.mixture import Lazy, Mixture, PathLike, Utterances, Waveform

_SPLITS = ("train", "devel", "test")
_SOURCE = (
    "CHiME-2 track 1 (CHiME2 Grid, https://catalog.ldc.upenn.edu/LDC2017S07, described at "
    "https://www.chimechallenge.org/challenges/chime2) has the folders train, devel and test with isolated (noisy "
    "utterances), reverberated (the same without noise) and embedded (with the noise around them); those of train by "
    "speaker (id1 ... id34), isolated ones of devel and test by level (m6dB ... 9dB)."
)
_INSIDE = ("chime2-grid", "aasp-chime-grid", "data/chime2-grid", "CHiME2_Grid/data/chime2-grid", "PCCdata16kHz")
_ANNOTATIONS = ("annotations", "annotationFiles", "annotation_files", "annotation")
_LEVEL = re.compile(r"(m?)(\d+)dB")
_SPEAKER_FOLDER = re.compile(r"id(\d+)")
_STEM = re.compile(r"(?:s?(\d+)_)?([A-Za-z0-9]+)")


class _File(NamedTuple):
    """What a path says: speaker ``s1``, utterance ``bgaa9a``, and level in dB where its folder states one."""

    path: Path
    speaker: str
    utterance: str
    level: int | None

    @property
    def key(self) -> str:
        return f"{self.speaker}_{self.utterance}"


class Chime2(Dataset):
    """CHiME-2 track 1: commands in the noise of a living room, 34 speakers, 16 kHz, two channels (binaural).

    Sources are `speech`, the reverberated utterance, and `noise`, the mixture without it; the utterance is scored.
    Splits are train, devel and test, as far as they are there; the group is the utterance, with its speaker.
    Metadata: speaker, utterance, snr_db (None in train, whose levels are not in the names), snr_measured_db, and
    embedded, the file that the background is from.

    Mixtures are cut from the embedded recordings, with the background before and after the utterance
    (`Mixture.context`, `Mixture.after`), from which [JVR16] VI.B learns the noise model. In devel and test these are
    recordings of five minutes with many utterances: which one holds an utterance is looked up in the annotation files
    that come with the set, where in it is found by comparing samples, and the background ends where a neighbouring
    utterance begins.

    Parameters
    ----------
    path
        The folder that holds train, devel, test, or one above it as the distribution has it.
    context
        Longest background before and after the utterance, in seconds. 0 takes the isolated utterances: nothing of the
        embedded recordings is needed, and there is no background to learn from.
    splits
        Only these; None for all there are. The references of test were not part of the challenge's first release:
        without them name the others.
    mono
        Average the channels into one.
    dtype
        float32 or float64, of all audio.

    Raises
    ------
    FileNotFoundError
        If folders, references, or with `context` embedded recordings or annotations are missing.
    ValueError
        For an unknown split or a negative context.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        context: float | int = 5.0,
        splits: Sequence[str] | None = None,
        mono: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        if not 0 <= context < np.inf or not set(splits or ()) <= set(_SPLITS):
            raise ValueError(
                f"context={context!r}, splits={splits!r}: expected seconds of 0 or more, and splits of {_SPLITS}."
            )
        self.path = find_root(path, _INSIDE, _SPLITS, _SOURCE)
        self.context, self.mono, self.dtype = float(context), mono, np.dtype(dtype)
        wanted = [split for split in _SPLITS if (self.path / split / "isolated").is_dir()]
        wanted = wanted if splits is None else [split for split in _SPLITS if split in splits]
        self._files: list[_File] = []
        self._references: list[Path] = []
        entries: list[Entry] = []
        for split in wanted:
            references = self._found_references(split)
            for file in _isolated(self.path / split):
                name = file.key if file.level is None else f"{file.key}_{file.path.parent.name}"
                about = {"speaker": file.speaker, "utterance": file.utterance, "snr_db": file.level}
                entries.append(Entry(name, split, file.key, about))
                self._files.append(file)
                expected = self.path / split / "reverberated" / f"{file.key}.wav"
                by_level = references.get((file.key, file.level))
                self._references.append(by_level or references.get((file.key, None), expected))
        if not entries:
            named = ", ".join(str(self.path / split / "isolated") for split in splits or _SPLITS)
            raise FileNotFoundError(f"no utterances in {named}. {_SOURCE}")
        check_present(
            self._references, f"{_SOURCE} Without references of a split, name the others, as in splits=('train',)."
        )
        self._embedded = {split: self._recordings_around(split) for split in wanted} if context else {}
        # Where the utterances of a recording are, by its path; filled when the recording is first needed.
        self._places: dict[Path, dict[str, tuple[int, int]]] = {}
        super().__init__(entries, audio.info(self._files[0].path).rate)

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names of the speakers, ``s1`` to ``s34``."""
        return tuple(sorted({file.speaker for file in self._files}, key=lambda speaker: int(speaker[1:])))

    @property
    def recordings(self) -> dict[str, Utterances]:
        """The reverberated training utterances of every speaker that has any."""
        found = {file.speaker for file in _audio_below(self.path / "train" / "reverberated")}
        return {
            f"speech train {speaker}": self.training_speech(speaker) for speaker in self.speakers if speaker in found
        }

    def training_speech(self, speaker: str, split: str = "train") -> Utterances:
        """Utterances of a speaker without noise, reverberated as in the mixtures; named like the groups.

        Raises
        ------
        FileNotFoundError
            If there are none.
        """
        files = [file for file in _audio_below(self.path / split / "reverberated") if file.speaker == speaker]
        if not files:
            raise FileNotFoundError(
                f"no utterances of {speaker} in {self.path / split / 'reverberated'}; speakers are "
                f"{', '.join(self.speakers)}. {_SOURCE}"
            )
        return Lazy(
            [file.key for file in files], partial(_read_one, [file.path for file in files], self.mono, self.dtype)
        )

    def paths(self, index: int) -> list[Path]:
        """The isolated utterance, its reference, and the embedded recordings that may hold it."""
        file, split = self._files[index], self.entries[index].split
        around = self._embedded[split].get(file.key, []) if self.context else []
        return [file.path, self._references[index], *around]

    def _form(self, index: int) -> Mixture:
        file, split = self._files[index], self.entries[index].split
        isolated, rate = audio.read(file.path, dtype=np.float64)
        samples = isolated.shape[-1]
        if rate != self.rate:
            raise ValueError(f"{file.path} has {rate} Hz, but the set {self.rate} Hz; copy it again.")
        reference, _ = audio.read(self._references[index], dtype=np.float64)
        if reference.shape[0] != isolated.shape[0]:
            raise ValueError(
                f"{self._references[index]} has {reference.shape[0]} channels, but {file.path} has {isolated.shape[0]}."
            )
        # Reverberation may be cut off, or reach beyond the noisy excerpt.
        voice = np.zeros_like(isolated)
        shared = min(samples, reference.shape[-1])
        voice[:, :shared] = reference[:, :shared]
        mixture, onset = isolated, 0
        about: dict[str, Any] = {}
        if self.context:
            path, start, low, high = self._surroundings(index, isolated)
            mixture, _ = audio.read(path, start=low, stop=high, dtype=np.float64)
            onset, about["embedded"] = start - low, path.relative_to(self.path / split).as_posix()
        speech = np.zeros_like(mixture)
        speech[:, onset : onset + samples] = voice
        noise = mixture - speech
        with np.errstate(divide="ignore"):
            beneath = noise[:, onset : onset + samples]
            about["snr_measured_db"] = float(10.0 * np.log10(np.sum(voice**2) / np.sum(beneath**2)))
        total = mixture.shape[-1]
        kept = {"mixture": mixture, "speech": speech, "noise": noise}
        kept = {name: (audio.to_mono(x) if self.mono else x).astype(self.dtype) for name, x in kept.items()}
        return Mixture(
            name=self.entries[index].name,
            mixture=kept.pop("mixture"),
            sources=kept,
            rate=rate,
            segment=(onset, onset + samples),
            context=(0, onset) if onset else None,
            after=(onset + samples, total) if onset + samples < total else None,
            metadata=about,
        )

    def _found_references(self, split: str) -> dict[tuple[str, int | None], Path]:
        """References by utterance and, where folders state it, level; those of CHiME-1 are in isolated/clean."""
        folders = (self.path / split / "isolated" / "clean", self.path / split / "reverberated")
        return {(file.key, file.level): file.path for folder in folders for file in _audio_below(folder)}

    def _recordings_around(self, split: str) -> dict[str, list[Path]]:
        """By utterance, the embedded recordings that may hold it."""
        folder = self.path / split / "embedded"
        remedy = f"{_SOURCE} With context=0 the isolated utterances do without, and have no background to learn from."
        files = {path.stem: path for path in sorted(folder.rglob("*.wav"))}
        if not files:
            raise FileNotFoundError(f"no embedded recordings in {folder}. {remedy}")
        if split == "train":
            found: dict[str, list[Path]] = {}
            for file in _audio_below(folder):
                found.setdefault(file.key, []).append(file.path)
            return found
        places = [top / name / split for top in (self.path, *list(self.path.parents)[:2]) for name in _ANNOTATIONS]
        texts = sorted(text for place in places if place.is_dir() for text in place.rglob("*") if text.is_file())
        if not texts:
            raise FileNotFoundError(
                f"no annotation files in {', '.join(map(str, places[: len(_ANNOTATIONS)]))}. {remedy}"
            )
        return _annotated(texts, files)

    def _surroundings(self, index: int, isolated: Waveform) -> tuple[Path, int, int, int]:
        """Embedded recording of an utterance, its first sample there, and the range that is taken for the mixture."""
        file, name, split = self._files[index], self.entries[index].name, self.entries[index].split
        for path in self._embedded[split].get(file.key, []):
            places = self._places.get(path)
            if places is None:
                places = self._places[path] = self._locate(path)
            if name in places:
                start, stop = places[name]
                margin = round(self.context * self.rate)
                ends = [b for other, (_, b) in places.items() if other != name and b <= start]
                starts = [a for other, (a, _) in places.items() if other != name and a >= stop]
                total = audio.info(path).samples
                low = max([0, start - margin, *ends])
                return path, start, low, min([total, stop + margin, *starts])
        raise ValueError(
            f"no embedded recording of {split} holds the samples of {file.path}: the files do not belong together. "
            "Copy the set again, or take the isolated utterances with context=0."
        )

    @cached_property
    def _inside(self) -> dict[Path, list[int]]:
        """By embedded recording, the positions of the mixtures that it may hold."""
        found: dict[Path, list[int]] = {}
        for index, (entry, file) in enumerate(zip(self.entries, self._files, strict=True)):
            for path in self._embedded[entry.split].get(file.key, []):
                found.setdefault(path, []).append(index)
        return found

    def _locate(self, path: Path) -> dict[str, tuple[int, int]]:
        """First sample, and the one after the last, of every utterance in an embedded recording."""
        recording, _ = audio.read(path, dtype=np.float64)
        places = {}
        for index in self._inside[path]:
            excerpt, _ = audio.read(self._files[index].path, dtype=np.float64)
            found = occurrences(excerpt, recording)
            if found.size:
                places[self.entries[index].name] = (int(found[0]), int(found[0]) + excerpt.shape[-1])
        return places


def occurrences(
    excerpt: Float[np.ndarray, "channel sample"], recording: Float[np.ndarray, "_ _"]
) -> Int[np.ndarray, " place"]:
    """First samples at which a recording holds exactly the samples of an excerpt, in all channels."""
    samples = excerpt.shape[-1]
    last = recording.shape[-1] - samples
    if last < 0 or excerpt.shape[0] != recording.shape[0] or not excerpt[0].any():
        return np.empty(0, int)
    # The loudest samples are the rarest: a few of them leave hardly a false candidate to compare in full.
    places = np.arange(last + 1)
    for anchor in np.argsort(np.abs(excerpt[0]), kind="stable")[::-1][:8]:
        places = places[recording[0, anchor + places] == excerpt[0, anchor]]
    return np.array([p for p in places if np.array_equal(recording[:, p : p + samples], excerpt)], int)


def _isolated(folder: Path) -> Iterator[_File]:
    """Noisy utterances, by speaker and utterance and, for each, from the lowest level up."""
    files = [file for file in _audio_below(folder / "isolated") if file.path.parent.name != "clean"]
    yield from sorted(files, key=lambda f: (int(f.speaker[1:]), f.utterance, f.level or 0, str(f.path)))


def _audio_below(folder: Path) -> list[_File]:
    found = []
    for path in sorted(folder.rglob("*.wav")) if folder.is_dir() else []:
        parts = path.relative_to(folder).parts[:-1]
        levels = [match for part in parts if (match := _LEVEL.fullmatch(part))]
        folders = [match for part in parts if (match := _SPEAKER_FOLDER.fullmatch(part))]
        stem = _STEM.fullmatch(path.stem)
        number = (stem and stem[1]) or (folders[-1][1] if folders else None)
        if stem is None or number is None or path.name.startswith("."):
            continue
        level = int(levels[-1][2]) * (-1 if levels[-1][1] else 1) if levels else None
        found.append(_File(path, f"s{int(number)}", stem[2].lower(), level))
    return found


def _annotated(texts: Sequence[Path], files: dict[str, Path]) -> dict[str, list[Path]]:
    """By utterance, the recordings that a line of an annotation file names together with it.

    Files are of one speaker, whose number is in their name or path; lines are taken apart at anything that is not part
    of a file name, and the order of their fields does not matter.
    """
    found: dict[str, list[Path]] = {}
    for text in texts:
        number = re.search(r"(?:s|id)(\d+)(?!.*(?:s|id)\d)", text.stem)
        for line in text.read_text(encoding="utf-8", errors="replace").splitlines():
            words = [word.removesuffix(".wav").rsplit("/", 1)[-1] for word in re.split(r"[\s,;\"'()]+", line) if word]
            recordings = [files[word] for word in words if word in files]
            for word in words if recordings else ():
                match = _STEM.fullmatch(word)
                speaker = match and (match[1] or (number and number[1]))
                if match and speaker and word not in files:
                    known = found.setdefault(f"s{int(speaker)}_{match[2].lower()}", [])
                    known += [path for path in recordings if path not in known]
    return found


def _read_one(paths: Sequence[Path], mono: bool, dtype: np.dtype[Any], index: int) -> Waveform:
    return audio.read(paths[index], mono=mono, dtype=dtype)[0]

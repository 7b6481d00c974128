"""Sets of mixtures with known sources, read lazily from folders: `MiniChime`, `MiniMus`, `MiniBinaural`.

A reader is cheap to make (it parses the manifest) and hands out lazy sequences, in the order of the manifest,
whose items are formed from the files when they are asked for. Each mixture is formed in double precision by
the rule of its set and compared with the levels and gains published there, so that damaged or exchanged files
are noticed. A further set needs no more than a `mixtures(split)` that returns a sequence of `Mixture`.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload, runtime_checkable

import numpy as np
import scipy.signal
from jaxtyping import Float

from bayesfuse import audio

PathLike = str | os.PathLike[str]
Waveform = Float[np.ndarray, "channel sample"]
Item = TypeVar("Item", covariant=True)

# Published values have six or more digits, and the sets promise agreement to this.
_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture, its true sources, and where to learn from and score on.

    Attributes
    ----------
    name
        Unique within its set.
    mixture
        [channel, sample]; the sum of the sources, to rounding.
    sources
        True sources by name, each [channel, sample] like the mixture.
    rate
        Sampling rate in Hz.
    segment
        First sample to score and the one after the last.
    context
        First sample, and the one after the last, of a stretch that holds the background alone, from which a
        separator may learn it; None if there is no such stretch.
    group
        Mixtures of one group share recordings of the target: keep them in one fold, resample them together.
    split
        Part of the set: train, val, test...
    metadata
        What else the set says about the mixture.
    """

    name: str
    mixture: Float[np.ndarray, "channel sample"]
    sources: dict[str, Float[np.ndarray, "channel sample"]]
    rate: int
    segment: tuple[int, int]
    context: tuple[int, int] | None = None
    group: str = ""
    split: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def scored(self, signal: Float[np.ndarray, "*batch sample"]) -> Float[np.ndarray, "*batch scored"]:
        """The part of a signal as long as the mixture that is meant to be scored (a view)."""
        samples = self.mixture.shape[-1]
        if signal.shape[-1] != samples:
            raise ValueError(f"{self.name} has {samples} samples, but the signal has {signal.shape[-1]}.")
        return signal[..., self.segment[0] : self.segment[1]]

    def background(self) -> Float[np.ndarray, "channel context"]:
        """The part of the mixture that holds the background alone (a view)."""
        if self.context is None:
            raise ValueError(f"{self.name} has no stretch of background alone; learn it on other recordings.")
        return self.mixture[:, self.context[0] : self.context[1]]

    def versus_rest(self, source: str, rest: str = "rest") -> "Mixture":
        """The same mixture with two sources, `source` and, named `rest`, the sum of all others."""
        others = [signal for name, signal in self.sources.items() if name != source]
        if source not in self.sources or not others or rest == source:
            raise ValueError(
                f"{self.name} has sources {list(self.sources)}; need {source!r} and at least one other, to "
                f"be summed under a name of its own instead of {rest!r}."
            )
        two = {source: self.sources[source], rest: np.sum(others, axis=0, dtype=self.mixture.dtype)}
        return replace(self, sources=two)


class Lazy(Sequence[Item], Generic[Item]):
    """A sequence whose items are made when asked for, anew each time; slices are lazy too."""

    def __init__(self, names: Sequence[str], make: Callable[[int], Item]) -> None:
        self.names = tuple(names)
        self._make = make

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> "Lazy[Item]": ...
    def __getitem__(self, index: int | slice) -> "Item | Lazy[Item]":
        positions = range(len(self.names))
        if isinstance(index, slice):
            chosen = positions[index]
            return Lazy(self.names[index], lambda position: self._make(chosen[position]))
        return self._make(positions[index])

    def __iter__(self) -> Iterator[Item]:
        return map(self._make, range(len(self.names)))

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:3]) + (", ..." if len(self.names) > 3 else "")
        return f"<{len(self.names)} items, made when asked for: {shown}>"


if TYPE_CHECKING:
    Mixtures = Lazy[Mixture]
    Utterances = Lazy[Waveform]
else:
    # Types checked at run time would make an item to look at it.
    Mixtures = Utterances = Lazy


@runtime_checkable
class Dataset(Protocol):
    """A set of mixtures in splits."""

    @property
    def rate(self) -> int: ...
    @property
    def splits(self) -> tuple[str, ...]: ...
    def mixtures(self, split: str, quick: bool | None = None) -> Mixtures: ...


class MiniChime:
    """The set mini-chime: a speaker in household noise at six levels, after CHiME-2 track 1; 16 kHz mono.

    Sources are `speech` and `noise`; the first 5 s are noise alone (`Mixture.context`), scoring is on the
    utterance (`Mixture.segment`); the group is the utterance. Metadata: speaker, utterance, noise,
    noise_category, snr_db, quick, and the noise_gain and scale of the formation.

    Parameters
    ----------
    path
        The folder of the set.
    dtype
        float32 or float64, of all audio.

    Raises
    ------
    FileNotFoundError
        If the folder or its manifest is missing.
    ValueError
        If the manifest is that of another set or cannot be parsed.
    """

    def __init__(self, path: PathLike, *, dtype: Any = np.float32) -> None:
        self.path = Path(path)
        self.dtype = np.dtype(dtype)
        self._manifest = _manifest(self.path, "mini-chime")
        self.rate: int = self._manifest["sample_rate"]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._manifest["mixtures"])

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names of the speakers."""
        return tuple(self._manifest["speakers"])

    def mixtures(self, split: str, quick: bool | None = None) -> Mixtures:
        """Mixtures of a split; `quick` True for its small balanced subset, False for the rest, None for all.

        Raises
        ------
        ValueError
            For an unknown split, or a quick subset where none is marked.
        """
        return _lazy(self._manifest["mixtures"], split, quick, self._form)

    def training_speech(self, speaker: str, split: str = "train") -> Utterances:
        """Clean utterances [1, sample] of a speaker in a split, by default those meant for training.

        Raises
        ------
        ValueError
            For an unknown speaker or split.
        """
        utterances = _choice(_choice(self._manifest["speech"], split, "split"), speaker, "speaker")

        def load(index: int) -> Waveform:
            path, samples = utterances[index]["path"], utterances[index]["samples"]
            return _load(self.path / path, self.rate, 0, samples).astype(self.dtype)

        return Lazy([utterance["id"] for utterance in utterances], load)

    def _form(self, record: Mapping[str, Any], split: str) -> Mixture:
        onset, samples, total = record["onset"], record["speech_samples"], record["total_samples"]
        first = record["noise_offset"]
        voice = _load(self.path / record["speech"], self.rate, 0, samples)
        noise = _load(self.path / record["noise"], self.rate, first, first + total)
        beneath = noise[:, onset : onset + samples]
        gain = np.sqrt(np.sum(voice**2) / (np.sum(beneath**2) * 10.0 ** (record["snr_db"] / 10.0)))
        speech = np.zeros_like(noise)
        speech[:, onset : onset + samples] = voice
        sources, scale = _below_full_scale({"speech": speech, "noise": gain * noise})
        mixture = np.sum(list(sources.values()), axis=0)
        _verify(record, {"noise_gain": gain, "scale": scale, **_levels(mixture)})
        kept = ("speaker", "noise_category", "snr_db")
        return Mixture(
            name=record["id"],
            mixture=mixture.astype(self.dtype),
            sources={name: source.astype(self.dtype) for name, source in sources.items()},
            rate=self.rate,
            segment=(onset, onset + samples),
            context=(0, onset),
            group=Path(record["speech"]).stem,
            split=split,
            metadata={key: record[key] for key in kept}
            | {"utterance": Path(record["speech"]).stem, "noise": Path(record["noise"]).stem}
            | {"quick": bool(record.get("quick")), "noise_gain": float(gain), "scale": scale},
        )


class MiniMus:
    """The set mini-mus: excerpts of 30 s from multitrack songs; 44.1 kHz stereo.

    Sources are the stems an excerpt has, of `vocals`, `drums`, `bass`, `other` and a few instruments; the
    mixture is their sum, scored whole; the group is the song. `Mixture.versus_rest("vocals",
    "accompaniment")` gives the two sources of singing voice extraction. Metadata: song, start_s_in_song.
    There is no quick subset.

    Parameters and errors are those of `MiniChime`.
    """

    def __init__(self, path: PathLike, *, dtype: Any = np.float32) -> None:
        self.path = Path(path)
        self.dtype = np.dtype(dtype)
        self._manifest = _manifest(self.path, "mini-mus")
        self.rate: int = self._manifest["sample_rate"]
        items = {item["id"]: item for item in self._manifest["items"]}
        self._records = {split: [items[name] for name in names] for split, names in self._manifest["split"].items()}

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._records)

    def mixtures(self, split: str, quick: bool | None = None) -> Mixtures:
        """Mixtures of a split; `quick` must be None or False, as the set marks no quick subset.

        Raises
        ------
        ValueError
            For an unknown split, or a quick subset.
        """
        return _lazy(self._records, split, quick, self._form)

    def _form(self, record: Mapping[str, Any], split: str) -> Mixture:
        stems = {
            name: _load(self.path / path, self.rate, 0, record["samples"]) for name, path in record["stems"].items()
        }
        mixture = np.sum(list(stems.values()), axis=0)
        formed = {"mixture_peak": np.max(np.abs(mixture)), "mixture_rms_dbfs": _dbfs(mixture)}
        formed |= {name: _dbfs(stem) for name, stem in stems.items()}
        published = {key: record[key] for key in ("mixture_peak", "mixture_rms_dbfs")} | record["stem_rms_dbfs"]
        # This set publishes levels rounded to 1e-2 dB and peaks to 1e-4.
        units = {key: 1e-4 if key == "mixture_peak" else 1e-2 for key in published}
        _compare(record["id"], formed, published, {key: 0.51 * unit for key, unit in units.items()})
        return Mixture(
            name=record["id"],
            mixture=mixture.astype(self.dtype),
            sources={name: stem.astype(self.dtype) for name, stem in stems.items()},
            rate=self.rate,
            segment=(0, record["samples"]),
            group=record["song"],
            split=split,
            metadata={key: record[key] for key in ("song", "start_s_in_song")},
        )


class MiniBinaural:
    """The set mini-binaural: two or three talkers through measured binaural responses; 16 kHz, 2 channels.

    The talkers are those of mini-chime. Sources are named by their speakers, in the order of the manifest
    (the gain of the first is 1), and are images at the two ears; scored whole. Utterances recur in several
    mixtures, so no grouping keeps them apart; the group names the utterances. Metadata: room, sir_db,
    speakers, azimuths (degrees), utterances, source_gains, scale.

    Parameters
    ----------
    path
        The folder of the set.
    mini_chime
        The folder of mini-chime, where the speech is; by default beside `path`.
    dtype
        float32 or float64, of all audio.

    Raises
    ------
    FileNotFoundError, ValueError
        As `MiniChime`, for either folder.
    """

    def __init__(self, path: PathLike, mini_chime: PathLike | None = None, *, dtype: Any = np.float32) -> None:
        self.path = Path(path)
        self.dtype = np.dtype(dtype)
        self._manifest = _manifest(self.path, "mini-binaural")
        self.rate: int = self._manifest["sample_rate"]
        beside = Path(os.path.abspath(self.path)).parent / "mini-chime"
        self.speech = MiniChime(beside if mini_chime is None else mini_chime, dtype=dtype)
        self._folders = {"mini-binaural": self.path, "mini-chime": self.speech.path}

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._manifest["mixtures"])

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names of the speakers."""
        return self.speech.speakers

    def mixtures(self, split: str, quick: bool | None = None) -> Mixtures:
        """Mixtures of a split; `quick` must be None or False, as the set marks no quick subset.

        Raises
        ------
        ValueError
            For an unknown split, or a quick subset.
        """
        return _lazy(self._manifest["mixtures"], split, quick, self._form)

    def training_speech(self, speaker: str, split: str = "train") -> Utterances:
        """Clean utterances [1, sample] of a speaker; see `MiniChime.training_speech`."""
        return self.speech.training_speech(speaker, split)

    def _form(self, record: Mapping[str, Any], split: str) -> Mixture:
        parts = record["sources"]
        longest = max(part["speech_samples"] for part in parts)
        images: list[Waveform] = []
        gains: list[float] = []
        for part in parts:
            voice = _load(self._locate(part["speech"]), self.rate, 0, part["speech_samples"])
            response = _load(self._locate(part["brir"]), self.rate)
            padded = np.pad(voice, [(0, 0), (0, longest - voice.shape[-1])])
            image = scipy.signal.fftconvolve(padded, response, axes=-1)
            energy = np.sum(image**2) * 10.0 ** (record["sir_db"] / 10.0)
            gains.append(1.0 if not images else float(np.sqrt(np.sum(images[0] ** 2) / energy)))
            images.append(gains[-1] * image)
        speakers = [part["speaker"] for part in parts]
        sources, scale = _below_full_scale(dict(zip(speakers, images, strict=True)))
        mixture = np.sum(list(sources.values()), axis=0)
        _verify(record, {"source_gains": gains, "scale": scale, **_levels(mixture)})
        utterances = [Path(part["speech"]).stem for part in parts]
        return Mixture(
            name=record["id"],
            mixture=mixture.astype(self.dtype),
            sources={name: source.astype(self.dtype) for name, source in sources.items()},
            rate=self.rate,
            segment=(0, record["total_samples"]),
            group="+".join(utterances),
            split=split,
            metadata={"room": record["room"], "sir_db": record["sir_db"], "speakers": speakers}
            | {"azimuths": [part["azimuth_deg"] for part in parts], "utterances": utterances}
            | {"source_gains": gains, "scale": scale},
        )

    def _locate(self, path: str) -> Path:
        folder, _, inside = path.partition("/")
        return self._folders[folder] / inside


def _manifest(folder: Path, name: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}; expected the one of the set {name}, which holds its manifest.json."
        )
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no manifest.json; expected the folder of the set {name}.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be parsed ({error}); copy it again.") from error
    if not isinstance(manifest, dict) or manifest.get("name") != name:
        found = manifest.get("name") if isinstance(manifest, dict) else None
        raise ValueError(f"{path} describes {found!r}; expected the set {name!r}.")
    return manifest


def _lazy(
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    split: str,
    quick: bool | None,
    form: Callable[[Mapping[str, Any], str], Mixture],
) -> Mixtures:
    chosen = _choice(records, split, "split")
    if quick is not None:
        chosen = [record for record in chosen if bool(record.get("quick")) == quick]
        if not chosen:
            kind = "quick" if quick else "other than quick"
            raise ValueError(f"split {split!r} has no mixtures marked as {kind}; use quick=None for all.")
    return Lazy([record["id"] for record in chosen], lambda index: form(chosen[index], split))


def _choice(options: Mapping[str, Any], key: str, kind: str) -> Any:
    if key not in options:
        raise ValueError(f"unknown {kind} {key!r}; there are {', '.join(options)}.")
    return options[key]


def _load(path: Path, rate: int, start: int = 0, stop: int | None = None) -> Waveform:
    signal, file_rate = audio.read(path, start=start, stop=stop, dtype=np.float64)
    if file_rate != rate:
        raise ValueError(f"{path} has {file_rate} Hz, but its manifest says {rate} Hz; copy it again.")
    return signal


def _below_full_scale(sources: dict[str, Waveform]) -> tuple[dict[str, Waveform], float]:
    """The sources, scaled together if the peak of their sum exceeds 0.999, to that; and the scale."""
    peak = float(np.max(np.abs(np.sum(list(sources.values()), axis=0))))
    scale = 0.999 / peak if peak > 0.999 else 1.0
    return {name: scale * source for name, source in sources.items()}, scale


def _levels(mixture: Waveform) -> dict[str, float]:
    return {"mixture_rms": np.sqrt(np.mean(mixture**2)), "mixture_peak": np.max(np.abs(mixture))}


def _dbfs(signal: Waveform) -> float:
    return float(10.0 * np.log10(np.mean(signal**2)))


def _verify(record: Mapping[str, Any], formed: Mapping[str, Any]) -> None:
    published = record["check"]
    _compare(record["id"], formed, published, {key: _TOLERANCE * np.abs(published[key]) for key in published})


def _compare(name: str, formed: Mapping[str, Any], published: Mapping[str, Any], tolerances: Mapping[str, Any]) -> None:
    for key, value in published.items():
        if np.any(np.abs(np.subtract(formed[key], value)) > tolerances[key]):
            raise ValueError(
                f"mixture {name} came out with {key} = {formed[key]}, but its manifest says {value}: the "
                "files are damaged or not those of the manifest; copy the set again."
            )

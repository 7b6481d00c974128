"""Three small sets of real recordings, described by manifests: `MiniChime`, `MiniMus`, `MiniBinaural`.

Each mixture is formed in double precision by the rule of its set and compared with the levels and gains published
there, so that damaged or exchanged files are noticed.
"""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal

from bayesfuse import audio
from bayesfuse.datasets.base import Dataset, Entry
from bayesfuse.datasets.mixture import Lazy, Mixture, PathLike, Utterances, Waveform

# Published values have six or more digits, and the sets promise agreement to this.
_TOLERANCE = 1e-5


class MiniChime(Dataset):
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
        self._records = [record for records in self._manifest["mixtures"].values() for record in records]
        super().__init__(
            (
                Entry(record["id"], split, Path(record["speech"]).stem, _about_chime(record), bool(record.get("quick")))
                for split, records in self._manifest["mixtures"].items()
                for record in records
            ),
            self._manifest["sample_rate"],
        )

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names of the speakers."""
        return tuple(self._manifest["speakers"])

    @property
    def recordings(self) -> dict[str, Utterances]:
        """The clean utterances of every split and speaker."""
        parts = [(split, speaker) for split, speakers in self._manifest["speech"].items() for speaker in speakers]
        return {f"speech {split} {speaker}": self.training_speech(speaker, split) for split, speaker in parts}

    def training_speech(self, speaker: str, split: str = "train") -> Utterances:
        """Clean utterances [1, sample] of a speaker in a split, by default those meant for training.

        Raises
        ------
        ValueError
            For an unknown speaker or split.
        """
        utterances = _choice(_choice(self._manifest["speech"], split, "split"), speaker, "speaker")
        files = [(str(self.path / utterance["path"]), utterance["samples"]) for utterance in utterances]
        return Lazy([utterance["id"] for utterance in utterances], partial(_utterance, files, self.rate, self.dtype))

    def paths(self, index: int) -> list[Path]:
        """The recordings of speech and noise."""
        return [self.path / self._records[index][key] for key in ("speech", "noise")]

    def _form(self, index: int) -> Mixture:
        record = self._records[index]
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
        return Mixture(
            name=record["id"],
            mixture=mixture.astype(self.dtype),
            sources={name: source.astype(self.dtype) for name, source in sources.items()},
            rate=self.rate,
            segment=(onset, onset + samples),
            context=(0, onset),
            after=(onset + samples, total) if onset + samples < total else None,
            metadata={"noise_gain": float(gain), "scale": scale},
        )


class MiniMus(Dataset):
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
        manifest = _manifest(self.path, "mini-mus")
        items = {item["id"]: item for item in manifest["items"]}
        splits = [(split, items[name]) for split, names in manifest["split"].items() for name in names]
        self._records = [record for _, record in splits]
        super().__init__(
            (
                Entry(record["id"], split, record["song"], {key: record[key] for key in ("song", "start_s_in_song")})
                for split, record in splits
            ),
            manifest["sample_rate"],
        )

    def paths(self, index: int) -> list[Path]:
        """The stems."""
        return [self.path / path for path in self._records[index]["stems"].values()]

    def _form(self, index: int) -> Mixture:
        record = self._records[index]
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
        )


class MiniBinaural(Dataset):
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
        manifest = _manifest(self.path, "mini-binaural")
        beside = Path(os.path.abspath(self.path)).parent / "mini-chime"
        self.speech = MiniChime(beside if mini_chime is None else mini_chime, dtype=dtype)
        self._folders = {"mini-binaural": self.path, "mini-chime": self.speech.path}
        self._records = [record for records in manifest["mixtures"].values() for record in records]
        super().__init__(
            (
                Entry(record["id"], split, "+".join(_utterances(record)), _about_talkers(record))
                for split, records in manifest["mixtures"].items()
                for record in records
            ),
            manifest["sample_rate"],
        )

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names of the speakers."""
        return self.speech.speakers

    def training_speech(self, speaker: str, split: str = "train") -> Utterances:
        """Clean utterances [1, sample] of a speaker; see `MiniChime.training_speech`."""
        return self.speech.training_speech(speaker, split)

    def paths(self, index: int) -> list[Path]:
        """The recordings of speech and the responses."""
        return [self._locate(part[key]) for part in self._records[index]["sources"] for key in ("speech", "brir")]

    def _form(self, index: int) -> Mixture:
        record = self._records[index]
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
        return Mixture(
            name=record["id"],
            mixture=mixture.astype(self.dtype),
            sources={name: source.astype(self.dtype) for name, source in sources.items()},
            rate=self.rate,
            segment=(0, record["total_samples"]),
            metadata={"source_gains": gains, "scale": scale},
        )

    def _locate(self, path: str) -> Path:
        folder, _, inside = path.partition("/")
        return self._folders[folder] / inside


def _manifest(folder: Path, name: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}; expected the one of the set {name}, which holds its manifest.json; the set is "
            "distributed apart from this package."
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


def _about_chime(record: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: record[key] for key in ("speaker", "noise_category", "snr_db")}
    names = {"utterance": Path(record["speech"]).stem, "noise": Path(record["noise"]).stem}
    return kept | names | {"quick": bool(record.get("quick"))}


def _about_talkers(record: Mapping[str, Any]) -> dict[str, Any]:
    parts = record["sources"]
    return {
        "room": record["room"],
        "sir_db": record["sir_db"],
        "speakers": [part["speaker"] for part in parts],
        "azimuths": [part["azimuth_deg"] for part in parts],
        "utterances": _utterances(record),
    }


def _utterances(record: Mapping[str, Any]) -> list[str]:
    return [Path(part["speech"]).stem for part in record["sources"]]


def _utterance(files: list[tuple[str, int]], rate: int, dtype: np.dtype[Any], index: int) -> Waveform:
    path, samples = files[index]
    return _load(Path(path), rate, 0, samples).astype(dtype)


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

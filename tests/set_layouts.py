"""Tiny data sets in the layouts of the real ones, made of noise, for tests of the readers in `bayesfuse.datasets`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bayesfuse import audio

RATE = 8000


def tone(seed: int, samples: int = 400, channels: int = 1, level: float = 0.05) -> np.ndarray:
    """Noise [channel, sample] on the 16-bit grid, so that a file holds exactly these numbers."""
    noise = level * np.random.default_rng(seed).standard_normal((channels, samples))
    return np.clip(np.rint(noise * 32768), -32768, 32767) / 32768


def put(path: Path, signal: np.ndarray, rate: int = RATE) -> np.ndarray:
    """Writes a 16-bit file and the folders above it; returns the signal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, signal, rate, subtype="PCM_16")
    return signal


def track(folder: Path, files: Mapping[str, int], mixture: str, **options: int) -> dict[str, np.ndarray]:
    """Writes sources by file name and seed, and their sum; returns the signals."""
    signals = {name: put(folder / f"{name}.wav", tone(seed, **options)) for name, seed in files.items()}
    return signals | {mixture: put(folder / f"{mixture}.wav", np.sum(list(signals.values()), axis=0))}


def musdb18(root: Path) -> Path:
    """Two training tracks, one of them for validation, and one test track; stereo."""
    names = {"train/Zeta - Song": 0, "train/ANiMAL - Rockshow": 10, "test/Alpha - Song": 20}
    for name, seed in names.items():
        stems = {stem: seed + i for i, stem in enumerate(("vocals", "drums", "bass", "other"))}
        track(root / name, stems, "mixture", channels=2)
    return root


def dsd100(root: Path) -> Path:
    for seed, name in enumerate(("Dev/051 - A", "Test/001 - B")):
        stems = {stem: 10 * seed + i for i, stem in enumerate(("vocals", "drums", "bass", "other"))}
        signals = track(root / "Sources" / name, stems, "mixture", channels=2)
        (root / "Mixtures" / name).mkdir(parents=True)
        (root / "Sources" / name / "mixture.wav").rename(root / "Mixtures" / name / "mixture.wav")
        assert signals["mixture"].shape == (2, 400)
    return root


def ccmixter(root: Path, tracks: int = 2, **options: int) -> Path:
    for number in range(tracks):
        sources = {"source-01": 10 * number, "source-02": 10 * number + 1}
        track(root / f"artist{number}", sources, "mix", channels=2, **options)
    return root


def talkers(root: Path, splits: Mapping[str, tuple[str, ...]], rate: int = RATE, count: int = 2) -> Path:
    """WHAM! layout below wav8k/min: names by split."""
    for split, names in splits.items():
        folder = root / f"wav{rate // 1000}k" / "min" / split
        for number, name in enumerate(names):
            signals = [tone(10 * number + i) for i in range(count + 1)]
            sources = dict(zip([*(f"s{i + 1}" for i in range(count)), "noise"], signals, strict=True))
            sums = {"mix_both": signals, "mix_clean": signals[:-1], "mix_single": [signals[0], signals[-1]]}
            for kind, parts in (*((s, [x]) for s, x in sources.items()), *sums.items()):
                put(folder / kind / f"{name}.wav", np.sum(parts, axis=0), rate)
    return root


UTTERANCES = ("bgaa9a", "lwiy2s")
LEVELS = ("m6dB", "9dB")


def chime2(root: Path, rate: int = RATE) -> Path:
    """Two speakers; in devel two utterances of each at two levels, all in one embedded recording per level.

    Utterances lie 0.2 s apart, but the first of speaker 2, which lies 1 s behind its neighbour.
    """
    top = root / "CHiME2_Grid" / "data" / "chime2-grid"
    gap = rate // 5
    for speaker in (1, 2):
        for number, code in enumerate(UTTERANCES):
            speech, noise = tone(100 * speaker + number, 300, 2, 0.1), tone(900 + 10 * speaker + number, 4300, 2)
            embedded = noise.copy()
            embedded[:, 2000:2300] += speech
            put(top / f"train/reverberated/id{speaker}/{code}.wav", speech, rate)
            put(top / f"train/embedded/id{speaker}/{code}.wav", embedded, rate)
            put(top / f"train/isolated/id{speaker}/{code}.wav", embedded[:, 2000:2300], rate)
    for position, level in enumerate(LEVELS):
        recording = tone(700 + position, 4 * (gap + 300) + rate, 2)
        place, lines = 0, {1: [], 2: []}
        for speaker in (1, 2):
            for number, code in enumerate(UTTERANCES):
                place += gap + (rate - gap if (speaker, number) == (2, 0) else 0)
                speech = tone(100 * speaker + 50 + number, 300, 2, 0.1)
                recording[:, place : place + 300] += speech
                put(top / f"devel/reverberated/{speaker}_{code}.wav", speech, rate)
                put(top / f"devel/isolated/{level}/s{speaker}_{code}.wav", recording[:, place : place + 300], rate)
                lines[speaker].append(f"s{speaker}_{code}.wav, {level}, CR_lounge_220110_0731.s{position}.wav, {place}")
                place += 300
        put(top / f"devel/embedded/CR_lounge_220110_0731.s{position}.wav", recording, rate)
        for speaker, texts in lines.items():
            notes = top / f"annotations/devel/s{speaker}.txt"
            notes.parent.mkdir(parents=True, exist_ok=True)
            with notes.open("a") as file:
                file.write("\n".join(texts) + "\n")
    return root

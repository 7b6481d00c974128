"""A folder of WAV files as other programs write them: mixtures, three separators made of filters, true sources."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.signal
from small_example import RATE, noise, voice

from bayesfuse import audio

SAMPLES = 12000
SOURCES = ("noise", "voice")
# Corner frequencies in Hz of the low-pass filters that the separators take for voices.
SEPARATORS = {"dark": 600.0, "middle": 1200.0, "wide": 2200.0}


def separate(mixture: np.ndarray, corner: float) -> dict[str, np.ndarray]:
    """Voice and noise [channel, sample] by a zero-phase filter; they sum to the mixture."""
    section = scipy.signal.butter(2, corner, fs=RATE, output="sos")
    low = scipy.signal.sosfiltfilt(section, mixture, axis=-1).astype(mixture.dtype)
    return {"voice": low, "noise": mixture - low}


def example(seed: int, channels: int = 1, samples: int = SAMPLES) -> dict[str, np.ndarray]:
    """True sources [channel, sample]; channels differ in level."""
    levels = np.linspace(1.0, 0.5, channels, dtype=np.float32)[:, None]
    return {"voice": levels * voice(samples, seed), "noise": levels[::-1] * noise(samples, seed)}


def write_folder(root: Path, names: Sequence[str], channels: int = 1, references: bool = True) -> Path:
    """Writes mixtures/, estimates/ and references/ below `root`; returns it."""
    for seed, name in enumerate(names):
        sources = example(seed + 1, channels)
        mixture = sources["voice"] + sources["noise"]
        put(root / "mixtures" / f"{name}.wav", mixture)
        for separator, corner in SEPARATORS.items():
            for source, estimate in separate(mixture, corner).items():
                put(root / "estimates" / separator / name / f"{source}.wav", estimate)
        if references:
            for source, true in sources.items():
                put(root / "references" / name / f"{source}.wav", true)
    return root


def put(path: Path, waveform: np.ndarray, rate: int = RATE) -> None:
    """Writes a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, waveform, rate)


def change(path: Path, function) -> None:
    """Replaces a file by a function of its waveform."""
    waveform, rate = audio.read(path)
    put(path, function(waveform), rate)

"""A small separation problem: a voice-like and a noise-like source at 8 kHz, and their dictionaries."""

import functools

import numpy as np

from bayesfuse.dictionary import Dictionary, train_dictionary
from bayesfuse.transforms import STFT

RATE = 8000
TRANSFORM = STFT(256, 128)
# 119 frames: with the blocks of the tests it shares a padded length of 128, and so the compiled programs.
SAMPLES = 15200
ORDERS = [2, 4]


def voice(samples: int = SAMPLES, seed: int = 0, dtype=np.float32) -> np.ndarray:
    """Harmonics of a wandering pitch, in syllables of changing timbre. [sample]"""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / RATE
    phase = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * time + rng.uniform(0, 6))) / RATE
    # Timbres change every quarter of a second, without clicks.
    syllable = np.arange(samples) // 2000
    envelope = np.sin(np.pi * (np.arange(samples) % 2000) / 2000) ** 2
    timbres = rng.uniform(0, 1, (syllable[-1] + 1, 12)) ** 3
    sound = sum(timbres[syllable, k] * np.sin((k + 1) * phase) for k in range(12))
    return (0.2 * envelope * sound).astype(dtype)


def noise(samples: int = SAMPLES, seed: int = 0, dtype=np.float32) -> np.ndarray:
    """Noise that falls off with frequency and swells slowly. [sample]"""
    rng = np.random.default_rng(1000 + seed)
    white = rng.standard_normal(samples + 8)
    coloured = np.convolve(white, np.ones(9) / 9, mode="valid")
    return (0.3 * coloured * (1 + 0.3 * np.sin(2 * np.pi * np.arange(samples) / RATE))).astype(dtype)


def mixture(samples: int = SAMPLES, seed: int = 1, dtype=np.float32) -> np.ndarray:
    """Their sum, of other draws than the dictionaries were trained on. [sample]"""
    return voice(samples, seed, dtype) + noise(samples, seed, dtype)


@functools.cache
def dictionaries(double: bool = False) -> dict[str, list[Dictionary]]:
    """Trained dictionaries of both sources."""
    dtype = np.float64 if double else np.float32
    return {
        "speech": train_dictionary([voice(dtype=dtype)], RATE, ORDERS, transform=TRANSFORM),
        "noise": train_dictionary([noise(dtype=dtype)], RATE, [2], transform=TRANSFORM),
    }

"""Records drawn at random, with estimates of known waveforms behind them."""

import numpy as np

from bayesfuse.grams import Bands, gram
from bayesfuse.records import Record
from bayesfuse.transforms import STFT

TRANSFORM = STFT(64, 32)
RATE = 1000
BANDS = Bands(RATE, 4, 64)


def draw_record(name: str = "a", split: str = "test", *, samples: int = 500, models: int = 3, seed: int = 0, **changes):
    """A record of two sources, and the waveforms reference [source, sample], estimates [model, source, sample]."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(2, samples))
    estimates = truth + 10.0 ** np.linspace(-4, 0, models)[:, None, None] * rng.normal(size=(models, 2, samples))
    frames = TRANSFORM.num_frames(samples)
    energy = rng.normal(size=(models, 3, frames)).astype(np.float32).astype(np.float64)
    energy[-1] = np.nan
    values = {
        "name": name,
        "split": split,
        "group": f"group {seed}",
        "rate": RATE,
        "metadata": {"snr_db": -3, "speaker": "x"},
        "models": tuple(f"VB-NMF {2**m}" for m in range(models)),
        "orders": 2 ** np.arange(models),
        "sources": ("speech", "noise"),
        "whole": gram(truth, estimates),
        "frames": gram(truth, estimates, transform=TRANSFORM),
        "bands": gram(truth, estimates, transform=TRANSFORM, bands=BANDS),
        "terms": ("likelihood", "activations of speech", "activations of noise"),
        "free_energy": energy,
        "dictionary_energy": np.zeros(models),
        "total_free_energy": energy.sum((1, 2)),
        "likelihood": rng.normal(size=(models, 4, frames)).astype(np.float32),
        "scores": {"sdr": rng.normal(size=(models, 2))},
        "mixture_scores": {"sdr": rng.normal(size=2)},
        "seconds": rng.uniform(size=models),
        "first_frame": 2,
        "num_frames": frames + 5,
        "transform": TRANSFORM.to_dict(),
        "seed": 7,
        "versions": {"bayesfuse": "0"},
        "key": f"key {seed}",
    }
    return Record(**(values | changes)), truth, estimates

"""Records of mixtures whose waveforms are known, for the tests of the papers' tables, and what reads those tables."""

import dataclasses
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from small_records import TRANSFORM, draw_record

from bayesfuse import metrics
from bayesfuse.fusion import fuse
from bayesfuse.grams import gram
from bayesfuse.records import open_records, record_path, write_record

ORDERS = (2, 16, 64)
LABELS = (*(f"VB-NMF {k}" for k in ORDERS), *(f"ML-NMF {k}" for k in ORDERS))
KIND = {"VB-NMF": slice(0, 3), "ML-NMF": slice(3, 6)}
# Errors of the models relative to the speech: VB-NMF 16 is the best one, ML-NMF 64 better than VB-NMF 64.
LEVELS = np.array([0.5, 0.2, 0.6, 0.8, 0.4, 0.5])


def load(name: str) -> ModuleType:
    """A script, which imports its neighbours as it does when it is run."""
    folder = str(Path(__file__).resolve().parent.parent / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


class Mixture:
    """A record of speech alone, and the waveforms behind it."""

    def __init__(self, number: int, split: str) -> None:
        rng = np.random.default_rng(number)
        self.truth = rng.normal(size=300 + 40 * (number % 3))
        self.estimates = self.truth + LEVELS[:, None] * rng.normal(size=(len(LABELS), self.truth.size))
        frames = gram(self.truth[None], self.estimates[:, None], transform=TRANSFORM)
        energy = rng.normal(size=(len(LABELS), 3, frames.energy.shape[1]))
        energy[0, 0] += 50.0  # the free energy prefers the smallest order, clearly
        energy = energy.astype(np.float32).astype(np.float64)  # as records keep them
        energy[3:] = np.nan
        self.energy = energy.sum(1)  # [model, frame]
        changes: dict[str, Any] = {
            "name": f"{split}_{number}", "split": split, "models": LABELS, "dictionary_energy": np.zeros(len(LABELS)),
            "group": f"u{number // 3}", "metadata": {"snr_db": (-6, 0, 6)[number % 3], "noise": f"n{number % 4}"},
            "orders": np.array([*ORDERS, *ORDERS]), "sources": ("speech",), "frames": frames, "bands": None,
            "whole": gram(self.truth[None], self.estimates[:, None]), "free_energy": energy, "likelihood": None,
            "total_free_energy": energy.sum((1, 2)), "scores": {"sdr": self.singles[:, None]},
            "mixture_scores": {"sdr": np.zeros(1)}, "seconds": np.array([3.0, 3.0, 3.0, 1.0, 1.0, 1.0]),
        }  # fmt: skip
        self.record = dataclasses.replace(draw_record()[0], **changes)

    @property
    def singles(self) -> np.ndarray:
        """SDR of every model."""
        return np.asarray(metrics.sdr(self.truth, self.estimates))

    def fused(self, kind: str, weights: np.ndarray) -> float:
        """SDR of the fused waveform, with weights [model] or [model, frame]."""
        found = fuse(weights, self.estimates[KIND[kind]], transform=None if weights.ndim == 1 else TRANSFORM)
        return float(metrics.sdr(self.truth, found))


def make_mixtures() -> dict[str, list[Mixture]]:
    """A training and a test split."""
    return {"train": [Mixture(n, "train") for n in range(6)], "test": [Mixture(n, "test") for n in range(6, 18)]}


def make_corpora(mixtures: dict[str, list[Mixture]], home: Path) -> tuple[Path, Any, Any]:
    """The folder of the cache, and both splits, read from files of records."""
    folder, cache = home / "records", home / "cache"
    for found in mixtures.values():
        for mixture in found:
            write_record(mixture.record, record_path(folder, mixture.record.name))
    records = open_records(folder)
    names = {split: [m.record.name for m in found] for split, found in mixtures.items()}
    papers = load("_papers")
    return cache, *(papers.corpus_of(records, names[split], folder, cache) for split in ("train", "test"))


def cells(text: str, label: str) -> list[str]:
    """Cells of the first row that begins with a label; columns are two blanks or more apart."""
    line = next(line for line in text.splitlines() if line.startswith(label + "  "))
    return [cell.strip() for cell in line[len(label) :].split("  ") if cell.strip()]


def level(cell: str) -> float:
    return float(cell.split()[0])


def mean(values: Any) -> float:
    return float(np.mean(list(values)))


def shown(page: Any, capsys: pytest.CaptureFixture[str], path: Path) -> str:
    """What is printed; the picture is drawn, too."""
    load("_papers").show(page, str(path))
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
    return capsys.readouterr().out

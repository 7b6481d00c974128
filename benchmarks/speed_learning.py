"""Seconds that learning of fusion weights takes on a corpus of 1,000 utterances.

    python benchmarks/speed_learning.py                   # about three minutes on one core
    python benchmarks/speed_learning.py --models 7,14     # numbers of models
    python benchmarks/speed_learning.py --utterances 100 --repeats 1

The corpus is drawn: estimates with a common error and errors of their own whose level changes every ten frames, and
free energies that know these levels up to noise and a bias per model. Learning sees scalar products only, so that its
time depends on the numbers of utterances, frames and models, and not on the audio behind them.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import _common as common
import jax
import numpy as np

from bayesfuse.bayesian import learn_vb
from bayesfuse.fusion import Gram, learn_beta
from bayesfuse.stacking import pseudo_bma_weights, stacking_weights
from bayesfuse.static import static_weights

# Seconds for 1,000 utterances, on a machine that does nothing else.
AIM = 10.0


class Corpus(NamedTuple):
    """Scalar products [example, frame], their sums [example], and free energies [example, model, frame]."""

    frames: Gram
    whole: Gram
    energy: np.ndarray
    lengths: np.ndarray


def draw(utterances: int, models: int, length: int = 150, seed: int = 0) -> Corpus:
    """A corpus; expectations stand for the scalar products of long frames, so that no audio need be drawn."""
    rng = np.random.default_rng(seed)
    power = rng.gamma(0.5, 2.0, (utterances, length))
    blocks = rng.integers(0, models, (utterances, -(-length // 10)))
    best = np.repeat(blocks, 10, axis=1)[:, :length]
    level = 0.3 + rng.uniform(0, 0.3, (utterances, length, models)) + 0.4 * (np.arange(models) != best[..., None])
    error = 0.1 * np.ones((models, models)) + level[..., None] ** 2 * np.eye(models)
    # <s - s_m, s - s_m'> = E, with errors that are uncorrelated with the source.
    gram = power[..., None, None] * (1.0 + error)
    cross = np.repeat(power[..., None], models, axis=-1)
    frames = Gram(power, cross, gram)
    noise = rng.normal(size=(utterances, length, models))
    energy = -30.0 * (level + 0.5 * noise) + np.linspace(0, 20, models)
    return Corpus(frames, frames.sum(1), np.moveaxis(energy, -1, 1), np.full(utterances, length))


def calls(corpus: Corpus) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    totals = corpus.energy.sum(axis=-1)
    per_signal = {"num_frames": corpus.lengths}
    # Terms that add up to the whole, of which the second says nothing.
    useless = np.random.default_rng(1).normal(size=corpus.energy.shape)
    terms = np.stack([corpus.energy - useless, useless])
    return {
        "static, MSE": partial(static_weights, corpus.whole),
        "static, SDR": partial(static_weights, corpus.whole, loss="sdr"),
        "beta alone, SDR": partial(learn_beta, corpus.whole, totals, corpus.lengths),
        "VB per signal, MSE": partial(learn_vb, corpus.whole, totals, loss="mse", **per_signal),
        "VB per signal, SDR": partial(learn_vb, corpus.whole, totals, loss="sdr", **per_signal),
        "VB per frame, MSE": partial(learn_vb, corpus.frames, corpus.energy, loss="mse"),
        "VB per frame, SDR": partial(learn_vb, corpus.frames, corpus.energy, loss="sdr"),
        "VB per frame, frame SDR": partial(learn_vb, corpus.frames, corpus.energy, loss="frame-sdr"),
        "VB per frame, beta per term": partial(learn_vb, corpus.frames, terms, loss="sdr", per_term=True),
        "VB per frame, sticky": partial(learn_vb, corpus.frames, corpus.energy, loss="sdr", sticky=True),
        "stacking, every utterance": partial(stacking_weights, corpus.energy),
        "pseudo-BMA+, whole corpus": partial(
            pseudo_bma_weights,
            np.moveaxis(corpus.energy, 1, 0).reshape(corpus.energy.shape[1], -1),
            groups=np.repeat(np.arange(len(corpus.lengths)), corpus.energy.shape[2]),
        ),
    }


def measure(utterances: int, models: int, repeats: int) -> list[list[str]]:
    """Rows of the table: name, seconds, those of the first call, and what the search reports."""
    from tqdm.auto import tqdm

    rows = []
    for name, call in tqdm(calls(draw(utterances, models)).items(), desc=f"{models} models", unit="rule"):
        kept: list[Any] = []
        timing = common.interleaved({name: lambda call=call, kept=kept: kept.append(call())}, repeats=repeats)[name]
        report = kept[-1][1] if isinstance(kept[-1], tuple) else None
        basins = "" if report is None else f"{report.starts} descents, {report.basins} basins"
        reached = (
            "" if report is None else f"{report.training['returned']:.4g} (static {report.training['static']:.4g})"
        )
        met = "met" if timing.median <= AIM else "MISSED"
        rows.append([f"{name}, M = {models}", f"{timing.median:.2f} s", f"{timing.first:.2f} s", met, basins, reached])
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=1000, help="size of the corpus (default: 1000)")
    parser.add_argument("--models", default="7,14", help="numbers of models, separated by commas (default: 7,14)")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each (default: 3)")
    options = parser.parse_args(arguments)
    print(common.environment(), flush=True)
    print(f"{options.utterances} utterances of 150 frames, float64, {jax.default_backend()}; aim {AIM:g} s each\n")
    rows = [row for m in options.models.split(",") for row in measure(options.utterances, int(m), options.repeats)]
    print(common.table(["", "median", "first call", "aim", "search", "training loss"], rows))


if __name__ == "__main__":
    main()

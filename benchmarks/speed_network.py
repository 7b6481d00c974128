"""Speed of network fusion: training the best architecture of [JVR16] VI.H at the size of mini-chime, and applying it.

    python benchmarks/speed_network.py                    # about five minutes on two cores
    python benchmarks/speed_network.py --epochs 2         # throughput only

(a) a whole training, learning-rate rule and early stopping included, of a network with 1792 hidden units on 154
    features and the SDR cost, in mini-batches of 50 frames; features, principal components, scalar products apart
(b) the same network applied: features, weights and overlap-add for seven estimates, without reading files

The features are drawn, and so are the errors of seven estimates, whose sizes are a random map of the features: as many
frames as 870 utterances for training and 192 for validation have.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source separation",
IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

import argparse
import time
from typing import NamedTuple

import _common as common
import jax
import numpy as np

from bayesfuse import features, fusion
from bayesfuse.network_rule import NetworkRule
from bayesfuse.neural import FusionNetwork, NetworkConfig, Training, TrainingSet, train
from bayesfuse.transforms import QERB

AIM_SECONDS = 180.0
RATE = 16000


class Size(NamedTuple):
    """Size of the problem; tests use a smaller one."""

    utterances: int = 870
    held_out: int = 192
    frames: int = 110
    features: int = 154
    models: int = 7
    hidden: int = 1792
    bands: int = 350
    seconds: float = 30.0


def draw(size: Size, utterances: int, seed: int) -> TrainingSet:
    """Features, and estimates whose errors are the smaller or larger as a fixed random map of the features says."""
    rng = np.random.default_rng(seed)
    frames = utterances * size.frames
    x = rng.normal(size=(frames, size.features)).astype(np.float32)
    teacher = np.random.default_rng(0).normal(size=(size.features, size.models)) / np.sqrt(size.features)
    errors = rng.normal(size=(frames, size.models, 16)) * np.exp(x @ teacher)[..., None]
    energy = np.full((frames, 1, 1), 30.0)
    products = (errors @ errors.swapaxes(-1, -2))[:, None, None]
    # Errors that are orthogonal to the source: s_m = s + e_m.
    g = fusion.Gram(energy, np.repeat(energy[..., None], size.models, -1), energy[..., None, None] + products)
    return TrainingSet(x, g, np.repeat(np.arange(utterances), size.frames))


def training(size: Size, epochs: int) -> list[list[str]]:
    """Rows of the table: seconds of the whole training and frames per second."""
    examples, held_out = draw(size, size.utterances, 1), draw(size, size.held_out, 2)
    frames = len(examples.features)
    rows = []
    for optimiser in ("nesterov", "adam"):
        descent = Training(max_epochs=epochs, optimiser=optimiser)
        config = NetworkConfig((size.hidden,), training=descent)
        # The first call compiles; it trains on few frames, in mini-batches of the same size.
        begun = time.perf_counter()
        train(jax.random.key(0), draw(size, 2, 3), draw(size, 2, 4), config=config)
        warm_up = time.perf_counter() - begun
        begun = time.perf_counter()
        trained = train(jax.random.key(0), examples, held_out, config=config, progress=True)
        seconds = time.perf_counter() - begun
        count = len(trained.history.rate)
        verdict = "-" if count == epochs < Training().max_epochs else "met" if seconds <= AIM_SECONDS else "MISSED"
        rows.append(
            [
                f"(a) training, {optimiser}",
                f"{seconds:.1f} s",
                f"≤ {AIM_SECONDS:g} s",
                verdict,
                f"{count} epochs of {frames} frames, {frames * count / seconds:,.0f} frames/s, "
                f"{seconds / count:.2f} s per epoch; {trained.score:.2f} dB; a small training with compilation "
                f"{warm_up:.1f} s",
            ]
        )
    return rows


def applying(size: Size) -> list[list[str]]:
    """Row of the table: computing time per second of sound, for all frames at once as `apply` does it."""
    rng = np.random.default_rng(0)
    samples = round(size.seconds * RATE)
    mixture = rng.normal(size=(1, samples)).astype(np.float32)
    estimates = rng.normal(size=(size.models, 1, 1, samples)).astype(np.float32)
    config = features.FeatureConfig(QERB(RATE, size.bands))
    inputs = (1 + size.models) * size.bands * (2 * config.context + 1)
    ones = np.ones(inputs, np.float32)
    axes = rng.normal(size=(size.features, inputs)).astype(np.float32)
    scale = np.ones(size.features, np.float32)
    pipeline = features.FeaturePipeline(config, 1 + size.models, 0 * ones, ones, axes, scale, None, None)
    network = FusionNetwork(jax.random.key(0), size.features, [size.hidden], (1, 1, size.models))
    rule = NetworkRule(network, pipeline, tuple(map(str, range(size.models))), ("speech",), RATE)
    rule.apply(features.Inputs(mixture, estimates))
    _, applied = rule.apply(features.Inputs(mixture, estimates))
    detail = f"{applied.duration:.0f} s of sound in {applied.seconds:.2f} s, {inputs} inputs per frame"
    return [["(b) applying, real-time factor", f"{applied.real_time_factor:.3f}", "-", "-", detail]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=Training().max_epochs, help="most epochs of each training")
    arguments = parser.parse_args()
    rows = applying(Size()) + training(Size(), arguments.epochs)
    print(common.table(["what", "measured", "aim", "verdict", "details"], rows))
    print(common.environment())


if __name__ == "__main__":
    main()

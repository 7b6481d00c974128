"""Training sets and settings that the tests of the networks share."""

import jax
import numpy as np

from bayesfuse.fusion import Gram
from bayesfuse.neural import NetworkConfig, Training, TrainingSet

KEY = jax.random.key(3)


def draw(seed, frames, heads=(1, 1, 3), samples=8, informative=False):
    """A Gram of random signals; informative features tell which estimate is the best one."""
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(frames, *heads[:2], samples))
    best = rng.integers(heads[2], size=(frames, *heads[:2]))
    noise = np.where(np.arange(heads[2]) == best[..., None], 0.1, 1.0)[..., None]
    estimates = source[..., None, :] + noise * rng.normal(size=(frames, *heads, samples))
    g = Gram(
        (source**2).sum(-1),
        (source[..., None, :] * estimates).sum(-1),
        estimates @ np.swapaxes(estimates, -1, -2),
    )
    features = rng.normal(size=(frames, 4)).astype(np.float32)
    if informative:
        features = np.eye(heads[2])[best].reshape(frames, -1).astype(np.float32)
    return TrainingSet(features, g, np.sort(rng.permutation(np.arange(frames) % 5)))


def tiny(**settings):
    descent = {"batch_size": 16, "max_epochs": 4, "rate": 0.05}
    descent |= {name: settings.pop(name) for name in list(settings) if name in Training.__dataclass_fields__}
    return NetworkConfig(**{"hidden": (8,), **settings}, training=Training(**descent))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

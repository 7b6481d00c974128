"""Separation by maximum-likelihood NMF and the Wiener filter ([JVR16] Appendix A).

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

from bayesfuse import nmf, wiener
from bayesfuse.dictionary import Dictionary
from bayesfuse.separators.contract import Masks, Separation, Separator, separate_channels
from bayesfuse.transforms import STFT, Transform


def ml_nmf(
    dictionaries: Sequence[Dictionary | int],
    *,
    transform: Transform | None = None,
    noise: float = 1e-6,
    num_iters: int = 50,
) -> Separator:
    """Return a separator by Itakura-Saito NMF with the given dictionaries.

    Parameters
    ----------
    dictionaries
        One per source: a trained `Dictionary`, held fixed, or an integer, the order of a dictionary to be learned on
        the mixture.
    noise
        Variance of the observation noise, relative to the mean power of the mixture.
    """
    chosen = STFT() if transform is None else transform

    def masks(power: Float[np.ndarray, "band frame"], seed: int) -> Masks:
        if not power.any():
            return Masks(np.zeros((len(dictionaries), *power.shape), power.dtype), None)
        weights = [
            nmf.vector_quantisation(seed + j, power, d)
            if isinstance(d, int)
            else np.asarray(d.weights, dtype=power.dtype)
            for j, d in enumerate(dictionaries)
        ]
        level = noise * float(np.mean(power, dtype=np.float64))
        learn = [isinstance(d, int) for d in dictionaries]
        result = nmf.fit(power, weights, learn=learn, noise=level, num_iters=num_iters)
        return Masks(np.asarray(wiener.gains(np.asarray(result.variances), level)), None)

    def separator(key: Array, mixture: Float[np.ndarray, "channel sample"]) -> Separation:
        seed = seed_of(key)
        return separate_channels(mixture, chosen, lambda power: masks(power, seed))

    return separator


def seed_of(key: Array) -> int:
    """A non-negative integer seed from a JAX key, for libraries that want one."""
    return int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))

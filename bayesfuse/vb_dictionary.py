"""Dictionaries trained by VB-NMF: the posterior over the spectra is kept, not only its mean.

The variational model of `vbnmf` with a single source is fitted to recordings of that source alone. Used on a mixture,
the posterior of training takes the place of the dictionary's prior and is held fixed: spectra that training left
uncertain have a harmonic mean below their mean, and the Wiener filter trusts them less.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from bayesfuse import inference
from bayesfuse.dictionary import Dictionary, training_power
from bayesfuse.transforms import STFT, Transform
from bayesfuse.vbnmf import make_prior


def train_vb_dictionary(
    recordings: Sequence[Float[np.ndarray, "..."]],
    rate: int,
    order: int,
    *,
    transform: Transform | None = None,
    a: float = 0.2,
    b: float = 0.2,
    noise: float = 1e-6,
    num_iters: int = 50,
    max_frames: int | None = 8192,
    seed: int = 0,
    progress: bool = False,
) -> Dictionary:
    """Return a dictionary with the posterior mean and harmonic mean of its spectra.

    Columns are scaled so that the posterior mean activation on the training data, divided by their mean power, is 1.

    Parameters
    ----------
    recordings
        Waveforms [sample] or [channel, sample] of the source alone; channels count as further recordings.
    rate
        Samples per second.
    order
        Number of components.
    a, b, noise
        Of `vbnmf.make_prior`; the activations have prior mean 1 / order.
    max_frames
        Train on that many frames at most, drawn at random.

    Raises
    ------
    ValueError
        For recordings that are empty, silent or not finite, and more components than frames.
    """
    chosen = STFT() if transform is None else transform
    power = training_power(recordings, order, transform=chosen, seed=seed, max_frames=max_frames)
    prior = make_prior([[order]], a=a, b=b, noise=noise, activation_mean=[[1.0 / order]], dtype=power.dtype)
    q0 = inference.start(power, [[order]], prior, seed=seed)
    result = inference.fit(power, q0, prior, num_iters=num_iters, progress=progress)
    component = result.posterior.components[0][0]
    gain = np.asarray(component.activations.mean).mean(axis=1)
    spectra = component.dictionary
    return Dictionary(
        np.asarray(spectra.mean) * gain, rate, chosen.to_dict(), harmonic=np.asarray(spectra.harmonic) * gain
    )

"""What every separator is: a function of a random key and a mixture that returns the sources.

The waveform is all that separators share, and all that fusion needs. Whoever models the mixture by a likelihood
returns its free energy as well, which is what Bayesian fusion weighs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float

from bayesfuse._module import Module
from bayesfuse.audio import check_audio
from bayesfuse.transforms import Transform
from bayesfuse.vbnmf import FreeEnergy


class Separation(Module):
    """Waveforms of the sources of one mixture, and the free energy of the model that gave them (None if none did).

    The free energy of several channels is the sum of theirs: each is a recording of its own to the model.
    """

    sources: Float[np.ndarray, "source channel sample"]
    free_energy: FreeEnergy | None


Separator = Callable[[Array, Float[np.ndarray, "channel sample"]], Separation]


class Masks(NamedTuple):
    """What a model of power spectrograms says of one channel: gains of the sources per band, and its free energy."""

    gains: Float[np.ndarray, "source band frame"]
    free_energy: FreeEnergy | None


def separate_channels(
    mixture: Float[np.ndarray, "channel sample"],
    transform: Transform,
    masks: Callable[[Float[np.ndarray, "band frame"]], Masks],
) -> Separation:
    """Return the separation by `masks` of the power of each channel, applied to the channel's coefficients."""
    mixture = check_audio(mixture, name="mixture")
    sources, energies = [], []
    for channel in mixture:
        X = transform.analysis(channel)
        gains, energy = masks(np.asarray(transform.power(X)))
        sources.append(transform.synthesis(transform.expand(gains) * X, channel.shape[-1]))
        energies.append(energy)
    return Separation(np.stack(sources, axis=1), _total(energies))


def _total(energies: list[FreeEnergy | None]) -> FreeEnergy | None:
    known = [energy for energy in energies if energy is not None]
    if not known:
        return None
    return FreeEnergy(
        np.sum([energy.frames for energy in known], axis=0),
        np.asarray(np.sum([energy.dictionary for energy in known], axis=0)),
        np.asarray(np.sum([energy.order for energy in known], axis=0)),
    )

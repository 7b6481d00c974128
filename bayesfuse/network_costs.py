"""What a fusion network is trained to minimise: functions of log weights and scalar products, differentiable.

Axes are [..., source, band, model] for weights and oracle weights, [..., source, band] for the `Gram`; the costs are
[...], averaged over the sources. Bands share an error: their squared errors add before anything else happens.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesfuse.fusion import Gram, squared_error

Cost = Literal["omse", "ce", "smse", "sdr", "batch_sdr", "utterance_sdr"]

LogWeights = Float[Array, "*frame source band model"]
Frames = Float[Array, "*frame"]


def around_reference(g: Gram) -> Gram:
    """The Gram of the errors s_m - s instead of the estimates: the same squared errors for weights that sum to one.

    E_mm' = c - d_m - d_m' + G_mm', with a source of zero energy. In single precision c + a'Ga - 2a'd loses all digits
    of a small error, a'Ea does not; E itself is computed in double precision.
    """
    energy, cross, gram = (np.asarray(field, np.float64) for field in (g.energy, g.cross, g.gram))
    errors = energy[..., None, None] - cross[..., :, None] - cross[..., None, :] + gram
    return Gram(np.zeros_like(energy), np.zeros_like(cross), errors)


def omse(log_weights: LogWeights, oracle: LogWeights) -> Frames:
    """Squared distance of the weights from the oracle's, [JVR16] eq. 23, averaged over the bands."""
    return ((jnp.exp(log_weights) - oracle) ** 2).sum(axis=-1).mean(axis=(-2, -1))


def cross_entropy(log_weights: LogWeights, oracle: LogWeights) -> Frames:
    """sum_m a_m log(a_m / w_m) with the oracle's weights a, [JVR16] eq. 24, averaged over the bands; 0 log 0 is 0."""
    positive = oracle > 0
    logs = jnp.log(jnp.where(positive, oracle, 1.0))
    terms = jnp.where(positive, oracle * (logs - jnp.where(positive, log_weights, 0.0)), 0.0)
    return terms.sum(axis=-1).mean(axis=(-2, -1))


def smse(log_weights: LogWeights, g: Gram) -> Frames:
    """Squared error of the fused estimate of the frame, [JVR16] eq. 25."""
    return _errors(log_weights, g).mean(axis=-1)


def frame_sdr(log_weights: LogWeights, g: Gram, floor: Float[Array, "*frame source"]) -> Frames:
    """Logarithmic squared error of the frame in dB, [JVR16] eq. 26: its negative SDR up to a constant.

    Departs from the source by the floor, which is added to the error: silent and perfect frames have a logarithm.
    """
    return _decibel(_errors(log_weights, g) + floor).mean(axis=-1)


def pooled_sdr(
    log_weights: Float[Array, "*batch frame source band model"],
    g: Gram,
    floor: Float[Array, "*batch frame source"],
    mask: Float[Array, "*batch frame"],
) -> Float[Array, "*batch"]:
    """Logarithmic squared error in dB of the last frame axis as a whole: the frames' errors add before the logarithm.

    Over the frames of a mini-batch this is the alternative that [JVR16] VII announces; over those of an utterance it is
    the measure of [JVR16] eq. 6, up to the overlap of the frames.
    """
    errors = ((_errors(log_weights, g) + floor) * mask[..., None]).sum(axis=-2)
    # A mini-batch is filled up with examples without a valid frame, whose cost is not counted.
    return _decibel(jnp.where(errors > 0, errors, 1.0)).mean(axis=-1)


def _errors(log_weights: LogWeights, g: Gram) -> Float[Array, "*frame source"]:
    return jnp.asarray(squared_error(jnp.exp(log_weights), g)).sum(axis=-1)


def _decibel(power: Float[Array, "..."]) -> Float[Array, "..."]:
    return (10.0 / np.log(10.0)) * jnp.log(power)

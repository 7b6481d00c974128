"""The mean of several networks for the same features: costs, seeds or architectures need not be chosen among.

Not in [JVR16]. It is fusion once more: weights on the simplex are averaged, and as the squared error of a fused frame
is convex in its weights, that of the mean is at most the mean of the networks' errors (Jensen's inequality). Networks
that fit their training recordings too closely err differently, so that the mean is often better than the best of them.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesfuse._module import Module
from bayesfuse.neural import FusionNetwork


class NetworkAverage(Module):
    """Arithmetic mean of the fusion weights of several networks, a network rule's `network` like any of them.

    Attributes
    ----------
    members
        Networks for the same features, sources, bands and models.

    Raises
    ------
    ValueError
        If there are no members, or they differ in features, sources, bands or models.
    """

    members: tuple[FusionNetwork, ...] = eqx.field(converter=tuple)

    def __check_init__(self) -> None:
        sizes = {(network.num_features, network.shape) for network in self.members}
        if len(sizes) != 1:
            raise ValueError(
                f"NetworkAverage got networks of (features, (source, band, model)) = {sorted(sizes)}; give at least "
                "one, and all trained on the same features and models."
            )

    @property
    def num_features(self) -> int:
        """Inputs of each network."""
        return self.members[0].num_features

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of sources, bands and models."""
        return self.members[0].shape

    def reordered(self, features: Sequence[int] | np.ndarray, models: Sequence[int]) -> "NetworkAverage":
        """The mean for features and models in another order, given by their indices in the order of this one."""
        return NetworkAverage([network.reordered(features, models) for network in self.members])

    def __call__(self, features: Float[Array, "*batch feature"]) -> Float[Array, "*batch source band model"]:
        """Logarithms of the fusion weights."""
        logs = jnp.stack([network(features) for network in self.members])
        return jax.nn.logsumexp(logs, axis=0) - np.float32(np.log(len(self.members)))

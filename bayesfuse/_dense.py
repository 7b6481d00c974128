"""The affine layer that the networks are made of."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from bayesfuse._module import Module
from bayesfuse._precision import precision


class Dense(Module):
    """y = W x + b over the last axis, for any leading axes."""

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"]

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return x @ self.weight.T + self.bias


def random_layers(key: PRNGKeyArray, sizes: Sequence[int], *, glorot: bool = False) -> tuple[Dense, ...]:
    """Layers from each of the sizes to the next, float32, with normal weights and biases of zero.

    The variance of the weights is 2 / inputs (He, for rectified units) or
    2 / (inputs + outputs) (Glorot, for sigmoids).
    """
    with precision():
        keys = jax.random.split(key, max(len(sizes) - 1, 1))
        layers = []
        for one, (inputs, outputs) in zip(keys, pairwise(sizes), strict=False):
            scale = np.float32(np.sqrt(2.0 / (inputs + (outputs if glorot else 0))))
            weight = scale * jax.random.normal(one, (outputs, inputs), jnp.float32)
            layers.append(Dense(weight, jnp.zeros(outputs, jnp.float32)))
    return tuple(layers)

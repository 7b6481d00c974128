"""Marginals of a chain whose neighbours prefer to be equal, by forward-backward recursions."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.jit, static_argnames="axis")
def chain_marginals(log_potentials: Any, stickiness: Any, *, axis: int = -1) -> Float[Array, "model ..."]:
    """The probability of every state at every place of a chain of models.

    The chain m_1, ..., m_N has p(m_1 ... m_N) ∝ prod_n phi_n(m_n) prod_{n>1} psi(m_{n-1}, m_n) with
    psi(m, m') = rho [m = m'] + (1 - rho) / M. At rho = 0 the places are independent: phi_n, normalised.

    Parameters
    ----------
    log_potentials
        log phi, [model, ...]; -inf excludes a model at a place, but not all of them.
    stickiness
        rho in [0, 1).
    axis
        The axis of the places, not the first one. Places at the end with potentials of one, such as padding, leave the
        others as they are.
    """
    potentials = jnp.moveaxis(log_potentials, axis, 0)
    potentials = jnp.exp(potentials - potentials.max(axis=1, keepdims=True))
    ones = jnp.ones_like(potentials[0])
    switch = (1.0 - stickiness) / potentials.shape[1]

    def forward(message: Any, potential: Any) -> tuple[Any, Any]:
        message = potential * (stickiness * message + switch)
        message = message / message.sum(axis=0, keepdims=True)
        return message, message

    def backward(message: Any, potential: Any) -> tuple[Any, Any]:
        product = potential * message
        earlier = stickiness * product + switch * product.sum(axis=0, keepdims=True)
        # The scale of a message is free; kept near one, it neither overflows nor vanishes.
        return earlier / earlier.max(axis=0, keepdims=True), message

    # A uniform message before the first place makes its prediction uniform, whatever the stickiness.
    _, past = jax.lax.scan(forward, ones / potentials.shape[1], potentials)
    _, future = jax.lax.scan(backward, ones, potentials, reverse=True)
    product = past * future
    return jnp.moveaxis(product / product.sum(axis=1, keepdims=True), 0, axis)

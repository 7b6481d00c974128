"""The problem of learning a Bayesian fusion rule: its parameters, and its loss as a function of them.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import Bounds
from scipy.special import expit, log_softmax

from bayesfuse._markov import chain_marginals
from bayesfuse._module import Module
from bayesfuse.objectives import TrainingLoss

# Bounds of theta, the logits of the prior where free energies are at their training mean: e^-40 is nothing.
_LOGIT = 40.0
# Bound of the logit of the stickiness, 0.9997.
_STICKIEST = 8.0
# Largest inverse temperature, relative to the spread of the free energies, where beta is not bounded.
_COLDEST = 1e4


class Scaled(NamedTuple):
    """Free energies per frame, less their mean over the models and their mean over the training data, over their
    spread.

    Then theta and the inverse temperatures in the logits theta + sum_k cold_k x_k hardly trade off against each other.
    """

    values: Float[np.ndarray, "term model example *unit"]
    blocked: Float[np.ndarray, "model example *unit"]  # -inf where a model is ruled out, else 0
    centre: Float[np.ndarray, "term model"]
    spread: Float[np.ndarray, " term"]

    @classmethod
    def of(cls, energy: np.ndarray, lengths: np.ndarray | None, criterion: TrainingLoss) -> "Scaled":
        possible = (energy > -np.inf).all(axis=0)
        possible |= ~possible.any(axis=0)
        present = possible * (criterion.frames > 0)
        values = np.where(present & (energy > -np.inf), energy, 0.0)
        if lengths is not None:
            values = values / lengths
        values = present * (values - values.sum(axis=1, keepdims=True) / np.maximum(present.sum(axis=0), 1))
        units = tuple(range(2, values.ndim))
        centre = values.sum(axis=units) / np.maximum(present.sum(axis=tuple(axis - 1 for axis in units)), 1)
        values = present * (values - centre.reshape(*centre.shape, *[1] * len(units)))
        spread = np.sqrt((values**2).sum(axis=(1, *units)) / max(present.sum(), 1))
        # A term that says nothing keeps its temperature out of it.
        spread = np.where(spread > 0, spread, 1.0)
        blocked = np.where(possible, 0.0, -np.inf)
        return cls(values / spread.reshape(-1, *[1] * (values.ndim - 1)), blocked, centre, spread)

    def total(self) -> "Scaled":
        """The same of the sum of the terms."""
        factors = self.spread.reshape(-1, *[1] * (self.values.ndim - 1))
        values = (self.values * factors).sum(axis=0, keepdims=True)
        spread = np.sqrt((values**2).sum() / max(np.count_nonzero(self.values.any(axis=0)), 1))
        spread = spread if spread > 0 else 1.0
        return Scaled(values / spread, self.blocked, self.centre.sum(axis=0, keepdims=True), np.array([spread]))


class Form(NamedTuple):
    """Which parameters there are: theta [model, set], v [term, set], and the logit of the stickiness.

    Attributes
    ----------
    models, terms, bands
        Sizes; `terms` and `bands` are 1 where these share their parameters.
    sticky
        Whether neighbouring frames depend on each other.
    """

    models: int
    terms: int = 1
    bands: int = 1
    sticky: bool = False

    def split(self, parameters: Any) -> tuple[Any, Any]:
        """theta and v."""
        border = self.models * self.bands
        theta, v = parameters[:border], parameters[border : border + self.terms * self.bands]
        return theta.reshape(self.models, self.bands), v.reshape(self.terms, self.bands)

    def join(self, theta: np.ndarray, v: np.ndarray, stickiness: float) -> Float[np.ndarray, " parameter"]:
        """Parameters from theta [model, 1], v [term, 1], the same for all bands, and the logit of the stickiness."""
        both = np.repeat(np.concatenate([theta, v]), self.bands, axis=1).ravel()
        return np.append(both, stickiness) if self.sticky else both

    def bounds(self, spread: np.ndarray, min_beta: float) -> Bounds:
        """Bounds of the parameters, given the spread of the free energies and the smallest temperature."""
        with np.errstate(divide="ignore"):
            coldest = np.arcsinh(np.minimum(spread / min_beta, _COLDEST))
        upper = self.join(np.full((self.models, 1), _LOGIT), coldest[:, None], _STICKIEST)
        lower = self.join(np.full((self.models, 1), -_LOGIT), np.zeros((self.terms, 1)), -_STICKIEST)
        return Bounds(lower, upper)  # pyright: ignore[reportArgumentType]  (typed as numbers)

    def values(self, parameters: np.ndarray, scaled: Scaled) -> tuple[np.ndarray, np.ndarray, float]:
        """log pi [model, set], beta [term, set] and the stickiness."""
        theta, v = self.split(parameters)
        inverse = np.sinh(v) / scaled.spread[:, None]
        log_prior = log_softmax(theta - np.einsum("kb,km->mb", inverse, scaled.centre), axis=0)
        with np.errstate(divide="ignore"):
            return log_prior, 1.0 / inverse, float(expit(parameters[-1])) if self.sticky else 0.0


class Problem(Module):
    """The loss as a function of parameters: logits theta + sum_k sinh(v_k) x_k over scaled free energies x.

    v = 0 is beta = inf exactly, and a unit of v is a like step whether beta is large or small.
    """

    energy: Float[Array | np.ndarray, "term model example *unit"]
    blocked: Float[Array | np.ndarray, "model example *unit"]
    loss: TrainingLoss
    form: Form = eqx.field(static=True)

    def weights(self, parameters: Any) -> Any:
        """[model, example, ...]."""
        theta, v = self.form.split(parameters)
        trailing = [1] * (self.blocked.ndim - 2)
        theta = theta.reshape(self.form.models, *trailing, self.form.bands)
        cold = jnp.sinh(v).reshape(self.form.terms, 1, *trailing, self.form.bands)
        logits = theta + (cold * self.energy).sum(axis=0) + self.blocked
        if not self.form.sticky:
            return jax.nn.softmax(logits, axis=0)
        # Frames of padding, at the end, get even potentials, and do not matter.
        logits = jnp.where(self.loss.frames > 0, logits, 0.0)
        return chain_marginals(logits, jax.nn.sigmoid(parameters[-1]), axis=2)

    def part(self, examples: slice) -> "Problem":
        """The part of the loss that belongs to some examples."""
        return Problem(self.energy[:, :, examples], self.blocked[:, examples], self.loss.part(examples), self.form)

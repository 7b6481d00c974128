"""NumPyro distributions of the library."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes, validate_sample

from bayesfuse.gig import Gig


class GeneralizedInverseGaussian(dist.Distribution):
    """Generalised inverse Gaussian: y^(concentration-1) exp(-rate y - inverse_rate/y), normalised.

    In the letters of the model: gamma, rho, tau. `inverse_rate = 0` is Gamma(concentration, rate) and wants
    `concentration > 0`; `concentration = -1/2` is the inverse Gaussian; reciprocals stay in the family.

    Log density, moments and entropy are differentiable in the parameters; draws are exact but not
    reparametrised.

    Parameters
    ----------
    concentration
        gamma, real.
    rate
        rho, positive.
    inverse_rate
        tau, zero or positive.
    validate_args
        Whether NumPyro checks parameters and values.
    """

    arg_constraints = {  # noqa: RUF012 (the way NumPyro declares it)
        "concentration": constraints.real,
        "rate": constraints.positive,
        "inverse_rate": constraints.nonnegative,
    }
    support = constraints.positive  # pyright: ignore[reportAssignmentType] (a property in the base class)
    reparametrized_params = []  # noqa: RUF012

    def __init__(
        self,
        concentration: Any,
        rate: Any = 1.0,
        inverse_rate: Any = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.concentration, self.rate, self.inverse_rate = promote_shapes(concentration, rate, inverse_rate)
        shapes = (jnp.shape(value) for value in (concentration, rate, inverse_rate))
        super().__init__(batch_shape=jax.lax.broadcast_shapes(*shapes), validate_args=validate_args)

    @property
    def gig(self) -> Gig:
        """The same distribution as a `Gig`, which has more statistics."""
        return Gig(self.concentration, self.rate, self.inverse_rate)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Return independent draws of shape `sample_shape + batch_shape`."""
        full = tuple(sample_shape) + tuple(self.batch_shape)
        parameters = (self.concentration, self.rate, self.inverse_rate)
        return Gig(*(jnp.broadcast_to(jnp.asarray(value), full) for value in parameters)).sample(key)

    @validate_sample
    def log_prob(self, value: Any) -> Float[Array, "..."]:
        """Return the logarithm of the density at `value` > 0."""
        return self.gig.log_prob(value)

    @property
    def mean(self) -> Float[Array, "..."]:
        """E[y]."""
        return jnp.broadcast_to(self.gig.mean, self.batch_shape)

    @property
    def variance(self) -> Float[Array, "..."]:
        """E[y^2] - E[y]^2."""
        return jnp.broadcast_to(self.gig.variance, self.batch_shape)

    def entropy(self) -> Float[Array, "..."]:
        """Return the differential entropy in nats."""
        return jnp.broadcast_to(self.gig.entropy, self.batch_shape)

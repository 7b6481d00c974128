"""The variational model of `vbnmf` as data: prior, posterior, free energy, and the variances they imply."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesfuse._module import Module
from bayesfuse._precision import precision
from bayesfuse.special import FixedOrder, fixed_order

Variant = Literal["marginal", "explicit"]
Temper = Literal["kl", "entropy"]

MAX_COMBINATIONS = 64


class GammaPrior(Module):
    """Gamma(shape, rate) prior of one factor; the shape comes with its precomputed Bessel functions."""

    shape: FixedOrder
    rate: Float[Array, ""]


class Prior(Module):
    """Prior of the model, and the tempering of q(K). Build it with `make_prior`.

    Attributes
    ----------
    dictionaries, activations
        Gamma priors, ``[source][order]``.
    order
        log pi_j, one vector over candidate orders per source.
    noise
        sigma2, in the unit of the power the model is given.
    beta
        Temperature, in the unit of the total free energy (nats are divided by it).
    temper
        ``"kl"``: q(K) ~ pi exp(L / beta), [JVR16] eq. 18, maximises L - (beta - 1) KL(q(K) || pi), still a lower
        bound; ``"entropy"``: q(K) ~ (pi exp L)^(1/beta), [JVR14] eq. 18, maximises L + (beta - 1) H[q(K)].
    one_shape
        Whether all orders of a source share the shapes of their priors, which lets their updates share work.
    """

    dictionaries: tuple[tuple[GammaPrior, ...], ...]
    activations: tuple[tuple[GammaPrior, ...], ...]
    order: tuple[Float[Array, "_"], ...]
    noise: Float[Array, ""]
    beta: Float[Array, ""]
    temper: Temper = eqx.field(static=True)
    one_shape: bool = eqx.field(static=True)


class Factor(Module):
    """Posterior of a dictionary [freq, component] or of activations [component, frame], entry by entry GIG.

    `rho` and `tau` are the parameters of the density y^(shape - 1) exp(-rho y - tau / y), None for a Dirac, whose
    mean and harmonic mean are equal. A factor that is not `learned` is held fixed and has no term in the free energy,
    be it a Dirac or a posterior kept from training, which then is its own prior.
    """

    mean: Float[Array, "row column"]
    harmonic: Float[Array, "row column"]
    rho: Float[Array, "row column"] | None = None
    tau: Float[Array, "row column"] | None = None
    learned: bool = eqx.field(static=True, default=False)


class Component(Module):
    """Posterior of one candidate order of one source."""

    dictionary: Factor
    activations: Factor

    @property
    def order(self) -> int:
        return self.dictionary.mean.shape[1]


class Posterior(Module):
    """Variational posterior q.

    Attributes
    ----------
    components
        ``[source][order]``.
    log_order
        ``"marginal"``: one vector log q over `combinations`; ``"explicit"``: log q(K_j), one vector per source.
    source_variance
        ``"explicit"`` only: C_j of q(S), [source, freq, frame]; q(s_fn) has mean C_j x / den and covariance
        diag(C) - C C' / den with den = sigma2 + sum_j C_j.
    """

    components: tuple[tuple[Component, ...], ...]
    log_order: tuple[Float[Array | np.ndarray, "_"], ...]
    source_variance: Float[Array, "source freq frame"] | None
    variant: Variant = eqx.field(static=True)

    @property
    def combinations(self) -> tuple[tuple[int, ...], ...]:
        """All choices of one candidate per source, the last source varying fastest."""
        return tuple(itertools.product(*(range(len(orders)) for orders in self.components)))

    def order_probabilities(self, source: int) -> Float[Array, " order"]:
        """q(K_source), the marginal posterior over the candidate orders of one source."""
        if self.variant == "explicit":
            return jnp.exp(self.log_order[source])
        q = jnp.exp(self.log_order[0]).reshape([len(orders) for orders in self.components])
        return q.sum(tuple(axis for axis in range(q.ndim) if axis != source))

    def combination_probabilities(self) -> Float[Array, " combination"]:
        """q over `combinations`; a product of the sources' posteriors in the explicit variant."""
        if self.variant == "marginal":
            return jnp.exp(self.log_order[0])
        return jnp.exp(combine_logs(self.log_order))


class FreeEnergy(Module):
    """Lower bound of log p(X) in nats, unsummed: [JVR16] eqs. 35, 36.

    Attributes
    ----------
    frames
        Data, source and activation terms of each frame.
    dictionary
        sum of E[log p(W)] - E[log q(W)] over the learned dictionaries, averaged over q(K); 0 for fixed ones.
    order
        -KL(q(K) || pi).
    """

    frames: Float[Array | np.ndarray, " frame"]
    dictionary: Float[Array | np.ndarray, ""]
    order: Float[Array | np.ndarray, ""]

    @property
    def total(self) -> float:
        """The bound: all parts, added in double precision."""
        return float(np.sum(np.asarray(self.frames), dtype=np.float64)) + float(self.dictionary) + float(self.order)

    def per_frame(self, dictionary: str = "split") -> Float[np.ndarray, " frame"]:
        """Free energy L_n of each frame in double precision, without the order part.

        Parameters
        ----------
        dictionary
            What becomes of the dictionary part, which belongs to no frame. ``"split"``: divided between the frames, so
            that they sum to ``total - order``; ``"repeat"``: [JVR16] eq. 36 to the letter, the whole part in every
            frame; ``"none"``: left out. The three agree for fixed dictionaries.
        """
        frames = np.asarray(self.frames, dtype=np.float64)
        shares = {"split": 1.0 / max(frames.shape[0], 1), "repeat": 1.0, "none": 0.0}
        if dictionary not in shares:
            raise ValueError(f"dictionary={dictionary!r}: expected one of 'split', 'repeat', 'none'.")
        return frames + shares[dictionary] * float(self.dictionary)


class Scores(NamedTuple):
    """Free energy of each choice of orders before averaging: bound of log p(X | choice) without log pi."""

    frames: Float[Array, "choice frame"]
    dictionary: Float[Array, " choice"]


class Terms(NamedTuple):
    """The parts that a combination's free energy is the sum of, before averaging; all in nats."""

    data: Float[Array | np.ndarray, "choice band frame"]  # expected log likelihood, over groups of frequencies
    activations: Float[Array | np.ndarray, "source choice frame"]  # E[log p(H)] - E[log q(H)] of each source
    dictionary: Float[Array | np.ndarray, "source choice"]  # the same of the learned dictionaries


def make_prior(
    orders: Sequence[Sequence[int]],
    *,
    a: float | Sequence[Sequence[float]] = 0.2,
    b: float | Sequence[Sequence[float]] = 0.2,
    noise: float = 1e-6,
    beta: float = 1.0,
    order: Sequence[Sequence[float] | Float[np.ndarray, "_"]] | None = None,
    activation_mean: Sequence[Sequence[float]] | None = None,
    temper: Temper = "kl",
    dtype: np.dtype | type = np.float32,
) -> Prior:
    """Return the prior of a model with candidate orders `orders`, ``[source][order]``.

    Parameters
    ----------
    a, b
        Shapes of the Gamma priors of dictionaries and activations, one number or ``[source][order]``. The rate equals
        the shape (mean 1) unless `activation_mean` says otherwise.
    noise
        Variance sigma2 of the observation noise. `fit` divides the mixture by its root mean power, so there it is
        relative to the mixture's mean power.
    beta
        Temperature of q(K), in nats of the total free energy; infinity keeps the prior.
    order
        Prior probabilities pi_j of the orders, one vector per source; uniform by default.
    activation_mean
        Prior mean of the activations, ``[source][order]``; 1 by default. A learned dictionary of order K wants 1/K, so
        that all orders predict the same mean power.
    temper
        See `Prior`.

    Raises
    ------
    ValueError
        For shapes, noise or temperature that are not positive numbers, or vectors of another length than the orders.
    """
    layout = [len(candidates) for candidates in orders]
    if not layout or min(layout) == 0:
        raise ValueError("orders needs at least one source and one candidate order per source.")
    if min(min(candidates) for candidates in orders) < 1:
        raise ValueError(f"orders={orders}: an order is the number of components of a source, at least 1.")
    if math.prod(layout) > MAX_COMBINATIONS:
        raise ValueError(
            f"{' x '.join(map(str, layout))} candidate orders make {math.prod(layout)} combinations; at most "
            f"{MAX_COMBINATIONS} are supported: give fewer candidates to all sources but one."
        )
    shapes_a = _table("a", a, layout)
    shapes_b = _table("b", b, layout)
    means = _table("activation_mean", 1.0 if activation_mean is None else activation_mean, layout)
    for name, value, zero_allowed in (("noise", noise, True), ("beta", beta, False)):
        if math.isnan(value) or value < 0 or (value == 0 and not zero_allowed) or (name == "noise" and value == np.inf):
            raise ValueError(f"{name}={value}: expected a positive number.")
    if temper not in ("kl", "entropy"):
        raise ValueError(f"temper={temper!r}: expected 'kl' or 'entropy'.")
    log_order = []
    for j, count in enumerate(layout):
        pi = np.full(count, 1.0 / count) if order is None else np.asarray(order[j], dtype=np.float64)
        if pi.shape != (count,) or not np.all(pi > 0) or not math.isclose(pi.sum(), 1.0, rel_tol=1e-6):
            raise ValueError(f"order[{j}]={order and order[j]}: expected {count} positive probabilities that sum to 1.")
        log_order.append(np.log(pi))

    def gamma(shape: float, mean: float) -> GammaPrior:
        return GammaPrior(fixed_order(shape, dtype), jnp.asarray(shape / mean, dtype=dtype))

    with precision(np.dtype(dtype)):
        return Prior(
            dictionaries=tuple(tuple(gamma(s, 1.0) for s in row) for row in shapes_a),
            activations=tuple(
                tuple(gamma(s, m) for s, m in zip(row, row_means, strict=True))
                for row, row_means in zip(shapes_b, means, strict=True)
            ),
            order=tuple(jnp.asarray(vector, dtype=dtype) for vector in log_order),
            noise=jnp.asarray(noise, dtype=dtype),
            beta=jnp.asarray(beta, dtype=dtype),
            temper=temper,
            one_shape=all(len(set(row)) == 1 for row in shapes_a + shapes_b),
        )


def _table(name: str, value: float | Sequence[Sequence[float]], layout: list[int]) -> list[list[float]]:
    """Broadcast a number to ``[source][order]`` and check that every entry is a positive number."""
    if isinstance(value, int | float | np.number):
        table = [[float(value)] * count for count in layout]
    else:
        table = [[float(v) for v in row] for row in value]
        if [len(row) for row in table] != layout:
            raise ValueError(f"{name} has {[len(r) for r in table]} entries per source, expected {layout}.")
    for row in table:
        for v in row:
            if not 0 < v < math.inf:
                raise ValueError(f"{name}={v}: a Gamma prior needs a positive, finite value.")
    return table


def expected_variance(component: Component) -> Float[Array, "freq frame"]:
    """omega_jm = E[W] E[H], the posterior mean of the variance: [JVR14] eq. 13."""
    return component.dictionary.mean @ component.activations.mean


def harmonic_variance(component: Component) -> Float[Array, "freq frame"]:
    """C_jm = sum_k 1 / (E[1/w_k] E[1/h_k]), the variance that the Wiener filter uses: [JVR14] eq. 14."""
    return component.dictionary.harmonic @ component.activations.harmonic


class Variances(NamedTuple):
    """omega_jm and C_jm of every order, ``[source][order]``: what the updates share and hand on to each other."""

    expected: tuple[tuple[Float[Array, "freq frame"], ...], ...]
    harmonic: tuple[tuple[Float[Array, "freq frame"], ...], ...]


def variances(q: Posterior) -> Variances:
    """The variances of every order under q."""
    return Variances(
        tuple(tuple(expected_variance(c) for c in orders) for orders in q.components),
        tuple(tuple(harmonic_variance(c) for c in orders) for orders in q.components),
    )


def combine_logs(per_source: Sequence[Float[Array | np.ndarray, "_"]]) -> Float[Array, " combination"]:
    """log of the product distribution over combinations of independent per-source vectors."""
    total = jnp.asarray(per_source[0])
    for vector in per_source[1:]:
        total = (total[:, None] + vector[None, :]).reshape(-1)
    return total


def sum_variances(
    noise: Float[Array, ""], tables: Sequence[Sequence[Float[Array, "freq frame"]]], choice: tuple[int, ...]
) -> Float[Array, "freq frame"]:
    total = noise
    for source, order in enumerate(choice):
        total = total + tables[source][order]
    return total


def over(numerator: Float[Array, "*s"], denominator: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """numerator / denominator >= 0 with 0 / 0 = 0: a silent bin under a dead model contributes nothing."""
    return numerator / jnp.maximum(denominator, jnp.finfo(denominator.dtype).tiny)


def over_square(numerator: Float[Array, "*s"], denominator: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """numerator / denominator^2 >= 0 without the square, which underflows in float32, and with 0 / 0 = 0."""
    reciprocal = 1.0 / jnp.maximum(denominator, jnp.finfo(denominator.dtype).tiny)
    return numerator * reciprocal * reciprocal


def full_mask(power: Float[Array, "freq frame"], mask: Float[Array, " frame"] | None) -> Float[Array, " frame"]:
    return jnp.ones(power.shape[1], power.dtype) if mask is None else mask


def valid(mask: Float[Array, " frame"], values: Float[Array, "*batch frame"]) -> Float[Array, "*batch frame"]:
    """`values` where the mask is 1, else 0: padded frames, whose activations die at once, may hold log 0."""
    return jnp.where(mask > 0, values, 0.0)

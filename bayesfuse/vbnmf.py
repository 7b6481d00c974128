"""Variational Bayesian NMF whose model orders are random variables: prior, posterior, updates, free energy.

The model of [JVR14], with the extensions of [JVR16]. For the STFT coefficients of a mixture of J sources,

    x_fn = sum_j s_j,fn + e_fn,       e_fn ~ CN(0, sigma2),
    s_j,fn | K_j = m ~ CN(0, sum_k w_jm,fk h_jm,kn),
    w_jm,fk ~ Gamma(a, rate a / mean),  h_jm,kn ~ Gamma(b, rate b / mean),  K_j ~ Categorical(pi_j),

where the order K_j of every source is drawn from its own list of candidates and every candidate owns a dictionary W_jm
and activations H_jm. One candidate per source is ordinary VB-NMF. Two lower bounds of log p(X) are maximised by
coordinate ascent over generalised inverse Gaussian factors:

``"explicit"``
    the bound of [JVR14]: the sources stay in q(S), a Gaussian with full J x J covariance in every bin, the orders are
    independent between sources, and the orders of a source mix harmonically inside C_j ([JVR14] eq. 16);
``"marginal"``
    the sources are integrated out before bounding, which is tighter at equal factors. q(K) is a distribution over the
    combinations of orders (one order per source) and the fused estimate is the convex sum of the Wiener estimates of
    the combinations, an instance of [JVR16] eq. 2. This bound is not in the papers.

Both depend on the mixture through its power |x_fn|^2 alone, which is what the functions take. Every factor is held
through its mean E[y] and harmonic mean 1/E[1/y]; E[1/y] itself is infinite in the legitimate limit of a component that
dies (a Gamma posterior with shape <= 1) and is never formed. The auxiliary variables omega and phi of [JVR14] are
always at their optimum (eqs. 13, 14), which leaves omega_jm = E[W] E[H] and C_jm = g_W g_H, g the harmonic means.

Departures from the print: the exponent of E[1/W] in [JVR14] eq. 17 is -2; the joint entropy of the sources is used in
[JVR16] eqs. 35, 36 (the sum of marginal entropies is not a bound); a Dirac dictionary contributes neither a prior
density nor an entropy.

References
----------
[JVR14] X. Jaureguiberry, E. Vincent, G. Richard. Variational Bayesian model averaging for audio source separation.
    IEEE Workshop on Statistical Signal Processing, 2014.
[JVR16] X. Jaureguiberry, E. Vincent, G. Richard. Fusion methods for speech enhancement and audio source separation.
    IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bayesfuse import gig
from bayesfuse._precision import precision
from bayesfuse.special import FixedOrder, fixed_order

Variant = Literal["marginal", "explicit"]
Temper = Literal["kl", "entropy"]

MAX_COMBINATIONS = 64
_LOG_PI = math.log(math.pi)


class GammaPrior(eqx.Module):
    """Gamma(shape, rate) prior of one factor; the shape comes with its precomputed Bessel functions."""

    shape: FixedOrder
    rate: Float[Array, ""]


class Prior(eqx.Module):
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


class Factor(eqx.Module):
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


class Component(eqx.Module):
    """Posterior of one candidate order of one source."""

    dictionary: Factor
    activations: Factor

    @property
    def order(self) -> int:
        return self.dictionary.mean.shape[1]


class Posterior(eqx.Module):
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


class FreeEnergy(eqx.Module):
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

    def per_frame(self, dictionary: Literal["split", "repeat", "none"] = "split") -> Float[np.ndarray, " frame"]:
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


# Second-order quantities -------------------------------------------------------------------------------------------


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
    total = per_source[0]
    for vector in per_source[1:]:
        total = (total[:, None] + vector[None, :]).reshape(-1)
    return total


def _sum_variances(
    noise: Float[Array, ""], tables: Sequence[Sequence[Float[Array, "freq frame"]]], choice: tuple[int, ...]
) -> Float[Array, "freq frame"]:
    total = noise
    for source, order in enumerate(choice):
        total = total + tables[source][order]
    return total


def _over(numerator: Float[Array, "*s"], denominator: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """numerator / denominator with 0 / 0 = 0: a silent bin under a dead model contributes nothing."""
    return jnp.where(numerator == 0, 0.0, numerator / denominator)


def _over_square(numerator: Float[Array, "*s"], denominator: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """numerator / denominator^2 without forming the square, which underflows in float32, and with 0 / 0 = 0."""
    reciprocal = 1.0 / denominator
    return jnp.where(numerator == 0, 0.0, numerator * reciprocal * reciprocal)


# Updates of the factors --------------------------------------------------------------------------------------------


class _Weights(NamedTuple):
    """How the bound sees the variance of one order: const - slope . E[w h] - curve . phi^2 E[1/w] E[1/h]."""

    slope: Float[Array, "freq frame"]
    curve: Float[Array, "freq frame"]


Update = Callable[[Sequence[Component], int, Prior, Sequence[_Weights]], list[Component]]


def _posteriors(
    priors: Sequence[GammaPrior],
    rhos: Sequence[Float[Array, "_ _"]],
    taus: Sequence[Float[Array, "_ _"]],
    one_shape: bool,
) -> list[Factor]:
    """GIG posteriors from their parameters. Matrices of one prior shape go through the Bessel functions together."""
    if one_shape and len(rhos) > 1:
        ends = np.cumsum([rho.size for rho in rhos])[:-1]
        rho = jnp.concatenate([rho.reshape(-1) for rho in rhos])
        tau = jnp.concatenate([tau.reshape(-1) for tau in taus])
        split = [jnp.split(y, ends) for y in gig.moments(priors[0].shape, rho, tau)]
        pairs = [(m.reshape(r.shape), g.reshape(r.shape)) for m, g, r in zip(*split, rhos, strict=True)]
    else:
        pairs = [gig.moments(p.shape, r, t) for p, r, t in zip(priors, rhos, taus, strict=True)]
    return [Factor(m, g, r, t, learned=True) for (m, g), r, t in zip(pairs, rhos, taus, strict=True)]


def _update_dictionaries(
    orders: Sequence[Component], j: int, prior: Prior, weights: Sequence[_Weights]
) -> list[Component]:
    """q(W) of all orders of source j, [JVR14] eq. 17; fixed dictionaries stay as they are."""
    learned = [m for m, c in enumerate(orders) if c.dictionary.learned]
    priors = [prior.dictionaries[j][m] for m in learned]
    rhos, taus = [], []
    for m, p in zip(learned, priors, strict=True):
        w, h = orders[m].dictionary, orders[m].activations
        rhos.append(p.rate + weights[m].slope @ h.mean.T)
        taus.append(w.harmonic * (w.harmonic * (weights[m].curve @ h.harmonic.T)))
    updated = list(orders)
    for m, factor in zip(learned, _posteriors(priors, rhos, taus, prior.one_shape), strict=True):
        updated[m] = Component(factor, orders[m].activations)
    return updated


def _update_activations(
    orders: Sequence[Component], j: int, prior: Prior, weights: Sequence[_Weights]
) -> list[Component]:
    """q(H) of all orders of source j, the mirror image."""
    priors = prior.activations[j]
    rhos, taus = [], []
    for c, p, weight in zip(orders, priors, weights, strict=True):
        w, h = c.dictionary, c.activations
        rhos.append(p.rate + w.mean.T @ weight.slope)
        taus.append(h.harmonic * (h.harmonic * (w.harmonic.T @ weight.curve)))
    factors = _posteriors(priors, rhos, taus, prior.one_shape)
    return [Component(c.dictionary, factor) for c, factor in zip(orders, factors, strict=True)]


def _multiply_activations(
    orders: Sequence[Component], j: int, prior: Prior, weights: Sequence[_Weights]
) -> list[Component]:
    """Maximum-likelihood activations: the multiplicative Itakura-Saito update, mean and harmonic mean equal."""
    updated = []
    for c, weight in zip(orders, weights, strict=True):
        w, h = c.dictionary, c.activations
        slope = w.mean.T @ weight.slope
        mean = jnp.where(slope > 0, h.mean * (w.mean.T @ weight.curve) / slope, h.mean)  # no slope in padded frames
        # An exact zero could never revive under a shape below one, whose harmonic mean stays zero.
        mean = jnp.maximum(mean, 1e-6 / c.order)
        updated.append(Component(w, Factor(mean, mean, h.rho, h.tau, learned=True)))
    return updated


def _refreshed(v: Variances, j: int, before: Sequence[Component], after: Sequence[Component]) -> Variances:
    """`v` with the variances of source j made anew where its components changed."""
    expected = [v.expected[j][m] if new is old else expected_variance(new) for m, (old, new) in _pairs(before, after)]
    harmonic = [v.harmonic[j][m] if new is old else harmonic_variance(new) for m, (old, new) in _pairs(before, after)]
    return Variances(
        (*v.expected[:j], tuple(expected), *v.expected[j + 1 :]),
        (*v.harmonic[:j], tuple(harmonic), *v.harmonic[j + 1 :]),
    )


def _pairs(before: Sequence[Component], after: Sequence[Component]) -> list[tuple[int, tuple[Component, Component]]]:
    return list(enumerate(zip(before, after, strict=True)))


def _sweep_marginal(
    power: Float[Array, "freq frame"],
    q: Posterior,
    v: Variances,
    prior: Prior,
    mask: Float[Array, " frame"],
    update: Update,
) -> tuple[Posterior, Variances]:
    """Apply `update` to one source after the other under the marginal bound, with fresh variances.

    The orders of one source never meet in a combination, so that they update independently. A factor that several
    combinations c share sees the average, over q(c) among them, of 1/omega_c and |x|^2/C_c^2; the weights are formed
    in log space, so that they exist when q(c) itself underflows.
    """
    components = list(q.components)
    for j, orders in enumerate(components):
        weights = []
        for m in range(len(orders)):
            users = [i for i, choice in enumerate(q.combinations) if choice[j] == m]
            shares = jax.nn.softmax(q.log_order[0][np.array(users)])
            slope = jnp.zeros_like(power)
            curve = jnp.zeros_like(power)
            for position, i in enumerate(users):
                choice = q.combinations[i]
                slope = slope + shares[position] / _sum_variances(prior.noise, v.expected, choice)
                total = _sum_variances(prior.noise, v.harmonic, choice)
                curve = curve + shares[position] * _over_square(power, total)
            weights.append(_Weights(_valid(mask, slope), _valid(mask, curve)))
        components[j] = tuple(update(orders, j, prior, weights))
        v = _refreshed(v, j, orders, components[j])
    return eqx.tree_at(lambda t: t.components, q, tuple(components)), v


def _sweep_explicit(
    power: Float[Array, "freq frame"],
    q: Posterior,
    v: Variances,
    prior: Prior,
    mask: Float[Array, " frame"],
    update: Update,
) -> tuple[Posterior, Variances]:
    """Apply `update` to every source given q(S), which makes all orders independent: [JVR14] eq. 17."""
    second = source_power(power, q, prior)
    components = list(q.components)
    for j, orders in enumerate(components):
        weights = [
            _Weights(_valid(mask, 1.0 / omega), _valid(mask, _over_square(second[j], harmonic)))
            for omega, harmonic in zip(v.expected[j], v.harmonic[j], strict=True)
        ]
        components[j] = tuple(update(orders, j, prior, weights))
        v = _refreshed(v, j, orders, components[j])
    return eqx.tree_at(lambda t: t.components, q, tuple(components)), v


def _update_block(
    block: str,
    power: Float[Array, "freq frame"],
    q: Posterior,
    v: Variances,
    prior: Prior,
    mask: Float[Array, " frame"],
) -> tuple[Posterior, Variances]:
    """One block of `step`; the variances that come in belong to q, and so do those that go out."""
    sweep = _sweep_marginal if q.variant == "marginal" else _sweep_explicit
    if block == "S":
        return _update_sources(q, v), v
    if block == "W":
        return sweep(power, q, v, prior, mask, _update_dictionaries)
    if block == "H":
        return sweep(power, q, v, prior, mask, _update_activations)
    if block == "K":
        return _update_orders(power, q, v, prior, mask), v
    raise ValueError(f"sequence: {block!r} is not one of the blocks S, W, H, K.")


def update_dictionaries(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"] | None = None
) -> Posterior:
    """Return q with every learned dictionary at its optimum, one after the other."""
    return step(power, q, prior, mask, sequence="W")


def update_activations(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"] | None = None
) -> Posterior:
    """Return q with all activations at their optimum, one order after the other."""
    return step(power, q, prior, mask, sequence="H")


def update_orders(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"] | None = None
) -> Posterior:
    """Return q with q(K) at its tempered optimum: [JVR16] eq. 18 or [JVR14] eq. 18, as `Prior.temper` says."""
    return step(power, q, prior, mask, sequence="K")


def update_sources(q: Posterior, prior: Prior) -> Posterior:
    """Return q with q(S) at its optimum, 1/C_j = sum_m q_jm / C_jm ([JVR14] eqs. 15, 16); no-op when marginal."""
    return _update_sources(q, variances(q))


def multiplicative_steps(
    power: Float[Array, "freq frame"],
    q: Posterior,
    prior: Prior,
    mask: Float[Array, " frame"],
    count: Int[Array, ""] | int,
) -> Posterior:
    """Return q after maximum-likelihood updates of all activations ([JVR16] eqs. 28-30), to start from."""

    def body(_: Array, state: tuple[Posterior, Variances]) -> tuple[Posterior, Variances]:
        return _sweep_marginal(power, *state, prior, mask, _multiply_activations)

    return jax.lax.fori_loop(0, count, body, (q, variances(q)))[0]


def _update_sources(q: Posterior, v: Variances) -> Posterior:
    if q.variant == "marginal":
        return q
    combined = []
    for harmonic, log_q in zip(v.harmonic, q.log_order, strict=True):
        # An order with q = 0 does not count, not even where its variance is 0 as well.
        inverse = sum(jnp.where(p > 0, p / c, 0.0) for p, c in zip(jnp.exp(log_q), harmonic, strict=True))
        combined.append(1.0 / inverse)
    return eqx.tree_at(lambda t: t.source_variance, q, jnp.stack(combined))


def source_power(power: Float[Array, "freq frame"], q: Posterior, prior: Prior) -> Float[Array, "source freq frame"]:
    """E|s_j|^2 under q(S): squared mean plus variance, without the subtraction C - C^2/den."""
    assert q.source_variance is not None
    variance = q.source_variance
    total = prior.noise + variance.sum(0)
    others = prior.noise + jnp.stack([sum_except(variance, j) for j in range(variance.shape[0])])
    return variance * (others / total) + (variance / total) ** 2 * power


def sum_except(variance: Float[Array, "source freq frame"], j: int) -> Float[Array, "freq frame"]:
    """Sum over the other sources, without subtracting."""
    others = [variance[i] for i in range(variance.shape[0]) if i != j]
    return sum(others, jnp.zeros_like(variance[j]))


def _update_orders(
    power: Float[Array, "freq frame"], q: Posterior, v: Variances, prior: Prior, mask: Float[Array, " frame"]
) -> Posterior:
    if max(len(orders) for orders in q.components) == 1:
        return q
    log_q = []
    for scores, log_pi in zip(*_scores_and_priors(power, q, v, prior, mask), strict=True):
        # Only differences between choices matter: taking them frame by frame keeps them exact in float32, where
        # totals of 1e6 nats are not.
        relative = (scores.frames - scores.frames.mean(0)).sum(-1) + scores.dictionary - scores.dictionary.mean()
        log_prior = log_pi if prior.temper == "kl" else log_pi / prior.beta
        log_q.append(jax.nn.log_softmax(log_prior + relative / prior.beta))
    return eqx.tree_at(lambda t: t.log_order, q, tuple(log_q))


def step(
    power: Float[Array, "freq frame"],
    q: Posterior,
    prior: Prior,
    mask: Float[Array, " frame"] | None = None,
    *,
    sequence: str = "SWHK",
    count: Int[Array, ""] | int = 1,
) -> Posterior:
    """Return q after one or several sweeps of coordinate ascent; the objective of `tempered` never falls.

    Parameters
    ----------
    power
        |X|^2, [freq, frame], in the unit of the prior's noise.
    mask
        1 for frames that count and 0 for padding; all ones by default.
    sequence
        Blocks in the order they are updated: S the sources, W dictionaries, H activations, K model orders.
    count
        Number of sweeps.
    """
    full = _full(power, mask)

    def body(_: Array | int, state: tuple[Posterior, Variances]) -> tuple[Posterior, Variances]:
        for block in sequence:
            state = _update_block(block, power, *state, prior, full)
        return state

    start = (q, variances(q))
    if isinstance(count, int) and count == 1:
        return body(0, start)[0]
    return jax.lax.fori_loop(0, count, body, start)[0]


# Free energy -------------------------------------------------------------------------------------------------------


def _full(power: Float[Array, "freq frame"], mask: Float[Array, " frame"] | None) -> Float[Array, " frame"]:
    return jnp.ones(power.shape[1], power.dtype) if mask is None else mask


def _valid(mask: Float[Array, " frame"], values: Float[Array, "*batch frame"]) -> Float[Array, "*batch frame"]:
    """`values` where the mask is 1, else 0: padded frames, whose activations die at once, may hold log 0."""
    return jnp.where(mask > 0, values, 0.0)


def _gamma_terms(factors: Sequence[Factor], priors: Sequence[GammaPrior], one_shape: bool) -> list[Float[Array, "_ _"]]:
    """E[log p] - E[log q] of every entry of some learned factors."""
    rhos = [f.rho for f in factors if f.rho is not None]
    taus = [f.tau for f in factors if f.tau is not None]
    if not one_shape or len(rhos) < 2:
        triples = zip(priors, rhos, taus, strict=True)
        return [gig.prior_minus_posterior(p.shape, p.rate, rho, tau) for p, rho, tau in triples]
    ends = np.cumsum([rho.size for rho in rhos])[:-1]
    terms = gig.prior_minus_posterior(
        priors[0].shape,
        jnp.concatenate([jnp.broadcast_to(p.rate, rho.size) for p, rho in zip(priors, rhos, strict=True)]),
        jnp.concatenate([rho.reshape(-1) for rho in rhos]),
        jnp.concatenate([tau.reshape(-1) for tau in taus]),
    )
    return [part.reshape(rho.shape) for part, rho in zip(jnp.split(terms, ends), rhos, strict=True)]


def _factor_terms(
    q: Posterior, prior: Prior
) -> tuple[list[list[Float[Array, ""]]], list[list[Float[Array, " frame"]]]]:
    """E[log p] - E[log q] of the dictionaries (a number) and activations (per frame), ``[source][order]``."""
    dictionary, activations = [], []
    for j, orders in enumerate(q.components):
        terms = _gamma_terms([c.activations for c in orders], prior.activations[j], prior.one_shape)
        activations.append([term.sum(0) for term in terms])
        learned = [m for m, c in enumerate(orders) if c.dictionary.learned]
        terms = _gamma_terms(
            [orders[m].dictionary for m in learned], [prior.dictionaries[j][m] for m in learned], prior.one_shape
        )
        row = [prior.noise * 0] * len(orders)
        for m, term in zip(learned, terms, strict=True):
            row[m] = term.sum()
        dictionary.append(row)
    return dictionary, activations


def combination_scores(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"] | None = None
) -> Scores:
    """Marginal bound of log p(X | combination), per combination and frame.

    sum_f { -log pi - log omega_c - |x|^2 / C_c } plus the Gamma terms of the chosen orders.
    """
    return _combination_scores(power, q, variances(q), prior, _full(power, mask))


def _combination_scores(
    power: Float[Array, "freq frame"], q: Posterior, v: Variances, prior: Prior, mask: Float[Array, " frame"]
) -> Scores:
    dictionary, activations = _factor_terms(q, prior)
    frames, constants = [], []
    for choice in q.combinations:
        total = _sum_variances(prior.noise, v.expected, choice)
        filtered = _sum_variances(prior.noise, v.harmonic, choice)
        data = -(jnp.log(total) + _over(power, filtered)).sum(0) - power.shape[0] * _LOG_PI
        frames.append(_valid(mask, data + sum(activations[j][m] for j, m in enumerate(choice))))
        constants.append(sum(dictionary[j][m] for j, m in enumerate(choice)))
    return Scores(jnp.stack(frames), jnp.stack(constants))


def source_scores(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"] | None = None
) -> tuple[Scores, ...]:
    """Explicit variant: log q~(K_j = m) of every source without log pi, [JVR14] eq. 12, per order and frame."""
    return _source_scores(power, q, variances(q), prior, _full(power, mask))


def _source_scores(
    power: Float[Array, "freq frame"], q: Posterior, v: Variances, prior: Prior, mask: Float[Array, " frame"]
) -> tuple[Scores, ...]:
    second = source_power(power, q, prior)
    dictionary, activations = _factor_terms(q, prior)
    scores = []
    for j in range(len(q.components)):
        frames = []
        for m, (omega, harmonic) in enumerate(zip(v.expected[j], v.harmonic[j], strict=True)):
            bins = jnp.log(omega) + _over(second[j], harmonic)
            frames.append(_valid(mask, activations[j][m] - bins.sum(0) - power.shape[0] * _LOG_PI))
        scores.append(Scores(jnp.stack(frames), jnp.stack(dictionary[j])))
    return tuple(scores)


def _scores_and_priors(
    power: Float[Array, "freq frame"], q: Posterior, v: Variances, prior: Prior, mask: Float[Array, " frame"]
) -> tuple[tuple[Scores, ...], tuple[Float[Array | np.ndarray, "_"], ...]]:
    if q.variant == "marginal":
        return (_combination_scores(power, q, v, prior, mask),), (combine_logs(prior.order),)
    return _source_scores(power, q, v, prior, mask), prior.order


def _mixing_frames(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"]
) -> Float[Array, " frame"]:
    """Explicit variant: E[log p(x | s)] + H[q(s)] per frame, with log sigma2 cancelled analytically."""
    assert q.source_variance is not None
    variance = q.source_variance
    sources = variance.shape[0]
    signal = variance.sum(0)
    total = prior.noise + signal
    bins = jnp.log(variance).sum(0) - jnp.log(total) - signal / total - (power / total) * (prior.noise / total)
    return _valid(mask, bins.sum(0) + power.shape[0] * (sources + (sources - 1) * _LOG_PI))


def free_energy(
    power: Float[Array, "freq frame"], q: Posterior, prior: Prior, mask: Float[Array, " frame"] | None = None
) -> FreeEnergy:
    """Return the lower bound of log p(X), all constants included, in its parts.

    The bound of the untempered model for the q that is given, [JVR16] eqs. 35, 36 in the explicit variant. Defined once
    every learned factor was updated at least once.
    """
    mask = _full(power, mask)
    scores, priors = _scores_and_priors(power, q, variances(q), prior, mask)
    frames = (
        _mixing_frames(power, q, prior, mask) if q.variant == "explicit" else jnp.zeros(power.shape[1], power.dtype)
    )
    dictionary = prior.noise * 0
    order = prior.noise * 0
    for part, log_q, log_pi in zip(scores, q.log_order, priors, strict=True):
        weights = jnp.exp(log_q)
        # An order with q = 0 may have a bound of minus infinity (a dead model): it does not count.
        frames = frames + jnp.where(weights[:, None] > 0, weights[:, None] * part.frames, 0.0).sum(0)
        dictionary = dictionary + (weights * part.dictionary).sum()
        order = order + jnp.where(weights > 0, weights * (log_pi - log_q), 0.0).sum()
    return FreeEnergy(frames, dictionary, order)


def tempered(energy: FreeEnergy, q: Posterior, prior: Prior) -> Float[Array, ""]:
    """What the tempered objective adds to the free energy; their sum is what no update lowers."""
    priors = (combine_logs(prior.order),) if q.variant == "marginal" else prior.order
    entropy = prior.noise * 0
    for log_q, log_pi in zip(q.log_order, priors, strict=True):
        weights = jnp.exp(log_q)
        reference = log_pi if prior.temper == "kl" else jnp.zeros_like(log_pi)
        entropy = entropy + jnp.where(weights > 0, weights * (reference - log_q), 0.0).sum()
    # At infinite temperature q(K) is constant: the term is 0 or, a constant too, infinite.
    return jnp.where(jnp.isinf(prior.beta), 0.0, (prior.beta - 1.0) * entropy)

"""What the samplers of `evidence` integrate: the likelihood of one choice of orders, its priors, and where to start.

The integral of interest is p(X | orders) = int p(X | W, H) p(W) p(H) over the activations and the dictionaries that are
learned; sources are integrated out in closed form, x_fn ~ CN(0, sigma2 + sum_j [W_j H_j]_fn). The coordinates
are logarithms of the factors, in which a Gamma prior is log-concave.

Where every dictionary is fixed, frames are independent and each has an integral of its own; with a learned dictionary
there is one integral for the recording.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesfuse._module import Module
from bayesfuse.gig import Gig
from bayesfuse.vbnmf_posterior import Component, Factor, GammaPrior, Posterior, Prior, expected_variance

Start = Literal["posterior", "prior"]
Coordinates = Float[Array, "chain *unit coordinate"]

# An exponent above which nothing changes any more: keeps gradients of impossible states finite.
_CEILING = 60.0


class Block(Module):
    """Priors Gamma(shape, rate) of some factors, their variational posteriors GIG(shape, rho, tau), and widths.

    `tight` is the curvature of the log likelihood in the logarithm of the factor, around the variational posterior;
    `knee` the logarithm of the level below which a factor hardly matters, for that curvature would be below 1 there;
    `present` is 0 for padding.
    """

    shape: Float[Array, "row component"]
    rate: Float[Array, "row component"]
    rho: Float[Array, "row component"]
    tau: Float[Array, "row component"]
    tight: Float[Array, "row component"]
    knee: Float[Array, "row component"]
    present: Float[Array, "row component"]

    def padded(self, count: int) -> "Block":
        """With factors of no consequence up to `count` components."""
        extra = count - self.shape.shape[1]
        idle = {"shape": 1.0, "rate": 1.0, "rho": 1.0, "tau": 0.0, "tight": 0.0, "knee": 0.0, "present": 0.0}
        fields = {
            name: jnp.pad(getattr(self, name), ((0, 0), (0, extra)), constant_values=value)
            for name, value in idle.items()
        }
        return Block(**fields)


class Problem(Module):
    """The integral over the factors of one choice of orders.

    Components are in the order: those of fixed dictionaries, source after source, then those of learned ones.

    Attributes
    ----------
    power
        |X|^2 in the unit of the prior.
    weights
        Fixed dictionaries side by side.
    dictionary
        Learned dictionaries, [freq, component]; None without.
    activations
        [frame, component].
    offset
        What the log evidence of a frame gains by the change to the unit of the mixture, nats.
    """

    power: Float[Array, "frame freq"]
    noise: Float[Array, ""]
    weights: Float[Array, "freq fixed"]
    dictionary: Block | None
    activations: Block
    offset: Float[Array, ""]

    @property
    def learned(self) -> int:
        """Number of components whose dictionary is integrated over, too."""
        return 0 if self.dictionary is None else self.dictionary.shape.shape[1]

    @property
    def components(self) -> int:
        return self.activations.shape.shape[1]

    def frames(self, chosen: Sequence[int] | np.ndarray) -> "Problem":
        """The problem of some frames only; for fixed dictionaries, whose frames do not know of each other.

        Raises
        ------
        ValueError
            If a dictionary is learned.
        """
        if self.dictionary is not None:
            raise ValueError("frames() got a problem with a learned dictionary, whose evidence is that of all frames.")
        index = np.asarray(chosen)
        fields = (self.power[index], jax.tree.map(lambda field: field[index], self.activations))
        return eqx.tree_at(lambda p: (p.power, p.activations), self, fields)

    def padded(self, components: int) -> "Problem":
        """The same integral with idle components, so that several orders have arrays of one shape."""
        extra = components - self.components
        if self.dictionary is None:
            weights = jnp.pad(self.weights, ((0, 0), (0, extra)))
            return eqx.tree_at(
                lambda p: (p.weights, p.activations), self, (weights, self.activations.padded(components))
            )
        fields = (self.dictionary.padded(self.learned + extra), self.activations.padded(components))
        return eqx.tree_at(lambda p: (p.dictionary, p.activations), self, fields)

    def state(
        self,
        dictionaries: Sequence[Float[np.ndarray, "freq _"]],
        activations: Sequence[Float[np.ndarray, "_ frame"]],
        learned: Sequence[bool],
    ) -> Float[np.ndarray, "*unit coordinate"]:
        """Logarithms of given factors, one of each per source, e.g. those that a mixture was drawn with.

        Parameters
        ----------
        learned
            Which sources' dictionaries are integrated over.
        """
        order = [j for j, free in enumerate(learned) if not free] + [j for j, free in enumerate(learned) if free]
        rows = np.concatenate([np.asarray(activations[j]).T for j in order], 1)
        rows = np.pad(rows, ((0, 0), (0, self.components - rows.shape[1])), constant_values=1.0)
        smallest = np.finfo(rows.dtype).tiny
        if self.dictionary is None:
            return np.log(np.maximum(rows, smallest))
        columns = np.concatenate([np.asarray(dictionaries[j]) for j, free in enumerate(learned) if free], 1)
        columns = np.pad(columns, ((0, 0), (0, self.learned - columns.shape[1])), constant_values=1.0)
        return np.log(np.maximum(np.concatenate([columns.ravel(), rows.ravel()]), smallest))


class Path(Module):
    """The path of `_annealing` from the start to the posterior of a problem; build it with `path`.

    Coordinates are logarithms of factors whose left tails are drawn in, log y = c + t - exp(-t) with c the knee: the
    prior's tail is as long as 1/shape, and a component that is dead would take ages to come back.

    `factors` has all of them in one row per unit; `normaliser` is log Z of their GIG distributions.
    """

    problem: Problem
    factors: Block
    normaliser: Float[Array, "*unit coordinate"]
    defence: Float[Array, ""]
    start: Start = eqx.field(static=True)

    def logs(self, state: Coordinates) -> Coordinates:
        """Logarithms of the factors."""
        t = state - self.factors.knee
        return state - jnp.exp(-t)

    def coordinates(self, logs: Coordinates) -> Coordinates:
        """The inverse of `logs`."""
        depth = logs - self.factors.knee
        first = jnp.where(depth < 0, -jnp.log1p(jnp.maximum(-depth, 0.0)), depth)

        # t - exp(-t) is increasing and concave: after its first step Newton's method approaches from below.
        def newton(_: Array, t: Array) -> Array:
            fall = jnp.exp(-t)
            return t - (t - fall - depth) / (1 + fall)

        return self.factors.knee + jax.lax.fori_loop(0, 8, newton, first)

    def log_likelihood(self, state: Coordinates) -> Float[Array, "chain *unit"]:
        """log p(X | W, H), of every frame or of the recording."""
        problem, logs = self.problem, self.logs(state)
        if problem.dictionary is None:
            variance = jnp.matmul(jnp.exp(logs), problem.weights.T, precision="highest")
            return self._of_variance(variance).sum(-1)
        freq, learned = problem.dictionary.shape.shape
        border = freq * learned
        w = jnp.exp(logs[:, :border].reshape(-1, freq, learned)) * problem.dictionary.present
        h = jnp.exp(logs[:, border:].reshape(-1, *problem.activations.shape.shape))
        fixed = problem.weights.shape[1]
        variance = jnp.einsum("cnk,cfk->cnf", h[..., fixed:], w, precision="highest")
        variance = variance + jnp.matmul(h[..., :fixed], problem.weights.T, precision="highest")
        return self._of_variance(variance).sum((-1, -2))

    def _of_variance(self, variance: Float[Array, "chain frame freq"]) -> Float[Array, "chain frame freq"]:
        total = jnp.maximum(self.problem.noise + variance, jnp.finfo(variance.dtype).tiny)
        return -math.log(math.pi) - jnp.log(total) - self.problem.power / total

    def _densities(self, state: Coordinates) -> tuple[Float[Array, "chain *unit"], Float[Array, "chain *unit"]]:
        """Logarithms of the prior and of the start, as densities of the logarithms of the factors."""
        b, logs = self.factors, self.logs(state)
        prior = _log_gamma(logs, b.shape, b.rate)
        if self.start == "prior":
            total = (b.present * prior).sum(-1)
            return total, total
        # A mixture in every coordinate: q alone has a left tail far lighter than the posterior's, so that the weights
        # would have infinite variance.
        pull = jnp.exp(jnp.minimum(jnp.log(b.tau) - logs, _CEILING))
        inverse_gaussian = b.shape * logs - _grow(logs, b.rho) - pull - self.normaliser
        parts = [
            jnp.log1p(-self.defence) + inverse_gaussian,
            jnp.log(self.defence / 2) + _log_gamma(logs, b.shape, b.rho),
            jnp.log(self.defence / 2) + prior,
        ]
        mixture = jax.nn.logsumexp(jnp.stack(parts), axis=0)
        return (b.present * prior).sum(-1), (b.present * mixture).sum(-1)

    def base(self, state: Coordinates) -> Float[Array, "chain *unit"]:
        b = self.factors
        volume = (b.present * jnp.log1p(jnp.exp(b.knee - state))).sum(-1)
        return self._densities(state)[1] + volume

    def extra(self, state: Coordinates) -> Float[Array, "chain *unit"]:
        prior, start = self._densities(state)
        return self.log_likelihood(state) + (prior - start)

    def draw(self, key: Array, chains: int) -> Coordinates:
        b = self.factors
        kind = b.shape.dtype
        keys = jax.random.split(key, 4)
        full = (chains, *b.shape.shape)
        prior = jax.random.loggamma(keys[0], jnp.broadcast_to(b.shape, full), dtype=kind) - jnp.log(b.rate)
        if self.start == "prior":
            return self.coordinates(prior)
        narrow = jnp.log(Gig(b.shape, b.rho, b.tau).sample(keys[1], (chains,)))
        gamma = jax.random.loggamma(keys[2], jnp.broadcast_to(b.shape, full), dtype=kind) - jnp.log(b.rho)
        # With tau = 0 the distribution is this, whose draws may be below the smallest number.
        narrow = jnp.where(b.tau > 0, narrow, gamma)
        u = jax.random.uniform(keys[3], full, kind)
        return self.coordinates(jnp.where(u < self.defence / 2, prior, jnp.where(u < self.defence, gamma, narrow)))

    def scale(self, beta: Float[Array, "*unit"]) -> Float[Array, "*unit coordinate"]:
        b = self.factors
        at_start = 0.0 if self.start == "prior" else jnp.sqrt(b.rho) * jnp.sqrt(b.tau)
        share = beta[..., None]
        return b.present / jnp.sqrt(1 + (1 - share) * at_start + share * b.tight)


def path(problem: Problem, start: Start, defence: Float[Array, ""] | float) -> Path:
    """Return the path from the prior, or from the variational posterior, to the posterior.

    Parameters
    ----------
    defence
        Share of the prior in the start of every coordinate, against weights of infinite variance.
    """
    factors = problem.activations
    if problem.dictionary is not None:
        factors = jax.tree.map(
            lambda w, h: jnp.concatenate([w.reshape(-1), h.reshape(-1)]),
            *(_alike(block, start) for block in (problem.dictionary, problem.activations)),
        )
    return Path(
        problem,
        factors,
        Gig(factors.shape, factors.rho, factors.tau).log_normaliser,
        jnp.asarray(defence, factors.shape.dtype),
        start,
    )


def _alike(block: Block, start: Start) -> Block:
    """From the prior, which component becomes which is not known: with one curvature for all of them."""
    if start == "posterior":
        return block

    def mean(field: Array) -> Array:
        average = (field * block.present).sum(1, keepdims=True) / block.present.sum(1, keepdims=True)
        return jnp.broadcast_to(average, field.shape)

    return eqx.tree_at(lambda b: (b.tight, b.knee), block, (mean(block.tight), mean(block.knee)))


def _grow(state: Array, rate: Array) -> Array:
    return jnp.exp(jnp.minimum(state + jnp.log(rate), _CEILING))


def _log_gamma(state: Array, shape: Array, rate: Array) -> Array:
    """Density of log y for y ~ Gamma(shape, rate)."""
    return shape * (state + jnp.log(rate)) - _grow(state, rate) - jax.lax.lgamma(shape)


class _Source(NamedTuple):
    component: Component
    activations: GammaPrior
    dictionary: GammaPrior


def problems(
    power: Float[np.ndarray | Array, "freq frame"],
    q: Posterior,
    prior: Prior,
    *,
    offset: float = 0.0,
) -> tuple[Problem, ...]:
    """Return one problem per combination of orders, in the order of `q.combinations`.

    Parameters
    ----------
    power
        |X|^2 in the unit of the prior.
    q
        Variational posterior, from `inference.start` or after updates: where the samplers may start, and what scales
        their steps. Factors that were not updated yet count as their prior.
    prior
        From `vbnmf.make_prior`; orders and temperature do not matter.
    offset
        Added to the log evidence of every frame.

    Raises
    ------
    ValueError
        If the power is not [freq, frame] of `q`, or a fixed dictionary is a distribution, not a matrix.
    """
    first = q.components[0][0]
    expected = (first.dictionary.mean.shape[0], first.activations.mean.shape[1])
    if np.shape(power) != expected:
        raise ValueError(f"power has shape {np.shape(power)}: expected {expected}, the frequencies and frames of q.")
    q, prior = jax.tree.map(jnp.asarray, (q, prior))
    values = jnp.asarray(power, prior.noise.dtype)
    built = []
    for choice in q.combinations:
        sources = [
            _Source(q.components[j][m], prior.activations[j][m], prior.dictionaries[j][m]) for j, m in enumerate(choice)
        ]
        fixed = [s for s in sources if not s.component.dictionary.learned]
        learned = [s for s in sources if s.component.dictionary.learned]
        for s in fixed:
            held = s.component.dictionary
            if not np.array_equal(np.asarray(held.mean), np.asarray(held.harmonic)):
                raise ValueError(
                    "a fixed dictionary is a posterior with a mean and another harmonic mean: the evidence needs a "
                    "matrix. Train the dictionary by maximum likelihood, or pass Dictionary.weights."
                )
        built.append(_problem(values, prior, fixed, learned, offset))
    return tuple(built)


def _problem(
    power: Float[Array, "freq frame"],
    prior: Prior,
    fixed: Sequence[_Source],
    learned: Sequence[_Source],
    offset: float,
) -> Problem:
    kind = power.dtype
    total = prior.noise + sum((expected_variance(s.component) for s in (*fixed, *learned)), jnp.zeros_like(power))
    precision = 1 / jnp.maximum(total, jnp.finfo(kind).tiny)

    def block(factor: Factor, gamma: GammaPrior, other: Array, inverse: Array) -> Block:
        """Of factors [row, component], given the `other` ones [column, component] and 1/variance [row, column]."""
        nu = jnp.broadcast_to(gamma.shape.nu, factor.mean.shape)
        rate = jnp.broadcast_to(gamma.rate, factor.mean.shape)
        rho = rate if factor.rho is None else jnp.where(jnp.isnan(factor.rho), rate, factor.rho)
        tau = jnp.zeros_like(rate) if factor.tau is None else jnp.where(jnp.isnan(factor.tau), 0.0, factor.tau)
        unit = jnp.maximum(jnp.matmul(inverse**2, other**2, precision="highest"), jnp.finfo(kind).tiny)
        return Block(nu, rate, rho, tau, factor.mean**2 * unit, -0.5 * jnp.log(unit), jnp.ones_like(rate))

    def joined(blocks: list[Block]) -> Block:
        return jax.tree.map(lambda *fields: jnp.concatenate(fields, 1), *blocks)

    activations = joined(
        [
            block(
                jax.tree.map(jnp.transpose, s.component.activations),
                s.activations,
                s.component.dictionary.mean,
                precision.T,
            )
            for s in (*fixed, *learned)
        ]
    )
    dictionary = None
    if learned:
        dictionary = joined(
            [block(s.component.dictionary, s.dictionary, s.component.activations.mean.T, precision) for s in learned]
        )
    weights = [jnp.asarray(s.component.dictionary.mean, kind) for s in fixed]
    return Problem(
        power.T,
        prior.noise,
        jnp.concatenate(weights, 1) if weights else jnp.zeros((power.shape[0], 0), kind),
        dictionary,
        activations,
        jnp.asarray(offset, kind),
    )

"""From a variational posterior to sources: Wiener gains, honest variances, draws.

Given a combination of orders the posterior mean of the sources is the Wiener filter with the variances C_jm. In the
marginal variant the fused estimate is the convex sum of those, sum_c q(c) mu_c, and its variance follows the law of
total variance: the average variance within the combinations plus the variance of their means. In the explicit variant
q(S) is one Gaussian and holds both already.

Gains and variances are per band of the representation the model was fitted on (bins of an STFT).
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from bayesfuse import wiener
from bayesfuse._precision import precision
from bayesfuse.gig import Gig
from bayesfuse.inference import Fit, Power
from bayesfuse.transforms import STFT
from bayesfuse.vbnmf import Factor, GammaPrior


class Moments(NamedTuple):
    """Posterior mean, as a gain on the mixture, and variance of every source.

    Attributes
    ----------
    gains
        In [0, 1]; the posterior mean of source j is ``gains[j] * X``.
    within
        Average over the orders of the variance given the orders, in the unit of the power.
    between
        Variance of the orders' means; `within + between` is the posterior variance E|s - E s|^2.
    """

    gains: Float[np.ndarray, "source freq frame"]
    within: Float[np.ndarray, "source freq frame"]
    between: Float[np.ndarray, "source freq frame"]

    @property
    def variance(self) -> Float[np.ndarray, "source freq frame"]:
        return self.within + self.between


def combination_variances(fit: Fit, combination: int) -> Float[np.ndarray, "source freq frame"]:
    """C_jm of all sources given one of `fit.posterior.combinations`, in the unit of the normalised mixture."""
    choice = fit.posterior.combinations[combination]
    chosen = [fit.posterior.components[j][m] for j, m in enumerate(choice)]
    return np.stack([np.asarray(c.dictionary.harmonic) @ np.asarray(c.activations.harmonic) for c in chosen])


def combination_gains(fit: Fit, combination: int) -> Float[np.ndarray, "source freq frame"]:
    """Wiener gains of all sources given one of `fit.posterior.combinations`."""
    return np.asarray(wiener.gains(combination_variances(fit, combination), np.asarray(fit.prior.noise)))


def average(
    power: Float[np.ndarray, "freq frame"],
    models: Sequence[tuple[Fit, int]],
    weights: Float[np.ndarray, " model"] | Float[np.ndarray, "model frame"],
) -> Moments:
    """Return gains and variances averaged over models with fusion weights ([JVR16] eqs. 2, 14).

    Parameters
    ----------
    power
        |X|^2 that every fit was given, in its own unit.
    models
        Fits with the index of a combination of each, all of the same mixture.
    weights
        Fusion coefficients, constant or per frame.
    """
    power = np.asarray(power)
    weights = np.asarray(weights, power.dtype)
    weights = weights if weights.ndim == 2 else weights[:, None]
    unit = power.dtype.type(models[0][0].scale ** 2)
    variances = [combination_variances(fit, index) for fit, index in models]
    noises = [np.asarray(fit.prior.noise) for fit, _ in models]
    gains = [np.asarray(wiener.gains(v, noise)) for v, noise in zip(variances, noises, strict=True)]
    mean = sum((w * g for w, g in zip(weights, gains, strict=True)), np.zeros_like(gains[0]))
    within = np.zeros_like(mean)
    between = np.zeros_like(mean)
    for w, g, v, noise in zip(weights, gains, variances, noises, strict=True):
        within += w * np.asarray(wiener.posterior_variance(v, noise))
        between += w * (g - mean) ** 2
    return Moments(mean, within * unit, between * power)


def moments(power: Power, fit: Fit) -> Moments:
    """Return gains and variances of all sources under the posterior, averaged over the orders with q(K).

    Parameters
    ----------
    power
        |X|^2 that `fit` was given, [freq, frame], in its own unit.
    """
    power = np.asarray(power)
    q = fit.posterior
    if q.source_variance is None:
        models = [(fit, index) for index in range(len(q.combinations))]
        return average(power, models, np.exp(np.asarray(q.log_order[0])))
    variances = np.asarray(q.source_variance)
    noise = np.asarray(fit.prior.noise)
    within = np.asarray(wiener.posterior_variance(variances, noise)) * power.dtype.type(fit.scale**2)
    return Moments(np.asarray(wiener.gains(variances, noise)), within, np.zeros_like(within))


class Draws(NamedTuple):
    """Draws from the variational posterior, first axis the draw.

    Attributes
    ----------
    orders
        Index of the drawn candidate of every source.
    dictionaries, activations
        ``[draw][source]`` arrays W [freq, component] and H [component, frame] of the drawn orders; their product is a
        variance in the unit of the mixture's power.
    sources
        STFT coefficients.
    """

    orders: Int[np.ndarray, "draw source"]
    dictionaries: list[list[Float[np.ndarray, "freq component"]]]
    activations: list[list[Float[np.ndarray, "component frame"]]]
    sources: Complex[np.ndarray, "draw source freq frame"]

    def waveforms(self, transform: STFT, length: int) -> Float[np.ndarray, "draw source sample"]:
        """The drawn sources as waveforms of `length` samples."""
        return np.asarray(transform.synthesis(self.sources, length))


@eqx.filter_jit
def _sample_factor(key: Array, factor: Factor, prior: GammaPrior) -> Array:
    if not factor.learned or factor.rho is None or factor.tau is None:
        return factor.mean
    return Gig(prior.shape.nu, factor.rho, factor.tau).sample(key)


@eqx.filter_jit
def _sample_sources(key: Array, X: Array, variances: Array, noise: Array) -> Array:
    """Sources given their variances and the mixture, by conditioning a joint draw on X."""
    keys = jax.random.split(key, 4)
    shape = variances.shape
    real = variances.dtype
    sources = jnp.sqrt(variances / 2) * jax.lax.complex(
        jax.random.normal(keys[0], shape, real), jax.random.normal(keys[1], shape, real)
    )
    error = jnp.sqrt(noise / 2) * jax.lax.complex(
        jax.random.normal(keys[2], X.shape, real), jax.random.normal(keys[3], X.shape, real)
    )
    return sources + wiener.gains(variances, noise) * (X - error - sources.sum(0))


def draw(key: Array, X: Complex[np.ndarray, "freq frame"], fit: Fit, num: int) -> Draws:
    """Return `num` draws of orders, dictionaries, activations and sources.

    Orders, then factors, come from q; a dictionary held fixed is its mean in every draw. Sources of the marginal
    variant come from p(S | X, W, H, K), which that variant does not approximate; those of the explicit variant from
    q(S), which is independent of the factors.

    Parameters
    ----------
    key
        JAX random key.
    X
        STFT of the mixture that `fit` was given as |X|^2.
    num
        How many draws, at least 1.
    """
    X = np.asarray(X)
    if num < 1:
        raise ValueError(f"num={num}: expected at least one draw.")
    expected = (fit.posterior.components[0][0].dictionary.mean.shape[0], fit.free_energy.frames.shape[0])
    if X.shape != expected or not np.iscomplexobj(X):
        raise ValueError(
            f"X is {X.dtype} {X.shape}: expected the complex STFT {expected} [freq, frame] that was fitted."
        )
    with precision(X):
        q, prior = jax.tree.map(jnp.asarray, (fit.posterior, fit.prior))
        normal = jnp.asarray(X / fit.scale, X.dtype)
        unit = normal.real.dtype.type(fit.scale)
        choices = np.array(q.combinations)
        key, subkey = jax.random.split(key)
        picks = jax.random.choice(subkey, len(choices), (num,), p=q.combination_probabilities())
        orders = choices[np.asarray(picks)]
        dictionaries, activations, sources = [], [], []
        for choice in orders:
            key, *keys = jax.random.split(key, 2 * len(choice) + 2)
            chosen = [
                (q.components[j][m], prior.dictionaries[j][m], prior.activations[j][m]) for j, m in enumerate(choice)
            ]
            ws = [_sample_factor(keys[2 * j], c.dictionary, pw) for j, (c, pw, _) in enumerate(chosen)]
            hs = [_sample_factor(keys[2 * j + 1], c.activations, ph) for j, (c, _, ph) in enumerate(chosen)]
            if q.source_variance is None:
                variances = jnp.stack([w @ h for w, h in zip(ws, hs, strict=True)])
            else:
                variances = q.source_variance
            sources.append(np.asarray(_sample_sources(keys[-1], normal, variances, prior.noise)) * unit)
            dictionaries.append([np.asarray(w) * unit**2 for w in ws])
            activations.append([np.asarray(h) for h in hs])
        return Draws(orders, dictionaries, activations, np.stack(sources))


def log_likelihood(X: Complex[np.ndarray, "freq frame"], draws: Draws, noise: float) -> Float[np.ndarray, "draw frame"]:
    """log p(x_n | W, H) of each frame given each draw of the factors, in nats; float64.

    Given the factors the coefficients are independent, x_fn ~ CN(0, noise + sum_j [W_j H_j]_fn), sources and noise
    integrated out ([JVR14] section 2).

    Parameters
    ----------
    X
        STFT of the mixture, as `draw` took it.
    draws
        From `draw`.
    noise
        sigma2 in the unit of the mixture's power: ``fit.prior.noise * fit.scale**2``.
    """
    power = np.abs(X).astype(np.float64) ** 2
    found = np.empty((len(draws.orders), X.shape[1]))
    for row, ws, hs in zip(found, draws.dictionaries, draws.activations, strict=True):
        variance = sum((np.asarray(w @ h, np.float64) for w, h in zip(ws, hs, strict=True)), np.full(X.shape, noise))
        # A bin without power under a model without variance has an infinite density: 0 / 0 does not arise.
        with np.errstate(divide="ignore"):
            row[:] = -(np.log(np.pi * variance) + np.divide(power, variance)).sum(axis=0)
    return found

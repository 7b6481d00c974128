"""Maximum-likelihood NMF under the Itakura-Saito divergence, and its vector-quantisation start.

The power spectrogram P = |X|^2 [freq, frame] of a mixture of J sources is modelled by
`V = sum_j W_j H_j + noise` ([JVR16] eqs. 28, 29), each source with a dictionary `W_j` [freq, component] and
activations `H_j` [component, frame]; the factors minimise `sum_fn d_IS(P | V)` ([JVR16] eqs. 29, 30). As far
as an update is concerned the sources are one: their factors are concatenated along the component axis, so
that one model product and two products with the data are all that an update of all sources costs.

Updates, and why the cost cannot rise
-------------------------------------
    H <- H o [ W' (P / V^2) / W' (1 / V) ]^e        W <- W o [ (P / V^2) H' / (1 / V) H' ]^e

With the other factor held, the divergence is majorised (Jensen for P/V, tangent for log V, the noise being
one more fixed component; [FI11]) by a function that is separable in the entries h of the updated factor, each
term being `num h~^2 / h + den h` with num and den the two products above at the present value h~. That term
is least at `h~ (num/den)^(1/2)`, and takes at `h~ num/den` exactly the value `(num + den) h~` that it has at
h~; it is convex, so it does not exceed its present value for any exponent e in [0, 1]. Every exponent in
(0, 1] is hence monotone, e = 1 (majorisation-equalisation) included, and e = 1 is the default because it
makes the longest steps: e = 1/2 needs about twice the iterations. For K = 1 without noise one update with
e = 1 is the exact minimiser.

Within an iteration the activations come first and the dictionaries second, with a fresh model: a given
dictionary is better than its activations, which start flat unless the caller knows more.

Zero bins: data and noise are floored at `floor` times the mean power. The model is then positive everywhere,
the cost is always defined, the floor follows the scale of the recording (fit(c P) = c fit(P)), and silent
frames drive activations towards zero.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
[FI11] C. Fevotte, J. Idier, "Algorithms for nonnegative matrix factorization with the beta-divergence",
Neural Computation 23(9), 2011 (which shows that e = 1 is monotone for beta in (0, 1); the argument above is
theirs at the end point beta = 0).
"""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from bayesfuse import _nmf_checks as checks
from bayesfuse._module import Module
from bayesfuse._precision import precision

# Iterations per compiled call: long enough to hide the dispatch, short enough for a progress bar to move.
_CHUNK = 10


class NMF(Module):
    """Factors of a mixture's power spectrogram, one dictionary and one set of activations per source."""

    dictionaries: tuple[Float[np.ndarray | Array, "freq _"], ...]
    activations: tuple[Float[np.ndarray | Array, "_ frame"], ...]
    cost: Float[np.ndarray, " iteration"]  # float64; before the first iteration, after it, ..., after the last

    @property
    def variances(self) -> Float[np.ndarray | Array, "source freq frame"]:
        """Expected power `v_j = W_j H_j` of each source ([JVR16] eq. 28), as the Wiener filter wants it."""
        parts = [W @ H for W, H in zip(self.dictionaries, self.activations, strict=True)]
        return jnp.stack(parts) if isinstance(parts[0], Array) else np.stack(parts)


def itakura_saito(
    power: Float[np.ndarray | Array, "*batch"],
    model: Float[np.ndarray | Array, "*batch"],
    axis: int | tuple[int, ...] | None = None,
) -> Float[np.ndarray | Array, "..."] | np.floating[Any]:
    """Itakura-Saito divergence `sum [P/V - log(P/V) - 1]` over `axis` (default: all), [JVR16] eqs. 29, 30.

    Does not depend on the unit of power. Infinite where one of the two is zero and the other is not; 0 where
    both are zero.
    """
    xp = jnp if isinstance(power, Array) or isinstance(model, Array) else np
    both = (power == 0) & (model == 0)
    none = (power == 0) ^ (model == 0)
    ratio = xp.where(both | none, 1.0, power) / xp.where(both | none, 1.0, model)
    return xp.sum(xp.where(none, xp.inf, ratio - xp.log(ratio) - 1), axis=axis)


def update_activations(
    power: Float[Array, "freq frame"],
    dictionary: Float[Array, "freq component"],
    activations: Float[Array, "component frame"],
    *,
    noise: float | Float[Array, "..."],
    exponent: float = 1.0,
) -> Float[Array, "component frame"]:
    """Activations after one multiplicative update (see the module's head); the cost of no frame rises.

    Pure and jittable; no frame influences another, so padded frames need no mask here.

    Parameters
    ----------
    power
        Power spectrogram, > 0 (floored) wherever the model without noise can be zero.
    dictionary, activations
        Factors of all sources, concatenated along the component axis.
    noise
        Variance of the noise, or of everything else that is held fixed: a number or an array that broadcasts
        to [freq, frame]. Unit: power.
    exponent
        Static number in (0, 1].
    """
    return _activations_step(power, dictionary, activations, 1.0 / _model(dictionary, activations, noise), exponent)


def update_dictionaries(
    power: Float[Array, "freq frame"],
    dictionary: Float[Array, "freq component"],
    activations: Float[Array, "component frame"],
    *,
    noise: float | Float[Array, "..."],
    mask: Bool[Array, " frame"] | None = None,
    num_learned: int | None = None,
    exponent: float = 1.0,
) -> Float[Array, "freq component"]:
    """Dictionary after one multiplicative update (see the module's head).

    Pure and jittable. Arguments as in `update_activations`, and

    Parameters
    ----------
    mask
        False for padded frames, which then have no influence whatever finite values they hold.
    num_learned
        Static; only so many leading columns are updated (all by default).
    """
    learned = dictionary.shape[1] if num_learned is None else num_learned
    inverse = 1.0 / _model(dictionary, activations, noise)
    weight = inverse if mask is None else jnp.where(mask, inverse, 0.0)
    W, H = dictionary[:, :learned], activations[:learned]
    numerator = jnp.matmul(power * inverse * weight, H.T, precision="highest")
    denominator = jnp.matmul(weight, H.T, precision="highest")
    return jnp.concatenate([W * _ratio(numerator, denominator, exponent), dictionary[:, learned:]], axis=1)


def fit(
    power: Float[np.ndarray | Array, "freq frame"],
    dictionaries: Sequence[Float[np.ndarray | Array, "_ _"]],
    activations: Sequence[Float[np.ndarray | Array, "_ _"]] | None = None,
    *,
    learn: Sequence[bool],
    noise: float = 0.0,
    num_iters: int = 50,
    mask: Bool[np.ndarray | Array, " _"] | None = None,
    floor: float = 1e-10,
    exponent: float = 1.0,
    progress: bool = False,
) -> NMF:
    """Factors that minimise the Itakura-Saito divergence between a power spectrogram and the model.

    The number of frames is padded internally to one of four lengths per octave, under a mask that makes the
    padding exact: another recording of similar length, other values, another noise or number of iterations do
    not compile anew.

    Parameters
    ----------
    power
        Power spectrogram of the mixture, >= 0.
    dictionaries
        `W_j` of each source [freq, component], >= 0, no zero column. Never written to.
    activations
        `H_j` of each source to start from [component, frame], >= 0. By default each source gets an equal
        share of the mean power, equal over its components and constant in time.
    learn
        For each source, whether its dictionary is learned (else it stays as given).
    noise
        Variance of the observation noise `sigma^2`, in the unit of `power`.
    num_iters
        Number of iterations (activations, then learned dictionaries). The default is [JVR16] VI.B's.
    mask
        False for frames to be ignored: they take no part in dictionaries, mean power or cost, and their
        activations are returned as zero.
    floor
        Floor of the power and of the noise, relative to the mean power.
    exponent
        Of the multiplicative ratio, in (0, 1]; every choice is monotone and 1 is the fastest.
    progress
        Whether to show a progress bar.

    Returns
    -------
    `NMF` of the same dtype and kind (NumPy or JAX) as `power`. If the power is zero everywhere, the
    activations are zero, the dictionaries come back as given, and the cost is zero.

    Raises
    ------
    ValueError
        If shapes disagree, or data, dictionaries, activations, noise or settings are outside the ranges
        above.
    FloatingPointError
        If the cost left the finite range, with the number of the iteration.
    """
    with precision(power.dtype):
        P, keep = checks.checked_power(power, mask)
        Ws = checks.checked_factors(P, dictionaries, learn)
        checks.checked_settings(noise, num_iters, floor, exponent)
        scale = float(np.mean(P[:, keep], dtype=np.float64)) if keep.any() else 0.0
        Hs = checks.checked_activations(P, Ws, activations, scale)
        kind = jnp.asarray if isinstance(power, Array) else np.asarray
        if scale == 0.0:
            zeros = tuple(kind(np.zeros_like(H)) for H in Hs)
            return NMF(tuple(kind(W) for W in Ws), zeros, np.zeros(num_iters + 1))
        level = max(noise / scale, floor)
        if level == 0.0 and P[:, keep].min() == 0.0:
            raise ValueError("the power has zero bins while noise and floor are both 0: set floor, such as 1e-10")

        # Learned sources first, so that one leading slice holds all learned columns.
        order = sorted(range(len(Ws)), key=lambda j: not learn[j])
        num_learned = sum(Ws[j].shape[1] for j in order if learn[j])
        # Ignored frames take any positive value: activation updates do not mix frames, the rest is masked.
        unit = P.dtype.type(scale)
        extra = ((0, 0), (0, bucket_length(P.shape[1]) - P.shape[1]))
        target = np.pad(np.where(keep, np.maximum(P / unit, P.dtype.type(floor)), 1), extra, constant_values=1)
        H = np.pad(np.where(keep, np.concatenate([Hs[j] for j in order]) / unit, 1), extra, constant_values=1)
        W, H, cost = _iterate(
            target,
            np.concatenate([Ws[j] for j in order], axis=1),
            H,
            P.dtype.type(level),
            np.pad(keep, extra[1]),
            num_iters,
            progress,
            num_learned=num_learned,
            exponent=float(exponent),
        )
        if not np.isfinite(cost).all():
            raise FloatingPointError(
                f"the NMF cost is not finite from iteration {int(np.argmin(np.isfinite(cost)))} on. Usual "
                "causes: dictionaries or activations many decades off the unit of the power, or float32 data "
                "of extreme range; normalise the columns of the dictionaries, or pass float64."
            )
        H = np.where(keep, H[:, : P.shape[1]] * unit, 0)
        starts = np.cumsum([0] + [Ws[j].shape[1] for j in order])
        parts = {j: slice(starts[i], starts[i + 1]) for i, j in enumerate(order)}
        return NMF(
            tuple(kind(W[:, parts[j]] if learn[j] else Ws[j]) for j in range(len(Ws))),
            tuple(kind(H[parts[j]]) for j in range(len(Ws))),
            cost,
        )


def vector_quantisation(
    seed: int, power: Float[np.ndarray | Array, "freq frame"], order: int, *, max_frames: int = 4096
) -> Float[np.ndarray | Array, "freq component"]:
    """Dictionary of `order` strictly positive columns of sum 1, by vector quantisation of the frames.

    Frames are clustered by k-means on their amplitudes `sqrt(P / sum_f P)`, that is by the angle between
    amplitude spectra, whatever their level; a column is the mean normalised power of its cluster. [JVR16]
    VI.B says "initialized by vector quantization" and no more. Of clusterings of the power, its square root,
    its fourth root and its logarithm, the square root gave the best SDR after training and separation, but by
    little: averaged over orders 4, 16 and 64 (48 mixtures of speech and noise, one seed) the four lay within
    0.15 dB, at single orders up to 0.35 dB apart and ranked differently.

    Parameters
    ----------
    seed
        Of the k-means++ start, of the choice of frames, and of spare columns.
    power
        Power spectrogram, >= 0. Frames of zero power are left out.
    order
        Number of components, at most the number of frames with power.
    max_frames
        If there are more frames, so many are drawn at random (or 16 per component if that is more), which
        keeps the time to about a second on long corpora.

    Raises
    ------
    ValueError
        If `order` is below 1 or above the number of frames with power, or `power` negative or not finite.
    """
    P, _ = checks.checked_power(power, None)
    P = P[:, P.max(axis=0) > 0.0]
    if not 1 <= order <= P.shape[1]:
        raise ValueError(
            f"{order} components from {P.shape[1]} frames with power: expected at least 1 and at most one "
            "per frame; give another order or more material"
        )
    rng = np.random.default_rng(seed)
    limit = max(max_frames, 16 * order)
    if P.shape[1] > limit:
        P = P[:, np.sort(rng.choice(P.shape[1], limit, replace=False))]
    shapes = P / P.max(axis=0)  # first, so that the sum can neither overflow nor underflow
    shapes /= shapes.sum(axis=0)
    W = np.empty((P.shape[0], order), P.dtype)
    for k, members in enumerate(_clusters(shapes, order, rng)):
        if members.size:
            W[:, k] = shapes[:, members].mean(axis=1)
        else:
            # Fewer distinct frames than components: a copy must differ, or the two would never part.
            W[:, k] = shapes[:, rng.integers(P.shape[1])] * rng.uniform(0.5, 1.5, P.shape[0])
    # Zero would be absorbing under multiplicative updates: 80 dB below the column's mean is small enough.
    W = np.maximum(W, 1e-8 * W.mean(axis=0))
    W /= W.sum(axis=0)
    if not isinstance(power, Array):
        return W
    with precision(W.dtype):
        return jnp.asarray(W)


def _clusters(shapes: np.ndarray, order: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Indices of the frames of each cluster; some are empty if there are fewer distinct frames."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    features = np.sqrt(shapes.T).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    means = KMeans(order, n_init="auto", max_iter=20, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its cause is dealt with by the caller
        labels = means.fit(features).labels_
    return [np.flatnonzero(labels == k) for k in range(order)]


def bucket_length(num_frames: int) -> int:
    """Smallest of the padded lengths (four per octave, multiples of 16) that holds `num_frames` frames."""
    step = max(16, 1 << max(0, num_frames.bit_length() - 3))
    return -(-num_frames // step) * step


def _model(W: Array, H: Array, noise: Any) -> Array:
    # "highest": on accelerators the default would round the factors to 10 bits, and the cost could rise.
    return jnp.matmul(W, H, precision="highest") + noise


def _ratio(numerator: Array, denominator: Array, exponent: float) -> Array:
    # The denominator is zero where the partner of an entry died out: the entry has no influence and stays.
    ratio = jnp.where(denominator > 0.0, numerator / jnp.where(denominator > 0.0, denominator, 1.0), 1.0)
    if exponent == 1.0:
        return ratio
    return jnp.sqrt(ratio) if exponent == 0.5 else ratio**exponent


def _activations_step(power: Array, W: Array, H: Array, inverse: Array, exponent: float) -> Array:
    numerator = jnp.matmul(W.T, power * inverse * inverse, precision="highest")
    return H * _ratio(numerator, jnp.matmul(W.T, inverse, precision="highest"), exponent)


def _frame_cost(power: Array, inverse: Array, mask: Array) -> Array:
    ratio = power * inverse
    return jnp.where(mask, jnp.sum(ratio - jnp.log(ratio) - 1.0, axis=0), 0.0)


@partial(jax.jit, static_argnames=("num_learned", "exponent"))
def _chunk(
    power: Array,
    W: Array,
    H: Array,
    noise: Array,
    mask: Array,
    count: Array,
    *,
    num_learned: int,
    exponent: float,
) -> tuple[Array, Array, Array]:
    """Factors after `count` iterations, and the cost per frame before each of them."""

    def iteration(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        W, H, trace = state
        inverse = 1.0 / _model(W, H, noise)
        trace = trace.at[i].set(_frame_cost(power, inverse, mask))
        H = _activations_step(power, W, H, inverse, exponent)
        if num_learned:
            W = update_dictionaries(power, W, H, noise=noise, mask=mask, num_learned=num_learned, exponent=exponent)
        return W, H, trace

    trace = jnp.zeros((_CHUNK, power.shape[1]), power.dtype)
    return jax.lax.fori_loop(0, count, iteration, (W, H, trace))


@jax.jit
def _last_cost(power: Array, W: Array, H: Array, noise: Array, mask: Array) -> Array:
    return _frame_cost(power, 1.0 / _model(W, H, noise), mask)


def _iterate(
    power: np.ndarray,
    W: Any,
    H: Any,
    noise: Any,
    mask: np.ndarray,
    num_iters: int,
    progress: bool,
    **static: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors after `num_iters` iterations and the cost before, between and after them, in float64."""
    target, valid = jnp.asarray(power), jnp.asarray(mask)
    costs = []
    with _bar(num_iters, progress) as bar:
        for start in range(0, num_iters, _CHUNK):
            count = min(_CHUNK, num_iters - start)
            W, H, trace = _chunk(target, W, H, noise, valid, count, **static)
            costs.append(np.asarray(trace, np.float64)[:count].sum(axis=1))
            bar.update(count)
    costs.append(np.asarray(_last_cost(target, W, H, noise, valid), np.float64).sum(keepdims=True))
    return np.asarray(W), np.asarray(H), np.concatenate(costs)


def _bar(total: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="NMF", unit="it", leave=False, disable=not progress)

"""Fusion weights per frame from a Gaussian mixture over the features, an alternative to the networks ([JVR16] VIII).

The mixture says how much each frame n is like each kind k of frame, its responsibilities r_nk, sum_k r_nk = 1. Every
kind has fusion weights a_k on the simplex per source and band, and the weights of a frame are sum_k r_nk a_k, on the
simplex, too. Given the mixture, the a_k of smallest squared error, the criterion of [JVR16] eq. 11 summed over frames,

    sum_n (sum_k r_nk a_k)' E_n (sum_k r_nk a_k) = sum_kl a_k' Q_kl a_l,   Q_kl = sum_n r_nk r_nl E_n,

with the scalar products E_n of the estimates' errors, solve a convex problem: with one component static fusion, with
more never worse on the training frames. Only the number of components is left to choose, on validation recordings.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesfuse._checks import check_seed
from bayesfuse._module import Module
from bayesfuse._precision import precision
from bayesfuse.network_costs import around_reference
from bayesfuse.neural import evaluate
from bayesfuse.simplex_qp import minimise_on_simplex
from bayesfuse.training_set import TrainingSet, check_alike

Weighting = Literal["energy", "recordings"]

# Frames that the mixture is fitted to, at most: 512 for each of 64 components.
_FITTED = 1 << 15
# Least variance of a component, of features of unit variance: frames of one recording can be almost the same.
_VARIANCE = 1e-3
# Frames whose products of responsibilities are held at a time.
_BLOCK = 1024
# Entries of the matrices of all problems that are solved side by side, 256 MiB; one problem may have more.
_ENTRIES = 1 << 25
# Residual of the optimality conditions at which a problem is solved.
_TOLERANCE = 1e-8
# Share of all errors below which those of a component need not be balanced to this tolerance.
_NEGLIGIBLE = 1e-10
_MAX_SWEEPS = 300
# A residual that costs less than 1e-4 dB is not worth a word.
_WARNED = 1e-5


class MixtureMapping(Module):
    """Fusion weights from features through the responsibilities of Gaussians with diagonal covariances.

    It takes the place of a `neural.FusionNetwork` in `neural.frame_weights`, `neural.evaluate` and
    `network_rule.NetworkRule`.

    Attributes
    ----------
    log_prior
        Logarithms of the shares of the components.
    means
        In the units of the features.
    log_precisions
        Logarithms of the inverse variances.
    fusion_weights
        Of each component, on the simplex over the models.
    """

    log_prior: Float[Array, " component"]
    means: Float[Array, "component feature"]
    log_precisions: Float[Array, "component feature"]
    fusion_weights: Float[Array, "component source band model"]

    @classmethod
    def uniform(cls, components: int, num_features: int, shape: tuple[int, int, int]) -> "MixtureMapping":
        """Equal weights of (source, band, model) = `shape` for all frames."""
        with precision():
            zeros = jnp.zeros((components, num_features), jnp.float32)
            weights = jnp.full((components, *shape), 1.0 / shape[-1], jnp.float32)
            return cls(zeros[:, 0] - np.float32(np.log(components)), zeros, zeros, weights)

    @property
    def num_features(self) -> int:
        """Inputs."""
        return self.means.shape[1]

    @property
    def num_components(self) -> int:
        """Number of Gaussians; with one, fusion is static."""
        return self.means.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of sources, bands and models."""
        return self.fusion_weights.shape[1], self.fusion_weights.shape[2], self.fusion_weights.shape[3]

    def reordered(self, features: Sequence[int] | np.ndarray, models: Sequence[int]) -> "MixtureMapping":
        """The mapping for features and models in another order, given by their indices in the order of this one."""
        columns = np.asarray(features)
        return MixtureMapping(
            self.log_prior,
            self.means[:, columns],
            self.log_precisions[:, columns],
            self.fusion_weights[..., np.asarray(models)],
        )

    def responsibilities(self, features: Float[Array, "*batch feature"]) -> Float[Array, "*batch component"]:
        """Posterior probabilities of the components given the features of a frame; they sum to one at any distance."""
        # Not by the products of a squared distance: in single precision they would cancel.
        scaled = (features[..., None, :] - self.means) * jnp.exp(0.5 * self.log_precisions)
        logs = self.log_prior + 0.5 * self.log_precisions.sum(axis=-1) - 0.5 * (scaled**2).sum(axis=-1)
        # A frame infinitely far from all components still belongs to some.
        return jax.nn.softmax(jnp.maximum(logs, jnp.finfo(logs.dtype).min), axis=-1)

    def __call__(self, features: Float[Array, "*batch feature"]) -> Float[Array, "*batch source band model"]:
        """Logarithms of the fusion weights, -inf where a weight is zero."""
        # "highest": on accelerators the default would round the weights to 10 bits.
        flat = self.fusion_weights.reshape(self.num_components, -1)
        weights = jnp.matmul(self.responsibilities(features), flat, precision="highest")
        return jnp.log(weights.reshape(*features.shape[:-1], *self.shape))


class TrainedMixture(NamedTuple):
    """The mapping of the best number of components, and the validation SDR in dB by number of components."""

    mapping: MixtureMapping
    scores: dict[int, float]


def train_mixture(
    examples: TrainingSet,
    validation: TrainingSet,
    *,
    components: Sequence[int] = (1, 4, 16, 64),
    weighting: Weighting = "energy",
    seed: int = 0,
    progress: bool = False,
) -> TrainedMixture:
    """A mapping learned on the examples, with the number of components that is best on the validation set.

    The Gaussians are fitted to the features alone, of every so many frames if there are more than 32768; then the
    fusion weights are the exact minimiser of the squared error of all frames.

    Parameters
    ----------
    examples, validation
        Of the same features, sources, bands and models. The features should have variances of about one, as those of
        `FeaturePipeline` do. The score is the mean over the recordings and sources of the SDR, as that of
        `neural.train`.
    components
        Numbers of Gaussians to choose from; of equal scores the first wins. 1 is static fusion.
    weighting
        "energy" sums squared errors as they are, the criterion "mse" of [JVR16] eq. 11, to which loud recordings count
        more. "recordings" divides them by the energy of the source in the recording first, so that every recording
        counts alike, which is nearer to the mean SDR; where a source is silent its errors do not count.
    seed
        Of the initial Gaussians.
    progress
        Show a progress bar over the numbers of components.

    Raises
    ------
    ValueError
        If the two sets do not match, the validation set is silent, or a setting is out of range.
    """
    from tqdm.auto import tqdm

    check_alike("train_mixture", examples, validation)
    check_seed("train_mixture", seed)
    if weighting not in get_args(Weighting):
        raise ValueError(f"train_mixture got weighting={weighting!r}; expected one of {get_args(Weighting)}.")
    frames = examples.features[:: -(-len(examples.features) // _FITTED)]
    if not components or not all(1 <= count <= len(frames) for count in components):
        raise ValueError(
            f"train_mixture got components={tuple(components)} and {len(frames)} frames to fit them to; expected "
            "numbers from 1 to that of the frames, at least one."
        )
    if not (validation.gram.energy.sum(axis=(0, 2)) > 0).any():
        raise ValueError("train_mixture got a validation set of silent sources, which says nothing; give others.")
    best, scores = None, {}
    for count in tqdm(components, desc="mixture of Gaussians", disable=not progress):
        mapping = fit_weights(_fit_gaussians(frames, count, examples.heads, seed), examples, weighting=weighting)
        scores[count] = float(np.nanmean(evaluate(mapping, validation)))
        if best is None or scores[count] > scores[best.num_components]:
            best = mapping
    assert best is not None
    return TrainedMixture(best, scores)


def fit_weights(mapping: MixtureMapping, examples: TrainingSet, *, weighting: Weighting = "energy") -> MixtureMapping:
    """The mapping with the same Gaussians and the fusion weights of smallest squared error on the examples.

    Parameters
    ----------
    mapping
        Its fusion weights do not matter.
    examples, weighting
        As for `train_mixture`.
    """
    models = examples.heads[2]
    scale = _scales(examples, weighting)
    shares = _shares(mapping, examples.features)
    problems = [(j, b) for j in range(examples.heads[0]) for b in range(examples.heads[1])]
    size = max(_ENTRIES // (mapping.num_components * models) ** 2, 1)
    parts = []
    for first in range(0, len(problems), size):
        source, band = np.transpose(problems[first : first + size])
        Q = _products(shares, examples, scale, source, band)
        # Static fusion, as a start that is left only for something better.
        static = minimise_on_simplex(Q.sum(axis=(1, 3)), np.zeros((len(Q), models)))
        parts.append(_minimise_jointly(Q, static))
    weights = np.concatenate(parts).swapaxes(0, 1).reshape(mapping.num_components, *examples.heads)
    with precision():
        return eqx.tree_at(lambda m: m.fusion_weights, mapping, jnp.asarray(weights, jnp.float32))


def _fit_gaussians(
    frames: Float[np.ndarray, "frame feature"], count: int, shape: tuple[int, int, int], seed: int
) -> MixtureMapping:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    gaussians = GaussianMixture(count, covariance_type="diag", reg_covar=_VARIANCE, random_state=seed)
    with warnings.catch_warnings():
        # Any mixture will do, one that has not settled or has components without frames, too.
        warnings.simplefilter("ignore", ConvergenceWarning)
        gaussians.fit(frames.astype(np.float64))
    weights, means, variances = (np.asarray(v) for v in (gaussians.weights_, gaussians.means_, gaussians.covariances_))
    logs = (np.log(weights), means, -np.log(variances))
    mapping = MixtureMapping.uniform(count, frames.shape[1], shape)
    with precision():
        fields = [jnp.asarray(field, jnp.float32) for field in logs]
    return eqx.tree_at(lambda m: (m.log_prior, m.means, m.log_precisions), mapping, fields)


def _shares(
    mapping: MixtureMapping, features: Float[np.ndarray, "frame feature"]
) -> Float[np.ndarray, "frame component"]:
    """Responsibilities as the mapping has them in single precision, with sum one in double precision."""
    parts = []
    with precision():
        for start in range(0, len(features), _BLOCK):
            block = features[start : start + _BLOCK].astype(np.float32, copy=False)
            # Padded: a new length is a compilation.
            padded = np.pad(block, [(0, _BLOCK - len(block)), (0, 0)])
            parts.append(np.asarray(_responsibilities(mapping, padded))[: len(block)].astype(np.float64))
    shares = np.concatenate(parts)
    return shares / shares.sum(axis=1, keepdims=True)


@eqx.filter_jit
def _responsibilities(mapping: MixtureMapping, features: Any) -> Float[Array, "frame component"]:
    return mapping.responsibilities(features)


def _scales(examples: TrainingSet, weighting: Weighting) -> Float[np.ndarray, "frame source"]:
    """What squared errors are multiplied with."""
    energy = np.asarray(examples.gram.energy, np.float64).sum(axis=2)
    if weighting == "energy":
        return np.full_like(energy, 1.0 / (energy.mean() or 1.0))
    sums = np.zeros((examples.num_recordings, energy.shape[1]))
    np.add.at(sums, examples.recording, energy)
    return np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)[examples.recording]


def _products(
    shares: Float[np.ndarray, "frame component"],
    examples: TrainingSet,
    scale: Float[np.ndarray, "frame source"],
    source: np.ndarray,
    band: np.ndarray,
) -> Float[np.ndarray, "problem component model component model"]:
    """Q [k, m, l, n] = sum over the frames of r_k r_l E_mn, for each problem, a pair of a source and a band."""
    count, models = shares.shape[1], examples.heads[2]
    pairs, entries = np.triu_indices(count), np.triu_indices(models)
    packed = np.zeros((len(pairs[0]), len(source) * len(entries[0])))
    for start in range(0, len(shares), _BLOCK):
        rows = slice(start, start + _BLOCK)
        part = jax.tree.map(lambda field, rows=rows: field[rows, source, band], examples.gram)
        errors = around_reference(part).gram * scale[rows, source, None, None]
        # What cancellation leaves of the products with an exact estimate is not an error.
        wrong = np.diagonal(errors, axis1=-2, axis2=-1) > 0
        errors *= wrong[..., :, None] & wrong[..., None, :]
        weights = shares[rows, pairs[0]] * shares[rows, pairs[1]]
        packed += weights.T @ errors[..., entries[0], entries[1]].reshape(len(errors), -1)
    packed = np.moveaxis(packed.reshape(len(pairs[0]), len(source), -1), 1, 0)
    Q = np.empty((len(source), count, models, count, models))
    for i, j in (pairs, pairs[::-1]):
        for m, n in (entries, entries[::-1]):
            Q[:, i[:, None], m, j[:, None], n] = packed
    return Q


def _minimise_jointly(
    Q: Float[np.ndarray, "problem component model component model"], start: Float[np.ndarray, "problem model"]
) -> Float[np.ndarray, "problem component model"]:
    """The minimiser of sum_kl a_k' Q_kl a_l with each a_k on the simplex, by exact steps in one a_k after the other."""
    problems, count, models = Q.shape[:3]
    weights = np.repeat(start[:, None], count, axis=1)
    # Of the errors of the frames that a component answers for; a component that has next to none may rest.
    scale = np.einsum("pkmlm->pkm", Q).max(axis=-1)
    scale = np.maximum(scale, _NEGLIGIBLE * scale.sum(axis=1, keepdims=True))
    scale = np.where(scale > 0, scale, 1.0)[..., None]
    open_ = np.arange(problems)
    matrix = Q.reshape(problems, count * models, count * models)
    for _ in range(_MAX_SWEEPS):
        a = weights[open_]
        gradient = (matrix @ a.reshape(len(a), -1, 1)).reshape(a.shape)
        residual = _residual(a, gradient / scale[open_]).max(axis=-1)
        left = residual > _TOLERANCE
        if not left.all():
            open_, matrix, a, gradient = open_[left], matrix[left], a[left], gradient[left]
        if not open_.size:
            break
        for k in range(count):
            own = slice(k * models, (k + 1) * models)
            block = matrix[:, own, own]
            here = (block @ a[:, k, :, None])[..., 0]
            step = minimise_on_simplex(block, here - gradient[:, k]) - a[:, k]
            # Without the mean, which a step does not change, the slope keeps its digits.
            slope = gradient[:, k] - (a[:, k] * gradient[:, k]).sum(axis=-1, keepdims=True)
            change = (step * (2.0 * slope + (block @ step[..., None])[..., 0])).sum(axis=-1)
            # Where the slope dwarfs the curvature, as for components with next to no frames, the minimum is a corner.
            diagonal = np.diagonal(block, axis1=1, axis2=2)
            corners = 2.0 * (slope - here) + diagonal + (a[:, k] * here).sum(axis=-1, keepdims=True)
            corner = np.eye(models)[corners.argmin(axis=-1)] - a[:, k]
            step = np.where((corners.min(axis=-1) < change)[:, None], corner, step)
            # Rounding must not lead uphill.
            step = np.where(np.minimum(corners.min(axis=-1), change) < 0, 1.0, 0.0)[:, None] * step
            a[:, k] += step
            gradient += (matrix[:, :, own] @ step[..., None]).reshape(a.shape)
        weights[open_] = a
    else:
        if residual.max() > _WARNED:
            warnings.warn(
                f"the weights of {count} components are not at the minimum after {_MAX_SWEEPS} rounds, with a residual "
                f"of up to {residual.max():.1g} of the optimality conditions; fewer components overlap less.",
                stacklevel=4,
            )
    return weights


def _residual(
    weights: Float[np.ndarray, "problem component model"], gradient: Float[np.ndarray, "problem component model"]
) -> Float[np.ndarray, "problem component"]:
    """How far from the Karush-Kuhn-Tucker conditions each a_k is, as `simplex_qp.kkt_residual`, given the gradient."""
    slack = gradient - (weights * gradient).sum(axis=-1, keepdims=True)
    return np.maximum(-slack, weights * slack).max(axis=-1)

"""Fusion of the estimates of several models: weights on the simplex, and the weighted sum itself.

Everything here is a pure function of arrays. A rule returns weights, `fuse` applies them, and what a rule
must know of the true source is the `Gram` alone: ||s - sum_m a_m s_m||^2 = c + a' G a - 2 a' d. NumPy arrays
give NumPy arrays, JAX arrays give JAX arrays (jittable; values are then not validated, shapes are), in the
precision of the input.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import minimize_scalar

from bayesfuse._checks import check, check_finite, check_models
from bayesfuse._simplex import indicator, namespace, softmax, tempered
from bayesfuse.grams import Bands, FrameTransform, Gram, gram, gram_of_blocks, grams_of_blocks, sdr, squared_error
from bayesfuse.simplex_qp import kkt_residual, oracle_weights
from bayesfuse.weighted_sum import fuse, fuse_blocks

__all__ = [
    "Bands",
    "FrameTransform",
    "Gram",
    "best_weights",
    "effective_models",
    "fuse",
    "fuse_blocks",
    "gram",
    "gram_of_blocks",
    "grams_of_blocks",
    "kkt_residual",
    "learn_beta",
    "mean_weights",
    "oracle_weights",
    "sdr",
    "select_weights",
    "squared_error",
    "vb_weights",
]

AnyArray = np.ndarray | Array
Scalars = float | int | np.number | np.ndarray | Array


def mean_weights(num_models: int, dtype: Any = np.float64) -> Float[np.ndarray, " model"]:
    """The weights of the plain mean, 1 / M each ([JVR16] III.A).

    Raises
    ------
    ValueError
        If `num_models` is not positive.
    """
    if num_models < 1:
        raise ValueError(f"mean_weights got {num_models} models; it needs at least one.")
    return np.full(num_models, 1.0 / num_models, dtype)


def best_weights(g: Gram) -> Float[AnyArray, "*batch model"]:
    """The indicator of the model with the smallest error (oracle selection); the first among equals."""
    xp = namespace(g.energy, g.gram)
    # The energy of the source is common to all models.
    errors = xp.diagonal(g.gram, axis1=-2, axis2=-1) - 2.0 * g.cross
    return indicator(-errors, -1)


def select_weights(free_energy: Float[AnyArray, "..."], *, axis: int = -1) -> Float[AnyArray, "..."]:
    """The indicator of the model with the largest free energy (VB selection); the first among equals.

    Parameters
    ----------
    free_energy
        In nats; -inf is a model that is ruled out.
    axis
        The axis of the models.

    Raises
    ------
    ValueError
        If a free energy is NaN or +inf, or if there is no model.
    """
    _check_free_energy("select_weights", free_energy, axis)
    return indicator(free_energy, axis)


def vb_weights(
    free_energy: Float[AnyArray, "..."],
    log_prior: Float[AnyArray, " model"] | None = None,
    beta: Scalars = 1.0,
    *,
    axis: int = -1,
    frames: Scalars = 1,
) -> Float[AnyArray, "..."]:
    """The weights softmax(log pi_m + L_m / beta) over the models ([JVR16] eqs. 16-18, per frame eq. 21).

    Limits are exact: beta = 0 gives the model of the largest free energy (equal ones share in proportion to
    the prior, so equally under a uniform one), beta = inf the prior; a free energy of -inf gives weight 0 at
    any beta, and if all are -inf, the prior remains. The weights are on the simplex for free energies of any
    magnitude: none is negative, and their exact sum (without the rounding of the summation) differs from 1 by
    half a machine epsilon at most. Equal free energies under a uniform prior give 1 / M to the last bit.

    Parameters
    ----------
    free_energy
        L in nats: totals [..., model], or per frame [..., model, frame] with ``axis=-2``.
    log_prior
        log pi_m of each model, up to a common constant; -inf excludes a model. Uniform if None.
    beta
        Temperature >= 0, a number or an array over the axes of `free_energy` other than that of the models.
        In the unit of the free energy that is given: of a whole signal for totals, of a frame for values per
        frame.
    axis
        The axis of the models.
    frames
        Number of frames that each free energy is a total over, if `beta` is per frame: the temperature is
        ``frames * beta``, so that one learned beta serves signals of any duration.

    Raises
    ------
    ValueError
        If a free energy or log prior is NaN or +inf, `beta` is NaN or negative, `frames` is not positive, all
        models are excluded by the prior, or sizes do not match.
    """
    _check_free_energy("vb_weights", free_energy, axis)
    num_models = free_energy.shape[axis]
    xp = namespace(free_energy, log_prior, beta, frames)
    dtype = free_energy.dtype
    if log_prior is not None:
        check_models("vb_weights", log_prior.shape[0], num_models, what="log_prior")
        check(
            "vb_weights",
            log_prior,
            lambda v: -np.inf < v.max() < np.inf,  # NaN fails, too
            "a log_prior with NaN or +inf, or that excludes all models; give log probabilities",
        )
    check("vb_weights", beta, lambda v: (v >= 0).all(), f"beta={beta!r}; it must be in [0, inf]")
    check(
        "vb_weights",
        frames,
        lambda v: ((v > 0) & (v < np.inf)).all(),
        f"frames={frames!r}; it must be a positive number of frames",
    )

    values = xp.moveaxis(xp.asarray(free_energy), axis, -1)
    prior = xp.zeros(num_models, dtype) if log_prior is None else xp.asarray(log_prior, dtype=dtype)
    with np.errstate(over="ignore", under="ignore"):  # the limits 0 and inf are legitimate temperatures
        temperature = xp.asarray(xp.asarray(beta) * xp.asarray(frames)).astype(dtype)
    if temperature.ndim:
        batch = values.shape[:-1]
        if np.broadcast_shapes(temperature.shape, batch) != batch:
            raise ValueError(
                f"vb_weights got beta and frames of joint shape {temperature.shape} for free energies whose "
                f"axes besides the models' are {batch}; give numbers, or arrays that broadcast to these."
            )
        temperature = temperature[..., None]
    weights = softmax(tempered(values, prior, temperature))
    return xp.moveaxis(weights, -1, axis)


def effective_models(weights: Float[AnyArray, "..."], *, axis: int = -1) -> Float[AnyArray, "..."]:
    """The effective number of models, exp(-sum_m a_m log a_m), from 1 (selection) to M (mean).

    Parameters
    ----------
    weights
        Fusion weights on the simplex.
    axis
        The axis of the models.
    """
    xp = namespace(weights)
    positive = weights > 0
    logs = xp.log(xp.where(positive, weights, xp.ones_like(weights)))
    return xp.asarray(xp.exp(-(weights * logs).sum(axis=axis)))


def learn_beta(
    grams: Gram | Sequence[Gram],
    free_energies: Float[AnyArray, "example model"],
    num_frames: Sequence[int | np.integer] | np.ndarray,
    loss: Literal["sdr", "mse"] = "sdr",
) -> float:
    """The temperature per frame, for a uniform prior, at which Bayesian averaging does best on training data.

    Over time-invariant weights softmax(L / (N beta_per_frame)) it maximises the mean SDR ([JVR16] eq. 20) or
    minimises the summed squared error (eq. 19). A scan over log beta is refined around its best points; the
    limits beta = 0 (VB selection) and beta = inf (mean) are candidates, so on the training data the result is
    not worse than either.

    Parameters
    ----------
    grams
        Scalar products of each example, with one leading axis or as a sequence.
    free_energies
        Total free energy of each model on each example, in nats.
    num_frames
        Number of frames N of each example.
    loss
        "sdr" or "mse".

    Returns
    -------
    float
        beta_per_frame in nats per frame, for ``vb_weights(..., beta=beta_per_frame, frames=N)``; 0 and inf
        can occur.

    Raises
    ------
    ValueError
        If sizes do not match, there is no example, a value is not finite, or a true source is silent under
        "sdr".

    Notes
    -----
    Departs from the source, which learns the prior as well and counts beta per signal: a temperature per
    frame carries over to other durations.
    """
    g = jax.tree.map(
        lambda field: np.asarray(field, np.float64), grams if isinstance(grams, Gram) else Gram.stack(grams)
    )
    energies = np.asarray(free_energies, np.float64)
    lengths = np.asarray(num_frames, np.float64)
    if energies.shape != g.cross.shape or energies.shape[0] == 0 or lengths.shape != energies.shape[:1]:
        raise ValueError(
            f"learn_beta got Grams [example, model] {g.cross.shape}, free energies {energies.shape} and "
            f"num_frames {lengths.shape}; all must be of the same examples and models, at least one of each."
        )
    if loss not in ("sdr", "mse"):
        raise ValueError(f"learn_beta got loss={loss!r}; it must be 'sdr' or 'mse'.")
    if not ((lengths > 0) & (lengths < np.inf)).all():
        raise ValueError(f"learn_beta got num_frames {lengths.tolist()}; give positive numbers of frames.")
    _check_free_energy("learn_beta", energies, -1)
    check_finite("learn_beta", energy=g.energy, cross=g.cross, gram=g.gram)
    silent = np.flatnonzero(g.energy <= 0)
    if loss == "sdr" and silent.size:
        raise ValueError(
            f"learn_beta got a silent true source in example(s) {silent.tolist()}, whose SDR is not defined; "
            "leave them out or use loss='mse'."
        )

    def cost(beta: float) -> float:
        weights = vb_weights(energies, None, beta, frames=lengths)
        error = squared_error(weights, g)
        if loss == "mse":
            return float(error.sum())
        # The floor, of the rounding of the error itself, keeps one perfect example from hiding all others.
        return float(np.log(np.maximum(error / g.energy, np.finfo(np.float64).eps)).mean())

    with np.errstate(invalid="ignore"):
        gaps = (energies.max(axis=-1, keepdims=True) - energies) / lengths[:, None]
    gaps = gaps[(gaps > 0) & (gaps < np.inf)]
    candidates = [0.0, np.inf]
    if gaps.size:
        # Below the first limit every example is all but selection, above the second all but the mean.
        grid = np.linspace(np.log(gaps.min()) - 4.0, np.log(gaps.max()) + 10.0, 241)
        costs = np.array([cost(np.exp(point)) for point in grid])
        step = grid[1] - grid[0]
        inner = costs[1:-1]
        valleys = 1 + np.flatnonzero((inner <= costs[:-2]) & (inner <= costs[2:]))
        for index in valleys[np.argsort(costs[valleys], kind="stable")][:3]:
            found: Any = minimize_scalar(
                lambda point: cost(np.exp(point)),
                bounds=(grid[index] - step, grid[index] + step),
                method="bounded",
                options={"xatol": 1e-6},
            )
            candidates += [float(np.exp(grid[index])), float(np.exp(found.x))]
        candidates.append(float(np.exp(grid[np.argmin(costs)])))
    return min(candidates, key=cost)


def _check_free_energy(caller: str, free_energy: Any, axis: int) -> None:
    if not -free_energy.ndim <= axis < free_energy.ndim:
        raise ValueError(f"{caller} got axis={axis} for free energies of shape {free_energy.shape}.")
    if free_energy.shape[axis] == 0:
        raise ValueError(f"{caller} got free energies of no model, shape {free_energy.shape}; give at least one.")
    check(
        caller,
        free_energy,
        lambda v: (v < np.inf).all(),
        "a free energy that is NaN or +inf; leave out the models whose inference failed (-inf: weight 0)",
    )

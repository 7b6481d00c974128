"""Weights from log predictive densities per frame: stacking and pseudo-BMA+.

Both are methods of model comparison. They look at how well each model predicts the frames, here by its free energy per
frame or any other log predictive density, and need no true source: neither is in [JVR16].

References
----------
[YVSG18] Y. Yao, A. Vehtari, D. Simpson and A. Gelman, "Using stacking to average Bayesian predictive distributions",
Bayesian Analysis, 13(3), 2018. ArviZ's `compare` implements the same two methods.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bayesfuse._simplex import softmax
from bayesfuse.simplex_qp import minimise_on_simplex

# Entries of a block of bootstrap weights: 32 MiB.
_BLOCK = 1 << 22


def stacking_weights(
    log_density: Float[np.ndarray, "*batch model frame"], *, tolerance: float = 1e-10, max_iters: int = 200
) -> Float[np.ndarray, "*batch model"]:
    """The weights that maximise the log score of the mixture, sum_n log sum_m a_m exp(l_mn) [YVSG18, eq. 6].

    The problem is convex. Newton steps, each an exact quadratic programme on the simplex, are shortened until the score
    grows; they end where the score can grow by no more than the tolerance, in nats per frame.

    Parameters
    ----------
    log_density
        l_mn in nats; -inf where a model rules a frame out, but not all models. Axes in front are problems of their own.
    tolerance
        In nats per frame.
    max_iters
        Largest number of steps.

    Returns
    -------
    array
        Weights on the simplex, float64. Frames whose densities do not differ between models have no influence; if there
        are no others the weights are equal.

    Raises
    ------
    ValueError
        If there is no frame or model, a value is NaN or +inf, all models rule a frame out, or there is no convergence.
    """
    values = _checked("stacking_weights", log_density)
    # Densities relative to the best model of the frame: the weights do not depend on a constant per frame.
    density = np.exp(values - values.max(axis=-2, keepdims=True))
    batch, (models, frames) = density.shape[:-2], density.shape[-2:]
    density = density.reshape(-1, models, frames)
    weights = np.full(density.shape[:2], 1.0 / models)
    running = np.arange(density.shape[0])
    for _ in range(max_iters):
        part, a = density[running], weights[running]
        ratio = part / np.einsum("bm,bmn->bn", a, part)[:, None]
        gradient = ratio.mean(axis=-1)
        # By convexity no point of the simplex is better by more than this; at the optimum it is nothing.
        gap = gradient.max(axis=-1) - 1.0
        running, a, ratio, gradient, part = (x[gap > tolerance] for x in (running, a, ratio, gradient, part))
        if not running.size:
            return weights.reshape(*batch, models)
        curvature = ratio @ np.swapaxes(ratio, -1, -2) / frames
        # Here mean_n r_mn r_m'n a_m' = mean_n r_mn: the Newton step is the least-squares fit of 2 by the ratios r.
        newton = minimise_on_simplex(curvature, 2.0 * gradient, np.full(len(running), 4.0))
        weights[running] = _shortened(part, a, newton, gradient)
    raise ValueError(
        f"stacking_weights did not converge within {max_iters} steps in {running.size} of {density.shape[0]} problems; "
        "raise max_iters or the tolerance."
    )


def _shortened(density: np.ndarray, start: np.ndarray, end: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The first of the points at 1, 1/2, 1/4 ... of the way that fulfils a tenth of what the slope promises."""

    def score(weights: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(np.einsum("bm,bmn->bn", weights, density)).mean(axis=-1)

    before, slope = score(start), np.einsum("bm,bm->b", gradient, end - start)
    fraction = np.ones(len(start))
    for _ in range(60):
        point = start + fraction[:, None] * (end - start)
        short = score(point) < before + 0.1 * fraction * slope - 1e-14
        if not short.any():
            break
        fraction = np.where(short, fraction / 2.0, fraction)
    return start + fraction[:, None] * (end - start)


def pseudo_bma_weights(
    log_density: Float[np.ndarray, "model frame"],
    *,
    groups: Int[np.ndarray, " frame"] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, " model"]:
    """Pseudo-BMA+: Bayesian model averaging by the summed log densities, with a Bayesian bootstrap [YVSG18, sec. 3.4].

    The weights softmax_m(N sum_n u_n l_mn) are averaged over draws of u from the flat Dirichlet distribution: how
    certain the choice of a model is depends on how the differences spread over the frames.

    Parameters
    ----------
    log_density
        l_mn in nats, finite.
    groups
        Label of each frame, for instance of its utterance or a block of neighbours, which are drawn together; every
        frame by itself if None. Neighbouring frames are not independent: single frames make the choice look too
        certain.
    draws
        Number of draws.
    seed
        Of the draws.

    Raises
    ------
    ValueError
        If there is no frame, model or draw, a value is not finite, or the number of labels is another.
    """
    values = _checked("pseudo_bma_weights", log_density)
    if draws < 1 or not np.isfinite(values).all():
        raise ValueError(
            f"pseudo_bma_weights got draws={draws} and log densities from {values.min()} on; it needs at least one "
            "draw and finite values."
        )
    values = values - values.mean(axis=0)
    if groups is not None:
        if np.shape(groups) != values.shape[1:]:
            raise ValueError(
                f"pseudo_bma_weights got groups of shape {np.shape(groups)} for {values.shape[1]} frames; give one "
                "label per frame."
            )
        _, member = np.unique(groups, return_inverse=True)
        values = np.stack([np.bincount(member, row) for row in values])
    rng = np.random.default_rng(seed)
    size = values.shape[1]
    total = np.zeros(values.shape[0])
    block = max(1, _BLOCK // size)
    for begin in range(0, draws, block):
        shares = rng.standard_exponential((min(block, draws - begin), size))
        shares *= size / shares.sum(axis=1, keepdims=True)
        total += softmax(shares @ values.T).sum(axis=0)
    return softmax(np.log(np.maximum(total, np.finfo(np.float64).tiny)))


def _checked(caller: str, log_density: Any) -> np.ndarray:
    values = np.asarray(log_density, np.float64)
    if values.ndim < 2 or 0 in values.shape:
        raise ValueError(
            f"{caller} got log densities of shape {values.shape}; expected [model, frame], at least one of each."
        )
    if not (values < np.inf).all() or not (values.max(axis=-2) > -np.inf).all():
        raise ValueError(
            f"{caller} got log densities that are NaN or +inf, or a frame that all models rule out; leave those out."
        )
    return values

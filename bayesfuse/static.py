"""Fusion weights that are the same for every mixture, learned from training examples.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize, nnls

from bayesfuse._precision import precision
from bayesfuse.grams import Gram
from bayesfuse.objectives import ExtendedGram, Loss, TrainingLoss, as_double, error_form, training_loss
from bayesfuse.simplex_qp import oracle_weights

Constraint = Literal["simplex", "nonnegative", "none"]


def static_weights(
    g: Gram | ExtendedGram,
    *,
    loss: Loss = "mse",
    constraint: Constraint = "simplex",
    ridge: float = 0.0,
    shared: bool = False,
    starts: int = 8,
    seed: int = 0,
) -> Float[np.ndarray, "*batch model"]:
    """One weight per model, for all mixtures ([JVR16] eqs. 11 and 12).

    "mse" is a convex problem, solved exactly. "sdr" and objectives are not convex: descents with exact gradients go out
    from the solution of "mse", from that of "mse" with examples of equal energy, from the mean, from every single model
    and from random points, and the best point seen is returned, so that on the training data no single model, nor the
    solution of "mse", is better.

    Parameters
    ----------
    g
        Scalar products of the training examples, [*batch, example]; leading axes (sources, bands) are problems of their
        own. Sum over frames first.
    loss
        "mse" minimises the summed squared error, "sdr" maximises the mean SDR, an `Objective` its mean.
    constraint
        Weights on the simplex, not below zero, or free. An `Objective` asks for the simplex.
    ridge
        Strength >= 0 of a pull towards the mean: ridge times the mean energy of the estimates times |a - 1/M|^2 is
        added to the squared error of every example. It does not depend on the scale of the audio.
    shared
        The leading axes are examples, too: the same weights for all sources.
    starts
        Number of random starting points where the problem is not convex.
    seed
        Of these.

    Raises
    ------
    ValueError
        As `training_loss` does, if the constraint is unknown, does not go with the loss, or `ridge` is negative.
    """
    if constraint not in ("simplex", "nonnegative", "none"):
        raise ValueError(
            f"static_weights got constraint={constraint!r}; it must be 'simplex', 'nonnegative' or 'none'."
        )
    if loss == "frame-sdr" or (constraint != "simplex" and not isinstance(loss, str)):
        raise ValueError(
            f"static_weights got loss={loss!r} with constraint={constraint!r}; 'mse' and 'sdr' go with any constraint, "
            "an Objective with 'simplex'."
        )
    if not 0 <= ridge < np.inf:
        raise ValueError(f"static_weights got ridge={ridge}; it must be a number in [0, inf).")
    g = as_double(g)
    batch = g.gram.shape[:-3]
    models = g.gram.shape[-1]
    if not batch:
        return _learn(g, loss, constraint, ridge, starts, seed)
    if shared:
        g = jax.tree.map(lambda field: field.reshape(-1, *field.shape[len(batch) + 1 :]), g)
        return _learn(g, loss, constraint, ridge, starts, seed)
    flat = jax.tree.map(lambda field: field.reshape(-1, *field.shape[len(batch) :]), g)
    weights = [
        _learn(jax.tree.map(lambda field, i=i: field[i], flat), loss, constraint, ridge, starts, seed)
        for i in range(flat.gram.shape[0])
    ]
    return np.stack(weights).reshape(*batch, models)


def _learn(g: Any, loss: Loss, constraint: Constraint, ridge: float, starts: int, seed: int) -> np.ndarray:
    """The weights of one problem, scalar products [example]."""
    affine = constraint != "simplex"
    criterion = training_loss("static_weights", g, loss, affine=affine)
    target = _pulled(g.target if isinstance(g, ExtendedGram) else g, ridge)
    exact = least_squares(target.sum(), constraint)
    if loss == "mse":
        return exact
    error = np.moveaxis(np.asarray(error_form(target, affine=affine)), 0, -1)
    criterion = eqx.tree_at(lambda c: c.forms, criterion, np.concatenate([error[None], criterion.forms[1:]]))
    even = jax.tree.map(lambda field: field / target.energy.reshape(-1, *[1] * (field.ndim - 1)), target)
    mean = np.full(exact.size, 1.0 / exact.size)
    points = [exact, least_squares(even.sum(), constraint), mean, *np.eye(exact.size)]
    points += list(np.random.default_rng(seed).dirichlet(np.ones(exact.size), starts))
    return _descend(criterion, points, constraint)


def _pulled(g: Gram, ridge: float) -> Gram:
    """Scalar products whose squared error holds the pull towards the mean."""
    models = g.num_models
    strength = ridge * np.trace(g.gram, axis1=-2, axis2=-1) / models
    return Gram(
        g.energy + strength / models,
        g.cross + strength[..., None] / models,
        g.gram + strength[..., None, None] * np.eye(models),
    )


def least_squares(g: Gram, constraint: Constraint) -> Float[np.ndarray, " model"]:
    """The weights of smallest squared error; of many such free weights those nearest to the mean."""
    if constraint == "simplex":
        return np.asarray(oracle_weights(g))
    scale = np.trace(g.gram) / g.num_models
    mean = np.full(g.num_models, 1.0 / g.num_models)
    if scale <= 0:
        return mean
    values, vectors = np.linalg.eigh(g.gram / scale)
    kept = values > g.num_models * np.finfo(np.float64).eps * values[-1]
    root = np.sqrt(values[kept])
    if constraint == "none":
        gap = vectors[:, kept].T @ (g.cross - g.gram @ mean) / scale
        return mean + vectors[:, kept] @ (gap / root**2)
    weights, _ = nnls(root[:, None] * vectors[:, kept].T, vectors[:, kept].T @ g.cross / (scale * root))
    return weights


@jax.jit
@jax.value_and_grad
def _value_and_grad(weights: Any, criterion: TrainingLoss) -> Any:
    rows = criterion.forms.shape[1]
    return criterion(jnp.concatenate([weights, jnp.ones(rows - weights.size)])[:, None])


def _descend(criterion: TrainingLoss, points: list[np.ndarray], constraint: Constraint) -> np.ndarray:
    """The best point of descents from all points, and of the points themselves."""
    models = points[0].size
    with precision(criterion.forms):
        criterion = jax.tree.map(jnp.asarray, criterion)

        def value_and_grad(weights: np.ndarray) -> tuple[float, np.ndarray]:
            value, grad = _value_and_grad(weights, criterion)
            return float(value), np.asarray(grad)

        best = min(points, key=lambda point: value_and_grad(point)[0])
        lowest = value_and_grad(best)[0]
        for point in points:
            found: Any = minimize(
                value_and_grad,
                point,
                jac=True,
                method="SLSQP",
                bounds=None if constraint == "none" else [(0.0, None)] * models,
                constraints=[{"type": "eq", "fun": lambda a: a.sum() - 1.0, "jac": np.ones_like}]
                if constraint == "simplex"
                else [],
                options={"ftol": 1e-12, "maxiter": 500},
            )
            weights = found.x if constraint == "none" else np.maximum(found.x, 0.0)
            if constraint == "simplex":
                weights = weights / weights.sum()
            value = value_and_grad(weights)[0] if np.isfinite(weights).all() else np.inf
            if value < lowest:
                best, lowest = weights, value
    return best

"""Weights on the simplex of smallest squared error, exactly, for any number of frames at once ([JVR16] II.E).

With e_m = s_m - s the error of estimate m, sum_m a_m = 1 gives ||s - sum_m a_m s_m||^2 = a' E a, E_mn = <e_m, e_n>:
the minimiser is the point of the convex hull of the errors that is nearest to the origin. It is found in three steps.

1. *Lift.* For any t > 0 the minimiser of a' E a on the simplex is y / sum(y), where y solves the complementarity
   problem y >= 0, w = (E + t 11') y - 1 >= 0, y'w = 0, a problem of non-negative least squares: on the support of y,
   E y = (1 - t sum(y)) 1, elsewhere more, which are the conditions of Karush, Kuhn and Tucker of the simplex. Unlike
   those, the lifted problem keeps its form when each variable is rescaled, so that estimates of very different
   magnitudes cost no accuracy: the matrix is scaled to a unit diagonal.
2. *Proximal steps.* A ridge of 1e-10 of the diagonal makes the matrix definite and the solution unique where the
   estimates are not independent (duplicates share their weight equally); a second step with the ridge centred at the
   first solution takes the bias out again.
3. *Block principal pivoting* [JP94], [KP11]: guess the support, solve for it, and exchange at once all variables with
   the wrong sign; if that stops helping, only the last of them, which is finite. All problems are solved side by
   side; those that are done leave the batch.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
[JP94] J. J. Júdice and F. M. Pires, "A block principal pivoting algorithm for large-scale strictly monotone linear
complementarity problems", Computers & Operations Research, 21(5), 1994.
[KP11] J. Kim and H. Park, "Fast nonnegative matrix factorization: an active-set-like method and comparisons", SIAM
Journal on Scientific Computing, 33(6), 2011.
"""

from typing import Any

import jax
import numpy as np
import scipy.optimize
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from bayesfuse._checks import check_finite, check_models
from bayesfuse._simplex import namespace
from bayesfuse.grams import Gram

AnyArray = np.ndarray | Array

_RIDGE = 1e-10
# Energy of an error, relative to the loudest signal, that is none at all; its square root can still be divided by.
_SILENT = 1e-280
# Sign violations below this are rounding: in the scaled problem all quantities are of order one.
_TOLERANCE = 1e-12
# Exchanges of all wrong variables that may pass without progress; three is the published choice.
_PATIENCE = 3
_MAX_EXCHANGES = 100
# Matrix entries worked on at a time, so that they stay in the processor's cache.
_CHUNK_ENTRIES = 1 << 17


def oracle_weights(g: Gram) -> Float[AnyArray, "*batch model"]:
    """The weights on the simplex of smallest squared error, for each batch element ([JVR16] eqs. 9-10).

    Exact: the residual of the Karush-Kuhn-Tucker conditions is a few roundings of the Gram's scale (`kkt_residual`),
    whatever the loudness of the audio. Where errors are all but alike, or of scales many orders apart, it is more, and
    less than the ridge, 1e-10. Where the minimiser is not unique, the weights are the same for estimates that
    are the same; where there is nothing to decide, because all estimates are exact or everything is silent, they are
    uniform. A silent source with estimates that are not has a minimiser like any other: the quietest fused estimate.

    Parameters
    ----------
    g
        Scalar products, of any batch axes: examples, frames, bands.

    Returns
    -------
    array
        [..., model], none negative, with sum one, in the precision of the Gram; computed on the host in float64. JAX
        arrays are allowed, inside `jax.jit` too, but the result has no derivative.

    Raises
    ------
    ValueError
        If a value is NaN or infinite.
    """
    check_finite("oracle_weights", energy=g.energy, cross=g.cross, gram=g.gram)
    if isinstance(g.cross, Tracer):
        shape = jax.ShapeDtypeStruct(g.cross.shape, g.cross.dtype)
        return jax.pure_callback(_minimise, shape, g.gram, g.cross, g.energy, vmap_method="expand_dims")
    weights = _minimise(np.asarray(g.gram), np.asarray(g.cross), np.asarray(g.energy))
    return namespace(g.cross).asarray(weights)


def minimise_on_simplex(
    gram: Float[np.ndarray, "... model model"],
    cross: Float[np.ndarray, "..."],
    energy: Float[np.ndarray, "..."] | None = None,
) -> Float[np.ndarray, "..."]:
    """The minimiser of a' G a - 2 a' d over the simplex, as `oracle_weights`, from bare arrays.

    Parameters
    ----------
    gram
        G [..., model, model], positive semidefinite up to rounding.
    cross
        d [..., model], in the range of G, as scalar products with a common reference are.
    energy
        c [...], the energy of the reference, at least d' G^+ d. By default that bound: the minimiser does not
        depend on c.

    Raises
    ------
    ValueError
        If the numbers of models differ, a value is NaN or infinite, or d is not 0 where G_mm is.
    """
    if gram.shape != (*cross.shape, cross.shape[-1]):
        raise ValueError(
            f"minimise_on_simplex got gram of shape {gram.shape} and cross of shape {cross.shape}; expected "
            "[..., model, model] and [..., model] over the same models."
        )
    check_finite("minimise_on_simplex", gram=gram, cross=cross)
    if energy is None:
        energy = _least_energy(gram, cross)
    check_finite("minimise_on_simplex", energy=energy)
    return _minimise(gram, cross, energy)


def _least_energy(
    gram: Float[np.ndarray, "... model model"], cross: Float[np.ndarray, "... model"]
) -> Float[np.ndarray, "..."]:
    """d' G^+ d up to rounding, and never so little that the errors' matrix is indefinite by more than rounding.

    With a ridge instead of a pseudo-inverse: what lies along directions that are zero up to rounding counts, too, since
    without it c + a'Ga - 2a'd is negative somewhere. Of unit diagonal, so that every estimate has a ridge of its scale.
    """
    power = np.diagonal(gram, axis1=-2, axis2=-1)
    # The square of what is not zero may be.
    if np.any((power <= 0) & (np.abs(cross) > 1e-100 * np.abs(cross).max(axis=-1, keepdims=True))):
        raise ValueError(
            "minimise_on_simplex got a linear term where the diagonal of the quadratic one is zero; scalar products "
            "with a silent estimate are zero."
        )
    root = np.sqrt(np.maximum(power, 0.0))
    inverse = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
    values, vectors = np.linalg.eigh(gram * inverse[..., :, None] * inverse[..., None, :])
    ridge = 8.0 * power.shape[-1] * np.finfo(gram.dtype).eps
    along = ((cross * inverse)[..., None, :] @ vectors)[..., 0, :]
    return np.asarray((along**2 / (np.maximum(values, 0.0) + ridge)).sum(axis=-1))


def kkt_residual(weights: Float[AnyArray, "*#batch model"], g: Gram) -> Float[AnyArray, "*batch"]:
    """How far weights are from the optimality conditions on the simplex, relative to the Gram's scale; 0 is optimal.

    With the gradient q = G a - d and its mean l = a'q under the weights, the largest of: l - q_m (moving towards
    estimate m would help) and a_m (q_m - l) (moving away from it would), both divided by the scale, the largest of c
    and all G_mm; a negative weight; the distance of the sum from one.

    Parameters
    ----------
    weights
        [..., model], broadcast against the batch axes of `g`.
    g
        Scalar products. If all are zero, any weights on the simplex are optimal.
    """
    check_models("kkt_residual", weights.shape[-1], g.num_models)
    xp = namespace(weights, g.cross)
    gradient = xp.einsum("...mn,...n->...m", g.gram, weights) - g.cross
    slack = gradient - (weights * gradient).sum(axis=-1, keepdims=True)
    scale = xp.maximum(xp.diagonal(g.gram, axis1=-2, axis2=-1).max(axis=-1), g.energy)
    slack = slack / xp.where(scale > 0, scale, xp.ones_like(scale))[..., None]
    off = abs(weights.sum(axis=-1) - 1.0)
    worst = xp.maximum(xp.maximum(-slack, weights * slack).max(axis=-1), (-weights).max(axis=-1))
    return xp.asarray(xp.maximum(xp.maximum(worst, off), xp.zeros_like(worst)))


def _minimise(gram: Any, cross: Any, energy: Any) -> np.ndarray:
    """`oracle_weights` of arrays whose shapes and values were checked."""
    dtype = cross.dtype
    models = cross.shape[-1]
    matrices = np.asarray(gram).reshape(-1, models, models)
    products = np.asarray(cross).reshape(-1, models)
    energies = np.broadcast_to(np.asarray(energy), cross.shape[:-1]).reshape(-1)
    weights = np.empty(products.shape)
    chunk = max(_CHUNK_ENTRIES // models**2, 1)
    for start in range(0, len(products), chunk):
        part = slice(start, start + chunk)
        weights[part] = _minimise_chunk(
            matrices[part].astype(np.float64),
            products[part].astype(np.float64),
            energies[part].astype(np.float64),
            float(np.finfo(dtype).eps),
        )
    return weights.reshape(cross.shape).astype(dtype)


def _minimise_chunk(
    gram: Float[np.ndarray, "problem model model"],
    cross: Float[np.ndarray, "problem model"],
    energy: Float[np.ndarray, " problem"],
    eps: float,
) -> Float[np.ndarray, "problem model"]:
    models = cross.shape[-1]
    power = np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 0.0)
    # Scaled to order one first: squares of quiet audio, and their products below, must not underflow.
    scale = np.maximum(power.max(axis=-1), energy)
    weights = np.full(cross.shape, 1.0 / models)
    audible = np.flatnonzero(scale > np.finfo(np.float64).tiny)
    scale = scale[audible]
    gram, cross = gram[audible] / scale[:, None, None], cross[audible] / scale[:, None]
    power, energy = power[audible] / scale[:, None], energy[audible] / scale
    errors = (gram + gram.swapaxes(-1, -2)) / 2.0 - cross[:, :, None] - cross[:, None, :] + energy[:, None, None]
    # What rounding of the Gram (of its own precision) leaves uncertain about each error; it scales it if it is zero.
    noise = np.maximum(8.0 * models * eps * (power + energy[:, None]), _SILENT)
    sizes = np.maximum(np.diagonal(errors, axis1=-2, axis2=-1), 0.0)
    undecided = (sizes <= noise).all(axis=-1)
    if undecided.any():
        audible, errors = audible[~undecided], errors[~undecided]
        noise, sizes = noise[~undecided], sizes[~undecided]

    lift = (sizes + noise).min(axis=-1)
    matrix = errors + lift[:, None, None]
    diagonal = sizes + noise + lift[:, None]
    root = np.sqrt(diagonal)
    matrix /= root[:, :, None] * root[:, None, :]
    ridge = _RIDGE + noise / diagonal
    index = np.arange(models)
    matrix[:, index, index] = sizes / diagonal + (lift[:, None] / diagonal) + ridge
    target = root.min(axis=-1, keepdims=True) / root

    free = np.ones(target.shape, bool)
    solution = _complementary(matrix, target, free)
    solution = _complementary(matrix, target + ridge * solution, free) / root
    weights[audible] = solution / solution.sum(axis=-1, keepdims=True)
    return weights


def _complementary(
    matrix: Float[np.ndarray, "problem model model"],
    target: Float[np.ndarray, "problem model"],
    free: Bool[np.ndarray, "problem model"],
) -> Float[np.ndarray, "problem model"]:
    """z >= 0 with w = Q z - r >= 0 and z'w = 0, for definite Q of unit diagonal; `free`, the start, ends as support."""
    models = target.shape[-1]
    identity = np.eye(models)
    solution = np.empty_like(target)
    pending = np.arange(len(target))
    fewest = np.full(len(target), models + 1)
    patience = np.full(len(target), _PATIENCE)
    quadratic, linear, chosen = matrix, target, free
    for _ in range(_MAX_EXCHANGES):
        if not pending.size:
            return solution
        system = np.where(chosen[:, :, None] & chosen[:, None, :], quadratic, identity)
        values = np.linalg.solve(system, np.where(chosen, linear, 0.0)[..., None])
        slack = (quadratic @ values)[..., 0] - linear
        values = values[..., 0]
        wrong = np.where(chosen, values, slack) < -_TOLERANCE
        count = wrong.sum(axis=-1)
        done = count == 0
        solution[pending[done]] = np.maximum(values[done], 0.0)
        free[pending[done]] = chosen[done]

        going = ~done
        pending, wrong, count = pending[going], wrong[going], count[going]
        progress = count < fewest[going]
        patience = np.where(progress, _PATIENCE, patience[going] - 1)
        fewest = np.minimum(fewest[going], count)
        last = models - 1 - np.argmax(wrong[:, ::-1], axis=-1)
        only = np.arange(models) == last[:, None]
        chosen = chosen[going] ^ np.where((patience < 0)[:, None], only, wrong)
        quadratic, linear = quadratic[going], linear[going]
    # Never seen in tests, but pivoting in rounded numbers could cycle: an active-set method cannot.
    for problem, Q, r in zip(pending, quadratic, linear, strict=True):
        values, vectors = np.linalg.eigh(Q)
        # Definite but for rounding.
        factor = np.sqrt(np.maximum(values, _RIDGE))[:, None] * vectors.T
        solution[problem] = scipy.optimize.nnls(factor, (vectors.T @ r) / np.sqrt(np.maximum(values, _RIDGE)))[0]
        free[problem] = solution[problem] > 0
    return solution

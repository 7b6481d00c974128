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
from typing import Any, Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from scipy.optimize import minimize_scalar

from bayesfuse._simplex import indicator, namespace, softmax, tempered

AnyArray = np.ndarray | Array
Scalars = float | int | np.number | np.ndarray | Array

# Samples that are in double precision at a time while a Gram is accumulated: 2 MiB per signal.
_BLOCK = 1 << 18


@runtime_checkable
class FrameTransform(Protocol):
    """What `fuse` needs of a transform: framing with overlap-add, such as that of `transforms.STFT`."""

    def num_frames(self, length: int) -> int: ...
    def analysis(self, x: Any) -> Any: ...
    def synthesis(self, X: Any, length: int) -> Any: ...


class Gram(eqx.Module):
    """Scalar products between a true source and its estimates, [JVR16] eqs. 9-10.

    Attributes
    ----------
    energy
        c = <s, s>, in squared units of the signal.
    cross
        d_m = <s, s_m>.
    gram
        G_mm' = <s_m, s_m'>.
    """

    energy: Float[AnyArray, "*batch"]
    cross: Float[AnyArray, "*batch model"]
    gram: Float[AnyArray, "*batch model model"]

    @property
    def num_models(self) -> int:
        """Number of estimates M."""
        return self.cross.shape[-1]

    def sum(self, axis: int = 0) -> "Gram":
        """The Gram of the concatenation along one batch axis (channels, frames, examples): Grams add.

        Parameters
        ----------
        axis
            The batch axis, counted from the first one.
        """
        if not 0 <= axis < self.energy.ndim:
            raise ValueError(
                f"Gram.sum got axis={axis}, but there are {self.energy.ndim} batch axes; count them from 0."
            )
        return jax.tree.map(lambda field: namespace(field).asarray(field.sum(axis=axis)), self)

    @staticmethod
    def stack(grams: "Sequence[Gram]") -> "Gram":
        """Several Grams as one, with a new leading axis, for instance of examples.

        Raises
        ------
        ValueError
            If there is none, or if they differ in shape, for instance in the number of models.
        """
        if not grams:
            raise ValueError("Gram.stack got no Gram; give at least one.")
        shapes = sorted({item.cross.shape for item in grams})
        if len(shapes) > 1:
            raise ValueError(f"Gram.stack got shapes {shapes} of `cross`; all must be over the same models.")
        return jax.tree.map(lambda *fields: namespace(*fields).stack(fields), *grams)


def gram(reference: Float[AnyArray, "*batch sample"], estimates: Float[AnyArray, "model ..."]) -> Gram:
    """The scalar products over the whole signal, one `Gram` entry per batch element ([JVR16] eqs. 9-10).

    Parameters
    ----------
    reference
        True source [..., sample]; a channel axis is a batch axis, `Gram.sum` adds over it.
    estimates
        One estimate per model [model, ..., sample].

    Returns
    -------
    Gram
        In float64 for NumPy arrays of any precision, because c + a'Ga - 2a'd cancels for good estimates;
        in the precision of the input for JAX arrays.

    Raises
    ------
    ValueError
        If the shapes differ, or if a value is NaN or infinite.
    """
    if estimates.ndim != reference.ndim + 1 or estimates.shape[1:] != reference.shape:
        raise ValueError(
            f"gram got a reference of shape {reference.shape} and estimates of shape {estimates.shape}; "
            "estimates must have one leading model axis and otherwise the shape of the reference. "
            "Pad or trim the signals to a common length first."
        )
    if estimates.shape[0] == 0:
        raise ValueError("gram got estimates of no model; give at least one.")
    _check_finite("gram", reference=reference, estimates=estimates)
    xp = namespace(reference, estimates)
    if xp is jnp:
        stacked = jnp.concatenate([reference[None], estimates])
        products = jnp.einsum("m...t,n...t->...mn", stacked, stacked)
    else:
        models = 1 + estimates.shape[0]
        products = np.zeros((*reference.shape[:-1], models, models))
        for start in range(0, reference.shape[-1], _BLOCK):
            part = slice(start, start + _BLOCK)
            block = np.concatenate([reference[None, ..., part], estimates[..., part]])
            block = np.moveaxis(block.astype(np.float64), 0, -2)
            products += block @ np.swapaxes(block, -1, -2)
    return Gram(xp.asarray(products[..., 0, 0]), products[..., 0, 1:], products[..., 1:, 1:])


def squared_error(weights: Float[AnyArray, "*#batch model"], g: Gram) -> Float[AnyArray, "*batch"]:
    """Squared error ||s - sum_m a_m s_m||^2 of the fused estimate, from the triple alone ([JVR16] eq. 8).

    Parameters
    ----------
    weights
        Fusion weights a, [..., model], broadcast against the batch axes of `g`.
    g
        Scalar products. The result is not below zero, whatever the rounding.
    """
    _check_models("squared_error", weights.shape[-1], g.num_models)
    xp = namespace(weights, g.energy)
    quadratic = xp.einsum("...m,...mn,...n->...", weights, g.gram, weights)
    linear = xp.einsum("...m,...m->...", weights, g.cross)
    return xp.asarray(xp.maximum(g.energy + quadratic - 2.0 * linear, 0.0))


def sdr(weights: Float[AnyArray, "*#batch model"], g: Gram) -> Float[AnyArray, "*batch"]:
    """Signal-to-distortion ratio of the fused estimate in dB, from the triple alone ([JVR16] eq. 6).

    It is inf for an estimate without error, -inf for a silent source with an estimate that is not, NaN if
    both are silent. Parameters as those of `squared_error`.
    """
    error = squared_error(weights, g)
    xp = namespace(error, g.energy)
    with np.errstate(divide="ignore", invalid="ignore"):
        return xp.asarray(10.0 * (xp.log10(g.energy) - xp.log10(error)))


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
        _check_models("vb_weights", log_prior.shape[0], num_models, what="log_prior")
        _check(
            "vb_weights",
            log_prior,
            lambda v: -np.inf < v.max() < np.inf,  # NaN fails, too
            "a log_prior with NaN or +inf, or that excludes all models; give log probabilities",
        )
    _check("vb_weights", beta, lambda v: (v >= 0).all(), f"beta={beta!r}; it must be in [0, inf]")
    _check(
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
    _check_finite("learn_beta", energy=g.energy, cross=g.cross, gram=g.gram)
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


def fuse(
    weights: Float[AnyArray, "..."],
    estimates: Float[AnyArray, "..."],
    *,
    transform: FrameTransform | None = None,
) -> Float[AnyArray, "..."]:
    """The weighted sum of the estimates of all models, with constant weights or with weights per frame.

    Constant weights give sum_m a_m s_m(t) ([JVR16] eq. 3). Weights per frame scale the frames of the analysis
    of each estimate, and the sum is synthesised by overlap-add (eqs. 4-5); weights that are the same in every
    frame give the result of constant ones, up to rounding. The result is linear in the weights and in the
    estimates.

    Parameters
    ----------
    weights
        [model], or [model, frame] over the frames of `transform`. Of any sign and sum.
    estimates
        [model, ..., sample], for instance [model, source, channel, sample].
    transform
        The framing, required for weights per frame.

    Returns
    -------
    array
        Fused signals [..., sample], in the precision of the estimates.

    Raises
    ------
    ValueError
        If the numbers of models or frames do not match, `transform` is missing, or a value is NaN or
        infinite.

    Notes
    -----
    Departs from the source, where the frames are those of the separators' own STFTs: here the waveforms are
    analysed again, since estimates may come from separators with other transforms or with none.
    """
    if weights.ndim not in (1, 2) or weights.shape[0] == 0:
        raise ValueError(f"fuse got weights of shape {weights.shape}; they must be [model] or [model, frame].")
    if estimates.ndim < 2:
        raise ValueError(f"fuse got estimates of shape {estimates.shape}; they must be [model, ..., sample].")
    _check_models("fuse", weights.shape[0], estimates.shape[0])
    _check_finite("fuse", weights=weights, estimates=estimates)
    xp = namespace(weights, estimates)
    scales = xp.asarray(weights, dtype=estimates.dtype)
    if weights.ndim == 1:
        return xp.tensordot(scales, xp.asarray(estimates), axes=1)
    if transform is None:
        raise ValueError(
            f"fuse got weights per frame, of shape {weights.shape}, but no transform; "
            "pass the transform whose frames they belong to, for instance transform=STFT()."
        )
    length = estimates.shape[-1]
    frames = transform.num_frames(length)
    if weights.shape[1] != frames:
        raise ValueError(
            f"fuse got weights for {weights.shape[1]} frames, but the transform has {frames} frames over "
            f"{length} samples; use the transform with which the weights were computed."
        )
    # One estimate at a time: the analysis of all would take several times their memory.
    fused = transform.analysis(xp.asarray(estimates[0])) * scales[0]
    for scale, estimate in zip(scales[1:], estimates[1:], strict=True):
        fused = fused + transform.analysis(xp.asarray(estimate)) * scale
    return transform.synthesis(fused, length)


def _check(caller: str, value: Any, accept: Any, complaint: str) -> None:
    """Raise unless the value, if it is known (not inside a JAX transformation), is accepted."""
    if not isinstance(value, Tracer) and not accept(np.asarray(value)):
        raise ValueError(f"{caller} got {complaint}.")


def _check_finite(caller: str, **arrays: Any) -> None:
    for name, array in arrays.items():
        _check(
            caller,
            array,
            lambda v: np.isfinite(v).all(),
            f"{name} with NaN or infinite values; find the model or file they come from and leave it out",
        )


def _check_models(caller: str, got: int, expected: int, what: str = "weights") -> None:
    if got != expected:
        raise ValueError(f"{caller} got {what} for {got} models, but there are {expected}; give one per model.")


def _check_free_energy(caller: str, free_energy: Any, axis: int) -> None:
    if not -free_energy.ndim <= axis < free_energy.ndim:
        raise ValueError(f"{caller} got axis={axis} for free energies of shape {free_energy.shape}.")
    if free_energy.shape[axis] == 0:
        raise ValueError(f"{caller} got free energies of no model, shape {free_energy.shape}; give at least one.")
    _check(
        caller,
        free_energy,
        lambda v: (v < np.inf).all(),
        "a free energy that is NaN or +inf; leave out the models whose inference failed (-inf: weight 0)",
    )

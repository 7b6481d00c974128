"""What fusion weights are judged by: SDR, SIR, SAR and mixtures of them, and the losses that rules are trained with.

All are functions of weights and of scalar products, never of audio, and differentiable in the weights. On the simplex
the energies behind them are quadratic forms a' Q a of the weights: of the error, because s - sum_m a_m s_m is a
weighted sum of the models' own errors (nothing cancels), and of the parts of the fused estimate that lie along the true
source, along the other sources, and along none of them.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
[VGF06] E. Vincent, R. Gribonval and C. Févotte, "Performance measurement in blind audio source separation", IEEE
Trans. Audio, Speech, Lang. Process., 14(4), 2006.
"""

from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesfuse._checks import check_finite
from bayesfuse._module import Module
from bayesfuse._simplex import namespace
from bayesfuse.grams import Gram, gram, sdr

AnyArray = np.ndarray | Array

# What vanishes would count for infinitely many decibels, and a rule would be learned for the sake of one frame without
# error, or of one example in which the interference happens to cancel: in what rules are trained with, errors of frames
# and parts of the fused estimate below this share (-60 dB) of the mean frame or of the estimate hardly differ.
_LEVEL_FLOOR = 1e-6
_FLOOR = float(np.finfo(np.float64).eps)


class ExtendedGram(Module):
    """Scalar products between all true sources, the first of which is wanted, and the estimates of that one.

    Attributes
    ----------
    sources
        R_ij = <s_i, s_j>.
    cross
        D_im = <s_i, s~_m>.
    gram
        G_mm' = <s~_m, s~_m'>.
    """

    sources: Float[AnyArray, "*batch source source"]
    cross: Float[AnyArray, "*batch source model"]
    gram: Float[AnyArray, "*batch model model"]

    @property
    def target(self) -> Gram:
        """The scalar products with the wanted source alone."""
        return Gram(self.sources[..., 0, 0], self.cross[..., 0, :], self.gram)

    def forms(self) -> "Forms":
        """The quadratic forms of the three parts of a fused estimate [VGF06], with gains constant over the signal.

        Of linearly dependent or silent sources each direction counts once. What lies along the wanted source is target,
        also where other sources resemble it.
        """
        xp = namespace(self.sources, self.cross, self.gram)
        energy = self.sources[..., 0, 0]
        share = xp.where(energy > 0, 1.0 / xp.where(energy > 0, energy, xp.ones_like(energy)), xp.zeros_like(energy))
        along = self.cross[..., 0, :]
        target = share[..., None, None] * along[..., :, None] * along[..., None, :]
        # The other sources without what of them lies along the wanted one; then interference needs no subtraction.
        leak = self.sources[..., 1:, 0] * share[..., None]
        rest = self.sources[..., 1:, 1:] - leak[..., :, None] * self.sources[..., 0, None, 1:]
        reach = self.cross[..., 1:, :] - leak[..., :, None] * along[..., None, :]
        interference = xp.swapaxes(reach, -1, -2) @ _inverse(rest, self.sources[..., 1:, 1:]) @ reach
        return Forms(target, interference, self.gram - target - interference)


class Forms(NamedTuple):
    """Quadratic forms whose value at weights a is the energy of a part of the fused estimate, [*batch, model,
    model]."""

    target: Float[AnyArray, "*batch model model"]
    interference: Float[AnyArray, "*batch model model"]
    artifacts: Float[AnyArray, "*batch model model"]


def _inverse(matrix: Any, scale: Any) -> Any:
    """Pseudo-inverse of positive semidefinite matrices; what is left of a source after rounding counts as nothing."""
    xp = namespace(matrix)
    eps = float(np.finfo(matrix.dtype).eps)
    energies = xp.diagonal(scale, axis1=-2, axis2=-1)
    root = xp.where(energies > 0, 1.0 / xp.sqrt(xp.where(energies > 0, energies, xp.ones_like(energies))), 0.0)
    # Relative to each source's own energy, so that a quiet source is a source like any other.
    scaled = matrix * root[..., :, None] * root[..., None, :]
    values, vectors = xp.linalg.eigh((scaled + xp.swapaxes(scaled, -1, -2)) / 2.0)
    kept = values > 100.0 * matrix.shape[-1] * eps
    inverse = xp.where(kept, 1.0 / xp.where(kept, values, xp.ones_like(values)), xp.zeros_like(values))
    product = (vectors * inverse[..., None, :]) @ xp.swapaxes(vectors, -1, -2)
    return product * root[..., :, None] * root[..., None, :]


def extended_gram(
    references: Float[AnyArray, "source ..."], estimates: Float[AnyArray, "model ..."], **framing: Any
) -> ExtendedGram:
    """The scalar products among all true sources and the estimates of the first.

    Parameters
    ----------
    references
        True sources [source, ..., sample], the wanted one first.
    estimates
        Estimates of the wanted source [model, ..., sample].
    **framing
        As those of `gram`.

    Raises
    ------
    ValueError
        As `gram` does, or if there is no source.
    """
    if references.shape[0] == 0:
        raise ValueError("extended_gram got no reference; give the wanted source first, then the others.")
    sources = references.shape[0]
    xp = namespace(references, estimates)
    whole = gram(references[0], xp.concatenate([references, estimates]), **framing).gram
    return ExtendedGram(whole[..., :sources, :sources], whole[..., :sources, sources:], whole[..., sources:, sources:])


class Objective(Module):
    """A mixture of ratios in dB, to be maximised: sdr * SDR + sir * SIR + sar * SAR ([JVR16] III.B and VIII).

    SDR is the global ratio of [JVR16] eq. 6. SIR and SAR are those of [VGF06] with constant gains: energy along the
    true source over that along the other sources, and energy along all sources over the rest, within about 60 dB: parts
    below a millionth of the estimate's energy count as that.

    Attributes
    ----------
    sdr, sir, sar
        Factor of each ratio.
    """

    sdr: float = eqx.field(static=True, default=1.0, converter=float)
    sir: float = eqx.field(static=True, default=0.0, converter=float)
    sar: float = eqx.field(static=True, default=0.0, converter=float)

    def __call__(
        self, weights: Float[AnyArray, "*#batch model"], g: Gram | ExtendedGram
    ) -> Float[AnyArray, "*batch"] | np.floating[Any]:
        """The mixture in dB; see `fusion.sdr` and `interference_ratios` for its parts.

        Raises
        ------
        ValueError
            If SIR or SAR are wanted of a `Gram`, which knows no other source.
        """
        parts = _extended(self, g)
        value = self.sdr * sdr(weights, g.target if isinstance(g, ExtendedGram) else g)
        if parts is not None:
            sir, sar = interference_ratios(weights, parts, floor=_LEVEL_FLOOR)
            value = value + self.sir * sir + self.sar * sar
        return value


def _extended(objective: Objective, g: Any) -> ExtendedGram | None:
    """The extended scalar products if the objective needs them."""
    if objective.sir == 0 and objective.sar == 0:
        return None
    if not isinstance(g, ExtendedGram):
        raise ValueError(
            f"an objective with sir={objective.sir} and sar={objective.sar} got a {type(g).__name__}, which holds "
            "nothing of the other sources; make the scalar products with extended_gram."
        )
    return g


def interference_ratios(
    weights: Float[AnyArray, "*#batch model"], g: ExtendedGram, *, floor: float = _FLOOR
) -> tuple[Float[AnyArray, "*batch"], Float[AnyArray, "*batch"]]:
    """SIR and SAR of the fused estimate in dB [VGF06], with gains that are constant over the signal.

    Parameters
    ----------
    weights
        Fusion weights, of any sign and sum; broadcast against the batch axes of `g`.
    g
        Scalar products with all sources.
    floor
        Parts below this share of the estimate's energy are taken as that share; by default its rounding. NaN for a
        silent estimate.
    """
    xp = namespace(weights, g.gram)
    energy = [xp.einsum("...m,...mn,...n->...", weights, form, weights) for form in (*g.forms(), g.gram)]
    lowest = floor * energy.pop()
    target, interference, artifacts = (xp.maximum(part, lowest) for part in energy)
    sir, sar = 10.0 * xp.log10(target / interference), 10.0 * xp.log10((target + interference) / artifacts)
    return xp.asarray(sir), xp.asarray(sar)


@jax.custom_jvp
def quadratic_form(weights: Any, forms: Any) -> Any:
    """a' Q a for symmetric forms [form, model, model, ...] at weights [model, ...]: [form, ...].

    Its derivative shares the one pass over the forms that the value takes; they are the largest array of a training.
    """
    return _value_and_product(weights, forms)[0]


@quadratic_form.defjvp
def _quadratic_form_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    value, product = _value_and_product(*primals)
    return value, 2.0 * (product * tangents[0]).sum(axis=1)


def _value_and_product(weights: Any, forms: Any) -> tuple[Any, Any]:
    # A loop that is unrolled, with the batch innermost: batched products of matrices this small cost far more. The
    # barriers keep the compiler from computing what comes before once per row, and the product twice.
    weights = jax.lax.optimization_barrier(weights)
    product = jax.lax.optimization_barrier(sum(forms[:, :, m] * weights[m] for m in range(forms.shape[2])))
    return (product * weights).sum(axis=1), product


Loss = Literal["mse", "sdr", "frame-sdr"] | Objective


class TrainingLoss(Module):
    """A loss over all training examples as a function of the weights, in dB unless it is "mse".

    Make it with `training_loss`.

    It is a sum over the examples, so that a part of it is the loss of a part of the examples, and parts add up.

    Attributes
    ----------
    forms
        Quadratic forms of the energies, [form, model, model, example, ...].
    energy
        Energy of the true source, [example, ...].
    frames
        1 where there is a frame, 0 where there is padding, [example, ...].
    share
        Factor of each example in the sum.
    loss
        Which loss.
    """

    forms: Float[AnyArray, "form model model example *unit"]
    energy: Float[AnyArray, "example *unit"]
    frames: Float[AnyArray, "example *unit"]
    share: Float[AnyArray, " example"]
    loss: Loss = eqx.field(static=True)

    def __call__(self, weights: Any) -> Any:
        """The loss at weights [model, example, ...], or that broadcast to these axes."""
        values = quadratic_form(weights, self.forms)
        units = tuple(range(1, self.energy.ndim))
        if self.loss == "mse":
            return (self.share * values[0].sum(axis=units)).sum()
        if self.loss == "frame-sdr":
            mean = self.energy.sum(axis=units, keepdims=True) / self.frames.sum(axis=units, keepdims=True)
            level = 10.0 * jnp.log10(jnp.maximum(values[0], 0.0) / mean + _LEVEL_FLOOR)
            return (self.share * (self.frames * level).sum(axis=units)).sum()
        parts = values.sum(axis=tuple(axis + 1 for axis in units))
        objective = Objective() if isinstance(self.loss, str) else self.loss
        relative = jnp.maximum(parts[0] / self.energy.sum(axis=units), _FLOOR)
        ratios = -objective.sdr * jnp.log10(relative)
        if parts.shape[0] > 1:
            total = parts[1] + parts[2] + parts[3]
            target, interference, artifacts = (jnp.maximum(part, _LEVEL_FLOOR * total) for part in parts[1:])
            ratios = ratios + objective.sir * jnp.log10(target / interference)
            ratios = ratios + objective.sar * jnp.log10((target + interference) / artifacts)
        return -10.0 * (self.share * ratios).sum()

    def part(self, examples: slice) -> "TrainingLoss":
        """The terms of the sum that belong to some examples."""
        forms = self.forms[:, :, :, examples]
        return TrainingLoss(forms, self.energy[examples], self.frames[examples], self.share[examples], self.loss)


def training_loss(
    caller: str, g: Gram | ExtendedGram, loss: Loss, *, frames: Any = None, affine: bool = False
) -> TrainingLoss:
    """The loss of weights over examples.

    "mse" is the squared error of all examples over their energy ([JVR16] eqs. 11, 19), "sdr" the mean over the examples
    of the negative SDR in dB (eqs. 12, 20), with the errors of the frames and bands of an example added up,
    "frame-sdr" the mean over all frames of the level of the error in dB relative to the utterance's mean frame (eq. 20
    summed over l and n, as eq. 21 has it; a floor at -60 dB keeps perfect frames finite), and an `Objective` its
    negative mean over the examples.

    Parameters
    ----------
    caller
        Name for messages.
    g
        Scalar products [example, ...]; frames and bands of an example follow it.
    loss
        Which loss.
    frames
        Where there is a frame rather than padding, boolean [example, frame]; everywhere if None.
    affine
        The loss is a function of the weights and a constant 1 behind them, and the weights need not be on the simplex.

    Raises
    ------
    ValueError
        If `loss` is unknown, a value is not finite, there is no example, or a true source is silent where it must not
        be.
    """
    if not (loss in ("mse", "sdr", "frame-sdr") if isinstance(loss, str) else isinstance(loss, Objective)):
        raise ValueError(f"{caller} got loss={loss!r}; it must be 'mse', 'sdr', 'frame-sdr' or an Objective.")
    target = as_double(g.target if isinstance(g, ExtendedGram) else g)
    if target.energy.ndim == 0 or target.cross.size == 0:
        raise ValueError(
            f"{caller} got scalar products `cross` of shape {target.cross.shape}; they need an axis of examples and "
            "one of models, with at least one of each. Grams of single examples become one by Gram.stack."
        )
    check_finite(caller, energy=target.energy, cross=target.cross, gram=target.gram)
    energy = target.energy
    present = np.ones(energy.shape)
    if frames is not None:
        frames = np.asarray(frames, bool)
        if energy.ndim < 2 or frames.shape != energy.shape[:2]:
            raise ValueError(
                f"{caller} got frames of shape {frames.shape} for scalar products [example, frame] {energy.shape}; "
                "they must be booleans, one per example and frame."
            )
        present = present * frames.reshape(*frames.shape, *[1] * (energy.ndim - 2))
    silent = np.flatnonzero((present * energy).reshape(energy.shape[0], -1).sum(axis=1) <= 0)
    if silent.size and (loss != "mse" or silent.size == energy.shape[0]):
        raise ValueError(
            f"{caller} got a silent true source in example(s) {silent.tolist()}, whose SDR is not defined; "
            "leave them out or use loss='mse'."
        )
    forms = [error_form(target, affine=affine)]
    parts = _extended(loss, g) if isinstance(loss, Objective) else None
    if parts is not None:
        forms += as_double(parts).forms()
    stacked = np.stack([np.moveaxis(np.asarray(form), (-2, -1), (0, 1)) for form in forms])
    count = energy.shape[0]
    share = {"mse": 1.0 / (energy * present).sum(), "frame-sdr": 1.0 / present.sum()}.get(str(loss), 1.0 / count)
    return TrainingLoss(stacked * present, energy * present, present, np.full(count, share), loss)


def error_form(g: Gram, *, affine: bool = False) -> Float[AnyArray, "*batch row row"]:
    """The quadratic form of the squared error ([JVR16] eq. 8), <s - s_m, s - s_m'> for weights on the simplex.

    Parameters
    ----------
    g
        Scalar products.
    affine
        For weights of any sum instead: the form in the weights and a constant 1 behind them.
    """
    if not affine:
        return g.energy[..., None, None] + g.gram - g.cross[..., :, None] - g.cross[..., None, :]
    xp = namespace(g.energy, g.cross, g.gram)
    side = -g.cross[..., :, None]
    upper = xp.concatenate([g.gram, side], axis=-1)
    lower = xp.concatenate([xp.swapaxes(side, -1, -2), g.energy[..., None, None]], axis=-1)
    return xp.concatenate([upper, lower], axis=-2)


def as_double(tree: Any) -> Any:
    """The same arrays in NumPy and double precision."""
    return jax.tree.map(lambda field: np.asarray(field, np.float64), tree)

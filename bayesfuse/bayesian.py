"""Learning of the prior and the temperature of Bayesian fusion, and of its extensions.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bayesfuse._precision import precision
from bayesfuse._search import descend, distinct
from bayesfuse.bayesian_problem import Form, Problem, Scaled
from bayesfuse.grams import Gram
from bayesfuse.objectives import ExtendedGram, Loss, TrainingLoss, as_double, training_loss
from bayesfuse.rules import VBRule
from bayesfuse.static import static_weights

__all__ = ["VBReport", "VBRule", "learn_vb"]

# Entries of the quadratic forms that are worked on at a time, so that what comes of them stays in the cache. If there
# are more the search sees as many, of every few examples.
_BLOCK = 2_000_000
# Descents of the first round: at least, and where they cost next to nothing.
_STARTS = (16, 96)
# A logit that excludes a model.
_EXCLUDED = 30.0
# Weights that differ by less everywhere on the training data are of the same basin.
_SAME = 0.01


class VBReport(NamedTuple):
    """How the learning went. Losses are those of `objectives.training_loss` on all training examples.

    Attributes
    ----------
    chosen
        "learned", or "static" or "selection" if a limit was not beaten.
    training
        Loss of the returned rule, of static weights, of selection by free energy and of the mean.
    starts
        Number of descents of the search.
    basins
        Number of different minima they ended in; many starts in one basin are evidence for a global minimum.
    minima
        Loss at each of these, the best first; on every few examples if there are too many to search on all.
    """

    chosen: str
    training: dict[str, float]
    starts: int
    basins: int
    minima: tuple[float, ...]


@jax.jit
@jax.value_and_grad
def _value_and_grad(parameters: Any, problem: Problem) -> Any:
    return problem.loss(problem.weights(parameters))


@jax.jit
def _weights(parameters: Any, problem: Problem) -> Any:
    return problem.weights(parameters)


@jax.jit
def _loss(weights: Any, loss: TrainingLoss) -> Any:
    return loss(weights)


def learn_vb(
    g: Gram | ExtendedGram,
    free_energy: Float[np.ndarray, "..."],
    *,
    loss: Loss = "mse",
    num_frames: Sequence[int | np.integer] | np.ndarray | None = None,
    frames: np.ndarray | None = None,
    min_beta: float | None = None,
    per_term: bool = False,
    sticky: bool = False,
    per_band: bool = False,
    starts: int | None = None,
    seed: int = 0,
    separators: Sequence[str] = (),
    source: str = "",
) -> tuple[VBRule, VBReport]:
    """The prior and the temperature with which Bayesian fusion does best on training data ([JVR16] eqs. 19-21).

    Descents with exact gradients go out from many points: every temperature from nearly static to nearly selection with
    the prior of static weights, a uniform one, one that levels the models' mean free energies, and random ones; then
    from around the best. Static weights (beta = inf) and selection (beta = 0) are candidates themselves, so that the
    rule is not worse than either on the training data.

    Each of `per_term`, `per_band` and `sticky` begins with the rule without it, and can only improve on it.

    Parameters
    ----------
    g
        Scalar products of the training examples: [example] for weights per signal, [example, frame] for weights per
        frame, [example, frame, band] for weights per frame and band.
    free_energy
        In nats: totals [example, model], per frame [example, model, frame], or [example, model, frame, band]; with a
        leading axis [term, ...] if `per_term`. -inf is a model that is ruled out.
    loss
        "mse", "sdr", "frame-sdr" or an `Objective`, see `objectives.training_loss`. [JVR16] learns weights per frame
        with "mse" or "frame-sdr"; "sdr" is of the whole utterance.
    num_frames
        Number of frames N of each example, for weights per signal only.
    frames
        Which frames are not padding, boolean [example, frame], for weights per frame; all by default. Padding is at the
        end.
    min_beta
        Lower bound of the temperature in nats per frame; 0 for none. By default beta >= 1 in the unit of the paper: 1
        per frame, 1 / min(N) per signal. Selection, beta = 0, is a candidate in any case.
    per_term
        One temperature for each term of the free energy (data, dictionary, activations, noise), a departure.
    sticky
        The model of a frame depends on that of the frame before ([JVR16] has independent frames): see `VBRule.weights`.
    per_band
        A prior and temperature of its own for every band, rather than the same for all.
    starts
        Number of descents of the first round, at least 1 for each of twelve temperatures; by default 16, and up to 96
        where they cost next to nothing. The later rounds have about as many.
    seed
        Of the random starting points.
    separators, source
        Names that the rule is to carry.

    Returns
    -------
    tuple
        The rule and a report.

    Raises
    ------
    ValueError
        If sizes do not match, a value is NaN or a free energy +inf, there is no example, settings do not go together,
        or a true source is silent under a loss in dB.

    Notes
    -----
    Departs from the source in the unit of beta, which is per frame and so serves signals of any duration. Where the
    forms of all frames are many, the search uses every few examples, and its best minima are descended from on all.
    """
    criterion = training_loss("learn_vb", g, loss, frames=frames)
    energy = _checked(free_energy, criterion, per_term)
    units = criterion.energy.ndim
    if (num_frames is None) != (units > 1):
        raise ValueError(
            f"learn_vb got num_frames={num_frames} for scalar products {criterion.energy.shape}; give num_frames for "
            "[example], and None for weights per frame."
        )
    if (sticky and units < 2) or (per_band and units < 3):
        raise ValueError(
            f"learn_vb got sticky={sticky} and per_band={per_band} for scalar products {criterion.energy.shape}; "
            "the first needs an axis of frames [example, frame], the second one of bands, too."
        )
    lengths = None
    if num_frames is not None:
        lengths = np.asarray(num_frames, np.float64)
        if lengths.shape != criterion.energy.shape or not ((lengths > 0) & (lengths < np.inf)).all():
            raise ValueError(
                f"learn_vb got num_frames {lengths.tolist()} for {criterion.energy.shape[0]} examples; give a positive "
                "number of frames for each."
            )
    if min_beta is None:
        min_beta = 1.0 if lengths is None else 1.0 / float(lengths.min())
    if not 0 <= min_beta < np.inf:
        raise ValueError(f"learn_vb got min_beta={min_beta}; it must be a number of nats per frame in [0, inf).")

    present = criterion.frames
    whole = jax.tree.map(
        lambda field: (field * present.reshape(*present.shape, *[1] * (field.ndim - units))).sum(
            tuple(range(1, units))
        ),
        as_double(g),
    )
    static = static_weights(whole, loss="sdr" if loss == "frame-sdr" else loss, seed=seed)
    scaled = Scaled.of(energy, lengths, criterion)
    models, bands = static.size, energy.shape[-1] if per_band else 1
    form = Form(models, energy.shape[0], bands, sticky)
    axes = ("model", "frame", "band")[:units]

    def rule(log_prior: np.ndarray, beta: np.ndarray, stickiness: float = 0.0) -> VBRule:
        log_prior, beta = (log_prior, beta) if per_band else (log_prior[:, 0], beta[:, 0])
        beta = beta if per_term else beta[0]
        return VBRule(log_prior, beta, stickiness, axes, per_term, tuple(separators), source)

    def constant(prior: np.ndarray, beta: float) -> VBRule:
        with np.errstate(divide="ignore"):
            log_prior = np.log(prior / prior.sum())
        return rule(np.repeat(log_prior[:, None], bands, axis=1), np.full((form.terms, bands), beta))

    uniform = np.full(models, 1.0 / models)
    with precision(criterion.forms):
        found = _search(scaled, criterion, form, static, min_beta, starts, seed)
        # The first of equals is chosen: a limit must be better to be preferred.
        rules = {f"learned {i}": rule(*form.values(point, scaled)) for i, point in enumerate(found.points)}
        rules |= {"static": constant(static, np.inf), "selection": constant(uniform, 0.0)}
        rules["mean"] = constant(uniform, np.inf)
        values = np.asarray(free_energy, np.float64)
        on_device = jax.tree.map(jnp.asarray, criterion)
        losses = {
            name: float(_loss(np.moveaxis(item.weights(values, num_frames=lengths), 1, 0), on_device))
            for name, item in rules.items()
        }
    chosen = min(rules, key=lambda name: losses[name])
    training = {"returned": losses[chosen], **{name: losses[name] for name in ("static", "selection", "mean")}}
    report = VBReport(chosen.split()[0], training, found.tried, len(found.minima), found.minima)
    return rules[chosen], report


def _checked(free_energy: Any, criterion: TrainingLoss, per_term: bool) -> np.ndarray:
    """Free energies [term, model, example, ...]."""
    values = np.asarray(free_energy, np.float64)
    models = criterion.forms.shape[1]
    expected = (criterion.energy.shape[0], models, *criterion.energy.shape[1:])
    if not per_term:
        values = values[None]
    if values.shape[1:] != expected or values.shape[0] == 0:
        raise ValueError(
            f"learn_vb got free energies of shape {np.shape(free_energy)} for {models} models and scalar products "
            f"{criterion.energy.shape}; expected {'[term, ' if per_term else ''}{list(expected)}"
            f"{']' if per_term else ''}, of the same examples and models."
        )
    if not (values < np.inf).all():
        raise ValueError(
            "learn_vb got a free energy that is NaN or +inf; leave out the models whose inference failed "
            "(-inf: weight 0)."
        )
    return np.moveaxis(values, 2, 1)


class _Found(NamedTuple):
    """Parameters that may be the best, the losses of the distinct minima of the paper's rule, and how many descents."""

    points: list[np.ndarray]
    minima: tuple[float, ...]
    tried: int


def _search(
    scaled: Scaled,
    criterion: TrainingLoss,
    form: Form,
    static: np.ndarray,
    min_beta: float,
    starts: int | None,
    seed: int,
) -> _Found:
    rng = np.random.default_rng(seed)
    total, plain = scaled.total(), Form(form.models)
    problem = Problem(total.values, total.blocked, criterion, plain)
    part, whole = _costs(problem)
    bounds = plain.bounds(total.spread, min_beta)
    begin = sorted(_starts(total, static, float(bounds.ub[-1]), rng), key=lambda point: part(point)[0])
    # The best start of each temperature, and the best of the rest.
    leaders = list({point[-1]: point for point in reversed(begin)}.values())
    rest = [point for point in begin if not any(point is leader for leader in leaders)]
    starts = starts or int(np.clip(_BLOCK // criterion.forms.size, *_STARTS))
    begin = [*leaders, *rest[: max(starts - len(leaders), 0)]]
    ends = descend(part, begin, bounds)
    last = np.eye(form.models + 1)[-1]
    for scale in (1.0, 0.3, 3.0):
        around = ends[0].point + scale * rng.normal(size=(1 + starts // 6, ends[0].point.size))
        ends = sorted([*ends, *descend(part, list(around), bounds)], key=lambda end: end.value)
    # The best prior may exclude models, and the colder the more; smooth steps from within do not find that.
    without = np.repeat(ends[0].point[None], form.models, axis=0)
    np.fill_diagonal(without, -_EXCLUDED)
    ends += descend(part, [point for warm in (0.0, 2.0) for point in without[: 1 + starts // 6] + warm * last], bounds)
    ends.sort(key=lambda end: end.value)
    minima = distinct(ends, part.weights, tolerance=_SAME)
    best = minima[:3] if whole is part else descend(whole, [m.point for m in minima[:3]], bounds)
    losses = tuple(minimum.value for minimum in minima)
    tried = len(ends)
    if form == plain:
        return _Found([minimum.point for minimum in best], losses, tried)

    # What is beyond the paper's rule begins at the best of these.
    theta, v = plain.split(best[0].point)
    inverse = float(np.sinh(v[0, 0])) / total.spread[0]
    cold = np.arcsinh(inverse * scaled.spread)[:, None]
    begin = [form.join(theta, cold, -2.0)]
    if form.sticky:
        # Evidence adds up along a chain: less of it per frame is needed.
        begin += [form.join(theta, np.arcsinh(factor * np.sinh(cold)), 2.0) for factor in (0.3, 1.0)]
    if form.terms > 1:
        begin += [form.join(theta, cold * row[:, None], -2.0) for row in np.eye(form.terms)]
    bounds = form.bounds(scaled.spread, min_beta)
    part, whole = _costs(Problem(scaled.values, scaled.blocked, criterion, form))
    ends = descend(part, begin, bounds)
    if whole is not part:
        ends = descend(whole, [ends[0].point], bounds)
    return _Found([ends[0].point, form.join(theta, cold, -np.inf)], losses, tried + len(begin))


class _Cost:
    """Value and gradient of the loss in NumPy, and weights; a sum over blocks of examples."""

    def __init__(self, problem: Problem, parts: Sequence[slice], factor: float = 1.0):
        self.blocks = [jax.tree.map(jnp.asarray, problem.part(part)) for part in parts]
        self.factor = factor

    def __call__(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        parts = [_value_and_grad(point, block) for block in self.blocks]
        value = sum(float(part) for part, _ in parts)
        grad = np.sum([np.asarray(part) for _, part in parts], axis=0)
        return self.factor * value, self.factor * grad

    def weights(self, point: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(_weights(point, block)) for block in self.blocks], axis=1)


def _costs(problem: Problem) -> tuple[_Cost, _Cost]:
    """The cost to search with, on every few examples if there are many, and the cost on all."""
    count = problem.loss.energy.shape[0]
    step = min(-(-problem.loss.forms.size // _BLOCK), count)
    size = -(-count // step)
    whole = _Cost(problem, [slice(start, start + size) for start in range(0, count, size)])
    return (whole if step == 1 else _Cost(problem, [slice(None, None, step)], count / size)), whole


def _starts(total: Scaled, static: np.ndarray, upper: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Points from nearly static to nearly selection."""
    centre = total.centre[0] / total.spread[0]
    # Zero weights would have no gradient.
    log_static = np.log(np.maximum(static, 1e-3))
    points = []
    for cold in np.geomspace(0.02, max(np.sinh(upper), 0.03), 12):
        # Priors of equal weights on average, of equal prior, of static weights either way, random ones, and those
        # without some models.
        priors = [np.zeros_like(static), cold * centre, log_static, log_static + cold * centre]
        priors += [scale * rng.normal(size=static.size) for scale in (1.5, 1.5, 1.5 + cold, 1.5 + cold)]
        priors += [prior - 4.0 * (1.0 + cold) * (rng.random(static.size) < 0.4) for prior in priors[-4:]]
        points += [np.append(theta - theta.mean(), min(np.arcsinh(cold), upper)) for theta in priors]
    return points

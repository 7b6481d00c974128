"""Whether fusion is worth it: the gain over the best single model on examples that a rule was not learned on.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t as student

from bayesfuse._folds import group_folds
from bayesfuse.bayesian import learn_vb
from bayesfuse.grams import Gram, squared_error
from bayesfuse.objectives import ExtendedGram, as_double
from bayesfuse.static import static_weights

# From the indices of training examples to a function from those of held-out examples to their weights.
Learner = Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]

# A gain in dB below which nobody should take the trouble.
_SHOWN = 0.01


class CrossValidation(NamedTuple):
    """The outcome on held-out examples.

    Attributes
    ----------
    gain
        Mean SDR of the rule minus that of the best single model of the training examples, in dB.
    low, high
        Confidence interval of the gain.
    level
        Of the interval.
    fused, single
        SDR in dB of every example, by the rule and by the best single model; NaN for silent true sources.
    best
        The best single model of the training examples of each fold.
    fold
        The fold in which each example was held out.
    """

    gain: float
    low: float
    high: float
    level: float
    fused: Float[np.ndarray, " example"]
    single: Float[np.ndarray, " example"]
    best: Int[np.ndarray, " fold"]
    fold: Int[np.ndarray, " example"]

    @property
    def verdict(self) -> str:
        """ "fuse" if the whole interval shows a gain, of 0.01 dB or more, else "do not fuse"."""
        return "fuse" if self.low >= _SHOWN else "do not fuse"

    def __str__(self) -> str:
        left_out = int(np.isnan(self.fused - self.single).sum())
        silent = f"; {left_out} silent examples left out" if left_out else ""
        return (
            f"expected gain over the best single model {_signed(self.gain)} dB, {100 * self.level:g} % interval "
            f"[{_signed(self.low)}, {_signed(self.high)}], {self.best.size} folds{silent}: {self.verdict}"
        )


def _signed(value: float) -> str:
    """Two digits, and no minus before zeros."""
    return f"{round(value, 2) + 0.0:+.2f}"


def cross_validate(
    learn: Learner,
    g: Gram,
    groups: Sequence[Any] | np.ndarray,
    *,
    folds: int = 5,
    level: float = 0.95,
    seed: int = 0,
) -> CrossValidation:
    """The expected gain of a rule over the best single model, by cross-validation over groups.

    All examples of a group, such as a speaker or a track, are held out together. The best single model is chosen on the
    training examples of each fold, as the rule is learned on them.

    Parameters
    ----------
    learn
        From indices of training examples to a function from indices of held-out examples to weights [example, model],
        [example, model, frame] or [example, model, frame, band], as `g` has it: `static_learner`, `vb_learner`, or
        one's own.
    g
        Scalar products of all examples [example], [example, frame] or [example, frame, band].
    groups
        Label of each example.
    folds
        Number of folds, at least 2; as many as there are groups if these are fewer.
    level
        Of the interval.
    seed
        Of the assignment of groups to folds.

    Raises
    ------
    ValueError
        If sizes do not match, there are fewer than two groups or folds, or all true sources are silent.

    Notes
    -----
    The interval is Student's t on the groups' summed deviations, so that correlated examples of a group do not count as
    independent. Folds share training data, whose own variability it does not hold: take it as somewhat too narrow.
    """
    g = as_double(g)
    count = g.energy.shape[0] if g.energy.ndim else 0
    labels, member = np.unique([str(label) for label in groups], return_inverse=True)
    if len(groups) != count or labels.size < 2 or folds < 2 or not 0 < level < 1:
        raise ValueError(
            f"cross_validate got {len(groups)} labels of {labels.size} groups for {count} examples, folds={folds} and "
            f"level={level}; expected one label per example, at least two groups and folds, and a level in (0, 1)."
        )
    splits = group_folds(groups, folds, seed)
    singles = np.stack([_sdr(model[:, None], g) for model in np.eye(g.num_models)])
    fused, single, fold, best = np.full(count, np.nan), np.full(count, np.nan), np.zeros(count, int), []
    for index, (train, test) in enumerate(splits):
        best.append(int(np.argmax(np.nansum(singles[:, train], axis=1))))
        weights = learn(train)(test)
        fused[test] = _sdr(np.moveaxis(weights, 1, 0), jax.tree.map(lambda field, test=test: field[test], g))
        single[test] = singles[best[-1], test]
        fold[test] = index
    gains = fused - single
    known = ~np.isnan(gains)
    present = np.unique(member[known]).size
    if present < 2:
        raise ValueError(
            "cross_validate found true sources that are not silent in fewer than two groups; the gain "
            "in SDR is not defined."
        )
    gain = float(gains[known].mean())
    sums = np.bincount(member[known], gains[known] - gain)
    half = np.sqrt(present / (present - 1) * np.sum(sums**2)) / known.sum() * student.ppf(0.5 + level / 2, present - 1)
    return CrossValidation(gain, gain - float(half), gain + float(half), level, fused, single, np.array(best), fold)


def _sdr(weights: np.ndarray, g: Gram) -> Float[np.ndarray, " example"]:
    """SDR in dB of each example, at most 157, from weights [model, example, ...] that broadcast; NaN if silent."""
    weights = np.moveaxis(weights.reshape(*weights.shape, *[1] * (g.cross.ndim - weights.ndim)), 0, -1)
    units = tuple(range(1, g.energy.ndim))
    energy, error = g.energy.sum(axis=units), squared_error(weights, g).sum(axis=units)
    with np.errstate(divide="ignore", invalid="ignore"):
        return -10.0 * np.log10(np.where(energy > 0, np.maximum(error / energy, np.finfo(np.float64).eps), np.nan))


def static_learner(g: Gram | ExtendedGram, **settings: Any) -> Learner:
    """What `cross_validate` needs to judge `static_weights` on scalar products [example].

    Parameters
    ----------
    g
        Scalar products of all examples.
    **settings
        Of `static_weights`.
    """

    def learn(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        weights = static_weights(jax.tree.map(lambda field: field[train], g), **settings)
        return lambda test: np.tile(weights, (test.size, 1))

    return learn


def vb_learner(
    g: Gram | ExtendedGram,
    free_energy: Float[np.ndarray, "..."],
    *,
    num_frames: Any = None,
    frames: np.ndarray | None = None,
    per_term: bool = False,
    **settings: Any,
) -> Learner:
    """What `cross_validate` needs to judge `learn_vb`; arguments as there, of all examples."""
    values = np.asarray(free_energy)
    lengths = None if num_frames is None else np.asarray(num_frames)

    def learn(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        rule, _ = learn_vb(
            jax.tree.map(lambda field: field[train], g),
            values.take(train, axis=int(per_term)),
            num_frames=None if lengths is None else lengths[train],
            frames=None if frames is None else frames[train],
            per_term=per_term,
            **settings,
        )
        return lambda test: rule.weights(
            values.take(test, axis=int(per_term)), num_frames=None if lengths is None else lengths[test]
        )

    return learn

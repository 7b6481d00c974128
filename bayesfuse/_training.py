"""Mini-batch training with a learning rate driven by a validation score, resumable from a file after every epoch.

References
----------
[DG07] S. Duffner and C. Garcia, "An online backpropagation algorithm with validation error-based adaptive learning
rate", ICANN, 2007.
[Nug15] A. A. Nugraha, A. Liutkus and E. Vincent, "Multichannel audio source separation with deep neural networks",
research report 8740, Inria, 2015.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bayesfuse import _arrays
from bayesfuse._module import Module
from bayesfuse._precision import precision

_KIND = "bayesfuse training checkpoint"

_TREES = ("model", "best", "optimiser")

EVENTS = ("best", "worse", "reverted", "stopped")


class RateState(NamedTuple):
    """Where the learning-rate rule stands; scores are to be minimised. `event` is an entry of `EVENTS`."""

    rate: float
    best: float
    previous: float
    failures: int = 0
    reversions: int = 0
    event: str = "best"


class RateRule(Module):
    """The learning rate of the next epoch from the validation score of the last one ([DG07] as used by [Nug15] 2.2.3).

    A score below that of the epoch before raises the rate by `increase`, any other lowers it by `decrease`. After
    `failures` epochs in a row without a new best score, the parameters go back to those of the best one; the reversion
    beyond the `patience`-th ends the training instead. A score that is not finite reverts at once.

    The defaults are those of [Nug15]. ``RateRule(increase=1, decrease=1)`` keeps the rate constant.

    Raises
    ------
    ValueError
        For settings out of range.
    """

    increase: float = eqx.field(static=True, default=1.1, converter=float)
    decrease: float = eqx.field(static=True, default=0.7, converter=float)
    failures: int = eqx.field(static=True, default=5)
    patience: int = eqx.field(static=True, default=3)

    def __check_init__(self) -> None:
        if not (1 <= self.increase < math.inf and 0 < self.decrease <= 1 and self.failures >= 1 and self.patience >= 0):
            raise ValueError(f"{self} is out of range; expected increase >= 1, 0 < decrease <= 1, failures >= 1.")

    def start(self, rate: float, score: float) -> RateState:
        """The state before the first epoch, with the score of the initial parameters."""
        score = score if math.isfinite(score) else math.inf
        return RateState(rate, score, score)

    def update(self, state: RateState, score: float) -> RateState:
        """The state after an epoch."""
        finite = math.isfinite(score)
        rate = state.rate * (self.increase if finite and score < state.previous else self.decrease)
        if finite and score < state.best:
            return RateState(rate, score, score, 0, state.reversions, "best")
        failures = state.failures + 1
        if finite and failures < self.failures:
            return RateState(rate, state.best, score, failures, state.reversions, "worse")
        if state.reversions >= self.patience:
            return RateState(rate, state.best, score, failures, state.reversions, "stopped")
        return RateState(rate, state.best, state.best, 0, state.reversions + 1, "reverted")


class Training(Module):
    """Settings of the mini-batch descent.

    Parameters
    ----------
    batch_size
        Examples per mini-batch; 50 in [JVR16]. Every epoch visits each example once, in a new random order.
    max_epochs
        Most epochs; 250 in [Nug15].
    rate
        Initial learning rate; 1e-3 in [Nug15].
    optimiser
        "nesterov" (accelerated gradient), or "adam".
    momentum
        Of the accelerated gradient.
    rule
        What becomes of the rate, and when to stop.
    weight_decay
        Share of the weights, not of the biases, that is added to the gradient ("nesterov") or to the normalised step
        ("adam"). Off by default.

    Raises
    ------
    ValueError
        For settings out of range.
    """

    batch_size: int = eqx.field(static=True, default=50)
    max_epochs: int = eqx.field(static=True, default=250)
    rate: float = eqx.field(static=True, default=1e-3, converter=float)
    optimiser: Literal["nesterov", "adam"] = eqx.field(static=True, default="nesterov")
    momentum: float = eqx.field(static=True, default=0.9, converter=float)
    rule: RateRule = RateRule()
    weight_decay: float = eqx.field(static=True, default=0.0, converter=float)

    def __check_init__(self) -> None:
        if self.optimiser not in ("nesterov", "adam"):
            raise ValueError(f"Training got optimiser={self.optimiser!r}; expected 'nesterov' or 'adam'.")
        good = self.batch_size >= 1 and self.max_epochs >= 1 and 0 < self.rate < math.inf
        if not (good and 0 <= self.momentum < 1 and 0 <= self.weight_decay < math.inf):
            raise ValueError(f"{self} is out of range; expected positive sizes and rate, 0 <= momentum < 1.")

    def direction(self) -> optax.GradientTransformation:
        """What the learning rate is multiplied with to give a step downhill."""
        decay = optax.add_decayed_weights(
            self.weight_decay, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
        )
        if self.optimiser == "adam":
            return optax.chain(optax.scale_by_adam(), decay)
        return optax.chain(decay, optax.trace(self.momentum, nesterov=True))


class History(NamedTuple):
    """One entry per epoch: the rate it ran at, its mean training cost, its validation score, and what came of it.

    `score` is as the training minimises it; `event` is an index into `EVENTS`.
    """

    rate: Float[np.ndarray, " epoch"]
    cost: Float[np.ndarray, " epoch"]
    score: Float[np.ndarray, " epoch"]
    event: Int[np.ndarray, " epoch"]

    @classmethod
    def empty(cls) -> "History":
        """No epoch yet."""
        return cls(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))

    def append(self, rate: float, cost: float, score: float, event: str) -> "History":
        """One epoch more."""
        values = (rate, cost, score, EVENTS.index(event))
        return History(*(np.append(field, value) for field, value in zip(self, values, strict=True)))

    def then(self, other: "History") -> "History":
        """The epochs of both, one after the other."""
        return History(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


class _State(NamedTuple):
    """All that the next epoch depends on, besides the data and the settings."""

    model: Any
    best: Any
    optimiser: Any
    rate: RateState
    history: History


def fingerprint(*parts: Any) -> str:
    """A hash of arrays and of JSON-ready descriptions: what a checkpoint must have been made from to go on from it."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, jax.Array) and jnp.issubdtype(part.dtype, jax.dtypes.prng_key):
            part = jax.random.key_data(part)
        if isinstance(part, np.ndarray | jax.Array):
            array = np.asarray(part)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def minimise(
    key: PRNGKeyArray,
    model: Any,
    data: Any,
    loss: Callable[[Any, Any, Float[Array, " batch"], PRNGKeyArray], Float[Array, ""]],
    score: Callable[[Any], float],
    settings: Training,
    *,
    checkpoint: Path | None = None,
    identity: str = "",
    label: str = "training",
    shown: Callable[[float], str] = "{:.4g}".format,
    progress: bool = False,
) -> tuple[Any, History, float]:
    """The model with the best validation score, what happened in each epoch, and that score.

    Parameters
    ----------
    key
        Of the order of the examples and of all noise. An epoch's numbers depend on it and on the epoch only.
    model
        Initial parameters: a pytree with float32 arrays.
    data
        Pytree of arrays with a leading axis of examples.
    loss
        (model, mini-batch, mask, key) -> cost. The mask is 0 for the examples that fill up the last mini-batch.
        Compiled anew only if it is not equal to that of an earlier call.
    score
        Validation score of a model, to be minimised.
    settings
        Of the descent.
    checkpoint
        File that is replaced after every epoch; if it exists, the training goes on from it, to the same result to the
        bit as without the interruption.
    identity
        Hash of everything else that determines the result; a checkpoint of another identity is refused.
    label, shown, progress
        Progress bar: its title, how it shows the best score, and whether there is one.

    Raises
    ------
    ValueError
        If the checkpoint is of another training or cannot be read, or if all epochs failed.
    """
    from tqdm.auto import tqdm

    with precision():
        model = jax.tree.map(lambda leaf: jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf, model)
        arrays, static = eqx.partition(model, eqx.is_inexact_array)
        state = _State(
            arrays,
            arrays,
            settings.direction().init(arrays),
            settings.rule.start(settings.rate, float(score(model))),
            History.empty(),
        )
        if checkpoint is not None and checkpoint.exists():
            state = _read(checkpoint, state, identity)
        data = jax.tree.map(jnp.asarray, data)
        with tqdm(total=settings.max_epochs, initial=len(state.history.rate), desc=label, disable=not progress) as bar:
            while len(state.history.rate) < settings.max_epochs and state.rate.event != "stopped":
                state = _advance(key, state, static, data, loss, score, settings)
                if checkpoint is not None:
                    _write(checkpoint, state, identity)
                bar.update()
                bar.set_postfix_str(f"validation {shown(state.rate.best)}, rate {state.rate.rate:.2g}")
        if not math.isfinite(state.rate.best):
            raise ValueError(
                f"{label}: the validation score was never finite in {len(state.history.rate)} epochs; lower the "
                f"learning rate, which began at {settings.rate:g}, and check that the features are finite."
            )
        return eqx.combine(state.best, static), state.history, state.rate.best


def _advance(key: Any, state: _State, static: Any, data: Any, loss: Any, score: Any, settings: Training) -> _State:
    """The state after one epoch more."""
    epoch = len(state.history.rate)
    arrays, optimiser, cost = _epoch(
        state.model,
        state.optimiser,
        jnp.float32(state.rate.rate),
        jax.random.fold_in(key, epoch),
        data,
        static,
        loss,
        # What the epoch does not depend on must not make it compile again.
        replace(settings, max_epochs=1, rate=1.0, rule=RateRule()),
    )
    value = float(score(eqx.combine(arrays, static)))
    rate = settings.rule.update(state.rate, value)
    history = state.history.append(state.rate.rate, float(cost), value, rate.event)
    if rate.event == "reverted":
        # The momentum belongs to the path that was left.
        return _State(state.best, state.best, settings.direction().init(state.best), rate, history)
    return _State(arrays, arrays if rate.event == "best" else state.best, optimiser, rate, history)


@eqx.filter_jit
def _epoch(
    arrays: Any, optimiser: Any, rate: Any, key: Any, data: Any, static: Any, loss: Any, settings: Training
) -> tuple[Any, Any, Any]:
    """One pass over the data in a random order: parameters, state of the optimiser, mean cost."""
    count, size = len(jax.tree.leaves(data)[0]), settings.batch_size
    batches = -(-count // size)
    order_key, noise_key = jax.random.split(key)
    order = jnp.pad(jax.random.permutation(order_key, count), (0, batches * size - count))
    mask = (jnp.arange(batches * size) < count).astype(jnp.float32)
    direction = settings.direction()

    def step(carry: Any, batch: Any) -> Any:
        arrays, optimiser = carry
        index, mask, number = batch
        examples = jax.tree.map(lambda leaf: leaf[index], data)

        def cost(arrays: Any) -> Any:
            return loss(eqx.combine(arrays, static), examples, mask, jax.random.fold_in(noise_key, number))

        value, gradient = jax.value_and_grad(cost)(arrays)
        update, optimiser = direction.update(gradient, optimiser, arrays)
        arrays = jax.tree.map(lambda p, u: p - rate * u, arrays, update)
        return (arrays, optimiser), value * mask.sum()

    xs = (order.reshape(batches, size), mask.reshape(batches, size), jnp.arange(batches))
    (arrays, optimiser), costs = jax.lax.scan(step, (arrays, optimiser), xs)
    return arrays, optimiser, costs.sum() / count


def _write(path: Path, state: _State, identity: str) -> None:
    groups = {name: _arrays.leaves(getattr(state, name)) for name in _TREES} | {"history": state.history._asdict()}
    _arrays.write(path, _KIND, groups, {"identity": identity, "rate": state.rate._asdict()})


def _read(path: Path, template: _State, identity: str) -> _State:
    groups, attributes = _arrays.read(path, _KIND)
    if attributes.get("identity") != identity:
        raise ValueError(
            f"the checkpoint {path} is of another training: of other data, settings or random key. Name another file, "
            "or remove it to start anew."
        )
    trees = {name: _arrays.with_leaves(getattr(template, name), groups[name]) for name in _TREES}
    return _State(**trees, rate=RateState(**attributes["rate"]), history=History(**groups["history"]))

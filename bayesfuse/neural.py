"""Fusion weights per frame from a neural network: the network, its training examples, its training.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from bayesfuse import network_costs
from bayesfuse._dense import Dense, random_layers
from bayesfuse._module import Module
from bayesfuse._precision import precision
from bayesfuse._simplex import softmax
from bayesfuse._training import History, fingerprint, minimise
from bayesfuse._training import RateRule as RateRule
from bayesfuse._training import Training as Training
from bayesfuse.fusion import Gram, squared_error
from bayesfuse.network_costs import Cost, around_reference
from bayesfuse.simplex_qp import oracle_weights
from bayesfuse.training_set import TrainingSet, check_alike

# From features [frame, feature] to log weights [frame, source, band, model]: a network, or another pytree that is one.
FrameMap = Callable[[Any], Any]

# Frames that go through the network at a time: bounds the memory of wide layers.
_CHUNK = 4096
_BUCKET = 256


class FusionNetwork(Module):
    """A multi-layer perceptron with rectified linear units and a softmax over the models ([JVR16] V.B).

    It has one softmax, a head, per source and band. The output layer starts at weights of zero, so that the untrained
    network returns the same fusion weights for every frame.

    Parameters
    ----------
    key
        Of the initial weights of the hidden layers (He's normal distribution).
    num_features
        Inputs.
    hidden
        Units of each hidden layer; empty for a linear map.
    shape
        Numbers of sources, bands and models.
    initial_weights
        Fusion weights [source, band, model], or broadcast to it, that the untrained network returns, such as those of
        static fusion; equal ones by default.
    """

    layers: tuple[Dense, ...]
    output: Dense
    shape: tuple[int, int, int] = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        num_features: int,
        hidden: Sequence[int],
        shape: tuple[int, int, int],
        initial_weights: Float[np.ndarray, "..."] | None = None,
    ):
        if min(num_features, *hidden, *shape) < 1:
            raise ValueError(
                f"FusionNetwork got {num_features} features, hidden layers {list(hidden)} and (source, band, model) = "
                f"{shape}; all must be positive."
            )
        sizes = [num_features, *hidden]
        start = np.ones(shape) if initial_weights is None else np.broadcast_to(initial_weights, shape)
        if not (np.isfinite(start).all() and (start >= 0).all() and (start.sum(axis=-1) > 0).all()):
            raise ValueError("FusionNetwork got initial weights that are no shares: negative, not finite, or all zero.")
        # A static weight may be exactly zero; one in a thousand can still grow.
        bias = np.log(np.maximum(start / start.sum(axis=-1, keepdims=True), 1e-3)).reshape(-1)
        self.layers = random_layers(key, sizes)
        with precision():
            self.output = Dense(jnp.zeros((bias.size, sizes[-1]), jnp.float32), jnp.asarray(bias, jnp.float32))
        self.shape = shape

    @property
    def num_features(self) -> int:
        """Inputs."""
        return (*self.layers, self.output)[0].weight.shape[1]

    @property
    def hidden(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        return tuple(layer.weight.shape[0] for layer in self.layers)

    def deeper(self, key: PRNGKeyArray, units: int) -> "FusionNetwork":
        """The network with one hidden layer more and a new output layer, the others kept (greedy pre-training)."""
        new = FusionNetwork(key, self.output.weight.shape[1], [units], self.shape)
        # The constant part of the weights carries over to the new output layer.
        output = Dense(new.output.weight, self.output.bias)
        return eqx.tree_at(lambda n: (n.layers, n.output), self, ((*self.layers, *new.layers), output))

    def reordered(self, features: Sequence[int] | np.ndarray, models: Sequence[int]) -> "FusionNetwork":
        """The network for features and models in another order, given by their indices in the order of this one."""
        rows = np.arange(int(np.prod(self.shape))).reshape(self.shape)[..., list(models)].ravel()
        layers = [*self.layers, Dense(self.output.weight[rows], self.output.bias[rows])]
        layers[0] = Dense(layers[0].weight[:, np.asarray(features)], layers[0].bias)
        return eqx.tree_at(lambda n: (n.layers, n.output), self, (tuple(layers[:-1]), layers[-1]))

    def __call__(
        self, features: Float[Array, "*batch feature"], dropout: float = 0.0, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch source band model"]:
        """Logarithms of the fusion weights.

        Parameters
        ----------
        features
            Of any number of frames.
        dropout
            Share of the hidden units that are set to zero at random, in training only.
        key
            Of the dropout.
        """
        x = features
        for index, layer in enumerate(self.layers):
            x = jax.nn.relu(layer(x))
            if dropout and key is not None:
                keep = jax.random.bernoulli(jax.random.fold_in(key, index), 1.0 - dropout, x.shape)
                x = jnp.where(keep, x / (1.0 - dropout), 0.0)
        return jax.nn.log_softmax(self.output(x).reshape(*x.shape[:-1], *self.shape), axis=-1)


class NetworkConfig(Module):
    """Architecture and training of a fusion network. The defaults are the best of [JVR16] VI.H.

    Parameters
    ----------
    hidden
        Units of each hidden layer.
    cost
        "omse", "ce", "smse" or "sdr" ([JVR16] eqs. 23-26); "batch_sdr", the SDR of the mini-batch as a whole ([JVR16]
        VII); "utterance_sdr", the mean of the SDRs of the recordings, which needs mini-batches of recordings.
    unit
        Whether mini-batches are of "frames" or of "recordings".
    pretrain_epochs
        Most epochs at each smaller depth before a hidden layer is added; 0 trains the full depth at once.
    dropout
        Share of hidden units dropped in training. Off by default, as all switches that the paper does not have.
    input_noise
        Standard deviation of Gaussian noise on the features in training.
    floor
        Added to squared errors under a logarithm, relative to the mean energy of the training frames. Under the cost
        "sdr" quiet frames count as much as loud ones; a larger floor, such as 0.1, gives them less say.
    training
        Of the descent.

    Raises
    ------
    ValueError
        For settings out of range.
    """

    hidden: tuple[int, ...] = eqx.field(static=True, default=(1792,), converter=tuple)
    cost: Cost = eqx.field(static=True, default="sdr")
    unit: Literal["frames", "recordings"] = eqx.field(static=True, default="frames")
    pretrain_epochs: int = eqx.field(static=True, default=10)
    dropout: float = eqx.field(static=True, default=0.0, converter=float)
    input_noise: float = eqx.field(static=True, default=0.0, converter=float)
    floor: float = eqx.field(static=True, default=1e-6, converter=float)
    training: Training = Training()

    def __check_init__(self) -> None:
        if self.cost not in get_args(Cost) or self.unit not in ("frames", "recordings"):
            raise ValueError(
                f"NetworkConfig got cost={self.cost!r} and unit={self.unit!r}; expected one of {get_args(Cost)}, and "
                "'frames' or 'recordings'."
            )
        if self.cost == "utterance_sdr" and self.unit == "frames":
            raise ValueError("NetworkConfig got cost='utterance_sdr', which needs mini-batches of unit='recordings'.")
        if not (0 <= self.dropout < 1 and self.input_noise >= 0 and self.floor > 0 and self.pretrain_epochs >= 0):
            raise ValueError(f"{self} is out of range; expected 0 <= dropout < 1, input_noise >= 0, floor > 0.")

    def to_dict(self) -> dict[str, Any]:
        """Plain description, JSON-ready."""
        return _plain(self)


def _plain(module: Any) -> Any:
    if isinstance(module, eqx.Module):
        return {name: _plain(getattr(module, name)) for name in module.__dataclass_fields__}
    return list(module) if isinstance(module, tuple) else module


class _Batch(NamedTuple):
    """Examples of the descent: frames, or recordings padded to the longest one."""

    features: Any
    errors: Gram
    floor: Any
    oracle: Any
    mask: Any


class _Loss(Module):
    """The cost of a mini-batch. Settings only, so that equal settings share a compiled program."""

    config: NetworkConfig

    def __call__(self, network: FusionNetwork, batch: _Batch, mask: Any, key: Any) -> Any:
        config, features = self.config, batch.features
        if config.input_noise:
            noise = jax.random.normal(jax.random.fold_in(key, 0), features.shape, features.dtype)
            features = features + config.input_noise * noise
        logs = network(features, config.dropout, jax.random.fold_in(key, 1))
        valid = batch.mask * mask.reshape(-1, *[1] * (batch.mask.ndim - 1))
        if config.cost == "utterance_sdr":
            values = network_costs.pooled_sdr(logs, batch.errors, batch.floor, valid)
            return (values * mask).sum() / mask.sum()
        if config.cost == "batch_sdr":
            flat = jax.tree.map(
                lambda leaf: leaf.reshape(-1, *leaf.shape[valid.ndim :]), (logs, batch.errors, batch.floor, valid)
            )
            return network_costs.pooled_sdr(*flat)
        if config.cost == "omse":
            values = network_costs.omse(logs, batch.oracle)
        elif config.cost == "ce":
            values = network_costs.cross_entropy(logs, batch.oracle)
        elif config.cost == "smse":
            values = network_costs.smse(logs, batch.errors)
        else:
            values = network_costs.frame_sdr(logs, batch.errors, batch.floor)
        return (values * valid).sum() / valid.sum()


class Trained(NamedTuple):
    """A network, the epochs that led to it, those of pre-training first, and its validation SDR in dB."""

    network: FusionNetwork
    history: History
    score: float


def train(
    key: PRNGKeyArray,
    examples: TrainingSet,
    validation: TrainingSet,
    *,
    config: NetworkConfig | None = None,
    initial_weights: Float[np.ndarray, "..."] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Trained:
    """A network trained on the examples, the best on the validation set of all epochs ([JVR16] V.C-D).

    With more than one hidden layer, a network of one is trained first, then its output layer is replaced by a new
    hidden and output layer, and so on.

    Parameters
    ----------
    key
        Of all random numbers: the same key, data and settings give the same network, to the bit on one machine.
    examples, validation
        Of the same features, sources, bands and models. The score is the mean over the recordings and sources of the
        SDR, from the sum of the Grams of a recording's frames.
    config
        Architecture and descent.
    initial_weights
        Of the network, see `FusionNetwork`.
    checkpoint
        A file, replaced after every epoch; if it exists, the training goes on from it. It stays when the training is
        done: a second call returns the result at once. Pre-training writes files of its own beside it.
    progress
        Show a progress bar with the validation SDR.

    Raises
    ------
    ValueError
        If the two sets do not match, or the checkpoint is of another training.
    """
    config = NetworkConfig() if config is None else config
    check_alike("train", examples, validation)
    file = None if checkpoint is None else Path(checkpoint)
    identity = "" if file is None else _identity(key, examples, validation, config, initial_weights)
    data, score = _batches(examples, config), _Score.of(validation)
    network, history, best = None, History.empty(), np.inf
    full = len(config.hidden)
    for depth in range(min(1, full) if config.pretrain_epochs else full, full + 1):
        stage = jax.random.fold_in(key, depth)
        if network is None:
            inputs = examples.features.shape[1]
            network = FusionNetwork(stage, inputs, config.hidden[:depth], examples.heads, initial_weights)
        else:
            network = network.deeper(stage, config.hidden[depth - 1])
        final = depth == full
        network, part, best = minimise(
            jax.random.fold_in(stage, 1),
            network,
            data,
            _Loss(config),
            score,
            config.training if final else replace(config.training, max_epochs=config.pretrain_epochs),
            checkpoint=file if file is None or final else file.with_name(f"{file.stem}-depth{depth}{file.suffix}"),
            identity=identity,
            label=f"network, {depth} hidden layer{'s' if depth != 1 else ''}",
            shown=lambda value: f"SDR {-value:.2f} dB",
            progress=progress,
        )
        history = history.then(part)
    assert network is not None
    return Trained(network, history, -best)


def evaluate(network: FrameMap, examples: TrainingSet) -> Float[np.ndarray, "recording source"]:
    """SDR in dB of each recording and source, from the Grams of its frames; NaN for a silent source."""
    with precision():
        return np.asarray(_recording_sdr(network, _Score.of(examples)))


def frame_weights(
    network: FrameMap, features: Float[np.ndarray, "frame feature"]
) -> Float[np.ndarray, "frame source band model"]:
    """Fusion weights of each frame, on the simplex over the models, float32."""
    # Padded to few lengths: every new one is a compilation.
    padding = -len(features) % (_BUCKET if len(features) <= _CHUNK else _CHUNK)
    with precision():
        padded = np.pad(features.astype(np.float32, copy=False), [(0, padding), (0, 0)])
        logs = np.asarray(_log_weights(network, padded))[: len(features)]
    return softmax(logs)


class _Score(Module):
    """Minus the mean SDR of a set in dB, over its recordings and sources."""

    features: Any
    errors: Gram
    energy: Any
    recording: Any
    count: int = eqx.field(static=True)

    @classmethod
    def of(cls, examples: TrainingSet) -> "_Score":
        errors, energy, _ = _scaled(examples)
        with precision():
            fields = jax.tree.map(jnp.asarray, (examples.features, errors, energy, examples.recording))
            return cls(fields[0], fields[1], fields[2], fields[3], examples.num_recordings)

    def __call__(self, network: FrameMap) -> float:
        values = np.asarray(_recording_sdr(network, self))
        return -float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


@eqx.filter_jit
def _recording_sdr(network: FrameMap, data: _Score) -> Float[Array, "recording source"]:
    errors = squared_error(jnp.exp(_log_weights(network, data.features)), data.errors).sum(axis=-1)
    sums = [jax.ops.segment_sum(x, data.recording, data.count) for x in (data.energy, errors)]
    # A perfect estimate is worth as much as single precision tells apart.
    error = jnp.maximum(sums[1], np.finfo(np.float32).eps * sums[0])
    return jnp.where(sums[0] > 0, 10.0 * (jnp.log10(sums[0]) - jnp.log10(error)), jnp.nan)


@eqx.filter_jit
def _log_weights(network: FrameMap, features: Any) -> Float[Array, "frame source band model"]:
    if len(features) <= _CHUNK:
        return network(features)
    return jax.lax.map(network, features, batch_size=_CHUNK)


def _scaled(examples: TrainingSet) -> tuple[Gram, np.ndarray, float]:
    """The Grams of the errors, and the energies per [frame, source], in units of the mean energy, float32."""
    energy = np.asarray(examples.gram.energy, np.float64).sum(axis=2)
    unit = float(energy.mean()) or 1.0
    errors = jax.tree.map(lambda field: (field / unit).astype(np.float32), around_reference(examples.gram))
    return errors, (energy / unit).astype(np.float32), unit


def _batches(examples: TrainingSet, config: NetworkConfig) -> _Batch:
    """The examples of the descent, with a leading axis of frames or of recordings."""
    errors, energy, _ = _scaled(examples)
    if config.cost in ("omse", "ce"):
        oracle = np.asarray(oracle_weights(examples.gram), np.float32)
    else:  # not used, and so not computed
        oracle = np.zeros((len(energy), 1, 1, 1), np.float32)
    batch = _Batch(examples.features, errors, np.full_like(energy, config.floor), oracle, np.ones_like(energy[:, 0]))
    if config.unit == "frames":
        return batch
    lengths = np.bincount(examples.recording)
    position = np.arange(len(energy)) - np.repeat(np.cumsum(lengths) - lengths, lengths)

    def padded(field: np.ndarray) -> np.ndarray:
        out = np.zeros((len(lengths), lengths.max(), *field.shape[1:]), field.dtype)
        out[examples.recording, position] = field
        return out

    batch = jax.tree.map(padded, batch)
    # Frames of padding do not count, but their logarithm must exist.
    return batch._replace(floor=np.full_like(batch.floor, config.floor))


def _identity(key: Any, examples: TrainingSet, validation: TrainingSet, config: NetworkConfig, weights: Any) -> str:
    start = None if weights is None else np.asarray(weights).tolist()
    return fingerprint(*jax.tree.leaves((examples, validation)), config.to_dict(), start, key)

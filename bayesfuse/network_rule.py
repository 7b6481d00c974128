"""A trained network with all it needs to be applied: learned from recordings, kept in one file, run on long ones.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from bayesfuse import _arrays, audio
from bayesfuse._module import Module
from bayesfuse._streaming import pieces
from bayesfuse.features import FeatureConfig, FeaturePipeline, Inputs, fit_features, mean_power, spectra
from bayesfuse.fusion import Bands, Gram, fuse, fuse_blocks, gram
from bayesfuse.mixture_mapping import MixtureMapping
from bayesfuse.network_average import NetworkAverage
from bayesfuse.neural import FusionNetwork, NetworkConfig, Trained, TrainingSet, frame_weights, train
from bayesfuse.rules import positions
from bayesfuse.transforms import STFT

KIND = "bayesfuse network fusion"
AnyNetwork = FusionNetwork | NetworkAverage | MixtureMapping

# Entries of all signals together in a piece of a long recording: 8 MiB in single precision.
_PIECE = 1 << 21

Block = tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, "_ _ _ _"]]  # mixture and estimates


class Applied(NamedTuple):
    """Weights [source, model, frame] or [source, model, frame, band], seconds of sound, and seconds it took."""

    weights: Float[np.ndarray, "..."]
    duration: float
    seconds: float

    @property
    def real_time_factor(self) -> float:
        """Computing time per second of sound."""
        return self.seconds / self.duration


class NetworkRule(Module):
    """Fusion weights per frame from a network or a mixture, for the separators it was trained with ([JVR16] V, VIII).

    Attributes
    ----------
    network, pipeline
        What was trained.
    separators, sources
        Names of the models and of the fused sources, in the order of the estimates.
    rate
        Sampling rate in Hz.
    bands
        Of weights per band; None for weights per frame.
    record
        How it came about, JSON-ready: settings, validation SDR, versions.
    """

    network: AnyNetwork
    pipeline: FeaturePipeline
    separators: tuple[str, ...] = eqx.field(static=True, converter=tuple)
    sources: tuple[str, ...] = eqx.field(static=True, converter=tuple)
    rate: int = eqx.field(static=True, converter=int)
    bands: Bands | None = None
    record: dict[str, Any] = eqx.field(default_factory=dict)

    def __check_init__(self) -> None:
        expected = (len(self.sources), self.bands.count if self.bands else 1, len(self.separators))
        if self.network.shape != expected or len(set(self.separators)) != len(self.separators):
            raise ValueError(
                f"NetworkRule got a network with (source, band, model) = {self.network.shape} for the sources "
                f"{list(self.sources)}, {expected[1]} bands and the separators {list(self.separators)}; name each once."
            )
        if self.network.num_features != self.pipeline.num_features:
            raise ValueError(
                f"NetworkRule got a network of {self.network.num_features} features and a pipeline that returns "
                f"{self.pipeline.num_features}; both must come from the same training."
            )

    @property
    def transform(self) -> STFT:
        """The framing of the weights, for `fuse`."""
        return STFT(self.pipeline.config.transform.window, self.pipeline.config.transform.hop)

    def weights(self, inputs: Inputs) -> Float[np.ndarray, "..."]:
        """Fusion weights of a recording, [source, model, frame] or [source, model, frame, band], float32.

        Raises
        ------
        ValueError
            If the estimates are not of this rule's models and sources, or a value is NaN or infinite.
        """
        level = mean_power(inputs.mixture)
        return self.weights_of_blocks([(inputs.mixture, inputs.estimates)], level, inputs.free_energy)

    def weights_of_blocks(
        self, blocks: Iterable[Block], level: float, free_energy: Float[np.ndarray, "..."] | None = None
    ) -> Float[np.ndarray, "..."]:
        """As `weights`, of a recording that comes in consecutive blocks (mixture, estimates), in bounded memory.

        Parameters
        ----------
        blocks
            Of any lengths.
        level
            `features.mean_power` of the whole mixture; without effect unless the features are relative to it.
        free_energy
            Of the whole recording, if it is among the features.
        """
        config, framing = self.pipeline.config, self.transform
        overlap = framing.overlap - 1
        parts = []
        context = {"before": overlap + config.context, "after": config.context}
        for piece in pieces(self._joined(blocks), hop=framing.hop, entries=_PIECE, **context):
            # Frame k ends with segment k: at the edges of a piece only the recording's own are complete.
            first = piece.start + (overlap if piece.start else 0)
            stop = piece.start - (-piece.audio.shape[-1] // framing.hop) + (overlap if piece.final else 0)
            inputs = Inputs(piece.audio[0], piece.audio[1:].reshape(self._leading + piece.audio.shape[1:]))
            rows = spectra(inputs, config, level if config.level == "recording" else 1.0)
            energies = None if free_energy is None else free_energy[..., first:stop]
            features = self.pipeline.from_spectra(
                rows[..., first - piece.start : stop - piece.start],
                energies,
            )
            own = slice(piece.first - first, stop - first if piece.final else piece.stop - first)
            parts.append(frame_weights(self.network, features[own]))
        weights = np.moveaxis(np.concatenate(parts), (0, 1, 2, 3), (2, 0, 3, 1))
        return weights if self.bands else weights[..., 0]

    def apply(self, inputs: Inputs) -> tuple[Float[np.ndarray, "source channel sample"], Applied]:
        """The fused sources of a recording, with their weights and the time it took."""
        begun = time.perf_counter()
        weights = self.weights(inputs)
        fused = fuse(weights, inputs.estimates, transform=self.transform, bands=self.bands, per_source=True)
        return np.asarray(fused), Applied(weights, fused.shape[-1] / self.rate, time.perf_counter() - begun)

    def apply_files(
        self,
        mixture: str | os.PathLike[str],
        estimates: Mapping[str, Mapping[str, str | os.PathLike[str]]],
        outputs: Mapping[str, str | os.PathLike[str]],
        *,
        free_energy: Float[np.ndarray, "model ..."] | None = None,
    ) -> Applied:
        """Fuses files of any length in bounded memory, and writes one file per source, each whole or not at all.

        Parameters
        ----------
        mixture
            Audio file.
        estimates
            Audio files by separator and source.
        outputs
            Files to write, by source.
        free_energy
            Of the whole recording, if it is among the features.

        Raises
        ------
        FileNotFoundError
            If a file does not exist.
        ValueError
            If separators or sources are missing, or files differ from the mixture in rate, channels or length.
        """
        begun = time.perf_counter()
        files = self._files(estimates, outputs)
        about = audio.info(mixture)
        for path in [file for row in files for file in row]:
            other = audio.info(path)
            if (other.rate, other.channels, other.samples) != (self.rate, about.channels, about.samples):
                raise ValueError(
                    f"{path} has {other.channels} channels of {other.samples} samples at {other.rate} Hz, but the "
                    f"mixture has {about.channels} of {about.samples} and the network is for {self.rate} Hz; align "
                    "them first."
                )
        if about.rate != self.rate:
            raise ValueError(f"{mixture} is at {about.rate} Hz, the network is for {self.rate} Hz; resample it.")
        size = max(_PIECE // ((1 + len(files) * len(files[0])) * about.channels), 1)
        level = 1.0
        if self.pipeline.config.level == "recording":
            total = sum(float(np.square(part, dtype=np.float64).sum()) for _, part in audio.blocks(mixture, size))
            # A silent mixture has the level 1, as `mean_power` has it.
            level = total / (about.channels * about.samples) or 1.0
        signals = zip(_blocks([mixture], size), _blocks([f for row in files for f in row], size), strict=True)
        weights = self.weights_of_blocks(
            ((x[0], y.reshape(self._leading + y.shape[1:])) for x, y in signals), level, free_energy
        )
        for index, source in enumerate(self.sources):
            parts = fuse_blocks(
                weights[index],
                _blocks([row[index] for row in files], size),
                transform=self.transform,
                bands=self.bands,
            )
            audio.write_blocks(outputs[source], parts, self.rate, about.channels)
        return Applied(weights, about.duration, time.perf_counter() - begun)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the rule to one netCDF file, whole or not at all; `load` returns it bit by bit."""
        fields, features = self.pipeline.parts()
        bands = None if self.bands is None else {n: getattr(self.bands, n) for n in self.bands.__dataclass_fields__}
        description = {
            "separators": self.separators,
            "sources": self.sources,
            "rate": self.rate,
            "bands": bands,
            **_size(self.network),
            "record": self.record,
            **features,
        }
        _arrays.write(Path(path), KIND, {"network": _arrays.leaves(self.network), "pipeline": fields}, description)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, separators: Sequence[str] | None = None) -> "NetworkRule":
        """The rule in a file of `save`.

        Parameters
        ----------
        path
            The file.
        separators
            Names of those it is to be applied to, in the order of their estimates; not checked if None. A rule for the
            same ones in another order comes back in this order.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged or of something else, or the rule is for other separators.
        """
        groups, about = _arrays.read(Path(path), KIND)
        bands = None if about["bands"] is None else Bands(**about["bands"])
        shape = (len(about["sources"]), bands.count if bands else 1, len(about["separators"]))
        pipeline = FeaturePipeline.from_parts(groups["pipeline"], about)
        network = _arrays.with_leaves(_blank(about, pipeline.num_features, shape), groups["network"])
        rule = cls(network, pipeline, about["separators"], about["sources"], about["rate"], bands, about["record"])
        if separators is None or tuple(separators) == rule.separators:
            return rule
        return rule._reordered(positions(path, rule.separators, separators))

    def _reordered(self, index: Sequence[int]) -> "NetworkRule":
        """The same rule, up to the order of summation, for the separators in another order."""
        pipeline, features = self.pipeline.reordered(index)
        names = [self.separators[i] for i in index]
        network = self.network.reordered(features, index)
        return NetworkRule(network, pipeline, names, self.sources, self.rate, self.bands, self.record)

    @property
    def _leading(self) -> tuple[int, int]:
        return len(self.separators), len(self.sources)

    def _joined(self, blocks: Iterable[Block]) -> Iterator[np.ndarray]:
        """Mixture and estimates as one array [signal, channel, sample]."""
        for mixture, estimates in blocks:
            if estimates.shape[:2] != self._leading or estimates.shape[2:] != mixture.shape:
                raise ValueError(
                    f"got a mixture [channel, sample] {mixture.shape} and estimates [model, source, channel, sample] "
                    f"{estimates.shape}; this network fuses {len(self.separators)} models, {list(self.separators)}, of "
                    f"the sources {list(self.sources)}, as long as the mixture."
                )
            yield np.concatenate([mixture[None], estimates.reshape(-1, *mixture.shape)])

    def _files(self, estimates: Mapping[str, Mapping[str, Any]], outputs: Mapping[str, Any]) -> list[list[Any]]:
        """Files [separator][source]."""
        missing = [s for s in self.separators if s not in estimates]
        missing += [
            f"{s}: {j}" for s in self.separators for j in self.sources if j not in estimates.get(s, self.sources)
        ]
        missing += [f"output: {j}" for j in self.sources if j not in outputs]
        if missing:
            raise ValueError(
                f"the network fuses the separators {list(self.separators)} of the sources {list(self.sources)}, but "
                f"there are no files for {missing}."
            )
        return [[estimates[s][j] for j in self.sources] for s in self.separators]


def _size(network: AnyNetwork) -> dict[str, Any]:
    """What `_blank` must know to make one of the same size."""
    if isinstance(network, MixtureMapping):
        return {"components": network.num_components}
    if isinstance(network, NetworkAverage):
        return {"members": [_size(member) for member in network.members]}
    return {"hidden": network.hidden}


def _blank(about: Mapping[str, Any], num_features: int, shape: tuple[int, int, int]) -> AnyNetwork:
    if "components" in about:
        return MixtureMapping.uniform(about["components"], num_features, shape)
    key = jax.random.key(0)
    if "members" in about:
        return NetworkAverage([FusionNetwork(key, num_features, m["hidden"], shape) for m in about["members"]])
    return FusionNetwork(key, num_features, about["hidden"], shape)


class Recording(NamedTuple):
    """A training example: what is known before fusion, and the truth [source, channel, sample]."""

    inputs: Inputs
    references: Float[np.ndarray, "source channel sample"]


def learn_network(
    key: PRNGKeyArray,
    examples: Iterable[Recording],
    validation: Iterable[Recording],
    rate: int,
    *,
    separators: Sequence[str],
    sources: Sequence[str],
    features: FeatureConfig,
    config: NetworkConfig | None = None,
    bands: Bands | None = None,
    initial_weights: Float[np.ndarray, "..."] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> tuple[NetworkRule, Trained]:
    """From recordings to a rule: fits the features, reduces all frames, trains.

    To try several networks on the same features, use `fit_features`, `TrainingSet.build` and `train` instead.

    Parameters
    ----------
    key
        Of all random numbers.
    examples, validation
        Recordings, from something that can be iterated several times and reads one at a time.
    rate
        Sampling rate in Hz.
    separators, sources
        Names, in the order of the estimates.
    features
        What the network sees; its transform frames the weights.
    config, initial_weights, checkpoint, progress
        As for `train`.
    bands
        For weights per band.

    Raises
    ------
    ValueError
        As `fit_features`, `gram` and `train`.
    """
    config = NetworkConfig() if config is None else config
    framing = STFT(features.transform.window, features.transform.hop)

    def with_gram(recordings: Iterable[Recording]) -> Iterator[tuple[Inputs, Gram]]:
        for recording in recordings:
            yield recording.inputs, recording_gram(recording, framing, bands)

    pipeline = fit_features(_Mapped(lambda: (inputs for inputs, _ in examples)), features, progress=progress)
    sets = [TrainingSet.build(pipeline, with_gram(recordings)) for recordings in (examples, validation)]
    trained = train(
        key, *sets, config=config, initial_weights=initial_weights, checkpoint=checkpoint, progress=progress
    )
    names = {"separators": separators, "sources": sources}
    return make_rule(key, trained, pipeline, rate, **names, config=config, bands=bands), trained


def make_rule(
    key: PRNGKeyArray,
    trained: Trained,
    pipeline: FeaturePipeline,
    rate: int,
    *,
    separators: Sequence[str],
    sources: Sequence[str],
    config: NetworkConfig,
    bands: Bands | None = None,
) -> NetworkRule:
    """The rule of a trained network, with a record of how it came about; arguments as those of `learn_network`."""
    record = {
        "config": config.to_dict(),
        "validation_sdr": trained.score,
        "epochs": len(trained.history.rate),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "versions": {name: metadata.version(name) for name in ("jax", "equinox", "optax", "scikit-learn", "numpy")},
    }
    return NetworkRule(trained.network, pipeline, separators, sources, rate, bands, record)


def recording_gram(recording: Recording, transform: STFT, bands: Bands | None = None) -> Gram:
    """Scalar products over [source, frame], or [source, frame, band]; channels share their weights."""
    return gram(recording.references, recording.inputs.estimates, transform=transform, bands=bands).sum(1)


class _Mapped:
    """An iterable that begins anew each time."""

    def __init__(self, start: Callable[[], Iterator[Inputs]]):
        self._start = start

    def __iter__(self) -> Iterator[Inputs]:
        return self._start()


def _blocks(paths: Sequence[Any], size: int) -> Iterator[Float[np.ndarray, "file channel sample"]]:
    for parts in zip(*(audio.blocks(path, size) for path in paths), strict=True):
        yield np.stack([part for _, part in parts])

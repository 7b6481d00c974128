"""Networks that choose fusion weights per frame, trained on the separations of mini-chime and kept in the cache.

What `fusion_ladder.py` and `jvr16_fig6_network.py` share: features, training sets, networks and their scores on the
waveform of the utterance.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from _separations import BANDS, ORDERS, Item, Separations

from bayesfuse import features, metrics, neural
from bayesfuse.fusion import squared_error
from bayesfuse.grams import Bands, Gram, gram
from bayesfuse.mixture_mapping import train_mixture
from bayesfuse.network_average import NetworkAverage
from bayesfuse.network_costs import Cost
from bayesfuse.neural import NetworkConfig, Training, TrainingSet
from bayesfuse.simplex_qp import oracle_weights
from bayesfuse.static import static_weights
from bayesfuse.transforms import QERB, STFT
from bayesfuse.weighted_sum import fuse

KINDS = {"VB-NMF": slice(0, len(ORDERS)), "ML-NMF": slice(len(ORDERS), None), "both": slice(None)}
TRANSFORM = STFT()
# Mini-batches of utterances for the cost of the whole utterance, of frames for the others.
UTTERANCES = Training(batch_size=16, optimiser="adam", weight_decay=1e-3)
FRAMES = Training(optimiser="adam", rate=2e-4, weight_decay=1e-3)


def utterance(item: Item, signal: np.ndarray) -> np.ndarray:
    """A waveform with silence outside the utterance, so that what is learned is what is scored."""
    inside = np.zeros(signal.shape[-1], signal.dtype)
    inside[slice(*item.scored)] = 1
    return signal * inside


class Variant(NamedTuple):
    """A network that the validation split may choose: what it is told, and its architecture and descent."""

    features: dict[str, Any]
    config: NetworkConfig


def inputs_of(item: Item, kind: str) -> features.Inputs:
    """What a network is told about an item: free energies as a whole, in parts, and by band."""
    chosen = item.estimates[KINDS[kind]]
    energies = np.concatenate([item.likelihood.sum(1)[:, None], item.activations, item.likelihood], axis=1)
    return features.Inputs(item.mixture[None], chosen[:, None, None], energies)


def feature_config(variant: Variant, rate: int) -> features.FeatureConfig:
    settings = dict(variant.features)
    transform = {"qerb": QERB(rate), "log": QERB(rate, 32), "stft": STFT()}[settings.pop("transform")]
    return features.FeatureConfig(transform=transform, **settings)


class Recordings:
    """What networks are told about the items of a split, read anew for every pass."""

    def __init__(self, items: Callable[[], Iterable[Item]], kind: str) -> None:
        self.items, self.kind = items, kind

    def __iter__(self) -> Iterator[features.Inputs]:
        return (inputs_of(item, self.kind) for item in self.items())


class Learned(NamedTuple):
    """A trained network with its features, and how it does on the mixtures of training and of validation, in dB."""

    pipeline: features.FeaturePipeline
    network: neural.FrameMap
    training: dict[str, float]  # static fusion, network, oracle per frame
    validation: dict[str, float]


def standing(examples: TrainingSet, network: neural.FrameMap, static: np.ndarray) -> dict[str, float]:
    """Mean SDR of static fusion, a network and the oracle per frame, from scalar products."""
    best = np.asarray(oracle_weights(examples.gram))
    found = {"static": np.broadcast_to(static, best.shape), "oracle": best}
    count = examples.num_recordings

    def sums(values: Any) -> np.ndarray:
        return np.bincount(examples.recording, np.asarray(values, np.float64).sum((1, 2)), count)

    energy = sums(examples.gram.energy)
    levels = {
        name: float(np.mean(10 * np.log10(energy / sums(squared_error(w, examples.gram))))) for name, w in found.items()
    }
    return levels | {"network": float(np.nanmean(neural.evaluate(network, examples)))}


class Networks:
    """Trained networks, each kept with its features in the cache.

    Parameters
    ----------
    separations
        What they are trained on.
    options
        `limit`, so many mixtures of each split or None, and `epochs`, the most of a network.
    cache
        Folder of features and networks.
    variants
        What networks are told, and their architectures, by name.
    """

    def __init__(
        self, separations: Separations, options: argparse.Namespace, cache: Path, variants: Mapping[str, Variant]
    ) -> None:
        self.separations, self.options, self.cache, self.variants = separations, options, cache, variants
        self.rate = separations.data.rate

    def _items(self, split: str) -> Iterable[Item]:
        return self.separations.load(split, None, self.options.limit)

    def _set(self, pipeline: Any, kind: str, split: str, path: Path) -> TrainingSet:
        if not path.exists():
            from tqdm.auto import tqdm

            def examples() -> Iterable[tuple[features.Inputs, Gram]]:
                for item in tqdm(self._items(split), desc=f"features of {split}", unit="mixture"):
                    speech, found = utterance(item, item.speech), utterance(item, item.estimates[KINDS[kind]])
                    yield inputs_of(item, kind), gram(speech[None], found[:, None], transform=TRANSFORM)

            TrainingSet.build(pipeline, examples()).save(path)
        return TrainingSet.load(path)

    def sets(self, name: str, kind: str) -> tuple[features.FeaturePipeline, TrainingSet, TrainingSet]:
        """Features of a variant, and the training and validation sets of them."""
        config = feature_config(self.variants[name], self.rate)
        limit = "" if self.options.limit is None else f"-{self.options.limit}"
        description = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = self.folder / f"{name.replace(' ', '_')}-{kind}{limit}-{description}"
        fitted = Path(f"{stem}-pipeline.nc")
        if not fitted.exists():
            recordings = Recordings(lambda: self._items("train"), kind)
            features.fit_features(recordings, config, progress=True).save(fitted)
        pipeline = features.FeaturePipeline.load(fitted)
        train, validation = (self._set(pipeline, kind, split, Path(f"{stem}-{split}.nc")) for split in ("train", "val"))
        return pipeline, train, validation

    @property
    def folder(self) -> Path:
        """Of features and networks on these separations."""
        return self.cache / f"networks-{self.separations.folder.name}"

    def train(self, name: str, kind: str, costs: Sequence[Cost | None] = (None,)) -> list[Learned]:
        """A variant trained with its own cost (None), or with others."""
        configs = []
        for cost in costs:
            config = self.variants[name].config
            if cost is not None and cost != config.cost:
                pooled = cost == "utterance_sdr"
                config = replace(
                    config,
                    cost=cost,
                    unit="recordings" if pooled else "frames",
                    training=UTTERANCES if pooled else FRAMES,
                )
            configs.append(config)
        return self.fit(name, kind, configs)

    def fit(self, name: str, kind: str, configs: Sequence[NetworkConfig]) -> list[Learned]:
        """Networks of several architectures or costs, told what a variant is told."""
        pipeline, train, validation = self.sets(name, kind)
        static = _static(train)
        learned = []
        for config in configs:
            config = replace(config, training=replace(config.training, max_epochs=self.options.epochs))
            tag = hashlib.sha256(json.dumps([name, kind, len(train.features), config.to_dict()]).encode()).hexdigest()
            network = neural.train(
                jax.random.key(0),
                train,
                validation,
                config=config,
                initial_weights=static,
                checkpoint=self.folder / f"network-{tag[:16]}.nc",
                progress=True,
            ).network
            learned.append(
                Learned(pipeline, network, *(standing(part, network, static) for part in (train, validation)))
            )
        return learned

    def average(self, name: str, kind: str, learned: Sequence[Learned]) -> Learned:
        """The mean of networks that were trained on the features of a variant."""
        pipeline, train, validation = self.sets(name, kind)
        network = NetworkAverage([one.network for one in learned])
        static = _static(train)
        return Learned(pipeline, network, *(standing(part, network, static) for part in (train, validation)))

    def mixture(self, name: str, kind: str) -> Learned:
        """A Gaussian mixture on the features of a variant, each utterance counting alike."""
        pipeline, train, validation = self.sets(name, kind)
        mapping = train_mixture(train, validation, weighting="recordings", progress=True).mapping
        static = _static(train)
        return Learned(pipeline, mapping, *(standing(part, mapping, static) for part in (train, validation)))


def _static(examples: TrainingSet) -> np.ndarray:
    """Constant weights learned on the recordings of a set, for their SDR."""
    starts = np.flatnonzero(np.diff(examples.recording)) + 1
    whole = jax.tree.map(lambda field: np.stack([x.sum((0, 1, 2)) for x in np.split(field, starts)]), examples.gram)
    return np.asarray(static_weights(whole, loss="sdr"))


def score(item: Item, kind: str, weights: np.ndarray) -> float:
    """SDR of the fused waveform on the utterance."""
    bands = Bands(item.rate, BANDS) if weights.ndim == 3 else None
    transform = None if weights.ndim == 1 else TRANSFORM
    fused = fuse(weights, item.estimates[KINDS[kind]], transform=transform, bands=bands)
    inside = slice(*item.scored)
    return float(metrics.sdr(item.speech[inside], fused[inside]))

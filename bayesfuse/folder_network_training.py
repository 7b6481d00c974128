"""Training a fusion network on a folder whose true sources are known, and what it gains on mixtures it did not see.

Features and scalar products of every mixture, and every epoch, are kept beside the weights file until it is written, so
that a training that was interrupted, even killed, goes on where it was.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from bayesfuse import audio
from bayesfuse._jobs import ITEM_ERRORS, Arrays, Records
from bayesfuse._training import fingerprint
from bayesfuse.cross_validation import CrossValidation, Learner, cross_validate
from bayesfuse.examples import Reading, open_example
from bayesfuse.features import FeatureConfig, FeaturePipeline, Inputs, fit_features
from bayesfuse.folder_network import check_energies, frame_energies
from bayesfuse.folder_rules import check_references
from bayesfuse.fusing import Outcome
from bayesfuse.fusion import Gram
from bayesfuse.network_rule import NetworkRule, Recording, make_rule, recording_gram
from bayesfuse.neural import FusionNetwork, NetworkConfig, Trained, Training, TrainingSet, frame_weights, train
from bayesfuse.separators.folder import Folder, Item
from bayesfuse.simplex_qp import oracle_weights
from bayesfuse.training import padded_gram
from bayesfuse.transforms import QERB, STFT

Features = Literal["log", "qerb"]


class _Variant(NamedTuple):
    """Bands, settings of the features, and settings of the network."""

    bands: int
    features: dict[str, Any]
    network: dict[str, Any]


# "log" is what the validation split of `benchmarks/fusion_ladder.py` chose, "qerb" is as [JVR16] VI.H has it.
_VARIANTS: dict[str, _Variant] = {
    "log": _Variant(
        32,
        {
            "compression": "log",
            "level": "recording",
            "relative": True,
            "context": 1,
            "num_components": None,
            "clip": 5.0,
        },
        {
            "hidden": (256,),
            "cost": "utterance_sdr",
            "unit": "recordings",
            "dropout": 0.5,
            "input_noise": 0.3,
            "training": Training(batch_size=16, optimiser="adam", weight_decay=1e-3),
        },
    ),
    "qerb": _Variant(350, {}, {}),
}
# One in so many groups of mixtures is for validation.
_VALIDATION = 5
# Every fold is a training of its own: fewer than the five of the rules that take seconds.
FOLDS = 3


@dataclass(frozen=True)
class NetworkExamples:
    """Mixtures with true sources as a network is trained on them; made by `collect_examples`.

    Attributes
    ----------
    names, groups
        Of the mixtures.
    sets
        Features and scalar products of each.
    pipeline
        From sound to features. It is fitted to all mixtures, without regard to their true sources.
    separators, sources, rate
        What the estimates are of, and their sampling rate in Hz.
    config, seed
        Of the network and its training.
    keep
        Folder for checkpoints, or None.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    sets: tuple[TrainingSet, ...]
    pipeline: FeaturePipeline
    separators: tuple[str, ...]
    sources: tuple[str, ...]
    rate: int
    config: NetworkConfig
    seed: int
    keep: Path | None

    def train(self, chosen: Sequence[int], *, progress: bool = False) -> Trained:
        """A network trained on some of the mixtures, of whose groups one in five is for validation.

        It begins with the constant weights that are best on its training mixtures.

        Raises
        ------
        ValueError
            If they are of fewer than two groups, or none of those for validation sounds.
        """
        groups = np.random.default_rng(self.seed).permutation(sorted({self.groups[i] for i in chosen})).tolist()
        if len(groups) < 2:
            raise ValueError(
                f"a network needs at least two groups of mixtures, one of them for validation, but all are of {groups}."
            )
        held = set(groups[: max(len(groups) // _VALIDATION, 1)])
        training, validation = (
            TrainingSet.concatenate([self.sets[i] for i in chosen if (self.groups[i] in held) is inside])
            for inside in (False, True)
        )
        # A checkpoint of other data or settings has another name, and is made anew instead of refused.
        mark = fingerprint(*jax.tree.leaves((training, validation)), self.config.to_dict(), self.seed)
        return train(
            jax.random.key(self.seed),
            training,
            validation,
            config=self.config,
            initial_weights=np.asarray(oracle_weights(training.gram.sum(0))),
            checkpoint=None if self.keep is None else self.keep / f"network-{mark[:16]}.nc",
            progress=progress,
        )


def train_network(examples: NetworkExamples, *, progress: bool = False) -> tuple[NetworkRule, float]:
    """The network trained on all mixtures, and its mean SDR in dB on those of them that are for validation."""
    trained = examples.train(range(len(examples.names)), progress=progress)
    rule = make_rule(
        jax.random.key(examples.seed),
        trained,
        examples.pipeline,
        examples.rate,
        separators=examples.separators,
        sources=examples.sources,
        config=examples.config,
    )
    return rule, trained.score


def judge_network(examples: NetworkExamples, *, progress: bool = False) -> dict[str, CrossValidation | None]:
    """What a network gains over the best single separator on mixtures it was not trained on, by source.

    Mixtures of one group are held out together, in `FOLDS` folds: as many trainings more. The features are not fitted
    anew; they know nothing of the true sources. None if there are fewer than three groups, of which every fold
    needs two, or the source sounds in fewer than two.
    """
    networks: dict[bytes, FusionNetwork] = {}
    longest = max(len(part.features) for part in examples.sets)

    def learner(source: int) -> Learner:
        def learn(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
            key = train.tobytes()
            # All sources share a network.
            if key not in networks:
                networks[key] = examples.train(train.tolist(), progress=progress).network
            return lambda test: np.stack([weights(networks[key], int(i)) for i in test])

        def weights(network: FusionNetwork, index: int) -> Float[np.ndarray, "model frame"]:
            features = examples.sets[index].features
            found = frame_weights(network, features)[:, source, 0].T
            return np.pad(found, [(0, 0), (0, longest - len(features))])

        return learn

    judged: dict[str, CrossValidation | None] = {}
    for index, source in enumerate(examples.sources):
        grams = [part.gram.sum(2).take(index, axis=1) for part in examples.sets]
        sounding = {g for g, own in zip(examples.groups, grams, strict=True) if own.energy.sum() > 0}
        if len(set(examples.groups)) < FOLDS or len(sounding) < 2:
            judged[source] = None
            continue
        g = Gram.stack([padded_gram(own, longest) for own in grams])
        judged[source] = cross_validate(learner(index), g, examples.groups, folds=FOLDS, seed=examples.seed)
    return judged


def collect_examples(
    folder: Folder,
    *,
    reading: Reading | None = None,
    window: int = 1024,
    features: Features = "log",
    free_energies: bool = False,
    config: NetworkConfig | None = None,
    seed: int = 0,
    keep: Path | None = None,
    progress: bool = False,
) -> tuple[NetworkExamples, Outcome]:
    """Features and scalar products of all mixtures whose true sources are known, and what became of every mixture.

    Parameters
    ----------
    folder
        Mixtures, estimates, references. All sources must have the same separators.
    reading
        How the files are read.
    window
        Length of a frame in samples.
    features
        "log": logarithms of the powers in 32 bands on the ERB scale, relative to the level of the mixture, with a
        frame before and after, and a network of 256 hidden units with dropout. "qerb": the powers in 350 bands, with
        two frames before and after, and 1,792 hidden units, as [JVR16] has them.
    free_energies
        Whether the free energies per frame of all separators are features, too.
    config
        Architecture and training, if not that which goes with the features.
    seed
        Of all random numbers.
    keep
        Folder to keep features and checkpoints in.
    progress
        Whether to show bars.

    Raises
    ------
    ValueError
        If there are no references, no free energies but they are wanted, the separators differ between sources, or
        fewer than two groups can be used.
    """
    check_references(folder, "network")
    if free_energies:
        check_energies(folder)
    mine = Reading() if reading is None else reading
    variant = _VARIANTS[features]
    sources = folder.sources
    separators = folder.separators_of[sources[0]]
    if any(folder.separators_of[source] != separators for source in sources):
        raise ValueError("a network needs the same separators for all sources: leave out those that differ.")
    recordings = _Recordings(sources, separators, mine, STFT(window, window // 2) if free_energies else None)
    usable, rate, outcome = _usable(folder, recordings)
    kind = FeatureConfig(QERB(rate, variant.bands, window), free_energy=free_energies, **variant.features)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    settings = {"job": "network", "sources": sources, "separators": separators, "features": kind.to_dict()}
    pipeline = _fitted(recordings.of(usable), kind, Records(keep, {**settings, **mine.describe()}), progress)
    settings["pipeline"] = fingerprint(*jax.tree.leaves(pipeline))
    sets = tuple(
        _training_set(recordings.of([item]), pipeline, Records(keep, {**settings, **mine.of(item).describe()}))
        for item in usable
    )
    names, groups = tuple(item.name for item in usable), tuple(item.group for item in usable)
    chosen = NetworkConfig(**variant.network) if config is None else config
    return NetworkExamples(names, groups, sets, pipeline, separators, sources, rate, chosen, seed, keep), outcome


@dataclass(frozen=True)
class _Recordings:
    """Training recordings that are read from files each time they are gone through."""

    sources: tuple[str, ...]
    separators: tuple[str, ...]
    reading: Reading
    framing: STFT | None
    items: tuple[Item, ...] = ()

    def of(self, items: Sequence[Item]) -> "_Recordings":
        """Those of some mixtures."""
        return _Recordings(self.sources, self.separators, self.reading, self.framing, tuple(items))

    def __iter__(self) -> Iterator[Recording]:
        return map(self.read, self.items)

    def read(self, item: Item) -> Recording:
        """The recording of one mixture."""
        examples = [open_example(item, s, self.separators, self.reading.of(item)) for s in self.sources]
        length = examples[0].header.samples
        estimates = np.stack([np.stack([t.read(0, length) for t in e.estimates]) for e in examples], axis=1)
        references = np.stack([example.true_source().read(0, length) for example in examples])
        energies = None if self.framing is None else frame_energies(examples[0], self.framing)
        return Recording(Inputs(examples[0].mixture.read(0, length), estimates, energies), references)

    def files(self) -> list[Path]:
        """All that is read."""
        found = []
        for item in self.items:
            found += [item.mixture, *(item.references[source] for source in self.sources)]
            found += [item.estimate(separator, source) for separator in self.separators for source in self.sources]
            found += [] if self.framing is None else [item.free_energies[s] for s in self.separators]
        return found


class _Inputs:
    """What is known before fusion of recordings that are read each time they are gone through."""

    def __init__(self, recordings: _Recordings):
        self._recordings = recordings

    def __iter__(self) -> Iterator[Inputs]:
        return (recording.inputs for recording in self._recordings)


def _usable(folder: Folder, recordings: _Recordings) -> tuple[list[Item], int, Outcome]:
    """The mixtures that can be read, their sampling rate, and what became of all that have true sources."""
    outcome, usable, rates = Outcome(), [], []
    for item in folder.items:
        if not all(source in item.references for source in recordings.sources):
            continue
        try:
            recordings.read(item)
            rate = audio.info(item.mixture).rate
            if rates and rate != rates[0]:
                raise ValueError(f"{item.mixture} has {rate} Hz, others have {rates[0]} Hz; resample it.")
        except ITEM_ERRORS as error:
            outcome.failed[item.name] = str(error) or type(error).__name__
            continue
        outcome.done.append(item.name)
        usable.append(item)
        rates.append(rate)
    if len({item.group for item in usable}) < 2:
        reason = next(iter(outcome.failed.values()), "one group is for training, another one for validation")
        raise ValueError(f"a network needs at least two groups of mixtures with references of all sources: {reason}")
    return usable, rates[0], outcome


def _fitted(recordings: _Recordings, config: FeatureConfig, records: Records, progress: bool) -> FeaturePipeline:
    """The pipeline fitted to recordings, kept."""

    def compute() -> Arrays:
        with warnings.catch_warnings():
            # The share that is kept is in the report; there is no option to raise it.
            warnings.filterwarnings("ignore", message=".*raise num_components")
            arrays, about = fit_features(_Inputs(recordings), config, progress=progress).parts()
        known = {name: array for name, array in arrays.items() if array is not None}
        return known | {"about": np.array(json.dumps(about))}

    kept = records.get("pipeline", recordings.files(), compute)
    return FeaturePipeline.from_parts(kept, json.loads(str(kept["about"])))


def _training_set(recordings: _Recordings, pipeline: FeaturePipeline, records: Records) -> TrainingSet:
    """Features and scalar products of one recording, kept."""
    transform = STFT(pipeline.config.transform.window, pipeline.config.transform.hop)

    def compute() -> Arrays:
        found = TrainingSet.build(pipeline, ((r.inputs, recording_gram(r, transform)) for r in recordings))
        return {"features": found.features, "recording": found.recording} | vars(found.gram)

    kept = records.get(f"features/{recordings.items[0].name}", recordings.files(), compute)
    return TrainingSet(kept["features"], Gram(kept["energy"], kept["cross"], kept["gram"]), kept["recording"])

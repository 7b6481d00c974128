"""Network fusion of a folder: training on its mixtures with true sources, and weights for the examples of others."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bayesfuse import audio
from bayesfuse._jobs import ITEM_ERRORS
from bayesfuse.examples import BLOCK, Example, Reading, open_example
from bayesfuse.features import FeatureConfig, Inputs
from bayesfuse.folder_rules import Weights, check_references
from bayesfuse.fusing import Outcome
from bayesfuse.network_rule import Block, NetworkRule, Recording, learn_network
from bayesfuse.neural import NetworkConfig
from bayesfuse.separators.folder import Folder, Item, PathLike
from bayesfuse.transforms import QERB

# One in so many groups of mixtures is for validation.
_VALIDATION = 5
_BANDS = 32


@dataclass(frozen=True)
class NetworkWeights:
    """Weights per frame by a network that sees the mixture and the estimates of all its sources.

    Attributes
    ----------
    rule
        The network.
    origin
        What tells it from others, JSON-ready.
    """

    rule: NetworkRule
    origin: dict[str, Any]

    @staticmethod
    def load(path: PathLike) -> "NetworkWeights":
        """The network of a weights file."""
        rule = NetworkRule.load(path)
        return NetworkWeights(rule, {"weights": hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]})

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of training that such weights are from."""
        return ("network",)

    def describe(self) -> dict[str, Any]:
        """What determines the result, JSON-ready."""
        return {"method": "network", **self.origin}

    def check(self, folder: Folder) -> None:
        """Raises a ValueError if the network is for other sources or separators."""
        if folder.sources != tuple(sorted(self.rule.sources)):
            raise ValueError(
                f"the network is for the sources {', '.join(self.rule.sources)}, but the folder has "
                f"{', '.join(folder.sources)}; train one for these, or leave out estimates."
            )
        for source, there in folder.separators_of.items():
            if sorted(there) != sorted(self.rule.separators):
                raise ValueError(
                    f"the network was trained with the separators {', '.join(self.rule.separators)}, but the "
                    f"folder has {', '.join(there)} for {source}: give estimates of the former, or train a network "
                    "with the latter."
                )

    def separators(self, source: str) -> tuple[str, ...] | None:
        """The models that the network is for, in order."""
        return self.rule.separators

    def weights(self, example: Example) -> Weights:
        """Weights per frame for all channels; a ValueError at another sampling rate."""
        if example.header.rate != self.rule.rate:
            raise ValueError(
                f"{example.item.name} has {example.header.rate} Hz, but the network was trained at "
                f"{self.rule.rate} Hz; resample mixture and estimates."
            )
        examples = [
            open_example(example.item, source, example.separators, example.reading) for source in self.rule.sources
        ]
        found = self.rule.weights_of_blocks(_blocks(examples), _level(example))
        return [found[self.rule.sources.index(example.source)]], self.rule.transform


def _blocks(examples: Sequence[Example]) -> Iterator[Block]:
    """Mixture and estimates [model, source, channel, sample] in consecutive blocks."""
    start = 0
    for parts in zip(*(example.blocks() for example in examples), strict=True):
        estimates = np.stack(parts, axis=1)
        stop = start + estimates.shape[-1]
        yield examples[0].mixture.read(start, stop), estimates
        start = stop


def _level(example: Example) -> float:
    """Mean square of the mixture, 1 for a silent one."""
    blocks = audio.blocks(example.mixture.path, BLOCK)
    total = sum(float(np.square(block, dtype=np.float64).sum()) for _, block in blocks)
    return total / (example.header.channels * example.header.samples) or 1.0


class _Recordings:
    """Training recordings that are read from files each time they are gone through."""

    def __init__(self, items: Sequence[Item], sources: Sequence[str], separators: tuple[str, ...], reading: Reading):
        self._items, self._sources, self._separators, self._reading = items, sources, separators, reading

    def __iter__(self) -> Iterator[Recording]:
        return map(self.read, self._items)

    def read(self, item: Item) -> Recording:
        """The recording of one mixture."""
        examples = [open_example(item, s, self._separators, self._reading.of(item)) for s in self._sources]
        length = examples[0].header.samples
        estimates = np.stack([np.stack([t.read(0, length) for t in e.estimates]) for e in examples], axis=1)
        references = np.stack([example.true_source().read(0, length) for example in examples])
        return Recording(Inputs(examples[0].mixture.read(0, length), estimates), references)


def train_network(
    folder: Folder,
    *,
    reading: Reading | None = None,
    window: int = 1024,
    config: NetworkConfig | None = None,
    seed: int = 0,
    keep: Path | None = None,
    progress: bool = False,
) -> tuple[NetworkRule, float, Outcome]:
    """A network trained on all mixtures whose true sources are known; one in five groups is for validation.

    It sees 32 log bands on the ERB scale, with two frames before and after, relative to the level of the mixture. For
    other features use `network_rule.learn_network`.

    Parameters
    ----------
    folder
        Mixtures, estimates, references. All sources must have the same separators.
    reading
        How the files are read.
    window
        Length of a frame in samples.
    config
        Architecture and training.
    seed
        Of all random numbers.
    keep
        Folder for checkpoints, from which a training that was killed goes on.
    progress
        Whether to show bars.

    Returns
    -------
    tuple
        The network, its mean SDR in dB on the mixtures for validation, and what became of every mixture.

    Raises
    ------
    ValueError
        If there are no references, the separators differ between sources, or fewer than two groups can be used.
    """
    check_references(folder, "network")
    mine = Reading() if reading is None else reading
    sources = folder.sources
    separators = folder.separators_of[sources[0]]
    if any(folder.separators_of[source] != separators for source in sources):
        raise ValueError("a network needs the same separators for all sources: leave out those that differ.")
    outcome = Outcome()
    usable: dict[str, list[Item]] = {}
    rates: dict[int, str] = {}
    for item in folder.items:
        if not all(source in item.references for source in sources):
            continue
        try:
            _Recordings([item], sources, separators, mine).read(item)
            rate = audio.info(item.mixture).rate
            if rates and rate not in rates:
                raise ValueError(f"{item.mixture} has {rate} Hz, others have {next(iter(rates))} Hz; resample it.")
            rates[rate] = item.name
        except ITEM_ERRORS as error:
            outcome.failed[item.name] = str(error) or type(error).__name__
            continue
        outcome.done.append(item.name)
        usable.setdefault(item.group, []).append(item)
    if len(usable) < 2:
        reason = next(iter(outcome.failed.values()), "one group is for training, another one for validation")
        raise ValueError(f"a network needs at least two groups of mixtures with references of all sources: {reason}")
    groups = [usable[group] for group in np.random.default_rng(seed).permutation(sorted(usable))]
    held = max(len(groups) // _VALIDATION, 1)
    validation, training = ([item for group in part for item in group] for part in (groups[:held], groups[held:]))
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    rate = next(iter(rates))
    rule, trained = learn_network(
        jax.random.key(seed),
        _Recordings(training, sources, separators, mine),
        _Recordings(validation, sources, separators, mine),
        rate,
        separators=separators,
        sources=sources,
        features=FeatureConfig(QERB(rate, _BANDS, window), compression="log", level="recording", num_components=None),
        config=NetworkConfig() if config is None else config,
        checkpoint=None if keep is None else keep / "network.nc",
        progress=progress,
    )
    return rule, trained.score, outcome

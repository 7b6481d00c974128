"""Weights per frame by a trained network, for the examples of a folder."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from bayesfuse import audio
from bayesfuse.examples import BLOCK, Example, open_example
from bayesfuse.folder_rules import Weights, energies
from bayesfuse.network_rule import Block, NetworkRule
from bayesfuse.separators.folder import Folder, PathLike
from bayesfuse.transforms import STFT


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

    @property
    def time_varying(self) -> bool:
        """True: there are weights of their own for every frame."""
        return True

    @property
    def informed(self) -> bool:
        """False: true sources are needed for learning only."""
        return False

    def describe(self) -> dict[str, Any]:
        """What determines the result, JSON-ready."""
        return {"method": "network", **self.origin}

    def check(self, folder: Folder) -> None:
        """Raises a ValueError if the network is for other sources or separators, or free energies are missing."""
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
        if self._by_energy:
            check_energies(folder)

    def separators(self, source: str) -> tuple[str, ...] | None:
        """The models that the network is for, in order."""
        return self.rule.separators

    def weights(self, example: Example) -> Weights:
        """Weights per frame for all channels; a ValueError at another rate or without the free energies it needs."""
        if example.header.rate != self.rule.rate:
            raise ValueError(
                f"{example.item.name} has {example.header.rate} Hz, but the network was trained at "
                f"{self.rule.rate} Hz; resample mixture and estimates."
            )
        examples = [
            open_example(example.item, source, example.separators, example.reading) for source in self.rule.sources
        ]
        known = frame_energies(example, self.rule.transform) if self._by_energy else None
        found = self.rule.weights_of_blocks(_blocks(examples), _level(example), known)
        return [found[self.rule.sources.index(example.source)]], self.rule.transform

    @property
    def _by_energy(self) -> bool:
        return self.rule.pipeline.config.free_energy


def check_energies(folder: Folder) -> None:
    """Raises a ValueError if no separator of the folder has a free energy."""
    if not any(item.free_energies for item in folder.items):
        raise ValueError(
            "the network is to see free energies, but there is no free_energy.nc beside any estimate: only models of "
            "the mixture have one, such as our VB-NMF; train one without --free-energies."
        )


def frame_energies(example: Example, framing: STFT) -> Float[np.ndarray, "model frame"]:
    """Free energies per frame in nats, of the frames of the network.

    Raises
    ------
    ValueError
        If a separator has none, or they are of other frames.
    """
    values, frames = energies(example, time_varying=True)
    if frames is None or (frames.window, frames.hop) != (framing.window, framing.hop):
        came = "" if frames is None else f" {frames.window} samples every {frames.hop}"
        raise ValueError(
            f"{example.item.name}: the free energies are of frames of{came}, but the network is for frames of "
            f"{framing.window} samples every {framing.hop}; train one with the --window of the separators, or without "
            "--free-energies."
        )
    return values


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

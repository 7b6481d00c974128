"""Learned weights for the examples of a folder: rules by source, out of a weights file."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bayesfuse.examples import Example
from bayesfuse.folder_rules import Weights, check_free_energies, energies
from bayesfuse.rules import Rule, VBRule, load_rules
from bayesfuse.separators.folder import Folder, PathLike


@dataclass(frozen=True)
class Learned:
    """Constant weights or weights by free energy, one rule per source.

    Attributes
    ----------
    rules
        By the name of the source, or by `channel_key` where every channel has its own.
    origin
        What tells these rules from others, JSON-ready.
    """

    rules: Mapping[str, Rule]
    origin: Mapping[str, Any]

    @staticmethod
    def load(path: PathLike) -> "Learned":
        """The rules of a weights file."""
        rules = load_rules(path)
        return Learned(rules, {"weights": hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]})

    @staticmethod
    def untrained(folder: Folder, beta: float, time_varying: bool) -> "Learned":
        """Weights by free energy at a given temperature in nats per frame and a uniform prior, for every source."""
        axes = ("model", "frame") if time_varying else ("model",)
        rules = {
            source: VBRule(np.zeros(len(names)), beta, axes=axes, separators=names, source=source)
            for source, names in folder.separators_of.items()
        }
        return Learned(rules, {"beta": beta, "time_varying": time_varying})

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of `training` that such rules may be from."""
        by_energy = any(isinstance(rule, VBRule) for rule in self.rules.values())
        return ("vb",) if by_energy else ("static-mse", "static-sdr", "select")

    @property
    def time_varying(self) -> bool:
        """Whether there are weights of their own for every frame."""
        return any("frame" in getattr(rule, "axes", ()) for rule in self.rules.values())

    @property
    def informed(self) -> bool:
        """False: true sources are needed for learning only."""
        return False

    def describe(self) -> dict[str, Any]:
        """What determines the result, JSON-ready."""
        return {"method": "learned", **self.origin}

    def check(self, folder: Folder) -> None:
        """Raises a ValueError if the rules are for other sources or separators, or free energies are missing."""
        for source, there in folder.separators_of.items():
            wanted = self._of(source)[0].separators
            if sorted(wanted) != sorted(there):
                missing = ", ".join(name for name in wanted if name not in there) or "none"
                unknown = ", ".join(name for name in there if name not in wanted) or "none"
                raise ValueError(
                    f"the weights of {source} were learned for the separators {', '.join(wanted)}, but the folder has "
                    f"{', '.join(there)} (missing: {missing}; unknown to the weights: {unknown}): give estimates of "
                    "the former, or train weights on the latter."
                )
        if any(isinstance(rule, VBRule) for rule in self.rules.values()):
            check_free_energies(folder, "vb")

    def separators(self, source: str) -> tuple[str, ...] | None:
        """The models that the rule of a source is for."""
        return self._of(source)[0].separators

    def weights(self, example: Example) -> Weights:
        """Weights by the rule of the source, for all channels or each."""
        rules = self._of(example.source)
        if len(rules) not in (1, example.header.channels):
            raise ValueError(
                f"{example.item.name} has {example.header.channels} channels, but the weights were learned for each of "
                f"{len(rules)}; train without --per-channel."
            )
        if not isinstance(rules[0], VBRule):
            return [rule.weights() for rule in rules if not isinstance(rule, VBRule)], None
        time_varying = "frame" in rules[0].axes
        values, transform = energies(example, time_varying)
        count = None if time_varying else example.num_frames()
        return [rule.weights(values, num_frames=count) for rule in rules if isinstance(rule, VBRule)], transform

    def _of(self, source: str) -> list[Rule]:
        """The rules of a source: one, or one per channel."""
        if source in self.rules:
            return [self.rules[source]]
        found = []
        while channel_key(source, len(found)) in self.rules:
            found.append(self.rules[channel_key(source, len(found))])
        if not found:
            raise ValueError(
                f"the weights are for {', '.join(sorted(self.rules))}, and not for {source}: train weights of it, or "
                "leave its estimates out."
            )
        return found


def channel_key(source: str, channel: int) -> str:
    """Name of the rule of one channel of a source."""
    return f"{source}, channel {channel}"

"""The fusion rules that need no training, for examples of a folder: mean, selection by free energy, oracles."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from bayesfuse import fusion
from bayesfuse.examples import Example
from bayesfuse.separators.folder import Folder
from bayesfuse.transforms import STFT

# Weights of all channels (one entry) or of each, and the transform of their frames if they are per frame.
Weights = tuple[list[Float[np.ndarray, "model *frame"]], STFT | None]


@dataclass(frozen=True)
class Mean:
    """The plain mean of all separators."""

    @property
    def informed(self) -> bool:
        """False: all separators count alike."""
        return False

    def describe(self) -> dict[str, Any]:
        """What determines the result, JSON-ready."""
        return {"method": "mean"}

    def check(self, folder: Folder) -> None:
        """Any folder will do."""

    def separators(self, source: str) -> tuple[str, ...] | None:
        """None: for any separators."""
        return None

    def weights(self, example: Example) -> Weights:
        """1 / M for every model."""
        return [fusion.mean_weights(len(example.estimates))], None


@dataclass(frozen=True)
class Select:
    """The separator with the largest free energy, of the recording or of each frame (VB selection).

    Attributes
    ----------
    time_varying
        Whether to select in each frame.
    """

    time_varying: bool = False

    @property
    def informed(self) -> bool:
        """False: free energies decide."""
        return False

    def describe(self) -> dict[str, Any]:
        """What determines the result, JSON-ready."""
        return {"method": "select", "time_varying": self.time_varying}

    def check(self, folder: Folder) -> None:
        """Raises a ValueError if the folder holds no free energy."""
        check_free_energies(folder, "select")

    def separators(self, source: str) -> tuple[str, ...] | None:
        """None: for any separators."""
        return None

    def weights(self, example: Example) -> Weights:
        """The indicator of the best model; a ValueError if there are no free energies."""
        values, transform = energies(example, self.time_varying)
        return [np.asarray(fusion.select_weights(values, axis=0))], transform


@dataclass(frozen=True)
class Oracle:
    """The best weights there are, from the true source: a bound, not a method.

    Attributes
    ----------
    time_varying
        Whether weights are per frame.
    per_channel
        Whether every channel has weights of its own.
    transform
        The frames.
    """

    time_varying: bool = False
    per_channel: bool = False
    transform: STFT = STFT()  # noqa: RUF009 (immutable)

    @property
    def informed(self) -> bool:
        """True: the weights come from the references."""
        return True

    def describe(self) -> dict[str, Any]:
        """What determines the result, JSON-ready."""
        settings = {"method": "oracle", "time_varying": self.time_varying, "per_channel": self.per_channel}
        return settings | ({"transform": self.transform.to_dict()} if self.time_varying else {})

    def check(self, folder: Folder) -> None:
        """Raises a ValueError if the folder holds no true source."""
        check_references(folder, "oracle")

    def separators(self, source: str) -> tuple[str, ...] | None:
        """None: for any separators."""
        return None

    def weights(self, example: Example) -> Weights:
        """The minimiser of the squared error; a ValueError if the true source is not known."""
        from bayesfuse.simplex_qp import oracle_weights

        transform = self.transform if self.time_varying else None
        grams = channel_grams(example, self.per_channel, transform)
        # [*frame, model] of the oracle is [model, *frame] to `fuse`.
        return [np.moveaxis(np.asarray(oracle_weights(g)), -1, 0) for g in grams], transform


def check_free_energies(folder: Folder, method: str) -> None:
    """Raises a ValueError if no separator of the folder has a free energy."""
    if not any(item.free_energies for item in folder.items):
        raise ValueError(
            f"method {method} weighs separators by their free energies, but there is no free_energy.nc beside any "
            "estimate: only models of the mixture have one, such as our VB-NMF, whose results write it by "
            "`Result.write_estimates(folder, name)`. Without them, learn weights by `bayesfuse train` with the method "
            "static-sdr, select or network."
        )


def check_references(folder: Folder, method: str) -> None:
    """Raises a ValueError if the folder holds no true source."""
    if not any(item.references for item in folder.items):
        raise ValueError(
            f"{method} needs true sources, but no mixture has one: give --references, the folder that holds "
            "NAME/SOURCE.wav with the names of the mixtures."
        )


def channel_grams(example: Example, per_channel: bool, transform: STFT | None = None) -> list[fusion.Gram]:
    """Gram of each channel, or one of all; over the recording, or per frame of the transform, in bounded memory."""
    g = fusion.gram_of_blocks(example.pairs(), transform=transform)
    return [g.take(c) for c in range(g.energy.shape[0])] if per_channel else [g.sum(0)]


def energies(example: Example, time_varying: bool) -> tuple[Float[np.ndarray, "model *frame"], STFT | None]:
    """Free energies in nats, totals or per frame, and in the latter case the STFT of the frames.

    Raises
    ------
    ValueError
        If a separator has none, or they are not those of a recording of this length.
    """
    parts, transform = example.free_energies()
    frames = transform.num_frames(example.header.samples)
    for separator, energy in zip(example.separators, parts, strict=True):
        if energy.frames.shape[0] != frames:
            raise ValueError(
                f"{example.item.name}: the free energy of {separator} has {energy.frames.shape[0]} frames, but the "
                f"mixture has {frames}; separate it again."
            )
    if time_varying:
        # The frames of any transform are those of an STFT, whose analysis and synthesis fusion needs.
        return np.stack([energy.per_frame() for energy in parts]), STFT(transform.window, transform.hop)
    return np.array([energy.total for energy in parts]), None

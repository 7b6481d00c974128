"""One source of one mixture as several separators estimate it, read from a folder block by block."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from bayesfuse import audio
from bayesfuse.sanity import SanityReport
from bayesfuse.separators.folder import Item
from bayesfuse.separators.free_energy_file import load_free_energy
from bayesfuse.tracks import Track, open_track
from bayesfuse.transforms import Transform
from bayesfuse.vbnmf import FreeEnergy

# Samples per channel of all signals that are in memory at a time: 1 MiB each.
BLOCK = 1 << 18


@dataclass(frozen=True)
class Reading:
    """How the files of a folder are read.

    Attributes
    ----------
    adapt
        Whether files of another rate, channel count or length than their mixture's are adapted to it, and the
        corrections applied. Otherwise a file that differs is an error.
    corrections
        Lag in samples and gain by separator, name and source; 0 and 1 where there is none.
    """

    adapt: bool = False
    corrections: Mapping[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)

    @staticmethod
    def aligned(report: SanityReport) -> "Reading":
        """The reading that repairs what a report complains of."""
        return Reading(adapt=True, corrections=report.corrections)

    def of(self, item: Item) -> "Reading":
        """The part about one mixture."""
        mine = {key: value for key, value in self.corrections.items() if key[1] == item.name}
        return replace(self, corrections=mine)

    def describe(self) -> dict[str, Any]:
        """What determines the signals that are read, JSON-ready."""
        return {"align": self.adapt, "corrections": sorted([*key, *value] for key, value in self.corrections.items())}


@dataclass(frozen=True)
class Example:
    """The files of one source of one mixture, opened and found to fit together. Made by `open_example`.

    Attributes
    ----------
    item, source, separators
        Which mixture, source and models.
    mixture, estimates, reference
        Tracks; the true source is None where it is not known.
    reading
        How they were opened.
    """

    item: Item
    source: str
    separators: tuple[str, ...]
    mixture: Track
    estimates: tuple[Track, ...]
    reference: Track | None
    reading: Reading

    @property
    def header(self) -> audio.AudioInfo:
        """Rate, channels and length."""
        return self.mixture.own

    def num_frames(self) -> int:
        """Number of frames that the free energies are totals over."""
        return self.free_energies()[1].num_frames(self.header.samples)

    def blocks(self) -> Iterator[Float[np.ndarray, "model channel sample"]]:
        """All estimates in consecutive blocks."""
        for start in range(0, self.header.samples, BLOCK):
            stop = min(start + BLOCK, self.header.samples)
            yield np.stack([track.read(start, stop) for track in self.estimates])

    def pairs(
        self,
    ) -> Iterator[tuple[Float[np.ndarray, "channel sample"], Float[np.ndarray, "model channel sample"]]]:
        """The true source and its estimates in consecutive blocks; a ValueError if the former is not known."""
        reference = self.true_source()
        start = 0
        for estimates in self.blocks():
            stop = start + estimates.shape[-1]
            yield reference.read(start, stop), estimates
            start = stop

    def true_source(self) -> Track:
        """The track of the true source; a ValueError if it is not known."""
        if self.reference is None:
            raise ValueError(f"{self.item.name} has no reference of {self.source}")
        return self.reference

    def free_energies(self) -> tuple[list[FreeEnergy], Transform]:
        """Free energy of every model, and the transform of their frames.

        Raises
        ------
        ValueError
            If a separator has none, or they belong to different transforms.
        """
        files = [self.item.free_energies.get(separator) for separator in self.separators]
        without = [separator for separator, file in zip(self.separators, files, strict=True) if file is None]
        if without:
            raise ValueError(
                f"{self.item.name}: no free energy of {', '.join(without)}; weights by free energy need "
                "free_energy.nc beside the estimates of every separator."
            )
        energies, transforms = zip(*(load_free_energy(file) for file in files if file is not None), strict=True)
        if len({transform.name for transform in transforms}) > 1:
            raise ValueError(
                f"{self.item.name}: the free energies belong to different transforms, "
                f"{', '.join(sorted({t.name for t in transforms}))}; separate again with one of them."
            )
        return list(energies), transforms[0]


def open_example(item: Item, source: str, separators: tuple[str, ...], reading: Reading) -> Example:
    """The example of a source of a mixture, with headers read and compared.

    Parameters
    ----------
    item, source
        Which.
    separators
        Models, in order.
    reading
        How to read their files.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If one cannot be decoded, or does not fit the mixture.
    """
    like = audio.info(item.mixture)
    if like.samples == 0:
        raise ValueError(f"{item.mixture} holds no samples.")
    estimates = []
    for separator in separators:
        path = _existing(item.estimate(separator, source))
        lag, gain = reading.corrections.get((separator, item.name, source), (0.0, 1.0))
        estimates.append(open_track(path, like, adapt=reading.adapt, lag=lag, gain=gain))
    true = item.references.get(source)
    reference = None if true is None else open_track(_existing(true), like, adapt=reading.adapt)
    return Example(
        item, source, separators, open_track(item.mixture, like, adapt=False), tuple(estimates), reference, reading
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path

"""Training examples of the fusion networks: frames with their features and scalar products."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int

from bayesfuse import _arrays
from bayesfuse._module import Module
from bayesfuse.features import FeaturePipeline, Inputs
from bayesfuse.fusion import Gram

_KIND = "bayesfuse training set"


class TrainingSet(Module):
    """Frames of a corpus: reduced features, and scalar products that say what weights are worth there.

    Attributes
    ----------
    features
        [frame, feature], float32.
    gram
        Over [frame, source, band], with one source or band if there is but one.
    recording
        Index of the recording of each frame, from 0, none left out, not decreasing.

    Raises
    ------
    ValueError
        If the numbers of frames differ, values are NaN or infinite, or recordings are out of order.
    """

    features: Float[np.ndarray, "frame feature"]
    gram: Gram
    recording: Int[np.ndarray, " frame"]

    def __check_init__(self) -> None:
        frames = self.features.shape[0]
        if frames == 0 or self.gram.energy.ndim != 3 or {len(self.gram.energy), len(self.recording)} != {frames}:
            raise ValueError(
                f"TrainingSet got features [frame, feature] {self.features.shape}, a Gram over "
                f"{self.gram.energy.shape} and {self.recording.shape} recordings; the Gram must be over [frame, "
                "source, band], and all of the same frames, at least one."
            )
        if not (set(np.diff(self.recording)) <= {0, 1} and self.recording[0] == 0):
            raise ValueError("TrainingSet got recordings out of order; they are numbered from 0, frame after frame.")
        for name, array in (("features", self.features), ("energy", self.gram.energy), ("gram", self.gram.gram)):
            if not np.isfinite(array).all():
                raise ValueError(f"TrainingSet got {name} with NaN or infinite values; leave out the recording.")

    @property
    def num_recordings(self) -> int:
        """Number of recordings."""
        return int(self.recording[-1]) + 1

    @property
    def heads(self) -> tuple[int, int, int]:
        """Numbers of sources, bands and models."""
        return self.gram.cross.shape[1], self.gram.cross.shape[2], self.gram.cross.shape[3]

    @classmethod
    def build(cls, pipeline: FeaturePipeline, examples: Iterable[tuple[Inputs, Gram]]) -> "TrainingSet":
        """The frames of recordings that are read one after the other; only reduced features are kept.

        Parameters
        ----------
        pipeline
            From recordings to features.
        examples
            Each recording with its Gram over [source, frame] or [source, frame, band], on the frames of the features'
            transform; channels are summed already.

        Raises
        ------
        ValueError
            If a Gram is not over the frames of its features, or there are no examples.
        """
        sets = []
        for inputs, g in examples:
            features = pipeline(inputs)
            if g.energy.ndim not in (2, 3) or g.energy.shape[1] != len(features):
                raise ValueError(
                    f"recording {len(sets)} has {len(features)} frames of features and a Gram over {g.energy.shape}; "
                    "it must be over [source, frame] or [source, frame, band]. Compute it with the features' transform."
                )
            banded = g if g.energy.ndim == 3 else jax.tree.map(lambda field: np.expand_dims(field, 2), g)
            frames_first = jax.tree.map(lambda field: np.moveaxis(np.asarray(field), 1, 0), banded)
            sets.append(cls(features, frames_first, np.zeros(len(features), int)))
        return cls.concatenate(sets)

    @classmethod
    def concatenate(cls, sets: "Sequence[TrainingSet]") -> "TrainingSet":
        """The recordings of several sets, one after the other.

        Raises
        ------
        ValueError
            If there is none.
        """
        if not sets:
            raise ValueError("TrainingSet got no examples; give at least one recording.")
        first = np.cumsum([0, *(part.num_recordings for part in sets)])
        recording = [part.recording + start for part, start in zip(sets, first, strict=False)]
        g = Gram.concatenate([part.gram for part in sets])
        return cls(np.concatenate([part.features for part in sets]), g, np.concatenate(recording))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the frames to one netCDF file, whole or not at all, so that features are computed once."""
        arrays = {"features": self.features, "recording": self.recording}
        _arrays.write(Path(path), _KIND, {"frames": arrays | vars(self.gram)}, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TrainingSet":
        """The frames in a file of `save`; raises FileNotFoundError or ValueError if there is none."""
        frames = _arrays.read(Path(path), _KIND)[0]["frames"]
        g = Gram(frames["energy"], frames["cross"], frames["gram"])
        return cls(frames["features"], g, frames["recording"])


def check_alike(caller: str, examples: TrainingSet, validation: TrainingSet) -> None:
    """Raise unless both sets are of the same features, sources, bands and models."""
    if examples.heads != validation.heads or examples.features.shape[1] != validation.features.shape[1]:
        raise ValueError(
            f"{caller} got examples with {examples.features.shape[1]} features and (source, band, model) = "
            f"{examples.heads}, but a validation set with {validation.features.shape[1]} and {validation.heads}; both "
            "must be of the same."
        )

"""An audio file read as if it had the sampling rate, channels, length and position of another one."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from bayesfuse import audio
from bayesfuse.alignment import padded, shifted

# Input samples on either side that the filter of `audio.resample` looks at, per unit of the ratio of the rates.
_MARGIN = 12


@dataclass(frozen=True)
class Track:
    """A file heard in the frame of its mixture: any stretch of it, in memory that only depends on the stretch.

    Attributes
    ----------
    path
        The file.
    own, like
        What its header says, and that of the mixture.
    lag, gain
        Its correction, as `alignment.Placement` has it.
    """

    path: Path
    own: audio.AudioInfo
    like: audio.AudioInfo
    lag: float = 0.0
    gain: float = 1.0

    def read(self, start: int, stop: int) -> Float[np.ndarray, "channel sample"]:
        """Samples [start, stop), counted at the mixture's rate, float32; zeros beyond the ends of the file.

        Raises
        ------
        ValueError
            If the file is damaged, holds NaN, or cannot be made to have the mixture's channels.
        """
        stretch = shifted(self._adapted, start, stop, self.lag)
        return stretch if self.gain == 1.0 else stretch * np.float32(self.gain)

    def _adapted(self, start: int, stop: int) -> Float[np.ndarray, "channel sample"]:
        if self.own.rate == self.like.rate:
            return self._channels(self._stored(start, stop))
        common = math.gcd(self.own.rate, self.like.rate)
        up, down = self.like.rate // common, self.own.rate // common
        # A stretch that begins at a multiple of `down` begins at one of `up` in the result.
        margin = _MARGIN * max(1, -(-down // up))
        first = ((start * down // up - margin) // down) * down
        last = -(-stop * down // up) + margin
        resampled = audio.resample(self._stored(first, last), self.own.rate, self.like.rate)
        offset = start - first // down * up
        return self._channels(resampled[:, offset : offset + stop - start])

    def _stored(self, start: int, stop: int) -> Float[np.ndarray, "channel sample"]:
        first, last = min(max(start, 0), self.own.samples), min(max(stop, 0), self.own.samples)
        if first == last:
            return np.zeros((self.own.channels, stop - start), np.float32)
        inside, _ = audio.read(self.path, start=first, stop=last)
        return padded(inside, start - first, stop - first)

    def _channels(self, samples: Float[np.ndarray, "own sample"]) -> Float[np.ndarray, "channel sample"]:
        if self.own.channels == self.like.channels:
            return samples
        if self.like.channels == 1:
            return audio.to_mono(samples)
        if self.own.channels == 1:
            return np.repeat(samples, self.like.channels, axis=0)
        raise ValueError(
            f"{self.path} has {self.own.channels} channels and its mixture {self.like.channels}: there is no one way "
            "to match them; convert the file."
        )


def differences(own: audio.AudioInfo, like: audio.AudioInfo) -> list[str]:
    """In what a file differs from its mixture: texts about rate, channels, and length."""
    found = []
    if own.rate != like.rate:
        found.append(f"{own.rate} Hz instead of {like.rate} Hz")
    if own.channels != like.channels:
        found.append(f"{own.channels} channel{'s' if own.channels > 1 else ''} instead of {like.channels}")
    length = -(-own.samples * like.rate // own.rate)
    if length != like.samples:
        found.append(f"{length} samples instead of {like.samples}")
    return found


def open_track(path: Path, like: audio.AudioInfo, *, adapt: bool, lag: float = 0.0, gain: float = 1.0) -> Track:
    """The track of a file beside its mixture.

    Parameters
    ----------
    path
        The file.
    like
        Header of the mixture.
    adapt
        Whether a file of another rate, channel count or length is resampled, mixed and padded or cut; otherwise it is
        an error.
    lag, gain
        Correction to apply.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be decoded, or differs from the mixture and is not to be adapted.
    """
    own = audio.info(path)
    other = differences(own, like)
    if other and not adapt:
        raise ValueError(f"{path} has {', '.join(other)}: it does not fit its mixture; --align adapts it.")
    if own.samples == 0:
        raise ValueError(f"{path} holds no samples.")
    return Track(path, own, like, lag, gain)

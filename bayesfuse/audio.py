"""Audio files and arrays: reading, writing, resampling, and the checks every audio argument passes.

Policy. Audio is [channel, sample], real, finite, float32 or float64, full scale at 1. Any number of channels
is kept: nothing is downmixed, resampled, rescaled or dithered unless asked for; `mono=True` and `to_mono`
average the channels. A one-dimensional array is one channel. Files are read as float32 (PCM of b bits divided
by 2^(b-1), exact up to 24 bits) and written as float32 WAV unless told otherwise, under a temporary name that
becomes the final one only when the file is complete.

WAV, FLAC and OGG are written; whatever else libsndfile decodes can be read.
"""

import math
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.signal
from jaxtyping import Array, Float, Shaped

from bayesfuse._audio_files import AUDIO_EXTENSIONS as AUDIO_EXTENSIONS
from bayesfuse._audio_files import PathLike, check_whole
from bayesfuse._audio_files import collect as collect

if TYPE_CHECKING:
    import soundfile

_FORMATS = {".flac": "FLAC", ".oga": "OGG", ".ogg": "OGG", ".wav": "WAV"}
_DEFAULT_SUBTYPES = {"FLAC": "PCM_24", "OGG": "VORBIS", "WAV": "FLOAT"}
_PCM_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_MAX_CHANNELS = 64
# One call with a long signal overflows the stack of libsndfile's Vorbis encoder.
_WRITE_SIZE = 1 << 16


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says.

    `rate` in Hz, `samples` per channel, `format` (container) and `subtype` (encoding) as
    libsndfile names them.
    """

    rate: int
    channels: int
    samples: int
    format: str
    subtype: str

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.samples / self.rate


def info(path: PathLike) -> AudioInfo:
    """Rate, channels, length and encoding of an audio file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is a folder or cannot be decoded.
    """
    with _open(path) as file:
        return AudioInfo(file.samplerate, file.channels, file.frames, file.format, file.subtype)


def read(
    path: PathLike,
    *,
    rate: int | None = None,
    mono: bool = False,
    start: int = 0,
    stop: int | None = None,
    dtype: Any = np.float32,
) -> tuple[Float[np.ndarray, "channel sample"], int]:
    """Audio [channel, sample] of a file and its sampling rate in Hz.

    Parameters
    ----------
    path
        The file.
    rate
        Sampling rate wanted, in Hz: audio of another rate is resampled. None keeps the file's.
    mono
        Average the channels into one.
    start, stop
        First sample read and the one after the last, counted at the file's rate; None is the end.
    dtype
        float32 or float64.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is a folder, cannot be decoded, ends early, holds NaN or infinite samples, or does not hold
        [start, stop).
    """
    if rate is not None:
        rate = check_rate(rate)
    with _open(path) as file:
        if file.frames == 0:
            raise ValueError(f"{os.fspath(path)} holds no samples; there is nothing to read.")
        end = file.frames if stop is None else stop
        if not 0 <= start < end <= file.frames:
            raise ValueError(
                f"{os.fspath(path)} holds {file.frames} samples per channel; the stretch [{start}, {end}) "
                "asked for is empty or not inside."
            )
        file.seek(start)
        audio = _read(file, path, end - start, dtype)
        file_rate = file.samplerate
    if mono:
        audio = to_mono(audio)
    if rate is None or rate == file_rate:
        return audio, file_rate
    return resample(audio, file_rate, rate), rate


def blocks(
    path: PathLike, size: int, overlap: int = 0, *, mono: bool = False, dtype: Any = np.float32
) -> Iterator[tuple[int, Float[np.ndarray, "channel sample"]]]:
    """Blocks of a file in order, each as (first sample, audio [channel, sample]), in bounded memory.

    A block begins `size - overlap` samples after the one before it; all have `size` samples but the last,
    which ends with the file. A file of up to `size` samples is one block. Arguments are checked at the call,
    not at the first block.

    Parameters
    ----------
    path
        The file.
    size
        Samples per channel in a block.
    overlap
        Samples that consecutive blocks share; less than `size`.
    mono
        Average the channels into one.
    dtype
        float32 or float64.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read`; ValueError also for a size or overlap out of range.
    """
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"got blocks of {size} samples overlapping by {overlap}; need 0 <= overlap < size.")
    total = info(path).samples
    if total == 0:
        raise ValueError(f"{os.fspath(path)} holds no samples.")

    def generate() -> Iterator[tuple[int, Float[np.ndarray, "channel sample"]]]:
        with _open(path) as file:
            shared: np.ndarray | None = None
            for first in range(0, max(total - overlap, 1), size - overlap):
                held = 0 if shared is None else overlap
                block = _read(file, path, min(first + size, total) - first - held, dtype)
                if mono:
                    block = to_mono(block)
                if shared is not None:
                    block = np.concatenate([shared, block], axis=-1)
                # Copied before the caller, who may write into it, has the block.
                shared = block[:, size - overlap :].copy()
                yield first, block

    return generate()


def write(path: PathLike, audio: Shaped[np.ndarray | Array, "..."], rate: int, *, subtype: str | None = None) -> None:
    """Write audio to a WAV, FLAC or OGG file, all or nothing.

    The file appears under its name only when complete, replacing one that exists. Samples are never rescaled;
    integer formats round to the nearest step and clip at full scale, with a warning.

    Parameters
    ----------
    path
        Where to; the extension selects the format. The folder must exist.
    audio
        [channel, sample] or [sample], float32 or float64.
    rate
        Sampling rate in Hz.
    subtype
        Encoding, as soundfile names it. Default: FLOAT for WAV, PCM_24 for FLAC, VORBIS for OGG.

    Raises
    ------
    FileNotFoundError, PermissionError
        If the folder does not exist or cannot be written.
    ValueError
        For audio that `check_audio` refuses, an unknown extension, or an encoding the format does not have.
    """
    target = Path(path)
    samples = check_audio(audio, rate, name=f"audio for {target}")
    write_blocks(target, [samples], rate, samples.shape[0], subtype=subtype)


def write_blocks(
    path: PathLike,
    signal: Iterable[Float[np.ndarray, "channel sample"]],
    rate: int,
    channels: int,
    *,
    subtype: str | None = None,
) -> None:
    """Write audio that comes in consecutive blocks to a file, in bounded memory and all or nothing, as `write` does.

    Parameters
    ----------
    path, rate, subtype
        As for `write`.
    signal
        Blocks [channel, sample] of any lengths, in order.
    channels
        Number of channels of every block.

    Raises
    ------
    FileNotFoundError, PermissionError, ValueError
        As `write`; ValueError also if there is no block. Whatever the iterable raises leaves no file.
    """
    import soundfile

    target = Path(path)
    rate = check_rate(rate)
    container = _FORMATS.get(target.suffix.lower())
    if container is None:
        raise ValueError(f"{target} has no known audio extension; use one of {', '.join(AUDIO_EXTENSIONS)}.")
    if target.is_dir():
        raise ValueError(f"{target} is a folder; give the name of a file.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} to write {target.name} into; create it first.")
    subtype = _DEFAULT_SUBTYPES[container] if subtype is None else subtype.upper()
    if not soundfile.check_format(container, subtype):
        options = ", ".join(sorted(soundfile.available_subtypes(container)))
        raise ValueError(f"{container} files cannot hold {subtype!r}; possible are {options}.")

    temporary = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    over, total, peak = 0, 0, 0.0
    try:
        temporary.open("xb").close()  # so that the system's own errors (no permission) come first
        with soundfile.SoundFile(temporary, "w", rate, channels, subtype=subtype, format=container) as file:
            for block in signal:
                samples = _checked_block(block, channels, target)
                if subtype in _PCM_BITS:
                    magnitude = np.abs(samples)
                    over += int(np.sum(magnitude > 1.0))
                    peak = max(peak, float(magnitude.max(initial=0.0)))
                total += samples.size
                for first in range(0, samples.shape[-1], _WRITE_SIZE):
                    file.write(_encoded(samples[:, first : first + _WRITE_SIZE].T, subtype))
        if total == 0:
            raise ValueError(f"audio for {target}: there is no block; at least one sample is needed.")
        os.replace(temporary, target)
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"cannot write {target} as {container} {subtype} with {channels} channels at {rate} Hz: "
            f"{error.error_string} A float32 WAV file takes any rate and channel count."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    if over:
        warnings.warn(
            f"{over} of {total} samples of {target} exceed full scale (peak {peak:.3g}) "
            "and are clipped; write a float32 WAV file to keep them, or scale the audio down.",
            stacklevel=3,
        )


def resample(
    audio: Float[np.ndarray, "*channel sample"], rate_in: int, rate_out: int
) -> Float[np.ndarray, "*channel resampled"]:
    """Audio at another sampling rate, by SciPy's polyphase filter; ceil(samples rate_out / rate_in) samples.

    Parameters
    ----------
    audio
        Samples on the last axis; the dtype is kept.
    rate_in, rate_out
        Rates in Hz.
    """
    rate_in, rate_out = check_rate(rate_in), check_rate(rate_out)
    if rate_in == rate_out:
        return audio.copy()
    common = math.gcd(rate_in, rate_out)
    resampled = scipy.signal.resample_poly(audio, rate_out // common, rate_in // common, axis=-1)
    return resampled.astype(audio.dtype, copy=False)


def to_mono(audio: Float[np.ndarray, "*channel sample"]) -> Float[np.ndarray, "1 sample"]:
    """The mean of the channels, [1, sample]; one channel, also without its axis, is that channel."""
    return np.atleast_2d(audio).mean(axis=0, keepdims=True)


def check_rate(rate: Any) -> int:
    """The sampling rate as a positive int.

    Raises
    ------
    ValueError
        If it is not a whole positive number of Hz.
    """
    whole = isinstance(rate, int | np.integer) or (isinstance(rate, float) and rate.is_integer())
    if isinstance(rate, bool) or not whole or rate < 1:
        raise ValueError(f"got a sampling rate of {rate!r}; expected a positive whole number of Hz.")
    return int(rate)


def check_audio(
    audio: Any, rate: Any = None, *, name: str = "audio", channels: int | None = None
) -> Float[np.ndarray, "channel sample"]:
    """The audio as a NumPy array [channel, sample] of its own dtype, found to obey the module's policy.

    No copy is made of a NumPy array: do not write into the result.

    Parameters
    ----------
    audio
        [channel, sample] or [sample] (one channel), float32 or float64, NumPy, JAX, or nested sequences.
    rate
        Its sampling rate, checked too unless None.
    name
        What the audio is, for the message.
    channels
        Number of channels required; None takes any.

    Raises
    ------
    ValueError
        For another rank, an empty array, integers, complex numbers, half precision, NaN or infinity, a wrong
        number of channels, or an array that looks like [sample, channel] (more than 64 channels, or more
        channels than samples).
    """
    if rate is not None:
        check_rate(rate)
    if isinstance(audio, str | os.PathLike):
        raise ValueError(f"{name}: got the path {os.fspath(audio)!r}, expected samples; read it with bayesfuse.read.")
    try:
        array = np.asarray(audio)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: cannot make an array of {type(audio).__name__} ({error}).") from error
    if array.dtype.kind in "iu":
        raise ValueError(
            f"{name}: got integers ({array.dtype}), expected float32 or float64 with full scale at 1; divide "
            "PCM samples by full scale first, as in audio.astype('float32') / 32768 for 16 bits."
        )
    if array.dtype not in (np.float32, np.float64):
        remedy = "take the real part" if array.dtype.kind == "c" else "convert it with .astype('float32')"
        raise ValueError(f"{name}: got dtype {array.dtype}, expected float32 or float64; {remedy}.")
    if array.ndim not in (1, 2):
        raise ValueError(f"{name}: got {array.ndim} axes, shape {array.shape}; expected [channel, sample] or [sample].")
    array = np.atleast_2d(array)
    if array.size == 0:
        raise ValueError(f"{name}: is empty, shape {array.shape}; at least one sample is needed.")
    count, length = array.shape
    if count > length or count > _MAX_CHANNELS:
        raise ValueError(
            f"{name}: shape {array.shape} reads as {count} channels of {length} samples, which looks "
            "transposed; axes are [channel, sample], so pass audio.T."
        )
    if channels is not None and count != channels:
        remedy = "average them with bayesfuse.audio.to_mono" if channels == 1 else "select or add channels"
        raise ValueError(f"{name}: got {count} channels, expected {channels}; {remedy}.")
    bad = ~np.isfinite(array)
    if bad.any():
        channel, sample = np.argwhere(bad)[0]
        raise ValueError(
            f"{name}: {bad.sum()} of {array.size} samples are NaN or infinite, the first at "
            f"[channel, sample] = [{channel}, {sample}]; repair or cut them out."
        )
    return array


@contextmanager
def _open(path: Any) -> "Iterator[soundfile.SoundFile]":
    import soundfile

    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"got {path!r}, a {type(path).__name__}; expected the path of an audio file.")
    name = os.fspath(path)
    if os.path.isdir(name):
        raise ValueError(f"{name} is a folder, not an audio file; `collect` lists the files in it.")
    with open(name, "rb") as raw:  # the system's own errors first: missing, not permitted
        check_whole(raw, name)
    try:
        with soundfile.SoundFile(name) as file:
            yield file
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name} cannot be decoded as audio: {error.error_string}") from error


def _read(file: "soundfile.SoundFile", path: PathLike, count: int, dtype: Any) -> Float[np.ndarray, "channel sample"]:
    kind = np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise ValueError(f"audio is read as float32 or float64, not {kind}.")
    audio = np.ascontiguousarray(file.read(count, dtype=kind.name, always_2d=True).T)
    name = os.fspath(path)
    if audio.shape[-1] != count:
        raise ValueError(
            f"{name} is damaged: {count - audio.shape[-1]} samples fewer than its header says can be "
            "decoded; copy it again."
        )
    if not np.isfinite(audio).all():
        raise ValueError(f"{name} holds NaN or infinite samples; repair it or cut them out.")
    return audio


def _checked_block(block: Any, channels: int, target: Path) -> Float[np.ndarray, "channel sample"]:
    """A block of audio; unlike a whole recording it may be shorter than it has channels."""
    if np.ndim(block) != 2 or block.shape[0] != channels or not np.isfinite(block).all():
        raise ValueError(
            f"audio for {target}: got a block of shape {np.shape(block)}; expected [channel, sample] with {channels} "
            "channels and no NaN or infinite samples."
        )
    return block


def _encoded(frames: Float[np.ndarray, "sample channel"], subtype: str) -> Shaped[np.ndarray, "sample channel"]:
    """Samples as libsndfile takes them without a change: it would truncate, not round, floats to PCM."""
    if subtype not in _PCM_BITS:
        return frames
    bits = _PCM_BITS[subtype]
    full = 2.0 ** (bits - 1)
    steps = np.clip(np.rint(frames.astype(np.float64) * full), -full, full - 1).astype(np.int32)
    return steps << (32 - bits)

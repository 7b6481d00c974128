"""Audio files: exact round trips, atomic writing, and the policy on channels, rates and bad input."""

import os
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io.wavfile
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesfuse import audio


def tones(channels: int = 2, samples: int = 3000, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """A different sum of sines in each channel, peak below 0.9."""
    t = np.arange(samples) / 16000
    waves = [0.5 * np.sin(2 * np.pi * 220 * (c + 1) * t) + 0.3 * np.cos(2 * np.pi * 700 * t) for c in range(channels)]
    return np.array(waves).astype(dtype)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("subtype", [None, "FLOAT", "DOUBLE"])
def test_float_files_are_exact(tmp_path: Path, channels: int, subtype: str | None) -> None:
    dtype = np.float64 if subtype == "DOUBLE" else np.float32
    x = 3.0 * tones(channels, dtype=dtype)  # beyond full scale, which float files keep
    x[0, :3] = [1e-30, -0.0, 1e8]
    audio.write(tmp_path / "x.wav", x, 16000, subtype=subtype)
    y, rate = audio.read(tmp_path / "x.wav", dtype=dtype)
    assert rate == 16000 and y.dtype == dtype
    np.testing.assert_array_equal(y, x)
    # An independent reader sees the same numbers.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.io.wavfile.WavFileWarning)  # it does not know the PEAK chunk
        rate, peer = scipy.io.wavfile.read(tmp_path / "x.wav")
    np.testing.assert_array_equal(peer.T if channels > 1 else peer[None], x)


@pytest.mark.parametrize(
    "extension, subtype",
    [
        (".wav", "PCM_16"),
        (".wav", "PCM_24"),
        (".wav", "PCM_32"),
        (".wav", "PCM_U8"),
        (".flac", "PCM_16"),
        (".flac", None),
    ],
)
def test_integer_files_round_to_the_nearest_step(tmp_path: Path, extension: str, subtype: str | None) -> None:
    bits = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "PCM_U8": 8, None: 24}[subtype]
    step = 2.0 ** (1 - bits)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1 + step, 1 - step, (2, 70000))  # longer than one block of the writer
    path = tmp_path / f"x{extension}"
    audio.write(path, x, 44100, subtype=subtype)
    y, _ = audio.read(path, dtype=np.float64)
    assert np.max(np.abs(y - x)) <= 0.5 * step
    assert abs(np.mean(y - x)) < 5 * step / np.sqrt(12 * x.size)  # no bias, which truncation would have
    # What has been quantised once is kept exactly, extremes included.
    y[:, 0] = [-1.0, 1.0 - step]
    audio.write(path, y, 44100, subtype=subtype)
    np.testing.assert_array_equal(audio.read(path, dtype=np.float64)[0], y)


def test_vorbis_is_close(tmp_path: Path) -> None:
    x = tones(2, 160000)
    audio.write(tmp_path / "x.ogg", x, 16000)
    y, rate = audio.read(tmp_path / "x.ogg")
    assert rate == 16000 and y.shape == x.shape
    snr = 10 * np.log10(np.sum(x**2, axis=1) / np.sum((x - y) ** 2, axis=1))
    assert np.all(snr > 20)
    assert audio.info(tmp_path / "x.ogg").subtype == "VORBIS"


def test_info(tmp_path: Path) -> None:
    audio.write(tmp_path / "x.flac", tones(3, 800), 8000, subtype="pcm_16")
    assert audio.info(tmp_path / "x.flac") == audio.AudioInfo(8000, 3, 800, "FLAC", "PCM_16")
    assert audio.info(tmp_path / "x.flac").duration == 0.1


def test_one_dimension_is_one_channel_and_jax_is_welcome(tmp_path: Path) -> None:
    x = tones(1)[0]
    audio.write(tmp_path / "x.wav", jnp.asarray(x), 16000)
    np.testing.assert_array_equal(audio.read(tmp_path / "x.wav")[0], x[None])


def test_read_a_stretch(tmp_path: Path) -> None:
    x = tones()
    for name in ("x.wav", "x.flac"):
        audio.write(tmp_path / name, x, 16000)
        y, _ = audio.read(tmp_path / name, start=100, stop=1234)
        assert np.max(np.abs(y - x[:, 100:1234])) < 2.0**-23
    for start, stop in ((-1, 5), (5, 5), (0, 3001), (3000, None)):
        with pytest.raises(ValueError, match="holds 3000 samples per channel"):
            audio.read(tmp_path / "x.wav", start=start, stop=stop)


def test_channels_and_rate_change_only_on_request(tmp_path: Path) -> None:
    x = tones(3, 4000)
    audio.write(tmp_path / "x.wav", x, 16000)
    assert audio.read(tmp_path / "x.wav")[0].shape == (3, 4000)
    mono, _ = audio.read(tmp_path / "x.wav", mono=True)
    np.testing.assert_allclose(mono, (x[:1] + x[1:2] + x[2:]) / 3, atol=1e-7)
    half, rate = audio.read(tmp_path / "x.wav", rate=8000)
    assert rate == 8000 and half.dtype == np.float32
    np.testing.assert_array_equal(half, audio.resample(x, 16000, 8000))
    np.testing.assert_array_equal(audio.read(tmp_path / "x.wav", rate=16000)[0], x)


@pytest.mark.parametrize("rate_in, rate_out", [(44100, 16000), (16000, 44100), (16000, 8000), (8000, 8000)])
def test_resampling_keeps_tones(rate_in: int, rate_out: int, dtype: type[np.floating]) -> None:
    samples = rate_in // 2
    x = np.stack([np.sin(2 * np.pi * 440 * np.arange(samples) / rate_in)] * 2).astype(dtype)
    before = x.copy()
    y = audio.resample(x, rate_in, rate_out)
    assert y.dtype == dtype and y.shape == (2, -(-samples * rate_out // rate_in))
    expected = np.sin(2 * np.pi * 440 * np.arange(y.shape[1]) / rate_out)
    # SciPy's default filter has a passband ripple of about 1e-3; its edges see zeros outside the signal.
    middle = slice(rate_out // 20, -rate_out // 20)
    assert np.max(np.abs(y[:, middle] - expected[middle])) < 2e-3
    np.testing.assert_array_equal(x, before)
    assert not np.shares_memory(x, y)


def test_mono_of_one_channel_is_that_channel() -> None:
    x = tones(1)
    np.testing.assert_array_equal(audio.to_mono(x), x)
    np.testing.assert_array_equal(audio.to_mono(x[0]), x)


@settings(max_examples=40)
@given(samples=st.integers(1, 300), size=st.integers(1, 120), data=st.data(), mono=st.booleans())
def test_blocks_cover_the_file(tmp_path: Path, samples: int, size: int, data: st.DataObject, mono: bool) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    x = np.random.default_rng(samples).standard_normal((1 if samples == 1 else 2, samples)).astype(np.float32)
    audio.write(tmp_path / "x.wav", x, 16000)
    expected = audio.to_mono(x) if mono else x
    covered = 0
    for index, (first, block) in enumerate(audio.blocks(tmp_path / "x.wav", size, overlap, mono=mono)):
        assert first == index * (size - overlap) <= covered
        np.testing.assert_array_equal(block, expected[:, first : first + size])
        assert first + block.shape[1] > covered  # every block brings something new
        covered = first + block.shape[1]
        block[:] = 0.0  # the caller's to write into
    assert covered == samples


def test_blocks_check_at_the_call(tmp_path: Path) -> None:
    audio.write(tmp_path / "x.wav", tones(), 16000)
    for size, overlap in ((0, 0), (10, 10), (10, -1)):
        with pytest.raises(ValueError, match="0 <= overlap < size"):
            audio.blocks(tmp_path / "x.wav", size, overlap)
    with pytest.raises(FileNotFoundError, match=r"missing\.wav"):
        audio.blocks(tmp_path / "missing.wav", 10)


def test_clipping_is_announced(tmp_path: Path) -> None:
    x = tones(1)
    x[0, 5] = 1.5
    with pytest.warns(UserWarning, match=r"1 of 3000 samples .*peak 1\.5"):
        audio.write(tmp_path / "x.wav", x, 16000, subtype="PCM_16")
    y, _ = audio.read(tmp_path / "x.wav")
    assert y[0, 5] == 1 - 2.0**-15 and abs(y[0, 6] - x[0, 6]) <= 2.0**-16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audio.write(tmp_path / "x.wav", x, 16000)
        x[0, 5] = 1.0  # full scale itself is one step away at most
        audio.write(tmp_path / "x.wav", x, 16000, subtype="PCM_16")


def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.wav"
    audio.write(path, tones(1), 16000)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"with 12 channels .* A float32 WAV file takes any"):
        audio.write(tmp_path / "x.flac", tones(12, 4000), 16000)  # FLAC has at most 8 channels
    calls = []

    def fail(frames: np.ndarray, subtype: str) -> np.ndarray:
        calls.append(sorted(p.name for p in tmp_path.iterdir()))
        raise OSError("no space left on device")

    monkeypatch.setattr(audio, "_encoded", fail)
    with pytest.raises(OSError, match="no space"):
        audio.write(path, tones(1, 100), 16000)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.wav"]
    # While it is written the file has a hidden name, which `collect` overlooks.
    assert len(calls[0]) == 2 and calls[0][0].startswith(".")


def test_where_files_cannot_be_written(tmp_path: Path) -> None:
    x = tones(1)
    with pytest.raises(FileNotFoundError, match="create it first"):
        audio.write(tmp_path / "nowhere" / "x.wav", x, 16000)
    with pytest.raises(ValueError, match="is a folder"):
        (tmp_path / "folder.wav").mkdir()
        audio.write(tmp_path / "folder.wav", x, 16000)
    with pytest.raises(ValueError, match=r"no known audio extension; use one of .*\.wav"):
        audio.write(tmp_path / "x.mp4", x, 16000)
    with pytest.raises(ValueError, match="FLAC files cannot hold 'FLOAT'; possible are PCM_16"):
        audio.write(tmp_path / "x.flac", x, 16000, subtype="float")
    with pytest.raises(ValueError, match=r"audio for .*x\.wav: got integers"):
        audio.write(tmp_path / "x.wav", np.zeros(5, np.int16), 16000)
    for rate in (0, -16000):
        with pytest.raises(ValueError, match="whole number of Hz"):
            audio.write(tmp_path / "x.wav", x, rate)
    if os.geteuid() != 0:  # permissions do not bind the superuser
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError):
            audio.write(tmp_path / "x.wav", x, 16000)
        tmp_path.chmod(0o700)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.wav"]


def test_missing_and_corrupt_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.wav"):
        audio.read(tmp_path / "missing.wav")
    with pytest.raises(ValueError, match="is a folder"):
        audio.read(tmp_path)
    (tmp_path / "text.wav").write_text("not audio at all")
    with pytest.raises(ValueError, match=r"text\.wav cannot be decoded"):
        audio.read(tmp_path / "text.wav")
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.wav holds no samples"):
        audio.info(tmp_path / "empty.wav")
    rng = np.random.default_rng(1)
    audio.write(tmp_path / "whole.flac", rng.uniform(-1, 1, 50000), 16000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "whole.flac").read_bytes()[:60000])
    with pytest.raises(ValueError, match=r"cut\.flac"):
        audio.read(tmp_path / "cut.flac")
    scipy.io.wavfile.write(tmp_path / "none.wav", 16000, np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="holds no samples"):
        audio.read(tmp_path / "none.wav")
    with pytest.raises(ValueError, match="holds no samples"):
        audio.blocks(tmp_path / "none.wav", 10)
    scipy.io.wavfile.write(tmp_path / "nan.wav", 16000, np.array([0.0, np.nan], np.float32))
    with pytest.raises(ValueError, match=r"nan\.wav holds NaN"):
        audio.read(tmp_path / "nan.wav")
    with pytest.raises(ValueError, match="float32 or float64, not int16"):
        audio.read(tmp_path / "whole.flac", dtype=np.int16)


def test_check_audio_accepts(dtype: type[np.floating]) -> None:
    x = tones(2, dtype=dtype)
    assert audio.check_audio(x, 16000) is x
    y = audio.check_audio(x[0], 16000, channels=1)
    assert y.shape == (1, 3000) and y.dtype == dtype and np.shares_memory(y, x)
    assert audio.check_audio([0.0, 0.5]).tolist() == [[0.0, 0.5]]
    assert audio.check_audio(np.zeros(1)).shape == (1, 1)
    assert audio.check_audio(np.zeros((64, 64))).shape == (64, 64)


BAD = {
    "is empty": np.zeros((1, 0)),
    "got integers \\(int16\\).*32768": np.zeros(5, np.int16),
    "got dtype complex64.*real part": np.zeros(5, np.complex64),
    "got dtype float16.*astype": np.zeros(5, np.float16),
    "got dtype bool": np.zeros(5, bool),
    "got 3 axes": np.zeros((1, 1, 5)),
    "got 0 axes": np.array(1.0),
    "pass audio.T": np.zeros((5, 2)),
    "65 channels of 100 samples": np.zeros((65, 100)),
    r"1 of 10 samples are NaN or infinite, the first at \[channel, sample\] = \[1, 3\]": np.where(
        np.arange(10).reshape(2, 5) == 8, np.nan, 0.0
    ),
    "2 of 3 samples are NaN or infinite": np.array([np.inf, 0.0, -np.inf]),
    "cannot make an array": [[0.0], [0.0, 1.0]],
    "got the path": "file",
}


@pytest.mark.parametrize("message", BAD)
def test_check_audio_refuses(message: str) -> None:
    with pytest.raises(ValueError, match=f"^the mixture: .*{message}"):
        audio.check_audio(BAD[message], 16000, name="the mixture")


def test_check_audio_counts_channels() -> None:
    with pytest.raises(ValueError, match="got 2 channels, expected 1; average them"):
        audio.check_audio(tones(2), channels=1)
    with pytest.raises(ValueError, match="got 1 channels, expected 2; select or add"):
        audio.check_audio(tones(1), channels=2)


@pytest.mark.parametrize("rate", [0, -1, 0.5, 44100.5, float("nan"), float("inf"), "16000", None, True])
def test_rates_are_whole_and_positive(rate: object) -> None:
    with pytest.raises(ValueError, match="whole number of Hz"):
        audio.check_rate(rate)
    if rate is not None:
        with pytest.raises(ValueError, match="whole number of Hz"):
            audio.check_audio(tones(), rate)


def test_whole_rates_of_any_type() -> None:
    assert [audio.check_rate(rate) for rate in (16000, 16000.0, np.int64(16000), np.float64(16000))] == [16000] * 4


def test_collect(tmp_path: Path) -> None:
    for name in (
        "b.wav",
        "a.FLAC",
        "sub/deep/c.ogg",
        "sub/d.oga",
        "note.txt",
        ".hidden.wav",
        "sub/.git/e.wav",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()

    def names(paths: object) -> list[str]:
        return [file.relative_to(tmp_path).as_posix() for file in audio.collect(paths)]  # type: ignore[arg-type]

    everything = ["a.FLAC", "b.wav", "sub/d.oga", "sub/deep/c.ogg"]
    assert names(tmp_path) == names(str(tmp_path)) == everything
    assert names(tmp_path / "b.wav") == ["b.wav"]
    assert names([tmp_path / "sub", tmp_path / "b.wav", tmp_path]) == everything  # each file once
    assert names(str(tmp_path / "*.wav")) == ["b.wav"]
    assert names(f"{tmp_path}/**/*.og?") == ["sub/d.oga", "sub/deep/c.ogg"]
    assert names(f"{tmp_path}/s*") == ["sub/d.oga", "sub/deep/c.ogg"]
    assert names(tmp_path / "note.txt") == ["note.txt"]  # named outright


def test_collect_refuses(tmp_path: Path) -> None:
    (tmp_path / "note.txt").touch()
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        audio.collect([tmp_path, tmp_path / "missing"][1:])
    for nothing in (tmp_path, f"{tmp_path}/*.wav", f"{tmp_path}/*.txt"):
        with pytest.raises(ValueError, match="no audio files"):
            audio.collect(nothing)
    with pytest.raises(ValueError, match="empty list"):
        audio.collect([])


@pytest.mark.parametrize("kind", [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("RIFX", "PCM_24"), ("WAVEX", "PCM_16")])
def test_wav_files_that_are_cut_off_are_refused(tmp_path, kind):
    """libsndfile itself reads them as if they were whole."""
    container, subtype = kind
    path = tmp_path / "a.wav"
    endian = "BIG" if container == "RIFX" else None
    container = "WAV" if container == "RIFX" else container
    soundfile.write(path, np.full(1000, 0.25), 8000, subtype=subtype, format=container, endian=endian)
    whole = path.read_bytes()
    assert audio.read(path)[0].shape == (1, 1000)
    path.write_bytes(whole[:-400])
    for action in (audio.read, audio.info):
        with pytest.raises(ValueError, match=r"a\.wav is cut off: .* \d+ of them are missing; copy or record it again"):
            action(path)


def test_wav_files_of_unknown_size_are_read(tmp_path):
    """Written to a pipe, they announce the largest size there is."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(1000, 0.25), 8000, subtype="PCM_16")
    whole = bytearray(path.read_bytes())
    place = whole.index(b"data") + 4
    whole[place : place + 4] = b"\xff" * 4
    path.write_bytes(whole)
    assert audio.read(path)[0].shape == (1, 1000)


def test_files_without_samples_say_so(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8000)
    (tmp_path / "empty.ogg").write_bytes(b"")
    for name in ("none.wav", "empty.ogg"):
        with pytest.raises(ValueError, match=f"{name} holds no samples"):
            audio.read(tmp_path / name)


def test_what_is_no_path_is_refused():
    with pytest.raises(ValueError, match="got 3, a int; expected the path"):
        getattr(audio.info, "__wrapped__", audio.info)(3)

"""Results: laws at construction, files without loss, ArviZ, the card with its sound, WAV files."""

import base64
import html.parser
import io
import math
import os
import wave
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from synthetic_results import make_result

from bayesfuse import audio
from bayesfuse.results import Result

# On Python 3.11 only the last ArviZ before its rewrite installs, which says so whenever it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:\\s*ArviZ is undergoing:FutureWarning")

FIELDS = tuple(Result.__dataclass_fields__)


def assert_same(a: Result, b: Result) -> None:
    """Equality of every field to the last bit, NaN payloads and signs of zeros included."""
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        assert type(x) is type(y), name
        if isinstance(x, np.ndarray):
            assert (x.dtype, x.shape) == (y.dtype, y.shape), name
            assert x.tobytes() == y.tobytes(), name
        else:
            assert repr(x) == repr(y), name  # repr: NaN and inf in settings are equal, too


# ---------------------------------------------------------------------------------------------------- construction


@pytest.mark.parametrize("name", ["mixture", "sources", "orders", "weights", "log_prior", "energy_frames", "within"])
def test_a_wrong_shape_is_named(name):
    wrong = getattr(make_result(), name)[..., :-1]
    with pytest.raises(ValueError, match=r"has shape|no "):
        make_result(**{name: wrong})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": np.array([0.5, 0.5, 0.5, 0.0])}, "weights sum to 1.5"),
        ({"weights": np.array([1.5, -0.5, 0.0, 0.0])}, "weights has negative"),
        ({"weights": np.array([np.nan, 0.5, 0.5, 0.0])}, "weights has negative or NaN"),
        ({"source_names": ("a", "a")}, "repeats a name"),
        ({"source_names": ("a", "")}, "printable"),
        ({"order_labels": ("a", "b", "c", "\0")}, "printable"),
        ({"method": "magic"}, "method='magic'"),
        ({"rate": 0}, "rate=0"),
        ({"seed": 2**64}, "seed="),
        ({"beta_per_frame": -1.0}, "beta_per_frame=-1"),
        ({"beta_per_frame": math.nan}, "beta_per_frame=nan"),
        ({"energy_order": math.nan}, "energy_order=nan"),
        ({"between": None}, "neither"),
        ({"settings": {"x": object()}}, "cannot be written as JSON"),
        ({"settings": [1]}, "settings is of type list"),
        ({"orders": np.zeros((4, 2), np.int64)}, "start at 1"),
        ({"orders": np.ones((4, 2))}, "expected integers"),
        ({"mixture": np.zeros((1, 4000), np.int64)}, "mixture has dtype int64"),
        ({"log_prior": np.full(4, -np.inf)}, "excludes all orders"),
        ({"energy_dictionary": np.array([0.0, np.nan, 0.0, 0.0])}, "energy_dictionary has NaN"),
    ],
)
def test_broken_laws_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make_result(**changes)


@pytest.mark.parametrize("name", ["mixture", "sources", "estimates", "within"])
def test_values_that_are_not_numbers_are_named(name):
    array = getattr(make_result(), name).copy()
    array.flat[3] = np.nan
    with pytest.raises(ValueError, match=f"{name} has NaN"):
        make_result(**{name: array})


def test_numbers_of_numpy_and_jax_are_accepted():
    import jax.numpy as jnp

    result = make_result(rate=np.int64(8000), seed=np.int32(3), weights=jnp.full(4, 0.25))
    assert type(result.rate) is int and type(result.seed) is int and type(result.weights) is np.ndarray


# -------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_free_energies_are_sums_of_their_parts(dtype):
    result = make_result(dtype=dtype, samples=20_000)
    # math.fsum of the stored numbers is exact; the library sums in double precision, N terms of 1e3 nats each.
    exact = [
        math.fsum([*map(float, frames), float(rest)])
        for frames, rest in zip(result.energy_frames, result.energy_dictionary, strict=True)
    ]
    scale = 1e3 * result.num_frames
    assert result.free_energy.dtype == np.float64
    np.testing.assert_allclose(result.free_energy, exact, rtol=0, atol=scale * np.finfo(np.float64).eps * 16)
    split, none, repeat = (result.per_frame(kind) for kind in ("split", "none", "repeat"))
    np.testing.assert_allclose(split.sum(axis=1), exact, rtol=1e-13)
    np.testing.assert_array_equal(none, result.energy_frames.astype(np.float64))
    np.testing.assert_array_equal(repeat, none + result.energy_dictionary[:, None])
    with pytest.raises(ValueError, match="dictionary='half'"):
        result.per_frame("half")  # pyright: ignore[reportArgumentType]


def test_relative_free_energies():
    energies = np.array([[-3.0, -4.0], [-1.0, -1.0], [-np.inf, 0.0]])
    small = {
        "window": 2,
        "samples": 1,
        "num_orders": 3,
        "energy_frames": energies,
        "energy_dictionary": np.array([0, -1.0, 0]),
    }
    np.testing.assert_array_equal(make_result(**small).relative_free_energy, [-4.0, 0.0, -np.inf])
    small["energy_frames"] = np.full((3, 2), -np.inf)
    np.testing.assert_array_equal(make_result(**small).relative_free_energy, [0.0, 0.0, 0.0])


def test_effective_models_against_its_definition():
    weights = np.array([0.5, 0.5, 0.0, 0.0])
    assert make_result(weights=weights).effective_models == pytest.approx(2.0, rel=1e-14)
    result = make_result(per_frame=True, dtype=np.float64)
    frames = [np.exp(-sum(w * np.log(w) for w in column)) for column in result.weights.T]
    assert result.effective_models == pytest.approx(np.mean(frames), rel=1e-12)
    np.testing.assert_allclose(result.mean_weights.sum(), 1.0, rtol=1e-14)


def test_source_by_name():
    result = make_result()
    np.testing.assert_array_equal(result.source("noise"), result.sources[1])
    with pytest.raises(ValueError, match=r"no source 'drums'.*speech"):
        result.source("drums")


# -------------------------------------------------------------------------------------------------------------- files


@settings(max_examples=15)
@given(
    draw=st.integers(0, 2**31),
    seed=st.integers(-(2**63), 2**63 - 1),
    num_orders=st.integers(1, 5),
    num_sources=st.integers(1, 3),
    channels=st.integers(1, 2),
    samples=st.integers(1, 200),
    records=st.integers(0, 3),
    dtype=st.sampled_from([np.float32, np.float64]),
    integers=st.sampled_from([np.int16, np.int32, np.int64]),
    per_frame=st.booleans(),
    with_estimates=st.booleans(),
    with_variances=st.booleans(),
    names=st.lists(
        st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1), min_size=3, max_size=3, unique=True
    ),
    beta=st.floats(0, allow_nan=False),
    note=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x, max_size=2)
    ),
)
def test_a_file_returns_every_bit(tmp_path, seed, integers, names, beta, note, num_sources, dtype, samples, **drawn):
    shape = {**drawn, "num_sources": num_sources, "dtype": dtype, "samples": samples, "window": 16}
    base = make_result(**shape)
    trace = base.trace.copy()
    trace[:, ::2] = np.nan
    energies = base.energy_frames.copy()
    energies.flat[0] = -np.inf
    sound = base.mixture.copy()
    special = [-0.0, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max]
    sound.flat[: min(3, samples)] = special[: min(3, samples)]
    result = make_result(
        **shape,
        mixture=sound,
        trace=trace,
        energy_frames=energies,
        source_names=tuple(names[:num_sources]),
        beta_per_frame=beta,
        settings={"note": note},
        seed=seed,
        orders=base.orders.astype(integers),
        trace_iterations=base.trace_iterations.astype(integers),
    )
    path = tmp_path / "result.nc"
    result.save(path)
    assert_same(Result.load(path), result)
    assert_same(Result.from_datatree(result.to_datatree()), result)
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.nc"]


def test_the_tree_has_named_axes():
    result = make_result(channels=2, per_frame=True)
    tree = result.to_datatree()
    assert set(tree.children) == {"mixture", "fused", "estimates", "weights", "free_energy", "variance", "trace"}
    assert tree["estimates/sources"].dims == ("order", "source", "channel", "sample")
    assert tree["variance/within"].dims == ("source", "channel", "frequency", "frame")
    assert tree["weights/weights"].dims == ("order", "frame")
    speech = tree["estimates/sources"].sel(order="8", source="noise", channel=1)
    np.testing.assert_array_equal(speech, result.estimates[2, 1, 1])
    # Half a second at 8 kHz is sample 4000 / 2; the slice of labels includes both ends.
    assert tree["mixture/mixture"].sel(sample=slice(0.0, 0.25)).sizes["sample"] == 2001
    assert tree["variance/within"]["frequency"].attrs["units"] == "Hz"
    assert tree["weights/weights"]["frame"].attrs["units"] == "s"
    np.testing.assert_array_equal(tree["free_energy/total"], result.free_energy)
    assert np.shares_memory(tree["fused/sources"].values, result.sources)


def test_other_readers_see_the_same_numbers(tmp_path):
    import h5py

    result = make_result()
    result.save(tmp_path / "r.nc")
    with h5py.File(tmp_path / "r.nc") as file:
        np.testing.assert_array_equal(file["fused/sources"][()], result.sources)
        assert file.attrs["schema_version"] == 1
        assert [text.decode() for text in file["weights/order"][()]] == ["2", "4", "8", "16"]


def test_large_settings_fit(tmp_path):
    # A list of training files passes the 64 KiB that HDF5 sets aside for small attributes.
    files = [f"/a/long/path/to/recording-{index:05d}.wav" for index in range(5000)]
    result = make_result(settings={"files": files})
    result.save(tmp_path / "r.nc")
    assert Result.load(tmp_path / "r.nc").settings["files"] == files


def test_saving_replaces_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "r.nc"
    first, second = make_result(draw=1), make_result(draw=2)
    first.save(path)
    second.save(path)
    assert_same(Result.load(path), second)

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        first.save(path)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.nc"]
    assert_same(Result.load(path), second)


def test_saving_into_nowhere(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        make_result().save(tmp_path / "none" / "r.nc")
    with pytest.raises(ValueError, match="is a folder"):
        make_result().save(tmp_path)


def test_newer_schemas_are_refused(tmp_path):
    import h5py

    path = tmp_path / "r.nc"
    make_result().save(path)
    with h5py.File(path, "a") as file:
        file.attrs["schema_version"] = 2
        file.attrs["version"] = "9.1"
    with pytest.raises(ValueError, match=r"r\.nc.*schema version 2.*up to 1; upgrade bayesfuse to at least 9\.1"):
        Result.load(path)


def test_files_of_something_else_are_refused(tmp_path):
    import h5py
    import xarray as xr

    with pytest.raises(FileNotFoundError, match="no file"):
        Result.load(tmp_path / "none.nc")
    path = tmp_path / "x.nc"
    path.write_bytes(b"RIFF and so on")
    with pytest.raises(ValueError, match=r"x\.nc cannot be read"):
        Result.load(path)
    xr.Dataset({"x": ("t", [1.0])}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ValueError, match="not a bayesfuse result"):
        Result.load(path)
    make_result().save(path)
    with h5py.File(path, "a") as file:
        del file["weights/log_prior"]
    with pytest.raises(ValueError, match=r"incomplete.*log_prior"):
        Result.load(path)


@pytest.mark.parametrize("where", [0.05, 0.3, 0.6, 0.9])
def test_damaged_files_are_refused(tmp_path, where):
    result = make_result(samples=8000)
    path = tmp_path / "r.nc"
    result.save(path)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: int(where * len(data))])
    with pytest.raises(ValueError, match="cannot be read"):
        Result.load(path)
    start = data.find(result.sources.tobytes()[:64])
    assert start > 0  # uncompressed, so that the damage can be placed
    data[start + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot be read.*damaged"):
        Result.load(path)


# ------------------------------------------------------------------------------------------------------------- ArviZ


def group(data: Any, name: str) -> Any:
    return data[name].to_dataset() if hasattr(data[name], "to_dataset") else data[name]


@pytest.mark.parametrize("per_frame", [False, True])
def test_inference_data(per_frame):
    import arviz
    import xarray as xr

    result = make_result(per_frame=per_frame)
    data = result.to_inference_data(chains=2, draws=300)
    assert isinstance(data, arviz.InferenceData if arviz.__version__.startswith("0.") else xr.DataTree)
    posterior = group(data, "posterior")
    extra = ("frame",) if per_frame else ()
    assert posterior["order_index"].dims == ("chain", "draw", *extra)
    assert posterior["components"].dims == ("chain", "draw", *extra, "source")
    assert posterior.attrs["inference"] == "vb" and posterior.attrs["seed"] == result.seed
    index = posterior["order_index"].values
    np.testing.assert_array_equal(posterior["components"], result.orders[index])
    np.testing.assert_array_equal(group(data, "sample_stats")["objective"], result.trace)
    np.testing.assert_array_equal(group(data, "observed_data")["mixture"], result.mixture)
    fusion = group(data, "fusion")
    np.testing.assert_array_equal(fusion["weights"], result.weights)
    np.testing.assert_array_equal(fusion["free_energy"], result.free_energy)
    np.testing.assert_array_equal(fusion["sources"], result.sources)
    # Frequencies of independent draws: six standard deviations, at most sqrt(0.25 / n) each.
    draws = index.reshape(600, -1)
    for order in range(4):
        gap = (draws == order).mean(axis=0) - np.atleast_2d(result.weights.T).T.reshape(4, -1)[order]
        assert np.abs(gap).max() < 6 * math.sqrt(0.25 / 600)
    again = group(result.to_inference_data(chains=2, draws=300), "posterior")["order_index"]
    np.testing.assert_array_equal(again, index)
    other = group(result.to_inference_data(chains=2, draws=300, seed=8), "posterior")["order_index"]
    assert (other.values != index).any()


def test_orders_of_no_weight_are_not_drawn():
    result = make_result(weights=np.array([0.0, 0.3, 0.7, 0.0]))
    assert set(np.unique(group(result.to_inference_data(), "posterior")["order_index"])) == {1, 2}


def test_inference_data_of_long_recordings_is_small():
    result = make_result(samples=200_000, window=16, per_frame=True, with_estimates=False, with_variances=False)
    data = result.to_inference_data(waveforms=False)
    posterior = group(data, "posterior")
    assert posterior["order_index"].size + posterior["components"].size <= 4_000_000
    names = data.children if hasattr(data, "children") else data.groups()
    assert set(names) == {"posterior", "sample_stats", "fusion"}
    assert "sample" not in group(data, "fusion").dims
    with pytest.raises(ValueError, match="draws=0"):
        result.to_inference_data(draws=0)


def test_arviz_reads_it_and_its_file(tmp_path):
    import arviz

    result = make_result(weights=np.array([0.1, 0.2, 0.3, 0.4]))
    data = result.to_inference_data()
    np.testing.assert_array_equal(arviz.extract(data)["order_index"].sizes["sample"], 2000)
    path = tmp_path / "arviz.nc"
    data.to_netcdf(path)
    again = arviz.from_netcdf(path)
    np.testing.assert_array_equal(group(again, "fusion")["weights"], result.weights)
    result.save(tmp_path / "ours.nc")
    ours = arviz.from_netcdf(tmp_path / "ours.nc")
    np.testing.assert_array_equal(group(ours, "fused")["sources"], result.sources)


# --------------------------------------------------------------------------------------------------------------- HTML


class Card(html.parser.HTMLParser):
    """Sounds and texts of a card; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.sounds: list[tuple[np.ndarray, int]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        source = dict(attrs).get("src")
        if source is not None:
            head, data = source.split(",")
            assert head == "data:audio/wav;base64"
            with wave.open(io.BytesIO(base64.b64decode(data, validate=True))) as file:
                raw = np.frombuffer(file.readframes(file.getnframes()), "<i2")
                assert file.getsampwidth() == 2
                self.sounds.append((raw.reshape(-1, file.getnchannels()).T / 32768.0, file.getframerate()))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_players_hold_the_sound():
    result = make_result(channels=2)
    card = Card(result._repr_html_())
    assert [rate for _, rate in card.sounds] == [8000] * 3
    for (sound, _), expected in zip(card.sounds, [result.mixture, *result.sources], strict=True):
        assert sound.shape == expected.shape
        assert np.abs(expected).max() < 1  # nothing is clipped
        # Rounding to 16 bits moves a sample by half a step at most.
        assert np.abs(sound - expected).max() <= 0.5 / 32768
    for text in ("mixture", "speech", "noise", "16", f"{result.weights[3]:.4f}"):
        assert any(text in item for item in card.texts), text


def test_only_the_first_minute_is_embedded_and_loud_sound_is_clipped():
    loud = np.full((1, 70 * 100), 1.5, np.float32)
    card = Card(make_result(rate=100, samples=7000, mixture=loud)._repr_html_())
    assert card.sounds[0][0].shape == (1, 6000)
    np.testing.assert_array_equal(card.sounds[0][0], 32767 / 32768)
    assert any("first 60 s of 70.0 s" in text and "peak 1.5" in text for text in card.texts)
    quiet = Card(make_result()._repr_html_())
    assert not any("first" in text or "peak" in text for text in quiet.texts)


def test_names_cannot_break_out():
    evil = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>')
    labels = ("</td><b>", "&lt;", "'", '"')
    card = Card(make_result(source_names=evil, order_labels=labels, version="<i>")._repr_html_())
    assert card.tags <= {"div", "table", "thead", "tbody", "tr", "th", "td", "audio", "span"}
    assert set(evil) | set(labels) <= set(card.texts)


def test_texts():
    result = make_result(weights=np.array([0.1, 0.2, 0.3, 0.4]), per_frame=False)
    assert repr(result).startswith(
        "Result(average: 'speech', 'noise' from 0.50 s at 8000 Hz, 4 orders, constant weights"
    )
    assert len(repr(result)) < 200
    lines = result.summary().splitlines()
    best = int(np.argmax(result.free_energy))
    table = [line.split() for line in lines[4:-2]]
    assert [row[0] for row in table] == ["2", "4", "8", "16"]
    assert [float(row[1]) for row in table] == [0.1, 0.2, 0.3, 0.4]
    assert float(table[best][3]) == 0.0
    for row, energy in zip(table, result.free_energy - result.free_energy.max(), strict=True):
        assert float(row[3]) == pytest.approx(energy, abs=0.05)
    assert len({len(line) for line in lines[1:-1]}) == 1


# ---------------------------------------------------------------------------------------------------------- WAV files


def test_wav_files(tmp_path):
    result = make_result(channels=2)
    paths = result.write_wavs(tmp_path / "out", estimates=True)
    written = {path.relative_to(tmp_path / "out").as_posix() for path in paths}
    orders = {f"estimates/{order}/{name}.wav" for order in (2, 4, 8, 16) for name in ("speech", "noise")}
    assert written == orders | {"fused/speech.wav", "fused/noise.wav"}
    waveform, rate = audio.read(tmp_path / "out" / "estimates" / "8" / "noise.wav")
    assert rate == result.rate
    np.testing.assert_array_equal(waveform, result.estimates[2, 1])
    waveform, _ = audio.read(tmp_path / "out" / "fused" / "speech.wav")
    np.testing.assert_array_equal(waveform, result.source("speech"))
    assert len(result.write_wavs(tmp_path / "out")) == 2


def test_names_are_safe_as_files(tmp_path):
    names = ("../up", "a/b", "a:b", "A_B", "..", "ü")
    labels = ("speech=8, noise=16", "2", "/", "x" * 5)
    result = make_result(num_sources=6, source_names=names, order_labels=labels)
    paths = result.write_wavs(tmp_path / "out", estimates=True)
    assert len({str(path).casefold() for path in paths}) == len(paths) == 6 * 5
    assert all(path.resolve().is_relative_to(tmp_path / "out") and path.is_file() for path in paths)
    assert (tmp_path / "out" / "estimates" / "speech=8_noise=16" / "ü.wav").is_file()


def test_wav_files_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="not kept"):
        make_result(with_estimates=False).write_wavs(tmp_path / "out", estimates=True)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        make_result().write_wavs(tmp_path / "file")

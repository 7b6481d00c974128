"""The command line: what it writes, what it says, and that it writes nothing when something is wrong."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_example import RATE, dictionaries, mixture, noise, voice

import bayesfuse
from bayesfuse import _output, audio, cli
from bayesfuse.results import Result

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = ["--orders", "speech=2,4", "--orders", "noise=2", "--window", "256", "--iterations", "10"]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """mixture.wav, voice/a.wav, voice/b.flac, noise.wav"""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "voice").mkdir()
    audio.write(folder / "mixture.wav", mixture(), RATE)
    audio.write(folder / "voice" / "a.wav", voice()[:8000], RATE)
    audio.write(folder / "voice" / "b.flac", voice()[8000:], RATE)
    audio.write(folder / "noise.wav", noise(), RATE)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(recordings, cache, monkeypatch):
    """Runs `bayesfuse` in the folder of recordings and returns its exit status."""
    from matplotlib.figure import Figure

    monkeypatch.chdir(recordings)
    # One report is drawn, by `separated`; drawing takes longer than all else here.
    monkeypatch.setattr(bayesfuse.plots, "report", lambda result: Figure())
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)

    def call(*arguments: object, cached: bool = True) -> int:
        words = [str(argument) for argument in arguments]
        if words[:1] == ["separate"] and cached:
            words += ["--cache", str(cache), "--no-compile-cache"]
        return cli.main(words)

    return call


@pytest.fixture(scope="module")
def separated(recordings, cache, tmp_path_factory) -> tuple[Path, str]:
    """Output folder of one complete run, and its table."""
    import contextlib
    import io

    out = tmp_path_factory.mktemp("run") / "deep" / "out"
    text = io.StringIO()
    arguments = ["separate", recordings / "mixture.wav", "-o", out, "--per-order", "--method", "average", "--beta", "1"]
    arguments += ["--source", f"speech={recordings / 'voice'}", "--source", f"noise={recordings / 'noise.wav'}"]
    arguments += [*SMALL, "--cache", cache, "--no-compile-cache", "--seed", "3"]
    with contextlib.redirect_stdout(text):
        assert cli.main([str(argument) for argument in arguments]) == 0
    return out, text.getvalue()


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# ---------------------------------------------------------------------------------------------------- what is written


def test_everything_promised_is_written(separated):
    out, _ = separated
    files = {path for path in tree(out) if (out / path).is_file()}
    sources = {f"fused/{name}.wav" for name in ("speech", "noise")}
    orders = {f"estimates/{order}/{name}.wav" for order in (2, 4) for name in ("speech", "noise")}
    assert files == sources | orders | {"result.nc", "report.png"}
    assert tree(out.parent) == sorted(["out", *(f"out/{path}" for path in tree(out))])  # no temporary folder


def test_files_agree_with_the_result_and_the_result_with_the_library(separated, recordings):
    out, _ = separated
    result = Result.load(out / "result.nc")
    assert (result.method, result.seed, result.beta_per_frame) == ("average", 3, 1.0)
    for name in ("speech", "noise"):
        written, rate = audio.read(out / "fused" / f"{name}.wav")
        np.testing.assert_array_equal(written, result.source(name))
        assert rate == RATE
        for order, label in enumerate(result.order_labels):
            written, _ = audio.read(out / "estimates" / label / f"{name}.wav")
            np.testing.assert_array_equal(written, result.estimates[order, result.source_names.index(name)])
    direct = bayesfuse.separate(
        audio.read(recordings / "mixture.wav")[0],
        RATE,
        {"speech": recordings / "voice", "noise": recordings / "noise.wav"},
        {"speech": [2, 4], "noise": 2},
        method="average",
        transform=bayesfuse.STFT(256, 128),
        settings=bayesfuse.Settings(num_iters=10, beta_per_frame=1.0),
        seed=3,
    )
    np.testing.assert_array_equal(direct.sources, result.sources)


def test_the_report_is_a_picture(separated):
    out, _ = separated
    data = (out / "report.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 50_000


def test_the_table_shows_the_weights(separated):
    out, text = separated
    result = Result.load(out / "result.nc")
    assert result.summary() in text
    assert str(out) in text and "fused/" in text and "estimates/" in text


def test_permissions_are_those_of_any_folder(separated, tmp_path):
    out, _ = separated
    (tmp_path / "plain").mkdir()
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_overwriting_replaces_results_and_leaves_the_rest(run, separated, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(separated[0], out)
    (out / "notes.txt").write_text("mine")
    command = ["separate", "mixture.wav", "-o", out, "--source", "speech=voice", "--source", "noise=noise.wav", *SMALL]
    assert run(*command) == 2
    assert "--overwrite" in capsys.readouterr().err
    before = Result.load(out / "result.nc")
    assert run(*command, "--overwrite", "--quiet") == 0
    assert capsys.readouterr().out == ""
    after = Result.load(out / "result.nc")
    assert (before.method, after.method) == ("average", "joint")
    assert {entry.name for entry in out.iterdir()} == {"fused", "notes.txt", "report.png", "result.nc"}
    assert (out / "notes.txt").read_text() == "mine"


def test_ways_to_name_sources(run, tmp_path):
    """Repeated options, commas, patterns and folders are the same recordings; a source can be learned."""
    common = [*SMALL, "--source", "noise=learn", "--method", "select", "--quiet"]
    ways = [
        ["--source", "speech=voice/a.wav", "--source", "speech=voice/b.flac"],
        ["--source", "speech=voice/a.wav,voice/b.flac"],
        ["--source", "speech=voice/*.*"],
    ]
    results = []
    for i, way in enumerate(ways):
        assert run("separate", "mixture.wav", "-o", tmp_path / str(i), *way, *common) == 0
        results.append(Result.load(tmp_path / str(i) / "result.nc"))
    for result in results[1:]:
        np.testing.assert_array_equal(result.sources, results[0].sources)
    assert results[0].energy_dictionary.all()  # the noise was learned


def test_saved_dictionaries_other_rates_and_names_with_commas(run, tmp_path):
    for dictionary in dictionaries()["speech"]:
        dictionary.save(tmp_path / f"speech-{dictionary.order}.npz")
    audio.write(tmp_path / "hum, low.wav", audio.resample(noise(), RATE, 16000), 16000)
    common = ["--orders", "noise=2", "--window", "256", "--iterations", "2", "--quiet", "-o", tmp_path / "out"]
    common += ["--source", f"speech={tmp_path}/speech-*.npz", "--source", f"noise={tmp_path / 'hum, low.wav'}"]
    assert run("separate", "mixture.wav", "--rate", RATE, *common) == 0
    assert Result.load(tmp_path / "out" / "result.nc").orders.tolist() == [[2, 2], [4, 2]]


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.wav"], "nothing.wav: No such file"),
        (["voice"], "voice is a folder"),
        (["broken.wav"], "broken.wav cannot be decoded"),
        (["mixture.wav", "--source", "speech=nothing"], "no file or folder nothing"),
        (["mixture.wav", "--source", "speech=broken.wav"], "broken.wav cannot be decoded"),
        (["mixture.wav", "--source", "speech=*.npz"], "no dictionaries *.npz"),
        (["mixture.wav", "--source", "speech=voice,some.npz"], "not both"),
        (["mixture.wav", "--source", "speech=learn,voice"], "stands alone"),
        (["mixture.wav", "--source", "speech"], "--source 'speech': expected a name and a value"),
        (["mixture.wav", "--source", "speech="], "expected a name and a value"),
        (["mixture.wav", "--source", "speech=fast.wav"], "add --rate 8000"),
        (["mixture.wav", "--orders", "speech=two"], "expected whole numbers"),
        (["mixture.wav", "--orders", "speech=0"], "contains 0"),
        (["mixture.wav", "--orders", "speech=2,2"], "repeats an order"),
        (["mixture.wav", "--orders", "music=2"], "--orders names 'music'"),
        (["mixture.wav", "--orders", "speech=2", "--orders", "bass=2"], "names 'bass', but there is no such --source"),
        (["mixture.wav", "--source", "bass=voice"], "no --orders for the source 'bass': say"),
        (["mixture.wav", "--source", "speech=kept/other.npz"], "other.npz is not a dictionary file"),
        (["mixture.wav", "--source", "speech=none.wav"], "none.wav holds no samples"),
        (["mixture.wav", "--orders", "speech=9999"], "--orders speech asks for 9999"),
        (
            ["mixture.wav", "--orders", "speech=1,2,3,4,5,6,7,8,9", "--orders", "noise=1,3,4,5,6,7,8,9"],
            "--method average",
        ),
        (["none.wav"], "none.wav holds no samples"),
        (["empty.ogg"], "empty.ogg holds no samples"),
        (["cut.wav"], "cut.wav is cut off"),
        (["mixture.wav", "--b", "0"], "--b: must be a number or auto, the number above 0 and at most 50, not '0'"),
        (["mixture.wav", "--b", "foo"], "--b: must be a number or auto"),
        (["mixture.wav", "--beta", "-1"], "--beta: must be 0 or more, not '-1'"),
        (["mixture.wav", "--beta", "nan"], "--beta: must be 0 or more"),
        (["mixture.wav", "--noise", "0"], "--noise: must be a positive number"),
        (["mixture.wav", "--seed", "-1"], "--seed: must be a whole number from 0 to 2147483647, not '-1'"),
        (["mixture.wav", "--seed", "99999999999"], "--seed: must be"),
        (["mixture.wav", "--window", "255"], "--window: must be even"),
        (["mixture.wav", "--window", "0"], "--window: must be even, and at least 2"),
        (["mixture.wav", "--iterations", "0"], "--iterations: must be a whole number of at least 1, not '0'"),
        (["mixture.wav", "--iterations", "2.5"], "--iterations: must be a whole number"),
        (["mixture.wav", "--block-seconds", "0"], "--block-seconds: must be a positive number of seconds, or inf"),
        (["mixture.wav", "--block-seconds", "nan"], "--block-seconds: must be"),
        (["mixture.wav", "--block-seconds", "0.01"], "--block-seconds 0.01: blocks shorter than two windows, 0.064 s"),
        (["mixture.wav", "--rate", "0"], "--rate: must be a whole number of at least 1"),
        (["mixture.wav", "--method", "mean", "--time-varying"], "--time-varying takes weights"),
        (["mixture.wav", "--variant", "explicit", "--time-varying"], "not with --variant explicit"),
        (["mixture.wav", "-o", ""], "-o/--output: must name a file or folder"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(run, recordings, tmp_path, capsys, arguments, message):
    (recordings / "broken.wav").write_bytes(b"RIFF nonsense")
    audio.write(recordings / "fast.wav", voice(), 16000)
    (recordings / "cut.wav").write_bytes((recordings / "noise.wav").read_bytes()[:-1000])
    (recordings / "empty.ogg").write_bytes(b"")
    soundfile.write(recordings / "none.wav", np.zeros(0), RATE)
    (recordings / "kept").mkdir(exist_ok=True)
    np.savez(recordings / "kept" / "other.npz", x=np.zeros(3))
    defaults = {"--source speech": ["--source", "speech=voice"], "--orders speech": ["--orders", "speech=2"]}
    words = " ".join(arguments)
    extra = [item for key, value in defaults.items() if key not in words for item in value]
    extra += ["--source", "noise=noise.wav"] + ([] if "noise=" in words else ["--orders", "noise=2"])
    if "--window" not in arguments:
        extra += ["--window", "256"]
    if "-o" not in arguments:
        extra += ["-o", tmp_path / "a" / "out"]
    status = run("separate", *arguments, *extra)
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("bayesfuse: separating ")]
    assert len(lines) == 1 and lines[0].startswith("bayesfuse: error: ")
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "at least two sources are needed, none is given"),
        (["speech=voice"], "only 'speech' is given"),
        (["speech=learn", "noise=learn"], "every --source is to be learned"),
    ],
)
def test_sources_that_are_too_few(run, tmp_path, capsys, sources, message):
    words = [word for source in sources for word in ("--source", source)]
    assert run("separate", "missing.wav", *words, "-o", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("fuse", ["--window", "3"], "--window: must be even"),
        ("fuse", ["--beta", "-1"], "--beta: must be 0 or more"),
        ("train", ["--workers", "0"], "--workers: must be a whole number of at least 1"),
        ("demo", ["--seed", "x"], "--seed: must be a whole number"),
        ("demo", ["-o", ""], "--output: must name"),
        ("separate", ["--loud"], "MIXTURE"),
    ],
)
def test_options_are_refused_in_one_line(command, words, message, capsys):
    assert cli.main([command, "-o", "out", *words]) == 2
    text = capsys.readouterr().err
    assert text.startswith("bayesfuse: error: ") and text.count("\n") == 1
    assert message in text and f"bayesfuse {command} --help" in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: 0 * x, "the recording is silent"),
        (lambda x: np.stack([x, 0 * x]), "channel 2 of 2 is silent"),
        (lambda x: np.clip(1000 * x, -1, 1), "% of the samples are clipped"),
        (lambda x: x[:100], "has 100 sample(s) (0.0125 s), fewer than the window of 256"),
        (lambda x: x, None),
    ],
)
def test_odd_recordings_get_a_note(run, recordings, tmp_path, capsys, monkeypatch, make, message):
    def stop(*args, **kwargs):
        raise ValueError("enough")

    monkeypatch.setattr(bayesfuse.separation, "separate", stop)
    audio.write(tmp_path / "odd.wav", make(mixture()), RATE)
    command = ["separate", tmp_path / "odd.wav", "--source", "speech=voice", "--source", "noise=noise.wav", *SMALL]
    assert run(*command, "-o", tmp_path / "out") == 2
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bayesfuse: note: ")]
    assert len(notes) == (message is not None)
    assert message is None or message in notes[0]


def test_names_that_differ_from_those_of_files(run, tmp_path, capsys):
    """And: stages instead of bars where the standard error output is no terminal."""
    command = ["separate", "mixture.wav", "--source", "a b=voice", "--source", "a_b=noise.wav", "--orders", "a b=2"]
    command += ["--orders", "a_b=2", "--window", "256", "--iterations", "1", "--block-seconds", "inf"]
    assert run(*command, "-o", tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert (
        "The source 'a b' is in files named a_b.wav.\nThe source 'a_b' is in files named a_b-2.wav.\n" in captured.out
    )
    assert [line[:21] for line in captured.err.splitlines()] == ["bayesfuse: separating", "bayesfuse: drawing th"]


def test_outputs_that_cannot_be_written(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other.txt").write_text("")
    command = ["separate", "mixture.wav", "--source", "speech=voice", "--source", "noise=noise.wav", *SMALL]

    def started(*args, **kwargs):
        raise AssertionError("the separation began")

    monkeypatch.setattr(bayesfuse.separation, "separate", started)
    for out, message in [("file", "is not a folder"), ("full", "is not empty"), ("file/out", "is not a folder")]:
        assert run(*command, "-o", tmp_path / out) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(
        _output.tempfile, "mkdtemp", lambda **_: (_ for _ in ()).throw(PermissionError(13, "denied", "x"))
    )
    assert run(*command, "-o", tmp_path / "new") == 2
    assert f"no permission to create files in {tmp_path}; choose another" in capsys.readouterr().err
    assert sorted(tree(tmp_path)) == ["file", "full", "full/other.txt"]


def test_a_failure_half_way_leaves_the_old_results(run, separated, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(separated[0], out)
    before = {path: (out / path).read_bytes() for path in tree(out) if (out / path).is_file()}

    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device", "result.nc")

    monkeypatch.setattr(Result, "save", fails)
    command = ["separate", "mixture.wav", "--source", "speech=voice", "--source", "noise=noise.wav", *SMALL]
    assert run(*command, "-o", out, "--overwrite") == 2
    assert "No space left" in capsys.readouterr().err
    assert {path: (out / path).read_bytes() for path in tree(out) if (out / path).is_file()} == before
    assert tree(tmp_path) == sorted(["out", *(f"out/{path}" for path in tree(out))])


def test_interrupts_are_quiet(run, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(bayesfuse.separation, "separate", interrupted)
    command = ["separate", "mixture.wav", "--source", "speech=voice", "--source", "noise=noise.wav", *SMALL]
    assert run(*command, "-o", tmp_path / "out") == 130
    assert capsys.readouterr().err.splitlines()[1:] == ["bayesfuse: error: interrupted"]
    assert list(tmp_path.iterdir()) == []


def test_termination_cleans_up_like_an_interrupt(run, tmp_path, capsys, monkeypatch):
    def terminated(*args, **kwargs):
        assert len(list(tmp_path.iterdir())) == 1  # the hidden folder
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        raise AssertionError("the signal was lost")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(bayesfuse.separation, "separate", terminated)
    command = ["separate", "mixture.wav", "--source", "speech=voice", "--source", "noise=noise.wav", *SMALL]
    assert run(*command, "-o", tmp_path / "out") == 143
    assert capsys.readouterr().err.splitlines()[1:] == ["bayesfuse: error: interrupted"]
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_cache_that_cannot_be_written(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    command = ["separate", "mixture.wav", "--source", "speech=voice", "--source", "noise=noise.wav", *SMALL]
    assert run(*command, "-o", tmp_path / "out", "--cache", tmp_path / "file", cached=False) == 2
    assert "--no-cache" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- help and cache


def test_help_and_version_are_instant():
    """Less than a second each: no heavy library is loaded for them."""
    for words, expected in ((["--version"], bayesfuse.__version__), (["separate", "--help"], "examples:")):
        start = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "bayesfuse", *words],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert expected in run.stdout
        loaded = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if "|" in line}
        assert loaded.isdisjoint({"numpy", "jax", "scipy", "matplotlib", "soundfile"})
        assert time.perf_counter() - start < 20  # generous: the machine may be busy


@pytest.mark.parametrize(("words", "status"), [([], 0), (["--help"], 0), (["demo", "--help"], 0), (["sing"], 2)])
def test_status_of_usage(words, status, capsys):
    assert cli.main(words) == status
    captured = capsys.readouterr()
    assert "usage: bayesfuse" in captured.out + captured.err


def test_help_names_every_option(capsys):
    cli.main(["separate", "--help"])
    text = capsys.readouterr().out
    for option in ("--source", "--orders", "--method", "--beta", "--per-order", "--overwrite", "--cache", "--rate"):
        assert option in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_default_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.default_cache() == tmp_path / "bayesfuse"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cli.default_cache() == Path.home() / ".cache" / "bayesfuse"


def test_compiled_programs_are_kept_and_used(recordings, tmp_path):
    """A second process finds them; a damaged one is compiled again; the results are the same to the last bit."""
    base = [sys.executable, "-m", "bayesfuse", "separate", "mixture.wav", "--source", "speech=voice", "--source"]
    base += ["noise=noise.wav", "--orders", "speech=1", "--orders", "noise=1", "--window", "64", "--iterations", "2"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    environment |= {"PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(name: str) -> dict[Path, bytes]:
        done = subprocess.run(
            [*base, "-o", str(tmp_path / name)], cwd=recordings, env=environment,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "warn" not in done.stderr.lower()
        folder = tmp_path / "cache" / "bayesfuse" / "compiled"
        return {file: file.read_bytes() for file in folder.rglob("*-cache")}

    first = run("first")
    assert len(first) > 3
    damaged = max(first, key=lambda file: len(first[file]))
    damaged.write_bytes(first[damaged][:100])
    second = run("second")
    # The large programs were found under their names; on a busy machine a small one more can take long enough to stay.
    sweeps = [{file.name for file in files if file.name.startswith("jit__advance")} for files in (first, second)]
    assert sweeps[0] and sweeps[0] == sweeps[1]
    a, b = (Result.load(tmp_path / name / "result.nc") for name in ("first", "second"))
    np.testing.assert_array_equal(a.sources, b.sources)

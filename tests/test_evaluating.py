"""Scores of files that are read in blocks: those of the whole signals, or a limit that says so."""

from pathlib import Path

import numpy as np
import pytest
from wav_folder import put

from bayesfuse import audio, evaluating, scores

RATE = 8000
PLAIN = ("sdr", "si_sdr", "si_sir", "si_sar")
SOURCES = ("bass", "voice")


def write(root: Path, true: np.ndarray, systems: dict[str, np.ndarray]) -> list[evaluating.Job]:
    """Files of signals [source, channel, sample], and the job of scoring them."""
    for folder, signals in {"true": true, **systems}.items():
        for source, signal in zip(SOURCES, signals, strict=False):
            put(root / folder / "song" / f"{source}.wav", signal.astype(np.float32), RATE)
    return evaluating.jobs_of(root / "true", {system: root / system for system in systems})


def stored(root: Path, folder: str, count: int) -> np.ndarray:
    """What the files hold."""
    return np.stack([audio.read(root / folder / "song" / f"{source}.wav")[0] for source in SOURCES[:count]])


def assert_same(found, expected, tolerance=1e-8):
    """The same rows, whatever their order."""
    keys = ["system", "source", "metric", "window"]
    found, expected = (table.sort_values(keys).reset_index(drop=True) for table in (found, expected))
    for column in (*keys, "reason"):
        assert found[column].astype(str).tolist() == expected[column].astype(str).tolist()
    np.testing.assert_allclose(found["value"].to_numpy(float), expected["value"].to_numpy(float), atol=tolerance)


@pytest.mark.parametrize(
    ("count", "channels", "length", "rows", "level"),
    [
        (1, 1, 8, 1, 0.5),
        (2, 1, 700, 800, 1e-3),
        (2, 2, 700, 699, 1e-6),
        (2, 2, 531, 7, 1e-3),
        (1, 2, 100, 30, 1e-6),
    ],
)
def test_blocks_have_the_scores_of_the_whole(tmp_path, monkeypatch, count, channels, length, rows, level):
    root, seed = tmp_path, length
    rng = np.random.default_rng(seed)
    true = 0.1 * rng.normal(size=(count, channels, length))
    systems = {
        name: true[::-1] * 0.1 * k + true + level * 0.1 * rng.normal(size=true.shape) for k, name in enumerate("ab")
    }
    jobs = write(root, true, systems)
    expected = scores.score(
        stored(root, "true", count),
        np.stack([stored(root, name, count) for name in "ab"]),
        name="song",
        systems=list("ab"),
        sources=SOURCES[:count],
        measures=PLAIN,
    )
    monkeypatch.setattr(evaluating, "_ROWS", rows)
    assert_same(evaluating.evaluate(jobs, PLAIN).table, expected, 1e-6)


@pytest.mark.parametrize("rows", [100, 1 << 15])
def test_limits_have_the_same_reasons(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(evaluating, "_ROWS", rows)
    rng = np.random.default_rng(0)
    true = 0.1 * rng.normal(size=(2, 1, 1000))
    quiet = true.copy()
    quiet[1] = 0
    systems = {"same": true, "silent": quiet, "other": true[::-1], "twice": 2 * true}
    for number, reference in enumerate((true, quiet)):
        root = tmp_path / str(number)
        jobs = write(root, reference, systems)
        expected = scores.score(
            stored(root, "true", 2),
            np.stack([stored(root, name, 2) for name in systems]),
            name="song",
            systems=list(systems),
            sources=SOURCES,
            measures=PLAIN,
        )
        assert_same(evaluating.evaluate(jobs, PLAIN).table, expected)


def test_bss_eval_of_systems_one_by_one(tmp_path):
    rng = np.random.default_rng(1)
    true = 0.1 * rng.normal(size=(2, 2, 9000))
    systems = {name: true + level * rng.normal(size=true.shape) for name, level in (("a", 0.01), ("b", 0.1))}
    jobs = write(tmp_path, true, systems)
    measures = ("bss_eval_sources", "bss_eval_images", "bss_eval_v4")
    expected = scores.score(
        stored(tmp_path, "true", 2),
        np.stack([stored(tmp_path, name, 2) for name in "ab"]),
        name="song",
        systems=list("ab"),
        sources=SOURCES,
        measures=measures,
        rate=RATE,
    )
    assert_same(evaluating.evaluate(jobs, measures).table, expected)


def test_what_does_not_fit_into_memory_is_named(tmp_path, monkeypatch):
    true = 0.1 * np.random.default_rng(2).normal(size=(2, 1, 4000))
    jobs = write(tmp_path, true, {"a": 0.9 * true})
    assert evaluating._memory() > 2**28
    monkeypatch.setattr(evaluating, "_memory", lambda: 48 * 2 * 4000 - 1.0)
    found = evaluating.evaluate(jobs, ["si_sdr", "bss_eval_v4"])
    assert "bss_eval_v4 hold whole signals, of song" in found.failed["a: song"] and "si_sdr" in found.failed["a: song"]
    assert not evaluating.evaluate(jobs, PLAIN).failed
    monkeypatch.setattr(evaluating, "_memory", lambda: 48 * 2 * 4000.0)
    assert not evaluating.evaluate(jobs, ["bss_eval_v4"]).failed


def test_means_over_other_mixtures_do_not_stand_alone(tmp_path):
    """A system that was scored on the easy mixture only looks 10 dB better than it is."""
    true = np.random.default_rng(0).normal(scale=0.1, size=(1, 500)).astype(np.float32)
    for song, errors in {"easy": {"a": 0.01, "b": 0.01}, "hard": {"a": 0.1}}.items():
        put(tmp_path / "true" / song / "voice.wav", true, RATE)
        for system, error in errors.items():
            put(tmp_path / system / song / "voice.wav", true * (1 + error), RATE)
    jobs = evaluating.jobs_of(tmp_path / "true", {system: tmp_path / system for system in "ab"})

    def means(text: str) -> list[list[str]]:
        return [line.split()[2:4] for line in text.splitlines() if line.startswith("sdr")]

    found = evaluating.evaluate(jobs)
    assert found.failed == {"b: hard": "no estimate of voice"}
    alone, shared = found.summary().split("not all systems have all mixtures")
    assert means(alone) == [["a", "30.00"], ["b", "40.00"]] and means(shared) == [["a", "40.00"], ["b", "40.00"]]
    assert "not compare" not in evaluating.evaluate(jobs[:1]).summary()
    one = {"a": jobs[0].estimates["a"]}
    other = {"b": jobs[1].estimates["a"]}
    apart = [
        evaluating.Job(job.name, job.name, job.references, own) for job, own in zip(jobs, (one, other), strict=True)
    ]
    assert "no mixture was scored for all" in evaluating.evaluate(apart).summary()

"""The benchmark of BSS Eval on tiny problems: its rows, and what it says where an implementation is missing."""

import importlib
import math
import sys
import warnings
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def script():
    """Scripts import their neighbours, as they do when they are run."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
    return importlib.import_module("speed_metrics")


def test_rows_on_a_tiny_problem(script):
    tiny = script.Size(seconds=0.1, models=2, music_rate=8000, music_sources=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [row for section in script.SECTIONS.values() for row in section(tiny, 1)]
    assert [row.letter for row in rows] == list(script.SECTIONS)
    for row in rows:
        if math.isnan(row.measured):
            assert row.detail.startswith("skipped")
        else:
            difference = float(row.detail.split("largest difference ")[1].split(" dB")[0])
            assert row.measured > 0 and difference < 1e-6


def test_missing_implementations_are_skipped(script, monkeypatch):
    def missing(name):
        raise ImportError(f"no {name}")

    monkeypatch.setattr(script.importlib, "import_module", missing)
    for section in script.SECTIONS.values():
        (row,) = section(script.Size(), 1)
        assert row.met is None and row.detail.startswith("skipped: no ")

"""The benchmark of the fusion oracles, on tiny problems: its baselines agree, and the long file goes through."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bayesfuse.fusion import oracle_weights, squared_error


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
    return importlib.import_module("speed_fusion")


def test_loop_of_the_general_solver_finds_the_same(script):
    g = script.draw_frames(5, 4)
    np.testing.assert_allclose(squared_error(script.slsqp_loop(g), g), squared_error(oracle_weights(g), g), rtol=1e-6)


def test_sections(script):
    size = script.Size(frames=40, slsqp_frames=3, many_frames=20, minutes=0.05)
    rows = [row for letter in "os" for row in script.SECTIONS[letter](size, 1)]
    assert [row.letter for row in rows] == ["o", "s"]
    assert rows[1].met


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
def test_long_file(script, monkeypatch):
    ran = []
    run = script.in_subprocess

    def once(code, *arguments):
        # The run per band, which includes what the other does, is enough.
        ran.append(run(code, *arguments) if arguments[-1] == "banded" else {"before": 0.0, "peak": 0.0, "seconds": 0.0})
        return {"frames": 0, **ran[-1]}

    monkeypatch.setattr(script, "in_subprocess", once)
    rows = script.long_file(script.Size(models=2, minutes=0.3), 1)
    assert [row.letter for row in rows] == ["t", "t"]
    assert ran[1]["samples"] == int(60 * 0.3 * 16000)
    assert 0 < rows[1].measured < 1

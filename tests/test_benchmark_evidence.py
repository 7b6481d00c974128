"""Tables of `benchmarks/evidence.py` on records whose answers are known."""

import functools
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from bayesfuse.evidence_checks import learn_gap
from bayesfuse.grams import gram, sdr

FRAMES = 4


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
    return importlib.import_module("evidence")


def record(script, seed):
    """A mixture whose evidence ranks the orders as their SDR does, and whose bound lies 3 nats per component below."""
    rng = np.random.default_rng(seed)
    orders = np.array(script.ORDERS)
    speech = rng.normal(size=(FRAMES, 50))
    levels = rng.permutation(len(orders)) + 1.0
    noise = rng.normal(size=(len(orders), FRAMES, 50))
    noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
    found = speech + noise * levels[:, None, None]
    parts = [gram(speech[n], found[:, n]) for n in range(FRAMES)]
    fields = [np.stack([np.asarray(getattr(g, name)) for g in parts]) for name in ("energy", "cross", "gram")]
    evidence = np.repeat(-100.0 * levels[:, None], FRAMES, 1) + rng.normal(size=FRAMES)
    bound = evidence - 10.0 - 3.0 * orders[:, None]
    return {
        "snr": 0, "utterance": str(seed), "noise": str(seed), "frames": 40, "total": (10 * bound.sum(1)).tolist(),
        "marginal": bound.tolist(), "explicit": (bound - 5).tolist(), "importance": (evidence - 1).tolist(),
        "evidence": evidence.tolist(), "error": np.full_like(bound, 0.5).tolist(),
        "effective_size": 3.0, "importance_size": 2.0, "seconds": 4.0,
        "whole": [field.sum(0).tolist() for field in fields], "sampled": [field.tolist() for field in fields],
    }  # fmt: skip


def cells(table, label):
    """Cells of the row that begins with a label; columns are two blanks or more apart."""
    (line,) = [line for line in table.splitlines() if line.startswith(label + "  ")]
    return [cell.strip() for cell in line[len(label) :].split("  ") if cell.strip()]


def test_tables_of_records_with_known_answers(script, monkeypatch):
    # The search for priors and temperatures, which has tests of its own, is what takes its time: fewer starts, fewer rows.
    monkeypatch.setattr(script, "learn_vb", functools.partial(script.learn_vb, starts=1))
    rows = {name: script.CRITERIA[name] for name in ("marginal", "corrected", "evidence")}
    monkeypatch.setattr(script, "CRITERIA", rows)
    train, test = (script.Corpus([record(script, seed) for seed in seeds]) for seeds in (range(4), range(4, 10)))
    bound, evidence = (np.moveaxis(train.criteria[name], 1, -1) for name in ("marginal", "evidence"))
    gap = learn_gap(bound, evidence, script.ORDERS)
    for corpus in (train, test):
        corpus.correct(gap)
    np.testing.assert_allclose(test.criteria["corrected"], test.criteria["evidence"], atol=1e-8)
    np.testing.assert_allclose(test.totals("evidence"), 10 * test.criteria["evidence"].sum(-1))

    table = script.gap_table(train, test, gap)
    assert cells(table, "8") == ["39.00 ±0.00", "34.00 ±0.00", "1.00 ±0.00", "0.50"]
    assert "3.000 nats per component and frame, 100 %" in table and "1.00 s per frame" in table

    table = script.correlation_table(test)
    for name in ("evidence, annealed", "free energy + learned gap"):
        row = cells(table, name)
        assert row[0] == row[2] == "1.00 ±0.00" and row[3] == "0.00 ±0.00"
    # The first row is the marginal free energy of all frames, here a multiple of the sampled ones.
    assert cells(table, "free energy, marginal, all frames")[0] == cells(table, "free energy, marginal")[0]

    table = script.fusion_table(train, test)
    singles = np.stack([np.asarray(sdr(w, test.whole)) for w in np.eye(len(script.ORDERS))])
    chosen = cells(table, "selection by evidence, annealed")
    assert chosen[0].split()[0] == f"{singles.max(0).mean():.2f}"
    # Every frame has the same ranking: selection per frame is selection per signal.
    assert chosen[2].split()[0] == chosen[0].split()[0]
    oracle = float(cells(table, "oracle fusion")[0].split()[0])
    assert oracle >= float(chosen[0].split()[0])

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
    # The search for priors and temperatures, which has tests of its own, takes nearly all of the time.
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
    # The first of these rules sees a multiple of what the second sees.
    all_frames, sampled = (
        cells(table, f"learned prior and beta, free energy, marginal{end}") for end in (", all frames", "")
    )
    assert float(all_frames[0].split()[0]) == pytest.approx(float(sampled[0].split()[0]), abs=0.02)
    static = float(cells(table, "static weights")[0].split()[0])
    assert static > float(cells(table, "best single order of the validation mixtures")[0].split()[0])
    oracle = float(cells(table, "oracle fusion")[0].split()[0])
    assert oracle >= float(chosen[0].split()[0])


def test_a_gap_is_judged_on_other_recordings(script):
    """Evidence that knows the order, bounds below it by a line: corrected, they tell as much."""
    drawn = importlib.import_module("_evidence_drawn")
    rng = np.random.default_rng(0)
    orders = np.array(drawn.ORDERS)
    truth = rng.integers(len(orders), size=40)
    evidence = np.where(np.arange(len(orders)) == truth[:, None], 0.0, -3.0) + rng.normal(scale=100.0, size=(40, 1))
    gaps = 20.0 + 50.0 * orders + np.where(np.arange(40) % 2, 1.0, -1.0)[:, None] * orders
    error = np.full_like(evidence, 0.5)
    upper = evidence[np.arange(40), truth] + 2.0
    found = drawn.Drawn(drawn.ORDERS, truth, evidence - gaps, evidence, error, error, upper)
    table = drawn.report_learned(found)
    assert cells(table, "4")[0] == "220" and "learned gap 50.0 nats per component" in table
    assert "mean 2.0, from 2.0 to 2.0 nats" in table
    assert cells(table, "evidence")[0] == "1.00" and cells(table, "bound + log K!")[4].startswith("1:40")
    # Even recordings have gaps of 49 nats per component, odd ones of 51: with the other half's, each is 2 nats per
    # component off, and in the wrong direction. A gap learned on all of them would be half as wrong.
    corrected = evidence - np.where(np.arange(40) % 2, 2.0, -2.0)[:, None] * orders
    assert cells(table, "bound + log K! + learned gap")[0] == f"{np.mean(corrected.argmax(1) == truth):.2f}"

"""Benchmark scripts: laws of their statistics, and each script's core on a tiny problem."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from bayesfuse import fusion, metrics
from bayesfuse.datasets import MiniChime, Mixture
from bayesfuse.dictionary import Dictionary
from bayesfuse.experiments import Summary
from bayesfuse.separators.vb_nmf import Settings
from bayesfuse.transforms import STFT

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def scripts() -> None:
    """Scripts import their neighbours, as they do when they are run."""
    sys.path.insert(0, str(FOLDER))


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


# Tables, intervals, records ------------------------------------------------------------------------------------------


def test_table_aligns_columns_and_refuses_ragged_rows():
    text = load("_common").table(["a", "long header"], [["x", "1.5"], ["yy", "10.25"]])
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["x", "1.5"] and lines[3].endswith("10.25")
    with pytest.raises(ValueError, match="cells"):
        load("_common").table(["a"], [["x", "y"]])


@given(st.lists(st.floats(-50, 50), min_size=3, max_size=20))
@settings(max_examples=50)
def test_interval_of_independent_items_is_the_t_interval(values):
    found = load("_common").clustered_mean(values, range(len(values)))
    if np.ptp(values) == 0:
        assert found.half == pytest.approx(0, abs=1e-9)
        return
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx((low + high) / 2, abs=1e-9)
    assert found.half == pytest.approx((high - low) / 2, rel=1e-6, abs=1e-9)


@given(st.lists(st.floats(-50, 50), min_size=3, max_size=10), st.integers(2, 4))
@settings(max_examples=50)
def test_copies_of_an_item_add_no_certainty(values, copies):
    clustered = load("_common").clustered_mean
    once = clustered(values, range(len(values)))
    often = clustered(np.repeat(values, copies), np.repeat(np.arange(len(values)), copies))
    assert often.mean == pytest.approx(once.mean, abs=1e-9)
    assert often.half == pytest.approx(once.half, rel=1e-6, abs=1e-9)


def test_interval_ignores_the_designed_factor_and_covers_two_groupings():
    clustered = load("_common").clustered_mean
    rng = np.random.default_rng(0)
    snrs = np.tile([-6, 0, 6], 8)
    noise = rng.normal(size=24)
    noise -= np.repeat(0.0, 24)
    # Adding a constant to all items of an SNR moves the mean and nothing else.
    plain = clustered(noise, range(24), strata=snrs)
    shifted = clustered(noise + 5.0 * snrs, range(24), strata=snrs)
    assert shifted.half == pytest.approx(plain.half)
    # Coverage over data with both random effects: 95 % within the binomial's four standard errors is 0.95 +- 0.05;
    # the estimator is known to be a few points short with a dozen groups, and ignoring a grouping far short.
    hits, short = [], []
    speech, place = np.divmod(np.arange(120), 10)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=12)[speech] + rng.normal(size=10)[place] + 0.5 * rng.normal(size=120)
        both, one = clustered(x, speech, place), clustered(x, range(120))
        hits.append(abs(both.mean) < both.half)
        short.append(abs(one.mean) < one.half)
    assert 0.88 < np.mean(hits) <= 1.0
    assert np.mean(short) < 0.7


def test_interval_of_one_group_is_unknown_and_labels_must_match():
    clustered = load("_common").clustered_mean
    assert math.isnan(clustered([1.0, 2.0], ["a", "a"]).half)
    with pytest.raises(ValueError, match="labels"):
        clustered([1.0, 2.0], ["a"])


def test_records_survive_an_interruption(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    records = load("_common").Records(path)
    records.append({"key": "one", "x": 1})
    records.append({"key": "two", "x": [0.5, 1e-30]})
    with open(path, "a") as file:
        file.write('{"key": "three", "x"')  # the process died here
    again = load("_common").Records(path)
    assert "three" not in again and again["two"]["x"] == [0.5, 1e-30] and len(again) == 2
    again.append({"key": "three", "x": 3})
    assert [r["key"] for r in load("_common").Records(path)] == ["one", "two", "three"]


def test_printed_numbers_are_consistent():
    jvr14 = load("_common").expected("jvr14")
    table = jvr14["table1"]
    for rule in ("selection", "fusion", "oracle", "mean"):
        # Printed to two digits, so the mean of six of them agrees with the printed average within a digit.
        assert np.mean(table[rule]["sdr_db"]) == pytest.approx(table[rule]["average_db"], abs=0.011)
    gap = table["fusion"]["average_db"] - table["selection"]["average_db"]
    assert gap == pytest.approx(jvr14["claims"]["fusion_minus_selection_db"], abs=0.05)
    ratio = table["selection"]["time_ms"] / table["fusion"]["time_ms"]
    assert ratio == pytest.approx(jvr14["claims"]["speedup"], abs=0.05)
    assert load("_common").expected("jvr16")["single"]["best_vb_order"] == 16


# Real utterances -----------------------------------------------------------------------------------------------------

TINY = STFT(64, 32)
RATE = 1000


def tiny_item(seed: int, snr: int) -> Mixture:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(1, 6000)).astype(np.float32)
    speech = np.zeros_like(noise)
    speech[:, 2500:5000] = 2.0 * np.sin(np.arange(2500) * 0.7)
    metadata = {"speaker": "s", "noise": f"n{seed % 2}", "snr_db": snr}
    return Mixture(
        f"i{seed}", speech + noise, {"speech": speech, "noise": noise}, RATE, (2500, 5000), (0, 2500), f"u{seed % 3}",
        metadata=metadata,
    )  # fmt: skip


def tiny_dictionary(order: int, seed: int, window: int = 64) -> Dictionary:
    bins = window // 2 + 1
    weights = np.random.default_rng(seed).gamma(0.5, 2.0, (bins, order)).astype(np.float32) + 1e-3
    return Dictionary(weights, RATE, STFT(window, window // 2).to_dict())


def test_real_utterances_on_a_tiny_set(tmp_path, monkeypatch):
    script = load("real_utterances")
    monkeypatch.setattr(script, "NOISE_ORDER", 2)
    # Called orders 2 and 3, but of one size: one compilation.
    speech = {"s": [tiny_dictionary(2, 0), tiny_dictionary(2, 1)]}
    experiment = script.Experiment(TINY, Settings(num_iters=3), (2, 3), speech)
    items = [tiny_item(seed, snr) for seed, snr in enumerate([-6, 0, -6, 0])]
    store = load("_common").Records(tmp_path / "r.jsonl")
    calls = []

    def work(item):
        calls.append(item.name)
        return script.separate_orders(item, experiment, "vb")

    found = script.run(items, work, store, "vb", threads=2)
    again = script.run(items, work, load("_common").Records(tmp_path / "r.jsonl"), "vb", threads=2)
    assert sorted(calls) == ["i0", "i1", "i2", "i3"] and again == json.loads(json.dumps(found))

    beta = script.learn_temperature(found)
    rows = script.rows_of(found, (2, 3), beta, beta)
    # One-hot weights on the scalar products are the orders themselves; oracles and the learned rule bound others.
    g = script.grams(found)
    np.testing.assert_allclose(np.asarray(fusion.sdr(np.eye(2)[0], g)), rows["order 2"], rtol=1e-4)
    best = np.maximum(rows["order 2"], rows["order 3"])
    np.testing.assert_allclose(rows["oracle selection"], best)
    for name in ("mean of the orders", "VB selection", "Bayesian average", "oracle selection"):
        assert (rows["oracle fusion"] >= rows[name] - 1e-4).all(), name
    assert rows["Bayesian average"].mean() >= max(rows["VB selection"].mean(), rows["mean of the orders"].mean()) - 1e-9
    item = items[0]
    np.testing.assert_allclose(
        rows["mixture"][0], metrics.sdr(item.scored(item.sources["speech"])[0], item.scored(item.mixture)[0]), rtol=1e-6
    )

    joint = script.run(items, lambda m: script.separate_joint(m, experiment, "marginal", [50.0]), store, "j", threads=1)
    ml = script.run(items, lambda m: script.separate_orders(m, experiment, "ml"), store, "ml", threads=1)
    text = script.report(
        {
            "transform": TINY.name, "betas": {"average": beta, "scored": beta}, "ml": ml, "vb": found,
            "joint": {"marginal": joint, "explicit": joint}, "orders": [2, 3],
        }
    )  # fmt: skip
    row = next(line for line in text.splitlines() if line.startswith("order 3"))
    assert f"{rows['order 3'].mean():.2f}" in row
    assert "oracle fusion - oracle selection" in text


def test_frames_of_the_utterance_are_those_centred_in_it():
    frames = load("real_utterances").scored_frames(tiny_item(0, 0), TINY)
    # Hop 32, first frame centred on sample 0: centres 32 k with 2500 <= 32 k < 5000.
    np.testing.assert_array_equal(np.flatnonzero(frames), np.arange(79, 157))


# Synthetic orders ----------------------------------------------------------------------------------------------------


def test_drawn_mixtures_have_the_wanted_ratio_and_variance():
    script = load("synthetic_orders")
    rng = np.random.default_rng(0)
    W = rng.gamma(2.0, 0.5, (9, 4))
    speech, mixture = script.generate(rng, W, rng.gamma(2.0, 0.5, (9, 3)), 6, 20_000)
    rest = np.sum(np.abs(mixture - speech) ** 2)
    assert 10 * np.log10(np.sum(np.abs(speech) ** 2) / rest) == pytest.approx(6, abs=1e-3)
    # E|s|^2 = sum_k w_k. Per bin the standard error is below 4 % (variance of h is 5): five of them.
    np.testing.assert_allclose(np.mean(np.abs(speech) ** 2, axis=1), W.sum(1), rtol=0.2)
    # Circular: the pseudo-variance vanishes.
    assert abs(np.mean(speech**2)) < 0.1 * np.mean(np.abs(speech) ** 2)


@pytest.mark.parametrize("method", ["explicit", "default"])
def test_synthetic_orders_on_a_tiny_example(method, monkeypatch):
    script = load("synthetic_orders")
    monkeypatch.setattr(script, "BACKGROUND_ORDER", 2)
    monkeypatch.setattr(script, "ORDERS", (2, 3))
    dictionaries = [tiny_dictionary(2, 0, 16), tiny_dictionary(2, 1, 16)]
    rng = np.random.default_rng(0)
    # 30 frames are padded, and must stay in range over all 50 iterations.
    drawn = script.generate(rng, dictionaries[0].weights, tiny_dictionary(2, 2, 16).weights, 0, 30)
    record = script.score(script.Example(2, 0, *drawn), dictionaries, method, seed=0)
    sdr = record["sdr"]
    assert sdr["oracle"] >= sdr["selection"] - 1e-6
    assert sum(record["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert record["selected"] == int(np.argmax(record["free_energy"]))
    # BETA is above the differences of free energies here, so that the average stays near the mean.
    assert sdr["average"] == pytest.approx(sdr["mean"], abs=0.2)
    text = script.report({method: [record, record]})
    assert f"{sdr['fusion']:.2f}" in text and "5.79" in text


def test_paper_start_is_the_model_in_the_unit_of_the_data():
    """The free energy of the fit in the normalised unit is that of the paper's model of the data as they are."""
    import equinox as eqx
    import jax

    from bayesfuse import inference, vbnmf

    script = load("synthetic_orders")
    rng = np.random.default_rng(3)
    power = rng.exponential(3.0, (6, 12))
    W = rng.gamma(2.0, 0.5, (6, 2))
    with jax.enable_x64(True):
        q0, prior = script.paper_start(np.random.default_rng(0), power, [W], "marginal")
        fit = inference.fit(power, q0, prior, num_iters=3)
        raw = vbnmf.make_prior(
            [[2], [script.BACKGROUND_ORDER]], noise=script.NOISE, beta=script.BETA, temper="entropy", dtype=np.float64
        )
        # Scaling the power by c scales activations by c: the same posterior, moved to the unit of the data.
        c = fit.scale**2
        q = fit.posterior

        def moved(component):
            h = component.activations
            factor = vbnmf.Factor(h.mean * c, h.harmonic * c, h.rho / c, h.tau * c, learned=True)
            return vbnmf.Component(component.dictionary, factor)

        q = jax.tree.map(jax.numpy.asarray, q)
        components = tuple(tuple(moved(component) for component in row) for row in q.components)
        q = vbnmf.Posterior(components, q.log_order, None, "marginal")
        total = eqx.filter_jit(vbnmf.free_energy)(jax.numpy.asarray(power), q, raw).total
    assert fit.free_energy.total == pytest.approx(total, rel=1e-10)


# Speed ---------------------------------------------------------------------------------------------------------------


def test_reference_moments_and_bound_agree_with_the_library():
    reference, speed = load("_reference"), load("speed")
    size = speed.Size(freq=9, frames=20, iters=4, entries=2000, orders=(2,))
    for section in ("a", "f"):
        for row in speed.SECTIONS[section](size, 1):
            gap = float(row.detail.split("agree to ")[1].split(";")[0])
            # float32: the bound to some 1e-7 per bin, a moment to some ten units in the last place, and some room.
            assert gap < 1e-4, row
    mean, inverse = reference.gig_moments(0.2, np.array([2.0]), np.array([0.0]))
    assert mean == pytest.approx(0.1) and np.isinf(inverse)


def test_sections_run_on_a_tiny_problem():
    speed = load("speed")
    size = speed.Size(freq=9, frames=20, iters=4, entries=2000, orders=(2, 2))
    rows = [row for letter in "bce" for row in speed.SECTIONS[letter](size, 1)]
    rows += speed.joint_vs_singles(size, 1, variants=["marginal"])
    assert [row.letter for row in rows] == ["b", "b", "c", "e", "d"]
    assert all(row.measured > 0 for row in rows if row.letter in "bce")
    divergence = next(row.detail for row in rows if row.letter == "c").split("agree to ")[1]
    assert float(divergence) < 1e-3


def test_counted_products():
    products = load("speed").products
    # One order: two products each for omega and C per update of a factor, and two for the update.
    assert products((3,), 5, False) == 4 * 3 + 4 * 5
    assert products((3, 4), 5, True) == 4 * 7 + 8 * 5


def test_verdicts():
    row = load("_sections").Row("a", "x", 31.0, "x", 30, True, "")
    assert row.met and not row._replace(measured=29.0).met
    assert row._replace(aim=None).met is None and row._replace(measured=math.nan).met is None
    assert row._replace(at_least=False, aim=40).met


def separated(seed, frames=12):
    """An item as the separations have it: models of growing error, one-hot free energies."""
    item = load("_separations").Item
    models = len(load("_separations").MODELS)
    rng = np.random.default_rng(seed)
    samples = 512 * frames
    scored = (1024, samples - 1100)
    speech = np.zeros(samples, np.float32)
    speech[slice(*scored)] = rng.normal(size=scored[1] - scored[0])
    errors = rng.normal(size=(models, samples)) * np.linspace(0.1, 1, models)[:, None]
    count = load("fusion_ladder").TRANSFORM.num_frames(samples)
    return item(
        name=str(seed), speaker="a", utterance=str(seed), noise="n", snr=3 * seed, rate=16000, scored=scored,
        mixture=speech + 1, speech=speech, estimates=(speech + errors).astype(np.float32),
        likelihood=rng.normal(size=(7, 32, count)), activations=rng.normal(size=(7, 2, count)),
    )  # fmt: skip


def test_ladder_scores_on_the_waveform_what_its_scalar_products_say():
    ladder = load("fusion_ladder")
    items = [separated(seed, frames) for seed, frames in ((0, 12), (1, 9))]
    corpus = ladder.Corpus.load(items)
    assert corpus.present.shape == corpus.frames.energy.shape
    np.testing.assert_array_equal(corpus.terms.shape, (3, 2, 7, corpus.present.shape[1]))
    for i, item in enumerate(items):
        frames = item.likelihood.shape[-1]
        np.testing.assert_allclose(corpus.terms[:, i, :, :frames].sum(0), item.free_energy, atol=1e-9)
        assert not corpus.present[i, frames:].any()
        for kind, models in ladder.KINDS.items():
            whole, per_frame = corpus.models(kind)
            np.testing.assert_allclose(per_frame.energy[i].sum(), whole.energy[i], rtol=1e-5)
            weights = np.full(whole.num_models, 1 / whole.num_models)
            from_gram = float(fusion.sdr(weights, whole)[i])
            assert ladder.score(item, kind, weights) == pytest.approx(from_gram, abs=1e-4)
            same = np.broadcast_to(weights[:, None], (len(weights), frames))
            assert ladder.score(item, kind, same) == pytest.approx(from_gram, abs=1e-3)
            scores = {name: ladder.score(item, kind, w) for name, w in ladder.oracles(item, kind).items()}
            # What each oracle minimises bounds the error of the next one (see `bayesfuse.grams`).
            names = ["selection", "fusion", "fusion per frame", "fusion per frame and band"]
            values = [scores[f"oracle {name}"] for name in names]
            assert np.all(np.diff(values) > -1e-6)
            assert len(ladder.MODELS[models]) == whole.num_models


def test_halves_of_the_training_speech_are_disjoint(data_root):
    data = MiniChime(data_root / "mini-chime")
    first, second = load("_separations").halves(data, "dan")
    assert set(first).isdisjoint(second)
    assert set(first) | set(second) == set(data.training_speech("dan").names)
    assert abs(len(first) - len(second)) <= 1


# Experiments ---------------------------------------------------------------------------------------------------------


def test_rows_of_an_experiment_are_those_of_its_summary():
    summary = Summary(
        total=4,
        computed=("a", "b"),
        kept=2,
        failed={},
        seconds=30.0,
        stages={"read": 1.0, "dictionaries": 2.0, "separate": 4.0, "score": 1.0, "compile": 1.0, "write": 1.0},
        audio_seconds=20.0,
        model_seconds={"VB-NMF 8": 0.4, "ML-NMF 8": 0.1},
        memory=3 * 2**30,
        statement="two processes",
    )
    per_minute, slowest, memory = load("experiment_speed").rows_of("x", summary)
    assert per_minute.measured == 4.0 and "computing 70 %, input and output 20 %, compiling 10 %" in per_minute.detail
    assert slowest.measured == 50.0 and slowest.met is False and "50 (VB-NMF 8) to 200 (ML-NMF 8)" in slowest.detail
    assert memory.measured == 3.0 and memory.met is False

"""Fusion rules on a corpus against the rules themselves and waveforms; the criterion against SciPy by hand."""

import equinox as eqx
import numpy as np
import pytest
import scipy.stats
from small_corpus import MODELS, make_record, make_records

from bayesfuse import comparison, scores
from bayesfuse.bayesian import learn_vb
from bayesfuse.corpus_results import corpus_tree, score_table
from bayesfuse.corpus_rules import apply_rules, criterion_table, energy_per_frame, rule_table
from bayesfuse.grams import Gram, sdr
from bayesfuse.metrics import sdr as waveform_sdr
from bayesfuse.static import static_weights


@pytest.fixture(scope="module")
def drawn():
    return make_records(6, 6, bands=False)


@pytest.fixture(scope="module")
def tree(drawn):
    return corpus_tree(drawn)


@pytest.fixture(scope="module")
def applied(tree):
    return apply_rules(tree)


def test_rules_are_those_of_the_library(tree, drawn, applied):
    """Learned on the training split, applied to the other; weights and SDRs against a loop over records."""
    train, test = drawn[:6], drawn[6:]
    assert list(applied["example"].values) == [r.name for r in test]
    for s, source in enumerate(("speech", "noise")):
        g = Gram.stack([r.whole.take(s) for r in train])
        among = Gram(g.energy, g.cross[:, :3], g.gram[:, :3, :3])
        energies = np.stack([r.free_energy[:3].sum((1, 2)) for r in train])
        lengths = [r.free_energy.shape[-1] for r in train]
        rule, _ = learn_vb(among, energies, loss="sdr", num_frames=lengths)
        singles = np.stack([sdr(row, g) for row in np.eye(4)]).mean(1)
        for index, r in enumerate(test):
            mine = applied["weights"].sel(source=source, example=r.name)
            np.testing.assert_allclose(mine.sel(rule="static weights"), static_weights(g, loss="sdr"), atol=1e-6)
            np.testing.assert_array_equal(mine.sel(rule="mean"), 0.25)
            np.testing.assert_array_equal(mine.sel(rule="best single (training)"), np.eye(4)[np.argmax(singles)])
            energy = r.free_energy[:3].sum((1, 2))
            np.testing.assert_array_equal(mine.sel(rule="VB selection"), np.eye(4)[np.argmax(energy)])
            weights = rule.weights(energy, num_frames=r.free_energy.shape[-1])
            np.testing.assert_allclose(mine.sel(rule="VB average"), [*weights, 0.0], atol=1e-6)
            one = r.whole.take(s)
            ratios = applied["sdr"].sel(source=source).isel(example=index)
            for name in applied["rule"].values:
                np.testing.assert_allclose(ratios.sel(rule=name), sdr(mine.sel(rule=name).values, one), rtol=1e-9)
            # No constant weights are better than those of the oracle, and no model than the oracle's choice.
            assert (ratios.sel(rule="oracle fusion") >= ratios - 1e-9).all()
            assert ratios.sel(rule="oracle selection") == pytest.approx(max(sdr(row, one) for row in np.eye(4)))
    assert {"split", "snr_db", "group"} <= set(applied.coords)


def test_the_sdr_is_that_of_the_fused_waveform():
    record, truth, estimates = make_record("a", "test", 3, "g", seed=3)
    found = apply_rules(corpus_tree([record]), learn=None)
    assert list(found["rule"].values) == ["mean", "VB selection", "oracle selection", "oracle fusion"]
    for rule in found["rule"].values:
        weights = found["weights"].sel(rule=rule).isel(example=0).transpose("source", "model").values
        fused = np.einsum("sm,mst->st", weights, estimates)
        expected = waveform_sdr(truth, fused, axis=-1)
        np.testing.assert_allclose(found["sdr"].sel(rule=rule).isel(example=0), expected, atol=1e-6)


def test_tables_of_rules_and_models_go_together(tree, applied):
    import pandas as pd

    models = score_table(tree).query("split == 'test' and metric == 'sdr'")
    table = pd.concat([models, rule_table(tree, applied)], ignore_index=True)
    assert set(table["system"]) == {"mixture", *MODELS, *applied["rule"].values}
    gains = comparison.against(table, "best single (training)")
    by_hand = (applied["sdr"].sel(rule="mean") - applied["sdr"].sel(rule="best single (training)")).mean()
    summary = scores.summarise(gains, by=["system"]).set_index("system")
    assert summary.loc["mean", "value"] == pytest.approx(float(by_hand))
    assert comparison.compare(table, metric="sdr", baseline="mean").shape[0] == 11


def test_silent_sources_have_no_score(drawn):
    silent = eqx.tree_at(
        lambda r: (r.whole.energy, r.whole.cross),
        drawn[7],
        (np.array([0.0, 1.0]) * drawn[7].whole.energy, np.zeros((2, 4))),
    )
    found = apply_rules(corpus_tree([*drawn[:7], silent]))
    assert np.isnan(found["sdr"].sel(example=silent.name, source="speech")).all()
    assert np.isfinite(found["sdr"].sel(source="noise")).all()
    quiet = [
        eqx.tree_at(lambda r: (r.whole.energy, r.whole.cross), r, (np.zeros(2), np.zeros((2, 4)))) for r in drawn[:6]
    ]
    with pytest.raises(ValueError, match="silent in all mixtures to learn on"):
        apply_rules(corpus_tree([*quiet, drawn[7]]))


def test_models_without_free_energies(drawn):
    """Then there is nothing to select by, and no criterion."""
    bare = [eqx.tree_at(lambda r: r.free_energy, r, np.full_like(r.free_energy, np.nan)) for r in drawn]
    tree = corpus_tree(bare)
    assert "VB selection" not in apply_rules(tree, learn=None)["rule"].values
    with pytest.raises(ValueError, match="no criterion"):
        criterion_table(tree)


def test_splits_and_metrics_are_checked(tree):
    with pytest.raises(ValueError, match="split 'val'; there are train, test"):
        apply_rules(tree, learn="val")
    with pytest.raises(ValueError, match="metric='pesq'; recorded are sdr, si_sdr"):
        criterion_table(tree, metric="pesq")


def test_criterion_against_scipy(tree, drawn):
    table = criterion_table(tree, metric="si_sdr")
    assert len(table) == 12 and {"split", "snr_db"} <= set(table.columns)
    for row in table.itertuples():
        record = next(r for r in drawn if r.name == row.name)
        energy = record.free_energy[:3].sum((1, 2))
        quality = record.scores["si_sdr"][:3, record.sources.index(row.source)]
        ranks = scipy.stats.rankdata(energy), scipy.stats.rankdata(quality)
        assert row.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
        concordant = [np.sign((energy[i] - energy[j]) * (quality[i] - quality[j])) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert row.kendall == pytest.approx(np.mean(concordant))
        assert row.best == MODELS[np.argmax(quality)] and row.chosen == MODELS[np.argmax(energy)]
        assert row.loss == pytest.approx(quality.max() - quality[np.argmax(energy)])


def test_a_criterion_that_is_minus_the_error_finds_the_best():
    """Free energies made of the squared error of the first source: perfect for it, of no use for the other."""
    found = criterion_table(corpus_tree(make_records(1, 12, trust=1e3, bands=False)))
    speech = found[found["source"] == "speech"]
    assert (speech["spearman"] == 1.0).all() and (speech["loss"] == 0.0).all()
    energies = energy_per_frame(corpus_tree(make_records(1, 2, bands=False)), ["test/01"])
    assert energies.dims == ("example", "model") and list(energies["model"].values) == list(MODELS[:3])

"""Pictures of a corpus: what is drawn are the numbers of the tables."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from small_corpus import MODELS, SNRS, make_records

from bayesfuse import comparison, corpus_plots, scores
from bayesfuse.corpus_results import corpus_tree, score_table
from bayesfuse.corpus_rules import apply_rules, criterion_table, rule_table


@pytest.fixture(scope="module")
def tree():
    return corpus_tree(make_records(6, 9, bands=False))


@pytest.fixture(scope="module")
def applied(tree):
    return apply_rules(tree, learn=None)


@pytest.fixture(scope="module")
def table(tree, applied):
    models = score_table(tree).query("split == 'test' and metric == 'sdr'")
    return pd.concat([models, rule_table(tree, applied)], ignore_index=True)


def rendered(figure):
    FigureCanvasAgg(figure).draw()
    return figure.axes[0]


def test_boxes_are_the_quartiles(table):
    ax = rendered(corpus_plots.score_boxes(table, source="speech"))
    systems = [text.get_text() for text in ax.get_yticklabels()]
    speech = table[table["source"] == "speech"]
    assert systems == list(dict.fromkeys(speech["system"])) and ax.yaxis_inverted()
    for place, (system, box) in enumerate(zip(systems, ax.patches, strict=True), start=1):
        values = speech.loc[speech["system"] == system, "value"].to_numpy()
        corners = box.get_path().vertices
        np.testing.assert_allclose([corners[:, 0].min(), corners[:, 0].max()], np.quantile(values, [0.25, 0.75]))
        assert corners[:, 1].min() < place < corners[:, 1].max()
    means = ax.get_lines()[-1].get_xdata()
    np.testing.assert_allclose(means, [speech.loc[speech["system"] == s, "value"].mean() for s in systems])


def test_gains_by_condition_are_those_of_the_tables(table):
    shown = ["oracle fusion", "mean"]
    ax = rendered(corpus_plots.gain_by_condition(table, "snr_db", "VB-NMF 8", source="speech", systems=shown))
    gains = comparison.against(table[table["source"] == "speech"], "VB-NMF 8")
    summary = scores.summarise(gains, by=["system", "snr_db"]).set_index(["system", "snr_db"])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(labels) == sorted(shown)
    for label, container in zip(labels, ax.containers, strict=True):
        line, _, (bars,) = container.lines
        expected = [summary.loc[(label, snr), "value"] for snr in SNRS]
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), expected)
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends[:, 0], [summary.loc[(label, snr), "low"] for snr in SNRS])
        np.testing.assert_allclose(ends[:, 1], [summary.loc[(label, snr), "high"] for snr in SNRS])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["-6", "0", "6"]


def test_points_are_free_energies_and_scores(tree):
    ax = rendered(corpus_plots.energy_and_score(tree, "speech"))
    clouds = [line for line in ax.get_lines() if len(line.get_xdata()) == 9]
    assert len(clouds) == 3
    names = tree["scores"]["example"].values[6:]
    node = tree["free_energy"]["scored"].sel(example=names).values[:, :3]
    energy = node / tree["examples"]["frames"].sel(example=names).values[:, None]
    quality = tree["scores"]["sdr"].sel(example=names, source="speech").values[:, :3]
    for index, line in enumerate(clouds):
        np.testing.assert_allclose(line.get_xdata(), energy[:, index] - energy.mean(1))
        np.testing.assert_allclose(line.get_ydata(), quality[:, index] - quality.mean(1))
    correlation = criterion_table(tree).query("source == 'speech'")["spearman"].mean()
    assert f"{correlation:.2f}" in ax.get_title()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(MODELS[:3])


def test_weights_are_averaged_over_mixtures(applied):
    ax = rendered(corpus_plots.fusion_weights(applied, "noise"))
    expected = applied["weights"].sel(source="noise").mean("example").transpose("rule", "model").values
    np.testing.assert_allclose(ax.get_images()[0].get_array(), expected)
    assert [text.get_text() for text in ax.texts] == [f"{w:.2f}" for w in expected.ravel()]
    assert [text.get_text() for text in ax.get_xticklabels()] == list(MODELS)


def test_errors(table):
    with pytest.raises(ValueError, match="metric='pesq'"):
        corpus_plots.score_boxes(table, metric="pesq")
    with pytest.raises(ValueError, match="by='room'"):
        corpus_plots.gain_by_condition(table, "room", "mean")
    with pytest.raises(ValueError, match="without scores"):
        corpus_plots.gain_by_condition(table, "snr_db", "mean", systems=["nobody"])

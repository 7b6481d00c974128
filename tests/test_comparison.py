"""Paired comparisons: against SciPy on the values themselves, and against hand-computed corrections."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bayesfuse import comparison, scores


def table_of(values, groups=None):
    """A table of one metric from values [system, mixture]."""
    systems = "abcdef"[: len(values)]
    names = [f"m{i}" for i in range(len(values[0]))]
    parts = [
        pd.DataFrame(
            {
                "name": names, "group": names if groups is None else groups, "system": system, "source": "speech",
                "metric": "sdr", "window": pd.array([pd.NA] * len(names), dtype="Int64"), "value": row,
                "reason": np.where(np.isnan(row), "silent_reference", ""),
            }
        )
        for system, row in zip(systems, values, strict=True)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def draws(seed=0, systems=3, items=20):
    return np.random.default_rng(seed).normal(size=(systems, items)) + 0.5 * np.arange(systems)[:, None]


def test_wilcoxon_of_every_pair():
    values = draws()
    found = comparison.compare(table_of(values), metric="sdr")
    assert list(zip(found["first"], found["second"], strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]
    for row, (i, j) in zip(found.itertuples(), [(0, 1), (0, 2), (1, 2)], strict=True):
        expected = stats.wilcoxon(values[i], values[j])
        assert (row.statistic, row.p) == (expected.statistic, expected.pvalue)
        assert row.mean == pytest.approx(np.mean(values[i] - values[j]))
        assert row.median == pytest.approx(np.median(values[i] - values[j]))
        assert row.units == 20 and row.missing == 0
    np.testing.assert_allclose(found["p_corrected"], comparison.corrected(found["p"].to_numpy(), "holm"))
    greater = comparison.compare(table_of(values), metric="sdr", baseline="a", alternative="greater", correction="none")
    assert list(greater["first"]) == ["b", "c"] and list(greater["second"]) == ["a", "a"]
    assert greater["p"].iloc[1] == stats.wilcoxon(values[2], values[0], alternative="greater").pvalue
    assert (greater["p_corrected"] == greater["p"]).all()


def test_units_count_once_and_missing_scores_not():
    values = draws(1)
    values[0, 3] = values[2, 5] = np.nan
    groups = np.repeat([f"g{i}" for i in range(10)], 2)
    found = comparison.compare(table_of(values, groups), metric="sdr", unit="group", baseline="a")
    expected = np.nanmean((values[1] - values[0]).reshape(10, 2), axis=1)
    assert found["units"].tolist() == [10, 10] and found["missing"].tolist() == [1, 2]
    assert found["p"].iloc[0] == stats.wilcoxon(expected).pvalue
    assert found["mean"].iloc[0] == pytest.approx(expected.mean())


def test_systems_that_nowhere_differ_or_share_nothing():
    values = draws(2, 2)
    found = comparison.compare(table_of([values[0], values[0]]), metric="sdr").iloc[0]
    assert found["p"] == 1.0 and found["mean"] == 0.0
    values[0, :10] = values[1, 10:] = np.nan
    found = comparison.compare(table_of(values), metric="sdr").iloc[0]
    assert found["units"] == 0 and found["missing"] == 20 and np.isnan(found["p"]) and np.isnan(found["p_corrected"])


def test_corrections_by_hand():
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.5])
    np.testing.assert_allclose(comparison.corrected(p, "bonferroni"), [0.04, 0.16, np.nan, 0.12, 1.0])
    # Sorted 0.01, 0.03, 0.04, 0.5 times 4, 3, 2, 1; the third is lifted to the second.
    np.testing.assert_allclose(comparison.corrected(p, "holm"), [0.04, 0.09, np.nan, 0.09, 0.5])
    np.testing.assert_array_equal(comparison.corrected(p, "none"), p)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=50)
def test_holm_lies_between_nothing_and_bonferroni(p):
    p = np.array(p)
    holm = comparison.corrected(p, "holm")
    assert (p <= holm).all() and (holm <= comparison.corrected(p, "bonferroni")).all()
    assert (np.diff(holm[np.argsort(p, kind="stable")]) >= 0).all()


def test_friedman():
    values = draws(3, 4)
    found = comparison.friedman(table_of(values), metric="sdr")
    expected = stats.friedmanchisquare(*values)
    assert found.statistic == pytest.approx(expected.statistic) and found.p == pytest.approx(expected.pvalue)
    ranks = stats.rankdata(-values, axis=0).mean(axis=1)
    np.testing.assert_allclose(list(found.mean_ranks.values()), ranks)
    assert list(found.mean_ranks) == list("abcd") and found.units == 20
    same = comparison.friedman(table_of([values[0]] * 3), metric="sdr")
    assert same.p == 1.0 and set(same.mean_ranks.values()) == {2.0}
    values[1, 2] = np.nan
    assert comparison.friedman(table_of(values), metric="sdr").units == 19
    with pytest.raises(ValueError, match="two systems"):
        comparison.friedman(table_of(values[:2]), metric="sdr")


def test_gains_over_a_system():
    values = draws(4)
    values[0, 1] = values[2, 4] = np.nan
    gains = comparison.against(table_of(values), "a")
    assert list(gains.columns) == list(scores.COLUMNS) and set(gains["system"]) == {"b", "c"}
    wide = gains.pivot(index="name", columns="system", values="value")
    np.testing.assert_array_equal(wide.loc[[f"m{i}" for i in range(20)], "c"], values[2] - values[0])
    assert ((gains["reason"] == "silent_reference") == gains["value"].isna()).all() and gains["value"].isna().sum() == 3
    found = scores.summarise(gains, by=["system"]).set_index("system")
    assert found.loc["c", "value"] == pytest.approx(np.nanmean(values[2] - values[0]))
    assert found["missing"].tolist() == [1, 2]
    absent = table_of(values).drop(index=range(20, 25))  # system b has no score of the first mixtures at all
    gains = comparison.against(absent, "a")
    assert (gains["reason"] == "absent").sum() == 5


def test_bad_arguments_are_named():
    table = table_of(draws(5))
    with pytest.raises(ValueError, match="baseline 'x'"):
        comparison.compare(table, metric="sdr", baseline="x")
    with pytest.raises(ValueError, match="baseline 'x'"):
        comparison.against(table, "x")
    with pytest.raises(ValueError, match="metric 'sir'"):
        comparison.compare(table, metric="sir")
    with pytest.raises(ValueError, match="two scores"):
        comparison.compare(pd.concat([table, table]), metric="sdr")
    with pytest.raises(ValueError, match="needs the columns"):
        comparison.compare(table, metric="sdr", unit="speaker")
    with pytest.raises(ValueError, match="over_windows"):
        comparison.compare(table.assign(window=pd.array([0] * len(table), dtype="Int64")), metric="sdr")

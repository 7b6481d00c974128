"""Tables of scores: what they hold, and the laws and the coverage of their averages and intervals."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bayesfuse import bss_eval, metrics, scores

ALL = ("sdr", "si_sdr", "si_sir", "si_sar", "bss_eval_sources", "bss_eval_images", "bss_eval_v4")
NAMES = {"systems": ["a", "b", "c"], "sources": ["speech", "noise"]}


def sounds(seed, length=400):
    rng = np.random.default_rng(seed)
    references = rng.standard_normal((2, 1, length))
    return references, references + 0.3 * rng.standard_normal((3, 2, 1, length))


def table_of(values, groups=None, system="a"):
    """A table of one metric from values per mixture."""
    names = [f"m{i}" for i in range(len(values))]
    reasons = np.where(np.isnan(values), "silent_reference", "")
    return pd.DataFrame(
        {
            "name": names, "group": names if groups is None else groups, "system": system, "source": "speech",
            "metric": "sdr", "window": pd.array([pd.NA] * len(values), dtype="Int64"), "value": values,
            "reason": reasons,
        }
    )  # fmt: skip


def test_a_table_holds_every_measure_under_its_name():
    references, estimates = sounds(0)
    table = scores.score(references, estimates, name="mix", group="her", measures=ALL, rate=100.0, taps=8, **NAMES)
    assert tuple(table.columns) == scores.COLUMNS
    assert set(table["name"]) == {"mix"} and set(table["group"]) == {"her"}
    plain = table[table["window"].isna()].set_index(["metric", "system", "source"])["value"]
    assert plain["sdr", "b", "noise"] == metrics.sdr(references[1, 0], estimates[1, 1, 0])
    assert plain["si_sir", "c", "speech"] == metrics.si_sir(references[:, 0], estimates[2, :, 0])[0]
    images = bss_eval.bss_eval_images(references, estimates, taps=8)
    assert plain["bss_eval_images_isr", "c", "noise"] == images.isr[2, 1]
    windows = bss_eval.bss_eval_v4(references, estimates, 100.0, taps=8)
    framed = table[(table["metric"] == "bss_eval_v4_sdr") & (table["system"] == "b") & (table["source"] == "speech")]
    np.testing.assert_array_equal(framed["window"], np.arange(4))
    np.testing.assert_array_equal(framed["value"], windows.sdr[1, 0])
    # The ISR of the sources does not exist.
    assert "bss_eval_sources_isr" not in set(table["metric"]) and "bss_eval_sources_sar" in set(table["metric"])
    medians = scores.over_windows(table).set_index(["metric", "system", "source"])
    assert medians.loc[("bss_eval_v4_sar", "b", "speech"), "value"] == windows.median().sar[1, 0]
    assert medians["window"].isna().all() and len(medians) == len(plain) + 4 * 6
    with pytest.raises(ValueError, match="over_windows"):
        scores.summarise(table)


def test_scores_that_do_not_exist_say_why_and_are_counted():
    references, estimates = sounds(1)
    references[1] = 0
    estimates[0, 0] = references[0]
    estimates[1, 0] = 0
    estimates[2, 0, 0, 5] = np.nan
    table = scores.score(references, estimates, name="mix", measures=ALL, rate=100.0, taps=8, **NAMES)
    assert np.isfinite(table["value"].dropna()).all()
    assert ((table["reason"] == "") == table["value"].notna()).all()
    reasons = table[table["window"].isna()].set_index(["metric", "system", "source"])["reason"]
    for metric in ("sdr", "si_sdr", "si_sir", "si_sar", "bss_eval_sources_sdr", "bss_eval_images_sdr"):
        assert reasons[metric, "a", "speech"] == "no_error"
        assert reasons[metric, "a", "noise"] == "silent_reference"
        assert reasons[metric, "c", "speech"] == "not_finite"
        # A silent estimate has a global SDR, of 0 dB, and no other.
        assert reasons[metric, "b", "speech"] == ("" if metric == "sdr" else "silent_estimate")
    row = scores.summarise(scores.over_windows(table), by=["metric"]).set_index("metric").loc["si_sdr"]
    assert row["count"] == 0 and row["missing"] == 6 and np.isnan(row["value"])
    assert row["reasons"] == "silent_reference: 3; no_error: 1; silent_estimate: 1; not_finite: 1"
    orthogonal = scores.score(
        np.eye(4)[:1, None],
        np.eye(4)[None, 1:2, None],
        name="m",
        measures=["si_sdr", "si_sar"],
        systems=["a"],
        sources=["s"],
    )
    assert set(orthogonal["reason"]) == {"no_target"}


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_summaries_of_several_columns(statistic):
    rng = np.random.default_rng(2)
    table = pd.concat([table_of(rng.normal(size=12), system=s) for s in "ab"])
    table.loc[(table["name"] == "m3") & (table["system"] == "a"), ["value", "reason"]] = [np.nan, "silent_reference"]
    found = scores.summarise(table, by=["system"], statistic=statistic, seed=3).set_index("system")
    for system, part in table.groupby("system"):
        values = part["value"].dropna()
        assert found.loc[system, "value"] == getattr(values, statistic)()
        assert found.loc[system, "low"] < found.loc[system, "value"] < found.loc[system, "high"]
        assert found.loc[system, "count"] == len(values) == found.loc[system, "groups"]
    assert found["missing"].tolist() == [1, 0] and found["reasons"].tolist() == ["silent_reference: 1", ""]
    again = scores.summarise(table, by=["system"], statistic=statistic, seed=3).set_index("system")
    pd.testing.assert_frame_equal(found, again)


def test_intervals_draw_groups():
    """Copies of an item in its group leave the interval alone; as groups of their own they would narrow it."""
    values = np.random.default_rng(4).normal(size=15)
    once = scores.summarise(table_of(values))
    often = table_of(np.repeat(values, 4), groups=np.repeat(np.arange(15), 4).astype(str))
    grouped, single = scores.summarise(often), scores.summarise(often, group="name")
    for bound in ("low", "high"):
        np.testing.assert_allclose(grouped[bound], once[bound], atol=1e-12)
    width = lambda found: float((found["high"] - found["low"]).iloc[0])  # noqa: E731
    assert width(single) < 0.6 * width(grouped)


def test_intervals_cover_the_mean():
    """Of groups with a common part; the percentile bootstrap of 20 groups is a little short of its 95 %."""
    hits = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = np.repeat(rng.normal(size=20), 3) + 0.5 * rng.normal(size=60)
        found = scores.summarise(
            table_of(values, groups=np.repeat(np.arange(20), 3).astype(str)), resamples=300, seed=seed
        ).iloc[0]
        hits.append(found["low"] < 0 < found["high"])
    # Binomial of 200 at 0.93: standard error 0.018.
    assert 0.87 < np.mean(hits) <= 0.99


@given(st.lists(st.floats(-50, 50), min_size=3, max_size=12), st.floats(-20, 20))
@settings(max_examples=20)
def test_intervals_shift_with_the_values(values, shift):
    plain, shifted = (scores.summarise(table_of(np.array(values) + s), resamples=100).iloc[0] for s in (0.0, shift))
    for column in ("value", "low", "high"):
        assert shifted[column] == pytest.approx(plain[column] + shift, abs=1e-9)


def test_one_group_or_equal_values():
    one = scores.summarise(table_of(np.array([1.0, 2.0]), groups=["g", "g"])).iloc[0]
    assert one["value"] == 1.5 and np.isnan(one["low"]) and np.isnan(one["high"])
    same = scores.summarise(table_of(np.full(5, 3.0))).iloc[0]
    assert (same["low"], same["high"]) == (3.0, 3.0)


def test_files_keep_every_bit_and_reason(tmp_path):
    references, estimates = sounds(5)
    estimates[1, 0] = 0
    table = scores.score(
        references, estimates, name="1", measures=["sdr", "si_sdr", "bss_eval_v4"], rate=100, taps=8, **NAMES
    )
    scores.write(table, tmp_path / "s.csv")
    pd.testing.assert_frame_equal(scores.read(tmp_path / "s.csv"), table, check_dtype=False)
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]
    # Tables of other programs may lack columns.
    (tmp_path / "t.csv").write_text("name,system,source,metric,value\nx,a,s,sdr,1.5\ny,a,s,sdr,\n")
    other = scores.read(tmp_path / "t.csv")
    assert tuple(other.columns) == scores.COLUMNS and other["group"].tolist() == ["x", "y"]
    assert scores.summarise(other)["value"].tolist() == [1.5]
    with pytest.raises(ValueError, match="no folder"):
        scores.write(table, tmp_path / "none" / "s.csv")
    (tmp_path / "u.csv").write_text("name,value\nx,1\n")
    with pytest.raises(ValueError, match="needs the columns"):
        scores.read(tmp_path / "u.csv")


def test_bad_arguments_are_named():
    references, estimates = sounds(6)
    with pytest.raises(ValueError, match="3 systems and 1 sources"):
        scores.score(references, estimates, name="m", systems=["a", "b", "c"], sources=["s"])
    with pytest.raises(ValueError, match="sampling rate"):
        scores.score(references, estimates, name="m", measures=["bss_eval_v4"], **NAMES)
    with pytest.raises(ValueError, match="2 systems"):
        scores.tidy(bss_eval.bss_eval_images(references, estimates, taps=4), systems=["a", "b"], sources=["s", "n"])
    with pytest.raises(ValueError, match="infinite"):
        scores.summarise(table_of(np.array([1.0, np.inf])))
    with pytest.raises(ValueError, match="needs the columns"):
        scores.summarise(table_of(np.ones(2)), by=["speaker"])


def test_known_scores_of_a_normal_sample_have_the_normal_interval():
    """Of 400 items the percentile interval is that of the normal distribution, up to 2000 resamples' noise."""
    values = np.random.default_rng(7).normal(5.0, 2.0, size=400)
    found = scores.summarise(table_of(values)).iloc[0]
    low, high = stats.norm.interval(0.95, values.mean(), values.std() / 20)
    assert found["low"] == pytest.approx(low, abs=0.03) and found["high"] == pytest.approx(high, abs=0.03)

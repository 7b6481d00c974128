"""Paired comparisons of systems on a table of scores: gains over one of them, Wilcoxon's and Friedman's tests.

The tests take one value per unit of what was drawn independently (a mixture, a speaker), the mean over whatever else
the unit has.

References
----------
[Hol79] S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2),
1979.
"""

from collections.abc import Hashable
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from bayesfuse.scores import Table, check_table, check_windows

Correction = Literal["holm", "bonferroni", "none"]


class Friedman(NamedTuple):
    """Friedman's test of whether any system differs: its statistic, p-value, units, and mean ranks (1 is the best)."""

    statistic: float
    p: float
    units: int
    mean_ranks: dict[str, float]


def against(table: Table, baseline: str) -> Table:
    """The table of differences from one system, which has no rows of its own there: paired gains, for `summarise`.

    Raises
    ------
    ValueError
        If there is no such system, or it has two scores for one entry.
    """
    wide = _wide("against", table)
    if baseline not in wide.columns:
        raise ValueError(f"against got the baseline {baseline!r}; the systems are {sorted(wide.columns)}.")
    gains = wide.drop(columns=baseline).sub(wide[baseline], axis=0)
    keys = list(wide.index.names)
    long = gains.melt(ignore_index=False, var_name="system", value_name="value").reset_index()
    own = table.set_index([*keys, "system"])["reason"]
    theirs = table[table["system"] == baseline].set_index(keys)["reason"]
    first = own.reindex(pd.MultiIndex.from_frame(long[[*keys, "system"]])).fillna("absent").to_numpy()
    second = theirs.reindex(pd.MultiIndex.from_frame(long[keys])).fillna("absent").to_numpy()
    long["reason"] = np.where(long["value"].notna(), "", np.where(first == "", second, first))
    return long[list(table.columns)]


def compare(
    table: Table,
    *,
    metric: str,
    baseline: str | None = None,
    unit: str = "group",
    correction: Correction = "holm",
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
) -> Table:
    """Wilcoxon signed-rank tests between pairs of systems, corrected for their number.

    Parameters
    ----------
    table
        Scores without windows (`over_windows`).
    metric
        The metric to compare.
    baseline
        Compare every other system with this one; all pairs if not given.
    unit
        Column of what is drawn independently, "group" or "name"; differences are averaged within.
    correction
        "holm" (never weaker than Bonferroni's, and as safe), "bonferroni" or "none".
    alternative
        "greater" tests whether the first system of a row is better.

    Returns
    -------
    pandas.DataFrame
        `first`, `second`, `mean` and `median` of the differences first - second, `units` compared, `missing` entries
        where one has no score, the test's `statistic`, `p` and `p_corrected`. Two systems that nowhere differ have
        p = 1.

    Raises
    ------
    ValueError
        If the metric or the baseline does not occur, there are windows, or an entry has two scores.
    """
    wide = _wide("compare", table, metric, unit)
    systems = [str(system) for system in wide.columns]
    if baseline is not None and baseline not in systems:
        raise ValueError(f"compare got the baseline {baseline!r}; the systems are {systems}.")
    if baseline is None:
        pairs = [(a, b) for i, a in enumerate(systems) for b in systems[i + 1 :]]
    else:
        pairs = [(system, baseline) for system in systems if system != baseline]
    rows = []
    for first, second in pairs:
        entries = wide[first] - wide[second]
        difference = entries.dropna().groupby(level=unit).mean()
        statistic, p = _wilcoxon(difference.to_numpy(), alternative)
        rows.append(
            (first, second, difference.mean(), difference.median(), len(difference), int(entries.isna().sum()),
             statistic, p)
        )  # fmt: skip
    columns = ["first", "second", "mean", "median", "units", "missing", "statistic", "p"]
    found = pd.DataFrame(rows, columns=columns)
    return found.assign(p_corrected=corrected(found["p"].to_numpy(np.float64), correction))


def friedman(table: Table, *, metric: str, unit: str = "group") -> Friedman:
    """Friedman's rank test of whether any of three or more systems differs from the others.

    Parameters
    ----------
    table, metric, unit
        As those of `compare`. Units in which a system has no score are left out.

    Raises
    ------
    ValueError
        If there are fewer than three systems or two complete units, or as `compare` does.
    """
    wide = _wide("friedman", table, metric, unit)
    blocks = wide.dropna().groupby(level=unit).mean()
    if blocks.shape[1] < 3 or len(blocks) < 2:
        raise ValueError(
            f"friedman got {blocks.shape[1]} systems with scores in {len(blocks)} common units; it needs three and two "
            "(compare tests two systems)."
        )
    ranks = stats.rankdata(-blocks.to_numpy(), axis=1)
    mean_ranks = dict(zip(map(str, blocks.columns), ranks.mean(axis=0).tolist(), strict=True))
    if (ranks == ranks[:, :1]).all():
        return Friedman(0.0, 1.0, len(blocks), mean_ranks)
    found = stats.friedmanchisquare(*blocks.to_numpy().T)
    return Friedman(float(found.statistic), float(found.pvalue), len(blocks), mean_ranks)


def corrected(p: Float[np.ndarray, " test"], correction: Correction) -> Float[np.ndarray, " test"]:
    """P-values corrected for the number of tests; NaN stays and does not count.

    "bonferroni" multiplies by the number of tests; "holm" the i-th smallest by the number of those not yet rejected,
    and keeps the order [Hol79].

    Raises
    ------
    ValueError
        If the correction is unknown.
    """
    if correction not in ("holm", "bonferroni", "none"):
        raise ValueError(f"got the correction {correction!r}; expected 'holm', 'bonferroni' or 'none'.")
    result = np.array(p, np.float64)
    known = np.flatnonzero(~np.isnan(result))
    if correction == "bonferroni":
        result[known] = np.minimum(result[known] * known.size, 1.0)
    elif correction == "holm":
        order = known[np.argsort(result[known], kind="stable")]
        scaled = result[order] * np.arange(order.size, 0, -1)
        result[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return result


def _wide(caller: str, table: Table, metric: str | None = None, unit: str | None = None) -> Table:
    """Scores by everything else [entry] and system, the systems in the order in which they occur."""
    check_table(caller, table, "system", *([unit] if unit else []))
    if metric is not None:
        check_windows(caller, table)
        known = list(table["metric"].unique())
        table = table[table["metric"] == metric]
        if table.empty:
            raise ValueError(f"{caller} got the metric {metric!r}; the table has {known}.")
    keys = [column for column in table.columns if column not in ("system", "value", "reason")]
    twice = table[table.duplicated([*keys, "system"])]
    if len(twice):
        raise ValueError(f"{caller} got two scores for {twice[[*keys, 'system']].iloc[0].to_dict()}; keep one.")
    systems: list[Hashable] = list(table["system"].unique())
    return table.set_index([*keys, "system"])["value"].unstack("system")[systems]


def _wilcoxon(difference: Float[np.ndarray, " unit"], alternative: str) -> tuple[float, float]:
    """Statistic and p-value; NaN without units, p = 1 without differences."""
    if difference.size == 0:
        return np.nan, np.nan
    if not difference.any():
        return 0.0, 1.0
    found: Any = stats.wilcoxon(difference, alternative=alternative)
    return float(found.statistic), float(found.pvalue)

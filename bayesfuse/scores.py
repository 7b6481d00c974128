"""Tables of scores: one row per mixture, system, source and ratio; their averages with intervals.

A table is a `pandas.DataFrame` with the columns of `COLUMNS`, so that everything pandas does applies, and tables of
several mixtures are joined by `pandas.concat`. A score that does not exist is NaN and says why in the column `reason`
(`metrics.Reason`); averages leave such rows out and count them.

Scores of one group (a speaker, a track) are not independent. Intervals therefore draw whole groups. Paired tests are in
`comparison`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from jaxtyping import Array, Float
from scipy import stats

from bayesfuse import bss_eval, metrics
from bayesfuse._netcdf import replacing
from bayesfuse.metrics import Reason

AnyArray = np.ndarray | Array
Measure = Literal["sdr", "si_sdr", "si_sir", "si_sar", "bss_eval_sources", "bss_eval_images", "bss_eval_v4"]
Statistic = Literal["mean", "median"]

# pandas annotates its results as unions that a type checker cannot take apart; at run time it is what it says.
if TYPE_CHECKING:
    Table: TypeAlias = Any
else:
    Table = pd.DataFrame

COLUMNS = ("name", "group", "system", "source", "metric", "window", "value", "reason")

# Measures of the scalar products of the signals alone.
PLAIN: dict[str, Callable[..., Any]] = {
    "sdr": metrics.sdr,
    "si_sdr": metrics.si_sdr,
    "si_sir": metrics.si_sir,
    "si_sar": metrics.si_sar,
}
# Entries of a block of bootstrap samples: 32 MiB.
_BLOCK = 1 << 22


def score(
    references: Float[AnyArray, "source channel sample"],
    estimates: Float[AnyArray, "system source channel sample"],
    *,
    name: str,
    systems: Sequence[str],
    sources: Sequence[str],
    group: str | None = None,
    measures: Sequence[Measure] = ("sdr", "si_sdr"),
    rate: float | int | None = None,
    window: float | int = 1.0,
    hop: float | int | None = None,
    taps: int = 512,
    prepared: bss_eval.References | None = None,
) -> Table:
    """The table of one mixture: every measure of every system's estimate of every source.

    Parameters
    ----------
    references
        True sources.
    estimates
        Estimated sources of several systems.
    name, group
        Of the mixture, and of what it has in common with others, such as the speaker; its own name if not given.
    systems, sources
        Names along the first axes.
    measures
        "sdr" and "si_sdr", "si_sir", "si_sar" of all channels together are metrics of these names; "bss_eval_sources",
        "bss_eval_images" and "bss_eval_v4" give metrics "bss_eval_images_sdr" and so on, the last with one row per
        window (see `over_windows`).
    rate, window, hop, taps
        As those of `bss_eval.bss_eval_v4`, for the measures that have them.
    prepared
        `bss_eval.prepare` of the references, to share it between calls for systems of the same mixture.

    Returns
    -------
    pandas.DataFrame
        With the columns of `COLUMNS`; values in dB, NaN with a reason where infinite or not defined.

    Raises
    ------
    ValueError
        If names and shapes do not match, a measure is unknown, or "bss_eval_v4" lacks the rate.
    """
    true: Any = np.asarray(references, np.float64)
    given: Any = np.asarray(estimates, np.float64)
    if true.ndim != 3 or given.shape != (len(systems), *true.shape) or len(sources) != len(true):
        raise ValueError(
            f"score got references {true.shape}, estimates {given.shape}, {len(systems)} systems and {len(sources)} "
            "sources; give references [source, channel, sample], estimates [system, source, channel, sample] and a "
            "name for each system and source."
        )
    unknown = sorted({*measures} - {*PLAIN, "bss_eval_sources", "bss_eval_images", "bss_eval_v4"})
    if unknown:
        raise ValueError(f"score got the measures {unknown}; it knows {list(get_args(Measure))}.")
    if "bss_eval_v4" in measures and rate is None:
        raise ValueError("bss_eval_v4 has windows in seconds; give score the sampling rate, rate=...")
    if prepared is None and {*measures} - {*PLAIN}:
        prepared = bss_eval.prepare(true, taps=taps)
    tables = []
    for measure in measures:
        if measure in PLAIN:
            values = np.asarray(PLAIN[measure](true, given, axis=(-2, -1)))
            values, reasons = _explained(measure, values, true, given)
            tables.append(_table(measure, values[..., None], reasons[..., None], systems, sources, windowed=False))
            continue
        assert prepared is not None
        if measure == "bss_eval_v4":
            assert rate is not None
            result = bss_eval.bss_eval_v4(prepared, given, rate, window=window, hop=hop)
        elif measure == "bss_eval_images":
            result = bss_eval.bss_eval_images(prepared, given)
        else:
            result = bss_eval.bss_eval_sources(prepared, given)
        tables.append(tidy(result, systems=systems, sources=sources))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(name=name, group=name if group is None else group)[list(COLUMNS)]


def tidy(
    result: bss_eval.BSSEval,
    *,
    systems: Sequence[str],
    sources: Sequence[str],
    name: str = "",
    group: str | None = None,
) -> Table:
    """The table of a result of BSS Eval for estimates [system, source, ...]; ratios that do not exist have no rows.

    Parameters as those of `score`.

    Raises
    ------
    ValueError
        If names and shapes do not match.
    """
    windowed = result.window is not None
    ratios, reasons = result.ratios, result.reasons
    if not windowed:
        ratios, reasons = ratios[..., None], reasons[..., None]
    if ratios.shape[1:-1] != (len(systems), len(sources)):
        raise ValueError(
            f"tidy got {len(systems)} systems and {len(sources)} sources for results [system, source] of shape "
            f"{ratios.shape[1:-1]}; name every one."
        )
    tables = [
        _table(f"{result.definition}_{ratio}", values, codes, systems, sources, windowed=windowed)
        for ratio, values, codes in zip(bss_eval.RATIOS, ratios, reasons, strict=True)
        if (codes != Reason.UNDEFINED).any()
    ]
    table = pd.concat(tables, ignore_index=True)
    return table.assign(name=name, group=name if group is None else group)[list(COLUMNS)]


def over_windows(table: Table, statistic: Statistic = "median") -> Table:
    """The table with one row for all windows of a mixture, system, source and metric: by default their median.

    Windows without a score are left out; where none has one, the commonest reason stays. Rows that have no window
    stay as they are.
    """
    check_table("over_windows", table)
    windowed = table["window"].notna()
    if not windowed.any():
        return table.reset_index(drop=True)
    keys = [column for column in table.columns if column not in ("window", "value", "reason")]
    groups = table[windowed].groupby(keys, sort=False, dropna=False)
    # pandas leaves NaN out, and gives NaN where there is nothing else.
    reduced = groups["value"].agg(statistic).reset_index()
    reduced["reason"] = groups["reason"].agg(lambda reasons: reasons.value_counts().idxmax()).to_numpy()
    reduced["reason"] = reduced["reason"].where(reduced["value"].isna(), "")
    reduced["window"] = pd.array([pd.NA] * len(reduced), dtype="Int64")
    return pd.concat([table[~windowed], reduced[list(table.columns)]], ignore_index=True)


def summarise(
    table: Table,
    *,
    by: Sequence[str] = ("metric", "source", "system"),
    group: str = "group",
    statistic: Statistic = "mean",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Table:
    """Means or medians with bootstrap intervals that draw whole groups.

    Parameters
    ----------
    table
        Scores without windows (`over_windows`).
    by
        Columns that tell the averages apart.
    group
        Column whose equal entries belong together: groups are drawn with replacement, and all their rows with them.
    statistic
        "mean" or "median" over rows.
    level, resamples, seed
        Of the percentile interval (`scipy.stats.bootstrap`).

    Returns
    -------
    pandas.DataFrame
        `by`, then `value`, `low`, `high` (NaN for fewer than two groups), `count` rows in `groups` groups, `missing`
        rows without a score and their `reasons`.

    Raises
    ------
    ValueError
        If columns are missing, there are windows, or a value is infinite.
    """
    check_table("summarise", table, *by, group)
    check_windows("summarise", table)
    rows = []
    for key, part in table.groupby(list(by), sort=False, dropna=False):
        valid = part[part["value"].notna()]
        low, high = _interval(valid, group, statistic, level, resamples, seed)
        why = part.loc[part["value"].isna(), "reason"].value_counts()
        rows.append(
            (
                *key, valid["value"].agg(statistic), low, high, len(valid), valid[group].nunique(),
                len(part) - len(valid), "; ".join(f"{reason}: {n}" for reason, n in why.items()),
            )
        )  # fmt: skip
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "count", "groups", "missing", "reasons"])


def write(table: Table, path: str | Path) -> None:
    """Write a table as CSV with all digits, whole or not at all.

    Raises
    ------
    ValueError
        If the folder does not exist or `path` is one.
    """
    with replacing(Path(path)) as temporary:
        table.to_csv(temporary, index=False)


def read(path: str | Path) -> Table:
    """Read a table that `write` has written; columns that it lacks are added with what they say by default.

    Raises
    ------
    ValueError
        If a column without which there are no scores is missing.
    """
    texts = dict.fromkeys(("name", "group", "system", "source", "metric", "reason"), str)
    table = pd.read_csv(
        path, dtype={**texts, "window": "Int64"}, keep_default_na=False, na_values={"value": [""], "window": [""]}
    )
    check_table(f"read({str(path)!r})", table, "name", "system", "source")
    defaults = {"group": table["name"], "window": pd.array([pd.NA] * len(table), dtype="Int64"), "reason": ""}
    table = table.assign(**{column: value for column, value in defaults.items() if column not in table})
    return table[[*COLUMNS, *(column for column in table.columns if column not in COLUMNS)]]


def _explained(
    measure: str, values: Float[np.ndarray, "system source"], references: Any, estimates: Any
) -> tuple[Float[np.ndarray, "system source"], np.ndarray]:
    """Values of the plain ratios with NaN in place of infinities, and why."""
    axes = (-2, -1)
    finite = np.isfinite(references).all(axis=axes)
    if measure in ("si_sir", "si_sar"):  # the span of all references
        finite = np.full_like(finite, finite.all())
    finite = finite & np.isfinite(estimates).all(axis=axes)
    reasons = np.select(
        [np.isfinite(values), ~finite, ~references.any(axis=axes)[None], values == np.inf, values == -np.inf],
        [Reason.VALID, Reason.NOT_FINITE, Reason.SILENT_REFERENCE, Reason.NO_ERROR, Reason.NO_TARGET],
        default=Reason.SILENT_ESTIMATE,
    )
    # Neither a target nor an error: an estimate that is orthogonal to all references.
    sounding = estimates.any(axis=axes)
    reasons = np.where((reasons == Reason.SILENT_ESTIMATE) & sounding, Reason.NO_TARGET, reasons)
    return np.where(reasons == Reason.VALID, values, np.nan), reasons


def _table(
    metric: str, values: Any, reasons: Any, systems: Sequence[str], sources: Sequence[str], *, windowed: bool
) -> Table:
    """Rows of one metric [system, source, window], without the mixture's columns."""
    windows = range(values.shape[-1]) if windowed else [pd.NA]
    index = pd.MultiIndex.from_product([systems, sources, windows], names=["system", "source", "window"])
    labels = np.array([reason.label for reason in Reason], object)
    frame = pd.DataFrame({"value": values.ravel(), "reason": labels[reasons.ravel()]}, index=index).reset_index()
    return frame.assign(metric=metric, window=frame["window"].astype("Int64"))


def check_table(caller: str, table: Table, *columns: str) -> None:
    missing = [column for column in ("metric", "value", *columns) if column not in table.columns]
    if missing:
        raise ValueError(
            f"{caller} needs the columns {missing}, and the table has {list(table.columns)}; make it with score."
        )
    if np.isinf(table["value"].to_numpy(np.float64)).any():
        raise ValueError(f"{caller} got infinite scores; make them NaN with a reason, as score does.")


def check_windows(caller: str, table: Table) -> None:
    if "window" in table and table["window"].notna().any():
        raise ValueError(f"{caller} got scores of single windows; reduce them first with over_windows.")


def _interval(
    table: Table, group: str, statistic: Statistic, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile bootstrap interval of the statistic of all values, drawing groups."""
    members = [part.to_numpy(np.float64) for _, part in table.groupby(group, sort=False)["value"]]
    if len(members) < 2:
        return np.nan, np.nan
    padded = np.full((len(members), max(map(len, members))), np.nan)
    for row, values in zip(padded, members, strict=True):
        row[: values.size] = values
    reduce = np.nanmean if statistic == "mean" else np.nanmedian

    def of_groups(index: np.ndarray, axis: int = -1) -> np.ndarray:
        drawn = padded[np.moveaxis(index, axis, -1)]
        return reduce(drawn.reshape(*drawn.shape[:-2], -1), axis=-1)

    found = stats.bootstrap(
        (np.arange(len(members)),), of_groups, n_resamples=resamples, confidence_level=level, method="percentile",
        vectorized=True, batch=max(1, _BLOCK // padded.size), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)

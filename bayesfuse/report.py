"""A report of an experiment: one HTML page with tables, pictures and sounds, which needs nothing but a browser.

    write_report(corpus_tree(open_records("experiment")), "report.html")

What it says: how well every model and every fusion rule does, with intervals that draw whole groups and paired tests;
the gain over the best single model for each condition of the mixtures; whether free energies predict quality; the
weights; which mixtures gain least and most, to be listened to.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from bayesfuse import _page, comparison, corpus_plots, scores
from bayesfuse._html import Player
from bayesfuse._labelled import Dataset, DataTree
from bayesfuse._netcdf import replacing
from bayesfuse.corpus_results import example_columns, score_table
from bayesfuse.corpus_rules import (
    AVERAGE,
    BEST_SINGLE,
    STATIC,
    apply_rules,
    criterion_table,
    model_table,
    rule_table,
)
from bayesfuse.scores import Table

# Values of a condition, such as an SNR, that are told apart in tables and pictures.
_CONDITIONS = range(2, 13)
_SECONDS = 10.0
_UNIT = "group"  # what was drawn independently


class Sounds(NamedTuple):
    """What can be heard of one mixture, the scored stretch of it.

    Attributes
    ----------
    rate
        Samples per second.
    mixture
        [channel, sample].
    sources
        True sources by name.
    estimates
        Estimates by model and source; empty where they were not kept.
    """

    rate: int
    mixture: Float[np.ndarray, "channel sample"]
    sources: Mapping[str, Float[np.ndarray, "channel sample"]]
    estimates: Mapping[str, Mapping[str, Float[np.ndarray, "channel sample"]]]


def write_report(
    tree: DataTree,
    path: str | os.PathLike[str],
    *,
    title: str = "bayesfuse report",
    learn: str | None = "auto",
    apply: str | None = "auto",
    by: str | None = "auto",
    sounds: Callable[[str], Sounds] | None = None,
) -> None:
    """Writes the report of an experiment to one HTML file, whole or not at all.

    Parameters
    ----------
    tree
        From `corpus_results.corpus_tree` or `open_corpus`.
    path
        The file; replaced if it is there.
    learn, apply
        Splits to learn the rules on and to report: by default "train" and "test" where there are such splits, else
        nothing is learned, and all mixtures are reported (None).
    by
        Coordinate of the mixtures whose values are told apart; by default one that has "snr" in its name, or another
        number with few values; None for none.
    sounds
        What can be heard of a mixture, by its name; without it there are no players.

    Raises
    ------
    ValueError
        If a split or coordinate does not exist, or the file cannot be written there.
    """
    text = _Report.of(tree, title, learn, apply, by, sounds).html()
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


class _Report(NamedTuple):
    """What the sections are made of."""

    tree: DataTree
    title: str
    learn: str | None
    apply: str | None
    by: str | None
    sounds: Callable[[str], Sounds] | None
    applied: Dataset
    table: Table  # sdr of mixture, models and rules
    baseline: str

    @classmethod
    def of(cls, tree: Any, title: str, learn: str | None, apply: str | None, by: str | None, sounds: Any) -> "_Report":
        about = example_columns(tree)
        splits = list(dict.fromkeys(about["split"]))
        learn = ("train" if "train" in splits else None) if learn == "auto" else learn
        apply = ("test" if "test" in splits else None) if apply == "auto" else apply
        if by not in (None, "auto", *about.columns):
            raise ValueError(f"write_report got by={by!r}; coordinates of the mixtures are {', '.join(about.columns)}.")
        applied = apply_rules(tree, learn=learn, apply=apply)
        by = _condition(about.loc[applied["example"].values]) if by == "auto" else by
        models = model_table(tree, applied["example"].values)
        table = pd.concat([models, rule_table(tree, applied)], ignore_index=True)
        means = models[models["system"] != "mixture"].groupby("system", sort=False)["value"].mean()
        baseline = BEST_SINGLE if BEST_SINGLE in applied["rule"].values else str(means.idxmax())
        return cls(tree, title, learn, apply, by, sounds, applied, table, baseline)

    @property
    def sources(self) -> list[str]:
        return [str(source) for source in self.applied["source"].values]

    @property
    def rules(self) -> list[str]:
        return [str(rule) for rule in self.applied["rule"].values]

    def html(self) -> str:
        sections = [
            ("Scores", self._scores()),
            (f"Gain by {self.by}", self._gains()),
            ("Does the free energy predict quality?", self._criterion()),
            ("Fusion weights", self._weights()),
            ("Examples", self._examples()),
            ("Other metrics", self._others()),
            ("Time", self._time()),
            ("Mixtures without a record", self._errors()),
        ]
        return _page.page(self.title, self._facts(), sections)

    def _facts(self) -> list[str]:
        about = example_columns(self.tree)
        counts = about["split"].value_counts(sort=False)
        versions = json.loads(self.tree.attrs["versions"])
        return [
            ", ".join(f"{count} mixtures of {split or 'no split'}" for split, count in counts.items()),
            f"{about['group'].nunique()} groups",
            f"{self.tree['scores'].sizes['model']} models",
            *(f"{name} {version}" for name, version in versions.items()),
        ]

    def _scores(self) -> list[str]:
        which = (
            "all mixtures" if self.apply is None else f"the {self.applied.sizes['example']} mixtures of {self.apply}"
        )
        learned = (
            "Nothing was learned." if self.learn is None else f"Rules are learned on the mixtures of {self.learn}."
        )
        pieces = [
            _page.paragraph(
                f"SDR in dB (energy of the true source over that of the error) on {which}. {learned} Intervals are "
                f"95 % bootstrap intervals that draw whole groups; p is Wilcoxon's signed-rank test of the groups' "
                f"mean differences from {self.baseline!r}, corrected by Holm's method. Oracles know the true source."
            )
        ]
        for source in self.sources:
            mine = self.table[self.table["source"] == source]
            means = scores.summarise(mine, by=["system"])
            gains = scores.summarise(comparison.against(mine, self.baseline), by=["system"]).set_index("system")
            tests = comparison.compare(mine, metric="sdr", baseline=self.baseline, unit=_UNIT).set_index("first")
            rows = []
            for row in means.itertuples(index=False):
                other = row.system != self.baseline
                gain = _interval(*gains.loc[row.system, ["value", "low", "high"]], sign=True) if other else "-"
                p = _p_value(tests.loc[row.system, "p_corrected"]) if other else "-"
                counts = f"{row.count}" + (f" ({row.missing} without)" if row.missing else "")
                rows.append((row.system, _interval(row.value, row.low, row.high), gain, p, counts, row.groups))
            header = ("system", "mean [95 %]", "gain [95 %]", "p", "mixtures", "groups")
            pieces += [_page.heading(source), _page.table(header, rows), *self._ranks(mine)]
            caption = f"SDR of {source} by system; dots are means."
            pieces.append(_page.picture(corpus_plots.score_boxes(mine, source=source), caption))
        return pieces

    def _ranks(self, mine: Table) -> list[str]:
        """Friedman's test over models and rules, where there are enough groups."""
        systems = mine[mine["system"] != "mixture"]
        if systems["system"].nunique() < 3 or systems.dropna(subset="value")[_UNIT].nunique() < 2:
            return []
        found = comparison.friedman(systems, metric="sdr", unit=_UNIT)
        best = sorted(found.mean_ranks.items(), key=lambda item: item[1])[:5]
        ranks = ", ".join(f"{name} {rank:.1f}" for name, rank in best)
        return [
            _page.paragraph(
                f"Friedman's test of whether any system differs, over {found.units} groups: "
                f"p {_p_value(found.p, '= ')}. Best mean ranks: {ranks}."
            )
        ]

    def _gains(self) -> list[str]:
        if self.by is None:
            return []
        systems = [rule for rule in self.rules if rule != self.baseline]
        pieces = []
        for source in self.sources:
            mine = self.table[(self.table["source"] == source) & self.table["system"].isin([*systems, self.baseline])]
            gains = scores.summarise(comparison.against(mine, self.baseline), by=["system", self.by])
            conditions = sorted(gains[self.by].unique())
            cells = {(row[0], row[1]): _interval(*row[2:5], sign=True) for row in gains.itertuples(index=False)}
            rows = [(s, *(cells.get((s, c), "-") for c in conditions)) for s in systems]
            figure = corpus_plots.gain_by_condition(mine, self.by, self.baseline, source=source)
            caption = f"Mean gain in SDR of {source} over {self.baseline}, with 95 % intervals by group."
            pieces += [
                _page.heading(source),
                _page.picture(figure, caption),
                _page.table((f"gain in dB at {self.by} =", *(f"{c:g}" for c in conditions)), rows),
            ]
        return pieces

    def _criterion(self) -> list[str]:
        if "VB selection" not in self.rules:
            return []
        found = criterion_table(self.tree, apply=self.apply) if "sdr" in self.tree["scores"] else None
        if found is None:
            return []
        pieces = [
            _page.paragraph(
                "Within each mixture, the rank correlation over models between free energy and SDR: 1 if the larger "
                "free energy always goes with the better separation, 0 if it tells nothing. Beside it how often the "
                "model of the largest free energy is the best one, and what is lost by taking it."
            )
        ]
        rows = []
        for source in self.sources:
            mine = found[found["source"] == source].dropna(subset="loss")
            if mine.empty:
                continue
            groups: list[tuple[str, Table]] = [("all", mine)]
            if self.by is not None:
                groups += [(f"{self.by} = {value:g}", part) for value, part in mine.groupby(self.by)]
            for name, part in groups:
                rows.append(
                    (
                        f"{source}, {name}", _mean_of(part, "spearman"), _mean_of(part, "kendall"),
                        f"{np.mean(part['best'] == part['chosen']):.0%}", _mean_of(part, "loss"), len(part),
                    )
                )  # fmt: skip
            figure = corpus_plots.energy_and_score(self.tree, source, apply=self.apply)
            pieces.append(_page.picture(figure, f"Free energy and SDR of {source}, relative to each mixture."))
        header = (
            "within mixtures of",
            "Spearman [95 %]",
            "Kendall [95 %]",
            "best is chosen",
            "loss in dB [95 %]",
            "mixtures",
        )
        pieces.insert(1, _page.table(header, rows))
        return pieces

    def _weights(self) -> list[str]:
        return [
            piece
            for source in self.sources
            for piece in (
                _page.heading(source),
                _page.picture(
                    corpus_plots.fusion_weights(self.applied, source), f"Mean weight of each model, {source}."
                ),
            )
        ]

    def _examples(self) -> list[str]:
        """The mixtures that gain least, in the middle, and most."""
        source = self.sources[0]
        rule = next(name for name in (AVERAGE, STATIC, "mean") if name in self.rules)
        wide = self.table[self.table["source"] == source].pivot(index="name", columns="system", values="value")
        gain = (wide[rule] - wide[self.baseline]).dropna().sort_values(kind="stable")
        if gain.empty:
            return []
        places = {"smallest gain": 0, "median": len(gain) // 2, "largest gain": len(gain) - 1}
        pieces, rows = [], []
        note = "" if self.sounds else " Sounds were not given to this report."
        for what, place in places.items():
            name = str(gain.index[place])
            title = f"{what}: {name}, {gain.iloc[place]:+.2f} dB"
            rows.append((f"{what}: {name}", f"{wide.loc[name, self.baseline]:.2f}", f"{wide.loc[name, rule]:.2f}"))
            if self.sounds is not None:
                heard = self.sounds(name)
                pieces.append(_page.sounds(title, self._players(name, heard, source, rule)))
                if not heard.estimates:
                    note = " Estimates were not kept, so that they cannot be heard: set keep_estimates = true."
        about = _page.paragraph(f"By the gain of {rule!r} over {self.baseline!r} in SDR of {source}.{note}")
        return [about, _page.table(("mixture", self.baseline, rule), rows), *pieces]

    def _players(self, name: str, heard: Sounds, source: str, rule: str) -> list[Player]:
        found = [("mixture", heard.mixture), (f"true {source}", heard.sources[source])]
        if heard.estimates:
            weights = self.applied["weights"].sel(example=name, source=source)
            if self.baseline in self.rules:
                single = weights["model"].values[int(np.argmax(weights.sel(rule=self.baseline).values))]
            else:
                single = self.baseline
            mixed = [
                float(weights.sel(rule=rule, model=model)) * estimates[source]
                for model, estimates in heard.estimates.items()
            ]
            found += [(f"{single}", heard.estimates[str(single)][source]), (rule, np.sum(mixed, axis=0))]
        return [Player(title, np.asarray(audio), heard.rate, _SECONDS) for title, audio in found]

    def _others(self) -> list[str]:
        """Models by the metrics that were recorded besides the SDR."""
        names = set(self.applied["example"].values)
        table = score_table(self.tree)
        table = table[table["name"].isin(names) & (table["metric"] != "sdr")]
        if table.empty:
            return []
        means = scores.summarise(table, by=["source", "metric", "system"])
        pieces = []
        for source in self.sources:
            mine = means[means["source"] == source]
            metrics = list(dict.fromkeys(mine["metric"]))
            cells = {(r.system, r.metric): _interval(r.value, r.low, r.high) for r in mine.itertuples(index=False)}
            rows = [(s, *(cells.get((s, m), "-") for m in metrics)) for s in dict.fromkeys(mine["system"])]
            pieces += [_page.heading(source), _page.table(("mean in dB [95 %]", *metrics), rows)]
        return pieces

    def _time(self) -> list[str]:
        seconds = self.tree["timing"]["seconds"]
        if not np.isfinite(seconds).any():
            return []
        mean, longest = seconds.mean("example"), seconds.max("example")
        rows = [
            (str(model), f"{a:.2f}", f"{b:.2f}")
            for model, a, b in zip(seconds["model"].values, mean.values, longest.values, strict=True)
        ]
        return [_page.table(("seconds per mixture", "mean", "longest"), rows)]

    def _errors(self) -> list[str]:
        errors = json.loads(self.tree.attrs["errors"])
        return [_page.table(("mixture", "what is wrong"), errors.items())] if errors else []


def _condition(about: Table) -> str | None:
    """A numerical coordinate with few values, by preference one of an SNR."""
    numbers = [
        str(name)
        for name in about.columns
        if pd.api.types.is_numeric_dtype(about[name])
        and not pd.api.types.is_bool_dtype(about[name])
        and about[name].nunique() in _CONDITIONS
    ]
    return next((name for name in numbers if "snr" in name.lower()), numbers[0] if numbers else None)


def _interval(value: float, low: float, high: float, *, sign: bool = False) -> str:
    if np.isnan(value):
        return "-"
    text = f"{value:+.2f}" if sign else f"{value:.2f}"
    return text if np.isnan(low) else f"{text} [{low:.2f}, {high:.2f}]"


def _p_value(p: float, equals: str = "") -> str:
    return "-" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{equals}{p:.3f}"


def _mean_of(part: Table, column: str) -> str:
    """Mean and interval of a column."""
    table = part.assign(metric=column, value=part[column], reason=np.where(part[column].isna(), "undefined", ""))
    row = scores.summarise(table, by=["metric"]).iloc[0]
    return _interval(row["value"], row["low"], row["high"])

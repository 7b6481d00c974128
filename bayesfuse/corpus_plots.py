"""Pictures of a corpus: scores by system, gains by condition, free energies beside scores, fusion weights.

As in `plots`: every function draws on axes of yours or a new figure, and returns the figure.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bayesfuse import comparison, scores
from bayesfuse._labelled import Dataset, DataTree
from bayesfuse._plot_style import colours, one_axes, plain, soften
from bayesfuse.scores import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_INK = "#222222"
_BOX = "#9ecae1"
_MEAN = "#D55E00"
_MOST_POINTS = 4000


def score_boxes(
    table: Table, *, metric: str = "sdr", source: str | None = None, ax: "Axes | None" = None
) -> "Figure | SubFigure":
    """Quartiles and range of every system's scores, its mean as a dot, systems in the order of the table.

    Parameters
    ----------
    table
        Scores without windows.
    metric, source
        What to show; all sources together by default.

    Raises
    ------
    ValueError
        If there is no such score.
    """
    chosen = _chosen("score_boxes", table, metric, source)
    systems = list(dict.fromkeys(chosen["system"]))
    values = [chosen.loc[chosen["system"] == system, "value"].dropna().to_numpy() for system in systems]
    ax = one_axes(ax, 7.0, 0.9 + 0.27 * len(systems))
    style: dict[str, Any] = {"color": _INK, "linewidth": 1.0}
    boxes = ax.boxplot(
        values, orientation="horizontal", widths=0.62, patch_artist=True, whis=(5, 95), manage_ticks=False,
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "#8a8a8a"}, medianprops=style,
    )  # fmt: skip
    for box in boxes["boxes"]:
        box.set(facecolor=_BOX, edgecolor=_INK, linewidth=0.8)
    means = [part.mean() if part.size else np.nan for part in values]
    places = np.arange(1, len(systems) + 1)
    ax.plot(means, places, linestyle="none", marker="o", markersize=4.5, color=_MEAN, zorder=3)
    ax.set_yticks(places, [plain(system) for system in systems], fontsize=9)
    ax.invert_yaxis()
    ax.set_xlabel(f"{_named(metric, source)} [dB]: box quartiles, whiskers 5 % to 95 %, dot mean")
    soften(ax)
    return ax.figure


def gain_by_condition(
    table: Table,
    by: str,
    baseline: str,
    *,
    metric: str = "sdr",
    source: str | None = None,
    systems: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Figure | SubFigure":
    """Mean gain of systems over one of them for each value of a condition, with bootstrap intervals by group.

    Parameters
    ----------
    table
        Scores without windows.
    by
        Column of the condition, such as the SNR of the mixture.
    baseline
        The system to gain over.
    metric, source
        What to show; all sources together by default.
    systems
        Those shown; all by default.

    Raises
    ------
    ValueError
        If there are no such scores, systems or column.
    """
    chosen = _chosen("gain_by_condition", table, metric, source)
    if by not in chosen:
        raise ValueError(f"gain_by_condition got by={by!r}; the table has the columns {list(chosen.columns)}.")
    gains = scores.summarise(comparison.against(chosen, baseline), by=["system", by])
    shown = [s for s in gains["system"].unique() if systems is None or s in systems]
    missing = set(systems or ()) - {*shown, baseline}
    if missing:
        raise ValueError(f"gain_by_condition got systems without scores: {sorted(missing)}.")
    ax = one_axes(ax, 7.0, 4.0)
    lines = []
    conditions = sorted(gains[by].unique())
    for number, (system, colour) in enumerate(zip(shown, colours(len(shown)), strict=True)):
        part = gains[gains["system"] == system].set_index(by).reindex(conditions)
        # Side by side, so that intervals can be told apart.
        places = np.arange(len(conditions)) + 0.5 * ((number + 0.5) / len(shown) - 0.5)
        bars = np.stack([part["value"] - part["low"], part["high"] - part["value"]]).clip(min=0.0)
        drawn = ax.errorbar(places, part["value"], yerr=bars, color=colour, marker="o", markersize=4, linewidth=1.3)
        lines.append(drawn.lines[0])
    ax.axhline(0.0, color=_INK, linewidth=0.8, linestyle="--")
    ax.set_xticks(np.arange(len(conditions)), [f"{c:g}" if isinstance(c, int | float) else str(c) for c in conditions])
    ax.set_xlabel(plain(by))
    ax.set_ylabel(f"gain in {_named(metric, source)} over\n{plain(baseline)} [dB]")
    _legend(ax, lines, shown)
    soften(ax)
    return ax.figure


def energy_and_score(
    tree: DataTree,
    source: str,
    *,
    metric: str = "sdr",
    apply: str | None = "test",
    ax: "Axes | None" = None,
) -> "Figure | SubFigure":
    """Does the criterion predict the quality? Every model of every mixture, relative to the mixture's means.

    Free energies are in nats per frame of the scored stretch. Points on a rising line would mean that the larger free
    energy goes with the better separation; the title has the mean rank correlation within mixtures.

    Parameters
    ----------
    tree
        From `corpus_results`.
    source, metric
        Whose score.
    apply
        Split; None for all mixtures.

    Raises
    ------
    ValueError
        As `corpus_rules.criterion_table`.
    """
    from bayesfuse.corpus_rules import criterion_table, energy_per_frame

    found = criterion_table(tree, metric=metric, apply=apply)
    mine = found[found["source"] == source]
    names = mine["name"].to_numpy()
    energies = energy_per_frame(tree, names)
    models, energy = energies["model"].values, energies.values
    values = tree["scores"][metric].sel(example=names, source=source, model=models)
    quality = values.transpose("example", "model").values
    energy, quality = energy - energy.mean(axis=1, keepdims=True), quality - quality.mean(axis=1, keepdims=True)
    ax = one_axes(ax, 6.4, 4.2)
    step = -(-energy.size // _MOST_POINTS)
    means = []
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o"}
    for colour, x, y in zip(colours(len(models)), energy.T, quality.T, strict=True):
        ax.plot(x[::step], y[::step], markersize=3, alpha=0.45, color=colour, **dot)
        means += ax.plot(x.mean(), np.nanmean(y), markersize=9, color=colour, markeredgecolor=_INK, zorder=3, **dot)
    ax.axhline(0.0, color=_INK, linewidth=0.6)
    ax.axvline(0.0, color=_INK, linewidth=0.6)
    ax.set_xlabel("free energy − mean over models [nat per frame]")
    ax.set_ylabel(f"{_named(metric, source)} − mean over models [dB]")
    within = f"mean rank correlation within {len(names)} mixtures: {mine['spearman'].mean():.2f}"
    ax.set_title(f"{within} (Spearman) · large dots: means", fontsize=9)
    _legend(ax, means, models.tolist())
    soften(ax)
    return ax.figure


def fusion_weights(applied: Dataset, source: str, *, ax: "Axes | None" = None) -> "Figure | SubFigure":
    """The weight of every model in every rule, averaged over mixtures.

    Parameters
    ----------
    applied
        From `corpus_rules.apply_rules`.
    source
        Of which source.
    """
    values = applied["weights"].sel(source=source).mean("example").transpose("rule", "model")
    rules, models = (list(map(str, values[dim].values)) for dim in ("rule", "model"))
    ax = one_axes(ax, 2.4 + 0.55 * len(models), 1.3 + 0.34 * len(rules))
    image = ax.imshow(values.values, cmap="cividis", vmin=0.0, vmax=1.0, aspect="auto")
    for row, line in enumerate(values.values):
        for column, weight in enumerate(line):
            ink = "black" if weight > 0.55 else "white"
            ax.text(column, row, f"{weight:.2f}", ha="center", va="center", fontsize=8, color=ink)
    slanted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(np.arange(len(models)), [plain(model) for model in models], fontsize=8, **slanted)
    ax.set_yticks(np.arange(len(rules)), [plain(rule) for rule in rules], fontsize=9)
    ax.figure.colorbar(image, ax=ax, label="mean weight", aspect=25)
    return ax.figure


def _chosen(caller: str, table: Table, metric: str, source: str | None) -> Table:
    chosen = table[table["metric"] == metric]
    if source is not None:
        chosen = chosen[chosen["source"] == source]
    if chosen.empty:
        known = pd.unique(table["metric"]), pd.unique(table["source"])
        raise ValueError(f"{caller} got metric={metric!r}, source={source!r}; the table has {known[0]} of {known[1]}.")
    return chosen


def _named(metric: str, source: str | None) -> str:
    return plain(metric.upper().replace("_", "-") + ("" if source is None else f" of {source}"))


def _legend(ax: "Axes", lines: Sequence[Any], labels: Sequence[Any]) -> None:
    texts = [plain(str(label)) for label in labels]
    ax.legend(lines, texts, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)

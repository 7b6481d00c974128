"""Pictures of a result, drawn with Matplotlib on axes of yours or on a new figure.

Every function returns the figure. New figures belong to nobody: pyplot, and with it the state it keeps, is not
involved, so that figures are freed when they go out of use, need no display, and show in notebooks by themselves.
Colours come from perceptually uniform, colour-blind-safe maps.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from bayesfuse import fusion
from bayesfuse._netcdf import replacing
from bayesfuse._plot_style import (
    averages,
    colours,
    envelope,
    last_finite,
    legend,
    new_figure,
    number,
    one_axes,
    plain,
    settled,
    soften,
    time_extent,
)
from bayesfuse.results import Result
from bayesfuse.transforms import STFT, transform_from_dict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage

_MAP = "magma"  # of power
_INK = "#222222"
_ACCENT = "#0072B2"
_STRONG = "#D55E00"
_GREY = "#8a8a8a"
_MAX_COLUMNS = 1500  # more than a page at 150 dpi shows
_MAX_TICKS = 16
_MAX_ROWS = 12
_MAX_PANELS = 6


def save(figure: "Figure", path: str | os.PathLike[str], *, dpi: int = 160) -> None:
    """Writes a figure to a file, in the format of its name's ending, whole or not at all.

    Raises
    ------
    ValueError
        If the folder does not exist, `path` is a folder, or the format is unknown.
    """
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=dpi)


def spectrograms(
    result: Result,
    source: str | None = None,
    *,
    axes: "Sequence[Axes] | None" = None,
    dynamic_range: float = 70.0,
    max_columns: int = _MAX_COLUMNS,
) -> "Figure | SubFigure":
    """Power in dB of the mixture, of the estimates of some orders, and of the fused source with its deviation.

    All panels share one scale, whose 0 dB is the strongest bin of the mixture; powers are averaged over channels. The
    standard deviation is that of the posterior, within and between orders; it is on the scale of the power, so that
    a bin as bright there as in the fused panel is known no better than to its own size.

    Parameters
    ----------
    source
        Name of the source; the first one by default.
    axes
        One per panel, by default of a new figure: mixture; estimates of at most six orders, if they were kept; fused;
        deviation, if variances were kept.
    dynamic_range
        Decibels from the darkest to the brightest colour.
    max_columns
        Longer recordings are shown as averages of the power of neighbouring frames.
    """
    name = result.source_names[0] if source is None else source
    panels = _source_panels(result, name, max_columns)
    panels.insert(0, _Panel("mixture", _power(result, result.mixture, max_columns)))
    if axes is None:
        columns = min(len(panels), 3)
        rows = -(-len(panels) // columns)
        figure = new_figure(4.2 * columns + 0.9, 2.9 * rows)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for unused in grid.flat[len(panels) :]:
            unused.remove()
        axes = list(grid.flat[: len(panels)])
    _check_axes(axes, len(panels), "spectrograms")
    images = _draw_spectrograms(result, axes, panels, dynamic_range)
    axes[0].figure.colorbar(images[-1], ax=list(axes), label="power [dB re mixture's peak]", aspect=30, pad=0.015)
    return axes[0].figure


def objective_traces(result: Result, *, ax: "Axes | None" = None) -> "Figure | SubFigure":
    """The objective of every fit over the iterations, in nats relative to the best final value.

    The range of the axis leaves out first iterations that rise too far to see the rest beside them.
    """
    ax = one_axes(ax, 6.0, 3.8)
    finals = [last_finite(row) for row in result.trace]
    best = max((value for value in finals if np.isfinite(value)), default=0.0)
    family = colours(len(result.trace))
    for row, label, colour in zip(result.trace, result.trace_labels, family, strict=True):
        ax.plot(result.trace_iterations, row - best, color=colour, label=plain(label), marker="o", markersize=2.5)
    gaps = result.trace.astype(np.float64) - best
    gaps[~np.isfinite(gaps)] = np.nan
    shown = gaps[:, settled(len(result.trace_iterations)) :]
    if np.isfinite(shown).any():
        low, lowest = float(np.nanmin(shown)), float(np.nanmin(gaps))
        low = lowest if lowest > 3.0 * low else low
        ax.set_ylim(1.06 * low if low < 0 else -1.0, max(-0.06 * low, 0.5))
    if len(result.trace_iterations) == 1:  # a lone dot would have an axis of fractions of an iteration
        only = int(result.trace_iterations[0])
        ax.set_xlim(only - 1, only + 1)
        ax.set_xticks([only])
    ax.set_xlabel("iteration")
    ax.set_ylabel("objective − best [nat]")
    ax.set_title(f"Objective of each fit (best: {best:,.0f} nat)", fontsize=10)
    legend(ax, "fit", most=8)
    soften(ax)
    return ax.figure


def order_posterior(
    result: Result, betas: Sequence[float] | None = None, *, axes: "Sequence[Axes] | None" = None
) -> "Figure | SubFigure":
    """Free energies of the orders, and their weights for a sweep of the temperature ([JVR16] Fig. 5).

    The upper panel shows the free energies relative to the best. The lower one shows softmax(log pi + L / (N beta)) for
    each beta, from selection of the best order to the prior, and, thicker, the weights that were used. Weights per
    frame are averaged over the frames.

    Parameters
    ----------
    betas
        Temperatures per frame, in nats; by default some that span selection and prior.
    axes
        Two axes, by default of a new figure.
    """
    if axes is None:
        axes = list(new_figure(6.4, 5.6).subplots(2, 1, sharex=True, height_ratios=(1, 1.5)))
    _check_axes(axes, 2, "order_posterior")
    upper, lower = axes
    places = np.arange(len(result.order_labels))
    relative = result.relative_free_energy
    upper.plot(places, relative, color=_INK, marker="o", markersize=4.5, linewidth=1.2)
    best = int(np.argmax(result.free_energy))
    upper.plot(places[best], relative[best], color=_ACCENT, marker="o", markersize=8, linestyle="none")
    upper.set_ylabel("free energy − best [nat]")
    upper.set_title("Free energy of each order, and posterior over orders", fontsize=10)
    upper.margins(y=0.12)

    betas = _default_betas(result) if betas is None else [float(beta) for beta in betas]
    lower.plot(places, result.prior, color=_GREY, linestyle="--", marker="s", markersize=4, label="∞ (prior)")
    for beta, colour in zip(betas, colours(len(betas)), strict=True):
        weights = posterior_at(result, beta)
        lower.plot(places, weights, color=colour, linewidth=1.4, marker="o", markersize=3.5, label=number(beta))
    # Not computed anew: those of the joint model belong to an earlier iteration's energies, others may have no β.
    tempered = result.method in ("joint", "average")
    used = f"{number(result.beta_per_frame)} (used)" if tempered else f"used: {result.method}"
    style = {"linewidth": 2.8, "marker": "D", "markersize": 5, "zorder": 3}
    lower.plot(places, result.mean_weights, color=_STRONG, label=used, **style)
    top = max(float(np.max(line.get_ydata())) for line in lower.get_lines())
    lower.set_ylim(-0.05 * top, 1.08 * top)
    lower.set_ylabel("posterior probability" if result.weights.ndim == 1 else "posterior, mean over frames")
    lower.set_xlabel(_order_axis(result))
    _order_ticks(lower.xaxis, result)
    legend(lower, "β [nat per frame]")
    for ax in axes:
        soften(ax)
    return upper.figure


def posterior_at(result: Result, beta_per_frame: float) -> Float[np.ndarray, " order"]:
    """The weights of a result at another temperature, averaged over the frames if they are per frame; float64."""
    prior = result.log_prior.astype(np.float64)
    if result.weights.ndim == 1:
        return np.asarray(fusion.vb_weights(result.free_energy, prior, beta_per_frame, frames=result.num_frames))
    return np.asarray(fusion.vb_weights(result.per_frame("split"), prior, beta_per_frame, axis=0)).mean(axis=1)


def weights_over_time(
    result: Result, *, axes: "Sequence[Axes] | None" = None, max_columns: int = _MAX_COLUMNS
) -> "Figure | SubFigure":
    """The weight of each order in each frame as a map, under the waveform of the mixture.

    Parameters
    ----------
    axes
        Two axes, by default of a new figure.
    max_columns
        Longer recordings are shown as averages over neighbouring frames, and as the range of neighbouring samples.
    """
    if axes is None:
        axes = list(new_figure(8.0, 4.2).subplots(2, 1, sharex=True, height_ratios=(1, 1.6)))
    _check_axes(axes, 2, "weights_over_time")
    upper, lower = axes
    times, low, high = envelope(result.mixture, result.rate, max_columns)
    upper.fill_between(times, low, high, color=_ACCENT, linewidth=0.4)
    upper.set_ylabel("amplitude")
    upper.set_title("Mixture, and the weight of each order over time", fontsize=10)
    limit = 1.05 * max(float(np.max(np.abs(low))), float(np.max(np.abs(high))), float(np.finfo(np.float32).tiny))
    upper.set_ylim(-limit, limit)
    soften(upper)

    weights = result.weights.astype(np.float64)
    frames = weights if weights.ndim == 2 else np.repeat(weights[:, None], result.num_frames, axis=1)
    step = -(-result.num_frames // max_columns)
    image = lower.imshow(
        averages(frames, step),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap="cividis",
        vmin=0.0,
        vmax=weights.max(),
        extent=(*time_extent(result.frame_times, step, result.duration), -0.5, len(weights) - 0.5),
    )
    if weights.ndim == 1 and len(weights) <= _MAX_ROWS:
        for place, weight in enumerate(weights):
            lower.text(
                0.5, place, f"{weight:.3f}", ha="center", va="center", fontsize=8,
                color="black" if weight > 0.55 * weights.max() else "white", transform=lower.get_yaxis_transform(),
            )  # fmt: skip
    _order_ticks(lower.yaxis, result)
    lower.set_ylabel(_order_axis(result))
    lower.set_xlabel("time [s]")
    lower.set_xlim(0.0, result.duration)
    upper.set_xlim(0.0, result.duration)
    lower.figure.colorbar(image, ax=list(axes), label="weight", aspect=25)
    return upper.figure


def report(result: Result, *, sources: Sequence[str] | None = None) -> "Figure":
    """One page with everything: spectrograms of the mixture and the sources, weights, free energies, objective.

    Parameters
    ----------
    sources
        Names of the sources shown, by default the first three.
    """
    if not isinstance(result, Result):
        raise ValueError(f"report got {result!r}; expected a Result, as separate or Result.load return it.")
    names = list(result.source_names[:3] if sources is None else sources)
    if not names:
        raise ValueError("report got no source to show; name at least one, or leave `sources` out.")
    width = 4.4 * (1 + len(names)) + 0.9
    with_deviation = result.within is not None
    height = 5.8 if with_deviation else 3.6
    figure = new_figure(max(width, 13.5), height + 6.7)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(height, 6.7), hspace=0.03).flat
    headline, *table = result.summary().splitlines()
    figure.suptitle(f"{plain(headline)}\n{_how_to_read(result)}", fontsize=10.5, color=_INK)

    grid = top.subplots(1 + with_deviation, 1 + len(names), sharex=True, sharey=True, squeeze=False)
    axes, panels = [grid[0, 0]], [_Panel("mixture", _power(result, result.mixture, _MAX_COLUMNS))]
    for column, name in enumerate(names, start=1):
        own = _source_panels(result, name, _MAX_COLUMNS, with_estimates=False)
        axes += list(grid[: len(own), column])
        panels += own
    if with_deviation:
        _text_panel(grid[1, 0], table)
    images = _draw_spectrograms(result, axes, panels, 70.0)
    if with_deviation:  # no panel with labels stands below the first, and none left of the first deviation
        grid[0, 0].set_xlabel("time [s]")
        grid[0, 0].tick_params(labelbottom=True)
        grid[1, 1].set_ylabel("frequency [kHz]")
        grid[1, 1].tick_params(labelleft=True)
    top.colorbar(images[0], ax=list(grid.flat), label="power [dB re mixture's peak]", aspect=35, pad=0.01)

    left, right = bottom.subfigures(1, 2, squeeze=False, width_ratios=(1.15, 1.0), wspace=0.02).flat
    upper, lower = left.subfigures(2, 1, squeeze=False, height_ratios=(1.35, 1.0), hspace=0.03).flat
    weights_over_time(result, axes=list(upper.subplots(2, 1, sharex=True, height_ratios=(1, 1.5))))
    objective_traces(result, ax=lower.subplots())
    order_posterior(result, axes=list(right.subplots(2, 1, sharex=True, height_ratios=(1, 1.4))))
    return figure


def _how_to_read(result: Result) -> str:
    """One line about the page."""
    terms = ["weights: shares of the orders in the sources", "free energy (nats): larger is better"]
    if result.method in ("joint", "average"):
        terms.append("β: temperature, 0 selects, ∞ averages alike")
    return f"How to read this page · {' · '.join(terms)}"


class _Panel(NamedTuple):
    title: str
    power: Float[np.ndarray, "freq column"]


def _source_panels(result: Result, name: str, max_columns: int, with_estimates: bool = True) -> list[_Panel]:
    fused = result.source(name)
    index = result.source_names.index(name)
    panels = []
    if with_estimates and result.estimates is not None:
        weights = result.mean_weights
        for order in sorted(np.argsort(-weights, kind="stable")[:_MAX_PANELS]):
            title = f"{name}, order {result.order_labels[order]} (weight {weights[order]:.2f})"
            panels.append(_Panel(title, _power(result, result.estimates[order, index], max_columns)))
    panels.append(_Panel(f"{name}, fused", _power(result, fused, max_columns)))
    if result.within is not None and result.between is not None:
        variance = (result.within[index] + result.between[index]).mean(axis=0)
        panels.append(_Panel(f"{name}, standard deviation", averages(variance, -(-variance.shape[1] // max_columns))))
    return panels


def _stft(result: Result) -> STFT:
    transform = transform_from_dict(result.transform)
    return transform if isinstance(transform, STFT) else transform.stft


def _power(
    result: Result, waveform: Float[np.ndarray, "channel sample"], max_columns: int
) -> Float[np.ndarray, "freq column"]:
    """Power averaged over channels and over the frames of each column, in bounded memory."""
    stft, length = _stft(result), waveform.shape[-1]
    frames, lead = stft.num_frames(length), stft.overlap - 1
    step = -(-frames // max_columns)
    block = step * -(-2048 // step)
    columns = []
    for first in range(0, frames, block):
        last = min(first + block, frames)
        # The stretch of samples under these frames; its own first frames reach back beyond it.
        start = max(0, first - lead)
        coefficients = stft.analysis(waveform[:, start * stft.hop : min(length, last * stft.hop)])
        power = np.asarray(stft.power(coefficients))[..., first - start : last - start].mean(axis=0)
        columns.append(averages(power, step))
    return np.concatenate(columns, axis=1)


def _draw_spectrograms(
    result: Result, axes: "Sequence[Axes]", panels: Sequence[_Panel], dynamic_range: float
) -> "list[AxesImage]":
    stft = _stft(result)
    frames = stft.num_frames(result.mixture.shape[-1])
    times = stft.frame_times(result.rate, frames)
    step = -(-frames // panels[0].power.shape[1])
    half_bin, nyquist = 0.5 * result.rate / stft.window / 1000.0, result.rate / 2000.0
    extent = (*time_extent(times, step, result.duration), -half_bin, nyquist + half_bin)
    peak = float(panels[0].power.max()) or 1.0
    images = []
    for ax, panel in zip(axes, panels, strict=True):
        # 200 dB below the peak stand for minus infinity, which no colour does.
        level = 10.0 * np.log10(np.maximum(panel.power.astype(np.float64) / peak, 1e-20))
        images.append(
            ax.imshow(
                level,
                origin="lower",
                aspect="auto",
                interpolation="nearest",
                cmap=_MAP,
                vmin=-dynamic_range,
                vmax=0.0,
                extent=extent,
            )
        )
        ax.set_xlim(0.0, result.duration)
        ax.set_ylim(0.0, nyquist)
        ax.set_title(plain(panel.title), fontsize=10)
        ax.set_xlabel("time [s]")
        ax.set_ylabel("frequency [kHz]")
        ax.locator_params(axis="x", nbins=6)
        ax.label_outer()
    return images


def _default_betas(result: Result) -> list[float]:
    """Temperatures from one that all but selects to one that all but leaves the prior, without the result's own."""
    if result.weights.ndim == 1:
        gaps = -result.relative_free_energy / result.num_frames
    else:
        energies = result.per_frame("split")
        gaps = (energies.max(axis=0) - energies).ravel()
    gaps = gaps[(gaps > 0) & np.isfinite(gaps)]
    if not gaps.size:
        return []
    low, high = np.quantile(gaps, (0.1, 0.9))
    spread = {float(f"{beta:.1g}") for beta in np.geomspace(low / 5.0, 5.0 * high, 7)}
    own = result.beta_per_frame
    # Lines nearer to the result's own would lie on it.
    return sorted(beta for beta in spread if own in (0.0, np.inf) or not 0.6 < beta / own < 1.6)


def _order_axis(result: Result) -> str:
    varying = [name for name, column in zip(result.source_names, result.orders.T, strict=True) if np.ptp(column) > 0]
    if len(varying) != 1:
        return "order"
    return plain(f"order of {varying[0]}")


def _order_ticks(axis: Any, result: Result) -> None:
    labels = [plain(label) for label in result.order_labels]
    step = -(-len(labels) // (_MAX_TICKS if axis.axis_name == "x" else _MAX_ROWS))
    slanted = axis.axis_name == "x" and max(map(len, labels)) > 5
    style = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axis.set_ticks(np.arange(0, len(labels), step), labels[::step], fontsize=8, **style)


def _text_panel(ax: "Axes", lines: Sequence[str]) -> None:
    shown = [*lines[:16], "...", lines[-1]] if len(lines) > 18 else lines
    # The axes stay, shared with others; what would show of them goes.
    ax.axis("off")
    text = ax.text(0.0, 1.0, plain("\n".join(shown)), family="monospace", va="top", color=_INK, transform=ax.transAxes)
    # As wide as its panel of some four inches; a character is six tenths of the size wide.
    text.set_fontsize(min(9.0, 3.7 * 72.0 / (0.602 * max(map(len, shown)))))
    text.set_in_layout(False)


def _check_axes(axes: "Sequence[Axes]", expected: int, caller: str) -> None:
    if len(axes) != expected:
        raise ValueError(f"{caller} got {len(axes)} axes for {expected} panels; give one each, or none.")

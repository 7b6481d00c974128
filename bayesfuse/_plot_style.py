"""Reductions and style of the pictures: what does not depend on what is drawn."""

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = "viridis"  # without its light end, which is lost on white


def averages(values: Float[np.ndarray, "row frame"], step: int) -> Float[np.ndarray, "row column"]:
    """Averages over groups of `step` frames, the last of which may be smaller."""
    starts = np.arange(0, values.shape[1], step)
    counts = np.diff(starts, append=values.shape[1])
    return np.add.reduceat(values, starts, axis=1) / counts.astype(values.dtype)


def time_extent(times: Float[np.ndarray, " frame"], step: int, duration: float) -> tuple[float, float]:
    """Left and right end, in seconds, of columns of `step` frames; the last may reach beyond the last frame."""
    hop = float(times[1] - times[0]) if len(times) > 1 else duration
    columns = -(-len(times) // step)
    return float(times[0]) - hop / 2.0, float(times[0]) + (columns * step - 0.5) * hop


def envelope(mixture: Float[np.ndarray, "channel sample"], rate: int, max_columns: int) -> tuple[Any, Any, Any]:
    """Times, smallest and largest values over channels and groups of samples."""
    length = mixture.shape[1]
    starts = np.arange(0, length, -(-length // max_columns))
    ends = np.append(starts[1:], length)
    low = np.minimum.reduceat(mixture.min(axis=0), starts)
    high = np.maximum.reduceat(mixture.max(axis=0), starts)
    return (starts + ends - 1) / 2.0 / rate, low, high


def last_finite(row: Float[np.ndarray, " record"]) -> float:
    finite = row[np.isfinite(row)]
    return float(finite[-1]) if finite.size else float("nan")


def settled(records: int) -> int:
    """The first record that counts for the range of the axis."""
    return 0 if records < 3 else max(1, records // 8)


def number(value: float) -> str:
    return "∞" if value == np.inf else f"{value:.3g}"


def plain(text: str) -> str:
    """The text for Matplotlib, to which dollars are formulas and labels with an underscore in front are hidden."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def colours(count: int) -> Any:
    from matplotlib import colormaps

    return colormaps[_LINES](np.linspace(0.0, 0.88, count))


def legend(ax: "Axes", title: str, most: int = 12) -> None:
    """A legend beside the axes, of some of the lines if there are more than `most`, the last one included."""
    lines = ax.get_lines()
    step = max(1, -(-len(lines) // most))
    ax.legend(
        handles=lines[::-step][::-1], title=title, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8,
        title_fontsize=9, frameon=False,
    )  # fmt: skip


def soften(ax: "Axes") -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)


def one_axes(ax: "Axes | None", width: float, height: float) -> "Axes":
    return new_figure(width, height).subplots() if ax is None else ax


@lru_cache(maxsize=1)
def _figure_class() -> "type[Figure]":
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that notebooks show, though pyplot does not know of it."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=100)
            return buffer.getvalue()

    return NotebookFigure


def new_figure(width: float, height: float) -> "Figure":
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Padding in inches: tick labels of axes that are stacked keep clear of each other.
    return _figure_class()(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.09))

"""Pictures: what is drawn is what was given, axes are labelled, and nothing stays behind."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image as image_files
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from synthetic_results import make_result

from bayesfuse import plots
from bayesfuse._plot_style import averages
from bayesfuse.fusion import vb_weights
from bayesfuse.transforms import QERB, STFT


def decibels(power: np.ndarray, peak: float) -> np.ndarray:
    return 10.0 * np.log10(np.maximum(power.astype(np.float64) / peak, 1e-20))


def panels(figure: Any) -> dict[str, np.ndarray]:
    return {ax.get_title(): np.asarray(ax.get_images()[0].get_array()) for ax in figure.axes if ax.get_images()}


# ------------------------------------------------------------------------------------------------------- spectrograms


def test_spectrograms_show_the_power():
    result = make_result(channels=2, num_orders=3)
    stft = STFT(128, 64)
    figure = plots.spectrograms(result, "noise")
    shown = panels(figure)

    def power(waveform: np.ndarray) -> np.ndarray:
        return stft.power(stft.analysis(waveform)).mean(axis=0)

    mixture = power(result.mixture)
    peak = float(mixture.max())
    names = [f"noise, order {label} (weight {w:.2f})" for label, w in zip((2, 4, 8), result.weights, strict=True)]
    expected = {
        "mixture": mixture,
        **{name: power(waveform[1]) for name, waveform in zip(names, result.estimates, strict=True)},
        "noise, fused": power(result.source("noise")),
        "noise, standard deviation": (result.within + result.between)[1].mean(axis=0),
    }
    assert list(shown) == list(expected)
    for name, values in expected.items():
        # Averages over channels are single precision in another order: some 1e-6 of the power, 1e-5 dB.
        np.testing.assert_allclose(shown[name], decibels(values, peak), atol=1e-4)
    scales = {ax.get_images()[0].get_clim() for ax in figure.axes if ax.get_images()}
    assert len([ax for ax in figure.axes if ax.get_title()]) == 6 and (-70.0, 0.0) in scales


def test_bins_lie_at_their_times_and_frequencies():
    result = make_result()
    axes = plots.spectrograms(result).axes[0]
    left, right, bottom, top = axes.get_images()[0].get_extent()
    rows, columns = axes.get_images()[0].get_array().shape
    times = left + (np.arange(columns) + 0.5) * (right - left) / columns
    frequencies = bottom + (np.arange(rows) + 0.5) * (top - bottom) / rows
    np.testing.assert_allclose(times, result.frame_times, atol=1e-12)
    np.testing.assert_allclose(frequencies, result.frequencies / 1000.0, atol=1e-12)
    assert axes.get_xlim() == (0.0, result.duration) and axes.get_ylim() == (0.0, 4.0)


@pytest.mark.parametrize("max_columns", [7, 40, 63, 64])
def test_long_recordings_are_averaged(max_columns):
    result = make_result(with_estimates=False, dtype=np.float64)
    stft = STFT(128, 64)
    power = stft.power(stft.analysis(result.mixture))[0]
    step = -(-power.shape[1] // max_columns)
    groups = [power[:, k : k + step].mean(axis=1) for k in range(0, power.shape[1], step)]
    expected = np.stack(groups, axis=1)
    image = plots.spectrograms(result, max_columns=max_columns).axes[0].get_images()[0]
    assert image.get_array().shape[1] <= max_columns
    np.testing.assert_allclose(image.get_array(), decibels(expected, expected.max()), atol=1e-9)


@pytest.mark.parametrize("hop", [8, 4, 2])
def test_blocks_do_not_show(hop):
    # 5000 and more frames: several blocks of 2048, each with another stretch of samples.
    samples = 5000 * hop + 3
    result = make_result(samples=samples, window=16, with_estimates=False, with_variances=False, dtype=np.float64)
    stft = STFT(16, hop)
    frames = plots._power(make_like(result, stft), result.mixture, 10**6)
    np.testing.assert_allclose(frames, stft.power(stft.analysis(result.mixture))[0], rtol=1e-12)


def make_like(result: Any, stft: STFT) -> Any:
    """A result of the same sound under another transform."""
    frames = stft.num_frames(result.mixture.shape[1])
    changed: dict[str, Any] = {
        "mixture": result.mixture,
        "sources": result.sources,
        "transform": stft.to_dict(),
        "energy_frames": np.zeros((4, frames)),
        "frame_times": stft.frame_times(result.rate, frames),
    }
    shape = {"samples": result.mixture.shape[1], "window": 16, "with_estimates": False, "with_variances": False}
    return make_result(**shape, **changed)


def test_bands_are_shown_as_the_bins_behind_them():
    result = make_result(rate=16000, samples=8000, window=1024, transform=QERB(16000.0).to_dict())
    assert panels(plots.spectrograms(result))["mixture"].shape[0] == 513


def test_silence_is_dark():
    silent = make_result(mixture=np.zeros((1, 4000), np.float32))
    np.testing.assert_allclose(panels(plots.spectrograms(silent))["mixture"], -200.0)


# ------------------------------------------------------------------------------------------------------------- curves


def test_objective_traces():
    result = make_result(records=20)
    trace = result.trace.copy()
    trace[1, 12:] = np.nan  # stopped early
    result = make_result(records=20, trace=trace)
    ax = plots.objective_traces(result).axes[0]
    finals = [trace[0, -1], trace[1, 11], trace[2, -1], trace[3, -1]]
    for line, row, label in zip(ax.get_lines(), trace, result.trace_labels, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), result.trace_iterations)
        np.testing.assert_allclose(line.get_ydata(), row - max(finals), rtol=1e-12)
        assert line.get_label() == label
    assert "nat" in ax.get_ylabel() and ax.get_xlabel() == "iteration" and ax.get_legend() is not None
    low, high = ax.get_ylim()
    assert low < np.nanmin(trace[:, 2:] - max(finals)) and high > 0


def test_a_lone_objective_value_has_an_axis_of_iterations():
    ax = plots.objective_traces(make_result(records=1)).axes[0]
    assert ax.get_xticks().tolist() == [1] and ax.get_xlim() == (0, 2)


@pytest.mark.parametrize(("method", "tempered"), [("joint", True), ("average", True), ("select", False)])
def test_the_report_says_how_to_read_it(method, tempered):
    title = plots.report(make_result(method=method)).get_suptitle()
    assert "How to read this page · weight" in title and "larger is better" in title
    assert ("β: temperature" in title) == ("beta 20" in title) == tempered


def test_a_report_is_of_a_result():
    with pytest.raises(ValueError, match="report got 'x'; expected a Result"):
        getattr(plots.report, "__wrapped__", plots.report)("x")


@pytest.mark.parametrize("per_frame", [False, True])
def test_order_posterior(per_frame):
    result = make_result(per_frame=per_frame)
    betas = [0.5, 20.0, 1e4]
    upper, lower = plots.order_posterior(result, betas).axes
    np.testing.assert_allclose(upper.get_lines()[0].get_ydata(), result.free_energy - result.free_energy.max())
    prior, *sweep, used = lower.get_lines()
    np.testing.assert_allclose(prior.get_ydata(), np.exp(result.log_prior), rtol=1e-12)
    assert len(sweep) == 3
    for line, beta in zip(sweep, betas, strict=True):
        if per_frame:
            frames = [vb_weights(column, result.log_prior, beta) for column in result.per_frame("split").T]
            expected = np.mean(frames, axis=0)
        else:
            expected = vb_weights(result.free_energy, result.log_prior, beta * result.num_frames)
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(used.get_ydata(), result.mean_weights)
    assert [text.get_text() for text in lower.get_legend().get_texts()] == [
        "∞ (prior)",
        "0.5",
        "20",
        "1e+04",
        "20 (used)",
    ]
    assert "nat" in lower.get_legend().get_title().get_text() and lower.get_xlabel() == "order of speech"
    assert [text.get_text() for text in lower.get_xticklabels()] == list(result.order_labels)


@pytest.mark.parametrize("beta", [0.0, 1e-3, 20.0, 1e9, np.inf])
def test_default_betas_span_selection_and_prior(beta):
    result = make_result(samples=20_000, beta_per_frame=beta, log_prior=np.zeros(4))
    _, *sweep, used = plots.order_posterior(result).axes[1].get_lines()
    # The coldest is a fifth of the small gaps, 1 / (1 + exp(-5)) between two; the hottest five times the large ones,
    # exp(-1/5) between two.
    assert sweep[0].get_ydata()[np.argmax(result.free_energy)] > 0.7
    assert np.abs(np.log(sweep[-1].get_ydata() / result.prior)).max() < 0.5
    assert "(used)" in used.get_label()
    assert plots.order_posterior(make_result(method="mean")).axes[1].get_lines()[-1].get_label() == "used: mean"


@pytest.mark.parametrize("per_frame", [False, True])
def test_weights_over_time(per_frame):
    result = make_result(per_frame=per_frame, channels=2)
    upper, lower = plots.weights_over_time(result).axes[:2]
    shown = lower.get_images()[0].get_array()
    expected = result.weights if per_frame else np.repeat(result.weights[:, None], result.num_frames, axis=1)
    np.testing.assert_array_equal(shown, expected)
    assert [text.get_text() for text in lower.get_yticklabels()] == list(result.order_labels)
    values = [f"{weight:.3f}" for weight in result.weights] if not per_frame else []
    assert [text.get_text() for text in lower.texts] == values
    area = upper.collections[0].get_paths()[0].vertices
    assert area[:, 1].min() == result.mixture.min() and area[:, 1].max() == result.mixture.max()
    assert lower.get_xlabel() == "time [s]"


def test_the_waveform_keeps_its_peaks():
    mixture = np.zeros((1, 4000), np.float32)
    mixture[0, 1234] = 0.7
    upper = plots.weights_over_time(make_result(mixture=mixture), max_columns=50).axes[0]
    points = upper.collections[0].get_paths()[0].vertices
    assert len(points) < 150 and points[:, 1].max() == np.float32(0.7)
    assert points[np.argmax(points[:, 1]), 0] == pytest.approx(1234 / 8000, abs=40 / 8000)


def test_averages_of_a_group_that_is_cut_short():
    values = np.arange(10.0).reshape(2, 5)
    np.testing.assert_array_equal(averages(values, 2), [[0.5, 2.5, 4.0], [5.5, 7.5, 9.0]])


# ---------------------------------------------------------------------------------------------------- the whole figures

CASES: dict[str, dict[str, Any]] = {
    "usual": {},
    "per frame": {"per_frame": True},
    "bare": {"with_estimates": False, "with_variances": False, "num_sources": 1},
    "one sample": {"samples": 1, "window": 16, "num_orders": 1, "records": 1},
    "no trace": {"records": 0},
    "ruled out": {"energy_dictionary": np.array([0.0, -np.inf, 0.0, 0.0])},
    "all ruled out": {"energy_dictionary": np.full(4, -np.inf)},
    "many orders": {
        "num_orders": 60,
        "with_estimates": False,
        "order_labels": tuple(f"speech={k}, noise=16" for k in range(60)),
        "orders": np.stack([1 + np.arange(60), 100 - np.arange(60)], axis=1),
    },
    "odd names": {
        "source_names": ("$x^{", "_hidden"),
        "order_labels": ("$", "_a", r"\frac", "%s"),
        "trace_labels": ("$\\", "_b", "$$", "{}"),
        "version": "$",
    },
}


LABELS = {
    plots.spectrograms: {"time [s]", "frequency [kHz]", "power [dB re mixture's peak]"},
    plots.objective_traces: {"iteration", "objective − best [nat]"},
    plots.order_posterior: {"free energy − best [nat]"},
    plots.weights_over_time: {"time [s]", "amplitude", "weight"},
}
LABELS[plots.report] = set().union(*LABELS.values())


@pytest.mark.parametrize("plot", LABELS)
@pytest.mark.parametrize("case", CASES)
def test_every_figure_can_be_drawn(plot, case):
    figure = plot(make_result(**CASES[case]))
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    assert {text for ax in figure.axes for text in (ax.get_xlabel(), ax.get_ylabel())} >= LABELS[plot]
    assert np.isfinite([[*ax.get_xlim(), *ax.get_ylim()] for ax in figure.axes]).all()


@pytest.mark.parametrize("case", ["usual", "per frame", "many orders"])
def test_texts_of_the_report_do_not_overlap(case):
    figure = plots.report(make_result(samples=24_000, **CASES[case]))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for text in visible_texts(figure) if text.get_text().strip()]
    # Within a box there is leading above and below the letters.
    boxes = [(text.get_text(), text.get_window_extent(renderer).shrunk(0.96, 0.8)) for text in texts]
    assert len(boxes) > 60
    page = figure.bbox.padded(2.0)
    for index, (name, box) in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, name
        for other, place in boxes[index + 1 :]:
            assert not box.overlaps(place), (name, other)


def visible_texts(figure: Figure) -> Iterator[Text]:
    """All texts but those of slanted ticks, whose boxes overlap though their letters do not."""
    for ax in figure.axes:
        yield from ax.texts
        if not ax.axison:
            continue
        yield from (ax.title, ax.xaxis.label, ax.yaxis.label)
        if ax.get_legend() is not None:
            yield from (ax.get_legend().get_title(), *ax.get_legend().get_texts())
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for place, tick in zip(axis.get_majorticklocs(), axis.get_major_ticks(), strict=True):
                label = tick.label1 if tick.label1.get_visible() else tick.label2
                if low <= place <= high and label.get_visible() and label.get_rotation() == 0:
                    yield label


def test_axes_of_the_caller_are_used():
    result = make_result(num_orders=2)
    figure = Figure()
    ax = figure.add_subplot()
    assert plots.objective_traces(result, ax=ax) is figure and len(ax.get_lines()) == 2
    figure = Figure(figsize=(10, 6))
    axes = list(figure.subplots(1, 5))
    assert plots.spectrograms(result, axes=axes) is figure
    assert all(ax.get_images() for ax in axes)
    with pytest.raises(ValueError, match="spectrograms got 2 axes for 5 panels"):
        plots.spectrograms(result, axes=axes[:2])
    with pytest.raises(ValueError, match="order_posterior got 1 axes for 2 panels"):
        plots.order_posterior(result, axes=axes[:1])


def test_unknown_sources_are_named():
    with pytest.raises(ValueError, match="no source 'drums'"):
        plots.spectrograms(make_result(), "drums")
    with pytest.raises(ValueError, match="no source to show"):
        plots.report(make_result(), sources=[])


def test_the_report_can_be_saved_and_read(tmp_path):
    figure = plots.report(make_result())
    plots.save(figure, tmp_path / "report.png")
    pixels = image_files.imread(tmp_path / "report.png")
    assert pixels.shape[0] >= 150 * 10 and pixels.shape[1] >= 150 * 10  # an inch and more per 150 pixels
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]
    with pytest.raises(ValueError, match="no folder"):
        plots.save(figure, tmp_path / "none" / "report.png")
    with pytest.raises(ValueError, match="nonsense"):
        plots.save(figure, tmp_path / "report.nonsense")
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


def test_notebooks_show_figures():
    data = plots.objective_traces(make_result())._repr_png_()  # pyright: ignore[reportAttributeAccessIssue]
    assert image_files.imread(io.BytesIO(data)).shape[2] == 4


def test_pyplot_is_not_involved():
    program = (
        "from synthetic_results import make_result\n"
        "from bayesfuse import plots\n"
        "import io, sys\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.report(make_result()).savefig(io.BytesIO())\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    here = Path(__file__).resolve().parent
    paths = f"import sys; sys.path[:0] = {[str(here), str(here.parent)]}\n"
    subprocess.run([sys.executable, "-c", paths + program], check=True, timeout=300)

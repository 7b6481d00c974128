"""Speed of BSS Eval against other implementations that are measured in the same run, each with its aim.

    python benchmarks/speed_metrics.py                 # everything, about five minutes on two cores
    python benchmarks/speed_metrics.py --only a,b      # some letters
    python benchmarks/speed_metrics.py --repeats 3

(a) v3 sources vs mir_eval            (c) v3 images vs mir_eval
(b) v3 sources vs fast_bss_eval       (d) v4 vs museval

Version 3: seven estimates of one mixture of two sources, 10 s at 16 kHz. Version 4: one set of estimates of four stereo
sources, 10 s at 44.1 kHz, windows of 1 s. Filters of 512 taps, float64. Competing calls alternate, so that both see the
same load of the machine; the reported ratio is that of the medians. The numbers must agree: the largest difference of a
ratio below 80 dB is printed. An implementation that is not installed is skipped:

    python -m pip install mir_eval fast_bss_eval museval      # museval needs ffmpeg
"""

import importlib
import math
import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import _common as common
import numpy as np
from _sections import Row, run

from bayesfuse import bss_eval


class Size(NamedTuple):
    """Size of the problems; tests use a smaller one."""

    seconds: float = 10.0
    rate: int = 16_000
    models: int = 7
    music_rate: int = 44_100
    music_sources: int = 4


def draw_sources(sources: int, channels: int, samples: int, seed: int) -> np.ndarray:
    """Noise with a falling spectrum and a slowly moving level, [source, channel, sample]."""
    from scipy.signal import lfilter

    rng = np.random.default_rng(seed)
    sounds = lfilter([1.0], [1.0, -0.9], rng.standard_normal((sources, channels, samples)))
    steps = np.linspace(0, 1, samples)
    level = np.stack([np.interp(steps, np.linspace(0, 1, 40), rng.gamma(1.0, 1.0, 40)) for _ in range(sources)])
    return sounds * (level + 1e-2)[:, None]


def draw_estimates(references: np.ndarray, models: int, seed: int) -> np.ndarray:
    """Estimates [model, source, channel, sample] with leakage and noise, better and worse."""
    rng = np.random.default_rng(seed)
    strength = np.geomspace(0.5, 0.02, models)[:, None, None, None]
    noise = rng.standard_normal((models, *references.shape)) * references.std()
    return references + strength * (np.roll(references, 1, axis=0) + 0.3 * noise)


def gap(ours: Any, theirs: Any) -> float:
    """The largest difference in dB of ratios whose magnitude is below 80 dB."""
    ours, theirs = (np.stack([np.asarray(ratio) for ratio in ratios]) for ratios in (ours, theirs))
    return float(np.abs(ours - theirs)[np.abs(theirs) < 80].max())


def optional(name: str) -> ModuleType | str:
    """The module, or why there is none."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        return f"skipped: {error}"


def row(letter: str, what: str, aim: float | None, repeats: int, ours: Any, theirs: Any, read: Any, note: str) -> Row:
    """Time two calls in turn and compare what they return; `read` takes the ratios out of their result."""
    times = common.interleaved({"ours": ours, "theirs": theirs}, repeats=repeats)
    first, second = times["ours"], times["theirs"]
    detail = (
        f"{second.median:.2f} s / {first.median:.3f} s (spread {100 * max(first.spread, second.spread):.0f} %); "
        f"largest difference {gap(*read(ours(), theirs())):.0e} dB; {note}"
    )
    return Row(letter, what, second.median / first.median, "x", aim, True, detail)


def speech(size: Size) -> tuple[np.ndarray, np.ndarray]:
    references = draw_sources(2, 1, int(size.seconds * size.rate), seed=0)
    return references, draw_estimates(references, size.models, seed=1)


def sources_vs_mir_eval(size: Size, repeats: int) -> list[Row]:
    what = f"v3 sources, {size.models} estimates, vs mir_eval"
    module = optional("mir_eval.separation")
    if isinstance(module, str):
        return [Row("a", what, math.nan, "x", 10, True, module)]
    references, estimates = (x[..., 0, :] for x in speech(size))
    ours = partial(bss_eval.bss_eval_sources, references, estimates)

    def theirs() -> Any:
        return [module.bss_eval_sources(references, estimate, False)[:3] for estimate in estimates]

    def read(a: Any, b: Any) -> Any:
        return (a.sdr, a.sir, a.sar), np.swapaxes(b, 0, 1)

    return [row("a", what, 10, repeats, ours, theirs, read, "no permutation")]


def sources_vs_fast_bss_eval(size: Size, repeats: int) -> list[Row]:
    what = f"v3 sources, {size.models} estimates, vs fast_bss_eval"
    module = optional("fast_bss_eval")
    if isinstance(module, str):
        return [Row("b", what, math.nan, "x", 1, True, module)]
    references, estimates = (x[..., 0, :] for x in speech(size))
    ours = partial(bss_eval.bss_eval_sources, references, estimates, permute=True)
    theirs = partial(module.bss_eval_sources, np.broadcast_to(references, estimates.shape), estimates)

    def read(a: Any, b: Any) -> Any:
        return (a.sdr, a.sir, a.sar), b[:3]

    # Without permutation, its NumPy version 0.1.4 stops with an error under NumPy 2.
    return [row("b", what, 1, repeats, ours, theirs, read, "best permutation, NumPy, all estimates in one call")]


def images_vs_mir_eval(size: Size, repeats: int) -> list[Row]:
    what = f"v3 images, {size.models} estimates, vs mir_eval"
    module = optional("mir_eval.separation")
    if isinstance(module, str):
        return [Row("c", what, math.nan, "x", None, True, module)]
    references, estimates = speech(size)
    ours = partial(bss_eval.bss_eval_images, references, estimates)
    samples_first = references.swapaxes(1, 2)

    def theirs() -> Any:
        return [module.bss_eval_images(samples_first, e.swapaxes(1, 2), False)[:4] for e in estimates]

    def read(a: Any, b: Any) -> Any:
        return a.ratios, np.swapaxes(b, 0, 1)

    return [row("c", what, None, repeats, ours, theirs, read, "mono, no permutation")]


def v4_vs_museval(size: Size, repeats: int) -> list[Row]:
    what = f"v4, {size.music_sources} stereo sources, vs museval"
    module = optional("museval.metrics")
    if isinstance(module, str):
        return [Row("d", what, math.nan, "x", 5, True, module)]
    references = draw_sources(size.music_sources, 2, int(size.seconds * size.music_rate), seed=2)
    estimates = draw_estimates(references, 1, seed=3)[0]
    window = size.music_rate
    ours = partial(bss_eval.bss_eval_v4, references, estimates, size.music_rate)
    theirs = partial(module.bss_eval, references.swapaxes(1, 2), estimates.swapaxes(1, 2), window=window, hop=window)

    def read(a: Any, b: Any) -> Any:
        return a.ratios, b[:4]

    # It takes half a minute a call.
    return [row("d", what, 5, min(repeats, 2), ours, theirs, read, "no permutation, one set of estimates")]


SECTIONS: dict[str, Callable[[Size, int], list[Row]]] = {
    "a": sources_vs_mir_eval,
    "b": sources_vs_fast_bss_eval,
    "c": images_vs_mir_eval,
    "d": v4_vs_museval,
}


def main(arguments: list[str] | None = None) -> None:
    # The other implementations announce their end on every call.
    warnings.simplefilter("ignore")
    sections = {letter: partial(section, Size()) for letter, section in SECTIONS.items()}
    run(__doc__, sections, arguments, repeats=5, about="512 taps, float64, median of {repeats} calls")


if __name__ == "__main__":
    main()

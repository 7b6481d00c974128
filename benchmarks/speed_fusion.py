"""Speed and memory of the fusion oracles against general solvers, measured in the same run, each with its aim.

    python benchmarks/speed_fusion.py                 # everything, about eight minutes on two cores, 2 GB of disk
    python benchmarks/speed_fusion.py --only o,q      # some letters

(o) oracle weights, 7 estimates, vs a loop of scipy.optimize SLSQP with analytic gradient
(q) oracle weights, 7 estimates, vs qpax, vmapped and compiled (skipped where it is not installed)
(s) 100,000 frames of 32 estimates in one call
(t) peak memory (Linux) of the oracles per frame, and per frame and band, on two hours of audio, from files to files

The frames are those of a noisy source with estimates of different quality. SLSQP is timed on some of them and its
time extrapolated linearly. Competing calls alternate; the reported ratio is that of the medians.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import _common as common
import jax
import numpy as np
from _sections import Row, in_subprocess, run

from bayesfuse.fusion import Gram, gram, kkt_residual, oracle_weights, squared_error


class Size(NamedTuple):
    """Size of the problems; tests use a smaller one."""

    frames: int = 10_000
    models: int = 7
    slsqp_frames: int = 300
    many_frames: int = 100_000
    many_models: int = 32
    minutes: float = 120.0


def draw_frames(frames: int, models: int, seed: int = 0) -> Gram:
    """Grams of frames of 512 samples whose estimates have errors of their own, of different sizes, and a common one."""
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, frames, 1000):
        count = min(1000, frames - start)
        # The Gram of n samples of independent signals is Wishart: its factor is as good as the samples.
        rank = min(models + 2, 512)
        reference = rng.normal(size=(count, rank))
        errors = rng.gamma(1.0, 1.0, (models, count, 1)) * rng.normal(size=(models, count, rank))
        parts.append(gram(reference, reference + 0.5 * (errors + rng.normal(size=(count, rank)))))
    return Gram.concatenate(parts)


def slsqp_loop(g: Gram) -> np.ndarray:
    """One call of the general solver for each frame, scaled to unit energy, from uniform weights."""
    from scipy.optimize import minimize

    models = g.num_models
    ones, start = np.ones(models), np.full(models, 1.0 / models)
    weights = []
    for energy, cross, matrix in zip(g.energy, g.cross, g.gram, strict=True):
        d, G = cross / energy, matrix / energy
        found = minimize(
            lambda a, d=d, G=G: a @ G @ a - 2.0 * (a @ d),
            start,
            jac=lambda a, d=d, G=G: 2.0 * (G @ a - d),
            bounds=[(0.0, 1.0)] * models,
            constraints=[{"type": "eq", "fun": lambda a: a.sum() - 1.0, "jac": lambda a: ones}],
            method="SLSQP",
            options={"ftol": 1e-10},
        )
        weights.append(found.x)
    return np.array(weights)


def _excess(weights: np.ndarray, g: Gram) -> float:
    """The largest squared error beyond that of the exact minimiser, relative to the energy of the source."""
    return float(np.max((squared_error(weights, g) - squared_error(oracle_weights(g), g)) / g.energy))


def oracle_vs_slsqp(size: Size, repeats: int) -> list[Row]:
    g = draw_frames(size.frames, size.models)
    some = g.take(slice(0, size.slsqp_frames))
    times = common.interleaved({"ours": lambda: oracle_weights(g), "loop": lambda: slsqp_loop(some)}, repeats=repeats)
    ours, loop = times["ours"].median, times["loop"].median * size.frames / size.slsqp_frames
    detail = (
        f"{loop:.1f} s (from {size.slsqp_frames} frames) / {ours:.3f} s; largest KKT residual "
        f"{kkt_residual(oracle_weights(g), g).max():.0e}; SLSQP's error is up to {_excess(slsqp_loop(some), some):.0e} "
        "of the source's energy higher"
    )
    return [
        Row("o", f"oracle of {size.frames} frames, M = {size.models}, vs SLSQP", loop / ours, "x", 50, True, detail)
    ]


def oracle_vs_qpax(size: Size, repeats: int) -> list[Row]:
    what = f"oracle of {size.frames} frames, M = {size.models}, vs qpax"
    if importlib.util.find_spec("qpax") is None:
        return [Row("q", what, float("nan"), "x", 2, True, "qpax is not installed")]
    import jax.numpy as jnp
    import qpax

    g = draw_frames(size.frames, size.models)
    models = size.models
    with jax.enable_x64(True):
        ones, zero, identity = jnp.ones((1, models)), jnp.zeros(models), -jnp.eye(models)

        def one(matrix: Any, cross: Any, energy: Any) -> Any:
            # Scaled to unit energy: its tolerance is absolute.
            return qpax.solve_qp(matrix / energy, -cross / energy, ones, jnp.ones(1), identity, zero)[0]

        batched = jax.jit(jax.vmap(one))
        arrays = [jnp.asarray(part) for part in (g.gram, g.cross, g.energy)]
        times = common.interleaved(
            {"ours": lambda: oracle_weights(g), "qpax": lambda: batched(*arrays)}, repeats=repeats
        )
        excess = _excess(np.asarray(batched(*arrays)), g)
    ours, theirs = times["ours"].median, times["qpax"].median
    detail = f"{theirs:.2f} s / {ours:.3f} s, after compilation; its error is up to {excess:.0e} of the energy higher"
    return [Row("q", what, theirs / ours, "x", 2, True, detail)]


def many_estimates(size: Size, repeats: int) -> list[Row]:
    g = draw_frames(size.many_frames, size.many_models)
    seconds = common.interleaved({"ours": lambda: oracle_weights(g)}, repeats=1, warm=False)["ours"].median
    residual = float(kkt_residual(oracle_weights(g), g).max())
    what = f"KKT residual of {size.many_frames} frames, M = {size.many_models}"
    return [Row("s", what, residual, "", 1e-8, False, f"of the Gram's scale; {seconds:.1f} s")]


_LONG = """
import json, re, sys, tempfile, time
from pathlib import Path
import numpy as np, soundfile
from bayesfuse import audio
from bayesfuse.fusion import Bands, fuse_blocks, grams_of_blocks, oracle_weights, sdr
from bayesfuse.transforms import STFT
seconds, models, banded = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "banded"
rate, block = 16000, 1 << 19
# Not getrusage, whose peak is inherited from the process that started this one.
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
rng = np.random.default_rng(0)
transform, bands = STFT(), Bands(rate) if banded else None
with tempfile.TemporaryDirectory() as folder:
    paths = [Path(folder, f"{m}.wav") for m in range(1 + models)]
    files = [soundfile.SoundFile(path, "w", rate, 1, "PCM_16") for path in paths]
    for start in range(0, int(seconds * rate), block):
        count = min(block, int(seconds * rate) - start)
        reference = 0.05 * rng.standard_normal(count, np.float32)
        for m, file in enumerate(files):
            loudness = 0.02 * rng.gamma(1.0, 1.0, -(-count // 8000)).repeat(8000)[:count]
            noise = loudness * rng.standard_normal(count, np.float32)
            file.write(reference + (m > 0) * noise.astype(np.float32))
    for file in files:
        file.close()
    def stacked(paths):
        for parts in zip(*(audio.blocks(path, block) for path in paths), strict=True):
            yield np.stack([samples for _, samples in parts])
    before, start = peak(), time.perf_counter()
    pairs = ((part[0], part[1:]) for part in stacked(paths))
    grams = grams_of_blocks(pairs, transform=transform, bands=bands)
    weights = [oracle_weights(g.sum(0)).astype(np.float32) for g in grams]
    weights = np.moveaxis(np.concatenate(weights), -1, 0)
    with soundfile.SoundFile(Path(folder, "fused.wav"), "w", rate, 1, "PCM_16") as fused:
        for part in fuse_blocks(weights, stacked(paths[1:]), transform=transform, bands=bands):
            fused.write(part.T)
    elapsed = time.perf_counter() - start
    length = audio.info(Path(folder, "fused.wav")).samples
report = {"before": before, "peak": peak(), "seconds": elapsed, "frames": weights.shape[1], "samples": length}
print("REPORT" + json.dumps(report))
"""


def long_file(size: Size, repeats: int) -> list[Row]:
    rows = []
    for kind in ("per frame", "per frame and band"):
        arguments = (str(60 * size.minutes), str(size.models), "banded" if kind.endswith("band") else "plain")
        report = in_subprocess(_LONG, *arguments)
        detail = (
            f"{report['before']:.2f} GiB before; {size.models} estimates at 16 kHz, {report['frames']} frames; files "
            f"read, weighted and written in {report['seconds']:.0f} s"
        )
        what = f"peak memory, oracle {kind}, {size.minutes:g} minutes"
        rows.append(Row("t", what, report["peak"], " GiB", 1.0, False, detail))
    return rows


SECTIONS: dict[str, Callable[[Size, int], list[Row]]] = {
    "o": oracle_vs_slsqp,
    "q": oracle_vs_qpax,
    "s": many_estimates,
    "t": long_file,
}


def main(arguments: list[str] | None = None) -> None:
    sections = {letter: partial(section, Size()) for letter, section in SECTIONS.items()}
    run(__doc__, sections, arguments, repeats=3, about="float64, median of {repeats}")


if __name__ == "__main__":
    main()

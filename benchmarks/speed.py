"""Speed against baselines that are measured in the same run, each with its aim.

    python benchmarks/speed.py                 # everything, about ten minutes on two cores
    python benchmarks/speed.py --only a,f      # some letters
    python benchmarks/speed.py --repeats 3

(a) single-order VB-NMF, orders 2..128, vs NumPy/SciPy       (e) floating-point rate vs bare matrix products
(b) VB-NMF vs ML-NMF of this library, order 128              (f) moments of 1e6 GIG entries vs scipy.special.kve
(c) ML-NMF vs scikit-learn                                   (g) time to first result of `bayesfuse demo`
(d) joint model of seven orders vs seven runs                (h) peak memory of separating 10 s and 10 min

Problem: F = 513 frequencies, N = 300 frames, 50 iterations, float32. Competing calls alternate, so that both see the
same load of the machine; the reported ratio is that of the medians. Compilation is timed apart.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import _common as common
import _reference as reference
import jax
import jax.numpy as jnp
import numpy as np
from _sections import Row, in_subprocess, run

from bayesfuse import gig, inference, nmf
from bayesfuse.special import fixed_order
from bayesfuse.vbnmf import Posterior, Prior, Variant, make_prior

ORDERS = (2, 4, 8, 16, 32, 64, 128)


class Size(NamedTuple):
    """Size of the problem; tests use a smaller one."""

    freq: int = 513
    frames: int = 300
    iters: int = 50
    entries: int = 1_000_000
    orders: tuple[int, ...] = ORDERS
    minutes: tuple[float, ...] = (1 / 6, 10.0)


def draw_power(size: Size, order: int = 32, seed: int = 0) -> np.ndarray:
    """Power spectrogram drawn from an NMF of smooth spectra and sparse activations, mean 1, float32."""
    rng = np.random.default_rng(seed)
    W = np.exp(np.cumsum(rng.normal(0, 0.3, (size.freq, order)), axis=0))
    V = (W / W.mean(0)) @ rng.gamma(0.2, 5.0, (order, size.frames)) + 1e-3
    power = V * rng.exponential(size=V.shape)
    return (power / power.mean()).astype(np.float32)


def single(power: np.ndarray, order: int) -> tuple[Posterior, Prior]:
    """Start and prior of a VB-NMF of one source, dictionary and activations learned."""
    prior = make_prior([[order]], activation_mean=[[1.0 / order]], dtype=power.dtype)
    return inference.start(power, [[order]], prior, ml_iters=0), prior


def vb_vs_reference(size: Size, repeats: int) -> list[Row]:
    power = draw_power(size)
    ours, theirs, firsts, gaps, details = 0.0, 0.0, 0.0, [], []
    for order in size.orders:
        q0, prior = single(power, order)
        factor = q0.components[0][0]
        start = [np.asarray(factor.dictionary.mean), np.asarray(factor.activations.mean)]
        settings: dict[str, float] = {"a": 0.2, "b": 0.2, "rate": 0.2 * order, "noise": float(prior.noise)}
        fast = partial(inference.fit, power, q0, prior, num_iters=size.iters)
        plain = partial(reference.fit, power, start[0], start[1], **settings, num_iters=size.iters)
        times = common.interleaved({"ours": fast, "plain": plain}, repeats=repeats)
        expected = reference.free_energy(power, *plain(), **settings)
        gaps.append(abs(fast().free_energy.total - expected) / abs(expected))
        ours, theirs = ours + times["ours"].median, theirs + times["plain"].median
        firsts += times["ours"].first - times["ours"].median
        details.append(f"{times['plain'].median / times['ours'].median:.0f}")
    detail = (
        f"{theirs:.2f} s / {ours:.3f} s; by order {' '.join(details)}; free energies agree to {max(gaps):.0e}; "
        f"compilation of all orders {firsts:.1f} s"
    )
    return [Row("a", "VB-NMF, orders 2..128, vs NumPy/SciPy", theirs / ours, "x", 30, True, detail)]


def vb_vs_ml(size: Size, repeats: int) -> list[Row]:
    power, order = draw_power(size), size.orders[-1]
    rows = []
    for learned in (True, False):
        rng = np.random.default_rng(1)
        W = rng.gamma(2.0, 0.5, (size.freq, order)).astype(np.float32)
        W /= W.mean(0)
        H = np.ones((order, size.frames), np.float32) / order
        prior = make_prior([[order]], activation_mean=[[1.0 / order]], dtype=power.dtype)
        q0 = single(power, order)[0] if learned else inference.start(power, [[W]], prior, ml_iters=0)
        times = common.interleaved(
            {
                "vb": partial(inference.fit, power, q0, prior, num_iters=size.iters),
                "ml": partial(nmf.fit, power, [W], [H], learn=[learned], noise=1e-6, num_iters=size.iters),
            },
            repeats=repeats,
        )
        vb, ml = times["vb"], times["ml"]
        detail = f"{1e3 * vb.median / size.iters:.2f} / {1e3 * ml.median / size.iters:.2f} ms per iteration"
        detail += f", matrix products {8 if learned else 4} / {6 if learned else 3}"
        what = f"VB vs ML iteration, order {order}, dictionary {'learned' if learned else 'fixed'}"
        rows.append(Row("b", what, vb.median / ml.median, "x", 1.5, False, detail))
    return rows


def ml_vs_sklearn(size: Size, repeats: int) -> list[Row]:
    import warnings

    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    power = draw_power(size)
    target = np.ascontiguousarray(np.maximum(power, 1e-10).T)
    ours, theirs, gaps, details = 0.0, 0.0, [], []
    for order in size.orders:
        rng = np.random.default_rng(2)
        W = rng.gamma(2.0, 0.5, (size.freq, order)).astype(np.float32)
        H = rng.gamma(2.0, 0.5 / order, (order, size.frames)).astype(np.float32)

        def plain(order: int = order, W: np.ndarray = W, H: np.ndarray = H) -> tuple[np.ndarray, np.ndarray]:
            model = NMF(order, init="custom", solver="mu", beta_loss="itakura-saito", tol=0.0, max_iter=size.iters)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                left = model.fit_transform(target, W=np.ascontiguousarray(H.T), H=np.ascontiguousarray(W.T))
            return left, model.components_

        # scikit-learn takes the square root of the ratio, hence exponent 1/2 for the same iterates.
        fast = partial(nmf.fit, power, [W], [H], learn=[True], num_iters=size.iters, exponent=0.5)
        times = common.interleaved({"ours": fast, "plain": plain}, repeats=repeats)
        left, right = plain()
        cost = float(nmf.itakura_saito(target.astype(np.float64), (left @ right).astype(np.float64)))
        gaps.append(abs(float(fast().cost[-1]) - cost) / cost)
        ours, theirs = ours + times["ours"].median, theirs + times["plain"].median
        details.append(f"{times['plain'].median / times['ours'].median:.1f}")
    detail = f"{theirs:.2f} s / {ours:.3f} s; by order {' '.join(details)}; divergences agree to {max(gaps):.0e}"
    return [Row("c", "ML-NMF, orders 2..128, vs scikit-learn", theirs / ours, "x", 8, True, detail)]


def products(orders: tuple[int, ...], second: int, second_learned: bool) -> int:
    """Multiply-adds of one iteration over F N: columns that pass through a matrix product.

    E[W] E[H] and its harmonic twin are needed once after every update of a factor; an update takes two products.
    """
    return 4 * sum(orders) + (8 if second_learned else 4) * second


def joint_vs_singles(size: Size, repeats: int, variants: Sequence[Variant] = ("marginal", "explicit")) -> list[Row]:
    power, second = draw_power(size), 16
    rng = np.random.default_rng(3)
    fixed = [rng.gamma(0.5, 2.0, (size.freq, order)).astype(np.float32) + 1e-3 for order in size.orders]
    rows = []
    for variant in variants:
        means = [[1.0] * len(size.orders), [1.0 / second]]

        def build(candidates: list[Any], means: list[list[float]], variant: Variant = variant) -> Callable[[], Any]:
            orders = [[W.shape[1] for W in candidates], [second]]
            prior = make_prior(orders, activation_mean=means, beta=1e4, dtype=power.dtype)
            q0 = inference.start(power, [candidates, [second]], prior, variant=variant, ml_iters=0)
            return partial(inference.fit, power, q0, prior, num_iters=size.iters)

        joint = build(fixed, means)
        singles = [build([W], [[1.0], [1.0 / second]]) for W in fixed]
        times = common.interleaved({"joint": joint, "singles": lambda s=singles: [f() for f in s]}, repeats=repeats)
        separate = sum(products((order,), second, True) for order in size.orders)
        together = products(size.orders, second, True)
        predicted = 1 - together / separate
        saving = 1 - times["joint"].median / times["singles"].median
        detail = (
            f"{times['singles'].median:.3f} s / {times['joint'].median:.3f} s = "
            f"{times['singles'].median / times['joint'].median:.2f}x; products predict {separate}/{together} = "
            f"{separate / together:.2f}x, a saving of {100 * predicted:.0f} %; compilation "
            f"{times['joint'].first - times['joint'].median:.1f} s vs "
            f"{times['singles'].first - times['singles'].median:.1f} s"
        )
        what = f"joint model vs {len(fixed)} runs, {variant}: share of the saving"
        rows.append(Row("d", what, 100 * saving / predicted, " %", 80, True, detail))
    return rows


def achieved_rate(size: Size, repeats: int) -> list[Row]:
    power, order = draw_power(size), size.orders[-1]
    q0, prior = single(power, order)
    factor = q0.components[0][0]
    W, H = np.asarray(factor.dictionary.mean), np.asarray(factor.activations.mean)
    pairs = [(W, H)] * 4 + [(power, np.ascontiguousarray(H.T))] * 2 + [(np.ascontiguousarray(W.T), power)] * 2
    on_device = [(jnp.asarray(a), jnp.asarray(b)) for a, b in pairs]
    product = jax.jit(jnp.matmul)

    def bare(multiply: Callable[..., Any], operands: list[Any]) -> Any:
        return [[multiply(a, b) for a, b in operands] for _ in range(size.iters)][-1]

    times = common.interleaved(
        {
            "fit": partial(inference.fit, power, q0, prior, num_iters=size.iters),
            "NumPy's BLAS": partial(bare, np.matmul, pairs),
            "XLA": partial(bare, product, on_device),
        },
        repeats=repeats,
    )
    operations = 8 * 2 * size.freq * size.frames * order * size.iters / 1e9
    rates = {name: operations / timing.median for name, timing in times.items()}
    fit = rates.pop("fit")
    others = ", ".join(f"{rate:.1f} ({name})" for name, rate in rates.items())
    detail = f"{fit:.1f} GFLOP/s in the eight products of an iteration; the same products alone: {others}"
    best = max(rates.values())
    return [Row("e", f"rate vs bare matrix products, order {order}", 100 * fit / best, " %", 50, True, detail)]


def gig_vs_kve(size: Size, repeats: int) -> list[Row]:
    rows = []
    for dtype in (np.float32, np.float64):
        rng = np.random.default_rng(4)
        rho = np.exp(rng.normal(0, 3, size.entries)).astype(dtype)
        tau = np.exp(rng.normal(-3, 6, size.entries)).astype(dtype)
        with jax.enable_x64(dtype == np.float64):
            order = fixed_order(0.2, dtype)
            moments = jax.jit(gig.moments)
            device = jnp.asarray(rho), jnp.asarray(tau)
            fast = partial(moments, order, *device)
            plain = partial(reference.gig_moments, 0.2, rho, tau)
            times = common.interleaved({"ours": fast, "plain": plain}, repeats=repeats)
            mean, harmonic = map(np.asarray, fast())
            mean64, inverse64 = reference.gig_moments(0.2, rho.astype(np.float64), tau.astype(np.float64))
        gap = max(np.max(np.abs(mean / mean64 - 1)), np.max(np.abs(harmonic * inverse64 - 1)))
        detail = (
            f"{1e3 * times['plain'].median:.0f} / {1e3 * times['ours'].median:.2f} ms; moments agree to {gap:.0e}; "
            f"compilation {times['ours'].first:.2f} s"
        )
        what = f"moments of {size.entries:.0e} GIG entries vs SciPy kve, {np.dtype(dtype).name}"
        aim = 40 if dtype == np.float32 else None
        rows.append(Row("f", what, times["plain"].median / times["ours"].median, "x", aim, True, detail))
    return rows


_DEMO = """
import json, sys, time
start = time.perf_counter()
import jax.monitoring
seconds = [0.0]
def listen(event, duration, **_):
    if event.startswith("/jax/core/compile/"):
        seconds[0] += duration
jax.monitoring.register_event_duration_secs_listener(listen)
from bayesfuse.cli import main
code = main(["demo", "--no-cache", "-o", sys.argv[1]])
report = {"seconds": time.perf_counter() - start, "compile": seconds[0], "code": code or 0}
print("REPORT" + json.dumps(report))
"""


def first_result(size: Size, repeats: int) -> list[Row]:
    import importlib.util

    what = "time to first result of `bayesfuse demo`"
    if importlib.util.find_spec("bayesfuse.cli") is None:
        return [Row("g", what, math.nan, " s", 60, False, "skipped: bayesfuse.cli is not there yet")]
    with tempfile.TemporaryDirectory() as folder:
        report = in_subprocess(_DEMO, os.path.join(folder, "demo"))
    share = report["compile"] / report["seconds"]
    detail = (
        f"one cold process, imports included, no caches; compilation {report['compile']:.1f} s = {100 * share:.0f} %"
    )
    return [Row("g", what, report["seconds"], " s", 60, False, detail)]


_MEMORY = """
import json, re, sys, time
from pathlib import Path
import numpy as np
from bayesfuse.dictionary import Dictionary
from bayesfuse.separation import separate
from bayesfuse.transforms import STFT
rate, seconds, orders = 16000, float(sys.argv[1]), json.loads(sys.argv[2])
rng = np.random.default_rng(0)
def dictionary(order):
    weights = np.exp(np.cumsum(rng.normal(0, 0.3, (513, order)), axis=0)).astype(np.float32)
    return Dictionary(weights / weights.mean(0), rate, STFT().to_dict())
mixture = rng.normal(0, 0.1, (1, int(seconds * rate))).astype(np.float32)
mixture *= np.repeat(rng.gamma(0.5, 2.0, -(-mixture.size // 1000)), 1000)[: mixture.size].astype(np.float32)
speech, noise = [dictionary(order) for order in orders], dictionary(32)
# Not getrusage, whose peak is inherited from the process that started this one.
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
start = time.perf_counter()
separate(mixture, rate, {"speech": speech, "noise": noise})
report = {"before": before, "peak": peak(), "seconds": time.perf_counter() - start}
print("REPORT" + json.dumps(report))
"""


def peak_memory(size: Size, repeats: int) -> list[Row]:
    rows = []
    if not os.path.exists("/proc/self/status"):
        return [Row("h", "peak memory", math.nan, " MiB", None, False, "skipped: read from /proc, which is not there")]
    for minutes in size.minutes:
        report = in_subprocess(_MEMORY, str(60 * minutes), json.dumps(list(size.orders)))
        detail = (
            f"{report['before']:.0f} MiB before the call; joint model of {len(size.orders)} orders at 16 kHz in "
            f"{report['seconds']:.1f} s, compilation included"
        )
        what = f"peak memory of separating {60 * minutes:.0f} s"
        rows.append(Row("h", what, report["peak"], " MiB", None, False, detail))
    return rows


SECTIONS: dict[str, Callable[[Size, int], list[Row]]] = {
    "a": vb_vs_reference,
    "b": vb_vs_ml,
    "c": ml_vs_sklearn,
    "d": joint_vs_singles,
    "e": achieved_rate,
    "f": gig_vs_kve,
    "g": first_result,
    "h": peak_memory,
}


def main(arguments: list[str] | None = None) -> None:
    size = Size()
    sections = {letter: partial(section, size) for letter, section in SECTIONS.items()}
    run(
        __doc__,
        sections,
        arguments,
        repeats=5,
        about=f"F = {size.freq}, N = {size.frames}, {size.iters} iterations, float32, median of {{repeats}}",
    )


if __name__ == "__main__":
    main()

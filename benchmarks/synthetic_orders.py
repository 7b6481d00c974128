"""Mixtures drawn from the model itself: Table 1 of [JVR14] beside the printed numbers.

    python benchmarks/synthetic_orders.py --data ../shared/data/mini-chime

The experiment of [JVR14] section 4. 42 conditions, seven orders of the generating speech model times six SNRs, of 300
frames of an STFT with half-overlapping windows of 2048 samples. Speech dictionaries are learned twice, on two
disjoint halves of one speaker's training utterances: one half generates, the other separates. The background is
generated with a dictionary of order 16 learned on ten seconds of noise and separated with one of order 16 that is
learned on the mixture. Activations are drawn from Gamma(0.2, 0.2), sources from the model, the noise has the
variance 1e-6.

Separation as in the paper: the explicit variant, 50 iterations, the entropy of the order posterior weighted by
beta = 1e4, E[W2] drawn from its prior with E[1/W2] = 1 / E[W2], activations constant. Extra rows: the marginal variant
from the same start, and the library's defaults (marginal; normalised scale; start by vector quantisation). Scores are
the SDR of the speech waveform. Records of examples are kept in the cache folder: an interrupted run goes on.

Not stated in the paper and chosen here: the constants of the activations (the prior mean, 1), the scale of the
dictionaries (mean activation 1 on the training data at mean power 1), which source takes the SNR's gain (the
background), the order of updates (sources, dictionaries, activations, orders).

[JVR14] X. Jaureguiberry, E. Vincent, G. Richard, "Variational Bayesian model averaging for audio source
separation", IEEE Workshop on Statistical Signal Processing, 2014.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _common as common
import jax.numpy as jnp
import numpy as np

from bayesfuse import audio, estimates, fusion, inference, metrics
from bayesfuse._compile_cache import compile_cache
from bayesfuse.datasets import MiniChime
from bayesfuse.dictionary import Dictionary, train_dictionary
from bayesfuse.inference import Fit
from bayesfuse.separators.vb_nmf import Settings, fit_joint
from bayesfuse.transforms import STFT
from bayesfuse.vbnmf import Component, Factor, Posterior, make_prior

ORDERS = (2, 4, 8, 16, 32, 64, 128)
SNRS = (-6, -3, 0, 3, 6, 9)
BACKGROUND_ORDER = 16
NOISE = 1e-6
SHAPE = 0.2
BETA = 1e4
ITERATIONS = 50


class Example(NamedTuple):
    """STFT coefficients of one condition."""

    order: int
    snr: int
    speech: np.ndarray
    mixture: np.ndarray


def generate(
    rng: np.random.Generator, speech: np.ndarray, background: np.ndarray, snr: int, frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [freq, frame] of a speech source and of a mixture, drawn from the model."""

    def circular(variance: np.ndarray) -> np.ndarray:
        return np.sqrt(variance / 2) * (rng.normal(size=variance.shape) + 1j * rng.normal(size=variance.shape))

    def source(W: np.ndarray) -> np.ndarray:
        return circular(W @ rng.gamma(SHAPE, 1 / SHAPE, (W.shape[1], frames)))

    first, second = source(speech), source(background)
    gain = np.sqrt(np.sum(np.abs(first) ** 2) / np.sum(np.abs(second) ** 2) / 10 ** (snr / 10))
    mixture = first + gain * second + circular(np.full(first.shape, NOISE))
    return first.astype(np.complex64), mixture.astype(np.complex64)


def paper_start(
    rng: np.random.Generator, power: np.ndarray, dictionaries: Sequence[np.ndarray], variant: Any
) -> tuple[Posterior, Any]:
    """Start and prior as in [JVR14], for one or several speech dictionaries and a learned background.

    `inference.fit` divides the power by its mean. In that unit the paper's model, whose priors have mean 1 in the
    unit of the data, has activations of prior mean 1 / mean, and the noise is divided likewise.
    """
    freq, frames = power.shape
    mean = float(power.mean(dtype=np.float64))
    drawn = rng.gamma(SHAPE, 1 / SHAPE, (freq, BACKGROUND_ORDER)).astype(power.dtype)
    prior = make_prior(
        [[W.shape[1] for W in dictionaries], [BACKGROUND_ORDER]],
        a=SHAPE,
        b=SHAPE,
        noise=NOISE / mean,
        beta=BETA,
        activation_mean=[[1 / mean] * len(dictionaries), [1 / mean]],
        temper="entropy",
        dtype=power.dtype,
    )

    def component(weights: np.ndarray, learned: bool) -> Component:
        W = jnp.asarray(weights, power.dtype)
        unset = jnp.full_like(W, jnp.nan)
        H = jnp.full((W.shape[1], frames), 1 / mean, power.dtype)
        dictionary = Factor(W, W, unset, unset, learned=True) if learned else Factor(W, W)
        return Component(dictionary, Factor(H, H, jnp.full_like(H, jnp.nan), jnp.full_like(H, jnp.nan), learned=True))

    components = (tuple(component(W, False) for W in dictionaries), (component(drawn, True),))
    if variant == "explicit":
        return Posterior(components, prior.order, jnp.ones((2, freq, frames), power.dtype), "explicit"), prior
    return Posterior(components, (prior.order[0] + prior.order[1],), None, "marginal"), prior


def fits(
    power: np.ndarray, dictionaries: Sequence[Dictionary], method: str, seed: int
) -> tuple[list[Fit], Fit, float, float]:
    """Single-order fits and the joint fit of one example, and the seconds that they took."""
    if method == "default":
        settings = Settings(num_iters=ITERATIONS, beta_per_frame=BETA / power.shape[1])

        def fit(chosen: Sequence[int]) -> Fit:
            return fit_joint(power, [[dictionaries[m] for m in chosen], [BACKGROUND_ORDER]], settings, seed=seed)

    else:

        def fit(chosen: Sequence[int]) -> Fit:
            rng = np.random.default_rng(seed)  # the same draw of E[W2] for every order
            q0, prior = paper_start(rng, power, [np.asarray(dictionaries[m].weights) for m in chosen], method)
            return inference.fit(power, q0, prior, num_iters=ITERATIONS)

    start = time.perf_counter()
    singles = [fit([m]) for m in range(len(dictionaries))]
    middle = time.perf_counter()
    joint = fit(range(len(dictionaries)))
    return singles, joint, middle - start, time.perf_counter() - middle


def score(example: Example, dictionaries: Sequence[Dictionary], method: str, seed: int) -> dict[str, Any]:
    """SDR of every rule on one example, free energies, q(K), and times."""
    freq, frames = example.mixture.shape
    transform = STFT(2 * (freq - 1), freq - 1)
    length = (frames - 1) * transform.hop
    power = transform.power(example.mixture)
    truth = transform.synthesis(example.speech, length)
    singles, joint, seconds_singles, seconds_joint = fits(power, dictionaries, method, seed)
    gains = [estimates.moments(power, fit).gains[0] for fit in [*singles, joint]]
    signals = np.stack([transform.synthesis(g * example.mixture, length) for g in gains])
    g = fusion.gram(truth, signals[:-1])
    energies = np.array([fit.free_energy.total for fit in singles])
    rules = {
        "selection": fusion.select_weights(energies),
        "mean": fusion.mean_weights(len(singles)),
        "average": fusion.vb_weights(energies, None, BETA),
        "oracle": np.asarray(fusion.best_weights(g)),
    }
    sdr = {name: float(fusion.sdr(weights, g)) for name, weights in rules.items()}
    sdr["fusion"] = float(metrics.sdr(truth, signals[-1]))
    return {
        "order": example.order,
        "snr": example.snr,
        "sdr": sdr,
        "mixture": float(metrics.sdr(truth, transform.synthesis(example.mixture, length))),
        "free_energy": energies.tolist(),
        "selected": int(energies.argmax()),
        "best": int(rules["oracle"].argmax()),
        "probabilities": np.asarray(joint.posterior.order_probabilities(0)).tolist(),
        "seconds_singles": seconds_singles,
        "seconds_joint": seconds_joint,
    }


def prepare(
    data: MiniChime, speaker: str, noise: str | None, cache: Path, *, window: int = 2048, seed: int = 0
) -> tuple[list[Dictionary], list[Dictionary], Dictionary]:
    """Dictionaries for generation and for separation, of disjoint halves of the speech, and of the background."""
    transform = STFT(window, window // 2)
    speech = list(data.training_speech(speaker))
    shuffled = np.random.default_rng(seed).permutation(len(speech))
    halves = [[speech[i] for i in part] for part in np.array_split(shuffled, 2)]
    trained = [
        train_dictionary(half, data.rate, list(ORDERS), transform=transform, cache=cache, progress=True)
        for half in halves
    ]
    name = noise or sorted({item.metadata["noise"] for item in data.mixtures("train")[:40]})[0]
    recording, _ = audio.read(data.path / "noise" / f"{name}.flac", rate=data.rate)
    ten_seconds = [recording[:, : 10 * data.rate]]
    background = train_dictionary(ten_seconds, data.rate, BACKGROUND_ORDER, transform=transform, cache=cache)
    return trained[0], trained[1], background


METHODS = {"explicit": "explicit, as the paper", "marginal": "marginal, the same start", "default": "library defaults"}


def report(records: dict[str, list[dict[str, Any]]]) -> str:
    """Table 1, the computation times, and the paper's claims, as text."""
    printed = common.expected("jvr14")
    table1 = printed["table1"]
    names = {"selection": "VB selection", "fusion": "VB fusion", "oracle": "oracle selection", "mean": "fusion by mean"}
    first = next(iter(records.values()))
    snrs = sorted({r["snr"] for r in first})
    body = []
    for rule, label in names.items():
        row = table1[rule]
        cells = [f"{row['sdr_db'][table1['snr_db'].index(s)]:.2f}" for s in snrs]
        body.append([f"{label}, printed", *cells, f"{row['average_db']:.2f}", f"{row['time_ms']:.1f}"])
        for method, found in records.items():
            body.append([f"  {METHODS[method]}", *_row(found, rule, snrs)])
    for method, found in records.items():
        body.append([f"average of the single fits, {METHODS[method]}", *_row(found, "average", snrs)])
    body.append(["mixture", *(f"{np.mean([r['mixture'] for r in first if r['snr'] == s]):.2f}" for s in snrs), "", ""])
    header = ["SDR (dB)", *(f"{s:+d} dB" for s in snrs), "average", "time (ms)"]
    parts = [common.table(header, body, title=f"[JVR14] Table 1, {len(first)} examples; intervals over examples, 95 %")]
    lines = []
    for method, found in records.items():
        lines.append(f"{METHODS[method]}:")
        for a, b, claim in (
            ("fusion", "selection", printed["claims"]["fusion_minus_selection_db"]),
            ("fusion", "mean", 0.0),
            ("oracle", "selection", printed["claims"]["oracle_minus_selection_db"]),
        ):
            gap = _paired([r["sdr"][a] - r["sdr"][b] for r in found], found)
            if claim:
                verdict = "met" if gap.mean >= claim - gap.half else "not met"
                text = f"printed {claim:.1f} dB"
            else:
                verdict = "met" if gap.mean - gap.half > 0 else "not met" if gap.mean + gap.half < 0 else "undecided"
                text = "printed: above"
            lines.append(f"  {names[a]} - {names[b]}: {gap} dB ({text}): {verdict}")
        ratio = np.median([r["seconds_singles"] / r["seconds_joint"] for r in found])
        speedup = printed["claims"]["speedup"]
        verdict = "met" if ratio >= speedup else "not met"
        lines.append(f"  joint model {ratio:.2f}x faster than seven fits (printed {speedup}x): {verdict}")
        orders = [[ORDERS[r[k]] for r in found] for k in ("selected", "best")]
        lines.append(f"  orders selected by free energy {_counts(orders[0])}; best by SDR {_counts(orders[1])}")
    return "\n\n".join([*parts, "\n".join(lines)])


def _paired(values: list[float], found: list[dict[str, Any]]) -> common.Estimate:
    """Examples are independent draws; the SNRs are a design."""
    return common.clustered_mean(values, range(len(values)), strata=[r["snr"] for r in found])


def _row(found: list[dict[str, Any]], rule: str, snrs: Sequence[int]) -> list[str]:
    values = np.array([r["sdr"][rule] for r in found])
    at = np.array([r["snr"] for r in found])
    key = "seconds_joint" if rule == "fusion" else "seconds_singles"
    milliseconds = 1e3 * float(np.median([r[key] for r in found]))
    return [
        *(f"{values[at == s].mean():.2f}" for s in snrs),
        str(_paired(values.tolist(), found)),
        f"{milliseconds:.0f}",
    ]


def _counts(orders: list[int]) -> str:
    return ", ".join(f"{order}: {orders.count(order)}" for order in ORDERS if order in orders)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder mini-chime")
    parser.add_argument("--speaker", default="bdl", help="whose dictionaries (default: bdl)")
    parser.add_argument("--noise", help="which noise recording of the training split (default: the first)")
    parser.add_argument("--draws", type=int, default=1, help="examples per condition (default: 1, as the paper)")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"some of {','.join(METHODS)}")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--out", help="JSON file for the record of every example")
    parser.add_argument("--cache", help="folder for trained dictionaries (default: the user's cache)")
    parser.add_argument("--limit", type=int, help="only so many conditions, to try the script")
    options = parser.parse_args(arguments)
    cache = common.cache_folder(options.cache)
    methods = options.methods.split(",")
    if unknown := set(methods) - set(METHODS):
        parser.error(f"unknown methods {sorted(unknown)}: expected some of {','.join(METHODS)}")
    try:
        data = MiniChime(options.data)
        generating, separating, background = prepare(data, options.speaker, options.noise, cache / "dictionaries")
    except (OSError, ValueError) as error:
        common.fail(str(error))
        return
    print(common.environment(), flush=True)
    from tqdm.auto import tqdm

    conditions = [(d, m, snr) for d in range(options.draws) for snr in SNRS for m in range(len(ORDERS))]
    conditions = conditions[: options.limit]
    store = common.Records(cache / "synthetic_orders.jsonl")
    tag = f"{common.fingerprint(__file__)}/{options.speaker}/{options.noise}/{options.frames}"
    keys = {(m, c): f"{tag}/{m}/{c}" for m in methods for c in conditions}

    def example(draw: int, m: int, snr: int) -> Example:
        rng = np.random.default_rng([draw, m, SNRS.index(snr)])
        drawn = generate(rng, generating[m].weights, background.weights, snr, options.frames)
        return Example(ORDERS[m], snr, *drawn)

    with compile_cache(cache / "programs"):
        for method in tqdm(methods, desc="compiling", unit="method"):  # once before, so that the times are without it
            if any(keys[method, c] not in store for c in conditions):
                score(example(*conditions[0]), separating, method, seed=0)
        for seed, condition in enumerate(tqdm(conditions, desc="conditions", unit="example")):
            for method in methods:
                if keys[method, condition] not in store:
                    found = score(example(*condition), separating, method, seed=seed)
                    store.append({"key": keys[method, condition], **found})
    records = {method: [store[keys[method, c]] for c in conditions] for method in methods}
    print("\n" + report(records))
    print("\ntimes are medians per example, compilation apart")
    if options.out:
        common.write_text(options.out, json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()

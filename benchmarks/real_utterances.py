"""Real speech in real household noise: model orders, their averages and the joint model, in dB of SDR.

    python benchmarks/real_utterances.py --data ../shared/data/mini-chime
    python benchmarks/real_utterances.py --data ../shared/data/mini-chime --full --transform both --out results.json

The experiment of [JVR16] VI.B-G on the set mini-chime. Speech dictionaries of orders 2..128 are learned on all training
utterances of the speaker, a noise dictionary of order 32 on the first five seconds of the mixture itself, less a guard
before the onset. ML-NMF and VB-NMF separate the whole mixture once per order; scores are `metrics.sdr` on the
utterance. The temperature of the Bayesian average, and that of the joint model, are learned on the quick items of
the validation split. Intervals are 95 %, two-way clustered by utterance and by noise recording (items that share
either are not independent), with the SNR as a fixed factor.

Results of every item are kept in the cache folder as they come; a run that was interrupted goes on where it stopped,
and a change of the library's numerical code starts afresh.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import _common as common
import numpy as np

from bayesfuse import estimates, fusion, metrics, nmf, wiener
from bayesfuse._compile_cache import compile_cache
from bayesfuse.datasets import MiniChime, Mixture
from bayesfuse.dictionary import Dictionary, train_dictionary
from bayesfuse.separators.vb_nmf import Settings, fit_joint
from bayesfuse.transforms import QERB, STFT, Transform

ORDERS = (2, 4, 8, 16, 32, 64, 128)
NOISE_ORDER = 32
GUARD = 4  # frames between the end of the noise that is learned from and the onset
BETAS = (10.0, 30.0, 100.0, 300.0)  # tried for the joint model, nats per frame


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that does not depend on the item."""

    transform: Transform
    settings: Settings
    orders: tuple[int, ...]
    speech: dict[str, list[Dictionary]]


def noise_dictionary(item: Mixture, transform: Transform) -> Dictionary:
    """Dictionary of the background, learned on the part of the mixture before the onset."""
    hop = transform.to_dict().get("hop", 512)
    return train_dictionary([item.background()[:, : -GUARD * hop]], item.rate, NOISE_ORDER, transform=transform)


def score_gains(
    item: Mixture, X: np.ndarray, gains: Sequence[np.ndarray], transform: Transform
) -> tuple[fusion.Gram, np.ndarray]:
    """Scalar products and SDR on the utterance, of the speech estimates that gains per band yield."""
    length = item.mixture.shape[-1]
    signals = np.stack([transform.synthesis(transform.expand(g) * X, length) for g in gains])
    truth, found = item.scored(item.sources["speech"])[0], item.scored(signals)
    return fusion.gram(truth, found), np.asarray(metrics.sdr(truth, found), np.float64)


def ml_gains(power: np.ndarray, speech: Dictionary, noise: Dictionary, settings: Settings) -> np.ndarray:
    level = settings.noise * float(power.mean(dtype=np.float64))
    fixed = [np.asarray(speech.weights), np.asarray(noise.weights)]
    result = nmf.fit(power, fixed, learn=[False, False], noise=level, num_iters=settings.num_iters)
    return np.asarray(wiener.gains(np.asarray(result.variances), level))[0]


def separate_orders(item: Mixture, experiment: Experiment, method: str) -> dict[str, Any]:
    """Record of one item: scalar products of the estimates of all orders and, for VB-NMF, their free energies."""
    transform, settings = experiment.transform, experiment.settings
    X = transform.analysis(item.mixture[0])
    power = transform.power(X)
    noise = noise_dictionary(item, transform)
    gains, totals, inside = [], [], []
    frames = scored_frames(item, transform)
    start = time.perf_counter()
    for speech in experiment.speech[item.metadata["speaker"]]:
        if method == "ml":
            gains.append(ml_gains(power, speech, noise, settings))
            continue
        fit = fit_joint(power, [[speech], [noise]], settings)
        gains.append(estimates.combination_gains(fit, 0)[0])
        totals.append(fit.free_energy.total)
        inside.append(float(fit.free_energy.per_frame()[frames].sum()))
    seconds = time.perf_counter() - start
    gram, sdrs = score_gains(item, X, gains, transform)
    truth = item.scored(item.sources["speech"])[0]
    return {
        "mixture": float(metrics.sdr(truth, item.scored(item.mixture)[0])),
        "sdr": sdrs.tolist(),
        "energy": float(gram.energy),
        "cross": np.asarray(gram.cross).tolist(),
        "gram": np.asarray(gram.gram).tolist(),
        "free_energy": totals,
        "free_energy_scored": inside,
        "frames": power.shape[1],
        "frames_scored": int(frames.sum()),
        "seconds": seconds,
    }


def scored_frames(item: Mixture, transform: Transform) -> np.ndarray:
    """Which frames have their centre in the utterance."""
    count = transform.num_frames(item.mixture.shape[-1])
    centres = transform.frame_times(item.rate, count) * item.rate
    return (centres >= item.segment[0]) & (centres < item.segment[1])


def separate_joint(item: Mixture, experiment: Experiment, variant: Any, betas: Sequence[float]) -> dict[str, Any]:
    """Record of one item: SDR of the joint model and its q(K) for each temperature."""
    transform = experiment.transform
    X = transform.analysis(item.mixture[0])
    power = transform.power(X)
    model = [list(experiment.speech[item.metadata["speaker"]]), [noise_dictionary(item, transform)]]
    gains, weights, seconds = [], [], []
    for beta in betas:
        settings = dataclasses.replace(experiment.settings, variant=variant, beta_per_frame=beta)
        start = time.perf_counter()
        fit = fit_joint(power, model, settings)
        seconds.append(time.perf_counter() - start)
        gains.append(estimates.moments(power, fit).gains[0])
        weights.append(np.asarray(fit.posterior.order_probabilities(0)).tolist())
    _, sdrs = score_gains(item, X, gains, transform)
    return {"sdr": sdrs.tolist(), "weights": weights, "seconds": seconds}


# Running -----------------------------------------------------------------------------------------------------------


def run(
    items: Sequence[Mixture],
    work: Callable[[Mixture], dict[str, Any]],
    records: common.Records,
    prefix: str,
    *,
    threads: int,
) -> list[dict[str, Any]]:
    """Records of all items, in their order; those at hand are not computed again."""
    from tqdm.auto import tqdm

    names = items.names if hasattr(items, "names") else [item.name for item in items]
    missing = [i for i, name in enumerate(names) if f"{prefix}/{name}" not in records]

    def one(index: int) -> dict[str, Any]:
        item = items[index]
        about = {"snr": item.metadata["snr_db"], "utterance": item.group, "noise": item.metadata["noise"]}
        return {"key": f"{prefix}/{names[index]}", **about, **work(item)}

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(one, index) for index in missing]
        try:
            for future in tqdm(
                as_completed(futures), total=len(names), initial=len(names) - len(missing), desc=prefix, unit="item"
            ):
                records.append(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [records[f"{prefix}/{name}"] for name in names]


def grams(records: Iterable[dict[str, Any]]) -> fusion.Gram:
    """The scalar products of all records, stacked."""
    return fusion.Gram.stack(
        [fusion.Gram(np.array(r["energy"]), np.array(r["cross"]), np.array(r["gram"])) for r in records]
    )


def learn_temperature(
    records: Sequence[dict[str, Any]], energies: str = "free_energy", frames: str = "frames"
) -> float:
    """The temperature per frame of the Bayesian average with the best mean SDR on the records."""
    return fusion.learn_beta(grams(records), np.array([r[energies] for r in records]), [r[frames] for r in records])


def rows_of(
    records: Sequence[dict[str, Any]], orders: Sequence[int], beta: float | None, beta_scored: float | None = None
) -> dict[str, np.ndarray]:
    """SDR of every item under every rule that combines the orders; rows that need free energies only with `beta`."""
    g = grams(records)
    sdrs = np.array([r["sdr"] for r in records])
    rows = {"mixture": np.array([r["mixture"] for r in records])}
    rows |= {f"order {order}": sdrs[:, m] for m, order in enumerate(orders)}
    rows["mean of the orders"] = np.asarray(fusion.sdr(fusion.mean_weights(len(orders)), g))
    if beta is not None:
        energies = np.array([r["free_energy"] for r in records])
        frames = np.array([r["frames"] for r in records])
        rows["VB selection"] = np.asarray(fusion.sdr(fusion.select_weights(energies), g))
        weights = fusion.vb_weights(energies, None, beta, frames=frames)
        rows["Bayesian average"] = np.asarray(fusion.sdr(weights, g))
    if beta_scored is not None:
        energies = np.array([r["free_energy_scored"] for r in records])
        frames = np.array([r["frames_scored"] for r in records])
        rows["selection, utterance's frames"] = np.asarray(fusion.sdr(fusion.select_weights(energies), g))
        weights = fusion.vb_weights(energies, None, beta_scored, frames=frames)
        rows["average, utterance's frames"] = np.asarray(fusion.sdr(weights, g))
    rows["oracle selection"] = sdrs.max(axis=1)
    rows["oracle fusion"] = np.asarray(fusion.sdr(fusion.oracle_weights(g), g))
    return rows


def evaluate(
    data: MiniChime,
    transform: Transform,
    settings: Settings,
    records: common.Records,
    *,
    cache: Path,
    full: bool = False,
    orders: tuple[int, ...] = ORDERS,
    threads: int = 2,
    limit: int | None = None,
) -> dict[str, Any]:
    """Records and temperatures of one transform: what `report` prints."""
    from tqdm.auto import tqdm

    speech = {
        speaker: train_dictionary(
            list(data.training_speech(speaker)), data.rate, list(orders), transform=transform, cache=cache
        )
        for speaker in tqdm(data.speakers, desc="speech dictionaries", unit="speaker")
    }
    experiment = Experiment(transform, settings, orders, speech)
    test = data.mixtures("test", None if full else True)[:limit]
    val = data.mixtures("val", True)[:limit]
    tag = f"{common.fingerprint(__file__)}/{transform.name}/{len(orders)}"
    bayes = f"{tag}/b{settings.b:g}/a{settings.a:g}/i{settings.num_iters}"

    def orders_of(items: Any, method: str) -> list[dict[str, Any]]:
        prefix = f"{tag}/ml" if method == "ml" else f"{bayes}/vb"
        return run(items, lambda m: separate_orders(m, experiment, method), records, prefix, threads=threads)

    def joint_of(items: Any, variant: str, betas: Sequence[float]) -> list[dict[str, Any]]:
        prefix = f"{bayes}/{variant}/{','.join(f'{b:g}' for b in betas)}"
        return run(items, lambda m: separate_joint(m, experiment, variant, betas), records, prefix, threads=threads)

    learned = orders_of(val, "vb")
    betas = {
        "average": learn_temperature(learned),
        "scored": learn_temperature(learned, "free_energy_scored", "frames_scored"),
    }
    joint: dict[str, list[dict[str, Any]]] = {}
    for variant in ("marginal", "explicit"):
        tried = np.array([r["sdr"] for r in joint_of(val, variant, BETAS)])
        betas[variant] = BETAS[int(tried.mean(0).argmax())]
        joint[variant] = joint_of(test, variant, [betas[variant]])
    return {
        "transform": transform.name,
        "betas": betas,
        "ml": orders_of(test, "ml"),
        "vb": orders_of(test, "vb"),
        "joint": joint,
        "orders": list(orders),
    }


def tabulate(found: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """SDR [item] of every row of the table, for ML-NMF and VB-NMF."""
    betas = found["betas"]
    ml = rows_of(found["ml"], found["orders"], None)
    vb = rows_of(found["vb"], found["orders"], betas["average"], betas["scored"])
    for variant in ("marginal", "explicit"):
        vb[f"joint model, {variant}"] = np.array([r["sdr"][0] for r in found["joint"][variant]])
    return {"ML-NMF": ml, "VB-NMF": vb}


def report(found: dict[str, Any]) -> str:
    """The tables of one transform, as text."""
    records, betas = found["vb"], found["betas"]
    snrs = np.array([r["snr"] for r in records])
    groupings = [r["utterance"] for r in records], [r["noise"] for r in records]

    def interval(values: np.ndarray) -> common.Estimate:
        return common.clustered_mean(values.tolist(), *groupings, strata=snrs.tolist())

    tables = tabulate(found)
    ml, vb = tables["ML-NMF"], tables["VB-NMF"]
    names = [name for name in vb if not name.startswith("oracle")] + [n for n in vb if n.startswith("oracle")]
    body = [[n, str(interval(ml[n])) if n in ml else "-", str(interval(vb[n]))] for n in names]
    parts = [
        common.table(["SDR (dB)", "ML-NMF", "VB-NMF"], body, title=f"{found['transform']}, {len(records)} mixtures"),
        "temperatures learned on validation mixtures, nats per frame: "
        + ", ".join(f"{name} {beta:.3g}" for name, beta in betas.items()),
    ]
    levels = sorted(set(snrs.tolist()))
    for method, rows in tables.items():
        body = [[n, *(f"{rows[n][snrs == s].mean():.2f}" for s in levels)] for n in names if n in rows]
        parts.append(common.table([f"{method}, by SNR", *(f"{s:+d} dB" for s in levels)], body))
    pairs = [
        ("Bayesian average", "VB selection"),
        ("Bayesian average", "mean of the orders"),
        ("joint model, marginal", "VB selection"),
        ("joint model, marginal", "Bayesian average"),
        ("joint model, marginal", "joint model, explicit"),
        ("oracle fusion", "oracle selection"),
    ]
    body = [[f"{a} - {b}", str(interval(vb[a] - vb[b]))] for a, b in pairs]
    body += [
        ["VB-NMF - ML-NMF, mean of the orders", str(interval(vb["mean of the orders"] - ml["mean of the orders"]))]
    ]
    parts.append(common.table(["paired difference (dB)", "VB-NMF"], body))
    seconds = {"ML-NMF": found["ml"], "VB-NMF": records}
    times = [f"{name} {np.median([r['seconds'] for r in rs]):.2f} s" for name, rs in seconds.items()]
    times += [f"joint {v} {np.median([r['seconds'][0] for r in rs]):.2f} s" for v, rs in found["joint"].items()]
    parts.append(f"median time for all {len(found['orders'])} orders, items in parallel: " + ", ".join(times))
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder mini-chime")
    parser.add_argument("--full", action="store_true", help="all test mixtures instead of the quick subset")
    parser.add_argument("--transform", choices=("stft", "qerb", "both"), default="both")
    parser.add_argument("--b", type=float, default=0.2, help="shape of the prior of the activations (default: 0.2)")
    parser.add_argument("--out", help="JSON file for the scores of every item and the tables' rows")
    parser.add_argument("--cache", help="folder for dictionaries and results of items (default: the user's cache)")
    parser.add_argument("--threads", type=int, default=2, help="items worked on at a time (default: 2)")
    parser.add_argument("--limit", type=int, help="only so many items of each split, to try the script")
    options = parser.parse_args(arguments)
    cache = common.cache_folder(options.cache)
    try:
        data = MiniChime(options.data)
    except (OSError, ValueError) as error:
        common.fail(str(error))
        return
    print(common.environment(), flush=True)
    settings = Settings(b=options.b)
    transforms = {"stft": [STFT()], "qerb": [QERB(data.rate)], "both": [STFT(), QERB(data.rate)]}[options.transform]
    results, start = [], time.perf_counter()
    for transform in transforms:
        records = common.Records(cache / f"real_utterances-{transform.name}.jsonl")
        with compile_cache(cache / "programs"):
            found = evaluate(
                data,
                transform,
                settings,
                records,
                cache=cache / "dictionaries",
                full=options.full,
                threads=options.threads,
                limit=options.limit,
            )
        results.append(found)
        print("\n" + report(found) + "\n", flush=True)
    print(
        f"a = {settings.a:g}, b = {settings.b:g}, {settings.num_iters} iterations, {time.perf_counter() - start:.0f} s"
    )
    if options.out:
        content = [
            {"transform": found["transform"], "betas": found["betas"], "settings": dataclasses.asdict(settings)}
            | {"items": [r["key"].rsplit("/", 1)[-1] for r in found["vb"]], "snr": [r["snr"] for r in found["vb"]]}
            | {"sdr": {m: {n: v.tolist() for n, v in rows.items()} for m, rows in tabulate(found).items()}}
            for found in results
        ]
        common.write_text(options.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

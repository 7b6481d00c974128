"""Is the evidence any good? Free energy, evidence and quality of the separation, per utterance and per frame.

    python benchmarks/evidence.py --data ../shared/data/mini-chime
    python benchmarks/evidence.py --data ../shared/data/mini-chime --frames 24 --out evidence.json

[JVR16] finds that the free energy does not pick the best separator and blames the variational approximation. Here the
evidence itself is sampled (`bayesfuse.evidence`), and takes the place of the free energy:

    drawn recordings  the bound's gap by order, brackets from above and below, calibration of the posterior over orders
    real utterances   the separations of `_separations.py`: evidence of some frames of every mixture at every VB-NMF
                      order, its rank correlation with the SDR, and fusion with it

The gap (a term proportional to order times frames), temperatures and priors are learned on validation mixtures. The
sampled frames are spread evenly over the utterance; totals are those of the sampled frames, times their share. Scores
of whole utterances are SDR on the utterance; per frame, SDR of the sampled frames. Intervals are 95 %, clustered by
utterance and by noise recording.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _common as common
import _evidence_drawn as drawn
import jax
import numpy as np
import real_utterances as single
from _separations import MARGIN, ORDERS, Item, Separations
from fusion_ladder import KINDS, TRANSFORM, utterance

from bayesfuse import evidence, fusion
from bayesfuse._compile_cache import compile_cache
from bayesfuse.bayesian import learn_vb
from bayesfuse.datasets import MiniChime, Mixture
from bayesfuse.evidence_checks import Gap, learn_gap, rank_correlations
from bayesfuse.grams import Gram, gram, sdr, squared_error
from bayesfuse.separators.vb_nmf import Settings, fit_joint
from bayesfuse.simplex_qp import oracle_weights
from bayesfuse.static import static_weights

CRITERIA = {
    "marginal": "free energy, marginal",
    "explicit": "free energy, explicit",
    "corrected": "free energy + learned gap",
    "importance": "evidence, importance sampling",
    "evidence": "evidence, annealed",
}


# One mixture -------------------------------------------------------------------------------------------------------


def measure(
    mixture: Mixture, item: Item, separations: Separations, frames: int, chains: int, temperatures: int
) -> dict[str, Any]:
    """Record of one mixture: free energies, evidences and scalar products of sampled frames, [order, frame]."""
    speech, found = utterance(item, item.speech), utterance(item, item.estimates[KINDS["VB-NMF"]])
    per_frame = gram(speech, found, transform=TRANSFORM)
    sounding = np.flatnonzero(per_frame.energy > 1e-4 * per_frame.energy.max())
    chosen = sounding[np.linspace(0, len(sounding) - 1, frames).round().astype(int)]
    # Frames of the cut are frames of the mixture, see `_separations.separate`.
    at = chosen + mixture.segment[0] // TRANSFORM.hop - MARGIN
    power = np.asarray(TRANSFORM.power(TRANSFORM.analysis(mixture.mixture[0])))
    noise = single.noise_dictionary(mixture, TRANSFORM)
    explicit = dataclasses.replace(separations.settings, variant="explicit")
    problems, bounds, others = [], [], []
    for dictionary in separations.dictionaries.of(mixture):
        fit = fit_joint(power, [[dictionary], [noise]], separations.settings)
        (problem,) = evidence.of_fit(power, fit)
        problems.append(problem.frames(at))
        bounds.append(fit.free_energy.per_frame()[at])
        others.append(fit_joint(power, [[dictionary], [noise]], explicit).free_energy.per_frame()[at])
    cheap = evidence.importance(jax.random.key(0), problems)
    start = time.process_time()
    careful = evidence.annealed(jax.random.key(1), problems, num_chains=chains, num_temperatures=temperatures)
    seconds = time.process_time() - start
    some = jax.tree.map(lambda field: np.asarray(field[chosen], np.float64), per_frame)
    whole = per_frame.sum()

    def rows(values: Sequence[np.ndarray]) -> list[list[float]]:
        return np.round(np.array(values, np.float64), 4).tolist()

    return {
        "snr": item.snr,
        "utterance": item.utterance,
        "noise": item.noise,
        "frames": int(np.sum(per_frame.energy > 0)),
        "total": item.free_energy[:, np.asarray(per_frame.energy) > 0].sum(1).tolist(),
        "marginal": rows(bounds),
        "explicit": rows(others),
        "importance": rows([e.value for e in cheap]),
        "evidence": rows([e.value for e in careful]),
        "error": rows([e.error for e in careful]),
        "effective_size": float(np.mean([e.effective_size.mean() for e in careful])),
        "importance_size": float(np.mean([e.effective_size.mean() for e in cheap])),
        "seconds": seconds,
        "whole": [np.asarray(field, np.float64).tolist() for field in jax.tree.leaves(whole)],
        "sampled": [field.tolist() for field in jax.tree.leaves(some)],
    }


def records(
    split: str,
    count: int,
    data: MiniChime,
    separations: Separations,
    store: common.Records,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Records of some quick mixtures of a split, spread over it; those at hand are not computed again."""
    from tqdm.auto import tqdm

    mixtures = data.mixtures(split, True)
    names = list(mixtures.names)
    # A step prime to the SNRs, which go round.
    order = [i * 7 % len(names) for i in range(len(names))] if len(names) % 7 else list(range(len(names)))
    wanted = sorted(order[:count])
    tag = f"{common.fingerprint(__file__)}/f{options.frames}/c{options.chains}/t{options.temperatures}"
    keys = {i: f"{tag}/{split}/{names[i]}" for i in wanted}
    missing = {names[i]: i for i in wanted if keys[i] not in store}
    if missing:
        separations.compute(split, True)
        separations.dictionaries.train()
        items = separations.load(split, True)
        bar = tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc=f"evidence of {split}", unit="mixture")
        for item in items:
            if item.name in missing:
                i = missing[item.name]
                found = measure(mixtures[i], item, separations, options.frames, options.chains, options.temperatures)
                store.append({"key": keys[i], **found})
                bar.update()
        bar.close()
    return [store[keys[i]] for i in wanted]


# All mixtures ------------------------------------------------------------------------------------------------------


class Corpus:
    """Records of a split as arrays: criteria [example, order, frame] and scalar products."""

    def __init__(self, found: Sequence[dict[str, Any]]) -> None:
        self.records = list(found)
        names = ("marginal", "explicit", "importance", "evidence", "error")
        self.criteria = {name: np.array([r[name] for r in found]) for name in names}
        self.lengths = np.array([r["frames"] for r in found])
        self.whole = Gram.stack([Gram(*map(np.array, r["whole"])) for r in found])
        self.sampled = Gram.stack([Gram(*map(np.array, r["sampled"])) for r in found])

    def correct(self, gap: Gap) -> None:
        """Add the corrected free energies."""
        moved = np.moveaxis(self.criteria["marginal"], 1, -1)
        self.criteria["corrected"] = np.moveaxis(gap.corrected(moved, ORDERS), -1, 1)

    def totals(self, name: str) -> np.ndarray:
        """[example, order]: nats per frame times frames."""
        return self.criteria[name].mean(-1) * self.lengths[:, None]


def interval(corpus: Corpus, values: Sequence[float] | np.ndarray) -> str:
    groups = ([r[key] for r in corpus.records] for key in ("utterance", "noise"))
    return str(common.clustered_mean(list(values), *groups, strata=[r["snr"] for r in corpus.records]))


def gap_table(train: Corpus, test: Corpus, gap: Gap) -> str:
    """By how much the evidence exceeds each of the others, nats per frame."""
    body = []
    for m, order in enumerate(ORDERS):
        cells = [str(order)]
        for name in ("explicit", "marginal", "importance"):
            cells.append(interval(test, (test.criteria["evidence"] - test.criteria[name])[:, m].mean(-1)))
        error = float(np.sqrt((test.criteria["error"][:, m] ** 2).mean()))
        body.append([*cells, f"{error:.2f}"])
    sizes = [np.mean([r[key] for r in test.records]) for key in ("importance_size", "effective_size")]
    header = ["order", "explicit", "marginal", "importance sampling", "standard error of a frame"]
    seconds = np.median([r["seconds"] for r in test.records]) / test.criteria["evidence"].shape[-1]
    return "\n\n".join(
        [
            common.table(header, body, title="evidence of a frame less each criterion (nats)"),
            f"learned gap of the marginal bound on {len(train.records)} validation mixtures: {gap.per_component:.3f} "
            f"nats per component and frame, {100 * gap.explained:.0f} % of the variance of the gaps; mean effective "
            f"size {sizes[0]:.1f} of 256 draws, {sizes[1]:.1f} of the chains; annealing {seconds:.2f} s per frame for "
            f"{len(ORDERS)} orders",
        ]
    )


def correlation_table(test: Corpus) -> str:
    """Spearman's correlations over the orders, and the orders that each criterion picks."""
    singles = np.stack([np.asarray(sdr(w, test.whole)) for w in np.eye(len(ORDERS))], -1)
    frames = np.stack([np.asarray(sdr(w, test.sampled)) for w in np.eye(len(ORDERS))], -1)
    reference = rank_correlations(test.totals("marginal"), singles)

    def row(label: str, totals: np.ndarray, per_frame: np.ndarray | None) -> list[str]:
        utterances = rank_correlations(totals, singles)
        picked = totals.argmax(-1)
        lost = singles.max(-1) - singles[np.arange(len(picked)), picked]
        return [
            label,
            interval(test, utterances),
            interval(test, utterances - reference),
            "-" if per_frame is None else interval(test, np.nanmean(rank_correlations(per_frame, frames), axis=-1)),
            interval(test, lost),
            counts(picked),
        ]

    every = np.array([r["total"] for r in test.records])
    body = [row("free energy, marginal, all frames", every, None)]
    for name, label in CRITERIA.items():
        body.append(row(label, test.totals(name), np.moveaxis(test.criteria[name], 1, -1)))
    header = ["rank correlation", "utterances", "less marginal", "frames", "SDR lost by selection", "orders selected"]
    return common.table(header, body, title=f"with the SDR (dB), which is best at {counts(singles.argmax(-1))}")


def counts(picked: np.ndarray) -> str:
    return " ".join(f"{order}:{np.sum(picked == m)}" for m, order in enumerate(ORDERS))


def fusion_table(train: Corpus, test: Corpus) -> str:
    """SDR of whole utterances with weights per signal, and of the sampled frames with weights per frame."""
    g, samples = test.whole, test.sampled
    total = jax.tree.map(lambda field: field.sum(1), samples)
    count = len(ORDERS)
    learned_on = np.stack([np.asarray(sdr(w, train.whole)) for w in np.eye(count)], -1)
    best = np.eye(count)[int(learned_on.mean(0).argmax())]
    reference = np.asarray(sdr(best, g))
    reference_frames = np.asarray(sdr(best, total))

    def framed(weights: np.ndarray) -> np.ndarray:
        """SDR of the sampled frames, weights [example, frame, order]."""
        error = np.asarray(squared_error(weights, samples)).sum(1)
        return 10 * np.log10(np.asarray(total.energy) / error)

    rows: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
        "best single order of the validation mixtures": (reference, reference_frames),
        "mean": (np.asarray(sdr(fusion.mean_weights(count), g)), np.asarray(sdr(fusion.mean_weights(count), total))),
    }
    static = static_weights(train.whole, loss="sdr")
    rows["static weights"] = (np.asarray(sdr(static, g)), np.asarray(sdr(static, total)))
    every = [np.array([r["total"] for r in corpus.records]) for corpus in (train, test)]
    rule = learn_vb(train.whole, every[0], loss="sdr", num_frames=train.lengths)[0]
    label = f"learned prior and beta, {CRITERIA['marginal']}, all frames"
    rows[label] = (np.asarray(sdr(rule.weights(every[1], num_frames=test.lengths), g)), None)
    for name, label in CRITERIA.items():
        fit_on, totals = train.totals(name), test.totals(name)
        frames = np.moveaxis(test.criteria[name], 1, -1)
        rows[f"selection by {label}"] = (
            np.asarray(sdr(fusion.select_weights(totals), g)),
            framed(np.asarray(fusion.select_weights(frames))),
        )
        beta = fusion.learn_beta(train.whole, fit_on, train.lengths)
        rows[f"average by {label}, beta {beta:.3g}"] = (
            np.asarray(sdr(fusion.vb_weights(totals, None, beta, frames=test.lengths), g)),
            None,
        )
        rule = learn_vb(train.whole, fit_on, loss="sdr", num_frames=train.lengths)[0]
        per_frame = learn_vb(train.sampled, train.criteria[name], loss="sdr")[0]
        rows[f"learned prior and beta, {label}"] = (
            np.asarray(sdr(rule.weights(totals, num_frames=test.lengths), g)),
            framed(np.moveaxis(per_frame.weights(test.criteria[name]), 1, -1)),
        )
    rows["oracle fusion"] = (
        np.asarray(sdr(oracle_weights(g), g)),
        framed(np.asarray(oracle_weights(samples))),
    )
    body = [
        [
            name,
            interval(test, whole),
            interval(test, whole - reference),
            "-" if per is None else interval(test, per),
            "-" if per is None else interval(test, per - reference_frames),
        ]
        for name, (whole, per) in rows.items()
    ]
    header = ["SDR (dB)", "per signal", "over best single", "per frame, sampled frames", "over best single"]
    title = f"{len(test.records)} test mixtures, {len(train.records)} validation mixtures, VB-NMF orders"
    return common.table(header, body, title=title)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder mini-chime")
    parser.add_argument("--mixtures", type=int, default=72, help="test mixtures, of the 72 quick ones (default: 72)")
    parser.add_argument("--validation", type=int, default=32, help="validation mixtures, of 48 (default: 32)")
    parser.add_argument("--frames", type=int, default=12, help="sampled frames of each mixture (default: 12)")
    parser.add_argument("--chains", type=int, default=4, help="of every frame and order (default: 4)")
    parser.add_argument("--temperatures", type=int, default=200, help="moves of a chain (default: 200)")
    parser.add_argument("--recordings", type=int, default=48, help="recordings drawn from the model (default: 48)")
    parser.add_argument("--out", help="JSON file for the records of all mixtures")
    parser.add_argument("--cache", help="folder for separations and records (default: the user's cache)")
    parser.add_argument("--threads", type=int, default=2, help="mixtures separated at a time (default: 2)")
    parser.add_argument("--only", choices=("drawn", "real"), help="one of the two parts")
    options = parser.parse_args(arguments)
    cache = common.cache_folder(options.cache)
    try:
        data = MiniChime(options.data)
    except (OSError, ValueError) as error:
        common.fail(str(error))
        return
    print(common.environment(), flush=True)
    start = time.perf_counter()
    separations = Separations(data, cache, settings=Settings(), threads=options.threads)
    found: list[dict[str, Any]] = []
    with compile_cache(cache / "programs"):
        if options.only != "real":
            print("\n" + drawn.report_learned(drawn.learned_dictionaries(options.recordings)) + "\n", flush=True)
            rows = drawn.known_dictionaries(
                *speech_and_noise(data, separations),
                frames=options.frames,
                chains=options.chains,
                temperatures=options.temperatures,
            )
            print("\n" + drawn.report_known(rows) + "\n", flush=True)
        if options.only != "drawn":
            store = common.Records(cache / "evidence.jsonl")
            parts = {"val": options.validation, "test": options.mixtures}
            corpora = {s: Corpus(records(s, n, data, separations, store, options)) for s, n in parts.items()}
            train, test = corpora["val"], corpora["test"]
            bound, sampled = (np.moveaxis(train.criteria[name], 1, -1) for name in ("marginal", "evidence"))
            gap = learn_gap(bound, sampled, ORDERS)
            for corpus in corpora.values():
                corpus.correct(gap)
            found = train.records + test.records
            for part in (gap_table(train, test, gap), correlation_table(test), fusion_table(train, test)):
                print("\n" + part + "\n", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")
    if options.out:
        common.write_text(Path(options.out), json.dumps(found, indent=1) + "\n")


def speech_and_noise(data: MiniChime, separations: Separations) -> tuple[list[np.ndarray], np.ndarray]:
    """Dictionaries of all orders of the first speaker, and of the background of one mixture."""
    mixture = data.mixtures("test", True)[0]
    separations.dictionaries.train()
    speech = [np.asarray(dictionary.weights) for dictionary in separations.dictionaries.of(mixture)]
    return speech, np.asarray(single.noise_dictionary(mixture, TRANSFORM).weights)


if __name__ == "__main__":
    main()

"""Every fusion rule on the separations of mini-chime: from single models to the oracles, in dB of SDR.

    python benchmarks/fusion_ladder.py --data ../shared/data/mini-chime
    python benchmarks/fusion_ladder.py --data ../shared/data/mini-chime --full --out ladder.json

The experiments of [JVR16] VI.D-H on real speech in noise that was not heard in training. Seven VB-NMF and seven ML-NMF
orders, separated by `_separations.py` with cross-fitted dictionaries, are fused by kind and all together:

    single models, their mean, the best single and static weights learned on training mixtures
    free energies: selection and average, per signal and per frame, with learned prior and temperature, and the
        library's extensions, one switch each; stacking and pseudo-BMA+, which need no training
    networks: the four costs of the paper, the SDR of the mini-batch and of the utterance, and the mean of all six; a
        Gaussian mixture in the place of the network, on principal components
    oracles: selection, and fusion per signal, per frame, per frame and band

Rules are learned on the training mixtures; what the network is told, and its architecture, are those that do best on
the validation mixtures among `VARIANTS`, for the VB models; test mixtures are scored once, on the waveform of the
utterance. For each rule the table has the share of the gap that it closes between learned static fusion and the oracle
of its own granularity; for networks, also how much of it they close on the mixtures that they were trained on.
Intervals are 95 %, clustered by utterance and by noise recording.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _common as common
import jax
import numpy as np
from _networks import KINDS, TRANSFORM, UTTERANCES, Learned, Networks, Variant, inputs_of, score, utterance
from _separations import BANDS, MODELS, Item, Separations

from bayesfuse import neural, stacking
from bayesfuse._compile_cache import compile_cache
from bayesfuse.bayesian import learn_vb
from bayesfuse.datasets import MiniChime
from bayesfuse.fusion import best_weights, mean_weights, select_weights
from bayesfuse.grams import Bands, Gram, gram, sdr
from bayesfuse.network_costs import Cost
from bayesfuse.neural import NetworkConfig
from bayesfuse.simplex_qp import oracle_weights
from bayesfuse.static import static_weights

COSTS: tuple[Cost, ...] = ("omse", "ce", "smse", "sdr", "batch_sdr", "utterance_sdr")


class Corpus(NamedTuple):
    """One split as arrays over the examples; frames are padded to the longest example."""

    items: list[Any]
    whole: Gram  # [example], all models
    frames: Gram  # [example, frame]
    present: np.ndarray  # [example, frame]
    likelihood: np.ndarray  # [order, example, frame]
    activations: np.ndarray  # [source, order, example, frame]

    @classmethod
    def load(cls, items: Iterable[Item]) -> "Corpus":
        """Scalar products and free energies of all items; waveforms are not kept."""
        light, whole, frames, energies = [], [], [], []
        for item in items:
            speech, found = utterance(item, item.speech), utterance(item, item.estimates)
            per_frame = gram(speech, found, transform=TRANSFORM)
            whole.append(per_frame.sum())
            frames.append(jax.tree.map(lambda field: np.asarray(field, np.float32), per_frame))
            energies.append((item.likelihood.sum(1), item.activations))
            empty = np.zeros(0, np.float32)
            light.append(item._replace(mixture=empty, speech=empty, estimates=empty, likelihood=empty))
        length = max(g.energy.size for g in frames)
        # The cut begins and ends with frames of the margin, which hold nothing of the utterance.
        present = np.stack([np.pad(g.energy > 0, (0, length - g.energy.size)) for g in frames])

        def padded(array: np.ndarray) -> np.ndarray:
            return np.pad(array, [(0, length - array.shape[0])] + [(0, 0)] * (array.ndim - 1))

        return cls(
            light,
            Gram.stack(whole),
            Gram.stack([jax.tree.map(padded, g) for g in frames]),
            present,
            np.stack([padded(a.T).T for a, _ in energies], 1),
            np.stack([padded(np.moveaxis(b, -1, 0)).transpose(2, 1, 0) for _, b in energies], 2),
        )

    def models(self, kind: str) -> tuple[Gram, Gram]:
        """The scalar products of one kind of models, of signals and of frames."""
        return of_models(self.whole, KINDS[kind]), of_models(self.frames, KINDS[kind])

    @property
    def terms(self) -> np.ndarray:
        """Free energy in parts [term, example, order, frame]: likelihood, activations of speech and of noise."""
        return np.concatenate([self.likelihood[None], self.activations]).swapaxes(1, 2)

    @property
    def lengths(self) -> np.ndarray:
        """Number of frames of each example."""
        return self.present.sum(1)


def of_models(g: Gram, models: slice) -> Gram:
    return Gram(g.energy, g.cross[..., models], g.gram[..., models, models])


class Rule(NamedTuple):
    """Weights of one rule for test items, and the oracle of its granularity."""

    weights: Any  # example number, Item -> [model], [model, frame] or [model, frame, band]
    oracle: str


def banded(items: Iterable[Item], step: int) -> tuple[Gram, np.ndarray, np.ndarray]:
    """Scalar products [example, frame, band], likelihoods [example, order, frame, band], and which frames there are.

    Of the VB models, and of every few items: they are many numbers.
    """
    grams, likelihoods = [], []
    for item in itertools.islice(items, 0, None, step):
        speech, found = utterance(item, item.speech), utterance(item, item.estimates[KINDS["VB-NMF"]])
        g = gram(speech, found, transform=TRANSFORM, bands=Bands(item.rate, BANDS))
        inside = np.flatnonzero(g.energy.sum(-1) > 0)
        grams.append(jax.tree.map(lambda field, i=inside: np.asarray(field[i], np.float32), g))
        likelihoods.append(np.moveaxis(item.likelihood[..., inside], 1, 2))
    length = max(g.energy.shape[0] for g in grams)

    def padded(array: np.ndarray, axis: int) -> np.ndarray:
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, length - array.shape[axis])
        return np.pad(array, widths)

    present = np.stack([np.arange(length) < g.energy.shape[0] for g in grams])
    stacked = Gram.stack([jax.tree.map(lambda field: padded(field, 0), g) for g in grams])
    return stacked, np.stack([padded(part, 1) for part in likelihoods]), present


def bayesian_rules(train: Corpus, some: Iterable[Item], seconds: dict[str, float]) -> dict[str, Any]:
    """Learned rules that need free energies, for the VB models."""
    whole, frames = train.models("VB-NMF")
    terms = train.terms * train.present[:, None, :]
    energy = terms.sum(0)
    learned: dict[str, Any] = {}

    def learn(name: str, *arguments: Any, **settings: Any) -> None:
        start = time.perf_counter()
        learned[name] = learn_vb(*arguments, **settings)[0]
        seconds[name] = time.perf_counter() - start
        print(f"  learned {name}: {seconds[name]:.0f} s", flush=True)

    for loss in ("mse", "sdr"):
        learn(f"VB average, {loss.upper()}", whole, energy.sum(-1), loss=loss, num_frames=train.lengths)
        learn(f"VB average per frame, {loss.upper()}", frames, energy, loss=loss, frames=train.present)
    learn("VB average per frame, SDR of frames", frames, energy, loss="frame-sdr", frames=train.present)
    learn("per frame, SDR, beta < 1 allowed", frames, energy, loss="sdr", frames=train.present, min_beta=0.0)
    learn("per frame, SDR, beta per term", frames, terms, loss="sdr", frames=train.present, per_term=True)
    learn("per frame, SDR, Markov chain", frames, energy, loss="sdr", frames=train.present, sticky=True)
    learn(
        "per frame, SDR, both",
        frames,
        terms,
        loss="sdr",
        frames=train.present,
        per_term=True,
        sticky=True,
    )
    g, likelihood, present = banded(some, 8)
    learn("per frame and band, SDR", g, likelihood, loss="sdr", frames=present)
    learn("per frame and band, SDR, beta per band", g, likelihood, loss="sdr", frames=present, per_band=True)
    return learned


def apply_bayesian(rule: Any, item: Item) -> np.ndarray:
    """Weights of a learned rule for one item."""
    sounding = gram(utterance(item, item.mixture), utterance(item, item.mixture)[None], transform=TRANSFORM).energy > 0
    if "band" in rule.axes:
        return rule.weights(np.moveaxis(item.likelihood, 1, 2) * sounding[:, None])
    terms = np.stack([item.likelihood.sum(1), *item.activations.swapaxes(0, 1)]) * sounding
    values = terms if rule.per_term else terms.sum(0)
    if "frame" in rule.axes:
        return rule.weights(values)
    return rule.weights(values.sum(-1), num_frames=int(sounding.sum()))


REGULAR = NetworkConfig(
    hidden=(256,), cost="utterance_sdr", unit="recordings", dropout=0.5, input_noise=0.3, training=UTTERANCES
)
LOG = {"transform": "log", "compression": "log", "level": "recording", "clip": 5.0}
RELATIVE = LOG | {"relative": True, "context": 1, "num_components": None}
VARIANTS = {
    # Components are fitted to every eighth frame: of 14,000 numbers per frame, they take minutes as it is.
    "as the paper": Variant({"transform": "qerb", "stride": 8}, NetworkConfig()),
    "32 log bands, components": Variant(LOG | {"share": 0.99}, REGULAR),
    "32 log bands, relative": Variant(RELATIVE, REGULAR),
    "relative, free energies": Variant(RELATIVE | {"free_energy": True}, REGULAR),
}
# A mixture of Gaussians needs few features.
COMPONENTS = "32 log bands, components"
# Those of the VB models tell nothing about the others.
WITHOUT_ENERGIES = {"relative, free energies": "32 log bands, relative"}


def ablation(trained: dict[str, Learned]) -> str:
    """How much of the gap from static fusion to the oracle per frame networks close, on mixtures seen and not seen."""

    def share(level: dict[str, float]) -> str:
        gap = level["oracle"] - level["static"]
        return f"{level['network']:.2f} ({100 * (level['network'] - level['static']) / gap:.0f} %)"

    body = [[name, share(found.training), share(found.validation)] for name, found in trained.items()]
    return common.table(["network", "training mixtures", "validation mixtures"], body, title="SDR (share of the gap)")


def oracles(item: Item, kind: str) -> dict[str, np.ndarray]:
    """Weights of the oracles of one item."""
    speech, found = utterance(item, item.speech), utterance(item, item.estimates[KINDS[kind]])
    bands = Bands(item.rate, BANDS)
    per_frame = gram(speech, found, transform=TRANSFORM)
    total = per_frame.sum()
    return {
        "oracle selection": np.asarray(best_weights(total)),
        "oracle fusion": np.asarray(oracle_weights(total)),
        "oracle selection per frame": np.asarray(best_weights(per_frame)).T,
        "oracle fusion per frame": np.asarray(oracle_weights(per_frame)).T,
        "oracle fusion per frame and band": np.moveaxis(
            np.asarray(oracle_weights(gram(speech, found, transform=TRANSFORM, bands=bands))), -1, 0
        ),
    }


GRANULARITY = {1: "oracle fusion", 2: "oracle fusion per frame", 3: "oracle fusion per frame and band"}


def evaluate(separations: Separations, options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """SDR [item] of every rule of every kind on the test split."""
    train = Corpus.load(separations.load("train", None, options.limit))
    seconds: dict[str, float] = {}
    constant: dict[str, dict[str, np.ndarray]] = {}
    for kind, models in KINDS.items():
        whole, _ = train.models(kind)
        singles = np.stack([sdr(w, whole) for w in np.eye(whole.num_models)])
        constant[kind] = {name: w for name, w in zip(MODELS[models], np.eye(whole.num_models), strict=True)}
        constant[kind] |= {
            "mean": mean_weights(whole.num_models),
            "static selection": np.eye(whole.num_models)[int(singles.mean(1).argmax())],
            "static, MSE": static_weights(whole, loss="mse"),
            "static, SDR": static_weights(whole, loss="sdr"),
        }
    bayes = bayesian_rules(train, separations.load("train", None, options.limit), seconds)
    networks = {}
    if not options.no_networks:
        trainer = Networks(separations, options, cache, VARIANTS)
        variants = {name: trainer.train(name, "VB-NMF")[0] for name in VARIANTS}
        print("\n" + ablation(variants), flush=True)
        chosen = max(variants, key=lambda name: variants[name].validation["network"])
        for kind in KINDS:
            name = WITHOUT_ENERGIES.get(chosen, chosen) if kind == "ML-NMF" else chosen
            costs = dict(zip(COSTS, trainer.train(name, kind, COSTS), strict=True))
            trained = {f"network, {cost.upper().replace('_', ' ')}": found for cost, found in costs.items()}
            trained["mean of these networks"] = trainer.average(name, kind, list(costs.values()))
            trained["Gaussian mixture"] = trainer.mixture(COMPONENTS, kind)
            print(f"\n{kind}: {name}\n" + ablation(trained), flush=True)
            for rule, found in trained.items():
                networks[kind, rule] = found.pipeline, found.network

    rows: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    grains: dict[str, str] = {}
    about = []

    def note(kind: str, name: str, item: Item, weights: np.ndarray) -> None:
        rows[kind].setdefault(name, []).append(score(item, kind, weights))
        if not name.startswith("oracle"):
            grains[name] = GRANULARITY[weights.ndim]

    from tqdm.auto import tqdm

    quick = set(separations.data.mixtures("test", True).names)
    for item in tqdm(
        separations.load("test", None if options.full else True, options.limit), desc="scoring", unit="mixture"
    ):
        known = {"name": item.name, "snr": item.snr, "utterance": item.utterance, "noise": item.noise}
        about.append(known | {"quick": item.name in quick})
        energy = item.free_energy
        for kind in KINDS:
            for name, weights in constant[kind].items():
                note(kind, name, item, weights)
            if kind == "VB-NMF":
                note(kind, "VB selection", item, np.asarray(select_weights(energy.sum(1))))
                note(kind, "stacking of frames", item, stacking.stacking_weights(energy))
                note(kind, "pseudo-BMA+", item, stacking.pseudo_bma_weights(energy))
                for name, rule in bayes.items():
                    note(kind, name, item, apply_bayesian(rule, item))
            for (of, name), (pipeline, network) in networks.items():
                if of == kind:
                    found = neural.frame_weights(network, pipeline(inputs_of(item, kind)))[:, 0, 0]
                    note(kind, name, item, found.T)
            for name, weights in oracles(item, kind).items():
                note(kind, name, item, weights)
    return {"items": about, "rows": rows, "grains": grains, "seconds": seconds, "train": len(train.items)}


def report(found: dict[str, Any]) -> str:
    """The tables, as text: of all items, and of the quick ones among them."""
    quick = [item["quick"] for item in found["items"]]
    parts = [tables(found, np.ones(len(quick), bool))]
    if any(quick) and not all(quick):
        parts.append("The quick ones among them:\n\n" + tables(found, np.array(quick)))
    parts.append("seconds of learning: " + ", ".join(f"{n} {s:.1f}" for n, s in found["seconds"].items()))
    return "\n\n".join(parts)


def tables(found: dict[str, Any], chosen: np.ndarray) -> str:
    """A table per kind of models, of some of the items."""
    items = [item for item, wanted in zip(found["items"], chosen, strict=True) if wanted]
    snrs = [item["snr"] for item in items]
    groups = [item["utterance"] for item in items], [item["noise"] for item in items]

    def interval(values: Sequence[float] | np.ndarray) -> str:
        return str(common.clustered_mean(list(values), *groups, strata=snrs))

    parts = []
    for kind, rows in found["rows"].items():
        values = {name: np.array(row)[chosen] for name, row in rows.items()}
        static = max((values[n] for n in ("static, MSE", "static, SDR")), key=np.mean)
        body = []
        for name, row in values.items():
            grain = found["grains"].get(name)
            gap = np.nan if grain is None else values[grain].mean() - static.mean()
            share = "-" if grain is None or name in MODELS else f"{100 * (row.mean() - static.mean()) / gap:.0f} %"
            gains = [interval(row - base) for base in (values["static selection"], static)]
            body.append([name, interval(row), *gains, share])
        title = f"{kind}: {len(items)} test mixtures, rules learned on {found['train']}"
        parts.append(
            common.table(["SDR (dB)", "", "over best single", "over static", "share of the gap"], body, title=title)
        )
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder mini-chime")
    parser.add_argument("--full", action="store_true", help="all test mixtures, not the quick ones")
    parser.add_argument("--out", help="JSON file for the score of every item under every rule")
    parser.add_argument("--cache", help="folder for separations, features and networks (default: the user's cache)")
    parser.add_argument("--threads", type=int, default=2, help="mixtures separated at a time (default: 2)")
    parser.add_argument("--epochs", type=int, default=30, help="most epochs of a network (default: 30)")
    parser.add_argument("--no-networks", action="store_true", help="leave the networks out")
    parser.add_argument("--limit", type=int, help="only so many items of each split, to try the script")
    options = parser.parse_args(arguments)
    cache = common.cache_folder(options.cache)
    try:
        data = MiniChime(options.data)
    except (OSError, ValueError) as error:
        common.fail(str(error))
        return
    print(common.environment(), flush=True)
    start = time.perf_counter()
    with compile_cache(cache / "programs"):
        found = evaluate(Separations(data, cache, threads=options.threads), options, cache)
    print("\n" + report(found) + f"\n\n{time.perf_counter() - start:.0f} s")
    if options.out:
        common.write_text(options.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

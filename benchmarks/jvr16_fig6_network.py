"""[JVR16] Fig. 6: networks that choose weights per frame, by layers and pre-training, input, cost and context.

    python benchmarks/jvr16_fig6_network.py --data ../shared/data/mini-chime --figure fig6.png
    python benchmarks/jvr16_fig6_network.py --data ../shared/data/mini-chime --only b,d --quick

ML-NMF, power spectra of the QERB transform, principal components with 85 % of the variance, the SDR cost and one hidden
layer of 1792 units, unless a bar says otherwise. The bar without principal components is left out: 14,000 numbers per
frame. Networks are trained on the separations of `_separations.py` and scored on the fused waveforms; what they are
compared with, static selection, static fusion and the time-invariant oracle, comes from the records of
`mini_chime.toml`, see `_papers.py`. Separations, features, networks and scores are kept in the cache. The paper prints
the level of the best network and gains.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

import argparse
from functools import partial
from pathlib import Path

import _claims as claims
import _common as common
import _papers as papers
import jvr16_fig3_static as static
import numpy as np
from _claims import Claim
from _corpus import Corpus
from _paper_networks import APART, BEST, KIND, Scores, Setting, add_arguments, scores
from _papers import Bar, Page

from bayesfuse.neural import NetworkConfig

NETWORK = papers.EXPECTED["network"]
DEPTHS = (1, 2, 3, 4)
COSTS = {"sdr": "SDR", "smse": "SMSE", "omse": "OMSE", "ce": "CE"}
PANELS = {
    "a": "(a) hidden layers, pre-training",
    "b": "(b) input",
    "c": "(c) cost",
    "d": "(d) context",
}


def base(units: int) -> Setting:
    """The network that the paper finds best, with so many units."""
    return Setting(BEST, NetworkConfig(hidden=(units,)))


def settings(units: int) -> dict[tuple[str, str], Setting]:
    """The network of every bar, by panel and label."""
    one = base(units).config
    bars = {}
    for depth in DEPTHS:
        for epochs, how in ((one.pretrain_epochs, "with"), (0, "without")):
            if depth > 1 or epochs:
                label = f"{depth} layers, {how}" if depth > 1 else "1 layer"
                bars["a", label] = Setting(BEST, NetworkConfig(hidden=(units,) * depth, pretrain_epochs=epochs))
    inputs = {"mixture and estimates": BEST, "mixture": "mixture only", "estimates": "estimates only"}
    bars |= {("b", label): Setting(variant, one) for label, variant in inputs.items()}
    bars |= {("c", label): Setting(BEST, NetworkConfig(hidden=(units,), cost=cost)) for cost, label in COSTS.items()}
    contexts = {"C = 0": "no context", "C = 2": BEST, "C = 5": "context of 5"}
    return bars | {("d", label): Setting(variant, one) for label, variant in contexts.items()}


def build(cache: Path, train: Corpus, test: Corpus, *, options: argparse.Namespace) -> Page:
    """Levels of the networks, and the claims of section VI.H."""
    chosen = {bar: setting for bar, setting in settings(options.units).items() if bar[0] in options.only.split(",")}
    found = scores(options, cache, list(chosen.values()))
    return page(cache, train, test, chosen, found)


def page(cache: Path, train: Corpus, test: Corpus, chosen: dict[tuple[str, str], Setting], found: Scores) -> Page:
    """The page on networks that were scored."""
    test, levels = aligned(test, found)
    level = dict(zip(chosen, levels[:-1], strict=True))
    # In every panel there is the network that the paper finds best, but for the number of units.
    best = next(bar for bar, setting in chosen.items() if setting == base(setting.config.hidden[0]))
    exact = {bar for bar, setting in chosen.items() if setting == base(NETWORK["units"])}
    panels: dict[str, list[Bar]] = {}
    for bar, values in level.items():
        printed = NETWORK["sdr_db"] if bar in exact else None
        panels.setdefault(PANELS[bar[0]], []).append(Bar(bar[1], test.interval(values), printed))
    tables = [papers.beside(name, {bar.label: {KIND: bar} for bar in row}) for name, row in panels.items()]
    told = ", ".join(f"{variant} {count}" for variant, count in found.inputs.items())
    about = f"{len(test.names)} test mixtures, SDR of fused waveforms; inputs of the networks after reduction: {told} "
    about += f"(paper: {NETWORK['components']} of {NETWORK['inputs']})"
    fixed = static.levels(cache, train, test, KIND)
    made = claims_of(test, level) + best_claims(test, level[best], fixed)
    return Page([*tables, about, APART], made, partial(papers.bars, "Fig. 6: networks", panels))


def aligned(test: Corpus, found: Scores) -> tuple[Corpus, list[np.ndarray]]:
    """The test mixtures that have both records and scores, and the scores of networks and oracle on them."""
    test = test.select(found.names)
    if not test.names:
        raise ValueError("no test mixture has both a record and a network's score; use the same --limit for both.")
    order = [found.names.index(name) for name in test.names]
    return test, [values[order] for values in (*found.networks, found.oracle)]


def best_claims(test: Corpus, network: np.ndarray, fixed: dict[str, np.ndarray]) -> list[Claim]:
    """What section VI.H.1 says of the best network."""
    named = {
        static.SELECTION: NETWORK["over_static_selection_db"],
        static.SDR: None,
        static.ORACLE: NETWORK["over_oracle_invariant_db"],
    }
    return [
        claims.above("VI.H.1", f"network over {name}", test.interval(network - fixed[name]), printed)
        for name, printed in named.items()
    ]


def claims_of(test: Corpus, level: dict[tuple[str, str], np.ndarray]) -> list[Claim]:
    """What sections VI.H.2 to VI.H.5 say, of the panels that there are."""
    made = []
    panels = {bar[0] for bar in level}

    def gap(first: tuple[str, str], *others: tuple[str, str]) -> common.Estimate:
        return test.interval(level[first] - np.mean([level[bar] for bar in others], axis=0))

    if "a" in panels:
        deeper = [[level["a", f"{depth} layers, {how}"] for depth in DEPTHS[1:]] for how in ("with", "without")]
        gain = test.interval(np.mean(deeper[0], axis=0) - np.mean(deeper[1], axis=0))
        loss = test.interval(level["a", "1 layer"] - np.mean(deeper[0], axis=0))
        made += [
            claims.above("VI.H.2", "gain of pre-training", gain, NETWORK["layers"]["pretraining_db"]),
            claims.above("VI.H.2", "one layer over the mean of deeper networks", loss),
        ]
    if "c" in panels:
        standard, printed = [("c", "OMSE"), ("c", "CE")], NETWORK["cost"]["separation_costs_db"]
        made += [
            claims.above("VI.H.3", f"{cost} over the mean of OMSE and CE", gap(("c", cost), *standard), printed)
            for cost in ("SDR", "SMSE")
        ]
    if "b" in panels:
        both, printed = ("b", "mixture and estimates"), NETWORK["input"]
        made += [
            claims.above("VI.H.4", f"both over {part} only", gap(both, ("b", part)), printed[f"over_{part}_db"])
            for part in ("mixture", "estimates")
        ]
    if "d" in panels:
        printed = NETWORK["context_size"]["over_no_context_db"]
        made += [
            claims.above("VI.H.5", "C = 2 over C = 0", gap(("d", "C = 2"), ("d", "C = 0")), printed),
            claims.above("VI.H.5", "C = 2 over C = 5", gap(("d", "C = 2"), ("d", "C = 5"))),
        ]
    return made


def main(arguments: list[str] | None = None) -> None:
    parser = papers.parser(__doc__)
    parser.add_argument("--only", default=",".join(PANELS), help="some of the panels a,b,c,d (default: all)")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if unknown := set(options.only.split(",")) - set(PANELS):
        parser.error(f"unknown panels {sorted(unknown)}: expected some of {','.join(PANELS)}")
    papers.run(options, ["train", "test"], partial(build, options=options))


if __name__ == "__main__":
    main()

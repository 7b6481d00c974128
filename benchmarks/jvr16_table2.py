"""[JVR16] Table II, the rows of the NMF separators: best individual separator, network, oracle, with 95 % intervals.

    python benchmarks/jvr16_table2.py --data ../shared/data/mini-chime
    python benchmarks/jvr16_table2.py --data ../shared/data/mini-chime --no-network

ML-NMF, as in the network experiments of the paper (VI.H). The best individual separator, chosen on the training
mixtures, and the oracle come from the records of `mini_chime.toml`, see `_papers.py`; the network is the best one of
the paper, trained on the training mixtures, see `jvr16_fig6_network.py`. The oracle is there twice: the SDR of
the frames from records, and that of the fused waveform, which is not below it, where the network was scored.

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
from _common import Estimate
from _corpus import Corpus
from _paper_networks import APART, KIND, Scores, add_arguments, scores
from _papers import Bar, Page
from jvr16_fig6_network import aligned, base, best_claims

from bayesfuse.simplex_qp import oracle_weights

TABLE = papers.EXPECTED["table2"]
BEST, NETWORK = "best individual separator", "adaptive time-varying fusion"
FRAMES, WAVEFORM = "oracle time-varying fusion (frames)", "oracle time-varying fusion (waveform)"
PRINTED = {BEST: "best_individual", NETWORK: "adaptive", FRAMES: "oracle", WAVEFORM: "oracle"}


def build(cache: Path, train: Corpus, test: Corpus, *, options: argparse.Namespace) -> Page:
    """The rows and the claims on them."""
    found = None if options.no_network else scores(options, cache, [base(options.units)])
    return page(cache, train, test, found)


def page(cache: Path, train: Corpus, test: Corpus, found: Scores | None) -> Page:
    """The page with a network's scores, or without."""
    levels = {}
    if found is not None:
        test, (network, oracle) = aligned(test, found)
        levels = {NETWORK: network, WAVEFORM: oracle}
    fixed = static.levels(cache, train, test, KIND)
    levels[BEST] = fixed[static.SELECTION]
    levels[FRAMES] = test.varying(KIND, np.asarray(oracle_weights(test.frames(KIND))))
    rows, bars, made = [], [], []
    for name in (name for name in PRINTED if name in levels):
        level, gain = test.interval(levels[name]), test.interval(levels[name] - levels[BEST])
        printed = TABLE[PRINTED[name]]
        theirs = TABLE.get(f"{PRINTED[name]}_gain")
        gains = ["", ""] if theirs is None else [str(gain), str(Estimate(*theirs))]
        rows.append([name, str(level), str(Estimate(*printed)), *gains])
        bars.append(Bar(name, level, printed[0]))
        if theirs is not None:
            made.append(claims.above("Table II", f"{name} over the {BEST}", gain, theirs[0]))
    more = test.interval(levels[FRAMES] - levels[BEST])
    printed = papers.EXPECTED["diversity"]["oracle_over_best_db"]
    made.append(claims.above("VI.H.7", f"{FRAMES} over the {BEST}, by more than", more, printed))
    if found is not None:
        made += best_claims(test, levels[NETWORK], fixed)
    index = int(static.learned(cache, train, KIND)[static.SELECTION].argmax())
    title = f"Table II, NMFs: {len(test.names)} test mixtures; best on {len(train.names)} training mixtures: {KIND} "
    header = ["SDR (dB)", "ours", "paper", "SDRI, ours", "SDRI, paper"]
    table = common.table(header, rows, title=title + str(test.orders(KIND)[index]))
    return Page(
        [table] if found is None else [table, APART], made, partial(papers.bars, "Table II, NMFs", {KIND: bars})
    )


def main(arguments: list[str] | None = None) -> None:
    parser = papers.parser(__doc__)
    parser.add_argument("--no-network", action="store_true", help="leave the network out")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    papers.run(options, ["train", "test"], partial(build, options=options))


if __name__ == "__main__":
    main()

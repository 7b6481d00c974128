"""[JVR16] Fig. 3: static fusion, learned on training mixtures, against static selection and the mean.

    python benchmarks/jvr16_fig3_static.py --data ../shared/data/mini-chime --figure fig3.png

On the records of `mini_chime.toml`, see `_papers.py`: the single model of the best mean SDR on the training mixtures,
and weights of the least squared error or the best mean SDR there (eqs. 11 and 12), scored on the test mixtures. The
paper prints gains, no levels.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

from functools import partial
from pathlib import Path

import _claims as claims
import _common as common
import _papers as papers
import numpy as np
from _claims import Claim
from _corpus import KINDS, Corpus
from _papers import Bar, Page

from bayesfuse.fusion import mean_weights
from bayesfuse.ladder import best_single
from bayesfuse.simplex_qp import oracle_weights
from bayesfuse.static import static_weights

STATIC = papers.EXPECTED["static"]
SELECTION, MEAN = "static selection", "fusion by mean"
MSE, SDR = "static fusion, MSE", "static fusion, SDR"
ORACLE = "oracle fusion, time-invariant"


def learned(cache: Path, train: Corpus, kind: str) -> dict[str, np.ndarray]:
    """Weights [model] of every rule that is the same for all mixtures."""
    g = train.products(kind)

    def learn() -> dict[str, np.ndarray]:
        found = {SELECTION: np.eye(g.num_models)[int(best_single(g))], MEAN: mean_weights(g.num_models)}
        return found | {MSE: static_weights(g, loss="mse"), SDR: static_weights(g, loss="sdr")}

    return papers.remembered(cache, f"static {kind}", train.key, learn)


def levels(cache: Path, train: Corpus, test: Corpus, kind: str) -> dict[str, np.ndarray]:
    """SDR [example] of these rules and of the oracle on the test mixtures."""
    found = {name: test.constant(kind, weights) for name, weights in learned(cache, train, kind).items()}
    return found | {ORACLE: test.constant(kind, np.asarray(oracle_weights(test.products(kind))))}


def build(cache: Path, train: Corpus, test: Corpus) -> Page:
    """Levels of the static rules, their weights, and the claims of section VI.F."""
    found = {kind: levels(cache, train, test, kind) for kind in KINDS}
    rows = {name: {kind: Bar(name, test.interval(found[kind][name])) for kind in KINDS} for name in found[KINDS[0]]}
    title = f"Fig. 3: static fusion, learned on {len(train.names)}, {len(test.names)} test mixtures"
    weights = []
    for kind in KINDS:
        rules = learned(cache, train, kind)
        body = [[name, *(f"{w:.2f}" for w in rules[name])] for name in (SELECTION, MSE, SDR)]
        weights.append(common.table([f"weights, {kind}", *map(str, train.orders(kind))], body))
    panels = {kind: [row[kind] for row in rows.values()] for kind in KINDS}
    draw = partial(papers.bars, "Fig. 3: static fusion", panels)
    return Page([papers.beside(title, rows), *weights], claims_of(test, found), draw)


def claims_of(test: Corpus, found: dict[str, dict[str, np.ndarray]]) -> list[Claim]:
    """What section VI.F says."""
    made = []
    for kind in KINDS:
        level = found[kind]
        gain = STATIC[f"sdr_over_selection_{kind[:2].lower()}_db"]

        def gap(a: str, b: str, level: dict[str, np.ndarray] = level) -> common.Estimate:
            return test.interval(level[a] - level[b])

        made += [
            claims.not_above("VI.F", f"{kind}: no gain of MSE-based fusion over selection", gap(MSE, SELECTION)),
            claims.above("VI.F", f"{kind}: SDR-based fusion over selection", gap(SDR, SELECTION), gain),
            claims.similar("VI.F", f"{kind}: the mean is like selection", gap(MEAN, SELECTION)),
        ]
    return made


if __name__ == "__main__":
    papers.run(papers.parser(__doc__).parse_args(), ["train", "test"], build)

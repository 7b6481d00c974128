"""[JVR16] Fig. 2: oracle selection and oracle fusion, time-invariant and time-varying, for ML-NMF and VB-NMF.

    python benchmarks/jvr16_fig2_oracles.py --data ../shared/data/mini-chime --figure fig2.png

On the records of `mini_chime.toml`, see `_papers.py`. Weights know the true speech: these are bounds, not methods. The
paper prints gains, and one level: that of time-varying fusion of ML-NMF (Table II).

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

from functools import partial
from pathlib import Path

import _claims as claims
import _papers as papers
import numpy as np
from _claims import Claim
from _corpus import KINDS, Corpus
from _papers import Bar, Page

from bayesfuse.fusion import best_weights
from bayesfuse.simplex_qp import oracle_weights

RULES = {"oracle selection": best_weights, "oracle fusion": oracle_weights}
ORACLE = papers.EXPECTED["oracle"]


def oracles(test: Corpus, kind: str) -> dict[str, np.ndarray]:
    """SDR [example] of the four oracles."""
    whole, frames = test.products(kind), test.frames(kind)
    constant = {name: test.constant(kind, np.asarray(rule(whole))) for name, rule in RULES.items()}
    varying = {name: test.varying(kind, np.asarray(rule(frames))) for name, rule in RULES.items()}
    found = {f"{name}, time-invariant": level for name, level in constant.items()}
    return found | {f"{name}, time-varying": level for name, level in varying.items()}


def build(cache: Path, test: Corpus) -> Page:
    """Levels of the oracles, and the claims of section VI.E."""
    found = {kind: oracles(test, kind) for kind in KINDS}
    printed = {("oracle fusion, time-varying", "ML-NMF"): papers.EXPECTED["table2"]["oracle"][0]}
    rows = {
        name: {kind: Bar(name, test.interval(found[kind][name]), printed.get((name, kind))) for kind in KINDS}
        for name in found[KINDS[0]]
    }
    table = papers.beside(f"Fig. 2: oracles, {len(test.names)} test mixtures", rows)
    panels = {kind: [row[kind] for row in rows.values()] for kind in KINDS}
    return Page([table], claims_of(test, found), partial(papers.bars, "Fig. 2: oracles", panels))


def claims_of(test: Corpus, found: dict[str, dict[str, np.ndarray]]) -> list[Claim]:
    """What sections VI.E and VI.H say of the oracles."""
    made = []
    for kind in KINDS:
        invariant, varying = (
            [found[kind][f"{name}, time-{when}"] for name in RULES] for when in ("invariant", "varying")
        )
        gain = ORACLE[f"fusion_over_selection_{kind[:2].lower()}_db"]
        made += [
            claims.above("VI.E", f"{kind}, time-invariant: fusion over selection",
                         test.interval(invariant[1] - invariant[0]), gain),
            claims.above("VI.E", f"{kind}, time-varying: fusion over selection",
                         test.interval(varying[1] - varying[0])),
            claims.above("VI.E", f"{kind}: time-varying fusion over time-invariant fusion",
                         test.interval(varying[1] - invariant[1]), ORACLE["varying_over_invariant_db"]),
        ]  # fmt: skip
    ml, vb = (found[kind]["oracle fusion, time-varying"] for kind in KINDS)
    return [*made, claims.above("VI.H", "time-varying fusion: ML-NMF over VB-NMF", test.interval(ml - vb))]


if __name__ == "__main__":
    papers.run(papers.parser(__doc__).parse_args(), ["test"], build)

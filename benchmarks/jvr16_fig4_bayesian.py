"""[JVR16] Fig. 4: variational Bayesian averaging with learned prior and temperature, against selection by free energy.

    python benchmarks/jvr16_fig4_bayesian.py --data ../shared/data/mini-chime --figure fig4.png

On the records of `mini_chime.toml`, see `_papers.py`, for VB-NMF: eqs. 18-21, learned on the training mixtures with
respect to the squared error (MSE) or the SDR, one weight per model (time-invariant) or one per model and frame
(time-varying, where the sums of eqs. 19 and 20 are over frames, too), scored on the test mixtures. A further row, not
in the paper, learns weights per frame for the SDR of the utterance. Learning takes minutes and is kept in the cache.
The paper prints gains, no levels.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

from functools import partial
from pathlib import Path

import _claims as claims
import _common as common
import _papers as papers
import jvr16_fig3_static as static
import numpy as np
from _claims import Claim
from _corpus import Corpus
from _papers import Bar, Page

from bayesfuse.bayesian import learn_vb
from bayesfuse.fusion import Gram, select_weights
from bayesfuse.objectives import Loss
from bayesfuse.rules import VBRule
from bayesfuse.simplex_qp import oracle_weights

KIND = "VB-NMF"
BAYES = papers.EXPECTED["bayesian"]
SELECTION, MSE, SDR, ORACLE = "VB selection", "VB average, MSE", "VB average, SDR", "oracle fusion"
EXTRA = "VB average, SDR of the utterance"
INVARIANT, VARYING = "time-invariant", "time-varying"
LOSSES: dict[str, dict[str, Loss]] = {
    INVARIANT: {MSE: "mse", SDR: "sdr"},
    VARYING: {MSE: "mse", SDR: "frame-sdr", EXTRA: "sdr"},
}


def learned(cache: Path, train: Corpus, when: str, loss: Loss) -> VBRule:
    """Prior and temperature learned on the training mixtures, from the cache if they are there."""

    def learn() -> dict[str, np.ndarray]:
        if when == INVARIANT:
            rule, report = learn_vb(train.products(KIND), train.totals(KIND), loss=loss, num_frames=train.lengths)
        else:
            g = train.frames(KIND)
            padded = Gram(*(train.padded(np.asarray(field)) for field in (g.energy, g.cross, g.gram)))
            energies = np.moveaxis(train.padded(train.energies(KIND)), 1, -1)
            frames = train.padded(np.ones(len(train.recording), bool))
            rule, report = learn_vb(padded, energies, loss=loss, frames=frames)
        print(f"  learned {when} for {loss}: {report.starts} descents into {report.basins} basins", flush=True)
        return {"log_prior": rule.log_prior, "beta": rule.beta}

    found = papers.remembered(cache, f"VB {when} {loss}", train.key, learn)
    return VBRule(found["log_prior"], found["beta"], axes=("model",) if when == INVARIANT else ("model", "frame"))


def applied(rule: VBRule, test: Corpus) -> np.ndarray:
    """SDR [example] of a learned rule."""
    if rule.axes == ("model",):
        return test.constant(KIND, rule.weights(test.totals(KIND), num_frames=test.lengths))
    return test.varying(KIND, rule.weights(test.energies(KIND).T).T)


def rules_of(cache: Path, train: Corpus) -> dict[str, dict[str, VBRule]]:
    """All learned rules."""
    return {
        when: {name: learned(cache, train, when, loss) for name, loss in losses.items()}
        for when, losses in LOSSES.items()
    }


def levels(rules: dict[str, dict[str, VBRule]], test: Corpus) -> dict[str, dict[str, np.ndarray]]:
    """SDR [example] of every rule, time-invariant and time-varying."""
    selected = {
        INVARIANT: test.constant(KIND, select_weights(test.totals(KIND))),
        VARYING: test.varying(KIND, select_weights(test.energies(KIND))),
    }
    best = {
        INVARIANT: test.constant(KIND, np.asarray(oracle_weights(test.products(KIND)))),
        VARYING: test.varying(KIND, np.asarray(oracle_weights(test.frames(KIND)))),
    }
    return {
        when: {SELECTION: selected[when]}
        | {name: applied(rule, test) for name, rule in rules[when].items()}
        | {ORACLE: best[when]}
        for when in LOSSES
    }


def build(cache: Path, train: Corpus, test: Corpus) -> Page:
    """Levels of the Bayesian rules, what was learned, and the claims of section VI.G."""
    rules = rules_of(cache, train)
    found = levels(rules, test)
    names = dict.fromkeys(name for level in found.values() for name in level)
    rows = {
        name: {when: Bar(name, test.interval(found[when][name])) for when in found if name in found[when]}
        for name in names
    }
    title = f"Fig. 4: VB-NMF, learned on {len(train.names)}, {len(test.names)} test mixtures"
    body = []
    for when, learnt in rules.items():
        for name, rule in learnt.items():
            prior = np.exp(rule.log_prior - rule.log_prior.max())
            body.append([f"{name}, {when}", f"{float(rule.beta):.3g}", *(f"{p:.2f}" for p in prior / prior.sum())])
    header = ["learned", "beta (nat per frame)", *(f"prior {order}" for order in train.orders(KIND))]
    panels = {when: [row[when] for row in rows.values() if when in row] for when in found}
    fixed = static.levels(cache, train, test, KIND)
    tables = [papers.beside(title, rows), common.table(header, body)]
    return Page(tables, claims_of(test, found, fixed), partial(papers.bars, "Fig. 4: VB fusion", panels))


def claims_of(test: Corpus, found: dict[str, dict[str, np.ndarray]], fixed: dict[str, np.ndarray]) -> list[Claim]:
    """What sections VI.G and VI.H say."""
    made = []
    for when, level in found.items():
        gains = [test.interval(level[SDR] - level[other]) for other in (SELECTION, MSE)]
        like = test.interval(level[SDR] - fixed[static.SDR])
        made += [
            claims.above(
                "VI.G", f"{when}: average (SDR) over VB selection", gains[0], BAYES["average_over_selection_db"]
            ),
            claims.above("VI.G", f"{when}: learning for SDR over MSE", gains[1], BAYES["sdr_over_mse_db"]),
            claims.similar("VI.G", f"{when}: average (SDR) is like static fusion (SDR)", like),
        ]
    for name in (static.SELECTION, static.MEAN):
        gap = test.interval(fixed[name] - found[INVARIANT][SELECTION])
        made.append(claims.above("VI.G", f"{name} over VB selection", gap, BAYES["static_over_selection_db"]))
    for name in (SDR, EXTRA):
        gap = test.interval(found[VARYING][name] - found[INVARIANT][SDR])
        made.append(claims.not_above("VI.H", f"time-varying, no gain over time-invariant: {name}", gap))
    return made


if __name__ == "__main__":
    papers.run(papers.parser(__doc__).parse_args(), ["train", "test"], build)

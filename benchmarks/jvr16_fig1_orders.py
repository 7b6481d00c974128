"""[JVR16] Fig. 1: SDR of the separated speech by order, ML-NMF and VB-NMF, with the time that each takes.

    python benchmarks/jvr16_fig1_orders.py --data ../shared/data/mini-chime --figure fig1.png

On the records of `mini_chime.toml`, see `_papers.py`; seconds are those that the records state, of one process of one
thread, compiling apart. The paper prints one SDR, that of the best model, and the times per utterance.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import _claims as claims
import _common as common
import _papers as papers
import numpy as np
from _claims import Claim
from _corpus import KINDS, Corpus, positions
from _papers import Bar, Page

from bayesfuse._plot_style import new_figure, soften

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SINGLE = papers.EXPECTED["single"]


def build(cache: Path, test: Corpus) -> Page:
    """Levels of all models, and the claims of section VI.D."""
    singles = {kind: test.singles(kind) for kind in KINDS}
    rows: dict[str, dict[str, Bar]] = {}
    for kind in KINDS:
        for order, values in zip(test.orders(kind), singles[kind].T, strict=True):
            best = (kind, order) == ("VB-NMF", SINGLE["best_vb_order"])
            bar = Bar(f"{kind} {order}", test.interval(values), SINGLE["best_vb_sdr_db"] if best else None)
            rows.setdefault(f"order {order}", {})[kind] = bar
    table = papers.beside(f"Fig. 1: SDR by order, {len(test.names)} test mixtures", rows)
    return Page([table, times(test)], claims_of(test, singles), lambda: draw(test, rows))


def times(test: Corpus) -> str:
    """Seconds of every model, the mean over mixtures."""
    seconds = dict(zip(test.models, test.seconds.mean(0), strict=True))
    body = []
    for order in test.orders(KINDS[0]):
        body.append([f"order {order}", *(f"{seconds.get(f'{kind} {order}', np.nan):.2f}" for kind in KINDS)])
    body.append(["mean of the orders", *(f"{of(test, kind).mean():.2f}" for kind in KINDS)])
    body.append(["paper, on average per utterance", *(f"{SINGLE[f'{kind[:2].lower()}_seconds']:g}" for kind in KINDS)])
    return common.table(["seconds per mixture", *KINDS], body)


def of(test: Corpus, kind: str) -> np.ndarray:
    """Seconds [example], the mean over the models of a kind."""
    return test.seconds[:, positions(test.models, kind)].mean(1)


def claims_of(test: Corpus, singles: dict[str, np.ndarray]) -> list[Claim]:
    """What section VI.D says."""
    levels = {f"{kind} {k}": v for kind in KINDS for k, v in zip(test.orders(kind), singles[kind].T, strict=True)}
    named = f"VB-NMF {SINGLE['best_vb_order']}"
    other = max((label for label in levels if label != named), key=lambda label: levels[label].mean())
    gap = singles["VB-NMF"] - singles["ML-NMF"]
    middle = len(gap.T) // 2
    return [
        claims.above("VI.D", f"{named} is the best (over {other})", test.interval(levels[named] - levels[other])),
        claims.above("VI.D", "few components: VB-NMF over ML-NMF", test.interval(gap[:, :middle].mean(1))),
        claims.above("VI.D", "many components: ML-NMF over VB-NMF", test.interval(-gap[:, -middle:].mean(1))),
        claims.above(
            "VI.D", "VB-NMF takes longer than ML-NMF", test.interval(of(test, "VB-NMF") - of(test, "ML-NMF")),
            round(SINGLE["vb_seconds"] - SINGLE["ml_seconds"], 1), "s",
        ),
    ]  # fmt: skip


def draw(test: Corpus, rows: dict[str, dict[str, Bar]]) -> "Figure":
    """SDR by order, as lines with intervals, and the paper's printed point."""
    figure = new_figure(6.4, 4.0)
    ax = figure.subplots()
    for kind, colour in zip(KINDS, ("#0072B2", "#D55E00"), strict=True):
        found = {order: rows[f"order {order}"][kind] for order in test.orders(kind)}
        means, halves = zip(*(bar.ours for bar in found.values()), strict=True)
        ax.errorbar(list(found), means, yerr=np.nan_to_num(halves), marker="o", capsize=3, color=colour, label=kind)
        for order, bar in found.items():
            if bar.printed is not None:
                ax.plot(order, bar.printed, "D", color=colour, mfc="white", label=f"{kind}, printed in the paper")
    ax.set_xscale("log", base=2)
    ax.set_xlabel("components of the speech dictionary")
    ax.set_ylabel("SDR [dB]")
    ax.legend(fontsize=8, frameon=False)
    soften(ax)
    return figure


if __name__ == "__main__":
    papers.run(papers.parser(__doc__).parse_args(), ["test"], build)

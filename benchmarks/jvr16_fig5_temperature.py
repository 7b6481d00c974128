"""[JVR16] Fig. 5: free energies, learned prior, and the posterior over orders for several temperatures beta.

    python benchmarks/jvr16_fig5_temperature.py --data ../shared/data/mini-chime --figure fig5.png

On the records of `mini_chime.toml`, see `_papers.py`: the time-invariant rule of Fig. 4, learned for the SDR, on one
test mixture (`--item`, by default the first); which one the paper shows it does not say. beta is in nats of the whole
utterance, as in the paper (eq. 18). The paper prints one number: at beta = 1 order 16 has all of the posterior.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import _claims as claims
import _common as common
import _papers as papers
import numpy as np
from _claims import Claim
from _corpus import Corpus
from _papers import Page
from jvr16_fig4_bayesian import BAYES, INVARIANT, KIND, learned

from bayesfuse._plot_style import colours, new_figure, number, soften
from bayesfuse.fusion import select_weights, vb_weights
from bayesfuse.rules import VBRule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BETAS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
# A posterior that is as good as all on one order.
SHARP = 0.99


def posteriors(energies: np.ndarray, rule: VBRule, frames: int) -> dict[str, np.ndarray]:
    """Posterior [order] of one utterance for every temperature, the learned one among them (eq. 18)."""
    mine = float(rule.beta) * frames
    betas = {number(beta): beta for beta in BETAS} | {f"{number(mine)} (learned)": mine, "∞": np.inf}
    ordered = dict(sorted(betas.items(), key=lambda pair: pair[1]))
    return {label: np.asarray(vb_weights(energies, rule.log_prior, beta)) for label, beta in ordered.items()}


def build(cache: Path, train: Corpus, test: Corpus, *, item: str | None = None) -> Page:
    """The posteriors of one utterance, and the claims of section VI.G on them."""
    name = test.names[0] if item is None else item
    if name not in test.names:
        raise ValueError(f"there is no test mixture {name!r}; the first one is {test.names[0]!r}.")
    index = test.names.index(name)
    rule = learned(cache, train, INVARIANT, "sdr")
    energies = test.totals(KIND)
    found = posteriors(energies[index], rule, int(test.lengths[index]))
    orders = test.orders(KIND)
    body = [["free energy − largest (nat)", *(f"{e:.0f}" for e in energies[index] - energies[index].max())]]
    body.append(["learned prior", *(f"{p:.3f}" for p in found["∞"])])
    body += [[f"posterior, beta = {label}", *(f"{p:.3f}" for p in values)] for label, values in found.items()]
    singles = test.singles(KIND)[index]
    body.append(["SDR of the order (dB)", *(f"{level:.2f}" for level in singles)])
    table = common.table([f"Fig. 5: {name}", *map(str, orders)], body)
    picked = [orders[k] for k in energies.argmax(1)]
    counts = ", ".join(f"{order}: {picked.count(order)}" for order in orders if order in picked)
    about = (
        f"orders of the largest free energy, all test mixtures: {counts} (of the paper's: {BAYES['selected_order']})"
    )
    return Page([table, about], claims_of(test, rule), partial(draw, name, orders, energies[index], found))


def claims_of(test: Corpus, rule: VBRule) -> list[Claim]:
    """What section VI.G says of the temperature, on all test mixtures."""
    energies = test.totals(KIND)
    sharp = np.asarray(vb_weights(energies, rule.log_prior, 1.0))
    chosen = np.asarray(select_weights(energies))
    hit = (sharp.max(1) >= SHARP) & (sharp.argmax(1) == chosen.argmax(1))
    prior = np.exp(rule.log_prior - rule.log_prior.max())
    flat = np.abs(vb_weights(energies, rule.log_prior, np.inf) - prior / prior.sum()).max()
    gap = test.interval(test.constant(KIND, sharp) - test.constant(KIND, chosen))
    share = hit.mean()
    return [
        claims.fact(
            "VI.G", f"beta = 1: the posterior is 1 (≥ {SHARP:g}) at the largest free energy",
            f"{hit.sum()} of {hit.size} mixtures", True if share >= 0.95 else False if share < 0.5 else None,
        ),
        claims.similar("VI.G", "beta = 1 is like VB selection", gap),
        claims.fact("VI.G", "beta → ∞: the posterior is the prior", f"within {flat:.0e}", bool(flat < 1e-9)),
    ]  # fmt: skip


def draw(name: str, orders: tuple[int, ...], energies: np.ndarray, found: dict[str, np.ndarray]) -> "Figure":
    """Free energies above, posteriors below."""
    figure = new_figure(6.4, 5.6)
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(orders, energies, "o-", color="#222222")
    above.set_ylabel("free energy [nat]")
    above.set_title(name, fontsize=9)
    for colour, (label, values) in zip(colours(len(found)), found.items(), strict=True):
        text = "∞: the prior" if label == "∞" else label
        below.plot(orders, values, "o-", color=colour, label=text)
    below.set_xscale("log", base=2)
    below.set_xlabel("components of the speech dictionary")
    below.set_ylabel("posterior probability")
    below.legend(title="beta [nat]", fontsize=8, frameon=False)
    for ax in (above, below):
        soften(ax)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = papers.parser(__doc__)
    parser.add_argument("--item", help="which test mixture (default: the first)")
    options = parser.parse_args(arguments)
    papers.run(options, ["train", "test"], partial(build, item=options.item))


if __name__ == "__main__":
    main()

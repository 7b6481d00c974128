"""[JVR14] Fig. 1: SDR of VB selection, VB fusion, oracle selection and fusion by mean, for each SNR.

    python benchmarks/jvr14_fig1.py --data ../shared/data/mini-chime --figure jvr14_fig1.png

The curves of the table that `synthetic_orders.py` prints, on the same records, computed if they are missing; the paper
prints their values in its Table 1. Shown is the explicit variant from the paper's start (`--method`). Intervals are
over examples, which are independent draws; within an SNR there are seven, one for each order that generates.

[JVR14] X. Jaureguiberry, E. Vincent, G. Richard, "Variational Bayesian model averaging for audio source
separation", IEEE Workshop on Statistical Signal Processing, 2014.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _claims as claims
import _common as common
import numpy as np
import synthetic_orders
from _claims import Claim
from _common import Estimate

# Nothing else of the library before the records are there: their keys are hashes of the modules that are loaded.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"selection": "VB selection", "fusion": "VB fusion", "oracle": "oracle selection", "mean": "fusion by mean"}
EXPECTED = common.expected("jvr14")
PRINTED = EXPECTED["table1"]


def interval(values: Sequence[float], found: Sequence[dict[str, Any]]) -> Estimate:
    """Mean over examples with its interval; the SNRs are a design."""
    return common.clustered_mean(values, range(len(values)), strata=[r["snr"] for r in found])


def curves(found: Sequence[dict[str, Any]]) -> dict[str, dict[int, Estimate]]:
    """Level of every rule at every SNR."""
    snrs = sorted({r["snr"] for r in found})
    at = {snr: [r for r in found if r["snr"] == snr] for snr in snrs}
    return {rule: {snr: interval([r["sdr"][rule] for r in at[snr]], at[snr]) for snr in snrs} for rule in NAMES}


def report(found: Sequence[dict[str, Any]], method: str) -> str:
    """The values of the curves beside the paper's, and its claims."""
    body = []
    for rule, levels in curves(found).items():
        for snr, level in levels.items():
            printed = PRINTED[rule]["sdr_db"][PRINTED["snr_db"].index(snr)]
            body.append([NAMES[rule], f"{snr:+d} dB", str(level), f"{printed:.2f}"])
    title = f"[JVR14] Fig. 1: {len(found)} examples, {synthetic_orders.METHODS[method]}; SDR in dB, intervals 95 %"
    table = common.table(["", "SNR", "ours", "paper"], body, title=title)
    return f"{table}\n\n{claims.report(claims_of(found), '[JVR14]')}"


def claims_of(found: Sequence[dict[str, Any]]) -> list[Claim]:
    """What section 4.3 says, on all examples and at each SNR."""

    def gap(first: str, second: str, some: Sequence[dict[str, Any]] = found) -> Estimate:
        return interval([r["sdr"][first] - r["sdr"][second] for r in some], some)

    printed = EXPECTED["claims"]
    made = [
        claims.above("4.3", "oracle selection over VB selection", gap("oracle", "selection"),
                     printed["oracle_minus_selection_db"]),
        claims.above("4.3", "VB fusion over VB selection", gap("fusion", "selection"),
                     printed["fusion_minus_selection_db"]),
        claims.above("4.3", "VB fusion over fusion by mean", gap("fusion", "mean")),
        claims.similar("5", "VB fusion almost reaches oracle selection", gap("fusion", "oracle")),
    ]  # fmt: skip
    ratio = float(np.median([r["seconds_singles"] / r["seconds_joint"] for r in found]))
    faster = claims.fact("4.3", "VB fusion is faster", f"{ratio:.2f} times", ratio > 1, f"{printed['speedup']:g} times")
    for snr in sorted({r["snr"] for r in found}):
        some = [r for r in found if r["snr"] == snr]
        made.append(
            claims.above("Fig. 1", f"{snr:+d} dB: VB fusion over VB selection", gap("fusion", "selection", some))
        )
    return [*made, faster]


def draw(found: Sequence[dict[str, Any]]) -> "Figure":
    """The four curves, solid ours, dashed the paper's."""
    from bayesfuse._plot_style import colours, new_figure, soften

    figure = new_figure(6.4, 4.2)
    ax = figure.subplots()
    for colour, (rule, levels) in zip(colours(len(NAMES)), curves(found).items(), strict=True):
        means, halves = zip(*levels.values(), strict=True)
        ax.errorbar(
            list(levels), means, yerr=np.nan_to_num(halves), color=colour, marker="o", capsize=2, label=NAMES[rule]
        )
        ax.plot(PRINTED["snr_db"], PRINTED[rule]["sdr_db"], "--", color=colour, linewidth=1)
    ax.plot([], [], "--", color="#222222", linewidth=1, label="printed in the paper")
    ax.set_xlabel("SNR [dB]")
    ax.set_ylabel("SDR [dB]")
    ax.legend(fontsize=8, frameon=False)
    soften(ax)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder mini-chime")
    parser.add_argument("--method", choices=list(synthetic_orders.METHODS), default="explicit", help="which inference")
    parser.add_argument("--figure", metavar="FILE.png", help="draw the figure, too")
    parser.add_argument("--cache", help="folder for dictionaries and records (default: the user's cache)")
    parser.add_argument("--limit", type=int, help="only so many conditions, to try the script")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "records.json"
        passed = ["--data", options.data, "--methods", options.method, "--out", str(out)]
        passed += ["--cache", options.cache] if options.cache else []
        passed += ["--limit", str(options.limit)] if options.limit else []
        synthetic_orders.main(passed)
        found = json.loads(out.read_text())[options.method]
    print("\n" + report(found, options.method))
    if options.figure:
        from bayesfuse._netcdf import replacing

        with replacing(Path(options.figure)) as temporary:
            draw(found).savefig(temporary, dpi=120)


if __name__ == "__main__":
    main()

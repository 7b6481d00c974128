"""What a paper claims beside what is measured: verdicts from paired intervals, and their table.

Imports nothing of the library: the keys of some caches are hashes of the modules that are loaded.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import _common as common
from _common import Estimate

# "Performs similarly": less apart than this, in dB.
SIMILAR = 0.2

HOLDS, CONTRADICTED, UNDECIDED = "holds", "CONTRADICTED", "undecided"


class Claim(NamedTuple):
    """A comparison that a paper states, and what the data at hand say about it."""

    section: str
    text: str
    printed: str
    ours: str
    verdict: str


def above(section: str, text: str, gap: Estimate, printed: float | None = None, unit: str = "dB") -> Claim:
    """A claim that a difference is positive: it holds, or is contradicted, if its whole interval says so.

    With a printed size the verdict also says whether it lies within the interval of ours, to half its last digit.
    """
    verdict = UNDECIDED
    if gap.mean - gap.half > 0:
        verdict = HOLDS
        if printed is not None:
            digits = len(f"{printed:g}".partition(".")[2])
            away = abs(gap.mean - printed) > gap.half + 0.5 * 10.0**-digits
            verdict += ", as large" if not away else ", smaller" if gap.mean < printed else ", larger"
    elif gap.mean + gap.half < 0:
        verdict = CONTRADICTED
    return Claim(section, text, "above 0" if printed is None else f"{printed:g} {unit}", f"{gap} {unit}", verdict)


def not_above(section: str, text: str, gap: Estimate) -> Claim:
    """A claim that something is no gain: contradicted if the interval of the difference lies above zero."""
    verdict = UNDECIDED if math.isnan(gap.half) else CONTRADICTED if gap.mean - gap.half > 0 else HOLDS
    return Claim(section, text, "not above 0", f"{gap} dB", verdict)


def similar(section: str, text: str, gap: Estimate) -> Claim:
    """A claim that two are alike: it holds if the interval lies within `SIMILAR` of zero, not if outside of it."""
    verdict = UNDECIDED
    if abs(gap.mean) + gap.half <= SIMILAR:
        verdict = HOLDS
    elif abs(gap.mean) - gap.half > SIMILAR:
        verdict = CONTRADICTED
    return Claim(section, text, "near 0", f"{gap} dB", verdict)


def fact(section: str, text: str, ours: str, holds: bool | None, printed: str = "") -> Claim:
    """A claim that is not about a difference; None if the data do not tell."""
    return Claim(section, text, printed, ours, {True: HOLDS, False: CONTRADICTED, None: UNDECIDED}[holds])


def report(claims: Sequence[Claim], paper: str = "[JVR16]") -> str:
    """The table of the claims."""
    rows = [[f"{c.section}: {c.text}", c.printed, c.ours, c.verdict] for c in claims]
    return common.table([f"claims of {paper}", "paper", "ours", "verdict"], rows)

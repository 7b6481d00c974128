"""What the speed benchmarks share: rows with aims, sections chosen by letter, measurements in their own process."""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import _common as common


class Row(NamedTuple):
    """One line of the report. `aim` is a bound of `measured`, from below or above as `at_least` says."""

    letter: str
    what: str
    measured: float
    unit: str
    aim: float | None
    at_least: bool
    detail: str

    @property
    def met(self) -> bool | None:
        if self.aim is None or math.isnan(self.measured):
            return None
        return self.measured >= self.aim if self.at_least else self.measured <= self.aim

    def cells(self) -> list[str]:
        value = "-" if math.isnan(self.measured) else f"{self.measured:.3g}{self.unit}"
        aim = "-" if self.aim is None else f"{'≥' if self.at_least else '≤'} {self.aim:g}{self.unit}"
        verdict = {True: "met", False: "MISSED", None: "-"}[self.met]
        return [f"({self.letter}) {self.what}", value, aim, verdict, self.detail]


def run(
    description: str | None,
    sections: Mapping[str, Callable[[int], list[Row]]],
    arguments: list[str] | None,
    *,
    repeats: int,
    about: str,
) -> None:
    """Command line of a benchmark: runs the chosen sections, functions of the number of repeats, and prints their rows.

    Parameters
    ----------
    description
        Text of ``--help``.
    repeats
        Default number of timed calls of each competitor.
    about
        A line on the problem, in which ``{repeats}`` is replaced.
    """
    from tqdm.auto import tqdm

    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(sections), help="letters, separated by commas (default: all)")
    parser.add_argument(
        "--repeats", type=int, default=repeats, help=f"timed calls of each competitor (default: {repeats})"
    )
    options = parser.parse_args(arguments)
    letters = options.only.split(",")
    if unknown := set(letters) - set(sections):
        parser.error(f"unknown letters {sorted(unknown)}: expected some of {','.join(sections)}")
    print(common.environment(), flush=True)
    print(about.format(repeats=options.repeats) + "\n", flush=True)
    rows: list[Row] = []
    for letter in tqdm(letters, desc="sections", unit="section"):
        rows += sections[letter](options.repeats)
        tqdm.write("  ".join(rows[-1].cells()))
    print()
    print(common.table(["", "measured", "aim", ""], [row.cells()[:4] for row in rows]))
    print()
    for row in rows:
        print(f"({row.letter}) {row.what}: {row.detail}")


def in_subprocess(code: str, *arguments: str) -> dict[str, Any]:
    """What Python code prints, as JSON after the word REPORT, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT")]
    if done.returncode or not lines:
        raise RuntimeError(f"the measured process ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("REPORT"))

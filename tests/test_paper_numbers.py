"""What the papers print is where `benchmarks/expected` says; verdicts on claims; the figure of [JVR14]."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paper_mixtures import cells, level, load, mean

REPOSITORY = Path(__file__).resolve().parent.parent


def test_figure_of_the_synthetic_experiment(tmp_path):
    script = load("jvr14_fig1")
    rng = np.random.default_rng(0)
    found = []
    for snr in (-6, 0):
        for _ in range(7):
            selection = snr / 3 + rng.normal()
            sdr = {"selection": selection, "fusion": selection + 0.5, "oracle": selection + 0.6, "mean": selection + 1}
            found.append({"snr": snr, "sdr": sdr, "seconds_singles": 6.0, "seconds_joint": 2.0})
    text = script.report(found, "explicit")
    rows = [line for line in text.splitlines() if line.startswith("VB fusion  ")]
    expected = mean(r["sdr"]["fusion"] for r in found if r["snr"] == 0)
    assert level(cells(rows[1], "VB fusion")[1]) == pytest.approx(expected, abs=0.006)
    assert rows[1].endswith("5.47") and rows[0].endswith("4.24")
    assert cells(text, "4.3: VB fusion over VB selection") == ["0.5 dB", "0.50 ±0.00 dB", "holds, as large"]
    assert cells(text, "4.3: oracle selection over VB selection")[-1] == "holds, smaller"
    assert cells(text, "4.3: VB fusion over fusion by mean")[-1] == "CONTRADICTED"
    assert cells(text, "5: VB fusion almost reaches oracle selection")[-1] == "holds"
    assert cells(text, "4.3: VB fusion is faster") == ["2.8 times", "3.00 times", "holds"]
    script.draw(found).savefig(tmp_path / "f.png")


def test_verdicts():
    claims, estimate = load("_claims"), load("_common").Estimate

    def above(value: float, half: float, printed: float | None = None) -> str:
        return claims.above("s", "t", estimate(value, half), printed).verdict

    assert [above(1, 0.5), above(-1, 0.5), above(0.2, 0.5), above(1, np.nan)] == [
        "holds", "CONTRADICTED", "undecided", "undecided",
    ]  # fmt: skip
    # 0.5 may stand for anything from 0.45 to 0.55; 3 for 2.5 to 3.5.
    assert above(0.3, 0.16, 0.5) == "holds, as large" and above(0.3, 0.14, 0.5) == "holds, smaller"
    assert above(2.6, 0.0, 3) == "holds, as large" and above(3.6, 0.01, 3) == "holds, larger"
    assert above(0.1, 0.2, 0.5) == "undecided"
    for value, half, expected in ((0.1, 0.2, "holds"), (-1, 0.1, "holds"), (0.3, 0.2, "CONTRADICTED")):
        assert claims.not_above("s", "t", estimate(value, half)).verdict == expected
    for value, half, expected in (
        (0.1, 0.1, "holds"), (-0.1, 0.2, "undecided"), (-0.5, 0.1, "CONTRADICTED"), (0, np.nan, "undecided"),
    ):  # fmt: skip
        assert claims.similar("s", "t", estimate(value, half)).verdict == expected


@pytest.fixture(scope="module")
def papers() -> dict[str, str]:
    """The texts of the papers, where they are at hand."""
    data = os.environ.get("BAYESFUSE_DATA")
    places = [REPOSITORY.parent / "shared/papers", *([Path(data).parent / "papers"] if data else [])]
    titles = {"jvr16": "Fusion methods for speech enhancement", "jvr14": "we introduce a generative model in"}
    for place in places:
        texts = [path.read_text() for path in sorted(place.glob("*.txt"))]
        found = {name: next((t for t in texts if title in t[:2000]), None) for name, title in titles.items()}
        if all(found.values()):
            return {name: str(text).replace("−", "-") for name, text in found.items()}
    pytest.skip("the texts of the papers are not in ../shared/papers")


def between(text: str, first: str, last: str) -> str:
    """From one heading to another, both patterns of beginnings of lines."""
    start = re.search(f"^ ?{first}", text, re.MULTILINE)
    assert start is not None, first
    stop = re.search(f"^ ?{last}", text[start.end() :], re.MULTILINE)
    assert stop is not None, last
    return text[start.end() : start.end() + stop.start()]


def section(text: str, name: str) -> str:
    """The text of a section of [JVR16] such as "VI.H.2", or of its Table II."""
    if name == "Table II":
        return between(text, "Sep. Fusion approach", "TABLE II$")
    part, letter, *number = name.split(".")
    text = between(text, rf"{part}\. [A-Z]{{3}}", r"V?I*\. [A-Z]{3}")
    following = rf"{chr(ord(letter) + 1)}\. "
    text = between(text + f"\n{following[:1]}. ", rf"{letter}\. ", following)
    if not number:
        return text
    return between(text + f"\n{int(number[0]) + 1}) ", rf"{number[0]}\) ", rf"{int(number[0]) + 1}\) ")


def numbers(table: dict[str, Any], home: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a table, with the section that they are said to be printed in."""
    home = table.get("section", home)
    for value in table.values():
        if isinstance(value, dict):
            yield from numbers(value, home)
        elif not isinstance(value, str):
            yield from ((home, each) for each in (value if isinstance(value, list) else [value]))


def stands(value: float, text: str, form: str = "g") -> bool:
    return re.search(rf"(?<![\d.]){re.escape(format(value, form))}(?!\d|\.\d)", text) is not None


def test_numbers_of_jvr16_are_printed_where_they_are_said_to_be(papers):
    expected = load("_common").expected("jvr16")
    found = list(numbers(expected))
    assert len(found) > 35
    for home, value in found:
        form = ".2f" if home == "Table II" else "g"
        assert stands(value, section(papers["jvr16"], home), form), f"{value} is not printed in {home}"
    # The search tells sections apart, and finds no number that is part of another.
    assert not stands(8.15, section(papers["jvr16"], "VI.G")) and not stands(5.5, "5.59 15.5 5.5.1")


def test_numbers_of_jvr14_are_printed_where_they_are_said_to_be(papers):
    expected, text = load("_common").expected("jvr14"), papers["jvr14"]
    table = expected["table1"]
    labels = {
        "selection": "VB selection", "fusion": "VB fusion with β = 104", "oracle": "Oracle selection",
        "mean": "Fusion by mean",
    }  # fmt: skip
    for rule, label in labels.items():
        levels = [f"{value:.2f}" for value in (*table[rule]["sdr_db"], table[rule]["average_db"])]
        assert " ".join([label, *levels, f"{table[rule]['time_ms']:.1f}"]) in text
    assert " ".join(f"{snr} dB" for snr in table["snr_db"]) in text
    results = between(text, r"4\.3\. ", r"5\. CONCLUSION")
    for home, value in numbers(expected["claims"]):
        assert home == "4.3" and stands(value, results)

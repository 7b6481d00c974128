"""The report: its numbers are those of the tables, it needs nothing from outside, and its sounds are the right ones."""

import base64
import html.parser
import io
import json
import re
import wave
from pathlib import Path

import equinox as eqx
import numpy as np
import pytest
import soundfile
from small_corpus import MODELS, make_record, make_records, write_records
from small_records import RATE

from bayesfuse import cli, comparison, scores
from bayesfuse.corpus_results import corpus_tree, save_corpus
from bayesfuse.corpus_rules import apply_rules, criterion_table, rule_table
from bayesfuse.records import estimate_path
from bayesfuse.report import Sounds, write_report


class Page(html.parser.HTMLParser):
    """Tables, headings, players and pictures of a page; fails where tags do not match or something is to be fetched."""

    VOID = ("meta", "img", "br")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.pictures: list[str] = []
        self.sounds: list[tuple[str, np.ndarray]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert tag not in ("script", "link", "iframe") and not any(name.startswith("on") for name in found)
        assert found.get("href", "#").startswith("#")
        if "src" in found:
            head, data = found["src"].split(",", 1)
            content = base64.b64decode(data, validate=True)
            if tag == "img":
                assert head == "data:image/png;base64" and content.startswith(b"\x89PNG") and found["alt"]
                self.pictures.append(found["alt"])
            else:
                assert head == "data:audio/wav;base64"
                with wave.open(io.BytesIO(content)) as file:
                    raw = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
                    assert file.getframerate() == RATE
                self.sounds.append((self.text.split("\n")[-1].strip(), raw.T / 32768.0))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("div", "h2", "h3", "p"):
            self.text += "\n"
        if tag in ("h2", "h3"):
            self.headings.append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            assert "url(" not in data and "@import" not in data
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings[-1] += data

    def table(self, first: str) -> dict[str, list[str]]:
        """The rows, by their first cell, of the first table whose header begins so."""
        found = next(table for table in self.tables if table[0][0].startswith(first))
        return {row[0]: row[1:] for row in found[1:]}


def number(cell: str) -> float:
    return float(re.match(r"[+-]?[\d.]+", cell).group())


@pytest.fixture(scope="module")
def drawn():
    return make_records(6, 9, bands=False)


@pytest.fixture(scope="module")
def tree(drawn):
    return corpus_tree(drawn)


@pytest.fixture(scope="module")
def written(tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(tree, path, title="Tom & Jerry <1>")
    return Page(path)


def test_numbers_are_those_of_the_tables(tree, written):
    applied = apply_rules(tree)
    table = rule_table(tree, applied)
    speech = table[table["source"] == "speech"]
    shown = written.table("system")
    assert set(shown) == {"mixture", *MODELS, *applied["rule"].values}
    baseline = "best single (training)"
    means = scores.summarise(speech, by=["system"]).set_index("system")
    gains = scores.summarise(comparison.against(speech, baseline), by=["system"]).set_index("system")
    for rule in applied["rule"].values:
        row = means.loc[rule]
        assert shown[rule][0] == f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        assert shown[rule][3] == "9"
        if rule != baseline:
            assert number(shown[rule][1]) == pytest.approx(gains.loc[rule, "value"], abs=0.005)
            assert shown[rule][2] == "< 0.001" or 0 <= float(shown[rule][2]) <= 1
    for model in MODELS:
        recorded = tree["scores"]["sdr"].sel(model=model, source="speech").values[6:].mean()
        assert number(shown[model][0]) == pytest.approx(recorded, abs=0.005)
    by_snr = written.table("gain in dB at snr_db")
    chosen = comparison.against(speech, baseline).query("system == 'mean'")
    for cell, (_, part) in zip(by_snr["mean"], chosen.groupby("snr_db"), strict=True):
        assert number(cell) == pytest.approx(part["value"].mean(), abs=0.005)


def test_the_criterion(tree, written):
    found = criterion_table(tree)
    speech = found[found["source"] == "speech"]
    row = written.table("within")["speech, all"]
    assert number(row[0]) == pytest.approx(speech["spearman"].mean(), abs=0.005)
    assert row[2] == f"{np.mean(speech['best'] == speech['chosen']):.0%}"
    assert number(row[3]) == pytest.approx(speech["loss"].mean(), abs=0.005)
    assert "speech, snr_db = -6" in written.table("within")


def test_sections_pictures_and_facts(written, tree):
    assert [h for h in written.headings if h not in ("speech", "noise")] == [
        "Scores", "Gain by snr_db", "Does the free energy predict quality?", "Fusion weights", "Examples",
        "Other metrics", "Time",
    ]  # fmt: skip
    assert len(written.pictures) == 8 and not written.sounds
    assert "Tom & Jerry <1>" in written.text and "9 mixtures of test" in written.text
    assert "learned on the mixtures of train" in " ".join(written.text.split())
    seconds = tree["timing"]["seconds"].mean("example")
    assert written.table("seconds")["ML-NMF 8"][0] == f"{float(seconds[3]):.2f}"
    si = tree["scores"]["si_sdr"].sel(source="speech", model="VB-NMF 2").values[6:].mean()
    assert number(written.table("mean in dB")["VB-NMF 2"][0]) == pytest.approx(si, abs=0.005)


def test_names_are_texts(drawn, tmp_path):
    """Whatever mixtures and models are called, nothing of it is HTML, nor a formula."""
    evil = "<script>alert('x')</script>$a_1$&"
    renamed = [eqx.tree_at(lambda r: (r.models, r.name), r, ((evil, *MODELS[1:]), evil + r.name)) for r in drawn[6:]]
    tree = corpus_tree(renamed)
    tree.attrs["errors"] = json.dumps({evil: "<b>broken</b>"})
    write_report(tree, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert evil in page.table("system")
    assert page.table("mixture")[f"smallest gain: {evil}{_least(page)}"]
    assert page.tables[-1][1] == [evil, "<b>broken</b>"]


def _least(page):
    row = next(name for name in page.table("mixture") if name.startswith("smallest"))
    return row.rsplit("&", 1)[1]


def test_without_splits_groups_or_conditions(tmp_path):
    """One group, one condition, no split to learn on, no free energies: fewer sections, no crash."""
    found = []
    for number_ in range(3):
        record, _, _ = make_record(f"m{number_}", "", 0, "one", seed=number_, bands=False)
        bare = np.full_like(record.free_energy, np.nan)
        found.append(
            eqx.tree_at(lambda r, e=bare: (r.free_energy, r.total_free_energy), record, (bare, bare.sum((1, 2))))
        )
    write_report(corpus_tree(found), tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert not any(h.startswith(("Gain", "Does")) for h in page.headings)
    shown = page.table("system")
    assert "VB selection" not in shown and "[" not in shown["mean"][0]
    assert "Nothing was learned" in page.text


def test_errors(tree, tmp_path):
    with pytest.raises(ValueError, match="by='room'"):
        write_report(tree, tmp_path / "report.html", by="room")
    with pytest.raises(ValueError, match="split 'dev'"):
        write_report(tree, tmp_path / "report.html", apply="dev")
    with pytest.raises(ValueError, match="no folder"):
        write_report(tree, tmp_path / "none/report.html")
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------- sounds and command


@pytest.fixture
def experiment(tmp_path):
    """Records, set and kept estimates as an experiment leaves them; signals by name."""
    found, signals = [], {}
    for place, (name, split) in enumerate({"a": "train", "b": "train", "c": "test", "d": "test"}.items()):
        record, truth, estimates = make_record(name, split, 3 * place, name, seed=place, bands=False)
        truth, estimates = 0.05 * truth, 0.05 * estimates
        found.append(record)
        signals[name] = (truth, estimates)
        _write(tmp_path / "set/mixtures" / f"{name}.wav", truth.sum(0))
        for s, source in enumerate(record.sources):
            _write(tmp_path / "set/references" / name / f"{source}.wav", truth[s])
            for model, estimate in zip(MODELS, estimates, strict=True):
                _write(estimate_path(tmp_path / "records", model, name, source), estimate[s])
    data = {"kind": "folder", "target": None, "rest": "rest", "options": {}}
    write_records(tmp_path / "records", found)
    index = {"format": "bayesfuse experiment", "settings": "", "config": {"data": data}, "names": list("abcd")}
    (tmp_path / "records/experiment.json").write_text(json.dumps(index))
    return tmp_path, signals


def _write(path, signal):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, signal, RATE, subtype="FLOAT")


def test_players_play_what_they_say(experiment, capsys):
    home, signals = experiment
    output = home / "page.html"
    command = ["report", str(home / "records"), "--data", str(home / "set"), "-o", str(output), "--title", "Three"]
    assert cli.main(command) == 0
    assert str(output) in capsys.readouterr().out
    page = Page(output)
    assert len(page.sounds) == 12
    applied = apply_rules(corpus_tree_of(home)).sel(source="speech")
    single, average = "best single (training)", "VB average"
    best = int(np.argmax(applied["weights"].sel(rule=single).values[0]))
    gain = (applied["sdr"].sel(rule=average) - applied["sdr"].sel(rule=single)).to_series().sort_values(kind="stable")
    for box, name in enumerate([gain.index[0], gain.index[1], gain.index[1]]):
        truth, estimates = signals[name]
        weights = applied["weights"].sel(rule=average, example=name).transpose("model").values
        expected = {
            "mixture": truth.sum(0), "true speech": truth[0], MODELS[best]: estimates[best, 0],
            average: np.einsum("m,mt->t", weights, estimates[:, 0]),
        }  # fmt: skip
        for (title, sound), (label, signal) in zip(page.sounds[4 * box : 4 * box + 4], expected.items(), strict=True):
            assert title == label
            np.testing.assert_allclose(sound[0], signal, atol=1.01 / 32768)
    assert "keep_estimates" not in output.read_text()
    next((home / "records" / "estimates").iterdir()).rename(home / "away")
    assert cli.main(command) == 0
    assert len(Page(output).sounds) == 6 and "set keep_estimates = true" in output.read_text()


def corpus_tree_of(home):
    from bayesfuse.records import open_records

    return corpus_tree(open_records(home / "records"))


def test_command_on_a_file_and_its_errors(experiment, capsys):
    home, _ = experiment
    save_corpus(corpus_tree_of(home), home / "corpus.nc")
    assert cli.main(["report", str(home / "corpus.nc"), "--by", "snr_db", "--quiet"]) == 0
    assert (home / "report.html").is_file() and capsys.readouterr().out == ""
    assert cli.main(["report", str(home / "corpus.nc"), "--data", str(home / "set")]) == 2
    assert "--data goes with the folder" in capsys.readouterr().err
    assert cli.main(["report", str(home / "nothing")]) == 2
    assert "no records" in capsys.readouterr().err
    assert cli.main(["report", str(home / "records"), "--apply", "dev"]) == 2
    assert "split 'dev'" in capsys.readouterr().err


def test_sounds_without_estimates(tree, tmp_path, drawn):
    rng = np.random.default_rng(0)
    sources = {"speech": 0.1 * rng.normal(size=(2, 50)), "noise": 0.1 * rng.normal(size=(2, 50))}

    def sounds(name):
        assert name.startswith("test/")
        return Sounds(RATE, sources["speech"] + sources["noise"], sources, {})

    write_report(tree, tmp_path / "report.html", sounds=sounds, learn=None)
    page = Page(tmp_path / "report.html")
    assert [title for title, _ in page.sounds] == ["mixture", "true speech"] * 3
    np.testing.assert_allclose(page.sounds[1][1], sources["speech"], atol=1.01 / 32768)

"""Scripts on the papers' figures: numbers against waveforms and formulas, verdicts, and what the papers print."""

import argparse
import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import small_experiment
from small_records import TRANSFORM, draw_record

from bayesfuse import metrics
from bayesfuse.fusion import fuse
from bayesfuse.grams import gram
from bayesfuse.records import open_records, record_path, write_record
from bayesfuse.rules import VBRule

REPOSITORY = Path(__file__).resolve().parent.parent
ORDERS = (2, 16, 64)
LABELS = (*(f"VB-NMF {k}" for k in ORDERS), *(f"ML-NMF {k}" for k in ORDERS))
KIND = {"VB-NMF": slice(0, 3), "ML-NMF": slice(3, 6)}
# Errors of the models relative to the speech: VB-NMF 16 is the best one, ML-NMF 64 better than VB-NMF 64.
LEVELS = np.array([0.5, 0.2, 0.6, 0.8, 0.4, 0.5])


@pytest.fixture(scope="module", autouse=True)
def scripts() -> None:
    """Scripts import their neighbours, as they do when they are run."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


class Mixture:
    """A record of speech alone, and the waveforms behind it."""

    def __init__(self, number: int, split: str) -> None:
        rng = np.random.default_rng(number)
        self.truth = rng.normal(size=300 + 40 * (number % 3))
        self.estimates = self.truth + LEVELS[:, None] * rng.normal(size=(len(LABELS), self.truth.size))
        frames = gram(self.truth[None], self.estimates[:, None], transform=TRANSFORM)
        energy = rng.normal(size=(len(LABELS), 3, frames.energy.shape[1]))
        energy[0, 0] += 50.0  # the free energy prefers the smallest order, clearly
        energy = energy.astype(np.float32).astype(np.float64)  # as records keep them
        energy[3:] = np.nan
        self.energy = energy.sum(1)  # [model, frame]
        changes: dict[str, Any] = {
            "name": f"{split}_{number}", "split": split, "models": LABELS, "dictionary_energy": np.zeros(len(LABELS)),
            "group": f"u{number // 3}", "metadata": {"snr_db": (-6, 0, 6)[number % 3], "noise": f"n{number % 4}"},
            "orders": np.array([*ORDERS, *ORDERS]), "sources": ("speech",), "frames": frames, "bands": None,
            "whole": gram(self.truth[None], self.estimates[:, None]), "free_energy": energy, "likelihood": None,
            "total_free_energy": energy.sum((1, 2)), "scores": {"sdr": self.singles[:, None]},
            "mixture_scores": {"sdr": np.zeros(1)}, "seconds": np.array([3.0, 3.0, 3.0, 1.0, 1.0, 1.0]),
        }  # fmt: skip
        self.record = dataclasses.replace(draw_record()[0], **changes)

    @property
    def singles(self) -> np.ndarray:
        """SDR of every model."""
        return np.asarray(metrics.sdr(self.truth, self.estimates))

    def fused(self, kind: str, weights: np.ndarray) -> float:
        """SDR of the fused waveform, with weights [model] or [model, frame]."""
        found = fuse(weights, self.estimates[KIND[kind]], transform=None if weights.ndim == 1 else TRANSFORM)
        return float(metrics.sdr(self.truth, found))


@pytest.fixture(scope="module")
def mixtures() -> dict[str, list[Mixture]]:
    return {"train": [Mixture(n, "train") for n in range(6)], "test": [Mixture(n, "test") for n in range(6, 18)]}


@pytest.fixture(scope="module")
def corpora(mixtures, tmp_path_factory):
    """Both splits, from files of records, and the cache that they are in."""
    folder, cache = tmp_path_factory.mktemp("records"), tmp_path_factory.mktemp("cache")
    for found in mixtures.values():
        for mixture in found:
            write_record(mixture.record, record_path(folder, mixture.record.name))
    records = open_records(folder)
    names = {split: [m.record.name for m in found] for split, found in mixtures.items()}
    papers = load("_papers")
    first = [papers.corpus_of(records, names[split], folder, cache) for split in ("train", "test")]
    # The second time nothing is read from the records.
    kept, papers.Corpus.of = papers.Corpus.of, None
    again = [papers.corpus_of(records, names[split], folder, cache) for split in ("train", "test")]
    papers.Corpus.of = kept
    for one, two in zip(first, again, strict=True):
        for name, values in one.packed().items():
            np.testing.assert_array_equal(values, two.packed()[name])
    return cache, *again


def cells(text: str, label: str) -> list[str]:
    """Cells of the first row that begins with a label; columns are two blanks or more apart."""
    line = next(line for line in text.splitlines() if line.startswith(label + "  "))
    return [cell.strip() for cell in line[len(label) :].split("  ") if cell.strip()]


def level(cell: str) -> float:
    return float(cell.split()[0])


def mean(values: Any) -> float:
    return float(np.mean(list(values)))


# Records --------------------------------------------------------------------------------------------------------------


def test_levels_are_those_of_waveforms(corpora, mixtures):
    """Exactly for constant weights; for varying ones the waveform is not worse, and as good if they do not vary."""
    _, _, test = corpora
    rng = np.random.default_rng(0)
    assert test.names == tuple(m.record.name for m in mixtures["test"])
    assert test.orders("VB-NMF") == test.orders("ML-NMF") == ORDERS
    for kind in KIND:
        singles = np.stack([m.singles[KIND[kind]] for m in mixtures["test"]])
        np.testing.assert_allclose(test.singles(kind), singles, atol=1e-6)
        weights = rng.dirichlet(np.ones(3))
        constant = [m.fused(kind, weights) for m in mixtures["test"]]
        np.testing.assert_allclose(test.constant(kind, weights), constant, atol=1e-6)
        same = np.broadcast_to(weights, (len(test.recording), 3))
        np.testing.assert_allclose(test.varying(kind, same), constant, atol=1e-4)
        varied = rng.dirichlet(np.ones(3), len(test.recording))
        parts = np.split(varied, np.cumsum(test.lengths)[:-1])
        waveform = np.array([m.fused(kind, w.T) for m, w in zip(mixtures["test"], parts, strict=True)])
        found = test.varying(kind, varied)
        assert (found <= waveform + 1e-4).all() and (found > waveform - 3).all()
    totals = np.stack([m.energy[:3].sum(1) for m in mixtures["test"]])
    np.testing.assert_allclose(test.totals("VB-NMF"), totals, rtol=1e-9)
    assert test.lengths.tolist() == [m.energy.shape[1] for m in mixtures["test"]]
    padded = test.padded(test.energies("VB-NMF"))
    for row, m in zip(padded, mixtures["test"], strict=True):
        np.testing.assert_array_equal(row[: m.energy.shape[1]], m.energy[:3].T)
        assert not row[m.energy.shape[1] :].any()


def test_some_mixtures_of_a_corpus(corpora):
    _, _, test = corpora
    chosen = [test.names[i] for i in (7, 2, 3)]
    some = test.select(chosen)
    where = [2, 3, 7]
    assert some.names == tuple(test.names[i] for i in where) and some.snrs == tuple(test.snrs[i] for i in where)
    np.testing.assert_array_equal(some.totals("VB-NMF"), test.totals("VB-NMF")[where])
    weights = np.random.default_rng(0).dirichlet(np.ones(3), len(test.recording))
    inside = np.isin(test.recording, where)
    np.testing.assert_array_equal(some.varying("ML-NMF", weights[inside]), test.varying("ML-NMF", weights)[where])


def options(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(**({"records": None, "limit": None, "figure": None} | values))


def test_records_are_computed_once_and_completed(tmp_path, monkeypatch):
    papers = load("_papers")
    monkeypatch.setattr(papers, "CONFIG", small_experiment.make(tmp_path))
    chosen = options(data=str(tmp_path / "set"), cache=str(tmp_path / "cache"), records=str(tmp_path / "out"), limit=2)
    (first,) = papers.load(chosen, "all")
    assert first.names == ("a", "b") and first.models == ("ML-NMF 2",)
    before = small_experiment.times(tmp_path / "out")
    monkeypatch.setattr(papers, "run_experiment", None)  # nothing is missing
    (again,) = papers.load(chosen, "all")
    np.testing.assert_array_equal(first.whole.gram, again.whole.gram)
    assert small_experiment.times(tmp_path / "out") == before
    monkeypatch.undo()
    monkeypatch.setattr(papers, "CONFIG", tmp_path / "experiment.toml")
    (tmp_path / "out/records/b.nc").unlink()
    chosen.limit = 3
    (more,) = papers.load(chosen, "all")
    assert more.names == ("a", "b", "c")
    assert small_experiment.times(tmp_path / "out")["a.nc"] == before["a.nc"]


# Figures --------------------------------------------------------------------------------------------------------------


def shown(page: Any, capsys: pytest.CaptureFixture[str], path: Path) -> str:
    """What is printed; the picture is drawn, too."""
    load("_papers").show(page, str(path))
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
    return capsys.readouterr().out


def test_orders(corpora, mixtures, capsys, tmp_path):
    text = shown(load("jvr16_fig1_orders").build(*corpora[::2]), capsys, tmp_path / "f.png")
    for k, order in enumerate(ORDERS):
        row = cells(text, f"order {order}")
        expected = [mean(m.singles[KIND[kind]][k] for m in mixtures["test"]) for kind in ("ML-NMF", "VB-NMF")]
        found = [level(row[0]), level(row[1])]
        np.testing.assert_allclose(found, expected, atol=0.006)
        assert row[2:] == (["5.59"] if order == 16 else [])
    assert cells(text, "mean of the orders") == ["1.00", "3.00"]
    assert cells(text, "paper, on average per utterance") == ["12.8", "14.5"]
    # As the data were made: VB-NMF 16 is the best, the smallest order better with VB-NMF, the largest with ML-NMF.
    verdicts = [line.split("  ")[-1].strip() for line in text.splitlines() if line.startswith("VI.D")]
    assert verdicts == ["holds", "holds", "holds", "holds, larger"]


def test_oracles(corpora, mixtures, capsys, tmp_path):
    """Against all weights of a fine grid on the simplex."""
    text = shown(load("jvr16_fig2_oracles").build(*corpora[::2]), capsys, tmp_path / "f.png")
    grid = np.array([(i, j, 40 - i - j) for i in range(41) for j in range(41 - i)]) / 40
    for column, kind in enumerate(("ML-NMF", "VB-NMF")):
        best, chosen, varied = [], [], []
        for m in mixtures["test"]:
            errors = m.estimates[KIND[kind]] - m.truth
            best.append(10 * np.log10(np.sum(m.truth**2) / np.sum((grid @ errors) ** 2, axis=1).min()))
            chosen.append(m.singles[KIND[kind]].max())
            frames = TRANSFORM.analysis(errors)
            power = np.einsum("f,mfn->mn", TRANSFORM.multiplicity, np.abs(frames) ** 2)
            varied.append(10 * np.log10(np.sum(m.truth**2) / power.min(0).sum()))
        place = 0 if column == 0 else -1
        assert level(cells(text, "oracle selection, time-invariant")[place]) == pytest.approx(mean(chosen), abs=0.006)
        assert level(cells(text, "oracle fusion, time-invariant")[place]) == pytest.approx(mean(best), abs=0.01)
        assert level(cells(text, "oracle selection, time-varying")[place]) == pytest.approx(mean(varied), abs=0.006)
    assert "10.33" in cells(text, "oracle fusion, time-varying")
    assert sum("fusion over selection" in line and "holds" in line for line in text.splitlines()) == 4


def test_static_fusion(corpora, mixtures, capsys, tmp_path, monkeypatch):
    script = load("jvr16_fig3_static")
    text = shown(script.build(*corpora), capsys, tmp_path / "f.png")
    for place, kind in enumerate(("ML-NMF", "VB-NMF")):
        errors = np.concatenate([m.estimates[KIND[kind]] - m.truth for m in mixtures["train"]], axis=1)
        # Least squares with sum one, in closed form; all weights come out positive here.
        solved = np.linalg.solve(errors @ errors.T, np.ones(3))
        weights = solved / solved.sum()
        assert (weights > 0).all()
        best = int(np.argmax(np.mean([m.singles[KIND[kind]] for m in mixtures["train"]], axis=0)))
        rules = {"static selection": np.eye(3)[best], "fusion by mean": np.ones(3) / 3, "static fusion, MSE": weights}
        for name, rule in rules.items():
            expected = mean(m.fused(kind, rule) for m in mixtures["test"])
            assert level(cells(text, name)[place]) == pytest.approx(expected, abs=0.006), name
        learned = script.learned(corpora[0], corpora[1], kind)
        np.testing.assert_allclose(learned["static fusion, MSE"], weights, atol=1e-5)
    gap = [level(cells(text, "static fusion, SDR")[1]), level(cells(text, "static selection")[1])]
    claim = cells(text, "VI.F: VB-NMF: SDR-based fusion over selection")
    assert claim[0] == "0.3 dB" and level(claim[1]) == pytest.approx(gap[0] - gap[1], abs=0.011)
    # Learned once.
    monkeypatch.setattr(script, "static_weights", None)
    assert [str(c) for c in script.build(*corpora).claims] and script.build(*corpora).tables[0] in text


def test_bayesian_rules_and_temperature(corpora, mixtures, capsys, tmp_path, monkeypatch):
    """With priors and temperatures that are given, against the formulas on waveforms."""
    script = load("jvr16_fig4_bayesian")
    log_prior, calls = np.log([0.2, 0.5, 0.3]), []

    class Report:
        starts, basins = 3, 1

    def learn(g: Any, energy: np.ndarray, *, loss: str, num_frames: Any = None, frames: Any = None) -> Any:
        calls.append((loss, g.cross.shape, energy.shape))
        beta = {"mse": 20.0, "sdr": 10.0, "frame-sdr": 30.0}[loss]
        return VBRule(log_prior, beta, axes=("model",) if frames is None else ("model", "frame")), Report

    monkeypatch.setattr(script, "learn_vb", learn)
    text = shown(script.build(*corpora), capsys, tmp_path / "f.png")
    longest = max(m.energy.shape[1] for m in mixtures["train"])
    wholes, frames = ((6, 3), (6, 3)), ((6, longest, 3), (6, 3, longest))
    assert calls == [
        ("mse", *wholes), ("sdr", *wholes), ("mse", *frames), ("frame-sdr", *frames), ("sdr", *frames),
    ]  # fmt: skip
    test = mixtures["test"]

    def row(name: str) -> list[float]:
        return [level(cell) for cell in cells(text, name)]

    assert row("VB selection") == pytest.approx([mean(m.singles[0] for m in test)] * 2, abs=0.01)
    for name, beta in (("VB average, MSE", 20.0), ("VB average, SDR", 10.0)):
        weights = [scipy.special.softmax(log_prior + m.energy[:3].mean(1) / beta) for m in test]
        expected = mean(m.fused("VB-NMF", w) for m, w in zip(test, weights, strict=True))
        assert row(name)[0] == pytest.approx(expected, abs=0.006)
    errors = []
    for m in test:
        weights = scipy.special.softmax(log_prior[:, None] + m.energy[:3] / 30.0, axis=0)
        spectra = TRANSFORM.analysis(m.estimates[KIND["VB-NMF"]] - m.truth)
        power = TRANSFORM.multiplicity @ np.abs(np.einsum("mn,mfn->fn", weights, spectra)) ** 2
        errors.append(10 * np.log10(np.sum(m.truth**2) / power.sum()))
    assert row("VB average, SDR")[1] == pytest.approx(mean(errors), abs=0.006)

    # What was learned is kept, also for the next figure.
    monkeypatch.setattr(script, "learn_vb", None)
    assert script.build(*corpora).tables[0] in text
    figure = load("jvr16_fig5_temperature")
    text = shown(figure.build(*corpora, item="test_8"), capsys, tmp_path / "f.png")
    energy = test[2].energy[:3].sum(1)
    learned = 10.0 * test[2].energy.shape[1]
    for label, beta in (("100", 100.0), ("1e+03", 1e3), (f"{learned:.3g} (learned)", learned)):
        expected = scipy.special.softmax(log_prior + energy / beta)
        found = [float(cell) for cell in cells(text, f"posterior, beta = {label}")]
        np.testing.assert_allclose(found, expected, atol=0.0006)
    assert cells(text, "posterior, beta = ∞") == cells(text, "learned prior") == ["0.200", "0.500", "0.300"]
    assert "12 of 12 mixtures" in text and "all test mixtures: 2: 12 (of the paper's: 16)" in text
    with pytest.raises(ValueError, match="no test mixture 'x'"):
        figure.build(*corpora, item="x")


# Networks -------------------------------------------------------------------------------------------------------------


class Separations:
    """Separations of tiny items, every split the same three."""

    folder = Path("separations-tiny")

    class data:
        rate = 16000

        @staticmethod
        def mixtures(split: str, quick: bool | None) -> Any:
            class Names(list):
                names = property(list)

                def __getitem__(self, key: Any) -> Any:
                    return Names(list(self)[key])

            return Names(["test_0", "test_1", "test_2"])

    def load(self, split: str, quick: bool | None = None, limit: int | None = None) -> Iterator[Any]:
        item = load("_separations").Item
        for seed in range(3):
            rng = np.random.default_rng(seed)
            samples = 512 * (10 + seed)
            speech = np.zeros(samples, np.float32)
            speech[1024:-1100] = rng.normal(size=samples - 2124)
            errors = np.linspace(0.2, 1, 14)[:, None] * rng.normal(size=(14, samples))
            yield item(
                name=f"test_{seed}", speaker="a", utterance=str(seed), noise="n", snr=0, rate=16000,
                scored=(1024, samples - 1100), mixture=speech + 1, speech=speech,
                estimates=(speech + errors).astype(np.float32),
                likelihood=np.zeros((7, 32, 1)), activations=np.zeros((7, 2, 1)),
            )  # fmt: skip


def test_networks_are_scored_on_waveforms_once(tmp_path, monkeypatch):
    networks, ladder = load("_paper_networks"), load("fusion_ladder")
    variant = networks.Variant({"transform": "log", "num_components": None, "context": 0}, networks.NetworkConfig())
    monkeypatch.setattr(networks, "VARIANTS", {networks.BEST: variant})
    chosen = argparse.Namespace(limit=None, quick=None, epochs=1)
    setting = networks.Setting(networks.BEST, networks.NetworkConfig(hidden=(3,)))
    found = networks.scores_on(Separations(), chosen, tmp_path, [setting, setting])
    assert found.names == ("test_0", "test_1", "test_2") and found.inputs == {networks.BEST: 8 * 32}
    np.testing.assert_array_equal(found.networks[0], found.networks[1])
    trainer = load("_networks").Networks(Separations(), chosen, tmp_path, networks.VARIANTS)
    learned = trainer.fit(networks.BEST, "ML-NMF", [setting.config])[0]
    for index, item in enumerate(Separations().load("test")):
        oracle = ladder.score(item, "ML-NMF", ladder.oracles(item, "ML-NMF")["oracle fusion per frame"])
        assert found.oracle[index] == pytest.approx(oracle, abs=1e-9)
        told = learned.pipeline(load("_networks").inputs_of(item, "ML-NMF"))
        logs = np.asarray(learned.network(jnp.asarray(told)))[:, 0, 0]
        signal = fuse(np.exp(logs).T.astype(np.float64), item.estimates[7:], transform=ladder.TRANSFORM)
        inside = slice(*item.scored)
        expected = float(metrics.sdr(item.speech[inside], signal[inside]))
        assert found.networks[0][index] == pytest.approx(expected, abs=1e-3)
    monkeypatch.setattr(networks.Networks, "fit", None)
    again = networks.scores_on(Separations(), chosen, tmp_path, [setting])
    np.testing.assert_array_equal(again.networks, found.networks[:1])


def test_figure_of_networks(corpora, mixtures, capsys, tmp_path):
    """Levels that are given, one per bar: the gains that the claims state are their differences."""
    figure, networks = load("jvr16_fig6_network"), load("_paper_networks")
    chosen = figure.settings(1792)
    assert len(chosen) == 7 + 3 + 4 + 3
    base = figure.base(1792)
    panels = {panel for (panel, _), setting in chosen.items() if setting == base}
    assert panels == set("abcd") and sum(setting == base for setting in chosen.values()) == 4
    assert {len(s.config.hidden) for (panel, _), s in chosen.items() if panel == "a"} == {1, 2, 3, 4}
    names = tuple(m.record.name for m in mixtures["test"])[::-1][:9]
    height = {setting: 9.0 - 0.25 * k for k, setting in enumerate(dict.fromkeys(chosen.values()))}
    noise = np.arange(9) / 10
    scores = networks.Scores(names, [height[s] + noise for s in chosen.values()], noise, {"as the paper": 100})
    text = shown(figure.page(*corpora, chosen, scores), capsys, tmp_path / "f.png")

    def at(panel: str, label: str) -> float:
        return height[chosen[panel, label]]

    with_, without = ([at("a", f"{d} layers, {how}") for d in (2, 3, 4)] for how in ("with", "without"))
    standard = (at("c", "OMSE") + at("c", "CE")) / 2
    gains = {
        "VI.H.2: gain of pre-training": (mean(with_) - mean(without), "0.1 dB"),
        "VI.H.2: one layer over the mean of deeper networks": (at("a", "1 layer") - mean(with_), "above 0"),
        "VI.H.3: SDR over the mean of OMSE and CE": (at("c", "SDR") - standard, "0.2 dB"),
        "VI.H.3: SMSE over the mean of OMSE and CE": (at("c", "SMSE") - standard, "0.2 dB"),
        "VI.H.4: both over mixture only": (9.0 - at("b", "mixture"), "0.3 dB"),
        "VI.H.4: both over estimates only": (9.0 - at("b", "estimates"), "0.1 dB"),
        "VI.H.5: C = 2 over C = 0": (9.0 - at("d", "C = 0"), "0.35 dB"),
        "VI.H.5: C = 2 over C = 5": (9.0 - at("d", "C = 5"), "above 0"),
    }
    for label, (gain, printed) in gains.items():
        row = cells(text, label)
        assert row[0] == printed and level(row[1]) == pytest.approx(gain, abs=0.006) and "±0.00" in row[1]
        assert row[2].startswith("holds")
    assert sum(line.endswith("  8.15") for line in text.splitlines()) == 4
    # Compared with static selection on the same mixtures, whatever their order.
    train = np.mean([m.singles[KIND["ML-NMF"]] for m in mixtures["train"]], axis=0)
    single = [m.singles[KIND["ML-NMF"]][train.argmax()] for m in mixtures["test"] if m.record.name in names]
    row = cells(text, "VI.H.1: network over static selection")
    assert row[0] == "3 dB" and level(row[1]) == pytest.approx(9.0 + noise.mean() - mean(single), abs=0.006)


def test_table_2(corpora, mixtures, capsys, tmp_path):
    table, networks = load("jvr16_table2"), load("_paper_networks")
    test = mixtures["test"]
    names = tuple(m.record.name for m in test)
    single = np.array([m.singles[4] for m in test])  # ML-NMF 16, the best
    scores = networks.Scores(names, [single + 2.0], single + 4.0, {})
    text = shown(table.page(*corpora, scores), capsys, tmp_path / "f.png")
    assert "ML-NMF 16" in text.splitlines()[2]
    assert cells(text, "best individual separator")[1] == "5.12 ±0.20"
    row = cells(text, "adaptive time-varying fusion")
    assert level(row[0]) == pytest.approx(single.mean() + 2.0, abs=0.006)
    assert row[1:] == ["8.15 ±0.16", "2.00 ±0.00", "3.03 ±0.13"]
    assert cells(text, "oracle time-varying fusion (waveform)")[1:] == ["10.33 ±0.15", "4.00 ±0.00", "5.21 ±0.13"]
    claim = cells(text, "Table II: adaptive time-varying fusion over the best individual separator")
    assert claim == ["3.03 dB", "2.00 ±0.00 dB", "holds, smaller"]
    without = shown(table.page(*corpora, None), capsys, tmp_path / "f.png")
    assert "adaptive" not in without
    frames = "oracle time-varying fusion (frames)"
    assert cells(without, frames) == cells(text, frames)


# [JVR14] --------------------------------------------------------------------------------------------------------------


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


# Verdicts and printed numbers -----------------------------------------------------------------------------------------


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

"""Scripts on the networks of [JVR16]: scores against waveforms, gains and claims from scores that are given."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from paper_mixtures import KIND, Mixture, cells, level, load, make_corpora, make_mixtures, mean, shown

from bayesfuse import metrics
from bayesfuse.fusion import fuse
from bayesfuse.grams import gram
from bayesfuse.simplex_qp import oracle_weights
from bayesfuse.transforms import STFT


@pytest.fixture(scope="module")
def mixtures() -> dict[str, list[Mixture]]:
    return make_mixtures()


@pytest.fixture(scope="module")
def corpora(mixtures, tmp_path_factory):
    return make_corpora(mixtures, tmp_path_factory.mktemp("papers"))


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
    networks, shared = load("_paper_networks"), load("_networks")
    variant = networks.Variant({"transform": "log", "num_components": None, "context": 0}, networks.NetworkConfig())
    monkeypatch.setattr(networks, "VARIANTS", {networks.BEST: variant})
    trained = []

    def fit(self: Any, *arguments: Any) -> Any:
        trained.append(shared.Networks.fit(self, *arguments))
        return trained[-1]

    monkeypatch.setattr(networks, "Networks", type("Noted", (shared.Networks,), {"fit": fit}))
    chosen = argparse.Namespace(limit=None, quick=None, epochs=1)
    setting = networks.Setting(networks.BEST, networks.NetworkConfig(hidden=(3,)))
    found = networks.scores_on(Separations(), chosen, tmp_path, [setting, setting])
    assert found.names == ("test_0", "test_1", "test_2") and found.inputs == {networks.BEST: 8 * 32}
    np.testing.assert_array_equal(found.networks[0], found.networks[1])
    ((learned,),) = trained
    for index, item in enumerate(Separations().load("test")):
        inside = slice(*item.scored)
        silenced = np.zeros_like(item.estimates[7:])
        silenced[:, inside] = item.estimates[7:, inside]
        told = learned.pipeline(shared.inputs_of(item, "ML-NMF"))
        logs = np.asarray(learned.network(jnp.asarray(told)))[:, 0, 0]
        rules = np.exp(logs), np.asarray(oracle_weights(gram(item.speech, silenced, transform=STFT())))
        for weights, scores in zip(rules, (found.networks[0], found.oracle), strict=True):
            signal = fuse(weights.T.astype(np.float64), item.estimates[7:], transform=STFT())
            assert scores[index] == pytest.approx(float(metrics.sdr(item.speech[inside], signal[inside])), abs=1e-3)
    again = networks.scores_on(Separations(), chosen, tmp_path, [setting])
    np.testing.assert_array_equal(again.networks, found.networks[:1])
    assert len(trained) == 1


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

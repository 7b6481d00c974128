"""Networks that are trained on a folder and applied to one, through the command line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_example import RATE
from wav_folder import SAMPLES, SEPARATORS, SOURCES, write_folder

from bayesfuse import audio, cli, folder_network_training, fusion
from bayesfuse._training import Training
from bayesfuse.folder_network_training import collect_examples, judge_network, train_network
from bayesfuse.network_rule import NetworkRule
from bayesfuse.neural import NetworkConfig, evaluate, frame_weights
from bayesfuse.separators.folder import read_folder
from bayesfuse.separators.free_energy_file import save_free_energy
from bayesfuse.transforms import QERB, STFT
from bayesfuse.vbnmf import FreeEnergy

NAMES = ("a", "b", "c")
FILES = ["--mixtures", "mixtures", "--estimates", "estimates", "--references", "references"]
WORDS = ["--method", "network", "--window", "256", "-o", "weights.nc"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("set"), NAMES)


@pytest.fixture
def root(pristine, tmp_path, monkeypatch) -> Path:
    """A copy of the folder, which is the current one."""
    shutil.copytree(pristine, tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def small(monkeypatch):
    """A network that is trained in no time."""
    config = NetworkConfig(hidden=(8,), pretrain_epochs=0, training=Training(max_epochs=2))
    monkeypatch.setattr(folder_network_training, "NetworkConfig", lambda **_: config)


def train(*words: str) -> int:
    return cli.main(["train", *FILES, *WORDS, *words])


def fuse(*words: str) -> int:
    return cli.main(["fuse", *FILES[:4], "--weights", "weights.nc", "-o", "out", *words])


def read(path: str) -> np.ndarray:
    return audio.read(path)[0]


def with_free_energies(transform: STFT) -> None:
    """Writes free energies beside all estimates that tell how good each frame of the voice is, in disguise."""
    for name in NAMES:
        true = read(f"references/{name}/voice.wav")
        for offset, separator in enumerate(SEPARATORS):
            g = fusion.gram(true, read(f"estimates/{separator}/{name}/voice.wav")[None], transform=transform).sum(0)
            frames = -np.log(fusion.squared_error(np.ones(1), g) + 1e-6) - offset
            energy = FreeEnergy(frames, np.asarray(0.0), np.asarray(0.0))
            save_free_energy(Path("estimates", separator, name, "free_energy.nc"), energy, transform)


def test_a_network_is_trained_judged_and_applied(root, small, capsys):
    assert train() == 0
    text = capsys.readouterr().out
    assert "on the mixtures kept for validation" in text and "Learned on 3 pairs" in text
    for source in SOURCES:
        line = next(line for line in text.splitlines() if line.startswith(source))
        assert "expected gain over the best single model" in line and "3 folds" in line
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]
    assert fuse("--quiet") == 0
    span = np.stack([read(f"estimates/{separator}/a/voice.wav") for separator in SEPARATORS])
    assert read("out/a/voice.wav").shape == (1, SAMPLES)
    assert np.abs(read("out/a/voice.wav")).max() < 2 * np.abs(span).max()
    Path("estimates/wide").rename("estimates/brand-new")
    assert fuse("--overwrite") == 2
    assert "brand-new" in capsys.readouterr().err


def test_features_as_the_paper_has_them(root, small):
    assert train("--features", "qerb", "--quiet") == 0
    config = NetworkRule.load("weights.nc").pipeline.config
    assert config.transform == QERB(RATE, 350, 256) and (config.compression, config.level) == ("power", "none")
    assert train("--quiet") == 0
    config = NetworkRule.load("weights.nc").pipeline.config
    assert config.transform == QERB(RATE, 32, 256) and (config.compression, config.level) == ("log", "recording")
    assert fuse("--quiet") == 0


def test_free_energies_are_seen(root, small, capsys):
    assert train("--free-energies") == 2
    assert "there is no free_energy.nc" in capsys.readouterr().err
    with_free_energies(STFT(512, 256))
    assert train("--free-energies") == 2
    assert "frames of 512 samples every 256" in capsys.readouterr().err
    with_free_energies(STFT(256, 128))
    assert train("--free-energies", "--quiet") == 0
    rule = NetworkRule.load("weights.nc")
    assert rule.pipeline.extra_mean is not None and rule.pipeline.extra_mean.size == 3 * (
        2 * rule.pipeline.config.context + 1
    )
    assert fuse("--quiet") == 0
    expected, _ = collect_examples(read_folder(*FILES[1::2]), window=256, free_energies=True)
    # What is applied is what the features of training give.
    voice = fused_by_features(rule, expected, "a")
    np.testing.assert_allclose(read("out/a/voice.wav"), voice, atol=1e-5)
    Path("estimates/dark/a/free_energy.nc").unlink()
    assert fuse("--quiet", "--overwrite") == 1
    assert "a/voice: a: no free energy of dark" in capsys.readouterr().err
    for path in Path("estimates").rglob("free_energy.nc"):
        path.unlink()
    assert fuse("--quiet", "--overwrite") == 2


def fused_by_features(rule: NetworkRule, examples, name: str) -> np.ndarray:
    """The voice of a mixture by the features that were computed for training."""
    found = frame_weights(rule.network, examples.sets[examples.names.index(name)].features)
    weights = found[:, rule.sources.index("voice"), 0].T
    estimates = np.stack([read(f"estimates/{separator}/{name}/voice.wav") for separator in rule.separators])
    return np.asarray(fusion.fuse(weights, estimates, transform=rule.transform))


@pytest.mark.parametrize("words", [["--features", "log"], ["--free-energies"]])
def test_options_of_networks_are_for_networks(root, words, capsys):
    assert cli.main(["train", *FILES, "-o", "weights.nc", *words]) == 2
    assert "are for --method network" in capsys.readouterr().err


def test_cross_validation_trains_on_the_others_only(root):
    """A fold is the network of a folder without its mixture, judged on that mixture."""
    config = NetworkConfig(hidden=(8,), pretrain_epochs=0, training=Training(max_epochs=3))
    examples, outcome = collect_examples(read_folder(*FILES[1::2]), window=256, config=config)
    assert outcome.done == list(NAMES)
    judged = judge_network(examples)
    for index in range(3):
        others = [i for i in range(3) if i != index]
        network = examples.train(others).network
        for j, source in enumerate(SOURCES):
            own, found = examples.sets[index], judged[source]
            assert found is not None and found.best.size == 3
            np.testing.assert_allclose(found.fused[index], evaluate(network, own)[0, j], atol=1e-3)
            g = own.gram.sum(2).take(j, axis=1).sum(0)
            singles = [float(fusion.sdr(w, g)) for w in np.eye(3)]
            np.testing.assert_allclose(found.single[index], singles[found.best[found.fold[index]]], atol=1e-6)
    rule, score = train_network(examples)
    assert rule.record["validation_sdr"] == score

"""From recordings to a network rule and to fused sound: in one piece, in blocks, from files, and from a saved rule."""

import equinox as eqx
import jax
import numpy as np
import pytest

from bayesfuse import audio, fusion, network_rule
from bayesfuse.features import FeatureConfig, Inputs, fit_features
from bayesfuse.fusion import Bands, fuse
from bayesfuse.network_rule import NetworkRule, Recording, learn_network
from bayesfuse.neural import FusionNetwork, NetworkConfig, Training
from bayesfuse.transforms import QERB, STFT

RATE = 8000
SMALL = QERB(RATE, 8, 64)
SEPARATORS = ("a", "b", "c")
SOURCES = ("speech", "noise")


def recording(seed, samples=1500, channels=1):
    """Two sources, and three separators of which each does well in other stretches."""
    rng = np.random.default_rng(seed)
    sources = (
        rng.normal(size=(2, channels, samples))
        * np.repeat(rng.gamma(0.5, size=(2, channels, 40)), samples, -1)[..., ::40]
    )
    sources = sources.astype(np.float32)
    leak = np.abs(np.sin(np.linspace(0, 9, samples) + np.array([0.0, 2.0, 4.0])[:, None, None, None]))
    estimates = (sources + leak * sources[::-1]).astype(np.float32)
    energy = rng.normal(size=(3, SMALL.num_frames(samples)))
    return Recording(Inputs(sources.sum(0), estimates, energy), sources)


def learn(features=None, bands=None, **settings):
    features = features or FeatureConfig(SMALL, context=1, compression="log", level="recording", num_components=None)
    descent = Training(batch_size=20, max_epochs=15, rate=0.01, optimiser="adam")
    return learn_network(
        jax.random.key(0),
        [recording(i) for i in range(4)],
        [recording(9)],
        RATE,
        separators=SEPARATORS,
        sources=SOURCES,
        features=features,
        config=NetworkConfig((6,), training=descent),
        bands=bands,
        **settings,
    )[0]


@pytest.fixture(scope="module")
def rule():
    return learn()


@pytest.fixture(scope="module")
def rich():
    """With free energies, bands, and components."""
    config = FeatureConfig(SMALL, context=2, free_energy=True, num_components=100, share=0.3)
    return learn(config, Bands(RATE, 4, 64))


def test_weights_are_on_the_simplex_and_applied_per_source(rule):
    item = recording(20)
    fused, applied = rule.apply(item.inputs)
    assert applied.weights.shape == (2, 3, SMALL.num_frames(1500))
    np.testing.assert_allclose(applied.weights.sum(1), 1.0, atol=1e-6)
    for j in range(2):
        expected = fuse(applied.weights[j], item.inputs.estimates[:, j], transform=STFT(64, 32))
        np.testing.assert_allclose(fused[j], expected, atol=1e-6)
    assert applied.duration == 1500 / RATE and applied.real_time_factor > 0


def test_training_helps(rule):
    item = recording(21)
    fused, _ = rule.apply(item.inputs)
    errors = [np.sum((item.references - x) ** 2) for x in (fused, item.inputs.estimates.mean(0))]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("which", ["rule", "rich"])
def test_blocks_and_whole_agree(which, request, monkeypatch):
    learned = request.getfixturevalue(which)
    inputs, _ = recording(22, 5003)
    whole = learned.weights(inputs)
    assert whole.ndim == (4 if which == "rich" else 3)
    for piece, blocks in ((1, 700), (7 * 600, 333), (7 * 600, 5003)):
        monkeypatch.setattr(network_rule, "_PIECE", piece)
        parts = (
            (inputs.mixture[:, i : i + blocks], inputs.estimates[..., i : i + blocks]) for i in range(0, 5003, blocks)
        )
        level = network_rule.mean_power(inputs.mixture)
        found = learned.weights_of_blocks(parts, level, inputs.free_energy)
        np.testing.assert_allclose(found, whole, atol=1e-5)


def test_a_saved_rule_is_the_same_to_the_bit(rich, tmp_path):
    inputs, _ = recording(23)
    rich.save(tmp_path / "rule.nc")
    again = NetworkRule.load(tmp_path / "rule.nc", separators=SEPARATORS)
    np.testing.assert_array_equal(again.weights(inputs), rich.weights(inputs))
    assert (again.separators, again.sources, again.rate) == (SEPARATORS, SOURCES, RATE)
    assert again.bands == rich.bands and again.record == rich.record
    assert set(again.record["versions"]) >= {"jax", "equinox"} and "validation_sdr" in again.record
    with pytest.raises(ValueError, match=r"\['a', 'b', 'c'\].*\['c'\] are missing and \['demucs'\] are unknown"):
        NetworkRule.load(tmp_path / "rule.nc", separators=("a", "b", "demucs"))
    (tmp_path / "rule.nc").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        NetworkRule.load(tmp_path / "rule.nc")


@pytest.mark.parametrize(
    ("settings", "hidden", "bands"),
    [
        ({"compression": "log", "num_components": None, "free_energy": True}, (), None),
        ({"free_energy": True, "num_components": 40, "share": 0.3}, (5, 4), 4),
        ({"inputs": "estimates", "num_components": None}, (5,), None),
        ({"inputs": "mixture", "num_components": None}, (5,), None),
        ({"compression": "log", "relative": True, "num_components": None, "free_energy": True}, (5,), None),
    ],
)
def test_separators_in_another_order(tmp_path, settings, hidden, bands):
    partition = None if bands is None else Bands(RATE, bands, 64)
    pipeline = fit_features([recording(i).inputs for i in range(3)], FeatureConfig(SMALL, context=1, **settings))
    network = FusionNetwork(jax.random.key(1), pipeline.num_features, hidden, (2, bands or 1, 3))
    # An untrained network would return the same weights for everything.
    weight = jax.random.normal(jax.random.key(2), network.output.weight.shape) / np.sqrt(pipeline.num_features)
    network = eqx.tree_at(lambda n: n.output.weight, network, weight)
    NetworkRule(network, pipeline, SEPARATORS, SOURCES, RATE, partition).save(tmp_path / "rule.nc")
    order = [2, 0, 1]
    rule = NetworkRule.load(tmp_path / "rule.nc")
    other = NetworkRule.load(tmp_path / "rule.nc", separators=[SEPARATORS[i] for i in order])
    inputs, _ = recording(30)
    moved = inputs._replace(estimates=inputs.estimates[order], free_energy=inputs.free_energy[order])
    expected = rule.weights(inputs)
    assert np.ptp(expected, axis=1).max() > 0.1 and other.separators == ("c", "a", "b")
    np.testing.assert_allclose(other.weights(moved), expected[:, order], atol=1e-5)


def write(folder, item):
    audio.write(folder / "mixture.wav", item.inputs.mixture, RATE)
    files = {}
    for i, separator in enumerate(SEPARATORS):
        for j, source in enumerate(SOURCES):
            path = folder / f"{separator}-{source}.wav"
            audio.write(path, item.inputs.estimates[i, j], RATE)
            files.setdefault(separator, {})[source] = path
    return files


def test_files_of_any_length_are_fused_in_pieces(rule, tmp_path, monkeypatch):
    item = recording(24, 4000, channels=2)
    files = write(tmp_path, item)
    expected, _ = rule.apply(item.inputs)
    monkeypatch.setattr(network_rule, "_PIECE", 9000)
    outputs = {source: tmp_path / f"fused-{source}.wav" for source in SOURCES}
    applied = rule.apply_files(tmp_path / "mixture.wav", files, outputs)
    for j, source in enumerate(SOURCES):
        np.testing.assert_allclose(audio.read(outputs[source])[0], expected[j], atol=1e-5)
    assert applied.weights.shape == (2, 3, SMALL.num_frames(4000)) and applied.duration == 0.5
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_files_that_do_not_fit_are_named(rule, tmp_path):
    item = recording(25)
    files = write(tmp_path, item)
    outputs = {source: tmp_path / f"fused-{source}.wav" for source in SOURCES}
    mixture = tmp_path / "mixture.wav"
    with pytest.raises(ValueError, match=r"no files for \['c', 'b: noise'"):
        rule.apply_files(mixture, {"a": files["a"], "b": {"speech": files["b"]["speech"]}}, outputs)
    with pytest.raises(ValueError, match="output: noise"):
        rule.apply_files(mixture, files, {"speech": outputs["speech"]})
    audio.write(files["b"]["noise"], item.inputs.estimates[1, 1][:, 1:], RATE)
    with pytest.raises(ValueError, match=r"b-noise\.wav has 1 channels of 1499 samples"):
        rule.apply_files(mixture, files, outputs)
    files["b"]["noise"].unlink()
    with pytest.raises(FileNotFoundError, match="b-noise"):
        rule.apply_files(mixture, files, outputs)
    assert not any(path.exists() for path in outputs.values())


def test_bad_signals_are_refused(rule, rich):
    inputs, _ = recording(26)
    with pytest.raises(ValueError, match=r"fuses 3 models"):
        rule.weights(inputs._replace(estimates=inputs.estimates[:2]))
    with pytest.raises(ValueError, match="fuses 3 models"):
        rule.weights(inputs._replace(estimates=inputs.estimates[..., 1:]))
    bad = inputs.estimates.copy()
    bad[0, 0, 0, 700] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        rule.weights(inputs._replace(estimates=bad))
    with pytest.raises(ValueError, match="but got none"):
        rich.weights(inputs._replace(free_energy=None))
    with pytest.raises(ValueError, match="name each once"):
        NetworkRule(rule.network, rule.pipeline, ("a", "a", "b"), SOURCES, RATE)
    with pytest.raises(ValueError, match="features and a pipeline"):
        NetworkRule(rule.network, rich.pipeline, SEPARATORS, SOURCES, RATE)


def test_silent_and_equal_estimates_are_fused(rule):
    inputs, references = recording(27)
    silent = Inputs(0 * inputs.mixture, 0 * inputs.estimates)
    np.testing.assert_array_equal(rule.apply(silent)[0], 0)
    equal = Inputs(inputs.mixture, np.repeat(references[None], 3, axis=0))
    np.testing.assert_allclose(rule.apply(equal)[0], references, atol=1e-5)


def test_the_gain_of_a_recording_does_not_matter(rule):
    inputs, _ = recording(28)
    loud = Inputs(1000 * inputs.mixture, 1000 * inputs.estimates)
    np.testing.assert_allclose(rule.weights(loud), rule.weights(inputs), atol=1e-4)


def test_static_weights_are_where_training_starts():
    start = np.array([0.7, 0.2, 0.1])
    item = recording(9)
    learned = learn(initial_weights=start)
    g = fusion.gram(item.references, item.inputs.estimates, transform=learned.transform).sum(1)
    static = 10 * np.log10(g.energy.sum(-1) / fusion.squared_error(start, g).sum(-1))
    assert learned.record["validation_sdr"] >= static.mean() - 1e-3

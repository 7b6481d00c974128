"""Features of the fusion networks against loops and NumPy's decompositions."""

import warnings

import numpy as np
import pytest

from bayesfuse import _principal, features
from bayesfuse.features import FeatureConfig, FeaturePipeline, Inputs, fit_features, mean_power, spectra
from bayesfuse.transforms import QERB, STFT

SMALL = STFT(16, 8)


def recording(seed=0, samples=400, models=2, sources=1, channels=1):
    rng = np.random.default_rng(seed)
    mixture = rng.normal(size=(channels, samples)).astype(np.float32)
    estimates = rng.normal(size=(models, sources, channels, samples)).astype(np.float32)
    frames = SMALL.num_frames(samples)
    return Inputs(mixture, estimates, rng.normal(size=(models, 3, frames)))


def stacked(recordings, config):
    """Windows of all frames by loops: [frame, (offset, signal, band)]."""
    out = []
    for item in recordings:
        signals = [item.mixture, *item.estimates.reshape(-1, *item.mixture.shape)]
        if config.inputs != "both":
            signals = signals[:1] if config.inputs == "mixture" else signals[1:]
        power = [np.mean(np.abs(config.transform.analysis(s.astype(float))) ** 2, axis=0) for s in signals]
        frames = power[0].shape[1]
        for n in range(frames):
            row = []
            for offset in range(-config.context, config.context + 1):
                row += [p[:, min(max(n + offset, 0), frames - 1)] for p in power]
            out.append(np.concatenate(row))
    return np.array(out)


@pytest.mark.parametrize(("inputs", "context"), [("both", 2), ("mixture", 1), ("estimates", 0)])
def test_windows_are_those_of_the_paper_standardised(inputs, context):
    config = FeatureConfig(SMALL, context=context, inputs=inputs, num_components=None)
    examples = [recording(0, 300, channels=2), recording(1, 500, channels=2)]
    pipeline = fit_features(examples, config)
    expected = stacked(examples, config)
    found = np.concatenate([pipeline(item) for item in examples])
    assert found.dtype == np.float32 and found.shape[1] == pipeline.num_features
    np.testing.assert_allclose(found, (expected - expected.mean(0)) / expected.std(0), atol=2e-4)


def test_components_are_those_of_a_singular_value_decomposition():
    config = FeatureConfig(SMALL, context=1, num_components=81, share=0.9)
    examples = [recording(seed, 2000) for seed in range(3)]
    pipeline = fit_features(examples, config)
    windows = stacked(examples, config)
    standard = (windows - windows.mean(0)) / windows.std(0)
    left, values, axes = np.linalg.svd(standard, full_matrices=False)
    share = np.cumsum(values**2) / np.sum(values**2)
    kept = int(np.argmax(share >= 0.9)) + 1
    assert pipeline.components.shape == (kept, 81) and pipeline.kept == pytest.approx(share[kept - 1], abs=1e-4)
    assert abs(share[kept - 2]) < 0.9
    # Each axis up to its sign; near-equal singular values may mix, so only the span of all kept ones is compared.
    overlap = np.linalg.svd(pipeline.components @ axes[:kept].T, compute_uv=False)
    assert overlap[: kept - 3].min() > 0.999
    scores = np.concatenate([pipeline(item) for item in examples])
    np.testing.assert_allclose(scores.std(0), 1.0, atol=2e-2)
    np.testing.assert_allclose(scores.mean(0), 0.0, atol=1e-3)
    # The first axis stands alone.
    expected = left[:, 0] * np.sqrt(len(left))
    sign = np.sign(scores[:, 0] @ expected)
    np.testing.assert_allclose(scores[:, 0], sign * expected, atol=0.05)


def test_truncated_components_still_find_the_subspace():
    rng = np.random.default_rng(3)
    basis = rng.gamma(0.5, size=(3, 400))
    examples = []
    for _ in range(4):
        gains = rng.gamma(0.3, size=(3, 3, 1)) * np.repeat(rng.gamma(0.3, size=(3, 3, 40)), 50, axis=-1)
        signals = (gains * np.tile(basis, 5)[None] * rng.normal(size=(3, 3, 2000))).sum(1).astype(np.float32)
        examples.append(Inputs(signals[:1], signals[1:, None, None]))
    config = FeatureConfig(SMALL, context=0, num_components=10, share=0.5)
    reference = fit_features(examples, FeatureConfig(SMALL, context=0, num_components=27, share=0.5))
    pipeline = fit_features(examples, config)
    assert len(pipeline.components) == len(reference.components)
    overlap = np.linalg.svd(pipeline.components @ reference.components.T, compute_uv=False)
    assert overlap.min() > 0.99


@pytest.mark.parametrize(("context", "stride", "count"), [(1, 1, 20), (0, 3, 27), (2, 1, 135), (4, 2, 100)])
def test_components_are_those_of_scikit_learn_on_all_frames(context, stride, count):
    from sklearn.decomposition import PCA

    config = FeatureConfig(SMALL, context=context, stride=stride, num_components=count, share=1.0)
    examples = [recording(seed, 700) for seed in range(3)]
    windows = stacked(examples, config)
    standard = ((windows - windows.mean(0)) / windows.std(0))[::stride]
    count = min(count, len(standard))
    expected = PCA(count, svd_solver="full").fit(standard)
    found = _principal.principal_components(iter([standard[:5], standard[5:]]), count, standard.shape[1])
    np.testing.assert_allclose(found.variances, expected.explained_variance_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.variances / found.total, expected.explained_variance_ratio_, rtol=1e-9, atol=1e-12)
    sure = expected.explained_variance_ > 1e-9  # others are directions of rounding
    np.testing.assert_allclose(found.axes[sure], expected.components_[sure], atol=1e-7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = fit_features(examples, config)
    kept = len(pipeline.components)
    np.testing.assert_allclose(pipeline.component_scale**2, expected.explained_variance_[:kept], rtol=1e-3, atol=1e-6)


def test_frames_are_read_in_batches(monkeypatch):
    from sklearn.decomposition import IncrementalPCA

    config = FeatureConfig(SMALL, context=1, num_components=20, share=0.2)
    examples = [recording(seed, 900) for seed in range(4)]
    whole = fit_features(examples, config)
    sizes = []
    original = IncrementalPCA.partial_fit
    monkeypatch.setattr(IncrementalPCA, "partial_fit", lambda self, x: (sizes.append(len(x)), original(self, x))[1])
    monkeypatch.setattr(features, "_ROWS", 32)
    monkeypatch.setattr(_principal, "_ROWS", 32)
    parts = fit_features(examples, config)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-5)
    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-5)
    np.testing.assert_allclose(parts.component_scale, whole.component_scale, rtol=1e-5)
    assert not sizes
    # More inputs than a covariance is for.
    monkeypatch.setattr(_principal, "EXACT_INPUTS", 80)
    rough = fit_features(examples, config)
    assert len(sizes) > 5 and max(sizes) < 64 and sum(sizes) == 4 * SMALL.num_frames(900)
    np.testing.assert_allclose(rough.component_scale[:5], whole.component_scale[:5], rtol=0.1)
    monkeypatch.undo()
    # Features do not depend on how many frames are worked on at a time.
    once = whole(examples[0])
    monkeypatch.setattr(features, "_ROWS", 7)
    np.testing.assert_allclose(whole(examples[0]), once, atol=1e-5)


def test_stride_takes_every_so_many_frames_of_the_corpus():
    config = FeatureConfig(SMALL, context=0, num_components=5, share=0.1, stride=3)
    examples = [recording(seed, 100) for seed in range(3)]
    rows = np.concatenate(list(features._strided(examples, config)))
    every = np.concatenate([w for e in examples for w in features._windows(spectra(e, config), 0)])
    np.testing.assert_array_equal(rows, every[::3])


def test_level_makes_features_independent_of_the_gain():
    item = recording(5)
    loud = Inputs(100 * item.mixture, 100 * item.estimates)
    for compression in ("power", "log"):
        config = FeatureConfig(SMALL, compression=compression, level="recording", num_components=None)
        pipeline = fit_features([item], config)
        np.testing.assert_allclose(pipeline(loud), pipeline(item), rtol=1e-3, atol=1e-4)
    assert mean_power(np.zeros((1, 5), np.float32)) == 1.0


def test_log_is_the_logarithm_above_the_floor():
    item = recording(6)
    config = FeatureConfig(SMALL, compression="log", floor=1e-3)
    power = spectra(item, FeatureConfig(SMALL), 2.0)
    np.testing.assert_allclose(spectra(item, config, 2.0), np.log(power + 1e-3), atol=1e-5)
    assert np.isfinite(spectra(Inputs(0 * item.mixture, 0 * item.estimates), config)).all()


def test_free_energies_are_features_relative_to_their_mean():
    examples = [recording(seed) for seed in range(3)]
    config = FeatureConfig(SMALL, context=0, num_components=4, share=0.05, free_energy=True)
    pipeline = fit_features(examples, config)
    plain = np.concatenate([e.free_energy - e.free_energy.mean(0) for e in examples], axis=-1).reshape(6, -1).T
    found = np.concatenate([pipeline(e)[:, -6:] for e in examples])
    np.testing.assert_allclose(found, (plain - plain.mean(0)) / plain.std(0), atol=1e-4)
    shifted = examples[0]._replace(free_energy=examples[0].free_energy + 1e3)
    np.testing.assert_allclose(pipeline(shifted), pipeline(examples[0]), atol=1e-3)
    with pytest.raises(ValueError, match="but got none"):
        pipeline(examples[0]._replace(free_energy=None))
    with pytest.raises(ValueError, match="NaN"):
        pipeline(examples[0]._replace(free_energy=examples[0].free_energy * np.nan))
    with pytest.raises(ValueError, match="fitted to 6"):
        pipeline(examples[0]._replace(free_energy=examples[0].free_energy[:, 0]))


def test_free_energies_have_the_context_of_the_spectra():
    config = FeatureConfig(SMALL, context=1, num_components=4, share=0.05, free_energy=True)
    item = recording(3)
    pipeline = fit_features([item], config)
    plain = (item.free_energy - item.free_energy.mean(0)).reshape(6, -1).T
    expected = np.concatenate([np.vstack([plain[:1], plain[:-1]]), plain, np.vstack([plain[1:], plain[-1:]])], axis=1)
    found = pipeline(item)[:, -18:]
    np.testing.assert_allclose(found, (expected - expected.mean(0)) / expected.std(0), atol=1e-4)


def test_relative_spectra_are_means_gains_and_what_tells_models_apart():
    item = recording(4, models=3, sources=2, channels=2)
    plain = FeatureConfig(SMALL, compression="log", level="recording")
    rows = spectra(item, plain, mean_power(item.mixture)).astype(float)
    mixture, estimates = rows[0], rows[1:].reshape(3, 2, *rows.shape[1:])
    found = spectra(
        item, FeatureConfig(SMALL, compression="log", level="recording", relative=True), mean_power(item.mixture)
    )
    found = found.reshape(5, 2, *rows.shape[1:])
    for source in range(2):
        mean = sum(estimates[m, source] for m in range(3)) / 3
        np.testing.assert_allclose(found[0, source], mean, atol=1e-5)
        np.testing.assert_allclose(found[1, source], mean - mixture, atol=1e-5)
        for m in range(3):
            np.testing.assert_allclose(found[2 + m, source], estimates[m, source] - mean, atol=1e-5)
    # A common gain of the estimates moves only the rows of means and gains.
    louder = item._replace(estimates=np.float32(4.0) * item.estimates)
    settings = FeatureConfig(SMALL, compression="log", floor=1e-30, relative=True)
    np.testing.assert_allclose(spectra(louder, settings)[4:], spectra(item, settings)[4:], atol=1e-4)
    with pytest.raises(ValueError, match="inputs='both'"):
        FeatureConfig(SMALL, inputs="mixture", relative=True)


def test_clip_bounds_every_feature():
    item = recording(7)
    pipeline = fit_features([item], FeatureConfig(SMALL, num_components=None, clip=1.5))
    assert np.abs(pipeline(Inputs(50 * item.mixture, item.estimates))).max() == 1.5


def test_silence_and_constant_bands_are_finite():
    silent = Inputs(np.zeros((1, 200), np.float32), np.zeros((2, 1, 1, 200), np.float32))
    pipeline = fit_features([silent, recording(1, 200)], FeatureConfig(SMALL, num_components=8, share=0.2))
    assert np.isfinite(pipeline(silent)).all()
    with pytest.raises(ValueError, match="such as silence"):
        fit_features([silent], FeatureConfig(SMALL))


@pytest.mark.parametrize("transform", [SMALL, QERB(8000, 6, 16)])
def test_configuration_round_trip(transform):
    for config in (
        FeatureConfig(transform),
        FeatureConfig(transform, context=0, compression="log", clip=3.0, num_components=None, free_energy=True),
        FeatureConfig(transform, relative=True),
    ):
        import json

        assert FeatureConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("components", [None, 5])
def test_a_file_returns_every_bit(tmp_path, components):
    config = FeatureConfig(SMALL, context=1, num_components=components, share=0.05, clip=3.0)
    recordings = [recording(seed) for seed in range(2)]
    pipeline = fit_features(recordings, config)
    pipeline.save(tmp_path / "pipeline.nc")
    again = FeaturePipeline.load(tmp_path / "pipeline.nc")
    assert again.config == config and again.kept == pipeline.kept
    np.testing.assert_array_equal(again(recordings[0]), pipeline(recordings[0]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"context": -1},
        {"inputs": "voices"},
        {"compression": "root"},
        {"level": "frame"},
        {"floor": 0.0},
        {"share": 1.5},
        {"num_components": 0},
        {"clip": -1.0},
        {"stride": 0},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(Exception, match=next(iter(wrong))):
        FeatureConfig(SMALL, **wrong)


def test_bad_recordings_are_refused():
    config, item = FeatureConfig(SMALL, num_components=3, share=0.01), recording()
    with pytest.raises(ValueError, match="iterator"):
        fit_features(iter([item]), config)
    with pytest.raises(ValueError, match="no examples"):
        fit_features([], config)
    with pytest.raises(ValueError, match="common length"):
        fit_features([item._replace(mixture=item.mixture[:, 1:])], config)
    with pytest.raises(ValueError, match="with 4 signals after one with 3"):
        fit_features([item, recording(models=3)], config)
    pipeline = fit_features([item], config)
    with pytest.raises(ValueError, match="fitted to 3 spectra"):
        pipeline(recording(models=3))
    bad = item.estimates.copy()
    bad[1, 0, 0, 5] = np.nan
    with pytest.raises(ValueError, match="signal 2"):
        pipeline(item._replace(estimates=bad))
    with pytest.warns(UserWarning, match="raise num_components"):
        fit_features([item], FeatureConfig(SMALL, num_components=2))

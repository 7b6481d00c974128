"""Mixture-model mapping: its Gaussians against scikit-learn, its weights against static fusion, oracles and SciPy."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.mixture import GaussianMixture
from small_networks import draw, same

from bayesfuse.features import FeatureConfig, Inputs, fit_features
from bayesfuse.fusion import Gram, oracle_weights
from bayesfuse.mixture_mapping import MixtureMapping, fit_weights, train_mixture
from bayesfuse.network_rule import NetworkRule
from bayesfuse.neural import TrainingSet, evaluate, frame_weights
from bayesfuse.static import static_weights
from bayesfuse.transforms import STFT


def gaussians(seed, components, features, shape, spread=1.0):
    """A mapping of random, overlapping components."""
    rng = np.random.default_rng(seed)
    blank = MixtureMapping.uniform(components, features, shape)
    means = jnp.asarray(spread * rng.normal(size=(components, features)), jnp.float32)
    precisions = jnp.asarray(0.3 * rng.normal(size=(components, features)), jnp.float32)
    return eqx.tree_at(lambda m: (m.means, m.log_precisions), blank, (means, precisions))


def frame_scales(examples, weighting):
    """[frame, source], by a loop."""
    energy = examples.gram.energy.sum(2)
    if weighting == "energy":
        return np.ones_like(energy)
    out = np.zeros_like(energy)
    for n, i in enumerate(examples.recording):
        out[n] = 1.0 / energy[examples.recording == i].sum(0)
    return out


def criterion(shares, weights, examples, weighting="energy"):
    """Summed squared error [source, band], frame by frame and not by products of the responsibilities."""
    g, scale = examples.gram, frame_scales(examples, weighting)
    total = np.zeros(g.energy.shape[1:])
    for n in range(len(shares)):
        a = np.einsum("k,kjbm->jbm", shares[n], weights)
        error = g.energy[n] + np.einsum("jbm,jbmn,jbn->jb", a, g.gram[n], a) - 2 * (g.cross[n] * a).sum(-1)
        total += scale[n][:, None] * error
    return total


def shares_of(mapping, examples):
    return np.asarray(mapping.responsibilities(jnp.asarray(examples.features)), np.float64)


def weights_of(mapping):
    return np.asarray(mapping.fusion_weights, np.float64)


def ordered(examples, models):
    g = examples.gram
    return TrainingSet(
        examples.features, Gram(g.energy, g.cross[..., models], g.gram[..., models, :][..., models]), examples.recording
    )


# The mapping ---------------------------------------------------------------------------------------------------------


def test_responsibilities_are_those_of_scikit_learn_and_weights_their_mixture():
    rng = np.random.default_rng(0)
    examples = draw(0, 80)
    trained = train_mixture(examples, examples, components=(3,), seed=4)
    reference = GaussianMixture(3, covariance_type="diag", reg_covar=1e-3, random_state=4)
    reference.fit(examples.features.astype(np.float64))
    features = rng.normal(size=(50, 4)).astype(np.float32)
    expected = reference.predict_proba(features.astype(np.float64))
    np.testing.assert_allclose(trained.mapping.responsibilities(jnp.asarray(features)), expected, atol=2e-5)
    mixed = np.einsum("nk,kjbm->njbm", expected, weights_of(trained.mapping))
    np.testing.assert_allclose(frame_weights(trained.mapping, features), mixed, atol=2e-5)


def test_frames_far_from_everything_have_weights():
    mapping = gaussians(0, 3, 4, (1, 1, 2))
    sure = jnp.asarray([[[[1.0, 0.0]]], [[[0.0, 1.0]]], [[[1.0, 0.0]]]])
    mapping = eqx.tree_at(lambda m: m.fusion_weights, mapping, sure)
    features = np.array([[0.0] * 4, [1e10] * 4, [-1e30] * 4, [3e38] * 4], np.float32)
    weights = frame_weights(mapping, features)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)


def test_a_reordered_mapping_is_the_same():
    examples = draw(1, 60, (2, 1, 3))
    mapping = fit_weights(gaussians(0, 4, 4, (2, 1, 3)), examples)
    features, models = np.array([2, 0, 3, 1]), [1, 2, 0]
    again = frame_weights(mapping.reordered(features, models), examples.features[:, features])
    np.testing.assert_allclose(again, frame_weights(mapping, examples.features)[..., models], atol=1e-6)


# Its weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["energy", "recordings"])
def test_one_component_is_static_fusion(weighting):
    examples = draw(2, 60, (2, 3, 4))
    mapping = train_mixture(examples, draw(3, 30, (2, 3, 4)), components=(1,), weighting=weighting).mapping
    g, scale = examples.gram, frame_scales(examples, weighting)[:, :, None]
    scaled = Gram(g.energy * scale, g.cross * scale[..., None], g.gram * scale[..., None, None])
    problems = Gram(*(np.moveaxis(field, 0, 2) for field in (scaled.energy, scaled.cross, scaled.gram)))
    np.testing.assert_allclose(mapping.fusion_weights[0], static_weights(problems, loss="mse"), atol=1e-6)


def test_separate_clusters_have_their_own_oracle_weights():
    examples = draw(4, 90, (1, 2, 3))
    cluster = np.random.default_rng(0).integers(3, size=90)
    # One kind of frame is 120 dB below the others: it counts for itself all the same.
    level = np.where(cluster == 2, 1e-12, 1.0)[:, None, None]
    g = examples.gram
    g = Gram(g.energy * level, g.cross * level[..., None], g.gram * level[..., None, None])
    far = (20.0 * np.eye(4)[cluster] + 0.1 * examples.features).astype(np.float32)
    examples = TrainingSet(far, g, examples.recording)
    mapping = train_mixture(examples, examples, components=(3,)).mapping
    weights = frame_weights(mapping, far)
    for k in range(3):
        chosen = cluster == k
        pooled = Gram(g.energy[chosen].sum(0), g.cross[chosen].sum(0), g.gram[chosen].sum(0))
        oracle = oracle_weights(pooled)
        np.testing.assert_allclose(weights[chosen], np.broadcast_to(oracle, weights[chosen].shape), atol=1e-6)


@pytest.mark.parametrize("weighting", ["energy", "recordings"])
def test_the_joint_minimum_is_that_of_scipy(weighting):
    examples = draw(5, 40, (1, 1, 3))
    mapping = fit_weights(gaussians(1, 4, 4, (1, 1, 3)), examples, weighting=weighting)
    shares = shares_of(mapping, examples)
    assert 0.2 < np.median(shares.max(1)) < 0.95  # they do overlap

    def value(flat):
        return float(criterion(shares, flat.reshape(4, 1, 1, 3), examples, weighting)[0, 0])

    found = minimize(
        value,
        np.full(12, 1 / 3),
        method="SLSQP",
        bounds=[(0, 1)] * 12,
        constraints=[{"type": "eq", "fun": lambda a: a.reshape(4, 3).sum(1) - 1}],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    ours = weights_of(mapping)
    assert value(ours.ravel()) <= value(found.x) * (1 + 1e-6)
    np.testing.assert_allclose(ours.ravel(), found.x, atol=2e-3)


@given(
    seed=st.integers(0, 10**6),
    models=st.integers(2, 4),
    components=st.sampled_from([1, 2, 5]),
    spread=st.sampled_from([0.1, 1.0, 20.0]),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=15, deadline=None)
def test_laws(seed, models, components, spread, order):
    """On the simplex, optimal for each component, never worse than static fusion, whatever the order of the models."""
    examples = draw(seed, 30, (1, 2, models))
    mapping = fit_weights(gaussians(seed, components, 4, (1, 2, models), spread), examples)
    weights, shares = weights_of(mapping), shares_of(mapping, examples)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)

    best = criterion(shares, weights, examples)
    g = examples.gram
    static = static_weights(Gram(*(np.moveaxis(f, 0, 2) for f in (g.energy, g.cross, g.gram))), loss="mse")
    assert (best <= criterion(shares, np.repeat(static[None], components, 0), examples) * (1 + 1e-6)).all()
    # The duality gap of what passes without a warning: twice the residual, in units of the models' own errors.
    alone = [np.broadcast_to(one, weights.shape) for one in np.eye(models)]
    gap = 2e-5 * sum(criterion(shares, one, examples) for one in alone)
    # Convex: no better point means that no component alone can gain by a step towards one model.
    for k in range(components):
        for m in range(models):
            other = weights.copy()
            other[k] += 1e-2 * (np.eye(models)[m] - other[k])
            assert (best <= criterion(shares, other, examples) + gap).all()

    index = list(range(models))
    order.shuffle(index)
    moved = fit_weights(gaussians(seed, components, 4, (1, 2, models), spread), ordered(examples, index))
    again = criterion(shares, weights_of(moved)[..., np.argsort(index)], examples)
    assert (np.abs(again - best) <= gap).all()


def test_components_with_next_to_no_frames_do_not_keep_the_descent_from_its_end():
    """Their curvature is 1e-30 of the rest, their slope 1e-16: an exact step is one to a corner."""
    examples = draw(2, 30, (1, 2, 2))
    mapping = gaussians(2, 5, 4, (1, 2, 2), 20.0)
    assert shares_of(mapping, examples).max(axis=0).min() < 1e-15
    fit_weights(mapping, examples)  # warnings are errors


def test_silence_and_exact_estimates():
    examples = draw(6, 30, (2, 1, 3))
    g = examples.gram
    silent = np.array([1.0, 0.0])[None, :, None]
    cross, gram = g.cross * silent[..., None], g.gram.copy()
    # The first estimate of the first source is exact; the second source is silent, its estimates are not.
    cross[:, 0, 0, 0] = gram[:, 0, 0, 0, 0] = g.energy[:, 0, 0]
    gram[:, 0, 0, 0, 1:] = gram[:, 0, 0, 1:, 0] = cross[:, 0, 0, 1:]
    examples = TrainingSet(examples.features, Gram(g.energy * silent, cross, gram), examples.recording)
    for weighting in ("energy", "recordings"):
        weights = weights_of(fit_weights(gaussians(2, 3, 4, (2, 1, 3)), examples, weighting=weighting))
        np.testing.assert_allclose(weights[:, 0, 0], np.tile([1.0, 0, 0], (3, 1)), atol=1e-6)
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)


# Training ------------------------------------------------------------------------------------------------------------


def test_the_number_of_components_is_chosen_on_the_validation_set():
    examples, validation = draw(7, 200, informative=True), draw(8, 80, informative=True)
    trained = train_mixture(examples, validation, components=(1, 3, 6), seed=1)
    assert list(trained.scores) == [1, 3, 6]
    best = max(trained.scores, key=lambda count: trained.scores[count])
    assert trained.mapping.num_components == best > 1
    assert trained.scores[best] == pytest.approx(np.mean(evaluate(trained.mapping, validation)), abs=1e-4)
    # The features tell which estimate is good.
    assert trained.scores[3] > trained.scores[1] + 3
    # The same seed gives the same mapping.
    assert same(trained.mapping, train_mixture(examples, validation, components=(1, 3, 6), seed=1).mapping)


def test_a_rule_carries_it(tmp_path):
    rng = np.random.default_rng(0)
    sources = rng.normal(size=(2, 1, 600)).astype(np.float32)
    estimates = (sources + np.array([0.1, 0.5, 1.0], np.float32)[:, None, None, None] * sources[::-1]).astype("f4")
    inputs = Inputs(sources.sum(0), estimates)
    config = FeatureConfig(STFT(64, 32), context=1, compression="log", num_components=None)
    pipeline = fit_features([inputs], config)
    mapping = gaussians(3, 4, pipeline.num_features, (2, 1, 3))
    mapping = eqx.tree_at(
        lambda m: m.fusion_weights, mapping, jnp.asarray(rng.dirichlet(np.ones(3), (4, 2, 1)), jnp.float32)
    )
    rule = NetworkRule(mapping, pipeline, ("a", "b", "c"), ("speech", "noise"), 8000)
    rule.save(tmp_path / "rule.nc")
    loaded = NetworkRule.load(tmp_path / "rule.nc")
    assert isinstance(loaded.network, MixtureMapping) and same(loaded.network, mapping)
    np.testing.assert_array_equal(loaded.weights(inputs), rule.weights(inputs))
    other = NetworkRule.load(tmp_path / "rule.nc", separators=("c", "a", "b"))
    moved = other.weights(Inputs(inputs.mixture, estimates[[2, 0, 1]]))
    np.testing.assert_allclose(moved, rule.weights(inputs)[:, [2, 0, 1]], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"components": ()}, "numbers from 1"),
        ({"components": (0, 2)}, "numbers from 1"),
        ({"components": (31,)}, "30 frames"),
        ({"weighting": "sdr"}, "expected one of"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_settings(change, message):
    examples = draw(0, 30)
    with pytest.raises(ValueError, match=message):
        getattr(train_mixture, "__wrapped__", train_mixture)(examples, examples, **change)  # past the type checks


def test_sets_that_do_not_match():
    with pytest.raises(ValueError, match="both must be of the same"):
        train_mixture(draw(0, 30), draw(1, 30, (1, 1, 4)))
    silent = draw(1, 30)
    silent = TrainingSet(silent.features, Gram(*(0.0 * f for f in vars(silent.gram).values())), silent.recording)
    with pytest.raises(ValueError, match="silent"):
        train_mixture(draw(0, 30), silent, components=(1,))

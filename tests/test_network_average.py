"""The mean of networks: its weights against those of the members, its error against theirs, and its file."""

import equinox as eqx
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import draw

from bayesfuse.features import FeatureConfig, Inputs, fit_features
from bayesfuse.fusion import squared_error
from bayesfuse.network_average import NetworkAverage
from bayesfuse.network_rule import NetworkRule
from bayesfuse.neural import FusionNetwork, frame_weights
from bayesfuse.transforms import QERB

SHAPE = (2, 1, 3)


def network(seed, num_features=4, hidden=(5,), shape=SHAPE):
    """A network whose weights differ from frame to frame, as those of an untrained one do not."""
    first, second = jax.random.split(jax.random.key(seed))
    made = FusionNetwork(first, num_features, hidden, shape)
    weight = 3.0 * jax.random.normal(second, made.output.weight.shape)
    return eqx.tree_at(lambda n: n.output.weight, made, weight)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), count=st.integers(1, 4))
def test_mean_weights_err_no_more_than_the_members_do_on_average(seed, count):
    examples = draw(seed, 40, SHAPE)
    members = [network(seed + i) for i in range(count)]
    weights = [frame_weights(member, examples.features) for member in members]
    found = frame_weights(NetworkAverage(members), examples.features)
    np.testing.assert_allclose(found, np.mean(weights, axis=0), atol=1e-6)
    errors = np.mean([squared_error(w, examples.gram) for w in weights], axis=0)
    assert (squared_error(found, examples.gram) <= errors + 1e-5 * examples.gram.energy).all()


def test_it_is_saved_and_reordered_with_its_rule(tmp_path):
    rng = np.random.default_rng(0)
    estimates = rng.normal(size=(3, 2, 1, 600)).astype(np.float32)
    inputs = Inputs(estimates[0].sum(0), estimates)
    pipeline = fit_features([inputs], FeatureConfig(QERB(8000, 8, 64), context=0, num_components=None))
    members = [network(i, pipeline.num_features, hidden) for i, hidden in enumerate([(5,), (4, 3)])]
    rule = NetworkRule(NetworkAverage(members), pipeline, ("a", "b", "c"), ("speech", "noise"), 8000)
    rule.save(tmp_path / "rule.nc")
    expected = rule.weights(inputs)
    np.testing.assert_array_equal(NetworkRule.load(tmp_path / "rule.nc").weights(inputs), expected)
    moved = NetworkRule.load(tmp_path / "rule.nc", separators=("c", "a", "b"))
    order = [2, 0, 1]
    found = moved.weights(inputs._replace(estimates=estimates[order]))
    assert np.ptp(expected, axis=1).max() > 0.1
    np.testing.assert_allclose(found, expected[:, order], atol=1e-5)


@pytest.mark.parametrize("members", [(), (network(0), network(1, shape=(1, 1, 3))), (network(0), network(1, 5))])
def test_members_that_do_not_match(members):
    with pytest.raises(ValueError, match="give at least one, and all trained on the same"):
        NetworkAverage(members)

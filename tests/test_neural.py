"""Costs against plain formulas, the network against its matrices, and training on examples whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import KEY, draw, same, tiny

from bayesfuse import _training, network_costs
from bayesfuse._training import RateRule, Training
from bayesfuse.fusion import Gram, oracle_weights, squared_error
from bayesfuse.neural import FusionNetwork, NetworkConfig, TrainingSet, evaluate, frame_weights, train


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# Costs -------------------------------------------------------------------------------------------------------------


class TestCosts:
    @pytest.fixture(autouse=True)
    def prepare(self, x64):
        self.data = draw(0, 6, (2, 3, 4))
        rng = np.random.default_rng(1)
        self.logits = rng.normal(size=(6, 2, 3, 4))
        self.floor = np.full((6, 2), 1e-3)
        self.mask = np.array([1.0, 1, 0, 1, 1, 0])
        self.oracle = oracle_weights(self.data.gram)
        assert (self.oracle == 0).any()

    def costs(self):
        oracle, floor, mask = map(jnp.asarray, (self.oracle, self.floor, self.mask))
        g = network_costs.around_reference(self.data.gram)
        return {
            "omse": lambda w: network_costs.omse(w, oracle),
            "ce": lambda w: network_costs.cross_entropy(w, oracle),
            "smse": lambda w: network_costs.smse(w, g),
            "sdr": lambda w: network_costs.frame_sdr(w, g, floor),
            "pooled": lambda w: network_costs.pooled_sdr(w, g, floor, mask),
        }

    def plain(self):
        """The same numbers by loops over [JVR16] eqs. 23-26."""
        w, g = softmax(self.logits), self.data.gram
        out = {name: np.zeros(6) for name in ("omse", "ce", "smse", "sdr")}
        pooled = np.zeros(2)
        for n in range(6):
            for j in range(2):
                error = 0.0
                for b in range(3):
                    a, o = w[n, j, b], self.oracle[n, j, b]
                    out["omse"][n] += sum((o[m] - a[m]) ** 2 for m in range(4)) / 6
                    out["ce"][n] -= sum(o[m] * np.log(a[m] / o[m]) for m in range(4) if o[m] > 0) / 6
                    error += g.energy[n, j, b] + a @ g.gram[n, j, b] @ a - 2 * g.cross[n, j, b] @ a
                out["smse"][n] += error / 2
                out["sdr"][n] += 10 * np.log10(error + self.floor[n, j]) / 2
                pooled[j] += self.mask[n] * (error + self.floor[n, j])
        return out | {"pooled": np.mean(10 * np.log10(pooled))}

    @pytest.mark.parametrize("name", ["omse", "ce", "smse", "sdr", "pooled"])
    def test_against_plain_formulas_and_finite_differences(self, name):
        def cost(logits):
            return self.costs()[name](jax.nn.log_softmax(logits))

        np.testing.assert_allclose(cost(jnp.asarray(self.logits)), self.plain()[name], rtol=1e-9)
        gradient = jax.grad(lambda z: cost(z).sum())(jnp.asarray(self.logits))
        rng = np.random.default_rng(2)
        for _ in range(4):
            step = rng.normal(size=self.logits.shape)
            up, down = (float(cost(jnp.asarray(self.logits + s * 1e-5 * step)).sum()) for s in (1, -1))
            assert float((gradient * step).sum()) == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-7)

    def test_zero_log_zero_silence_and_perfection_are_finite(self):
        oracle = jnp.asarray([[[1.0, 0.0, 0.0]]])
        certain = jnp.log(jnp.asarray([[[1.0, 0.0, 0.0]]]))  # -inf where the oracle is 0
        assert float(network_costs.cross_entropy(certain, oracle)) == 0.0
        zero = Gram(np.zeros((1, 1)), np.zeros((1, 1, 3)), np.zeros((1, 1, 3, 3)))
        for function in (
            lambda z: network_costs.cross_entropy(jax.nn.log_softmax(z), oracle).sum(),
            lambda z: network_costs.frame_sdr(jax.nn.log_softmax(z), zero, jnp.full(1, 1e-6)).sum(),
        ):
            value, gradient = jax.value_and_grad(function)(jnp.zeros((1, 1, 3)))
            assert np.isfinite(value) and np.isfinite(gradient).all()

    def test_errors_survive_single_precision(self):
        rng = np.random.default_rng(0)
        source = rng.normal(size=1000)
        estimates = source + 1e-4 * rng.normal(size=(3, 1000))
        g = Gram(np.asarray(np.sum(source**2)), estimates @ source, estimates @ estimates.T)
        weights = np.array([0.2, 0.3, 0.5])
        expected = np.sum((source - weights @ estimates) ** 2)
        moved = jax.tree.map(lambda x: x.astype(np.float32), network_costs.around_reference(g))
        assert squared_error(weights.astype(np.float32), moved) == pytest.approx(expected, rel=1e-4)


# The network -------------------------------------------------------------------------------------------------------


def test_the_untrained_network_returns_the_initial_weights():
    start = np.array([[[0.5, 0.3, 0.2]], [[0.1, 0.1, 0.8]]])
    network = FusionNetwork(KEY, 4, (6, 5), (2, 1, 3), start)
    weights = frame_weights(network, np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32))
    assert weights.shape == (7, 2, 1, 3) and weights.dtype == np.float32
    np.testing.assert_allclose(weights, np.broadcast_to(start, weights.shape), rtol=1e-5)
    assert network.num_features == 4 and network.hidden == (6, 5)
    deeper = network.deeper(jax.random.key(9), 4)
    assert deeper.hidden == (6, 5, 4) and same(deeper.layers[:2], network.layers)
    with pytest.raises(ValueError, match="positive"):
        FusionNetwork(KEY, 4, (0,), (1, 1, 3))
    with pytest.raises(ValueError, match="no shares"):
        FusionNetwork(KEY, 4, (2,), (1, 1, 2), np.array([-1.0, 2.0]))


def test_the_network_is_the_product_of_its_matrices():
    rng = np.random.default_rng(0)
    network = FusionNetwork(KEY, 4, (6,), (1, 2, 3))
    network = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), network)
    x = rng.normal(size=(5, 4)).astype(np.float32)
    hidden = np.maximum(x @ network.layers[0].weight.T + network.layers[0].bias, 0)
    expected = softmax((hidden @ network.output.weight.T + network.output.bias).reshape(5, 1, 2, 3))
    np.testing.assert_allclose(frame_weights(network, x), expected, atol=1e-6)


@pytest.mark.parametrize("cost", ["omse", "ce", "smse", "sdr", "batch_sdr", "utterance_sdr"])
def test_every_cost_learns_which_estimate_is_best(cost):
    examples, held_out = draw(0, 400, informative=True), draw(1, 100, informative=True)
    unit = "recordings" if cost == "utterance_sdr" else "frames"
    config = tiny(cost=cost, unit=unit, batch_size=16 if unit == "frames" else 2, max_epochs=12, optimiser="adam")
    trained = train(KEY, examples, held_out, config=config)
    untrained = evaluate(FusionNetwork(KEY, 3, (), (1, 1, 3)), held_out).mean()
    best = 10 * np.log10(held_out.gram.energy.sum() / squared_error(oracle_weights(held_out.gram), held_out.gram).sum())
    assert trained.score == pytest.approx(np.nanmean(evaluate(trained.network, held_out)), abs=1e-4)
    assert trained.score > untrained + 0.7 * (best - untrained)


def test_mini_batches_of_recordings_have_the_mean_cost_of_their_frames():
    from bayesfuse.neural import _batches, _Loss

    examples = draw(0, 37)
    network = FusionNetwork(KEY, 4, (5,), (1, 1, 3), np.array([0.6, 0.3, 0.1]))
    for cost in ("omse", "ce", "sdr", "batch_sdr"):
        values = []
        for unit in ("frames", "recordings"):
            config = NetworkConfig((5,), cost=cost, unit=unit)
            batch = jax.tree.map(jnp.asarray, _batches(examples, config))
            values.append(float(_Loss(config)(network, batch, jnp.ones(len(batch.mask)), KEY)))
        assert values[1] == pytest.approx(values[0], rel=1e-5)
    config = NetworkConfig((5,), cost="utterance_sdr", unit="recordings")
    found = _Loss(config)(network, jax.tree.map(jnp.asarray, _batches(examples, config)), jnp.ones(5), KEY)
    # Its SDRs are those of `evaluate`, up to the energies and the floor.
    energies = np.bincount(examples.recording, examples.gram.energy[:, 0, 0]) / examples.gram.energy.mean()
    assert float(found) == pytest.approx(
        np.mean(10 * np.log10(energies)) - evaluate(network, examples).mean(), abs=1e-3
    )


def test_scores_are_signal_to_distortion_ratios_of_recordings():
    examples = draw(2, 40, (2, 3, 4))
    examples.gram.energy[examples.recording == 1, 1] = 0.0  # a silent source has none
    network = FusionNetwork(KEY, 4, (), (2, 3, 4))
    errors = squared_error(np.full(4, 0.25), examples.gram).sum(-1)
    found = evaluate(network, examples)
    for r in range(5):
        for j in range(2):
            rows = examples.recording == r
            if (r, j) == (1, 1):
                assert np.isnan(found[r, j])
            else:
                expected = 10 * np.log10(examples.gram.energy[rows, j].sum() / errors[rows, j].sum())
                assert found[r, j] == pytest.approx(expected, abs=1e-4)


def test_training_is_reproducible_from_its_key_and_switches_change_it():
    examples, held_out = draw(0, 100, informative=True), draw(1, 50, informative=True)

    def leaves(key, **settings):
        return np.concatenate(
            [np.ravel(x) for x in jax.tree.leaves(train(key, examples, held_out, config=tiny(**settings)).network)]
        )

    plain = leaves(KEY)
    np.testing.assert_array_equal(plain, leaves(KEY))
    assert not np.array_equal(plain, leaves(jax.random.key(4)))
    for switch in ({"dropout": 0.5}, {"input_noise": 0.5, "weight_decay": 0.1}):
        assert not np.array_equal(plain, leaves(KEY, **switch)), switch


def test_deeper_networks_are_grown_layer_by_layer(tmp_path):
    examples, held_out = draw(0, 100, informative=True), draw(1, 50, informative=True)
    config = tiny(hidden=(6, 5), pretrain_epochs=2, max_epochs=3)
    path = tmp_path / "run.nc"
    trained = train(KEY, examples, held_out, config=config, checkpoint=path)
    assert trained.network.hidden == (6, 5) and len(trained.history.rate) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run-depth1.nc", "run.nc"]


# Training sets -----------------------------------------------------------------------------------------------------


def test_training_sets_round_trip(tmp_path):
    examples = draw(0, 30, (2, 3, 4))
    examples.save(tmp_path / "frames.nc")
    again = TrainingSet.load(tmp_path / "frames.nc")
    assert same(again, examples) and again.heads == (2, 3, 4) and again.num_recordings == 5
    with pytest.raises(FileNotFoundError):
        TrainingSet.load(tmp_path / "other.nc")
    with pytest.raises(ValueError, match="does not hold"):
        _training._arrays.read(tmp_path / "frames.nc", "something else")


def test_training_sets_that_do_not_fit_are_refused():
    examples = draw(0, 30)
    with pytest.raises(Exception, match=r"same frames|Type-check"):
        TrainingSet(examples.features[1:], examples.gram, examples.recording)
    with pytest.raises(ValueError, match="numbered from 0"):
        TrainingSet(examples.features, examples.gram, examples.recording + 1)
    with pytest.raises(ValueError, match="features with NaN"):
        TrainingSet(examples.features * np.float32(np.nan), examples.gram, examples.recording)
    with pytest.raises(ValueError, match="both must be of the same"):
        train(KEY, examples, draw(1, 30, (1, 1, 4)))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: NetworkConfig(cost="mse"),
        lambda: NetworkConfig(cost="utterance_sdr"),
        lambda: NetworkConfig(dropout=1.0),
        lambda: Training(optimiser="sgd"),
        lambda: Training(batch_size=0),
        lambda: RateRule(increase=0.5),
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(Exception, match=r"NetworkConfig|Training|RateRule|did not match|type"):
        wrong()


def test_silent_perfect_equal_and_single_estimates_train():
    examples = draw(0, 60)
    g = examples.gram
    for fields in (g.energy, g.cross, g.gram):
        fields[:10] = 0.0  # silence
    g.cross[10:20] = g.energy[10:20, ..., None]  # estimates equal to the reference
    g.gram[10:20] = g.energy[10:20, ..., None, None]
    for cost in ("ce", "sdr"):
        trained = train(KEY, examples, examples, config=tiny(cost=cost, max_epochs=2))
        assert np.isfinite(trained.score) and trained.history.event[-1] < 2
    one = Gram(g.energy, g.cross[..., :1], g.gram[..., :1, :1])
    single = TrainingSet(examples.features, one, examples.recording)
    trained = train(KEY, single, single, config=tiny(max_epochs=2))
    np.testing.assert_array_equal(frame_weights(trained.network, single.features), 1.0)

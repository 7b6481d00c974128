"""The minimiser on the simplex against an enumeration of all supports, and its optimality conditions and laws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesfuse import simplex_qp
from bayesfuse.fusion import Gram, best_weights, gram, kkt_residual, mean_weights, oracle_weights, squared_error
from bayesfuse.simplex_qp import minimise_on_simplex


def problems(seed, count, models, samples=50, noise=0.5, shared=0.5):
    """Grams of `count` frames with estimates whose errors differ in size and have a common part."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(count, samples))
    sizes = rng.gamma(1.0, 1.0, (models, count, 1))
    errors = sizes * rng.normal(size=(models, count, samples)) + shared * rng.normal(size=(count, samples))
    return gram(reference, reference + noise * errors)


def enumerated(g):
    """The best error over the simplex: of all supports, those whose equality-constrained minimiser is feasible."""
    models = g.num_models
    matrix = g.gram - g.cross[..., None, :] - g.cross[..., None] + g.energy[..., None, None]
    best = np.full(g.energy.shape, np.inf)
    for size in range(1, models + 1):
        for support in itertools.combinations(range(models), size):
            index = np.array(support)
            part = matrix[:, index[:, None], index]
            bordered = np.zeros((len(part), size + 1, size + 1))
            bordered[:, :size, :size] = part
            bordered[:, :size, size] = bordered[:, size, :size] = 1.0
            right = np.zeros((len(part), size + 1, 1))
            right[:, size] = 1.0
            weights = np.linalg.solve(bordered, right)[:, :size, 0]
            error = np.einsum("pi,pij,pj->p", weights, part, weights)
            best = np.where((weights >= 0).all(axis=-1), np.minimum(best, error), best)
    return best


def assert_optimal(weights, g, tolerance=1e-13):
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=4e-15)
    assert kkt_residual(weights, g).max() < tolerance


@pytest.mark.parametrize("models", [1, 2, 3, 5, 7])
def test_enumeration_of_supports(models):
    g = problems(models, 40, models)
    weights = oracle_weights(g)
    assert_optimal(weights, g)
    np.testing.assert_allclose(squared_error(weights, g), enumerated(g), rtol=1e-9)


def test_enumeration_of_the_supports_of_ten_estimates():
    g = problems(10, 12, 10, noise=1.0)
    weights = oracle_weights(g)
    assert 1 < np.median((weights > 0).sum(axis=-1)) < 10
    np.testing.assert_allclose(squared_error(weights, g), enumerated(g), rtol=1e-9)


@pytest.mark.parametrize(("models", "count"), [(16, 400), (32, 200)])
@pytest.mark.parametrize("samples", [10, 200], ids=["dependent", "independent"])
def test_optimality_of_many_estimates(models, count, samples):
    g = problems(0, count, models, samples=samples, noise=2.0)
    assert_optimal(oracle_weights(g), g)


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(1, 20),
    st.sampled_from([1e-8, 1e-3, 0.5, 30.0]),
    st.sampled_from([0.0, 1.0, 1e4]),
)
def test_optimality_at_any_quality(seed, models, samples, noise, shared):
    """Estimates all but exact, useless, dependent, with a common error that no weights remove."""
    g = problems(seed, 20, models, samples, noise, shared)
    weights = oracle_weights(g)
    # Beside a large common error, differences drown in the ridge, 1e-10: it bounds what two proximal steps leave.
    tolerance = 1e-13 if shared < 1e4 else 1e-10
    assert_optimal(weights, g, tolerance)
    reached = squared_error(weights, g)
    scale = np.maximum(np.diagonal(g.gram, axis1=-2, axis2=-1).max(-1), g.energy)
    for rule in (best_weights(g), mean_weights(models)):
        # The gradient is twice the slack; what two weights differ by sums to at most two.
        assert (reached <= squared_error(rule, g) + 4 * tolerance * scale).all()


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_loudness_changes_nothing(seed, factor):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(30, 40))
    estimates = reference + rng.normal(size=(6, 30, 40))
    quiet = oracle_weights(gram(factor * reference, factor * estimates))
    np.testing.assert_allclose(quiet, oracle_weights(gram(reference, estimates)), atol=1e-9)
    # Factors that round nothing change not one bit.
    g = gram(reference, estimates)
    for power in (-40, 40):
        scaled = jax.tree.map(lambda field, power=power: field * 2.0**power, g)
        np.testing.assert_array_equal(oracle_weights(scaled), oracle_weights(g))


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.permutations(range(6)))
def test_models_in_another_order(seed, order):
    g = problems(seed, 10, 6)
    shuffled = Gram(g.energy, g.cross[:, order], g.gram[:, order][:, :, order])
    np.testing.assert_allclose(oracle_weights(shuffled), oracle_weights(g)[:, order], atol=1e-9)


def test_duplicates_share_equally():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(50, 100))
    estimates = reference + rng.normal(size=(3, 50, 100))
    g = gram(reference, np.concatenate([estimates, estimates[:1], estimates[:1]]))
    weights = oracle_weights(g)
    assert_optimal(weights, g)
    alone = oracle_weights(gram(reference, estimates))
    np.testing.assert_allclose(weights[:, [0, 3, 4]], alone[:, [0]] / 3 @ np.ones((1, 3)), atol=1e-5)
    np.testing.assert_allclose(weights[:, 1:3], alone[:, 1:], atol=1e-9)


def test_identical_estimates_are_a_uniform_mean():
    reference = np.random.default_rng(1).normal(size=(20, 64))
    estimates = np.repeat(0.7 * reference[None] + 0.1, 5, axis=0)
    np.testing.assert_allclose(oracle_weights(gram(reference, estimates)), 0.2, atol=1e-5)


def test_an_estimate_equal_to_the_reference_takes_all():
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(20, 64))
    estimates = np.stack([reference + rng.normal(size=(20, 64)), reference, 3.0 * reference])
    g = gram(reference, estimates)
    np.testing.assert_allclose(oracle_weights(g), np.tile([0.0, 1.0, 0.0], (20, 1)), atol=1e-7)


def test_nothing_to_decide_is_uniform():
    reference = np.random.default_rng(3).normal(size=(2, 32))
    for source, estimates in ((reference, np.stack([reference] * 4)), (0 * reference, np.zeros((4, 2, 32)))):
        np.testing.assert_array_equal(oracle_weights(gram(source, estimates)), np.full((2, 4), 0.25))


def test_a_silent_source_gets_the_quietest_estimate():
    estimates = np.random.default_rng(4).normal(size=(3, 5, 1000)) * np.array([1.0, 2.0, 3.0])[:, None, None]
    g = gram(np.zeros((5, 1000)), estimates)
    weights = oracle_weights(g)
    assert_optimal(weights, g)
    inverse = np.array([1.0, 1 / 4, 1 / 9])
    np.testing.assert_allclose(weights, np.tile(inverse / inverse.sum(), (5, 1)), atol=0.1)


def test_one_broken_estimate_does_not_blur_the_others():
    """A million times too loud: relative to its power, the others' errors are rounding."""
    rng = np.random.default_rng(5)
    reference = rng.normal(size=(20, 100))
    estimates = reference + rng.normal(size=(3, 20, 100))
    loud = 1e6 * rng.normal(size=(1, 20, 100))
    both = np.concatenate([estimates, loud])
    weights = oracle_weights(gram(reference, both))
    error = np.sum((reference - np.einsum("pm,mpt->pt", weights, both)) ** 2, axis=-1)
    g = gram(reference, estimates)
    without = squared_error(oracle_weights(g), g)
    # What is left of it may help by chance, a little, as its correlations over 100 samples are not nought.
    assert (error <= without * (1 + 1e-9)).all()
    assert (error >= without * 0.9).all()


def test_silent_frames_among_others_and_batches():
    g = problems(6, 12, 4)
    zeros = jax.tree.map(np.zeros_like, g.take(slice(0, 3)))
    both = Gram.concatenate([zeros, g])
    weights = oracle_weights(jax.tree.map(lambda field: field.reshape(3, 5, *field.shape[1:]), both))
    assert weights.shape == (3, 5, 4)
    np.testing.assert_array_equal(weights.reshape(15, 4)[:3], 0.25)
    np.testing.assert_array_equal(weights.reshape(15, 4)[3:], oracle_weights(g))
    assert (kkt_residual(weights.reshape(15, 4), both) < 1e-13).all()


def test_chunks_and_no_frames(monkeypatch):
    g = problems(7, 50, 4)
    whole = oracle_weights(g)
    monkeypatch.setattr(simplex_qp, "_CHUNK_ENTRIES", 7 * 16)
    np.testing.assert_array_equal(oracle_weights(g), whole)
    assert oracle_weights(g.take(slice(0, 0))).shape == (0, 4)


def test_the_active_set_method_that_stands_by(monkeypatch):
    g = problems(8, 20, 6)
    expected = oracle_weights(g)
    monkeypatch.setattr(simplex_qp, "_MAX_EXCHANGES", 0)
    np.testing.assert_allclose(oracle_weights(g), expected, atol=1e-9)


def test_single_exchanges_when_blocks_do_not_help(monkeypatch):
    g = problems(9, 200, 12, noise=2.0)
    expected = oracle_weights(g)
    monkeypatch.setattr(simplex_qp, "_PATIENCE", -1)
    np.testing.assert_allclose(oracle_weights(g), expected, atol=1e-9)


def test_against_a_general_solver():
    g = problems(10, 5, 7)
    for weights, energy, cross, matrix in zip(oracle_weights(g), g.energy, g.cross, g.gram, strict=True):
        found = scipy.optimize.minimize(
            lambda a, energy=energy, cross=cross, matrix=matrix: (a @ matrix @ a - 2 * a @ cross) / energy,
            np.full(7, 1 / 7),
            jac=lambda a, energy=energy, cross=cross, matrix=matrix: 2 * (matrix @ a - cross) / energy,
            bounds=[(0, 1)] * 7,
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(weights, found.x, atol=1e-5)


def test_bare_arrays():
    g = problems(11, 10, 5)
    expected = oracle_weights(g)
    np.testing.assert_array_equal(minimise_on_simplex(g.gram, g.cross, g.energy), expected)
    np.testing.assert_allclose(minimise_on_simplex(g.gram, g.cross), expected, atol=1e-9)
    dependent = problems(11, 10, 5, samples=3)
    assert_optimal(minimise_on_simplex(dependent.gram, dependent.cross), dependent, 1e-9)


@settings(max_examples=150)
@given(st.integers(0, 10**6), st.integers(1, 10), st.integers(0, 10), st.integers(0, 12), st.booleans())
def test_low_rank_problems(seed, models, rank, orders, ties):
    """Optimal for estimates in a space of few dimensions, of scales many orders apart, silent ones and equal ones."""
    rng = np.random.default_rng(seed)
    estimates = rng.normal(size=(models, rank)) * 10.0 ** rng.uniform(-orders, 0, (models, 1))
    estimates *= rng.random((models, 1)) < 0.9
    if ties:
        estimates = estimates[rng.integers(models, size=models)]
    reference = rng.normal(size=rank) * (rng.random() < 0.9)
    matrix, cross, energy = estimates @ estimates.T, estimates @ reference, np.asarray(reference @ reference)
    weights = minimise_on_simplex(matrix, cross)
    # Two proximal steps leave less than the ridge, 1e-10, along directions that hold next to nothing.
    assert_optimal(weights, Gram(energy, cross, matrix), 1e-10)
    assert_optimal(minimise_on_simplex(matrix, cross, energy), Gram(energy, cross, matrix), 1e-10)
    same = (estimates[:, None] == estimates[None]).all(axis=-1)
    # Only a ridge of 1e-10 tells equal ones how to share.
    np.testing.assert_allclose(np.where(same, weights[:, None] - weights, 0.0), 0.0, atol=1e-5)


@settings(max_examples=150)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 30), st.floats(-2, 3), st.floats(-1.5, 1))
def test_newton_steps_of_stacking(seed, models, frames, spread, concentration):
    """Second derivatives of the log score, of any rank, with ratios up to 1e40 and a linear term in their range."""
    rng = np.random.default_rng(seed)
    values = 10**spread * rng.normal(size=(models, frames))
    density = np.exp(values - values.max(axis=0))
    weights = np.maximum(rng.dirichlet(np.full(models, 10**concentration)), 1e-40)
    ratio = density / (weights @ density)
    gradient, curvature = ratio.mean(axis=1), ratio @ ratio.T / frames
    found = minimise_on_simplex(curvature, 2.0 * gradient)
    assert_optimal(found, Gram(np.array(4.0), 2.0 * gradient, curvature), 1e-9)


def test_a_silent_estimate_of_silence_is_exact():
    matrix = np.diag([0.0, 1.0, 2.0])
    for g in (Gram(np.zeros(()), np.zeros(3), scale * matrix) for scale in (1.0, 1e-12, 1e12)):
        np.testing.assert_allclose(oracle_weights(g), [1.0, 0.0, 0.0], atol=1e-15)
        np.testing.assert_allclose(minimise_on_simplex(g.gram, g.cross), [1.0, 0.0, 0.0], atol=1e-15)
    np.testing.assert_array_equal(minimise_on_simplex(0 * matrix, np.zeros(3)), 1 / 3)
    with pytest.raises(ValueError, match="silent estimate"):
        minimise_on_simplex(matrix, np.array([1.0, 0.0, 0.0]))


def test_jax_arrays(x64):
    g = problems(12, 10, 5)
    on_device = jax.tree.map(jnp.asarray, g)
    for function in (oracle_weights, jax.jit(oracle_weights), jax.vmap(oracle_weights)):
        weights = function(on_device)
        assert isinstance(weights, jax.Array)
        np.testing.assert_allclose(weights, oracle_weights(g), atol=1e-12)
    np.testing.assert_allclose(jax.jit(kkt_residual)(weights, on_device), 0.0, atol=1e-13)


def test_single_precision():
    g = problems(13, 100, 6)
    single = jax.tree.map(lambda field: field.astype(np.float32), g)
    weights = oracle_weights(single)
    assert weights.dtype == np.float32
    assert kkt_residual(weights.astype(np.float64), g).max() < 1e-6


def test_residual_finds_weights_that_are_not_optimal():
    g = problems(14, 30, 4)
    weights = oracle_weights(g)
    assert (kkt_residual(best_weights(g)[:, ::-1], g) > 1e-4).all()
    assert (kkt_residual(1.001 * weights, g) >= 9e-4).all()
    assert kkt_residual(np.array([1.5, -0.5, 0.0, 0.0]), g).min() >= 0.5


def test_bad_input():
    g = problems(15, 3, 4)
    with pytest.raises(ValueError, match="cross with NaN"):
        oracle_weights(Gram(g.energy, np.full_like(g.cross, np.nan), g.gram))
    with pytest.raises(ValueError, match="same models"):
        minimise_on_simplex(g.gram, g.cross[:, :3])
    with pytest.raises(ValueError, match="3 models, but there are 4"):
        kkt_residual(np.ones(3), g)

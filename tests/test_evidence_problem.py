"""Problems of recordings drawn from the model: densities by NumPyro, brackets from both sides, idle components."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density

from bayesfuse import evidence, inference, model
from bayesfuse.evidence_problem import path, problems
from bayesfuse.vbnmf import make_prior


@pytest.fixture(scope="module")
def drawn():
    """Recordings drawn with given dictionaries of two sources, and with a learned one beside a given one."""
    rng = np.random.default_rng(0)
    given = [rng.gamma(1.0, 1.0, (6, k)) for k in (3, 2)]
    cases = []
    with jax.enable_x64(True):
        for sources, learned in ((given, [False, False]), ([2, given[1]], [True, False])):
            orders = [[c if isinstance(c, int) else c.shape[1]] for c in sources]
            prior = make_prior(orders, a=0.8, b=0.6, noise=0.05, dtype=np.float64)
            candidates = [[c] for c in sources]
            sim = model.simulate(jax.random.key(4), candidates, prior, (6, 5))
            power = np.abs(sim.X) ** 2
            (item,) = problems(power, inference.start(power, candidates, prior), prior)
            cases.append((item, item.state(sim.dictionaries, sim.activations, learned), sim, prior))
    return cases


@eqx.filter_jit
def joint(route, logs):
    """The logarithms of the factors, from the coordinates, and log p(X, log W, log H)."""
    state = route.coordinates(logs)
    # `base` is a density of coordinates: the volume is the slope of the logarithms.
    back, slope = jax.jvp(route.logs, (state,), (jnp.ones_like(state),))
    return back, jnp.sum(route.log_likelihood(state)) + jnp.sum(route.base(state)) - jnp.log(slope).sum()


def test_log_densities_are_those_of_the_numpyro_program(drawn):
    """log p(X, W, H) at the true factors, once by NumPyro."""
    for item, truth, sim, prior in drawn:
        with jax.enable_x64(True):
            route = path(item, "prior", 0.1)
            there_and_back, ours = joint(route, jnp.asarray(truth[None]))
            np.testing.assert_allclose(there_and_back[0], truth, atol=1e-9)
            ours = float(ours) - truth.sum()
            learned = item.dictionary is not None
            candidates = [[2 if learned else sim.dictionaries[0]], [sim.dictionaries[1]]]
            values = {f"H{j}_0": jnp.asarray(h) for j, h in enumerate(sim.activations)}
            if learned:
                values["W0_0"] = jnp.asarray(sim.dictionaries[0])
            theirs = log_density(model.model, (sim.X, candidates, prior), {"orders": (0, 0)}, values)[0]
        assert ours == pytest.approx(float(theirs), rel=1e-9)


@eqx.filter_jit
def densities(route, logs):
    """Likelihood, prior and what annealing adds, with the slope of the sum."""

    def each(state):
        parts = (route.log_likelihood(state), route._densities(state)[0], route.extra(state))
        return sum(jnp.sum(part) for part in parts), parts

    slope, parts = jax.grad(each, has_aux=True)(route.coordinates(logs[None]))
    return slope[0], parts, route.scale(jnp.ones(logs.shape[:-1]))


def test_idle_components_do_not_count(drawn):
    """Likelihood, start and gradient of a padded problem are those of the problem; idle coordinates do not move."""
    for item, truth, *_ in drawn:
        with jax.enable_x64(True):
            plain, padded = (path(p, "prior", 0.1) for p in (item, item.padded(item.components + 2)))
            more = evidence._padded_truth(item, jax.tree.map(lambda field: field[None], padded), truth)
            (slope, ours, scale), (slope_padded, theirs, scale_padded) = (
                densities(route, jnp.asarray(logs)) for route, logs in ((plain, truth), (padded, more))
            )
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        moves = np.asarray(scale_padded) > 0
        assert moves.sum() == truth.size and np.all(np.asarray(scale) > 0)
        np.testing.assert_allclose(np.asarray(slope_padded)[moves], np.ravel(slope), rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(np.asarray(slope_padded)[~moves], 0.0)


def test_brackets_close_and_orders_run_side_by_side(drawn):
    """Forward and reverse chains bound the same number, in a list of problems of several kinds and sizes."""
    (fixed, fixed_truth, *_), (learned, learned_truth, *_) = drawn
    items = [learned, fixed, fixed.padded(7)]
    truths = [learned_truth, fixed_truth, None]
    settings = {"num_chains": 32, "num_temperatures": 60, "truths": truths}
    found = evidence.annealed(jax.random.key(0), items, **settings)
    assert [e.value.shape for e in found] == [(), (5,), (5,)]
    assert found[2].upper is None
    for e in found[:2]:
        width = np.sum(e.upper - e.value)
        error = np.hypot(e.total_error, np.linalg.norm(e.upper_error))
        assert abs(width) < 5 * error and error < 2
    assert found[2].upper_error is None
    both = np.hypot(found[1].error, found[2].error)
    assert np.all(np.abs(found[1].value - found[2].value) < 5 * both)
    again = evidence.annealed(jax.random.key(0), items, **settings)
    for a, b in zip(found, again, strict=True):
        np.testing.assert_array_equal(a.log_weights, b.log_weights)
    with pytest.raises(ValueError, match="that of all frames"):
        learned.frames([0])

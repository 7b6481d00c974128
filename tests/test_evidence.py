"""Evidence by sampling against integrals that are known: quadrature, the golden table, brute force over the prior.

Errors are compared with the standard errors that the samplers state; seeds are fixed.
"""

from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from scipy import integrate, stats

from bayesfuse import evidence, inference, model
from bayesfuse.evidence_problem import path, problems
from bayesfuse.vbnmf import Factor, combination_scores, make_prior, step

GOLDEN = Path(__file__).parent / "golden" / "g21_exact_evidence.npz"
SWEEPS = 60


def fitted(power, candidates, prior, sweeps=SWEEPS):
    """Variational posterior in the prior's own unit, and its free energies per combination."""
    values = jax.numpy.asarray(power)

    @eqx.filter_jit
    def run(q, prior):
        q = step(values, q, prior, sequence="WHK", count=jax.numpy.asarray(sweeps))
        return q, combination_scores(values, q, prior)

    return run(inference.start(power, candidates, prior), prior)


@pytest.fixture(scope="module")
def frames():
    """Problems with fixed dictionaries of the golden table, exact log evidences [frame] and free energies."""
    with np.load(GOLDEN) as table:
        items, exact, bounds = [], [], []
        with jax.enable_x64(True):
            for k in (0, 1):
                power = np.abs(table[f"f{k}_X"]) ** 2
                candidates = [[table[f"f{k}_W1m0"], table[f"f{k}_W1m1"]], [table[f"f{k}_W2"]]]
                settings = {"b": float(table[f"f{k}_b"]), "noise": float(table[f"f{k}_sigma2"])}
                prior = make_prior([[1, 2], [1]], dtype=np.float64, **settings)
                q, scores = fitted(power, candidates, prior)
                items += problems(power, q, prior)
                exact += [table[f"f{k}_logevidence_frames_m{m}"] for m in (0, 1)]
                bounds += list(np.asarray(scores.frames))
    return items, np.array(exact), np.array(bounds)


def agree(found, exact, most=4.0):
    """Whether errors are of the size that the standard errors say."""
    values, errors = np.array([e.value for e in found]), np.array([e.error for e in found])
    ratio = (values - exact) / errors
    assert np.abs(ratio).max() < most, ratio
    assert 0.4 < np.sqrt((ratio**2).mean()) < 1.7, ratio
    return np.sqrt(((values - exact) ** 2).mean())


def test_frames_of_the_golden_table(frames):
    """Exact evidences per frame, by quadrature: from the prior, and by independent draws from there."""
    items, exact, bounds = frames
    assert np.all(bounds <= exact + 1e-9)
    found = evidence.annealed(jax.random.key(0), items, num_chains=32, num_temperatures=40)
    assert agree(found, exact) < 0.2
    assert all(0.5 < e.acceptance < 0.95 for e in found)
    found = evidence.importance(jax.random.key(1), items, num_draws=20000, start="prior")
    assert agree(found, exact) < 0.2
    assert found[0].total == pytest.approx(found[0].value.sum())
    assert found[0].total_error == pytest.approx(np.linalg.norm(found[0].error))


def test_start_from_the_variational_posterior(frames):
    """Closer than the bound, and never above the evidence by more than chance; a share of the prior helps."""
    items, exact, bounds = frames
    for found in (
        evidence.importance(jax.random.key(0), items, num_draws=2000, defence=0.2),
        evidence.annealed(jax.random.key(1), items, num_chains=32, num_temperatures=40, start="posterior", defence=0.2),
    ):
        values, errors = np.array([e.value for e in found]), np.array([e.error for e in found])
        assert np.all(values < exact + 5 * errors)
        assert np.abs(values - exact).mean() < 0.2 * (exact - bounds).mean()
        sizes = np.array([e.effective_size for e in found])
        assert np.all(sizes >= 1 - 1e-9) and np.all(sizes <= len(found[0].log_weights) + 1e-9)


def test_learned_dictionaries_of_the_golden_table():
    """Quadrature over dictionaries and activations of single bins; every free energy lies below."""
    items, exact = [], []
    with np.load(GOLDEN) as table, jax.enable_x64(True):
        for i in (0, 4, 5, 11):
            name = f"p{i:02d}"
            power = np.abs(table[f"{name}_X"]) ** 2
            orders = [[int(k)] for k in table[f"{name}_Ks"]]
            shapes = {key: float(table[f"{name}_{key}"]) for key in ("a", "b")}
            prior = make_prior(orders, noise=float(table[f"{name}_sigma2"]), dtype=np.float64, **shapes)
            q = inference.start(power, orders, prior)
            items += problems(power, q, prior)
            exact.append(float(table[f"{name}_logevidence"]))
    found = evidence.annealed(jax.random.key(0), items, num_chains=64, num_temperatures=40)
    assert found[0].value.shape == ()
    agree(found, np.array(exact))


def one_bin(power, noise, shape, weight):
    """log of int Gamma(h | shape, shape) CN(x | 0, noise + weight h) dh, by quadrature in log h."""

    def integrand(u):
        h = np.exp(u)
        v = noise + weight * h
        density = stats.gamma.pdf(h, shape, scale=1 / shape) * h
        return density * np.exp(-power / v) / (np.pi * v)

    return np.log(integrate.quad(integrand, -120, 8, limit=2000, points=[-10, -3, 0, 2])[0])


@pytest.mark.parametrize("shape", [0.2, 1.0])
def test_one_component_by_quadrature_in_single_precision(shape):
    """float32, noise far below the power, and the scale of a `Fit`, whose unit the evidence must be in."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 2.0, (1, 1)).astype(np.float32)
    power = (7.0 * rng.exponential(size=(1, 5))).astype(np.float32)
    prior = make_prior([[1]], b=shape, noise=1e-4, dtype=np.float32)
    fit = inference.fit(power, inference.start(power, [[weights]], prior), prior)
    (item,) = evidence.of_fit(power, fit)
    (found,) = evidence.annealed(jax.random.key(0), [item], num_chains=64, num_temperatures=30)
    unit = fit.scale**2
    exact = np.array([one_bin(p / unit, 1e-4, shape, float(weights[0, 0])) for p in power[0]]) - np.log(unit)
    agree([found], exact[None])
    assert np.all(fit.free_energy.per_frame() < exact + 1e-4)
    # Frames of a problem are problems.
    (some,) = evidence.annealed(jax.random.key(1), [item.frames([3, 1])], num_chains=64, num_temperatures=30)
    np.testing.assert_allclose(some.value, exact[[3, 1]], atol=0.3)


@pytest.fixture(scope="module")
def drawn():
    """A recording drawn with given dictionaries of two sources, and one with a learned one beside a given one."""
    rng = np.random.default_rng(0)
    given = [rng.gamma(1.0, 1.0, (6, k)) for k in (3, 2)]
    cases = []
    with jax.enable_x64(True):
        for sources, learned in (([given[0], given[1]], [False, False]), ([2, given[1]], [True, False])):
            orders = [[c if isinstance(c, int) else c.shape[1]] for c in sources]
            prior = make_prior(orders, a=0.8, b=0.6, noise=0.05, dtype=np.float64)
            candidates = [[c] for c in sources]
            sim = model.simulate(jax.random.key(4), candidates, prior, (6, 5))
            power = np.abs(sim.X) ** 2
            q, scores = fitted(power, candidates, prior)
            (item,) = problems(power, q, prior)
            truth = item.state(sim.dictionaries, sim.activations, learned)
            cases.append((item, truth, sim, prior, np.asarray(scores.frames)[0], float(scores.dictionary[0])))
    return cases


def test_log_densities_are_those_of_the_numpyro_program(drawn):
    """log p(X, W, H) at the true factors, once by NumPyro."""
    from numpyro.infer.util import log_density

    for item, truth, sim, prior, *_ in drawn:
        with jax.enable_x64(True):
            route = path(item, "prior", 0.1)
            state = route.coordinates(jax.numpy.asarray(truth[None]))
            np.testing.assert_allclose(route.logs(state)[0], truth, atol=1e-9)
            ours = float(np.sum(route.log_likelihood(state)))
            # `base` is a density of coordinates, NumPyro's one of factors: the volume is the slope of both logarithms.
            slope = np.diagonal(
                jax.jacfwd(lambda z, logs=route.logs: logs(z[None])[0].ravel())(state[0]).reshape(truth.size, -1)
            )
            ours += float(np.sum(route.base(state))) - np.log(slope).sum() - truth.sum()
            learned = item.dictionary is not None
            candidates = [[2 if learned else sim.dictionaries[0]], [sim.dictionaries[1]]]
            values = {f"H{j}_0": h for j, h in enumerate(sim.activations)}
            if learned:
                values["W0_0"] = sim.dictionaries[0]
            theirs = log_density(model.model, (sim.X, candidates, prior), {"orders": (0, 0)}, values)[0]
        assert ours == pytest.approx(float(theirs), rel=1e-9)


def test_starts_are_densities_that_their_draws_follow(drawn):
    """E[p / start] = 1 over draws of the start, for the prior p, which has mass wherever the start has."""
    for item, *_ in drawn:
        with jax.enable_x64(True):
            route, plain = path(item, "posterior", 0.3), path(item, "prior", 0.3)
            narrow = path(item, "posterior", 0.999)
            state = narrow.draw(jax.random.key(0), 4000)
            # The ratio of two densities with the same draws, per coordinate at the most widely mixed start.
            log_ratio = np.asarray(plain.base(state) - narrow.base(state))
            assert np.isfinite(np.asarray(route.base(state))).all()
        ratio = np.exp(log_ratio).reshape(4000, -1).mean(1)
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(4000)


def test_brackets_close_on_recordings_drawn_from_the_model(drawn):
    """Forward and reverse bound the same number; idle components of a larger order change neither."""
    for item, truth, _, _, free, dictionary in drawn:
        settings = {"num_chains": 32, "num_temperatures": 60}
        found, other = evidence.annealed(jax.random.key(0), [item, item], truths=[truth, None], **settings)
        assert other.upper is None
        width = np.sum(found.upper - found.value)
        assert abs(width) < 4 * found.total_error + 0.3
        assert free.sum() + dictionary < found.total + 4 * found.total_error
        (padded,) = evidence.annealed(jax.random.key(1), [item.padded(item.components + 2)], **settings)
        assert abs(padded.total - found.total) < 4 * np.hypot(found.total_error, padded.total_error)


def test_orders_run_side_by_side_in_any_order(drawn):
    """A list of problems of several sizes: results are in its order."""
    (fixed, *_), (learned, *_) = drawn
    items = [learned, fixed.frames([0, 1]), fixed, fixed.padded(7)]
    found = evidence.annealed(jax.random.key(0), items, num_chains=32, num_temperatures=40)
    assert [e.value.shape for e in found] == [(), (2,), (5,), (5,)]
    for e in (found[1].value, found[3].value[:2]):
        assert np.all(np.abs(e - found[2].value[:2]) < 1.0)
    again = evidence.annealed(jax.random.key(0), items, num_chains=32, num_temperatures=40)
    for a, b in zip(found, again, strict=True):
        np.testing.assert_array_equal(a.log_weights, b.log_weights)


def test_errors_name_the_remedy(drawn):
    item, truth, _, prior, *_ = drawn[0]
    learned = drawn[1][0]
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="no problem"):
        evidence.importance(key, [])
    with pytest.raises(ValueError, match="num_draws=1"):
        evidence.importance(key, [item], num_draws=1)
    with pytest.raises(ValueError, match="defence=0"):
        evidence.annealed(key, [item], defence=0)
    with pytest.raises(ValueError, match="start='middle'"):
        evidence.annealed(key, [item], start="middle")
    with pytest.raises(ValueError, match="num_leaps=0"):
        evidence.annealed(key, [item], num_leaps=0)
    with pytest.raises(ValueError, match="2 truths"):
        evidence.annealed(key, [item], truths=[truth, truth])
    with pytest.raises(ValueError, match="a truth has shape"):
        evidence.annealed(key, [item], truths=[truth[:2]], num_temperatures=2, num_chains=2)
    with pytest.raises(ValueError, match="that of all frames"):
        learned.frames([0])
    power = np.asarray(item.power).T
    with jax.enable_x64(True):
        w = np.asarray(item.weights[:, :3])
        q = inference.start(power, [[Factor(w, 0.9 * w)], [w]], prior)
        with pytest.raises(ValueError, match="another harmonic mean"):
            problems(power, q, prior)
        with pytest.raises(ValueError, match="frequencies and frames of q"):
            problems(power.T, q, prior)

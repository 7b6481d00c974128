"""Evidence by sampling against integrals that are known: quadrature, and the golden table.

Errors are compared with the standard errors that the samplers state; seeds are fixed.
"""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from bayesfuse import _annealing, evidence, inference
from bayesfuse.evidence_problem import problems
from bayesfuse.vbnmf import Factor, combination_scores, make_prior, step

GOLDEN = Path(__file__).parent / "golden" / "g21_exact_evidence.npz"
SETTINGS = {"num_chains": 32, "num_temperatures": 40}


@pytest.fixture(scope="module")
def frames():
    """Problems with fixed dictionaries of the golden table, exact log evidences [frame] and free energies."""

    @eqx.filter_jit
    def explained(power, q, prior):
        q = step(power, q, prior, sequence="WHK", count=jnp.asarray(60))
        return q, combination_scores(power, q, prior).frames

    with np.load(GOLDEN) as table, jax.enable_x64(True):
        power = np.abs(table["f0_X"]) ** 2
        candidates = [[table["f0_W1m0"], table["f0_W1m1"]], [table["f0_W2"]]]
        settings = {"b": float(table["f0_b"]), "noise": float(table["f0_sigma2"])}
        prior = make_prior([[1, 2], [1]], dtype=np.float64, **settings)
        q, bounds = explained(jnp.asarray(power), inference.start(power, candidates, prior), prior)
        exact = np.array([table[f"f0_logevidence_frames_m{m}"] for m in (0, 1)])
        return list(problems(power, q, prior)), exact, np.asarray(bounds)


def agree(found, exact, most=4.0):
    """Whether errors are of the size that the standard errors say; returns their root mean square."""
    values, errors = np.array([e.value for e in found]), np.array([e.error for e in found])
    ratio = (values - exact) / errors
    assert np.abs(ratio).max() < most, ratio
    assert 0.4 < np.sqrt((ratio**2).mean()) < 1.7, ratio
    return np.sqrt(((values - exact) ** 2).mean())


def test_frames_of_the_golden_table(frames):
    """Exact evidences per frame, by quadrature: from the prior, and by independent draws from there."""
    items, exact, bounds = frames
    assert np.all(bounds <= exact + 1e-9)
    found = evidence.annealed(jax.random.key(0), items, **SETTINGS)
    assert agree(found, exact) < 0.3
    assert all(0.5 < e.acceptance < 0.95 for e in found)
    assert found[0].total == pytest.approx(found[0].value.sum())
    assert found[0].total_error == pytest.approx(np.linalg.norm(found[0].error))
    found = evidence.importance(jax.random.key(1), items, num_draws=20000, start="prior")
    assert found[0].log_weights.shape == (20000, 6)
    assert agree(found, exact) < 0.2


def test_start_from_the_variational_posterior(frames):
    """Closer than the bound, and not above the evidence by more than chance."""
    items, exact, bounds = frames
    for found in (
        evidence.importance(jax.random.key(0), items, num_draws=2000, defence=0.2),
        evidence.annealed(jax.random.key(1), items, start="posterior", defence=0.2, **SETTINGS),
    ):
        values, errors = np.array([e.value for e in found]), np.array([e.error for e in found])
        assert np.all(values < exact + 5 * errors)
        assert np.abs(values - exact).mean() < 0.2 * (exact - bounds).mean()
        sizes = np.array([e.effective_size for e in found])
        assert np.all(sizes >= 1 - 1e-9) and np.all(sizes <= len(found[0].log_weights) + 1e-9)


def test_starts_are_densities_that_their_draws_follow(frames):
    """E[prior / start] = 1 over draws of a start that has mass wherever the prior has."""
    items, *_ = frames
    with jax.enable_x64(True):
        same = [item.padded(3) for item in items]
        stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *same)
        plain, mixed = (evidence._paths(stack, start, jnp.asarray(0.9)) for start in ("prior", "posterior"))
        ratios = []
        for keys in jax.random.split(jax.random.key(0), (100, 2)):
            states = _annealing.draw(keys, mixed, 32)
            ratios.append(log_ratio(plain, mixed, states))
    ratio = np.exp(np.concatenate(ratios, axis=1))
    assert np.all(np.abs(ratio.mean(1) - 1) < 5 * ratio.std(1) / np.sqrt(ratio.shape[1]))


@eqx.filter_jit
def log_ratio(plain, mixed, states):
    return eqx.filter_vmap(lambda p, q, s: p.base(s) - q.base(s))(plain, mixed, states)


def test_learned_dictionaries_of_the_golden_table():
    """Quadrature over dictionaries and activations of single bins, one source and two, shapes 0.2 to 3."""
    items, exact = [], []
    with np.load(GOLDEN) as table, jax.enable_x64(True):
        for name in ("p00", "p04", "p05", "p07", "p11"):
            power = np.abs(table[f"{name}_X"]) ** 2
            orders = [[int(k)] for k in table[f"{name}_Ks"]]
            shapes = {key: float(table[f"{name}_{key}"]) for key in ("a", "b")}
            prior = make_prior(orders, noise=float(table[f"{name}_sigma2"]), dtype=np.float64, **shapes)
            items += problems(power, inference.start(power, orders, prior), prior)
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


def test_one_component_by_quadrature_in_single_precision():
    """float32, noise far below the power, and the scale of a `Fit`, whose unit the evidence must be in."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 2.0, (1, 1)).astype(np.float32)
    power = (7.0 * rng.exponential(size=(1, 5))).astype(np.float32)
    prior = make_prior([[1]], noise=1e-4)
    fit = inference.fit(power, inference.start(power, [[weights]], prior), prior)
    (item,) = evidence.of_fit(power, fit)
    settings = {"num_chains": 64, "num_temperatures": 30}
    (found,) = evidence.annealed(jax.random.key(0), [item], **settings)
    unit = fit.scale**2
    exact = np.array([one_bin(p / unit, 1e-4, 0.2, float(weights[0, 0])) for p in power[0]]) - np.log(unit)
    agree([found], exact[None])
    assert np.all(fit.free_energy.per_frame() < exact + 1e-4)
    # Frames of a problem are problems.
    chosen = [3, 1, 4, 0, 2]
    (some,) = evidence.annealed(jax.random.key(1), [item.frames(chosen)], **settings)
    agree([some], exact[None, chosen])


def test_errors_name_the_remedy(frames):
    (item, _), *_ = frames
    key = jax.random.key(0)
    truth = np.zeros((6, 2))
    with pytest.raises(ValueError, match="no problem"):
        evidence.importance(key, [])
    with pytest.raises(ValueError, match="num_draws=1"):
        evidence.importance(key, [item], num_draws=1)
    with pytest.raises(ValueError, match="defence=0"):
        evidence.annealed(key, [item], defence=0.0)
    with pytest.raises(ValueError, match="num_leaps=0"):
        evidence.annealed(key, [item], num_leaps=0)
    with pytest.raises(ValueError, match="2 truths"):
        evidence.annealed(key, [item], truths=[truth, truth])
    with pytest.raises(ValueError, match="a truth has shape"):
        evidence.annealed(key, [item], truths=[truth[:2]], **SETTINGS)
    power = np.asarray(item.power).T
    with jax.enable_x64(True):
        w = jnp.asarray(item.weights[:, :1])
        prior = make_prior([[1], [1]], dtype=np.float64)
        q = inference.start(power, [[Factor(w, 0.9 * w)], [w]], prior, ml_iters=0)
        with pytest.raises(ValueError, match="another harmonic mean"):
            problems(power, q, prior)
        with pytest.raises(ValueError, match="frequencies and frames of q"):
            problems(power.T, q, prior)

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
# How often a limit is passed by chance.
RARE = 1e-6


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


def agree(found, exact, rounding=0.0):
    """Assert that weights average to the truth and that stated standard errors are those of repetitions.

    `found` has the units [repetition, *unit] of every problem, `exact` [problem, *unit]. E[w] = Z holds exactly, so
    that pooled weights over Z average to 1 within their own standard error, and within what rounding, in nats, changes.
    The scatter of the values over repetitions, in units of the mean square of the stated errors, is chi-squared. Limits
    are passed once in a million calls, were it all normal.

    Returns the root mean square of the errors.
    """
    scatter, freedom, errors = 0.0, 0, []
    for e, truth in zip(found, np.asarray(exact), strict=True):
        unit = np.shape(truth)
        values = e.value.reshape(-1, *unit)
        w = np.exp(e.log_weights - np.tile(truth, len(values)).reshape(e.value.shape)).reshape(-1, *unit)
        most = stats.norm.isf(RARE / (2 * np.size(exact))) * w.std(0) / np.sqrt(len(w)) + rounding
        assert np.all(np.abs(w.mean(0) - 1) < most), (w.mean(0), most)
        stated = np.mean(e.error.reshape(values.shape) ** 2, 0)
        scatter += np.sum((values - values.mean(0)) ** 2 / stated)
        freedom += (len(values) - 1) * truth.size
        errors.append(values - truth)
    lowest, highest = stats.chi2.ppf([RARE / 2, 1 - RARE / 2], freedom)
    assert lowest < scatter < highest, np.array([lowest, scatter, highest]) / freedom
    return np.sqrt(np.mean(np.concatenate([e.ravel() for e in errors]) ** 2))


def stacked(found):
    """Evidences of a problem that was put several times, [repetition]."""
    return jax.tree.map(lambda *fields: np.stack(fields, axis=-1), *found)


def repeated(item, times):
    """The frames of a problem several times over, [repetition, frame]."""
    return item.frames(np.tile(np.arange(item.power.shape[0]), times))


def test_frames_of_the_golden_table(frames):
    """Exact evidences per frame, by quadrature: from the prior, and by independent draws from there."""
    items, exact, bounds = frames
    assert np.all(bounds <= exact + 1e-9)
    many = [repeated(item, 32) for item in items]
    found = evidence.annealed(jax.random.key(0), many, **SETTINGS)
    assert agree(found, exact) < 0.25
    assert all(0.5 < e.acceptance < 0.95 for e in found)
    assert found[0].total == pytest.approx(found[0].value.sum())
    assert found[0].total_error == pytest.approx(np.linalg.norm(found[0].error))
    found = evidence.importance(jax.random.key(1), many, num_draws=2000, start="prior")
    assert found[0].log_weights.shape == (2000, 192)
    assert agree(found, exact) < 0.1


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
    times = 48
    found = evidence.annealed(jax.random.key(0), [item for item in items for _ in range(times)], **SETTINGS)
    assert found[0].value.shape == ()
    agree([stacked(found[i : i + times]) for i in range(0, len(found), times)], exact)


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
    unit = fit.scale**2
    noise = float(prior.noise)
    exact = np.array([one_bin(p / unit, noise, 0.2, float(weights[0, 0])) for p in power[0]]) - np.log(unit)
    # The gap is some tenths of a nat: no allowance for rounding is needed.
    assert np.all(fit.free_energy.per_frame() < exact)
    # Frames of a problem are problems.
    chosen = [3, 1, 4, 0, 2]
    (found,) = evidence.annealed(
        jax.random.key(0), [item.frames(np.tile(chosen, 200))], num_chains=64, num_temperatures=30
    )
    # log w = sum_t (beta_t - beta_{t-1}) log p(x | h_t), and the rises sum to 1: it is off by no more than the largest
    # log likelihood is, of which |x|^2 over the noise is the largest term, rounded in the product, the sum, the
    # quotient and the difference.
    terms = np.log(np.pi) - np.log(noise) + power.max() / unit / noise
    rounding = 4 * 0.5 * np.finfo(np.float32).eps * terms
    agree([found], exact[None, chosen], rounding)


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

"""The NumPyro program against densities, against the fit, and against posteriors that are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density
from oracles import problems
from oracles.problems import compiled
from scipy import integrate, special, stats

from bayesfuse import model
from bayesfuse.inference import fit, start
from bayesfuse.vbnmf import free_energy, make_prior, step

ORDERS = [[1, 3], [2]]
SHAPE = (5, 12)
NUM = 80


def given(dtype=np.float64):
    return problems.candidates(dtype)[0]


# Distributions --------------------------------------------------------------------------------------------------------


def test_complex_normal(x64):
    """Density of two independent normals of half the variance each; moments of its draws."""
    z = np.array([0.3 - 1.2j, 0.0, 5.0 + 2.0j])
    power = np.array([0.5, 2.0, 9.0])
    scale = np.sqrt(power / 2)
    expected = stats.norm.logpdf(z.real, scale=scale) + stats.norm.logpdf(z.imag, scale=scale)
    normal = model.ComplexNormal(power)
    np.testing.assert_allclose(normal.log_prob(z), expected, rtol=1e-13)
    draws = np.asarray(normal.sample(jax.random.key(0), (20000,)))
    assert draws.dtype == np.complex128
    np.testing.assert_allclose(np.mean(np.abs(draws) ** 2, 0), normal.variance, rtol=4 / np.sqrt(20000))
    # E z = 0 and, circular, E z^2 = 0.
    assert np.all(np.abs(draws.mean(0)) < 4 * np.sqrt(power / 20000))
    assert np.all(np.abs((draws**2).mean(0)) < 4 * power * np.sqrt(2 / 20000))
    np.testing.assert_array_equal(normal.mean, 0)
    assert model.ComplexNormal(1.0).expand((3,)).to_event(1).log_prob(z).shape == ()
    with pytest.raises(ValueError):
        model.ComplexNormal(-1.0, validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        model.ComplexNormal(np.ones(2), validate_args=True).log_prob(np.array([1.0, np.nan]))


def log_joint(arguments, options, values):
    return log_density(model.model, arguments, options, {name: jnp.asarray(v) for name, v in values.items()})[0]


def parameters(rng):
    values = {}
    for j, row in enumerate(ORDERS):
        for m, k in enumerate(row):
            values[f"W{j}_{m}"] = rng.gamma(1.0, 1.0, (SHAPE[0], k)) + 0.01
            values[f"H{j}_{m}"] = rng.gamma(1.0, 1.0, (k, SHAPE[1])) + 0.01
    return values


def test_log_joint_from_densities(x64):
    """log p(X, W, H) with the orders summed out, and given them; dictionaries drawn and given."""
    rng = np.random.default_rng(0)
    settings = {"noise": 0.1, "order": [[0.3, 0.7], [1.0]], "activation_mean": [[0.5, 2.0], [1.0]]}
    prior = make_prior(ORDERS, a=0.7, b=1.3, dtype=np.float64, **settings)
    X = problems.random_mixture(rng, *SHAPE)
    values = parameters(rng)
    means = {"H0_0": 0.5, "H0_1": 2.0, "H1_0": 1.0}

    def log_prior(name):
        shape, mean = (0.7, 1.0) if name[0] == "W" else (1.3, means[name])
        return stats.gamma.logpdf(values[name], shape, scale=mean / shape).sum()

    def log_likelihood(m):
        v = 0.1 + values[f"W0_{m}"] @ values[f"H0_{m}"] + values["W1_0"] @ values["H1_0"]
        return np.sum(-np.log(np.pi * v) - np.abs(X) ** 2 / v)

    actual = log_joint((X, ORDERS, prior), {}, values)
    both = np.logaddexp(np.log(0.3) + log_likelihood(0), np.log(0.7) + log_likelihood(1))
    assert float(actual) == pytest.approx(both + sum(map(log_prior, values)), rel=1e-12)

    chosen = {k: v for k, v in values.items() if k[1:] in ("0_1", "1_0")}
    actual = log_joint((X, ORDERS, prior), {"orders": (1, 0)}, chosen)
    assert float(actual) == pytest.approx(log_likelihood(1) + sum(map(log_prior, chosen)), rel=1e-12)

    fixed = [[values["W0_0"], values["W0_1"]], [2]]
    free = {k: v for k, v in values.items() if not k.startswith("W0")}
    actual = log_joint((X, fixed, prior), {}, free)
    assert float(actual) == pytest.approx(both + sum(map(log_prior, free)), rel=1e-12)


def test_several_multi_order_sources_sum_over_combinations(x64):
    """Two sources with two orders each: the four combinations, the last source varying fastest."""
    rng = np.random.default_rng(1)
    orders = [[1, 2], [2, 1]]
    pi = [np.array([0.2, 0.8]), np.array([0.6, 0.4])]
    prior = make_prior(orders, noise=0.1, order=pi, dtype=np.float64)
    dictionaries = [[rng.gamma(1.0, 1.0, (3, k)) for k in row] for row in orders]
    values = {f"H{j}_{m}": rng.gamma(1.0, 1.0, (k, 4)) + 0.1 for j, row in enumerate(orders) for m, k in enumerate(row)}
    X = problems.random_mixture(rng, 3, 4)
    terms = []
    for m in range(2):
        for n in range(2):
            v = 0.1 + dictionaries[0][m] @ values[f"H0_{m}"] + dictionaries[1][n] @ values[f"H1_{n}"]
            terms.append(np.log(pi[0][m] * pi[1][n]) + np.sum(-np.log(np.pi * v) - np.abs(X) ** 2 / v))
    expected = special.logsumexp(terms) + sum(stats.gamma.logpdf(h, 0.2, scale=5).sum() for h in values.values())
    actual = log_joint((X, dictionaries, prior), {}, values)
    assert float(actual) == pytest.approx(expected, rel=1e-12)


# Forward draws --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulations():
    prior = make_prior(ORDERS, a=0.8, b=1.5, noise=0.3, order=[[0.3, 0.7], [1.0]], dtype=np.float64)
    keys = jax.random.split(jax.random.key(3), NUM)
    return [model.simulate(key, [given(), [2]], prior, SHAPE) for key in keys]


def test_simulations_follow_the_story(simulations):
    """Given the variances, |s|^2 / v and |e|^2 / sigma2 are standard exponential; factors are Gamma; K is categorical.

    Kolmogorov-Smirnov tests at 1e-4, of numbers that do not depend on the draw, fixed seed.
    """
    counts = np.bincount([s.orders[0] for s in simulations], minlength=2)
    assert abs(counts[0] - 0.3 * NUM) < 4 * np.sqrt(NUM * 0.21)
    ratios, noises, factors, hs = [], [], [], []
    for s in simulations:
        assert s.sources.shape == (2, *SHAPE) and s.X.dtype == np.complex128
        np.testing.assert_array_equal(s.dictionaries[0], given()[s.orders[0]])
        v = np.stack([w @ h for w, h in zip(s.dictionaries, s.activations, strict=True)])
        ratios.append(np.abs(s.sources) ** 2 / v)
        noises.append(np.abs(s.X - s.sources.sum(0)) ** 2 / 0.3)
        factors.append(s.dictionaries[1])
        hs.append(np.concatenate([h.ravel() for h in s.activations]))
    assert stats.kstest(np.ravel(ratios), "expon").pvalue > 1e-4
    assert stats.kstest(np.ravel(noises), "expon").pvalue > 1e-4
    assert stats.kstest(np.ravel(factors), stats.gamma(0.8, scale=1 / 0.8).cdf).pvalue > 1e-4
    assert stats.kstest(np.concatenate(hs), stats.gamma(1.5, scale=1 / 1.5).cdf).pvalue > 1e-4
    angle = np.concatenate([np.angle(s.sources).ravel() for s in simulations])
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-4


def test_simulate_is_reproducible_and_conditions_on_orders(simulations):
    prior = make_prior(ORDERS, a=0.8, b=1.5, noise=0.3, order=[[0.3, 0.7], [1.0]], dtype=np.float64)
    again = model.simulate(jax.random.split(jax.random.key(3), NUM)[0], [given(), [2]], prior, SHAPE)
    np.testing.assert_array_equal(again.X, simulations[0].X)
    for m in range(2):
        s = model.simulate(jax.random.key(0), [given(), [2]], prior, SHAPE, orders=[m, 0])
        assert tuple(s.orders) == (m, 0) and s.activations[0].shape == (ORDERS[0][m], SHAPE[1])


def test_simulate_follows_the_precision_of_the_prior():
    """float32, and no noise: the sources sum to the mixture."""
    s = model.simulate(jax.random.key(0), [given(np.float32)[:1]] * 2, make_prior([[1], [1]], noise=0.0), SHAPE)
    assert s.X.dtype == np.complex64 and s.activations[0].dtype == np.float32
    np.testing.assert_allclose(s.X, s.sources.sum(0), atol=1e-6 * np.max(np.abs(s.X)))


def test_errors():
    prior = make_prior(ORDERS)
    with pytest.raises(ValueError, match="shape="):
        model.model(None, ORDERS, prior)
    with pytest.raises(ValueError, match="entries per source"):
        model.simulate(jax.random.key(0), ORDERS[:1], prior, SHAPE)
    with pytest.raises(ValueError, match="index of a candidate"):
        model.simulate(jax.random.key(0), ORDERS, prior, SHAPE, orders=[2, 0])
    with pytest.raises(ValueError, match="forward draws only"):
        model.model(np.ones(SHAPE, np.complex64), ORDERS, prior, sources=True)
    with pytest.raises(ValueError, match="0 draws"):
        model.posterior_predictive(jax.random.key(0), [], [], 0.1)


def test_posterior_predictive(simulations):
    """Replicates have variance noise + W H."""
    ws = [[s.dictionaries[0], s.dictionaries[1]] for s in simulations]
    hs = [s.activations for s in simulations]
    replicas = model.posterior_predictive(jax.random.key(1), ws, hs, 0.3)
    v = np.stack([0.3 + w[0] @ h[0] + w[1] @ h[1] for w, h in zip(ws, hs, strict=True)])
    assert replicas.shape == (NUM, *SHAPE) and replicas.dtype == np.complex128
    assert stats.kstest(np.ravel(np.abs(replicas) ** 2 / v), "expon").pvalue > 1e-4


# Recovery -------------------------------------------------------------------------------------------------------------


def test_fit_recovers_the_order_of_forward_draws():
    """Known dictionaries of order 1 and 3, each the truth in turn: separate fits pick it by free energy.

    Measured over 20 draws per variant (b = 0.2 and 1): separate fits 20 right (marginal), 15 (explicit, which leans to
    the smaller order); the orders of one joint fit at beta = 100 per frame 16 and 8, at beta = 1 in all 12 and 10.
    """
    right = 0
    for seed in range(6):
        true = seed % 2
        truth, candidates = problems.synthetic(seed, 0.2, true=true)
        energies = [
            problems.fit_synthetic(truth, [[w], candidates[1]], 0.2)[1].free_energy.total for w in candidates[0]
        ]
        right += int(np.argmax(energies) == true)
    assert right == 6


def test_fit_recovers_the_factors_of_a_forward_draw():
    """Everything learned, one source of order 2, F = 20, N = 30: the variances correlate with the truth."""
    prior = make_prior([[2]], a=1.0, b=0.5, noise=1e-3, dtype=np.float64)
    truth = model.simulate(jax.random.key(5), [[2]], prior, (20, 30))
    power = np.abs(truth.X) ** 2
    result = fit(power, start(power, [[2]], prior), prior, num_iters=100)
    component = result.posterior.components[0][0]
    expected = component.dictionary.mean @ component.activations.mean * result.scale**2
    true = truth.dictionaries[0] @ truth.activations[0]
    assert np.corrcoef(np.log(expected).ravel(), np.log(true).ravel())[0, 1] > 0.9
    # Columns, up to their order and scale.
    similar = np.corrcoef(np.asarray(component.dictionary.mean).T, truth.dictionaries[0].T)[:2, 2:]
    assert max(similar[0, 0] * similar[1, 1], similar[0, 1] * similar[1, 0]) > 0.7


# The exact anchor -----------------------------------------------------------------------------------------------------
# J = 1, K = 1, W fixed, sigma2 = 0: frames are independent and h_n | x is GIG(b - F, b, t_n), t_n = sum_f |x_fn|^2/w_f.


def exact_posterior(b, freq, t):
    """SciPy's form of the GIG: y = sqrt(tau / rho) g with g ~ geninvgauss(gamma, 2 sqrt(rho tau))."""
    return stats.geninvgauss(b - freq, 2 * np.sqrt(b * t), scale=np.sqrt(t / b))


def test_nuts_finds_the_exact_posterior(x64):
    """Means of h and log h within 4 standard errors of quadrature, and the spread too."""
    freq, frames, b = 3, 2, 0.7
    rng = np.random.default_rng(0)
    w = rng.gamma(2.0, 0.5, (freq, 1)) + 0.1
    X = problems.random_mixture(rng, freq, frames)
    prior = make_prior([[1]], b=b, noise=0.0, dtype=np.float64)
    sampler = MCMC(NUTS(model.model), num_warmup=300, num_samples=1500, progress_bar=False)
    sampler.run(jax.random.key(0), jnp.asarray(X), [[w]], prior)
    draws = np.asarray(sampler.get_samples()["H0_0"])[:, 0]
    t = np.sum(np.abs(X) ** 2 / w, 0)
    for n in range(frames):
        exact = exact_posterior(b, freq, t[n])
        low, high = exact.ppf([1e-12, 1 - 1e-12])
        middle = exact.median()
        for name in ("mean", "log", "below the median"):

            def function(y, name=name, middle=middle):
                return {"mean": y, "log": np.log(y), "below the median": np.asarray(y < middle, float)}[name]

            values = function(draws[:, n])
            expected = integrate.quad(
                lambda u, f=function, d=exact: f(np.exp(u)) * d.pdf(np.exp(u)) * np.exp(u),
                np.log(low), np.log(high), limit=200, points=[np.log(middle)],
            )[0]  # fmt: skip
            error = values.std() / np.sqrt(effective_sample_size(values[None]))
            assert abs(values.mean() - expected) < 4 * error, name


def test_error_of_the_variational_mean_shrinks(x64):
    """Against the exact posterior: mean, variance, mass of the 90 % interval of q(h), and evidence, as F grows.

    The update has tau = t exactly but gamma = b and rho = b + F / E[h] instead of b - F and b, so the mean is right to
    O(1/F) while the variance tends to half of the exact one, whose 90 % interval then holds 0.755.
    """
    b, frames = 0.7, 16
    prior = make_prior([[1]], b=b, noise=0.0, dtype=np.float64)
    advance = compiled(lambda P, q, prior: step(P, q, prior, count=jnp.asarray(300)))
    energy = compiled(free_energy)
    table = []
    for freq in (1, 4, 16, 64):
        truth = model.simulate(jax.random.key(freq), [[np.ones((freq, 1))]], prior, (freq, frames))
        power = np.abs(truth.X) ** 2
        q = problems.constant_posterior(np.random.default_rng(0), [[-1]], freq, frames, prior, "marginal")
        q = problems.with_dictionaries(q, [[np.ones((freq, 1))]])
        q = advance(jnp.asarray(power), q, prior)
        h = q.components[0][0].activations
        t = power.sum(0)
        np.testing.assert_allclose(h.tau[0], t, rtol=1e-12)
        np.testing.assert_allclose(h.rho[0], b + freq / h.mean[0], rtol=1e-9)
        exact = exact_posterior(b, freq, t)
        approximate = stats.geninvgauss(b, 2 * np.sqrt(h.rho[0] * t), scale=np.sqrt(t / h.rho[0]))
        mass = exact.cdf(approximate.ppf(0.95)) - exact.cdf(approximate.ppf(0.05))
        z = 2 * np.sqrt(b * t)
        log_z = np.log(2) + 0.5 * (b - freq) * np.log(t / b) + np.log(special.kve(b - freq, z)) - z
        evidence = -freq * np.log(np.pi) + b * np.log(b) - special.gammaln(b) + log_z
        table.append(
            (
                np.mean(np.abs(h.mean[0] / exact.mean() - 1)),
                np.mean(approximate.var() / exact.var()),
                np.mean(mass),
                np.mean(evidence - energy(jnp.asarray(power), q, prior).frames),
            )
        )
    error, ratio, mass, gap = np.array(table).T
    # Measured: 0.193, 0.127, 0.030, 0.0079; the last ones like 1/(2F).
    assert np.all(np.diff(error) < 0) and error[-1] < 0.01
    # Measured: 0.37, 0.27, 0.43, 0.479; the limit 1/2 is approached like 1/F.
    assert abs(ratio[-1] - 0.5) < 0.03
    # Measured: 0.787, 0.748, 0.756, 0.754; the limit is 2 Phi(1.645 / sqrt(2)) - 1 = 0.755.
    assert np.all(np.abs(mass - (2 * stats.norm.cdf(1.6449 / np.sqrt(2)) - 1)) < (0.1, 0.03, 0.01, 0.005))
    # Nats per frame, measured: 0.30, 0.36, 0.343, 0.348; the limit is log(2) / 2 per activation.
    assert np.all(gap > 0) and abs(gap[-1] - 0.5 * np.log(2)) < 0.01

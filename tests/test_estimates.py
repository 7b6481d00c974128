"""Posterior means, variances and draws: against Monte Carlo, against each other, and against the truth."""

import jax
import numpy as np
import pytest
from oracles import problems
from oracles import vbnmf as oracle
from oracles.problems import FRAMES, FREQ, ORDERS

from bayesfuse import estimates, inference, model, wiener
from bayesfuse.transforms import STFT

VARIANTS = ["marginal", "explicit"]
NOISE = 0.05


@pytest.fixture(scope="module")
def cases():
    """Power, STFT and fit per variant; a temperature at which both orders keep a share of the posterior."""
    power = problems.recording(11)
    rng = np.random.default_rng(0)
    X = np.sqrt(power) * np.exp(2j * np.pi * rng.random(power.shape))
    fits = {v: problems.fitted(power, v, prior={"beta": 30.0, "noise": NOISE}) for v in VARIANTS}
    share = np.exp(fits["marginal"].posterior.log_order[0])
    assert 0.1 < share[0] < 0.9
    return power, X, fits


@pytest.fixture(scope="module")
def draws(cases):
    _, X, fits = cases
    return {v: estimates.draw(jax.random.key(1), X, fits[v], 600) for v in VARIANTS}


def zscores(samples, expected):
    """Errors of the mean of draws (first axis) in standard errors."""
    return (samples.mean(0) - expected) / (samples.std(0) / np.sqrt(len(samples)))


def assert_standard(z):
    """Hundreds of z-scores: none beyond 5.5 and mean square about 1. Neighbours may be dependent, hence the slack."""
    assert np.max(np.abs(z)) < 5.5
    assert 0.6 < np.mean(z**2) < 1.5


# Law of total variance ------------------------------------------------------------------------------------------------


def gaussian_draws(rng, X, variances, noise, num):
    """From q(S) of one combination by a Cholesky factor of the full covariance of the oracle."""
    mean, covariance = oracle.source_posterior(X, noise, np.maximum(variances, 1e-200))
    factor = np.linalg.cholesky(covariance)
    white = rng.standard_normal((2, num, *factor.shape[:-1])) / np.sqrt(2)
    noise_part = np.einsum("fnij,dfnj->difn", factor, white[0] + 1j * white[1])
    return mean + noise_part


def check_moments(moments, samples, X):
    mean = moments.gains * X
    alive = moments.variance > 1e-20  # a source may be dead in a bin: exactly zero, certainly
    assert alive.mean() > 0.5
    np.testing.assert_allclose(samples[:, ~alive], 0.0, atol=1e-9)
    deviation = np.abs(samples - mean) ** 2
    for values, expected in ((samples.real, mean.real), (samples.imag, mean.imag), (deviation, moments.variance)):
        assert_standard(zscores(values[:, alive], expected[alive]))


def test_total_variance_against_monte_carlo(cases):
    """Draw a combination, then sources given it: mean, and variance = within + between, of the mixture of Gaussians."""
    power, X, fits = cases
    fit = fits["marginal"]
    rng = np.random.default_rng(3)
    share = np.exp(fit.posterior.log_order[0])
    counts = rng.multinomial(20000, share)
    parts = [
        gaussian_draws(rng, X, estimates.combination_variances(fit, i) * fit.scale**2, NOISE * fit.scale**2, count)
        for i, count in enumerate(counts)
    ]
    moments = estimates.moments(power, fit)
    assert moments.between.max() > 0.01 * moments.within.max()
    check_moments(moments, np.concatenate(parts), X)


def test_average_with_weights_per_frame(cases):
    """The same law under fusion weights that change with time, against its definition."""
    power, X, fits = cases
    fit = fits["marginal"]
    weights = np.random.default_rng(4).dirichlet([1.0, 1.0], FRAMES).T
    moments = estimates.average(power, [(fit, 0), (fit, 1)], weights)
    second, mean = 0.0, 0.0
    for i, w in enumerate(weights):
        variances = estimates.combination_variances(fit, i) * fit.scale**2
        mu, covariance = oracle.source_posterior(X, NOISE * fit.scale**2, np.maximum(variances, 1e-200))
        mean = mean + w * mu
        second = second + w * (np.abs(mu) ** 2 + np.moveaxis(np.einsum("fnjj->fnj", covariance), -1, 0))
    np.testing.assert_allclose(moments.gains * X, mean, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(moments.variance, second - np.abs(mean) ** 2, rtol=1e-9, atol=1e-13)
    # Constant weights are the special case of equal columns; all weight on one order leaves nothing between.
    constant = estimates.average(power, [(fit, 0), (fit, 1)], np.array([0.3, 0.7]))
    repeated = estimates.average(power, [(fit, 0), (fit, 1)], np.tile([[0.3], [0.7]], FRAMES))
    np.testing.assert_array_equal(constant.variance, repeated.variance)
    alone = estimates.average(power, [(fit, 0), (fit, 1)], np.array([0.0, 1.0]))
    np.testing.assert_array_equal(alone.between, 0.0)
    np.testing.assert_array_equal(alone.gains, estimates.combination_gains(fit, 1))


def test_explicit_moments_are_those_of_one_gaussian(cases):
    power, X, fits = cases
    fit = fits["explicit"]
    unit = fit.scale**2
    mean, covariance = oracle.source_posterior(X, NOISE * unit, fit.posterior.source_variance * unit)
    moments = estimates.moments(power, fit)
    np.testing.assert_allclose(moments.gains * X, mean, rtol=1e-10)
    np.testing.assert_allclose(moments.variance, np.moveaxis(np.einsum("fnjj->fnj", covariance), -1, 0), rtol=1e-9)
    np.testing.assert_array_equal(moments.between, 0.0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_estimates_and_noise_sum_to_the_mixture(cases, variant):
    power, _, fits = cases
    gains = estimates.moments(power, fits[variant]).gains
    rest = 1 - gains.sum(0)
    assert np.all(rest >= 0) and np.all(gains >= 0)
    if variant == "explicit":
        expected = wiener.noise_gain(fits[variant].posterior.source_variance, NOISE)
    else:
        share = np.exp(fits[variant].posterior.log_order[0])
        each = [wiener.noise_gain(estimates.combination_variances(fits[variant], i), NOISE) for i in range(2)]
        expected = share @ np.reshape(each, (2, -1))
    np.testing.assert_allclose(rest.ravel(), np.ravel(expected), atol=1e-12)


# Draws ----------------------------------------------------------------------------------------------------------------


def check_factor(samples, factor, prior):
    """Draws of every entry follow its GIG distribution: their probability transform has uniform mean and variance."""
    t, weights, _ = oracle.log_grid(float(prior.shape.nu), factor.rho, factor.tau)
    u = np.empty_like(samples)
    for index in np.ndindex(factor.mean.shape):
        cdf = np.cumsum(weights[index]) - 0.5 * weights[index]
        u[(slice(None), *index)] = np.interp(np.log(samples[(slice(None), *index)]), t[index], cdf)
    num = len(samples)
    for z in ((u.mean(0) - 0.5) * np.sqrt(12 * num), (((u - 0.5) ** 2).mean(0) - 1 / 12) * np.sqrt(180 * num)):
        assert np.max(np.abs(z)) < 4.5


@pytest.mark.parametrize("variant", VARIANTS)
def test_drawn_orders_and_factors(cases, draws, variant):
    """Frequencies of the orders, distributions of dictionaries and activations, in the unit of the mixture."""
    fit, sample = cases[2][variant], draws[variant]
    share = np.asarray(fit.posterior.order_probabilities(0))
    counts = np.bincount(sample.orders[:, 0], minlength=2)
    error = np.sqrt(share[0] * share[1] * len(sample.orders))
    assert abs(counts[0] - len(sample.orders) * share[0]) < 4 * error
    for j, row in enumerate(ORDERS):
        for m, order in enumerate(row):
            picked = np.flatnonzero(sample.orders[:, j] == m)
            component = fit.posterior.components[j][m]
            hs = np.stack([sample.activations[i][j] for i in picked])
            ws = np.stack([sample.dictionaries[i][j] for i in picked])
            assert ws.shape[1:] == (FREQ, order) and hs.shape[1:] == (order, FRAMES)
            mean = component.dictionary.mean * fit.scale**2
            if component.dictionary.learned:
                check_factor(ws / fit.scale**2, component.dictionary, fit.prior.dictionaries[j][m])
            else:
                np.testing.assert_allclose(ws, np.broadcast_to(mean, ws.shape), rtol=1e-12)
            check_factor(hs, component.activations, fit.prior.activations[j][m])


def test_draws_of_the_explicit_variant_reproduce_its_moments(cases, draws):
    power, X, fits = cases
    check_moments(estimates.moments(power, fits["explicit"]), draws["explicit"].sources, X)


def test_draws_of_the_marginal_variant_follow_their_own_factors(cases, draws):
    """Sources are drawn from p(S | X, W, H): standardised with the drawn W H they have mean 0, variance 1."""
    _, X, fits = cases
    unit = fits["marginal"].scale ** 2
    sample = draws["marginal"]
    variances = np.stack(
        [
            [w @ h for w, h in zip(ws, hs, strict=True)]
            for ws, hs in zip(sample.dictionaries, sample.activations, strict=True)
        ]
    )
    mean = wiener.gains(variances, NOISE * unit) * X
    spread = wiener.posterior_variance(variances, NOISE * unit)
    z = (sample.sources - mean) / np.sqrt(spread)
    num = z.size
    assert abs(np.mean(z.real)) < 4 / np.sqrt(2 * num) and abs(np.mean(z.imag)) < 4 / np.sqrt(2 * num)
    assert abs(np.mean(np.abs(z) ** 2) - 1) < 4 / np.sqrt(num)


@pytest.mark.parametrize("variant", VARIANTS)
def test_draws_and_noise_sum_to_the_mixture(cases, draws, variant):
    """X minus the sum of the drawn sources is the noise given X: CN(gain X, sigma2 sum_j C_j / den)."""
    _, X, fits = cases
    fit, sample = fits[variant], draws[variant]
    noise = NOISE * fit.scale**2
    if variant == "explicit":
        total = np.broadcast_to(fit.posterior.source_variance.sum(0) * fit.scale**2, sample.sources[:, 0].shape)
    else:
        total = np.stack([sum(w @ h for w, h in zip(*pair, strict=True)) for pair in zip(*sample[1:3], strict=True)])
    error = X - sample.sources.sum(1) - X * noise / (noise + total)
    z = np.abs(error) ** 2 / (noise * total / (noise + total))
    assert abs(z.mean() - 1) < 4 / np.sqrt(z.size)


def test_drawn_waveforms(cases, draws):
    transform = STFT(window=8, hop=4)
    length = 30
    sources = np.random.default_rng(0).standard_normal((2, 3, length))
    spectra = np.asarray(transform.analysis(sources))
    made = draws["explicit"]._replace(sources=spectra).waveforms(transform, length)
    np.testing.assert_allclose(made, sources, atol=1e-12)


def test_replicates_of_the_mixture(cases, draws):
    """Predictive data of a fit have the size of its data, in all and in most frames."""
    power, _, fits = cases
    fit, sample = fits["marginal"], draws["marginal"]
    noise = float(fit.prior.noise) * fit.scale**2
    replicas = model.posterior_predictive(jax.random.key(3), sample.dictionaries, sample.activations, noise)
    assert replicas.shape == (600, FREQ, FRAMES)
    predicted = np.mean(np.abs(replicas) ** 2, (0, 1))
    # Measured: 1.16 in all and 1.3 in the median frame; quiet frames are predicted too loud by a sparse prior.
    assert 0.9 < predicted.mean() / power.mean() < 1.5
    assert 0.8 < np.median(predicted / power.mean(0)) < 1.8


def test_draw_is_reproducible_and_checks_its_input(cases):
    _, X, fits = cases
    fit = fits["marginal"]
    one, same, other = (estimates.draw(jax.random.key(k), X, fit, 2) for k in (5, 5, 6))
    np.testing.assert_array_equal(one.sources, same.sources)
    assert not np.any(one.sources == other.sources)
    assert one.sources.dtype == np.complex128 and one.dictionaries[0][0].dtype == np.float64
    with pytest.raises(ValueError, match="at least one draw"):
        estimates.draw(jax.random.key(0), X, fit, 0)
    with pytest.raises(ValueError, match=r"\(5, 12\)"):
        estimates.draw(jax.random.key(0), X[:, 1:], fit, 1)


def test_terms_add_up_to_the_scores(cases):
    """Over any bands, whose columns sum to one, and in the unit of the mixture."""
    _, X, fits = cases
    fit, power = fits["marginal"], np.abs(X) ** 2
    bands = np.random.default_rng(0).dirichlet(np.ones(3), X.shape[0]).T
    for groups in (None, bands):
        terms = inference.energy_terms(power, fit, groups)
        total = terms.data.sum(1) + terms.activations.sum(0)
        np.testing.assert_allclose(total, fit.scores[0].frames, rtol=1e-10, atol=1e-9)
        np.testing.assert_allclose(terms.dictionary.sum(0), fit.scores[0].dictionary, rtol=1e-12, atol=1e-12)
    # Every frequency by itself: the likelihood of one bin under the expected variances.
    c, f, n = 1, 2, 3
    chosen = [fit.posterior.components[j][m] for j, m in enumerate(fit.posterior.combinations[c])]
    sums = [
        sum(getattr(p.dictionary, kind)[f] @ getattr(p.activations, kind)[:, n] for p in chosen) + fit.prior.noise
        for kind in ("mean", "harmonic")
    ]
    single = inference.energy_terms(power, fit, np.eye(X.shape[0])).data[c, f, n]
    unit = fit.scale**2
    np.testing.assert_allclose(single, -np.log(np.pi * unit * sums[0]) - power[f, n] / unit / sums[1], rtol=1e-9)


def test_terms_name_what_they_cannot_use(cases):
    _, X, fits = cases
    power = np.abs(X) ** 2
    with pytest.raises(ValueError, match="explicit"):
        inference.energy_terms(power, fits["explicit"])
    with pytest.raises(ValueError, match=r"bands has shape \(2, 3\)"):
        inference.energy_terms(power, fits["marginal"], np.ones((2, 3)))


# Coverage -------------------------------------------------------------------------------------------------------------

NINETY = 1.6448536269514722


def covered(truth, mean, variance):
    """Share of real and imaginary parts inside mean +- 1.645 standard deviations (each has half the variance)."""
    width = NINETY * np.sqrt(variance / 2)
    error = truth - mean
    return 0.5 * float(np.mean(np.abs(error.real) <= width) + np.mean(np.abs(error.imag) <= width))


def coverage(b, variant, seeds=range(8), num=80):
    """Coverage of nominal 90 % intervals of the sources on data drawn from the model with known dictionaries.

    One row per recording: the exact posterior given the true variances; `moments`; quantiles of `draw`; and of the
    activations, quantiles of `draw`.
    """
    rows = []
    for seed in seeds:
        truth, given = problems.synthetic(seed, b)
        given = [given[0][1:], given[1]]
        power, fit = problems.fit_synthetic(truth, given, b, variant)
        variances = np.stack([w @ h for w, h in zip(truth.dictionaries, truth.activations, strict=True)])
        ideal = wiener.gains(variances, 1e-2) * truth.X, wiener.posterior_variance(variances, 1e-2)
        moments = estimates.moments(power, fit)
        draws = estimates.draw(jax.random.key(seed), truth.X, fit, num)

        def inside(value, samples):
            low, high = np.quantile(samples, [0.05, 0.95], axis=0)
            return float(np.mean((value >= low) & (value <= high)))

        # Drawn dictionaries carry the unit of the mixture's power, so the activations are those of the normalised one.
        activations = np.stack([h[0] for h in draws.activations]) * fit.scale**2
        rows.append(
            (
                covered(truth.sources, *ideal),
                covered(truth.sources, moments.gains * truth.X, moments.variance),
                inside(truth.sources.real, draws.sources.real),
                inside(truth.activations[0], activations),
            )
        )
    return np.array(rows)


# Measured with this experiment (standard errors about 0.01), nominal 0.90; quantiles of 80 draws would cover 0.88.
#     b    variant   moments  draws  activations     given the true variances
#     0.2  marginal   0.60    0.75     0.50                 0.90
#     0.2  explicit   0.85    0.82     0.37                 0.90
#     1.0  marginal   0.86    0.86     0.53                 0.90
#     1.0  explicit   0.88    0.85     0.41                 0.90
# The shortfall is that of a factorised posterior. Even with one component and F large, q(H) has half the variance of
# the exact posterior (see test_model.py), which alone leaves 0.75; and `moments` takes the factors for certain, at
# variances C that vanish where all components of a source have died, which shapes below 1/2 make frequent.
FLOORS = {
    (0.2, "marginal"): (0.55, 0.70, 0.40),
    (0.2, "explicit"): (0.81, 0.78, 0.28),
    (1.0, "marginal"): (0.82, 0.82, 0.44),
    (1.0, "explicit"): (0.84, 0.81, 0.32),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("b", [0.2, 1.0])
def test_coverage_of_ninety_percent_intervals(b, variant):
    """On data drawn from the model: exact where it must be; elsewhere no worse than measured, and never too wide."""
    table = coverage(b, variant)
    # Intervals cluster by recording, hence errors between recordings.
    mean, error = table.mean(0), table.std(0, ddof=1) / np.sqrt(len(table))
    # Given the true variances the intervals are exact: this checks the experiment, and the Wiener filter's variance.
    assert abs(mean[0] - 0.9) < 4 * error[0] + 0.003
    assert np.all(mean[1:] > FLOORS[b, variant])
    assert np.all(mean[1:] < 0.92)

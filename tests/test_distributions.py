"""The NumPyro distribution: what NumPyro asks of its own distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from jax import lax
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS

from bayesfuse.distributions import GeneralizedInverseGaussian
from bayesfuse.gig import Gig

# concentration, rate, inverse_rate
PARAMETERS = [(0.2, 1.0, 0.3), (-1.7, 2.0, 3.0), (3.0, 0.5, 1e-3), (0.5, 4.0, 25.0)]


def scipy_of(concentration, rate, inverse_rate):
    return scipy.stats.geninvgauss(concentration, 2 * np.sqrt(rate * inverse_rate), scale=np.sqrt(inverse_rate / rate))


def columns(parameters=PARAMETERS):
    return tuple(jnp.asarray(column) for column in zip(*parameters, strict=True))


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_log_density_and_moments_against_scipy(x64, parameters):
    ours, theirs = GeneralizedInverseGaussian(*parameters), scipy_of(*parameters)
    y = theirs.ppf(np.array([0.001, 0.1, 0.5, 0.9, 0.999]))
    np.testing.assert_allclose(ours.log_prob(y), theirs.logpdf(y), rtol=1e-10, atol=1e-10)
    mean, variance = theirs.stats("mv")
    assert float(ours.mean) == pytest.approx(float(mean), rel=1e-10)
    # SciPy's variance is a difference of moments
    assert float(ours.variance) == pytest.approx(float(variance), rel=1e-7)
    assert float(ours.entropy()) == pytest.approx(float(theirs.entropy()), rel=1e-6)


def test_gamma_and_inverse_gaussian_are_members(x64):
    y = jnp.asarray([0.01, 0.5, 4.0])
    gamma = GeneralizedInverseGaussian(1.4, 3.0, 0.0)
    np.testing.assert_allclose(gamma.log_prob(y), dist.Gamma(1.4, 3.0).log_prob(y), rtol=1e-12)
    mu, shape = 1.7, 2.2  # inverse Gaussian: rate shape/(2 mu^2), inverse rate shape/2
    inverse = GeneralizedInverseGaussian(-0.5, shape / (2 * mu**2), shape / 2)
    np.testing.assert_allclose(inverse.log_prob(y), scipy.stats.invgauss(mu / shape, scale=shape).logpdf(y), rtol=1e-12)


def test_sampler(dtype):
    with jax.enable_x64(dtype == np.float64):
        parameters = tuple(p.astype(dtype) for p in columns())
        d = GeneralizedInverseGaussian(*parameters)
        draws = np.asarray(d.sample(jax.random.key(3), (10000,)))
        mean, variance = np.asarray(d.mean), np.asarray(d.variance)
    assert draws.shape == (10000, 4) and draws.dtype == dtype
    assert np.all(np.abs(draws.mean(0) - mean) < 4 * np.sqrt(variance / 10000))
    for k, parameters in enumerate(PARAMETERS):
        # SciPy integrates its cdf for every entry: a thousand are enough
        assert scipy.stats.kstest(draws[:1000, k].astype(float), scipy_of(*parameters).cdf).pvalue > 1e-3


def test_shapes_broadcasting_and_expand():
    d = GeneralizedInverseGaussian(0.3, jnp.ones((3, 1)), jnp.asarray([0.1, 1.0]))
    assert d.batch_shape == (3, 2) and d.event_shape == ()

    def shape(function):
        return jax.eval_shape(function).shape

    assert shape(lambda: d.sample(jax.random.key(0), (5,))) == (5, 3, 2)
    assert shape(lambda: d.log_prob(jnp.ones((5, 1, 1)))) == (5, 3, 2)
    assert shape(lambda: d.mean) == shape(lambda: d.variance) == shape(d.entropy) == (3, 2)
    row = GeneralizedInverseGaussian(0.3).expand((4,)).to_event(1)
    assert shape(lambda: row.log_prob(jnp.ones(4))) == ()
    wide = GeneralizedInverseGaussian(0.3, 1.0, 0.5).expand((4, 2))
    assert wide.batch_shape == (4, 2)
    assert len(np.unique(wide.sample(jax.random.key(0)))) == 8  # independent draws, not one repeated


def test_eager_jit_vmap_and_scan_agree():
    parameters = columns()
    d = GeneralizedInverseGaussian(*parameters)
    y = jnp.asarray([0.3, 1.0, 2.0, 5.0])
    eager = d.log_prob(y)
    compiled = jax.jit(lambda d, y: d.log_prob(y))  # the distribution itself is an argument
    np.testing.assert_allclose(compiled(d, y), eager, rtol=1e-5)
    mapped = jax.vmap(lambda *p: GeneralizedInverseGaussian(*p[:3]).log_prob(p[3]))(*parameters, y)
    np.testing.assert_allclose(mapped, eager, rtol=1e-5)
    over_distributions = jax.vmap(lambda d, y: d.log_prob(y))(d, y)
    np.testing.assert_allclose(over_distributions, eager, rtol=1e-5)
    _, scanned = lax.scan(lambda carry, item: (carry, item[0].log_prob(item[1])), 0, (d, y))
    np.testing.assert_allclose(scanned, eager, rtol=1e-5)
    key = jax.random.key(0)
    np.testing.assert_allclose(jax.jit(lambda d: d.sample(key, (3,)))(d), d.sample(key, (3,)), rtol=1e-5)


def test_survives_as_a_pytree():
    d = GeneralizedInverseGaussian(*columns(), validate_args=True)
    leaves, structure = jax.tree.flatten(d)
    assert len(leaves) == 3
    assert set(GeneralizedInverseGaussian.gather_pytree_data_fields()) == {
        "concentration",
        "rate",
        "inverse_rate",
    }
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is GeneralizedInverseGaussian and again.batch_shape == d.batch_shape
    np.testing.assert_array_equal(again.rate, d.rate)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, d)
    np.testing.assert_allclose(doubled.inverse_rate, 2 * d.inverse_rate)


def test_gradient_of_the_log_density(x64):
    log_prob = jax.jit(lambda p, y: GeneralizedInverseGaussian(p[:, 0], p[:, 1], p[:, 2]).log_prob(y))
    at = jnp.asarray(PARAMETERS)
    for y in (0.2, 3.0):
        gradient = jax.jit(jax.grad(lambda p, y: log_prob(p, y).sum()))(at, y)
        for k in range(3):
            h = 1e-5 * jnp.abs(at[:, k])
            difference = (log_prob(at.at[:, k].add(h), y) - log_prob(at.at[:, k].add(-h), y)) / (2 * h)
            # h^2 truncation, 1e-14/h rounding
            np.testing.assert_allclose(gradient[:, k], difference, rtol=1e-6, atol=1e-7)


def test_constraints_and_validation():
    assert GeneralizedInverseGaussian.support is constraints.positive
    for bad in ({"rate": -1.0}, {"rate": 0.0}, {"inverse_rate": -0.1}, {"concentration": np.nan}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            GeneralizedInverseGaussian(
                **{"concentration": 0.3, "rate": 1.0, "inverse_rate": 1.0, **bad}, validate_args=True
            )
    d = GeneralizedInverseGaussian(0.3, 1.0, 1.0, validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        d.log_prob(-1.0)
    assert np.all(d.support(d.sample(jax.random.key(0), (100,))))
    assert isinstance(d.gig, Gig)


def test_latent_site_under_nuts():
    """The mean of a latent site, alone and with an observation that keeps it in the family."""
    # y ~ GIG(0.7, 1, 2); x | y ~ Exponential(y) with x = 1.5 gives GIG(1.7, 2.5, 2).
    exact = [GeneralizedInverseGaussian(0.7, 1.0, 2.0), GeneralizedInverseGaussian(1.7, 2.5, 2.0)]

    def model():
        numpyro.sample("alone", GeneralizedInverseGaussian(0.7, 1.0, 2.0))
        y = numpyro.sample("observed", GeneralizedInverseGaussian(0.7, 1.0, 2.0))
        numpyro.sample("x", dist.Exponential(y), obs=1.5)

    mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=1500, progress_bar=False)
    mcmc.run(jax.random.key(5))
    for name, d in zip(("alone", "observed"), exact, strict=True):
        draws = np.asarray(mcmc.get_samples()[name])
        effective = numpyro.diagnostics.effective_sample_size(draws[None])
        assert effective > 200
        error = np.sqrt(float(d.variance) / effective)
        assert abs(draws.mean() - float(d.mean)) < 4 * error, name

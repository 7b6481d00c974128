"""Fits for ArviZ: draws and log likelihoods against independent sampling and SciPy, comparison against our stacking."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from oracles import problems
from oracles.problems import FRAMES, FREQ

from bayesfuse import estimates, inference_data
from bayesfuse.inference import Fit, energy_terms
from bayesfuse.inference_data import compare, frame_units, loo, to_inference_data
from bayesfuse.results import Result
from bayesfuse.stacking import pseudo_bma_weights, stacking_weights
from bayesfuse.transforms import STFT
from bayesfuse.vbnmf import Component, Factor, FreeEnergy, Posterior, Scores, make_prior

NOISE = 0.05
LENGTH = 44
TRANSFORM = STFT(window=8, hop=4)
DRAWS = 600


def group(data, name):
    node = data[name]
    return node.to_dataset() if hasattr(node, "to_dataset") else node


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    power = problems.recording(11)
    return np.sqrt(power) * np.exp(2j * np.pi * rng.random(power.shape))


def make_fit(X, variant="marginal", *, noise=NOISE, dictionaries=None, scale=1.0):
    """A posterior around least-squares activations of two candidate dictionaries and a background: no compilation."""
    rng = np.random.default_rng(4)
    power = np.abs(X / scale) ** 2
    background = rng.gamma(0.5, 1.0, (FREQ, 2)) + 0.1
    candidates = dictionaries or [rng.gamma(0.5, 1.0, (FREQ, k)) + 0.05 for k in (1, 3)]
    with jax.enable_x64(True):
        prior = make_prior([[1, 3], [2]], noise=noise, dtype=np.float64)

        def component(W, H):
            factor = problems.gig_factor(prior.activations[0][0], 3.0 / H, 3.0 * H)
            return Component(Factor(jnp.asarray(W), jnp.asarray(W)), factor)

        activations = []
        for W in candidates:
            both = np.concatenate([W, background], axis=1)
            activations.append(np.stack([scipy.optimize.nnls(both, frame)[0] for frame in power.T], axis=1) + 0.02)
        first = [component(W, H[: W.shape[1]]) for W, H in zip(candidates, activations, strict=True)]
        components = (tuple(first), (component(background, activations[1][3:]),))
        if variant == "marginal":
            q = Posterior(components, (jnp.log(jnp.array([0.3, 0.7])),), None, "marginal")
        else:
            variance = jnp.asarray(rng.gamma(1.0, 1.0, (2, *X.shape)) + 0.01)
            q = Posterior(components, (jnp.log(jnp.array([0.3, 0.7])), jnp.zeros(1)), variance, "explicit")
    q, prior = jax.tree.map(np.asarray, (q, prior))
    energy = FreeEnergy(np.full(FRAMES, -7.0), np.zeros(()), np.zeros(()))
    scores = (Scores(np.arange(2.0 * FRAMES).reshape(2, FRAMES), np.zeros(2)),) if variant == "marginal" else ()
    return Fit(energy, scores, np.array([-9.0, -7.0]), (1, 2), q, prior, scale)


@pytest.fixture(scope="module")
def fits(X):
    return {variant: make_fit(X, variant, scale=1.5) for variant in ("marginal", "explicit")}


@pytest.fixture(scope="module")
def data(X, fits):
    keywords = {"draws": DRAWS, "transform": TRANSFORM, "length": LENGTH, "rate": 8}
    return {v: to_inference_data(jax.random.key(1), X, f, **keywords) for v, f in fits.items()}


def raw(node):
    """log p(x_n | W, H) in the unit of the mixture [draw, frame]."""
    unit = group(node, "observed_data")["unit"].values
    return group(node, "log_likelihood")["mixture"].values[0] - 2 * FREQ * np.log(unit)


def gig_draws(rng, factor, shape, num):
    """SciPy's sampler of the generalised inverse Gaussian, entry by entry."""
    rho, tau = np.asarray(factor.rho, np.float64), np.asarray(factor.tau, np.float64)
    found = np.empty((num, *rho.shape))
    for index in np.ndindex(rho.shape):
        r, t = rho[index], tau[index]
        z = 2 * np.sqrt(r * t)
        if z < 1e-8:  # a component that died: Gamma(shape, rate)
            found[(slice(None), *index)] = rng.gamma(shape, 1 / r, num)
        else:
            found[(slice(None), *index)] = scipy.stats.geninvgauss(shape, z, scale=np.sqrt(t / r)).rvs(
                num, random_state=rng
            )
    return found


# --------------------------------------------------------------------------------------------------- log likelihood


def test_log_likelihood_is_a_product_of_normal_densities(X):
    """Real and imaginary part are normal, each with half of the variance."""
    rng = np.random.default_rng(5)
    ws = [[rng.gamma(1.0, 1.0, (FREQ, k)) for k in (2, 3)] for _ in range(4)]
    hs = [[rng.gamma(1.0, 1.0, (k, FRAMES)) for k in (2, 3)] for _ in range(4)]
    draws = estimates.Draws(np.zeros((4, 2), int), ws, hs, np.zeros((4, 2, FREQ, FRAMES), complex))
    found = estimates.log_likelihood(X, draws, 0.3)
    for row, w, h in zip(found, ws, hs, strict=True):
        spread = np.sqrt((0.3 + w[0] @ h[0] + w[1] @ h[1]) / 2)
        expected = scipy.stats.norm.logpdf(X.real, scale=spread) + scipy.stats.norm.logpdf(X.imag, scale=spread)
        np.testing.assert_allclose(row, expected.sum(0), rtol=1e-12)


@pytest.mark.parametrize("variant", ["marginal", "explicit"])
def test_draws_are_of_the_posterior(X, fits, data, variant):
    """The mean of log p(x_n | W, H) over q, against draws by SciPy from the parameters of the factors."""
    fit = fits[variant]
    rng = np.random.default_rng(2)
    num = 400
    means, errors = [], []
    share = np.asarray(fit.posterior.combination_probabilities())
    for choice in fit.posterior.combinations:
        totals = NOISE
        for j, m in enumerate(choice):
            c = fit.posterior.components[j][m]
            w = c.dictionary.mean
            h = gig_draws(rng, c.activations, float(fit.prior.activations[j][m].shape.nu), num)
            totals = totals + w @ h
        variance = totals * fit.scale**2
        logs = -(np.log(np.pi * variance) + np.abs(X) ** 2 / variance).sum(1)
        means.append(logs.mean(0))
        errors.append(logs.var(0) / num)
    index = group(data[variant], "posterior")["order_index"].values[0]
    found = raw(data[variant])
    for order in range(len(share)):
        mine = found[index == order]
        error = np.sqrt(mine.var(0) / len(mine) + errors[order])
        z = (mine.mean(0) - means[order]) / error
        assert np.abs(z).max() < 5.0
    counts = np.bincount(index, minlength=len(share))
    assert np.abs(counts - DRAWS * share).max() < 5 * np.sqrt(DRAWS * share[0] * share[1])


def test_log_likelihood_is_no_free_energy(X, fits, data):
    """The data term of the bound lies below E_q[log p(x | W, H)], the free energy below that by the divergences."""
    fit = fits["marginal"]
    terms = energy_terms(np.abs(X) ** 2, fit)
    index = group(data["marginal"], "posterior")["order_index"].values[0]
    for order in range(2):
        mine = raw(data["marginal"])[index == order]
        error = mine.std(0) / np.sqrt(len(mine))
        bound = terms.data[order].sum(0)
        assert (mine.mean(0) > bound - 5 * error).all()
        assert (mine.mean(0) - 5 * error > bound + terms.activations[:, order].sum(0)).all()
    energy = group(data["marginal"], "fusion")
    np.testing.assert_array_equal(energy["free_energy_frames"], fit.scores[0].frames)
    np.testing.assert_array_equal(energy["free_energy"], fit.scores[0].frames.sum(1))


def test_units_are_of_the_mixture_alone(X, fits):
    """Multiplying the mixture by a constant multiplies the units, and changes no log likelihood in them."""
    factor = 1e-4
    fit = make_fit(factor * X, scale=1.5 * factor)
    first = to_inference_data(jax.random.key(3), X, fits["marginal"], draws=5)
    second = to_inference_data(jax.random.key(3), factor * X, fit, draws=5)
    values = [group(d, "log_likelihood")["mixture"].values for d in (first, second)]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-6, atol=1e-6)
    units = [group(d, "observed_data")["unit"].values for d in (first, second)]
    np.testing.assert_allclose(units[1], factor * units[0], rtol=1e-12)
    assert np.abs(values[0]).max() < 30 < 60 < np.abs(raw(second)).max()


def test_units_make_the_divergence_of_it(X):
    """log p of a frame in its unit is F minus the Itakura-Saito divergence of its powers from the variances."""
    rng = np.random.default_rng(6)
    loud = X + 0.1
    variance = rng.gamma(2.0, 1.0, X.shape)
    ratio = np.abs(loud) ** 2 / variance
    divergence = (ratio - np.log(ratio) - 1).sum(0)
    density = -(np.log(np.pi * variance) + ratio).sum(0)
    np.testing.assert_allclose(density + 2 * FREQ * np.log(frame_units(loud)), FREQ - divergence, rtol=1e-10)
    silence = frame_units(np.zeros((4, 12), complex))
    assert np.isfinite(silence).all() and (silence > 0).all()


# --------------------------------------------------------------------------------------------------------- posterior


def test_sources_have_the_posterior_mean(X, fits, data):
    """That of the explicit variant is a Gaussian whose mean is known."""
    posterior = group(data["explicit"], "posterior")
    assert posterior["sources"].dims == ("chain", "draw", "source", "sample")
    expected = TRANSFORM.synthesis(estimates.moments(np.abs(X) ** 2, fits["explicit"]).gains * X, LENGTH)
    sources = posterior["sources"].values[0]
    z = (sources.mean(0) - expected) / (sources.std(0) / np.sqrt(DRAWS))
    assert np.abs(z).max() < 5.0 and 0.5 < np.mean(z**2) < 1.6
    posterior, orders = group(data["marginal"], "posterior"), group(data["marginal"], "fusion")["components"].values
    np.testing.assert_array_equal(posterior["components"][0], orders[posterior["order_index"].values[0]])
    np.testing.assert_array_equal(orders, [[1, 2], [3, 2]])


def test_groups_and_marks(data, fits, tmp_path):
    import arviz
    import xarray as xr

    node = data["marginal"]
    old = arviz.__version__.startswith("0.")
    assert isinstance(node, arviz.InferenceData if old else xr.DataTree)
    names = node.groups() if old else list(node.children)
    assert set(names) == {"posterior", "log_likelihood", "sample_stats", "observed_data", "fusion"}
    for name in ("posterior", "log_likelihood"):
        marked = group(node, name)
        assert marked.attrs["inference"] == "vb" and "R-hat" in marked.attrs["about"]
        assert marked.sizes["chain"] == 1
    trace = group(node, "sample_stats")["objective"]
    np.testing.assert_array_equal(trace.values[0], fits["marginal"].trace)
    assert list(trace["iteration"].values) == list(fits["marginal"].trace_iterations)
    fusion = group(node, "fusion")
    np.testing.assert_allclose(fusion["bound"], fits["marginal"].free_energy.total)
    np.testing.assert_allclose(fusion["weights"], fits["marginal"].posterior.combination_probabilities())
    assert list(fusion["order"].values) == ["1", "3"]
    np.testing.assert_allclose(group(node, "observed_data")["frame"], TRANSFORM.frame_times(8, FRAMES))
    assert "free_energy" not in group(data["explicit"], "fusion")
    path = tmp_path / "fit.nc"
    node.to_netcdf(path)
    again = arviz.from_netcdf(path)
    for name in names:
        xr.testing.assert_identical(group(again, name).load().drop_attrs(), group(node, name).drop_attrs())


def test_no_r_hat_can_be_read_from_it(data):
    """ArviZ has no R-hat of a single chain of draws that it splits, or finds that of independent draws, about one."""
    import arviz

    node = data["marginal"]
    with np.errstate(all="ignore"):
        value = np.asarray(arviz.rhat(group(node, "posterior")[["order_index"]])["order_index"])
    assert np.isnan(value) or abs(value - 1.0) < 0.05


def test_several_fits(X, fits):
    """Fits with weights of one's own: the orders of all stand one after the other."""
    fit = fits["marginal"]
    node = to_inference_data(jax.random.key(0), X, [fit, fit], weights=np.array([0.25, 0.75]), draws=400, labels="abcd")
    shares = group(node, "fusion")["weights"].values
    within = np.exp(fit.posterior.log_order[0])
    np.testing.assert_allclose(shares, np.concatenate([0.25 * within, 0.75 * within]), rtol=1e-12)
    counts = np.bincount(group(node, "posterior")["order_index"].values[0], minlength=4) / 400
    assert np.abs(counts - shares).max() < 5 * np.sqrt(0.25 / 400)
    np.testing.assert_array_equal(group(node, "sample_stats")["objective"], [fit.trace, fit.trace])
    assert list(group(node, "fusion")["order"].values) == list("abcd")
    assert list(group(node, "fusion")["fit"].values) == ["fit 0", "fit 1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws=0"),
        ({"transform": TRANSFORM}, "length=None"),
        ({"weights": np.array([0.5, 0.5])}, "for 1 fits"),
        ({"weights": np.array([0.5])}, "one posterior probability per fit"),
        ({"labels": ["one"]}, "expected 2 different"),
        ({"source_names": ["a", "a"]}, "expected 2 different"),
    ],
)
def test_errors(X, fits, options, message):
    with pytest.raises(ValueError, match=message):
        to_inference_data(jax.random.key(0), X, fits["marginal"], **options)


# -------------------------------------------------------------------------------------------------------- comparison


@pytest.fixture(scope="module")
def models(X, data):
    """A model that fits, one held at dictionaries of another recording, and one without components for the rest."""
    rng = np.random.default_rng(1)
    other = [rng.gamma(0.3, 1.0, (FREQ, k)) + 1e-3 for k in (1, 3)]
    found = {"good": data["marginal"]}
    for label, given, noise in (("other", other, 0.05), ("noisy", None, 0.7)):
        fit = make_fit(X, dictionaries=given, noise=noise)
        found[label] = to_inference_data(jax.random.key(7), X, fit, draws=DRAWS)
    return found


def test_compare_against_our_stacking(models):
    table = compare(models)
    pointwise = np.stack([loo(models[label]).pointwise for label in table.index])
    expected = stacking_weights(pointwise)
    np.testing.assert_allclose(table["weight"].astype(float), expected, atol=2e-3)
    column = "elpd_loo" if "elpd_loo" in table else "elpd"
    np.testing.assert_allclose(table[column].astype(float), pointwise.sum(1), rtol=1e-9)
    assert list(table[column]) == sorted(table[column], reverse=True)
    for label, row in table.iterrows():
        one = loo(models[label])
        assert row["pareto_k_max"] == one.pareto_k.max() and row["good_k"] == one.good_k
        assert row["pareto_k_bad"] == np.mean(one.pareto_k > one.good_k)
    averaged = compare(models, method="BB-pseudo-BMA")
    ours = pseudo_bma_weights(np.stack([loo(models[label]).pointwise for label in averaged.index]), draws=4000)
    np.testing.assert_allclose(averaged["weight"].astype(float), ours, atol=0.05)


def test_arviz_compares_by_itself(models):
    """Without our help: the units keep its exponentials in range."""
    import arviz

    ours = compare(models)["weight"].astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large k, and of what ArviZ 0.23 calls in pandas
        theirs = arviz.compare(models, method="stacking")["weight"].astype(float)
    np.testing.assert_allclose(theirs[ours.index], ours, atol=0.02)


def test_densities_out_of_range_are_compared_all_the_same(models):
    """Log densities of some thousand nats, which ArviZ's own stacking turns into equal weights without a word."""
    expected = compare(models)["weight"].astype(float)
    far = {}
    for label, node in models.items():
        copied = node.copy()
        values = group(copied, "log_likelihood")["mixture"] - 4000.0
        far[label] = _replace(copied, values)
    np.testing.assert_allclose(compare(far)["weight"].astype(float)[expected.index], expected, atol=1e-6)


def _replace(node, values):
    if hasattr(node, "children"):
        node["log_likelihood"] = type(node)(values.to_dataset(name="mixture"))
    else:
        del node.log_likelihood
        node.add_groups(log_likelihood=values.to_dataset(name="mixture"))
    return node


def test_comparison_wants_two_models_of_one_mixture(models):
    with pytest.raises(ValueError, match="two or more"):
        compare({"one": models["good"]})
    short = models["good"].copy()
    short = _replace(short, group(short, "log_likelihood")["mixture"].isel(frame=slice(5)).drop_vars("frame"))
    with pytest.raises(ValueError, match="frames"):
        compare({"one": models["good"], "short": short})


def test_results_without_fits_have_no_log_likelihood():
    assert "no log_likelihood" in (Result.to_inference_data.__doc__ or "").replace("\n", " ")
    assert "no log\nlikelihood" in (inference_data.__doc__ or "")

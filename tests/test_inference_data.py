"""Fits for ArviZ: draws and log likelihoods against independent sampling and SciPy, comparison against our stacking."""

import jax
import numpy as np
import pytest
import scipy.stats
from oracles import problems
from oracles.problems import FRAMES, FREQ

from bayesfuse import estimates, inference_data
from bayesfuse.inference import energy_terms
from bayesfuse.inference_data import compare, frame_units, loo, to_inference_data
from bayesfuse.results import Result
from bayesfuse.stacking import pseudo_bma_weights, stacking_weights
from bayesfuse.transforms import STFT

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


@pytest.fixture(scope="module")
def fits(X):
    power = np.abs(X) ** 2
    return {v: problems.fitted(power, v, prior={"beta": 30.0, "noise": NOISE}) for v in ("marginal", "explicit")}


@pytest.fixture(scope="module")
def data(X, fits):
    keywords = {"draws": DRAWS, "transform": TRANSFORM, "length": LENGTH, "rate": 8}
    return {v: to_inference_data(jax.random.key(1), X, f, **keywords) for v, f in fits.items()}


def raw(node):
    """log p(x_n | W, H) in the unit of the mixture [draw, frame]."""
    unit = group(node, "observed_data")["unit"].values
    return group(node, "log_likelihood")["mixture"].values[0] - 2 * FREQ * np.log(unit)


def gig_draws(rng, factor, shape, num):
    """SciPy's sampler of the generalised inverse Gaussian, entry by entry; the mean of a factor that is held."""
    if factor.rho is None or not factor.learned:
        return np.broadcast_to(factor.mean, (num, *factor.mean.shape))
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
            w = gig_draws(rng, c.dictionary, float(fit.prior.dictionaries[j][m].shape.nu), num)
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
    energy = group(data["marginal"], "fusion")["free_energy_frames"].values
    for order in range(2):
        mine = raw(data["marginal"])[index == order]
        error = mine.std(0) / np.sqrt(len(mine))
        bound = terms.data[order].sum(0)
        assert (mine.mean(0) > bound - 5 * error).all()
        assert (mine.mean(0) - 5 * error > energy[order]).all()
    np.testing.assert_allclose(energy, fit.scores[0].frames, rtol=1e-12)


def test_units_are_of_the_mixture_alone(X, fits):
    """Multiplying the mixture by a constant multiplies the units, and changes no log likelihood in them."""
    factor = 1e-4
    fit = problems.fitted(np.abs(factor * X) ** 2, prior={"beta": 30.0, "noise": NOISE})
    first = to_inference_data(jax.random.key(3), X, fits["marginal"], draws=5)
    second = to_inference_data(jax.random.key(3), factor * X, fit, draws=5)
    values = [group(d, "log_likelihood")["mixture"].values for d in (first, second)]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-6, atol=1e-6)
    units = [group(d, "observed_data")["unit"].values for d in (first, second)]
    np.testing.assert_allclose(units[1], factor * units[0], rtol=1e-12)
    assert np.abs(values[0]).max() < 100 < np.abs(raw(second)).max()


def test_units_of_silence():
    X = np.zeros((4, 12), complex)
    assert np.isfinite(frame_units(X)).all() and (frame_units(X) > 0).all()


# --------------------------------------------------------------------------------------------------------- posterior


def test_sources_have_the_posterior_mean(X, fits, data):
    power = np.abs(X) ** 2
    posterior = group(data["marginal"], "posterior")
    assert posterior["sources"].dims == ("chain", "draw", "source", "sample")
    expected = TRANSFORM.synthesis(estimates.moments(power, fits["marginal"]).gains * X, LENGTH)
    sources = posterior["sources"].values[0]
    z = (sources.mean(0) - expected) / (sources.std(0) / np.sqrt(DRAWS))
    assert np.abs(z).max() < 5.0 and 0.5 < np.mean(z**2) < 1.6
    # Sources and noise make up the mixture: their sum has a small variance where the noise is small.
    orders = group(data["marginal"], "fusion")["components"].values
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


def test_several_fits(X):
    """Fits of one order each with weights of one's own: the draws of each are those of its own posterior."""
    power = np.abs(X) ** 2
    fits = [problems.fitted(power, seed=s, prior={"noise": NOISE, "beta": 1.0}) for s in (0, 1)]
    node = to_inference_data(jax.random.key(0), X, fits, weights=np.array([0.25, 0.75]), draws=400, labels="abcd")
    shares = group(node, "fusion")["weights"].values
    expected = np.concatenate(
        [w * f.posterior.combination_probabilities() for w, f in zip((0.25, 0.75), fits, strict=True)]
    )
    np.testing.assert_allclose(shares, expected, rtol=1e-12)
    counts = np.bincount(group(node, "posterior")["order_index"].values[0], minlength=4) / 400
    assert np.abs(counts - shares).max() < 5 * np.sqrt(0.25 / 400)
    np.testing.assert_array_equal(group(node, "sample_stats")["objective"], [f.trace for f in fits])
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
def models(X):
    """A model that fits, one held at dictionaries of another recording, and one without components for the rest."""
    power = np.abs(X) ** 2
    rng = np.random.default_rng(1)
    other = [[rng.gamma(0.3, 1.0, (FREQ, k)) + 1e-3 for k in (1, 3)], [2]]
    found = {}
    for label, given, noise in (("good", None, 0.05), ("other", other, 0.05), ("noisy", None, 0.7)):
        fit = problems.fitted(power, given=given, prior={"noise": noise, "beta": 30.0})
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
    with pytest.warns(UserWarning, match="Pareto") if _warns(models) else _nothing():
        theirs = arviz.compare(models, method="stacking")["weight"].astype(float)
    np.testing.assert_allclose(theirs[ours.index], ours, atol=0.02)


def _warns(models):
    return any((loo(node).pareto_k > loo(node).good_k).any() for node in models.values())


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False


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
        node.log_likelihood["mixture"] = values
    return node


def test_comparison_wants_two_models_of_one_mixture(models):
    with pytest.raises(ValueError, match="two or more"):
        compare({"one": models["good"]})
    short = models["good"].copy()
    short = _replace(short, group(short, "log_likelihood")["mixture"].isel(frame=slice(5)))
    with pytest.raises(ValueError, match="frames"):
        compare({"one": models["good"], "short": short})


def test_results_without_fits_have_no_log_likelihood():
    assert "no log_likelihood" in (Result.to_inference_data.__doc__ or "").replace("\n", " ")
    assert "no log\nlikelihood" in (inference_data.__doc__ or "")

"""Itakura-Saito NMF: against loops, quadrature, automatic derivatives and scikit-learn, and its laws."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesfuse import nmf

DTYPES = [np.float32, np.float64]
F, N = 7, 9  # one shape for all properties: one compilation each


def problem(seed, orders=(2, 3), dtype=np.float64, zeros=0.0, spread=1.0):
    """Power, dictionaries and activations of `spread` decades, a share `zeros` of the power exactly zero."""
    rng = np.random.default_rng(seed)
    power = rng.exponential(size=(F, N)) * 10 ** (spread * rng.standard_normal((F, 1)))
    power[rng.random((F, N)) < zeros] = 0.0
    Ws = [10 ** (spread * rng.standard_normal((F, K))) for K in orders]
    Hs = [10 ** (spread * rng.standard_normal((K, N))) for K in orders]
    return power.astype(dtype), [W.astype(dtype) for W in Ws], [H.astype(dtype) for H in Hs]


def cost_of(power, W, H, noise):
    V = W @ H + noise
    return jnp.sum(power / V - jnp.log(power / V) - 1)


def test_divergence_is_that_of_exponential_distributions():
    """Oracle: d_IS(x | y) = KL(Exp(mean x) || Exp(mean y)), by quadrature."""
    for x, y in [(0.3, 2.0), (5.0, 0.4), (1.0, 1.0)]:

        def integrand(t, x=x, y=y):
            return np.exp(-t / x) / x * (np.log(y / x) - t / x + t / y)

        expected, _ = scipy.integrate.quad(integrand, 0, np.inf, epsabs=1e-12)
        assert nmf.itakura_saito(np.array([x]), np.array([y])) == pytest.approx(expected, abs=1e-9)


def test_divergence_of_zeros():
    power, model = np.array([0.0, 0.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.0, 2.0])
    values = [float(nmf.itakura_saito(p, m)) for p, m in zip(power[:, None], model[:, None], strict=True)]
    assert values == [0.0, np.inf, np.inf, 0.0]
    both = nmf.itakura_saito(np.stack([power, power]), np.stack([model, power]), axis=-1)
    np.testing.assert_array_equal(both, [np.inf, 0.0])


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.7])
def test_updates_against_loops(exponent):
    """Oracle: the rules of the module's head, entry by entry, with a masked frame and two learned columns."""
    power, (W, *_), (H, *_) = problem(0, (3,))
    noise = 0.2
    mask = np.arange(N) != 4
    V = [[sum(W[f, k] * H[k, n] for k in range(3)) + noise for n in range(N)] for f in range(F)]
    new_H, new_W = H.copy(), W.copy()
    for k in range(3):
        for n in range(N):
            numerator = sum(W[f, k] * power[f, n] / V[f][n] ** 2 for f in range(F))
            new_H[k, n] *= (numerator / sum(W[f, k] / V[f][n] for f in range(F))) ** exponent
    for f in range(F):
        for k in range(2):
            numerator = sum(H[k, n] * power[f, n] / V[f][n] ** 2 for n in range(N) if mask[n])
            new_W[f, k] *= (numerator / sum(H[k, n] / V[f][n] for n in range(N) if mask[n])) ** exponent
    with jax.enable_x64(True):
        args = [jnp.asarray(x) for x in (power, W, H)]
        got_H = nmf.update_activations(*args, noise=noise, exponent=exponent)
        got_W = nmf.update_dictionaries(*args, noise=noise, mask=jnp.asarray(mask), num_learned=2, exponent=exponent)
    np.testing.assert_allclose(got_H, new_H, rtol=1e-13)
    np.testing.assert_allclose(got_W, new_W, rtol=1e-13)


def test_ratio_is_one_minus_the_scaled_gradient():
    """Since dD/dh = den - num, the update is h (1 - (dD/dh) / den): it keeps the stationary points only."""
    power, (W, *_), (H, *_) = problem(1, (3,))
    with jax.enable_x64(True):
        power, W, H = jnp.asarray(power), jnp.asarray(W), jnp.asarray(H)
        grad_W, grad_H = jax.grad(cost_of, argnums=(1, 2))(power, W, H, 0.1)
        inverse = 1 / (W @ H + 0.1)
        np.testing.assert_allclose(
            nmf.update_activations(power, W, H, noise=0.1), H * (1 - grad_H / (W.T @ inverse)), rtol=1e-11
        )
        np.testing.assert_allclose(
            nmf.update_dictionaries(power, W, H, noise=0.1), W * (1 - grad_W / (inverse @ H.T)), rtol=1e-11
        )


def test_one_component_is_solved_in_one_step():
    """K = 1, no noise: the maximum-likelihood activation is mean_f P/w, whatever the start."""
    power, (W, *_), (H, *_) = problem(2, (1,))
    with jax.enable_x64(True):
        got = nmf.update_activations(jnp.asarray(power), jnp.asarray(W), jnp.asarray(H), noise=0.0)
    np.testing.assert_allclose(got, np.mean(power / W, axis=0, keepdims=True), rtol=1e-13)


def test_scikit_learn_takes_the_same_path():
    """Transposed and with exponent 1/2, scikit-learn's iterates are ours: activations, then dictionary."""
    from sklearn.decomposition import NMF

    power, (W, *_), (H, *_) = problem(3, (3,), spread=0.3)
    ours = nmf.fit(power, [W], [H], learn=[True], num_iters=30, exponent=0.5, floor=0.0)
    settings = {"solver": "mu", "beta_loss": "itakura-saito", "init": "custom", "tol": 0.0, "max_iter": 30}
    theirs = NMF(3, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it reports that 30 iterations were not convergence
        activations = theirs.fit_transform(power.T, W=H.T.copy(), H=W.T.copy())
    np.testing.assert_allclose(ours.activations[0], activations.T, rtol=1e-6)
    np.testing.assert_allclose(ours.dictionaries[0], theirs.components_.T, rtol=1e-6)
    # Its error is sqrt(2 D).
    assert ours.cost[-1] == pytest.approx(theirs.reconstruction_err_**2 / 2, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    seed=st.integers(0, 2**32 - 1),
    exponent=st.sampled_from([1.0, 0.5]),
    learn=st.sampled_from([(True, False), (False, True), (True, True), (False, False)]),
    noise=st.sampled_from([0.0, 1e-6, 1e-2]),
    zeros=st.sampled_from([0.0, 0.3, 0.9]),
    spread=st.sampled_from([0.3, 1.0, 2.0]),
)
@settings(deadline=None, max_examples=150)
def test_cost_never_rises(dtype, seed, exponent, learn, noise, zeros, spread):
    power, Ws, Hs = problem(seed, dtype=dtype, zeros=zeros, spread=spread)
    result = nmf.fit(power, Ws, Hs, learn=learn, noise=noise, num_iters=30, exponent=exponent)
    # Each new factor carries a relative error of F + N + K + 8 roundings at most, and so does the model. The
    # cost moves by num h + den h <= sum (r + 1) times that, r = P/V, and evaluating it costs 4 more roundings
    # of r + |log r| + 1 per bin. With d = r - log r - 1: r <= 2 d + 2 and |log r| <= d + 1.
    bound = 3 * result.cost[:-1] + 4 * F * N
    tolerance = (F + N + 5 + 12) * float(np.finfo(dtype).eps) * bound
    assert np.all(np.diff(result.cost) <= tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cost_is_that_of_the_returned_factors(dtype):
    power, Ws, Hs = problem(5, dtype=dtype)
    result = nmf.fit(power, Ws, Hs, learn=[True, False], noise=0.3, num_iters=13)
    assert result.cost.shape == (14,) and result.dictionaries[0].dtype == dtype
    np.testing.assert_array_equal(result.dictionaries[1], Ws[1])
    rtol = 30 * float(np.finfo(dtype).eps) * 3  # the bound of test_cost_never_rises, at costs above 4 F N
    for i, (Wj, Hj) in ((0, (Ws, Hs)), (-1, (result.dictionaries, result.activations))):
        V = sum(W.astype(float) @ H.astype(float) for W, H in zip(Wj, Hj, strict=True)) + 0.3
        expected = nmf.itakura_saito(power.astype(float), V)
        assert result.cost[i] == pytest.approx(float(expected), rel=rtol * (3 + 4 * F * N / float(expected)))
    np.testing.assert_allclose(result.variances[1], result.dictionaries[1] @ result.activations[1], rtol=1e-6)


def test_order_of_the_sources_does_not_matter():
    """Learned columns are moved to the front inside; the result must not show it."""
    power, Ws, Hs = problem(6, (2, 3, 1))
    result = nmf.fit(power, Ws, Hs, learn=[False, True, True], noise=0.1, num_iters=8)
    turned = nmf.fit(power, Ws[::-1], Hs[::-1], learn=[True, True, False], noise=0.1, num_iters=8)
    for j in range(3):
        np.testing.assert_allclose(result.dictionaries[j], turned.dictionaries[2 - j], rtol=1e-11)
        np.testing.assert_allclose(result.activations[j], turned.activations[2 - j], rtol=1e-11)


def test_padding_and_mask_are_exact():
    """fit pads 9 frames to 16; plain updates do not. Ignored frames may hold anything, NaN included."""
    power, Ws, Hs = problem(7)
    padded = nmf.fit(power, Ws, Hs, learn=[True, True], num_iters=5, floor=0.0, noise=0.05)
    with jax.enable_x64(True):
        W, H = jnp.concatenate([jnp.asarray(W) for W in Ws], 1), jnp.concatenate([jnp.asarray(H) for H in Hs])
        for _ in range(5):
            H = nmf.update_activations(jnp.asarray(power), W, H, noise=0.05)
            W = nmf.update_dictionaries(jnp.asarray(power), W, H, noise=0.05)
    np.testing.assert_allclose(np.concatenate(padded.dictionaries, axis=1), W, rtol=1e-12)
    np.testing.assert_allclose(np.concatenate(padded.activations), H, rtol=1e-12)

    mask = np.array([True] * 9 + [False] * 4)
    longer = np.concatenate([power, np.full((F, 4), np.nan)], axis=1)
    starts = [np.concatenate([H, np.zeros((H.shape[0], 4))], axis=1) for H in Hs]
    masked = nmf.fit(longer, Ws, starts, learn=[True, True], num_iters=5, floor=0.0, noise=0.05, mask=mask)
    for j in range(2):
        np.testing.assert_allclose(masked.dictionaries[j], padded.dictionaries[j], rtol=1e-12)
        np.testing.assert_allclose(masked.activations[j][:, :9], padded.activations[j], rtol=1e-12)
        np.testing.assert_array_equal(masked.activations[j][:, 9:], 0.0)
    np.testing.assert_allclose(masked.cost, padded.cost, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-8, 8), zeros=st.sampled_from([0.0, 0.3]))
@settings(deadline=None, max_examples=25)
def test_scale_of_the_recording(dtype, seed, exponent, zeros):
    """Amplitudes times c = 1e-8..1e8, default start: activations times c^2, dictionaries and cost as before.

    Scaling and dividing by the mean power perturb each datum by a few roundings. Two iterations are compared:
    over more of them the exponential divergence of nearby paths is no longer a matter of rounding.
    """
    power, Ws, _ = problem(seed, dtype=dtype, zeros=zeros, spread=0.5)
    power[0, 0] = 1.0
    c2 = 10.0 ** (2 * exponent)
    first = nmf.fit(power, Ws, learn=[True, False], noise=1e-3, num_iters=2)
    scaled = nmf.fit((c2 * power).astype(dtype), Ws, learn=[True, False], noise=1e-3 * c2, num_iters=2)
    rtol = 2e3 * float(np.finfo(dtype).eps)
    for j in range(2):
        np.testing.assert_allclose(scaled.dictionaries[j], first.dictionaries[j], rtol=rtol)
        np.testing.assert_allclose(scaled.activations[j] / dtype(c2), first.activations[j], rtol=rtol)
    np.testing.assert_allclose(scaled.cost, first.cost, rtol=rtol)


def test_activations_are_recovered():
    """Noise-free data of known dictionaries: the divergence has one zero, at the true activations."""
    rng = np.random.default_rng(11)
    Ws = [rng.exponential(size=(F, K)) for K in (2, 1)]
    Hs = [rng.exponential(size=(K, N)) + 0.5 for K in (2, 1)]
    power = Ws[0] @ Hs[0] + Ws[1] @ Hs[1]
    result = nmf.fit(power, Ws, learn=[False, False], num_iters=3000, floor=0.0)
    for got, true in zip(result.activations, Hs, strict=True):
        np.testing.assert_allclose(got, true, rtol=1e-3)
    assert result.cost[-1] < 1e-6


def test_one_is_the_fastest_exponent():
    """The reason for the default: e = 1 reaches in 20 iterations what e = 1/2 needs more than 30 for."""
    power, Ws, _ = problem(13)
    fast = nmf.fit(power, Ws, learn=[True, True], num_iters=20)
    slow = nmf.fit(power, Ws, learn=[True, True], num_iters=30, exponent=0.5)
    assert fast.cost[-1] < slow.cost[-1]


def test_new_values_do_not_retrace():
    power, Ws, Hs = problem(8, dtype=np.float32)
    nmf.fit(power, Ws, Hs, learn=[True, False], num_iters=3, noise=0.1)
    before = nmf._chunk._cache_size(), nmf._last_cost._cache_size()
    nmf.fit(2 * power[:, :8], Ws, [H[:, :8] for H in Hs], learn=[True, False], num_iters=17, noise=0.7)
    assert (nmf._chunk._cache_size(), nmf._last_cost._cache_size()) == before


@pytest.mark.parametrize("num_frames", [1, 15, 16, 17, 64, 65, 300, 1000, 37500])
def test_bucket_lengths(num_frames):
    padded = nmf.bucket_length(num_frames)
    assert num_frames <= padded and padded % 16 == 0
    assert padded - num_frames < max(16, num_frames / 4)
    assert nmf.bucket_length(padded) == padded
    assert len({nmf.bucket_length(n) for n in range(1024, 2048)}) == 5  # four, and the end of the octave


def test_silence():
    _, Ws, _ = problem(9)
    silent = nmf.fit(np.zeros((F, N)), Ws, learn=[True, False], noise=0.0, num_iters=4)
    np.testing.assert_array_equal(silent.variances, 0.0)
    np.testing.assert_array_equal(silent.cost, np.zeros(5))
    np.testing.assert_array_equal(silent.dictionaries[0], Ws[0])
    # One silent frame: its activations fall far below the others' while the cost stays finite.
    power, _, _ = problem(9)
    power[:, 3] = 0.0
    result = nmf.fit(power, Ws, learn=[True, False], num_iters=60)
    levels = result.variances.sum(axis=(0, 1))
    assert levels[3] < 1e-9 * np.delete(levels, 3).min() and np.isfinite(result.cost).all()


@pytest.mark.parametrize("jax_in", [False, True])
def test_inputs_are_only_read_and_decide_the_kind(jax_in):
    power, Ws, Hs = problem(10)
    arrays = [power, *Ws, *Hs]
    copies = [x.copy() for x in arrays]
    for x in arrays:
        x.flags.writeable = False
    with jax.enable_x64(True):
        result = nmf.fit(jnp.asarray(power) if jax_in else power, Ws, Hs, learn=[True, True], num_iters=2)
    assert isinstance(result.dictionaries[0], jax.Array) == jax_in
    assert isinstance(result.activations[1], jax.Array) == jax_in
    for x, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(x, copy)


def test_dead_components_stay_dead_and_harm_nobody():
    """A component with zero activations has no influence on its column: 0/0 must not become NaN."""
    power, Ws, Hs = problem(12)
    Hs[0][1] = 0.0
    result = nmf.fit(power, Ws, Hs, learn=[True, True], num_iters=6, noise=0.1)
    np.testing.assert_array_equal(result.activations[0][1], 0.0)
    np.testing.assert_allclose(result.dictionaries[0][:, 1], Ws[0][:, 1], rtol=1e-12)
    without = nmf.fit(power, [Ws[0][:, :1], Ws[1]], [Hs[0][:1], Hs[1]], learn=[True, True], num_iters=6, noise=0.1)
    np.testing.assert_allclose(result.activations[1], without.activations[1], rtol=1e-10)


def test_progress_bar(capsys):
    power, Ws, _ = problem(10)
    nmf.fit(power, Ws, learn=[True, True], num_iters=12, progress=True)
    assert "NMF" in capsys.readouterr().err
    nmf.fit(power, Ws, learn=[True, True], num_iters=12)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantisation_finds_the_shapes(dtype):
    """Frames are four shapes at any level with 1 % of perturbation: the columns are those shapes, to 1 %."""
    rng = np.random.default_rng(0)
    shapes = rng.exponential(size=(F, 4)) + 0.05
    shapes /= shapes.sum(axis=0)
    which = np.arange(400) % 4
    power = shapes[:, which] * 10 ** rng.uniform(-6, 6, 400) * rng.uniform(0.99, 1.01, (F, 400))
    W = nmf.vector_quantisation(3, power.astype(dtype), 4)
    assert W.dtype == dtype and W.min() > 0
    np.testing.assert_allclose(W.sum(axis=0), 1, rtol=1e-6)
    nearest = np.argmin([[abs(W[:, k] - shapes[:, j]).sum() for k in range(4)] for j in range(4)], axis=1)
    assert sorted(nearest) == [0, 1, 2, 3]
    np.testing.assert_allclose(W[:, nearest], shapes, rtol=0.01)
    np.testing.assert_array_equal(W, nmf.vector_quantisation(3, power.astype(dtype), 4))
    assert isinstance(nmf.vector_quantisation(3, jnp.asarray(power, jnp.float32), 4), jax.Array)


def test_quantisation_of_few_distinct_frames_and_of_many():
    rng = np.random.default_rng(1)
    two = rng.exponential(size=(F, 2))[:, np.arange(12) % 2]
    two[0] = 0.0
    W = nmf.vector_quantisation(0, two, 5)
    # Still five different, strictly positive columns: equal ones would never part under the updates.
    assert W.min() > 0
    assert min(abs(W[:, i] - W[:, j]).max() for i in range(5) for j in range(i)) > 1e-3
    many = rng.exponential(size=(F, 500))
    fewer = nmf.vector_quantisation(0, many, 3, max_frames=60)
    np.testing.assert_array_equal(fewer, nmf.vector_quantisation(0, many, 3, max_frames=60))
    assert not np.array_equal(fewer, nmf.vector_quantisation(1, many, 3, max_frames=60))


@pytest.mark.parametrize(("order", "frames"), [(0, 5), (6, 5), (4, 3)])
def test_quantisation_of_impossible_orders(order, frames):
    power = np.ones((F, 5))
    power[:, frames:] = 0.0
    with pytest.raises(ValueError, match="frames with power"):
        nmf.vector_quantisation(0, power, order)


def bad(**changes):
    power, Ws, Hs = problem(10)
    return {"power": power, "dictionaries": Ws, "activations": Hs, "learn": [True, True]} | changes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (bad(power=np.full((F, N), np.nan)), "NaN"),
        (bad(power=np.full((F, N), -1.0)), "negative"),
        (bad(power=np.ones((F, 0))), "empty"),
        (bad(power=np.ones((F + 1, N))), "transform of the mixture"),
        (bad(dictionaries=[np.ones((F, 2))]), "one per source"),
        (bad(learn=[True]), "one per source"),
        (bad(dictionaries=[np.ones((F, 2)), np.zeros((F, 3))]), "zero in column"),
        (bad(dictionaries=[np.ones((F, 2)), -np.ones((F, 3))]), "dictionary 1 has negative"),
        (bad(dictionaries=[np.ones((F, 2)), np.ones((F, 0))]), "component"),
        (bad(activations=[np.ones((2, N)), np.ones((2, N))]), "activations 1 have shape"),
        (bad(activations=[np.ones((2, N)), np.full((3, N), np.inf)]), "activations 1"),
        (bad(activations=[np.ones((2, N))]), "1 sets"),
        (bad(mask=np.ones(N - 1, bool)), "mask"),
        (bad(noise=-1.0), "noise"),
        (bad(noise=float("nan")), "noise"),
        (bad(num_iters=-1), "num_iters"),
        (bad(floor=1.0), "floor"),
        (bad(exponent=0.0), "exponent"),
        (bad(exponent=1.5), "exponent"),
        (bad(power=np.eye(F, N), floor=0.0), "zero bins"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        nmf.fit(**arguments)


def test_a_cost_that_leaves_the_finite_range_is_named():
    """Without any floor a model can be exactly zero where the power is not."""
    W = np.ones((F, 1))
    W[0] = 0.0
    with pytest.raises(FloatingPointError, match="iteration 0"):
        nmf.fit(np.ones((F, N)), [W], learn=[False], floor=0.0)

"""Laws of the fit: it never goes down, and what must not matter does not matter.

Compiling costs far more than fitting problems of this size, so every law shares one layout, and the property tests run
hundreds of random problems through a handful of compiled programs that take the numbers as arguments.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracles import problems
from oracles.problems import FRAMES, FREQ, ORDERS, candidates, compiled, fitted, recording, unchecked

from bayesfuse import estimates
from bayesfuse.inference import energy_terms, fit, normalise, start
from bayesfuse.vbnmf import Component, Posterior, free_energy, make_prior, step, tempered, update_sources

VARIANTS = ["marginal", "explicit"]


def assert_same(a, b, rtol, what=""):
    """Two pytrees agree, array by array, to `rtol` of each array's maximum."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.max(np.abs(y), initial=0.0) + 1e-300, err_msg=what)


# Ascent ---------------------------------------------------------------------------------------------------------------

# (layout, variant, tempering, shared shapes): one to three sources, one to three orders, several multi-order sources,
# fixed and learned dictionaries.
PROGRAMS = [
    ([[1, 3]], "marginal", "entropy", False),
    ([[2, -1]], "explicit", "kl", True),
    ([[1, -2], [2, 1]], "marginal", "kl", True),
    ([[1, -2], [2, 1]], "explicit", "entropy", False),
    ([[1, 2], [-2], [1]], "marginal", "entropy", True),
    ([[1, 2], [-2], [1]], "explicit", "kl", True),
]
PROBLEMS, UPDATES = 50, 20


def ascend(power, q, prior, blocks):
    """The objective after each of the given blocks (0 to 3: S, W, H, K)."""

    def body(q, block):
        q = jax.lax.switch(block, [lambda q, b=b: step(power, q, prior, sequence=b) for b in "SWHK"], q)
        energy = free_energy(power, q, prior)
        return q, energy.frames.sum() + energy.dictionary + energy.order + tempered(energy, q, prior)

    return jax.lax.scan(body, q, blocks)[1]


@pytest.mark.parametrize(("layout", "variant", "temper", "shared"), PROGRAMS)
def test_no_update_lowers_the_objective(x64, layout, variant, temper, shared):
    """Three hundred problems; after one sweep, which defines the bound, updates in an order drawn for each problem.

    Rounding: the objective is a sum of about a hundred terms of its own magnitude, hence 1e-12 of the largest.
    """
    run = compiled(ascend)
    for seed in range(PROBLEMS):
        rng = np.random.default_rng(seed)
        prior = problems.random_prior(rng, layout, temper=temper, shared=shared, beta=float(10 ** rng.uniform(-1, 3)))
        q = problems.constant_posterior(rng, layout, 3, 4, prior, variant)
        power = jnp.asarray(np.abs(problems.random_mixture(rng, 3, 4)) ** 2)
        blocks = np.concatenate([np.arange(4), rng.integers(0, 4, UPDATES)])
        objectives = np.asarray(run(power, q, prior, jnp.asarray(blocks)))[3:]
        assert np.all(np.isfinite(objectives)), seed
        assert np.all(np.diff(objectives) >= -1e-12 * np.max(np.abs(objectives))), f"seed {seed}: {np.diff(objectives)}"


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    seed=st.integers(0, 10**6),
    noise=st.floats(1e-8, 1.0),
    beta=st.floats(0.05, 1e4),
    a=st.floats(0.05, 0.49),
    b=st.floats(0.05, 0.49),
)
def test_trace_of_fit_never_falls(variant, seed, noise, beta, a, b):
    result = fitted(recording(seed), variant, seed=seed, prior={"noise": noise, "beta": beta, "a": a, "b": b})
    assert result.trace_iterations == (10, 20)
    assert np.all(np.diff(result.trace) >= -1e-11 * np.max(np.abs(result.trace)))
    # The last record is of the state before q(S) was made optimal for the final factors, which can only raise it.
    energy = result.free_energy
    with jax.enable_x64(True):
        extra = float(tempered(energy, jax.tree.map(jnp.asarray, result.posterior), result.prior))
    assert energy.total + extra >= result.trace[-1] - 1e-11 * abs(result.trace[-1])
    if variant == "marginal":
        assert energy.total + extra == pytest.approx(result.trace[-1], rel=1e-10)


# Compilation and padding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_is_exact(variant):
    """The fit in a bucket of 16 frames equals sweeps over the 12 frames without any mask, to rounding."""
    power = recording(1)
    result = fitted(power, variant, num_iters=10)
    with jax.enable_x64(True):
        normal, scale = normalise(power)
        prior = jax.tree.map(jnp.asarray, result.prior)
        q = start(power, candidates(), prior, variant=variant)
        sequence = "WHK" if variant == "marginal" else "SWHK"
        sweep = compiled(lambda power, q, prior: step(power, q, prior, sequence=sequence))
        for _ in range(10):
            q = sweep(jnp.asarray(normal), q, prior)
        q = update_sources(q, prior)
        energy = compiled(free_energy)(jnp.asarray(normal), q, prior)
    # Ten sweeps amplify rounding by well below 1e3.
    assert_same(result.posterior, q, 1e-12)
    change = -2 * FREQ * np.log(scale)
    np.testing.assert_allclose(result.free_energy.frames, np.asarray(energy.frames) + change, rtol=1e-11)
    assert result.free_energy.total == pytest.approx(energy.total + FRAMES * change, rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_numbers_and_lengths_in_a_bucket_compile_nothing(variant, caplog):
    """New values, noise, temperature, shapes, prior probabilities and lengths up to 16 reuse what is compiled."""

    def compilations(run):
        caplog.clear()
        with jax.log_compiles():
            run()
        return [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]

    def everything(power, **options):
        found = fitted(power, variant, **options)
        if variant == "marginal":
            energy_terms(power, found)

    everything(recording(0))
    for frames in (12, 9, 16):
        changed = {"noise": 0.01 * frames, "beta": 2.0 * frames, "a": 0.02 * frames, "b": 0.3}
        order = [[1 / frames, 1 - 1 / frames], [1.0]]
        prior = {**changed, "order": order}
        power = recording(frames, frames)
        assert compilations(lambda p=power, v=prior, n=frames: everything(p, prior=v, num_iters=n)) == []
    assert len(compilations(lambda: jax.jit(lambda x: 2 * x)(1.0))) == 1  # the check does count


# Equivariance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("factor", [1e-6, 1e-3, 7.3, 1e6])
def test_scale(variant, factor):
    """fit(c X) = c fit(X): same posterior in its unit, free energy shifted by -2 F N log c, equal gains."""
    power = recording(3)
    one, other = fitted(power, variant), fitted(factor**2 * power, variant)
    assert other.scale == pytest.approx(factor * one.scale, rel=1e-14)
    # The normalised powers differ by rounding, which twenty sweeps amplify.
    assert_same(other.posterior, one.posterior, 1e-10)
    shift = -2 * FREQ * np.log(factor)
    np.testing.assert_allclose(other.free_energy.frames, one.free_energy.frames + shift, rtol=1e-10)
    assert other.free_energy.total == pytest.approx(one.free_energy.total + FRAMES * shift, rel=1e-11)
    np.testing.assert_allclose(other.trace, one.trace + FRAMES * shift, rtol=1e-11)
    mine, yours = estimates.moments(factor**2 * power, other), estimates.moments(power, one)
    np.testing.assert_allclose(mine.gains, yours.gains, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(mine.variance, factor**2 * yours.variance, rtol=1e-9)


def test_scale_in_single_precision():
    """The same in float32: rounding of 6e-8, amplified by less than a thousand in the gains."""
    power = recording(3, dtype=np.float32)
    one = fitted(power)
    for factor in (1e-6, 7.3, 1e6):
        other = fitted((np.float64(factor) ** 2 * power).astype(np.float32))
        shift = -2 * FREQ * FRAMES * np.log(factor)
        assert other.free_energy.total == pytest.approx(one.free_energy.total + shift, rel=1e-5)
        scaled = (np.float64(factor) ** 2 * power).astype(np.float32)
        gains = estimates.moments(scaled, other).gains
        np.testing.assert_allclose(gains, estimates.moments(power, one).gains, atol=5e-5)


def permuted(q, columns, frames):
    """The posterior with components (of orders above 1) and frames in another order."""

    def component(c):
        order = np.array(columns.get(c.order, [0]))
        w = jax.tree.map(lambda y: y[:, order], c.dictionary)
        return Component(w, jax.tree.map(lambda y: y[order][:, frames], c.activations))

    components = tuple(tuple(component(c) for c in orders) for orders in q.components)
    variance = None if q.source_variance is None else q.source_variance[..., frames]
    return Posterior(components, q.log_order, variance, q.variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_components_and_frames_have_no_order(variant):
    power = recording(4)
    model = make_prior(ORDERS, noise=1e-3, beta=5.0, dtype=np.float64)
    q0 = start(power, candidates(), model, variant=variant)
    reference = fit(power, q0, model, num_iters=20)
    frames = np.random.default_rng(0).permutation(FRAMES)
    columns = {2: [1, 0], 3: [2, 0, 1]}
    with jax.enable_x64(True):
        shuffled = permuted(q0, columns, frames)
    result = fit(power[:, frames], shuffled, model, num_iters=20)
    with jax.enable_x64(True):
        expected = permuted(jax.tree.map(jnp.asarray, reference.posterior), columns, frames)
    assert_same(result.posterior, expected, 1e-10)
    np.testing.assert_allclose(result.free_energy.frames, reference.free_energy.frames[frames], rtol=1e-10)
    np.testing.assert_allclose(result.trace, reference.trace, rtol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sources_have_no_order(x64, variant):
    """The bound does not depend on which source comes first; nor do the explicit updates, which meet in q(S) alone."""

    def sweep(power, q, prior):
        return free_energy(power, step(power, q, prior) if variant == "explicit" else q, prior)

    rng = np.random.default_rng(0)
    layout = [[1, 2], [2]]
    prior = problems.random_prior(rng, layout, shared=True)
    q = problems.random_posterior(rng, layout, 3, 4, prior, variant)
    power = jnp.asarray(np.abs(problems.random_mixture(rng, 3, 4)) ** 2)
    swapped = replace(
        prior, dictionaries=prior.dictionaries[::-1], activations=prior.activations[::-1], order=prior.order[::-1]
    )
    if variant == "explicit":
        other = Posterior(q.components[::-1], q.log_order[::-1], q.source_variance[::-1], variant)
    else:
        table = q.log_order[0].reshape(2, 1)
        other = Posterior(q.components[::-1], (table.T.reshape(-1),), None, variant)
    run = compiled(sweep)
    assert_same(run(power, other, swapped), run(power, q, prior), 1e-12)


# Results --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_silence(variant):
    """Silence in, silence out: finite energies, estimates and variances."""
    power = np.zeros((FREQ, FRAMES))
    result = fitted(power, variant)
    assert result.scale == 1.0
    assert np.all(np.isfinite(result.free_energy.frames)) and np.all(np.isfinite(result.trace))
    moments = estimates.moments(power, result)
    assert np.all(np.isfinite(moments.variance)) and np.all((0 <= moments.gains) & (moments.gains <= 1))
    X = np.zeros((FREQ, FRAMES), np.complex128)
    assert not np.any(moments.gains * X)


@pytest.mark.parametrize("variant", VARIANTS)
def test_silent_frames_among_others(variant):
    """Digital silence at the start and end of a recording: finite energies there, and the rest hardly cares."""
    power = recording(5)
    power[:, :3] = 0
    power[:, -1] = 0
    result = fitted(power, variant)
    assert np.all(np.isfinite(result.free_energy.frames))
    assert np.all(np.isfinite(estimates.moments(power, result).variance))


def test_infinite_temperature_keeps_the_prior():
    result = fitted(recording(6), prior={"beta": np.inf, "order": [[0.3, 0.7], [1.0]]})
    np.testing.assert_allclose(np.exp(result.posterior.log_order[0]), [0.3, 0.7], rtol=1e-12)
    assert np.all(np.isfinite(result.trace)) and np.all(np.diff(result.trace) >= -1e-10)


def test_low_temperature_selects():
    """beta -> 0: all weight on the order with the highest bound of its own."""
    result = fitted(recording(6), prior={"beta": 1e-9})
    scores = result.scores[0].frames.sum(-1) + result.scores[0].dictionary
    assert np.exp(result.posterior.log_order[0])[np.argmax(scores)] == 1.0


def test_scores_average_to_the_free_energy():
    """sum_c q_c score_c plus the order part is the bound, in the unit of the mixture."""
    result = fitted(123.0 * recording(7))
    weights = np.exp(result.posterior.log_order[0])
    scores = result.scores[0]
    np.testing.assert_allclose(weights @ scores.frames, result.free_energy.frames, rtol=1e-12)
    assert weights @ scores.dictionary == pytest.approx(float(result.free_energy.dictionary), rel=1e-12)


def test_tolerance_stops_early():
    power = recording(8)
    full = fitted(power, num_iters=2000, trace_every=5)
    short = fitted(power, num_iters=2000, trace_every=5, tolerance=1e-5)
    count = short.trace_iterations[-1]
    assert full.trace_iterations[-1] == 2000 and 5 < count < 2000
    np.testing.assert_array_equal(short.trace, full.trace[: len(short.trace)])
    objective = full.trace + 2 * FREQ * FRAMES * np.log(full.scale)  # of the normalised mixture
    gains = np.diff(objective) / 5 / np.abs(objective[1:])
    assert np.argmax(gains < 1e-5) == len(short.trace) - 2


def test_trace_records():
    result = fitted(recording(8), num_iters=7, trace_every=3)
    assert result.trace_iterations == (3, 6, 7) and result.trace.shape == (3,)


def test_progress_bar(capsys):
    fitted(recording(8), progress=True)
    assert "VB-NMF" in capsys.readouterr().err
    fitted(recording(8))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("variant", VARIANTS)
def test_dtype_is_kept_and_inputs_are_not_written_to(variant):
    for dtype in (np.float64, np.float32) if variant == "marginal" else (np.float64,):
        power, given = recording(9, dtype=dtype), candidates(dtype)
        copies = power.copy(), [w.copy() for w in given[0]]
        power.flags.writeable = False
        for w in given[0]:
            w.flags.writeable = False
        result = fitted(power, variant, given=given)
        floating = [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"]
        kinds = {leaf.dtype for leaf in floating if leaf is not result.trace}
        assert kinds == {np.dtype(dtype)}
        assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(result))
        np.testing.assert_array_equal(power, copies[0])
        for w, copy in zip(given[0], copies[1], strict=True):
            np.testing.assert_array_equal(w, copy)
        np.testing.assert_array_equal(result.posterior.components[0][1].dictionary.mean, given[0][1])


# Errors ---------------------------------------------------------------------------------------------------------------


def model(dtype=np.float64, **values):
    return make_prior(ORDERS, dtype=dtype, **values)


@pytest.mark.parametrize(
    ("power", "message"),
    [
        (np.full((FREQ, FRAMES), np.nan), "finite"),
        (np.full((FREQ, FRAMES), np.inf), "finite"),
        (np.full((FREQ, FRAMES), -1.0), "non-negative"),
        (np.ones(FRAMES), r"\[freq, frame\]"),
        (np.ones((2, FREQ, FRAMES)), r"\[freq, frame\]"),
        (np.ones((FREQ, 0)), "non-empty"),
        (np.ones((FREQ, FRAMES), np.complex128), r"\|X\|\^2"),
        (np.ones((FREQ, FRAMES), np.int64), "float32 or float64"),
    ],
)
def test_bad_power(power, message):
    with unchecked(), pytest.raises(ValueError, match=message):
        normalise(power)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": 0.0}, "a=0.0"),
        ({"b": -1.0}, "b=-1.0"),
        ({"a": [[0.2, np.nan], [0.2]]}, "a=nan"),
        ({"a": [[0.2], [0.2]]}, "entries per source"),
        ({"noise": -1e-6}, "noise"),
        ({"noise": np.nan}, "noise"),
        ({"noise": np.inf}, "noise"),
        ({"beta": 0.0}, "beta"),
        ({"beta": -2.0}, "beta"),
        ({"order": [[0.5, 0.6], [1.0]]}, "sum to 1"),
        ({"order": [[0.0, 1.0], [1.0]]}, "positive"),
        ({"order": [[1.0], [1.0]]}, "2 positive"),
        ({"activation_mean": [[1.0, 0.0], [1.0]]}, "activation_mean"),
        ({"temper": "none"}, "'kl' or 'entropy'"),
    ],
)
def test_bad_prior(values, message):
    with unchecked(), pytest.raises(ValueError, match=message):
        make_prior(ORDERS, **values)


def test_bad_orders():
    for orders, message in (([], "at least one source"), ([[1], []], "one candidate"), ([[0, 1]], "at least 1")):
        with pytest.raises(ValueError, match=message):
            make_prior(orders)
    with pytest.raises(ValueError, match="81 combinations; at most 64"):
        make_prior([[1, 2, 3]] * 4)
    make_prior([[1, 2, 3, 4]] * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [[np.ones((FREQ + 1, 1)), c[0][1]], c[1]], r"candidates\[0\]\[0\].*another transform"),
        (lambda c: [[c[0][0], np.zeros((FREQ, 3))], c[1]], "zero column"),
        (lambda c: [[c[0][0], np.full((FREQ, 3), np.nan)], c[1]], "finite"),
        (lambda c: [[-c[0][0], c[0][1]], c[1]], "non-negative"),
        (lambda c: [c[0], [0]], r"candidates\[1\]\[0\]=0"),
        (lambda c: [c[0], [FRAMES + 1]], "=13: at most one component per frame"),
        (lambda c: c[:1], "entries per source"),
        (lambda c: [c[0][:1], c[1]], "entries per source"),
    ],
)
def test_bad_candidates(change, message):
    with pytest.raises(ValueError, match=message):
        start(recording(), change(candidates()), model())


def test_bad_fit_arguments():
    power = recording()
    prior = model()
    q0 = start(power, candidates(), prior, ml_iters=0)
    with pytest.raises(ValueError, match="num_iters=0"):
        fit(power, q0, prior, num_iters=0)
    with pytest.raises(ValueError, match="trace_every=0"):
        fit(power, q0, prior, trace_every=0)
    with pytest.raises(ValueError, match="float32"):
        fit(power, q0, model(np.float32))
    with pytest.raises(ValueError, match="float32"):
        fit(power.astype(np.float32), q0, model(np.float32))
    with pytest.raises(ValueError, match=r"\(5, 11\).*12 frames"):
        fit(power[:, :-1], q0, prior)
    with pytest.raises(ValueError, match=r"\(4, 12\).*5 frequencies"):
        fit(power[:-1], q0, prior)
    with pytest.raises(ValueError, match="candidates per source"):
        fit(power, q0, make_prior([[1], [2]], dtype=np.float64))
    with pytest.raises(ValueError, match="'X' is not one of the blocks"):
        fit(power, q0, prior, sequence="WXK")


def test_a_bound_of_minus_infinity_is_reported():
    """No dictionary reaches a frequency where there is power, and no noise explains it."""
    given = candidates()
    dead = [[w * (np.arange(FREQ)[:, None] != 2) for w in given[0]], [np.eye(FREQ, 2)]]
    with pytest.raises(FloatingPointError, match=r"iteration \d+.*every entry is zero"):
        fitted(recording(), prior={"noise": 0.0}, given=dead)


def test_posterior_dictionary_held_fixed(x64):
    """A dictionary kept as a GIG posterior is used with its two means and is not learned any more."""
    prior = model()
    kept = problems.random_factor(np.random.default_rng(1), (FREQ, 3), prior.dictionaries[0][1], np.float64)
    assert kept.learned
    q0 = start(recording(), [[candidates()[0][0], kept], [2]], prior, ml_iters=0)
    held = q0.components[0][1].dictionary
    assert not held.learned
    assert_same(held, replace(kept, learned=False), 0.0)

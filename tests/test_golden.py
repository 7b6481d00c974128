"""The variational model against numbers of an independent, exact implementation (tests/golden, float64 and float32).

Tolerances: the amplification of input jitter in these cases is below 10, so double precision agrees to 1e-9 of each
array's maximum and 1e-10 of each bound, single precision to 1e-4 and 5e-6. Dying components (below about 1e-30 for
shapes < 1/2) shrink doubly exponentially and are compared absolutely, which the tolerance relative to the maximum does.
"""

from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesfuse import wiener
from bayesfuse.vbnmf import (
    Component,
    Factor,
    FreeEnergy,
    Posterior,
    Scores,
    combination_scores,
    combine_logs,
    expected_variance,
    free_energy,
    harmonic_variance,
    make_prior,
    source_scores,
    step,
    tempered,
    update_sources,
)

GOLDEN = Path(__file__).parent / "golden"
EXPLICIT = ["g00_tiny_mp", "g01_single", "g05_paper_beta1e4", "g08_J3_kl", "g10_zeros", "g12_quiet"]
MARGINAL = ["g30_marginal_single", "g31_marginal_paper", "g33_marginal_two_orders"]
ARRAYS = {np.float64: 1e-9, np.float32: 1e-4}
BOUNDS = {np.float64: 1e-10, np.float32: 5e-6}


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as data:
        return {key: data[key] for key in data.files}


def layout(case):
    if "in_M" in case:
        return [int(m) for m in case["in_M"]]
    return [len(case[f"in_pi_j{j}"]) for j in range(int(case["in_J"]))]


def build(case, dtype, variant):
    """Power, start and prior of a golden case."""
    counts = layout(case)
    sources = range(len(counts))

    def entry(j, m, key, fallback=None):
        return case.get(f"in_j{j}m{m}_{key}", fallback)

    shapes = {
        key: [[float(entry(j, m, key, case.get(f"in_{key}"))) for m in range(counts[j])] for j in sources]
        for key in ("a", "b")
    }
    prior = make_prior(
        [[int(entry(j, m, "K")) for m in range(counts[j])] for j in sources],
        a=shapes["a"],
        b=shapes["b"],
        noise=float(case["in_sigma2"]),
        beta=float(case["in_beta"]),
        order=[case[f"in_pi_j{j}"] for j in sources],
        temper=str(case["in_temper"]),
        dtype=dtype,
    )

    def factor(mean, harmonic, learned):
        mean, harmonic = jnp.asarray(mean, dtype), jnp.asarray(harmonic, dtype)
        unknown = jnp.full_like(mean, jnp.nan) if learned else None
        return Factor(mean, harmonic, unknown, unknown, learned)

    def start(j, m):
        if variant == "marginal":
            w = (entry(j, m, "Ew"), entry(j, m, "gw"))
            h = (entry(j, m, "Eh"), entry(j, m, "gh"))
        else:
            fixed = entry(j, m, "W")
            w = (fixed, fixed) if fixed is not None else (entry(j, m, "Ew"), 1 / entry(j, m, "Eiw"))
            h = (entry(j, m, "Eh"), 1 / entry(j, m, "Eih"))
        return Component(factor(*w, not entry(j, m, "W_fixed")), factor(*h, True))

    components = tuple(tuple(start(j, m) for m in range(counts[j])) for j in sources)
    power = jnp.asarray(np.abs(case["in_X"]) ** 2, dtype)
    if variant == "marginal":
        return power, Posterior(components, (combine_logs(prior.order),), None, variant), prior
    log_q = tuple(jnp.asarray(np.log(case[f"in_q_j{j}"]), dtype) for j in sources)
    variance = jnp.full((len(counts), *power.shape), jnp.nan, dtype)
    return power, Posterior(components, log_q, variance, variant), prior


def close(actual, expected, tolerance, what):
    expected = np.asarray(expected)
    scale = np.max(np.abs(expected), initial=0.0)
    error = np.max(np.abs(np.asarray(actual) - expected), initial=0.0)
    assert error <= tolerance * scale + 1e-300, f"{what}: error {error:.3g} of a maximum {scale:.3g}"


def bound(actual, expected, tolerance, what):
    assert abs(float(actual) - float(expected)) <= tolerance * abs(float(expected)), (
        f"{what}: {float(actual)!r}, expected {float(expected)!r}"
    )


class Evaluation(NamedTuple):
    """Everything that the files have numbers for; one compiled program."""

    energy: FreeEnergy
    extra: jax.Array
    scores: tuple[Scores, ...]
    omega: list
    harmonic: list
    final: Posterior
    final_energy: FreeEnergy


def evaluation(power, q, prior):
    energy = free_energy(power, q, prior)
    explicit = q.variant == "explicit"
    scores = source_scores(power, q, prior) if explicit else (combination_scores(power, q, prior),)
    final = update_sources(q, prior)
    return Evaluation(
        energy,
        tempered(energy, q, prior),
        scores,
        [[expected_variance(c) for c in orders] for orders in q.components],
        [[harmonic_variance(c) for c in orders] for orders in q.components],
        final,
        free_energy(power, final, prior) if explicit else energy,
    )


def run(case, dtype, variant, check):
    """Fifty iterations, calling `check(iteration, q, prior, evaluation)` where the file has numbers."""
    power, q, prior = build(case, dtype, variant)
    sequence = "WHK" if variant == "marginal" else "SWHK"
    advance = eqx.filter_jit(lambda q: step(power, q, prior, sequence=sequence))
    evaluate = eqx.filter_jit(lambda q: evaluation(power, q, prior))
    objectives = []
    for t in range(1, 51):
        q = advance(q)
        result = evaluate(q)
        energy = result.energy
        objectives.append(energy.total + float(result.extra))
        if "trace_elbo" in case:
            bound(energy.total, case["trace_elbo"][t - 1], BOUNDS[dtype], f"bound at iteration {t}")
            bound(objectives[-1], case["trace_objective"][t - 1], BOUNDS[dtype], f"objective at iteration {t}")
        if f"it{t}_elbo" in case:
            check(t, q, prior, result)
    # A float32 total carries about one unit in the last place of the largest of its per-frame terms.
    slack = 20 * np.finfo(dtype).eps * np.max(np.abs(objectives))
    assert np.all(np.diff(objectives) >= -slack)


def check_factors(case, t, q, result, tolerance):
    for j, orders in enumerate(q.components):
        for m, c in enumerate(orders):
            pairs = {
                "Ew": c.dictionary.mean, "gw": c.dictionary.harmonic, "rhoW": c.dictionary.rho,
                "tauW": c.dictionary.tau,
                "Eh": c.activations.mean, "gh": c.activations.harmonic, "rhoH": c.activations.rho,
                "tauH": c.activations.tau, "omega": result.omega[j][m], "C": result.harmonic[j][m],
            }  # fmt: skip
            for key, value in pairs.items():
                name = f"it{t}_j{j}m{m}_{key}"
                if name in case and value is not None:
                    close(value, case[name], tolerance, name)


def check_frames(case, t, energy, tolerance):
    for kind in ("none", "split", "repeat"):
        if f"it{t}_frame_{kind}" in case:
            close(energy.per_frame(kind), case[f"it{t}_frame_{kind}"], tolerance, f"it{t}_frame_{kind}")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", EXPLICIT)
def test_explicit(name, dtype):
    case = load(name)
    tolerance = ARRAYS[dtype]

    def check(t, q, prior, result):
        energy = result.energy
        bound(energy.total, case[f"it{t}_elbo"], BOUNDS[dtype], f"elbo at {t}")
        check_factors(case, t, q, result, tolerance)
        check_frames(case, t, energy, tolerance)
        if f"it{t}_Wsum" in case:
            assert float(energy.dictionary) == pytest.approx(float(case[f"it{t}_Wsum"]), rel=tolerance, abs=tolerance)
        if f"it{t}_Kterm" in case:
            assert float(energy.order) == pytest.approx(float(case[f"it{t}_Kterm"]), rel=tolerance, abs=tolerance)
        held = np.asarray(q.source_variance)
        total = np.asarray(prior.noise) + held.sum(0)
        close(held / total * case["in_X"], case[f"it{t}_mu"], tolerance, "mu")
        if f"it{t}_Sigma" in case:
            variance = np.moveaxis(held, 0, -1)
            outer = variance[..., :, None] * variance[..., None, :] / total[..., None, None]
            covariance = np.eye(variance.shape[-1]) * variance[..., None] - outer
            # This test's own subtraction loses digits where one source dominates: relative to the largest entry.
            close(covariance, case[f"it{t}_Sigma"], tolerance, "Sigma")
        for j, scores in enumerate(result.scores):
            close(np.exp(q.log_order[j]), case[f"it{t}_q_j{j}"], tolerance, f"q_j{j}")
            close(scores.frames.sum(-1) + scores.dictionary, case[f"it{t}_score_j{j}"], tolerance, f"score_j{j}")
            if f"it{t}_frame_score_j{j}" in case:
                close(scores.frames, case[f"it{t}_frame_score_j{j}"], tolerance, f"frame_score_j{j}")
                close(scores.dictionary, case[f"it{t}_Wterm_j{j}"], tolerance, f"Wterm_j{j}")
        if f"it{t}_final_elbo" in case:
            variances, noise = np.asarray(result.final.source_variance), np.asarray(prior.noise)
            close(wiener.gains(variances, noise) * case["in_X"], case[f"it{t}_final_mu"], tolerance, "final_mu")
            uncertainty = wiener.posterior_variance(variances, noise)
            close(uncertainty, case[f"it{t}_final_Sigma_diag"], tolerance, "final_Sigma_diag")
            energy = result.final_energy
            bound(energy.total, case[f"it{t}_final_elbo"], BOUNDS[dtype], "final_elbo")
            close(energy.per_frame("none"), case[f"it{t}_final_frame_none"], tolerance, "final_frame_none")

    with jax.enable_x64(dtype is np.float64):
        run(case, dtype, "explicit", check)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", MARGINAL)
def test_marginal(name, dtype):
    case = load(name)
    tolerance = ARRAYS[dtype]

    def check(t, q, prior, result):
        energy = result.energy
        np.testing.assert_array_equal(q.combinations, case["in_combinations"])
        bound(energy.total, case[f"it{t}_elbo"], BOUNDS[dtype], f"elbo at {t}")
        check_factors(case, t, q, result, tolerance)
        check_frames(case, t, energy, tolerance)
        weights = np.exp(q.log_order[0])
        close(weights, case[f"it{t}_q"], tolerance, "q")
        scores = result.scores[0]
        close(np.sum(scores.frames, -1) + scores.dictionary, case[f"it{t}_score"], tolerance, "score")
        estimates = []
        for choice in q.combinations:
            variances = np.stack([result.harmonic[j][m] for j, m in enumerate(choice)])
            estimates.append(wiener.gains(variances, np.asarray(prior.noise)) * case["in_X"])
        fused = sum(w * e for w, e in zip(weights, estimates, strict=True))
        close(fused, case[f"it{t}_sources"], tolerance, "sources")
        if f"it{t}_sources_by_combination" in case:
            close(np.stack(estimates), case[f"it{t}_sources_by_combination"], tolerance, "by combination")

    with jax.enable_x64(dtype is np.float64):
        run(case, dtype, "marginal", check)

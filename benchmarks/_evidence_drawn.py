"""Evidence on recordings drawn from the model, whose orders are known: the bound's gap, brackets, calibration."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import _common as common
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln

from bayesfuse import evidence, inference, model
from bayesfuse.evidence_checks import calibration, learn_gap
from bayesfuse.vbnmf import Posterior, Prior, combination_scores, make_prior, step

ORDERS = (1, 2, 4, 6)
SHAPE = (20, 30)


class Drawn(NamedTuple):
    """Criteria [recording, order] of recordings drawn with `truth` [recording], an index into the orders."""

    orders: tuple[int, ...]
    truth: np.ndarray
    bound: np.ndarray
    evidence: np.ndarray
    error: np.ndarray
    effective_size: np.ndarray
    upper: np.ndarray  # of the true order only, [recording]


@eqx.filter_jit
def _ascend(power: jax.Array, q: Posterior, prior: Prior, sweeps: jax.Array) -> tuple[Posterior, Any]:
    q = step(power, q, prior, sequence="WHK", count=sweeps)
    return q, combination_scores(power, q, prior)


def explained(
    power: np.ndarray, candidates: Sequence[Sequence[Any]], prior: Prior, *, seed: int = 0, sweeps: int = 200
) -> tuple[Posterior, Any]:
    """Variational posterior in the prior's own unit, where data drawn from it are, and its scores."""
    learned = "prior" if seed % 2 else "quantised"
    q = inference.start(power, candidates, prior, seed=seed, learned=learned)
    return _ascend(jnp.asarray(power), q, prior, jnp.asarray(sweeps))


def learned_dictionaries(recordings: int, *, chains: int = 8, temperatures: int = 300, starts: int = 4) -> Drawn:
    """One source whose dictionary is learned, F = 20, N = 30; orders drawn uniformly.

    The bound is the best of several starts, and gets log K! for the relabellings that its mode leaves out.
    """
    from tqdm.auto import tqdm

    rng = np.random.default_rng(0)
    truth = rng.integers(len(ORDERS), size=recordings)
    priors = {k: make_prior([[k]], a=0.5, b=0.5, noise=1e-3, activation_mean=[[1 / k]]) for k in ORDERS}
    bound = np.zeros((recordings, len(ORDERS)))
    problems, states = [], []
    for i in tqdm(range(recordings), desc="recordings drawn", unit="recording"):
        order = ORDERS[truth[i]]
        sim = model.simulate(jax.random.key(i), [[order]], priors[order], SHAPE)
        power = (np.abs(sim.X) ** 2).astype(np.float32)
        for m, k in enumerate(ORDERS):
            found = [explained(power, [[k]], priors[k], seed=seed) for seed in range(starts)]
            totals = [float(np.asarray(s.frames, np.float64).sum() + s.dictionary[0]) for _, s in found]
            bound[i, m] = max(totals) + gammaln(k + 1)
            (problem,) = evidence.problems(power, found[int(np.argmax(totals))][0], priors[k])
            problems.append(problem)
            known = k == order
            states.append(problem.state(sim.dictionaries, sim.activations, [True]) if known else None)
    found = evidence.annealed(
        jax.random.key(0), problems, truths=states, num_chains=chains, num_temperatures=temperatures, num_leaps=10
    )

    def table(values: Sequence[Any]) -> np.ndarray:
        return np.array([float(v) for v in values]).reshape(recordings, -1)

    return Drawn(
        ORDERS,
        truth,
        bound,
        table([e.value for e in found]),
        table([e.error for e in found]),
        table([e.effective_size for e in found]),
        np.array([float(e.upper) for e in found if e.upper is not None]),
    )


def report_learned(found: Drawn) -> str:
    """Tables of `learned_dictionaries`."""
    gaps = found.evidence - found.bound
    body = []
    for m, k in enumerate(found.orders):
        body.append([str(k), f"{gaps[:, m].mean():.0f}", f"{gaps[:, m].std():.0f}", f"{found.error[:, m].mean():.1f}"])
    line = learn_gap(found.bound, found.evidence, found.orders)
    half = np.arange(len(found.truth)) % 2
    # Every half with the gap of the other, for what a gap does to its own recordings says little.
    gap_of = [learn_gap(found.bound[half != part], found.evidence[half != part], found.orders) for part in (0, 1)]
    corrected = np.where(half[:, None], *(gap_of[part].corrected(found.bound, found.orders) for part in (1, 0)))
    rows = np.arange(len(found.truth))
    width = found.upper - found.evidence[rows, found.truth]
    criteria = {
        "bound + log K!": found.bound,
        "bound + log K! + learned gap": corrected,
        "evidence": found.evidence,
    }
    verdicts = []
    for name, values in criteria.items():
        c = calibration(values, found.truth)
        chosen = np.array(found.orders)[values.argmax(1)]
        counts = " ".join(f"{k}:{np.sum(chosen == k)}" for k in found.orders)
        verdicts.append(
            [name, f"{c.hits:.2f}", f"{c.confidence:.2f}", f"{c.log_score:.1f}", f"{c.p_value:.2g}", counts]
        )
    true = " ".join(f"{k}:{np.sum(np.array(found.orders)[found.truth] == k)}" for k in found.orders)
    size = f"F = {SHAPE[0]}, N = {SHAPE[1]}, learned dictionary, {len(found.truth)} recordings drawn"
    return "\n\n".join(
        [
            common.table(
                ["order", "evidence - bound", "standard deviation", "standard error"], body, title=f"{size} (nats)"
            ),
            f"learned gap {line.per_component:.1f} nats per component ({100 * line.explained:.0f} % of the variance)",
            f"bracket at the true order, upper - lower: mean {width.mean():.1f}, "
            f"from {width.min():.1f} to {width.max():.1f} nats",
            common.table(
                ["criterion", "order found", "confidence", "log score", "p, calibrated", "orders chosen"],
                verdicts,
                title=f"posterior over orders (truth {true})",
            ),
        ]
    )


def known_dictionaries(
    dictionaries: Sequence[np.ndarray], noise: np.ndarray, *, frames: int, chains: int, temperatures: int
) -> list[dict[str, Any]]:
    """Frames drawn with dictionaries of real speech and noise, one order at a time: how far the samplers get."""
    from tqdm.auto import tqdm

    bounds, items, truths = [], [], []
    for weights in tqdm(dictionaries, desc="drawn frames", unit="order"):
        order = weights.shape[1]
        candidates = [[weights], [noise]]
        prior = make_prior([[order], [noise.shape[1]]])
        sim = model.simulate(jax.random.key(order), candidates, prior, (weights.shape[0], frames))
        power = (np.abs(sim.X) ** 2).astype(np.float32)
        q, scores = explained(power, candidates, prior)
        (problem,) = evidence.problems(power, q, prior)
        items.append(problem)
        truths.append(problem.state(sim.dictionaries, sim.activations, [False, False]))
        bounds.append(np.asarray(scores.frames)[0])
    settings: dict[str, Any] = {"num_chains": chains, "num_temperatures": temperatures}
    cheap = evidence.importance(jax.random.key(1), items)
    near = evidence.annealed(jax.random.key(2), items, start="posterior", **settings)
    found = evidence.annealed(jax.random.key(3), items, truths=truths, **settings)
    rows = []
    for i, (weights, bound) in enumerate(zip(dictionaries, bounds, strict=True)):
        upper = found[i].upper
        assert upper is not None
        rows.append(
            {
                "order": weights.shape[1],
                "importance": float((cheap[i].value - bound).mean()),
                "effective_size": float(cheap[i].effective_size.mean()),
                "near": float((near[i].value - bound).mean()),
                "evidence": float((found[i].value - bound).mean()),
                "upper": float((upper - bound).mean()),
            }
        )
    return rows


def report_known(rows: Sequence[dict[str, Any]]) -> str:
    """Table of `known_dictionaries`."""
    header = ["order", "importance", "effective size", "annealed from q", "from the prior", "upper bound"]
    keys = ("importance", "effective_size", "near", "evidence", "upper")
    body = [[str(r["order"]), *(f"{r[key]:.1f}" for key in keys)] for r in rows]
    return common.table(header, body, title="frames drawn with real dictionaries: nats per frame above the free energy")

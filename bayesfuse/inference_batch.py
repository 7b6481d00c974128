"""Several mixtures of similar length fitted together: one program over all of them, shared out among the devices.

The fits are those of `inference.fit`, each mixture for itself; `vmap` turns the loops into one that every device works
off for its share of the mixtures. On an accelerator this fills it; on one processor of few cores it gains little.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bayesfuse._precision import precision
from bayesfuse.inference import Candidate, Fit, conclude, finished, normalise, pad, start
from bayesfuse.nmf import bucket_length
from bayesfuse.vbnmf import FreeEnergy, Posterior, Prior, Scores, free_energy, multiplicative_steps, step, tempered


def fit_batch(
    powers: Sequence[Float[np.ndarray, "freq _"]],
    candidates: Sequence[Sequence[Sequence[Candidate]]],
    priors: Sequence[Prior],
    *,
    num_iters: int = 50,
    ml_iters: int = 10,
    trace_every: int = 10,
    seed: int = 0,
    devices: Sequence[Any] | None = None,
) -> list[Fit]:
    """Return the fit of each mixture, as `inference.start` and `inference.fit` find it.

    Parameters
    ----------
    powers
        |X|^2 of the mixtures, [freq, frame] each, of one dtype and one bucket of lengths (`nmf.bucket_length`).
    candidates, priors
        Of each mixture, as `inference.start` takes them; all of one layout: numbers of sources, orders and components.
    num_iters, ml_iters, trace_every, seed
        As those of `inference.fit` and `inference.start`.
    devices
        Devices that share the mixtures; by default all of JAX's.

    Raises
    ------
    ValueError
        If numbers differ, or lengths or layouts are too different for one program; else as `inference.start`.
    FloatingPointError
        If the objective of a mixture becomes NaN or infinite.
    """
    if not powers or not len(powers) == len(candidates) == len(priors):
        raise ValueError(
            f"fit_batch got {len(powers)} mixtures, {len(candidates)} candidates and {len(priors)} priors; expected "
            "as many of each, at least one."
        )
    buckets = sorted({(power.shape[0], bucket_length(power.shape[1]), str(power.dtype)) for power in powers})
    if len(buckets) > 1:
        raise ValueError(f"fit_batch got mixtures of [freq, padded frames, dtype] {buckets}; fit each kind apart.")
    normals, scales = zip(*(normalise(power) for power in powers), strict=True)
    with precision(normals[0]):
        items = []
        for power, normal, choice, prior in zip(powers, normals, candidates, priors, strict=True):
            q = start(power, choice, prior, seed=seed, ml_iters=0)
            padded, mask, q = pad(normal, q)
            items.append((padded, q, prior, mask))
        shared = jax.devices() if devices is None else list(devices)
        # A few numbers of mixtures, of which every one is a program, and equal shares: the last one stands in.
        count = 1 << (len(items) - 1).bit_length()
        items += [items[-1]] * (count + -count % len(shared) - len(items))
        power, q, prior, mask = _shared(_stacked(items), shared)
        q = _multiply(power, q, prior, mask, jnp.asarray(ml_iters))
        trace: list[Float[np.ndarray, " mixture"]] = []
        iterations: list[int] = []
        done = 0
        while done < num_iters:
            count = min(trace_every, num_iters - done)
            q = _advance(power, q, prior, mask, jnp.asarray(count))
            energy, extra = _evaluate(power, q, prior, mask)
            done += count
            iterations.append(done)
            trace.append(_totals(energy, extra))
            if not np.isfinite(trace[-1]).all():
                raise FloatingPointError(
                    f"the objective of mixture {int(np.argmin(np.isfinite(trace[-1])))} is not finite at iteration "
                    f"{done}; fit it alone to see the usual causes."
                )
        # On the host once, and not once for each mixture.
        concluded = jax.tree.map(
            lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, _conclude(power, q, prior, mask)
        )
        found = []
        for i, (normal, scale, own) in enumerate(zip(normals, scales, priors, strict=True)):
            mine, bound, scores = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), concluded)
            objective = [float(row[i]) for row in trace]
            found.append(finished(normal, scale, own, mine, bound, scores, objective, iterations))
        return found


def _totals(energy: FreeEnergy, extra: Array) -> Float[np.ndarray, " mixture"]:
    """Objectives, added in double precision."""
    frames = np.asarray(energy.frames).sum(axis=1, dtype=np.float64)
    return frames + np.asarray(energy.dictionary) + np.asarray(energy.order) + np.asarray(extra)


def _stacked(items: Sequence[Any]) -> Any:
    structures = {f"{jax.tree.structure(item)} {[np.shape(leaf) for leaf in jax.tree.leaves(item)]}" for item in items}
    if len(structures) > 1:
        raise ValueError("fit_batch got models of different layouts; give mixtures of one batch the same orders.")
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *items)


def _shared(stacked: Any, devices: Sequence[Any]) -> Any:
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    sharding = NamedSharding(Mesh(np.array(devices), ("mixture",)), PartitionSpec("mixture"))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), stacked)


_ALL = eqx.if_array(0)


@eqx.filter_jit
def _multiply(power: Array, q: Posterior, prior: Prior, mask: Array, iterations: Array) -> Posterior:
    return eqx.filter_vmap(multiplicative_steps, in_axes=(0, _ALL, _ALL, 0, None))(power, q, prior, mask, iterations)


@eqx.filter_jit
def _advance(power: Array, q: Posterior, prior: Prior, mask: Array, iterations: Array) -> Posterior:
    def one(power: Array, q: Posterior, prior: Prior, mask: Array) -> Posterior:
        return step(power, q, prior, mask, sequence="WHK", count=iterations)

    return eqx.filter_vmap(one, in_axes=(0, _ALL, _ALL, 0))(power, q, prior, mask)


@eqx.filter_jit
def _evaluate(power: Array, q: Posterior, prior: Prior, mask: Array) -> tuple[FreeEnergy, Array]:
    def one(power: Array, q: Posterior, prior: Prior, mask: Array) -> tuple[FreeEnergy, Array]:
        energy = free_energy(power, q, prior, mask)
        return energy, tempered(energy, q, prior)

    return eqx.filter_vmap(one, in_axes=(0, _ALL, _ALL, 0))(power, q, prior, mask)


@eqx.filter_jit
def _conclude(
    power: Array, q: Posterior, prior: Prior, mask: Array
) -> tuple[Posterior, FreeEnergy, tuple[Scores, ...]]:
    return eqx.filter_vmap(conclude, in_axes=(0, _ALL, _ALL, 0))(power, q, prior, mask)

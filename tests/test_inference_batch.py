"""Fits of several mixtures together: those of each alone, on one device and on two."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bayesfuse import inference
from bayesfuse.inference_batch import fit_batch
from bayesfuse.vbnmf import make_prior

REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = REPOSITORY / "tests"


def problem(count: int, dtype=np.float64):
    """Mixtures of different lengths in one bucket, with a dictionary that is known and one that is learned."""
    rng = np.random.default_rng(0)
    powers, candidates, priors = [], [], []
    for i in range(count):
        frames = 20 + 3 * i
        known = rng.gamma(0.5, 2.0, (9, 2)).astype(dtype) + 1e-3
        clean = known @ rng.gamma(0.5, 2.0, (2, frames))
        powers.append((10.0**i * (clean + rng.gamma(1.0, 1.0, (9, frames)))).astype(dtype))
        candidates.append([[known], [1]])
        priors.append(make_prior([[2], [1]], beta=float(frames), activation_mean=[[1.0], [1.0]], dtype=dtype))
    return powers, candidates, priors


def alone(powers, candidates, priors, **settings):
    ml_iters = settings.pop("ml_iters")
    return [
        inference.fit(power, inference.start(power, choice, prior, ml_iters=ml_iters), prior, **settings)
        for power, choice, prior in zip(powers, candidates, priors, strict=True)
    ]


def compare(together, apart, rtol):
    for one, other in zip(together, apart, strict=True):
        assert one.trace_iterations == other.trace_iterations and one.scale == other.scale
        np.testing.assert_allclose(one.trace, other.trace, rtol=rtol)
        np.testing.assert_allclose(one.free_energy.frames, other.free_energy.frames, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(one.scores[0].frames, other.scores[0].frames, rtol=rtol, atol=rtol)
        for row, expected in zip(one.posterior.components, other.posterior.components, strict=True):
            for name in ("dictionary", "activations"):
                found, wanted = getattr(row[0], name), getattr(expected[0], name)
                np.testing.assert_allclose(found.mean, wanted.mean, rtol=10 * rtol, atol=rtol)
                np.testing.assert_allclose(found.harmonic, wanted.harmonic, rtol=10 * rtol, atol=rtol)


def test_a_batch_finds_what_each_mixture_finds_alone():
    arguments, settings = problem(3), {"num_iters": 12, "ml_iters": 3, "trace_every": 5}
    compare(fit_batch(*arguments, **settings), alone(*arguments, **settings), 1e-9)


def test_mixtures_that_do_not_go_together_are_refused():
    powers, candidates, priors = problem(2)
    with pytest.raises(ValueError, match="fit each kind apart"):
        fit_batch([powers[0], np.tile(powers[1], 4)], candidates, priors)
    with pytest.raises(ValueError, match="2 mixtures, 1 candidates"):
        fit_batch(powers, candidates[:1], priors)
    wider = make_prior([[2], [3]], beta=20.0, dtype=np.float64)
    with pytest.raises(ValueError, match="different layouts"):
        fit_batch(powers, [candidates[0], [candidates[1][0], [3]]], [priors[0], wider])


def test_two_devices_share_the_mixtures():
    """In a process of its own, in which one processor passes for two; of three mixtures one share is filled up."""
    program = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import jax
from bayesfuse import inference_batch
from test_inference_batch import alone, compare, problem
assert len(jax.devices()) == 2
shares = []
original = inference_batch._shared
def shared(stacked, devices):
    found = original(stacked, devices)
    shares.append([shard.data.shape[0] for shard in found[0].addressable_shards])
    return found
inference_batch._shared = shared
arguments, settings = problem(3), dict(num_iters=10, ml_iters=2)
compare(inference_batch.fit_batch(*arguments, **settings), alone(*arguments, **settings), 1e-9)
assert shares == [[2, 2]], shares
"""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""Results of random numbers that satisfy the laws of a result."""

from typing import Any

import numpy as np

from bayesfuse.results import Result
from bayesfuse.transforms import STFT


def make_result(
    *,
    draw: int = 0,
    num_orders: int = 4,
    num_sources: int = 2,
    channels: int = 1,
    samples: int = 4000,
    records: int = 6,
    rate: int = 8000,
    window: int = 128,
    dtype: Any = np.float32,
    per_frame: bool = False,
    with_estimates: bool = True,
    with_variances: bool = True,
    **changes: Any,
) -> Result:
    """A result over one source with `num_orders` candidates, others with one; `changes` replace fields."""
    rng = np.random.default_rng(draw)
    transform = STFT(window, window // 2)
    frames = transform.num_frames(samples)
    names = ("speech", "noise", *(f"other {index}" for index in range(num_sources)))[:num_sources]
    waveforms = 0.1 * rng.standard_normal((num_orders, num_sources, channels, samples))
    weights = rng.dirichlet(np.ones(num_orders), frames).T if per_frame else rng.dirichlet(np.ones(num_orders))
    candidates = 2 ** (1 + np.arange(num_orders))
    shape = (num_sources, channels, transform.num_bins, frames)
    averaged = np.einsum("m...,m->...", waveforms, weights.mean(axis=1) if per_frame else weights)
    fields: dict[str, Any] = {
        "mixture": averaged.sum(axis=0).astype(dtype),
        "rate": rate,
        "source_names": names,
        "sources": averaged.astype(dtype),
        "orders": np.stack([candidates, *(np.full(num_orders, 32) for _ in range(num_sources - 1))], axis=1),
        "order_labels": tuple(str(order) for order in candidates),
        "weights": weights.astype(dtype),
        "log_prior": np.log(rng.dirichlet(np.ones(num_orders))),
        "beta_per_frame": 20.0,
        "energy_frames": (-900.0 + 15.0 * rng.standard_normal((num_orders, frames))).astype(dtype),
        "energy_dictionary": -rng.uniform(0.0, 50.0, num_orders),
        "energy_order": -1.25,
        "estimates": waveforms.astype(dtype) if with_estimates else None,
        "within": rng.gamma(0.5, 1e-3, shape).astype(dtype) if with_variances else None,
        "between": rng.gamma(0.5, 1e-4, shape).astype(dtype) if with_variances else None,
        "trace": -900.0 * frames - rng.gamma(1.0, 1e3, (num_orders, records)).cumsum(axis=1)[:, ::-1],
        "trace_iterations": 1 + np.arange(records),
        "trace_labels": tuple(f"order {order}" for order in candidates),
        "frequencies": transform.frequencies(max(int(rate), 1)),
        "frame_times": transform.frame_times(max(int(rate), 1), frames),
        "method": "average",
        "transform": transform.to_dict(),
        "settings": {"orders": {"speech": [2, 4]}, "b": 0.2, "note": "é ✓"},
        "seed": 7,
        "version": "0.1.0",
    }
    return Result(**{**fields, **changes})

"""Minima of a smooth function of a few bounded variables from many starting points."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import Bounds, minimize

Cost = Callable[[Float[np.ndarray, " variable"]], tuple[float, Float[np.ndarray, " variable"]]]


class Minimum(NamedTuple):
    """Where a descent ended."""

    point: Float[np.ndarray, " variable"]
    value: float


def descend(cost: Cost, starts: Sequence[Any], bounds: Bounds, *, iterations: int = 300) -> list[Minimum]:
    """The ends of descents (L-BFGS-B) from all starting points, the best first.

    Parameters
    ----------
    cost
        Value and gradient.
    starts
        Points; those outside the bounds are moved to them.
    bounds
        Of every variable.
    iterations
        At most, of each descent.
    """
    ends = []
    for start in starts:
        point = np.clip(np.asarray(start, np.float64), bounds.lb, bounds.ub)
        found: Any = minimize(
            cost, point, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations, "ftol": 1e-13}
        )
        ends.append(Minimum(np.clip(found.x, bounds.lb, bounds.ub), float(found.fun)))
    return sorted(ends, key=lambda end: end.value)


def distinct(
    minima: Sequence[Minimum], signature: Callable[[np.ndarray], np.ndarray], *, tolerance: float
) -> list[Minimum]:
    """The minima, best first, of which no earlier one has the same signature within the tolerance.

    Parameters
    ----------
    minima
        Sorted by value.
    signature
        What makes two points the same, an array of constant shape.
    tolerance
        Largest difference of an entry.
    """
    kept: list[tuple[Minimum, np.ndarray]] = []
    for candidate in minima:
        mark = signature(candidate.point)
        if all(np.abs(mark - other).max() > tolerance for _, other in kept):
            kept.append((candidate, mark))
    return [minimum for minimum, _ in kept]

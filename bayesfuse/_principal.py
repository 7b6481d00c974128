"""Leading principal components of rows that come in batches and are never held together."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

# Up to so many inputs their covariance, 128 MiB of it, is added up. At 2,400 this takes a ninth of the time of
# `IncrementalPCA` with 256 components.
EXACT_INPUTS = 4096
# Rows of a batch, at least.
_ROWS = 1024


class Components(NamedTuple):
    """Axes [component, input] of largest variance first, their variances, and that of all axes together."""

    axes: Float[np.ndarray, "component input"]
    variances: Float[np.ndarray, " component"]
    total: float


def principal_components(batches: Iterable[Float[np.ndarray, "row input"]], count: int, inputs: int) -> Components:
    """The leading components of all rows, about their mean, as scikit-learn's `PCA` has them.

    Up to `EXACT_INPUTS` inputs they are exact: the covariance is added up in double precision and decomposed once,
    which for rows of unit variance loses nothing that counts. Above, they are those of `IncrementalPCA`: exact to its
    truncation between batches.

    Parameters
    ----------
    batches
        Rows in single or double precision, any number at a time.
    count
        Number of components, at most that of inputs and that of rows.
    inputs
        Entries of a row.
    """
    parts = _batches(batches, max(count, _ROWS))
    if inputs <= EXACT_INPUTS:
        return _of_covariance(parts, count, inputs)
    from sklearn.decomposition import IncrementalPCA

    pca: Any = IncrementalPCA(count)
    for batch in parts:
        pca.partial_fit(batch)
    total = pca.explained_variance_[0] / pca.explained_variance_ratio_[0]
    return Components(pca.components_, pca.explained_variance_, float(total))


def _of_covariance(batches: Iterable[Float[np.ndarray, "row input"]], count: int, inputs: int) -> Components:
    products, sums, rows = np.zeros((inputs, inputs)), np.zeros(inputs), 0
    for batch in batches:
        doubled = batch.astype(np.float64)
        products += doubled.T @ doubled
        sums += doubled.sum(axis=0)
        rows += len(batch)
    products -= np.outer(sums, sums / rows)
    products /= max(rows - 1, 1)
    total = float(np.trace(products))
    values, vectors = scipy.linalg.eigh(
        products, subset_by_index=(inputs - count, inputs - 1), overwrite_a=True, check_finite=False
    )
    axes = vectors.T[::-1]
    # Signs as scikit-learn has them: the largest entry of an axis is positive.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return Components(axes * np.where(largest < 0, -1.0, 1.0), np.maximum(values[::-1], 0.0), total)


def _batches(parts: Iterable[Float[np.ndarray, "row input"]], size: int) -> Iterator[Float[np.ndarray, "row input"]]:
    """The same rows in batches of at least `size`, or all of them if there are fewer."""
    held: list[np.ndarray] = []
    for part in parts:
        held.append(part)
        while sum(map(len, held)) >= 2 * size:
            joined = np.concatenate(held)
            yield joined[:size]
            held = [joined[size:]]
    yield np.concatenate(held)

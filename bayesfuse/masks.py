"""Ideal masks: what filtering the mixture could give at best, as rungs of the ladder beside the fusion oracles.

A mask rule maps the coefficients of all true sources to gains between 0 and 1 for each of them; `ideal_estimates`
applies it to the mixture. Fusion is not bound by these: masks keep the mixture's phase, and estimates may have any.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Complex, Float

from bayesfuse import wiener
from bayesfuse._checks import check_finite
from bayesfuse._simplex import indicator
from bayesfuse._streaming import overlap_added, slices
from bayesfuse.grams import FrameTransform

Coefficients = Complex[np.ndarray, "source ... bin frame"]
Gains = Float[np.ndarray, "source ... bin frame"]
MaskRule = Callable[[Coefficients], Gains]

# Samples, over all signals, that are transformed at a time.
_BLOCK = 1 << 20


def binary_mask(sources: Coefficients) -> Gains:
    """The ideal binary mask: 1 for the source of the largest power in the bin (the first among equals), else 0."""
    return indicator(_power(sources), 0)


def ratio_mask(sources: Coefficients) -> Gains:
    """The ideal ratio mask: |S_j| / sum_l |S_l|, and 0 where all are silent."""
    return _shares(np.abs(sources))


def wiener_mask(sources: Coefficients) -> Gains:
    """The ideal Wiener filter: |S_j|^2 / sum_l |S_l|^2, and 0 where all are silent."""
    return _shares(_power(sources))


def ideal_estimates(
    rule: MaskRule,
    mixture: Float[np.ndarray, "..."],
    references: Float[np.ndarray, "..."],
    *,
    transform: FrameTransform,
) -> Float[np.ndarray, "..."]:
    """The estimates of all sources by an ideal mask on the mixture, each channel by itself.

    Parameters
    ----------
    rule
        `binary_mask`, `ratio_mask`, `wiener_mask`, or another function of the true sources' coefficients.
    mixture
        The mixture [..., sample].
    references
        The true sources [source, ..., sample]. What they leave of the mixture counts as one more source, so that one
        source among others that are not given is enough.
    transform
        The time-frequency transform.

    Returns
    -------
    array
        [source, ..., sample], in the precision of the input. Besides it and the arguments little memory is needed.

    Raises
    ------
    ValueError
        If the shapes differ or a value is NaN or infinite.
    """
    if references.ndim < 2 or references.shape[1:] != mixture.shape or 0 in references.shape:
        raise ValueError(
            f"ideal_estimates got a mixture of shape {mixture.shape} and references of shape {references.shape}; "
            "references must have one leading source axis and otherwise the shape of the mixture, not empty."
        )
    check_finite("ideal_estimates", mixture=mixture, references=references)

    def filtered(signals: np.ndarray, frames: range, final: bool) -> np.ndarray:
        whole, sources = signals[0], signals[1:]
        everything = np.concatenate([sources, (whole - sources.sum(axis=0))[None]])
        gains = rule(transform.analysis(everything))[:-1]
        return transform.synthesis(gains * transform.analysis(whole), whole.shape[-1])

    dtype = np.result_type(mixture, references)
    blocks = (
        np.concatenate([whole[None], sources]).astype(dtype) for whole, sources in slices(_BLOCK, mixture, references)
    )
    return np.concatenate(list(overlap_added(blocks, transform, _BLOCK, filtered)), axis=-1)


def _power(sources: Any) -> np.ndarray:
    return sources.real**2 + sources.imag**2


def _shares(weights: np.ndarray) -> np.ndarray:
    # The Wiener filter has the sources third to last, behind the channels.
    return np.moveaxis(np.asarray(wiener.gains(np.moveaxis(weights, 0, -3))), -3, 0)

"""Validation of what the public functions of `nmf` and `dictionary` are given."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def checked_power(power: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """Power and the frames to keep, or ValueError."""
    P = np.asarray(power)
    if P.size == 0:
        raise ValueError(f"the power spectrogram is empty, of shape {P.shape}: expected at least one bin and frame")
    keep = np.ones(P.shape[1], bool) if mask is None else np.asarray(mask)
    if keep.shape != P.shape[1:]:
        raise ValueError(f"the mask has shape {keep.shape} and the power {P.shape[1]} frames: give one entry a frame")
    if not (np.isfinite(P[:, keep]).all() and P[:, keep].min(initial=0.0) >= 0.0):
        raise ValueError("the power has negative, infinite or NaN entries: expected |X|^2 of finite coefficients")
    return P, keep


def checked_factors(P: np.ndarray, dictionaries: Sequence[Any], learn: Sequence[bool]) -> list[np.ndarray]:
    """Dictionaries in the dtype of the power, or ValueError."""
    if not dictionaries or len(dictionaries) != len(learn):
        raise ValueError(
            f"{len(dictionaries)} dictionaries with {len(learn)} entries of `learn`: expected one per source"
        )
    Ws = [np.asarray(W).astype(P.dtype) for W in dictionaries]
    for j, W in enumerate(Ws):
        if W.ndim != 2 or W.shape[0] != P.shape[0] or W.shape[1] == 0:
            raise ValueError(
                f"dictionary {j} has shape {W.shape} while the power has {P.shape[0]} frequencies: expected "
                "[freq, component]; train it with the transform of the mixture"
            )
        check_dictionary(W, f"dictionary {j}")
    return Ws


def check_dictionary(weights: np.ndarray, name: str) -> None:
    """Raise ValueError unless all entries are finite and >= 0 and no column is zero."""
    if not (np.isfinite(weights).all() and weights.min() >= 0.0):
        raise ValueError(f"{name} has negative, infinite or NaN entries: expected power spectra >= 0")
    zero = np.flatnonzero(weights.max(axis=0) == 0.0)
    if zero.size:
        raise ValueError(f"{name} is zero in column(s) {zero.tolist()}: remove them, or train on sounding material")


def checked_activations(
    P: np.ndarray, Ws: list[np.ndarray], activations: Sequence[Any] | None, scale: float
) -> list[np.ndarray]:
    """Activations in the dtype of the power (by default equal shares of the mean power), or ValueError."""
    if activations is None:
        shares = [scale / (len(Ws) * W.mean(dtype=np.float64) * W.shape[1]) for W in Ws]
        return [np.full((W.shape[1], P.shape[1]), share, P.dtype) for W, share in zip(Ws, shares, strict=True)]
    if len(activations) != len(Ws):
        raise ValueError(f"{len(activations)} sets of activations for {len(Ws)} dictionaries: expected one each")
    Hs = [np.asarray(H).astype(P.dtype) for H in activations]
    for j, (W, H) in enumerate(zip(Ws, Hs, strict=True)):
        if H.shape != (W.shape[1], P.shape[1]):
            raise ValueError(f"activations {j} have shape {H.shape}: expected {(W.shape[1], P.shape[1])}")
        if not (np.isfinite(H).all() and H.min() >= 0.0):
            raise ValueError(f"activations {j} have negative, infinite or NaN entries: expected finite numbers >= 0")
    return Hs


def checked_settings(noise: float, num_iters: int, floor: float, exponent: float) -> None:
    """ValueError unless all numbers are in their ranges."""
    if not 0.0 <= noise < np.inf:
        raise ValueError(f"noise is {noise}: expected a finite variance >= 0, in the unit of the power")
    if num_iters < 0:
        raise ValueError(f"num_iters is {num_iters}: expected 0 or more")
    if not 0.0 <= floor < 1.0:
        raise ValueError(f"floor is {floor}: expected a fraction of the mean power in [0, 1), such as 1e-10")
    if not 0.0 < exponent <= 1.0:
        raise ValueError(f"exponent is {exponent}: expected a number in (0, 1], where no update raises the cost")

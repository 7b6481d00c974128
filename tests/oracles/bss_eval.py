"""BSS Eval from its definition: a matrix whose columns are the delayed references, and `numpy.linalg.lstsq`."""

import numpy as np


def delayed(signal: np.ndarray, taps: int) -> np.ndarray:
    """A matrix [sample + taps - 1, tap] of a signal delayed by 0..taps - 1 samples."""
    columns = np.zeros((signal.size + taps - 1, taps))
    for delay in range(taps):
        columns[delay : delay + signal.size, delay] = signal
    return columns


def ratios(references, estimates, taps, *, of_sources=False, windows=None):
    """SDR, ISR, SIR, SAR [4, source, window] of estimates [source, channel, sample] in the order of the references.

    Filters are those of the whole signals; they are applied to the references within each window, a slice.
    """
    sources, channels, length = references.shape
    windows = windows or [slice(0, length)]
    found = np.full((4, sources, len(windows)), np.nan)
    for j in range(sources):
        for w, window in enumerate(windows):
            parts = [[], [], [], []]
            for c in range(channels):
                projections = []
                for span in (references[j : j + 1], references):
                    rows = span.reshape(-1, length)
                    whole = np.concatenate([delayed(row, taps) for row in rows], axis=1)
                    target = np.concatenate([estimates[j, c], np.zeros(taps - 1)])
                    filters = np.linalg.lstsq(whole, target, rcond=None)[0]
                    local = np.concatenate([delayed(row[window], taps) for row in rows], axis=1)
                    projections.append(local @ filters)
                tail = np.zeros(taps - 1)
                true = np.concatenate([references[j, c, window], tail])
                given = np.concatenate([estimates[j, c, window], tail])
                for part, value in zip(parts, (true, projections[0], projections[1], given), strict=True):
                    part.append(value)
            true, own, joint, given = map(np.concatenate, parts)
            energies = {
                "sdr": (own, given - own) if of_sources else (true, given - true),
                "isr": (true, own - true),
                "sir": (own, joint - own),
                "sar": (joint, given - joint),
            }
            with np.errstate(divide="ignore"):
                found[:, j, w] = [10 * np.log10((a @ a) / (b @ b)) for a, b in energies.values()]
    if of_sources:
        found[1] = np.nan
    return found

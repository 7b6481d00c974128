"""VB-NMF as one would write it with NumPy and SciPy: the baseline of `speed.py`.

One source, V = W H + noise, Gamma priors, generalised inverse Gaussian posteriors (the mean-field inference of
GaP-NMF, Hoffman, Blei and Cook 2010, without its component weights; with the noise it is the marginal bound of
`bayesfuse.vbnmf` for a single source). E[y] and E[1/y] come from `scipy.special.kve` at every update. All arrays have
the dtype of the power.
"""

import math

import numpy as np
from scipy.special import gammaln, kve

Matrix = np.ndarray


def gig_moments(gamma: float, rho: Matrix, tau: Matrix) -> tuple[Matrix, Matrix]:
    """E[y] and E[1/y] of GIG(gamma, rho, tau) by two Bessel functions; the Gamma limit where tau underflows.

    K_(gamma+1), which a textbook would call a third time, follows from the recurrence: rho E[y] = gamma + tau E[1/y].
    """
    z = 2 * np.sqrt(rho * tau)
    limit = z < 1e-30
    safe = np.where(limit, z.dtype.type(1), z)
    ratio = kve(z.dtype.type(gamma - 1), safe) / kve(z.dtype.type(gamma), safe)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(limit, z.dtype.type(np.inf), ratio * np.sqrt(rho / tau))
    mean = (gamma + np.where(limit, z.dtype.type(0), z / 2 * ratio)) / rho
    return mean, inverse


def fit(
    power: Matrix, W: Matrix, H: Matrix, *, a: float, b: float, rate: float, noise: float, num_iters: int
) -> tuple[tuple[Matrix, ...], tuple[Matrix, ...]]:
    """Posteriors (E[y], E[1/y], rho, tau) of dictionary and activations after alternating updates.

    Parameters
    ----------
    W, H
        Start of E[y], with E[1/y] = 1 / E[y].
    rate
        Rate of the Gamma prior of H; that of W is `a`.
    """
    EW, IW, EH, IH = W, 1 / W, H, 1 / H
    for _ in range(num_iters):
        omega = EW @ EH + noise
        C = (1 / IW) @ (1 / IH) + noise
        rho_w = a + (1 / omega) @ EH.T
        tau_w = (1 / IW) ** 2 * ((power / C**2) @ (1 / IH).T)
        EW, IW = gig_moments(a, rho_w, tau_w)
        omega = EW @ EH + noise
        C = (1 / IW) @ (1 / IH) + noise
        rho_h = rate + EW.T @ (1 / omega)
        tau_h = (1 / IH) ** 2 * ((1 / IW).T @ (power / C**2))
        EH, IH = gig_moments(b, rho_h, tau_h)
    return (EW, IW, rho_w, tau_w), (EH, IH, rho_h, tau_h)


def free_energy(
    power: Matrix, w: tuple[Matrix, ...], h: tuple[Matrix, ...], *, a: float, b: float, rate: float, noise: float
) -> float:
    """The bound of log p(X) that `fit` maximises, in double precision."""
    P, (EW, IW, *_), (EH, IH, *_) = (
        power.astype(np.float64),
        [np.asarray(y, np.float64) for y in w],
        [np.asarray(y, np.float64) for y in h],
    )
    omega = EW @ EH + noise
    C = (1 / IW) @ (1 / IH) + noise
    data = np.sum(-math.log(math.pi) - np.log(omega) - P / C)
    return float(data - _divergence(w, a, a) - _divergence(h, b, rate))


def _divergence(factor: tuple[Matrix, ...], shape: float, rate: float) -> float:
    """KL(GIG(shape, rho, tau) || Gamma(shape, rate)), summed over the entries."""
    mean, _, rho, tau = (np.asarray(y, np.float64) for y in factor)
    z = 2 * np.sqrt(rho * tau)
    limit = z < 1e-30
    safe = np.where(limit, 1.0, z)
    T = safe / 2 * kve(shape - 1, safe) / kve(shape, safe)
    ratio = np.where(limit, 1.0, tau) / rho
    log_z = np.where(
        limit,
        gammaln(shape) - shape * np.log(rho),
        math.log(2) + shape / 2 * np.log(ratio) + np.log(kve(shape, safe)) - safe,
    )
    T = np.where(limit, 0.0, T)
    return float(-np.sum(shape * math.log(rate) - gammaln(shape) + shape - rate * mean + 2 * T + log_z))

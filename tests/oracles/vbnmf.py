"""The variational model from its definition: every expectation by quadrature of the densities, in NumPy.

Nothing here uses a Bessel function, a closed form of the bound or code of the package. The factors are integrated on a
grid in log y, where the trapezoidal rule converges exponentially for the densities y^(gamma-1) exp(-rho y - tau/y); the
sources are Gaussians given by any mean and any J x J covariance; the auxiliary omega and phi are arguments, so that
their optimum can be checked too. A posterior is handed over as nested lists of `Term` and plain arrays.
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy import stats


class Term(NamedTuple):
    """What the bound needs of one factor: E[y], E[1/y] and E[log p(y)] - E[log q(y)] per entry (0 if not learned)."""

    mean: np.ndarray
    inverse: np.ndarray
    gap: np.ndarray


class Pair(NamedTuple):
    """Dictionary [freq, component] and activations [component, frame] of one order of one source."""

    w: Term
    h: Term


class Parts(NamedTuple):
    """The bound in nats: per frame, of the dictionaries, of q(K)."""

    frames: np.ndarray
    dictionary: float
    order: float

    @property
    def total(self):
        return self.frames.sum() + self.dictionary + self.order


# Generalised inverse Gaussian factors ---------------------------------------------------------------------------------


def log_grid(gamma, rho, tau, points=4000):
    """Points t = log y and normalised trapezoidal weights for GIG entries, appended as a last axis; and log Z."""
    gamma, rho, tau = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (gamma, rho, tau)))

    def log_density(t, power):
        with np.errstate(over="ignore", invalid="ignore"):
            pull = np.where(tau > 0, tau * np.exp(-t), 0.0)
            return power * t - rho * np.exp(t) - pull

    # 90 nats below the maximum nothing counts, neither for the density itself nor weighted by 1/y. Both logarithms are
    # concave in t, so each edge is found by bisection.
    edges = []
    for power in (gamma, gamma - 1):
        if np.any((tau == 0) & (power <= 0)):
            continue  # E[1/y] is infinite
        top = np.log((power + np.sqrt(power**2 + 4 * rho * tau)) / (2 * rho))
        level = log_density(top, power) - 90
        for far in (top - 5000.0, top + 5000.0):
            near = top
            for _ in range(60):
                middle = 0.5 * (near + far)
                inside = log_density(middle, power) > level
                near, far = np.where(inside, middle, near), np.where(inside, far, middle)
            edges.append(far)
    low, high = np.min(edges, axis=0), np.max(edges, axis=0)
    t = np.linspace(low, high, points, axis=-1)
    with np.errstate(over="ignore"):
        pull = np.where(tau[..., None] > 0, tau[..., None] * np.exp(-t), 0.0)
        log_f = gamma[..., None] * t - rho[..., None] * np.exp(t) - pull
    top = log_f.max(-1, keepdims=True)
    weights = np.exp(log_f - top)
    mass = weights.sum(-1, keepdims=True)
    log_z = (top + np.log(mass * (t[..., 1:2] - t[..., 0:1])))[..., 0]
    return t, weights / mass, log_z


def gig_term(gamma, rate, rho, tau, learned=True):
    """Expectations of GIG(gamma, rho, tau) under the prior Gamma(gamma, rate)."""
    t, weights, log_z = log_grid(gamma, rho, tau)
    mean = (weights * np.exp(t)).sum(-1)
    inverse = (weights * np.exp(-t)).sum(-1)
    if not learned:
        return Term(mean, inverse, np.zeros_like(mean))
    rho, tau = np.asarray(rho)[..., None], np.asarray(tau)[..., None]
    log_q = (gamma - 1) * t - rho * np.exp(t) - tau * np.exp(-t) - log_z[..., None]
    # The two logarithms differ by little where the mass lies: their difference is integrated, not each on its own.
    log_p = stats.gamma.logpdf(np.exp(t), gamma, scale=1 / np.float64(rate))
    return Term(mean, inverse, (weights * (log_p - log_q)).sum(-1))


def dirac_term(value):
    value = np.asarray(value, dtype=np.float64)
    return Term(value, 1 / value, np.zeros_like(value))


def sample_gig(rng, gamma, rho, tau, num):
    """Draws by inverting the distribution function on the grid, [draw, ...]."""
    t, weights, _ = log_grid(gamma, rho, tau)
    cdf = np.cumsum(weights, -1)
    u = rng.random((num, *cdf.shape[:-1]))
    draws = np.empty_like(u)
    for index in np.ndindex(cdf.shape[:-1]):
        draws[(slice(None), *index)] = np.interp(u[(slice(None), *index)], cdf[index], t[index])
    return np.exp(draws)


# Auxiliary variables --------------------------------------------------------------------------------------------------


def optimal_auxiliary(pairs, noise):
    """omega [freq, frame] and phi [freq, frame, component], noise first, for components that share a variance."""
    omega = noise + sum(p.w.mean @ p.h.mean for p in pairs)
    shape = (*omega.shape, 1)
    g = [np.broadcast_to(np.float64(noise), shape)]
    g += [1 / (p.w.inverse[:, None, :] * p.h.inverse.T[None, :, :]) for p in pairs]
    g = np.concatenate(g, -1)
    return omega, g / g.sum(-1, keepdims=True)


def log_normal_bound(second, pairs, noise, omega, phi):
    """Bound of E log CN(s | 0, noise + sum_k w_k h_k), E|s|^2 = second, for any omega > 0 and phi in the simplex."""
    mean = noise + sum(p.w.mean @ p.h.mean for p in pairs)
    inverse = np.concatenate([p.w.inverse[:, None, :] * p.h.inverse.T[None, :, :] for p in pairs], -1)
    weighted = (phi[..., 1:] ** 2 * inverse).sum(-1)
    if noise > 0:
        weighted = weighted + phi[..., 0] ** 2 / noise
    return -np.log(np.pi) - np.log(omega) + 1 - mean / omega - second * weighted


# Bounds ---------------------------------------------------------------------------------------------------------------


def source_posterior(X, noise, variances):
    """Mean [source, freq, frame] and covariance [freq, frame, source, source] by inverting the J x J precision."""
    precision = np.eye(len(variances)) / np.moveaxis(variances, 0, -1)[..., None] + 1 / noise
    covariance = np.linalg.inv(precision)
    mean = np.moveaxis(covariance.sum(-1), -1, 0) * X / noise
    return mean, covariance


def explicit_bound(X, noise, table, q, pi, mean, covariance, auxiliary=None):
    """[JVR14] eq. 10 with q(S) = CN(mean, covariance), q and pi one vector per source, table[source][order]."""
    freq, num_sources = X.shape[0], len(table)
    residual = np.abs(X - mean.sum(0)) ** 2 + covariance.sum((-2, -1)).real
    likelihood = -np.log(np.pi * noise) - residual / noise
    sign, logdet = np.linalg.slogdet(covariance)
    assert np.all(sign.real > 0)
    entropy = num_sources * (1 + np.log(np.pi)) + logdet
    frames = (likelihood + entropy).sum(0)
    dictionary = order = 0.0
    for j, pairs in enumerate(table):
        second = np.abs(mean[j]) ** 2 + covariance[..., j, j].real
        for m, pair in enumerate(pairs):
            omega, phi = auxiliary[j][m] if auxiliary else optimal_auxiliary([pair], 0.0)
            bins = log_normal_bound(second, [pair], 0.0, omega, phi)
            assert bins.shape[0] == freq
            frames = frames + q[j][m] * (bins.sum(0) + pair.h.gap.sum(0))
            dictionary += q[j][m] * pair.w.gap.sum()
        order += np.sum(q[j] * (np.log(pi[j]) - np.log(q[j])))
    return Parts(frames, dictionary, order)


def combinations(table):
    return list(itertools.product(*(range(len(pairs)) for pairs in table)))


def product(vectors):
    return np.array([np.prod(choice) for choice in itertools.product(*vectors)])


def marginal_bound(X, noise, table, q, pi, auxiliary=None):
    """Sources integrated out; q one vector over combinations, pi one vector per source."""
    pi = product(pi)
    frames = np.zeros(X.shape[1])
    dictionary = 0.0
    for i, choice in enumerate(combinations(table)):
        pairs = [table[j][m] for j, m in enumerate(choice)]
        omega, phi = auxiliary[i] if auxiliary else optimal_auxiliary(pairs, noise)
        bins = log_normal_bound(np.abs(X) ** 2, pairs, noise, omega, phi)
        frames = frames + q[i] * (bins.sum(0) + sum(p.h.gap.sum(0) for p in pairs))
        dictionary += q[i] * sum(p.w.gap.sum() for p in pairs)
    return Parts(frames, dictionary, np.sum(q * (np.log(pi) - np.log(q))))


def objective(parts, q, pi, beta, temper):
    """Bound plus (beta - 1) H[q] or minus (beta - 1) KL(q || pi); q and pi lists of vectors, one per factor of q(K)."""
    if temper == "entropy":
        extra = -sum(np.sum(v * np.log(v)) for v in q)
    else:
        extra = -sum(np.sum(v * (np.log(v) - np.log(p))) for v, p in zip(q, pi, strict=True))
    return parts.total + (beta - 1) * extra

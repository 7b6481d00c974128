"""Whether a criterion is any good: does it rank models as their quality does, is its posterior over orders calibrated,
and how far does the free energy lie below the evidence?

Arithmetic on arrays of any origin; free energies and evidences in nats, larger is better.

References
----------
[TVSG18] S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman, "Validating Bayesian inference algorithms with
simulation-based calibration", arXiv:1804.06788, 2018.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import kstest, rankdata


def rank_correlations(
    criterion: Float[np.ndarray, "*unit model"], quality: Float[np.ndarray, "*unit model"]
) -> Float[np.ndarray, "*unit"]:
    """Return Spearman's rank correlation over the models, of every unit (utterance, frame) by itself.

    NaN where all models of a unit tie in either. The two arrays broadcast.

    Raises
    ------
    ValueError
        For fewer than two models or a NaN.
    """
    a, b = np.broadcast_arrays(np.asarray(criterion, np.float64), np.asarray(quality, np.float64))
    if a.shape[-1] < 2 or np.isnan(a).any() or np.isnan(b).any():
        raise ValueError(f"rank_correlations got shape {a.shape}: expected two models or more, and no NaN among them.")
    ranks = [rankdata(values, axis=-1) - (a.shape[-1] + 1) / 2 for values in (a, b)]
    spread = np.sqrt((ranks[0] ** 2).sum(-1) * (ranks[1] ** 2).sum(-1))
    return np.where(spread > 0, (ranks[0] * ranks[1]).sum(-1) / np.where(spread > 0, spread, 1.0), np.nan)


class Calibration(NamedTuple):
    """How a posterior over orders fares on recordings whose orders are known.

    Attributes
    ----------
    ranks
        Probability below the true order, uniform on [0, 1] if the posterior is right ([TVSG18]).
    p_value
        Of the Kolmogorov-Smirnov test that they are.
    confidence, hits
        Mean largest probability, and how often that order was the true one: equal if the posterior is right.
    log_score
        Mean log probability of the true order, nats.
    expected_order
        Mean posterior mean of the index less the true index: negative leans to the front of the list.
    """

    ranks: Float[np.ndarray, " recording"]
    p_value: float
    confidence: float
    hits: float
    log_score: float
    expected_order: float


def calibration(
    log_evidence: Float[np.ndarray, "recording order"],
    orders: Sequence[int] | Int[np.ndarray, " recording"],
    log_prior: Float[np.ndarray, " order"] | None = None,
    *,
    seed: int = 0,
) -> Calibration:
    """Return how well softmax(log_prior + log_evidence) predicts the orders that recordings were drawn with.

    Parameters
    ----------
    log_evidence
        log p(X | order), or a free energy in its place.
    orders
        Index of the true order of every recording, drawn from the prior.
    log_prior
        Uniform by default.
    seed
        Of the ranks, which are randomised within the probability of the true order.

    Raises
    ------
    ValueError
        For another number of orders than of recordings, or an index that does not exist.
    """
    logits = np.asarray(log_evidence, np.float64) + (0.0 if log_prior is None else np.asarray(log_prior))
    truth = np.asarray(orders)
    if logits.ndim != 2 or truth.shape != logits.shape[:1] or not np.all((truth >= 0) & (truth < logits.shape[1])):
        raise ValueError(
            f"calibration got log evidences of shape {logits.shape} and {truth.size} orders: expected "
            "[recording, order] and the index of one of these orders for every recording."
        )
    log_q = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    q = np.exp(log_q)
    rows = np.arange(truth.size)
    # A stream of its own: whoever drew the orders may well have seeded with the same small number.
    jitter = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(truth.size, q.shape[1])))
    below = np.where(np.arange(q.shape[1]) < truth[:, None], q, 0.0).sum(1)
    ranks = below + jitter.uniform(size=truth.size) * q[rows, truth]
    return Calibration(
        ranks,
        float(kstest(ranks, "uniform").pvalue),
        float(q.max(1).mean()),
        float((q.argmax(1) == truth).mean()),
        float(log_q[rows, truth].mean()),
        float((q @ np.arange(q.shape[1]) - truth).mean()),
    )


class Gap(NamedTuple):
    """By how much the evidence of a frame exceeds its free energy: constant + per_component K, nats.

    Attributes
    ----------
    per_component, constant
        Least squares on training data.
    explained
        Share of the variance of the gaps that the line explains.
    """

    per_component: float
    constant: float
    explained: float

    def corrected(
        self, free_energy: Float[np.ndarray, "*batch order"], orders: Sequence[int], num_frames: float | int = 1.0
    ) -> Float[np.ndarray, "*batch order"]:
        """Free energies with the gap added, a term proportional to order times frames.

        Parameters
        ----------
        free_energy
            Of a frame, or of as many as `num_frames`.
        orders
            Number of components of each model.
        """
        size = np.asarray(orders, np.float64)
        return np.asarray(free_energy, np.float64) + num_frames * (self.constant + self.per_component * size)


def learn_gap(
    free_energy: Float[np.ndarray, "*frame order"], evidence: Float[np.ndarray, "*frame order"], orders: Sequence[int]
) -> Gap:
    """Return the line through the gaps between evidence and free energy, over the orders.

    Parameters
    ----------
    free_energy, evidence
        Of the same frames.
    orders
        Number of components of each model; two different ones at least.

    Raises
    ------
    ValueError
        If shapes do not match or all orders are the same.
    """
    gaps = np.asarray(evidence, np.float64) - np.asarray(free_energy, np.float64)
    size = np.asarray(orders, np.float64)
    if gaps.size == 0 or gaps.shape[-1:] != size.shape or np.ptp(size) == 0:
        raise ValueError(
            f"learn_gap got gaps of shape {gaps.shape} for orders {list(orders)}: expected [..., order], two different "
            "orders at least."
        )
    x = np.broadcast_to(size, gaps.shape).ravel()
    slope, constant = np.polyfit(x, gaps.ravel(), 1)
    rest = gaps.ravel() - (constant + slope * x)
    spread = float(gaps.var())
    return Gap(float(slope), float(constant), 1.0 - float(rest.var()) / spread if spread > 0 else 1.0)

"""Variational Bayesian NMF whose model orders are random variables: prior, posterior, updates, free energy.

The model of [JVR14], with the extensions of [JVR16]. For the STFT coefficients of a mixture of J sources,

    x_fn = sum_j s_j,fn + e_fn,       e_fn ~ CN(0, sigma2),
    s_j,fn | K_j = m ~ CN(0, sum_k w_jm,fk h_jm,kn),
    w_jm,fk ~ Gamma(a, rate a / mean),  h_jm,kn ~ Gamma(b, rate b / mean),  K_j ~ Categorical(pi_j),

where the order K_j of every source is drawn from its own list of candidates and every candidate owns a dictionary W_jm
and activations H_jm. One candidate per source is ordinary VB-NMF. Two lower bounds of log p(X) are maximised by
coordinate ascent over generalised inverse Gaussian factors:

``"explicit"``
    the bound of [JVR14]: the sources stay in q(S), a Gaussian with full J x J covariance in every bin, the orders are
    independent between sources, and the orders of a source mix harmonically inside C_j ([JVR14] eq. 16);
``"marginal"``
    the sources are integrated out before bounding, which is tighter at equal factors. q(K) is a distribution over the
    combinations of orders (one order per source) and the fused estimate is the convex sum of the Wiener estimates of
    the combinations, an instance of [JVR16] eq. 2. This bound is not in the papers.

Both depend on the mixture through its power |x_fn|^2 alone, which is what the functions take. Every factor is held
through its mean E[y] and harmonic mean 1/E[1/y]; E[1/y] itself is infinite in the legitimate limit of a component that
dies (a Gamma posterior with shape <= 1) and is never formed. The auxiliary variables omega and phi of [JVR14] are
always at their optimum (eqs. 13, 14), which leaves omega_jm = E[W] E[H] and C_jm = g_W g_H, g the harmonic means.

Departures from the print: the exponent of E[1/W] in [JVR14] eq. 17 is -2; the joint entropy of the sources is used in
[JVR16] eqs. 35, 36 (the sum of marginal entropies is not a bound); a Dirac dictionary contributes neither a prior
density nor an entropy.

References
----------
[JVR14] X. Jaureguiberry, E. Vincent, G. Richard. Variational Bayesian model averaging for audio source separation.
    IEEE Workshop on Statistical Signal Processing, 2014.
[JVR16] X. Jaureguiberry, E. Vincent, G. Richard. Fusion methods for speech enhancement and audio source separation.
    IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

from bayesfuse.vbnmf_energy import (
    combination_scores,
    combination_terms,
    free_energy,
    source_power,
    source_scores,
    tempered,
)
from bayesfuse.vbnmf_posterior import (
    MAX_COMBINATIONS,
    Component,
    Factor,
    FreeEnergy,
    GammaPrior,
    Posterior,
    Prior,
    Scores,
    Temper,
    Terms,
    Variant,
    combine_logs,
    expected_variance,
    harmonic_variance,
    make_prior,
)
from bayesfuse.vbnmf_updates import (
    multiplicative_steps,
    step,
    update_activations,
    update_dictionaries,
    update_orders,
    update_sources,
)

__all__ = [
    "MAX_COMBINATIONS",
    "Component",
    "Factor",
    "FreeEnergy",
    "GammaPrior",
    "Posterior",
    "Prior",
    "Scores",
    "Temper",
    "Terms",
    "Variant",
    "combination_scores",
    "combination_terms",
    "combine_logs",
    "expected_variance",
    "free_energy",
    "harmonic_variance",
    "make_prior",
    "multiplicative_steps",
    "source_power",
    "source_scores",
    "step",
    "tempered",
    "update_activations",
    "update_dictionaries",
    "update_orders",
    "update_sources",
]

"""Separation by variational Bayesian NMF: one model order, each of several, or all in one model.

[JVR14] X. Jaureguiberry, E. Vincent, G. Richard, "Variational Bayesian model averaging for audio source
separation", IEEE Workshop on Statistical Signal Processing, 2014.
[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bayesfuse import estimates, inference
from bayesfuse._precision import precision
from bayesfuse.dictionary import Dictionary
from bayesfuse.inference import Candidate, Fit
from bayesfuse.inference_batch import fit_batch
from bayesfuse.separators.contract import Masks, Separation, Separator, separate_channels
from bayesfuse.separators.ml_nmf import seed_of
from bayesfuse.transforms import STFT, Transform
from bayesfuse.vbnmf import Factor, Prior, Temper, Variant, make_prior

Model = Sequence[Sequence[Dictionary | int]]

# Bessel functions are computed up to this order.
_LARGEST_SHAPE = 50.0
# Nats per frame. The temperature of a fit cannot be zero; far below one nat in all it selects, too.
_COLDEST = 1e-9


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the variational model is fitted; the fields of `vbnmf.make_prior` and `inference.fit`.

    `beta_per_frame` is the temperature of q(K) in nats per frame: the total free energy of N frames is divided by
    N beta_per_frame.
    """

    a: float = 0.2
    b: float = 0.2
    noise: float = 1e-6
    beta_per_frame: float = 100.0
    temper: Temper = "kl"
    variant: Variant = "marginal"
    num_iters: int = 50
    tolerance: float | None = None
    ml_iters: int = 10


def check_settings(settings: Settings) -> Settings:
    """The settings, with numbers as floats and ints of Python, if a model can be fitted with them.

    Raises
    ------
    ValueError
        That names the field, what it is, and what was expected.
    """
    shape = f"the shape of a Gamma prior, above 0 and at most {_LARGEST_SHAPE:g}"
    reals: list[tuple[str, Callable[[float], bool], str]] = [
        ("a", lambda x: 0 < x <= _LARGEST_SHAPE, shape),
        ("b", lambda x: 0 < x <= _LARGEST_SHAPE, shape),
        ("noise", lambda x: 0 < x < math.inf, "a positive number, relative to the mixture's mean power"),
        ("beta_per_frame", lambda x: x >= 0, "a temperature in nats per frame, 0 or more"),
        ("tolerance", lambda x: 0 <= x < math.inf, "a number of 0 or more, or None for a fixed number of iterations"),
    ]
    checked: dict[str, Any] = {}
    for name, accept, expected in reals:
        value = getattr(settings, name)
        if name == "tolerance" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not accept(float(value)):
            raise _refused(settings, name, expected)
        checked[name] = float(value)
    for name, least in (("num_iters", 1), ("ml_iters", 0)):
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
            raise _refused(settings, name, f"a whole number of iterations, at least {least}")
        checked[name] = int(value)
    for name, choices in (("variant", get_args(Variant)), ("temper", get_args(Temper))):
        if getattr(settings, name) not in choices:
            raise _refused(settings, name, f"one of {', '.join(choices)}")
    return dataclasses.replace(settings, **checked)


def _refused(settings: Settings, name: str, expected: str) -> ValueError:
    shown = "beta" if name == "beta_per_frame" else name
    return ValueError(f"{shown}={getattr(settings, name)!r}: expected {expected}.")


def fit_joint(
    power: Float[np.ndarray, "band frame"],
    model: Model,
    settings: Settings | None = None,
    *,
    seed: int = 0,
    order_prior: Sequence[Sequence[float]] | None = None,
    progress: bool = False,
) -> Fit:
    """Return the fit of one model over all candidate orders, `model[source][order]`.

    Parameters
    ----------
    power
        |X|^2 of the mixture in the bands of the dictionaries' transform.
    model
        For each source its candidates: trained dictionaries, which are held fixed, or integers, orders of
        dictionaries to be learned on the mixture. The activations of a learned dictionary of order K have prior mean
        1/K, so that all orders predict the same power.
    order_prior
        Prior probabilities of the candidates of each source; uniform by default.
    """
    settings = Settings() if settings is None else settings
    prior = _prior(power, model, settings, order_prior)
    candidates = [[_candidate(c, power.dtype) for c in row] for row in model]
    q0 = inference.start(power, candidates, prior, variant=settings.variant, seed=seed, ml_iters=settings.ml_iters)
    return inference.fit(
        power, q0, prior, num_iters=settings.num_iters, tolerance=settings.tolerance, progress=progress
    )


def _prior(
    power: Float[np.ndarray, "band frame"],
    model: Model,
    settings: Settings,
    order_prior: Sequence[Sequence[float]] | None = None,
) -> Prior:
    return make_prior(
        [[c if isinstance(c, int) else c.order for c in row] for row in model],
        a=settings.a,
        b=settings.b,
        noise=settings.noise,
        beta=max(settings.beta_per_frame, _COLDEST) * power.shape[1],
        order=order_prior,
        activation_mean=[[1.0 / c if isinstance(c, int) else 1.0 for c in row] for row in model],
        temper=settings.temper,
        dtype=power.dtype,
    )


def fit_several(
    powers: Sequence[Float[np.ndarray, "band _"]],
    models: Sequence[Model],
    settings: Settings | None = None,
    *,
    seed: int = 0,
) -> list[Fit]:
    """Return the fits of several mixtures, found together on all devices; see `inference_batch.fit_batch`.

    Parameters
    ----------
    powers
        Of each mixture, all of one bucket of lengths (`nmf.bucket_length`).
    models
        As `fit_joint` takes them, one for each mixture and all of one layout.
    settings
        Of the variant "marginal", without a tolerance.

    Raises
    ------
    ValueError
        For settings of the explicit variant or with a tolerance, and as `inference_batch.fit_batch`.
    """
    settings = Settings() if settings is None else settings
    if settings.variant != "marginal" or settings.tolerance is not None:
        raise ValueError(
            f"fit_several got variant={settings.variant!r}, tolerance={settings.tolerance}; it fits the marginal "
            "variant for a fixed number of iterations. Use fit_joint for others."
        )
    return fit_batch(
        powers,
        [[[_candidate(c, power.dtype) for c in row] for row in m] for power, m in zip(powers, models, strict=True)],
        [_prior(power, m, settings) for power, m in zip(powers, models, strict=True)],
        num_iters=settings.num_iters,
        ml_iters=settings.ml_iters,
        seed=seed,
    )


def fit_orders(
    power: Float[np.ndarray, "band frame"],
    model: Model,
    settings: Settings | None = None,
    *,
    seed: int = 0,
    progress: bool = False,
) -> list[Fit]:
    """Return one fit per combination of candidate orders, the last source varying fastest.

    Arguments are those of `fit_joint`; every fit is an ordinary VB-NMF with one order per source.
    """
    from tqdm.auto import tqdm

    combinations = list(itertools.product(*model))
    bar = tqdm(combinations, disable=not progress, desc="VB-NMF by order", unit="order", leave=False)
    return [fit_joint(power, [[c] for c in choice], settings, seed=seed) for choice in bar]


def choose_shape(
    power: Float[np.ndarray, "band frame"],
    model: Model,
    settings: Settings | None = None,
    *,
    shapes: Sequence[float] = (0.1, 0.2, 0.5, 1.0),
    seed: int = 0,
) -> Settings:
    """Return the settings with the shape b of the activations' prior that has the largest free energy.

    Empirical Bayes over a grid, on the joint model. The largest free energy is not always the best separation: the
    bound tends to prefer a shape somewhat below the one with the largest SDR.
    """
    settings = Settings() if settings is None else settings
    tried = [dataclasses.replace(settings, b=b) for b in shapes]
    return max(tried, key=lambda option: fit_joint(power, model, option, seed=seed).free_energy.total)


def _candidate(dictionary: Dictionary | int, dtype: np.dtype) -> Candidate:
    if isinstance(dictionary, int):
        return dictionary
    with precision(dtype):
        mean = jnp.asarray(dictionary.weights, dtype)
        return Factor(mean, mean if dictionary.harmonic is None else jnp.asarray(dictionary.harmonic, dtype))


def vb_nmf(
    dictionaries: Sequence[Dictionary | int],
    *,
    transform: Transform | None = None,
    settings: Settings | None = None,
) -> Separator:
    """Return a separator by VB-NMF with one order per source ([JVR16] Appendix B), free energy included.

    Parameters
    ----------
    dictionaries
        One per source, a trained `Dictionary` or the order of one to be learned on the mixture.
    """
    return joint_vb_nmf([[d] for d in dictionaries], transform=transform, settings=settings)


def joint_vb_nmf(model: Model, *, transform: Transform | None = None, settings: Settings | None = None) -> Separator:
    """Return a separator by one VB-NMF over all candidate orders, averaged by q(K) ([JVR14]), free energy included.

    Parameters
    ----------
    model
        Candidates of each source, ``[source][order]``; see `fit_joint`.
    """
    chosen = STFT() if transform is None else transform

    def separator(key: Array, mixture: Float[np.ndarray, "channel sample"]) -> Separation:
        seed = seed_of(key)

        def masks(power: Float[np.ndarray, "band frame"]) -> Masks:
            fit = fit_joint(power, model, settings, seed=seed)
            return Masks(estimates.moments(power, fit).gains, fit.free_energy)

        return separate_channels(mixture, chosen, masks)

    return separator

"""Variational fits for ArviZ: draws of orders and sources, log likelihoods per frame, and comparison of models.

The draws are independent ones from the variational posterior q, not a Markov chain: there is one "chain", and R-hat or
effective sample sizes say nothing about the fit. What the log likelihood is of is the frame: p(x_n | W, H) given the
dictionaries and the activations drawn from q, which is what ArviZ's leave-one-out comparison takes. A frame has
activations of its own, so that leaving it out moves its posterior far. On an utterance of mini-chime at 0 dB, with 500
draws, Pareto k exceeded its limit in 57, 69, 86 and 100 % of the frames for 2, 8, 32 and 128 components of speech:
`compare` has columns of them, and where they are large its ranking, which prefers many components, is not to be
trusted.

Free energies are bounds of the evidence of a whole recording. They stand in the group `fusion` and are no log
likelihood.

References
----------
[JVR14] X. Jaureguiberry, E. Vincent, G. Richard. Variational Bayesian model averaging for audio source separation.
    IEEE Workshop on Statistical Signal Processing, 2014.
[VGG17] A. Vehtari, A. Gelman, J. Gabry. Practical Bayesian model evaluation using leave-one-out cross-validation and
    WAIC. Statistics and Computing 27(5), 2017.
[YVSG18] Y. Yao, A. Vehtari, D. Simpson, A. Gelman. Using stacking to average Bayesian predictive distributions.
    Bayesian Analysis 13(3), 2018.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Complex, Float, Int

from bayesfuse import estimates
from bayesfuse._precision import precision
from bayesfuse._result_tree import draw_order, for_arviz, order_labels, stacked_traces
from bayesfuse._version import __version__
from bayesfuse.inference import Fit
from bayesfuse.transforms import STFT
from bayesfuse.vbnmf import combine_logs

if TYPE_CHECKING:
    from xarray import Dataset

# Complex entries of the sources' draws that are in memory at a time: 64 MiB in single precision.
_BLOCK = 1 << 23
# Of ArviZ's functions in either version.
Method = Literal["stacking", "BB-pseudo-BMA", "pseudo-BMA"]
ABOUT = "independent draws of a variational posterior: R-hat and effective sample sizes say nothing about the fit"


class _Drawn(NamedTuple):
    """Draws of all fits together, each at its place."""

    index: Int[np.ndarray, " draw"]  # of the order
    likelihood: Float[np.ndarray, "draw frame"]
    sources: Float[np.ndarray, "draw source sample"] | None


def to_inference_data(
    key: Array,
    X: Complex[np.ndarray, "freq frame"],
    fits: Fit | Sequence[Fit],
    *,
    weights: Float[np.ndarray, " fit"] | None = None,
    draws: int = 500,
    transform: STFT | None = None,
    length: int | None = None,
    rate: int | float | None = None,
    source_names: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> Any:
    """The posterior of one mixture for ArviZ: an `InferenceData` with ArviZ 0.x, an `xarray.DataTree` with 1.x.

    Groups, with draws as dimensions (chain, draw), of which there is one chain:

    posterior
        `order_index` (place of the drawn combination of orders in the coordinate `order`), the numbers of `components`
        of every source, and waveforms of the `sources` if there is a transform.
    log_likelihood
        `mixture`: log p(x_n | W, H) of each frame given the factors of each draw, in nats, x_n being measured in the
        unit of its frame (`observed_data`: `unit`), so that ArviZ, which takes exponentials of sums over the draws,
        neither overflows nor underflows. The unit is a function of the mixture alone, and so drops out of any
        comparison of models. In the unit of the mixture it is `log_likelihood - 2 F log(unit)` for F frequencies.
    sample_stats
        `objective` over the iterations of each fit.
    observed_data
        `mixture`, the coefficients as `part` real and imaginary; `unit`.
    fusion
        Posterior `weights` and numbers of `components` of the orders; `free_energy` of the orders, total and per frame,
        and the `bound` of each fit.

    Groups with draws have the attribute inference="vb".

    Parameters
    ----------
    key
        JAX random key.
    X
        STFT of the mixture whose |X|^2 was fitted.
    fits
        One fit over any number of orders, or several of the same sources, each of some orders.
    weights
        Posterior probabilities of several fits, such as `vb_weights` of their free energies; none for one fit.
    draws
        How many. The draws of a source of T samples take 4 T bytes each.
    transform, length
        Transform of X and number of samples, for waveforms of the sources; without them there are none.
    rate
        Samples per second, for coordinates in seconds and Hz; numbers of frames and bins without it.
    source_names, labels
        Names of the sources, and of the orders of all fits one after the other; by default numbers of the former, and
        the latter's numbers of components.

    Raises
    ------
    ValueError
        If weights are missing, superfluous or not a distribution, names are of another number, there is no draw, or
        a transform without a length.
    """
    chosen = [fits] if isinstance(fits, Fit) else list(fits)
    shares = _checked_weights(chosen, weights)
    if draws < 1 or (transform is None) != (length is None):
        raise ValueError(
            f"to_inference_data got draws={draws}, transform={transform} and length={length}: at least one draw, and "
            "transform and length together, which give the draws of the sources as waveforms."
        )
    orders = np.array(
        [[row[m].order for row, m in zip(f.posterior.components, c, strict=True)] for f in chosen for c in _choices(f)],
        np.int64,
    )
    names = _names("source_names", source_names, [f"source {j}" for j in range(orders.shape[1])])
    labels = _names("labels", labels, list(order_labels(names, orders)))
    found = _draw(key, X, chosen, shares, draws, transform, length)
    unit = frame_units(X)
    coordinates = _coordinates(X, names, labels, chosen, draws, transform, rate, length)
    dims = ("chain", "draw")
    marks = {"inference": "vb", "about": ABOUT, "key": jax.random.key_data(key).tolist()}
    nats, amplitude = {"units": "nat"}, {"units": "amplitude"}
    posterior: dict[str, Any] = {
        "order_index": (dims, found.index[None]),
        "components": ((*dims, "source"), orders[found.index][None]),
    }
    if found.sources is not None:
        posterior["sources"] = ((*dims, "source", "sample"), found.sources[None], amplitude)
    likelihood = found.likelihood + 2.0 * X.shape[0] * np.log(unit)
    trace, _ = stacked_traces(chosen)
    groups = {
        "posterior": (posterior, marks),
        "log_likelihood": ({"mixture": ((*dims, "frame"), likelihood[None], nats)}, marks),
        "sample_stats": ({"objective": (("fit", "iteration"), trace, nats)}, {}),
        "observed_data": (
            {
                "mixture": (("part", "frequency", "frame"), np.stack([np.real(X), np.imag(X)]), amplitude),
                "unit": (("frame",), unit, amplitude),
            },
            {},
        ),
        "fusion": (_fusion(chosen, shares, orders), {}),
    }
    return for_arviz(_tree(groups, coordinates))


def frame_units(X: Complex[np.ndarray, "freq frame"]) -> Float[np.ndarray, " frame"]:
    """A unit for each frame in which its log likelihood is a small number, whatever the model.

    e sqrt(pi) times the geometric mean of the magnitudes. In it log p(x_n | v) is the number of frequencies minus the
    Itakura-Saito divergence of the powers from the variances v, which is about as large for a model that fits. Powers
    count from a millionth of their mean on, where models have their noise.
    """
    power = np.abs(X).astype(np.float64) ** 2
    floor = 1e-6 * power.mean() or 1.0
    return np.exp(1.0 + 0.5 * np.log(np.pi * np.maximum(power, floor)).mean(axis=0))


def compare(models: Mapping[str, Any], *, method: Method = "stacking") -> Any:
    """Models of one mixture by their leave-one-out predictive densities of frames, with Pareto k [VGG17, YVSG18].

    ArviZ's `compare`, after its `loo` of every model. Its stacking takes the exponentials of log densities as they
    are: numbers beyond some 700 nats would silently give equal weights, so here every frame counts from its best model.

    Parameters
    ----------
    models
        From `to_inference_data`, of the same mixture, by label.
    method
        How ArviZ finds the weights.

    Returns
    -------
    pandas.DataFrame
        ArviZ's table, best model first, with `pareto_k_max`, the `pareto_k_bad` share of frames whose k exceeds the
        limit up to which the estimate can be trusted, and that limit, `good_k`. Densities of the table are those of the
        frames' units.

    Raises
    ------
    ValueError
        If there are fewer than two models, or they are of different numbers of frames.
    """
    import arviz

    found = {label: loo(data) for label, data in models.items()}
    sizes = {label: item.pointwise.size for label, item in found.items()}
    if len(found) < 2 or len(set(sizes.values())) > 1:
        raise ValueError(f"compare got models of {sizes} frames; give two or more of the same mixture.")
    best = np.max([item.pointwise for item in found.values()], axis=0)
    shifted = {label: item.shifted(best) for label, item in found.items()}
    # ArviZ 1.x rounds by default.
    exact: dict[str, Any] = {} if _is_old(arviz) else {"round_to": "none"}
    with _quiet():
        table: Any = arviz.compare(shifted, method=method, **exact)
    column = "elpd_loo" if _is_old(arviz) else "elpd"
    table[column] = table[column].astype(np.float64) + best.sum()
    rows = [found[str(label)] for label in table.index]
    return table.assign(
        pareto_k_max=[item.pareto_k.max() for item in rows],
        pareto_k_bad=[float(np.mean(item.pareto_k > item.good_k)) for item in rows],
        good_k=[item.good_k for item in rows],
    )


class Loo(NamedTuple):
    """Leave-one-out predictive densities of frames, in nats, and how far they can be trusted.

    Attributes
    ----------
    pointwise
        Of each frame, in its unit.
    pareto_k
        Of each frame.
    good_k
        What the latter should not exceed, for the number of draws.
    elpd
        ArviZ's own result.
    """

    pointwise: Float[np.ndarray, " frame"]
    pareto_k: Float[np.ndarray, " frame"]
    good_k: float
    elpd: Any

    def shifted(self, by: Float[np.ndarray, " frame"]) -> Any:
        """ArviZ's result with a number taken from the density of each frame."""
        import copy

        result = copy.deepcopy(self.elpd)
        if hasattr(result, "loo_i"):
            result["loo_i"] = result["loo_i"] - by
            result["elpd_loo"] = float(result["loo_i"].sum())
        else:
            result.elpd_i = result.elpd_i - by
            result.elpd = float(result.elpd_i.sum())
        return result


def loo(data: Any) -> Loo:
    """Leave-one-out predictive densities of the frames of a model, by ArviZ; one of `to_inference_data`."""
    import arviz

    with _quiet():
        # The draws are independent: their relative efficiency is one.
        elpd: Any = arviz.loo(data, pointwise=True, reff=1.0)
    pointwise = elpd.loo_i if _is_old(arviz) else elpd.elpd_i
    return Loo(np.asarray(pointwise, np.float64), np.asarray(elpd.pareto_k, np.float64), float(elpd.good_k), elpd)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of large k, which the results have frame by frame, and of calls of ArviZ 0.23 into pandas 3."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto distribution")
        warnings.filterwarnings("ignore", message="The inplace keyword")
        yield


def _is_old(arviz: Any) -> bool:
    return arviz.__version__.startswith("0.")


def _choices(fit: Fit) -> tuple[tuple[int, ...], ...]:
    return fit.posterior.combinations


def _checked_weights(fits: Sequence[Fit], weights: Any) -> Float[np.ndarray, " fit"]:
    if len(fits) == 1 and weights is None:
        return np.ones(1)
    shares = np.asarray([] if weights is None else weights, np.float64)
    if shares.shape != (len(fits),) or not (shares >= 0).all() or not np.isclose(shares.sum(), 1.0, atol=1e-5):
        raise ValueError(
            f"to_inference_data got weights={weights} for {len(fits)} fits; give one posterior probability per fit, "
            "such as vb_weights of their free energies."
        )
    return shares / shares.sum()


def _names(what: str, given: Sequence[str] | None, default: list[str]) -> tuple[str, ...]:
    names = tuple(default if given is None else given)
    if len(names) != len(default) or len(set(names)) != len(names):
        raise ValueError(f"to_inference_data got {what} {list(names)}; expected {len(default)} different ones.")
    return names


def _draw(
    key: Array,
    X: Complex[np.ndarray, "freq frame"],
    fits: Sequence[Fit],
    shares: Float[np.ndarray, " fit"],
    draws: int,
    transform: STFT | None,
    length: int | None,
) -> _Drawn:
    """Draws of the fits by their shares, each in blocks of bounded memory."""
    key, pick = jax.random.split(key)
    owner = draw_order(shares, (draws,), int(jax.random.randint(pick, (), 0, 2**31 - 1)))
    first = np.cumsum([0, *(len(_choices(f)) for f in fits)])
    num_sources = len(fits[0].posterior.components)
    index = np.zeros(draws, np.int64)
    likelihood = np.zeros((draws, X.shape[1]))
    sources = None if length is None else np.zeros((draws, num_sources, length), np.real(X).dtype)
    block = max(1, _BLOCK // (num_sources * X.size))
    for number, fit in enumerate(fits):
        places = np.flatnonzero(owner == number)
        noise = float(fit.prior.noise) * fit.scale**2
        for start in range(0, places.size, block):
            part = places[start : start + block]
            key, own = jax.random.split(key)
            found = estimates.draw(own, X, fit, part.size)
            index[part] = first[number] + np.array([_choices(fit).index(tuple(c)) for c in found.orders.tolist()])
            likelihood[part] = estimates.log_likelihood(X, found, noise)
            if sources is not None and transform is not None and length is not None:
                sources[part] = found.waveforms(transform, length)
    return _Drawn(index, likelihood, sources)


def _fusion(fits: Sequence[Fit], shares: Float[np.ndarray, " fit"], orders: Int[np.ndarray, "order source"]) -> Any:
    """Variables of the group `fusion`."""
    with precision(fits[0].free_energy.frames):
        within = [np.asarray(f.posterior.combination_probabilities()) for f in fits]
        log_prior = [np.asarray(combine_logs(f.prior.order)) for f in fits]
    nats = {"units": "nat"}
    variables = {
        "weights": (("order",), np.concatenate([share * q for share, q in zip(shares, within, strict=True)])),
        "components": (("order", "source"), orders),
        "log_prior": (("order",), np.concatenate(log_prior), nats),
        "bound": (("fit",), np.array([f.free_energy.total for f in fits]), nats),
    }
    if all(len(_choices(f)) == 1 for f in fits):
        frames = np.stack([f.free_energy.frames for f in fits]).astype(np.float64)
        rest = np.array([f.free_energy.dictionary for f in fits], np.float64)
    elif all(f.posterior.variant == "marginal" for f in fits):
        frames = np.concatenate([f.scores[0].frames for f in fits]).astype(np.float64)
        rest = np.concatenate([f.scores[0].dictionary for f in fits]).astype(np.float64)
    else:  # the explicit variant has no free energy of a combination of orders
        return variables
    return variables | {
        "free_energy": (("order",), frames.sum(axis=1) + rest, nats),
        "free_energy_frames": (("order", "frame"), frames, nats),
    }


def _coordinates(
    X: Complex[np.ndarray, "freq frame"],
    names: tuple[str, ...],
    labels: tuple[str, ...],
    fits: Sequence[Fit],
    draws: int,
    transform: STFT | None,
    rate: int | float | None,
    length: int | None,
) -> dict[str, Any]:
    frequencies: Any = np.arange(X.shape[0])
    frames: Any = np.arange(X.shape[1])
    if rate is not None and transform is not None:
        frequencies, frames = transform.frequencies(rate), transform.frame_times(rate, X.shape[1])
    unit = 1 if rate is None else rate
    per_fit = labels if len(labels) == len(fits) else [f"fit {i}" for i in range(len(fits))]
    return {
        "chain": np.arange(1),
        "draw": np.arange(draws),
        "source": list(names),
        "order": list(labels),
        "fit": list(per_fit),
        "iteration": stacked_traces(fits)[1],
        "part": ["real", "imaginary"],
        "frequency": frequencies,
        "frame": frames,
        "sample": np.arange(length or 0) / unit,
    }


def _tree(groups: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]], coordinates: Mapping[str, Any]) -> Any:
    import xarray as xr

    def dataset(variables: Mapping[str, Any], attributes: Mapping[str, Any]) -> "Dataset":
        used = {dim for dims, *_ in variables.values() for dim in dims}
        return xr.Dataset(variables, {dim: coordinates[dim] for dim in coordinates if dim in used}, attributes)

    tree = xr.DataTree.from_dict({f"/{name}": dataset(*content) for name, content in groups.items()})
    library = {"inference_library": "bayesfuse", "inference_library_version": __version__}
    tree.attrs = {"inference": "vb", "about": ABOUT, **library}
    return tree

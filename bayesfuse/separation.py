"""The front door: from a mixture and what is known of its sources to a Bayesian-averaged separation.

    result = separate(mixture, rate, sources={"speech": recordings, "noise": "learn"},
                      orders={"speech": [2, 4, 8, 16], "noise": 32})

Dictionaries are trained on the recordings (or taken as saved, or learned on the mixture), the variational model is
fitted, the free energies of the model orders become fusion weights, and the estimates of all orders are summed with
them. Long recordings are worked off in blocks that overlap and are cross-faded; the factors of every block are kept
(they are small), so that weights come from the free energy of the whole recording.

[JVR14] X. Jaureguiberry, E. Vincent, G. Richard, "Variational Bayesian model averaging for audio source
separation", IEEE Workshop on Statistical Signal Processing, 2014.
[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from bayesfuse import estimates, fusion
from bayesfuse._blocks import Block, fade, plan
from bayesfuse._checks import check_level, check_seed
from bayesfuse._result_tree import order_labels, stacked_traces
from bayesfuse._version import __version__
from bayesfuse.audio import check_audio, check_rate
from bayesfuse.dictionary import Dictionary
from bayesfuse.inference import Fit
from bayesfuse.results import Result
from bayesfuse.separators.vb_nmf import Settings, check_settings, choose_shape, fit_joint, fit_orders
from bayesfuse.sources import Known, Recordings, read_sources, train_sources
from bayesfuse.transforms import STFT, Transform, check_transform
from bayesfuse.vbnmf import MAX_COMBINATIONS

Method = Literal["joint", "average", "select", "mean"]


class _Fitted(NamedTuple):
    """All fits of one channel of one block: one for the joint model, else one per combination of orders."""

    fits: list[Fit]

    @property
    def models(self) -> list[tuple[Fit, int]]:
        return [(fit, i) for fit in self.fits for i in range(len(fit.posterior.combinations))]

    def energies(self) -> tuple[Float[np.ndarray, "order frame"], Float[np.ndarray, " order"]]:
        """Free energy of every combination, per frame and dictionary part, in float64."""
        frames, dictionary = [], []
        for fit in self.fits:
            for choice in fit.posterior.combinations:
                # One vector of scores over combinations (marginal), or one over the orders of each source.
                index = (fit.posterior.combinations.index(choice),) if len(fit.scores) == 1 else choice
                parts = [(s.frames[i], s.dictionary[i]) for s, i in zip(fit.scores, index, strict=True)]
                frames.append(np.sum([np.asarray(f, np.float64) for f, _ in parts], axis=0))
                dictionary.append(float(sum(d for _, d in parts)))
        return np.stack(frames), np.array(dictionary)


def separate(
    mixture: Float[np.ndarray, "..."],
    rate: int,
    sources: Mapping[str, Recordings],
    orders: Mapping[str, int | Sequence[int]] | None = None,
    *,
    method: Method = "joint",
    time_varying: bool = False,
    transform: Transform | None = None,
    settings: Settings | None = None,
    b: float | Literal["auto"] | None = None,
    beta: float | None = None,
    order_prior: Mapping[str, Sequence[float]] | None = None,
    block_seconds: float = 60.0,
    overlap_seconds: float = 2.0,
    keep_estimates: bool | None = None,
    keep_variances: bool | None = None,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Result:
    """Return the sources of a mixture, averaged over NMF model orders, with weights and free energies.

    Parameters
    ----------
    mixture
        Waveform [sample] or [channel, sample], float32 or float64; results follow its dtype. Every channel is
        separated by itself with the same dictionaries; the fusion weights are shared, from the free energies summed
        over channels.
    rate
        Samples per second.
    sources
        What is known of each source, by name, at least two: recordings of the source alone (an array, a file, a
        folder, a glob pattern, or a list of these), saved dictionaries (`Dictionary` objects or ``.npz`` files), or
        ``"learn"``: its dictionary is learned on the mixture itself. At least one source must be known.
    orders
        Candidate numbers of components of each source, one or several. May be left out for saved dictionaries.
    method
        ``"joint"``: one model whose orders are random variables ([JVR14]); ``"average"``: one model per order,
        weighted by free energy ([JVR16] eq. 18); ``"select"``: the model of the largest free energy; ``"mean"``:
        equal weights.
    time_varying
        Weights per frame from the free energies of the frames ([JVR16] eq. 21); not for "mean".
    transform
        `STFT()` by default, or `QERB(rate)`.
    settings
        Of the variational model, see `Settings`.
    b
        Shape of the activations' prior, overriding the settings; ``"auto"`` chooses it by free energy on the first
        block.
    beta
        Temperature in nats per frame, overriding the settings: 0 selects, infinity keeps the prior over orders.
    order_prior
        Prior probabilities of the candidate orders of a source; uniform by default.
    block_seconds, overlap_seconds
        Longer recordings are worked off in blocks, which bounds the memory.
    keep_estimates, keep_variances
        Whether the result holds the waveforms of every order, and the posterior variances; by default where the
        recording fits into one block.
    seed
        Of all random numbers (vector quantisation).
    cache
        Folder in which trained dictionaries are kept by content.
    progress
        Show progress bars.

    Raises
    ------
    ValueError
        Before any work, for audio, sources, orders or settings that cannot be used; the message says what came, what
        was expected and the remedy.
    """
    x = check_audio(mixture, rate, name="mixture")
    check_level("mixture", x, x.dtype)
    rate = check_rate(rate)
    transform = STFT() if transform is None else check_transform(transform)
    settings = _merged(settings, b, beta)
    check_seed("separate", seed)
    if method not in get_args(Method):
        raise ValueError(f"method={method!r}: expected one of {', '.join(get_args(Method))}.")
    if time_varying and (method == "mean" or settings.variant == "explicit"):
        raise ValueError(
            "time_varying=True needs weights from free energies of the marginal variant: it goes with the methods "
            "joint, average and select."
        )
    length = x.shape[-1]
    blocks = plan(length, transform.num_frames(length), transform.hop, rate, block_seconds, overlap_seconds)
    known = read_sources(sources, orders, rate, transform)
    for name, source in known.items():
        for recording in source.recordings or ():
            check_level(f"sources[{name!r}]", recording, x.dtype)
    priors = _order_priors(order_prior, known)
    _check_learnable(known, min(transform.num_frames(block.stop - block.start) for block in blocks))
    combinations = math.prod(len(source.orders) for source in known.values())
    if method == "joint" and combinations > MAX_COMBINATIONS:
        raise ValueError(
            f"the orders make {combinations} combinations, more than {MAX_COMBINATIONS} for a joint model: give "
            "several orders to one source only, or fewer of them, or use method='average'."
        )
    if b == "auto" and combinations > MAX_COMBINATIONS:
        raise ValueError(
            f"b='auto' chooses b by a joint model, which takes up to {MAX_COMBINATIONS} combinations of orders, not "
            f"{combinations}: give fewer orders, or a number for b, such as 0.2."
        )
    model = train_sources(known, rate, transform, dtype=x.dtype, seed=seed, cache=cache, progress=progress)
    names = tuple(model)
    candidates = list(model.values())
    if b == "auto":
        first = np.asarray(transform.power(transform.analysis(x[0, blocks[0].start : blocks[0].stop])))
        settings = choose_shape(first, candidates, settings, seed=seed)

    fitted = _fit_blocks(x, blocks, transform, candidates, settings, method, priors, seed, progress)
    energy_frames, energy_dictionary = _collect(fitted, blocks, transform)
    log_prior = np.log([np.prod(choice) for choice in itertools.product(*priors)])
    weights = _weights(method, time_varying, energy_frames, energy_dictionary, log_prior, settings, x.shape[0])
    explicit_joint = method == "joint" and settings.variant == "explicit"
    if explicit_joint:
        probabilities = [f.fits[0].posterior.combination_probabilities() for row in fitted for f in row]
        weights = np.mean([np.asarray(p, dtype=np.float64) for p in probabilities], axis=0)
        weights /= weights.sum()

    whole = len(blocks) == 1
    keep_estimates = whole if keep_estimates is None else keep_estimates
    keep_variances = whole if keep_variances is None else keep_variances
    rendered = _render(
        x,
        blocks,
        transform,
        fitted,
        None if explicit_joint else weights,
        len(candidates),
        len(log_prior),
        keep_estimates,
        keep_variances,
    )
    fits = fitted[0][0].fits
    choices = np.array(list(itertools.product(*([_order_of(c) for c in row] for row in candidates))), np.int64)
    labels = order_labels(names, choices)
    trace, records = stacked_traces(fits)
    return Result(
        mixture=x,
        rate=rate,
        source_names=names,
        sources=rendered.sources,
        orders=choices,
        order_labels=labels,
        weights=weights.astype(x.dtype),
        log_prior=log_prior,
        beta_per_frame=settings.beta_per_frame,
        energy_frames=energy_frames,
        energy_dictionary=energy_dictionary,
        energy_order=_order_term(weights, log_prior) if method == "joint" and not time_varying else 0.0,
        estimates=rendered.estimates,
        within=rendered.within,
        between=rendered.between,
        trace=trace,
        trace_iterations=records,
        trace_labels=("joint",) if method == "joint" else labels,
        frequencies=STFT(transform.window, transform.hop).frequencies(rate),
        frame_times=transform.frame_times(rate, energy_frames.shape[1]),
        method=method,
        transform=transform.to_dict(),
        settings={
            **dataclasses.asdict(settings),
            "time_varying": time_varying,
            "block_seconds": block_seconds,
            "overlap_seconds": overlap_seconds,
        },
        seed=seed,
        version=__version__,
    )


def _merged(settings: Any, b: Any, beta: Any) -> Settings:
    settings = Settings() if settings is None else settings
    if not isinstance(settings, Settings):
        raise ValueError(f"settings={settings!r}: expected bayesfuse.Settings(...).")
    if isinstance(b, str):
        if b != "auto":
            raise ValueError(f"b={b!r}: expected a positive number or 'auto'.")
    elif b is not None:
        settings = dataclasses.replace(settings, b=b)
    if beta is not None:
        settings = dataclasses.replace(settings, beta_per_frame=beta)
    return check_settings(settings)


def _order_of(candidate: Dictionary | int) -> int:
    return candidate if isinstance(candidate, int) else candidate.order


def _order_priors(given: Mapping[str, Sequence[float]] | None, known: Mapping[str, Known]) -> list[list[float]]:
    given = {} if given is None else given
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"order_prior names {unknown}, which are not among the sources {list(known)}.")
    priors = []
    for name, source in known.items():
        count = len(source.orders)
        prior = np.asarray(given.get(name, np.full(count, 1.0 / count)), dtype=np.float64)
        if prior.shape != (count,) or not np.all(prior > 0) or not np.isclose(prior.sum(), 1.0):
            raise ValueError(f"order_prior[{name!r}]={given.get(name)}: expected {count} positive numbers, of sum 1.")
        priors.append(list(prior))
    return priors


def _check_learnable(known: Mapping[str, Known], frames: int) -> None:
    for name, source in known.items():
        if source.learned and max(source.orders) > frames:
            raise ValueError(
                f"orders[{name!r}] asks for {max(source.orders)} components to be learned on {frames} frames of the "
                "mixture: lower the order, give recordings of the source, or a longer mixture or block."
            )


def _fit_blocks(
    x: Float[np.ndarray, "channel sample"],
    blocks: list[Block],
    transform: Transform,
    candidates: list[list[Dictionary | int]],
    settings: Settings,
    method: Method,
    priors: list[list[float]],
    seed: int,
    progress: bool,
) -> list[list[_Fitted]]:
    """Fits of every block and channel."""
    from tqdm.auto import tqdm

    several = len(blocks) * x.shape[0] > 1
    bar = tqdm(total=len(blocks) * x.shape[0], disable=not (progress and several), desc="Blocks", leave=False)
    fitted = []
    with bar:
        for block in blocks:
            row = []
            for channel in x:
                power = np.asarray(transform.power(transform.analysis(channel[block.start : block.stop])))
                inner = progress and not several
                if method == "joint":
                    fits = [fit_joint(power, candidates, settings, seed=seed, order_prior=priors, progress=inner)]
                else:
                    fits = fit_orders(power, candidates, settings, seed=seed, progress=inner)
                row.append(_Fitted(fits))
                bar.update()
            fitted.append(row)
    return fitted


def _collect(
    fitted: list[list[_Fitted]], blocks: list[Block], transform: Transform
) -> tuple[Float[np.ndarray, "order frame"], Float[np.ndarray, " order"]]:
    """Free energies of the recording: frames from the block that answers for them, summed over channels."""
    pieces, dictionary = [], 0.0
    for row, block in zip(fitted, blocks, strict=True):
        offset = block.start // transform.hop
        for index, channel in enumerate(row):
            frames, constant = channel.energies()
            piece = frames[:, block.first - offset : block.last - offset]
            total = piece if index == 0 else total + piece
            dictionary = dictionary + constant
        pieces.append(total)
    return np.concatenate(pieces, axis=1), np.asarray(dictionary)


def _weights(
    method: Method,
    time_varying: bool,
    frames: Float[np.ndarray, "order frame"],
    dictionary: Float[np.ndarray, " order"],
    log_prior: Float[np.ndarray, " order"],
    settings: Settings,
    channels: int,
) -> Float[np.ndarray, " order"] | Float[np.ndarray, "order frame"]:
    """Fusion weights from the free energies of the recording, [JVR16] eqs. 18, 21; channels count as frames."""
    count, frame_count = frames.shape
    if method == "mean":
        return fusion.mean_weights(count)
    energy = frames + dictionary[:, None] / frame_count if time_varying else frames.sum(1) + dictionary
    scale = channels if time_varying else channels * frame_count
    axis = 0 if time_varying else -1
    if method == "select":
        return np.asarray(fusion.select_weights(energy, axis=axis))
    beta = settings.beta_per_frame
    if settings.temper == "entropy" and beta > 0:
        # [JVR14] eq. 18 tempers the prior too, over the whole recording.
        log_prior = log_prior / (beta * channels * frame_count)
    return np.asarray(fusion.vb_weights(energy, log_prior, beta, axis=axis, frames=scale))


def _order_term(weights: Float[np.ndarray, " order"], log_prior: Float[np.ndarray, " order"]) -> float:
    """-KL(q(K) || pi)."""
    positive = weights > 0
    return float(np.sum(weights[positive] * (log_prior[positive] - np.log(weights[positive]))))


class _Rendered(NamedTuple):
    sources: Float[np.ndarray, "source channel sample"]
    estimates: Float[np.ndarray, "order source channel sample"] | None
    within: Float[np.ndarray, "source channel freq frame"] | None
    between: Float[np.ndarray, "source channel freq frame"] | None


def _render(
    x: Float[np.ndarray, "channel sample"],
    blocks: list[Block],
    transform: Transform,
    fitted: list[list[_Fitted]],
    weights: Float[np.ndarray, "..."] | None,
    num_sources: int,
    num_orders: int,
    keep_estimates: bool,
    keep_variances: bool,
) -> _Rendered:
    """Waveforms of all blocks, cross-faded; `weights` is None for the explicit joint model, which has its own q(S)."""
    shape = (num_sources, *x.shape)
    grid = (num_sources, x.shape[0], transform.num_bins, blocks[-1].last)
    sources = np.zeros(shape, x.dtype)
    kept = np.zeros((num_orders, *shape), x.dtype) if keep_estimates else None
    within = np.zeros(grid, x.dtype) if keep_variances else None
    between = np.zeros(grid, x.dtype) if keep_variances else None
    for i, (block, row) in enumerate(zip(blocks, fitted, strict=True)):
        place = slice(block.start, block.stop)
        gains = fade(blocks, i, x.dtype)
        offset = block.start // transform.hop
        inside = slice(block.first - offset, block.last - offset)
        for channel, models in enumerate(row):
            X = transform.analysis(x[channel, place])
            power = np.asarray(transform.power(X))

            def sound(masks: Float[np.ndarray, "source band frame"], X: Any = X, gains: Any = gains) -> np.ndarray:
                return transform.synthesis(transform.expand(masks) * X, len(gains)) * gains

            if weights is None:
                moments = estimates.moments(power, models.fits[0])
            else:
                local = weights if weights.ndim == 1 else weights[:, offset : offset + power.shape[1]]
                moments = estimates.average(power, models.models, local)
            sources[:, channel, place] += sound(moments.gains)
            if kept is not None:
                for order, (fit, index) in enumerate(models.models):
                    kept[order, :, channel, place] += sound(estimates.combination_gains(fit, index))
            if within is not None and between is not None:
                within[:, channel, :, block.first : block.last] = transform.spread(moments.within)[..., inside]
                between[:, channel, :, block.first : block.last] = transform.spread(moments.between)[..., inside]
    return _Rendered(sources, kept, within, between)

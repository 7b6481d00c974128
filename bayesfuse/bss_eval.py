"""BSS Eval: ratios in dB of an estimate's parts, found by filtering the references.

With P_j e the least-squares projection of an estimate e on its own reference s_j delayed by 0..L - 1 samples (all
channels of it together) and P e that on all references, an estimate is

    e = s_j + (P_j e - s_j) + (P e - P_j e) + (e - P e)

: reference, spatial (or filtering) distortion, interference and artefacts. Energies are summed over channels and over
the window with the L - 1 samples of the filters' tails. The definitions differ in what counts as the target:

==================  ======================  =========================  ===========================  ==================
                    SDR                     ISR                        SIR                          SAR
==================  ======================  =========================  ===========================  ==================
`bss_eval_sources`  |P_j e|^2 / |e-P_j e|^2  not defined                |P_j e|^2 / |P e-P_j e|^2    |P e|^2 / |e-P e|^2
`bss_eval_images`   |s_j|^2 / |e-s_j|^2      |s_j|^2 / |P_j e-s_j|^2    |P_j e|^2 / |P e-P_j e|^2    |P e|^2 / |e-P e|^2
`bss_eval_v4`       as images, per window, with filters that are learned once on the whole signal
==================  ======================  =========================  ===========================  ==================

None of them is `metrics.sdr`. The SDR of the sources forgives any filter, that of the images none.

The references' normal equations are factored once (`prepare`) and serve every estimate of a mixture. Residuals are
computed on the signals, not as differences of energies, so that large ratios keep their digits; a ratio of 150 dB and
more cannot be told from rounding and is NaN with `Reason.NO_ERROR`.

References
----------
[VGF06] E. Vincent, R. Gribonval, C. Févotte, "Performance measurement in blind audio source separation", IEEE Trans.
Audio, Speech, Lang. Process. 14(4), 2006 (the sources).

[VSB07] E. Vincent, H. Sawada, P. Bofill, S. Makino, J. P. Rosca, "First stereo audio source separation evaluation
campaign: data, algorithms and results", ICA, 2007 (the images).

[SLI18] F.-R. Stöter, A. Liutkus, N. Ito, "The 2018 signal separation evaluation campaign", LVA/ICA, 2018 (version 4).
"""

from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from scipy.optimize import linear_sum_assignment

from bayesfuse._bss_parts import Pairs, References, energies, filter_bank, prepare, zero_where_not_finite
from bayesfuse._module import Module
from bayesfuse.metrics import Reason

__all__ = ["RATIOS", "BSSEval", "References", "bss_eval_images", "bss_eval_sources", "bss_eval_v4", "prepare"]

AnyArray = np.ndarray | Array
RATIOS = ("sdr", "isr", "sir", "sar")

# Energies below this part of the whole are rounding: 150 dB, half of double precision's digits of amplitude, because
# badly conditioned references cost up to the other half.
_RESOLUTION = 1e-15
# Channels of estimates that are worked on at a time.
_GROUP = 64


class BSSEval(Module):
    """Ratios in dB, [*model, source] or, for version 4, [*model, source, window].

    Attributes
    ----------
    sdr, isr, sir, sar
        To distortion, image to spatial distortion, to interference, to artefacts; NaN where `reasons` says why.
    reasons
        A `metrics.Reason` for each of the four ratios, in this order, and each of their entries.
    permutation
        The estimate [*model, source] that each reference was matched with.
    definition
        "bss_eval_sources", "bss_eval_images" or "bss_eval_v4".
    taps
        Length of the filters.
    window, hop
        Those of version 4 in samples.
    """

    sdr: Float[np.ndarray, "*score"]
    isr: Float[np.ndarray, "*score"]
    sir: Float[np.ndarray, "*score"]
    sar: Float[np.ndarray, "*score"]
    reasons: UInt8[np.ndarray, "4 *score"]
    permutation: Int[np.ndarray, "..."]
    definition: str = eqx.field(static=True)
    taps: int = eqx.field(static=True)
    window: int | None = eqx.field(static=True, default=None)
    hop: int | None = eqx.field(static=True, default=None)

    @property
    def ratios(self) -> Float[np.ndarray, "4 *score"]:
        """The four ratios in the order of `RATIOS`."""
        return np.stack([self.sdr, self.isr, self.sir, self.sar])

    def median(self) -> "BSSEval":
        """Medians over the valid windows, as the 2018 evaluation campaign reports them; without the window axis.

        An entry without a valid window is NaN, with the commonest reason of its windows.

        Raises
        ------
        ValueError
            If there are no windows.
        """
        if self.window is None:
            raise ValueError(f"median is over the windows of bss_eval_v4; {self.definition} has none.")
        valid = self.reasons == Reason.VALID
        some = valid.any(axis=-1)
        values = np.where(some[..., None], self.ratios, 0.0)
        medians = np.where(some, np.nanmedian(values, axis=-1), np.nan)
        counts = np.stack([(self.reasons == reason).sum(axis=-1) for reason in Reason])
        reasons = np.where(some, Reason.VALID, counts.argmax(axis=0)).astype(np.uint8)
        values = dict(zip(RATIOS, medians, strict=True))
        definition = f"median of {self.definition}"
        return BSSEval(**values, reasons=reasons, permutation=self.permutation, definition=definition, taps=self.taps)

    def counts(self) -> dict[str, int]:
        """How many entries of the four ratios are valid, and how many are not for each reason."""
        found, number = np.unique(self.reasons, return_counts=True)
        return {Reason(code).name.lower(): int(n) for code, n in zip(found, number, strict=True)}


def bss_eval_sources(
    references: Float[AnyArray, "..."] | References,
    estimates: Float[AnyArray, "..."],
    *,
    taps: int = 512,
    permute: bool = False,
) -> BSSEval:
    """BSS Eval v3 of source signals: SDR, SIR and SAR up to a filter of the references [VGF06].

    Parameters
    ----------
    references
        True sources, [source, sample] or [source, channel, sample], or the result of `prepare`.
    estimates
        Estimated sources, [*model, source, sample] or [*model, source, channel, sample], with any leading axes.
    taps
        Length of the filters in samples; ignored after `prepare`, which has set it.
    permute
        Match estimates with references for the largest mean SIR, rather than in the order given.

    Returns
    -------
    BSSEval
        Ratios [*model, source] in float64, whatever the precision of the waveforms. Silent references or estimates
        make their own scores NaN, and no others; references that are not finite make all NaN.

    Raises
    ------
    ValueError
        If the shapes do not fit each other.
    """
    prepared, signals = _checked("bss_eval_sources", references, estimates, taps)
    return _evaluate("bss_eval_sources", prepared, signals, np.shape(estimates), permute)


def bss_eval_images(
    references: Float[AnyArray, "..."] | References,
    estimates: Float[AnyArray, "..."],
    *,
    taps: int = 512,
    permute: bool = False,
) -> BSSEval:
    """BSS Eval v3 of source images: SDR without a filter, ISR, SIR and SAR [VSB07].

    Parameters, result and errors as those of `bss_eval_sources`.
    """
    prepared, signals = _checked("bss_eval_images", references, estimates, taps)
    return _evaluate("bss_eval_images", prepared, signals, np.shape(estimates), permute)


def bss_eval_v4(
    references: Float[AnyArray, "..."] | References,
    estimates: Float[AnyArray, "..."],
    rate: float | int,
    *,
    window: float | int = 1.0,
    hop: float | int | None = None,
    taps: int = 512,
    permute: bool = False,
    joint_silence: bool = True,
) -> BSSEval:
    """BSS Eval v4: the ratios of images in every window, with filters of the whole signal [SLI18].

    Parameters
    ----------
    references, estimates, taps, permute
        As those of `bss_eval_sources`; one permutation for all windows, by the mean SIR of the valid ones.
    rate
        Sampling rate in Hz.
    window, hop
        Length and distance of the windows in seconds; hop = window if not given. What does not fill a last window is
        left out; a signal shorter than the window is one window.
    joint_silence
        Score a window only if no reference and no estimate of it is silent, which published medians assume. False
        scores every source that sounds.

    Returns
    -------
    BSSEval
        Ratios [*model, source, window]; `median` reduces them.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, or the window or the hop is shorter than a sample.
    """
    width, step = (round(seconds * rate) for seconds in (window, window if hop is None else hop))
    if min(width, step) < 1:
        raise ValueError(
            f"bss_eval_v4 got a window of {window} s and a hop of {hop} s at {rate} Hz; both must last a sample "
            "or more."
        )
    prepared, signals = _checked("bss_eval_v4", references, estimates, taps)
    return _evaluate("bss_eval_v4", prepared, signals, np.shape(estimates), permute, width, step, joint_silence)


def _checked(
    caller: str, references: Any, estimates: Any, taps: int
) -> tuple[References, Float[np.ndarray, "model source channel sample"]]:
    prepared = references if isinstance(references, References) else prepare(references, taps=taps)
    shape = np.shape(estimates)
    if shape[-len(prepared.shape) :] != prepared.shape or 0 in shape:
        raise ValueError(
            f"{caller} got references of shape {prepared.shape} and estimates of shape {shape}; estimates must have "
            "the shape of the references after any leading axes, such as [model, source, channel, sample]. Align them "
            "and cut both to the same samples."
        )
    return prepared, np.asarray(estimates, np.float64).reshape(-1, *prepared.signals.shape)


def _evaluate(
    definition: Literal["bss_eval_sources", "bss_eval_images", "bss_eval_v4"],
    references: References,
    estimates: Float[np.ndarray, "model source channel sample"],
    shape: tuple[int, ...],
    permute: bool,
    width: int | None = None,
    step: int | None = None,
    joint_silence: bool = False,
) -> BSSEval:
    sources, _, length = references.signals.shape
    starts = [0] if width is None or step is None else range(0, max(length - width, 0) + 1, step)
    each = np.arange(sources)
    pairs = Pairs(np.repeat(each, sources), np.tile(each, sources)) if permute else Pairs(each, each)
    group = max(1, _GROUP // references.signals[:, :, 0].size)
    of_sources = definition == "bss_eval_sources"
    found = [
        _scores(references, part, pairs, starts, width, joint_silence, of_sources=of_sources)
        for part in (estimates[first : first + group] for first in range(0, len(estimates), group))
    ]
    ratios, reasons = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    permutation = np.broadcast_to(each, (len(estimates), sources))
    if permute:
        # [ratio, model, reference, estimate, window]
        ratios, reasons = (x.reshape(4, -1, sources, sources, len(starts)) for x in (ratios, reasons))
        permutation = _best_permutation(ratios[RATIOS.index("sir")], reasons[RATIOS.index("sir")])
        chosen = permutation[None, :, :, None, None]
        ratios, reasons = (np.take_along_axis(x, chosen, axis=3)[:, :, :, 0] for x in (ratios, reasons))
    models = shape[: len(shape) - len(references.shape)]
    scores = (*models, sources) if width is None else (*models, sources, len(starts))
    return BSSEval(
        **{name: ratio.reshape(scores) for name, ratio in zip(RATIOS, ratios, strict=True)},
        reasons=reasons.reshape(4, *scores),
        permutation=permutation.reshape(*models, sources),
        definition=definition,
        taps=references.taps,
        window=width,
        hop=step,
    )


def _scores(
    references: References,
    estimates: Float[np.ndarray, "model source channel sample"],
    pairs: Pairs,
    starts: Sequence[int],
    width: int | None,
    joint_silence: bool,
    *,
    of_sources: bool,
) -> tuple[Float[np.ndarray, "4 model pair window"], UInt8[np.ndarray, "4 model pair window"]]:
    """All ratios and reasons of some models."""
    estimates, finite = zero_where_not_finite(estimates)
    estimates = estimates * references.scale
    length = min(width or estimates.shape[-1], estimates.shape[-1])
    bank = filter_bank(references, estimates, pairs, length)
    ratios, reasons = [], []
    for start in starts:
        true = references.signals[..., start : start + length]
        given = estimates[..., start : start + length]
        with np.errstate(over="ignore", invalid="ignore"):
            parts = energies(bank, true, given, pairs, references.taps, of_sources=of_sources)
            values, codes = _ratios(parts, of_sources=of_sources)
        quiet_true: Any = ~true.any(axis=(-2, -1))
        quiet_given: Any = ~given.any(axis=(-2, -1))
        if joint_silence:
            # An estimate that is not finite has been made zero, which is no silence.
            silent = quiet_true.any() | (quiet_given & finite).any(axis=-1)
            codes = np.where(silent[:, None], Reason.SILENT_OTHER, codes)
        # Later lines are the weightier reasons.
        codes = np.where(quiet_given[:, pairs.estimate], Reason.SILENT_ESTIMATE, codes)
        codes = np.where(quiet_true[pairs.reference], Reason.SILENT_REFERENCE, codes)
        codes = np.where(finite[:, pairs.estimate] & references.finite.all(), codes, Reason.NOT_FINITE)
        if of_sources:
            codes[RATIOS.index("isr")] = Reason.UNDEFINED
        ratios.append(np.where(codes == Reason.VALID, values, np.nan))
        reasons.append(codes.astype(np.uint8))
    return np.stack(ratios, axis=-1), np.stack(reasons, axis=-1)


def _ratios(
    parts: dict[str, Float[np.ndarray, "model pair"]], *, of_sources: bool
) -> tuple[Float[np.ndarray, "4 model pair"], Int[np.ndarray, "4 model pair"]]:
    """The four ratios in dB and whether they are above rounding, from energies."""
    shared = [("target", "interference", "estimate"), ("explained", "artefacts", "estimate")]
    if of_sources:
        # The ISR is not defined: anything in its place.
        lines = [("target", "error", "estimate"), ("target", "error", "estimate"), *shared]
    else:
        lines = [("image", "image_error", "image"), ("image", "spatial", "image"), *shared]
    shape = parts["estimate"].shape
    top, bottom, whole = np.array([[np.broadcast_to(parts[name], shape) for name in row] for row in lines]).swapaxes(
        0, 1
    )
    known = np.isfinite(top) & np.isfinite(bottom)
    some, inexact = known & (top > _RESOLUTION * whole), bottom > _RESOLUTION * whole
    usual = some & inexact
    values = 10.0 * np.log10(np.where(usual, top, 1.0) / np.where(usual, bottom, 1.0))
    codes = np.where(usual, Reason.VALID, np.where(some, Reason.NO_ERROR, Reason.NO_TARGET))
    return values, np.where(known, codes, Reason.NOT_FINITE)


def _best_permutation(
    sir: Float[np.ndarray, "model source source window"], reasons: UInt8[np.ndarray, "model source source window"]
) -> Int[np.ndarray, "model source"]:
    """The estimate of each reference, for the largest mean SIR over references (and valid windows)."""
    limit = -10.0 * np.log10(_RESOLUTION)
    gain = np.where(reasons == Reason.NO_ERROR, limit, np.where(reasons == Reason.VALID, sir, -limit))
    counted = np.isin(reasons, (Reason.VALID, Reason.NO_ERROR, Reason.NO_TARGET))
    weight = np.maximum(counted.sum(axis=-1), 1)
    mean = np.where(counted, gain, 0.0).sum(axis=-1) / weight
    mean = np.where(counted.any(axis=-1), mean, -limit)
    return np.array([linear_sum_assignment(table, maximize=True)[1] for table in mean])

"""The ladder: how far each kind of fusion could get on given files, before anything is learned.

From the estimates themselves over their mean and the oracles of ever finer weights to ideal masks. The distance
between the best single separator and the oracles is what a learned rule can hope for; if there is none, fusing these
separators is not worth the trouble.

Each oracle minimises the squared error at its own granularity ([JVR16] II.E). On the waveform, the oracles per
frame and per frame and band are never worse than the time-invariant one, and that is never worse than selection (see
`grams`).

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from bayesfuse import masks
from bayesfuse._module import Module
from bayesfuse._streaming import overlap_added, slices
from bayesfuse.fusion import best_weights, mean_weights
from bayesfuse.grams import Bands, FrameTransform, Gram, gram, sdr
from bayesfuse.simplex_qp import oracle_weights
from bayesfuse.transforms import STFT
from bayesfuse.weighted_sum import fuse

BEST_SINGLE = "best single (training)"
_MASKS = {
    "ideal binary mask": masks.binary_mask,
    "ideal ratio mask": masks.ratio_mask,
    "ideal Wiener filter": masks.wiener_mask,
}
_RULES = (
    "mean",
    BEST_SINGLE,
    "oracle selection",
    "oracle fusion",
    "oracle selection per frame",
    "oracle fusion per frame",
    "oracle fusion per frame and band",
    *_MASKS,
)
Rule = Callable[[Gram], Any]
Block = tuple[
    Float[np.ndarray, "channel sample"],
    Float[np.ndarray, "source channel sample"],
    Float[np.ndarray, "model source channel sample"],
]
# Samples, over all signals, whose Grams per frame are in memory at a time.
_BLOCK = 1 << 22


class Ladder(Module):
    """SDR of every rung, for each source of each file, in dB ([JVR16] eq. 6).

    Attributes
    ----------
    sdr
        [file, source, rung], float64; over all channels together. NaN for a silent source.
    rungs
        Names of the rungs: the separators, then the rules from bottom to top.
    sources, files
        Names.
    """

    sdr: Float[np.ndarray, "file source rung"]
    rungs: tuple[str, ...] = eqx.field(static=True)
    sources: tuple[str, ...] = eqx.field(static=True)
    files: tuple[str, ...] = eqx.field(static=True)

    @staticmethod
    def concatenate(ladders: "Sequence[Ladder]") -> "Ladder":
        """The ladders of several files as one.

        Raises
        ------
        ValueError
            If there is none, or their rungs or sources differ.
        """
        if not ladders:
            raise ValueError("Ladder.concatenate got no ladder; give at least one.")
        first = ladders[0]
        for other in ladders[1:]:
            if (other.rungs, other.sources) != (first.rungs, first.sources):
                raise ValueError(
                    f"Ladder.concatenate got rungs {other.rungs} of sources {other.sources} after {first.rungs} of "
                    f"{first.sources}; all ladders must have the same."
                )
        files = tuple(name for item in ladders for name in item.files)
        return Ladder(np.concatenate([item.sdr for item in ladders]), first.rungs, first.sources, files)

    def mean(self) -> Float[np.ndarray, "source rung"]:
        """The mean over the files in which the source is not silent; NaN if there is none."""
        heard = ~np.isnan(self.sdr)
        count = heard.sum(axis=0)
        with np.errstate(invalid="ignore"):  # an infinite SDR, and its opposite in another file
            total = np.where(heard, self.sdr, 0.0).sum(axis=0)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def summary(self) -> str:
        """The table of the means: one line per rung, one column per source, in dB."""
        silent = np.isnan(self.sdr).all(axis=2).sum()
        note = f" ({silent} silent source(s) left out)" if silent else ""
        return self._table(f"mean of {len(self.files)} files, SDR in dB{note}", self.mean())

    def __str__(self) -> str:
        """The table of each file, and of the means if there are several."""
        tables = [
            self._table(f"{name}, SDR in dB".lstrip(", "), values)
            for name, values in zip(self.files, self.sdr, strict=True)
        ]
        return "\n\n".join(tables + [self.summary()] * (len(tables) > 1))

    def _table(self, title: str, values: Float[np.ndarray, "source rung"]) -> str:
        numbers = [[f"{value:.2f}" for value in row] for row in values]
        columns = [[name, *cells] for name, cells in zip(self.sources, numbers, strict=True)]
        widths = [max(map(len, column)) for column in columns]
        first = max(len(title), *map(len, self.rungs))
        lines = [
            "  ".join([label.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
            for label, *cells in zip((title, *self.rungs), *columns, strict=True)
        ]
        return "\n".join(lines)


def best_single(g: Gram) -> Int[np.ndarray, "*source"]:
    """The estimate with the highest mean SDR over training examples, for each source.

    Parameters
    ----------
    g
        Scalar products of whole signals, [example] or [example, source]. Examples with a silent source are left out.

    Raises
    ------
    ValueError
        If there is no example axis, or a source is silent in all examples.
    """
    if not 1 <= g.energy.ndim <= 2:
        raise ValueError(
            f"best_single got a Gram with batch axes {g.energy.shape}; expected [example] or with sources."
        )
    energy = np.asarray(g.energy)
    heard = energy > 0
    if not heard.any(axis=0).all():
        raise ValueError("best_single got a source that is silent in all examples; its best estimate is not defined.")
    models = g.num_models
    each = np.stack([np.asarray(sdr(np.eye(models)[model], g)) for model in range(models)], axis=-1)
    # An estimate without error outweighs all others; two of them are equals, of which the first one is taken.
    each = np.where(heard[..., None], np.minimum(each, 1e3), 0.0)
    return np.asarray(np.argmax(each.sum(axis=0), axis=-1))


def ladder(
    mixture: Float[np.ndarray, "..."] | None,
    references: Float[np.ndarray, "..."],
    estimates: Float[np.ndarray, "..."],
    *,
    transform: FrameTransform | None = None,
    bands: Bands | None = None,
    single: Sequence[int] | np.ndarray | np.integer | int | None = None,
    shared: bool = False,
    models: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    file: str = "",
) -> Ladder:
    """The SDR of every separator and of every oracle on one file.

    Parameters
    ----------
    mixture
        The mixture [channel, sample], for the ideal masks; None is the sum of the references.
    references
        The true sources [source, channel, sample].
    estimates
        The estimates of all separators [model, source, channel, sample], in the order and at the
        level of the references.
    transform
        Framing of the weights and time-frequency plane of the masks. By default `STFT` with a sine window of 1024.
    bands
        A partition of the transform's bins, for the oracle per frame and band; without it that rung is left out.
    single
        Number of the separator that was best on training data, or one per source (`best_single`); without it
        that rung is left out.
    shared
        One weight per separator for all sources, instead of weights for each source. One weight serves all channels
        in either case.
    models, sources, file
        Names for the table; numbers, and none for the file, by default.

    Raises
    ------
    ValueError
        If the shapes or the numbers of names do not match, `single` is not a separator's number, a value is NaN or
        infinite, or `bands` are not those of the transform.
    """
    if references.ndim != 3:
        raise ValueError(f"ladder got references of shape {references.shape}; expected [source, channel, sample].")
    mixed = references.sum(axis=0) if mixture is None else mixture
    names = {"models": models, "sources": sources, "file": file}
    blocks = ((x, s, e) for x, s, e in slices(_BLOCK, mixed, references, estimates))
    return ladder_of_blocks(blocks, transform=transform, bands=bands, single=single, shared=shared, **names)


def ladder_of_blocks(
    blocks: Iterable[Block],
    *,
    transform: FrameTransform | None = None,
    bands: Bands | None = None,
    single: Sequence[int] | np.ndarray | np.integer | int | None = None,
    shared: bool = False,
    models: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    file: str = "",
) -> Ladder:
    """`ladder` of signals that come in blocks, in one pass and in bounded memory.

    Parameters
    ----------
    blocks
        Consecutive blocks (mixture [channel, sample], references [source, channel, sample], estimates
        [model, source, channel, sample]) of one file, of any lengths.
    transform, bands, single, shared, models, sources, file
        As in `ladder`.

    Raises
    ------
    ValueError
        As `ladder`, or if there is no block.
    """
    framing = STFT() if transform is None else transform
    varying = _varying_rules(framing, bands, shared)
    whole: list[Gram] = []

    def signals() -> Iterator[Float[np.ndarray, "signal channel sample"]]:
        for mixture, references, estimates in blocks:
            whole[:] = [functools.reduce(operator.add, [*whole, gram(references, estimates).sum(1)])]
            if mixture.shape != references.shape[1:]:
                raise ValueError(
                    f"ladder got a mixture of shape {mixture.shape} and references of shape {references.shape}; "
                    "expected [channel, sample] and [source, channel, sample] of the same channels and samples."
                )
            yield np.concatenate([mixture[None], references, estimates.reshape(-1, *mixture.shape)])

    def fused(parts: np.ndarray, frames: range, final: bool) -> np.ndarray:
        count = len(whole[0].energy)
        references = parts[1 : 1 + count]
        estimates = parts[1 + count :].reshape(-1, *references.shape)
        return np.stack([references, *(rule(parts[0], references, estimates) for rule in varying.values())])

    energy: Any = 0.0
    errors: Any = 0.0
    for part in overlap_added(signals(), framing, _BLOCK, fused):
        doubled = part.astype(np.float64)
        energy = energy + np.square(doubled[0]).sum(axis=(-2, -1))
        errors = errors + np.square(doubled[0] - doubled[1:]).sum(axis=(-2, -1))
    if not whole:
        raise ValueError("ladder got signals of no samples; give at least one.")
    count, parts = whole[0].num_models, len(whole[0].energy)
    names = _named("models", models, [f"model {m}" for m in range(count)])
    values = _constant_rungs(whole[0], names, single, shared)
    for name, error in zip(varying, errors, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            values[name] = np.where(energy > 0, 10.0 * (np.log10(energy) - np.log10(error)), np.nan)
    table = np.stack([np.asarray(row, np.float64) for row in values.values()], axis=-1)[None]
    return Ladder(table, tuple(values), _named("sources", sources, [f"source {j}" for j in range(parts)]), (file,))


def _constant_rungs(
    whole: Gram, names: Sequence[str], single: Any, shared: bool
) -> dict[str, Float[np.ndarray, " source"]]:
    """SDR of every separator, and of rules with constant weights, from scalar products [source] of whole signals."""
    count, parts = whole.num_models, len(whole.energy)
    constant: dict[str, np.ndarray] = {name: np.eye(count)[m] for m, name in enumerate(names)}
    constant["mean"] = mean_weights(count)
    if single is not None:
        chosen = np.broadcast_to(np.asarray(single), (parts,))
        if not ((chosen >= 0) & (chosen < count)).all():
            raise ValueError(f"ladder got single={single}; it must be numbers of separators, from 0 to {count - 1}.")
        constant[BEST_SINGLE] = np.eye(count)[chosen]
    decided = _decided(whole, shared)
    constant["oracle selection"] = np.asarray(best_weights(decided))
    constant["oracle fusion"] = np.asarray(oracle_weights(decided))
    return {
        name: np.where(whole.energy > 0, sdr(np.broadcast_to(weights, whole.cross.shape), whole), np.nan)
        for name, weights in constant.items()
    }


def _varying_rules(
    framing: FrameTransform, bands: Bands | None, shared: bool
) -> dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]]:
    """What each rule with weights or gains per frame makes of (mixture, references, estimates): [source, ...]."""

    def fusing(rule: Rule, partition: Bands | None) -> Callable[..., np.ndarray]:
        def apply(mixture: np.ndarray, references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
            g = gram(references, estimates, transform=framing, bands=partition).sum(1)
            weights = np.asarray(rule(_decided(g, shared)))
            each = np.moveaxis(np.broadcast_to(weights, (len(references), *weights.shape[1:])), -1, 1)
            return np.asarray(fuse(each, estimates, transform=framing, bands=partition, per_source=True))

        return apply

    def masking(mask: masks.MaskRule) -> Callable[..., np.ndarray]:
        return lambda mixture, references, estimates: masks.ideal_estimates(
            mask, mixture, references, transform=framing
        )

    rules = {
        "oracle selection per frame": fusing(best_weights, None),
        "oracle fusion per frame": fusing(oracle_weights, None),
    }
    if bands is not None:
        rules["oracle fusion per frame and band"] = fusing(oracle_weights, bands)
    return rules | {name: masking(mask) for name, mask in _MASKS.items()}


def _decided(g: Gram, shared: bool) -> Gram:
    """What a weight is chosen for: each source [source, ...], or all of them together [1, ...]."""
    return Gram.stack([g.sum(0)]) if shared else g


def _named(what: str, names: Sequence[str] | None, default: list[str]) -> tuple[str, ...]:
    if names is not None and (len(names) != len(default) or len({*names, *_RULES}) != len(default) + len(_RULES)):
        raise ValueError(
            f"ladder got {what} {list(names)}; expected {len(default)} different names, other than those of the rungs."
        )
    return tuple(default if names is None else names)

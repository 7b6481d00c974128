"""Inputs of the fusion networks: power spectra of mixture and estimates with context, standardised and reduced.

Frame n is described by the power spectra of the mixture and of all estimates in frames n - C to n + C ([JVR16] eq. 22);
standardisation, principal components and another standardisation reduce these thousands of numbers to hundreds. A
corpus is read one recording at a time, twice, and its frames are never held together.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

import operator
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from bayesfuse import _arrays
from bayesfuse._module import Module
from bayesfuse._principal import principal_components
from bayesfuse.transforms import QERB, STFT, transform_from_dict

Kind = Literal["both", "mixture", "estimates"]
Compression = Literal["power", "log"]
Level = Literal["none", "recording"]

_KIND = "bayesfuse feature pipeline"
_ARRAYS = ("mean", "scale", "components", "component_scale", "extra_mean", "extra_scale")
# Rows of windows in memory at a time: 56 MB of the 14,000 numbers per frame that the paper has.
_ROWS = 1024


class Inputs(NamedTuple):
    """What is known of one recording before fusion.

    Attributes
    ----------
    mixture
        [channel, sample].
    estimates
        [model, source, channel, sample]: of the source that is fused alone ([JVR16] eq. 22), or of several.
    free_energy
        In nats, [model, frame], or [model, term, frame] for its parts; None if there are none.
    """

    mixture: Float[np.ndarray, "channel sample"]
    estimates: Float[np.ndarray, "model source channel sample"]
    free_energy: Float[np.ndarray, "model frame"] | Float[np.ndarray, "model term frame"] | None = None


class FeatureConfig(Module):
    """Which features are computed. The defaults are those of [JVR16] VI.H.1, but for the transform, which needs a rate.

    Parameters
    ----------
    transform
        Power spectra: `QERB(rate)` has the 350 bands of the paper, `QERB(rate, bands=32)` few, `STFT()` all bins. Its
        frames are those of the weights.
    context
        C, the number of frames before and after; at the ends of a recording its first and last frame are repeated.
    inputs
        "both", "mixture" or "estimates" ([JVR16] VI.H.4).
    compression
        "power" as in the paper, or "log": log(P + floor), where a change of gain is a shift.
    floor
        Of the logarithm, in units of the powers; with ``level="recording"`` relative to the mean power of the mixture.
    level
        "none" as in the paper, or "recording": all signals are divided by the root mean square of the mixture over
        the whole recording, so that the features do not depend on the recording's gain.
    relative
        Whether the spectra of mixture and estimates are replaced, for each source, by the mean of its estimates, that
        mean minus the mixture, and each estimate minus the mean: with ``compression="log"`` a level, a gain and what
        tells the models apart, which is small beside the rest and lost in principal components. Needs both inputs.
        Not in the paper.
    free_energy
        Whether free energies per frame are features, too: relative to their mean over the models, with the same
        context, standardised, and not reduced. Not in the paper.
    num_components
        Principal components that are fitted; None leaves principal components out.
    share
        Of the total variance: as many of the components are kept as reach it.
    clip
        Bound of the magnitude of every feature, in standard deviations, for recordings unlike those of training. inf,
        as in the paper, does nothing.
    stride
        Principal components are fitted to every so many frames, for speed; standardisation sees all.

    Raises
    ------
    ValueError
        For settings out of range.
    """

    transform: STFT | QERB
    context: int = eqx.field(static=True, default=2, converter=operator.index)
    inputs: Kind = eqx.field(static=True, default="both")
    compression: Compression = eqx.field(static=True, default="power")
    floor: float = eqx.field(static=True, default=1e-6, converter=float)
    level: Level = eqx.field(static=True, default="none")
    relative: bool = eqx.field(static=True, default=False, converter=bool)
    free_energy: bool = eqx.field(static=True, default=False)
    num_components: int | None = eqx.field(static=True, default=256)
    share: float = eqx.field(static=True, default=0.85, converter=float)
    clip: float = eqx.field(static=True, default=np.inf, converter=float)
    stride: int = eqx.field(static=True, default=1, converter=operator.index)

    def __check_init__(self) -> None:
        for name, kind in (("inputs", Kind), ("compression", Compression), ("level", Level)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"FeatureConfig got {name}={getattr(self, name)!r}; expected one of {get_args(kind)}.")
        for name, good, expected in (
            ("context", self.context >= 0, "0 or more frames"),
            ("floor", 0 < self.floor < np.inf, "a positive number"),
            ("num_components", self.num_components is None or self.num_components >= 1, "1 or more, or None"),
            ("share", 0 < self.share <= 1, "a share in (0, 1]"),
            ("clip", self.clip > 0, "a positive number of standard deviations"),
            ("stride", self.stride >= 1, "1 or more frames"),
        ):
            if not good:
                raise ValueError(f"FeatureConfig got {name}={getattr(self, name)!r}; it must be {expected}.")
        if self.relative and self.inputs != "both":
            raise ValueError(
                f"FeatureConfig got relative=True and inputs={self.inputs!r}; estimates are described relative to the "
                "mixture, so give inputs='both'."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain description, JSON-ready; `from_dict` turns it back."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "transform"}
        plain["clip"] = None if np.isinf(self.clip) else self.clip
        return {"transform": self.transform.to_dict(), **plain}

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> "FeatureConfig":
        """The configuration that a `to_dict` describes."""
        plain = dict(description)
        plain["clip"] = np.inf if plain.get("clip") is None else plain["clip"]
        return cls(**{**plain, "transform": transform_from_dict(plain["transform"])})


def mean_power(mixture: Float[np.ndarray, "channel sample"]) -> float:
    """Mean square of the mixture, 1 for a silent one: the level that ``level="recording"`` divides by."""
    power = float(np.mean(np.square(mixture, dtype=np.float64)))
    return power if power > 0 else 1.0


class FeaturePipeline(Module):
    """From recordings to features, as fitted by `fit_features`: standardise, reduce, standardise.

    Attributes
    ----------
    config
        What is computed.
    num_rows
        Spectra per recording: of the mixture and the estimates, of those that are used.
    mean, scale
        Of the windows, [input] with input over (offset, signal, band).
    components
        Principal axes, [component, input], or None.
    component_scale
        Standard deviation of each component, or of nothing.
    extra_mean, extra_scale
        Of the free energies, [extra] with extra over (offset, model, term), or None.
    kept
        Share of the variance of the training frames within the components.
    """

    config: FeatureConfig
    num_rows: int = eqx.field(static=True)
    mean: Float[np.ndarray, " input"]
    scale: Float[np.ndarray, " input"]
    components: Float[np.ndarray, "component input"] | None
    component_scale: Float[np.ndarray, " component"] | None
    extra_mean: Float[np.ndarray, " extra"] | None
    extra_scale: Float[np.ndarray, " extra"] | None
    kept: float = eqx.field(static=True, default=1.0)

    @property
    def num_features(self) -> int:
        """Features per frame."""
        reduced = self.mean.size if self.components is None else self.components.shape[0]
        return reduced + (0 if self.extra_mean is None else self.extra_mean.size)

    def __call__(self, inputs: Inputs) -> Float[np.ndarray, "frame feature"]:
        """Features of all frames of a recording, float32.

        Raises
        ------
        ValueError
            If the signals are not those that the pipeline was fitted to, or a value is NaN or infinite.
        """
        level = mean_power(inputs.mixture) if self.config.level == "recording" else 1.0
        return self.from_spectra(spectra(inputs, self.config, level), inputs.free_energy)

    def from_spectra(
        self, rows: Float[np.ndarray, "row band frame"], free_energy: Float[np.ndarray, "model ..."] | None = None
    ) -> Float[np.ndarray, "frame feature"]:
        """Features from what `spectra` returns, whose ends are taken as those of the recording."""
        if rows.shape[0] != self.num_rows:
            raise ValueError(
                f"the features were fitted to {self.num_rows} spectra per recording (mixture and estimates), but there "
                f"are {rows.shape[0]}; give the estimates of the same models and sources."
            )
        parts = []
        for window in _windows(rows, self.config.context):
            reduced = (window - self.mean) / self.scale
            if self.components is not None and self.component_scale is not None:
                reduced = (reduced @ self.components.T) / self.component_scale
            parts.append(reduced)
        features = np.concatenate(parts)
        if self.config.free_energy:
            extra = _energies(free_energy, rows.shape[-1], self.config.context)
            if self.extra_mean is None or extra.shape[1] != self.extra_mean.size:
                raise ValueError(
                    f"got {extra.shape[1]} free energies per frame (models, terms, offsets), but the features were "
                    f"fitted to {0 if self.extra_mean is None else self.extra_mean.size}; give those of the same."
                )
            features = np.concatenate([features, (extra - self.extra_mean) / self.extra_scale], axis=1)
        return np.clip(features, -self.config.clip, self.config.clip).astype(np.float32, copy=False)

    def reordered(self, index: Sequence[int]) -> "tuple[FeaturePipeline, Int[np.ndarray, ' feature']]":
        """The pipeline for the same models in another order, and where its features are among those of this one.

        Parameters
        ----------
        index
            Of every model in its new place.
        """
        config = self.config
        offsets = 2 * config.context + 1
        inputs = np.arange(self.mean.size).reshape(offsets, self.num_rows, -1)
        # Rows that belong to no model come first.
        shared = {"mixture": self.num_rows, "both": 1, "estimates": 0}[config.inputs]
        if config.relative:
            shared = 2 * self.num_rows // (len(index) + 2)
        if shared < self.num_rows:
            models = inputs[:, shared:].reshape(offsets, len(index), -1, inputs.shape[-1])[:, index]
            inputs = np.concatenate([inputs[:, :shared], models.reshape(offsets, -1, inputs.shape[-1])], axis=1)
        order = inputs.ravel()
        extra = np.arange(0 if self.extra_mean is None else self.extra_mean.size)
        extra = extra.reshape(offsets, len(index), -1)[:, index].ravel()
        fields = {name: getattr(self, name) for name in _ARRAYS}
        for name in ("mean", "scale", "components"):
            fields[name] = None if fields[name] is None else fields[name][..., order]
        for name in ("extra_mean", "extra_scale"):
            fields[name] = None if fields[name] is None else fields[name][extra]
        reduced = order if self.components is None else np.arange(len(self.components))
        pipeline = FeaturePipeline(config, self.num_rows, **fields, kept=self.kept)
        return pipeline, np.concatenate([reduced, reduced.size + extra])

    def parts(self) -> tuple[dict[str, np.ndarray | None], dict[str, Any]]:
        """The arrays, and the rest as a JSON-ready description; `from_parts` puts them together."""
        about = {"features": self.config.to_dict(), "num_rows": self.num_rows, "kept": self.kept}
        return {name: getattr(self, name) for name in _ARRAYS}, about

    @classmethod
    def from_parts(cls, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> "FeaturePipeline":
        """The pipeline that `parts` took apart; arrays that are None may be missing."""
        fields: dict[str, Any] = {name: arrays.get(name) for name in _ARRAYS}
        return cls(FeatureConfig.from_dict(about["features"]), about["num_rows"], **fields, kept=about["kept"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the pipeline to one netCDF file, whole or not at all."""
        arrays, about = self.parts()
        _arrays.write(Path(path), _KIND, {"pipeline": arrays}, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FeaturePipeline":
        """The pipeline in a file of `save`; raises FileNotFoundError or ValueError if there is none."""
        groups, about = _arrays.read(Path(path), _KIND)
        return cls.from_parts(groups["pipeline"], about)


def spectra(inputs: Inputs, config: FeatureConfig, level: float = 1.0) -> Float[np.ndarray, "row band frame"]:
    """Power spectra, or their logarithms, of the signals that are used, averaged over the channels; float32.

    Parameters
    ----------
    inputs
        The recording.
    config
        Which signals, which transform, which compression.
    level
        Mean power that the powers are divided by.

    Raises
    ------
    ValueError
        If mixture and estimates differ in channels or samples, or a value is NaN or infinite.
    """
    mixture, estimates = inputs.mixture, inputs.estimates
    if estimates.shape[2:] != mixture.shape or 0 in estimates.shape:
        raise ValueError(
            f"features got a mixture [channel, sample] {mixture.shape} and estimates [model, source, channel, sample] "
            f"{estimates.shape}; channels and samples must agree. Pad or trim the signals to a common length first."
        )
    signals = [] if config.inputs == "estimates" else [mixture]
    signals += [] if config.inputs == "mixture" else list(estimates.reshape(-1, *mixture.shape))
    transform = config.transform
    rows = np.stack([transform.power(transform.analysis(signal)).mean(axis=0) for signal in signals])
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=(1, 2)))[0])
        which = "the mixture" if bad == 0 and config.inputs != "estimates" else f"signal {bad}"
        raise ValueError(f"features got NaN or infinite values in {which}; find the file they come from, leave it out.")
    rows = rows / level
    if config.compression == "log":
        rows = np.log(rows + config.floor)
    if config.relative:
        rows = _relative(rows[0], rows[1:].reshape(len(estimates), -1, *rows.shape[1:]))
    return rows.astype(np.float32)


def fit_features(examples: Iterable[Inputs], config: FeatureConfig, *, progress: bool = False) -> FeaturePipeline:
    """The pipeline fitted to training recordings, which are read twice, one at a time.

    Means and deviations are exact. So are principal components of up to 4,096 inputs (frames of the context times
    signals times bands), from the covariance of all frames in float64, which at most takes 128 MiB. Of more inputs
    they come from scikit-learn's `IncrementalPCA`: exact if `num_components` is the full rank, else to the truncation
    between batches, as is the standard deviation of each.

    Parameters
    ----------
    examples
        Recordings, from something that can be iterated again: a list, or an object whose ``__iter__`` reads files.
    config
        What is computed.
    progress
        Show progress bars.

    Raises
    ------
    ValueError
        If there are no recordings, all are silent, they cannot be iterated again, or differ in the number of signals.

    Warns
    -----
    UserWarning
        If `num_components` do not reach the `share` of the variance.
    """
    from sklearn.preprocessing import StandardScaler
    from tqdm.auto import tqdm

    if iter(examples) is examples:
        raise ValueError("fit_features reads the examples twice, but got an iterator; give a list or another iterable.")
    scaler, extra_scaler, rows, frames = StandardScaler(), StandardScaler(), 0, 0
    for inputs in tqdm(examples, desc="features: mean and scale", unit="recording", disable=not progress):
        level = mean_power(inputs.mixture) if config.level == "recording" else 1.0
        part = spectra(inputs, config, level)
        if frames and part.shape[0] != rows:
            raise ValueError(
                f"fit_features got a recording with {part.shape[0]} signals after one with {rows}; all must have the "
                "estimates of the same models and sources."
            )
        rows, frames = part.shape[0], frames + part.shape[-1]
        for window in _windows(part, config.context):
            scaler.partial_fit(window)
        if config.free_energy:
            extra_scaler.partial_fit(_energies(inputs.free_energy, part.shape[-1], config.context))
    if frames == 0:
        raise ValueError("fit_features got no examples; give at least one recording.")
    if not np.any(scaler.var_):
        raise ValueError("fit_features got frames that are all the same, such as silence; give recordings with sound.")
    mean, scale = _float32(scaler.mean_), _float32(scaler.scale_)
    extra = (_float32(extra_scaler.mean_), _float32(extra_scaler.scale_)) if config.free_energy else (None, None)
    if config.num_components is None:
        return FeaturePipeline(config, rows, mean, scale, None, None, *extra)

    count = min(config.num_components, mean.size, -(-frames // config.stride))
    bar = tqdm(examples, desc="features: principal components", unit="recording", disable=not progress)
    found = principal_components(((w - mean) / scale for w in _strided(bar, config)), count, mean.size)
    reached = np.cumsum(found.variances) / found.total
    # Rounding may leave the full rank just below a share of one.
    kept = int(np.searchsorted(reached, config.share - 1e-6)) + 1
    if kept > count:
        kept = count
        warnings.warn(
            f"{count} principal components hold {reached[-1]:.1%} of the variance, less than the share of "
            f"{config.share:.1%} asked for; raise num_components, or give more frames.",
            stacklevel=2,
        )
    deviation = np.sqrt(found.variances[:kept])
    # Directions without variance are rounding, which must not be blown up.
    deviation[deviation < 1e-6 * deviation[0]] = 1.0
    return FeaturePipeline(
        config,
        rows,
        mean,
        scale,
        _float32(found.axes[:kept]),
        _float32(deviation),
        *extra,
        float(reached[kept - 1]),
    )


def _windows(rows: Float[np.ndarray, "row band frame"], context: int) -> Iterator[Float[np.ndarray, "frame input"]]:
    """Frames with their neighbours, flattened over (offset, row, band), a bounded number at a time."""
    frames = np.ascontiguousarray(np.moveaxis(rows, -1, 0).reshape(rows.shape[-1], -1))
    offsets = np.arange(-context, context + 1)
    for start in range(0, len(frames), _ROWS):
        centres = np.arange(start, min(start + _ROWS, len(frames)))
        neighbours = np.clip(centres[:, None] + offsets, 0, len(frames) - 1)
        yield frames[neighbours].reshape(len(centres), -1)


def _strided(examples: Iterable[Any], config: FeatureConfig) -> Iterator[Float[np.ndarray, "frame input"]]:
    """Every `stride`-th window of the corpus; the count goes on from recording to recording."""
    first = 0
    for inputs in examples:
        level = mean_power(inputs.mixture) if config.level == "recording" else 1.0
        for window in _windows(spectra(inputs, config, level), config.context):
            yield window[first :: config.stride]
            first = (first - len(window)) % config.stride


def _relative(
    mixture: Float[np.ndarray, "band frame"], estimates: Float[np.ndarray, "model source band frame"]
) -> Float[np.ndarray, "row band frame"]:
    """For each source: the mean of its estimates, that mean minus the mixture, each estimate minus the mean."""
    mean = estimates.mean(axis=0, keepdims=True)
    return np.concatenate([mean, mean - mixture, estimates - mean]).reshape(-1, *mixture.shape)


def _energies(
    free_energy: Float[np.ndarray, "model ..."] | None, frames: int, context: int
) -> Float[np.ndarray, "frame extra"]:
    """Free energies per frame with their neighbours, minus their mean over the models; extra: (offset, model, term)."""
    if free_energy is None or free_energy.ndim not in (2, 3) or free_energy.shape[-1] != frames:
        came = "none" if free_energy is None else f"an array of shape {free_energy.shape}"
        raise ValueError(
            f"the features contain free energies [model, frame] or [model, term, frame] of {frames} frames, but got "
            f"{came}; give those that the separators report, or leave them out with free_energy=False."
        )
    if not np.isfinite(free_energy).all():
        raise ValueError("features got a free energy that is NaN or infinite; leave out the models that failed.")
    relative = free_energy - free_energy.mean(axis=0, keepdims=True)
    return np.concatenate(list(_windows(relative.reshape(len(relative), -1, frames), context)))


def _float32(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)

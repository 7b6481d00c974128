"""The models of an experiment, applied to mixtures: waveforms of the scored sources, and free energies by term."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from bayesfuse import estimates, inference, nmf, wiener
from bayesfuse.dictionary import Dictionary
from bayesfuse.experiment_config import ExperimentConfig, Model
from bayesfuse.grams import Bands
from bayesfuse.separators.vb_nmf import fit_joint, fit_several
from bayesfuse.transforms import Transform
from bayesfuse.vbnmf import FreeEnergy

Power = Float[np.ndarray, "band frame"]
Gains = Float[np.ndarray, "source band frame"]


class Heard(NamedTuple):
    """A mixture [channel, sample], its rate, and by source the dictionaries, or orders to be learned on it."""

    mixture: Float[np.ndarray, "channel sample"]
    rate: int
    dictionaries: Mapping[str, Sequence[Dictionary | int]]


class Energies(NamedTuple):
    """The free energy of a model in parts, summed over channels, in nats.

    Attributes
    ----------
    likelihood
        Expected log likelihood by frequency band of the record, or in one band.
    activations
        Of the activations of each source.
    other
        What is known only as a whole.
    dictionary
        Of the dictionaries.
    """

    likelihood: Float[np.ndarray, "band frame"]
    activations: Float[np.ndarray, "source frame"]
    other: Float[np.ndarray, " frame"]
    dictionary: float

    @property
    def terms(self) -> Float[np.ndarray, "term frame"]:
        """Likelihood, activations of every source, other."""
        likelihood = self.likelihood.sum(axis=0, dtype=np.float64)
        return np.concatenate([likelihood[None], self.activations, self.other[None]])

    @property
    def total(self) -> float:
        """The free energy of the mixture."""
        return float(self.terms.sum()) + self.dictionary


class Estimate(NamedTuple):
    """What a model makes of a mixture: waveforms, free energy if it has one, and seconds that it took."""

    sources: Float[np.ndarray, "source channel sample"]
    energies: Energies | None
    seconds: float


class _Job(NamedTuple):
    """One channel of a mixture, with the dictionaries of one model."""

    X: Any
    power: Power
    candidates: list[Dictionary | int]

    @property
    def model(self) -> list[list[Dictionary | int]]:
        """One candidate for each source."""
        return [[candidate] for candidate in self.candidates]


def separate_all(
    config: ExperimentConfig,
    model: Model,
    heard: Sequence[Heard],
    wanted: Sequence[Sequence[int]],
    compiled: Callable[[], float] = lambda: 0.0,
) -> list[Estimate]:
    """What a model by NMF makes of mixtures.

    Parameters
    ----------
    config
        For transform, seed and frequency bands.
    model
        Which.
    heard
        The mixtures.
    wanted
        Of each, the indices of the sources whose waveforms are returned.
    compiled
        Tells the seconds spent on compiling so far, which do not count.
    """
    transform = config.transform
    start, before = time.perf_counter(), compiled()
    jobs = [_jobs(config, model, item) for item in heard]
    flat = [job for row in jobs for job in row]
    fit = _fit_vb if model.separator.kind == "vb-nmf" else _fit_ml
    bands = [_band_rows(config, item.rate) for item, row in zip(heard, jobs, strict=True) for _ in row]
    results = iter(fit(config, model, flat, bands))
    found = []
    for item, row, sources in zip(heard, jobs, wanted, strict=True):
        length = item.mixture.shape[-1]
        waveforms, energies = [], []
        for job in row:
            gains, energy = next(results)
            shaped = transform.expand(gains[list(sources)])
            waveforms.append(transform.synthesis(shaped * job.X, length))
            energies.append(energy)
        found.append((np.stack(waveforms, axis=1), _summed(energies)))
    seconds = (time.perf_counter() - start - (compiled() - before)) / len(heard)
    return [Estimate(waveforms, energy, seconds) for waveforms, energy in found]


def of_file(free_energy: FreeEnergy, sources: int) -> Energies:
    """The energies of a model of which only the whole is known."""
    frames = np.asarray(free_energy.frames, np.float64)
    zeros = np.zeros((sources, frames.size))
    return Energies(np.zeros((1, frames.size)), zeros, frames, float(free_energy.dictionary) + float(free_energy.order))


def _jobs(config: ExperimentConfig, model: Model, item: Heard) -> list[_Job]:
    chosen: list[Dictionary | int] = []
    for learned, order in zip(config.dictionaries.sources, model.orders, strict=True):
        chosen.append(item.dictionaries[learned.source][learned.orders.index(order)])
    jobs = []
    for channel in item.mixture:
        X = config.transform.analysis(channel)
        jobs.append(_Job(X, np.asarray(config.transform.power(X)), chosen))
    return jobs


def _band_rows(config: ExperimentConfig, rate: int) -> Float[np.ndarray, "row band"] | None:
    """Which bands of the transform each band of the record has; None for one band of all."""
    if not config.records.bands:
        return None
    transform: Transform = config.transform
    bands = Bands(rate, config.records.bands, transform.window)
    # A band of a QERB belongs to where its centre is.
    bins = np.round(transform.frequencies(rate) * (transform.window / rate)).astype(int)
    return np.eye(bands.count)[bands.index[bins]].T


def _fit_vb(
    config: ExperimentConfig, model: Model, jobs: list[_Job], bands: list[Any]
) -> list[tuple[Gains, Energies | None]]:
    fits = _fits(config, model, jobs)
    found: list[tuple[Gains, Energies | None]] = []
    for job, rows, fit in zip(jobs, bands, fits, strict=True):
        parts = inference.energy_terms(job.power, fit, rows)
        energies = Energies(
            np.asarray(parts.data[0]),
            np.asarray(parts.activations[:, 0], np.float64),
            np.zeros(job.power.shape[1]),
            float(np.sum(parts.dictionary, dtype=np.float64)),
        )
        found.append((estimates.combination_gains(fit, 0), energies))
    return found


def _fits(config: ExperimentConfig, model: Model, jobs: list[_Job]) -> list[inference.Fit]:
    """The fits of all jobs, one by one or in batches of one bucket of lengths."""
    settings, size = model.separator.settings, config.execution.batch
    if size == 1:
        return [fit_joint(job.power, job.model, settings, seed=config.seed) for job in jobs]
    buckets: dict[tuple[int, str], list[int]] = {}
    for i, job in enumerate(jobs):
        buckets.setdefault((nmf.bucket_length(job.power.shape[1]), str(job.power.dtype)), []).append(i)
    found: dict[int, inference.Fit] = {}
    for members in buckets.values():
        for start in range(0, len(members), size):
            batch = members[start : start + size]
            powers, models = [jobs[i].power for i in batch], [jobs[i].model for i in batch]
            fits = fit_several(powers, models, settings, seed=config.seed)
            found |= dict(zip(batch, fits, strict=True))
    return [found[i] for i in range(len(jobs))]


def _fit_ml(
    config: ExperimentConfig, model: Model, jobs: list[_Job], bands: list[Any]
) -> list[tuple[Gains, Energies | None]]:
    found: list[tuple[Gains, Energies | None]] = []
    settings = model.separator.settings
    for job in jobs:
        level = settings.noise * float(np.mean(job.power, dtype=np.float64))
        weights = [
            nmf.vector_quantisation(config.seed + j, job.power, c)
            if isinstance(c, int)
            else np.asarray(c.weights, job.power.dtype)
            for j, c in enumerate(job.candidates)
        ]
        learn = [isinstance(c, int) for c in job.candidates]
        result = nmf.fit(job.power, weights, learn=learn, noise=level, num_iters=settings.num_iters)
        found.append((np.asarray(wiener.gains(np.asarray(result.variances), level)), None))
    return found


def _summed(parts: list[Energies | None]) -> Energies | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    arrays = (np.sum([getattr(part, name) for part in known], axis=0) for name in Energies._fields)
    return Energies(*arrays)

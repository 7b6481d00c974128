"""The work on the mixtures of an experiment: read, separate by every model, reduce to a record.

What is sent here and back is small, so that it can be done by any process that sees the same files; nothing is
written. What is wrong with one mixture is told instead of its record, and is not wrong with the others.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from bayesfuse import audio
from bayesfuse._compile_cache import compile_cache
from bayesfuse._fingerprint import code_hash, content_hash
from bayesfuse._jobs import ITEM_ERRORS
from bayesfuse._version import __version__
from bayesfuse.datasets.mixture import Mixture
from bayesfuse.experiment_config import ExperimentConfig, Model, models_of
from bayesfuse.experiment_dictionaries import Taught, opened, own_dictionaries, reduced
from bayesfuse.experiment_models import Energies, Estimate, Heard, of_file, separate_all
from bayesfuse.grams import Bands, Gram, gram
from bayesfuse.records import Record
from bayesfuse.scores import over_windows, score
from bayesfuse.separators.folder import sources_in
from bayesfuse.separators.free_energy_file import NAME as FREE_ENERGY
from bayesfuse.separators.free_energy_file import load_free_energy

# Modules that results depend on, by patterns of their files.
_CODE = (
    "_bessel*.py", "_bss_parts.py", "_nmf_checks.py", "bss_eval.py", "dictionary.py", "estimates.py",
    "experiment_dictionaries.py", "experiment_items.py", "experiment_models.py", "gig.py", "grams.py", "inference*.py",
    "metrics.py", "nmf.py", "scores.py", "separators/*.py", "special.py", "transforms.py", "vbnmf*.py", "wiener.py",
)  # fmt: skip
# Stages of the work, by which its time is told.
STAGES = ("read", "dictionaries", "separate", "score", "compile")
_MIXTURE = "mixture"
# What JAX reports of compiling; tracing, which it reports of nested functions again, is left out.
_COMPILING = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")


class Task(NamedTuple):
    """Some mixtures of an experiment, to be worked on by whatever process.

    Attributes
    ----------
    config
        The experiment.
    settings
        Hash of what of it matters, and of the code: `settings_hash`.
    look
        Hash of how the files of the data set look.
    indices, names
        Positions of the mixtures in the data set, and what is found there.
    taught
        Dictionaries of each mixture by source, those that are not learned on it.
    known
        Key of the record that there is of each mixture; if it is still right, nothing is computed.
    cache
        Folder of compiled programs, or None.
    """

    config: ExperimentConfig
    settings: str
    look: str
    indices: tuple[int, ...]
    names: tuple[str, ...]
    taught: tuple[Mapping[str, Taught], ...]
    known: tuple[str | None, ...]
    cache: Path | None = None


class Outcome(NamedTuple):
    """What became of a mixture: a record, an error, or neither if the record that there was is right.

    Attributes
    ----------
    estimates
        [model, source, channel, sample] of the whole mixture and its rate, if they are to be kept.
    duration
        Of the mixture in seconds.
    metadata
        Of the mixture, if there is no new record.
    """

    name: str
    record: Record | None = None
    error: str | None = None
    estimates: tuple[Float[np.ndarray, "model source channel sample"], int] | None = None
    duration: float = 0.0
    metadata: Mapping[str, Any] | None = None


class Answer(NamedTuple):
    """The outcomes of a task, seconds by stage, and the largest memory of the process so far in bytes."""

    outcomes: tuple[Outcome, ...]
    seconds: dict[str, float]
    memory: int


class _Item(NamedTuple):
    """A mixture that is to be separated."""

    mixture: Mixture
    key: str
    heard: Heard
    files: Mapping[str, Path]


def settings_hash(config: ExperimentConfig) -> str:
    """Hash of all that a record depends on but the data: settings, and the code of this process."""
    return content_hash([config.results_depend_on(), _code()])


@cache
def _code() -> str:
    return code_hash(_CODE)


def work(task: Task) -> Answer:
    """The records of some mixtures."""
    clock = _Clock()
    outcomes: dict[int, Outcome] = {}
    items: dict[int, _Item] = {}
    names = dict(zip(task.indices, task.names, strict=True))
    if reason := _stale(task):
        return Answer(tuple(Outcome(name, error=reason) for name in task.names), clock.seconds(), peak_memory())
    with compile_cache(task.cache), clock.compiling():
        for index, taught, known in zip(task.indices, task.taught, task.known, strict=True):
            try:
                found = _prepare(task, index, taught, known, clock)
            except ITEM_ERRORS as error:
                outcomes[index] = Outcome(names[index], error=_reason(error))
                continue
            if isinstance(found, Outcome):
                outcomes[index] = found
            else:
                items[index] = found
        try:
            separated = _separated(task, list(items.values()), clock) if items else []
        except ITEM_ERRORS as error:
            if len(items) > 1:  # whose fault it is shows when each is alone
                alone = [work(_only(task, index)) for index in items]
                outcomes |= {i: answer.outcomes[0] for i, answer in zip(items, alone, strict=True)}
                clock.add(*(answer.seconds for answer in alone))
            else:
                outcomes |= {i: Outcome(names[i], error=_reason(error)) for i in items}
        else:
            for (index, item), estimates in zip(items.items(), separated, strict=True):
                try:
                    with clock.stage("score"):
                        outcomes[index] = _outcome(task, item, estimates)
                except ITEM_ERRORS as error:
                    outcomes[index] = Outcome(names[index], error=_reason(error))
    return Answer(tuple(outcomes[index] for index in task.indices), clock.seconds(), peak_memory())


def peak_memory() -> int:
    """The largest memory that this process has had so far, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _stale(task: Task) -> str:
    """What this process has otherwise than the one that started the experiment; nothing, if all is well."""
    if settings_hash(task.config) != task.settings:
        return "a worker runs other code than the process that started the experiment; start the workers again"
    names = opened(task.config.data, task.look).names
    if any(index >= len(names) or names[index] != name for index, name in zip(task.indices, task.names, strict=True)):
        return "the data set looks otherwise to a worker, or has changed in the meantime; start the experiment again"
    return ""


def _only(task: Task, index: int) -> Task:
    at = task.indices.index(index)
    return task._replace(indices=(index,), names=(task.names[at],), taught=(task.taught[at],), known=(None,))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def scored_sources(config: ExperimentConfig, mixture: Mixture) -> tuple[str, ...]:
    """The sources that are scored; a ValueError if the mixture lacks one."""
    wanted = config.records.sources or tuple(s.source for s in config.dictionaries.sources) or tuple(mixture.sources)
    missing = [source for source in wanted if source not in mixture.sources]
    if missing or not wanted:
        raise ValueError(
            f"{mixture.name} has no true source {', '.join(missing)}; it has {', '.join(mixture.sources) or 'none'}. "
            "Name those to score in [records] sources, or tell two apart by [data] target."
        )
    return wanted


def check_fit(config: ExperimentConfig, mixture: Mixture) -> None:
    """Raises a ValueError or FileNotFoundError if what the configuration asks for is not there for a mixture."""
    _files(config, mixture.name, scored_sources(config, mixture))
    for learned in config.dictionaries.sources:
        if learned.learning == "context":
            mixture.backgrounds(learned.guard * config.transform.hop)


def _prepare(
    task: Task, index: int, taught: Mapping[str, Taught], known: str | None, clock: "_Clock"
) -> _Item | Outcome:
    """The mixture and what a separator may know of it, or what became of it already."""
    config = task.config
    with clock.stage("read"):
        mixture = reduced(config.data, opened(config.data, task.look)[index])
        wanted = scored_sources(config, mixture)
        files = _files(config, mixture.name, wanted)
        about: list[Any] = [task.settings, mixture.name, mixture.rate, mixture.segment, mixture.context, mixture.after]
        about += [mixture.group, mixture.split, {source: taught[source].digest for source in sorted(taught)}]
        contents = [np.frombuffer(path.read_bytes(), np.uint8) for path in files.values()]
        arrays = [mixture.mixture, *(mixture.sources[source] for source in sorted(mixture.sources)), *contents]
        key = content_hash([about, sorted(mixture.sources), list(files)], arrays)
    if key == known:
        return Outcome(mixture.name, duration=mixture.duration, metadata=dict(mixture.metadata))
    for what, signal in (("mixture", mixture.mixture), *mixture.sources.items()):
        if not np.isfinite(signal).all():
            raise ValueError(f"the {what} of {mixture.name} has NaN or infinite samples; repair its file.")
    with clock.stage("dictionaries"):
        dictionaries: dict[str, tuple[Any, ...]] = {}
        for learned in config.dictionaries.sources:
            if learned.learning == "mixture":
                dictionaries[learned.source] = learned.orders
            elif learned.learning == "context":
                guard = learned.guard * config.transform.hop
                parts = mixture.backgrounds(guard)
                dictionaries[learned.source] = own_dictionaries(config, learned, parts, mixture.rate)
            else:
                dictionaries[learned.source] = taught[learned.source].dictionaries
    return _Item(mixture, key, Heard(mixture.mixture, mixture.rate, dictionaries), files)


def _files(config: ExperimentConfig, name: str, sources: tuple[str, ...]) -> dict[str, Path]:
    """Files that other separators made of the mixture, by "<separator>/<source>", and their free energies."""
    found: dict[str, Path] = {}
    for separator in config.separators:
        for model in separator.names:
            assert separator.estimates is not None
            folder = separator.estimates / model / name
            there = sources_in(folder)
            missing = [source for source in sources if source not in there]
            if missing:
                raise FileNotFoundError(f"separator {model} has no {', '.join(missing)} of {name} in {folder}")
            found |= {f"{model}/{source}": there[source] for source in sources}
            if (folder / FREE_ENERGY).is_file():
                found[f"{model}/{FREE_ENERGY}"] = folder / FREE_ENERGY
    return found


def _separated(task: Task, items: list[_Item], clock: "_Clock") -> list[list[Estimate]]:
    """Estimates [item][model]."""
    config = task.config
    found: list[list[Estimate]] = [[] for _ in items]
    names = [learned.source for learned in config.dictionaries.sources]
    for model in models_of(config):
        with clock.stage("separate"):
            if model.separator.kind == "folder":
                estimates = [_read_estimate(config, model, item) for item in items]
            else:
                wanted = [[names.index(s) for s in scored_sources(config, item.mixture)] for item in items]
                estimates = separate_all(config, model, [item.heard for item in items], wanted, clock.compiled)
        for row, estimate in zip(found, estimates, strict=True):
            row.append(estimate)
    return found


def _read_estimate(config: ExperimentConfig, model: Model, item: _Item) -> Estimate:
    start = time.perf_counter()
    shape = item.mixture.mixture.shape
    waveforms = []
    for source in scored_sources(config, item.mixture):
        path = item.files[f"{model.label}/{source}"]
        waveform, rate = audio.read(path, dtype=item.mixture.mixture.dtype)
        if waveform.shape != shape or rate != item.mixture.rate:
            raise ValueError(
                f"{path} has {waveform.shape} samples at {rate} Hz, its mixture {shape} at {item.mixture.rate} Hz; "
                "bring it to the shape of the mixture, as `bayesfuse fuse --align` does."
            )
        waveforms.append(waveform)
    file = item.files.get(f"{model.label}/{FREE_ENERGY}")
    energy = None
    if file is not None:
        whole, transform = load_free_energy(file)
        if transform.name != config.transform.name or len(whole.frames) != transform.num_frames(shape[-1]):
            raise ValueError(
                f"{file} is over {len(whole.frames)} frames of {transform.name}, the mixture has "
                f"{config.transform.num_frames(shape[-1])} of {config.transform.name}; separate it with that transform."
            )
        energy = of_file(whole, len(config.dictionaries.sources))
    return Estimate(np.stack(waveforms), energy, time.perf_counter() - start)


def _outcome(task: Task, item: _Item, estimates: list[Estimate]) -> Outcome:
    config, mixture = task.config, item.mixture
    record = make_record(config, mixture, estimates, key=item.key, settings=task.settings)
    kept = (np.stack([e.sources for e in estimates]), mixture.rate) if config.records.keep_estimates else None
    return Outcome(mixture.name, record, estimates=kept, duration=mixture.duration)


def make_record(
    config: ExperimentConfig, mixture: Mixture, estimates: list[Estimate], *, key: str = "", settings: str = ""
) -> Record:
    """The record of a mixture from what all models made of it.

    Raises
    ------
    ValueError
        If true sources that are to be scored are missing.
    """
    import jax

    models, sources = models_of(config), scored_sources(config, mixture)
    transform = config.transform
    length = mixture.mixture.shape[-1]
    begin, end = mixture.segment
    hop, window = transform.hop, transform.window
    # Frames that overlap the scored stretch; the cut begins on their grid, so that its frames are theirs.
    first, last = begin // hop, (end - 1 + window - hop) // hop
    bands = Bands(mixture.rate, config.records.bands, window) if config.records.bands else None
    truth = np.stack([mixture.sources[source] for source in sources])
    found = np.stack([estimate.sources for estimate in estimates])
    silence = [(0, 0), (0, 0), (begin - first * hop, 0)]
    grams = [
        gram(
            np.pad(truth[j, :, begin:end], silence[1:]),
            np.pad(found[:, j, :, begin:end], silence),
            transform=transform,
            bands=bands,
        ).sum()
        for j in range(len(sources))
    ]
    fine = Gram.stack(grams)
    frames = fine if bands is None else fine.sum(2)
    inside = slice(first, last + 1)
    scores = _scores(config, mixture, sources, truth[..., begin:end], found[..., begin:end])
    count = config.records.bands or 1
    blank = np.full((count, transform.num_frames(length)), np.nan)
    missing = Energies(blank, np.tile(blank[:1], (len(config.dictionaries.sources), 1)), blank[0], np.nan)
    energies = [missing if estimate.energies is None else estimate.energies for estimate in estimates]
    known = np.stack([np.broadcast_to(e.likelihood, blank.shape) for e in energies]) if bands is not None else None
    labels = tuple(f"activations of {learned.source}" for learned in config.dictionaries.sources)
    return Record(
        name=mixture.name,
        split=mixture.split,
        group=mixture.group,
        rate=mixture.rate,
        metadata=dict(mixture.metadata),
        models=tuple(model.label for model in models),
        orders=np.array([model.order for model in models]),
        sources=sources,
        whole=frames.sum(1),
        frames=frames,
        bands=None if bands is None else fine,
        terms=("likelihood", *labels, "other"),
        free_energy=np.stack([e.terms for e in energies])[..., inside],
        dictionary_energy=np.array([e.dictionary for e in energies]),
        total_free_energy=np.array([e.total for e in energies]),
        likelihood=None if known is None else known[..., inside].astype(np.float32),
        scores={metric: values[1:] for metric, values in scores.items()},
        mixture_scores={metric: values[0] for metric, values in scores.items()},
        seconds=np.array([estimate.seconds for estimate in estimates]),
        first_frame=first,
        num_frames=transform.num_frames(length),
        transform=transform.to_dict(),
        seed=config.seed,
        versions={"bayesfuse": __version__, "jax": jax.__version__, "numpy": np.__version__},
        key=key,
        settings=settings,
    )


def _scores(
    config: ExperimentConfig, mixture: Mixture, sources: tuple[str, ...], truth: np.ndarray, found: np.ndarray
) -> dict[str, Float[np.ndarray, "system source"]]:
    """Scores by metric, of the mixture itself and of all models."""
    begin, end = mixture.segment
    itself = np.broadcast_to(mixture.mixture[:, begin:end], (1, len(sources), *mixture.mixture[:, begin:end].shape))
    systems = [_MIXTURE, *(model.label for model in models_of(config))]
    table = score(
        truth,
        np.concatenate([itself, found]),
        name=mixture.name,
        systems=systems,
        sources=sources,
        measures=config.records.metrics,
        rate=mixture.rate,
    )
    table = over_windows(table)
    wide = table.pivot(index=["metric", "system"], columns="source", values="value")
    metrics = list(dict.fromkeys(table["metric"]))
    return {m: wide.loc[m].loc[systems, list(sources)].to_numpy(np.float64) for m in metrics}


class _Clock:
    """Seconds by stage; those of compiling are taken out of the others."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    def compiled(self) -> float:
        """Seconds of compiling so far."""
        return self._seconds["compile"]

    def seconds(self) -> dict[str, float]:
        return dict(self._seconds)

    def add(self, *others: Mapping[str, float]) -> None:
        for other in others:
            for stage, spent in other.items():
                self._seconds[stage] += spent

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start, before = time.perf_counter(), self.compiled()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start - (self.compiled() - before)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Within, JAX's reports of compiling are added up."""
        from jax import monitoring

        def listen(event: str, duration_secs: float, **_: Any) -> None:
            if event in _COMPILING:
                self._seconds["compile"] += duration_secs

        monitoring.register_event_duration_secs_listener(listen)
        try:
            yield
        finally:
            monitoring.unregister_event_duration_listener(listen)

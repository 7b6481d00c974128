"""What an experiment is: mixtures, dictionaries, separators and what is recorded of them, read from a TOML file.

    seed = 0                              # of vector quantisation and of the halves of cross-fitting

    [data]
    kind = "mini-chime"                   # one of `datasets.KINDS`
    path = "mini-chime"                   # relative to this file
    splits = ["train", "val", "test"]     # all by default
    quick = true                          # the small balanced subset that some sets mark; all by default
    limit = 10                            # so many mixtures of each split
    target = "vocals"                     # two sources only: this one and, named `rest`, the sum of the others
    rest = "accompaniment"
    options = {}                          # further arguments of the data set

    [transform]
    name = "stft"                         # or "qerb", with bands = 350
    window = 1024
    hop = 512

    [dictionaries]                        # one table for each source that NMF is to find
    cross_fit = 2                         # parts; a training mixture meets no dictionary that has heard it; 0: off
    iterations = 50
    max_frames = 8192

    [dictionaries.speech]
    from = "recordings"                   # clean recordings that come with the set, `Dataset.recordings`
    recordings = "speech train {speaker}" # their name, with the mixture's metadata filled in
    orders = [2, 4, 8, 16, 32, 64, 128]

    [dictionaries.noise]
    from = "context"                      # the background before and after the target, in the mixture itself
    guard = 4                             # frames left out next to the target
    orders = 32

    [[separators]]
    kind = "vb-nmf"                       # one model for each combination of orders
    orders = [2, 8, 32]                   # of the sources that have several; those of the dictionaries by default
    a = 0.2
    b = 0.2
    noise = 1e-6
    iterations = 50
    ml_iterations = 10

    [[separators]]
    kind = "ml-nmf"                       # noise, iterations

    [[separators]]
    kind = "folder"                       # what other programs separated: <estimates>/<separator>/<name>/<source>.wav
    estimates = "estimates"
    names = ["rpca", "kam"]               # separators in it

    [records]
    bands = 32                            # 0: none
    metrics = ["sdr"]
    sources = ["speech"]                  # those scored; all by default
    keep_estimates = false                # as WAV files, in the layout that `bayesfuse fuse` reads

    [execution]                           # has no influence on the results
    executor = "processes"                # or "serial", "dask"
    workers = 2
    threads = 1                           # of each worker
    batch = 1                             # mixtures of similar length fitted together by VB-NMF, shared out among
                                          # JAX's devices; 16 or more fill an accelerator
    address = "tcp://host:8786"           # of a Dask scheduler; without it a cluster on this machine is started

Other sources of dictionaries: ``from = "sources"``, the true sources of the mixtures of the split named by `split` (by
default "train"), apart for each value of the metadata named by `by`; ``from = "mixture"``, learned on the mixture
while it is separated.
"""

import dataclasses
import itertools
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from bayesfuse._kinds import KINDS
from bayesfuse._toml import Section
from bayesfuse.scores import Measure
from bayesfuse.separators.vb_nmf import Settings, check_settings
from bayesfuse.transforms import QERB, STFT, transform_from_dict

Learning = Literal["recordings", "sources", "context", "mixture"]
SeparatorKind = Literal["vb-nmf", "ml-nmf", "folder"]
ExecutorKind = Literal["serial", "processes", "dask"]

_LABELS: dict[str, str] = {"vb-nmf": "VB-NMF", "ml-nmf": "ML-NMF"}


@dataclasses.dataclass(frozen=True)
class Data:
    """Section [data]; `splits` is empty for all."""

    kind: str
    path: Path | None
    splits: tuple[str, ...] = ()
    quick: bool | None = None
    limit: int | None = None
    target: str | None = None
    rest: str = "rest"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Learned:
    """Section [dictionaries.<source>]: the orders of a source and what its dictionaries are learned on."""

    source: str
    learning: Learning
    orders: tuple[int, ...]
    recordings: str = ""
    split: str = "train"
    by: str | None = None
    guard: int = 4


@dataclasses.dataclass(frozen=True)
class Dictionaries:
    """Section [dictionaries]."""

    sources: tuple[Learned, ...] = ()
    cross_fit: int = 2
    iterations: int = 50
    max_frames: int | None = 8192


@dataclasses.dataclass(frozen=True)
class Separator:
    """One of [[separators]]."""

    kind: SeparatorKind
    label: str
    orders: tuple[int, ...] = ()
    settings: Settings = dataclasses.field(default_factory=Settings)
    estimates: Path | None = None
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Section [records]; `sources` is empty for all."""

    bands: int = 32
    metrics: tuple[Measure, ...] = ("sdr",)
    sources: tuple[str, ...] = ()
    keep_estimates: bool = False


@dataclasses.dataclass(frozen=True)
class Execution:
    """Section [execution]."""

    executor: ExecutorKind = "serial"
    workers: int = 1
    threads: int | None = None
    batch: int = 1
    address: str | None = None


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """An experiment, checked; made by `load_config` or `parse_config`."""

    data: Data
    transform: STFT | QERB
    dictionaries: Dictionaries
    separators: tuple[Separator, ...]
    records: Recorded = Recorded()
    execution: Execution = Execution()
    seed: int = 0

    def results_depend_on(self) -> dict[str, Any]:
        """All settings that a record depends on, JSON-ready; paths are not, what is in the files counts."""
        data = {name: getattr(self.data, name) for name in ("kind", "target", "rest", "options")}
        separators = [{**dataclasses.asdict(s), "estimates": s.estimates is not None} for s in self.separators]
        found = {
            "data": data,
            "transform": self.transform.to_dict(),
            "dictionaries": dataclasses.asdict(self.dictionaries),
            "separators": separators,
            "records": dataclasses.asdict(self.records),
            "seed": self.seed,
        }
        return json.loads(json.dumps(found))

    def replace(self, section: str, **changes: Any) -> "ExperimentConfig":
        """The configuration with some values of a section changed, such as ``replace("data", limit=10)``."""
        return dataclasses.replace(self, **{section: dataclasses.replace(getattr(self, section), **changes)})


def load_config(path: str | Path) -> ExperimentConfig:
    """The configuration in a TOML file; see the module's head.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no TOML, or a key is unknown, missing or has a value that cannot be used. The message names file,
        line and key, and says what to write instead.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no configuration {file}; looked from {Path.cwd()}.")
    text = file.read_text(encoding="utf-8")
    try:
        return parse_config(text, home=file.parent)
    except ValueError as error:
        raise ValueError(f"{file}, {error}") from error


def parse_config(text: str, *, home: Path | None = None) -> ExperimentConfig:
    """The configuration in a TOML text; see the module's head.

    Parameters
    ----------
    home
        What relative paths are relative to; the working directory by default.

    Raises
    ------
    ValueError
        As `load_config`.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not valid TOML: {error}") from error
    root = Section(content, "", text, Path.cwd() if home is None else home)
    data = _data(root.section("data"))
    transform = _transform(root.section("transform", required=False))
    dictionaries = _dictionaries(root.section("dictionaries", required=False))
    separators = tuple(_separator(part, dictionaries) for part in root.sections("separators"))
    labels = [label for s in separators for label in (s.names or (s.label,))]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise root.error("separators", f"two are called {twice!r}; give each its own `label`")
    records = _records(root.section("records", required=False))
    execution = _execution(root.section("execution", required=False))
    seed = root.get("seed", int, 0, lambda x: 0 <= x < 2**31, "a whole number from 0 on")
    root.finish()
    return ExperimentConfig(data, transform, dictionaries, separators, records, execution, seed)


class Model(NamedTuple):
    """One model of the experiment: a separator with its orders, one per source of the dictionaries.

    `order` is the one that tells it from the separator's other models, the largest of several, 0 without any.
    """

    separator: Separator
    label: str
    orders: tuple[int, ...]
    order: int


def models_of(config: ExperimentConfig) -> tuple[Model, ...]:
    """All models, in the order of the configuration; of several orders the last source varies fastest."""
    found: list[Model] = []
    for separator in config.separators:
        if separator.kind == "folder":
            found += [Model(separator, name, (), 0) for name in separator.names]
            continue
        rows = [
            learned.orders if len(learned.orders) == 1 or not separator.orders
            else tuple(order for order in learned.orders if order in separator.orders)
            for learned in config.dictionaries.sources
        ]  # fmt: skip
        varied = [j for j, row in enumerate(config.dictionaries.sources) if len(row.orders) > 1] or [0]
        for choice in itertools.product(*rows):
            own = [choice[j] for j in varied]
            found.append(Model(separator, f"{separator.label} {'x'.join(map(str, own))}", choice, max(own)))
    return tuple(found)


def _data(section: Section) -> Data:
    found = Data(
        kind=section.get("kind", str, ..., lambda kind: kind in KINDS, f"one of {', '.join(KINDS)}"),
        path=section.path("path", None),
        splits=section.texts("splits"),
        quick=section.get("quick", bool, None),
        limit=section.get("limit", int, None, lambda x: x >= 1, "a number of mixtures, at least 1"),
        target=section.get("target", str, None, bool),
        rest=section.get("rest", str, "rest", bool),
        options=section.get("options", dict, {}),
    )
    section.finish()
    return found


def _transform(section: Section) -> STFT | QERB:
    name = section.get("name", str, "stft", lambda name: name in ("stft", "qerb"), "stft or qerb")
    description: dict[str, Any] = {"name": name, "window": section.get("window", int, 1024, expected="samples")}
    if name == "stft":
        description["hop"] = section.get("hop", int, description["window"] // 2, expected="a number of samples")
    else:
        description["bands"] = section.get("bands", int, 350, expected="a number of bands")
        description["rate"] = section.get("rate", float, ..., lambda x: x > 0, "the sampling rate of the set in Hz")
    section.finish()
    try:
        return transform_from_dict(description)
    except ValueError as error:
        raise section.error("window", str(error).rstrip(".")) from error


def _dictionaries(section: Section) -> Dictionaries:
    cross_fit = section.get("cross_fit", int, 2, lambda x: x == 0 or x >= 2, "a number of parts, at least 2, or 0")
    iterations = section.get("iterations", int, 50, lambda x: x >= 0, "a number of iterations")
    max_frames = section.get("max_frames", int, 8192, lambda x: x >= 0, "a number of frames, or 0 for all")
    orders = section.orders("orders", ())
    sources = tuple(_learned(part, name, orders) for name, part in section.rest().items())
    section.finish()
    return Dictionaries(sources, cross_fit, iterations, max_frames or None)


def _learned(section: Section, source: str, orders: tuple[int, ...]) -> Learned:
    choices = get_args(Learning)
    learning = section.get("from", str, ..., lambda x: x in choices, f"one of {', '.join(choices)}")
    needed = ... if learning == "recordings" else ""
    found = Learned(
        source=source,
        learning=learning,
        orders=section.orders("orders", orders or ...),
        recordings=section.get(
            "recordings", str, needed, bool, 'the name of recordings of the set, such as "speech train {speaker}"'
        ),
        split=section.get("split", str, "train", bool),
        by=section.get("by", str, None, bool),
        guard=section.get("guard", int, 4, lambda x: x >= 0, "a number of frames"),
    )
    section.finish()
    return found


def _separator(section: Section, dictionaries: Dictionaries) -> Separator:
    choices = get_args(SeparatorKind)
    kind = section.get("kind", str, ..., lambda x: x in choices, f"one of {', '.join(choices)}")
    if kind == "folder":
        found = Separator(
            kind,
            "",
            estimates=section.path("estimates", ...),
            names=section.texts("names"),
        )
        if not found.names:
            raise section.error("names", 'is missing; expected the separators of the folder, such as ["rpca"]')
        section.finish()
        return found
    if len(dictionaries.sources) < 2:
        raise section.error(
            "kind", f"{kind} needs the dictionaries of two sources or more; add sections such as [dictionaries.speech]"
        )
    several = [learned for learned in dictionaries.sources if len(learned.orders) > 1]
    orders = section.orders("orders", ())
    unknown = sorted(set(orders) - {order for learned in several for order in learned.orders})
    if unknown:
        raise section.error("orders", f"got {unknown}, which are not among several orders of any source's dictionary")
    settings = Settings(
        noise=section.get("noise", float, Settings.noise, expected="a positive number"),
        num_iters=section.get("iterations", int, Settings.num_iters, lambda x: x >= 1, "a number of iterations"),
    )
    if kind == "vb-nmf":
        settings = dataclasses.replace(
            settings,
            a=section.get("a", float, Settings.a, expected="the shape of a Gamma prior"),
            b=section.get("b", float, Settings.b, expected="the shape of a Gamma prior"),
            ml_iters=section.get("ml_iterations", int, Settings.ml_iters, expected="a number of iterations"),
        )
    try:
        settings = check_settings(settings)
    except ValueError as error:
        raise section.error(str(error).split("=")[0], str(error).rstrip(".")) from error
    label = section.get("label", str, _LABELS[kind], bool)
    section.finish()
    return Separator(kind, label, orders, settings)


def _records(section: Section) -> Recorded:
    found = Recorded(
        bands=section.get("bands", int, 32, lambda x: x >= 0, "a number of bands, or 0 for none"),
        metrics=section.texts("metrics", get_args(Measure)) or ("sdr",),  # pyright: ignore[reportArgumentType]
        sources=section.texts("sources"),
        keep_estimates=section.get("keep_estimates", bool, False),
    )
    section.finish()
    return found


def _execution(section: Section) -> Execution:
    choices = get_args(ExecutorKind)
    found = Execution(
        executor=section.get("executor", str, "serial", lambda x: x in choices, f"one of {', '.join(choices)}"),
        workers=section.get("workers", int, 1, lambda x: x >= 1, "a number of processes, at least 1"),
        threads=section.get("threads", int, None, lambda x: x >= 1, "a number of threads, at least 1"),
        batch=section.get("batch", int, 1, lambda x: x >= 1, "a number of mixtures, at least 1"),
        address=section.get("address", str, None, bool, "the address of a Dask scheduler, such as tcp://host:8786"),
    )
    section.finish()
    return found

"""What the scripts on the figures and tables of [JVR16] share: records, what was learned, and the printed page.

All of them work on the records of the experiment `mini_chime.toml`. Records that are missing are computed first; a run
that was interrupted goes on. What is read from the records, and what is learned from them, is kept in the cache under
hashes of the records and of the code, so that a second run only prints.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import _claims
import _common as common
import _corpus
import numpy as np
from _claims import Claim
from _common import Estimate
from _corpus import Corpus

from bayesfuse._fingerprint import files_hash
from bayesfuse._netcdf import replacing
from bayesfuse._plot_style import new_figure, soften
from bayesfuse.experiment_config import ExperimentConfig, load_config
from bayesfuse.experiment_dictionaries import open_now
from bayesfuse.experiments import run_experiment
from bayesfuse.records import Records, open_records, read_index, record_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG = Path(__file__).parent / "mini_chime.toml"
EXPECTED = common.expected("jvr16")
# What is learned from records depends on these modules, and what is read from them on those.
RULES = ("_search", "_simplex", "bayesian", "fusion", "ladder", "objectives", "rules", "simplex_qp", "static")
READING = ("grams", "lazy_records", "network_costs", "record_file")
NOTE = (
    "SDR in dB on the utterance; ±: 95 %, clustered by utterance and by noise recording, differences paired. Where\n"
    "weights vary over frames, and nothing else is said, it is the SDR of the frames; that of the fused waveform is\n"
    "the same or more.\n"
    "Empty cells: not printed in the paper, which is on another corpus (CHiME-2)."
)


class Page(NamedTuple):
    """What a script has found."""

    tables: Sequence[str]
    claims: Sequence[Claim]
    draw: Callable[[], "Figure"]


class Bar(NamedTuple):
    """A bar of a figure: ours with its interval, and the paper's where it is printed."""

    label: str
    ours: Estimate
    printed: float | None = None


# Records -----------------------------------------------------------------------------------------------------------


def records_of(config: ExperimentConfig, folder: Path) -> tuple[Records, dict[str, list[str]]]:
    """Records of all mixtures of an experiment, computed if some are missing, and the names by split.

    Records that are there are taken as they are, whatever code computed them; what cannot be computed is left out.

    Raises
    ------
    ValueError
        If some are missing in the folder of a larger experiment, which would be cut down to this one.
    """
    data = open_now(config.data)
    splits = config.data.splits or data.splits
    wanted = {s: list(data.mixtures(s, config.data.quick)[: config.data.limit].names) for s in splits}

    records = open_records(folder) if (folder / "records").is_dir() else None
    known = set() if records is None else {*records.names, *records.errors}
    missing = sum(name not in known for names in wanted.values() for name in names)
    if records is None or missing:
        more = {*(read_index(folder) or {"names": ()})["names"]} - {name for names in wanted.values() for name in names}
        if more:
            raise ValueError(
                f"{missing} records are missing in {folder}, which belongs to an experiment of {len(more)} mixtures "
                "more; run that one to its end, or give another folder."
            )
        print(f"{missing} records are missing in {folder}: running {CONFIG.name}", file=sys.stderr, flush=True)
        print(run_experiment(config, folder, progress=True), file=sys.stderr, flush=True)
        records = open_records(folder)
    there = set(records.names)
    return records, {split: [name for name in names if name in there] for split, names in wanted.items()}


def corpus_of(records: Records, names: Sequence[str], folder: Path, cache: Path) -> Corpus:
    """One split, from the cache or from its records."""
    look = files_hash(record_path(folder, name) for name in names)
    read = functools.partial(records.select(names=names).read, bands=False)
    return Corpus.unpacked(remembered(cache, "records", look, lambda: Corpus.of(read()).packed(), only=READING))


def remembered(
    cache: Path, what: str, key: str, make: Callable[[], Mapping[str, Any]], *, only: Sequence[str] = RULES
) -> dict[str, np.ndarray]:
    """Arrays from the cache, or made and kept there, under a name with a hash of the key and of the code."""
    folder = cache / "papers"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{what.replace(' ', '-')}-{common.fingerprint(_corpus.__file__, what, key, only=only)}.npz"
    if not path.exists():
        arrays = {name: np.asarray(value) for name, value in make().items()}
        with replacing(path) as temporary:
            np.savez(temporary, **arrays)
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


# Command line ------------------------------------------------------------------------------------------------------


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments that all scripts have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", required=True, help="the folder mini-chime")
    made.add_argument(
        "--records", metavar="DIR", help="folder of the experiment's records (default: in the cache; made if need be)"
    )
    made.add_argument("--figure", metavar="FILE.png", help="draw the figure, too")
    made.add_argument("--cache", help="folder for records and what is learned (default: the user's cache)")
    made.add_argument("--limit", type=int, metavar="N", help="only so many mixtures of each split, to try the script")
    return made


def load(options: argparse.Namespace, *splits: str) -> list[Corpus]:
    """The splits of the experiment that are needed."""
    cache = common.cache_folder(options.cache)
    config = load_config(CONFIG).replace("data", path=Path(options.data), limit=options.limit)
    few = "" if options.limit is None else f"-{options.limit}"
    folder = Path(options.records) if options.records else cache / "papers" / f"records{few}"
    records, names = records_of(config, folder)
    return [corpus_of(records, names[split], folder, cache) for split in splits]


def run(options: argparse.Namespace, splits: Sequence[str], build: Callable[..., Page], title: str = "[JVR16]") -> None:
    """Print the page that `build` makes of the cache's folder and the splits, and draw it if asked for."""
    try:
        corpora = load(options, *splits)
        page = build(common.cache_folder(options.cache), *corpora)
    except (OSError, ValueError) as error:
        common.fail(str(error))
        return
    counts = ", ".join(f"{len(corpus.names)} {split}" for split, corpus in zip(splits, corpora, strict=True))
    print(f"records: {counts} mixtures")
    show(page, options.figure, title)


def show(page: Page, figure: str | None, paper: str = "[JVR16]") -> None:
    """Print a page, and draw its figure to a file."""
    print("\n\n".join(["", *page.tables, NOTE, _claims.report(page.claims, paper)]))
    if figure:
        with replacing(Path(figure)) as temporary:
            page.draw().savefig(temporary, dpi=120)


# Tables and figures ------------------------------------------------------------------------------------------------


def beside(title: str, rows: Mapping[str, Mapping[str, Bar]]) -> str:
    """A table of bars by row and column, ours beside the paper's."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    body = []
    for label, row in rows.items():
        cells = []
        for column in columns:
            bar = row.get(column)
            cells += ["", ""] if bar is None else [str(bar.ours), "" if bar.printed is None else f"{bar.printed:g}"]
        body.append([label, *cells])
    header = ["SDR (dB)", *(cell for column in columns for cell in (column, "paper"))]
    return common.table(header, body, title=title)


def bars(title: str, panels: Mapping[str, Sequence[Bar]]) -> "Figure":
    """Bars with intervals, one panel each beside the other, and diamonds where the paper prints a value."""
    figure = new_figure(4.4 * len(panels), 1.4 + 0.34 * max(map(len, panels.values())))
    axes = np.atleast_1d(np.asarray(figure.subplots(1, len(panels), sharex=True), object))
    for ax, (name, row) in zip(axes, panels.items(), strict=True):
        places = np.arange(len(row))
        halves = np.nan_to_num([bar.ours.half for bar in row])
        ax.barh(places, [bar.ours.mean for bar in row], xerr=halves, height=0.6, color="#9ecae1", ecolor="#222222")
        paper = [(bar.printed, place) for bar, place in zip(row, places, strict=True) if bar.printed is not None]
        if paper:
            ax.plot(*zip(*paper, strict=True), "D", color="#D55E00", markersize=5)
        ax.set_yticks(places, [bar.label for bar in row], fontsize=8)
        ax.invert_yaxis()
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("SDR [dB]")
        soften(ax)
    any_printed = any(bar.printed is not None for row in panels.values() for bar in row)
    figure.suptitle(f"{title} (◆: printed in the paper)" if any_printed else title, fontsize=10)
    return figure

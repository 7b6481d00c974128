"""What the commands over folders of WAV files have in common: where the files are, and how they are worked off."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesfuse import cli_options

if TYPE_CHECKING:
    from bayesfuse.examples import Reading
    from bayesfuse.separators.folder import Folder
    from bayesfuse.transforms import STFT

METHODS = ("mean", "select", "oracle", "static-mse", "static-sdr", "vb", "network")

LAYOUT = """\
the files (WAV, FLAC or OGG; NAME may contain folders):
  MIXTURES/NAME.wav
  ESTIMATES/SEPARATOR/NAME/SOURCE.wav           and, where a model knows it, free_energy.nc beside it
                                                (Result.write_estimates writes both for every order)
  REFERENCES/NAME/SOURCE.wav                    the true sources, where they are known
or --manifest files.csv with the columns name,kind,separator,source,path[,group] and the kinds mixture, estimate,
reference and free_energy."""


def add_files(parser: argparse.ArgumentParser, *, references: str) -> None:
    """Adds the options that say where the files are.

    Parameters
    ----------
    references
        Help of --references.
    """
    files = parser.add_argument_group("files")
    files.add_argument("--mixtures", metavar="DIR", help="folder of the mixtures")
    files.add_argument("--estimates", metavar="DIR", help="folder with the outputs of each separator")
    files.add_argument("--references", metavar="DIR", help=references)
    files.add_argument("--manifest", metavar="CSV", help="a list of all files, instead of the three folders")


def add_reading(group: Any) -> None:
    """Adds the options about how estimates are read."""
    group.add_argument(
        "--align",
        action="store_true",
        help="repair what the report complains of: shift late estimates, undo gains and inversions, resample, pad, cut",
    )
    group.add_argument("--no-check", action="store_true", help="no report about the estimates")


def add_frames(group: Any) -> None:
    """Adds the options about weights per frame and per channel."""
    group.add_argument("--time-varying", action="store_true", help="weights of their own for every frame")
    group.add_argument(
        "--window",
        type=cli_options.even,
        default=1024,
        metavar="N",
        help="length of a frame in samples, even (default 1024); those of free energies are as their files say",
    )
    group.add_argument(
        "--per-channel", action="store_true", help="weights of their own for every channel (default: shared)"
    )


def add_running(group: Any) -> None:
    """Adds the options about processes and talk."""
    group.add_argument(
        "--workers", type=cli_options.whole(1), default=1, metavar="N", help="mixtures worked on at a time (default 1)"
    )
    group.add_argument("--quiet", action="store_true", help="no progress bars, no report")


def folder(args: argparse.Namespace) -> "Folder":
    """The folder that the options name."""
    from bayesfuse.separators.folder import read_folder, read_manifest

    if args.manifest is not None:
        if args.mixtures or args.estimates or args.references:
            raise ValueError("--manifest lists all files: leave out --mixtures, --estimates and --references")
        return read_manifest(args.manifest)
    if args.mixtures is None or args.estimates is None:
        raise ValueError("give --mixtures and --estimates, or --manifest")
    return read_folder(args.mixtures, args.estimates, args.references)


def reading(args: argparse.Namespace, files: "Folder", keep: Any, pool: Executor | None) -> "Reading":
    """Reports on the estimates, and returns how to read them."""
    from bayesfuse.examples import Reading
    from bayesfuse.sanity import check

    if args.no_check and not args.align:
        return Reading()
    cli_options.stage(args, "checking the estimates")
    report = check(files, keep=keep, executor=pool, progress=cli_options.bars(args))
    if not args.quiet:
        print(report.table())
        if report.corrections or any(finding.differences for finding in report.findings.values()):
            what = "lags, gains, inversions, and other rates, channels and lengths"
            print(f"Repaired: {what}." if args.align else f"Read as they are; --align repairs {what}.")
        print()
    return Reading.aligned(report) if args.align else Reading()


def note_references(args: argparse.Namespace, files: "Folder") -> None:
    """Says of which mixtures and sources no truth is known, when some are: they are left out."""
    unknown = []
    for item in files.items:
        estimated = sorted({source for own in item.estimates.values() for source in own})
        missing = [source for source in estimated if source not in item.references]
        unknown += [item.name] if missing == estimated else [f"{item.name}/{source}" for source in missing]
    if unknown and not args.quiet:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        print(f"No reference, left out: {len(unknown)} ({shown}).\n")


def check_output(output: Path, args: argparse.Namespace) -> None:
    """Raises a ValueError if outputs would lie in or around a folder of inputs, where the next run would find them."""
    place = output.resolve()
    for root in (Path(text) for text in (args.mixtures, args.estimates, args.references) if text is not None):
        if place.is_relative_to(root.resolve()) or root.resolve().is_relative_to(place):
            raise ValueError(f"cannot write into {output}: the inputs {root} are around or in it; name another folder")


def transform(args: argparse.Namespace) -> "STFT":
    """The frames of time-varying weights."""
    from bayesfuse.transforms import STFT

    return STFT(args.window, args.window // 2)


def check_parent(output: Path) -> None:
    """Raises a ValueError unless a file of that name can be made."""
    if not output.parent.is_dir():
        raise ValueError(f"cannot write {output}: there is no folder {output.parent}; create it first")


def report_failures(failed: Mapping[str, str]) -> int:
    """Lists failures on the standard error output; returns the exit status, 1 if there are any."""
    if failed:
        print(f"bayesfuse: {len(failed)} failed:", file=sys.stderr)
        for name, text in failed.items():
            print(f"  {name}: {' '.join(text.split())}", file=sys.stderr)
    return 1 if failed else 0


@contextlib.contextmanager
def workers(count: int) -> Iterator[Executor | None]:
    """A pool of that many processes, or None for one."""
    if count == 1:
        yield None
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Forking a process that runs JAX's threads can hang.
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)

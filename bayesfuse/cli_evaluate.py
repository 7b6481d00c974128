"""`bayesfuse evaluate`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesfuse import cli_folder

if TYPE_CHECKING:
    from bayesfuse.evaluating import Job

_DESCRIPTION = """\
Scores estimates against the true sources: every separator, and whatever was fused.

the files (WAV, FLAC or OGG):
  REFERENCES/NAME/SOURCE.wav                    the true sources
  FOLDER/NAME/SOURCE.wav                        the estimates of one system, such as the output of `bayesfuse fuse`
  FOLDER/SYSTEM/NAME/SOURCE.wav                 or of several"""

_EPILOG = """\
metrics (in dB; they are different quantities, which the literature all calls SDR):
  sdr       10 log10 of the energy of the source over that of the error, without any filtering or scaling

example:
  bayesfuse evaluate --references ref --estimates est --estimates fused=out/ -o scores.csv

Sources that are silent have no score; they are counted and left out of the means.
Exit status: 0 success, 1 some files failed (listed at the end), 2 error, 130 interrupted."""


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = commands.add_parser(
        "evaluate",
        help="score folders of estimates against true sources",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--references", metavar="DIR", help="folder of the true sources")
    parser.add_argument(
        "--estimates",
        metavar="[NAME=]DIR",
        action="append",
        default=[],
        help="folder of estimates, of one system or with one folder per system; can be repeated",
    )
    parser.add_argument("--manifest", metavar="CSV", help="a list of all files, as for `bayesfuse fuse`")
    parser.add_argument("--metric", action="append", choices=("sdr",), help="can be repeated (default sdr)")
    parser.add_argument("--align", action="store_true", help="resample, pad or cut estimates that do not fit")
    parser.add_argument("-o", "--output", metavar="CSV", help="file for the score of every file")
    cli_folder.add_running(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns 1 if some files failed."""
    from bayesfuse import evaluating

    jobs = _jobs(args)
    metrics = {name: evaluating.METRICS[name] for name in args.metric or ["sdr"]}
    output = None if args.output is None else Path(args.output)
    keep = None if output is None else output.with_name(f".{output.name}.work")
    with cli_folder.workers(args.workers) as pool:
        scores = evaluating.evaluate(jobs, metrics, align=args.align, keep=keep, executor=pool, progress=not args.quiet)
    if output is not None:
        scores.write(output)
    if not args.quiet:
        print(scores.summary())
    return cli_folder.report_failures(scores.failed)


def _jobs(args: argparse.Namespace) -> "list[Job]":
    from bayesfuse import evaluating
    from bayesfuse.separators.folder import read_manifest

    if args.manifest is not None:
        if args.references or args.estimates:
            raise ValueError("--manifest lists all files: leave out --references and --estimates")
        jobs = evaluating.jobs_of_folder(read_manifest(args.manifest))
        if not jobs:
            raise ValueError(f"{args.manifest} has no mixture with both references and estimates")
        return jobs
    if args.references is None or not args.estimates:
        raise ValueError("give --references and --estimates, or --manifest")
    return evaluating.jobs_of(args.references, evaluating.find_systems(args.references, args.estimates))

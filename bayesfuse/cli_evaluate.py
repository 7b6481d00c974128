"""`bayesfuse evaluate`."""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesfuse import cli_folder, cli_options

if TYPE_CHECKING:
    from bayesfuse.evaluating import Job

_METRICS = ("sdr", "si_sdr", "si_sir", "si_sar", "bss_eval_sources", "bss_eval_images", "bss_eval_v4")

_DESCRIPTION = """\
Scores estimates against the true sources: every separator, and whatever was fused.

the files (WAV, FLAC or OGG):
  REFERENCES/NAME/SOURCE.wav                    the true sources
  FOLDER/NAME/SOURCE.wav                        the estimates of one system, such as the output of `bayesfuse fuse`
  FOLDER/SYSTEM/NAME/SOURCE.wav                 or of several"""

_EPILOG = """\
metrics (in dB; the literature calls all of these SDR, but they are different quantities):
  sdr               energy of the true source over that of the error, with no filtering or scaling (default)
  si_sdr            the same after the best scaling of the true source; si_sir, si_sar: its parts
  bss_eval_sources  BSS Eval 3: after the best filter of 512 taps; SDR, SIR, SAR
  bss_eval_images   BSS Eval 3 for multichannel images: SDR, ISR, SIR, SAR
  bss_eval_v4       BSS Eval 4: the same in windows of a second, with one filter; the median of the windows is shown

example:
  bayesfuse evaluate --references ref --estimates est --estimates fused=out/ -o scores.csv

Files are read in blocks, but for BSS Eval, which holds one system's estimates in memory: about 48 bytes per sample,
channel and source. Sources that are silent have no score; they are counted and left out of the means.
Exit status: 0 success, 1 some files failed (listed at the end), 2 error, 130 interrupted (143 by SIGTERM)."""


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
    parser.add_argument(
        "--metric", action="append", choices=_METRICS, metavar="NAME", help="as below; can be repeated (default sdr)"
    )
    parser.add_argument("--align", action="store_true", help="resample, pad or cut estimates that do not fit")
    parser.add_argument("-o", "--output", metavar="CSV", type=cli_options.path, help="file for the score of every file")
    cli_folder.add_running(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns 1 if some files failed."""
    from bayesfuse import evaluating, scores

    jobs = _jobs(args)
    output = None if args.output is None else Path(args.output)
    keep = None
    if output is not None:
        cli_folder.check_parent(output)
        keep = output.with_name(f".{output.name}.work")
    with cli_folder.workers(args.workers) as pool:
        cli_options.stage(args, "scoring")
        found = evaluating.evaluate(
            jobs, args.metric or ["sdr"], align=args.align, keep=keep, executor=pool, progress=cli_options.bars(args)
        )
    if output is not None and keep is not None:
        scores.write(found.table, output)
        shutil.rmtree(keep, ignore_errors=True)
    if not args.quiet:
        print(found.summary())
    return cli_folder.report_failures(found.failed)


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

"""`bayesfuse report`."""

import argparse
from pathlib import Path
from typing import Any

from bayesfuse import cli_folder, cli_options

_DESCRIPTION = """\
Writes a page about an experiment: tables with intervals and tests, box plots, the gain over the best single model for
each SNR, whether free energies predict quality, fusion weights, and players for mixtures that gain least and most. One
file of HTML that needs nothing but a browser."""

_EPILOG = """\
example:
  bayesfuse report records --data mini-chime -o report.html

FOLDER is what `bayesfuse experiment` wrote, or a file of `corpus_results.save_corpus`. Sounds need the data set
(--data), and those of the separations an experiment that kept them (keep_estimates)."""


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = commands.add_parser(
        "report",
        help="write a page about an experiment: tables, pictures, sounds",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("folder", metavar="FOLDER", help="records of an experiment")
    parser.add_argument(
        "-o", "--output", metavar="HTML", type=cli_options.path, help="the page (default: FOLDER/report.html)"
    )
    parser.add_argument("--data", metavar="PATH", help="where the data set of the experiment is, for sounds")
    parser.add_argument("--title", default="bayesfuse report", help="of the page")
    parser.add_argument("--learn", metavar="SPLIT", help="split to learn fusion rules on (default: train, if any)")
    parser.add_argument("--apply", metavar="SPLIT", help="split to report (default: test, or all mixtures)")
    parser.add_argument("--by", metavar="NAME", help="what is told apart, such as snr_db (default: an SNR, if any)")
    parser.add_argument("--quiet", action="store_true", help="do not say where the page is")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from bayesfuse.corpus_results import corpus_tree, open_corpus
    from bayesfuse.records import open_records
    from bayesfuse.report import write_report
    from bayesfuse.report_sounds import experiment_sounds

    folder = Path(args.folder)
    stored = folder.is_file() or folder.suffix == ".zarr"
    if stored and args.data is not None:
        raise ValueError("--data goes with the folder of an experiment, not with a file of its results")
    output = Path(args.output) if args.output else (folder.parent if stored else folder) / "report.html"
    if args.output:
        cli_folder.check_parent(output)
    sounds = None if args.data is None else experiment_sounds(folder, args.data)
    tree = open_corpus(folder) if stored else corpus_tree(open_records(folder), bands=False)
    choices = {"learn": args.learn, "apply": args.apply, "by": args.by}
    given = {name: value for name, value in choices.items() if value is not None}
    try:
        write_report(tree, output, title=args.title, sounds=sounds, **given)
    finally:
        tree.close()
    if not args.quiet:
        print(f"the report is in {output}")
    return 0

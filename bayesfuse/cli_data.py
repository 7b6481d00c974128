"""`bayesfuse data check`."""

import argparse
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bayesfuse import cli_folder, cli_options
from bayesfuse._kinds import KINDS

_DESCRIPTION = """\
Reads everything in a data set once and reports counts, durations, rates and levels, which signals are silent or
clipped, and what is missing, damaged, or not as the set says."""

_EPILOG = """\
kinds, and the path that they take:
{kinds}
Without --kind the layout is recognised; a folder that is none of these is taken for recordings.

examples:
  bayesfuse data check kitchen_recordings
  bayesfuse data check musdb18hq --option chunk=30 --split test -o levels.csv

Exit status: 0 success, 1 some files are broken (listed at the end), 2 error, 130 interrupted (143 by SIGTERM)."""


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = commands.add_parser("data", help="look over a data set", description="Commands about data sets.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    kinds = "".join(f"  {kind:<14}{what}\n" for kind, (_, _, what) in KINDS.items())
    check = actions.add_parser(
        "check",
        help="report counts, durations, rates, levels, silent, clipped and broken files",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=_DESCRIPTION,
        epilog=_EPILOG.format(kinds=kinds),
    )
    check.set_defaults(run=run)
    check.add_argument("path", metavar="PATH", nargs="?", help="the data set")
    check.add_argument(
        "--kind", choices=tuple(KINDS), metavar="KIND", help="what it is, as below (default: recognised)"
    )
    check.add_argument(
        "--option",
        action="append",
        type=_option,
        default=[],
        metavar="KEY=VALUE",
        help="an option of the kind, as in a configuration file, such as mono=true; can be repeated",
    )
    check.add_argument("--split", action="append", metavar="NAME", help="only this split; can be repeated")
    check.add_argument("--quick", action="store_true", help="only the quick subset, where the set marks one")
    check.add_argument("--limit", type=cli_options.whole(1), metavar="N", help="only so many mixtures of each split")
    check.add_argument(
        "-o", "--output", metavar="CSV", type=cli_options.path, help="file for the levels of every signal"
    )
    check.add_argument(
        "--workers", type=cli_options.whole(1), default=1, metavar="N", help="mixtures read at a time (default 1)"
    )
    check.add_argument("--quiet", action="store_true", help="no progress bar, no report")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns 1 if some files are broken."""
    from bayesfuse import scores
    from bayesfuse.datasets import check_dataset, guess_kind, open_dataset

    if args.path is None and args.kind != "synthetic":
        raise ValueError("give the PATH of the data set; only --kind synthetic has none")
    kind = args.kind if args.path is None else args.kind or guess_kind(args.path)
    if args.output is not None:
        cli_folder.check_parent(Path(args.output))
    try:
        data = open_dataset(kind, args.path, **dict(args.option))
    except FileNotFoundError as error:
        if args.path is None or not Path(args.path).exists():
            raise
        return cli_folder.report_failures({f"{args.path} as {kind}": str(error)})
    cli_options.stage(args, f"checking {args.path or 'draws'} as {kind}")
    with ThreadPoolExecutor(args.workers) as pool:
        found = check_dataset(
            data,
            args.split,
            quick=True if args.quick else None,
            limit=args.limit,
            executor=pool if args.workers > 1 else None,
            progress=cli_options.bars(args),
        )
    if args.output is not None:
        scores.write(found.table, args.output)
    if not args.quiet:
        print(f"{kind}: {found.summary()}")
    return cli_folder.report_failures(found.broken)


def _option(text: str) -> tuple[str, Any]:
    """A key and a value, written as in TOML; what is no TOML is a text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, not {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()

"""`bayesfuse demo`."""

import argparse
from typing import Any

from bayesfuse import cli_cache, cli_options


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = commands.add_parser(
        "demo",
        help="separate a small example that comes with the program (about a minute)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Lifts a synthetic voice out of synthetic kitchen noise and scores every way of combining the\n"
        "model orders against the true voice. Nothing is downloaded. Writes sounds and pictures to OUT.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=cli_options.path,
        default="bayesfuse-demo",
        help="folder to write (default ./bayesfuse-demo)",
    )
    parser.add_argument(
        "--seed", type=cli_options.seed, default=0, metavar="N", help="of all random numbers (default 0)"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into OUT even if it holds something else")
    cli_cache.add_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from bayesfuse import demo
    from bayesfuse._compile_cache import compile_cache

    dictionaries, programs = cli_cache.caches(args)
    with compile_cache(programs):
        demo.run(args.output, seed=args.seed, overwrite=args.overwrite, cache=dictionaries, progress=not args.quiet)

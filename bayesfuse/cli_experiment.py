"""`bayesfuse experiment`."""

import argparse
import logging
import os
from pathlib import Path
from typing import Any

from bayesfuse import cli_folder, cli_options

_DESCRIPTION = """\
Separates all mixtures of a data set by all models and keeps a record of each: scalar products by which every fusion
rule can be tried, free energies, scores and times. A TOML file says what; `bayesfuse.experiment_config` has all keys.

Records that are there are kept if settings, code and inputs are the same. After a crash, a full disk or a kill, start
it again: it goes on where it stopped."""

_EPILOG = """\
example:
  bayesfuse experiment mini_chime.toml --data mini-chime -o records --dry-run
  bayesfuse experiment mini_chime.toml --data mini-chime -o records --executor processes --workers 4

Exit status: 0 success, 1 some mixtures failed (listed at the end), 2 error, 130 interrupted (143 by SIGTERM)."""


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = commands.add_parser(
        "experiment",
        help="separate a data set by many models, and keep records that fusion can learn from",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("config", metavar="CONFIG.toml", help="what to do")
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=cli_options.path, help="folder of the records (default: beside CONFIG)"
    )
    what = parser.add_argument_group("instead of what the configuration says")
    what.add_argument("--data", metavar="PATH", help="where the data set is")
    what.add_argument("--quick", action="store_true", default=None, help="only the small subset that the set marks")
    what.add_argument("--limit", type=cli_options.whole(1), metavar="N", help="so many mixtures of each split")
    work = parser.add_argument_group("work")
    work.add_argument("--executor", choices=("serial", "processes", "dask"), help="who computes")
    work.add_argument("--workers", type=cli_options.whole(1), metavar="N", help="processes")
    work.add_argument("--threads", type=cli_options.whole(1), metavar="N", help="threads of each process")
    work.add_argument("--dask", metavar="ADDRESS", help="a Dask scheduler, such as tcp://host:8786")
    work.add_argument("--dry-run", action="store_true", help="only say what would be done")
    work.add_argument("--quiet", action="store_true", help="no progress bars, no summary")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns 1 if some mixtures failed."""
    if args.dask is not None and args.executor not in (None, "dask"):
        raise ValueError(f"--dask ADDRESS goes with --executor dask, not {args.executor}")
    from bayesfuse.experiments import load_config, run_experiment

    config = load_config(args.config)
    path = None if args.data is None else Path(args.data)
    data = {"path": path, "quick": args.quick, "limit": args.limit}
    executor = args.executor or ("dask" if args.dask is not None else None)
    work = {"executor": executor, "workers": args.workers, "threads": args.threads, "address": args.dask}
    for section, changes in (("data", data), ("execution", work)):
        config = config.replace(section, **{name: value for name, value in changes.items() if value is not None})
    folder = Path(os.path.splitext(args.config)[0] + "-records") if args.output is None else Path(args.output)
    logger = logging.getLogger("bayesfuse")
    handler = logging.StreamHandler()
    # Bars say the same where there are any, and the summary is printed.
    handler.setLevel(logging.ERROR if args.quiet or cli_options.bars(args) else logging.INFO)
    handler.setFormatter(logging.Formatter("bayesfuse: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        summary = run_experiment(config, folder, dry_run=args.dry_run, progress=cli_options.bars(args))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    if args.quiet and not args.dry_run:
        return cli_folder.report_failures(summary.failed)
    print(summary)
    return int(bool(summary.failed) and not args.dry_run)

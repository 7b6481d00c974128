"""`bayesfuse train`."""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesfuse import cli_folder

if TYPE_CHECKING:
    from bayesfuse.rules import Rule

_METHODS = ("static-sdr", "static-mse", "select", "vb")

_DESCRIPTION = f"""\
Learns, on mixtures whose true sources are known, how to weigh separators. `bayesfuse fuse --weights` applies it to
other mixtures.

{cli_folder.LAYOUT}

The separators must not have been trained on these mixtures: what they remember of them flatters them."""

_EPILOG = """\
methods:
  static-sdr    constant weights with the best mean SDR (default)
  static-mse    constant weights with the least squared error over all mixtures
  select        the one separator with the best mean SDR
  vb            weights by free energy: how far to trust it, and a prior

example:
  bayesfuse train --mixtures mix --estimates est --references ref -o weights.nc
  bayesfuse fuse --mixtures new --estimates new-est --weights weights.nc -o fused

An interrupted training goes on when started again. Exit status: 0 success, 1 some mixtures could not be used (listed at
the end; the weights are written), 2 error, 130 interrupted."""


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = commands.add_parser(
        "train",
        help="learn how to combine separators, from pairs with true sources",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="file to write, such as weights.nc")
    cli_folder.add_files(parser, references="folder of the true sources")
    method = parser.add_argument_group("method")
    method.add_argument("--method", choices=_METHODS, default="static-sdr", help="as below (default static-sdr)")
    cli_folder.add_frames(method)
    work = parser.add_argument_group("work")
    cli_folder.add_reading(work)
    cli_folder.add_running(work)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns 1 if some mixtures could not be used."""
    output = Path(args.output)
    cli_folder.check_parent(output)
    files = cli_folder.folder(args)
    from bayesfuse._lock import exclusive
    from bayesfuse.rules import save_rules
    from bayesfuse.training import check_trainable, judge, train_folder

    check_trainable(files, args.method, args.time_varying)
    keep = output.with_name(f".{output.name}.work")
    with exclusive(keep / "lock"), cli_folder.workers(args.workers) as pool:
        reading = cli_folder.reading(args, files, keep / "check", pool)
        rules, pairs, outcome = train_folder(
            files,
            args.method,
            reading=reading,
            time_varying=args.time_varying,
            per_channel=args.per_channel,
            keep=keep / "pairs",
            executor=pool,
            progress=not args.quiet,
        )
        save_rules(list(rules.values()), output)
    shutil.rmtree(keep, ignore_errors=True)
    if not args.quiet:
        print(_table(rules))
        for name in rules:
            print(f"{name}: {judge(args.method, pairs[name], name) or 'too few mixtures to tell whether it gains'}")
        print(f"\nLearned on {len(outcome.done)} pairs of mixture and source; wrote {output}.")
    return cli_folder.report_failures(outcome.failed)


def _table(rules: "dict[str, Rule]") -> str:
    """The learned numbers, one line per source."""
    import numpy as np

    from bayesfuse.rules import VBRule

    lines = []
    for name, rule in rules.items():
        if isinstance(rule, VBRule):
            prior = np.exp(rule.log_prior - rule.log_prior.max())
            values, what = prior / prior.sum(), f"temperature {float(rule.beta):.4g} nats per frame, prior "
        else:
            values, what = rule.weights(), ""
        shown = ", ".join(f"{separator} {value:.3f}" for separator, value in zip(rule.separators, values, strict=True))
        lines.append(f"{name}: {what}{shown}")
    return "\n".join(lines)

"""`bayesfuse train`."""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesfuse import cli_folder, cli_options

if TYPE_CHECKING:
    from bayesfuse.cross_validation import CrossValidation
    from bayesfuse.examples import Reading
    from bayesfuse.fusing import Outcome
    from bayesfuse.rules import Rule
    from bayesfuse.separators.folder import Folder

_METHODS = ("static-sdr", "static-mse", "select", "vb", "network")
_FEATURES = ("log", "qerb")

_DESCRIPTION = f"""\
Learns, on mixtures whose true sources are known, how to weigh separators. `bayesfuse fuse --weights` applies it to
other mixtures.

{cli_folder.LAYOUT}

The separators must not have been trained on these mixtures: what they remember of them flatters them."""

_EPILOG = """\
methods:
  static-sdr    constant weights with the best mean SDR (default)
  static-mse    constant weights with the least squared error over all mixtures
  select        the one separator with the best mean SDR (`fuse --method select` chooses by free energy instead)
  vb            weights by free energy: how far to trust it, and a prior
  network       weights per frame from the sound, by a network; wants an hour or more of mixtures

All but select are tried on mixtures they were not learned on, by cross-validation over groups: is the gain real? For a
network these are three trainings more; --quiet leaves them out.

example:
  bayesfuse train --mixtures mix --estimates est --references ref -o weights.nc
  bayesfuse fuse --mixtures new --estimates new-est --weights weights.nc -o fused

An interrupted training goes on when started again. Exit status: 0 success, 1 some mixtures could not be used (listed at
the end; the weights are written), 2 error, 130 interrupted (143 by SIGTERM)."""


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
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=cli_options.path, required=True, help="file to write, such as weights.nc"
    )
    cli_folder.add_files(parser, references="folder of the true sources")
    method = parser.add_argument_group("method")
    method.add_argument("--method", choices=_METHODS, default="static-sdr", help="as below (default static-sdr)")
    cli_folder.add_frames(method)
    method.add_argument(
        "--features",
        choices=_FEATURES,
        help="what a network sees: log powers in 32 bands, or powers in 350 as in the paper (default log)",
    )
    method.add_argument(
        "--free-energies", action="store_true", help="a network sees the free energies of all separators, too"
    )
    work = parser.add_argument_group("work")
    cli_folder.add_reading(work)
    cli_folder.add_running(work)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns 1 if some mixtures could not be used."""
    output = Path(args.output)
    cli_folder.check_parent(output)
    files = cli_folder.folder(args)
    from bayesfuse._lock import exclusive
    from bayesfuse.folder_rules import check_references
    from bayesfuse.training import check_trainable

    if args.method == "network":
        if args.per_channel:
            raise ValueError("--per-channel is for constant weights and vb: a network's are shared by the channels")
        check_references(files, "network")
    else:
        if args.features or args.free_energies:
            raise ValueError("--features and --free-energies are for --method network")
        check_trainable(files, args.method, args.time_varying)
    keep = output.with_name(f".{output.name}.work")
    with exclusive(keep / "lock"), cli_folder.workers(args.workers) as pool:
        reading = cli_folder.reading(args, files, keep / "check", pool)
        cli_folder.note_references(args, files)
        cli_options.stage(args, "learning")
        learn = _train_network if args.method == "network" else _train_rules
        outcome, text = learn(args, files, reading, keep, pool)
    shutil.rmtree(keep, ignore_errors=True)
    if not args.quiet:
        print(text)
        print(f"\nLearned on {len(outcome.done)} pairs; wrote {output}.")
    return cli_folder.report_failures(outcome.failed)


def _train_rules(
    args: argparse.Namespace, files: "Folder", reading: "Reading", keep: Path, pool: Any
) -> tuple["Outcome", str]:
    """Learns and writes weights; returns what became of the mixtures, and a report."""
    from bayesfuse.rules import save_rules
    from bayesfuse.training import judge, train_folder

    rules, pairs, outcome = train_folder(
        files,
        args.method,
        reading=reading,
        time_varying=args.time_varying,
        per_channel=args.per_channel,
        keep=keep / "pairs",
        executor=pool,
        progress=cli_options.bars(args),
    )
    save_rules(list(rules.values()), Path(args.output))
    if args.quiet:
        return outcome, ""
    lines = [_table(rules)]
    for name in rules:
        lines.append(f"{name}: {_judged(judge(args.method, pairs[name], name)) or 'no cross-validation of this'}")
    return outcome, "\n".join(lines)


def _train_network(
    args: argparse.Namespace, files: "Folder", reading: "Reading", keep: Path, pool: Any
) -> tuple["Outcome", str]:
    """Trains and writes a network; returns what became of the mixtures, and a report."""
    from bayesfuse.folder_network_training import collect_examples, judge_network, train_network

    progress = cli_options.bars(args)
    examples, outcome = collect_examples(
        files,
        reading=reading,
        window=args.window,
        features=args.features or "log",
        free_energies=args.free_energies,
        keep=keep / "network",
        progress=progress,
    )
    rule, score = train_network(examples, progress=progress)
    rule.save(args.output)
    if args.quiet:
        return outcome, ""
    lines = [
        f"network of {', '.join(rule.sources)}: {score:.2f} dB SDR on the mixtures kept for validation; its "
        f"{rule.pipeline.num_features} features hold {rule.pipeline.kept:.1%} of the variance of the spectra"
    ]
    cli_options.stage(args, "cross-validation")
    for name, judged in judge_network(examples, progress=progress).items():
        text = _judged(judged) or "no cross-validation: it takes three groups of mixtures with this source"
        lines.append(f"{name}: {text}")
    return outcome, "\n".join(lines)


def _judged(found: "CrossValidation | None") -> str:
    """The verdict, and what to do instead where it is not to fuse."""
    if found is None:
        return ""
    return f"{found}" + ("" if found.verdict == "fuse" else "; `--method select` learns which separator to take alone")


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

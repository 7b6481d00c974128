"""`bayesfuse fuse`."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesfuse import cli_folder, cli_options

if TYPE_CHECKING:
    from bayesfuse.examples import Reading
    from bayesfuse.folder_network import NetworkWeights
    from bayesfuse.fusing import Rule
    from bayesfuse.learned_rules import Learned
    from bayesfuse.separators.folder import Folder

_DESCRIPTION = f"""\
Combines what several separators made of the same mixtures into one estimate per source, often better than any of them;
--ladder tells whether it can be.

{cli_folder.LAYOUT}

First it reports on every separator: missing and damaged files, other rates, lengths and channels, delays, gains,
inversions, clipping, estimates that do not sum to the mixture."""

_EPILOG = """\
methods:
  mean                    all separators alike; needs nothing
  static-mse, static-sdr  the constant weights best on your training pairs: see `bayesfuse train`
  select, vb              by free energy: the best separator, or all by how well they explain the mixture; the separator
                          with the best SDR on training pairs is learned by `bayesfuse train --method select`
  network                 weights from the sound of the mixture, by a network: see `bayesfuse train`
  oracle                  the best weights there are, from the references: tells what fusing could gain, not a method

examples:
  # is fusing worth it? what the best separator reaches, and what ideal weights would
  bayesfuse fuse --mixtures mix --estimates est --references ref --ladder -o fused

  # weights learned before
  bayesfuse fuse --mixtures mix --estimates est --weights weights.nc -o fused

what is written: OUT/NAME/SOURCE.wav. Files that are there are kept: an interrupted run goes on when started again.
Exit status: 0 success, 1 some mixtures failed (listed at the end), 2 error, 130 interrupted (143 by SIGTERM)."""


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = commands.add_parser(
        "fuse",
        help="combine what several programs separated",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("-o", "--output", metavar="OUT", type=cli_options.path, required=True, help="folder to write")
    cli_folder.add_files(parser, references="folder of the true sources, for --ladder and oracle")
    method = parser.add_argument_group("method")
    method.add_argument("--method", choices=cli_folder.METHODS, help="as below (default: that of --weights, else mean)")
    method.add_argument("--weights", metavar="FILE", help="weights that `bayesfuse train` learned")
    method.add_argument(
        "--beta",
        type=cli_options.temperature,
        metavar="B",
        help="temperature of vb without --weights, in nats per frame (default 100)",
    )
    cli_folder.add_frames(method)
    method.add_argument("--ladder", action="store_true", help="first print what oracles reach (needs --references)")
    work = parser.add_argument_group("work")
    cli_folder.add_reading(work)
    work.add_argument("--overwrite", action="store_true", help="make all outputs anew")
    cli_folder.add_running(work)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns 1 if some mixtures failed."""
    from bayesfuse import audio
    from bayesfuse.fusing import STATE, fuse_folder

    files = cli_folder.folder(args)
    rule = _rule(args, files)
    rule.check(files)
    cli_folder.check_output(Path(args.output), args)
    if args.ladder:
        from bayesfuse.folder_rules import check_references

        check_references(files, "--ladder")
    state = Path(args.output) / STATE
    with cli_folder.workers(args.workers) as pool:
        reading = cli_folder.reading(args, files, state / "check", pool)
        failed = _print_ladder(args, files, reading, state / "ladder", pool) if args.ladder else {}
        method = args.weights or args.method or "mean"
        cli_options.stage(args, f"combining the estimates ({method})")
        begun = time.perf_counter()
        outcome = fuse_folder(
            files,
            args.output,
            rule,
            reading=reading,
            overwrite=args.overwrite,
            executor=pool,
            progress=cli_options.bars(args),
        )
        seconds = time.perf_counter() - begun
    if not args.quiet:
        print(f"{len(outcome.done)} made, {len(outcome.kept)} kept, {len(outcome.failed)} failed: {args.output}")
        made = {name.rpartition("/")[0] for name in outcome.done}
        if made:
            sound = sum(audio.info(item.mixture).duration for item in files.items if item.name in made)
            print(f"{seconds:.1f} s for {sound:.1f} s of mixtures: real-time factor {seconds / sound:.3g}")
    return cli_folder.report_failures(
        {**{f"ladder of {name}": text for name, text in failed.items()}, **outcome.failed}
    )


def _print_ladder(
    args: argparse.Namespace, files: "Folder", reading: "Reading", keep: Path, pool: Any
) -> dict[str, str]:
    """Prints the ladder per file and on average, and returns what failed."""
    from bayesfuse.folder_ladder import about_best, ladder_of_folder

    cli_folder.note_references(args, files)
    frames = cli_folder.transform(args)
    found, failed = ladder_of_folder(
        files, reading=reading, transform=frames, keep=keep, executor=pool, progress=cli_options.bars(args)
    )
    print(found, about_best(found), sep="\n", end="\n\n")
    return failed


def _load(path: str) -> "Learned | NetworkWeights":
    """The rule of a weights file, of whichever kind it is."""
    from bayesfuse._netcdf import read_tree
    from bayesfuse.rules import FORMAT

    if read_tree(Path(path)).attrs.get("format") == FORMAT:
        from bayesfuse.learned_rules import Learned

        return Learned.load(path)
    from bayesfuse.folder_network import NetworkWeights

    return NetworkWeights.load(path)


def _rule(args: argparse.Namespace, files: "Folder") -> "Rule":
    """The rule that the options name."""
    from bayesfuse.folder_rules import Mean, Oracle, Select

    if args.beta is not None and (args.method != "vb" or args.weights is not None):
        raise ValueError("--beta is for --method vb without --weights, whose temperature was learned")
    if args.time_varying and args.method in (None, "mean") and args.weights is None:
        raise ValueError("--method mean has constant weights: leave out --time-varying, or choose another method")
    if args.weights is not None:
        rule = _load(args.weights)
        if args.method is not None and args.method not in rule.methods:
            raise ValueError(
                f"{args.weights} holds weights of {' or '.join(rule.methods)}, not {args.method}: leave out --method"
            )
        if args.per_channel or (args.time_varying and not rule.time_varying):
            option = "--per-channel" if args.per_channel else "--time-varying"
            raise ValueError(
                f"{option}: whether weights are shared by channels and frames is decided when they are learned; give "
                f"it to `bayesfuse train`, whose {args.weights} has them so, and leave it out here"
            )
        return rule
    if args.per_channel and args.method != "oracle":
        raise ValueError("--per-channel is for the oracle, and for `bayesfuse train`: leave it out")
    if args.method in (None, "mean"):
        return Mean()
    if args.method == "select":
        return Select(args.time_varying)
    if args.method == "oracle":
        return Oracle(args.time_varying, args.per_channel, cli_folder.transform(args))
    if args.method == "vb":
        from bayesfuse.learned_rules import Learned

        return Learned.untrained(files, 100.0 if args.beta is None else args.beta, args.time_varying)
    raise ValueError(
        f"--method {args.method} needs weights: learn them with `bayesfuse train --method {args.method}` on mixtures "
        "whose true sources are known, and give the file as --weights"
    )

"""`bayesfuse separate`."""

import argparse
import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesfuse import cli_cache, cli_options

if TYPE_CHECKING:
    import numpy as np

    from bayesfuse.transforms import Transform

_PRODUCTS = ("fused", "estimates", "result.nc", "report.png")

# Share of clipped samples that is worth a word.
_CLIPPED = 1e-3

# How the library calls what these options set.
_OPTIONS = (
    (r"\borders\['(.*?)'\]", r"--orders \1"),
    (r"\bsources\['(.*?)'\]", r"--source \1"),
    (r"\bmethod='(\w+)'", r"--method \1"),
    (r"\bb='auto'", "--b auto"),
    (r"\ba number for b, such as 0.2", "a number, such as --b 0.2"),
    (r"\bblock_seconds=", "--block-seconds "),
    (r"\bsources names\b", "--source names"),
)

_SEPARATE = """\
Separates MIXTURE into named sources.

Every source needs to be known in one of three ways:
  --source speech=recordings/        recordings of it alone: a folder, a file, a "pattern*.wav", or several of
                                     these with commas between them (or --source speech=... again)
  --source speech=speech-8.npz       dictionaries saved with the Python library
  --source noise=learn               nothing: it is learned on the mixture itself; at least one source must be known

and a number of spectra to describe it with (--orders). Which number is best is hard to know: give one source several,
say 2,4,8,16,32,64, and the results of all are averaged, weighted by how well each explains the mixture."""

_EXAMPLES = """\
examples:
  # a talker whose voice you have elsewhere, in noise you know nothing about
  bayesfuse separate kitchen.wav --source speech=my_voice/ --source noise=learn \\
      --orders speech=2,4,8,16,32,64,128 --orders noise=16 -o kitchen

  # noise known from a stretch without speech; one model for each order instead of one over all; all estimates kept
  bayesfuse separate kitchen.wav --source speech=my_voice/ --source noise=fridge.wav,tap.wav \\
      --orders speech=4,16,64 --orders noise=32 --method average --per-order -o kitchen

what is written:
  OUT/fused/SOURCE.wav              the sources, averaged over the orders
  OUT/estimates/ORDER/SOURCE.wav    the sources by each order, with --per-order
  OUT/report.png                    a page of pictures: spectrograms, weights, free energies
  OUT/result.nc                     everything, for bayesfuse.Result.load("result.nc") in Python; netCDF-4

Trained dictionaries and compiled programs are kept in the cache folder: a second run on the same recordings does not
train again, and one of the same sizes hardly compiles.
Exit status: 0 success, 2 error (nothing is written then), 130 interrupted (143 by SIGTERM)."""


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = commands.add_parser(
        "separate",
        help="separate a recording of yours",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=_SEPARATE,
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument("mixture", metavar="MIXTURE", help="the recording (WAV, FLAC, OGG, any number of channels)")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=cli_options.path, required=True, help="folder to write, new or empty"
    )

    model = parser.add_argument_group("sources and model")
    model.add_argument(
        "--source", action="append", default=[], metavar="NAME=WHAT", help="a source, as above; at least two"
    )
    model.add_argument(
        "--orders", action="append", default=[], metavar="NAME=N,N,...", help="candidate numbers of spectra of a source"
    )
    model.add_argument(
        "--method",
        choices=("joint", "average", "select", "mean"),
        default="joint",
        help="joint: one model over all orders, the fastest (default); average: one model per order, weighted by free "
        "energy; select: the best of these alone; mean: all alike",
    )
    model.add_argument(
        "--beta",
        type=cli_options.temperature,
        metavar="B",
        help="temperature of the weights in nats per frame (default 100): towards 0 the best order takes all, towards "
        "inf all count alike",
    )
    model.add_argument(
        "--time-varying", action="store_true", help="weights that change over time, from the free energy of each frame"
    )
    model.add_argument(
        "--b",
        type=cli_options.shape,
        metavar="X",
        help="shape of the activations' prior, smaller is sparser (default 0.2); auto: chosen by free energy",
    )
    model.add_argument(
        "--variant", choices=("marginal", "explicit"), help="marginal (default, the tighter bound) or the paper's own"
    )
    model.add_argument(
        "--noise",
        type=cli_options.positive,
        metavar="X",
        help="observation noise relative to the mixture's power (default 1e-6)",
    )
    model.add_argument(
        "--iterations",
        type=cli_options.whole(1),
        metavar="N",
        help="of the variational updates (default 50, where the objective may still rise somewhat: see report.png)",
    )
    model.add_argument(
        "--seed", type=cli_options.seed, default=0, metavar="N", help="of all random numbers (default 0)"
    )

    signal = parser.add_argument_group("signal")
    signal.add_argument("--transform", choices=("stft", "qerb"), default="stft", help="linear or ERB frequency scale")
    signal.add_argument(
        "--window",
        type=cli_options.even,
        default=1024,
        metavar="N",
        help="window of the transform in samples, even (default 1024, right for speech at 16 kHz)",
    )
    signal.add_argument(
        "--rate",
        type=cli_options.whole(1),
        metavar="HZ",
        help="resample mixture and recordings to this rate (default: they must agree)",
    )
    signal.add_argument(
        "--block-seconds",
        type=cli_options.seconds,
        default=60.0,
        metavar="S",
        help="longer recordings are worked off in overlapping blocks of this length (default 60)",
    )

    output = parser.add_argument_group("output and cache")
    output.add_argument("--per-order", action="store_true", help="also write the estimates of each order")
    output.add_argument(
        "--overwrite", action="store_true", help="replace the results of an earlier run in OUT; other files there stay"
    )
    cli_cache.add_options(output)
    output.add_argument("--quiet", action="store_true", help="no progress bars, no table")


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    started = time.perf_counter()
    # Everything that can be found wrong without heavy libraries is, first.
    texts, orders = _checked(args)
    from bayesfuse import audio
    from bayesfuse._output import output_folder

    found = audio.info(args.mixture)
    rate = found.rate if args.rate is None else args.rate
    if not args.block_seconds * rate >= 2 * args.window:
        raise ValueError(
            f"--block-seconds {args.block_seconds:g}: blocks shorter than two windows, {2 * args.window / rate:.3g} s, "
            "cannot be cross-faded; 10 or more are sensible"
        )
    sources = {name: _source(name, values, rate, args.rate is not None) for name, values in texts.items()}
    dictionaries, programs = cli_cache.caches(args)
    mixture, rate = audio.read(args.mixture, rate=args.rate)

    with output_folder(args.output, _PRODUCTS, overwrite=args.overwrite) as folder:
        for text in _notes(mixture, rate, args.window):
            cli_options.note(f"note: {text}")
        cli_options.stage(args, f"separating {mixture.shape[-1] / rate:.1f} s of sound: dictionaries, then models")
        from bayesfuse import plots
        from bayesfuse._compile_cache import compile_cache
        from bayesfuse.separation import separate

        with compile_cache(programs), _spoken():
            result = separate(
                mixture,
                rate,
                sources,
                orders,
                method=args.method,
                time_varying=args.time_varying,
                transform=_transform(args.transform, args.window, rate),
                settings=_settings(args),
                b=args.b,
                beta=args.beta,
                block_seconds=args.block_seconds,
                overlap_seconds=min(2.0, args.block_seconds / 4),
                keep_estimates=True if args.per_order else None,
                seed=args.seed,
                cache=dictionaries,
                progress=cli_options.bars(args),
            )
        cli_options.stage(args, "drawing the report and writing the results")
        with _quiet_plots():
            plots.save(plots.report(result), folder / "report.png")
        result.save(folder / "result.nc")
        written = [path.relative_to(folder) for path in result.write_wavs(folder, estimates=args.per_order)]
    if not args.quiet:
        print(result.summary())
        names = ", ".join(f"{name}/" for name in sorted({path.parts[0] for path in written}))
        print(f"\nWrote {names}, result.nc and report.png to {args.output}", end=" ")
        print(f"in {time.perf_counter() - started:.0f} s.")
        for name, path in zip(result.source_names, written, strict=False):  # the fused ones come first
            if path.stem != name:
                print(f"The source {name!r} is in files named {path.name}.")


def _checked(args: argparse.Namespace) -> tuple[dict[str, list[str]], dict[str, list[int]]]:
    """What is known of every source, and its orders, as far as the command line itself can be wrong."""
    texts = _pairs(args.source, "--source", "speech=recordings/")
    orders = {name: _orders(name, values) for name, values in _pairs(args.orders, "--orders", "speech=2,4,8").items()}
    if Path(args.mixture).is_dir():
        raise ValueError(f"{args.mixture} is a folder: MIXTURE is one recording; separate the files in it one by one")
    if len(texts) < 2:
        given = f"only {next(iter(texts))!r} is given" if texts else "none is given"
        raise ValueError(
            f"at least two sources are needed, {given}: add for example --source speech=recordings/ "
            "--source noise=learn"
        )
    if all(values == ["learn"] for values in texts.values()):
        raise ValueError(
            "every --source is to be learned on the mixture, which cannot tell one from another: give recordings of "
            "at least one, such as --source speech=recordings/"
        )
    for name in orders:
        if name not in texts:
            raise ValueError(f"--orders names {name!r}, but there is no such --source; there are {', '.join(texts)}")
    for name, values in texts.items():
        if name not in orders and not all(value.endswith(".npz") for value in values):
            raise ValueError(
                f"there is no --orders for the source {name!r}: say how many spectra may describe it, such as "
                f"--orders {name}=2,4"
            )
    if args.time_varying and (args.method == "mean" or args.variant == "explicit"):
        raise ValueError(
            "--time-varying takes weights from the free energies of the frames: it goes with --method joint, average "
            "or select, and not with --variant explicit"
        )
    return texts, orders


def _notes(mixture: "np.ndarray", rate: int, window: int) -> Iterator[str]:
    """What is odd about a recording, though it can be separated."""
    from bayesfuse.alignment import clipped_samples

    if not mixture.any():
        yield "the recording is silent, and so will be its sources"
    else:
        for channel in range(len(mixture)):
            if not mixture[channel].any():
                yield f"channel {channel + 1} of {len(mixture)} is silent"
    share = clipped_samples(mixture) / mixture.size
    if share > _CLIPPED:
        yield f"{100 * share:.1f} % of the samples are clipped: the distortion stays in the sources"
    if mixture.shape[-1] < window:
        yield (
            f"the recording has {mixture.shape[-1]} sample(s) ({mixture.shape[-1] / rate:.3g} s), fewer than the "
            f"window of {window}: choose a shorter --window, or a longer recording"
        )


@contextlib.contextmanager
def _spoken() -> Iterator[None]:
    """Errors of the library in the language of the command line."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        for pattern, option in _OPTIONS:
            text = re.sub(pattern, option, text)
        raise ValueError(text) from error


@contextlib.contextmanager
def _quiet_plots() -> Iterator[None]:
    """Names of sources may have letters that the font lacks; a missing letter is no reason for warnings here."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _pairs(texts: Sequence[str], option: str, example: str) -> dict[str, list[str]]:
    """Values by name, in order of first mention."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name.strip() or not value.strip():
            raise ValueError(f"{option} {text!r}: expected a name and a value, such as {option} {example}")
        found.setdefault(name.strip(), []).append(value.strip())
    return found


def _orders(name: str, values: list[str]) -> list[int]:
    given = ",".join(values)
    try:
        orders = [int(item) for item in given.split(",")]
    except ValueError:
        raise ValueError(
            f"--orders {name}={given}: expected whole numbers with commas between them, such as "
            f"--orders {name}=2,4,8,16"
        ) from None
    if min(orders) < 1:
        raise ValueError(f"--orders {name}={given} contains {min(orders)}: expected whole numbers of at least 1")
    if len(set(orders)) < len(orders):
        raise ValueError(f"--orders {name}={given} repeats an order: list every candidate once")
    return orders


def _source(name: str, values: list[str], rate: int, resampled: bool) -> Any:
    """What `separate` takes for a source: "learn", dictionary files, recordings as paths, or as arrays if resampled."""
    from bayesfuse import audio

    # A comma can be part of a name.
    items = [part for value in values for part in ([value] if Path(value).exists() else value.split(","))]
    if "learn" in items:
        if len(items) > 1:
            raise ValueError(f"--source {name}: 'learn' stands alone, without recordings")
        return "learn"
    saved = [item for item in items if item.endswith(".npz")]
    if saved and len(saved) < len(items):
        raise ValueError(f"--source {name}: give recordings or dictionaries (.npz), not both")
    if saved:
        return [file for item in saved for file in _dictionary_files(item)]
    files = audio.collect(items)
    if resampled:
        return [audio.read(file, rate=rate)[0] for file in files]
    for file in files:
        other = audio.info(file).rate
        if other != rate:
            raise ValueError(
                f"{file} has a rate of {other} Hz, the mixture {rate} Hz: add --rate {min(rate, other)} to resample"
            )
    return files


def _dictionary_files(pattern: str) -> list[str]:
    import glob

    files = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))
    if not files:
        raise FileNotFoundError(f"no dictionaries {pattern}; looked from {Path.cwd()}")
    return files


def _transform(name: str, window: int, rate: int) -> "Transform":
    from bayesfuse.transforms import QERB, STFT

    if name == "qerb":
        return QERB(rate, window=window)
    return STFT(window, window // 2)


def _settings(args: argparse.Namespace) -> Any:
    from bayesfuse.separators.vb_nmf import Settings

    given = {"variant": args.variant, "noise": args.noise, "num_iters": args.iterations}
    return Settings(**{name: value for name, value in given.items() if value is not None})

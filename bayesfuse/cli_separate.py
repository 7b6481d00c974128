"""`bayesfuse separate`."""

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesfuse import cli_cache

if TYPE_CHECKING:
    from bayesfuse.transforms import Transform

_PRODUCTS = ("fused", "estimates", "result.nc", "report.png")

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

Trained dictionaries and compiled programs are kept in the cache folder, so a second run on the same recordings starts
at once. Exit status: 0 success, 2 error (nothing is written then), 130 interrupted (143 by SIGTERM)."""


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
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="folder to write, new or empty")

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
        type=float,
        metavar="B",
        help="temperature of the weights in nats per frame (default 100): towards 0 the best order takes all, towards "
        "inf all count alike",
    )
    model.add_argument(
        "--time-varying", action="store_true", help="weights that change over time, from the free energy of each frame"
    )
    model.add_argument(
        "--b",
        type=_shape,
        metavar="X",
        help="shape of the activations' prior, smaller is sparser (default 0.2); auto: chosen by free energy",
    )
    model.add_argument(
        "--variant", choices=("marginal", "explicit"), help="marginal (default, the tighter bound) or the paper's own"
    )
    model.add_argument("--noise", type=float, metavar="X", help="observation noise relative to the mixture's power")
    model.add_argument("--iterations", type=int, metavar="N", help="of the variational updates (default 50)")
    model.add_argument("--seed", type=int, default=0, metavar="N", help="of all random numbers (default 0)")

    signal = parser.add_argument_group("signal")
    signal.add_argument("--transform", choices=("stft", "qerb"), default="stft", help="linear or ERB frequency scale")
    signal.add_argument(
        "--window",
        type=int,
        default=1024,
        metavar="N",
        help="window of the transform in samples, even (default 1024, right for speech at 16 kHz)",
    )
    signal.add_argument(
        "--rate", type=int, metavar="HZ", help="resample mixture and recordings to this rate (default: they must agree)"
    )
    signal.add_argument(
        "--block-seconds",
        type=float,
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


def _shape(text: str) -> float | str:
    return text if text == "auto" else float(text)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    started = time.perf_counter()
    # Everything that can be found wrong without heavy libraries is, first.
    texts = _pairs(args.source, "--source", "speech=recordings/")
    orders = {name: _orders(name, values) for name, values in _pairs(args.orders, "--orders", "speech=2,4,8").items()}
    from bayesfuse import audio
    from bayesfuse._output import output_folder

    found = audio.info(args.mixture)
    rate = found.rate if args.rate is None else audio.check_rate(args.rate)
    sources = {name: _source(name, values, rate, args.rate is not None) for name, values in texts.items()}
    dictionaries, programs = cli_cache.caches(args)
    mixture, rate = audio.read(args.mixture, rate=args.rate)

    with output_folder(args.output, _PRODUCTS, overwrite=args.overwrite) as folder:
        from bayesfuse import plots
        from bayesfuse._compile_cache import compile_cache
        from bayesfuse.separation import separate

        with compile_cache(programs):
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
                progress=not args.quiet,
            )
        with _quiet_plots():
            plots.save(plots.report(result), folder / "report.png")
        result.save(folder / "result.nc")
        written = result.write_wavs(folder, estimates=args.per_order)
        names = sorted({path.relative_to(folder).parts[0] for path in written})
    if not args.quiet:
        print(result.summary())
        print(f"\nWrote {', '.join(f'{n}/' for n in names)}, result.nc and report.png to {args.output}", end=" ")
        print(f"in {time.perf_counter() - started:.0f} s.")


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
    try:
        return [int(item) for value in values for item in value.split(",")]
    except ValueError:
        raise ValueError(
            f"--orders {name}={','.join(values)}: expected whole numbers with commas between them, such as "
            f"--orders {name}=2,4,8,16"
        ) from None


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

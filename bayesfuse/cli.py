"""The command line: `bayesfuse separate | fuse | train | evaluate | data | experiment | report | demo`, a thin layer.

One module per command. Libraries are imported by the commands that use them, so that `--help` and `--version` answer
at once.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from bayesfuse import (
    cli_data,
    cli_demo,
    cli_evaluate,
    cli_experiment,
    cli_fuse,
    cli_options,
    cli_report,
    cli_separate,
    cli_train,
)
from bayesfuse._version import __version__
from bayesfuse.cli_cache import default_cache as default_cache


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what it wrote half is removed on the way."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Parameters
    ----------
    argv
        Arguments without the program's name; by default those of the process.
    """
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # after --help, --version, or a usage error that argparse has printed
        return int(stop.code or 0)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        with _termination():
            return int(args.run(args) or 0)
    except _Terminated:
        return _complain("interrupted", 143)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone, such as `head`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        return 0
    except MemoryError as error:
        return _complain(f"out of memory: {error}; a smaller --block-seconds needs less")
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (ValueError, FloatingPointError) as error:
        return _complain(str(error))


@contextlib.contextmanager
def _termination() -> Iterator[None]:
    """Raises `_Terminated` within when the process is told to end, once: cleaning up is not interrupted again."""
    if threading.current_thread() is not threading.main_thread():  # which alone can handle signals
        yield
        return

    def terminate(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _complain(message: str, status: int = 2) -> int:
    print(f"bayesfuse: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = cli_options.Parser(
        prog="bayesfuse",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Audio source separation by averaging over models: those of a variational NMF, or any others.",
        epilog="Start with `bayesfuse demo`, then `bayesfuse separate --help`. To combine what other programs\n"
        "separated: `bayesfuse fuse --help`.",
    )
    parser.add_argument("--version", action="version", version=f"bayesfuse {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands_in_order = (
        cli_separate, cli_fuse, cli_train, cli_evaluate, cli_data, cli_experiment, cli_report, cli_demo,
    )  # fmt: skip
    for command in commands_in_order:
        command.add(commands)
    return parser

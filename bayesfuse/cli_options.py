"""Values of options that are checked as they are parsed, before any library is loaded; and how a command talks."""

import argparse
import math
import sys
from collections.abc import Callable
from typing import NoReturn

_MAX_SEED = 2**31 - 1


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like those of the commands themselves."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bayesfuse: error: {message.removeprefix('argument ')} (usage: {self.prog} --help)\n")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A whole number of at least `least`."""
    limits = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be {limits}, not {text!r}")
        return value

    return parse


seed = whole(0, _MAX_SEED)


def even(text: str) -> int:
    """An even number of samples."""
    value = int(text) if text.strip().isdecimal() else 0
    if value < 2 or value % 2:
        raise argparse.ArgumentTypeError(f"must be even, and at least 2, not {text!r}")
    return value


def _real(text: str, accept: Callable[[float], bool], expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not accept(value):
        raise argparse.ArgumentTypeError(f"must be {expected}, not {text!r}")
    return value


def temperature(text: str) -> float:
    """A temperature in nats per frame, which may be infinite."""
    return _real(text, lambda x: x >= 0, "0 or more")


def positive(text: str) -> float:
    """A positive number."""
    return _real(text, lambda x: 0 < x < math.inf, "a positive number")


def seconds(text: str) -> float:
    """A positive number of seconds; inf stands for all."""
    return _real(text, lambda x: x > 0, "a positive number of seconds, or inf")


def shape(text: str) -> float | str:
    """The shape of a Gamma prior."""
    if text == "auto":
        return text
    return _real(text, lambda x: 0 < x <= 50, "a number or auto, the number above 0 and at most 50")


def path(text: str) -> str:
    """The name of a file or folder to write."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must name a file or folder, not ''")
    return text


def bars(args: argparse.Namespace) -> bool:
    """Whether to draw progress bars: not in a log file, where each of their steps is a line."""
    return not args.quiet and sys.stderr.isatty()


def stage(args: argparse.Namespace, text: str) -> None:
    """Says what begins, in a line where there are no bars."""
    if not args.quiet and not sys.stderr.isatty():
        note(text)


def note(text: str) -> None:
    """Prints a line beside the results."""
    print(f"bayesfuse: {text}", file=sys.stderr, flush=True)

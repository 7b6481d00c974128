"""Where the commands keep trained dictionaries and compiled programs, and the options about it."""

import argparse
import os
from pathlib import Path
from typing import Any


def add_options(parser: Any) -> None:
    """Adds the options to a parser or a group of one."""
    parser.add_argument("--cache", metavar="DIR", help=f"cache folder (default {default_cache()})")
    parser.add_argument("--no-cache", action="store_true", help="neither read nor keep dictionaries or programs")
    parser.add_argument("--no-compile-cache", action="store_true", help="do not keep compiled programs")


def default_cache() -> Path:
    """The folder of this user's cached files."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bayesfuse"


def caches(args: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """Folders of dictionaries and of compiled programs, or None."""
    if args.no_cache:
        return None, None
    root = Path(args.cache) if args.cache is not None else default_cache()
    try:
        root.mkdir(parents=True, exist_ok=True)
        usable = os.access(root, os.W_OK)
    except OSError:
        usable = False
    if not usable:
        if args.cache is not None:
            raise ValueError(f"the cache folder {root} cannot be written: name another one, or use --no-cache")
        return None, None  # nobody asked for it
    return root / "dictionaries", None if args.no_compile_cache else root / "compiled"

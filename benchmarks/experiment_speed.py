"""How fast an experiment runs: mixtures per minute, where the time goes, memory, and what a second process gains.

    python benchmarks/experiment_speed.py --data ../shared/data/mini-chime                 # 24 mixtures, minutes
    python benchmarks/experiment_speed.py --data ../shared/data/mini-chime --full --only full    # all of them, hours

Sections: `workers`, the same mixtures by one process and by two of one thread each; `full`, the experiment of
`mini_chime.toml` end to end, in a folder in which a run that was interrupted goes on (`--folder`), so that only a run
from the beginning says how long it takes. Dictionaries and compiled programs are at hand in `workers` before the clock
starts, as they are after the first minutes of a long run; what compiling costs is told apart.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import _common as common
from _sections import Row

from bayesfuse.experiments import ExperimentConfig, Summary, load_config, run_experiment

CONFIG = Path(__file__).parent / "mini_chime.toml"
TIMES_REAL_TIME = 100.0
GIGABYTES = 2.0
SPEEDUP = 1.7


def rows_of(letter: str, summary: Summary) -> list[Row]:
    """What a run says of itself."""
    who = f"{len(summary.computed)} mixtures by {summary.statement}"
    slowest = max(summary.model_seconds, key=lambda model: summary.model_seconds[model])
    fastest = min(summary.model_seconds, key=lambda model: summary.model_seconds[model])
    factors = {m: summary.audio_seconds / summary.model_seconds[m] for m in (slowest, fastest)}
    shares = {
        "computing": summary.share("dictionaries", "separate", "score"),
        "input and output": summary.share("read", "write"),
        "compiling": summary.share("compile"),
    }
    split = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    detail = f"{factors[slowest]:.0f} ({slowest}) to {factors[fastest]:.0f} ({fastest}) times real time, per process"
    return [
        Row(letter, "mixtures per minute", summary.per_minute, "", None, True, f"{who}; {split}"),
        Row(letter, "slowest model, times real time", factors[slowest], "", TIMES_REAL_TIME, True, detail),
        Row(letter, "peak memory", summary.memory / 2**30, " GiB", GIGABYTES, False, "largest process"),
    ]


def compare_workers(config: ExperimentConfig, folder: Path, limit: int) -> list[Row]:
    """One process and two, on the same mixtures, none of which is in the other's folder."""
    config = config.replace("data", splits=("test",), quick=True, limit=limit)
    found: dict[int, Summary] = {}
    seconds: dict[int, float] = {}
    for count in (1, 2):
        home = folder / f"workers-{count}"
        mine = config.replace("execution", executor="processes", workers=count, threads=1)
        shutil.rmtree(home, ignore_errors=True)
        if count == 2:  # dictionaries and programs of the run before
            shutil.copytree(folder / "workers-1" / ".work", home / ".work")
        else:
            run_experiment(mine, home, progress=True)
            shutil.rmtree(home / "records")
        start = time.perf_counter()
        found[count] = run_experiment(mine, home, progress=True)
        seconds[count] = time.perf_counter() - start
    detail = f"{seconds[1]:.0f} s and {seconds[2]:.0f} s for {limit} mixtures, beginning of the processes included"
    ratio = seconds[1] / seconds[2]
    return [*rows_of("1", found[1]), *rows_of("2", found[2]), Row("2", "over one", ratio, "x", SPEEDUP, True, detail)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder mini-chime")
    parser.add_argument("--only", choices=("workers", "full"), help="one section (default: workers, full with --full)")
    parser.add_argument("--full", action="store_true", help="all mixtures of all splits in section `full`")
    parser.add_argument("--limit", type=int, default=24, help="mixtures of section `workers` (default: 24)")
    parser.add_argument("--folder", help="where records are kept (default: a temporary folder)")
    options = parser.parse_args(arguments)
    print(common.environment() + "\n", flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        try:
            config = load_config(CONFIG).replace("data", path=Path(options.data))
            if options.only != "full":
                rows += compare_workers(config, folder, options.limit)
            if options.only == "full" or options.full:
                config = config if options.full else config.replace("data", quick=True, splits=("test",))
                rows += rows_of("full", run_experiment(config, folder / "full", progress=True))
        except (OSError, ValueError) as error:
            common.fail(str(error))
    print(common.table(["", "measured", "aim", ""], [row.cells()[:4] for row in rows]) + "\n")
    for row in rows:
        print(f"({row.letter}) {row.what}: {row.detail}")


if __name__ == "__main__":
    main()

"""A set of a few short mixtures in a folder, and the experiment on it; what tests run in other processes, too."""

import os
import signal
from pathlib import Path

import numpy as np
import soundfile

from bayesfuse.records import open_records

RATE = 2000
NAMES = ("a", "b", "c", "d")

CONFIG = """
[data]
kind = "folder"
path = "set"

[transform]
window = 64

[dictionaries]
iterations = 5
cross_fit = 2

[dictionaries.speech]
from = "sources"
split = "all"
orders = [1, 2]

[dictionaries.noise]
from = "mixture"
orders = 1

{variational}
[[separators]]
kind = "ml-nmf"
orders = [2]
iterations = 5

[records]
bands = 4
metrics = ["sdr", "si_sdr"]
sources = ["speech"]

[execution]
executor = "{executor}"
workers = {workers}
threads = 1
"""

VARIATIONAL = """
[[separators]]
kind = "vb-nmf"
iterations = 5
ml_iterations = 2
"""


def make(
    home: Path,
    *,
    executor: str = "serial",
    workers: int = 1,
    names: tuple[str, ...] = NAMES,
    variational: bool = False,
) -> Path:
    """Writes the set and the configuration below `home`; returns the path of the latter.

    Without `variational` there is one model, which compiles soon.
    """
    for i, name in enumerate(names):
        rng = np.random.default_rng(i)
        samples = 900 + 20 * i
        speech = 0.1 * rng.normal(size=samples) * (1 + np.sin(np.arange(samples) / 50))
        noise = 0.05 * np.convolve(rng.normal(size=samples), np.ones(5) / 5, "same")
        write(home / "set/mixtures" / f"{name}.wav", speech + noise)
        write(home / "set/references" / name / "speech.wav", speech)
        write(home / "set/references" / name / "noise.wav", noise)
    path = home / "experiment.toml"
    text = CONFIG.format(executor=executor, workers=workers, variational=VARIATIONAL if variational else "")
    path.write_text(text)
    return path


def write(path: Path, signal: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, signal, RATE, subtype="FLOAT")


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "records").rglob("*")}


def complete(folder, names=NAMES):
    """Every record is there, whole and once, and nothing else."""
    assert sorted(times(folder)) == sorted(f"{name}.nc" for name in names)
    assert [record.name for record in open_records(folder)] == list(names)
    assert open_records(folder).errors == {}


def touch_or_die(task: tuple[str, str]) -> str:
    """Notes in the folder `task[0]` that the task was begun; `die` kills the process, `once` only the first time."""
    folder, name = Path(task[0]), task[1]
    first = not (folder / name).exists()
    with (folder / name).open("a") as file:
        file.write("x")
    if name == "die" or (name == "once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    return name

"""`bayesfuse demo`: speech lifted out of noise by an average over model orders, scored against the true speech.

The voice is a speech synthesiser and the noise is computed (`demo_audio/README.md`), so the scores say how the ways of
combining orders compare on this example, and nothing about real recordings.

[JVR16] X. Jaureguiberry, E. Vincent, G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Transactions on Audio, Speech and Language Processing 24(7), 2016.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from bayesfuse import audio, fusion
from bayesfuse._output import output_folder
from bayesfuse.dictionary import Dictionary, train_dictionary
from bayesfuse.metrics import sdr
from bayesfuse.results import Result
from bayesfuse.separation import separate

ORDERS = (2, 4, 8, 16, 32, 64, 128)
# The order of the noise and the shape of the activations' prior, of 8, 16, 32, 64 and 0.2, 0.5, 1, 2 those with the
# best average on the training recordings; the temperature is learned on them at every run.
NOISE_ORDER = 32
SHAPE = 1.0
CONTEXT = 3.0  # seconds of noise alone at the start of each recording
# Utterances end here at the latest: recordings of about one length share compiled programs.
LONGEST = 3.5
_DATA = Path(__file__).parent / "demo_audio"
_MARK = "Written by `bayesfuse demo`."


class Recording(NamedTuple):
    """One noisy utterance: noise alone, then noise plus speech, of which the truth is known. All [sample]."""

    name: str
    context: Float[np.ndarray, " sample"]
    mixture: Float[np.ndarray, " sample"]
    speech: Float[np.ndarray, " sample"]


class Score(NamedTuple):
    """Name of a way to estimate the speech, and its SDR in dB on each test recording."""

    name: str
    values: Float[np.ndarray, " recording"]


class Report(NamedTuple):
    """What `run` found: one score per row of its table, the learned temperature, and the time it took."""

    scores: list[Score]
    beta_per_frame: float
    seconds: float

    def table(self) -> str:
        """The mean SDR of each row, and the difference to the mixture, as text."""
        start = float(self.scores[0].values.mean())
        lines = [f"{'SDR of the speech in dB':<34}{'mean':>6}{'gain':>7}   each recording"]
        for score in self.scores:
            mean = float(score.values.mean())
            each = " ".join(f"{value:5.1f}" for value in score.values)
            lines.append(f"{score.name:<34}{mean:6.2f}{mean - start:7.2f}   {each}")
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:], rule])


def recordings(part: str, count: int | None = None) -> list[Recording]:
    """The noisy utterances of a part, "train" or "test"; the first `count` of them."""
    files = sorted((_DATA / f"{part}_speech").glob(f"{part}_*.ogg"))[:count]
    return [_recording(file) for file in files]


def _recording(file: Path) -> Recording:
    speech, rate = audio.read(file)
    noise, _ = audio.read(_DATA / "noise" / file.name)
    onset = round(CONTEXT * rate)
    stop = min(speech.shape[1], round(LONGEST * rate))
    return Recording(file.stem, noise[0, :onset], noise[0, onset : onset + stop] + speech[0, :stop], speech[0, :stop])


def run(
    output: str | os.PathLike[str] = "bayesfuse-demo",
    *,
    orders: Sequence[int] = ORDERS,
    count: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Report:
    """Train, separate, score, write sounds and pictures to `output`, print a table, and return it.

    Parameters
    ----------
    output
        Folder; one that this function wrote before is replaced.
    orders
        Candidate orders of the speech.
    count
        Number of training and of test recordings; all by default.
    seed
        Of all random numbers.
    overwrite
        Write into a folder that holds something else.
    cache
        Folder in which the dictionaries of the speech are kept.
    progress
        Show progress bars.

    Raises
    ------
    ValueError, OSError
        If the output folder holds something else or cannot be written; before any work.
    """
    started = time.perf_counter()
    train, test = recordings("train", count), recordings("test", count)
    products = ("README.txt", "result.nc", "report.png", *(item.name for item in test))
    with output_folder(output, products, overwrite=overwrite or _ours(Path(output))) as folder:
        _say("The voice is a speech synthesiser, the noise is computed: an example, not a benchmark.\n", progress)
        voice, rate = audio.read(_DATA / "train_speech" / "reading.ogg")
        speech = train_dictionary([voice], rate, list(orders), seed=seed, cache=cache, progress=progress)
        beta = _learn_beta(train, speech, rate, seed, progress)
        scores, results = _score(test, speech, rate, beta, seed, progress)
        for item, result in zip(test, results, strict=True):
            (folder / item.name).mkdir()
            for name, sound in _sounds(item, result).items():
                audio.write(folder / item.name / f"{name}.wav", sound, rate)
        _write_report(folder, results[0])
        report = Report(scores, beta, time.perf_counter() - started)
        guide = _guide(report, test, Path(output))
        (folder / "README.txt").write_text(f"{_MARK}\n\n{guide}\n", encoding="utf-8")
    print(guide)
    return report


def _ours(folder: Path) -> bool:
    """Whether an earlier run wrote the folder."""
    try:
        return (folder / "README.txt").read_text(encoding="utf-8").startswith(_MARK)
    except (OSError, UnicodeDecodeError):
        return False


def _say(text: str, progress: bool) -> None:
    if progress:
        print(text, flush=True)


def _bar(items: Sequence[Any], description: str, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(
        items, desc=description, unit="recording", disable=None if progress else True
    )  # None: only on a terminal


def _separate(
    item: Recording, speech: list[Dictionary], rate: int, seed: int, method: Any, beta: float | None
) -> Result:
    # The noise is known from the seconds before the utterance alone.
    noise = train_dictionary([item.context], rate, NOISE_ORDER, seed=seed)
    sources = {"speech": speech, "noise": noise}
    return separate(item.mixture, rate, sources, method=method, b=SHAPE, beta=beta, keep_estimates=True, seed=seed)


def _learn_beta(train: list[Recording], speech: list[Dictionary], rate: int, seed: int, progress: bool) -> float:
    """The temperature that serves the training recordings best, which none of the test recordings has a say in."""
    grams, energies, frames = [], [], []
    for item in _bar(train, "Learning the temperature", progress):
        result = _separate(item, speech, rate, seed, "average", None)
        grams.append(fusion.gram(item.speech, _estimates(result)))
        energies.append(result.free_energy)
        frames.append(result.num_frames)
    return fusion.learn_beta(grams, np.stack(energies), frames)


def _estimates(result: Result) -> Float[np.ndarray, "order sample"]:
    """The speech by each order."""
    assert result.estimates is not None
    return result.estimates[:, 0, 0]


def _score(
    test: list[Recording], speech: list[Dictionary], rate: int, beta: float, seed: int, progress: bool
) -> tuple[list[Score], list[Result]]:
    """Scores of the rows of the table, and the result of each recording by averaging."""
    rows: dict[str, list[float]] = {}
    results = []
    for item in _bar(test, "Separating", progress):
        averaged = _separate(item, speech, rate, seed, "average", beta)
        joint = _separate(item, speech, rate, seed, "joint", beta)
        g = fusion.gram(item.speech, _estimates(averaged))
        weights = {
            "VB selection": fusion.select_weights(averaged.free_energy),
            "mean": fusion.mean_weights(len(speech)),
            "Bayesian average": fusion.vb_weights(averaged.free_energy, None, beta, frames=averaged.num_frames),
        }
        row = {"mixture": sdr(item.speech, item.mixture)}
        row |= {
            f"VB-NMF, order {d.order}": fusion.sdr(one, g) for d, one in zip(speech, np.eye(len(speech)), strict=True)
        }
        row |= {name: fusion.sdr(w, g) for name, w in weights.items()}
        row["joint model"] = sdr(item.speech, joint.source("speech")[0])
        row["oracle selection (not a method)"] = fusion.sdr(fusion.best_weights(g), g)
        for name, value in row.items():
            rows.setdefault(name, []).append(float(value))
        results.append(averaged)
    return [Score(name, np.array(values)) for name, values in rows.items()], results


def _sounds(item: Recording, result: Result) -> dict[str, Float[np.ndarray, "..."]]:
    return {
        "1-mixture": item.mixture,
        "2-speech-separated": result.source("speech"),
        "3-speech-true": item.speech,
    }


def _write_report(folder: Path, result: Result) -> None:
    from bayesfuse import plots

    result.save(folder / "result.nc")
    plots.save(plots.report(result), folder / "report.png")


def _guide(report: Report, test: list[Recording], output: Path) -> str:
    first = test[0].name
    return "\n".join(
        [
            report.table(),
            f"Temperature of the average, learned on the training part: {report.beta_per_frame:.3g} nat per frame.",
            "Voice and noise are synthetic: these numbers say nothing about real recordings.",
            "",
            f"Listen, in {output}/{first} (and the other test_*):",
            "  1-mixture.wav           speech in noise of equal power",
            "  2-speech-separated.wav  the Bayesian average over the orders",
            "  3-speech-true.wav       what was mixed in",
            f"Look at {output}/report.png: the spectrograms, the weight of each order and the free energy behind it.",
            f'Go on with {output}/result.nc: bayesfuse.Result.load("{output}/result.nc") in Python.',
            f"Done in {report.seconds:.0f} s. Next: bayesfuse separate --help",
        ]
    )

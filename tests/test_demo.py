"""The demo, with fewer orders and recordings: it scores what it writes, and training knows no test recording."""

import numpy as np
import pytest
from synthetic_results import make_result

from bayesfuse import audio, demo, fusion, nmf, plots
from bayesfuse.metrics import sdr
from bayesfuse.results import Result
from bayesfuse.transforms import STFT

ROWS = ["mixture", "VB-NMF, order 2", "VB-NMF, order 4", "VB selection", "mean", "Bayesian average", "joint model"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder, report and printed text of a small run."""
    import contextlib
    import io

    from matplotlib.figure import Figure

    out = tmp_path_factory.mktemp("demo") / "out"
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
        patch.setattr(plots, "report", lambda result: Figure())
        report = demo.run(out, orders=[2, 4], count=1, progress=False)
    return out, report, text.getvalue()


def test_recordings_are_noise_alone_then_noise_and_speech():
    parts = {part: demo.recordings(part) for part in ("train", "test")}
    assert [len(items) for items in parts.values()] == [6, 6]
    frames = set()
    for item in [*parts["train"], *parts["test"]]:
        assert item.context.shape == (48000,)
        assert item.mixture.shape == item.speech.shape
        # At 0 dB over the whole file: the noise of the utterance alone can be a little louder or softer.
        ratio = 10 * np.log10(np.sum(item.speech**2) / np.sum((item.mixture - item.speech) ** 2))
        assert abs(ratio) < 2.0
        frames.add(nmf.bucket_length(STFT().num_frames(item.mixture.size)))
    assert len(frames) == 1  # one set of compiled programs serves all
    signals = [item.speech[:16000] for items in parts.values() for item in items]
    assert len({signal.tobytes() for signal in signals}) == 12


def test_every_row_is_there_and_scores_what_was_written(finished):
    out, report, text = finished
    assert [score.name for score in report.scores] == [*ROWS, "oracle selection (not a method)"]
    scores = {score.name: float(score.values[0]) for score in report.scores}
    sounds = {path.stem: audio.read(path)[0] for path in (out / "test_1").glob("*.wav")}
    truth = sounds["3-speech-true"]
    assert scores["mixture"] == pytest.approx(float(sdr(truth, sounds["1-mixture"])[0]), abs=1e-4)
    assert scores["Bayesian average"] == pytest.approx(float(sdr(truth, sounds["2-speech-separated"])[0]), abs=1e-3)
    result = Result.load(out / "result.nc")
    for order, label in enumerate(result.order_labels):
        expected = float(sdr(truth, result.estimates[order, 0])[0])
        assert scores[f"VB-NMF, order {label}"] == pytest.approx(expected, abs=1e-3)
    single = [scores[f"VB-NMF, order {order}"] for order in (2, 4)]
    assert scores["oracle selection (not a method)"] == pytest.approx(max(single))
    assert scores["VB selection"] in [pytest.approx(value) for value in single]
    assert scores["mean"] >= min(single)
    # Some 5 dB; were the voice and the noise exchanged it would be far below the mixture.
    assert min(single) > scores["mixture"] + 3.0
    assert scores["joint model"] > scores["mixture"] + 3.0
    for row in ROWS:
        assert row in text
    assert "synthetic" in text and str(out) in text


def test_temperature_is_learned_on_the_training_part_alone(finished, monkeypatch):
    _, report, _ = finished
    assert report.beta_per_frame >= 0
    asked, learned = [], []

    def separated(item, *_):
        asked.append(item.name)
        return make_result(draw=len(asked), samples=item.mixture.size, rate=16000, window=1024)

    monkeypatch.setattr(demo, "_separate", separated)
    monkeypatch.setattr(fusion, "learn_beta", lambda *arguments: learned.append(arguments) or 7.0)
    train = demo.recordings("train", 2)
    assert demo._learn_beta(train, [], 16000, 0, False) == 7.0
    assert asked == ["train_1", "train_2"]
    grams, energies, frames = learned[0]
    for item, gram in zip(train, grams, strict=True):
        assert float(gram.energy) == pytest.approx(np.sum(item.speech.astype(float) ** 2))
    assert energies.shape == (2, 4)
    assert list(frames) == [STFT().num_frames(item.mixture.size) for item in train]


def test_it_replaces_its_own_folder_and_no_other(finished, tmp_path, monkeypatch):
    out, _, _ = finished

    def stop(*args, **kwargs):
        raise InterruptedError

    monkeypatch.setattr(demo, "train_dictionary", stop)
    with pytest.raises(InterruptedError):  # it got as far as training
        demo.run(out, orders=[2], count=1, progress=False)
    assert (out / "result.nc").is_file()
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        demo.run(tmp_path, orders=[2], count=1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_table_is_aligned():
    scores = [demo.Score("mixture", np.array([0.0, 1.0])), demo.Score("mean", np.array([5.0, 7.25]))]
    lines = demo.Report(scores, 10.0, 1.0).table().splitlines()
    assert lines[2].split() == ["mixture", "0.50", "0.00", "0.0", "1.0"]
    assert lines[3].split() == ["mean", "6.12", "5.62", "5.0", "7.2"]
    assert len(lines[2]) == len(lines[3])

"""The ladder of a folder: files are read whole, and it says what the best separator was chosen on."""

from pathlib import Path

import numpy as np
import pytest
from small_example import RATE
from wav_folder import SEPARATORS, SOURCES, change, write_folder

from bayesfuse import audio, cli, examples
from bayesfuse import ladder as ladder_module
from bayesfuse.folder_ladder import BEST, about_best, ladder_of_folder
from bayesfuse.grams import Bands
from bayesfuse.ladder import ladder
from bayesfuse.separators.folder import read_folder
from bayesfuse.transforms import STFT

NAMES = ("a", "b")
FRAMES = STFT(256, 128)
FOLDERS = ("mixtures", "estimates", "references")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Separators that are perfect in the first half of a file, which says nothing about the second."""
    monkeypatch.chdir(write_folder(tmp_path, NAMES, channels=2))
    for name in NAMES:
        for source in SOURCES:
            true = read(f"references/{name}/{source}.wav")
            half = true.shape[1] // 2
            change(
                Path(f"estimates/dark/{name}/{source}.wav"),
                lambda x, true=true, half=half: np.concatenate([true[:, :half], x[:, half:]], axis=1),
            )
    return tmp_path


def read(path: str) -> np.ndarray:
    return audio.read(path)[0]


def test_blocks_of_files_are_the_whole(root, monkeypatch):
    monkeypatch.setattr(examples, "BLOCK", 999)
    monkeypatch.setattr(ladder_module, "_BLOCK", 1 << 15)
    found, failed = ladder_of_folder(read_folder(*FOLDERS), transform=FRAMES)
    monkeypatch.undo()
    assert not failed and found.files == NAMES
    separators = sorted(SEPARATORS)
    for index, name in enumerate(NAMES):
        expected = ladder(
            read(root / f"mixtures/{name}.wav"),
            np.stack([read(root / f"references/{name}/{s}.wav") for s in found.sources]),
            np.stack([[read(root / f"estimates/{m}/{name}/{s}.wav") for s in found.sources] for m in separators]),
            transform=FRAMES,
            bands=Bands(RATE, window=256),
            models=separators,
            sources=found.sources,
        )
        for rung in expected.rungs:
            value = found.sdr[index, :, found.rungs.index(rung)]
            np.testing.assert_allclose(value, expected.sdr[0, :, expected.rungs.index(rung)], atol=1e-4, err_msg=rung)


def test_it_says_what_the_best_separator_was_chosen_on(root, capsys):
    words = [word for name in FOLDERS for word in (f"--{name}", name)]
    assert cli.main(["fuse", *words, "-o", "out", "--ladder", "--window", "256", "--no-check"]) == 0
    text = capsys.readouterr().out
    assert "The best single ones were chosen on these 2 files themselves" in text
    found, _ = ladder_of_folder(read_folder(*FOLDERS), transform=FRAMES)
    assert about_best(found) in text
    for source, values in zip(found.sources, found.mean(), strict=True):
        names = dict(zip(found.rungs, values, strict=True))
        best = max(SEPARATORS, key=names.__getitem__)
        assert names[best] == names[BEST]
        rest = f"mean {names['mean']:.2f}, oracle fusion {names['oracle fusion']:.2f}"
        assert f"{source}: best single {best} {names[best]:.2f} dB; {rest}" in text

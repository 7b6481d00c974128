"""Separations of mini-chime by every model, kept as files: what the experiments on fusion rules start from.

Seven VB-NMF and seven ML-NMF orders per mixture, as in `real_utterances.py`. The clean training utterances also train
the dictionaries, and a separator looks better on speech that its dictionary has seen; rules that are learned on such
estimates would trust high orders too much. So the dictionaries are cross-fitted: the utterances of a speaker are
split in two, and a training mixture is separated with the dictionaries of the half that does not hold its
utterance. Validation and test mixtures, whose utterances are new, are separated with those of all training speech.

One file per mixture holds the utterance with some frames around it, on a grid of frames that is that of the whole
mixture: waveforms of mixture, true speech and all estimates, and the free energies of the VB models per frame in
parts (likelihood by ERB band, activations of speech, activations of noise).
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import _common as common
import numpy as np
import real_utterances as single

from bayesfuse import estimates, inference
from bayesfuse.datasets import MiniChime, Mixture
from bayesfuse.dictionary import Dictionary, train_dictionary
from bayesfuse.grams import Bands
from bayesfuse.separators.vb_nmf import Settings, fit_joint
from bayesfuse.transforms import STFT

ORDERS = single.ORDERS
MODELS = (*(f"VB-NMF {k}" for k in ORDERS), *(f"ML-NMF {k}" for k in ORDERS))
BANDS = 32
# What the files depend on: rules are changed and tried again on the same separations.
CODE = (
    "dictionary",
    "estimates",
    "gig",
    "inference",
    "nmf",
    "separators.ml_nmf",
    "separators.vb_nmf",
    "special",
    "transforms",
    "vbnmf",
    "wiener",
)
MARGIN = 2  # frames kept before and after the utterance


class Item(NamedTuple):
    """One separated mixture, cut to the utterance.

    Frames are those of `STFT()` on the waveforms here; `scored` is the range of samples of the utterance.
    """

    name: str
    speaker: str
    utterance: str
    noise: str
    snr: int
    rate: int
    scored: tuple[int, int]
    mixture: np.ndarray  # [sample]
    speech: np.ndarray  # [sample]
    estimates: np.ndarray  # [model, sample]
    likelihood: np.ndarray  # [order, band, frame], nats, of the VB models
    activations: np.ndarray  # [order, source, frame], nats

    @property
    def free_energy(self) -> np.ndarray:
        """Free energy [order, frame] of the VB models; the dictionaries are fixed and have no part of it."""
        return self.likelihood.sum(1) + self.activations.sum(1)


def halves(data: MiniChime, speaker: str, seed: int = 0) -> tuple[list[str], list[str]]:
    """The names of a speaker's training utterances, split in two at random."""
    names = list(data.training_speech(speaker).names)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    first, second = np.array_split(shuffled, 2)
    return [names[i] for i in first], [names[i] for i in second]


class Dictionaries:
    """Speech dictionaries of all orders for a mixture, none of which has seen its utterance."""

    def __init__(self, data: MiniChime, cache: Path, orders: Sequence[int] = ORDERS) -> None:
        self.data, self.cache, self.orders = data, cache, tuple(orders)
        self._trained: dict[tuple[str, int | None], list[Dictionary]] = {}
        self._halves = {speaker: halves(data, speaker) for speaker in data.speakers}

    def train(self) -> None:
        """Train all of them, with a progress bar."""
        from tqdm.auto import tqdm

        wanted = [(speaker, part) for speaker in self.data.speakers for part in (None, 0, 1)]
        for speaker, part in tqdm(wanted, desc="speech dictionaries", unit="set"):
            speech = self.data.training_speech(speaker)
            chosen = set(speech.names) if part is None else set(self._halves[speaker][part])
            recordings = [speech[i] for i, name in enumerate(speech.names) if name in chosen]
            self._trained[speaker, part] = train_dictionary(
                recordings, self.data.rate, list(self.orders), transform=STFT(), cache=self.cache
            )

    def of(self, item: Mixture) -> list[Dictionary]:
        """Those for one mixture."""
        speaker = item.metadata["speaker"]
        if item.split != "train":
            return self._trained[speaker, None]
        held = [part for part in (0, 1) if item.group not in self._halves[speaker][part]]
        if len(held) != 1:
            raise ValueError(f"utterance {item.group} of {item.name} is not in exactly one half of the training speech")
        return self._trained[speaker, held[0]]


def separate(item: Mixture, speech: Sequence[Dictionary], settings: Settings) -> dict[str, Any]:
    """The arrays of one file."""
    transform = STFT()
    bands = np.eye(BANDS)[Bands(item.rate, BANDS).index].T
    X = transform.analysis(item.mixture[0])
    power = transform.power(X)
    noise = single.noise_dictionary(item, transform)
    gains, likelihood, activations = [], [], []
    for dictionary in speech:
        fit = fit_joint(power, [[dictionary], [noise]], settings)
        gains.append(estimates.combination_gains(fit, 0)[0])
        terms = inference.energy_terms(power, fit, bands)
        likelihood.append(terms.data[0])
        activations.append(terms.activations[:, 0])
    gains += [single.ml_gains(power, dictionary, noise, settings) for dictionary in speech]
    length = item.mixture.shape[-1]
    signals = np.stack([transform.synthesis(g * X, length) for g in gains])
    # The cut begins and ends on the grid, so that its frames are frames of the whole.
    first = item.segment[0] // transform.hop - MARGIN
    last = min(-(-item.segment[1] // transform.hop) + MARGIN, length // transform.hop)
    cut = slice(first * transform.hop, last * transform.hop)
    frames = slice(first, first + transform.num_frames(cut.stop - cut.start))
    return {
        "scored": np.array(item.segment) - cut.start,
        "mixture": item.mixture[0, cut],
        "speech": item.sources["speech"][0, cut],
        "estimates": signals[:, cut],
        "likelihood": np.stack(likelihood)[..., frames].astype(np.float32),
        "activations": np.stack(activations)[..., frames].astype(np.float32),
    }


class Separations:
    """The separated mixtures of mini-chime, computed once; a run that was interrupted goes on.

    Parameters
    ----------
    data
        The set.
    cache
        Folder of the files.
    threads
        Mixtures worked on at a time.
    """

    def __init__(self, data: MiniChime, cache: Path, *, settings: Settings | None = None, threads: int = 2) -> None:
        self.data, self.threads = data, threads
        self.settings = Settings() if settings is None else settings
        code = common.fingerprint(__file__, str(Bands(data.rate, BANDS).edges), only=CODE)
        self.folder = cache / f"separations-{code}-b{self.settings.b:g}"
        self.dictionaries = Dictionaries(data, cache / "dictionaries")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def _make(self, item: Mixture) -> None:
        path = self._path(item.name)
        temporary = path.with_suffix(f".{os.getpid()}.part")
        with open(temporary, "wb") as file:
            np.savez(file, **separate(item, self.dictionaries.of(item), self.settings))
        os.replace(temporary, path)

    def compute(self, split: str, quick: bool | None = None, limit: int | None = None) -> list[str]:
        """Names of the mixtures of a split, all of which have their file when this returns."""
        from tqdm.auto import tqdm

        items = self.data.mixtures(split, quick)[:limit]
        names = list(items.names)
        missing = [i for i, name in enumerate(names) if not self._path(name).exists()]
        if not missing:
            return names
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.dictionaries._trained:
            self.dictionaries.train()
        with ThreadPoolExecutor(self.threads) as pool:
            futures = [pool.submit(lambda i: self._make(items[i]), i) for i in missing]
            done = len(names) - len(missing)
            try:
                for future in tqdm(
                    as_completed(futures), total=len(names), initial=done, desc=f"separating {split}", unit="mixture"
                ):
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return names

    def load(self, split: str, quick: bool | None = None, limit: int | None = None) -> Iterator[Item]:
        """The items of a split, one at a time, computed if need be."""
        names = set(self.compute(split, quick, limit))
        for item in self.data.mixtures(split, quick):
            if item.name not in names:
                continue
            with np.load(self._path(item.name)) as file:
                arrays = {key: file[key] for key in file.files}
            low, high = arrays.pop("scored").tolist()
            about = item.metadata
            yield Item(
                name=item.name,
                speaker=about["speaker"],
                utterance=item.group,
                noise=about["noise"],
                snr=about["snr_db"],
                rate=item.rate,
                scored=(low, high),
                **arrays,
            )

"""Mixtures drawn from the model itself: `Synthetic`, the data of [JVR14] section 4.1.

References
----------
[JVR14] X. Jaureguiberry, E. Vincent, G. Richard. Variational Bayesian model averaging for audio source separation.
    IEEE Workshop on Statistical Signal Processing, 2014.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Complex, Float

from bayesfuse import audio
from bayesfuse._checks import check_seed
from bayesfuse.datasets.base import Dataset, Entry
from bayesfuse.datasets.mixture import Mixture, PathLike, Utterances
from bayesfuse.dictionary import Dictionary, train_dictionary
from bayesfuse.transforms import STFT, transform_from_dict

if TYPE_CHECKING:
    from bayesfuse.vbnmf import Prior

ORDERS = (2, 4, 8, 16, 32, 64, 128)
SNRS = (-6, -3, 0, 3, 6, 9)
_WINDOW = STFT(2048, 1024)


class Draw(NamedTuple):
    """One draw in the time-frequency plane. Arrays are NumPy, in double precision.

    Attributes
    ----------
    X
        Mixture, ``speech + background + error``.
    speech, background, error
        STFT coefficients of the sources, the background scaled to the SNR, and of the sensor noise.
    dictionaries, activations
        W [freq, component] and H [component, frame] of speech and background; the variances are ``W @ H`` and
        ``gain**2 * W @ H``.
    gain
        Amplitude that scales the background to the SNR.
    """

    X: Complex[np.ndarray, "freq frame"]
    speech: Complex[np.ndarray, "freq frame"]
    background: Complex[np.ndarray, "freq frame"]
    error: Complex[np.ndarray, "freq frame"]
    dictionaries: tuple[Float[np.ndarray, "freq _"], Float[np.ndarray, "freq _"]]
    activations: tuple[Float[np.ndarray, "_ frame"], Float[np.ndarray, "_ frame"]]
    gain: float


class Synthetic(Dataset):
    """Draws from the generative model at every order of the speech and every SNR, [JVR14] section 4.1.

    Activations are drawn from Gamma(b, b), sources from the model given dictionaries; the background is scaled so
    that the energies of the drawn sources have the SNR; sensor noise of constant variance is added. `draw` gives the
    coefficients; a `Mixture` holds their waveforms: sources `speech` and `background`, the latter with the sensor
    noise, so that they sum to the mixture. Frames overlap, so that the coefficients of the waveforms are not quite
    those drawn. One split, all; each draw is a group of its own. Metadata: order, snr_db, draw, and the gain of the
    background.

    Not stated in the paper and chosen here: the background takes the gain of the SNR, which is measured on the drawn
    coefficients.

    Parameters
    ----------
    speech
        Dictionaries that generate the speech, or orders: then the dictionary too is drawn, from Gamma(a, a), anew for
        every mixture, and activations have the mean 1 / order, so that all orders are equally loud.
    background
        That of the background, likewise.
    snrs_db
        SNRs in dB.
    draws
        Number of mixtures for each order and SNR.
    frames
        Length in frames.
    a, b
        Shapes of the Gamma priors of dictionaries and activations.
    noise
        Variance of the sensor noise, in the unit of the products W H.
    seed
        Of all draws; every mixture has a stream of its own.
    rate
        Sampling rate in Hz, if there are no dictionaries to say it.
    transform
        Likewise.
    training
        Clean utterances by speaker that `training_speech` hands out.
    dtype
        float32 or float64, of the waveforms; drawn in double precision.

    Raises
    ------
    ValueError
        If nothing is to be drawn, numbers are out of range, or dictionaries differ in rate or transform, or are not of
        an STFT.
    """

    def __init__(
        self,
        speech: Sequence[Dictionary | int] = ORDERS,
        background: Dictionary | int = 16,
        *,
        snrs_db: Sequence[float | int] = SNRS,
        draws: int = 1,
        frames: int = 300,
        a: float = 0.2,
        b: float = 0.2,
        noise: float = 1e-6,
        seed: int = 0,
        rate: int = 16000,
        transform: STFT = _WINDOW,
        training: dict[str, Utterances] | None = None,
        dtype: Any = np.float32,
    ) -> None:
        check_seed("Synthetic", seed)
        dictionaries = [item for item in (*speech, background) if isinstance(item, Dictionary)]
        described = [(item.rate, item.transform) for item in dictionaries]
        if described:
            rate, named = described[0][0], transform_from_dict(described[0][1])
            if not isinstance(named, STFT) or any(item != described[0] for item in described):
                raise ValueError(
                    f"dictionaries are of {described}; synthetic mixtures need one rate and one STFT for all of them."
                )
            transform = named
        orders = [item.order if isinstance(item, Dictionary) else item for item in speech]
        if len(set(orders)) < len(orders) or min(draws, len(orders), len(snrs_db)) < 1 or frames <= transform.overlap:
            raise ValueError(
                f"Synthetic got orders {orders}, snrs_db={list(snrs_db)}, draws={draws}, frames={frames}; expected "
                f"different orders, at least one SNR and draw, and more than {transform.overlap} frames."
            )
        self.speech, self.background = tuple(speech), background
        self.transform, self.frames, self.seed, self.dtype = transform, frames, seed, np.dtype(dtype)
        self._shapes, self._noise, self._training = (float(a), float(b)), float(noise), dict(training or {})
        self._conditions = [
            (candidate, float(snr), number) for candidate in speech for snr in snrs_db for number in range(draws)
        ]
        entries = []
        for candidate, snr, number in self._conditions:
            order = candidate.order if isinstance(candidate, Dictionary) else candidate
            name = f"order{order}_{_level(snr)}" + (f"_{number}" if draws > 1 else "")
            entries.append(Entry(name, "all", name, {"order": order, "snr_db": snr, "draw": number}))
        super().__init__(entries, audio.check_rate(rate))

    @property
    def length(self) -> int:
        """Samples of every mixture."""
        return (self.frames - self.transform.overlap + 1) * self.transform.hop

    @property
    def speakers(self) -> tuple[str, ...]:
        """Speakers with training speech."""
        return tuple(self._training)

    def training_speech(self, speaker: str) -> Utterances:
        """Clean utterances, none of which the generating dictionaries have seen.

        Raises
        ------
        ValueError
            If there are none of this speaker.
        """
        if speaker not in self._training:
            raise ValueError(f"there is no training speech of {speaker!r}, but of {list(self._training)}.")
        return self._training[speaker]

    def prior(self, index: int) -> "Prior":
        """Prior that a mixture is drawn from, of one candidate order per source, in the unit of the products W H."""
        from bayesfuse.vbnmf import make_prior

        a, b = self._shapes
        candidates = [self._conditions[index][0], self.background]
        orders = [[item.order if isinstance(item, Dictionary) else int(item)] for item in candidates]
        means = [
            [1.0 if isinstance(item, Dictionary) else 1 / order[0]]
            for item, order in zip(candidates, orders, strict=True)
        ]
        return make_prior(orders, a=a, b=b, noise=self._noise, activation_mean=means, dtype=np.float64)

    def draw(self, index: int) -> Draw:
        """Coefficients and factors of a mixture; the same whenever it is asked for."""
        import jax

        from bayesfuse.model import simulate

        index = range(len(self))[index]
        candidate, snr, _ = self._conditions[index]
        layout = [
            [np.asarray(item.weights, np.float64) if isinstance(item, Dictionary) else int(item)]
            for item in (candidate, self.background)
        ]
        key = jax.random.fold_in(jax.random.key(self.seed), index)
        drawn = simulate(key, layout, self.prior(index), (self.transform.num_bins, self.frames), orders=[0, 0])
        speech, background = drawn.sources
        error = drawn.X - speech - background
        energies = [np.sum(np.abs(source) ** 2) for source in drawn.sources]
        gain = float(np.sqrt(energies[0] / energies[1] / 10.0 ** (snr / 10.0)))
        background = gain * background
        first, second = drawn.dictionaries
        return Draw(
            speech + background + error,
            speech,
            background,
            error,
            (first, second),
            (drawn.activations[0], drawn.activations[1]),
            gain,
        )

    def _form(self, index: int) -> Mixture:
        drawn = self.draw(index)
        parts = {"speech": drawn.speech, "background": drawn.background + drawn.error}
        sources = {name: np.asarray(self.transform.synthesis(X, self.length))[None] for name, X in parts.items()}
        return Mixture(
            name=self.entries[index].name,
            mixture=np.sum(list(sources.values()), axis=0).astype(self.dtype),
            sources={name: signal.astype(self.dtype) for name, signal in sources.items()},
            rate=self.rate,
            segment=(0, self.length),
            metadata={"gain": drawn.gain},
        )


def learned(
    data: Any,
    speaker: str | None = None,
    *,
    orders: Sequence[int] = ORDERS,
    background_order: int = 16,
    utterances: int = 250,
    seconds: float | int = 10.0,
    seed: int = 0,
    transform: STFT = _WINDOW,
    cache: PathLike | None = None,
    progress: bool = False,
    **options: Any,
) -> Synthetic:
    """`Synthetic` with dictionaries learned on recordings, as in [JVR14] section 4.1.

    One half of a speaker's clean utterances, drawn at random, trains the dictionaries that generate; the other half is
    what `Synthetic.training_speech` hands out to train those that separate.

    Parameters
    ----------
    data
        A set with `speakers`, `training_speech` and mixtures with a stretch of background, such as `MiniChime` or
        `Chime2`.
    speaker
        Drawn by the seed if None.
    orders, background_order
        Of the dictionaries.
    utterances
        Largest number of utterances of either half.
    seconds
        Of background to learn from, from mixtures of the first split in random order.
    seed
        Of the choices here, the training, and the draws.
    transform
        The STFT.
    cache, progress
        As `train_dictionary` has them.
    options
        Of `Synthetic`.

    Raises
    ------
    ValueError
        For a set without speech to train on, an unknown speaker, too few utterances, or as `Synthetic`.
    """
    if not hasattr(data, "training_speech") or not data.speakers:
        raise ValueError(f"{data!r} has no training_speech; take a set that has, such as MiniChime or Chime2.")
    check_seed("learned", seed)
    rng = np.random.default_rng(seed)
    chosen = data.speakers[rng.integers(len(data.speakers))] if speaker is None else speaker
    speech = data.training_speech(chosen)
    halves = [part[:utterances].tolist() for part in np.array_split(rng.permutation(len(speech)), 2)]
    if min(map(len, halves)) == 0 or seconds <= 0:
        raise ValueError(f"{len(speech)} utterances of {chosen}, seconds={seconds}: expected two or more, and a time.")
    pieces, wanted = [], round(seconds * data.rate)
    mixtures = data.mixtures(data.splits[0])
    for position in rng.permutation(len(mixtures)):
        pieces.append(audio.to_mono(mixtures[int(position)].background())[:, :wanted])
        wanted -= pieces[-1].shape[-1]
        if wanted == 0:
            break

    def train(recordings: list[np.ndarray], order: Any) -> Any:
        return train_dictionary(
            recordings, data.rate, order, transform=transform, seed=seed, cache=cache, progress=progress
        )

    generating = train([speech[i] for i in halves[0]], list(orders))
    background = train([np.concatenate(pieces, axis=-1)], background_order)
    training = {chosen: speech.at(halves[1])}
    return Synthetic(generating, background, seed=seed, training=training, **options)


def _level(snr: float) -> str:
    return f"{'m' if snr < 0 else ''}{abs(snr):g}dB"

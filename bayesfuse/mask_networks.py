"""Two sources from one mixture by networks that estimate masks, and a third one that combines their estimates.

References
----------
[Grais16] E. M. Grais, G. Roma, A. J. R. Simpson and M. D. Plumbley, "Combining mask estimates for single channel audio
source separation using deep neural networks", Interspeech, 2016.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from bayesfuse import _arrays
from bayesfuse._dense import Dense, random_layers
from bayesfuse._module import Module
from bayesfuse._precision import precision
from bayesfuse._training import RateRule, Training, fingerprint, minimise
from bayesfuse.transforms import STFT

_KIND = "bayesfuse mask networks"
_NETWORKS = ("binary", "soft", "combining")

# Plain gradient descent at a constant rate over mini-batches of 100 frames, [Grais16] section 6.
PAPER = Training(batch_size=100, max_epochs=200, rate=0.1, momentum=0.0, rule=RateRule(increase=1.0, decrease=1.0))

Spectra = Float[np.ndarray, "frame bin"]


class SigmoidNetwork(Module):
    """A multi-layer perceptron whose hidden and output units are all sigmoids.

    Parameters
    ----------
    key
        Of the initial weights (Glorot's normal distribution).
    sizes
        Numbers of inputs, of the units of each hidden layer, and of outputs.
    """

    layers: tuple[Dense, ...]

    def __init__(self, key: PRNGKeyArray, sizes: Sequence[int]):
        self.layers = random_layers(key, sizes, glorot=True)

    @property
    def sizes(self) -> list[int]:
        """Numbers of inputs, of the units of each hidden layer, and of outputs."""
        return [self.layers[0].weight.shape[1], *(layer.bias.size for layer in self.layers)]

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """Outputs between zero and one."""
        for layer in self.layers:
            x = jax.nn.sigmoid(layer(x))
        return x


def binary_mask(first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """1 where the first source's magnitude is not below the second's, else 0 ([Grais16] eq. 3)."""
    return (first >= second).astype(first.dtype)


def soft_mask(first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The first source's share of both magnitudes ([Grais16] eqs. 4 and 10); one half where both are silent."""
    total = first + second
    return np.where(total > 0, first / np.where(total > 0, total, 1.0), 0.5).astype(first.dtype)


def discriminative_cost(
    outputs: Float[Array, "frame two_bins"],
    targets: Float[Array, "frame two_bins"],
    penalties: tuple[float, float],
) -> Float[Array, " frame"]:
    """Squared distance to the sources' targets, less the penalised distance to each other's ([Grais16] eq. 7).

    Parameters
    ----------
    outputs, targets
        Normalised magnitudes of both sources, one after the other.
    penalties
        lambda_1 and lambda_2, of the first output's distance to the second source and the reverse.
    """
    bins = outputs.shape[-1] // 2
    own = ((outputs - targets) ** 2).sum(axis=-1)
    crossed = (outputs - jnp.roll(targets, bins, axis=-1)) ** 2
    return own - penalties[0] * crossed[..., :bins].sum(axis=-1) - penalties[1] * crossed[..., bins:].sum(axis=-1)


class MaskEstimates(NamedTuple):
    """Masks of the first source [frame, bin]: of the two estimating networks, and of their combination."""

    binary: Spectra
    soft: Spectra
    combined: Spectra


class MaskCombination(Module):
    """The three networks of [Grais16], trained.

    Attributes
    ----------
    binary, soft
        From the magnitudes of the mixture to a mask of the first source.
    combining
        From the four masked spectra to the normalised magnitudes of both sources.
    transform
        Whose magnitudes they are.
    level
        Root mean square of the magnitudes of the first training mixtures, by which all inputs are divided.
    """

    binary: SigmoidNetwork
    soft: SigmoidNetwork
    combining: SigmoidNetwork
    transform: STFT
    level: float

    def masks(self, magnitudes: Spectra) -> MaskEstimates:
        """The masks of a mixture's magnitudes ([Grais16] eqs. 8-10).

        The combining network returns spectra of norm one; their gains are the average of those of both estimates.
        """
        with precision():
            spectra = np.asarray(magnitudes, np.float32)
            scaled = spectra / np.float32(self.level)
            binary, soft = np.asarray(_run(self.binary, scaled)), np.asarray(_run(self.soft, scaled))
            inputs = _masked(spectra, binary, soft)
            outputs = np.asarray(_run(self.combining, inputs / np.float32(self.level)))
        bins = spectra.shape[1]
        norms = np.linalg.norm(inputs.reshape(-1, 4, bins), axis=-1)
        gains = (norms[:, :2] + norms[:, 2:]) / 2.0
        return MaskEstimates(
            binary, soft, soft_mask(gains[:, :1] * outputs[:, :bins], gains[:, 1:] * outputs[:, bins:])
        )

    def sources(
        self, mixture: Float[np.ndarray, "channel sample"], which: Literal["binary", "soft", "combined"] = "combined"
    ) -> Float[np.ndarray, "2 channel sample"]:
        """Both sources of a mixture, each channel by itself ([Grais16] eq. 11); they add up to the mixture."""
        channels = []
        for signal in mixture:
            spectrum = self.transform.analysis(signal)
            mask = getattr(self.masks(np.abs(spectrum).T), which).T
            first = self.transform.synthesis((mask * spectrum).astype(spectrum.dtype), len(signal))
            channels.append([first, signal - first])
        return np.swapaxes(np.asarray(channels), 0, 1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the networks to one netCDF file, whole or not at all; `load` returns them bit by bit."""
        groups = {name: _arrays.leaves(getattr(self, name)) for name in _NETWORKS}
        sizes = {name: getattr(self, name).sizes for name in _NETWORKS}
        about = {"transform": self.transform.to_dict(), "level": self.level, "sizes": sizes}
        _arrays.write(Path(path), _KIND, groups, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "MaskCombination":
        """The networks in a file of `save`; raises FileNotFoundError or ValueError if there are none."""
        groups, about = _arrays.read(Path(path), _KIND)
        networks = {
            name: _arrays.with_leaves(SigmoidNetwork(jax.random.key(0), about["sizes"][name]), groups[name])
            for name in _NETWORKS
        }
        settings = about["transform"]
        return cls(**networks, transform=STFT(settings["window"], settings["hop"]), level=about["level"])


class MaskConfig(Module):
    """Architecture and descent of the three networks; the defaults are those of [Grais16] section 6.

    Parameters
    ----------
    transform
        Of the magnitudes. The paper has a Hann window, here it is a sine window.
    hidden
        Number of hidden layers, of as many units as there are bins, or for the combining network inputs.
    units
        Units per hidden layer instead; None for the above.
    penalties
        lambda_1 and lambda_2 of [Grais16] eq. 7. The paper does not print the values it compares; choose on the
        validation set.
    training
        Of the descent, by default plain gradient descent at a constant rate.
    """

    transform: STFT = STFT(2048, 512)
    hidden: int = eqx.field(static=True, default=3)
    units: int | None = eqx.field(static=True, default=None)
    penalties: tuple[float, float] = eqx.field(static=True, default=(0.0, 0.0))
    training: Training = PAPER


def train_masks(
    key: PRNGKeyArray,
    first: Sequence[Float[np.ndarray, "2 sample"]],
    second: Sequence[Float[np.ndarray, "2 sample"]],
    validation: Sequence[Float[np.ndarray, "2 sample"]],
    *,
    config: MaskConfig | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> MaskCombination:
    """The three networks: two estimate masks, trained on the first set, the third combines them, trained on the second.

    Magnitudes of all frames are held in memory. The costs of [Grais16] eqs. 2 and 7 are sums; here they are means over
    the frames and bins, and inputs are divided by the level of the first set, so that the rate means the same for any
    recordings. Of all epochs, the one with the smallest cost on the validation set counts.

    Parameters
    ----------
    key
        Of all random numbers.
    first, second, validation
        Pairs of true sources, whose sums are the mixtures. The sets must not overlap: masks of recordings that the
        first two networks were trained on are better than those of others.
    config
        Architecture and descent.
    checkpoint
        Folder of the checkpoints, see `neural.train`; created if it does not exist.
    progress
        Show progress bars.

    Raises
    ------
    ValueError
        If a set is empty, or a checkpoint is of another training.
    """
    config = MaskConfig() if config is None else config
    sets = [
        _Magnitudes.of(pairs, config.transform, name)
        for pairs, name in ((first, "first"), (second, "second"), (validation, "validation"))
    ]
    level = float(np.sqrt(np.mean(np.square(sets[0].mixture, dtype=np.float64)))) or 1.0
    bins = config.transform.num_bins
    folder = None if checkpoint is None else Path(checkpoint)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)

    def fit(index: int, name: str, sizes: list[int], data: Any, held_out: Any, loss: "_Cost") -> SigmoidNetwork:
        stage = jax.random.fold_in(key, index)
        network, _, _ = minimise(
            jax.random.fold_in(stage, 1),
            SigmoidNetwork(stage, sizes),
            data,
            loss,
            _HeldOut(loss, *held_out),
            config.training,
            checkpoint=None if folder is None else folder / f"{name}.nc",
            identity="" if folder is None else fingerprint(*data, *held_out, repr(config), stage),
            label=f"{name} network",
            progress=progress,
        )
        return network

    def sizes(inputs: int, outputs: int) -> list[int]:
        return [inputs, *[config.units or inputs] * config.hidden, outputs]

    masks = []
    for index, (name, rule) in enumerate((("binary", binary_mask), ("soft", soft_mask))):
        data, held_out = [(s.mixture / level, rule(s.first, s.second)) for s in (sets[0], sets[2])]
        masks.append(fit(index, name, sizes(bins, bins), data, held_out, _Cost(None)))

    def combination(part: _Magnitudes) -> tuple[np.ndarray, np.ndarray]:
        with precision():
            binary, soft = (np.asarray(_run(network, part.mixture / level)) for network in masks)
        targets = np.concatenate([_normalised(part.first), _normalised(part.second)], axis=1)
        return _masked(part.mixture / level, binary, soft), targets

    data, held_out = combination(sets[1]), combination(sets[2])
    third = fit(2, "combining", sizes(4 * bins, 2 * bins), data, held_out, _Cost(config.penalties))
    return MaskCombination(masks[0], masks[1], third, config.transform, level)


class _Magnitudes(NamedTuple):
    """Magnitudes of mixtures and of both sources, float32, the frames of all recordings one after the other."""

    mixture: Spectra
    first: Spectra
    second: Spectra

    @classmethod
    def of(cls, pairs: Sequence[Float[np.ndarray, "2 sample"]], transform: STFT, name: str) -> "_Magnitudes":
        if not len(pairs):
            raise ValueError(f"train_masks got no recordings in its {name} set; give at least one.")
        rows = [[np.abs(transform.analysis(x)).T for x in (pair[0] + pair[1], *pair)] for pair in pairs]
        mixture, one, other = (np.concatenate(parts).astype(np.float32) for parts in zip(*rows, strict=True))
        return cls(mixture, one, other)


class _Cost(Module):
    """The mean cost of a mini-batch: of a mask, or with penalties of the combination."""

    penalties: tuple[float, float] | None = eqx.field(static=True)

    def __call__(self, network: SigmoidNetwork, batch: Any, mask: Any, key: Any) -> Any:
        inputs, targets = batch
        outputs = network(inputs)
        if self.penalties is None:
            values = ((outputs - targets) ** 2).sum(axis=-1)
        else:
            values = discriminative_cost(outputs, targets, self.penalties)
        return (values * mask).sum() / (mask.sum() * outputs.shape[-1])


class _HeldOut(Module):
    """The cost of the validation set."""

    cost: _Cost
    inputs: Any
    targets: Any

    def __call__(self, network: SigmoidNetwork) -> float:
        ones = np.ones(len(self.inputs), np.float32)
        return float(_cost(self.cost, network, (self.inputs, self.targets), ones))


@eqx.filter_jit
def _cost(cost: _Cost, network: SigmoidNetwork, batch: Any, mask: Any) -> Any:
    return cost(network, batch, mask, None)


@eqx.filter_jit
def _run(network: SigmoidNetwork, x: Any) -> Any:
    return network(x)


def _masked(magnitudes: Spectra, binary: Spectra, soft: Spectra) -> Float[np.ndarray, "frame four_bins"]:
    """Both sources by the binary mask, then both by the soft one ([Grais16] eqs. 5-6)."""
    masks = (binary, 1.0 - binary, soft, 1.0 - soft)
    return np.concatenate([magnitudes * mask for mask in masks], axis=1)


def _normalised(spectra: Spectra) -> Spectra:
    """Frames divided by their Euclidean norm; silent ones stay."""
    norms = np.linalg.norm(spectra, axis=1, keepdims=True)
    return spectra / np.where(norms > 0, norms, 1.0)

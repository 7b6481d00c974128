"""What a separation returns: sound, weights and the free energies behind them, with names on all axes.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from bayesfuse import _html, _netcdf, _result_tree, fusion
from bayesfuse._module import Module
from bayesfuse._result_checks import array, check_result, integer, number, texts, through_json
from bayesfuse._simplex import softmax

if TYPE_CHECKING:
    from xarray import DataTree

_CAPTION = "free energies in nats, relative to the best order"


class Result(Module):
    """Sources of a mixture, fused over model orders, with the reasons for the weights. All arrays are NumPy.

    The model axis is called "order": one row per combination of the sources' candidate orders.

    Parameters
    ----------
    mixture
        Waveform that was separated, [channel, sample].
    rate
        Samples per second.
    source_names
        One name per source, unique.
    sources
        Fused waveforms, [source, channel, sample].
    orders
        Number of components of each source in each combination.
    order_labels
        A unique text per combination, such as "8" or "speech=8, noise=16".
    weights
        Fusion weights on the simplex over the orders, constant [order] or per frame [order, frame].
    log_prior
        log pi of each order, up to a constant.
    beta_per_frame
        Temperature behind the weights, in nats per frame.
    energy_frames
        Free energy of each order in nats, per frame, without the dictionaries' part. Summed over channels.
    energy_dictionary
        The dictionaries' part in nats; 0 for fixed dictionaries.
    energy_order
        -KL(q(K) || pi) in nats of the joint model, else 0.
    estimates
        Waveforms of every order, [order, source, channel, sample], or None.
    within, between
        Posterior variance of the fused sources' coefficients: the average over the orders of the variance given the
        order, and the variance of the orders' means; in squared units of the waveform, or None (both).
    trace
        Objective of every fit, [fit, record]; NaN where a fit stopped earlier than others.
    trace_iterations
        Iteration of each record.
    trace_labels
        One text per fit.
    frequencies
        Hz, of the transform's bins.
    frame_times
        Centres of the frames in seconds.
    method
        "joint", "average", "select" or "mean".
    transform
        Description by `to_dict` of the transform.
    settings
        Whatever else determined the result, JSON-ready.
    seed
        Of all random numbers.
    version
        Of the library.

    Raises
    ------
    ValueError
        If shapes disagree, weights are off the simplex, names repeat, or values are NaN where they must not be.
    """

    mixture: Float[np.ndarray, "channel sample"] = eqx.field(converter=array)
    rate: int = eqx.field(converter=integer)
    source_names: tuple[str, ...] = eqx.field(converter=texts)
    sources: Float[np.ndarray, "source channel sample"] = eqx.field(converter=array)
    orders: Int[np.ndarray, "order source"] = eqx.field(converter=array)
    order_labels: tuple[str, ...] = eqx.field(converter=texts)
    weights: Float[np.ndarray, " order"] | Float[np.ndarray, "order frame"] = eqx.field(converter=array)
    log_prior: Float[np.ndarray, " order"] = eqx.field(converter=array)
    beta_per_frame: float = eqx.field(converter=number)
    energy_frames: Float[np.ndarray, "order frame"] = eqx.field(converter=array)
    energy_dictionary: Float[np.ndarray, " order"] = eqx.field(converter=array)
    energy_order: float = eqx.field(converter=number)
    estimates: Float[np.ndarray, "order source channel sample"] | None = eqx.field(converter=array)
    within: Float[np.ndarray, "source channel freq frame"] | None = eqx.field(converter=array)
    between: Float[np.ndarray, "source channel freq frame"] | None = eqx.field(converter=array)
    trace: Float[np.ndarray, "fit record"] = eqx.field(converter=array)
    trace_iterations: Int[np.ndarray, " record"] = eqx.field(converter=array)
    trace_labels: tuple[str, ...] = eqx.field(converter=texts)
    frequencies: Float[np.ndarray, " freq"] = eqx.field(converter=array)
    frame_times: Float[np.ndarray, " frame"] = eqx.field(converter=array)
    method: str
    transform: dict[str, Any] = eqx.field(converter=through_json)
    settings: dict[str, Any] = eqx.field(converter=through_json)
    seed: int = eqx.field(converter=integer)
    version: str

    def __check_init__(self) -> None:
        check_result(self, {name: dims for name, (_, _, dims) in _result_tree.ARRAYS.items()})

    @property
    def num_frames(self) -> int:
        """Number of frames N."""
        return self.frame_times.shape[0]

    @property
    def duration(self) -> float:
        """Duration in seconds."""
        return self.mixture.shape[-1] / self.rate

    @property
    def free_energy(self) -> Float[np.ndarray, " order"]:
        """Total free energy of each order in nats, all frames and the dictionaries; float64."""
        return self.per_frame("none").sum(axis=1) + self.energy_dictionary.astype(np.float64)

    @property
    def relative_free_energy(self) -> Float[np.ndarray, " order"]:
        """Total free energies in nats minus the largest, which reads 0; float64."""
        totals = self.free_energy
        best = totals.max()
        # An order that is ruled out has -inf, and all orders may be.
        return np.subtract(totals, best, out=np.zeros_like(totals), where=totals < best)

    @property
    def effective_models(self) -> float:
        """Effective number of orders that the weights spread over, exp(entropy); averaged over frames."""
        return float(np.mean(fusion.effective_models(self.weights.astype(np.float64), axis=0)))

    @property
    def mean_weights(self) -> Float[np.ndarray, " order"]:
        """Weight of each order, averaged over the frames if weights are per frame; float64."""
        weights = self.weights.astype(np.float64)
        return weights if weights.ndim == 1 else weights.mean(axis=1)

    @property
    def prior(self) -> Float[np.ndarray, " order"]:
        """Prior probability of each order; float64."""
        return softmax(self.log_prior.astype(np.float64))

    def per_frame(self, dictionary: str = "split") -> Float[np.ndarray, "order frame"]:
        """Free energy of each order in each frame in nats, float64.

        Parameters
        ----------
        dictionary
            What becomes of the dictionaries' part: "split" shares it equally among the frames, which then sum to the
            totals; "repeat" counts it in every frame, as [JVR16] eq. 36 does; "none" leaves it out.
        """
        share = {"split": 1.0 / self.num_frames, "repeat": 1.0, "none": 0.0}
        if dictionary not in share:
            raise ValueError(f"dictionary={dictionary!r}; expected one of {list(share)}.")
        frames = self.energy_frames.astype(np.float64)
        if dictionary == "none":  # 0 * -inf is not 0
            return frames
        return frames + share[dictionary] * self.energy_dictionary.astype(np.float64)[:, None]

    def source(self, name: str) -> Float[np.ndarray, "channel sample"]:
        """Fused waveform of the source of that name."""
        if name not in self.source_names:
            raise ValueError(f"there is no source {name!r}; the sources are {list(self.source_names)}.")
        return self.sources[self.source_names.index(name)]

    def to_datatree(self) -> "DataTree":
        """Everything as an `xarray.DataTree` with named axes, sharing memory with this object.

        Groups: mixture, fused, estimates if there are any, weights, free_energy, variance, trace. Coordinates:
        source (names), channel (from 0), order (labels), sample and frame (seconds), frequency (Hz), fit (labels),
        iteration. Free energies are in nats; the rest is in the attributes of the root, dictionaries as JSON.
        """
        return _result_tree.to_tree(self)

    @classmethod
    def from_datatree(cls, tree: "DataTree") -> "Result":
        """The result that a tree of `to_datatree` describes, sharing memory with it.

        Raises
        ------
        ValueError
            If the tree is of something else, of a newer schema than this version knows, or incomplete.
        """
        return cls(**_result_tree.fields(tree))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to one netCDF-4 file, which any reader of netCDF opens, and `load` returns bit by bit.

        A file of that name is replaced, once the new one is complete.

        Raises
        ------
        ValueError
            If the folder does not exist or `path` is a folder.
        """
        _netcdf.write_tree(self.to_datatree(), Path(path), compress=_result_tree.COMPRESSED)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Result":
        """The result in a file of `save`.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged, of something else, or of a newer schema than this version knows.
        """
        tree = _netcdf.read_tree(Path(path))
        try:
            return cls.from_datatree(tree)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_inference_data(
        self, *, chains: int = 4, draws: int | None = None, seed: int | None = None, waveforms: bool = True
    ) -> Any:
        """The result for ArviZ: an `InferenceData` with ArviZ 0.x, an `xarray.DataTree` with 1.x.

        Groups: posterior, draws of `order_index` and of the sources' numbers of `components` from the weights, with
        the attribute inference="vb" (draws are independent, so diagnostics of chains say nothing about the fit);
        sample_stats, the objective over the iterations; observed_data, the mixture; fusion, weights, prior, free
        energies and fused waveforms. There is no log_likelihood, which needs the fits (`inference_data`): free energies
        bound the evidence of whole recordings and are none.

        Parameters
        ----------
        chains, draws
            Numbers of both. By default 500 draws, fewer where weights per frame would take more than four million
            numbers. Draws of different frames are independent of each other.
        seed
            Of the draws; by default that of the result.
        waveforms
            Without them, and so without observed_data, the object stays small for long recordings.
        """
        seed = self.seed if seed is None else seed
        tree = _result_tree.arviz_tree(self, chains=chains, draws=draws, seed=seed, waveforms=waveforms)
        return _result_tree.for_arviz(tree)

    def write_wavs(self, folder: str | os.PathLike[str], *, estimates: bool = False) -> list[Path]:
        """Writes ``fused/<source>.wav`` and, on request, ``estimates/<order>/<source>.wav``; returns the paths.

        Characters of names that are not safe in file names become underscores.

        Parameters
        ----------
        folder
            Created if it does not exist; files of the same names are replaced.
        estimates
            Whether to write the waveforms of every order, too.

        Raises
        ------
        ValueError
            If `estimates` are asked for and were not kept, or `folder` is a file.
        """
        from bayesfuse import audio

        if estimates and self.estimates is None:
            raise ValueError("the estimates of the orders were not kept; separate again and keep them.")
        root = Path(folder)
        if root.exists() and not root.is_dir():
            raise ValueError(f"cannot write into {root}: it is a file; give the name of a folder.")
        files = [f"{name}.wav" for name in _file_names(self.source_names)]
        waveforms = [(root / "fused" / file, x) for file, x in zip(files, self.sources, strict=True)]
        if estimates and self.estimates is not None:
            for label, sources in zip(_file_names(self.order_labels), self.estimates, strict=True):
                waveforms += [(root / "estimates" / label / file, x) for file, x in zip(files, sources, strict=True)]
        for path, waveform in waveforms:
            path.parent.mkdir(parents=True, exist_ok=True)
            audio.write(path, waveform, self.rate)
        return [path for path, _ in waveforms]

    def write_estimates(self, folder: str | os.PathLike[str], name: str, *, prefix: str = "order-") -> list[Path]:
        """Writes every order as a separator of a folder to fuse: sounds, and the free energy beside them.

        Files are ``<prefix><order>/<name>/<source>.wav`` and ``<prefix><order>/<name>/free_energy.nc``, the layout of
        `separators.folder`. The order part of a joint model's free energy, which is of all orders, is left out.

        Parameters
        ----------
        folder
            That of the estimates; created if it does not exist.
        name
            Of the mixture in its folder of mixtures, without extension.
        prefix
            Of the names of the separators.

        Returns
        -------
        list
            The paths of the sounds.

        Raises
        ------
        ValueError
            If the estimates of the orders were not kept.
        """
        from bayesfuse import audio
        from bayesfuse.separators.free_energy_file import NAME, save_free_energy
        from bayesfuse.transforms import transform_from_dict
        from bayesfuse.vbnmf import FreeEnergy

        if self.estimates is None:
            raise ValueError("the estimates of the orders were not kept; separate again and keep them.")
        transform = transform_from_dict(self.transform)
        written = []
        for index, label in enumerate(_file_names(self.order_labels)):
            home = Path(folder) / f"{prefix}{label}" / name
            home.mkdir(parents=True, exist_ok=True)
            for file, waveform in zip(_file_names(self.source_names), self.estimates[index], strict=True):
                written.append(home / f"{file}.wav")
                audio.write(written[-1], waveform, self.rate)
            parts = FreeEnergy(self.energy_frames[index], np.asarray(self.energy_dictionary[index]), np.asarray(0.0))
            save_free_energy(home / NAME, parts, transform)
        return written

    def summary(self) -> str:
        """A plain-text table: the orders, their weights and priors, free energies relative to the best in nats."""
        header, rows = self._table()
        cells = [list(header), *map(list, rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
        lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in cells]
        rule = "-" * len(lines[0])
        return "\n".join([" · ".join(self._facts()), rule, lines[0], rule, *lines[1:], rule, f"({_CAPTION})"])

    def _facts(self) -> list[str]:
        channels = self.mixture.shape[0]
        tempered = self.method in ("joint", "average")  # the weights of the others have no temperature
        return [
            self.method,
            f"{self.duration:.2f} s, {channels} channel{'s' if channels > 1 else ''}, {self.rate} Hz",
            f"effective number of orders {self.effective_models:.2f} of {len(self.order_labels)}",
            *([f"beta {self.beta_per_frame:g} nat per frame"] if tempered else []),
            f"seed {self.seed}",
            f"bayesfuse {self.version}",
        ]

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        weight = "mean weight" if self.weights.ndim == 2 else "weight"
        header = ("order", weight, "prior", "free energy", "per frame")
        columns = zip(self.order_labels, self.mean_weights, self.prior, self.relative_free_energy, strict=True)
        return header, [
            (label, f"{weight:.4f}", f"{prior:.4f}", f"{energy:z.1f}", f"{energy / self.num_frames:z.3f}")
            for label, weight, prior, energy in columns
        ]

    def __repr__(self) -> str:
        weights = "weights per frame" if self.weights.ndim == 2 else "constant weights"
        names = ", ".join(map(repr, self.source_names))
        return (
            f"Result({self.method}: {names} from {self.duration:.2f} s at {self.rate} Hz, "
            f"{len(self.order_labels)} orders, {weights}, {self.effective_models:.2f} effective)"
        )

    def _repr_html_(self) -> str:
        header, rows = self._table()
        players = [_html.Player("mixture", self.mixture, self.rate)]
        players += [_html.Player(name, x, self.rate) for name, x in zip(self.source_names, self.sources, strict=True)]
        bars = [_html.Row(cells, float(weight)) for cells, weight in zip(rows, self.mean_weights, strict=True)]
        return _html.card("bayesfuse result", [*self._facts(), _CAPTION], header, bars, players)


def _file_names(names: Sequence[str]) -> list[str]:
    """File names without the characters that some file system refuses, different ones for different names."""
    taken: set[str] = set()
    result = []
    for name in names:
        base = re.sub(r"[^\w=+.-]+", "_", name).strip(".") or "_"
        candidate, count = base, 1
        while candidate.casefold() in taken:
            count += 1
            candidate = f"{base}-{count}"
        taken.add(candidate.casefold())
        result.append(candidate)
    return result

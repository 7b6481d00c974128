"""One split of an experiment's records as arrays: what the papers' tables are computed from.

Frames of all mixtures stand one after the other, so that rules for frames are one call. Of the scalar products between
models only those within a kind (ML-NMF, VB-NMF) are kept, around the reference and in single precision, which loses
nothing of small errors: 870 training mixtures take some 50 MB.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import _common as common
import numpy as np

from bayesfuse import lazy_records
from bayesfuse._fingerprint import content_hash
from bayesfuse.grams import Gram, sdr, squared_error
from bayesfuse.records import Record

KINDS = ("ML-NMF", "VB-NMF")


class Corpus(NamedTuple):
    """The mixtures of a split, separated by all models, and their first scored source."""

    names: tuple[str, ...]
    utterances: tuple[str, ...]
    noises: tuple[str, ...]
    snrs: tuple[float, ...]
    models: tuple[str, ...]
    whole: Gram  # [example], all models
    seconds: np.ndarray  # [example, model]
    recording: np.ndarray  # [frame], the example of each frame
    energy: np.ndarray  # [frame]
    cross: np.ndarray  # [frame, model], <s, e_m> with the errors e_m = s_m - s
    errors: dict[str, np.ndarray]  # by kind, <e_m, e_m'> [frame, model, model]
    free_energy: np.ndarray  # [frame, model], nats; NaN for models that have none

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Corpus":
        """Read from records one at a time; their bands are not needed."""
        about: list[tuple[str, str, str, float]] = []
        models: tuple[str, ...] = ()
        parts: dict[str, list[Any]] = {}
        for index, record in enumerate(records):
            if models not in ((), record.models):
                raise ValueError(f"{record.name} was separated by {record.models}, other mixtures by {models}.")
            models = record.models
            noise = str(record.metadata.get("noise", record.name))
            about.append((record.name, record.group, noise, float(record.metadata.get("snr_db", np.nan))))
            frames = record.free_energy.shape[-1]
            fields = {
                "recording": np.full(frames, index),
                "energy": lazy_records.energy(record, "frames")[0],
                "cross": lazy_records.cross(record, "frames")[0].astype(np.float32),
                "free_energy": record.frame_energy.T,
                "seconds": record.seconds[None],
            }
            errors = lazy_records.errors(record, "frames")[0].astype(np.float32)
            for kind in KINDS:
                chosen = positions(models, kind)
                fields[f"errors of {kind}"] = errors[:, chosen][:, :, chosen]
            fields |= {f"whole {i}": np.asarray(x, np.float64)[:1] for i, x in enumerate(_fields(record.whole))}
            for name, field in fields.items():
                parts.setdefault(name, []).append(field)
        if not about:
            raise ValueError("there are no records of this split; run the experiment with all of its splits.")
        joined = {name: np.concatenate(values) for name, values in parts.items()}
        texts = dict(
            zip(("names", "utterances", "noises", "snrs"), map(np.array, zip(*about, strict=True)), strict=True)
        )
        return cls.unpacked(joined | texts | {"models": np.array(models)})

    def packed(self) -> dict[str, np.ndarray]:
        """The arrays, to be written to a file."""
        plain = ("names", "utterances", "noises", "snrs", "models", "seconds", "recording", "energy", "cross")
        arrays = {name: np.asarray(getattr(self, name)) for name in (*plain, "free_energy")}
        arrays |= {f"errors of {kind}": values for kind, values in self.errors.items()}
        return arrays | {f"whole {i}": np.asarray(x) for i, x in enumerate(_fields(self.whole))}

    @classmethod
    def unpacked(cls, arrays: Mapping[str, np.ndarray]) -> "Corpus":
        """From what `packed` returned."""
        texts = {name: tuple(arrays[name].tolist()) for name in ("names", "utterances", "noises", "snrs", "models")}
        rest = {name: arrays[name] for name in ("seconds", "recording", "energy", "cross", "free_energy")}
        whole = Gram(*(arrays[f"whole {i}"] for i in range(3)))
        return cls(**texts, **rest, whole=whole, errors={kind: arrays[f"errors of {kind}"] for kind in KINDS})

    @property
    def key(self) -> str:
        """Hash of all that rules learn from: the same for the same numbers, whatever their files look like."""
        arrays = (*_fields(self.whole), self.recording, self.energy, self.cross, *self.errors.values())
        return content_hash([self.names, self.models], map(np.asarray, (*arrays, self.free_energy)))

    def select(self, names: Iterable[str]) -> "Corpus":
        """The mixtures of some names, in the order in which they are here, without their frames."""
        wanted = set(names)
        chosen = np.flatnonzero([name in wanted for name in self.names])
        texts = {f: tuple(getattr(self, f)[i] for i in chosen) for f in ("names", "utterances", "noises", "snrs")}
        inside = np.isin(self.recording, chosen)
        fields = {name: getattr(self, name)[inside] for name in ("energy", "cross", "free_energy")}
        return self._replace(
            **texts, **fields, whole=self.whole.take(chosen), seconds=self.seconds[chosen],
            recording=np.searchsorted(chosen, self.recording[inside]),
            errors={kind: values[inside] for kind, values in self.errors.items()},
        )  # fmt: skip

    def orders(self, kind: str) -> tuple[int, ...]:
        """The orders of the models of a kind, as their labels say."""
        return tuple(int(self.models[m].removeprefix(kind)) for m in positions(self.models, kind))

    def products(self, kind: str) -> Gram:
        """Scalar products [example] of the models of a kind."""
        chosen = positions(self.models, kind)
        return Gram(self.whole.energy, self.whole.cross[:, chosen], self.whole.gram[:, chosen][:, :, chosen])

    def frames(self, kind: str) -> Gram:
        """Scalar products [frame] of the models of a kind, float64."""
        return lazy_records.from_errors(self.energy, self.cross[:, positions(self.models, kind)], self.errors[kind])

    def energies(self, kind: str) -> np.ndarray:
        """Free energies [frame, model] of the models of a kind, in nats."""
        return np.asarray(self.free_energy[:, positions(self.models, kind)], np.float64)

    def totals(self, kind: str) -> np.ndarray:
        """Free energies [example, model] of the utterance; dictionaries are fixed and have no part of it."""
        return self.sums(self.energies(kind))

    @property
    def lengths(self) -> np.ndarray:
        """Number of frames of each mixture."""
        return np.bincount(self.recording)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums [example, ...] over the frames of each mixture of values [frame, ...]."""
        return np.add.reduceat(values, np.cumsum(self.lengths) - self.lengths, axis=0)

    def padded(self, values: np.ndarray) -> np.ndarray:
        """Values [frame, ...] as [example, frame, ...], with zeros after the last frame of shorter mixtures."""
        lengths = self.lengths
        found = np.zeros((lengths.size, lengths.max(), *values.shape[1:]), values.dtype)
        found[np.arange(lengths.max()) < lengths[:, None]] = values
        return found

    def singles(self, kind: str) -> np.ndarray:
        """SDR [example, model] of the models of a kind, in dB."""
        g = self.products(kind)
        return np.stack([np.asarray(sdr(row, g)) for row in np.eye(g.num_models)], axis=1)

    def constant(self, kind: str, weights: np.ndarray) -> np.ndarray:
        """SDR [example] of weights [model] or [example, model], in dB: exactly that of the fused waveform."""
        return np.asarray(sdr(weights, self.products(kind)))

    def varying(self, kind: str, weights: np.ndarray) -> np.ndarray:
        """SDR [example] of weights [frame, model], in dB, of the frames: the fused waveform has this or more.

        See `bayesfuse.grams`: overlap-add cannot increase the error.
        """
        error = self.sums(np.asarray(squared_error(weights, self.frames(kind))))
        return 10.0 * np.log10(self.sums(self.energy) / error)

    def interval(self, values: np.ndarray) -> common.Estimate:
        """Mean of values [example] with its interval, clustered by utterance and noise recording."""
        return common.clustered_mean(np.asarray(values).tolist(), self.utterances, self.noises, strata=self.snrs)


def positions(models: tuple[str, ...], kind: str) -> list[int]:
    """Where the models of a kind are."""
    return [m for m, label in enumerate(models) if label.rpartition(" ")[0] == kind]


def _fields(g: Gram) -> tuple[Any, Any, Any]:
    return g.energy, g.cross, g.gram

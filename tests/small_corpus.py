"""Records of a small experiment whose truth is known: gains of fusion, a criterion that predicts, silent mixtures."""

import numpy as np
from small_records import BANDS, RATE, TRANSFORM

from bayesfuse.grams import gram, sdr
from bayesfuse.records import Record, open_records, record_path, write_record

MODELS = ("VB-NMF 2", "VB-NMF 8", "VB-NMF 32", "ML-NMF 8")
SNRS = (-6, 0, 6)


def make_record(
    name: str,
    split: str,
    snr: int,
    group: str,
    *,
    seed: int,
    samples: int = 400,
    trust: float = 1.0,
    bands: bool = True,
) -> tuple[Record, np.ndarray, np.ndarray]:
    """A record, its reference [source, sample] and estimates [model, source, sample].

    Errors of the models are independent and of random size, so that averages gain. Free energies of the first three
    are per frame minus the frame's squared error in `trust` times its unit, plus noise of the seed.
    """
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(2, samples))
    size = 10.0 ** (-(snr + rng.uniform(-2.0, 2.0, len(MODELS))) / 20.0)
    estimates = truth + size[:, None, None] * rng.normal(size=(len(MODELS), *truth.shape))
    frames, whole = gram(truth, estimates, transform=TRANSFORM), gram(truth, estimates)
    errors = frames.energy[..., None] + np.einsum("sfmm->sfm", frames.gram) - 2 * frames.cross
    energy = -trust * errors[0].T - 50.0 + rng.normal(size=(len(MODELS), frames.energy.shape[1]))
    terms = np.stack([energy, np.zeros_like(energy), np.zeros_like(energy)], axis=1)
    terms[3:] = np.nan
    terms = terms.astype(np.float32).astype(np.float64)
    values = np.stack([np.asarray(sdr(row, whole)) for row in np.eye(len(MODELS))])
    record = Record(
        name=name,
        split=split,
        group=group,
        rate=RATE,
        metadata={"snr_db": snr, "speaker": group[0], "nested": {"a": 1}},
        models=MODELS,
        orders=np.array([2, 8, 32, 8]),
        sources=("speech", "noise"),
        whole=whole,
        frames=frames,
        bands=gram(truth, estimates, transform=TRANSFORM, bands=BANDS) if bands else None,
        terms=("likelihood", "activations of speech", "activations of noise"),
        free_energy=terms,
        dictionary_energy=np.zeros(len(MODELS)),
        total_free_energy=terms.sum((1, 2)),
        likelihood=rng.normal(size=(len(MODELS), BANDS.count, terms.shape[-1])) if bands else None,
        scores={"sdr": values, "si_sdr": values - 0.5},
        mixture_scores={"sdr": np.full(2, float(snr)), "si_sdr": np.full(2, float(snr))},
        seconds=rng.uniform(size=len(MODELS)),
        first_frame=2,
        num_frames=terms.shape[-1] + 5,
        transform=TRANSFORM.to_dict(),
        seed=7,
        versions={"bayesfuse": "0"},
        key=f"key {seed}",
    )
    return record, truth, estimates


def make_records(train: int = 6, test: int = 9, **options) -> list[Record]:
    """Records of a training and a test split, three SNRs, two mixtures of each group."""
    found = []
    for number in range(train + test):
        split = "train" if number < train else "test"
        name = f"{split}/{number:02d}"
        group, samples = f"{'ab'[number % 2]}{number // 2}", 300 + 40 * (number % 3)
        record, _, _ = make_record(name, split, SNRS[number % 3], group, seed=number, samples=samples, **options)
        found.append(record)
    return found


def write_records(folder, found):
    """The records as those of files."""
    for record in found:
        write_record(record, record_path(folder, record.name))
    return open_records(folder)

"""Sounds for the report of an experiment: from its data set, and the estimates where they were kept."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from bayesfuse import audio, records
from bayesfuse.datasets import open_dataset
from bayesfuse.report import Sounds

_MARGIN = 0.25  # seconds around the scored stretch


def experiment_sounds(folder: str | os.PathLike[str], data: str | os.PathLike[str]) -> Callable[[str], Sounds]:
    """A function from a mixture's name to what can be heard of it, for `report.write_report`.

    Parameters
    ----------
    folder
        Of the experiment.
    data
        Where its data set is.

    Raises
    ------
    FileNotFoundError
        If there is no data set, or the folder holds no experiment.
    """
    root = Path(folder)
    index = records.read_index(root)
    if index is None:
        raise FileNotFoundError(f"{root} holds no experiment; give the folder that `bayesfuse experiment` wrote.")
    about = index["config"]["data"]
    mixtures = open_dataset(about["kind"], data, **about["options"])
    places = {name: place for place, name in enumerate(mixtures.names)}

    def sounds(name: str) -> Sounds:
        if name not in places:
            raise ValueError(f"{data} has no mixture {name}; it is not the data set of the experiment in {root}.")
        item = mixtures[places[name]]
        if about["target"]:
            item = item.versus_rest(about["target"], about["rest"])
        margin = round(_MARGIN * item.rate)
        heard = slice(max(0, item.segment[0] - margin), item.segment[1] + margin)

        def cut(waveform: Float[np.ndarray, "channel sample"]) -> Float[np.ndarray, "channel heard"]:
            return waveform[:, heard]

        estimates: dict[str, dict[str, np.ndarray]] = {}
        record = records.read_record(records.record_path(root, name), bands=False)
        for model in record.models:
            files = {s: records.estimate_path(root, model, name, s) for s in record.sources}
            if all(path.is_file() for path in files.values()):
                estimates[model] = {source: cut(audio.read(path)[0]) for source, path in files.items()}
        if len(estimates) < len(record.models):  # what is fused needs all of them
            estimates = {}
        return Sounds(item.rate, cut(item.mixture), {s: cut(w) for s, w in item.sources.items()}, estimates)

    return sounds

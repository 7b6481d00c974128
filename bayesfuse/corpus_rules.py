"""Fusion rules on the records of a corpus, learned on one split and applied to another, and what free energies tell.

Arithmetic on scalar products: no audio is read. Weights are constant over a mixture, so that the SDR is exactly that of
the fused waveform.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats

from bayesfuse._labelled import DataArray, Dataset, DataTree
from bayesfuse.bayesian import learn_vb
from bayesfuse.corpus_results import example_columns, gram_of, tidy
from bayesfuse.fusion import best_weights, mean_weights, select_weights
from bayesfuse.grams import Gram, sdr
from bayesfuse.ladder import best_single
from bayesfuse.scores import Table
from bayesfuse.simplex_qp import oracle_weights
from bayesfuse.static import static_weights

BEST_SINGLE = "best single (training)"
STATIC = "static weights"
SELECTION = "VB selection"
AVERAGE = "VB average"
ORACLES = ("oracle selection", "oracle fusion")


class _Part(NamedTuple):
    """One source of the mixtures of a split."""

    g: Gram  # [example]
    energy: Float[np.ndarray, "example model"]  # nats; NaN for models without
    frames: Float[np.ndarray, " example"]

    def take(self, which: Bool[np.ndarray, " example"]) -> "_Part":
        return _Part(self.g.take(which), self.energy[which], self.frames[which])


def apply_rules(tree: DataTree, *, learn: str | None = "train", apply: str | None = "test", seed: int = 0) -> Dataset:
    """Weights and SDR of the fusion rules that are constant over a mixture.

    The mean, the oracles ([JVR16] III.A and II.E); where models have free energies, selection by them and, with
    training mixtures, their average with learned prior and temperature (eqs. 16-20, over these models); with training
    mixtures also the single model that is best there, and static weights (eq. 12). What is learned maximises the mean
    SDR, source by source.

    Parameters
    ----------
    tree
        From `corpus_results`.
    learn
        Split to learn on; None leaves out the rules that learn.
    apply
        Split to apply the rules to; None for all mixtures.
    seed
        Of the searches.

    Returns
    -------
    xarray.Dataset
        `weights` [example, source, rule, model] and `sdr` [example, source, rule] in dB, NaN for a silent source.

    Raises
    ------
    ValueError
        If a split has no mixture, or a source is silent in all mixtures to learn on.
    """
    import xarray as xr

    names, target = tree["scores"]["source"].values, _chosen(tree, apply)
    models = tree["scores"]["model"].values
    weights, values = [], []
    rules: dict[str, Any] = {}
    for source in names:
        train = None if learn is None else _part(tree, _chosen(tree, learn), source)
        part = _part(tree, target, source)
        rules = _rules(train, part, seed)
        found = np.stack([np.broadcast_to(w, part.g.cross.shape) for w in rules.values()], axis=1)
        weights.append(found)
        expanded = Gram(*(np.asarray(field)[:, None] for field in (part.g.energy, part.g.cross, part.g.gram)))
        ratio = np.asarray(sdr(found, expanded))
        values.append(np.where(part.g.energy[:, None] > 0, ratio, np.nan))
    variables: dict[str, Any] = {
        "weights": (("example", "source", "rule", "model"), np.stack(weights, axis=1)),
        "sdr": (("example", "source", "rule"), np.stack(values, axis=1), {"units": "dB"}),
    }
    coordinates = {"source": names, "rule": list(rules), "model": models}
    about = tree["examples"].to_dataset().sel(example=target).coords
    return xr.Dataset(variables, {**coordinates, **{name: about[name] for name in about}})


def rule_table(tree: DataTree, applied: Dataset) -> Table:
    """The table of `scores` of what `apply_rules` returned: the rules are systems, the metric is sdr."""
    return tidy(tree, [("sdr", applied["sdr"], "rule")])


def model_table(tree: DataTree, names: Any) -> Table:
    """The table of `scores` of the named mixtures: sdr of every model, and of the mixture where it was recorded."""
    g = gram_of(tree["whole"].to_dataset().sel(example=names))
    energy = tree["whole"]["energy"].sel(example=names)
    found = np.stack([np.asarray(sdr(row, g)) for row in np.eye(g.num_models)], axis=-1)
    labels = {"system": tree["scores"]["model"].values}
    values = energy.expand_dims(labels, axis=-1).copy(data=np.where(g.energy[..., None] > 0, found, np.nan))
    wanted = [("sdr", values, "system")]
    if "sdr" in tree["mixture_scores"]:
        nothing = tree["mixture_scores"]["sdr"].sel(example=names)
        wanted.insert(0, ("sdr", nothing.expand_dims(system=["mixture"]), "system"))
    return tidy(tree, wanted)


def criterion_table(tree: DataTree, *, metric: str = "sdr", apply: str | None = "test") -> Table:
    """How well free energies tell which model separates best: one row per mixture and source.

    Parameters
    ----------
    metric
        Of the quality.
    apply
        Split; None for all mixtures.

    Returns
    -------
    pandas.DataFrame
        `name`, `source`, coordinates of the mixtures, then rank correlations `spearman` and `kendall` over the models
        that have a free energy (NaN for fewer than three of them, or without scores), the `best` model and the one
        `chosen` by the largest free energy, and how much is lost by the choice, `loss` in dB.

    Raises
    ------
    ValueError
        If the split has no mixture, the metric was not recorded, or no model has free energies.
    """
    scores = tree["scores"].to_dataset()
    if metric not in scores:
        raise ValueError(f"criterion_table got metric={metric!r}; recorded are {', '.join(map(str, scores))}.")
    names = _chosen(tree, apply)
    energies = energy_per_frame(tree, names)
    models = energies["model"].values
    if not models.size:
        raise ValueError("criterion_table got models without free energies; there is no criterion to look at.")
    values = scores[metric].sel(example=names, model=models).transpose("example", "source", "model").values
    rows = []
    for name, energy, each in zip(names, energies.values, values, strict=True):
        for source, quality in zip(scores["source"].values, each, strict=True):
            rows.append((name, source, *_criterion(energy, quality, models)))
    columns = ["name", "source", "spearman", "kendall", "best", "chosen", "loss"]
    table = pd.DataFrame(rows, columns=columns)
    return table[columns[:2]].join(example_columns(tree), on="name").join(table[columns[2:]])


def _criterion(energy: Any, quality: Any, models: Any) -> tuple[float, float, str, str, float]:
    if not np.isfinite(quality).all():
        return np.nan, np.nan, "", "", np.nan
    best, chosen = int(np.argmax(quality)), int(np.argmax(energy))
    varied = len(models) > 2 and np.ptp(quality) > 0 and np.ptp(energy) > 0
    tests: Any = (stats.spearmanr, stats.kendalltau)
    spearman, kendall = (float(test(energy, quality).statistic) if varied else np.nan for test in tests)
    return spearman, kendall, str(models[best]), str(models[chosen]), float(quality[best] - quality[chosen])


def _rules(train: _Part | None, part: _Part, seed: int) -> dict[str, Any]:
    """Weights of all rules that there are, [model] or [example, model]."""
    models = part.g.num_models
    known = np.asarray(np.isfinite(part.energy).all(axis=0))
    found: dict[str, Any] = {"mean": mean_weights(models)}
    if train is not None:
        train = train.take(np.asarray(train.g.energy) > 0)
        if not train.g.energy.size:
            raise ValueError("apply_rules got a source that is silent in all mixtures to learn on; use learn=None.")
        found[BEST_SINGLE] = np.eye(models)[int(best_single(train.g))]
        found[STATIC] = static_weights(train.g, loss="sdr", seed=seed)
    if known.sum() > 1:
        found[SELECTION] = _widened(select_weights(part.energy[:, known]), known)
        if train is not None and np.isfinite(train.energy[:, known]).all():
            among = Gram(train.g.energy, train.g.cross[:, known], train.g.gram[:, known][..., known])
            rule, _ = learn_vb(among, train.energy[:, known], loss="sdr", num_frames=train.frames, seed=seed)
            found[AVERAGE] = _widened(rule.weights(part.energy[:, known], num_frames=part.frames), known)
    return found | dict(zip(ORACLES, (best_weights(part.g), oracle_weights(part.g)), strict=True))


def _widened(weights: Any, known: Bool[np.ndarray, " model"]) -> Float[np.ndarray, "example model"]:
    """Weights over all models from those over some."""
    wide = np.zeros((len(weights), known.size))
    wide[:, known] = weights
    return wide


def _chosen(tree: DataTree, split: str | None) -> Any:
    """Names of the mixtures of a split."""
    node = tree["scores"]
    names = node["example"].values
    chosen = names if split is None else names[node["split"].values == split]
    if not chosen.size:
        splits = ", ".join(dict.fromkeys(node["split"].values.tolist()))
        raise ValueError(f"no mixture is of the split {split!r}; there are {splits}.")
    return chosen


def energy_per_frame(tree: DataTree, names: Any) -> DataArray:
    """Free energies [example, model] of the named mixtures in nats per frame of the scored stretch.

    Dictionaries included; of the models that have free energies for all of the mixtures.
    """
    energies = tree["free_energy"]["scored"].sel(example=names).transpose("example", "model")
    values = _energies(tree, names) / tree["examples"]["frames"].sel(example=names).values[:, None]
    return energies.copy(data=values)[:, np.isfinite(values).all(axis=0)]


def _energies(tree: DataTree, names: Any) -> Float[np.ndarray, "example model"]:
    """Free energies of the scored stretch, dictionaries included, in nats."""
    node = tree["free_energy"].to_dataset()[["scored", "dictionary"]].sel(example=names)
    return np.asarray((node["scored"] + node["dictionary"]).transpose("example", "model").values, np.float64)


def _part(tree: DataTree, names: Any, source: Any) -> _Part:
    g = gram_of(tree["whole"].to_dataset().sel(example=names, source=source))
    frames = tree["examples"]["frames"].sel(example=names).values.astype(np.float64)
    return _Part(g, _energies(tree, names), frames)

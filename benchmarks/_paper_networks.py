"""The networks of [JVR16] VI.H on mini-chime: which there are, and their SDR on every test mixture.

The networks learn from power spectra, which records do not hold, so that they work on the separations of
`_separations.py`: the same mixtures, kinds of dictionaries and models as in `mini_chime.toml`. Scores are kept in the
cache as soon as they are there; networks and features are those of `_networks.py`.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import _common as common
import _networks
import numpy as np
from _networks import KINDS, TRANSFORM, Networks, Variant, feature_config, inputs_of, score, utterance
from _separations import Separations

from bayesfuse import neural
from bayesfuse._compile_cache import compile_cache
from bayesfuse.datasets import MiniChime
from bayesfuse.grams import gram
from bayesfuse.neural import NetworkConfig
from bayesfuse.simplex_qp import oracle_weights

KIND = "ML-NMF"
ORACLE = "oracle fusion, time-varying"
APART = """The networks' separations learn the noise before the utterance only, those of the records also behind it, and
are about 0.2 dB better: comparisons of networks with other rules on records are no finer than that. `fusion_ladder.py`
compares all on the same separations."""
# What scores depend on besides settings.
CODE = ("_principal", "_training", "features", "network_costs", "neural", "transforms", "weighted_sum")
# Components are fitted to every eighth frame: of 14,000 numbers per frame, they take minutes as it is.
QERB = {"transform": "qerb", "stride": 8}
BEST = "as the paper"
VARIANTS = {
    BEST: Variant(QERB, NetworkConfig()),
    "mixture only": Variant(QERB | {"inputs": "mixture"}, NetworkConfig()),
    "estimates only": Variant(QERB | {"inputs": "estimates"}, NetworkConfig()),
    "no context": Variant(QERB | {"context": 0}, NetworkConfig()),
    "context of 5": Variant(QERB | {"context": 5}, NetworkConfig()),
}


class Setting(NamedTuple):
    """A network: what it is told, a name among `VARIANTS`, and its architecture and cost."""

    variant: str
    config: NetworkConfig


class Scores(NamedTuple):
    """SDR of fused waveforms on the utterance, in dB."""

    names: tuple[str, ...]
    networks: list[np.ndarray]  # [example] of every setting
    oracle: np.ndarray  # [example], the oracle per frame
    inputs: dict[str, int]  # by variant, numbers per frame that networks get


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the scripts that train networks."""
    parser.add_argument("--quick", action="store_true", default=None, help="score the quick test mixtures only")
    parser.add_argument("--threads", type=int, default=2, help="mixtures separated at a time (default: 2)")
    parser.add_argument("--epochs", type=int, default=30, help="most epochs of a network (default: 30)")
    parser.add_argument("--units", type=int, default=1792, help="units of a hidden layer (default: 1792, the paper's)")


def scores(options: argparse.Namespace, cache: Path, settings: Sequence[Setting]) -> Scores:
    """SDR of networks on the test mixtures, from the cache, or trained and scored now."""
    separations = Separations(MiniChime(options.data), cache, threads=options.threads)
    return scores_on(separations, options, cache, settings)


def scores_on(
    separations: Separations, options: argparse.Namespace, cache: Path, settings: Sequence[Setting]
) -> Scores:
    """As `scores`, on given separations."""
    names = tuple(separations.data.mixtures("test", options.quick)[: options.limit].names)
    store = common.Records(cache / "papers" / "network-scores.jsonl")
    code = common.fingerprint(
        _networks.__file__, separations.folder.name, f"{options.limit}/{options.epochs}", only=CODE
    )

    def key(setting: Setting, name: str) -> str:
        features = feature_config(VARIANTS[setting.variant], separations.data.rate).to_dict()
        text = json.dumps([setting.variant, features, setting.config.to_dict()], sort_keys=True)
        return f"{code}/{hashlib.sha256(text.encode()).hexdigest()[:16]}/{name}"

    trainer = Networks(separations, options, cache, VARIANTS)
    for variant in dict.fromkeys(setting.variant for setting in settings):
        wanted = [setting for setting in dict.fromkeys(settings) if setting.variant == variant]
        mine = [setting for setting in wanted if any(key(setting, name) not in store for name in names)]
        if not mine:
            continue
        with compile_cache(cache / "programs"):
            learned = trainer.fit(variant, KIND, [setting.config for setting in mine])
            for item in separations.load("test", options.quick, options.limit):
                told = learned[0].pipeline(inputs_of(item, KIND))
                per_frame = gram(
                    utterance(item, item.speech), utterance(item, item.estimates[KINDS[KIND]]), transform=TRANSFORM
                )
                best = score(item, KIND, np.asarray(oracle_weights(per_frame)).T)
                for setting, found in zip(mine, learned, strict=True):
                    weights = neural.frame_weights(found.network, told)[:, 0, 0]
                    record = {"sdr": score(item, KIND, weights.T), "oracle": best, "inputs": told.shape[1]}
                    store.append({"key": key(setting, item.name), **record})
    rows = {setting: [store[key(setting, name)] for name in names] for setting in settings}
    inputs = {setting.variant: row[0]["inputs"] for setting, row in rows.items()}
    levels = [np.array([record["sdr"] for record in rows[setting]]) for setting in settings]
    return Scores(names, levels, np.array([record["oracle"] for record in rows[settings[0]]]), inputs)

"""Bayesian averaging of source separators: from several guesses of a sound to the best one, with its uncertainty.

>>> import bayesfuse
>>> result = bayesfuse.separate(mixture, rate, sources={"speech": recordings, "noise": "learn"},
...                             orders={"speech": [2, 4, 8, 16], "noise": 32})
>>> result.source("speech"), result.weights, result.free_energy

Every name is loaded when it is first used, so that importing the package costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bayesfuse._version import __version__

if TYPE_CHECKING:
    from bayesfuse.audio import read as read
    from bayesfuse.audio import write as write
    from bayesfuse.bayesian import learn_vb as learn_vb
    from bayesfuse.bss_eval import bss_eval_images as bss_eval_images
    from bayesfuse.bss_eval import bss_eval_sources as bss_eval_sources
    from bayesfuse.bss_eval import bss_eval_v4 as bss_eval_v4
    from bayesfuse.cross_validation import cross_validate as cross_validate
    from bayesfuse.dictionary import Dictionary as Dictionary
    from bayesfuse.dictionary import train_dictionary as train_dictionary
    from bayesfuse.distributions import GeneralizedInverseGaussian as GeneralizedInverseGaussian
    from bayesfuse.estimates import draw as draw
    from bayesfuse.estimates import moments as moments
    from bayesfuse.experiments import load_config as load_config
    from bayesfuse.experiments import run_experiment as run_experiment
    from bayesfuse.fusion import mean_weights as mean_weights
    from bayesfuse.fusion import select_weights as select_weights
    from bayesfuse.fusion import vb_weights as vb_weights
    from bayesfuse.gig import Gig as Gig
    from bayesfuse.grams import Bands as Bands
    from bayesfuse.grams import Gram as Gram
    from bayesfuse.grams import gram as gram
    from bayesfuse.inference import Fit as Fit
    from bayesfuse.inference import fit as fit
    from bayesfuse.metrics import sdr as sdr
    from bayesfuse.metrics import si_sar as si_sar
    from bayesfuse.metrics import si_sdr as si_sdr
    from bayesfuse.metrics import si_sir as si_sir
    from bayesfuse.nmf import NMF as NMF
    from bayesfuse.records import open_records as open_records
    from bayesfuse.results import Result as Result
    from bayesfuse.rules import load_rule as load_rule
    from bayesfuse.separation import separate as separate
    from bayesfuse.separators.contract import Separation as Separation
    from bayesfuse.separators.ml_nmf import ml_nmf as ml_nmf
    from bayesfuse.separators.vb_nmf import Settings as Settings
    from bayesfuse.separators.vb_nmf import joint_vb_nmf as joint_vb_nmf
    from bayesfuse.separators.vb_nmf import vb_nmf as vb_nmf
    from bayesfuse.simplex_qp import oracle_weights as oracle_weights
    from bayesfuse.static import static_weights as static_weights
    from bayesfuse.transforms import QERB as QERB
    from bayesfuse.transforms import STFT as STFT
    from bayesfuse.vbnmf import FreeEnergy as FreeEnergy
    from bayesfuse.vbnmf import Posterior as Posterior
    from bayesfuse.vbnmf import Prior as Prior
    from bayesfuse.vbnmf import make_prior as make_prior
    from bayesfuse.weighted_sum import fuse as fuse

# Where each public name lives; modules are public too (`bayesfuse.fusion`, ...).
_HOMES = {
    "Bands": "grams",
    "Dictionary": "dictionary",
    "Fit": "inference",
    "FreeEnergy": "vbnmf",
    "GeneralizedInverseGaussian": "distributions",
    "Gig": "gig",
    "Gram": "grams",
    "NMF": "nmf",
    "Posterior": "vbnmf",
    "Prior": "vbnmf",
    "QERB": "transforms",
    "Result": "results",
    "STFT": "transforms",
    "Separation": "separators.contract",
    "Settings": "separators.vb_nmf",
    "bss_eval_images": "bss_eval",
    "bss_eval_sources": "bss_eval",
    "bss_eval_v4": "bss_eval",
    "cross_validate": "cross_validation",
    "draw": "estimates",
    "fit": "inference",
    "fuse": "weighted_sum",
    "gram": "grams",
    "joint_vb_nmf": "separators.vb_nmf",
    "learn_vb": "bayesian",
    "load_config": "experiments",
    "load_rule": "rules",
    "make_prior": "vbnmf",
    "mean_weights": "fusion",
    "ml_nmf": "separators.ml_nmf",
    "moments": "estimates",
    "open_records": "records",
    "oracle_weights": "simplex_qp",
    "read": "audio",
    "run_experiment": "experiments",
    "sdr": "metrics",
    "select_weights": "fusion",
    "separate": "separation",
    "si_sar": "metrics",
    "si_sdr": "metrics",
    "si_sir": "metrics",
    "static_weights": "static",
    "train_dictionary": "dictionary",
    "vb_nmf": "separators.vb_nmf",
    "vb_weights": "fusion",
    "write": "audio",
}
_MODULES = {
    "alignment",
    "audio",
    "bayesian",
    "bss_eval",
    "comparison",
    "corpus_plots",
    "corpus_results",
    "corpus_rules",
    "cross_validation",
    "datasets",
    "dictionary",
    "distributions",
    "estimates",
    "evaluating",
    "evidence",
    "executors",
    "experiment_config",
    "experiments",
    "features",
    "fusing",
    "fusion",
    "gig",
    "grams",
    "inference",
    "inference_data",
    "ladder",
    "mask_networks",
    "masks",
    "metrics",
    "mixture_mapping",
    "model",
    "network_average",
    "network_rule",
    "neural",
    "nmf",
    "objectives",
    "plots",
    "records",
    "report",
    "report_sounds",
    "results",
    "rules",
    "sanity",
    "scores",
    "separation",
    "separators",
    "simplex_qp",
    "special",
    "stacking",
    "static",
    "training",
    "transforms",
    "vbnmf",
    "wiener",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"bayesfuse.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"bayesfuse.{name}")
    raise AttributeError(f"module 'bayesfuse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})

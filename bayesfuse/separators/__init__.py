"""Separators: functions from a waveform to waveforms, one file per method."""

from bayesfuse.separators.contract import Separation, Separator
from bayesfuse.separators.ml_nmf import ml_nmf
from bayesfuse.separators.vb_nmf import Settings, choose_shape, fit_joint, fit_orders, joint_vb_nmf, vb_nmf

__all__ = [
    "Separation",
    "Separator",
    "Settings",
    "choose_shape",
    "fit_joint",
    "fit_orders",
    "joint_vb_nmf",
    "ml_nmf",
    "vb_nmf",
]

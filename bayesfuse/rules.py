"""Learned fusion rules: weights for a mixture from what was learned, and files that hold them.

References
----------
[JVR16] X. Jaureguiberry, E. Vincent and G. Richard, "Fusion methods for speech enhancement and audio source
separation", IEEE/ACM Trans. Audio, Speech, Lang. Process., 24(7), 2016.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from bayesfuse import _netcdf
from bayesfuse._markov import chain_marginals
from bayesfuse._module import Module
from bayesfuse._precision import precision
from bayesfuse._simplex import softmax
from bayesfuse._version import __version__
from bayesfuse.fusion import vb_weights

FORMAT = "bayesfuse fusion rules"
SCHEMA_VERSION = 1

# What the arrays of a `VBRule` may extend over; the model axis leads, as in the weights that `fuse` takes.
_AXES = (("model",), ("model", "frame"), ("model", "frame", "band"))

# Frames per unit of padding.
_BUCKET = 256


def _double(value: Any) -> Float[np.ndarray, "..."]:
    return np.asarray(value, np.float64)


class StaticRule(Module):
    """The same weights for every mixture ([JVR16] III).

    Attributes
    ----------
    learned
        Weights [model].
    separators
        Names of the models, in the order of the weights.
    source
        Name of the source the weights are for; empty if for all.
    """

    learned: Float[np.ndarray, " model"] = eqx.field(converter=_double)
    separators: tuple[str, ...] = eqx.field(static=True, converter=tuple)
    source: str = eqx.field(static=True, default="")

    def __check_init__(self) -> None:
        _check_separators(self)

    @property
    def num_models(self) -> int:
        """Number of models M."""
        return self.learned.size

    def weights(self) -> Float[np.ndarray, " model"]:
        """The weights, for `fuse`."""
        return self.learned

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the rule to a netCDF file, whole or not at all; `load_rule` reads it."""
        save_rules([self], path)


class VBRule(Module):
    """Weights from free energies: softmax(log pi_m + L_m / beta) ([JVR16] eqs. 18 and 21).

    Attributes
    ----------
    log_prior
        log pi [model], or [model, band] if every band has a prior of its own; -inf excludes a model.
    beta
        Temperature in nats per frame: a number; one per term of the free energy, [term]; one per band, [band];
        or [term, band]. 0 selects the model of the largest free energy, inf ignores the free energy.
    stickiness
        rho in [0, 1) of a chain of models over the frames, see `weights`.
    axes
        What the weights extend over: ("model",), ("model", "frame") or ("model", "frame", "band").
    per_term
        Free energies come in terms, with a leading axis.
    separators
        Names of the models, in their order; empty if they have none.
    source
        Name of the source the rule is for; empty if for all.
    """

    log_prior: Float[np.ndarray, "model *band"] = eqx.field(converter=_double)
    beta: Float[np.ndarray, "..."] = eqx.field(converter=_double)
    stickiness: float = eqx.field(static=True, default=0.0, converter=float)
    axes: tuple[str, ...] = eqx.field(static=True, default=("model",), converter=tuple)
    per_term: bool = eqx.field(static=True, default=False)
    separators: tuple[str, ...] = eqx.field(static=True, default=(), converter=tuple)
    source: str = eqx.field(static=True, default="")

    def __check_init__(self) -> None:
        _check_separators(self)
        if self.axes not in _AXES:
            raise ValueError(f"VBRule got axes={self.axes}; expected one of {_AXES}.")
        if self.log_prior.ndim == 2 and len(self.axes) < 3:
            raise ValueError(f"VBRule got a prior of shape {self.log_prior.shape}, but axes={self.axes} have no band.")
        if self.beta.ndim != self.per_term + (self.log_prior.ndim == 2) or (
            self.log_prior.ndim == 2 and self.beta.shape[-1] != self.log_prior.shape[1]
        ):
            raise ValueError(
                f"VBRule got beta of shape {self.beta.shape} with per_term={self.per_term} and a prior of shape "
                f"{self.log_prior.shape}; expected one per term and per band of the prior, where there are such."
            )
        if not (self.beta >= 0).all() or not 0 <= self.stickiness < 1:
            raise ValueError(
                f"VBRule got beta={self.beta} and stickiness={self.stickiness}; expected [0, inf] and [0, 1)."
            )
        if self.stickiness > 0 and "frame" not in self.axes:
            raise ValueError(f"VBRule got stickiness={self.stickiness}, but axes={self.axes} have no frame.")

    @property
    def num_models(self) -> int:
        """Number of models M."""
        return self.log_prior.shape[0]

    def weights(self, free_energy: Float[np.ndarray, "..."], *, num_frames: Any = None) -> Float[np.ndarray, "..."]:
        """The weights of one mixture or several, on the simplex over the models.

        With stickiness rho they are the marginals, by the forward-backward recursions, of a chain of models with
        p(m_1 ... m_N) ∝ prod_n pi_{m_n} exp(L_{m_n,n} / beta) prod_{n>1} (rho [m_{n-1} = m_n] + (1 - rho) / M); at
        rho = 0 these are the weights of eq. 21.

        Parameters
        ----------
        free_energy
            In nats: totals [..., model], per frame [..., model, frame], or per frame and band
            [..., model, frame, band], as `axes` has it; with a leading axis [term, ...] if `per_term`.
        num_frames
            Number of frames of each total, if there is no frame axis.

        Returns
        -------
        array
            Weights of the shape of the free energies, without the axis of the terms, float64.

        Raises
        ------
        ValueError
            If the shape does not fit, a value is NaN or +inf, or `num_frames` is missing.
        """
        values = _double(free_energy)
        rank = len(self.axes) + self.per_term
        if values.ndim < rank or values.shape[-len(self.axes)] != self.num_models:
            raise ValueError(
                f"VBRule got free energies of shape {values.shape}; expected {['...', *self.axes]} with "
                f"{self.num_models} models" + (", and the terms in front." if self.per_term else ".")
            )
        if self.per_term and values.shape[0] != self.beta.shape[0]:
            raise ValueError(
                f"VBRule got free energies of {values.shape[0]} terms, but was learned with {self.beta.shape[0]}."
            )
        if (num_frames is None) != ("frame" in self.axes):
            raise ValueError(
                f"VBRule got num_frames={num_frames} with axes={self.axes}; give the number of frames of each total "
                "for weights per signal, and None for weights per frame."
            )
        if self.log_prior.ndim == 1:
            return self._weights(values, self.log_prior, self.beta, num_frames)
        if values.shape[-1] != self.log_prior.shape[1]:
            raise ValueError(f"VBRule got {values.shape[-1]} bands, but was learned with {self.log_prior.shape[1]}.")
        return np.concatenate(
            [
                self._weights(values[..., b : b + 1], self.log_prior[:, b], self.beta[..., b], num_frames)
                for b in range(values.shape[-1])
            ],
            axis=-1,
        )

    def _weights(self, values: np.ndarray, log_prior: np.ndarray, beta: np.ndarray, num_frames: Any) -> np.ndarray:
        """The weights with a prior [model] and temperatures [] or [term]."""
        if self.per_term:
            if (beta == beta[0]).all():
                # The limits 0 and inf are exact this way.
                values, beta = values.sum(axis=0), beta[:1].reshape(())
            else:
                terms = [np.zeros_like(v) if b == np.inf else v / b for v, b in zip(values, beta, strict=True)]
                values, beta = np.sum(terms, axis=0), np.ones(())
        axis = -len(self.axes)
        if self.stickiness == 0:
            frames = 1 if num_frames is None else num_frames
            return np.asarray(vb_weights(values, log_prior, beta, axis=axis, frames=frames))
        potentials = np.moveaxis(np.asarray(vb_weights(values, log_prior, beta, axis=axis)), axis, 0)
        # Padded with even potentials, which change nothing, to few lengths: every new one is a compilation.
        last = potentials.ndim + axis + 1
        padding = [(0, 0)] * potentials.ndim
        padding[last] = (0, -potentials.shape[last] % _BUCKET)
        potentials = np.pad(potentials, padding, constant_values=1.0)
        with precision(potentials), np.errstate(divide="ignore"):
            marginals = np.asarray(chain_marginals(np.log(potentials), self.stickiness, axis=last))
            marginals = marginals.take(range(values.shape[axis + 1]), axis=last)
            return np.moveaxis(softmax(np.log(np.moveaxis(marginals, 0, -1))), -1, axis)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the rule to a netCDF file, whole or not at all; `load_rule` reads it."""
        save_rules([self], path)


Rule = StaticRule | VBRule


def save_rules(rules: Sequence[Rule], path: str | os.PathLike[str]) -> None:
    """Writes rules, for instance one per source, to one netCDF file, whole or not at all.

    Raises
    ------
    ValueError
        If there is no rule, two are for the same source, a rule does not name its separators, or the folder is missing.
    """
    import xarray as xr

    sources = [rule.source for rule in rules]
    if not rules or len(set(sources)) != len(sources):
        raise ValueError(f"save_rules got rules for the sources {sources}; give one rule per source, at least one.")
    groups = {"/": xr.Dataset(attrs={"format": FORMAT, "schema_version": SCHEMA_VERSION, "version": __version__})}
    for index, rule in enumerate(rules):
        if not rule.separators:
            raise ValueError(
                "save_rules got a rule without names of separators; learn it with separators=(...), so that nobody "
                "applies the file to other separators unknowingly."
            )
        attributes: dict[str, Any] = {"separators": json.dumps(rule.separators), "source": rule.source}
        variables: dict[str, Any] = {}
        if isinstance(rule, StaticRule):
            attributes["kind"] = "static"
            variables["learned"] = (("model",), rule.learned)
        else:
            attributes |= {"kind": "vb", "stickiness": rule.stickiness, "axes": json.dumps(rule.axes)}
            attributes["per_term"] = int(rule.per_term)
            dims = (*(["term"] if rule.per_term else []), *(["prior_band"] if rule.log_prior.ndim == 2 else []))
            variables["log_prior"] = (("model", "prior_band")[: rule.log_prior.ndim], rule.log_prior)
            variables["beta"] = (dims, rule.beta, {"units": "nat per frame"})
        groups[f"/rule{index}"] = xr.Dataset(variables, attrs=attributes)
    _netcdf.write_tree(xr.DataTree.from_dict(groups), Path(path), compress=())


def load_rules(path: str | os.PathLike[str], *, separators: Sequence[str] | None = None) -> dict[str, Rule]:
    """The rules of a file, by the name of their source.

    Parameters
    ----------
    path
        A file of `save_rules` or of a rule's `save`.
    separators
        Names of the separators that the rules are to be applied to, in the order of their estimates. A rule for the
        same ones in another order comes back in this order.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file cannot be read, is something else, is newer than this library, or its rules are for other
        separators.
    """
    tree = _netcdf.read_tree(Path(path))
    _netcdf.check_format(tree, Path(path), FORMAT, SCHEMA_VERSION)
    rules = {}
    try:
        for node in tree.children.values():
            rule = _from_node(node)
            rules[rule.source] = rule if separators is None else _in_order(rule, tuple(separators), path)
    except KeyError as error:
        raise ValueError(f"{path} is incomplete: {error} is missing.") from error
    return rules


def load_rule(path: str | os.PathLike[str], *, separators: Sequence[str] | None = None) -> Rule:
    """The only rule of a file; arguments and errors as those of `load_rules`.

    Raises
    ------
    ValueError
        If the file holds several rules, too.
    """
    rules = load_rules(path, separators=separators)
    if len(rules) != 1:
        raise ValueError(f"{path} holds rules for the sources {sorted(rules)}; use load_rules, and choose one.")
    return next(iter(rules.values()))


def _from_node(node: Any) -> Rule:
    names, source = json.loads(node.attrs["separators"]), str(node.attrs["source"])
    kind = node.attrs["kind"]
    if kind == "static":
        return StaticRule(node["learned"].values, names, source)
    if kind == "vb":
        return VBRule(
            node["log_prior"].values,
            node["beta"].values,
            node.attrs["stickiness"],
            json.loads(node.attrs["axes"]),
            bool(node.attrs["per_term"]),
            names,
            source,
        )
    raise ValueError(f"the file holds a rule of the unknown kind {kind!r}; this bayesfuse knows 'static' and 'vb'.")


def _in_order(rule: Rule, separators: tuple[str, ...], path: Any) -> Rule:
    """The rule with its models in the wanted order."""
    index = positions(path, rule.separators, separators)
    if isinstance(rule, StaticRule):
        return StaticRule(rule.learned[index], separators, rule.source)
    fields = (rule.beta, rule.stickiness, rule.axes, rule.per_term, separators, rule.source)
    return VBRule(rule.log_prior[index], *fields)


def positions(path: Any, learned: Sequence[str], separators: Sequence[str]) -> list[int]:
    """Where the separators are among those that the rule in a file was learned for.

    Raises
    ------
    ValueError
        If they are others.
    """
    if sorted(learned) != sorted(separators):
        missing = [name for name in learned if name not in separators]
        unknown = [name for name in separators if name not in learned]
        raise ValueError(
            f"{path} was learned for the separators {list(learned)}, but is to be applied to {list(separators)}: "
            f"{missing} are missing and {unknown} are unknown to it. Learn a rule for these, or give those estimates."
        )
    return [learned.index(name) for name in separators]


def _check_separators(rule: Any) -> None:
    names = rule.separators
    if names and (len(set(names)) != len(names) or len(names) != rule.num_models or not all(names)):
        raise ValueError(
            f"{type(rule).__name__} got the separators {list(names)} for {rule.num_models} models; expected one name "
            "each, all different."
        )

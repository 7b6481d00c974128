"""Objects that went to another process and back."""

import copy
import dataclasses
import gc
import inspect
import pickle
import pkgutil
import weakref
from importlib import import_module

import equinox as eqx
import jax
import numpy as np
import pytest

import bayesfuse
from bayesfuse import Gram
from bayesfuse._module import Module


def example() -> Gram:
    x = np.random.default_rng(0).normal(size=(3, 8))
    return Gram(np.asarray(x[0] @ x[0]), x[1:] @ x[0], x[1:] @ x[1:].T)


@pytest.mark.parametrize("again", [lambda g: pickle.loads(pickle.dumps(g)), copy.copy, copy.deepcopy])
def test_twins_are_equal_immutable_and_freed(again):
    """Experiments that ran for an hour held every record they had written."""
    original = example()
    twin = again(original)
    assert type(twin) is Gram and jax.tree.structure(twin) == jax.tree.structure(original)
    assert eqx.tree_equal(twin, original)
    with pytest.raises(dataclasses.FrozenInstanceError):
        twin.energy = 0.0
    left = weakref.ref(twin)
    del twin
    gc.collect()
    assert left() is None


def test_settings_that_are_computed_come_back():
    """Fields that are not arguments of the constructor."""
    for module in (bayesfuse.STFT(64, 32), bayesfuse.QERB(8000, 12, 64)):
        twin = pickle.loads(pickle.dumps(module))
        assert eqx.tree_equal(twin, module)
        frames = module.analysis(np.random.default_rng(1).normal(size=200))
        np.testing.assert_array_equal(module.power(frames), twin.power(frames))


def test_all_containers_have_this_base():
    """One that does not would leak in worker processes."""
    names = [
        info.name for info in pkgutil.walk_packages(bayesfuse.__path__, "bayesfuse.") if "__main__" not in info.name
    ]
    classes = {cls for name in names for _, cls in inspect.getmembers(import_module(name), inspect.isclass)}
    ours = {cls for cls in classes if issubclass(cls, eqx.Module) and cls.__module__.startswith("bayesfuse.")}
    assert len(ours) > 30 and all(issubclass(cls, Module) for cls in ours)

"""Fixtures shared by all tests: precisions, golden numbers, and the folder of real recordings."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"

# Compilation inside an example makes single examples slow, hence no deadline. The fixtures below are the same
# for every example of a property, so that sharing one between examples is sound.
hypothesis.settings.register_profile(
    "bayesfuse",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("bayesfuse")


@pytest.fixture(scope="module", autouse=True)
def programs_of_a_file_only() -> Iterator[None]:
    """Frees compiled programs after each file of tests: they share few, and all together take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> type[np.floating]:
    """Both precisions, one after the other."""
    return request.param


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs the test inside a scope in which JAX computes in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """A function from the name of a golden case (`tests/golden/<name>.npz`) to its arrays."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    return load


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the sets of real recordings; tests that need it are skipped where it is absent."""
    candidates = [os.environ.get("BAYESFUSE_DATA"), REPOSITORY.parent / "shared" / "data"]
    for candidate in candidates:
        if candidate is not None and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("no real recordings: set BAYESFUSE_DATA to the folder of the sets, or put them in ../shared/data")

"""Importing the package is cheap, and every public name can be reached."""

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bayesfuse

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = ("numpyro", "arviz", "matplotlib", "xarray", "soundfile", "sklearn")


def loaded_by(statement: str) -> set[str]:
    """The heavy libraries that a fresh interpreter holds after the statement."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return set(json.loads(run.stdout.splitlines()[-1])) & set(HEAVY)


def test_import_loads_nothing_heavy():
    assert loaded_by("import bayesfuse") == set()


def test_the_check_sees_a_heavy_import():
    assert loaded_by("import bayesfuse, soundfile") == {"soundfile"}


def test_every_public_name_resolves():
    assert len(set(bayesfuse.__all__)) == len(bayesfuse.__all__)
    for name in bayesfuse.__all__:
        assert getattr(bayesfuse, name) is not None
    assert set(bayesfuse.__all__) <= set(dir(bayesfuse))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = bayesfuse.no_such_name


def test_version_is_that_of_the_project():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert bayesfuse.__version__ == project["version"]


def test_entry_point_exists():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["bayesfuse"].split(":")
    assert callable(getattr(importlib.import_module(module), function))

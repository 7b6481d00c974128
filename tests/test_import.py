"""Importing the package is cheap, and every public name can be reached."""

import functools
import importlib
import json
import re
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


def test_names_that_are_told_to_users_exist():
    """`bayesfuse.name` of README, help and messages, and where the README's tables say things are."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    code = [file.read_text(encoding="utf-8") for file in (REPOSITORY / "bayesfuse").rglob("*.py")]
    names = {name for text in (readme, *code) for name in re.findall(r"`bayesfuse\.([a-z_.]+\w)", text, re.IGNORECASE)}
    start = readme.index("| weights | learned from | where |")
    table = readme[start : readme.index("\n\n", start)].splitlines()[2:]
    names |= {name for row in table for name in re.findall(r"`([a-z_.]+)`", row.split("|")[-2])}
    assert len(names) > 20
    for name in names:
        functools.reduce(getattr, name.split("."), bayesfuse)


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

"""Imports inside the package flow one way: a module imports from its own layer or from layers below it."""

import ast
import fnmatch
from collections.abc import Iterable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "bayesfuse"

# From the bottom to the top. Names are relative to the package, with shell patterns; the first match counts.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("_*",),
    ("special", "transforms", "audio", "alignment", "tracks", "wiener", "nmf", "dictionary", "metrics"),
    ("bss_eval", "scores", "comparison"),
    ("grams", "simplex_qp", "weighted_sum", "masks", "objectives", "fusion", "static"),
    ("bayesian", "bayesian_problem", "rules", "stacking", "cross_validation", "ladder"),
    (
        "gig",
        "distributions",
        "features",
        "network_costs",
        "training_set",
        "neural",
        "network_average",
        "mixture_mapping",
        "network_rule",
        "mask_networks",
    ),
    ("vbnmf*", "inference*", "estimates", "vb_dictionary", "model", "evidence*"),
    ("separators", "separators.*"),
    ("datasets", "datasets.*", "sources", "results", "record*", "inference_data"),
    ("lazy_records", "corpus_results", "corpus_rules"),
    ("sanity", "examples", "folder_*", "learned_rules", "fusing", "training", "evaluating"),
    ("experiment_*", "executors", "plots", "separation", "corpus_plots", "report*"),
    ("experiments",),
    ("",),  # the package itself: the public names
    ("cli*", "demo", "__main__"),
)

# Fusion knows arrays only: any separator can be fused, and no module about models may leak into the rules.
MODELS = ("nmf", "dictionary", "wiener", "audio", "alignment", "tracks", "bss_eval", "scores", "comparison")
FORBIDDEN = {
    name: MODELS
    for name in (
        "grams",
        "simplex_qp",
        "weighted_sum",
        "objectives",
        "fusion",
        "static",
        "bayesian",
        "rules",
        "stacking",
    )
}


def module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package: Path) -> dict[str, Path]:
    return {module_name(path, package): path for path in sorted(package.rglob("*.py"))}


def layer(name: str) -> int | None:
    if name in ("", "__main__"):
        patterns: Iterable[tuple[int, str]] = [(i, p) for i, row in enumerate(LAYERS) for p in row if p == name]
    else:
        patterns = [(i, p) for i, row in enumerate(LAYERS) for p in row if p and fnmatch.fnmatchcase(name, p)]
    return next((level for level, _ in patterns), None)


def imported(source: str, name: str, is_package: bool, known: Iterable[str]) -> set[str]:
    """Modules of the package, relative to it, that the source of module `name` imports anywhere."""
    known = set(known)
    found: set[str] = set()

    def add(base: str, attribute: str | None) -> None:
        dotted = f"{base}.{attribute}".strip(".") if attribute else base
        found.add(dotted if attribute and dotted in known else base)

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "bayesfuse" or alias.name.startswith("bayesfuse."):
                    add(alias.name.removeprefix("bayesfuse").lstrip("."), None)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = name.split(".") if name else []
                keep = len(parents) - node.level + (1 if is_package else 0)
                base = ".".join([*parents[: max(keep, 0)], *([module] if module else [])])
            elif module == "bayesfuse" or module.startswith("bayesfuse."):
                base = module.removeprefix("bayesfuse").lstrip(".")
            else:
                continue
            for alias in node.names:
                add(base, alias.name)
    return found - {name}


def violations(package: Path) -> list[str]:
    known = modules(package)
    problems = []
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        level = layer(name)
        if level is None:
            problems.append(f"{name} is in no layer: add it to LAYERS")
            continue
        if name == "":
            continue  # the root refers to everything, lazily
        graph[name] = imported(path.read_text(encoding="utf-8"), name, path.name == "__init__.py", known)
        for target in sorted(graph[name]):
            target_level = layer(target)
            if target_level is None or target_level > level:
                problems.append(f"{name} imports {target or 'the package root'}, which lies above it")
            if target in FORBIDDEN.get(name, ()):
                problems.append(f"{name} must not import {target}")
    return problems + [f"import cycle: {' -> '.join(cycle)}" for cycle in cycles(graph)]


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    found: list[list[str]] = []
    finished: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
        elif name not in finished:
            for target in sorted(graph.get(name, ())):
                # A package and its own modules may refer to each other: the package lists what they define.
                if not (name.startswith(f"{target}.") or target.startswith(f"{name}.")):
                    visit(target, [*trail, name])
            finished.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def test_imports_flow_one_way():
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"fusion.py": "import numpy\nfrom bayesfuse._precision import precision"}, None),
        ({"fusion.py": "from bayesfuse.separators import contract"}, "fusion imports separators.contract"),
        ({"special.py": "def f():\n    from bayesfuse.gig import Gig"}, "special imports gig"),
        ({"special.py": "from . import gig"}, "special imports gig"),
        ({"special.py": "import bayesfuse.cli"}, "special imports cli"),
        ({"nmf.py": "from bayesfuse import __version__"}, "nmf imports the package root"),
        ({"fusion.py": "from bayesfuse import nmf"}, "fusion must not import nmf"),
        ({"separators/ml.py": "from ..results import save"}, "separators.ml imports results"),
        ({"separators/ml.py": "from .contract import Separation"}, None),
        ({"separators/__init__.py": "from .contract import Separation"}, None),
        ({"stray.py": ""}, "stray is in no layer"),
        ({"audio.py": "import bayesfuse.nmf", "nmf.py": "import bayesfuse.audio"}, "import cycle"),
    ],
)
def test_the_check_itself(tmp_path, files, expected):
    defaults = ["__init__", "_precision", "special", "gig", "nmf", "results", "cli", "separators/contract"]
    for path, text in {**{f"{name}.py": "" for name in defaults}, **files}.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    problems = violations(tmp_path)
    if expected is None:
        assert problems == []
    else:
        assert any(expected in problem for problem in problems), problems

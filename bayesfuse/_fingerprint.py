"""Hashes by which results are found again: of settings and arrays, of code, of how files look."""

import ast
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def content_hash(about: Any, arrays: Iterable[np.ndarray] = ()) -> str:
    """A hash of a JSON-ready description, and of arrays with their dtypes and shapes."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def code_hash(patterns: Iterable[str]) -> str:
    """A hash of modules of this package, named by patterns of their files, as programs: comments do not count."""
    package = Path(__file__).parent
    files = sorted({file for pattern in patterns for file in package.glob(pattern)})
    digest = hashlib.sha256()
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        digest.update(f"{file.relative_to(package).as_posix()}:{ast.dump(tree)}".encode())
    return digest.hexdigest()


def files_hash(paths: Iterable[Path]) -> str:
    """A hash of names, sizes and times of files, and of all files in folders; what does not exist counts as such."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            digest.update(_look(path, path.name))
        for folder, inner, names in os.walk(path):
            inner.sort()
            for name in sorted(names):
                file = Path(folder, name)
                digest.update(_look(file, file.relative_to(path).as_posix()))
    return digest.hexdigest()


def _look(file: Path, name: str) -> bytes:
    try:
        status = file.stat()
    except OSError:  # a dangling link
        return f"{name} missing;".encode()
    return f"{name} {status.st_size} {status.st_mtime_ns};".encode()

"""Executes notebooks from top to bottom and checks that they are stored without outputs.

    python tools/run_notebooks.py notebooks/*.ipynb

Nothing is written back. A notebook runs in its own folder, as it would when opened there.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> None:
    """Execute one notebook; raise if a cell fails or if outputs are stored with it."""
    notebook = nbformat.read(path, as_version=4)
    stored = [i for i, cell in enumerate(notebook.cells) if cell.get("outputs") or cell.get("execution_count")]
    if stored:
        raise SystemExit(f"{path} is stored with the outputs of cells {stored}: clear them before committing")
    start = time.perf_counter()
    NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    print(f"{path}: {len(notebook.cells)} cells in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    if not sys.argv[1:]:
        raise SystemExit("no notebook given")
    for name in sys.argv[1:]:
        run(Path(name))

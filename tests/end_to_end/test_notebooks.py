"""The notebooks run from top to bottom on the tiny data set."""

from __future__ import annotations

import ast
import os
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import nbformat
import pytest
from nbclient import NotebookClient

from tests.fixtures.tiny_experiment import REPO, Experiment

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what the kernel's libraries warn about is not ours
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, clip_experiment: Experiment) -> None:
    """An error in a cell is raised here, with the cell."""
    notebook = nbformat.read(path, as_version=4)
    tiny = {"MMEMB_DATA": str(clip_experiment.root), "MMEMB_RUNS": str(clip_experiment.runs)}
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(REPO)}})
    with patch.dict(os.environ, tiny | {"MMEMB_EXPERIMENT": "tiny"}):
        client.execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert all(outputs), "every cell shows something"


def test_what_notebooks_import_is_there() -> None:
    """They run in the slow suite only."""
    found = 0
    for path in NOTEBOOKS:
        cells = [
            cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
        ]
        nodes = (node for cell in cells for node in ast.walk(ast.parse(cell.source)))
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module:
                module = import_module(node.module)
                found += len(node.names)
                assert [a.name for a in node.names if not hasattr(module, a.name)] == [], path.name
    assert found > 5


def test_notebooks_are_kept_without_their_outputs() -> None:
    """Outputs would carry pictures of third parties, and differ with every run."""
    assert len(NOTEBOOKS) >= 2
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") for cell in cells), path.name

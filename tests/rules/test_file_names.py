"""Names of files and links of runs stand in one record, and nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmemb.storage.run_folder import AdaptiveFolder, ExperimentFolder, RunFolder
from tests.fixtures.paths import REPO
from tests.rules.trees import nodes_of

ROOMS = ("mmemb", "datamodules", "lightning_modules", "callbacks", "experiments")
RECORD = REPO / "mmemb/storage/run_folder.py"
ELSEWHERE = {
    "mmemb/gate/adaptive_embedder.py": {"backbone", "gate"},
    "mmemb/gate/saved_settings.py": {"adaptive.json"},
    "mmemb/selection/embedding_judge.py": {"backbone"},
    "mmemb/selection/fitted_selection.py": {"selection.json"},
    "lightning_modules/gating_policy.py": {"backbone", "latency.json", "adaptive"},
}
"""Files that still spell a name -> the names."""


def names_of(record: Any) -> Iterator[str]:
    """The last part of each path that a record gives."""
    for name, value in vars(type(record)).items():
        if isinstance(value, property):
            given = getattr(record, name)
            yield given.name if isinstance(given, Path) else given.path.name


def spelt(path: Path, names: set[str]) -> set[str]:
    """Names in a file: those of files wherever they stand, other words where they end a path."""
    ends = {id(node.right) for node in nodes_of(path, ast.BinOp) if isinstance(node.op, ast.Div)}
    return {
        node.value
        for node in nodes_of(path, ast.Constant)
        if node.value in names and ("." in str(node.value) or id(node) in ends)
    }


def test_names_of_runs_stand_in_one_record() -> None:
    records = (AdaptiveFolder(Path("a")), RunFolder(Path("r")), ExperimentFolder(Path("e")))
    names = {name for record in records for name in names_of(record)} - {"report.json"}
    found = {
        str(path.relative_to(REPO)): words
        for room in ROOMS
        for path in sorted((REPO / room).rglob("*.py"))
        if path != RECORD and (words := spelt(path, names))
    }
    new = {
        path: more for path, words in found.items() if (more := words - ELSEWHERE.get(path, set()))
    }
    assert not new, f"take these names from mmemb/storage/run_folder.py: {new}"

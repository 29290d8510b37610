"""WebDataset shards in, records out: the Lightning data modules of the stages.

Depends on neither models nor callbacks: `mmemb.records` describes what goes in and out.
Names are imported when asked for, so that a spawned loader process does not wait for Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.benchmark import BenchmarkDataModule
    from datamodules.depth_values import DepthValueDataModule
    from datamodules.evaluation import EvaluationDataModule
    from datamodules.media import MediaDataModule
    from datamodules.pairs import PairDataModule
    from datamodules.selection import SelectionDataModule
    from datamodules.sides import SideDataModule

__all__ = [
    "BenchmarkDataModule",
    "EvaluationDataModule",
    "MediaDataModule",
    "PairDataModule",
    "SelectionDataModule",
    "SideDataModule",
    "DepthValueDataModule",
]

_MODULES = {
    "BenchmarkDataModule": "datamodules.benchmark",
    "EvaluationDataModule": "datamodules.evaluation",
    "MediaDataModule": "datamodules.media",
    "PairDataModule": "datamodules.pairs",
    "SelectionDataModule": "datamodules.selection",
    "SideDataModule": "datamodules.sides",
    "DepthValueDataModule": "datamodules.depth_values",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)

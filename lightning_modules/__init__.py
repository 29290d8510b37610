"""LightningModules: one file, one stage, thin: Trainer -> step -> one function of `mmemb`.

The names are loaded when asked for: extracting features needs no language model.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "ContrastiveEmbedder": "contrastive_embedder",
    "CounterfactualSelector": "counterfactual_selector",
    "DepthValueExporter": "depth_value_exporter",
    "FeatureExtractor": "feature_extractor",
    "GatingPolicy": "gating_policy",
    "HardNegativeMiner": "hard_negative_miner",
    "QueryEmbedder": "query_embedder",
    "RationaleGenerator": "rationale_generator",
    "TeacherEmbedder": "teacher_embedder",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

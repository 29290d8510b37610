"""Names that have changed, for YAML files, runs and saved models of older versions.

A YAML file with an old name is refused and told the new one (`experiments/cli/config_check.py`).
What a run saved is read with the new names, and one warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

CLASS_PATHS = {
    "mmemb.backbones.mllm.VisionLanguageBackbone": (
        "mmemb.backbones.vision_language.VisionLanguageBackbone"
    ),
    "mmemb.backbones.PromptStyle": "mmemb.llm.PromptStyle",
    "mmemb.evaluators.EmbeddingEvaluator": "mmemb.selection.EmbeddingEvaluator",
    "mmemb.evaluators.YesNoEvaluator": "mmemb.selection.YesNoEvaluator",
    "mmemb.first_token.FirstTokenHead": "mmemb.gate.FirstTokenHead",
    "mmemb.gating.MlpDepthHead": "mmemb.gate.MlpDepthHead",
}
"""Old path of a class -> its path now."""


_EXPORTED = (
    "an argument of lightning_modules.DepthValueExporter, the model of the stage `utilities`"
)

ARGUMENTS = {
    "lightning_modules.ContrastiveEmbedder": {
        "reasoning_weight": "losses.reasoning",
        "direct_weight": "losses.direct",
        "cross_weight": "losses.cross",
        "writing_weight": "losses.writing",
        "symmetric": "losses.symmetric",
        "matryoshka_dims": "losses.dims",
        "false_negative_margin": "losses.false_negative_margin",
        "export": "a class of its own: lightning_modules.DepthValueExporter or QueryEmbedder",
        "utility_temperature": _EXPORTED,
        "depths": _EXPORTED,
        "num_draws": _EXPORTED,
        "fitted": _EXPORTED,
        "allow_fitted": _EXPORTED,
        "cutoffs": _EXPORTED,
    },
}
"""Class -> an old argument of it -> where it is now."""


def with_new_names(settings: Any, where: str) -> Any:
    """Returns saved settings in which every old class path is replaced by its new one.

    Args:
        settings: parsed JSON or YAML.
        where: names the file in the warning.

    >>> with_new_names({"class_path": "mmemb.backbones.OpenClipBackbone"}, "F")
    {'class_path': 'mmemb.backbones.OpenClipBackbone'}
    """
    old: set[str] = set()
    renamed = _renamed(settings, old)
    if old:
        names = ", ".join(f"{name} is now {CLASS_PATHS[name]}" for name in sorted(old))
        warnings.warn(
            f"{where} was saved by an older version: {names}. Save it again to silence this.",
            stacklevel=2,
        )
    return renamed


def _renamed(node: Any, old: set[str]) -> Any:
    if isinstance(node, Mapping):
        # Inner objects first; the saved settings themselves stay as they are.
        node = {key: _renamed(value, old) for key, value in node.items()}
        path = node.get("class_path")
        if isinstance(path, str) and path in CLASS_PATHS:
            old.add(path)
            node["class_path"] = CLASS_PATHS[path]

        return node

    if isinstance(node, list):
        return [_renamed(value, old) for value in node]
    return node

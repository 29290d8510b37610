"""Encoders from sides to unit vectors; each class is imported when it is first named."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Backbone": "base",
    "load_backbone": "base",
    "OpenClipBackbone": "open_clip",
    "JointEncoder": "joint",
    "EfficientNetTower": "tower",
    "ImageTower": "tower",
    "GenerativeBackbone": "generative",
    "PromptStyle": "prompt_style",
    "VisionLanguageBackbone": "mllm",
}

__all__ = [
    "Backbone",
    "EfficientNetTower",
    "GenerativeBackbone",
    "ImageTower",
    "JointEncoder",
    "OpenClipBackbone",
    "PromptStyle",
    "VisionLanguageBackbone",
    "load_backbone",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

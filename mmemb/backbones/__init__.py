"""Encoders from sides to unit vectors; each class is imported when it is first named."""

from __future__ import annotations

from mmemb.faces import lazy_names

_HOMES = {
    "Backbone": "base",
    "EfficientNetTower": "tower",
    "GenerativeBackbone": "generative",
    "ImageTower": "tower",
    "JointEncoder": "joint",
    "OpenClipBackbone": "open_clip",
    "VisionLanguageBackbone": "vision_language",
    "load_backbone": "base",
}

__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)

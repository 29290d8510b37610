"""Stage 4: the gate that decides how long to reason, and the model that holds it."""

from __future__ import annotations

from mmemb.faces import lazy_names

_HOMES = {
    "AdaptiveEmbedder": "adaptive_embedder",
    "FirstTokenHead": "first_token",
    "MlpDepthHead": "heads",
    "OnePassReasoner": "reasoners",
    "TwoPassReasoner": "reasoners",
}

__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)

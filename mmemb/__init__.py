"""MMEmb-R1, a reconstruction: embeddings that reason only where reasoning pays.

Plain PyTorch. Importing this package is cheap: its names are loaded when they are first used.
"""

from __future__ import annotations

from mmemb.faces import lazy_names

__version__ = "0.1.0"

_HOMES = {
    "AdaptiveEmbedder": "gate.adaptive_embedder",
    "Embedding": "gate.encoded",
    "Encoded": "gate.encoded",
    "Media": "records.inputs",
    "Rationale": "records.rationales",
    "Side": "records.inputs",
    "load": "gate.loading",
    "load_backbone": "backbones.base",
}

__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)

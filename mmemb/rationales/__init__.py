"""Stage 1: writers that write rationales about ONE side of a pair (docs/method.md section 4).

Importing this package costs nothing: a writer's libraries load with the writer.
"""

from __future__ import annotations

from mmemb.faces import lazy_names

_HOMES = {
    "PlaceboWriter": "writers.pool",
    "LabelBridgeWriter": "writers.label_bridge",
    "LanguageModelWriter": "writers.language_model",
    "NO_DRAW": "writers.base",
    "PrecomputedWriter": "writers.pool",
    "RationaleWriter": "writers.base",
    "SelfWriter": "writers.self_writer",
    "ServerError": "chat_api.client",
    "ServerWriter": "writers.server",
    "TableWriter": "writers.table",
    "VisionLanguageWriter": "writers.vision_language",
    "VllmWriter": "writers.vllm",
    "merge_drafts": "merge",
    "load_saved_writer": "writers.loading",
    "load_writer": "writers.loading",
    "read_pool": "writers.pool",
    "save_writer": "writers.loading",
    "write_pool": "writers.pool",
}

__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)

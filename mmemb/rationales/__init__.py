"""Stage 1: workers that write rationales about ONE side of a pair (docs/method.md section 4).

Importing this package costs nothing: a worker's libraries load with the worker.
"""

from __future__ import annotations

from mmemb.faces import lazy_names

_HOMES = {
    "ForeignWorker": "writers.pool",
    "LabelBridgeWorker": "writers.label_bridge",
    "LanguageModelWorker": "writers.language_model",
    "NO_DRAW": "writers.base",
    "PrecomputedWorker": "writers.pool",
    "RationaleWorker": "writers.base",
    "SelfWorker": "writers.self_writer",
    "ServerError": "chat_api.client",
    "ServerWorker": "writers.server",
    "TableWorker": "writers.table",
    "VisionLanguageWorker": "writers.vision_language",
    "VllmWorker": "writers.vllm",
    "fold_candidates": "merge",
    "load_saved_worker": "writers.loading",
    "load_worker": "writers.loading",
    "read_pool": "writers.pool",
    "save_worker": "writers.loading",
    "write_pool": "writers.pool",
}

__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)

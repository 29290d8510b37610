"""Stage 1: workers that write rationales about ONE side of a pair (METHOD 4).

Importing this package costs nothing: a worker's libraries load with the worker.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "RationaleWorker": "base",
    "NO_DRAW": "base",
    "load_saved_worker": "loading",
    "load_worker": "loading",
    "save_worker": "loading",
    "LanguageModelWorker": "language_model",
    "FewShotPrompt": "prompts",
    "TableWorker": "table",
    "LabelBridgeWorker": "label_bridge",
    "ForeignWorker": "foreign",
    "PrecomputedWorker": "precomputed",
    "SelfWorker": "own_sequence",
    "VisionLanguageWorker": "vision_language",
    "ServerWorker": "server",
    "ServerError": "chat_client",
    "VllmWorker": "vllm",
    "fold_candidates": "folding",
    "collect_pool": "pools",
    "read_pool": "pools",
    "write_pool": "pools",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

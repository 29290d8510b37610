"""Language models that run in this process: loading, prompts, decoding, low-rank updates."""

from __future__ import annotations

from mmemb.faces import lazy_names

_HOMES = {
    "FewShotPrompt": "prompts.few_shot",
    "PromptStyle": "prompts.style",
}

__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)

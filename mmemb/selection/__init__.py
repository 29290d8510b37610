"""Stage 2: judges, and the counterfactual test of rationales (docs/method.md section 5)."""

from __future__ import annotations

from mmemb.faces import lazy_names

_HOMES = {
    "EmbeddingJudge": "embedding_judge",
    "JudgeStyle": "judge_prompt",
    "PairJudge": "judge",
    "YesNoJudge": "yes_no_judge",
}

__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)

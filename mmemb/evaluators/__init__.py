"""Judges of pairs and rationales (METHOD 5)."""

from __future__ import annotations

from mmemb.evaluators.base import PairEvaluator
from mmemb.evaluators.embedding import EmbeddingEvaluator
from mmemb.evaluators.judge_prompt import JudgeStyle
from mmemb.evaluators.yes_no import YesNoEvaluator

__all__ = ["EmbeddingEvaluator", "JudgeStyle", "PairEvaluator", "YesNoEvaluator"]

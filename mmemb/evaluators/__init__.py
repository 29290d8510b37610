"""Judges of pairs and rationales (METHOD 5)."""

from __future__ import annotations

from mmemb.evaluators.base import PairEvaluator
from mmemb.evaluators.embedding import EmbeddingEvaluator

__all__ = ["EmbeddingEvaluator", "PairEvaluator"]

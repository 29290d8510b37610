"""The selector's contrast as a reward, for trainers that sample rationales themselves.

TRL's `GRPOTrainer` calls a reward function with the sampled completions and the columns of its data
set; this one asks a pair judge what each completion is worth to its pair (docs/method.md
sections 3 and 5). Shapes: N completions, C candidates.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

from mmemb.llm.decoding.tags import missing_tags
from mmemb.records.inputs import Side
from mmemb.records.pairs import Pair
from mmemb.records.rationales import FULL, GREEDY, SHORT, Rationale
from mmemb.selection.contrasts import contrasts
from mmemb.selection.judge import PairJudge
from mmemb.selection.keep_rule import KeepRule

Completion = str | Sequence[Mapping[str, Any]]
"""Text, or the turns of a conversation, of which the last is the model's."""


@final
class ContrastReward:
    """Calls like `reward(prompts=..., completions=..., pair=[...])`.

    Args:
        judge: the judge; it must not have been fitted on the pairs.
        pairs: pairs, by the numbers in the column `pair` of the data set.
        candidates: candidates of each pair: its target, then negatives.
        contrast: the contrast that is the reward.
        clip: rewards lie between -clip and clip.
        broken: reward of a completion without a closed answer; None = -clip.
        num_hard_negatives: hard negatives under each path, for `margin`.
    """

    __name__ = "contrast_reward"  # trainers log a reward by its name

    def __init__(
        self,
        judge: PairJudge,
        pairs: Sequence[Pair],
        candidates: Sequence[Sequence[Side]],
        contrast: Literal["raw", "gain", "positive", "margin"] = "gain",
        clip: float = 3.0,
        broken: float | None = None,
        num_hard_negatives: int = 10,
    ) -> None:
        if len(pairs) != len(candidates):
            raise ValueError(f"{len(pairs)} pairs but {len(candidates)} lists of candidates.")
        if broken is not None and broken > -clip:
            raise ValueError(
                f"broken {broken} is above -clip {-clip}: a policy would earn more by breaking the "
                "form than by a rationale that harms. Lower it, or leave it out."
            )

        self.judge, self.pairs, self.candidates = judge, pairs, candidates
        self.rule, self.clip, self.num_hard_negatives = (
            KeepRule(contrast=contrast),
            clip,
            num_hard_negatives,
        )
        self.broken = -clip if broken is None else broken

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        pair: Sequence[int],
        **columns: Any,
    ) -> list[float]:
        """Returns N rewards; completions about one pair are judged together."""
        texts = [_text(completion) for completion in completions]
        rewards = [self.broken] * len(texts)

        # A completion without a closed answer keeps the reward `broken`, and no judge reads it.
        places: dict[int, list[int]] = defaultdict(list)
        for place, (number, text) in enumerate(zip(pair, texts, strict=True)):
            if not missing_tags(text) and _rationale(text).answer:
                places[int(number)].append(place)

        numbers = list(places)
        if not numbers:
            return rewards

        # One row for each pair, so that the judge reads a pair once for all its completions.
        score_BCR = self.judge.score(
            [self.pairs[n].query for n in numbers],
            [self.candidates[n] for n in numbers],
            [[_rationale(texts[place]) for place in places[n]] for n in numbers],
            [self.pairs[n].fact for n in numbers],
        )
        value_BK = self.rule.value(
            contrasts(score_BCR, kind=self.judge.kind, num_hard_negatives=self.num_hard_negatives)
        )

        for row, number in enumerate(numbers):
            for column, place in enumerate(places[number]):
                value = float(value_BK[row, column])
                bounded = max(-self.clip, min(self.clip, value))
                rewards[place] = self.broken if math.isnan(value) else bounded
        return rewards


def _text(completion: Completion) -> str:
    """Text of a completion with its opening tag, whether the prompt or the model wrote that."""
    text = completion if isinstance(completion, str) else str(completion[-1]["content"])
    starts = [place for tag in ("<think>", "<answer>") if (place := text.find(tag)) >= 0]
    opening = min(starts, default=0)

    if starts and not text[:opening].strip():
        return text[opening:]
    return f"<think>{text}" if "</think>" in text else f"<answer>{text}"


def _rationale(text: str) -> Rationale:
    depth = FULL if text.startswith("<think>") else SHORT
    return Rationale(text, "policy", "", "", "", "", GREEDY, len(text.split()), depth=depth)

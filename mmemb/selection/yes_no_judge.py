"""YesNoJudge: a generative model judges a pair by its log-odds of yes against no.

See docs/method.md sections 3 and 5. Shapes: B pairs, C = 1 + N candidates, R = 1 + K columns,
H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from mmemb.llm.decoding.cached_rows import CachedRows, head, is_recurrent
from mmemb.llm.decoding.sampling import check_finite
from mmemb.llm.loading import DTYPES, load_model
from mmemb.llm.prompts.chat_prompt import PromptBuilder
from mmemb.llm.prompts.style import PromptStyle, at_least_one
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.records.text import check_unicode
from mmemb.selection.contrasts import Kind
from mmemb.selection.judge import PairJudge, pad_scores
from mmemb.selection.judge_prompt import JudgePrompts, JudgeStyle
from mmemb.storage.fingerprints import fingerprint
from mmemb.storage.trained_facts import read_facts
from mmemb.storage.trained_facts import trained_facts as facts_of_model

PLAIN_STYLE, PLAIN_PROMPT = JudgeStyle(), PromptStyle()


@final
class YesNoJudge(PairJudge):
    """Scores log P(yes) - log P(no), without and with each rationale.

    A query is read once for all candidates, a candidate once for all rationales, placebo donors
    among them: P_q + C (P_t + R L) tokens instead of C R (P_q + P_t + L). A reranker's checkpoint
    works with its own wording: its probability of yes is the sigmoid of this score.

    Args:
        model: folder or hub id of a vision-language or language model.
        style: wording of the question.
        prompt: budgets of pixels and frames, and arguments of the template.
        max_rows: rows that are read together at most.
        attention: implementation that transformers should use; None = its own choice.
        dtype: type of the weights.
        device: torch device; None = a GPU if there is one.
        trained_facts: `fitted.json` of the run that trained the judge; None = the one in the
            model's folder or run; a model of a hub counts as trained on none of these facts.
        trust_remote_code: whether code that comes with the model may run. Leave it off.
    """

    model_arguments: ClassVar[tuple[str, ...]] = ("model",)
    kind: Kind = "log_odds"

    def __init__(
        self,
        model: str,
        style: JudgeStyle = PLAIN_STYLE,
        prompt: PromptStyle = PLAIN_PROMPT,
        max_rows: int = 64,
        attention: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: str | None = None,
        trained_facts: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        at_least_one(max_rows=max_rows)
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: expected one of {sorted(DTYPES)}.")

        self.model_id, self.style, self.max_rows = model, style, max_rows
        self.prompt = PromptStyle.from_mapping(prompt)
        self.attention, self.dtype, self.trust_remote_code = attention, dtype, trust_remote_code

        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.facts = read_facts(Path(trained_facts)) if trained_facts else facts_of_model(model)

    @torch.inference_mode()
    def score(
        self,
        queries: Sequence[Side],
        candidates: Sequence[Sequence[Side]],
        rationales: Sequence[Sequence[Rationale]],
        facts: Sequence[str],
    ) -> Tensor:
        """See `PairJudge.score`."""
        if overlap := sorted(self.facts.intersection(facts)):
            raise ValueError(
                f"the judge was fitted on fact {overlap[0]!r}: a model may not judge what it was "
                "trained on (docs/method.md section 3). Score other pairs, or use a judge that did "
                "not see it."
            )

        scores: list[Tensor] = []
        for query, sides, pool in zip(queries, candidates, rationales, strict=True):
            if not sides:
                raise ValueError(
                    f"query {len(scores)} of {len(queries)} (text {query.text[:60]!r}) has no "
                    "candidates: give its target, then its negatives."
                )

            scores.append(self._of_query(query, sides, [None, *pool]))
        return pad_scores(scores)

    def identity(self) -> str:
        """See `PairJudge.identity`; the id of a model on a hub counts as text."""
        settings = {"class": type(self).__name__, "model": self.model_id, "dtype": self.dtype}
        settings |= {"style": asdict(self.style), "prompt": asdict(self.prompt)}
        return fingerprint(settings | {"attention": self.attention, "max_rows": self.max_rows})

    def _of_query(
        self, query: Side, candidates: Sequence[Side], rationales: Sequence[Rationale | None]
    ) -> Tensor:
        """Computes the (C, R) log-odds; equal candidates are read once."""
        for side in (query, *candidates):  # before they are compared, by hashes of their texts
            check_unicode(side.instruction + side.text)
        distinct = list({side.digest: side for side in candidates}.values())
        endings = [self.prompts.ending(query, rationale) for rationale in rationales]

        # Candidates of unequal lengths are padded, and padding would enter a recurrent state.
        size = 1 if is_recurrent(self._model) else max(1, self.max_rows // len(rationales))

        query_rows = CachedRows(self._model, [self.prompts.query(query)])
        odds: dict[str, Tensor] = {}
        for start in range(0, len(distinct), size):
            chunk = distinct[start : start + size]
            pair_rows = query_rows.fork(torch.zeros(len(chunk), dtype=torch.long))
            pair_rows.feed_prompts([self.prompts.candidate(query, side) for side in chunk])
            odds_CR = self._judged(pair_rows, endings)
            odds |= zip((side.digest for side in chunk), odds_CR, strict=True)

        odds_CR = torch.stack([odds[side.digest] for side in candidates])
        check_finite(odds_CR, self.model_id, f"the odds of yes (query {query.text[:60]!r})")
        return odds_CR

    def _judged(self, pair_rows: CachedRows, endings: Sequence[Any]) -> Tensor:
        """Log-odds (C, R) of every pair that was read with every ending, some endings at a time."""
        num_pairs = len(pair_rows.state_RH)
        size = max(1, self.max_rows // num_pairs)
        parts = []
        for start in range(0, len(endings), size):
            chunk = endings[start : start + size]

            # The pairs stay as they are, so they need not be read again for the next endings.
            rows = pair_rows.fork(torch.arange(num_pairs).repeat_interleave(len(chunk)))
            rows.feed_prompts([*chunk] * num_pairs)
            parts.append(self._log_odds(rows.state_RH).reshape(num_pairs, len(chunk)))

        return torch.cat(parts, dim=1)

    def _log_odds(self, state_RH: Tensor) -> Tensor:
        logits_RV = head(self._model)(state_RH).float()

        # A word counts with all its spellings, so their probabilities are added.
        yes_R, no_R = (
            logits_RV[:, sorted(ids)].logsumexp(1)
            for ids in (self.prompts.yes_ids, self.prompts.no_ids)
        )

        return (yes_R - no_R).cpu()

    @cached_property
    def prompts(self) -> JudgePrompts:
        """Loads the judge when it is first asked."""
        return JudgePrompts(PromptBuilder(self._loaded[1], self.prompt), self.style)

    @property
    def _model(self) -> Any:
        return self._loaded[0]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        loaded = load_model(
            self.model_id, self.attention, DTYPES[self.dtype], self.trust_remote_code
        )
        return loaded[0].requires_grad_(False).to(self.device), loaded[1]

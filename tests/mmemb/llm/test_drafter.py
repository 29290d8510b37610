"""Drafter: the drafts of a prompt share its reading, and rows that are free are used."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch import Tensor

from mmemb.llm.decoding.cached_rows import CachedRows, parts_of_sorted
from mmemb.llm.decoding.drafter import Drafter
from mmemb.llm.decoding.drafts import Draft, PlainForm
from mmemb.llm.decoding.sampling import Sampling
from mmemb.llm.decoding.text_model import TextModel
from mmemb.llm.prompts.chat_prompt import Prompt
from tests.fixtures.tiny_language_model import tiny_llama

PROMPTS = {"six": Prompt((5, 6, 7, 8, 9, 10)), "one": Prompt((40,)), "three": Prompt((3, 80, 12))}
SAMPLING = Sampling(max_new_tokens=9, temperature=1.2, top_p=0.9, top_k=30)


def written(names: Sequence[str], seeds: Sequence[int], slots: int) -> list[list[int]]:
    """Tokens of a draft for every seed behind each prompt."""
    form = PlainForm(lambda tokens: tokens[-1] < 20)
    drafter = Drafter(TextModel(tiny_llama()), form, SAMPLING, 9, slots, prompt_state_layer=-1)
    drafts = {name: [Draft.begin(seed, 9) for seed in seeds] for name in names}
    drafter.write({name: PROMPTS[name] for name in names}, drafts)
    return [draft.tokens for name in names for draft in drafts[name]]


def test_drafts_that_fit_together_read_their_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read, rows = [], []
    of_sorted, feed = CachedRows.of_sorted, CachedRows.feed

    def noted(model: TextModel, prompts: Sequence[Prompt], room: int) -> CachedRows:
        read.extend(prompts)
        return of_sorted(model, prompts, room)

    def fed(cached: CachedRows, ids_RQ: Tensor) -> Tensor:
        rows.append(len(ids_RQ))
        return feed(cached, ids_RQ)

    monkeypatch.setattr(CachedRows, "of_sorted", noted)
    monkeypatch.setattr(CachedRows, "feed", fed)
    found = written(list(PROMPTS), [1, 2], slots=10)
    assert sorted(map(len, read)) == [1, 3, 6]
    assert max(rows) <= 6

    read.clear()
    assert written(list(PROMPTS), [1, 2], slots=3) == found, "one draft at a time joins"
    assert sorted(map(len, read)) == [1, 1, 3, 3, 6, 6]
    assert found == [tokens for name in PROMPTS for tokens in written([name], [1, 2], slots=10)]


def test_prompts_of_like_length_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmemb.llm.decoding.cached_rows.READ_TOGETHER", 12)
    prompts = [Prompt(tuple(range(length))) for length in (20, 6, 5, 3, 2, 2)]
    lengths = [[len(prompt) for prompt in part] for part in parts_of_sorted(prompts)]
    assert lengths == [[20], [6, 5], [3], [2, 2]]

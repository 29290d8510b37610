"""YesNoJudge: sharing what has been read changes no score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmemb.llm.decoding.cached_rows import CachedRows, collate, is_recurrent
from mmemb.llm.prompts.chat_prompt import Prompt
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.selection import JudgeStyle, YesNoJudge
from mmemb.selection.contrasts import contrasts
from tests.fixtures.tiny_vlm import NOTE, ON_EACH, SIDES, folder, note

QUERIES = [SIDES[1], SIDES[0]]
CANDIDATES = [
    [SIDES[2], Side("a long answer, in many words"), Side("no"), SIDES[3], Side("no")],
    [Side("bread"), SIDES[4]],
]
NOTES = [[NOTE, note("<think>hm</think><answer>a thing that is longer</answer>")], [NOTE]]
FACTS = ["a/b", "c/d"]


@pytest.fixture(params=ON_EACH)
def judge(request: pytest.FixtureRequest) -> YesNoJudge:
    return YesNoJudge(str(folder(request.param)))


def qwen(**settings: Any) -> YesNoJudge:
    return YesNoJudge(str(folder("qwen3_vl")), **settings)


def joined(pieces: list[Prompt]) -> Prompt:
    ids = tuple(i for piece in pieces for i in piece.ids)
    kinds = {k: torch.cat([piece.kinds[k] for piece in pieces]) for k in pieces[0].kinds}
    names = {name for piece in pieces for name in piece.media}
    media = {n: torch.cat([p.media[n] for p in pieces if n in p.media]) for n in names}
    return Prompt(ids, kinds, media)


@torch.no_grad()
def naive(judge: YesNoJudge, query: Side, candidate: Side, said: Rationale | None) -> float:
    """The whole prompt at once, with transformers' own positions."""
    prompts = judge.prompts
    pieces = [prompts.query(query), prompts.candidate(query, candidate)]
    whole = joined([*pieces, prompts.ending(query, said)])
    inputs = dict(collate(judge._model, [whole], "left").inputs)
    del inputs["position_ids"]
    log_p = judge._model(**inputs).logits[0, -1].log_softmax(-1)
    yes, no = (log_p[sorted(ids)].logsumexp(0) for ids in (prompts.yes_ids, prompts.no_ids))
    return float(yes - no)


def all_naive(judge: YesNoJudge) -> Tensor:
    scores = torch.full((2, 5, 3), -torch.inf)
    for row, query in enumerate(QUERIES):
        for column, said in enumerate([None, *NOTES[row]]):
            for place, candidate in enumerate(CANDIDATES[row]):
                scores[row, place, column] = naive(judge, query, candidate, said)
    scores[1, :, 2] = torch.nan
    return scores


def test_shared_prefixes_equal_whole_prompts(judge: YesNoJudge) -> None:
    expected = all_naive(judge)
    scale = float(expected[expected.isfinite()].std())
    # Recurrent layers of transformers compute in float32 whatever the weights' type is, and carry
    # their rounding from piece to piece; with float64 in its place the scores differ by 2e-7.
    tolerance = 3e-4 if is_recurrent(judge._model) else 1e-4
    for rows in (64, 3, 1):
        judge.max_rows = rows
        found = judge.score(QUERIES, CANDIDATES, NOTES, FACTS)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.isinf(), expected.isinf())
        kept = expected.isfinite()
        assert (found - expected)[kept].abs().max() < tolerance * scale, rows


def test_the_prompt_is_put_in_the_order_that_can_be_shared() -> None:
    prompts = qwen().prompts
    query, candidate = replace(SIDES[1], media=()), Side("Peru")
    pieces = [
        prompts.query(query),
        prompts.candidate(query, candidate),
        prompts.ending(query, NOTE),
    ]
    text = prompts.builder.tokenizer.decode(joined(pieces).ids)
    assert text == (
        "<|im_start|>system\nYou judge whether a candidate is what a query asks for.<|im_end|>\n"
        "<|im_start|>user\nInstruction: Find it.\nQuery: what is it?\nCandidate: Peru\n"
        "Thoughts about the query: a red flag Peru\n"
        "Is this candidate what the query asks for? Answer yes or no.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    without = prompts.builder.tokenizer.decode(prompts.ending(query, None).ids)
    assert "Thoughts" not in without
    assert without == prompts.builder.tokenizer.decode(prompts.ending(query, note("<think>")).ids)


def test_a_pair_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """P_q + C (P_t + R L) tokens, and not C R (P_q + P_t + L); equal candidates count once."""
    judge, read = qwen(), []
    real = CachedRows._read

    def counted(self: CachedRows, **inputs: Tensor) -> Tensor:
        read.append(inputs["input_ids"].numel())
        return real(self, **inputs)

    monkeypatch.setattr(CachedRows, "_read", counted)
    query, sides = Side("q" * 40), [Side("t" * 30), Side("n" * 30), Side("n" * 30)]
    notes = [note(f"<answer>{letter * 20}</answer>") for letter in "abc"]
    judge.score([query], [sides], [notes], ["a/b"])
    prompts = judge.prompts
    endings = max(len(prompts.ending(query, said)) for said in [None, *notes])
    expected = len(prompts.query(query)) + 2 * (
        len(prompts.candidate(query, sides[0])) + 4 * endings
    )
    assert sum(read) == expected


def test_a_rerankers_probability_is_the_sigmoid_of_its_score() -> None:
    style = JudgeStyle(system="Judge.", question="?", yes=("yes",), no=("no",))
    judge = qwen(style=style)
    odds = judge.score([Side("flag")], [[Side("Peru")]], [[]], ["a/b"])
    prompts = judge.prompts
    pieces = [prompts.query(Side("flag")), prompts.candidate(Side("flag"), Side("Peru"))]
    rows = CachedRows(judge._model, [joined([*pieces, prompts.ending(Side("flag"), None)])])
    ids = [prompts.builder.tokenizer.encode(w, add_special_tokens=False)[0] for w in ("yes", "no")]
    with torch.no_grad():
        expected = rows.logits_RV[0, ids].softmax(0)[0]
    assert float(odds.sigmoid()) == pytest.approx(float(expected), abs=1e-5)


def test_its_scores_have_the_contrasts_of_log_odds() -> None:
    judge = qwen()
    scores = judge.score(QUERIES, CANDIDATES, NOTES, FACTS)
    found = contrasts(scores, kind=judge.kind)
    assert float(found["raw"][0, 0]) == pytest.approx(float(scores[0, 0, 1]))
    assert float(found["gain"][0, 1]) == pytest.approx(float(scores[0, 0, 2] - scores[0, 0, 0]))
    shift = scores[0, 1:, 1] - scores[0, 1:, 0]
    expected = float(found["gain"][0, 0] - shift.mean())
    assert float(found["margin"][0, 0]) == pytest.approx(expected, abs=1e-5)


def test_a_judge_does_not_judge_what_it_was_fitted_on(tmp_path: Path) -> None:
    (tmp_path / "fitted.json").write_text(json.dumps({"facts": ["c/d"]}))
    judge = qwen(trained_facts=str(tmp_path / "fitted.json"))
    with pytest.raises(ValueError, match="was fitted on fact 'c/d'"):
        judge.score(QUERIES, CANDIDATES, NOTES, FACTS)


def test_a_judge_in_a_run_is_fitted_on_the_facts_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "fitted.json").write_text(json.dumps({"facts": ["c/d"]}))
    assert YesNoJudge(str(tmp_path / "model")).facts == {"c/d"}


def test_a_tokenizer_reads_no_more_of_a_text_than_may_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = qwen(style=JudgeStyle(max_text_tokens=8))
    encode, lengths = judge.prompts.builder.tokenizer.encode, []

    def counted(text: str, **settings: Any) -> list[int]:
        lengths.append(len(text))
        return encode(text, **settings)

    monkeypatch.setattr(judge.prompts.builder.tokenizer, "encode", counted)
    judge.prompts.ending(Side("q"), note(f"{'a' * 100_000} the end"))
    judge.prompts.candidate(Side("q"), Side("b" * 100_000))
    assert 0 < max(lengths) <= 8 * 32


def test_long_texts_are_cut() -> None:
    judge = qwen(style=JudgeStyle(max_text_tokens=8))
    decode, query = judge.prompts.builder.tokenizer.decode, Side("abcdefghijkl")
    assert decode(judge.prompts.query(query).ids).endswith("Query: abcdefgh")
    long = note("<think>abcdefghijkl</think><answer>so</answer>")
    assert "Thoughts about the query: hijkl so\n" in decode(judge.prompts.ending(query, long).ids)


def test_words_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="begin with the same tokens"):
        _ = qwen(style=JudgeStyle(yes=("not wrong",), no=("no",))).prompts
    with pytest.raises(ValueError, match="begin with the same tokens"):
        _ = qwen(style=JudgeStyle(yes=("",))).prompts
    with pytest.raises(ValueError, match="max_rows is 0"):
        qwen(max_rows=0)

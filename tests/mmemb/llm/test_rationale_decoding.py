"""Batched decoding: exact, independent of neighbours, and as long as the real draws only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import final

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmemb.llm.decoding.cached_rows import CachedRows
from mmemb.llm.decoding.drafts import Draft, PlainForm, write
from mmemb.llm.decoding.sampling import Sampling, choose_tokens
from mmemb.llm.decoding.shared_prefix import SHARED_PREFIX_ATTENTION
from mmemb.llm.decoding.text_model import TextModel, read_behind, read_prefix
from mmemb.llm.prompts.chat_prompt import Prompt
from mmemb.records.rationales import GREEDY
from tests.fixtures.tiny_language_model import tiny_gpt2, tiny_llama

PREFIX = [7, 50, 31, 90, 11]
PROMPTS = [[5, 6, 7, 8, 9, 10], [40], [3, 80, 12]]
SAMPLING = Sampling(max_new_tokens=9, temperature=1.2, top_p=0.9, top_k=30)
Reader = Callable[[Sequence[Sequence[int]]], CachedRows]


def make_reader(kind: str, model: PreTrainedModel, room: int = 9) -> Reader:
    if kind == "shared":
        model.set_attn_implementation(SHARED_PREFIX_ATTENTION)
        shared = TextModel(model, PREFIX)
        return lambda own: CachedRows(shared, [Prompt(tuple(ids)) for ids in own], room)
    whole = TextModel(model)
    # Without places made at once, rows are in the model's own cache, and none can join.
    return lambda own: CachedRows(
        whole, [Prompt((*PREFIX, *ids)) for ids in own], room if kind == "whole" else 0
    )


def decode(
    read: Reader,
    prompts: Sequence[Sequence[int]],
    row_prompts: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    is_complete: Callable[[list[int]], bool],
    slots: int = 96,
) -> list[Draft]:
    """A draft for every seed, each with a prompt of its own."""
    drafts = [Draft.begin(seed, sampling.max_new_tokens) for seed in seeds]
    lengths = [len(prompts[row]) for row in row_prompts]

    def begin(numbers: Sequence[int]) -> tuple[CachedRows, list[list[Draft]]]:
        rows = read([prompts[row_prompts[number]] for number in numbers])
        return rows, [[drafts[number]] for number in numbers]

    write(lengths, [1] * len(drafts), begin, PlainForm(is_complete), sampling, slots)
    return drafts


@pytest.fixture(
    params=[("shared", tiny_llama), ("whole", tiny_llama), ("whole", tiny_gpt2), ("own", tiny_gpt2)]
)
def decoding(request: pytest.FixtureRequest) -> tuple[Reader, PreTrainedModel]:
    """What reads prompts, and an untouched copy of its model."""
    kind, make = request.param
    return make_reader(kind, make()), make()


def never(tokens: list[int]) -> bool:
    return False


def test_log_probability_is_that_of_a_full_forward(
    decoding: tuple[Reader, PreTrainedModel],
) -> None:
    read, model = decoding
    seeds = [GREEDY, 11, GREEDY, 12, GREEDY, 13]
    draws = decode(read, PROMPTS, [0, 0, 1, 1, 2, 2], seeds, SAMPLING, lambda t: t[-1] < 20)
    assert len({len(draw.tokens) for draw in draws}) > 1  # rows left at different times
    for draw, prompt, seed in zip(draws, [0, 0, 1, 1, 2, 2], seeds, strict=True):
        before = [*PREFIX, *PROMPTS[prompt]]
        with torch.no_grad():
            logits_LV = model(torch.tensor([[*before, *draw.tokens]])).logits[0].double()
        logits_TV = logits_LV[len(before) - 1 : -1]
        tokens_T = torch.tensor(draw.tokens)
        expected = logits_TV.log_softmax(-1).gather(1, tokens_T[:, None]).sum()
        assert draw.log_probability == pytest.approx(expected.item(), abs=1e-4)
        if seed == GREEDY:
            assert draw.tokens == logits_TV.argmax(-1).tolist()


def test_a_draw_does_not_depend_on_its_neighbours(
    decoding: tuple[Reader, PreTrainedModel],
) -> None:
    read, _ = decoding
    rows, seeds = [0, 1, 2, 1, 0], [GREEDY, 5, GREEDY, 6, 7]
    together = decode(read, PROMPTS, rows, seeds, SAMPLING, lambda t: t[-1] < 20)
    for draw, row, seed in zip(together, rows, seeds, strict=True):
        (alone,) = decode(read, [PROMPTS[row]], [0], [seed], SAMPLING, lambda t: t[-1] < 20)
        assert alone.tokens == draw.tokens
        assert alone.complete == draw.complete
        assert alone.log_probability == pytest.approx(draw.log_probability, abs=1e-4)


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_waiting_rows_join_and_change_nothing(
    decoding: tuple[Reader, PreTrainedModel], slots: int
) -> None:
    """Prompts of other lengths, read while others are under way, in slots that became free."""
    read, _ = decoding
    rows, seeds = [0, 1, 2, 1, 0, 2, 2, 1], [GREEDY, 5, GREEDY, 6, 7, 8, 9, 10]
    arguments = (read, PROMPTS, rows, seeds, SAMPLING, lambda t: t[-1] < 20)
    expected = decode(*arguments, slots=len(rows))
    found = decode(*arguments, slots=slots)
    assert len({len(draw.tokens) for draw in expected}) > 1
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.complete) == (other.tokens, other.complete)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def test_slots_are_refilled_before_the_last_row_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[int] = []
    feed = CachedRows.feed

    def noted(rows: CachedRows, ids_RQ: Tensor) -> Tensor:
        steps.append(len(ids_RQ))
        return feed(rows, ids_RQ)

    monkeypatch.setattr(CachedRows, "feed", noted)
    read = make_reader("shared", tiny_llama())
    draws = decode(
        read, PROMPTS, [0, 1, 2] * 4, [*range(12)], SAMPLING, lambda t: t[-1] < 30, slots=4
    )
    lengths = sorted(len(draw.tokens) for draw in draws)
    assert max(steps) <= 4
    assert len(steps) < sum(lengths[3::4]), "batches of four, one after another, would take more"


def test_seeds_decide_and_the_global_generator_is_left_alone(
    decoding: tuple[Reader, PreTrainedModel],
) -> None:
    read, _ = decoding
    state = torch.get_rng_state()
    first, again, other = (
        decode(read, PROMPTS, [0], [seed], SAMPLING, never)[0].tokens for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert torch.equal(state, torch.get_rng_state())


def test_the_prefix_is_stored_once_and_kept() -> None:
    model = tiny_llama()
    model.set_attn_implementation(SHARED_PREFIX_ATTENTION)
    shared = TextModel(model, PREFIX)
    keys = shared.prefix.layers[0].keys.clone()
    read = lambda own: CachedRows(shared, [Prompt(tuple(ids)) for ids in own], 9)  # noqa: E731
    decode(read, PROMPTS, [0, 1, 2], [GREEDY] * 3, SAMPLING, never)
    assert keys.shape[0] == 1
    assert torch.equal(shared.prefix.layers[0].keys, keys)


@final
class ScriptedRows:
    """Row r says its script, one token a step; counts what it is fed."""

    can_join, model = False, "scripted"

    def __init__(self, scripts: list[list[int]]) -> None:
        self.scripts, self.rows, self.time = scripts, list(range(len(scripts))), 0
        self.fed: list[int] = []

    def select(self, rows_R: Tensor) -> None:
        self.rows = [self.rows[row] for row in rows_R.tolist()]

    def feed(self, ids_RQ: Tensor) -> None:
        self.fed.append(len(ids_RQ))
        assert ids_RQ.tolist()[-1] == self._now()[-1:]
        self.time += 1

    def next_logits(self, rows_N: Tensor) -> Tensor:
        tokens_N = torch.tensor(self._now())[rows_N]
        return torch.nn.functional.one_hot(tokens_N, 10).float() * 50

    def _now(self) -> list[int]:
        return [self.scripts[row][min(self.time, 3)] for row in self.rows]


def test_finished_rows_leave_the_batch() -> None:
    rows = ScriptedRows([[9, 0, 0, 0], [3, 9, 0, 0], [3, 3, 9, 0], [3, 3, 3, 3]])
    sampling = replace(SAMPLING, max_new_tokens=4)
    draws = decode(
        lambda own: rows, [[0]] * 4, [0, 1, 2, 3], [GREEDY] * 4, sampling, lambda t: t[-1] == 9
    )
    assert [draw.tokens for draw in draws] == [[9], [3, 9], [3, 3, 9], [3, 3, 3, 3]]
    assert [draw.complete for draw in draws] == [True, True, True, False]
    assert rows.fed == [3, 2, 1]


@torch.no_grad()
def test_padding_is_never_attended() -> None:
    """Whatever is read at padded places, logits are those of the tokens alone."""
    model = tiny_llama()
    model.set_attn_implementation(SHARED_PREFIX_ATTENTION)
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    logits = [
        read_behind(model, read_prefix(model, PREFIX), torch.tensor([ids]), mask, 3).logits
        for ids in ([0, 0, 5, 6, 7], [81, 9, 5, 6, 7])
    ]
    alone = model(torch.tensor([[*PREFIX, 5, 6, 7]])).logits[:, -3:]
    assert torch.equal(*logits)
    assert (logits[0] - alone).abs().max() < 1e-4


def test_choose_tokens_follows_the_nucleus() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits_RV = probs.log().expand(1000, 4)
    noise_R = torch.arange(1000, dtype=torch.float64) / 1000
    sampling = Sampling(4, temperature=1.0, top_p=0.9, top_k=4)
    tokens, log_probs = choose_tokens(logits_RV, noise_R, torch.ones(1000, dtype=bool), sampling)
    shares = torch.bincount(tokens, minlength=4) / 1000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95, atol=2e-3)
    assert torch.allclose(log_probs.float(), probs.log()[tokens])  # of the untruncated model
    greedy, _ = choose_tokens(logits_RV, noise_R, torch.zeros(1000, dtype=bool), sampling)
    assert greedy.unique().tolist() == [0]


@pytest.mark.parametrize("change", [{"top_p": 0.0}, {"temperature": 0.0}, {"max_new_tokens": 0}])
def test_bad_sampling_settings_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(SAMPLING, **change)

"""Batched decoding: exact, independent of neighbours, and as long as the real draws only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmemb.llm.decoding.decoders import (
    SHARED_PREFIX_ATTENTION,
    SharedPrefixDecoder,
    WholePromptDecoder,
)
from mmemb.llm.decoding.padding import causal_mask
from mmemb.llm.decoding.sampling import Sampling, choose_tokens
from mmemb.llm.decoding.text_drafts import Decoder, decode
from mmemb.records.rationales import GREEDY
from tests.fixtures.tiny_language_model import tiny_gpt2, tiny_llama

PREFIX = [7, 50, 31, 90, 11]
PROMPTS = [[5, 6, 7, 8, 9, 10], [40], [3, 80, 12]]
SAMPLING = Sampling(max_new_tokens=9, temperature=1.2, top_p=0.9, top_k=30)


def make_decoder(kind: str, model: PreTrainedModel) -> Decoder:
    if kind == "whole":
        return WholePromptDecoder(model, PREFIX)
    model.set_attn_implementation(SHARED_PREFIX_ATTENTION)
    return SharedPrefixDecoder(model, PREFIX, SAMPLING.max_new_tokens)


@pytest.fixture(params=[("shared", tiny_llama), ("whole", tiny_llama), ("whole", tiny_gpt2)])
def decoding(request: pytest.FixtureRequest) -> tuple[Decoder, PreTrainedModel]:
    """A decoder under test, and an untouched copy of its model."""
    kind, make = request.param
    return make_decoder(kind, make()), make()


def never(tokens: list[int]) -> bool:
    return False


def test_log_probability_is_that_of_a_full_forward(
    decoding: tuple[Decoder, PreTrainedModel],
) -> None:
    decoder, model = decoding
    seeds = [GREEDY, 11, GREEDY, 12, GREEDY, 13]
    draws, _ = decode(decoder, PROMPTS, [0, 0, 1, 1, 2, 2], seeds, SAMPLING, lambda t: t[-1] < 20)
    assert len({len(draw.tokens) for draw in draws}) > 1  # rows left at different times
    for draw, prompt, seed in zip(draws, [0, 0, 1, 1, 2, 2], seeds, strict=True):
        read = [*PREFIX, *PROMPTS[prompt]]
        with torch.no_grad():
            logits_LV = model(torch.tensor([[*read, *draw.tokens]])).logits[0].double()
        logits_TV = logits_LV[len(read) - 1 : -1]
        tokens_T = torch.tensor(draw.tokens)
        expected = logits_TV.log_softmax(-1).gather(1, tokens_T[:, None]).sum()
        assert draw.log_probability == pytest.approx(expected.item(), abs=1e-4)
        if seed == GREEDY:
            assert draw.tokens == logits_TV.argmax(-1).tolist()


def test_a_draw_does_not_depend_on_its_neighbours(
    decoding: tuple[Decoder, PreTrainedModel],
) -> None:
    decoder, _ = decoding
    rows, seeds = [0, 1, 2, 1, 0], [GREEDY, 5, GREEDY, 6, 7]
    together, _ = decode(decoder, PROMPTS, rows, seeds, SAMPLING, lambda t: t[-1] < 20)
    for draw, row, seed in zip(together, rows, seeds, strict=True):
        (alone,), _ = decode(decoder, [PROMPTS[row]], [0], [seed], SAMPLING, lambda t: t[-1] < 20)
        assert alone.tokens == draw.tokens
        assert alone.complete == draw.complete
        assert alone.log_probability == pytest.approx(draw.log_probability, abs=1e-4)


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_waiting_rows_join_and_change_nothing(
    decoding: tuple[Decoder, PreTrainedModel], slots: int
) -> None:
    """Prompts of other lengths, read while others are under way, in slots that became free."""
    decoder, _ = decoding
    rows, seeds = [0, 1, 2, 1, 0, 2, 2, 1], [GREEDY, 5, GREEDY, 6, 7, 8, 9, 10]
    arguments = (decoder, PROMPTS, rows, seeds, SAMPLING, lambda t: t[-1] < 20)
    expected, _ = decode(*arguments, slots=len(rows))
    found, _ = decode(*arguments, slots=slots)
    assert len({len(draw.tokens) for draw in expected}) > 1
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.complete) == (other.tokens, other.complete)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def test_slots_are_refilled_before_the_last_row_has_ended() -> None:
    model = tiny_llama()
    decoder = make_decoder("shared", model)
    steps: list[int] = []
    step = decoder.step
    decoder.step = lambda tokens_R: (steps.append(len(tokens_R)), step(tokens_R))[1]
    draws, _ = decode(
        decoder, PROMPTS, [0, 1, 2] * 4, [*range(12)], SAMPLING, lambda t: t[-1] < 30, slots=4
    )
    lengths = sorted(len(draw.tokens) for draw in draws)
    assert max(steps) <= 4
    assert len(steps) < sum(lengths[3::4]), "batches of four, one after another, would take more"


def test_seeds_decide_and_the_global_generator_is_left_alone(
    decoding: tuple[Decoder, PreTrainedModel],
) -> None:
    decoder, _ = decoding
    state = torch.get_rng_state()
    first, again, other = (
        decode(decoder, PROMPTS, [0], [seed], SAMPLING, never)[0][0].tokens for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert torch.equal(state, torch.get_rng_state())


def test_the_prefix_is_stored_once_and_kept() -> None:
    model = tiny_llama()
    model.set_attn_implementation(SHARED_PREFIX_ATTENTION)
    decoder = SharedPrefixDecoder(model, PREFIX, 9)
    keys = decoder._prefix.layers[0].keys.clone()
    decode(decoder, PROMPTS, [0, 1, 2], [GREEDY] * 3, SAMPLING, never)
    assert keys.shape[0] == 1
    assert torch.equal(decoder._prefix.layers[0].keys, keys)


@final
class ScriptedDecoder(Decoder):
    """Row r says its script, one token a step; counts what it is fed."""

    def __init__(self, scripts: list[list[int]]) -> None:
        self.scripts = scripts
        self.fed: list[int] = []

    def start(self, prompts: Any) -> Tensor:
        self.rows, self.time = list(range(len(prompts))), 0
        return self._logits()

    def select(self, rows_R: Tensor) -> None:
        self.rows = [self.rows[row] for row in rows_R.tolist()]

    def step(self, tokens_R: Tensor) -> Tensor:
        self.fed.append(len(tokens_R))
        assert tokens_R.tolist()[-1] == self._now()[-1]
        self.time += 1
        return self._logits()

    def _now(self) -> list[int]:
        return [self.scripts[row][min(self.time, 3)] for row in self.rows]

    def _logits(self) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(self._now()), 10).float() * 50


def test_finished_rows_leave_the_batch() -> None:
    decoder = ScriptedDecoder([[9, 0, 0, 0], [3, 9, 0, 0], [3, 3, 9, 0], [3, 3, 3, 3]])
    sampling = replace(SAMPLING, max_new_tokens=4)
    draws, _ = decode(
        decoder, [[0]] * 4, [0, 1, 2, 3], [GREEDY] * 4, sampling, lambda t: t[-1] == 9
    )
    assert [draw.tokens for draw in draws] == [[9], [3, 9], [3, 3, 9], [3, 3, 3, 3]]
    assert [draw.complete for draw in draws] == [True, True, True, False]
    assert decoder.fed == [3, 2, 1]


def test_padding_is_never_attended() -> None:
    mask = causal_mask(torch.tensor([[0, 1, 1, 1]]), 2, torch.float32)
    assert (mask[0, 0] == 0).tolist() == [[False, True, True, False], [False, True, True, True]]
    padding = causal_mask(torch.tensor([[0, 1]]), 2, torch.float32)
    assert (padding[0, 0] == 0).tolist() == [[True, False], [False, True]]


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

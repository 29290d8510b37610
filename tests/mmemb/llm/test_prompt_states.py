"""The prompt state: a language model's hidden state at the end of its prompt, and who has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, LlamaForCausalLM

from mmemb.llm import FewShotPrompt
from mmemb.llm.decoding.cached_rows import CachedRows
from mmemb.llm.decoding.drafter import end_states
from mmemb.llm.decoding.shared_prefix import SHARED_PREFIX_ATTENTION
from mmemb.rationales import LanguageModelWriter, TableWriter, load_writer
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY
from tests.fixtures.tiny_language_model import byte_tokenizer, tiny_gpt2, tiny_llama

SIDES = [Side("Paris"), Side("the Nile delta"), Side("x"), Side("Paris")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompt_state")
    tiny_llama(258).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    examples = [{"query": "Rome", "think": "It is Italy.", "answer": "Italy"}]
    data = {"system": "Name it.", "examples": examples, "concepts": []}
    (folder / "prompt.json").write_text(json.dumps(data))
    return folder


@pytest.fixture(params=["shared", "whole"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the writers of a test store their prefix once."""
    if request.param == "whole":
        wrong = AttentionInterface._global_mapping["sdpa"]  # ignores the prefix, so it is dropped
        monkeypatch.setitem(AttentionInterface._global_mapping, SHARED_PREFIX_ATTENTION, wrong)
    return request.param


def make_writer(
    folder: Path, kind: str = "shared", layer: int = 0, **kwargs
) -> LanguageModelWriter:
    found = LanguageModelWriter(
        str(folder),
        str(folder / "prompt.json"),
        max_new_tokens=3,
        prompt_state_layer=layer,
        **kwargs,
    )
    assert (found._drafter.model.prefix is not None) == (kind == "shared")
    return found


def plain_states(folder: Path, after: int) -> Tensor:
    """(B, H) of SIDES at the last token of a whole prompt that an untouched model reads in one go,
    after so many blocks; -1 is the last one and the final norm."""
    tokenizer, model = byte_tokenizer(), LlamaForCausalLM.from_pretrained(folder).eval()
    prompt = FewShotPrompt.load(folder / "prompt.json")
    states = []
    for side in SIDES:
        ids = tokenizer.encode(prompt.render(tokenizer, side.text), add_special_tokens=False)
        with torch.no_grad():
            read = model(torch.tensor([ids]), output_hidden_states=True)
        states.append(read.hidden_states[after][0, -1])
    return torch.stack(states)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_prompt_state_is_the_state_of_a_plain_forward(folder: Path, kind: str) -> None:
    found_BH = make_writer(folder, kind).prompt_states(SIDES)
    assert (found_BH.shape, found_BH.dtype) == ((4, 32), torch.float32)
    close(found_BH, plain_states(folder, 1))


@pytest.mark.parametrize("layer", [1, -1])
def test_layers_count_from_both_ends(folder: Path, kind: str, layer: int) -> None:
    norm = LlamaForCausalLM.from_pretrained(folder).model.norm
    with torch.no_grad():
        found_BH = norm(make_writer(folder, kind, layer).prompt_states(SIDES))
    close(found_BH, plain_states(folder, -1))


def test_a_prompt_state_does_not_depend_on_its_neighbours(folder: Path, kind: str) -> None:
    reader = make_writer(folder, kind)
    together_BH = reader.prompt_states(SIDES)
    close(reader.prompt_states(SIDES[::-1]), together_BH.flip(0))
    close(torch.cat([reader.prompt_states([side]) for side in SIDES]), together_BH)
    close(make_writer(folder, kind, batch_size=2).prompt_states(SIDES), together_BH)
    assert torch.equal(together_BH[0], together_BH[3]), "equal sides are read once"
    assert not torch.allclose(together_BH[0], together_BH[1], atol=0.1)


def test_a_prompt_state_is_free_after_a_write(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_BH = make_writer(folder, kind).prompt_states(SIDES)
    reader = make_writer(folder, kind, batch_size=3)  # the draws of one question are in two batches
    reader.write(SIDES[:3], torch.tensor([[GREEDY, 1]] * 3))
    with monkeypatch.context() as patch:
        patch.setattr(CachedRows, "_read", lambda *_: pytest.fail("the model is asked again"))
        close(reader.prompt_states(SIDES), fresh_BH)
    reader.write(SIDES[:1], torch.tensor([[GREEDY]]))
    close(reader.prompt_states(SIDES), fresh_BH)  # what the last write did not read is read now


def test_probing_changes_no_rationale(folder: Path, kind: str) -> None:
    seeds_BK = torch.tensor([[GREEDY, 5]] * 4)
    expected = make_writer(folder, kind).write(SIDES, seeds_BK)
    reader = make_writer(folder, kind)
    state = torch.get_rng_state()
    reader.prompt_states(SIDES)
    assert torch.equal(torch.get_rng_state(), state)
    assert reader.write(SIDES, seeds_BK) == expected


def test_nothing_in_nothing_out(folder: Path) -> None:
    assert make_writer(folder).prompt_states([]).shape == (0, 32)


def test_settings_hold_the_layer(folder: Path) -> None:
    saved, other = make_writer(folder, layer=0), make_writer(folder, layer=1)
    assert load_writer(saved.spec()).prompt_state_layer == 0
    assert saved.identity() != other.identity(), "other rationales: their prompt states differ"


# ---- the hook itself


def test_every_forward_is_noted_and_the_model_is_left_as_it_was() -> None:
    model, first = tiny_gpt2(), torch.tensor([[5, 6, 7], [8, 9, 10]])
    with torch.no_grad(), end_states(model, 0) as states:
        model(first)
        model(torch.tensor([[1], [2]]))
    with torch.no_grad():
        expected = tiny_gpt2()(first, output_hidden_states=True).hidden_states[1]
    assert len(states) == 2
    close(states[0], expected[:, -1])
    assert not any(block._forward_hooks for block in model.transformer.h)
    with torch.no_grad(), end_states(model, None) as states:
        model(first)
    assert states == []


def test_the_hook_goes_when_the_forward_fails() -> None:
    model = tiny_gpt2()
    with pytest.raises(ZeroDivisionError), end_states(model, 1):
        _ = 1 / 0
    assert not any(block._forward_hooks for block in model.transformer.h)


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_the_model_lacks(folder: Path, layer: int) -> None:
    with pytest.raises(
        ValueError, match=rf"prompt_state_layer is {layer}, but the model has 2 blocks"
    ):
        make_writer(folder, layer=layer).prompt_states(SIDES)


# ---- other writers


def test_a_writer_without_a_model_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text('{"questions": {}, "countries": {}}')
    with pytest.raises(
        ValueError, match=r"writer 'table' has no hidden state.*without `prompt_state`"
    ):
        TableWriter(str(tmp_path / "facts.json")).prompt_states(SIDES)


def test_who_only_writes_needs_no_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = torch.full((4, 1), GREEDY)
    expected = make_writer(folder).write(SIDES, seeds)
    monkeypatch.setattr("mmemb.llm.decoding.drafter._blocks", lambda model, number: None)
    writer = make_writer(folder)
    assert writer.write(SIDES, seeds) == expected
    with pytest.raises(ValueError, match="in no ModuleList.*without `prompt_state`"):
        writer.prompt_states(SIDES)

"""VisionLanguageBackbone on tiny random models of the real architectures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmemb.backbones import VisionLanguageBackbone, load_backbone
from mmemb.backbones.contract import check_contract
from mmemb.llm import PromptStyle
from mmemb.llm.decoding.cached_rows import CachedRows, collate
from mmemb.llm.decoding.sampling import Sampling
from mmemb.llm.decoding.tags import whole_text
from mmemb.llm.lora import LoraSettings
from mmemb.records.inputs import Side
from tests.fixtures.tiny_models import write_chat_model
from tests.fixtures.tiny_vlm import NOTE, ON_EACH, SIDES, looking, note, picture, qwen


@pytest.fixture(params=ON_EACH)
def backbone(request: pytest.FixtureRequest) -> VisionLanguageBackbone:
    return looking(request.param)


def test_it_keeps_the_contract_of_backbones(backbone: VisionLanguageBackbone) -> None:
    assert backbone.modalities == {"text", "image", "video"}
    broken = [found for found in check_contract(backbone) if not found.holds]
    assert not broken, broken


@torch.no_grad()
def test_batched_equals_single_on_either_padding_side(backbone: VisionLanguageBackbone) -> None:
    notes = [NOTE if n % 2 else None for n in range(len(SIDES))]
    alone = torch.cat([backbone.encode([s], [r]) for s, r in zip(SIDES, notes, strict=True)])
    for side in ("left", "right"):
        backbone.padding_side = side
        assert (backbone.encode(SIDES, notes) - alone).abs().max() < 1e-5, side


@torch.no_grad()
def test_the_vector_is_the_state_after_the_final_norm(backbone: VisionLanguageBackbone) -> None:
    """As transformers returns it, and not what goes into the norm."""
    seen: list[torch.Tensor] = []
    norm = backbone.model.get_decoder().norm
    hook = norm.register_forward_hook(lambda module, given, out: seen.extend((given[0], out)))
    vector = backbone.encode(SIDES[1:2])
    hook.remove()
    before, after = (torch.nn.functional.normalize(x[:, -1], dim=-1) for x in seen)
    assert (vector - after).abs().max() < 1e-6
    assert (vector - before).abs().max() > 1e-2
    inputs = dict(collate(backbone.model, [backbone.prompts.build(SIDES[1])], "left").inputs)
    del inputs["position_ids"]  # transformers' own
    plain = backbone.model(**inputs, output_hidden_states=True).hidden_states[-1][:, -1]
    assert (vector - torch.nn.functional.normalize(plain, dim=-1)).abs().max() < 1e-5


@torch.no_grad()
def test_interleaved_prefills_do_not_disturb_each_other(backbone: VisionLanguageBackbone) -> None:
    prompts = [backbone.prompts.build(side) for side in SIDES]
    said = torch.tensor(
        backbone.prompts.tokenizer.encode("<think>a flag", add_special_tokens=False)
    )
    first = CachedRows(backbone.model, prompts)
    second = CachedRows(backbone.model, prompts[1:2])  # its rope_deltas are others
    rows = torch.tensor([1, 0, 3, 1, 4])
    first.select(rows)
    first.feed(said[:4].repeat(5, 1))
    second.feed(said[None])
    first.feed(said[4:].repeat(5, 1))
    for place, row in enumerate(rows.tolist()):
        whole = prompts[row].followed_by(said.tolist())
        alone = CachedRows(backbone.model, [whole]).state_RH[0]
        assert (first.state_RH[place] - alone).abs().max() < 2e-5 * alone.norm(), row
    both = first.state_RH[0], second.state_RH[0]
    assert (both[0] - both[1]).abs().max() < 2e-5 * both[0].norm()


def test_both_paths_come_from_one_sequence(backbone: VisionLanguageBackbone) -> None:
    notes = [NOTE, None, note("<answer>no</answer>"), NOTE, None]
    paths = backbone.encode_paths(SIDES, notes)
    with torch.no_grad():
        assert (paths.direct_BD - backbone.encode(SIDES)).abs().max() < 1e-5
        assert (paths.reasoned_BD - backbone.encode(SIDES, notes)).abs().max() < 1e-5
    said = backbone.prompts.tokenizer.encode(NOTE.text, add_special_tokens=False)
    assert paths.num_tokens_B.tolist()[:2] == [len(said), 0]
    assert paths.nll_B[1] == 0
    whole = backbone.prompts.build(SIDES[0]).followed_by(said)
    inputs = collate(backbone.model, [whole], "left").inputs
    log_p = backbone.model(**inputs).logits[0, -len(said) - 1 : -1].log_softmax(-1)
    expected = -log_p[torch.arange(len(said)), torch.tensor(said)].sum()
    assert float(paths.nll_B[0].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    (paths.reasoned_BD.sum() + paths.nll_B.sum()).backward()
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert trained
    assert not [name for name in trained if "visual" in name], "the tower is frozen"
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


def test_a_frozen_tower_reads_every_picture_once(
    backbone: VisionLanguageBackbone, request: pytest.FixtureRequest
) -> None:
    """Vectors and gradients are those of pixels; a clip beside a picture does not matter."""
    caching = VisionLanguageBackbone(backbone.model_id, backbone.style, cached_pictures=3)
    batch = [SIDES[1], SIDES[2], SIDES[4], SIDES[1], SIDES[0]]
    read: list[int] = []
    tower = caching.model.base_model.visual
    tower.register_forward_hook(
        lambda module, args, kwargs, out: read.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    for seen in (4, 1):  # of four distinct pictures three are kept
        del read[:]
        found, expected = caching.encode(batch), backbone.encode(batch)
        assert (found - expected).abs().max() < 1e-5
        assert sum(read) == seen + 1, "and the clip"
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    for model, vectors in ((caching, found), (backbone, expected)):
        model.zero_grad(set_to_none=True)
        (vectors * weight).sum().backward()
    grads = [
        {n: p.grad for n, p in m.named_parameters() if p.grad is not None}
        for m in (caching, backbone)
    ]
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[1].items():
        assert (grads[0][name] - grad).abs().max() < 1e-4 * grad.abs().max() + 1e-6, name
    with pytest.raises(ValueError, match="needs freeze_vision"):
        VisionLanguageBackbone(backbone.model_id, freeze_vision=False, cached_pictures=3)


def test_low_rank_updates_are_merged_when_saved(tmp_path: Path) -> None:
    backbone = qwen()
    backbone.attach_lora(LoraSettings(rank=2))
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in name and "visual" not in name for name in trained)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    backbone.save_pretrained(tmp_path)
    with torch.no_grad():
        changed = backbone.encode(SIDES)
        assert (load_backbone(str(tmp_path)).encode(SIDES) - changed).abs().max() < 1e-5
        assert (qwen().encode(SIDES) - changed).abs().max() > 1e-3


def test_a_language_model_reads_text_alone(tmp_path: Path) -> None:
    """Its template knows no parts of a turn; everything else is the same."""
    backbone = VisionLanguageBackbone(str(write_chat_model(tmp_path)), PromptStyle(system="Look."))
    assert backbone.modalities == {"text"}
    assert "system\nLook.<|end|>" in backbone.prompts.text(Side("Peru", "Find it."))
    broken = [found for found in check_contract(backbone) if not found.holds]
    assert not broken, broken
    with pytest.raises(ValueError, match="holds image"):
        backbone.encode(SIDES[1:2])


@torch.no_grad()
def test_a_rationale_may_extend_the_text() -> None:
    backbone = qwen(style=PromptStyle(rationale_in="text"))
    side = Side("what is it?", "Find it.", (picture(1),))
    longer = replace(side, text="what is it?\na red flag Peru")
    expected = backbone.encode([longer])
    assert (backbone.encode([side], [NOTE]) - expected).abs().max() < 1e-6
    paths = backbone.encode_paths([side, side], [NOTE, None], writes=False)
    assert (paths.reasoned_BD - torch.cat([expected, backbone.encode([side])])).abs().max() < 1e-5
    with pytest.raises(ValueError, match="set losses.next_token to 0"):
        backbone.encode_paths([side], [NOTE])
    with pytest.raises(ValueError, match="nothing can be written in one pass"):
        backbone.read_prompts([side], Sampling(4, 1.0, 1.0, 1))


def test_rationales_are_closed_before_they_are_read() -> None:
    assert whole_text(note("<think>a</think><answer>b</answer> c")) == NOTE_OF_A
    assert whole_text(note("<think>a")) == "<think>a</think><answer></answer>"
    assert whole_text(note("<answer>b")) == "<answer>b</answer>"
    stray = "<think>a</answer>b</think>c<answer>d"
    assert whole_text(note(f"{stray}</answer> e")) == whole_text(note(stray)) == f"{stray}</answer>"


NOTE_OF_A = "<think>a</think><answer>b</answer>"


@torch.no_grad()
def test_long_rationales_lose_their_beginning() -> None:
    long = note(f"<think>{'so ' * 50}</think><answer>Peru</answer>")
    short = qwen(max_rationale_tokens=30)
    assert short.prompts.tokenizer.decode(short._said(long)).endswith(
        "</think><answer>Peru</answer>"
    )
    assert len(short._said(long)) == 30
    with pytest.raises(ValueError, match="more than max_rationale_tokens 30"):
        qwen(max_rationale_tokens=30, long_rationale="error").encode(SIDES[:1], [long])


def test_what_cannot_be_trained_is_refused() -> None:
    backbone = qwen()
    backbone.attach_lora(LoraSettings(rank=2, alpha=4.0))
    with pytest.raises(ValueError, match="nothing would be trained"):
        backbone.encode_paths(SIDES[:1], [NOTE], detach=True)
    with pytest.raises(ValueError, match="only the updates learn"):
        qwen(freeze_vision=False).attach_lora(LoraSettings())


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    backbone = qwen()
    with pytest.raises(ValueError, match="has no pixels"):
        backbone.encode([Side(media=(replace(picture(1), pixels=None),))])
    with pytest.raises(FileNotFoundError, match='cannot be loaded: .* transformers .*it says "'):
        VisionLanguageBackbone(str(tmp_path))
    backbone.prompts.processor.chat_template = backbone.prompts.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        type(backbone.prompts)(backbone.prompts.processor, PromptStyle())


def test_saved_folders_never_ask_for_remote_code(tmp_path: Path) -> None:
    backbone = qwen(trust_remote_code=True)
    backbone.save_pretrained(tmp_path)
    assert '"trust_remote_code": false' in (tmp_path / "config.json").read_text()

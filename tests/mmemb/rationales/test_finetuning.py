"""Fine-tuning of a language model writer: the loss is the plain one, an adapter is what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM

from mmemb.llm.decoding.shared_prefix import SHARED_PREFIX_ATTENTION
from mmemb.llm.lora import LoraSettings
from mmemb.losses.terms import combine
from mmemb.rationales import LanguageModelWriter, TableWriter, load_writer
from mmemb.rationales.writers.language_model import ChatTuner
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY, SHORT, Rationale
from mmemb.storage.fingerprints import fingerprint
from mmemb.storage.json_files import write_json
from tests.fixtures.ranks import run_ranks
from tests.fixtures.tiny_language_model import byte_tokenizer, tiny_llama

LORA = LoraSettings(rank=2, alpha=4.0)
SIDES = [Side(text=text) for text in ("Paris", "the Nile delta", "Oslo")]
GREEDY_3 = torch.full((3, 1), GREEDY)


def rationale(think: str, answer: str, depth: str = "full") -> Rationale:
    text = f"<think>{think}</think><answer>{answer}</answer>" if think else f"<answer>{answer}"
    return Rationale(
        text if think else text + "</answer>", "w", "m", "1", "p", "d", 1, 8, None, depth
    )


KEPT = [rationale("In France.", "France"), rationale("A.", "Egypt"), rationale("N", "Norway")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random chat model and two prompt files."""
    folder = tmp_path_factory.mktemp("language_model")
    tiny_llama(258).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    examples = [{"query": "Rome", "think": "It is Italy.", "answer": "Italy"}]
    data = {"system": "Name it.", "examples": examples, "concepts": ["country:it"]}
    for name, form in {
        "tags.json": {},
        "arrow.json": {"opening": "", "between": " => ", "closing": ""},
        "short.json": {"opening": "", "closing": "\n", "depth": SHORT},
    }.items():
        (folder / name).write_text(json.dumps(data | form))
    return folder


def make_writer(folder: Path, prompt: str = "tags.json", **kwargs: Any) -> LanguageModelWriter:
    return LanguageModelWriter(str(folder), str(folder / prompt), max_new_tokens=12, **kwargs)


def stirred(folder: Path, prompt: str = "tags.json", scale: float = 0.3) -> ChatTuner:
    """A tuner whose updates are no longer zero."""
    tuner = make_writer(folder, prompt).tuner(LORA, seed=5)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuner.parameters.values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=random))
    return tuner


def saved(folder: Path, run: Path, facts: tuple[str, ...] = ("country:fr/capital",)) -> str:
    """An adapter as a run of RationaleGenerator leaves it."""
    stirred(folder).save(run / "generator")
    write_json(run / "fitted.json", {"facts": list(facts)})
    return str(run / "generator")


def gradients(tuner: ChatTuner) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in tuner.parameters.items()}


# ---- the loss


def plain_loss(tuner: ChatTuner, row: int) -> Tensor:
    """The slow and obvious way: one row, the whole prompt, labels masked by transformers."""
    chat = tuner._chat
    prompt = [*chat.prefix_ids, *chat.question_ids(SIDES[row].text)]
    reply = chat.reply_ids(KEPT[row])
    labels = torch.tensor([[-100] * len(prompt) + reply])
    return chat.model(torch.tensor([prompt + reply]), labels=labels).loss * len(reply)


@pytest.mark.parametrize("prompt", ["tags.json", "arrow.json", "short.json"])
def test_the_loss_is_that_of_a_plain_forward(folder: Path, prompt: str) -> None:
    tuner = stirred(folder, prompt)
    term = tuner.loss(SIDES, KEPT)
    term.sum.backward()
    found = gradients(tuner)
    for parameter in tuner.parameters.values():
        parameter.grad = None
    tuner._chat.model.set_attn_implementation("sdpa")
    expected = sum(plain_loss(tuner, row) for row in range(3))
    expected.backward()
    assert term.count == sum(len(tuner._chat.reply_ids(r)) for r in KEPT)
    assert term.sum.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in gradients(tuner).items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, atol=1e-4 * largest, rtol=1e-3)
        assert largest > 1e-3


def test_a_model_that_shares_nothing_learns_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stirred(folder).loss(SIDES, KEPT).sum.item()
    wrong = AttentionInterface._global_mapping["sdpa"]  # ignores the prefix: results differ
    monkeypatch.setitem(AttentionInterface._global_mapping, SHARED_PREFIX_ATTENTION, wrong)
    tuner = stirred(folder)
    assert not tuner._shared
    assert tuner.loss(SIDES, KEPT).sum.item() == pytest.approx(expected, rel=1e-5)


def test_a_reply_is_what_the_writer_would_have_to_write(folder: Path) -> None:
    for prompt in ("tags.json", "arrow.json"):
        chat = make_writer(folder, prompt)._chat
        ids = chat.reply_ids(KEPT[0])
        assert make_writer(folder, prompt)._is_complete(ids)
        text = chat.tokenizer.decode(ids, skip_special_tokens=True)
        assert chat.prompt.rationale_text(text, True) == KEPT[0].text
    short = make_writer(folder, "short.json")._chat
    assert short.tokenizer.decode(short.reply_ids(KEPT[0])) == "France\n"
    with pytest.raises(ValueError, match=r"lacks a thought or an answer.*data\.writer"):
        make_writer(folder)._chat.reply_ids(rationale("", "France", SHORT))


def test_ranks_with_unequal_numbers_of_tokens_give_the_gradient_of_one(folder: Path) -> None:
    one = stirred(folder)
    combine(one.loss(SIDES, KEPT)).backward()

    def rank_gradients(rank: int) -> dict[str, Tensor]:
        tuner, rows = stirred(folder), slice(0, 1) if rank == 0 else slice(1, 3)
        combine(tuner.loss(SIDES[rows], KEPT[rows])).backward()
        return gradients(tuner)

    first, second = run_ranks(rank_gradients, 2)
    for name, expected in gradients(one).items():
        mean = (first[name] + second[name]) / 2  # what DDP does
        torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-3)


def test_learning_makes_the_kept_replies_likely(folder: Path) -> None:
    writer = make_writer(folder)
    tuner = writer.tuner(LoraSettings(rank=8), seed=0)
    frozen = {n: p for n, p in tuner._chat.model.named_parameters() if not p.requires_grad}
    before = {name: p.clone() for name, p in frozen.items()}
    optimizer = torch.optim.AdamW(tuner.parameters.values(), lr=0.04, weight_decay=0.0)
    losses = []
    for _ in range(16):
        optimizer.zero_grad()
        loss = combine(tuner.loss(SIDES, KEPT))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert len(frozen) + len(tuner.parameters) == len(list(tuner._chat.model.parameters()))
    assert all(torch.equal(before[name], p) for name, p in frozen.items())


# ---- the adapter


def test_a_writer_with_an_adapter_is_another_writer(folder: Path, tmp_path: Path) -> None:
    plain, fitted = make_writer(folder), make_writer(folder, adapter=saved(folder, tmp_path))
    texts = [[[r.text for r in pool] for pool in w.write(SIDES, GREEDY_3)] for w in (plain, fitted)]
    assert texts[0] != texts[1]
    assert fitted._chat.shares_prefix
    assert fitted.write(SIDES, GREEDY_3)[0][0].revision == fitted.revision
    assert fitted.revision.startswith(f"{plain.revision}+")
    assert plain.identity() != fitted.identity()
    again = load_writer(fitted.spec())
    assert again.identity() == fitted.identity()
    assert again.write(SIDES, GREEDY_3) == fitted.write(SIDES, GREEDY_3)
    assert not torch.equal(plain.prompt_states(SIDES), fitted.prompt_states(SIDES))
    assert (plain.trained_facts, fitted.trained_facts) == (frozenset(), {"country:fr/capital"})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # asked by peft
def test_merged_weights_compute_what_the_updates_do(folder: Path, tmp_path: Path) -> None:
    """Ours merged, ours with updates, and peft's own reading of the saved folder."""
    tuner, merged = (
        stirred(folder),
        make_writer(folder, adapter=saved(folder, tmp_path))._chat.model,
    )
    base = AutoModelForCausalLM.from_pretrained(folder)
    peft = PeftModel.from_pretrained(base, tmp_path / "generator").eval()
    tuner._chat.model.set_attn_implementation("sdpa")
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        logits = [m(ids).logits for m in (merged, tuner._chat.model, peft)]
        untuned = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    assert (logits[0] - logits[1]).abs().max() < 1e-4
    assert (logits[0] - logits[2]).abs().max() < 1e-4
    assert (logits[0] - untuned).abs().max() > 0.1


def test_identity_and_fingerprint_follow_the_content_of_an_adapter(
    folder: Path, tmp_path: Path
) -> None:
    adapter = saved(folder, tmp_path / "one")
    other = saved(folder, tmp_path / "two")
    assert (
        make_writer(folder, adapter=adapter).identity()
        == make_writer(folder, adapter=other).identity()
    )
    before, mark = make_writer(folder, adapter=other).identity(), fingerprint({"adapter": other})
    stirred(folder, scale=0.2).save(Path(other))
    assert make_writer(folder, adapter=other).identity() != before
    assert fingerprint({"adapter": other}) != mark


def test_nothing_but_plain_lora_of_this_model_is_merged(folder: Path, tmp_path: Path) -> None:
    adapter = Path(saved(folder, tmp_path))
    assert sorted(path.suffix for path in adapter.iterdir()) == [".json", ".json", ".safetensors"]
    config, content = adapter / "adapter_config.json", (adapter / "adapter_config.json").read_text()
    for change, message in {
        '{"use_dora": true, ': "asks for use_dora: expected plain LoRA",
        '{"megatron_config": {"x": 1}, "megatron_core": "os", ': "asks for megatron_config, mega",
        '{"peft_type": "IA3", "x": 0} ': "is broken",
    }.items():
        config.write_text(content.replace("{", change, 1))
        with pytest.raises(ValueError, match=message):
            make_writer(folder, adapter=str(adapter)).write(SIDES, GREEDY_3)
    config.write_text(content.replace('"r": 2', '"r": 3'))
    with pytest.raises(ValueError, match="was made for another model"):
        make_writer(folder, adapter=str(adapter)).write(SIDES, GREEDY_3)
    with pytest.raises(FileNotFoundError, match="has no adapter_config"):
        make_writer(folder, adapter=str(tmp_path)).write(SIDES, GREEDY_3)


def test_what_cannot_be_fitted_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fits the base model anew"):
        make_writer(folder, adapter=saved(folder, tmp_path)).tuner(LORA, 0)
    with pytest.raises(ValueError, match=r"LoRA targets .*nonsense.* do not fit"):
        make_writer(folder).tuner(LoraSettings(targets=("nonsense",)), 0)
    with pytest.raises(ValueError, match="a rank of at least 1"):
        LoraSettings(rank=0)
    (tmp_path / "facts.json").write_text('{"questions": {}, "countries": {}}')
    with pytest.raises(ValueError, match="'table' has no weights that could be fitted"):
        TableWriter(str(tmp_path / "facts.json")).tuner(LORA, 0)
    (tmp_path / "fitted.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"fitted\.json is missing"):
        _ = make_writer(folder, adapter=str(tmp_path / "generator")).trained_facts

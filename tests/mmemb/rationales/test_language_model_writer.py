"""LanguageModelWriter with a tiny model, and its prompt files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from transformers import AttentionInterface

from datamodules.prepare.pocket.splits import Split
from mmemb.llm import FewShotPrompt
from mmemb.llm.decoding.shared_prefix import SHARED_PREFIX_ATTENTION
from mmemb.rationales import NO_DRAW, LanguageModelWriter, load_writer, merge_drafts
from mmemb.records.inputs import Media, Side
from mmemb.records.rationales import GREEDY, SHORT, Rationale
from mmemb.records.schema import to_json
from tests.fixtures.paths import POCKET_PROMPT
from tests.fixtures.tiny_language_model import byte_tokenizer, tiny_llama

COUNTRIES = """
ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bl bm bn bo bq br bs bt
bv bw by bz ca cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg eh
er es et fi fj fk fm fo fr ga gb gd ge gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht
hu id ie il im in io iq ir is it je jm jo jp ke kg kh ki km kn kp kr kw ky kz la lb lc li lk lr ls
lt lu lv ly ma mc md me mf mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw mx my mz na nc ne nf ng ni
nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs ru rw sa sb sc sd se sg
sh si sj sk sl sm sn so sr ss st sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw tz ua ug
um us uy uz va vc ve vg vi vn vu wf ws xk ye yt za zm zw
"""
"""Every country with a flag in the gallery: what the prepared data cuts into parts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random chat model, and prompt files that suit its babble."""
    folder = tmp_path_factory.mktemp("language_model")
    tokenizer, model = byte_tokenizer(), tiny_llama(258)
    loud_V1 = torch.full((258, 1), 0.1)
    loud_V1[[1, *tokenizer.encode("abcdefgh")]] = 2.0  # babble in few letters, and an end at times
    with torch.no_grad():
        model.lm_head.weight.mul_(loud_V1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    examples = [{"query": "Rome", "think": "It is Italy.", "answer": "Italy"}]
    data = {"system": "Name it.", "examples": examples, "concepts": ["country:it"]}
    for name, form in {
        "tags.json": {},
        "broad.json": {"opening": "", "between": "e", "closing": "a"},
        "short.json": {"opening": "", "closing": "a", "depth": SHORT},
    }.items():
        (folder / name).write_text(json.dumps(data | form))
    return folder


def make_writer(folder: Path, prompt: str = "broad.json", **kwargs: Any) -> LanguageModelWriter:
    settings = {"max_new_tokens": 24, "temperature": 1.5, "top_p": 1.0, "top_k": 200}
    return LanguageModelWriter(str(folder), str(folder / prompt), **settings | kwargs)


SIDES = [Side(text="Paris"), Side(media=(Media("image", "0" * 64),)), Side(text="the Nile delta")]
SEEDS = torch.tensor([[GREEDY, 21, 22], [GREEDY, 23, 24], [25, 26, NO_DRAW]])


def as_bytes(written: list[list[Rationale]]) -> bytes:
    return json.dumps([[to_json(r) for r in pool] for pool in written]).encode()


def test_equal_calls_give_equal_bytes(folder: Path) -> None:
    state = torch.get_rng_state()
    writer = make_writer(folder)
    first = writer.write(SIDES, SEEDS)
    assert as_bytes(first) == as_bytes(writer.write(SIDES, SEEDS))
    assert as_bytes(first) == as_bytes(load_writer(writer.spec()).write(SIDES, SEEDS))
    assert torch.equal(state, torch.get_rng_state())


def test_unreadable_sides_and_padding_get_nothing(folder: Path) -> None:
    written = make_writer(folder).write(SIDES, SEEDS)
    assert [[r.seed for r in pool] for pool in written] == [[GREEDY, 21, 22], [], [25, 26]]
    assert {r.provenance for pool in written for r in pool} == {"one-sided"}
    with pytest.raises(ValueError, match=r"expected \(3, K\)"):
        make_writer(folder).write(SIDES, SEEDS[:2])


def test_a_shard_of_pictures_alone_gets_nothing(folder: Path) -> None:
    writer = make_writer(folder)
    assert writer.write(SIDES[:1], SEEDS[:1]) != [[]]
    assert writer.write([SIDES[1]], SEEDS[1:2]) == [[]]
    assert writer.write([], SEEDS[:0]) == []


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batch_size_changes_no_text(folder: Path, batch_size: int) -> None:
    expected = make_writer(folder, batch_size=3).write(SIDES, SEEDS)
    written = make_writer(folder, batch_size=batch_size).write(SIDES, SEEDS)
    for one, other in zip(sum(expected, []), sum(written, []), strict=True):
        assert (one.text, one.num_tokens) == (other.text, other.num_tokens)
        assert one.log_probability == pytest.approx(other.log_probability, abs=2e-4)
        assert one.log_probability == round(one.log_probability, 4)


def test_draws_stop_at_the_closing_text(folder: Path) -> None:
    seeds = torch.arange(40)[None]
    (pool,) = make_writer(folder, temperature=4.0, top_k=12).write(SIDES[:1], seeds)
    whole = [r for r in pool if r.answer]
    assert whole
    assert len({r.num_tokens for r in whole}) > 1
    assert all(r.num_tokens <= 24 for r in pool)
    assert all("a" not in r.plain for r in whole)
    kept, dropped = merge_drafts(pool)
    assert sum(r.count for r in kept) + dropped.total() == 40
    assert dropped["malformed"] > 0


def test_short_rationales_hold_an_answer_only(folder: Path) -> None:
    (pool,) = make_writer(folder, "short.json", max_new_tokens=60).write(
        SIDES[:1], torch.arange(9)[None]
    )
    assert {r.depth for r in pool} == {SHORT}
    assert any(r.answer and not r.thinking for r in pool)
    kept, _ = merge_drafts(pool)
    assert kept


def test_a_model_that_shares_nothing_is_decoded_plainly(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_writer(folder).write(SIDES, SEEDS)
    wrong = AttentionInterface._global_mapping["sdpa"]  # ignores the prefix: results differ
    monkeypatch.setitem(AttentionInterface._global_mapping, SHARED_PREFIX_ATTENTION, wrong)
    writer = make_writer(folder)
    assert [[r.text for r in p] for p in writer.write(SIDES, SEEDS)] == [
        [r.text for r in p] for p in expected
    ]
    assert writer._drafter.model.prefix is None


def test_the_fast_decoder_is_the_usual_one(folder: Path) -> None:
    assert make_writer(folder)._drafter.model.prefix is not None


def test_identity_covers_prompt_model_and_settings(folder: Path) -> None:
    same = make_writer(folder).identity()
    assert same != make_writer(folder, prompt_state_layer=0).identity()
    assert same == make_writer(folder).identity()
    assert same != make_writer(folder, "tags.json").identity()
    assert same != make_writer(folder, temperature=0.9).identity()


def test_a_missing_model_is_one_clear_error(folder: Path, tmp_path: Path) -> None:
    writer = LanguageModelWriter(str(tmp_path), str(folder / "tags.json"))
    with pytest.raises(FileNotFoundError, match="cannot be loaded"):
        writer.write(SIDES, SEEDS)


def test_generated_text_is_put_into_tags(folder: Path) -> None:
    tags = FewShotPrompt.load(folder / "tags.json")
    arrow = replace(tags, opening="", between=" => ", closing="")
    expected = "<think>It is Rome.</think><answer>Italy</answer>"
    assert tags.rationale_text("It is Rome.</think><answer>Italy</answer>x", True) == expected
    assert arrow.rationale_text("It is Rome. => Italy", True) == expected
    assert arrow.rationale_text("It is Rome. => Ita", False).endswith("<answer>Ita")
    assert arrow.rationale_text("It is Rome.", True) == "<think>It is Rome."


def test_a_prompt_shares_all_but_the_question(folder: Path) -> None:
    prompt, tokenizer = FewShotPrompt.load(folder / "tags.json"), byte_tokenizer()
    shared = prompt.shared_text(tokenizer)
    assert shared.endswith("Italy</answer><|end|>\n<|start|>user\n")
    assert prompt.render(tokenizer, "Oslo") == f"{shared}Oslo<|end|>\n<|start|>assistant\n<think>"


def test_broken_prompt_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "prompt.json"
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        FewShotPrompt.load(path)
    unknown_field = json.dumps({"examples": [], "concepts": [], "query": "{txt}"})
    for content in (
        unknown_field,
        "{",
        "[]",
        '{"system": ""}',
        '{"systm": "", "examples": [], "concepts": []}',
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"prompt\.json cannot be used(?!.*Error\()"):
            FewShotPrompt.load(path)


def test_the_pocket_prompt_names_train_concepts_only() -> None:
    prompt = FewShotPrompt.load(POCKET_PROMPT)
    split = Split.of((f"country:{code}" for code in COUNTRIES.split()), "country")
    named = {c for c in prompt.concepts if c.startswith("country:")}
    assert {split.split_of[concept] for concept in named} == {"train"}
    # A mixed row asks about train countries: none of the prompt's may be in the test.
    assert "test" not in {split.mixed[concept] for concept in named}
    assert len({example.answer for example in prompt.examples}) == len(prompt.concepts)

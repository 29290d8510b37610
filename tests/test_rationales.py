"""Rationale workers: decoding, prompts, pools and controls, with tiny models made on the spot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from datamodules.prepare.splits import Split
from mmemb.rationales import (
    NO_DRAW,
    FewShotPrompt,
    ForeignWorker,
    LanguageModelWorker,
    PrecomputedWorker,
    RationaleWorker,
    TableWorker,
    collect_pool,
    fold_candidates,
    load_worker,
    write_pool,
)
from mmemb.rationales.decoders import (
    SHARED_PREFIX_ATTENTION,
    SharedPrefixDecoder,
    WholePromptDecoder,
    causal_mask,
)
from mmemb.rationales.sampling import Decoder, Sampling, choose_tokens, decode
from mmemb.records import GREEDY, SHORT, Media, Rationale, Side, to_json

POCKET_PROMPT = Path(__file__).parents[1] / "experiments/configs/pocket/few_shot.json"
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

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
PREFIX = [7, 50, 31, 90, 11]
PROMPTS = [[5, 6, 7, 8, 9, 10], [40], [3, 80, 12]]
SAMPLING = Sampling(max_new_tokens=9, temperature=1.2, top_p=0.9, top_k=30)


def tiny_llama(vocab_size: int = 97) -> PreTrainedModel:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        initializer_range=0.4, eos_token_id=1, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tiny_gpt2() -> PreTrainedModel:
    torch.manual_seed(4)
    config = GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.4,
        eos_token_id=1, bos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


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


# ---- decoding


def test_log_probability_is_that_of_a_full_forward(
    decoding: tuple[Decoder, PreTrainedModel],
) -> None:
    decoder, model = decoding
    seeds = [GREEDY, 11, GREEDY, 12, GREEDY, 13]
    draws = decode(decoder, PROMPTS, [0, 0, 1, 1, 2, 2], seeds, SAMPLING, lambda t: t[-1] < 20)
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
    together = decode(decoder, PROMPTS, rows, seeds, SAMPLING, lambda t: t[-1] < 20)
    for draw, row, seed in zip(together, rows, seeds, strict=True):
        (alone,) = decode(decoder, [PROMPTS[row]], [0], [seed], SAMPLING, lambda t: t[-1] < 20)
        assert alone.tokens == draw.tokens
        assert alone.complete == draw.complete
        assert alone.log_probability == pytest.approx(draw.log_probability, abs=1e-4)


def test_seeds_decide_and_the_global_generator_is_left_alone(
    decoding: tuple[Decoder, PreTrainedModel],
) -> None:
    decoder, _ = decoding
    state = torch.get_rng_state()
    first, again, other = (
        decode(decoder, PROMPTS, [0], [seed], SAMPLING, never)[0].tokens for seed in (1, 1, 2)
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
    draws = decode(decoder, [[0]] * 4, [0, 1, 2, 3], [GREEDY] * 4, sampling, lambda t: t[-1] == 9)
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


# ---- the language model worker


def byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|start|>": 0, "<|end|>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>",
        chat_template=TEMPLATE,
    )  # fmt: skip


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


def worker(folder: Path, prompt: str = "broad.json", **kwargs: Any) -> LanguageModelWorker:
    settings = {"max_new_tokens": 24, "temperature": 1.5, "top_p": 1.0, "top_k": 200}
    return LanguageModelWorker(str(folder), str(folder / prompt), **settings | kwargs)


SIDES = [Side(text="Paris"), Side(media=(Media("image", "0" * 64),)), Side(text="the Nile delta")]
SEEDS = torch.tensor([[GREEDY, 21, 22], [GREEDY, 23, 24], [25, 26, NO_DRAW]])


def as_bytes(written: list[list[Rationale]]) -> bytes:
    return json.dumps([[to_json(r) for r in pool] for pool in written]).encode()


def test_equal_calls_give_equal_bytes(folder: Path) -> None:
    state = torch.get_rng_state()
    writer = worker(folder)
    first = writer.write(SIDES, SEEDS)
    assert as_bytes(first) == as_bytes(writer.write(SIDES, SEEDS))
    assert as_bytes(first) == as_bytes(load_worker(writer.settings()).write(SIDES, SEEDS))
    assert torch.equal(state, torch.get_rng_state())


def test_unreadable_sides_and_padding_get_nothing(folder: Path) -> None:
    written = worker(folder).write(SIDES, SEEDS)
    assert [[r.seed for r in pool] for pool in written] == [[GREEDY, 21, 22], [], [25, 26]]
    assert {r.provenance for pool in written for r in pool} == {"one-sided"}
    with pytest.raises(ValueError, match=r"expected \(3, K\)"):
        worker(folder).write(SIDES, SEEDS[:2])


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batch_size_changes_no_text(folder: Path, batch_size: int) -> None:
    expected = worker(folder, batch_size=3).write(SIDES, SEEDS)
    written = worker(folder, batch_size=batch_size).write(SIDES, SEEDS)
    for one, other in zip(sum(expected, []), sum(written, []), strict=True):
        assert (one.text, one.num_tokens) == (other.text, other.num_tokens)
        assert one.log_probability == pytest.approx(other.log_probability, abs=2e-4)
        assert one.log_probability == round(one.log_probability, 4)


def test_draws_stop_at_the_closing_text(folder: Path) -> None:
    seeds = torch.arange(40)[None]
    (pool,) = worker(folder, temperature=4.0, top_k=12).write(SIDES[:1], seeds)
    whole = [r for r in pool if r.answer]
    assert whole
    assert len({r.num_tokens for r in whole}) > 1
    assert all(r.num_tokens <= 24 for r in pool)
    assert all("a" not in r.plain for r in whole)
    kept, dropped = fold_candidates(pool)
    assert sum(r.count for r in kept) + dropped.total() == 40
    assert dropped["malformed"] > 0


def test_short_rationales_hold_an_answer_only(folder: Path) -> None:
    (pool,) = worker(folder, "short.json", max_new_tokens=60).write(
        SIDES[:1], torch.arange(9)[None]
    )
    assert {r.depth for r in pool} == {SHORT}
    assert any(r.answer and not r.thinking for r in pool)
    kept, _ = fold_candidates(pool)
    assert kept


def test_a_model_that_shares_nothing_is_decoded_plainly(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = worker(folder).write(SIDES, SEEDS)
    wrong = AttentionInterface._global_mapping["sdpa"]  # ignores the prefix: results differ
    monkeypatch.setitem(AttentionInterface._global_mapping, SHARED_PREFIX_ATTENTION, wrong)
    writer = worker(folder)
    assert [[r.text for r in p] for p in writer.write(SIDES, SEEDS)] == [
        [r.text for r in p] for p in expected
    ]
    assert isinstance(writer._decoder, WholePromptDecoder)


def test_the_fast_decoder_is_the_usual_one(folder: Path) -> None:
    assert isinstance(worker(folder)._decoder, SharedPrefixDecoder)


def test_identity_covers_prompt_model_and_settings(folder: Path) -> None:
    same = worker(folder).identity()
    assert same == worker(folder).identity()
    assert same != worker(folder, "tags.json").identity()
    assert same != worker(folder, temperature=0.9).identity()


def test_a_missing_model_is_one_clear_error(folder: Path, tmp_path: Path) -> None:
    writer = LanguageModelWorker(str(tmp_path), str(folder / "tags.json"))
    with pytest.raises(FileNotFoundError, match="cannot be loaded"):
        writer.write(SIDES, SEEDS)


# ---- prompts and folding


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
    for content in ("{", "[]", '{"system": ""}', '{"systm": "", "examples": [], "concepts": []}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"prompt\.json cannot be used"):
            FewShotPrompt.load(path)


def test_the_pocket_prompt_names_train_concepts_only() -> None:
    prompt = FewShotPrompt.load(POCKET_PROMPT)
    split = Split.of((f"country:{code}" for code in COUNTRIES.split()), "country")
    named = {c for c in prompt.concepts if c.startswith("country:")}
    assert {split.parts[concept] for concept in named} == {"train"}
    # A mixed row asks about train countries: none of the prompt's may be in the test.
    assert "test" not in {split.mixed[concept] for concept in named}
    assert len({answer for *_, answer in prompt.examples}) == len(prompt.concepts)


def rationale(text: str, seed: int = 1, **kwargs: Any) -> Rationale:
    fields = {"worker": "w", "model": "m", "revision": "r", "prompt": "p", "decoding": "d"}
    return Rationale(text=text, seed=seed, num_tokens=9, **fields | kwargs)


def test_folding_merges_drops_and_counts() -> None:
    good = "<think>a</think><answer>b</answer>"
    pool = [
        rationale(good, 1),
        rationale("<think>a", 2),
        rationale(good, GREEDY),
        rationale(good, 3, worker="other"),
        rationale("<answer>b</answer>", 4),
        rationale("<answer>b</answer>", 5, depth=SHORT),
        replace(rationale(good.replace("b", "c"), 6), num_tokens=97),
    ]
    kept, dropped = fold_candidates(pool, max_tokens=96)
    assert [(r.worker, r.seed, r.count) for r in kept] == [
        ("w", GREEDY, 2), ("other", 3, 1), ("w", 5, 1),
    ]  # fmt: skip
    assert dropped == {"malformed": 2, "over_long": 1}


# ---- table, control, precomputed, loading


@pytest.fixture
def facts(tmp_path: Path) -> str:
    path = tmp_path / "facts.json"
    countries = {"fr": {"name": "France"}}
    path.write_text(json.dumps({"countries": countries, "questions": {"capital Paris": "fr"}}))
    return str(path)


def test_the_table_answers_what_it_knows(facts: str) -> None:
    sides = [Side(text="capital Paris"), Side(text="capital Oslo")]
    known, unknown = TableWorker(facts).write(sides, torch.tensor([[GREEDY, 4], [GREEDY, 4]]))
    assert [r.answer for r in known] == ["France", "France"]
    assert {r.worker for r in known} == {"table"}
    assert unknown == []
    assert len(fold_candidates(known)[0]) == 1


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no table of facts"):
        TableWorker(str(tmp_path / "facts.json"))
    (tmp_path / "facts.json").write_text('{"questions": {"a": "fr"}, "countries": {}}')
    with pytest.raises(ValueError, match=r"facts\.json cannot be used"):
        TableWorker(str(tmp_path / "facts.json"))


TEXTS = [Side(text=name) for name in ("a", "b", "c")]
POOL = collect_pool(
    TEXTS, [[rationale(f"<think>{s.text}</think>", k) for k in (1, 2)] for s in TEXTS]
)


def test_foreign_rationales_come_from_others() -> None:
    control = ForeignWorker(POOL)
    written = control.write(TEXTS, torch.tensor([[GREEDY, 3, 4]] * 3))
    assert written == control.write(TEXTS, torch.tensor([[GREEDY, 3, 4]] * 3))
    for side, pool in zip(TEXTS, written, strict=True):
        assert all(r.thinking != side.text and r.worker == "foreign" for r in pool)
    with pytest.raises(ValueError, match="holds no rationale that is foreign"):
        ForeignWorker({TEXTS[0].digest: POOL[TEXTS[0].digest]}).write(
            TEXTS[:1], torch.tensor([[1]])
        )


def test_precomputed_rationales_are_found_by_content() -> None:
    stranger = Side(text="d")
    writer = PrecomputedWorker.over(TEXTS, list(POOL.values()), frozenset({"text"}))
    written = writer.write([TEXTS[1], stranger], torch.tensor([[2, GREEDY], [1, NO_DRAW]]))
    assert [(r.thinking, r.seed) for r in written[0]] == [("b", 2), ("b", 1)]
    assert written[1] == []
    with pytest.raises(ValueError, match="No rationale was written"):
        PrecomputedWorker(POOL).write([stranger], torch.tensor([[1]]))


def test_workers_come_back_from_their_settings(folder: Path, facts: str) -> None:
    write_pool(folder / "pool.json", POOL)
    path = str(folder / "pool.json")
    workers: list[RationaleWorker] = [
        worker(folder), TableWorker(facts), ForeignWorker(path), PrecomputedWorker(path),
    ]  # fmt: skip
    for saved in workers:
        loaded = load_worker(json.loads(json.dumps(saved.settings())))
        assert type(loaded) is type(saved)
        assert (loaded.settings(), loaded.identity()) == (saved.settings(), saved.identity())
    assert load_worker(PrecomputedWorker(path).settings()).pool == POOL
    with pytest.raises(ValueError, match="in memory"):
        ForeignWorker(POOL).settings()


@pytest.mark.parametrize(
    "settings",
    [
        {"class_path": "subprocess.Popen", "init_args": {"args": "true"}},
        {"class_path": "mmemb.rationales.RationaleWorker"},
        {"class_path": "mmemb.rationales.write_pool"},
        {"class_path": "mmemb.rationales.table.TableWorker"},
        {"class_path": "mmemb.rationales.TableWorker", "init_args": {"fact": "x"}},
        {},
    ],
)
def test_settings_name_our_workers_only(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="class_path|unknown key"):
        load_worker(settings)

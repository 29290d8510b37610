"""VllmWriter against a stand-in with vLLM's interface: what is asked, and what is made of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, final

import pytest
import torch

from mmemb.rationales import NO_DRAW, VllmWriter, load_writer
from mmemb.records.inputs import Media, Side
from mmemb.records.rationales import GREEDY, SHORT, Rationale

SIDES = [Side(text="Paris"), Side(media=(Media("image", "0" * 64),)), Side(text="the Nile")]
SEEDS = torch.tensor([[GREEDY, 21, 22], [GREEDY, 23, 24], [2**62 + 25, 26, NO_DRAW]])
GOOD = "It is France.</think><answer>France</answer>"


@final
class Tokenizer:
    """Tokens are the numbers of letters; a picture is a `#`."""

    all_special_tokens = ("<|end|>",)

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> str:
        assert kwargs == {"tokenize": False, "add_generation_prompt": True}
        return "\n".join(f"{m['role']}: {_said(m['content'])}" for m in messages) + "\nassistant: "

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens, "the template has put them there"
        return list(map(ord, text))


def _said(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join("#" if part["type"] == "image" else part["text"] for part in content)


@final
@dataclass(frozen=True)
class Completion:
    """`vllm.CompletionOutput`, as far as it is read."""

    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    finish_reason: str | None


@final
@dataclass(frozen=True)
class Request:
    """`vllm.RequestOutput`, as far as it is read."""

    outputs: list[Completion]


ENGINE = {
    "model", "revision", "dtype", "seed", "tokenizer", "trust_remote_code", "max_model_len",
    "enable_prefix_caching", "limit_mm_per_prompt", "tensor_parallel_size",
    "gpu_memory_utilization", "quantization", "enforce_eager",
}  # fmt: skip
PARAMS = {
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids",
    "include_stop_str_in_output", "logprobs", "n", "skip_special_tokens",
}  # fmt: skip
"""Some of the arguments that vLLM documents."""


@final
class Engine:
    """`vllm` itself: `LLM`, `SamplingParams`, and a note of every call."""

    def __init__(
        self, said: Any = GOOD, reason: str = "stop", log_prob: float | None = -1.5
    ) -> None:
        self.said, self.reason, self.log_prob = said, reason, log_prob
        self.made: list[dict[str, Any]] = []
        self.calls: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []

    def LLM(self, **kwargs: Any) -> Engine:
        assert set(kwargs) <= ENGINE, "vLLM has no such argument"
        self.made.append(kwargs)
        return self

    def SamplingParams(self, **kwargs: Any) -> dict[str, Any]:
        assert set(kwargs) <= PARAMS, "vLLM has no such argument"
        return kwargs

    def get_tokenizer(self) -> Tokenizer:
        return Tokenizer()

    def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool) -> list[Request]:
        assert not use_tqdm
        self.calls.append((prompts, sampling_params))
        return [Request([self._answer(p)]) for p in sampling_params]

    def _answer(self, params: Mapping[str, Any]) -> Completion:
        text = self.said(params) if callable(self.said) else self.said
        return Completion(text, (1, 2, 3), self.log_prob, self.reason)


def install(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Engine:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = engine.LLM, engine.SamplingParams  # type: ignore
    monkeypatch.setitem(sys.modules, "vllm", module)
    return engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text("{}")
    (folder / "model/model.safetensors").write_bytes(b"weights")
    examples = [{"query": "Rome", "think": "It is Italy.", "answer": "Italy"}]
    data = {"system": "Name it.", "examples": examples, "concepts": ["country:it"]}
    for name, form in {
        "tags.json": {},
        "open.json": {"closing": ""},
        "short.json": {"opening": "", "between": "", "closing": "", "depth": SHORT},
    }.items():
        (folder / name).write_text(json.dumps(data | form))
    return folder


def make_writer(folder: Path, prompt: str = "tags.json", **kwargs: Any) -> VllmWriter:
    return VllmWriter(str(folder / "model"), str(folder / prompt), **kwargs)


def as_text(prompt: Mapping[str, Any]) -> str:
    return "".join(map(chr, prompt["prompt_token_ids"]))


def test_every_draw_is_one_request_with_its_seed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = install(monkeypatch, Engine())
    writer = make_writer(folder, engine={"max_model_len": 512})
    assert not engine.made, "it loads with the first draw"
    written = writer.write(SIDES, SEEDS)
    assert [[r.seed for r in pool] for pool in written] == [SEEDS[0].tolist(), [], [2**62 + 25, 26]]
    assert written[0][0] == Rationale(
        text="<think>It is France.</think><answer>France</answer>",
        writer="vllm",
        model="model",
        revision=writer.revision,
        prompt=writer.prompt.identity,
        decoding="greedy n=96",
        seed=GREEDY,
        num_tokens=3,
        log_probability=-1.5,
    )
    assert written[2][1].decoding == "t=0.8 p=0.95 k=50 n=96"
    ((prompts, params),) = engine.calls
    assert [as_text(p).splitlines()[-2:] for p in prompts] == [
        *[["user: Paris", "assistant: <think>"]] * 3,
        *[["user: the Nile", "assistant: <think>"]] * 2,
    ]
    assert as_text(prompts[0]).startswith("system: Name it.\nuser: Rome\nassistant: <think>It is")
    shared = {"max_tokens": 96, "stop": ["</answer>"], "include_stop_str_in_output": True}
    shared |= {"logprobs": 0}
    assert params[0] == shared | {"temperature": 0.0}
    assert params[1] == shared | {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "seed": 21}
    assert all(0 <= p["seed"] < 2**31 for p in params[1:])
    (made,) = engine.made
    assert made == {
        "model": str(folder / "model"), "revision": None, "dtype": "auto",
        "enable_prefix_caching": True, "max_model_len": 512,
    }  # fmt: skip


def test_equal_calls_ask_equally_and_a_saved_writer_is_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = install(monkeypatch, Engine(lambda params: f"{params.get('seed')}{GOOD}"))
    writer = make_writer(folder, reads=["text", "image"], engine={"max_model_len": 99}, top_k=7)
    again = load_writer(writer.spec())
    assert writer.write(SIDES[::2], SEEDS[::2]) == again.write(SIDES[::2], SEEDS[::2])
    assert engine.calls[0] == engine.calls[1]
    assert again.identity() == writer.identity()


def test_draws_that_were_cut_have_no_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Engine("It is</think><answer>Fra", "length", None))
    ((cut,),) = make_writer(folder).write(SIDES[:1], SEEDS[:1, :1])
    assert (cut.text, cut.answer) == ("<think>It is</think><answer>Fra", "")
    assert cut.log_probability is None
    install(monkeypatch, Engine(GOOD, "length"))
    ((whole,),) = make_writer(folder).write(SIDES[:1], SEEDS[:1, :1])
    assert whole.answer == "France", "the closing text came with the last token"
    engine = install(monkeypatch, Engine("France"))
    ((short,),) = make_writer(folder, "short.json").write(SIDES[:1], SEEDS[:1, :1])
    assert (short.text, short.depth) == ("<answer>France</answer>", SHORT)
    assert engine.calls[0][1][0]["stop"] is None, "an empty text would be an error"


def test_pictures_and_frames_travel_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = install(monkeypatch, Engine())
    pixels = torch.randint(0, 256, (3, 5, 8), dtype=torch.uint8)
    frames = tuple(Media("frame", str(n), pixels.roll(n, 2)) for n in range(2))
    sides = [Side(text="what", media=(Media("image", "a", pixels),)), Side(media=frames)]
    writer = make_writer(folder, reads=["text", "image", "video"], max_image_side=4, max_pictures=2)
    writer.write(sides, torch.tensor([[GREEDY], [5]]))
    (first, second), _ = engine.calls[0]
    assert as_text(first).splitlines()[-2:] == ["user: #what", "assistant: <think>"]
    assert as_text(second).splitlines()[-2] == "user: ##"
    assert [max(p.size) for p in second["multi_modal_data"]["image"]] == [4, 4]
    large = make_writer(folder, reads=["text", "image", "video"])
    large.write(sides, torch.tensor([[GREEDY], [5]]))
    shown = engine.calls[1][0][1]["multi_modal_data"]["image"]
    for image, frame in zip(shown, frames, strict=True):
        raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        assert torch.equal(raw.reshape(5, 8, 3).permute(2, 0, 1), frame.pixels)
    thin = Media("image", "thin", pixels[:, :1, :1].expand(3, 1, 900))
    large.write([Side(media=(thin,))], torch.tensor([[GREEDY]]))
    wide, high = engine.calls[2][0][0]["multi_modal_data"]["image"][0].size
    assert wide <= 180 * high, "processors refuse pictures more than 200 times as long as wide"
    assert [made["limit_mm_per_prompt"]["image"] for made in engine.made] == [2, 8]
    with pytest.raises(ValueError, match=r"2 pictures or frames, more than max_pictures \(1\)"):
        make_writer(folder, reads=["video"], max_pictures=1).write(sides[1:], SEEDS[:1])
    with pytest.raises(ValueError, match="Set `decode: true` of SideDataModule"):
        make_writer(folder, reads=["image"]).write(SIDES[1:2], SEEDS[:1])


def test_identities_cover_what_shapes_a_draw(folder: Path, tmp_path: Path) -> None:
    same = make_writer(folder, engine={"gpu_memory_utilization": 0.5, "tensor_parallel_size": 2})
    assert same.draw_identity() == make_writer(folder).draw_identity()
    for change in (
        {"temperature": 0.5},
        {"prompt": "open.json"},
        {"engine": {"quantization": "fp8"}},
        {"max_image_side": 9},
        {"dtype": "float16"},
    ):
        assert make_writer(folder, **change).draw_identity() != make_writer(folder).draw_identity()
    one, two = (
        VllmWriter("owner/model", str(folder / "tags.json"), revision=r) for r in ("abc", "def")
    )
    assert (one.model, one.revision) == ("owner/model", "abc")
    assert one.identity() != two.identity()


def test_without_vllm_there_is_one_clear_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    nothing = torch.full((3, 1), NO_DRAW)
    assert make_writer(folder).write(SIDES, nothing) == [[], [], []], "nobody asked for a draw"
    with pytest.raises(ValueError, match=r"needs vLLM.*pip install -e '\.\[vllm\]'"):
        make_writer(folder).write(SIDES, SEEDS)
    with pytest.raises(ValueError, match="has no hidden state"):
        make_writer(folder).prompt_states(SIDES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reads": ["audio"]}, r"reads \['audio'\]: expected some of text, image, video"),
        ({"max_pictures": 0}, "max_pictures 0, max_image_side None: expected at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"model": "owner/name"}, "is no folder.*give its commit in `revision`"),
    ],
    ids=["reads", "pictures", "temperature", "revision"],
)
def test_mistakes_are_one_clear_error(folder: Path, changes: dict[str, Any], message: str) -> None:
    settings = {"model": str(folder / "model"), "prompt": str(folder / "tags.json")}
    with pytest.raises(ValueError, match=message):
        VllmWriter(**settings | changes)

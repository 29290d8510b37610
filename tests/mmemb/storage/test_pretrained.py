"""A model's folder may come from anywhere: its code never runs, unless the caller says so, and
nobody is asked on the terminal."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer

from experiments.plan.lengths import JointLengths, processor_of
from experiments.plan.models import model_on_meta
from mmemb.backbones import JointEncoder, OpenClipBackbone, VisionLanguageBackbone
from mmemb.llm import FewShotPrompt
from mmemb.llm.prompts.chat_model import ChatModel
from mmemb.rationales import LanguageModelWriter, VisionLanguageWriter
from mmemb.records.inputs import Side
from mmemb.selection import YesNoJudge
from mmemb.storage.pretrained import check_model, load_pretrained
from tests.fixtures.tiny_backbones import TINY
from tests.fixtures.tiny_models import write_chat_model, write_text_encoder
from tests.fixtures.tiny_vlm import folder as vision_language_model

PROMPT = "experiments/configs/pocket/few_shot.json"

CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
Path({canary!r}).write_text("it ran")
class Config(PretrainedConfig):
    model_type = "bait"
class Model(PreTrainedModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(prompt: str = "") -> str:
        pytest.fail(f"a user was asked: {prompt}")

    monkeypatch.setattr("builtins.input", ask)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that code in a folder writes when it is imported."""
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    return tmp_path / "canary"


@pytest.fixture
def bait(tmp_path: Path, canary: Path) -> Path:
    """A model of a kind that only its own code knows."""
    return with_code(write_text_encoder(tmp_path / "bait"), canary)


def with_code(folder: Path, canary: Path) -> Path:
    (folder / "evil.py").write_text(CODE.format(canary=str(canary)))
    models = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText")
    edit(
        folder / "config.json",
        model_type="bait",
        auto_map={"AutoConfig": "evil.Config"} | dict.fromkeys(models, "evil.Model"),
    )
    tokenizer = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    edit(folder / "tokenizer_config.json", tokenizer_class="Bait", auto_map=tokenizer)
    processor = {"processor_class": "Bait", "auto_map": {"AutoProcessor": "evil.Tokenizer"}}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def edit(path: Path, **changed: Any) -> None:
    data = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(data | changed))


def chat(folder: str) -> ChatModel:
    return ChatModel(folder, FewShotPrompt.load(PROMPT), None, "cpu", "float32")


READERS: dict[str, Callable[[str], object]] = {
    "joint encoder": JointEncoder,
    "vision-language": VisionLanguageBackbone,
    "tokenizer of open_clip": lambda folder: OpenClipBackbone(TINY, tokenizer=folder),
    "chat model": lambda folder: chat(folder).model,
    "its tokenizer": lambda folder: chat(folder).tokenizer,
    "language model writer": lambda folder: LanguageModelWriter(folder, PROMPT).prompt_states(
        [Side("a")]
    ),
    "vision-language writer": lambda folder: VisionLanguageWriter(folder).reads,
    "judge": lambda folder: YesNoJudge(folder)._model,
    "plan of a joint encoder": lambda folder: JointLengths({"text_model": folder}, 6),
    "plan of a processor": processor_of,
    "plan of layers": model_on_meta,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_code_in_a_folder_never_runs(
    read: Callable[[str], object], bait: Path, canary: Path
) -> None:
    with pytest.raises((ValueError, OSError), match=str(bait)):
        read(str(bait))
    assert not canary.exists()


def test_it_runs_if_the_caller_says_so(bait: Path, canary: Path) -> None:
    """So the bait is one."""
    assert load_pretrained(AutoConfig, bait, trust_remote_code=True).model_type == "bait"
    assert canary.read_text() == "it ran"


def test_a_known_model_is_read_by_the_code_of_transformers(tmp_path: Path, canary: Path) -> None:
    folder = with_code(write_text_encoder(tmp_path / "known"), canary)
    edit(folder / "config.json", model_type="bert")
    assert type(load_pretrained(AutoModel, folder)).__module__.startswith("transformers.models.")
    assert not canary.exists()


def test_a_folder_that_sends_its_reader_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path / "chat")
    edit(folder / "config.json", attn_implementation="someone/kernels")
    with pytest.raises(ValueError, match="attn_implementation names 'someone/kernels'"):
        load_pretrained(AutoConfig, folder)
    edit(folder / "config.json", attn_implementation="eager", use_pretrained_backbone=True)
    with pytest.raises(ValueError, match="asks for the weights of another model"):
        load_pretrained(AutoConfig, folder)
    edit(folder / "config.json", use_pretrained_backbone=False)
    edit(folder / "adapter_config.json", base_model_name_or_path="someone/else", peft_type="LORA")
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json, which names another"):
        LanguageModelWriter(str(folder), PROMPT).prompt_states([Side("a")])


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("config.json", {"vision_config": {"architecture": "hf-hub:someone/vit"}}),
        ("config.json", {"backbone": "local-dir:/outside"}),
        ("processor_config.json", {"audio_tokenizer": {"audio_tokenizer_name_or_path": "../x"}}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.5.0.0.json"]}),
        ("model.safetensors.index.json", {"weight_map": {"a": "../outside.safetensors"}}),
        ("model.safetensors.index.json", {"weight_map": {"a": "/outside.safetensors"}}),
        ("pytorch_model.bin.index.json", {"weight_map": {"a": "sub/../../outside.bin"}}),
    ],
)
def test_a_model_names_its_own_files_alone(
    file: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_chat_model(tmp_path / "chat")
    (folder / file).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=rf"{re.escape(file)}: .*lies outside of the folder"):
        load_pretrained(AutoConfig, folder)


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("tokenizer_config.json", {"model_max_length": {"a": 1}}),
        ("generation_config.json", {"eos_token_id": {"a": 2}}),
        ("config.json", {"text_config": {"pad_token_id": "x"}}),
    ],
)
def test_numbers_of_a_model_are_numbers(
    file: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / file).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=rf"{re.escape(file)} is broken: Expected `int "):
        check_model(tmp_path)


def test_usual_settings_of_models_are_taken(tmp_path: Path) -> None:
    usual = {
        "config.json": {"backbone": "resnet50", "vision_config": {"backbone": {"a": "b/c"}}},
        "tokenizer_config.json": {
            "fast_tokenizer_files": ["tokenizer.4.0.json"],
            "model_max_length": int(1e30),
        },
        "generation_config.json": {"eos_token_id": [1, 2], "pad_token_id": None},
        "model.safetensors.index.json": {
            "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "parts/b.safetensors"}
        },
        "openvino_model.index.json": {"other": "things"},
    }
    for file, settings in usual.items():
        (tmp_path / file).write_text(json.dumps(settings))
    check_model(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_broken_index_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        check_model(tmp_path)


def test_a_path_is_no_id_of_a_hub(tmp_path: Path) -> None:
    for missing in (tmp_path / "gone", "./gone", "data/pocket/gone"):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            load_pretrained(AutoTokenizer, missing)


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.write_text, (self.canary, "it ran")


def test_pickled_weights_are_no_code(tmp_path: Path, canary: Path) -> None:
    folder = write_text_encoder(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Bomb(canary)}, folder / "pytorch_model.bin")
    with pytest.raises((ValueError, OSError, pickle.UnpicklingError)):
        JointEncoder(str(folder))
    torch.save(Bomb(canary), tmp_path / "clip.pt")
    with pytest.raises(pickle.UnpicklingError):
        OpenClipBackbone(TINY, pretrained=str(tmp_path / "clip.pt"), tokenizer="bytes")
    assert not canary.exists()


def test_a_chat_template_reaches_nothing_of_python(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(vision_language_model("qwen3_vl"), tmp_path / "model"))
    processor = load_pretrained(AutoProcessor, folder)
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(Exception, match="is unsafe"):
        processor.apply_chat_template([{"role": "user"}], chat_template=template)

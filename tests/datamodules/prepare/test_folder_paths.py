"""A saved folder names its own files: loading one opens no socket, and nothing else is read unless
the caller allows it."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.plan.backbones import saved_backbone
from mmemb.backbones import OpenClipBackbone, load_backbone
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.gate.budget import BudgetCalibration
from mmemb.gate.heads import MlpDepthHead
from mmemb.rationales import (
    LabelBridgeWriter,
    LanguageModelWriter,
    PlaceboWriter,
    PrecomputedWriter,
    SelfWriter,
    ServerWriter,
    TableWriter,
    VisionLanguageWriter,
    VllmWriter,
    write_pool,
)
from mmemb.rationales.writers.base import RationaleSource
from mmemb.records.inputs import Side
from mmemb.selection import EmbeddingJudge, YesNoJudge
from mmemb.storage.trust import check_links
from tests.fixtures.tiny_backbones import BUILDERS, HELPFUL, TINY, text_model
from tests.fixtures.tiny_models import write_chat_model, write_embedder, write_facts
from tests.fixtures.tiny_vlm import folder as vision_language_model
from tests.fixtures.tiny_vlm import qwen

PROMPT = "experiments/configs/pocket/few_shot.json"
HOSTS = {"localhost": None}


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        pytest.fail(f"a socket was asked for: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def hf_text_tower(folder: Path) -> OpenClipBackbone:
    """open_clip with a text tower and a tokenizer of transformers, as its SigLIPs and RoBERTas."""
    names = text_model(folder / "bert")
    config = json.loads(Path(TINY).read_text())
    config["text_cfg"] = {
        "hf_model_name": names,
        "hf_tokenizer_name": names,
        "context_length": 16,
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
    }
    (folder / "hf.json").write_text(json.dumps(config))
    torch.manual_seed(4)
    return OpenClipBackbone(str(folder / "hf.json"))


BACKBONES = BUILDERS | {"vision-language": lambda folder: qwen(), "hf text": hf_text_tower}


@pytest.mark.parametrize("build", BACKBONES.values(), ids=BACKBONES.keys())
def test_a_saved_backbone_needs_its_own_files_alone(
    build: Callable[[Path], Any], tmp_path: Path, no_sockets: None
) -> None:
    (tmp_path / "parts").mkdir()
    backbone = build(tmp_path / "parts").eval()
    before = backbone.encode([Side("paris")])
    backbone.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "parts")
    (tmp_path / "saved").rename(tmp_path / "moved")
    loaded = load_backbone(str(tmp_path / "moved"))
    assert torch.equal(loaded.encode([Side("paris")]), before)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(load_backbone(str(tmp_path / "again")).encode([Side("paris")]), before)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files of writers."""
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def writers(parts: Path) -> Mapping[str, RationaleSource]:
    """One of each kind, over files in a folder. Read only."""
    chat, looks = str(write_chat_model(parts / "chat")), str(vision_language_model("qwen3_vl"))
    facts, pool = str(write_facts(parts / "facts.json")), str(parts / "pool.json")
    write_pool(pool, {"a": (HELPFUL,), "b": (HELPFUL,)})
    labels = [{"text": "paris", "instruction": "Find it."}]
    (parts / "labels.json").write_text(json.dumps(labels))
    embedder = str(write_embedder(parts / "trunk") / "backbone")
    return {
        "table": TableWriter(facts),
        "self": SelfWriter(4),
        "foreign": PlaceboWriter(pool),
        "precomputed": PrecomputedWriter(pool, "empty"),
        "language model": LanguageModelWriter(chat, PROMPT, max_new_tokens=2),
        "vision-language": VisionLanguageWriter(looks, max_new_tokens=2),
        "vllm": VllmWriter(chat, PROMPT),
        "server": ServerWriter("http://localhost:1/v1", "m", PROMPT),
        "bridge": LabelBridgeWriter(
            LanguageModelWriter(chat, PROMPT), embedder, str(parts / "labels.json")
        ),
    }


def save(writer: RationaleSource, folder: Path) -> Path:
    torch.manual_seed(0)
    writes = isinstance(writer, SelfWriter)
    backbone = qwen() if writes else OpenClipBackbone(TINY, tokenizer="bytes")
    head = MlpDepthHead(backbone.embedding_dim)
    AdaptiveEmbedder(backbone, head, BudgetCalibration(), {"full": writer}).save_pretrained(folder)
    return folder


def test_saved_writers_bring_their_files_and_models_are_allowed_by_the_caller(
    writers: Mapping[str, RationaleSource], parts: Path, tmp_path: Path, no_sockets: None
) -> None:
    outside = ("language model", "vision-language", "vllm", "bridge")
    for name, writer in writers.items():
        folder = save(writer, tmp_path / name)
        if name in outside:
            with pytest.raises(ValueError, match=r"writers\.full.*names the model .*--allow-model"):
                AdaptiveEmbedder.from_pretrained(folder, servers=HOSTS)
        models = [str(parts), str(vision_language_model("qwen3_vl"))]
        (parts / "facts.json").rename(tmp_path / "gone.json")
        loaded = AdaptiveEmbedder.from_pretrained(folder, servers=HOSTS, models=models)
        (tmp_path / "gone.json").rename(parts / "facts.json")
        assert loaded.writers["full"].identity() == writer.identity(), name
        for key in writer.file_arguments:
            named = loaded.writers["full"].config()[key]
            assert Path(named).is_relative_to(folder), name


def test_what_is_loaded_runs_without_a_socket(
    writers: Mapping[str, RationaleSource], parts: Path, tmp_path: Path, no_sockets: None
) -> None:
    for name in ("language model", "bridge", "table"):
        folder = save(writers[name], tmp_path / name)
        loaded = AdaptiveEmbedder.from_pretrained(folder, models=[str(parts)])
        loaded.encode([Side("the flag of paris")], depth="full")


def test_judges_open_no_socket(tmp_path: Path, no_sockets: None) -> None:
    judge = EmbeddingJudge({"a": str(write_embedder(tmp_path / "judge"))})
    score_BCR = judge.score([Side("a")], [[Side("b")]], [[HELPFUL]], ["fact"])
    assert score_BCR.shape == (1, 1, 2)
    judge = YesNoJudge(str(vision_language_model("qwen3_vl")), device="cpu")
    assert judge.score([Side("a")], [[Side("b")]], [[HELPFUL]], ["fact"]).shape == (1, 1, 2)


def test_a_run_of_this_checkout_names_its_models_without_leave(
    writers: Mapping[str, RationaleSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writers["language model"]
    folder = save(writer, tmp_path / "runs/pocket/gate/adaptive")
    monkeypatch.setenv("MMEMB_RUNS", str(tmp_path / "runs"))
    assert AdaptiveEmbedder.from_pretrained(folder).writers["full"].identity() == writer.identity()

    # A link in it to a folder elsewhere is none, nor is the folder of another user.
    shutil.copytree(folder, tmp_path / "elsewhere")
    (tmp_path / "runs/link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="names the model"):
        AdaptiveEmbedder.from_pretrained(tmp_path / "runs/link")
    monkeypatch.setattr(os, "getuid", lambda: -1)
    with pytest.raises(ValueError, match="names the model"):
        AdaptiveEmbedder.from_pretrained(folder)


def test_a_model_that_lies_elsewhere_is_placed_by_the_caller(
    writers: Mapping[str, RationaleSource],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_sockets: None,
) -> None:
    folder = save(writers["language model"], tmp_path / "saved")
    data = json.loads((folder / "adaptive.json").read_text())
    arguments = data["writers"]["full"]["init_args"]
    place, arguments["model"] = arguments["model"], "data/there/models/smollm2"
    (folder / "adaptive.json").write_text(json.dumps(data))

    # Told when it is loaded, and not at the first rationale.
    monkeypatch.chdir(tmp_path)
    for models in ([arguments["model"]], {arguments["model"]: "nowhere"}):
        with pytest.raises(ValueError, match=r"there is no folder .* below .*--allow-model"):
            AdaptiveEmbedder.from_pretrained(folder, models=models)
    with pytest.raises(ValueError, match=r"models=\{'data/there/models/smollm2': FOLDER\}"):
        AdaptiveEmbedder.from_pretrained(folder)

    loaded = AdaptiveEmbedder.from_pretrained(folder, models={arguments["model"]: place})
    assert loaded.writers["full"].identity() == writers["language model"].identity()


OUTSIDE = ["../parts/bert", "${folder}/../parts/bert", "${folder}//etc", "/etc", "someone/model"]


@pytest.mark.parametrize("named", OUTSIDE)
def test_paths_of_a_backbone_lie_in_its_folder(
    named: str, tmp_path: Path, no_sockets: None
) -> None:
    (tmp_path / "parts").mkdir()
    BUILDERS["joint"](tmp_path / "parts").save_pretrained(tmp_path / "saved")
    edit(tmp_path / "saved/config.json", "init_args", text_model=named)
    with pytest.raises(ValueError, match=r"config\.json: text_model names"):
        load_backbone(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"config\.json: text_model names"):
        saved_backbone(str(tmp_path / "saved"))  # for a plan


@pytest.mark.parametrize("named", ["../facts.json", "/etc/passwd", "${folder}/../facts.json"])
def test_files_of_a_writer_lie_in_its_folder(named: str, tmp_path: Path) -> None:
    folder = save(TableWriter(str(write_facts(tmp_path / "facts.json"))), tmp_path / "saved")
    data = json.loads((folder / "adaptive.json").read_text())
    assert data["writers"]["full"]["init_args"]["facts"] == "${folder}/writers/1/facts.json"
    data["writers"]["full"]["init_args"]["facts"] = named
    (folder / "adaptive.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"adaptive\.json: writers\.full\.facts names"):
        AdaptiveEmbedder.from_pretrained(folder)


def test_an_engine_of_a_folder_names_no_code(tmp_path: Path) -> None:
    chat = str(write_chat_model(tmp_path / "chat"))
    folder = save(VllmWriter(chat, PROMPT, engine={"worker_cls": "evil.Worker"}), tmp_path / "a")
    with pytest.raises(ValueError, match=r"writers\.full\.engine: \['worker_cls'\] may name code"):
        AdaptiveEmbedder.from_pretrained(folder, models=[chat])


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="loop is a link to loop"):
        check_links(tmp_path)


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    BUILDERS["joint"](tmp_path / "parts").save_pretrained(tmp_path / "saved")
    inner = tmp_path / "saved/text_model/config.json"
    inner.rename(tmp_path / "saved/real.json")
    inner.symlink_to("../real.json")
    assert load_backbone(str(tmp_path / "saved"))  # its own file
    inner.unlink()
    inner.symlink_to(shutil.move(tmp_path / "saved/real.json", tmp_path / "real.json"))
    with pytest.raises(ValueError, match=r"config\.json is a link to .*put the file itself there"):
        load_backbone(str(tmp_path / "saved"))


CLIP_OUTSIDE = {
    "hf_model_name": ("text_cfg", "someone/bert"),
    "hf_tokenizer_name": ("text_cfg", "someone/bert"),
    "timm_model_name": ("vision_cfg", "hf-hub:someone/vit"),
}


@pytest.mark.parametrize("key", CLIP_OUTSIDE)
def test_a_config_of_open_clip_sends_nobody_to_a_hub(
    key: str, tmp_path: Path, no_sockets: None
) -> None:
    torch.manual_seed(0)
    OpenClipBackbone(TINY, tokenizer="bytes").save_pretrained(tmp_path)
    part, value = CLIP_OUTSIDE[key]
    data = json.loads((tmp_path / "open_clip_config.json").read_text())
    data["model_cfg"][part][key] = value
    (tmp_path / "open_clip_config.json").write_text(json.dumps(data))
    edit(tmp_path / "config.json", "init_args", tokenizer="default")
    with pytest.raises(ValueError, match=rf"open_clip_config\.json: {key} names '{value}'"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {"vision_cfg": {"timm_model_name": ["resnet18"]}},
        {"text_cfg": {"vocab_size": 10**12}},
        {"text_cfg": {"heads": 0}},
        {"text_cfg": {"width": "a"}},
        {"text_cfg": {"other": 1}},
    ],
)
def test_settings_that_make_no_model_name_the_folder(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    OpenClipBackbone(TINY, tokenizer="bytes").save_pretrained(tmp_path)
    ((part, changed),) = settings.items()
    data = json.loads((tmp_path / "open_clip_config.json").read_text())
    data["model_cfg"][part] |= changed
    (tmp_path / "open_clip_config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"config\.json: no backbone can be made of it \("):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000])
def test_what_is_no_name_of_a_file_names_its_key(name: str, tmp_path: Path) -> None:
    OpenClipBackbone(TINY, tokenizer="bytes").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", "init_args", model=f"${{folder}}/{name}")
    with pytest.raises(ValueError, match=r"config\.json: model names .* no name of a file"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("key", ["trust_remote_code", "bpe_path", "vocab_file"])
def test_a_tokenizer_is_given_settings_and_no_paths(key: str, tmp_path: Path) -> None:
    config = json.loads(Path(TINY).read_text())
    config["text_cfg"]["tokenizer_kwargs"] = {key: "/etc/passwd"}
    (tmp_path / "model.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"tokenizer_kwargs .* ask for \['{key}'\]"):
        OpenClipBackbone(str(tmp_path / "model.json"))


def test_a_saved_backbone_fetches_no_weights(tmp_path: Path, no_sockets: None) -> None:
    torch.manual_seed(0)
    OpenClipBackbone(TINY, tokenizer="bytes").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", "init_args", model="ViT-B-32", pretrained="openai")
    with pytest.raises(ValueError, match=r"config\.json: model names 'ViT-B-32'"):
        load_backbone(str(tmp_path))


def edit(path: Path, part: str, **changed: Any) -> None:
    data = json.loads(path.read_text())
    data[part] |= changed
    path.write_text(json.dumps(data))

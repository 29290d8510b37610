"""Saved folders may come from anywhere: nothing in them is executed, sent away or made up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.adopt import main as adopt
from experiments.search import main as search
from mmemb.adaptive import AdaptiveEmbedder
from mmemb.backbones import VisionLanguageBackbone, load_backbone
from mmemb.budget import Thresholds
from mmemb.gating import MlpDepthHead
from mmemb.lineage import check_copied, note_run
from mmemb.rationales import SelfWorker
from mmemb.records import Side
from tests.vlm import folder

MODEL = "mmemb.rationales.VisionLanguageWorker"
SERVER = "mmemb.rationales.ServerWorker"
PROMPT = "experiments/configs/pocket/few_shot.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone = VisionLanguageBackbone(str(folder("qwen3_vl")))
    lists = ((0.0, 1.0), (0.0, -1.0)), ((0.0, 1.0),) * 2, (0.1, 0.2)
    embedder = AdaptiveEmbedder(
        backbone, MlpDepthHead(32, 2), Thresholds(*lists), {"full": SelfWorker(4)}
    )
    embedder.save_pretrained(path := tmp_path_factory.mktemp("saved"))
    return path


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_folder_may_not_ask_for_its_own_code(copy: Path) -> None:
    code = {"trust_remote_code": True}
    edit(copy / "backbone/config.json", lambda data: data["init_args"].update(code))
    with pytest.raises(ValueError, match="which no folder may"):
        load_backbone(str(copy / "backbone"))
    with pytest.raises(ValueError, match="which no folder may"):
        AdaptiveEmbedder.from_pretrained(copy)


@pytest.mark.parametrize(
    "worker",
    [
        {"class_path": MODEL, "init_args": {"model": "m", "trust_remote_code": True}},
        {
            "class_path": "mmemb.rationales.LabelBridgeWorker",
            "init_args": {"worker": {"init_args": {"engine": {"trust_remote_code": True}}}},
        },
    ],
)
def test_its_workers_may_not_either(copy: Path, worker: dict[str, Any]) -> None:
    edit(copy / "adaptive.json", lambda data: data.update(workers={"full": worker}))
    with pytest.raises(ValueError, match="which a folder may not"):
        AdaptiveEmbedder.from_pretrained(copy)


def test_no_server_is_sent_a_key_unless_it_was_named(copy: Path) -> None:
    def ask(url: str) -> None:
        given = {"url": url, "model": "m", "prompt": PROMPT, "api_key_env": "SOME_SECRET"}
        worker = {"class_path": SERVER, "init_args": given}
        edit(copy / "adaptive.json", lambda data: data.update(workers={"full": worker}))

    ask("http://elsewhere.example/v1")
    with pytest.raises(ValueError, match=r"--server elsewhere\.example"):
        AdaptiveEmbedder.from_pretrained(copy)
    assert AdaptiveEmbedder.from_pretrained(copy, servers=["elsewhere.example"]).workers
    ask("http://localhost:8000/v1")
    assert AdaptiveEmbedder.from_pretrained(copy).workers


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state": 5}, "`state` is no list"),
        ({"temperature": 0}, "`temperature` is no positive number"),
        ({"workers": [1]}, "`workers` is no table"),
        ({"workers": {"full": None}}, "`workers` is no table"),
        ({"workers": {}}, "2 depths, but there are 0 workers"),
        ({"thresholds": {"logits": []}}, "`thresholds` lacks some"),
        (
            {"thresholds": {"logits": [], "costs": [], "ties": [1], "milliseconds": []}},
            "unequally many",
        ),
        ({"workers": {"full": {"class_path": MODEL}}}, "no whole AdaptiveEmbedder"),
    ],
    ids=str,
)
def test_settings_that_are_not_ours_are_one_clear_error(
    copy: Path, change: dict[str, Any], said: str
) -> None:
    edit(copy / "adaptive.json", lambda data: data.update(change))
    with pytest.raises(ValueError, match=said):
        AdaptiveEmbedder.from_pretrained(copy)


def broken(change: str, path: Path) -> Path:
    """A model whose files are not whole."""
    shutil.copytree(folder("qwen3_vl"), path)
    file = path / "model.safetensors"
    weights = load_file(file)
    if change == "one is missing":
        del weights[next(name for name in weights if "q_proj" in name)]
        save_file(weights, file, {"format": "pt"})
    elif change == "one is of another shape":
        name = next(name for name in weights if "q_proj" in name)
        weights[name] = weights[name][:1].clone()
        save_file(weights, file, {"format": "pt"})
    elif change == "a layer is missing":
        text = lambda data: data["text_config"].update(num_hidden_layers=4, layer_types=None)  # noqa: E731
        edit(path / "config.json", text)
    else:
        file.write_bytes(file.read_bytes()[:1000])
    return path


@pytest.mark.parametrize(
    "change", ["one is missing", "one is of another shape", "a layer is missing", "cut off"]
)
def test_weights_are_never_made_up(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = broken(change, tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=f"The vision-language model {model} cannot be"):
        VisionLanguageBackbone(str(model))
    config = "experiments/configs/mmeb_v2/qwen3_vl_embedding.yaml"
    arguments = ["--config", config, "--model", str(model), "--out", str(tmp_path / "out")]
    assert adopt(arguments) == 1
    assert "cannot be loaded" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failed_adoption_leaves_what_was_there(tmp_path: Path) -> None:
    config = "experiments/configs/mmeb_v2/qwen3_vl_embedding.yaml"
    arguments = ["--config", config, "--out", str(tmp_path / "out")]
    assert adopt([*arguments, "--model", str(folder("qwen3_vl"))]) == 0
    assert adopt([*arguments, "--model", str(tmp_path / "nowhere")]) == 1
    assert (tmp_path / "out/fingerprint.json").is_file()


def test_a_copy_of_another_run_is_not_taken_for_this_one(tmp_path: Path) -> None:
    for name, mark in (("one", "a"), ("other", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "fingerprint.json").write_text(json.dumps({"fingerprint": mark}))
    note_run(tmp_path, tmp_path / "one")
    check_copied(tmp_path, tmp_path / "one")
    with pytest.raises(ValueError, match="copy of the model of run a, but .*run b"):
        check_copied(tmp_path, tmp_path / "other")
    with pytest.raises(ValueError, match="no finished run"):
        check_copied(tmp_path, tmp_path / "nowhere")


def test_a_search_says_what_is_broken(saved: Path, copy: Path, tiny_root: Path) -> None:
    index = ["--index", str(tiny_root / "candidates"), "--query", "x", "--gallery", "continents"]
    (copy / "adaptive.json").unlink()
    with pytest.raises(SystemExit, match="writing it was interrupted"):
        search(["--model", str(copy), *index])
    cache = ["--cache", str(copy / "cache")]
    with pytest.raises(SystemExit, match="--device tpu"):
        search(["--model", str(saved), *index, *cache, "--device", "tpu"])
    backbone = VisionLanguageBackbone(str(folder("qwen3_vl")))
    with torch.no_grad():
        backbone.model.get_decoder().norm.weight.fill_(float("nan"))
    backbone.save_pretrained(copy / "broken")
    with pytest.raises(SystemExit, match="are not finite"):
        search(["--model", str(copy / "broken"), *index, *cache])
    assert load_backbone(str(saved / "backbone")).encode([Side("x")]).isfinite().all()

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

from experiments.export.import_embedder import main as adopt
from experiments.search.__main__ import main as search
from mmemb.backbones import VisionLanguageBackbone, load_backbone
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.gate.budget import BudgetCalibration
from mmemb.gate.heads import MlpDepthHead
from mmemb.rationales import SelfWriter, ServerWriter
from mmemb.records.inputs import Side
from mmemb.storage.run_marks import check_copied, note_run
from tests.fixtures.tiny_vlm import folder

MODEL = "mmemb.rationales.VisionLanguageWriter"
SERVER = "mmemb.rationales.ServerWriter"
PROMPT = "experiments/configs/pocket/few_shot.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone = VisionLanguageBackbone(str(folder("qwen3_vl")))
    lists = ((0.0, 1.0), (0.0, -1.0)), ((0.0, 1.0),) * 2, (0.1, 0.2)
    embedder = AdaptiveEmbedder(
        backbone, MlpDepthHead(32, 2), BudgetCalibration(*lists), {"full": SelfWriter(4)}
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
    kernel = {"trust_remote_code": False, "attention": "someone/kernels"}
    edit(copy / "backbone/config.json", lambda data: data["init_args"].update(kernel))
    with pytest.raises(ValueError, match="attention names 'someone/kernels', code of a hub"):
        load_backbone(str(copy / "backbone"))


@pytest.mark.parametrize(
    "writer",
    [
        {"class_path": MODEL, "init_args": {"model": "m", "trust_remote_code": True}},
        {
            "class_path": "mmemb.rationales.LabelBridgeWriter",
            "init_args": {"writer": {"init_args": {"engine": {"trust_remote_code": True}}}},
        },
    ],
)
def test_its_writers_may_not_either(copy: Path, writer: dict[str, Any]) -> None:
    edit(copy / "adaptive.json", lambda data: data.update(writers={"full": writer}))
    with pytest.raises(ValueError, match=r"adaptive\.json: writers\.full: .* which no folder may"):
        AdaptiveEmbedder.from_pretrained(copy)


def test_servers_and_keys_are_the_callers(copy: Path) -> None:
    def ask(url: str, **given: str) -> None:
        arguments = {"url": url, "model": "m", "prompt": "${folder}/prompt.json"} | given
        writer = {"class_path": SERVER, "init_args": arguments}
        edit(copy / "adaptive.json", lambda data: data.update(writers={"full": writer}))

    def key(servers: Any) -> str:
        writer = AdaptiveEmbedder.from_pretrained(copy, servers=servers).writers["full"]
        assert isinstance(writer, ServerWriter)
        return writer.client.api_key_env

    shutil.copy(PROMPT, copy / "prompt.json")
    for host in ("elsewhere.example", "localhost"):
        ask(f"http://{host}:8000/v1")
        with pytest.raises(ValueError, match=rf"writers\.full\.url .*--server {host}"):
            AdaptiveEmbedder.from_pretrained(copy)
        assert key([host]) is key({f"{host}:8000": None}) is None
        assert key({host: "MY_KEY"}) == "MY_KEY"
    ask("http://allowed.example@elsewhere.example/v1")
    with pytest.raises(ValueError, match="names the server elsewhere"):
        key(["allowed.example"])

    # A folder that names a secret gets it from nobody who does not name it, too.
    ask("http://elsewhere.example/v1", api_key_env="SOME_SECRET")
    with pytest.raises(ValueError, match=r"SOME_SECRET.*--server elsewhere\.example=SOME_SECRET"):
        key({"elsewhere.example": "MY_KEY"})
    assert key({"elsewhere.example": "SOME_SECRET"}) == "SOME_SECRET"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"concurrency": "8"}, "Expected `int`, got `str` - at .*concurrency"),
        ({"name": [1]}, "Expected `str`, got `array` - at .*name"),
        ({"other": 1}, r"unknown key\(s\) \['other'\]"),
        ({"prompt": "${folder}/backbone"}, r"backbone cannot be read \(Is a directory\)"),
        ({"url": None}, "full.url names no server"),
        ({"url": "file:///etc/passwd"}, "full.url names no server"),
        ({"url": "http://[::1/v1"}, "full.url names no server"),
    ],
    ids=str,
)
def test_arguments_of_a_saved_writer_have_their_types(
    said: dict[str, Any], message: str, copy: Path
) -> None:
    shutil.copy(PROMPT, copy / "prompt.json")
    usual = {"url": "http://localhost/v1", "model": "m", "prompt": "${folder}/prompt.json"}
    writer = {"class_path": SERVER, "init_args": usual | said}
    edit(copy / "adaptive.json", lambda data: data.update(writers={"full": writer}))
    with pytest.raises(ValueError, match=f"is no whole AdaptiveEmbedder: .*{message}"):
        AdaptiveEmbedder.from_pretrained(copy, servers=["localhost"])


def test_a_search_allows_what_its_user_names(
    copy: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(PROMPT, copy / "prompt.json")
    shared = ["--model", str(copy), "--index", str(tiny_root / "candidates"), "--query", "x"]
    shared += ["--gallery", "continents", "--cache", str(copy / "cache"), "--depth", "direct"]
    server = {"url": "http://localhost:8000/v1", "model": "m", "api_key_env": "MY_KEY"}
    chat = str(tiny_root / "models/smollm2")
    cases = (
        (SERVER, server, ["--server", "localhost=MY_KEY"]),
        ("mmemb.rationales.LanguageModelWriter", {"model": chat}, ["--allow-model", chat]),
    )
    for kind, arguments, leave in cases:
        writer = {"class_path": kind, "init_args": arguments | {"prompt": "${folder}/prompt.json"}}
        edit(copy / "adaptive.json", lambda data, w=writer: data.update(writers={"full": w}))
        with pytest.raises(SystemExit, match=leave[0]):
            search(shared)
        search([*shared, *leave])
        assert "depth: direct" in capsys.readouterr().out


def test_a_saved_folder_names_no_variable_and_holds_the_prompt(copy: Path) -> None:
    writer = ServerWriter("http://localhost:8000/v1", "m", PROMPT, api_key_env="SOME_SECRET")
    embedder = AdaptiveEmbedder.from_pretrained(copy, {"full": writer})
    embedder.save_pretrained(copy.with_name("again"))
    written = (copy.with_name("again") / "adaptive.json").read_text()
    assert "SOME_SECRET" not in written
    assert PROMPT not in written
    loaded = AdaptiveEmbedder.from_pretrained(
        copy.with_name("again"), servers={"localhost": "SOME_SECRET"}
    )
    assert loaded.writers["full"].config()["api_key_env"] == "SOME_SECRET"
    assert loaded.writers["full"].identity() == writer.identity()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state": 5}, r"Expected `array`, got `int` - at `\$\.state`"),
        ({"gallery_temperature": 0}, r"`float` > 0.0 - at `\$\.gallery_temperature`"),
        ({"writers": [1]}, r"Expected `object`, got `array` - at `\$\.writers`"),
        ({"writers": {"full": None}}, r"got `null` - at `\$\.writers\['full'\]`"),
        ({"writers": {}}, "2 depths, but there are 0 writers"),
        ({"calibration": {"logits": []}}, r"field `costs` - at `\$\.calibration`"),
        (
            {"calibration": {"logits": [], "costs": [], "ties": [1], "milliseconds": []}},
            "expected equally many",
        ),
        ({"writers": {"full": {"class_path": MODEL}}}, "no whole AdaptiveEmbedder"),
    ],
    ids=str,
)
def test_settings_that_are_not_ours_are_one_clear_error(
    copy: Path, change: dict[str, Any], said: str
) -> None:
    edit(copy / "adaptive.json", lambda data: data.update(change))
    with pytest.raises(ValueError, match=said):
        AdaptiveEmbedder.from_pretrained(copy)


def test_a_saved_gate_reads_no_other_model(copy: Path) -> None:
    head = {"class": "FirstTokenHead", "backbone": str(folder("qwen3_vl")), "state_dim": 32}
    (copy / "gate/config.json").write_text(json.dumps(head))
    with pytest.raises(ValueError, match=r"gate/config\.json: backbone names"):
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
    ("template", "said"),
    [
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[0].cont.ent }}", "UndefinedError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    ],
)
def test_a_template_that_fails_names_its_model(copy: Path, template: str, said: str) -> None:
    (copy / "backbone/model/chat_template.jinja").write_text(template)
    with pytest.raises(
        ValueError, match=rf'backbone/model cannot be used; it says "{said}'
    ) as caught:
        AdaptiveEmbedder.from_pretrained(copy).encode([Side("a")], budget=0.0)
    assert "Repair its chat_template.jinja" in str(caught.value)


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
    with pytest.raises(SystemExit, match="device 'tpu' cannot be used"):
        search(["--model", str(saved), *index, *cache, "--device", "tpu"])
    backbone = VisionLanguageBackbone(str(folder("qwen3_vl")))
    with torch.no_grad():
        backbone.model.get_decoder().norm.weight.fill_(float("nan"))
    backbone.save_pretrained(copy / "broken")
    with pytest.raises(SystemExit, match="not finite"):
        search(["--model", str(copy / "broken"), *index, *cache])
    assert load_backbone(str(saved / "backbone")).encode([Side("x")]).isfinite().all()

"""Exported folders load where they should, to the same vectors, and their cards tell the truth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from torch.nn import functional

from experiments.bootstrap import Interval
from experiments.export import __main__ as command
from experiments.export.__main__ import export, main
from experiments.export.model_card import card
from experiments.export.published_files import copy_model
from experiments.runs.facts import Figure, Ingredient, RunFacts, base_models, instructions
from experiments.runs.saved_backbone import find_backbone
from lightning_modules import ContrastiveEmbedder
from mmemb.backbones import Backbone, VisionLanguageBackbone
from mmemb.llm import PromptStyle
from mmemb.llm.lora import LoraSettings
from mmemb.records.inputs import Side
from mmemb.storage.json_files import write_json
from mmemb.storage.trained_facts import TrainedFacts, trained_facts, write_facts
from tests.fixtures.tiny_backbones import build_joint
from tests.fixtures.tiny_vlm import folder, picture

STYLE = PromptStyle(system='Look "here".', suffix="<|endoftext|>", max_length=160)


def saved(backbone: Backbone, place: Path) -> Path:
    backbone.eval().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a fit with LoRA leaves, its updates not zero."""
    run = tmp_path_factory.mktemp("runs") / "lora"
    source = str(folder("qwen3_vl"))
    module = ContrastiveEmbedder(VisionLanguageBackbone(source, STYLE), lora=LoraSettings(2, 4.0))
    torch.manual_seed(5)
    for name, parameter in module.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    arguments: dict[str, Any] = {"model": source, "style": {"system": STYLE.system}}
    backbone = {"class_path": "mmemb.backbones.VisionLanguageBackbone", "init_args": arguments}
    init_args = {"backbone": backbone, "lora": {"rank": 2, "alpha": 4.0, "targets": "all-linear"}}
    model = {"class_path": "lightning_modules.ContrastiveEmbedder", "init_args": init_args}
    (run / "checkpoints").mkdir(parents=True)
    config = {"model": model, "data": {}, "name": "lora", "experiment": "tiny"}
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"seed_everything": 3}))
    torch.save({"state_dict": module.state_dict()}, run / "checkpoints/last.ckpt")
    write_json(run / "fingerprint.json", {"fingerprint": "f00", "finished": True})
    write_json(run / "summary.json", {"metrics": {"val/recall@1": 0.25, "train/loss": 1.0}})
    saved(module.backbone, run / "backbone")
    write_facts(run / "fitted.json", TrainedFacts(frozenset({"fr/capital"})))
    return run


def vector(model: Any, backbone: VisionLanguageBackbone, side: Side) -> torch.Tensor:
    processor = backbone.prompts
    prompt = processor.build(side)
    ids = torch.tensor([prompt.ids])
    kinds = {name: kind[None] for name, kind in prompt.kinds.items()}
    with torch.no_grad():
        state = model(input_ids=ids, **kinds, **prompt.media).last_hidden_state[0, -1]
    return functional.normalize(state, dim=-1)


def test_transformers_loads_it_with_the_updates_in_it(lora_run: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoProcessor

    said = export(lora_run, "transformers", tmp_path / "out")
    assert "direct path" in said
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    backbone = VisionLanguageBackbone.from_pretrained(lora_run / "backbone")
    for side in (Side("hi"), Side("what?", "Find it.", (picture(1),))):
        with torch.no_grad():
            ours = backbone.encode([side])[0]
        assert (vector(model, backbone, side) - ours).abs().max() < 1e-5
    prompt = backbone.prompts.text(Side("a text"))
    assert f"prompt = {prompt!r}" in (tmp_path / "out/README.md").read_text()
    assert AutoProcessor.from_pretrained(tmp_path / "out").chat_template
    assert trained_facts(str(tmp_path / "out")) == {"fr/capital"}, "a judge made from it says so"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")  # peft asks
def test_the_adapter_alone_gives_the_same_model(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    with pytest.raises(ValueError, match=r"init_args\.model names .*models="):
        export(lora_run, "transformers", tmp_path / "adapter", adapter=True)
    monkeypatch.setenv("MMEMB_RUNS", str(lora_run.parent))
    export(lora_run, "transformers", tmp_path / "adapter", adapter=True)
    base = AutoModelForImageTextToText.from_pretrained(folder("qwen3_vl")).eval()
    tuned = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    backbone = VisionLanguageBackbone.from_pretrained(lora_run / "backbone")
    side = Side("what?", "", (picture(2),))
    with torch.no_grad():
        ours = backbone.encode([side])[0]
    assert (vector(tuned.base_model, backbone, side) - ours).abs().max() < 1e-5
    page = (tmp_path / "adapter/README.md").read_text()
    assert "library_name: peft" in page
    assert "| val/recall@1 | 25.0    | none          |" in page


def test_only_updates_that_exist_are_exported(lora_run: Path, tmp_path: Path) -> None:
    place = saved(VisionLanguageBackbone(str(folder("qwen3_vl"))), tmp_path / "plain")
    with pytest.raises(ValueError, match="belongs to no run"):
        export(place, "transformers", tmp_path / "out", adapter=True)
    kept = lora_run / "checkpoints/last.ckpt"
    kept.rename(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="has no checkpoint"):
        export(lora_run, "transformers", tmp_path / "out", adapter=True)
    (tmp_path / "last.ckpt").rename(kept)
    assert not (tmp_path / "out").exists()


def test_what_is_no_model_of_transformers_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = saved(build_joint(tmp_path / "parts"), tmp_path / "joint")
    given = [str(place), "--to", "transformers", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="holds a JointEncoder, which is no model of"):
        main(given)
    with pytest.raises(FileNotFoundError, match="holds no saved backbone"):
        export(tmp_path / "nowhere", "transformers", tmp_path / "out")


def test_a_broken_model_is_not_exported(lora_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    (run / "backbone/model/model.safetensors").write_bytes(b"junk")
    with pytest.raises(FileNotFoundError, match="cannot be loaded"):
        export(run, "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_a_models_own_files_are_published(lora_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    model, secrets = run / "backbone/model", ("id_ed25519", "evil.py", ".env", "old/notes.txt")
    (model / "old").mkdir()
    for name in secrets:
        (model / name).write_text("secret")
    write_facts(model / "fitted.json", TrainedFacts())
    config = json.loads((model / "config.json").read_text())
    asks = {"auto_map": {"AutoModel": "someone/else--evil.Model"}}
    (model / "config.json").write_text(json.dumps(config | asks))

    said = export(run, "transformers", tmp_path / "out")
    assert "Left out, as no part of a model: .env, evil.py, id_ed25519, old/notes.txt." in said
    kept = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    found = {path.relative_to(tmp_path / "out").as_posix() for path in files(tmp_path / "out")}
    assert found == kept - {*secrets} | {"README.md"}
    assert json.loads((tmp_path / "out/config.json").read_text()) == config
    assert "evil" not in (tmp_path / "out/README.md").read_text()

    (tmp_path / "private").write_text("secret")
    (model / "tokenizer.model").symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match=r"tokenizer\.model is a link"):
        export(run, "transformers", tmp_path / "other")
    assert not (tmp_path / "other").exists()

    (model / "tokenizer.model").unlink()
    model.rename(tmp_path / "private-model")
    model.symlink_to(tmp_path / "private-model")
    with pytest.raises(ValueError, match="model is a link to"):
        export(run, "transformers", tmp_path / "other")
    (run / "backbone").rename(tmp_path / "private-backbone")
    (run / "backbone").symlink_to(tmp_path / "private-backbone")
    with pytest.raises(ValueError, match="backbone is a link out of"):
        export(run, "transformers", tmp_path / "other")


def test_settings_of_a_part_ask_for_no_code_either(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/model.safetensors").write_bytes(b"")
    parts = {"splits": [{"a": 1, "auto_map": {"AutoProcessor": "evil.Part"}}]}
    (tmp_path / "in/processor_config.json").write_text(json.dumps(parts))
    copy_model(tmp_path / "in", tmp_path / "out")
    written = json.loads((tmp_path / "out/processor_config.json").read_text())
    assert written == {"splits": [{"a": 1}]}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_run_from_elsewhere_publishes_nothing_of_ours(
    lora_run: Path, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "runs/lora"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data_root"] = str(tiny_root)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    found = find_backbone(run)
    assert instructions(found, texts_only=False) == {}
    assert str(folder("qwen3_vl")) not in str(base_models(found))
    monkeypatch.setenv("MMEMB_RUNS", str(tmp_path / "runs"))
    assert instructions(found, texts_only=False)


def test_weights_that_are_not_published_are_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match="holds no weights under a name that is published"):
        copy_model(tmp_path / "model", tmp_path / "out")
    templates = tmp_path / "model/additional_chat_templates"
    templates.mkdir()
    for name in ("tool.jinja", "evil.py"):
        (templates / name).touch()
    (tmp_path / "model/model.safetensors").touch()
    left_out = copy_model(tmp_path / "model", tmp_path / "out")
    assert left_out == ["additional_chat_templates/evil.py", "pytorch_model.bin"]
    assert (tmp_path / "out/additional_chat_templates/tool.jinja").is_file()


def test_a_folder_is_written_whole_or_not_at_all(lora_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = patch.object(command, "card", side_effect=OSError("disk full"))
    with broken, pytest.raises(OSError, match="disk full"):
        export(lora_run, "transformers", out)
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "precious").touch()
    with pytest.raises(ValueError, match="is there already"):
        export(lora_run, "transformers", out)


def test_a_card_says_what_is_known_and_what_is_not() -> None:
    known = RunFacts(
        name="pocket/embedder", kind="JointEncoder", library="sentence-transformers",
        reads=("text", "pictures"), usage="model = 1", export="python -m experiments.export",
        notes=("First note.", "Second."), base=(Ingredient("minilm", "0.1", "Apache-2.0"),),
        hub_base=("a/b",), data=(Ingredient("flags", "7", "MIT"),), data_name="pocket",
        figures=(
            Figure("direct, recall@1", 0.198, Interval(0.198, 0.167, 0.234, 99)),
            Figure("few, recall@1", 0.198, Interval(0.198, 0.167, 0.234, 9)),
            Figure("other", 0.5),
        ),
        measured="From the report.", training="python -m experiments.run fit", commit="abc",
        dirty=True, fingerprint="f00", seed="0", versions=("torch 2",),
    )  # fmt: skip
    page = card(known)
    assert yaml.safe_load(page.split("---")[1])["base_model"] == ["a/b"]
    for words in (
        "Direct path only", "* First note.\n* Second.", "| minilm | 0.1     | Apache-2.0 |",
        "| direct, recall@1 | 19.8    | [16.7, 23.4]              |",
        "| few, recall@1    | 19.8    | [16.7, 23.4] (9 clusters) |",
        "| other            | 50.0    | none",
        "commit: abc, with uncommitted changes", "arXiv 2604.06156", "docs/fidelity.md",
        "text and pictures", "seed: 0", "## Intended use and limits",
    ):  # fmt: skip
        assert words in page, words
    bare = card(RunFacts("x", "JointEncoder", "peft", ("text",), "", "cmd"))
    assert "states no sources or licences" in bare
    assert "None were recorded" in bare
    assert "no run was found" in bare


def test_a_card_takes_figures_from_score_files(lora_run: Path, tmp_path: Path) -> None:
    from mmemb.benchmarks.score_files import METRICS

    scores = dict.fromkeys(METRICS, 0.5) | {"metric": "hit@1"}
    write_json(tmp_path / "scores/flags_score.json", scores)
    values = {"keys": ["a", "b"], "clusters": ["x", "y"], "values": [1.0, 0.0]}  # two clusters
    write_json(tmp_path / "scores/flags_values.json", {"metric": "hit@1"} | values)
    export(lora_run, "transformers", tmp_path / "out", scores=tmp_path / "scores")
    page = (tmp_path / "out/README.md").read_text()
    assert "| flags, hit@1 | 50.0    | [no interval: 2 clusters] |" in page
    assert "* fingerprint of settings and inputs: f00" in page
    assert "# tiny/lora" in page

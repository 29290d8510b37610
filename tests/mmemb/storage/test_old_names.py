"""Old names in saved models, runs and YAML files."""

from __future__ import annotations

import inspect
import json
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from experiments.cli.config_check import check_config
from experiments.runs.recorded_config import read_config
from mmemb.backbones import VisionLanguageBackbone, load_backbone
from mmemb.storage.old_names import ARGUMENTS, CLASS_PATHS, with_new_names
from tests.fixtures.tiny_vlm import folder as vision_language_model

OLD = "mmemb.backbones.mllm.VisionLanguageBackbone"


@pytest.mark.parametrize("old", sorted(CLASS_PATHS))
def test_new_names_are_those_of_classes(old: str) -> None:
    home, _, name = CLASS_PATHS[old].rpartition(".")
    assert isinstance(getattr(import_module(home), name), type)
    assert CLASS_PATHS[old] not in CLASS_PATHS


def test_an_old_argument_is_refused_with_its_new_place() -> None:
    for path, arguments in ARGUMENTS.items():
        home, _, name = path.rpartition(".")
        parameters = inspect.signature(getattr(import_module(home), name)).parameters
        for old, new in arguments.items():
            assert old not in parameters
            model = {"class_path": path, "init_args": {old: 1}}
            with pytest.raises(ValueError, match=rf"F\.yaml: model\.init_args\.{old} is now {new}"):
                check_config({"model": model}, Path("F.yaml"), ["model"])


def test_a_backbone_of_an_older_version_is_loaded_with_a_warning(tmp_path: Path) -> None:
    saved = tmp_path / "backbone"
    VisionLanguageBackbone(str(vision_language_model("qwen3_vl"))).save_pretrained(saved)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "class_path": OLD}))

    with pytest.warns(UserWarning, match=rf"{OLD} is now {CLASS_PATHS[OLD]}"):
        assert isinstance(load_backbone(str(saved)), VisionLanguageBackbone)


def test_a_run_of_an_older_version_is_read_with_one_warning(tmp_path: Path) -> None:
    head = {"class_path": "mmemb.gating.MlpDepthHead"}
    model = {"class_path": "lightning_modules.GatingPolicy", "init_args": {"head": head}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": model}))

    with pytest.warns(UserWarning, match="saved by an older version") as caught:
        config = read_config(tmp_path)
    assert len(caught) == 1
    assert config["model"]["init_args"]["head"] == {"class_path": "mmemb.gate.MlpDepthHead"}


def test_a_file_with_an_old_name_is_told_the_new_one() -> None:
    data = {"model": {"class_path": "mmemb.gating.MlpDepthHead"}}
    with pytest.raises(
        ValueError, match=r"F\.yaml: model\.class_path: .* is now mmemb\.gate\.MlpD"
    ):
        check_config(data, Path("F.yaml"), ["model"])


def test_names_of_now_are_left_alone() -> None:
    settings = {"class_path": "mmemb.backbones.JointEncoder", "init_args": {"a": [1, {"b": None}]}}
    assert with_new_names(settings, "F") == settings

"""`--allow-class` counts on the command line alone: no file can give it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from experiments.cli.config_check import check_config
from experiments.load import load_run
from experiments.pipeline import read_pipeline

LOADS = {"class_path": "mmemb.backbones.load_backbone", "init_args": {"folder": "runs/x/backbone"}}
KEYS = ("model", "data", "trainer")


def test_a_configuration_cannot_give_it() -> None:
    path, module = Path("own.yaml"), {"class_path": "lightning_modules.ContrastiveEmbedder"}
    check_config({"model": module | {"init_args": {"backbone": LOADS}}}, path, KEYS)
    leave = {"folder": "runs/x/backbone", "allow_classes": ["mine.Words"]}
    backbone = LOADS | {"init_args": leave}
    with pytest.raises(ValueError, match=r"unknown key model\..*allow_classes.* here: folder"):
        check_config({"model": module | {"init_args": {"backbone": backbone}}}, path, KEYS)
    for key in ("allow_class", "allow_classes", "allow-class"):
        with pytest.raises(ValueError, match=f"unknown key {key}"):
            check_config({key: ["mine.Words"]}, path, KEYS)


def test_a_run_cannot_give_it_to_itself(tmp_path: Path) -> None:
    leave = {"folder": str(tmp_path / "backbone"), "allow_classes": ["mine.Words"]}
    backbone = LOADS | {"init_args": leave}
    module = {"class_path": "lightning_modules.ContrastiveEmbedder"}
    settings = {"model": module | {"init_args": {"backbone": backbone}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=r"(?s)does not fit this version.*allow_classes"):
        load_run(tmp_path)


@pytest.mark.parametrize("word", ["--allow-class", "--allow-class=mine.Words"])
@pytest.mark.parametrize("place", ["arguments", "stage", "more_arguments"])
def test_a_pipeline_file_cannot_give_it(word: str, place: str, tmp_path: Path) -> None:
    stage = {"name": "trunk", "subcommand": "fit", "config": "a.yaml"}
    pipeline = {"experiment": "x", "data_root": "y", "stages": [stage]}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(pipeline))
    assert read_pipeline(tmp_path / "base.yaml")
    match place:
        case "arguments":
            pipeline["arguments"] = [word, "mine.Words"]
        case "stage":
            stage["arguments"] = [word, "mine.Words"]  # type: ignore[assignment]
        case _:
            more = {"trunk": [word, "mine.Words"]}
            pipeline = {"base": str(tmp_path / "base.yaml"), "more_arguments": more}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(pipeline))
    with pytest.raises(ValueError, match=r"p\.yaml holds --allow-class, which no file may give"):
        read_pipeline(tmp_path / "p.yaml")


def test_a_class_that_lacks_a_method_is_one_sentence() -> None:
    backbone = {"class_path": "mmemb.backbones.GenerativeBackbone"}
    with pytest.raises(ValueError, match=r"own\.yaml: model\..* lacks .*config.*docs/extend\.md"):
        check_config({"model": {"init_args": {"backbone": backbone}}}, Path("own.yaml"), KEYS)

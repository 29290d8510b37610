"""Pipeline files: what is in them, and one clear error for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

import experiments.report  # noqa: F401  (the line below finds its module)
from experiments.cli.config_files import CONFIGS
from experiments.pipeline import Stage, main, read_pipeline


def write_pipeline(path: Path, **changed: Any) -> Path:
    stage = {"name": "trunk", "subcommand": "fit", "config": "x.yaml"}
    data = {"experiment": "e", "data_root": "d", "stages": [stage]} | changed
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return path


def test_a_pipeline_file_is_read(tmp_path: Path) -> None:
    pipeline = read_pipeline(write_pipeline(tmp_path / "p.yaml", prepare=["pocket"]))
    assert pipeline.stages == (Stage("trunk", "fit", "x.yaml"),)
    assert pipeline.prepare == ("pocket",)


def test_a_file_over_another_one_changes_what_it_names(tmp_path: Path) -> None:
    stages = [
        {
            "name": name,
            "subcommand": "fit",
            "config": "x.yaml",
            "arguments": ["--run", "{experiment}"],
        }
        for name in ("trunk", "gate")
    ]
    write_pipeline(tmp_path / "base.yaml", stages=stages, prepare=["pocket"])
    overlay: dict[str, Any] = {"base": str(tmp_path / "base.yaml"), "experiment": "other"}
    overlay["more_arguments"] = {"gate": ["--more", "1"]}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(overlay))

    pipeline = read_pipeline(tmp_path / "p.yaml")
    assert (pipeline.experiment, pipeline.prepare) == ("other", ("pocket",))
    assert [stage.arguments for stage in pipeline.stages] == [
        ("--run", "other"),
        ("--run", "other", "--more", "1"),
    ]

    overlay["more_arguments"] = {"gait": []}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(overlay))
    with pytest.raises(ValueError, match="the stage 'gait'; those of .* are trunk, gate"):
        read_pipeline(tmp_path / "p.yaml")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"stage": []}, "stage"),
        ({"experiment": None}, "experiment"),
        ({"stages": None}, "stages"),
        ({"stages": [{"name": "a", "subcommand": "fit", "confg": "x"}]}, "confg"),
        ({"stages": [{"name": "a", "subcommand": "fit"}]}, "config"),
        ({"stages": [{"name": "a", "subcommand": "train", "config": "x"}]}, "train"),
        ({"stages": ["trunk"]}, r"Expected `object`, got `str` - at `\$\.stages\[0\]`"),
    ],
)
def test_a_mistake_in_a_pipeline_file_names_file_and_key(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    path = write_pipeline(tmp_path / "p.yaml", **changed)
    with pytest.raises(SystemExit, match=rf"error: .*p\.yaml.*{words}"):
        main([str(path)])


def test_missing_or_broken_pipeline_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*nowhere\.yaml: there is no such"):
        main([str(tmp_path / "nowhere.yaml")])
    (tmp_path / "p.yaml").write_text("a: [")
    with pytest.raises(SystemExit, match=r"error: .*p\.yaml"):
        main([str(tmp_path / "p.yaml")])


def test_an_unknown_stage_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path / "p.yaml")
    with pytest.raises(SystemExit, match=r"no stage 'trnk'; the stages are trunk"):
        main([str(path), "--from", "trnk"])


def test_a_failing_stage_ends_the_pipeline_and_says_how_to_go_on(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path / "p.yaml")
    with (
        patch("experiments.pipeline.is_done", lambda *_: False),
        patch("experiments.pipeline.run_module", lambda *_: 3),
        pytest.raises(SystemExit, match=r"stage trunk failed \(exit status 3\).*run the pipeline"),
    ):
        main([str(path)])


def test_the_writer_is_chosen_by_one_setting() -> None:
    """It names the file that writes, and the one of the gate that writes live."""
    path = CONFIGS / "own/pipeline.yaml"
    configs = {
        writer: {stage.config for stage in read_pipeline(path, writer).stages}
        for writer in (None, "file", "model", "server")
    }
    assert configs[None] == configs["file"]
    assert "experiments/configs/own/rationales/server.yaml" in configs["server"]
    gate = read_pipeline(path, "model").stages[-1]
    assert "experiments/configs/own/gate/model.yaml" in gate.arguments


def test_another_writer_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="--writer modell: expected one of file, model, server"):
        read_pipeline(CONFIGS / "own/pipeline.yaml", "modell")
    with pytest.raises(ValueError, match=r"pocket/pipeline\.yaml leaves no choice of the writer"):
        read_pipeline(CONFIGS / "pocket/pipeline.yaml", "model")

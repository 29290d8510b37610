"""Files that configs name are found beside them and in the package; fingerprints name no place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from experiments.cli.config_files import CONFIGS
from experiments.cli.experiment_cli import parse, run_fingerprint
from experiments.cli.input_files import find_beside, find_input, place_inputs
from experiments.cli.messages import quieten
from tests.fixtures.tiny_experiment import REPO

PROMPT = "experiments/configs/pocket/few_shot.json"


def parsed(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    quieten()
    monkeypatch.chdir(folder)
    return parse(["predict", *arguments, "--data_root", "/none", "--runs", "/none"])


def prompt_of(config: Any) -> str:
    return config.model.init_args.writers["smollm2"].init_args.prompt


def test_a_run_has_one_fingerprint_wherever_the_package_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = ["--config", "experiments/configs/pocket/rationales.yaml"]
    here = parsed(full, REPO, monkeypatch)
    mark = run_fingerprint(here, "predict")

    there = parsed(["--config", "pocket/rationales"], tmp_path, monkeypatch)
    assert prompt_of(there) == prompt_of(here) == PROMPT
    assert run_fingerprint(there, "predict") == mark

    # The content counts, not only the name.
    own = tmp_path / PROMPT
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    assert run_fingerprint(there, "predict") != mark


def test_a_prompt_beside_its_config_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = yaml.safe_load((CONFIGS / "pocket/rationales.yaml").read_text())
    data["model"]["init_args"]["writers"]["smollm2"]["init_args"]["prompt"] = "own.json"
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "stage.yaml").write_text(yaml.safe_dump(data))
    (folder / "own.json").write_text("{}")
    (tmp_path / "own.json").write_text("of the working folder")

    config = parsed(["--config", "mine/stage"], tmp_path, monkeypatch)
    assert prompt_of(config) == "mine/own.json"

    # A flag names files of the working folder.
    flag = ["--model.writers.smollm2.init_args.prompt", "./own.json"]
    config = parsed(["--config", "mine/stage", *flag], tmp_path, monkeypatch)
    assert prompt_of(config) == "./own.json"


def test_only_files_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/pocket").mkdir(parents=True)
    (tmp_path / "mine/a.yaml").write_text("data: {root: pocket, names: [x.json, pocket]}\n")
    (tmp_path / "mine/x.json").write_text("{}")

    config = Namespace(data=Namespace(root="pocket", names=["x.json", "pocket"]))
    find_beside(config, [Path("mine/a.yaml")])
    assert config.data == Namespace(root="pocket", names=["mine/x.json", "pocket"])
    assert find_input("pocket") == Path("pocket"), "a folder of the package is no data"


def test_packaged_files_get_their_place_to_build_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    others = ["none.json", "http://host.org/v1.json", "./pocket/", 3, None]
    settings = {"prompt": PROMPT, "more": [Path("backbone/clip_tiny.json"), *others]}
    assert place_inputs(settings) == {
        "prompt": str(CONFIGS / "pocket/few_shot.json"),
        "more": [CONFIGS / "backbone/clip_tiny.json", *others],
    }

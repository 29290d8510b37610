"""Keys that files link to their settings are refused where no file does."""

from __future__ import annotations

import argparse

import pytest

from experiments.cli.linked_keys import check_linked, split_linked, used_flags
from experiments.cli.settings_sources import settings_sources
from experiments.pipeline import read_pipeline, with_shared
from tests.fixtures.tiny_experiment import CONFIGS, POCKET

TRUNK = ["fit", "--config", str(POCKET / "trunk.yaml")]
MODEL = ["predict", "--config", str(CONFIGS / "own/rationales/model.yaml")]


@pytest.mark.parametrize("flag", [["--group_size", "8"], ["--vlm=other"], ["--models", "m"]])
def test_a_flag_that_no_file_uses_is_refused(flag: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^--\w+ \w+ has no effect here: no file of this command"):
        check_linked(settings_sources([*TRUNK, *flag]))


def test_a_flag_that_a_file_or_another_flag_uses_is_taken() -> None:
    check_linked(settings_sources([*MODEL, "--models", "m"]))
    check_linked(
        settings_sources([*TRUNK, "--group_size", "8", "--data.group_size", "${group_size}"])
    )


def test_a_pipeline_gives_a_linked_key_to_the_stages_that_use_it() -> None:
    words, linked = split_linked(["--runs", "r", "--models", "a", "--vlm=b", "--models", "m"])
    assert (words, linked) == (["--runs", "r"], {"vlm": "b", "models": "m"})
    assert used_flags(MODEL, linked) == ["--models", "m"]
    assert used_flags([*TRUNK, "--encoder", "joint"], linked) == ["--models", "m"]

    options = argparse.Namespace(encoder=None, pretrained=None, linked={"models": "m"})
    pipeline = read_pipeline(CONFIGS / "own/pipeline.yaml", "model")
    reached = {s.name for s in with_shared(pipeline, options).stages if "--models" in s.arguments}
    assert reached == {"rationales", "gate", "decisions", "gate-test"}

    options.encoder = "joint"
    judge = next(s for s in with_shared(pipeline, options).stages if s.name == "judge-a")
    assert list(judge.arguments[2:]) == [
        *("--data.fold", "a", "--encoder", "joint", "--models", "m"),
    ]

    options.encoder = None
    with pytest.raises(ValueError, match="--models has no effect: no stage uses"):
        with_shared(read_pipeline(POCKET / "pipeline.yaml"), options)

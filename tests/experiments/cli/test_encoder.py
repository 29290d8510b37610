"""`--encoder` is its long form, in one stage and in those stages of a pipeline that it concerns."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml

from experiments.cli.encoder import encoder_file, pipeline_arguments, with_encoder
from experiments.cli.experiment_cli import parse, run_fingerprint
from experiments.cli.explain import explain
from experiments.cli.messages import quieten
from experiments.pipeline import read_pipeline, with_shared
from tests.fixtures.tiny_experiment import CLIP_TINY, POCKET, settings_kept

TRUNK = ["fit", "--config", str(POCKET / "trunk.yaml")]
JUDGE = ["fit", "--config", str(POCKET / "judge.yaml")]
SELECTION = ["fit", "--config", str(POCKET / "selection.yaml")]


def test_the_fingerprint_is_that_of_the_overlay() -> None:
    """The flag may stand anywhere; it goes over all files, and other flags over it."""
    read = ["--model.backbone.read_instruction", "false"]
    quieten()
    with settings_kept():
        long = parse([*TRUNK, "--config", str(CLIP_TINY), *read])
        short = parse(["fit", "--encoder", "clip_tiny", *TRUNK[1:], *read])
    assert run_fingerprint(short, "fit") == run_fingerprint(long, "fit")
    assert short.model.init_args.backbone.init_args.tokenizer == "bytes"
    assert not {"encoder", "pretrained"} & set(vars(short))


def test_weights_are_one_flag_more() -> None:
    quieten()
    with settings_kept():
        config = parse([*TRUNK, "--encoder", "clip_vit_b32", "--pretrained", "clip.pt"])
        lines = explain([*TRUNK, "--encoder=clip_tiny"], "data.features").splitlines()
    assert config.model.init_args.backbone.init_args.pretrained == "clip.pt"
    assert lines[1].endswith("backbone/clip_tiny.yaml: None")


def test_the_small_models_may_lie_elsewhere() -> None:
    own = [*TRUNK, "--encoder", "joint", "--data_root", "data/own", "--data.features", "null"]
    quieten()
    with settings_kept():
        beside = parse(own).model.init_args.backbone.init_args
        elsewhere = parse([*own, "--models", "data/pocket/models"]).model.init_args.backbone
    assert beside.text_model == "data/own/models/minilm"
    assert elsewhere.init_args.text_model == "data/pocket/models/minilm"


def test_a_file_of_ones_own_is_taken(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(CLIP_TINY.read_text())
    assert with_encoder(["fit", "--encoder", str(own), "--config=a.yaml", "--steps", "2"]) == [
        *("fit", "--config=a.yaml", "--config", str(own), "--steps", "2")
    ]
    assert encoder_file(str(tmp_path / "mine")) == own


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--encoder", "clip_vit"],
            r"clip_vit: there is no such encoder. Did you mean clip_vit_b32",
        ),
        (["--encoder"], "names no encoder"),
        (["--encoder="], "names no encoder"),
        (["--encoder", "strategy/ddp"], r"has no model\.init_args\.backbone"),
    ],
)
def test_what_is_no_encoder_is_refused(words: list[str], expected: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        with_encoder([*TRUNK, *words])


def test_a_stage_without_a_backbone_is_refused() -> None:
    quieten()
    with (
        settings_kept(),
        pytest.raises(ValueError, match=r"clip_tiny: lightning_modules\.\w+ takes no backbone"),
    ):
        parse([*SELECTION, "--encoder", "clip_tiny"])


def test_a_pipeline_gives_it_to_the_stages_that_build_a_backbone() -> None:
    options = argparse.Namespace(encoder="clip_tiny", pretrained="w.pt", linked={})
    pipeline = read_pipeline(POCKET / "pipeline.yaml")
    changed = with_shared(pipeline, options).stages
    more = {
        after.name: list(after.arguments[len(before.arguments) :])
        for before, after in zip(pipeline.stages, changed, strict=True)
    }
    assert more.pop("trunk") == ["--encoder", "clip_tiny", "--pretrained", "w.pt"]

    # The others read its backbone, which sees pixels.
    pixels = ["--data.features", "null"]
    plain = {"features", "rationales"}
    assert more == {name: [] if name in plain else pixels for name in more}
    assert pipeline_arguments(JUDGE, None, "w.pt") == []


def test_a_stage_that_names_an_encoder_takes_the_new_one(tmp_path: Path) -> None:
    tested = [*JUDGE, "--encoder", "clip_vit_b32"]
    assert pipeline_arguments(tested, "joint", None) == ["--encoder", "joint"]

    # Of two the last one counts.
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"model": {"init_args": {"backbone": {"class_path": "a.B"}}}}))
    words = with_encoder([*tested, "--encoder", str(path)])
    assert words == [*JUDGE, "--config", str(path)]

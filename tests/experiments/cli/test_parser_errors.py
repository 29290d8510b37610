"""Errors of the real parser in one paragraph."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from experiments.cli.experiment_cli import parse
from experiments.cli.messages import quieten
from tests.fixtures.tiny_experiment import POCKET, settings_kept

TRUNK = str(POCKET / "trunk.yaml")

MESSAGES = {
    ("--trainer.max_steps", "many"): "--trainer.max_steps=many: expected a whole number.",
    ("--data.batch_size", "many"): "--data.batch_size=many: expected a whole number.",
    ("--data.fold", "c"): "--data.fold=c: expected one of 'a', 'b'.",
    ("--lr", "many"): "--lr=many: expected a number.",
    ("--seed_everything", "x"): "--seed_everything=x: expected true or false or a whole number.",
    ("--model=Nothing",): (
        "--model=Nothing: expected the full path of a class (package.module.Class)."
    ),
    ("--model.optimizer=SGDD",): (
        "--model.optimizer=SGDD: expected the full path of a class (package.module.Class)."
    ),
    ("--model=lightning_modules.ContrastiveEmbeder",): (
        "--model: model.class_path: lightning_modules has no ContrastiveEmbeder. "
        "Did you mean ContrastiveEmbedder?"
    ),
    ("--model.backbone=mmemb.backbones.JointEncodr",): (
        "--model.backbone: mmemb.backbones has no JointEncodr. Did you mean JointEncoder?"
    ),
    ("--trainer.callbacks+=callbacks.RecallAtKK",): (
        "--trainer.callbacks: callbacks has no RecallAtKK. Did you mean RecallAtK?"
    ),
    ("--lr",): "argument --lr: expected one argument",
    (TRUNK,): f"unrecognized arguments: {TRUNK}. Did you mean --config {TRUNK}?",
}


def message(arguments: list[str]) -> str:
    quieten()
    with settings_kept(), pytest.raises(ValueError, match=".") as raised:
        parse(arguments)
    return str(raised.value)


@pytest.mark.parametrize("flags", MESSAGES)
def test_a_wrong_flag_is_one_sentence(flags: tuple[str, ...]) -> None:
    assert message(["fit", "--config", TRUNK, *flags]) == MESSAGES[flags]


def test_a_wrong_value_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"model": {"init_args": {"loss_temperature": "warm"}}}))
    text = message(["fit", "--config", TRUNK, "--config", str(path)])
    assert text == f"{path}: model.loss_temperature=warm: expected a number."


def test_what_is_missing_is_said() -> None:
    assert message(["fit"]).startswith("data and model not set. Name the file of a stage")
    assert message([]).startswith("The first argument must be fit, validate, test or predict.")

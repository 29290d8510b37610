"""`--explain KEY`: the last file or flag that set a value, and those before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli.explain import asked_for, explain
from experiments.cli.messages import quieten
from tests.fixtures.tiny_experiment import POCKET, run, settings_kept

EMBEDDER = ["fit", "--config", str(POCKET / "embedder.yaml")]


def explained(arguments: list[str], key: str) -> list[str]:
    quieten()
    with settings_kept():
        return explain(arguments, key).splitlines()


def test_a_flag_beats_a_file_beats_the_base(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("trainer: {max_steps: 7}\n")
    lines = explained(
        [*EMBEDDER, "--config", str(own), "--trainer.max_steps", "9"], "trainer.max_steps"
    )
    assert lines[0] == "trainer.max_steps = 9"
    assert lines[1] == "set by --trainer.max_steps: 9"
    assert lines[2] == f"before that {own}: 7"
    assert lines[3].endswith("pocket/embedder.yaml: 100")
    assert explained(EMBEDDER, "trainer.devices")[1].endswith("configs/base.yaml: 1")


def test_init_args_may_be_left_out() -> None:
    for key in ("data.batch_size", "data.init_args.batch_size"):
        assert explained(EMBEDDER, key)[0] == "data.init_args.batch_size = 64"
    lines = explained([*EMBEDDER, "--data.batch_size=32"], "data.init_args.batch_size")
    assert lines[:2] == ["data.init_args.batch_size = 32", "set by --data.batch_size: 32"]


def test_interpolation_and_defaults_are_told_apart() -> None:
    lines = explained([*EMBEDDER, "--data_root", "elsewhere"], "data.root")
    assert lines[0] == "data.init_args.root = 'elsewhere'"
    assert lines[1].endswith("embedder.yaml: ${data_root}")
    assert explained(EMBEDDER, "data.num_workers")[1].startswith("set by no file and no flag")


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no setting trainer\.max_stepz\. Did you mean trainer"):
        explained(EMBEDDER, "trainer.max_stepz")


def test_the_command_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run([*EMBEDDER, "--runs", str(tmp_path / "runs"), "--explain", "model.loss_temperature"])
    assert "model.init_args.loss_temperature = 0.05" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert asked_for(["fit", "--explain=a.b"]) == (["fit"], "a.b")
    assert asked_for(["fit"]) == (["fit"], None)

"""Continuing a checkpoint: every difference from its run is named, and must be allowed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.resume import changed_inputs, changes, check_resume
from mmemb.lineage import write_json
from tests.test_cli_errors import message_of
from tests.test_interrupted_fit import fit_trunk, trunk  # noqa: F401  (a fixture)
from tests.tiny_experiment import Experiment, run

SETTINGS: dict[str, Any] = {
    "subcommand": "fit",
    "trainer": {"max_steps": 4, "precision": None, "callbacks": "[]"},
    "model": {"init_args": {"temperature": 0.05, "optimizer": {"init_args": {"lr": 0.1}}}},
    "data": {"init_args": {"batch_size": 8, "pairs": ["a"]}},
}


def other(*path: str, value: Any) -> dict[str, Any]:
    """The settings with one value changed."""
    head, *rest = path
    inner = SETTINGS
    copy: dict[str, Any] = {**inner}
    node = copy
    for name in path[:-1]:
        node[name] = {**node[name]}
        node = node[name]
    node[path[-1]] = value
    return copy


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Where a checkpoint of a run of `SETTINGS` would lie."""
    given = {"devices": 2, "callbacks": None}
    recorded = SETTINGS | {"trainer": SETTINGS["trainer"] | given, "name": "trunk"}
    del recorded["subcommand"]
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(recorded))
    write_json(tmp_path / "run/fingerprint.json", {"inputs": {"data/pocket": "1", "gone": "2"}})
    return tmp_path / "run/checkpoints/last.ckpt"


BATCH = other("data", "init_args", "batch_size", value=16)


def test_equal_settings_may_go_on(checkpoint: Path) -> None:
    check_resume(checkpoint, SETTINGS, {"data/pocket": "1", "new": "3"})


def test_every_difference_is_listed_with_the_flag_that_allows_it(checkpoint: Path) -> None:
    changed = BATCH | {"trainer": SETTINGS["trainer"] | {"max_steps": 9}}
    with pytest.raises(ValueError, match="belongs to a run of other settings") as raised:
        check_resume(checkpoint, changed, {"data/pocket": "7"})
    text = str(raised.value)
    assert "data.init_args.batch_size was 8, is 16" in text
    assert "trainer.max_steps was 4, is 9" in text
    assert "data/pocket holds other data than when the run was started" in text
    assert text.endswith("--allow-change trainer.max_steps data.init_args.batch_size data/pocket")


def test_what_is_allowed_may_differ_and_nothing_else(checkpoint: Path) -> None:
    check_resume(checkpoint, BATCH, {}, ["data.init_args.batch_size"])
    check_resume(checkpoint, BATCH, {}, ["data"])
    check_resume(checkpoint, SETTINGS, {"data/pocket": "7"}, ["data/pocket"])
    with pytest.raises(ValueError, match="--allow-change trainer: this is no difference"):
        check_resume(checkpoint, BATCH, {}, ["data", "trainer"])


def test_the_optimiser_comes_with_the_checkpoint(checkpoint: Path) -> None:
    faster = other("model", "init_args", "optimizer", "init_args", "lr", value=1.0)
    with pytest.raises(
        ValueError, match=r"optimizer\.init_args\.lr was 0\.1, is 1\.0: a checkpoint"
    ):
        check_resume(checkpoint, faster, {}, ["model"])


def test_a_checkpoint_of_nobodys_run_is_not_compared(tmp_path: Path) -> None:
    check_resume(tmp_path / "weights.ckpt", BATCH, {})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (other("data", "init_args", "pairs", value=["a", "b"]), {"data.init_args.pairs"}),
        (other("model", "init_args", "new", value={"x": 1}), {"model.init_args.new.x"}),
        (other("model", "init_args", value={}), {"model.init_args", "model.init_args.temperature",
                                                  "model.init_args.optimizer.init_args.lr"}),
    ],
)  # fmt: skip
def test_changes_name_keys(settings: Mapping[str, Any], words: set[str]) -> None:
    recorded = {**SETTINGS, "trainer": {"max_steps": 4, "precision": None}}
    assert set(changes(recorded, settings)) == words


def test_a_run_of_an_older_version_knows_no_inputs(tmp_path: Path) -> None:
    assert changed_inputs(tmp_path, {"data": "1"}) == {}


@pytest.mark.slow  # the default suite has 90 seconds
def test_a_fit_goes_on_with_an_allowed_change_alone(
    trunk: Experiment,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = fit_trunk(trunk, tmp_path / "runs")
    last = str(folder / "trunk/checkpoints/last.ckpt")
    longer = ["--runs", str(tmp_path / "more"), "--ckpt_path", last, "--trainer.max_steps", "6"]
    longer += ["--data.num_workers", "1"]
    text = message_of(trunk.command("trunk", *longer), capsys)
    assert "trainer.max_steps was 4, is 6" in text
    assert "num_workers" not in text, "who reads is no matter of results"
    run(trunk.command("trunk", *longer, "--allow-change", "trainer.max_steps"))
    assert (tmp_path / "more/tiny/trunk").is_symlink()

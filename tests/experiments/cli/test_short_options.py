"""Short options are their long keys: in the configuration, in the fingerprint, and in conflicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from experiments.cli.experiment_cli import parse, run_fingerprint
from experiments.cli.explain import explain
from experiments.cli.messages import quieten
from experiments.cli.settings_sources import settings_sources
from experiments.cli.short_options import fitting_group_size, implied_settings
from tests.fixtures.tiny_experiment import POCKET, run, settings_kept

TRUNK = ["fit", "--config", str(POCKET / "trunk.yaml")]
LONG = [
    *("--model.optimizer.lr", "1e-3", "--data.batch_size", "8", "--data.group_size", "8"),
    *("--trainer.max_steps", "3", "--trainer.limit_train_batches", "3"),
    *("--trainer.val_check_interval", "3", "--trainer.devices", "2"),
]


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., list[str]]:
    """Writes a file of settings; returns the flags that name it."""

    def write(name: str = "own", **data: Any) -> list[str]:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data))
        return ["--config", str(path)]

    return write


def implied(arguments: list[str]) -> dict[str, str]:
    return {setting.key: setting.value for setting in implied_settings(settings_sources(arguments))}


def test_short_options_are_the_run_of_the_long_keys(written: Callable[..., list[str]]) -> None:
    """`devices` decides no result, so the fingerprint alone would not show it."""
    short = ["--batch_size", "8", "--devices", "2", *written(lr=1e-3, steps=3)]
    quieten()
    with settings_kept():
        long, config = parse([*TRUNK, *LONG]), parse([*TRUNK, *short])
        assert run_fingerprint(config, "fit") == run_fingerprint(long, "fit")
    assert str(config.trainer.devices) == str(long.trainer.devices) == "2"
    assert not {"lr", "batch_size", "steps", "devices"} & set(vars(config))


def test_flags_and_keys_of_a_file_set_the_same(written: Callable[..., list[str]]) -> None:
    flags = implied([*TRUNK, "--lr=0.001", "--batch_size=8", "--steps=3", "--devices=2"])
    assert implied([*TRUNK, *written(lr=1e-3, batch_size=8, steps=3, devices=2)]) == flags
    assert len(flags) == 7, "with the epoch, the interval of validations and the group size"


def test_explain_names_the_short_option() -> None:
    quieten()
    with settings_kept():
        lines = explain([*TRUNK, "--batch_size", "8"], "data.group_size").splitlines()
        short = explain([*TRUNK, "--batch_size=8"], "batch_size").splitlines()
    assert lines[0] == "data.init_args.group_size = 8"
    assert lines[1].startswith("set by --batch_size: data.group_size is 8 instead of 32")
    assert lines[2].endswith("trunk.yaml: 32")
    assert short[:2] == ["data.init_args.batch_size = 8", "set by --batch_size: 8"]


def test_a_flag_goes_over_a_file_wherever_it_stands(written: Callable[..., list[str]]) -> None:
    assert implied(["fit", "--steps", "3", *TRUNK[1:]])["trainer.max_steps"] == "3"
    found = implied([*TRUNK, "--steps", "4", *written(steps=3)])
    assert found["trainer.max_steps"] == "4"


def test_a_null_sets_nothing(written: Callable[..., list[str]]) -> None:
    assert implied([*TRUNK, *written(lr=None, steps=None)]) == {}


@pytest.mark.parametrize(
    "flags",
    [
        ["--lr", "1e-3", "--model.optimizer.lr", "1"],
        ["--lr=1e-3", "--model.init_args.optimizer.init_args.lr=1"],
        ["--devices", "2", "--trainer.devices", "2"],
        ["--steps", "3", "--trainer", "{max_steps: 3}"],
    ],
)
def test_a_short_and_a_long_flag_are_refused(flags: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^--\S+ and --\S+ give one setting two values: \w+ is"):
        implied([*TRUNK, *flags])


def test_a_long_key_beside_or_behind_a_short_one_is_refused(
    written: Callable[..., list[str]],
) -> None:
    beside = written("beside", steps=3, trainer={"max_steps": 3})
    with pytest.raises(ValueError, match=r"steps in .*beside\.yaml and trainer\.max_steps in"):
        implied([*TRUNK, *beside])
    with pytest.raises(ValueError, match=r"lr in .*own\.yaml and model\.optimizer\.lr in .*trunk"):
        implied(["fit", *written(lr=1e-3), *TRUNK[1:]])
    with pytest.raises(ValueError, match=r"steps in .*own\.yaml and --trainer\.max_steps give"):
        implied([*TRUNK, "--trainer.max_steps", "3", *written(steps=3)])


def test_steps_take_the_epoch_and_the_validation_with_them(
    written: Callable[..., list[str]],
) -> None:
    epoch, interval = "trainer.limit_train_batches", "trainer.val_check_interval"
    expected = {"trainer.max_steps": "3", epoch: "3", interval: "3"}
    assert implied([*TRUNK, "--steps", "3"]) == expected
    assert implied([*TRUNK, "--steps", "500"])[interval] == "125", "it validates as often as before"

    # A length of an epoch that is given stays as it is.
    chosen = implied([*TRUNK, "--steps", "9", f"--{epoch}", "3"])
    assert epoch not in chosen

    epochs = written(trainer={"max_steps": -1, "max_epochs": 2, "limit_train_batches": 5})
    assert implied(["fit", *epochs, "--steps", "3"]) == {"trainer.max_steps": "3"}


def test_a_group_size_fits_a_batch_size_that_was_set_behind_it(
    written: Callable[..., list[str]],
) -> None:
    def group(*more: str) -> str | None:
        return implied([*TRUNK, *more]).get("data.group_size")

    assert group("--batch_size", "8") == group("--data.batch_size=8") == "8"
    assert group(*written(data={"init_args": {"batch_size": 48}})) == "24"
    assert group("--batch_size", "128") is None, "it fits as it is"

    # If both are set, the data module checks that they fit.
    assert group("--batch_size", "8", "--data.group_size", "5") is None

    linked = written("linked", group_size=512, data={"init_args": {"group_size": "${group_size}"}})
    assert implied(["fit", *linked, "--batch_size", "64"])["data.group_size"] == "64"


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_fitting_group_fills_the_batch(batch_size: int, group_size: int) -> None:
    size = fitting_group_size(batch_size, group_size)
    proper = [s for s in range(2, group_size + 1) if batch_size % s == 0]
    assert size == (max(proper) if proper else 1 if 1 in (batch_size, group_size) else None)


def test_a_model_without_an_optimizer_takes_no_learning_rate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as raised:
        run(["predict", "--config", str(POCKET / "features.yaml"), "--lr", "1"])
    assert "--lr (short for model.optimizer.lr): unknown key model.optimizer" in str(raised.value)

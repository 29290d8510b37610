"""Files and flags of a command line as data, in their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli.settings_sources import (
    ABSENT,
    config_files,
    last_value,
    read_config_file,
    settings_sources,
)


def test_files_and_flags_come_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("trainer: {max_steps: 3}\n")
    words = ["fit", "--lr=1e-3", "--config", str(path), "--tags", "a", "b", "--data.fold", "null"]
    sources = settings_sources(
        [*words, "--print_config", "--model.help", "x", "--flag", "--runs", ""]
    )

    assert [source.label for source in sources] == [
        "--lr", str(path), "--tags", "--data.fold", "--flag", "--runs",
    ]  # fmt: skip
    assert [source.text for source in sources] == ["1e-3", None, "a", "null", "", ""]
    assert last_value(sources, "trainer.max_steps") == 3
    assert last_value(sources, "data.fold") is None
    assert last_value(sources, "data.root") is ABSENT


def test_a_key_finds_its_value_with_and_without_init_args() -> None:
    (source,) = settings_sources(["fit", "--model.init_args.optimizer.init_args.lr", "1"])
    assert source.value("model.optimizer.lr") == 1
    assert source.value("model.optimizer.momentum") is ABSENT


@pytest.mark.parametrize("text", ["a: [b", "2026-13-45", "@x"])
def test_a_text_that_is_no_yaml_is_a_text(text: str) -> None:
    (source,) = settings_sources(["fit", "--model.prompt", text])
    assert source.value("model.prompt") == text


def test_config_files_are_found_however_they_are_given() -> None:
    found = config_files(["fit", "--config", "a.yaml", "--x=1", "--config=b.yaml", "-c", "c.yaml"])
    assert [str(path) for path in found] == ["a.yaml", "b.yaml", "c.yaml"]


@pytest.mark.parametrize(
    "text", ["lr: 1\nname: a\nlr: 2\n", "a: [{lr: 1, lr: 2}]", "a: &x {b: *x, lr: 1, lr: 1}"]
)
def test_a_key_that_a_file_holds_twice_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"a\.yaml: the key lr of line \d stands in its table before"
    ):
        read_config_file(path)

    path.write_text("a: &x {lr: 1}\nb: {<<: *x, lr: 2}\nlr: 3\n")
    assert read_config_file(path)["b"] == {"lr": 2}

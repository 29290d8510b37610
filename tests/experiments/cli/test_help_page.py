"""The page of `--help`."""

from __future__ import annotations

import inspect

import pytest

from lightning_modules import ContrastiveEmbedder
from tests.fixtures.tiny_experiment import POCKET, run


def page(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as raised:
        run(arguments)
    assert raised.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 66
    assert max(map(len, lines)) <= 100
    return lines


def test_the_projects_own_keys_come_first_with_their_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "\n".join(page(["fit", "--help"], capsys))
    for line in (
        "  --seed_everything 0           seed of all random numbers",
        "  --experiment pocket           folder below `runs`",
        "  --lr                          learning rate: model.optimizer.lr",
        "  --devices 1                   processes or GPUs",
    ):
        assert line in text
    assert text.index("--steps") < text.index("--help.all")
    assert "--trainer." not in text


def test_a_file_adds_the_arguments_of_its_classes(capsys: pytest.CaptureFixture[str]) -> None:
    lines = page(["fit", "--config", str(POCKET / "trunk.yaml"), "-h"], capsys)
    assert "model: lightning_modules.ContrastiveEmbedder" in lines
    names = {line.split()[0] for line in lines if line.startswith("  --model.")}
    expected = {f"--model.{name}" for name in inspect.signature(ContrastiveEmbedder).parameters}
    assert expected <= names
    assert any(line.startswith("  --data.batch_size 64 ") for line in lines), "the file's value"
    assert any("linear warm-up" in line for line in lines), "the line of the docstring"


def test_a_class_without_a_word_about_its_arguments_is_shown_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = "lightning.pytorch.demos.boring_classes.BoringModel"
    data = "lightning.pytorch.demos.mnist_datamodule.MNISTDataModule"
    lines = page(["fit", "--model", model, "--data", data, "--help"], capsys)
    assert f"model: {model}" in lines
    assert "  --data.batch_size 32" in lines


def test_the_rest_is_lightnings_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["fit", "--help.all"])
    assert "--trainer.gradient_clip_val" in capsys.readouterr().out

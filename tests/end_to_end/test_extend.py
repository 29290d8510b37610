"""Every example of docs/extend.md runs, is as short as promised, and keeps the contracts."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from experiments.checks.backbone import main
from mmemb.backbones.contract import check_contract
from mmemb.records.inputs import Media, Side
from mmemb.records.rationales import GREEDY
from tests.fixtures.tiny_experiment import REPO, settings_kept

PAGE = (REPO / "docs/extend.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ModuleType]]:
    """The Python blocks as the modules that their first line says they are."""
    folder, found = tmp_path_factory.mktemp("extend"), []
    for number, text in enumerate(blocks("python")):
        name = re.match(r'"""([\w/]+)\.py: ', text)[1].replace("/", ".")  # type: ignore[index]
        path = folder / f"block_{number}.py"
        path.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(module)
    yield found
    for module in found:
        del sys.modules[module.__name__]


def test_the_page_has_the_examples_that_it_promises() -> None:
    lengths = [len([line for line in text.splitlines() if line]) for text in blocks("python")]
    assert len(lengths) == 2
    assert lengths[0] <= 40
    assert lengths[1] <= 20
    assert len(blocks("yaml")) == 2


def test_the_backbone_keeps_every_promise(modules: list[ModuleType]) -> None:
    findings = list(check_contract(modules[0].HashedWords(embedding_dim=8)))
    assert len(findings) == 8
    assert [finding for finding in findings if not finding.holds] == []


def test_the_backbone_learns(modules: list[ModuleType]) -> None:
    torch.manual_seed(0)
    backbone = modules[0].HashedWords(embedding_dim=8)
    losses = []
    for _ in range(4):
        left, right = (backbone([Side(text)]) for text in ("a red flag", "peru"))
        losses.append(1 - (left * right).sum())
        (grad,) = torch.autograd.grad(losses[-1], backbone.words.weight)
        with torch.no_grad():
            backbone.words.weight -= grad
    assert losses[-1] < losses[0] - 0.1


def test_its_file_and_the_command_below_it(
    modules: list[ModuleType],
    tiny_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "hashed_words.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    line = re.search(r"    python -m experiments\.check (.*hashed_words\.yaml)", PAGE)
    assert line is not None
    words = line[1].replace("experiments/", f"{REPO}/experiments/").split()
    words[-1] = str(tmp_path / words[-1])
    with settings_kept():
        main([*words, "--data_root", str(tiny_root)])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "HashedWords: reads text"
    assert [line[:6] for line in said[1:]] == ["holds "] * 8


def test_the_writer_writes_from_one_side(modules: list[ModuleType]) -> None:
    writer = modules[1].LongestWordWriter()
    sides = [Side("the flag of Peru's capital"), Side(media=(Media("image", "p"),))]
    written = writer.write(sides, torch.tensor([[GREEDY, 4], [GREEDY, 4]]))
    assert [[r.answer for r in draws] for draws in written] == [["capital"] * 2, []]
    assert written == writer.write(sides, torch.tensor([[GREEDY, 4], [GREEDY, 4]]))
    assert [draw.seed for draw in written[0]] == [GREEDY, 4]


def test_its_file_takes_a_writers_place(modules: list[ModuleType], tmp_path: Path) -> None:
    from experiments.cli.experiment_cli import build
    from experiments.cli.messages import quieten

    overlay = tmp_path / "writer.yaml"
    overlay.write_text(blocks("yaml")[1], encoding="utf-8")
    configs = [REPO / "experiments/configs/pocket/rationales.yaml", overlay]
    quieten()
    with settings_kept():
        module, _ = build(["fit", *(word for path in configs for word in ("--config", str(path)))])
    assert [type(writer).__name__ for writer in module.writers.values()] == ["LongestWordWriter"]

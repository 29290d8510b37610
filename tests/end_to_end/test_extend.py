"""The package of docs/extend.md keeps the contracts, trains, and loads in another process."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from experiments.checks.backbone import main
from mmemb.backbones.contract import check_contract
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.gate.budget import BudgetCalibration
from mmemb.records.inputs import Media, Side
from mmemb.records.rationales import GREEDY
from tests.fixtures.own_package import PAGE, blocks, fit_command, modules, write_package
from tests.fixtures.tiny_experiment import REPO, run, settings_kept

NAMES = ("hashed_words", "longest_word", "plain_head")
WORDS = "hashed_words.HashedWords"
OTHERS = ["longest_word.LongestWordWriter", "plain_head.PlainHead"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's package, which Python finds and nothing has installed."""
    folder = write_package(tmp_path / "package")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def own(package: Path) -> list[ModuleType]:
    return [importlib.import_module(name) for name in NAMES]


def test_the_page_has_the_examples_that_it_promises() -> None:
    assert tuple(modules()) == NAMES
    lengths = [
        len([line for line in text.splitlines() if line])
        for text in (blocks("toml")[0], *modules().values())
    ]
    assert lengths[0] + lengths[1] <= 60
    assert lengths[2] <= 20
    assert lengths[3] <= 20
    points = tomllib.loads(blocks("toml")[0])["project"]["entry-points"]
    assert points == {"mmemb.backbones": {"HashedWords": "hashed_words:HashedWords"}}


def test_the_backbone_keeps_every_promise(own: list[ModuleType]) -> None:
    findings = list(check_contract(own[0].HashedWords(embedding_dim=8)))
    assert len(findings) == 9
    assert [finding for finding in findings if not finding.holds] == []


def test_the_backbone_learns(own: list[ModuleType]) -> None:
    torch.manual_seed(0)
    backbone = own[0].HashedWords(embedding_dim=8)
    losses = []
    for _ in range(4):
        left, right = (backbone([Side(text)]) for text in ("a red flag", "peru"))
        losses.append(1 - (left * right).sum())
        (grad,) = torch.autograd.grad(losses[-1], backbone.words.weight)
        with torch.no_grad():
            backbone.words.weight -= grad
    assert losses[-1] < losses[0] - 0.1


def test_its_file_and_the_command_below_it(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = re.search(r"    python -m experiments\.check (.*hashed_words\.yaml)", PAGE)
    assert line is not None
    words = line[1].replace("experiments/", f"{REPO}/experiments/").split()
    words[-1] = str(package / words[-1])
    with settings_kept():
        main([*words, "--data_root", str(tmp_path)])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "HashedWords: reads text"
    assert [line[:6] for line in said[1:]] == ["holds "] * 9


def test_the_writer_writes_from_one_side(own: list[ModuleType]) -> None:
    writer = own[1].LongestWordWriter()
    sides = [Side("the flag of Peru's capital"), Side(media=(Media("image", "p"),))]
    written = writer.write(sides, torch.tensor([[GREEDY, 4], [GREEDY, 4]]))
    assert [[r.answer for r in draws] for draws in written] == [["capital"] * 2, []]
    assert written == writer.write(sides, torch.tensor([[GREEDY, 4], [GREEDY, 4]]))
    assert [draw.seed for draw in written[0]] == [GREEDY, 4]


@pytest.mark.parametrize(
    ("config", "block", "class_path"),
    [("rationales", 1, "longest_word.LongestWordWriter"), ("gate", 2, "plain_head.PlainHead")],
)
def test_their_files_take_the_place_of_ours(
    config: str, block: int, class_path: str, package: Path, tmp_path: Path
) -> None:
    from experiments.cli.experiment_cli import parse
    from experiments.cli.messages import quieten

    overlay = tmp_path / "own.yaml"
    overlay.write_text(blocks("yaml")[block], encoding="utf-8")
    configs = [REPO / f"experiments/configs/pocket/{config}.yaml", overlay]
    quieten()
    with settings_kept():
        parsed = parse(["fit", *(word for path in configs for word in ("--config", str(path)))])
    arguments = parsed.model.init_args
    named = arguments.head if config == "gate" else list(arguments.writers.values())[-1]
    assert named.class_path == class_path


LOADS = """
import json, sys
from mmemb import AdaptiveEmbedder, Side, load_backbone
given, gate = json.loads(sys.argv[1]), json.loads(sys.argv[2])
texts = [Side("what is number 3"), Side("answer 3")]
print(json.dumps(load_backbone(sys.argv[3], **given).encode(texts).tolist()))
embedder = AdaptiveEmbedder.from_pretrained(sys.argv[4], **gate)
print(json.dumps(embedder.encode(texts).depths_B.tolist()))
"""


def loaded(python: str, path: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Loads in a new process, which finds this project and what else lies at `path`."""
    found = {"PYTHONPATH": os.pathsep.join(map(str, filter(None, (REPO, path))))}
    return subprocess.run(
        [python, "-c", LOADS, *arguments],
        env={**os.environ, **found},
        capture_output=True,
        text=True,
        check=False,
    )


def write_gate(folder: Path, own: list[ModuleType], backbone: Path) -> Path:
    """Saves an embedder of the page's three classes, whose gate always reasons."""
    words, writer, head = own
    gate = head.PlainHead(32)
    torch.nn.init.zeros_(gate.logits.weight)
    gate.logits.bias.data = torch.tensor([0.0, 1.0])
    lists = ((0.0, 1.0), (0.0, -1.0)), ((0.0, 1.0),) * 2, (0.1, 0.2)
    embedder = AdaptiveEmbedder(
        words.HashedWords.from_pretrained(backbone),
        gate,
        BudgetCalibration(*lists),
        {"full": writer.LongestWordWriter()},
    )
    embedder.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_fit_ends_at_once_unless_the_class_is_allowed_and_then_its_folder_loads_again(
    package: Path, tmp_path: Path
) -> None:
    command, backbone = fit_command(tmp_path, package), tmp_path / "runs/own/train/backbone"
    with pytest.raises(SystemExit, match=rf"would name '{WORDS}'.*--allow-class {WORDS}"):
        run(command)
    assert not list(tmp_path.glob("runs/**/*.ckpt")), "no step was made"

    run([*command, "--allow-class", WORDS])
    own = [importlib.import_module(name) for name in NAMES]
    gate = write_gate(tmp_path / "gate", own, backbone)
    allowed = json.dumps({"allow_classes": [WORDS, *OTHERS]})
    again = loaded(sys.executable, package, allowed, allowed, str(backbone), str(gate))
    vectors, depths = map(json.loads, again.stdout.splitlines())
    sides = [Side("what is number 3"), Side("answer 3")]
    expected = own[0].HashedWords.from_pretrained(backbone).encode(sides)
    torch.testing.assert_close(torch.tensor(vectors), expected)
    assert depths == [1, 1]

    refused = loaded(sys.executable, package, "{}", "{}", str(backbone), str(gate))
    assert re.search(rf"ValueError: .*names '{WORDS}'.*--allow-class {WORDS}", refused.stderr)


@pytest.mark.slow
def test_an_installed_package_trains_and_loads_without_a_word(tmp_path: Path) -> None:
    package, place = write_package(tmp_path / "package"), tmp_path / "environment"
    venv.create(place, with_pip=False, symlinks=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "outer.pth").write_text(sysconfig.get_path("purelib"))  # torch and all the rest
    python = str(place / "bin/python")

    # Editable, as one's own package is; a plain installation differs in where the module lies.
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", *offline]
    subprocess.run([*pip, "--editable", str(package)], check=True, cwd=tmp_path)

    command, backbone = fit_command(tmp_path, package), tmp_path / "runs/own/train/backbone"
    subprocess.run([python, "-m", "experiments.run", *command], check=True, cwd=REPO)

    # The head and the writer are visible, but no entry point offers them.
    sys.path.insert(0, str(package))
    try:
        own = [importlib.import_module(name) for name in NAMES]
        gate = write_gate(tmp_path / "gate", own, backbone)
    finally:
        sys.path.remove(str(package))
        for name in NAMES:
            sys.modules.pop(name, None)
    given = json.dumps({"allow_classes": OTHERS})
    again = loaded(python, package, "{}", given, str(backbone), str(gate))
    assert len(again.stdout.splitlines()) == 2, again.stderr

    refused = loaded(python, package, "{}", "{}", str(backbone), str(gate))
    assert len(refused.stdout.splitlines()) == 1
    assert "--allow-class plain_head.PlainHead" in refused.stderr

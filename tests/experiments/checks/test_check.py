"""The contract finds what is broken in a backbone, and nothing in ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.checks.backbone import main
from mmemb.backbones import Backbone, OpenClipBackbone
from mmemb.backbones.contract import check_contract
from tests.fixtures.tiny_backbones import build_clip, build_joint_with_tower
from tests.fixtures.tiny_experiment import POCKET, Experiment, settings_kept


def broken(backbone: Backbone) -> set[str]:
    return {finding.promise for finding in check_contract(backbone) if not finding.holds}


@pytest.mark.parametrize(
    "build", [build_clip, pytest.param(build_joint_with_tower, marks=pytest.mark.slow)]
)
def test_ours_keep_every_promise(build: Any, tmp_path: Path) -> None:
    assert broken(build(tmp_path)) == set()


def looks_at_the_batch(self: Any, sides: Any, rationales: Any) -> torch.Tensor:
    vectors = USUAL(self, sides, rationales)
    return vectors + 0.1 * vectors.mean(0)


def ignores_rationales(self: Any, sides: Any, rationales: Any) -> torch.Tensor:
    return USUAL(self, sides, [None] * len(sides))


def collapses(self: Any, sides: Any, rationales: Any) -> torch.Tensor:
    vectors = USUAL(self, sides, rationales)
    return torch.ones_like(vectors) + 0 * vectors


USUAL = OpenClipBackbone._encode


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (looks_at_the_batch, {"batch", "padding"}),
        (ignores_rationales, {"a rationale changes"}),
        (collapses, {"different vectors", "a rationale changes"}),
    ],
)
def test_what_breaks_a_promise_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: Any, words: set[str]
) -> None:
    monkeypatch.setattr(OpenClipBackbone, "_encode", changed)
    found = broken(build_clip(tmp_path))
    assert len(found) == len(words), found
    assert all(any(word in promise for promise in found) for word in words)


def test_an_error_is_a_broken_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_clip(tmp_path)
    monkeypatch.setattr(OpenClipBackbone, "save_pretrained", lambda *_: 1 / 0)
    (finding,) = [f for f in check_contract(backbone) if not f.holds]
    assert finding.seen == "ZeroDivisionError: division by zero"


def test_the_command_says_what_holds(
    clip_experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    _, *arguments = clip_experiment.command("trunk")
    with settings_kept():
        main(["backbone", *arguments])
    out = capsys.readouterr().out
    assert out.startswith("OpenClipBackbone: reads image, text, video")
    assert out.count("\nholds") == 9
    assert "BROKEN" not in out


def test_a_stage_without_a_backbone_is_named() -> None:
    with settings_kept(), pytest.raises(SystemExit, match="RationaleGenerator has no backbone"):
        main(["backbone", "--config", str(POCKET / "rationales.yaml")])

"""The planner against what models, prompts and training steps really are."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from experiments.plan.__main__ import main
from experiments.plan.lengths import ClipLengths, JointLengths, PromptLengths, processor_of
from experiments.plan.memory import ModelShape
from experiments.plan.models import joint_shape, language_model_shape, open_clip_shape
from experiments.plan.read import read_plan
from experiments.plan.savings import alternatives, savings
from experiments.plan.stages import JudgeTokens
from mmemb.backbones import VisionLanguageBackbone
from mmemb.backbones.sequences import SequenceBuilder
from mmemb.llm import PromptStyle
from mmemb.llm.lora import LoraSettings
from mmemb.records.inputs import Side
from mmemb.selection import YesNoJudge
from tests.fixtures.tiny_backbones import (
    HELPFUL,
    TINY,
    build_clip,
    build_joint,
    build_joint_with_tower,
    cached_picture,
)
from tests.fixtures.tiny_experiment import CLIP_TINY, POCKET, settings_kept
from tests.fixtures.tiny_vlm import NOTE, ON_EACH, SIDES, folder


def count(model: nn.Module) -> tuple[int, int]:
    parameters = list(model.parameters())
    return (
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
    )


def counted(shape: ModelShape) -> tuple[int, int]:
    return shape.total + shape.updates, shape.trainable + shape.updates


@pytest.mark.parametrize("architecture", ON_EACH)
def test_parameters_of_vision_language_models_are_exact(architecture: str) -> None:
    model = str(folder(architecture))
    targets = LoraSettings(rank=3, targets=("q_proj", "down_proj"))
    for freeze, lora in ((True, None), (False, None), (True, LoraSettings(2)), (True, targets)):
        backbone = VisionLanguageBackbone(model, freeze_vision=freeze)
        if lora:
            backbone.attach_lora(lora)
        shape = language_model_shape(model, freeze_vision=freeze, lora=lora)
        assert counted(shape) == count(backbone), (freeze, lora)


def test_parameters_of_the_other_backbones_are_exact(tmp_path: Path) -> None:
    backbone = build_joint(tmp_path)
    assert counted(joint_shape(backbone.config())) == count(backbone)
    backbone.attach_lora(LoraSettings(rank=2))
    assert counted(joint_shape(backbone.config(), LoraSettings(rank=2))) == count(backbone)
    assert counted(open_clip_shape(TINY)) == count(build_clip(tmp_path))


@pytest.mark.parametrize("architecture", ON_EACH)
def test_tokens_are_those_of_the_prompt_builder(architecture: str) -> None:
    style = PromptStyle(system="Look.", max_pixels=32 * 32, max_frames=3, max_frame_pixels=16 * 16)
    backbone = VisionLanguageBackbone(str(folder(architecture)), style)
    lengths = PromptLengths(processor_of(str(folder(architecture))), style, 512)
    for side in SIDES:
        assert lengths.of(side)["text"] == len(backbone.prompts.build(side))
        assert lengths.of(side, NOTE)["text"] == len(backbone._with_replies([side], [NOTE])[0][0])
        assert lengths.media_tokens(side) == lengths.of(side)["vision"] // 4
    assert lengths.media_tokens(SIDES[1]) > 0


def test_tokens_of_the_other_backbones(tmp_path: Path) -> None:
    joint = build_joint(tmp_path)
    builder: SequenceBuilder = joint.sequences
    side = Side("which country", "find the capital of", (cached_picture(1),))
    for note in (None, HELPFUL):
        (row,), _ = builder.build([side], [note], 3)
        assert JointLengths(joint.config(), 3).of(side, note) == {"text": len(row.ids)}
    clip = build_clip(tmp_path)
    found = ClipLengths(clip.spec["model_cfg"]).of(side, HELPFUL)
    positions = clip.model.visual.positional_embedding.shape[0]
    assert found == {"text": 2 * clip.tokenizer.context_length, "vision": positions}


@pytest.mark.slow
def test_a_frozen_tower_counts_and_is_not_trained(tmp_path: Path) -> None:
    backbone = build_joint_with_tower(tmp_path)
    assert counted(joint_shape(backbone.config())) == count(backbone)


def test_judge_tokens_are_those_that_are_fed() -> None:
    judge = YesNoJudge(str(folder("qwen3_vl")))
    query, shown = Side("which one?"), [Side(f"candidate {n}") for n in range(4)]
    notes, fed = [NOTE] * 3, []
    judge._model.base_model.register_forward_pre_hook(
        lambda _, words, named: fed.append(named["input_ids"].numel()), with_kwargs=True
    )
    judge.score([query], [shown], [notes], ["fact"])
    prompts = judge.prompts
    endings = [len(prompts.ending(query, note)) for note in (None, *notes)]
    pieces = len(prompts.query(query)), len(prompts.candidate(query, shown[0]))
    tokens = JudgeTokens.of_pieces(*pieces, sum(endings) / len(endings), 3, 3)
    assert tokens.shared == pytest.approx(sum(fed), rel=0.15)
    assert tokens.naive > 3 * tokens.shared / 2


def plan_of(*arguments: str) -> None:
    with settings_kept():
        main(list(arguments))


def test_the_command_prints_a_plan_and_its_verdict(
    tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["fit", "--config", str(POCKET / "trunk.yaml"), "--config", str(CLIP_TINY)]
    given += ["--data_root", str(tiny_root), "--data.batch_size", "32"]
    with pytest.raises(SystemExit) as ended:
        plan_of(*given, "--device-gib=0.02", "--devices", "2")
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert f"trained           {count(build_clip(tiny_root))[1]:>16,}" in out
    assert "does not fit" in out
    assert "memory of each of 2 device(s)" in out
    for setting in ("gradient_checkpointing", "micro_batch_size", "bfloat16"):
        assert setting in out, setting


@pytest.mark.slow
def test_settings_are_planned_anew(tiny_root: Path) -> None:
    backbone = {
        "class_path": "mmemb.backbones.JointEncoder",
        "init_args": {"text_model": str(tiny_root / "models/minilm")},
    }
    config = {
        "name": "trunk",
        "model": {
            "class_path": "lightning_modules.ContrastiveEmbedder",
            "init_args": {"backbone": backbone},
        },
        "data": {"init_args": {"root": str(tiny_root), "pairs": ["pairs/plain"], "batch_size": 64}},
        "trainer": {"devices": 1, "max_steps": 3},
    }
    plan = read_plan(config, "fit", None)
    found = savings(plan)
    assert [freed for _, freed, _ in found] == sorted((f for _, f, _ in found), reverse=True)
    changed = dict(alternatives(plan))
    name = next(name for name in changed if "lora" in name)
    config["model"]["init_args"]["lora"] = {"rank": 8}  # type: ignore[index]
    assert changed[name].memory() == read_plan(config, "fit", None).memory()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["validate"], "first argument must be fit, predict or test"),
        (["fit", "--device-gib", "much"], "--device-gib must be a number"),
        (["fit", "--tflops", "nan"], "--tflops must be a positive number, got nan"),
        (["fit", "--devices", "inf"], "--devices must be a positive whole number, got inf"),
        (["fit", "--devices", "1.5"], "--devices must be a positive whole number, got 1.5"),
        (["fit", "--config", str(POCKET / "gate.yaml")], "GatingPolicy with fit runs no large"),
        (["fit", "--config", str(POCKET / "trunk.yaml"), "--data_root", "no/where"], "no/where"),
        (["fit", "--config", str(POCKET / "embedder.yaml"), "--runs", "no"], "has not run"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=words):
        plan_of(*arguments)
    assert not capsys.readouterr().out


def test_help_explains(capsys: pytest.CaptureFixture[str]) -> None:
    plan_of("--help")
    assert "--device-gib" in capsys.readouterr().out

"""What the planner reads of a stage's configuration, by `read_plan` on plain data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules import SideDataModule
from datamodules.samples import SampleReader, rows_of
from experiments.plan.__main__ import main
from experiments.plan.planned_writers import planned_writer
from experiments.plan.read import read_plan
from experiments.plan.stages import StagePlan
from mmemb.backbones import VisionLanguageBackbone
from mmemb.llm.prompts.chat_model import ChatModel
from mmemb.llm.prompts.few_shot import FewShotPrompt
from mmemb.records.inputs import Side
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.tiny_backbones import cached_picture
from tests.fixtures.tiny_experiment import CONFIGS, POCKET, settings_kept
from tests.fixtures.tiny_vlm import folder

FEW_SHOT = str(POCKET / "full/few_shot.json")


def spec(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"mmemb.{name}", "init_args": arguments}


def plan(kind: str, subcommand: str, model: Any, data: Any) -> StagePlan:
    config = {
        "name": "stage",
        "model": {"class_path": f"lightning_modules.{kind}", "init_args": model},
        "data": {"init_args": {"batch_size": 4, **data}},
        "trainer": {"devices": 1, "max_steps": 3},
    }
    return read_plan(config, subcommand, None)


def embedder(root: Path, backbone: Any = None, data: Any = None, **model: Any) -> StagePlan:
    seeing = {"model": str(folder("qwen3_vl")), "max_rationale_tokens": 64, **(backbone or {})}
    given = {"root": str(root), "pairs": ["pairs/plain"], "sidecar": "no/where", **(data or {})}
    model["backbone"] = spec("backbones.VisionLanguageBackbone", **seeing)
    return plan("ContrastiveEmbedder", "fit", model, given)


@pytest.mark.slow
def test_writing_keeps_the_vocabulary(tiny_root: Path) -> None:
    silent, writing = (embedder(tiny_root, losses={"next_token": weight}) for weight in (0.0, 1.0))
    row = 4 * silent.model.vocabulary * 64
    assert writing.memory().loss - silent.memory().loss > 4 * row + 2 * row
    assert writing.memory().activations == silent.memory().activations
    head = 2 * writing.model.vocabulary * writing.model.hidden
    assert writing.flops_per_step() - silent.flops_per_step() == pytest.approx(3 * 4 * 64 * head)


def test_writing_keeps_nothing_where_nothing_learns_it(tiny_root: Path) -> None:
    still = {"losses": {"next_token": 1.0}, "lora": {"rank": 2}}
    assert embedder(tiny_root, **still).replies()
    assert not embedder(tiny_root, **still, detach_next_token=True).replies()
    assert not embedder(tiny_root, losses={"next_token": 1.0, "reasoned": 0.0}).replies()


@pytest.mark.slow
def test_targets_that_reason(tiny_root: Path) -> None:
    one, both = (
        embedder(tiny_root, data={"target_sidecar": name}, losses={"next_token": 1.0})
        for name in (None, "no/where")
    )
    longest = [each.roles["targets"].tokens["text"].longest for each in (one, both)]
    assert longest[1] - longest[0] == 64
    assert [len(each.replies()) for each in (one, both)] == [1, 2]
    assert both.memory().activations > one.memory().activations


@pytest.mark.slow
def test_terms_across_the_paths(tiny_root: Path) -> None:
    plain, crossed = (embedder(tiny_root, losses={"cross": weight}) for weight in (0.0, 1.0))
    taught = embedder(tiny_root, distillation_weight=1.0)
    terms = [each.contrast.terms for each in (plain, crossed, taught) if each.contrast]
    assert terms == [2, 4, 3]
    assert crossed.memory().loss > plain.memory().loss


def test_a_rationale_in_the_text_is_read_by_itself(tiny_root: Path) -> None:
    roles = embedder(tiny_root, {"style": {"rationale_in": "text"}}).roles
    assert list(roles) == ["targets", "queries", "queries, reasoned"]


def test_pictures_in_host_memory(tiny_root: Path) -> None:
    assert not embedder(tiny_root).host
    flags = {"pairs": ["pairs/questions"]}  # all of one size
    found = embedder(tiny_root, {"cached_pictures": 10}, flags)
    backbone = VisionLanguageBackbone(str(folder("qwen3_vl")), cached_pictures=10)
    index = ShardIndex.open(tiny_root / "pairs/questions")
    backbone.encode([SampleReader().target_side(rows_of(index)[0])])
    ((tokens, *deeper),) = backbone._seen._seen.values()  # type: ignore[union-attr]
    assert deeper
    assert found.host == {"10 kept pictures": 10 * sum(x.nbytes for x in (tokens, *deeper))}


def judged(root: Path, contrast: str, **data: Any) -> StagePlan:
    judge = spec("judges.YesNoJudge", model=str(folder("qwen3_vl")), max_rows=8)
    model = {"judge": judge, "contrast": contrast, "num_placebos": 2}
    return plan("CounterfactualSelector", "predict", model, {"root": str(root), **data})


def test_a_judge_sees_as_many_candidates_whatever_the_contrast(tiny_root: Path) -> None:
    plans = {name: judged(tiny_root, name, num_negatives=3) for name in ("gain", "margin")}
    assert plans["gain"].judge == plans["margin"].judge
    few, whole = plans["gain"].judge, judged(tiny_root, "gain").judge
    assert few is not None
    assert whole is not None
    assert few.candidates == 4
    assert whole.candidates > 4
    assert whole.shared > few.shared
    assert whole.naive / whole.shared > few.naive / few.shared > 1
    capped = judged(tiny_root, "gain", num_negatives=10**6).judge
    assert capped == whole, "a gallery holds no more"


def chat(root: Path) -> dict[str, Any]:
    model = str(root / "models/smollm2")
    return spec("rationales.LanguageModelWriter", model=model, prompt=FEW_SHOT)


def bridge(root: Path, folder: Path) -> dict[str, Any]:
    labels = folder / "labels.json"
    labels.write_text(json.dumps([{"text": text, "instruction": ""} for text in ("a", "flag")]))
    arguments = {"writer": chat(root), "embedder": "no/where", "labels": str(labels)}
    return spec("rationales.LabelBridgeWriter", **arguments)


def written(root: Path, writer: Any, **data: Any) -> StagePlan:
    given = {"root": str(root), "folders": ["pairs/plain", "queries"], **data}
    model = {"writers": {"one": writer}, "num_drafts": 3, "num_test_draws": 2}
    return plan("RationaleGenerator", "predict", model, given)


def drawn(root: Path, reads: set[str], **data: Any) -> tuple[int, int]:
    """Prompts and draws of a run, by what its data module really asks."""
    asked = [
        meta["split"]
        for batch in SideDataModule(str(root), batch_size=6, **data).predict_dataloader()
        for side, meta in zip(batch.sides, batch.metas, strict=True)
        if side.modalities and side.modalities <= reads
    ]
    return len(asked), sum(3 if part == "train" else 2 for part in asked)


SIDES = {"flag-name": "target", "clip-name": "none"}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"splits": ["train", "test"]},
        {"tasks": ["flag-continent"]},
        {"sides": SIDES},
        {"side": "target", "folders": ["pairs/plain", "candidates"], "sides": SIDES},
    ],
    ids=str,
)
def test_draws_are_those_that_are_asked_for(
    tiny_root: Path, tmp_path: Path, data: dict[str, Any]
) -> None:
    given = {"folders": ["pairs/plain", "queries"], **data}
    everything = {"text", "image", "video"}
    for writer, reads in ((chat(tiny_root), {"text"}), (bridge(tiny_root, tmp_path), everything)):
        found = written(tiny_root, writer, **given).generation
        assert found is not None
        assert (found.prompts, found.draws) == drawn(tiny_root, reads, **given)


def test_a_bridge_tells_pictures_as_text(tiny_root: Path, tmp_path: Path) -> None:
    few_shot = FewShotPrompt.load(FEW_SHOT)
    model = ChatModel(str(tiny_root / "models/smollm2"), few_shot, None, "cpu", "float32")
    writer = planned_writer(bridge(tiny_root, tmp_path))
    assert writer is not None
    assert writer.shared == len(model.prefix_ids)
    shown = Side("what?", "Find it.", (cached_picture(1), cached_picture(2)))
    told = Side("what? The picture shows flag and flag.", "Find it.")
    for side, text in ((shown, told), (told, told)):
        ids = model.question_ids(few_shot.question(text))
        assert writer.lengths.of(side) == {"text": len(ids)}


def test_the_command_sees_through_a_bridge(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for path in tiny_root.iterdir():
        (root / path.name).symlink_to(path)
    bridge(tiny_root, root)
    given = ["predict", "--config", str(POCKET / "full/rationales.yaml"), "--experiment", "none"]
    with settings_kept():
        main([*given, "--data_root", str(root)])
    assert "writer smollm2 of 1" in capsys.readouterr().out


def test_pairs_that_are_not_there_yet_are_planned(
    tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory is that of the pairs that are there; samples, and with epochs the steps, are not."""
    given = ["fit", "--config", str(CONFIGS / "own/train.yaml"), "--encoder", "clip_tiny"]
    given += ["--data_root", str(tiny_root), "--data.batch_size", "10", "--trainer.max_steps", "-1"]
    given += ["--trainer.limit_train_batches", "null", "--trainer.max_epochs", "2"]
    with settings_kept():
        main([*given, "--pairs", "1000"])
        many = capsys.readouterr().out.splitlines()
        main(given)
        few = capsys.readouterr().out.splitlines()
        with pytest.raises(SystemExit, match="predict of DepthValueExporter trains on no pairs"):
            main(["predict", "--config", str(POCKET / "depth_values.yaml"), "--pairs", "5"])
    lines = [line.split() for line in many]
    assert ["samples", "1,000"] in lines
    assert ["steps", "200", "of", "10", "rows", "a", "device"] in lines
    assert ["passes", "2", "over", "the", "samples"] in lines
    assert many[:9] == few[:9], "parameters and memory"


def test_whoever_runs_no_model_is_named(tiny_root: Path) -> None:
    silent = spec("rationales.ServerWriter", model="none")
    with pytest.raises(ValueError, match=r"\['one'\] run no model here"):
        written(tiny_root, silent)
    model = {"writers": {"one": silent}, "tuned": "one"}
    with pytest.raises(ValueError, match="tuned 'one' names no writer that runs a model"):
        plan("RationaleGenerator", "fit", model, {"root": str(tiny_root), "folders": []})


@pytest.mark.parametrize("kind", ["Chat", "VisionLanguage"])
def test_a_writer_that_is_trained(tiny_root: Path, kind: str) -> None:
    """A chat model makes the logits of a batch at once, and their gradients too."""
    seeing = spec("rationales.VisionLanguageWriter", model=str(folder("qwen3_vl")))
    writer = chat(tiny_root) if kind == "Chat" else seeing
    writer["init_args"]["max_new_tokens"] = 7
    model = {"writers": {"one": writer}, "tuned": "one", "lora": {"rank": 2}}
    data = {"root": str(tiny_root), "folders": ["pairs/questions"], "fold": "a"}
    found = plan("RationaleGenerator", "fit", model, data)
    row = 4 * found.model.vocabulary * 7
    assert found.memory().loss == (4 + 2 * (4 if kind == "Chat" else 1)) * row
    assert found.samples == sum(
        entry.meta["fold"] == "a"
        for entry in ShardIndex.open(tiny_root / "pairs/questions").entries
    )
    assert found.disk["generator/"] == 4 * found.model.updates


def test_code_of_a_model_may_run_where_it_is_said(
    tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`trust_remote_code` of writers and judges reaches whoever reads configuration and tokens."""
    from transformers import AutoConfig, AutoProcessor

    told: list[bool] = []
    for kind in (AutoConfig, AutoProcessor):
        plain = kind.from_pretrained

        def noted(model: str, *, plain: Any = plain, **given: Any) -> Any:
            told.append(given.pop("trust_remote_code", False))
            return plain(model, **given)

        monkeypatch.setattr(kind, "from_pretrained", noted)
    given = {"model": str(folder("qwen3_vl")), "trust_remote_code": True}
    written(tiny_root, spec("rationales.VisionLanguageWriter", **given))
    judge = {"judge": spec("judges.YesNoJudge", **given)}
    plan("CounterfactualSelector", "predict", judge, {"root": str(tiny_root)})
    assert told.count(True) == 4, "configuration and processor of either"

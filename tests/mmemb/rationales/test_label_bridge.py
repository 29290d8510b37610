"""LabelBridgeWriter: a text-only writer is told the nearest trained label of what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmemb.backbones import load_backbone
from mmemb.llm.lora import LoraSettings
from mmemb.rationales import NO_DRAW, LabelBridgeWriter, TableWriter, load_writer
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY
from tests.fixtures.tiny_backbones import build_joint, cached_picture

LABELS = [{"text": text, "instruction": "find the"} for text in ("flag", "paris", "long picture")]
SIDES = [
    Side(text="which country", media=(cached_picture(1),)),
    Side(text="the capital of france"),
    Side(instruction="find a flag", media=(cached_picture(2), cached_picture(3))),
    Side(media=tuple(cached_picture(n, "frame") for n in (4, 5))),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bridge")
    build_joint(folder).save_pretrained(folder / "trunk/backbone")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    nearest = [nearest_label(folder, side) for side in SIDES[:1]]
    questions = {f"which country The picture shows {nearest[0]}.": "fr", SIDES[1].text: "fr"}
    facts = {"countries": {"fr": {"name": "France"}}, "questions": questions}
    (folder / "facts.json").write_text(json.dumps(facts))
    return folder


def bridge(folder: Path, **settings: Any) -> LabelBridgeWriter:
    table = TableWriter(str(folder / "facts.json"))
    paths = {"embedder": folder / "trunk/backbone", "labels": folder / "labels.json"}
    return LabelBridgeWriter(table, **{k: str(v) for k, v in paths.items()} | settings)


@torch.inference_mode()
def nearest_label(folder: Path, *shown: Side) -> str:
    """By hand: the label whose vector is nearest to each picture's."""
    backbone = load_backbone(str(folder / "trunk/backbone")).eval()
    label_ND = torch.stack([backbone.encode([Side(**row)])[0] for row in LABELS])
    pictures = [backbone.encode([Side(media=side.media)])[0] for side in shown]
    return " and ".join(LABELS[int((label_ND @ x).argmax())]["text"] for x in pictures)


def test_every_picture_is_told_as_its_nearest_label(folder: Path) -> None:
    told = bridge(folder).told(SIDES)
    both = nearest_label(folder, *(Side(media=(m,)) for m in SIDES[2].media))
    assert [side.text for side in told] == [
        f"which country The picture shows {nearest_label(folder, SIDES[0])}.",
        "the capital of france",
        f"find a flag The picture shows {both}.",
        f"The picture shows {nearest_label(folder, SIDES[3])}.",
    ]
    assert not any(side.media for side in told)
    assert told[1] is SIDES[1]


def test_labels_do_not_depend_on_what_else_is_told(folder: Path) -> None:
    writer = bridge(folder)
    alone = [writer.told([side])[0] for side in SIDES]
    assert alone == bridge(folder).told(SIDES) == writer.told(SIDES)


def test_the_writer_behind_it_writes(folder: Path) -> None:
    writer = bridge(folder)
    assert all(writer.can_read(side) for side in SIDES)
    seeds = torch.tensor([[GREEDY, 7], [GREEDY, NO_DRAW], [GREEDY, 7], [GREEDY, 7]])
    written = writer.write(SIDES, seeds)
    assert [[r.answer for r in pool] for pool in written] == [["France"] * 2, ["France"], [], []]
    assert {r.writer for pool in written for r in pool} == {"table"} == {writer.name}
    again = load_writer(json.loads(json.dumps(writer.spec())))
    assert again.write(SIDES, seeds) == written
    assert again.identity() == writer.identity()


def test_what_shapes_the_questions_shapes_the_identity(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(LABELS[:2]))
    marks = {
        bridge(folder).identity(),
        bridge(folder, template="{text} ({labels})").identity(),
        bridge(folder, labels=str(tmp_path / "labels.json")).identity(),
    }
    assert len(marks) == 3


@pytest.mark.parametrize("template", ["{text}", "{labels} {more}", "{labels} {"])
def test_a_template_without_labels_is_refused(folder: Path, template: str) -> None:
    with pytest.raises(ValueError, match=r"expected the fields \{text\} and \{labels\}"):
        bridge(folder, template=template)


@pytest.mark.parametrize("content", ["[]", "[1]", "no json", '[{"text": "a"}]', '{"a": 1}'])
def test_labels_that_are_none(folder: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"labels\.json cannot be used"):
        bridge(folder, labels=str(path))
    with pytest.raises(FileNotFoundError, match="--profile full"):
        bridge(folder, labels=str(tmp_path / "none.json"))


def test_the_bridge_itself_is_not_fitted(folder: Path) -> None:
    with pytest.raises(ValueError, match="a writer that reads text"):
        bridge(folder).tuner(LoraSettings(), 0)

"""The contract that every backbone is held to: vectors, batches, rationales, folders, YAML."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmemb.backbones import Backbone, JointEncoder, OpenClipBackbone, load_backbone
from mmemb.records.inputs import Media, Side
from tests.fixtures.ranks import run_ranks
from tests.fixtures.tiny_backbones import (
    BUILDERS,
    CONFIGS,
    HELPFUL,
    build_clip,
    cached_picture,
    picture,
    rationale,
)


@dataclass(frozen=True)
class Case:
    backbone: Backbone
    folder: Path
    picture: Callable[..., Media]

    def sides(self) -> list[Side]:
        clip = tuple(self.picture(seed, "frame") for seed in (3, 4, 5))
        return [
            Side("paris"),
            Side("which country is the capital of france so long so long", "find a picture"),
            Side(media=(self.picture(0),)),
            Side(media=(self.picture(0),), instruction="find a flag"),
            Side("flag", media=(self.picture(1), self.picture(2))),
            Side(media=clip),
            Side("country", "find", (*clip, self.picture(1))),
        ]


@pytest.fixture(scope="module", params=BUILDERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    backbone = BUILDERS[request.param](folder).eval()
    return Case(backbone, folder, cached_picture if request.param == "joint" else picture)


def encode(case: Case, *args: Any) -> Tensor:
    with torch.no_grad():
        return case.backbone.encode(*args)


def test_vectors_are_unit_float32(case: Case) -> None:
    vectors = encode(case, case.sides())
    assert vectors.shape == (7, case.backbone.embedding_dim)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(7))
    assert encode(case, []).shape == (0, case.backbone.embedding_dim)


def test_a_vector_does_not_depend_on_the_batch(case: Case) -> None:
    sides = case.sides()
    notes = [HELPFUL if i % 2 else None for i in range(len(sides))]
    together = encode(case, sides, notes)
    alone = torch.cat([encode(case, [sides[i]], [notes[i]]) for i in range(len(sides))])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    backwards = encode(case, sides[::-1], notes[::-1]).flip(0)
    torch.testing.assert_close(together, backwards, atol=1e-5, rtol=0)


def test_every_side_has_its_own_vector(case: Case) -> None:
    vectors = encode(case, case.sides())
    cosines = vectors @ vectors.T - 2 * torch.eye(len(vectors))
    assert cosines.max() < 1 - 1e-5


def test_a_rationale_changes_the_vector_and_none_does_not(case: Case) -> None:
    sides = case.sides()
    direct = encode(case, sides)
    assert torch.equal(direct, encode(case, sides, [None] * len(sides)))
    assert torch.equal(direct, encode(case, sides, [rationale("broken")] * len(sides)))
    reasoned = encode(case, sides, [HELPFUL] * len(sides))
    assert ((direct * reasoned).sum(1) < 1 - 1e-4).all()
    other = rationale("<think>so on</think><answer>flag</answer>")
    assert ((encode(case, sides, [other] * 7) * reasoned).sum(1) < 1 - 1e-5).all()


def test_loads_from_its_folder_alone(case: Case, tmp_path: Path) -> None:
    case.backbone.save_pretrained(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    loaded = type(case.backbone).from_pretrained(tmp_path / "there")
    notes = [HELPFUL, None] * 3 + [HELPFUL]
    expected = encode(case, case.sides(), notes)
    assert torch.equal(encode(replace(case, backbone=loaded), case.sides(), notes), expected)
    assert str(tmp_path) not in (tmp_path / "there" / "config.json").read_text()
    assert json.dumps(case.backbone.config())
    loaded.save_pretrained(tmp_path / "again")
    again = replace(case, backbone=load_backbone(str(tmp_path / "again")))
    assert torch.equal(encode(again, case.sides(), notes), expected)


def test_two_ranks_embed_like_one_process(case: Case) -> None:
    sides = case.sides()
    found = run_ranks(lambda rank: encode(case, sides[rank::2]).numpy())
    for rank, vectors in enumerate(found):
        expected = encode(case, sides)[rank::2]
        torch.testing.assert_close(torch.from_numpy(vectors), expected, atol=1e-5, rtol=0)


def test_gradients_reach_exactly_what_is_trainable(case: Case) -> None:
    backbone = copy.deepcopy(case.backbone).train()
    vectors = backbone.encode(case.sides(), [HELPFUL] * 7)
    (vectors @ torch.randn(backbone.embedding_dim)).sum().backward()
    named = dict(backbone.named_parameters())
    assert {n for n, p in named.items() if p.grad is not None} == {
        n for n, p in named.items() if p.requires_grad
    }
    dead = [n for n, p in named.items() if p.requires_grad and not p.grad.any()]
    assert not [n for n in dead if "key.bias" not in n]  # softmax ignores the keys' bias
    new = {id(p) for p in backbone.new_parameters()}
    assert new <= {id(p) for p in named.values() if p.requires_grad}


@pytest.mark.parametrize("rows", [[0], [2], []], ids=["text", "image", "nothing"])
def test_every_trainable_parameter_joins_every_call(case: Case, rows: list[int]) -> None:
    backbone = copy.deepcopy(case.backbone).train()
    backbone([case.sides()[row] for row in rows]).sum().backward()
    missing = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_unreadable_sides_are_named(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="side 1 is empty"):
        case.backbone.encode([Side("paris"), Side(instruction="find")])
    with pytest.raises(ValueError, match="2 sides but 1 rationales"):
        case.backbone.encode([Side("a"), Side("b")], [None])
    monkeypatch.setattr(case.backbone, "modalities", frozenset({"text", "image"}))
    with pytest.raises(ValueError, match="side 0 .* holds video"):
        case.backbone.encode([Side("x", media=(case.picture(0, "frame"),))])


def test_a_picture_with_nothing_to_read_is_named(case: Case) -> None:
    blind = Media("image", "abc")
    with pytest.raises(ValueError, match="abc"):
        case.backbone.encode([Side(media=(blind,))])


def test_a_folder_that_is_not_whole_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a saved backbone"):
        load_backbone(str(tmp_path))
    build_clip(tmp_path).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a OpenClipBackbone, not a JointEncoder"):
        JointEncoder.from_pretrained(tmp_path)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.save({"stray": weights.popitem()[1], **weights}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="missing .* unknown \\['stray'\\]"):
        load_backbone(str(tmp_path))
    spec = json.loads((tmp_path / "config.json").read_text())
    spec["init_args"]["hat"] = 1
    (tmp_path / "config.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="takes no \\['hat'\\] any more"):
        load_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text('{"class_path": "os.system", "init_args": {}}')
    with pytest.raises(ValueError, match="'os.system', which belongs to another package"):
        load_backbone(str(tmp_path))


# YAML


@pytest.mark.parametrize("name", ["clip_tiny", "clip_vit_b32", "siglip2_base", "joint"])
def test_overlays_hold_valid_arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml
    from jsonargparse import ArgumentParser

    text = (CONFIGS / f"{name}.yaml").read_text()
    assert "--config" in text.splitlines()[0]
    block = yaml.safe_load(text)["model"]["init_args"]["backbone"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=Backbone)
    parsed = parser.parse_object({"backbone": block})
    assert parsed.backbone.class_path == block["class_path"]


def test_a_saved_backbone_is_named_in_yaml_by_its_folder(tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    build_clip(tmp_path).save_pretrained(tmp_path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=Backbone)
    block = {"class_path": "mmemb.backbones.load_backbone", "init_args": {"folder": str(tmp_path)}}
    built = parser.instantiate(parser.parse_object({"backbone": block}))
    assert isinstance(built.backbone, OpenClipBackbone)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf, 1e-30])
def test_a_vector_without_direction_names_its_side(case: Case, value: float) -> None:
    backbone, sides = copy.deepcopy(case.backbone), [Side("paris"), Side("the flag", "find it")]

    def broken(sides: Any, rationales: Any) -> Tensor:
        vectors = torch.ones(len(sides), backbone.embedding_dim)
        return vectors.index_fill(0, torch.tensor([1]), value)

    backbone._encode = broken
    said = "zero" if value in (0.0, 1e-30) else "not finite"
    with pytest.raises(ValueError, match=f"that is {said} of side 1 \\(text 'the flag', 0 pict"):
        backbone(sides)


def test_a_vector_is_checked_without_a_trace_in_its_gradient(case: Case) -> None:
    backbone = copy.deepcopy(case.backbone)
    vector_BD = torch.rand(3, 5, requires_grad=True)
    unit_BD = backbone._unit(vector_BD, [Side("a")] * 3)
    plain_BD = torch.nn.functional.normalize(vector_BD, dim=-1)
    assert torch.equal(unit_BD, plain_BD)
    weight_BD = torch.rand(3, 5)
    found, expected = (
        torch.autograd.grad((x * weight_BD).sum(), vector_BD)[0] for x in (unit_BD, plain_BD)
    )
    assert torch.equal(found, expected)


def test_half_a_surrogate_pair_names_its_side(case: Case) -> None:
    half = "\ud83d"
    for side, name in ((Side(f"a cat {half}"), "text"), (Side("a", half), "instruction")):
        with pytest.raises(ValueError, match=f"The {name} of side 1 .* half of a surrogate pair"):
            case.backbone.encode([Side("paris"), side])
    note = rationale(f"<answer>{half}</answer>")
    with pytest.raises(ValueError, match="The rationale of side 0 .* half of a surrogate pair"):
        case.backbone.encode([Side("paris")], [note])

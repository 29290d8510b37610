"""The contract that every backbone is held to, and what each one promises beyond it."""

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

from mmemb.backbones import Backbone, EfficientNetTower, JointEncoder, OpenClipBackbone
from mmemb.backbones.base import load_backbone
from mmemb.backbones.pixels import prepare_pixels
from mmemb.backbones.sequences import SequenceBuilder
from mmemb.records import Media, Rationale, Side
from tests.ranks import run_ranks

CONFIGS = Path(__file__).parents[1] / "experiments" / "configs" / "backbone"
TINY = str(CONFIGS / "clip_tiny.json")
WORDS = ["paris", "is", "the", "capital", "of", "france", "flag", "which", "country", "find"]
WORDS += ["a", "picture", "long", "so", "on"]


def rationale(text: str) -> Rationale:
    return Rationale(text, "table", "facts", "1", "none", "none", seed=0, num_tokens=9)


HELPFUL = rationale("<think>paris is the capital of france</think><answer>france</answer>")


def pixels(seed: int, height: int = 24, width: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)


def picture(seed: int, kind: str = "image") -> Media:
    return Media(kind, f"pixels-{seed}", pixels=pixels(seed, 24 + seed % 2))


def cached_picture(seed: int, kind: str = "image") -> Media:
    generator = torch.Generator().manual_seed(seed)
    return Media(kind, f"features-{seed}", features=torch.rand(3, 24, generator=generator).half())


def text_model(folder: Path) -> str:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, sep_token="[SEP]", **special
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(names),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=96,
    )
    torch.manual_seed(1)
    BertModel(config).save_pretrained(folder)
    return str(folder)


def tower(folder: Path) -> EfficientNetTower:
    import timm

    torch.manual_seed(2)
    weights = folder / "lite0.pth"
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), weights)
    return EfficientNetTower(str(weights), image_size=32)


def build_clip(folder: Path) -> Backbone:
    torch.manual_seed(3)
    return OpenClipBackbone(TINY, tokenizer="bytes")


def build_joint(folder: Path) -> Backbone:
    return JointEncoder(text_model(folder / "bert"), feature_dim=24, thumbnail_dim=12)


def build_joint_with_tower(folder: Path) -> Backbone:
    return JointEncoder(text_model(folder / "bert"), tower=tower(folder))


BUILDERS = {"clip": build_clip, "joint": build_joint, "joint-tower": build_joint_with_tower}


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
    with pytest.raises(ValueError, match="'os.system' is refused"):
        load_backbone(str(tmp_path))


# JointEncoder


def test_cached_features_stand_for_pixels(tmp_path: Path) -> None:
    backbone = build_joint_with_tower(tmp_path).eval()
    fresh = picture(0)
    cached = Media("image", "x", features=backbone.tower([fresh.pixels])[0])
    both = backbone.encode([Side(media=(fresh,)), Side(media=(cached,))])
    torch.testing.assert_close(both[0], both[1], atol=1e-5, rtol=0)


def test_tower_tokens(tmp_path: Path) -> None:
    frozen = tower(tmp_path).train()
    tokens = frozen([pixels(0), pixels(1, 30, 30), pixels(2)])
    assert tokens.shape == (3, 6, 1280)
    torch.testing.assert_close(tokens[1:], frozen([pixels(1, 30, 30), pixels(2)]))
    assert not tokens[:, 5, 768:].any()
    assert tokens[:, 5].abs().max() <= 1
    assert not any(module.training for module in frozen.modules())
    white = frozen([torch.full((3, 9, 9), 255, dtype=torch.uint8)])
    torch.testing.assert_close(white[0, 5, :768], torch.ones(768))


def test_tower_takes_foreign_names_in_order_and_refuses_foreign_shapes(tmp_path: Path) -> None:
    named = tower(tmp_path)
    state = torch.load(tmp_path / "lite0.pth", weights_only=True)
    torch.save({f"x{i}": v for i, v in enumerate(state.values())}, tmp_path / "foreign.pt")
    renamed = EfficientNetTower(str(tmp_path / "foreign.pt"), image_size=32)
    assert torch.equal(named([pixels(0)]), renamed([pixels(0)]))
    with pytest.raises(FileNotFoundError, match="holds 2 weight files"):
        EfficientNetTower(str(tmp_path))
    torch.save({"x": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="do not fit EfficientNet-Lite0"):
        EfficientNetTower(str(tmp_path / "foreign.pt"))


class _Letters:
    """Stands in for a tokenizer: one token a letter."""

    cls_token_id, sep_token_id = 1, 2

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) for c in text if c != " "] for text in texts]}


def builder(policy: str = "truncate", limit: int = 4) -> SequenceBuilder:
    return SequenceBuilder(_Letters(), 1000, 20, 5, limit, policy)


def test_sequence_order_and_segments() -> None:
    side = Side("b", "a", (picture(0),))
    note = rationale("<think>c</think><answer>de</answer>")
    sides = [Side("x", media=(picture(1),)), side]
    rows, restated = builder().build(sides, [None, note], tokens_each=2)
    a, b, c, d, e = map(ord, "abcde")
    assert rows[1].ids == [1, 1002, 1003, a, b, 2, c, d, e, 2]
    assert rows[1].segments == [0] * 6 + [1] * 4
    assert list(restated) == [1]
    assert restated[1].ids == [1, a, d, e, 2]


def test_long_rationale_policies() -> None:
    note = rationale("<think>abcdef</think><answer>xy</answer>")

    def tail(policy: str, limit: int) -> str:
        rows, _ = builder(policy, limit).build([Side("q")], [note], tokens_each=0)
        return "".join(chr(i) for i in rows[0].ids[3:-1])

    assert tail("truncate", 4) == "efxy"
    assert tail("truncate", 1) == "y"
    assert tail("drop", 4) == ""
    with pytest.raises(ValueError, match="more than max_rationale_tokens=4"):
        tail("error", 4)
    with pytest.raises(ValueError, match="long_rationale='cut' is unknown"):
        builder("cut")


def test_too_many_pictures_or_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reads at most 20"):
        builder().build([Side("q", media=(picture(0),) * 9)], [None], tokens_each=2)
    backbone = build_joint(tmp_path)
    with pytest.raises(ValueError, match="17 frames, more than max_frames=16"):
        backbone.encode([Side(media=(cached_picture(0, "frame"),) * 17)])
    wrong = Media("image", "x", features=torch.zeros(3, 25))
    with pytest.raises(ValueError, match="made by another tower"):
        backbone.encode([Side(media=(wrong,))])


def test_frames_are_read_in_order(tmp_path: Path) -> None:
    backbone = build_joint(tmp_path).eval()
    frames = tuple(cached_picture(seed, "frame") for seed in range(3))
    forth, back = backbone.encode([Side(media=frames), Side(media=frames[::-1])])
    assert forth @ back < 1 - 1e-6


@torch.no_grad()
def test_the_answer_is_read_once_more_without_the_question(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = build_joint(tmp_path).eval()
    side = Side("which flag", "find", (cached_picture(0),))
    backbone.answer_share = 0.0
    together, alone = backbone.encode([side, Side("france", "find")], [HELPFUL, None])
    backbone.answer_share = 0.25
    fused = backbone.encode([side], [HELPFUL])[0]
    torch.testing.assert_close(fused, unit(0.75 * together + 0.25 * alone), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="answer_share=1 must lie in"):
        JointEncoder(str(tmp_path / "bert"), answer_share=1)


def test_word_embeddings_are_frozen(tmp_path: Path) -> None:
    backbone = build_joint(tmp_path)
    assert not backbone.words.weight.requires_grad
    with pytest.raises(FileNotFoundError, match="no text encoder"):
        JointEncoder(str(tmp_path / "nothing"))


# OpenClipBackbone


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


@torch.no_grad()
def test_fusion_is_the_weighted_sum_of_unit_parts() -> None:
    torch.manual_seed(0)
    backbone = OpenClipBackbone(
        TINY, tokenizer="bytes", text_weight=0.5, visual_weight=2.0, rationale_weight=0.7
    ).eval()
    media = (picture(0), picture(1), picture(2, "frame"))
    images = torch.stack([prepare_pixels(m.pixels, backbone.spec["preprocess_cfg"]) for m in media])
    seen = unit(backbone.model.encode_image(images))
    said = unit(backbone.model.encode_text(backbone.tokenizer(["find it flag", HELPFUL.plain])))
    parts = 0.5 * said[0] + 0.7 * said[1] + 2.0 * unit(seen[0] + seen[1]) + 2.0 * seen[2]
    found = backbone.encode([Side("flag", "find it", media)], [HELPFUL])[0]
    torch.testing.assert_close(found, unit(parts), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_open_clip_long_rationale_policies() -> None:
    long = rationale(f"<think>{'so long ' * 20}</think><answer>france</answer>")
    backbone = build_clip(Path()).eval()
    kept = "so long " * 11 + "france"  # 94 bytes, and 96 with start and end
    direct = backbone.encode([Side("flag")])
    short = backbone.encode([Side("flag")], [rationale(f"<answer>{kept}</answer>")])
    assert torch.equal(backbone.encode([Side("flag")], [long]), short)
    backbone.long_rationale = "drop"
    assert torch.equal(backbone.encode([Side("flag")], [long]), direct)
    backbone.long_rationale = "error"
    with pytest.raises(ValueError, match="longer than the context"):
        backbone.encode([Side("flag")], [long])
    with pytest.raises(ValueError, match="long_rationale='cut' is unknown"):
        OpenClipBackbone(TINY, tokenizer="bytes", long_rationale="cut")


@torch.no_grad()
def test_instructions_can_be_left_unread() -> None:
    torch.manual_seed(3)
    backbone = OpenClipBackbone(TINY, tokenizer="bytes", read_instruction=False).eval()
    pair = backbone.encode([Side("flag", "find"), Side("flag")])
    assert torch.equal(pair[0], pair[1])


def test_open_clip_takes_names_and_local_weights(tmp_path: Path) -> None:
    backbone = build_clip(tmp_path)
    torch.save(backbone.model.state_dict(), tmp_path / "clip.pt")
    again = OpenClipBackbone(TINY, pretrained=str(tmp_path / "clip.pt"), tokenizer="bytes")
    assert torch.equal(again.encode([Side("a")]), backbone.encode([Side("a")]))
    with pytest.raises(ValueError, match="knows no model 'ViT-B-23'"):
        OpenClipBackbone("ViT-B-23")
    with pytest.raises(FileNotFoundError, match="gone.pt not found"):
        OpenClipBackbone(TINY, pretrained="gone.pt", tokenizer="bytes")
    (tmp_path / "bad.json").write_text('{"embed_dim": 3}')
    with pytest.raises(ValueError, match="lacks \\['text_cfg', 'vision_cfg'\\]"):
        OpenClipBackbone(str(tmp_path / "bad.json"))


def test_open_clip_with_a_transformers_tokenizer(tmp_path: Path) -> None:
    config = json.loads(Path(TINY).read_text())
    (tmp_path / "model.json").write_text(json.dumps(config))
    names = text_model(tmp_path / "bert")
    backbone = OpenClipBackbone(str(tmp_path / "model.json"), tokenizer=names).eval()
    backbone.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "bert")
    loaded = load_backbone(str(tmp_path / "saved"))
    assert torch.equal(loaded.encode([Side("paris")]), backbone.encode([Side("paris")]))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_pixels_are_prepared_like_open_clip_does(mode: str) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    smooth = torch.nn.functional.interpolate(pixels(0, 5, 7)[None].float(), (48, 65))[0]
    image = smooth.to(torch.uint8)
    cfg = PreprocessCfg(size=(32, 32), resize_mode=mode)
    theirs = image_transform_v2(cfg, is_train=False)(
        Image.fromarray(image.permute(1, 2, 0).numpy())
    )
    ours = prepare_pixels(image, vars(cfg))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.05


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

"""OpenClipBackbone: fusion of the parts, long rationales, names, weights and tokenizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mmemb.backbones import OpenClipBackbone, load_backbone
from mmemb.backbones.pixels import prepare_pixels
from mmemb.records.inputs import Side
from tests.fixtures.tiny_backbones import (
    HELPFUL,
    TINY,
    build_clip,
    picture,
    pixels,
    rationale,
    text_model,
    unit,
)


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
    with pytest.raises(ValueError, match="missing required field `vision_cfg`"):
        OpenClipBackbone(str(tmp_path / "bad.json"))


def test_open_clip_with_a_transformers_tokenizer(tmp_path: Path) -> None:
    config, names = json.loads(Path(TINY).read_text()), text_model(tmp_path / "bert")
    config["text_cfg"]["pool_type"] = "last"
    (tmp_path / "model.json").write_text(json.dumps(config))
    backbone = OpenClipBackbone(str(tmp_path / "model.json"), tokenizer=names).eval()
    backbone.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "bert")
    loaded = load_backbone(str(tmp_path / "saved"))
    assert torch.equal(loaded.encode([Side("paris")]), backbone.encode([Side("paris")]))


def test_a_tokenizer_that_hides_words_from_a_model_is_refused(tmp_path: Path) -> None:
    """CLIP reads out at the largest number, which was any word's: all behind it was hidden."""
    with pytest.raises(ValueError, match=r"bert ends no text with its largest number.*pool_type"):
        OpenClipBackbone(TINY, tokenizer=text_model(tmp_path / "bert"))


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

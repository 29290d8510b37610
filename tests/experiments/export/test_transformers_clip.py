"""A CLIP that is exported for transformers is a `CLIPModel`, and gives our vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from experiments.export.__main__ import export
from mmemb.media import picture
from mmemb.records.inputs import Side
from tests.experiments.export.test_open_clip_folder import photograph
from tests.fixtures.tiny_backbones import build_worded_clip

TEXTS = [
    "a photo of 2 dogs",
    "Ein weißer Stern, don't",
    "the flag <|endoftext|> of Peru",
    "so " * 40,
]


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_transformers_gives_our_vectors(quick_gelu: bool, tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    backbone = build_worded_clip(tmp_path / "parts", quick_gelu=quick_gelu).eval()
    backbone.save_pretrained(tmp_path / "clip")
    export(tmp_path / "clip", "transformers", tmp_path / "out")
    model = CLIPModel.from_pretrained(tmp_path / "out").eval()
    processor = CLIPProcessor.from_pretrained(tmp_path / "out")

    texts = processor(text=TEXTS, padding=True, truncation=True, return_tensors="pt")
    pictures = processor(images=[photograph()], return_tensors="pt")
    with torch.no_grad():
        text_TD = normalize(model.get_text_features(**texts).pooler_output, dim=-1)
        picture_1D = normalize(model.get_image_features(**pictures).pooler_output, dim=-1)
        ours_TD = backbone.encode([Side(text) for text in TEXTS])
        ours_1D = backbone.encode([Side("", "", (picture(photograph()),))])
    assert (text_TD - ours_TD).abs().max() < 1e-5
    assert (picture_1D * ours_1D).sum() > 0.999
    assert "get_text_features" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("tower", "setting", "named"),
    [
        ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type: 'avg'"),
        ("vision_cfg", {"ls_init_value": 0.1}, "vision_cfg.ls_init_value: 0.1"),
        ("text_cfg", {"no_causal_mask": True}, "text_cfg.no_causal_mask: True"),
    ],
)
def test_a_part_that_is_missing_there_is_named(
    tower: str, setting: dict[str, object], named: str, tmp_path: Path
) -> None:
    spec = build_worded_clip(tmp_path / "plain").spec["model_cfg"]
    backbone = build_worded_clip(tmp_path / "parts", **{tower: spec[tower] | setting})
    backbone.save_pretrained(tmp_path / "clip")

    with pytest.raises(ValueError, match=named) as refused:
        export(tmp_path / "clip", "transformers", tmp_path / "out")
    assert "--to open_clip" in str(refused.value)
    assert not (tmp_path / "out").exists()

"""A CLIP that is exported for open_clip loads there, and gives our vectors."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from experiments.export.__main__ import export, main
from mmemb.backbones import OpenClipBackbone
from mmemb.media import picture
from mmemb.records.inputs import Side
from mmemb.storage.trained_facts import TrainedFacts, trained_facts, write_facts
from tests.fixtures.tiny_backbones import build_clip, build_joint, build_worded_clip, text_model

TEXTS = ["a photo of 2 dogs", "Ein weißer Stern: “don’t” &amp; more", "flag " * 40, ""]


def photograph() -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (6, 9, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(noise.numpy()).resize((90, 60), Image.Resampling.BICUBIC)


def vectors(folder: Path, backbone: OpenClipBackbone, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Differences of text vectors, and the cosine of a picture's."""
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        text_TD = normalize(model.eval().encode_text(tokenizer(texts)), dim=-1)
        picture_1D = normalize(model.encode_image(prepare(photograph())[None]), dim=-1)
        # A text of nothing has no text vector of ours: it is read by the tower itself here.
        ours_TD = normalize(backbone.model.encode_text(backbone.tokenizer(texts)), dim=-1)
        ours_1D = backbone.encode([Side("", "", (picture(photograph()),))])
    return (text_TD - ours_TD).abs().max(), (picture_1D * ours_1D).sum()


def test_open_clip_gives_our_vectors(tmp_path: Path) -> None:
    backbone = build_worded_clip(tmp_path / "parts").eval()
    backbone.save_pretrained(tmp_path / "clip")
    write_facts(tmp_path / "clip/fitted.json", TrainedFacts(frozenset({"fr/capital"})))

    said = export(tmp_path / "clip", "open_clip", tmp_path / "out")
    assert "direct path" in said
    difference, cosine = vectors(tmp_path / "out", backbone, TEXTS)
    assert difference < 1e-6
    assert cosine > 0.999

    page = (tmp_path / "out/README.md").read_text()
    assert "library_name: open_clip" in page
    assert 'create_model_and_transforms("local-dir:out")' in page
    assert trained_facts(str(tmp_path / "out")) == {"fr/capital"}, "a judge made from it says so"


def test_a_tokenizer_of_transformers_goes_along(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = text_model(tmp_path / "bert")
    size = len(AutoTokenizer.from_pretrained(tokenizer))
    text = {"context_length": 12, "vocab_size": size, "width": 16, "heads": 2, "layers": 1}
    build_worded_clip(tmp_path / "parts", text_cfg={**text, "pool_type": "last"})
    config = str(tmp_path / "parts/words.json")
    backbone = OpenClipBackbone(config, tokenizer=tokenizer).eval()
    backbone.save_pretrained(tmp_path / "clip")

    export(tmp_path / "clip", "open_clip", tmp_path / "out")
    difference, _ = vectors(tmp_path / "out", backbone, ["the flag of france", "flag [SEP] a"])
    assert difference < 1e-6
    assert json.loads((tmp_path / "out/open_clip_config.json").read_text())["preprocess_cfg"]


def test_what_open_clip_cannot_read_is_refused(tmp_path: Path) -> None:
    build_clip(tmp_path).save_pretrained(tmp_path / "bytes")
    with pytest.raises(SystemExit, match="reads texts as bytes"):
        main([str(tmp_path / "bytes"), "--to", "open_clip", "--out", str(tmp_path / "out")])

    build_joint(tmp_path / "parts").save_pretrained(tmp_path / "joint")
    with pytest.raises(ValueError, match="JointEncoder, which is no model of open_clip"):
        export(tmp_path / "joint", "open_clip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_would_differ_are_refused(tmp_path: Path) -> None:
    backbone = build_worded_clip(tmp_path / "parts")
    backbone.save_pretrained(tmp_path / "clip")
    other = {name: 2 * tensor for name, tensor in backbone.model.state_dict().items()}

    wrong = patch.object(torch.nn.Module, "state_dict", return_value=other)
    with wrong, pytest.raises(ValueError, match="vectors of texts would differ"):
        export(tmp_path / "clip", "open_clip", tmp_path / "out")
    assert not (tmp_path / "out").exists()

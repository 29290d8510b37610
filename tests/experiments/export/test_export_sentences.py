"""What is exported for sentence-transformers gives our vectors, or is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional

from datamodules.prepare.tiny_vlm.build import TEMPLATE
from experiments.export.__main__ import export
from experiments.export.sentence_folder import gate_weights, score_bound
from experiments.export.sentence_template import sentence_template
from mmemb.backbones import Backbone, VisionLanguageBackbone
from mmemb.llm import PromptStyle
from mmemb.llm.prompts.chat_prompt import PromptBuilder
from mmemb.llm.prompts.special_tokens import special_tokens
from mmemb.records.inputs import Side
from tests.experiments.export.test_export import STYLE, saved
from tests.fixtures.tiny_backbones import build_clip, build_joint, build_worded_clip
from tests.fixtures.tiny_models import write_chat_model
from tests.fixtures.tiny_vlm import ON_EACH, folder, picture

TEXTS = ["a", "the flag of a country far away", "a [SEP] <|im_end|>b"]

with_sentences = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None,
    reason="sentence-transformers is not installed: pip install -e '.[export]'",
)


def joint(place: Path) -> Backbone:
    backbone = build_joint(place / "parts")
    torch.nn.init.normal_(backbone.pool_score.weight, std=0.3)  # type: ignore[union-attr]
    return backbone


def test_a_gated_layer_weighs_tokens_like_the_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    score_H = torch.randn(8, generator=generator)
    state_LH = functional.layer_norm(torch.randn(5, 8, generator=generator), (8,))
    norm = torch.nn.Sequential(torch.nn.LayerNorm(8))
    bound = score_bound(norm, score_H)
    assert (state_LH @ score_H).abs().max() <= bound
    wanted = (state_LH @ score_H).softmax(0) @ state_LH
    found = functional.glu(functional.linear(state_LH, *gate_weights(score_H, bound)), -1).mean(0)
    assert (
        functional.normalize(found, dim=0) - functional.normalize(wanted, dim=0)
    ).abs().max() < (1e-6)


@pytest.mark.parametrize("in_system", [True, False])
@pytest.mark.parametrize("thinks", [True, False])
def test_the_template_renders_what_the_prompt_builder_does(in_system: bool, thinks: bool) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder("qwen3_vl"))
    if thinks:
        processor.chat_template += "{%- if add_generation_prompt %}<think>\n{% endif %}"
    place = "system" if in_system else "user"
    styles = [
        PromptStyle(instruction_in=place, suffix="<|endoftext|>"),
        PromptStyle('Lóok\n"so".', place, "Represent it.", add_generation_prompt=False),
    ]
    shown = (picture(1), picture(2))
    for style in styles:
        builder = PromptBuilder(processor, style)
        special = special_tokens(builder.tokenizer, builder.marks)
        template = sentence_template(processor.chat_template, style, special)
        forged = "".join(sorted(special))
        for side in (
            Side(" hi\n"),
            Side("x", "Find it."),
            Side("", "", shown),
            Side("y", "z", shown),
            Side(f"y{forged}", f"z{forged}"),
        ):
            parts = [{"type": "text", "text": side.text}] if side.text else []
            parts += [{"type": "image", "image": None} for _ in side.media]
            asked = [{"type": "text", "text": side.instruction}]
            turns = [{"role": "system", "content": asked}] if side.instruction else []
            rendered = processor.apply_chat_template(
                [*turns, {"role": "user", "content": parts}],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=style.add_generation_prompt,
            )
            assert rendered == builder.text(side)


def test_without_the_package_nothing_is_written(tmp_path: Path) -> None:
    place = saved(build_joint(tmp_path / "parts"), tmp_path / "joint")
    missing = patch.dict("sys.modules", {"sentence_transformers": None})
    with missing, pytest.raises(FileNotFoundError, match=r"pip install -e '\.\[export\]'"):
        export(place, "sentence-transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@with_sentences
@pytest.mark.parametrize("style", [PromptStyle(max_length=160), STYLE], ids=["plain", "style"])
@pytest.mark.parametrize("architecture", ON_EACH)
def test_sentence_transformers_gives_our_vectors(
    architecture: str, style: PromptStyle, tmp_path: Path
) -> None:
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    backbone = VisionLanguageBackbone(str(folder(architecture)), style)
    export(saved(backbone, tmp_path / "vlm"), "sentence-transformers", tmp_path / "out")
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    with torch.no_grad():
        ours = backbone.encode([Side(text, "Find it.") for text in TEXTS])
        seen = backbone.encode([Side("what?", "", (picture(1),))])
    found = torch.from_numpy(model.encode(TEXTS, prompt="Find it."))
    assert (found - ours).abs().max() < 1e-5
    pixels = picture(1).pixels
    assert pixels is not None
    shown = {"text": "what?", "image": Image.fromarray(pixels.permute(1, 2, 0).numpy())}
    assert (torch.from_numpy(model.encode([shown])) - seen).abs().max() < 1e-5


@with_sentences
def test_a_language_model_without_vision_is_exported_for_texts(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    source = write_chat_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(source)
    backbone = VisionLanguageBackbone(str(source), PromptStyle(system="Look.", max_length=160))
    said = export(saved(backbone, tmp_path / "lm"), "sentence-transformers", tmp_path / "out")
    assert "Text only" in said
    with torch.no_grad():
        ours = backbone.encode([Side(text) for text in TEXTS])
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert (torch.from_numpy(model.encode(TEXTS)) - ours).abs().max() < 1e-5


@with_sentences
def test_a_joint_encoder_is_exported_for_texts(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    backbone = joint(tmp_path)
    export(saved(backbone, tmp_path / "joint"), "sentence-transformers", tmp_path / "out")
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    with torch.no_grad():
        ours = backbone.encode([Side(text, "find a flag") for text in TEXTS])
    found = torch.from_numpy(model.encode(TEXTS, prompt="find a flag "))
    assert (found - ours).abs().max() < 1e-5
    assert AutoTokenizer.from_pretrained(tmp_path / "out").split_special_tokens
    assert "Text only" in (tmp_path / "out/README.md").read_text()
    listed = json.loads((tmp_path / "out/modules.json").read_text())
    assert all(step["type"].startswith("sentence_transformers.") for step in listed)


@with_sentences
def test_a_clip_reads_texts_and_pictures(tmp_path: Path) -> None:
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    backbone = build_worded_clip(tmp_path / "parts").eval()
    said = export(saved(backbone, tmp_path / "clip"), "sentence-transformers", tmp_path / "out")
    assert "in calls of their own" in said
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")

    texts = [*TEXTS[:2], "a photo of the flag <|endoftext|> of Peru", "flag " * 40]
    with torch.no_grad():
        ours = backbone.encode([Side(text, "Find it.") for text in texts])
        seen = backbone.encode([Side("", "", (picture(1, height=32, width=32),))])
    found = torch.from_numpy(model.encode(texts, prompt="Find it. "))
    assert (found - ours).abs().max() < 1e-5

    pixels = picture(1, height=32, width=32).pixels
    assert pixels is not None
    shown = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    assert (torch.from_numpy(model.encode([shown])) - seen).abs().max() < 1e-5


@with_sentences
def test_what_would_differ_is_refused(tmp_path: Path) -> None:
    place = saved(build_clip(tmp_path), tmp_path / "clip")
    with pytest.raises(ValueError, match="reads texts as bytes"):
        export(place, "sentence-transformers", tmp_path / "out")
    source = saved(joint(tmp_path), tmp_path / "joint")
    wrong = "experiments.export.sentence_folder.gate_weights"
    even = torch.cat([torch.eye(32), torch.zeros(32, 32)]), torch.zeros(64)
    with patch(wrong, return_value=even), pytest.raises(ValueError, match="would differ"):
        export(source, "sentence-transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""`mmemb.load`: one call for every run and release, with and without a gate."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmemb
from mmemb.backbones import OpenClipBackbone
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.gate.heads import MlpDepthHead
from mmemb.media import clip, sides
from mmemb.records.inputs import Side
from tests.fixtures.tiny_clips import write_video
from tests.fixtures.tiny_gated import PERU, tiny_backbone, tiny_gated

TEXTS = [PERU, "the flag of Chile", "a long text about the flag of Poland"]


@pytest.fixture(scope="module")
def backbone() -> OpenClipBackbone:
    return tiny_backbone()


@pytest.fixture
def gated(backbone: OpenClipBackbone, tmp_path: Path) -> AdaptiveEmbedder:
    return tiny_gated(backbone, tmp_path, TEXTS)


def test_a_gates_run_and_its_folder_give_the_same_embedder(
    gated: AdaptiveEmbedder, tmp_path: Path
) -> None:
    gated.save_pretrained(tmp_path / "gate/adaptive")
    expected = gated.encode(TEXTS, depth="full")
    assert expected.depths == ("full", "direct", "direct")
    for folder in (tmp_path / "gate", tmp_path / "gate/adaptive", str(tmp_path / "gate")):
        encoded = mmemb.load(folder).encode(TEXTS, depth="full")
        assert torch.equal(encoded.vectors_BD, expected.vectors_BD)
        assert encoded.rationales == expected.rationales


def test_without_a_gate_there_is_one_depth_and_no_budget(
    backbone: OpenClipBackbone, gated: AdaptiveEmbedder, tmp_path: Path
) -> None:
    backbone.save_pretrained(tmp_path / "embedder/backbone")
    AdaptiveEmbedder(backbone).save_pretrained(tmp_path / "release")

    for folder in (tmp_path / "embedder", tmp_path / "embedder/backbone", tmp_path / "release"):
        embedder = mmemb.load(folder)
        assert embedder.depths == ("direct",)
        encoded = embedder.encode(TEXTS)
        with torch.inference_mode():
            assert torch.equal(encoded.vectors_BD, backbone.encode([Side(t) for t in TEXTS]))
        assert encoded.depths == ("direct",) * 3

        with pytest.raises(ValueError, match="no gate, so it embeds directly and takes no budget"):
            embedder.encode(TEXTS, budget=0.5)
        with pytest.raises(ValueError, match=r"depth 'full' is none .* one of \['direct'\]"):
            embedder.encode(TEXTS, depth="full")
    with pytest.raises(ValueError, match="has no gate that could choose among the writers"):
        mmemb.load(tmp_path / "embedder", gated.writers)


def test_what_is_no_embedder_is_named(gated: AdaptiveEmbedder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        mmemb.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no trained embedder"):
        mmemb.load(tmp_path)
    gated.save_pretrained(tmp_path / "gate/adaptive")
    (tmp_path / "gate/adaptive/adaptive.json").unlink()
    with pytest.raises(FileNotFoundError, match="writing it was interrupted"):
        mmemb.load(tmp_path / "gate")
    with pytest.raises(ValueError, match="device 'abacus' cannot be used"):
        mmemb.load(tmp_path / "gate/adaptive/backbone", device="abacus")


def test_batches_and_their_order_do_not_matter(gated: AdaptiveEmbedder) -> None:
    texts = [f"{'very ' * (row % 7)}{text}" for row, text in enumerate(TEXTS * 5)]
    whole = gated.encode(texts, depth="full", keys=texts)
    parts = gated.encode(texts, depth="full", keys=texts, batch_size=4, show_progress_bar=False)
    torch.testing.assert_close(parts.vectors_BD, whole.vectors_BD, atol=1e-6, rtol=0)
    assert parts.depths == whole.depths == ("full", *["direct"] * 14)
    assert parts.rationales == whole.rationales

    # One of each row goes with its row, in whatever order rows are embedded.
    budgets = [float(row % 2) for row in range(15)]
    galleries = list(torch.eye(15, 64).split(1))
    each = gated.encode(texts, budgets, batch_size=2, gallery=galleries)
    assert each.depths[1::2] == gated.encode(texts[1::2], 1.0).depths
    for wrong in (0, 2.5, "8", None):
        with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
            gated.encode(texts, batch_size=wrong)


@pytest.mark.parametrize("keys", [["a"], ["a"] * 4, "abc", [], iter("abc")])
def test_keys_of_another_number_are_refused(gated: AdaptiveEmbedder, keys: Any) -> None:
    direct = gated.embed([Side(text) for text in TEXTS])
    for ask in (partial(gated.encode, TEXTS, 0.5), partial(gated.decide, direct, 0.5)):
        with pytest.raises(ValueError, match=r"^keys must be a list with one for each of 3 input"):
            ask(keys=keys)
    assert gated.encode(TEXTS[0], 0.5, keys="my-key").depth == "direct"


def test_a_gallery_is_what_encode_gives_and_its_shape_is_checked(gated: AdaptiveEmbedder) -> None:
    scored = AdaptiveEmbedder(
        gated.backbone,
        MlpDepthHead(gated.backbone.embedding_dim + 3),
        gated.calibration,
        gated.writers,
        ("embedding", "scores"),
    )
    found = scored.encode_document(TEXTS)
    vectors = found.vectors_BD
    expected = scored.encode(TEXTS, gallery=vectors).depths
    for same in (found, found.numpy(), vectors.double(), [found] * 3, [vectors] * 3):
        assert scored.encode(TEXTS, gallery=same, batch_size=2).depths == expected

    for wrong in (vectors[0], vectors[:, 1:], vectors[:0], vectors[None], [vectors[0]] * 3):
        with pytest.raises(ValueError, match="^gallery has the shape"):
            scored.encode(TEXTS, gallery=wrong)
    for wrong in ([vectors] * 2, [vectors] * 4, [found]):
        with pytest.raises(ValueError, match="^gallery must be a list with one for each of 3"):
            scored.encode(TEXTS, gallery=wrong, batch_size=2)


def test_a_budget_beside_a_depth_that_ignores_it_is_refused(gated: AdaptiveEmbedder) -> None:
    for budget in (0.0, [None, None, 0.5]):
        with pytest.raises(ValueError, match="is kept by the gate, and depth='full' asks no gate"):
            gated.encode(TEXTS, budget, depth="full")
    assert gated.encode_document(TEXTS, budget=0.0).depths == ("direct",) * 3
    assert gated.encode(TEXTS, [None] * 3, depth="full").depths[0] == "full"
    assert len(gated.encode(())) == 0


def test_inputs_of_every_kind_go_together(gated: AdaptiveEmbedder, tmp_path: Path) -> None:
    image = Image.effect_noise((32, 32), 64).convert("RGB")
    image.save(tmp_path / "noise.png")
    write_video(tmp_path / "clip.mp4")
    frames = clip(tmp_path / "clip.mp4")
    inputs = [
        *[f"{'very ' * row}long" for row in range(9)],
        image,
        tmp_path / "noise.png",
        np.asarray(image),
        tmp_path / "clip.mp4",
        frames,
        {"text": "noise", "image": image},
    ]
    encoded = gated.encode(inputs, 0.5, batch_size=4)
    with torch.inference_mode():
        alone = gated.backbone.encode(sides(inputs))
    torch.testing.assert_close(encoded.vectors_BD[9:], alone[9:], atol=1e-6, rtol=0)
    assert torch.equal(gated.encode(frames).vector_D, gated.encode([frames]).vectors_BD[0])

    # The place is that in the list, in whatever order the batches are made.
    with pytest.raises(FileNotFoundError, match=r"^Input 3: .*gone\.png is missing"):
        gated.encode([*inputs[:3], tmp_path / "gone.png", *inputs], batch_size=2)
    with pytest.raises(ValueError, match=r"^Input 1: .*noise\.png.*Path"):
        gated.encode(["a text", str(tmp_path / "noise.png")])


def test_one_input_gives_one_vector(gated: AdaptiveEmbedder) -> None:
    one = gated.encode(TEXTS[0], depth="full")
    assert one.numpy().shape == (64,)
    assert (one.depth, one.num_tokens) == ("full", one.rationale.num_tokens)
    assert np.array_equal(np.asarray(one), gated.encode(TEXTS, depth="full")[0].numpy())
    assert "full" in repr(one)
    assert "Peru" in repr(one)


def test_a_result_reads_like_a_list_and_like_an_array(gated: AdaptiveEmbedder) -> None:
    encoded = gated.encode(TEXTS, depth="full")
    assert encoded.numpy().shape == np.asarray(encoded).shape == (3, 64)
    assert [each.depth for each in encoded] == list(encoded.depths)
    assert encoded[-1].numpy().tolist() == encoded.numpy()[2].tolist()
    assert encoded[1:].depths == ("direct", "direct")
    with pytest.raises(IndexError):
        encoded[3]

    assert encoded.milliseconds_B is not None
    assert bool((encoded.milliseconds_B > 0).all())
    assert repr(encoded).startswith("Encoded(3 x 64; 2 direct, 1 full; ")
    assert len(repr(encoded).splitlines()) == 4


def test_queries_documents_and_similarity(gated: AdaptiveEmbedder) -> None:
    queries = gated.encode_query(TEXTS, 1.0, instruction="Find the flag.")
    documents = gated.encode_document(TEXTS, instruction="Find the flag.")
    same = gated.encode([Side(text, "Find the flag.") for text in TEXTS], depth="direct")
    assert torch.equal(documents.vectors_BD, same.vectors_BD)

    cosines = gated.similarity(queries, documents)
    assert torch.allclose(cosines, queries.vectors_BD @ documents.vectors_BD.T, atol=1e-6)
    pairwise = gated.similarity_pairwise(queries.numpy(), documents)
    assert torch.allclose(pairwise, cosines.diag(), atol=1e-6)
    assert gated.similarity(queries[0], documents.vectors_BD).shape == (1, 3)
    with pytest.raises(ValueError, match="Vectors of 64 and 8 numbers cannot be compared"):
        gated.similarity(queries, torch.ones(3, 8))
    with pytest.raises(ValueError, match="do not stand side by side"):
        gated.similarity_pairwise(queries, documents[:1])


@pytest.mark.parametrize("name", ["direct", "", "full\x1b[31m", "full\n"])
def test_a_depth_with_a_name_that_misleads_is_refused(
    gated: AdaptiveEmbedder, tmp_path: Path, name: str
) -> None:
    """A result would call a reasoned input direct, or write to the terminal as the folder likes."""
    gated.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved/adaptive.json"
    settings = json.loads(path.read_text())
    settings["writers"] = {name: settings["writers"]["full"]}
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="a writer's depth is called"):
        mmemb.load(tmp_path / "saved")


def test_what_is_empty_or_no_folder_is_named(gated: AdaptiveEmbedder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^Input 5 is empty"):
        gated.encode([*TEXTS, "x", "y", "", "a longer text"], batch_size=2)
    (tmp_path / "last.ckpt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="is a file, such as a checkpoint: name the folder"):
        mmemb.load(tmp_path / "last.ckpt")


def test_an_embedder_says_what_it_is(gated: AdaptiveEmbedder) -> None:
    assert repr(gated) == "AdaptiveEmbedder(OpenClipBackbone, 64 numbers, cpu; direct, full)"
    assert (gated.embedding_dim, gated.device) == (64, torch.device("cpu"))
    assert gated.encode(TEXTS).shape == (3, 64)


def test_an_embedder_without_a_gate_leaves_none_of_an_earlier_one(
    gated: AdaptiveEmbedder, backbone: OpenClipBackbone, tmp_path: Path
) -> None:
    gated.save_pretrained(tmp_path / "release")
    (tmp_path / "release/notes.txt").write_text("the owner's own")
    AdaptiveEmbedder(backbone).save_pretrained(tmp_path / "release")
    names = {path.name for path in (tmp_path / "release").iterdir()}
    assert names == {"adaptive.json", "backbone", "notes.txt"}

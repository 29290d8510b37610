"""The search command: exact, embedded once, and it shows what the model wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from datamodules.samples import SampleReader, rows_of
from experiments.search.__main__ import Answer, main, search_candidates
from experiments.search.index import Candidates, load_candidates, model_identity
from mmemb.backbones import Backbone, OpenClipBackbone
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.gate.budget import BudgetCalibration
from mmemb.gate.heads import MlpDepthHead
from mmemb.llm.decoding.sampling import Sampling
from mmemb.rationales import SelfWriter, TableWriter
from mmemb.records.inputs import Side
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.tiny_clips import write_video
from tests.fixtures.tiny_data import picture
from tests.fixtures.tiny_models import CLIP_TINY
from tests.fixtures.tiny_vlm import babbling

QUERY = "the flag of the country of capital-03"


@pytest.fixture(scope="module")
def embedder(tiny_root: Path) -> AdaptiveEmbedder:
    """A gate that always reasons where it may."""
    torch.manual_seed(0)
    backbone = OpenClipBackbone(str(CLIP_TINY), tokenizer="bytes")
    head = MlpDepthHead(backbone.embedding_dim, hidden_dim=0)
    with torch.no_grad():
        head.output.bias[1] = 9.0
    writer = TableWriter(str(tiny_root / "facts.json"))
    calibration = BudgetCalibration(((0.0, 1.0), (0.0, -1.0)), ((0.0, 1.0),) * 2, (0.1, 0.2))
    return AdaptiveEmbedder(backbone, head, calibration, {"full": writer})


@pytest.fixture(scope="module")
def saved(embedder: AdaptiveEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "adaptive"
    embedder.save_pretrained(folder)
    return folder


def call(saved: Path, root: Path, cache: Path, *more: str) -> None:
    given = ["--model", str(saved), "--index", str(root / "candidates"), "--cache", str(cache)]
    main([*given, *more])


def encoded_sides() -> Any:
    """Counts what is embedded."""
    return patch.object(Backbone, "encode", autospec=True, side_effect=Backbone.encode)


def test_ranks_are_those_of_all_scores(
    embedder: AdaptiveEmbedder, tiny_root: Path, tmp_path: Path
) -> None:
    shards = tiny_root / "candidates"
    found = load_candidates(embedder.backbone, "m", shards, tmp_path, None)
    rows, reader = rows_of(ShardIndex.open(shards)), SampleReader()
    with torch.no_grad():
        vectors_ND = embedder.backbone.encode([reader.candidate(row).side for row in rows])
        query_D = embedder.backbone.encode([Side(QUERY)])[0]
    assert (found.vectors_ND - vectors_ND).abs().max() < 1e-6
    order = (vectors_ND @ query_D).argsort(descending=True).tolist()
    answer = search_candidates(embedder, found, Side(QUERY), 5, "direct")
    assert answer.depth == "direct"
    assert answer.written is None
    assert [name for _, _, name in answer.hits] == [rows[n].meta["name"] for n in order[:5]]
    flags = search_candidates(embedder, found.of_gallery("flags"), Side(QUERY), 99, "direct")
    assert {gallery for _, gallery, _ in flags.hits} == {"flags"}
    assert len(flags.hits) == 24


def test_candidates_are_embedded_once(saved: Path, tiny_root: Path, tmp_path: Path) -> None:
    with encoded_sides() as first:
        call(saved, tiny_root, tmp_path, "--query", QUERY)
    kept = sorted(tmp_path.rglob("*.npy"))
    assert len(kept) == len(ShardIndex.open(tiny_root / "candidates").shard_names)
    kept[0].write_bytes(b"cut off")
    with encoded_sides() as second:
        call(saved, tiny_root, tmp_path, "--query", QUERY)
    counts = [sum(len(c.args[1]) for c in calls.call_args_list) for calls in (first, second)]
    assert counts == [51 + 2, 16 + 2]  # one shard again, and the query at both depths


def test_a_data_root_is_searched_with_a_clip(
    saved: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_video(tmp_path / "clip.mp4")
    cache = ["--cache", str(tmp_path / "cache")]
    for index in (tiny_root, tiny_root / "candidates"):
        main(["--model", str(saved), "--index", str(index), "--image", str(clip), *cache])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "depth: direct"
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_a_query_that_reasons_shows_what_was_written(
    saved: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(saved, tiny_root, tmp_path, "--query", QUERY, "--top", "3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "depth: full"
    assert "country-03</answer>" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "3"]
    call(saved, tiny_root, tmp_path, "--query", QUERY, "--depth", "direct")
    assert "written" not in capsys.readouterr().out
    call(saved, tiny_root, tmp_path, "--query", QUERY, "--budget", "0")
    assert capsys.readouterr().out.startswith("depth: direct")


def test_a_picture_finds_itself(
    saved: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "flag.webp"
    image.write_bytes(picture(7, 1))
    call(saved / "backbone", tiny_root, tmp_path, "--image", str(image), "--gallery", "flags")
    first = capsys.readouterr().out.splitlines()[1].split()
    assert first[1:] == ["1.0000", "flags/country-07"]

    # The letters of its name would find something, too.
    with pytest.raises(SystemExit, match=f"search by the picture with --image {image}, or write"):
        call(saved / "backbone", tiny_root, tmp_path, "--query", str(image))


def test_what_a_backbone_writes_by_itself_is_shown() -> None:
    backbone = babbling("qwen3_vl")
    writers = {"full": SelfWriter(4)}
    embedder = AdaptiveEmbedder(backbone, MlpDepthHead(32, 2), BudgetCalibration(), writers)
    vectors_ND = backbone.encode([Side(word) for word in ("hi", "no")]).detach()
    candidates = Candidates(vectors_ND, (("a", "hi"), ("a", "no")))
    found = search_candidates(embedder, candidates, Side("hi"), top=1, depth="full")
    (thought,) = backbone.generate([Side("hi")], "full", Sampling(4, 1.0, 1.0, 1))
    assert found.written == thought
    assert search_candidates(embedder, candidates, Side("hi"), 1, "direct").written is None


def test_an_answer_is_printed_in_columns() -> None:
    lines = Answer("direct", None, ((0.5, "a", "x"), (-0.25, "long", "name"))).lines()
    assert lines == ["depth: direct", "   1   0.5000  a/x", "   2  -0.2500  long/name"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--query": ""}, "give --query, --image or both"),
        ({"--model": "nowhere"}, "There is no folder nowhere"),
        ({"--index": "nowhere"}, "does not exist"),
        ({"--index": "queries"}, "holds no candidates"),
        ({"--gallery": "birds"}, "There is no gallery 'birds'"),
        ({"--depth": "deep"}, "depth 'deep' is none of this embedder"),
        ({"--image": "gone.png"}, "gone.png is missing: expected a picture"),
        ({"--depth": "full", "--budget": "0.1"}, "--budget is for --depth auto"),
        ({"--model": "backbone", "--depth": "full"}, "depth 'full' is none of this embedder"),
        ({"--model": "backbone", "--budget": "0.1"}, "has no gate, so it embeds directly"),
    ],
)
def test_errors_name_what_is_missing(
    change: dict[str, str], said: str, saved: Path, tiny_root: Path, tmp_path: Path
) -> None:
    usual = {"--model": str(saved), "--index": str(tiny_root / "candidates"), "--query": QUERY}
    usual["--cache"] = str(tmp_path)
    change = dict(change)
    places = {"backbone": saved / "backbone", "queries": tiny_root / "queries"}
    change = {k: str(places.get(v, v)) for k, v in change.items()}
    with pytest.raises(SystemExit) as error:
        main([word for pair in (usual | change).items() for word in pair])
    assert said in str(error.value)


def test_another_model_has_vectors_of_its_own(saved: Path, tiny_root: Path, tmp_path: Path) -> None:
    before = model_identity(saved / "backbone")
    settings = saved / "backbone/config.json"
    text = settings.read_text()
    settings.write_text(json.dumps(json.loads(text)))
    assert model_identity(saved / "backbone") != before
    settings.write_text(text)
    assert model_identity(saved / "backbone") == before

"""The training mixture in small folders of the published layouts: converted, cut, trained on."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules import PairDataModule
from datamodules.prepare.__main__ import main
from datamodules.prepare.mmeb.pictures import UnreadableError
from datamodules.prepare.mmeb_train.media import MediaStore
from datamodules.prepare.mmeb_train.rows import TrainSide, read_source
from datamodules.prepare.mmeb_train.sources import MIXTURE, TOTAL_WEIGHT, source_named
from datamodules.samples import SampleReader, rows_of
from mmemb.records.pairs import Pair
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.tiny_data import picture
from tests.fixtures.tiny_experiment import CONFIGS, run

NAMES = ("VOC2007", "MSCOCO_t2i", "colpali", "visrag", "hound-video-retrieval", "hound-qa")
ROWS = 30
CAPTION = "Find me an everyday image that matches the given caption:"


def write_parquet(path: Path, columns: dict[str, Sequence[Any]]) -> None:
    from pyarrow import Table, parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(Table.from_pydict(columns), path)


def png(number: int) -> bytes:
    return picture(number, style=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published"))


def write_published(folder: Path) -> Path:
    """Six sources; the pictures of one lie in a zip archive, those of another are unpacked."""
    mmeb = folder / "TIGER-Lab/MMEB-train"
    empty = [""] * ROWS
    write_parquet(mmeb / "VOC2007/original-00000-of-00001.parquet", {
        "qry": ["<|image_1|> Identify the object shown in the image"] * (ROWS - 1) + [""],
        "qry_image_path": [f"images/VOC2007/{n}.webp" for n in range(ROWS - 1)] + [""],
        "pos_text": [f"thing {n % 5} " for n in range(ROWS)], "pos_image_path": empty,
        "neg_text": empty, "neg_image_path": empty,
    })  # fmt: skip
    with zipfile.ZipFile(mmeb / "VOC2007.zip", "w") as archive:
        for n in range(ROWS):
            archive.writestr(f"images/VOC2007/{n}.webp", png(n))
    write_parquet(mmeb / "MSCOCO_t2i/original-00000-of-00001.parquet", {
        "qry": [f"{CAPTION} cat {n}" for n in range(ROWS)],
        "qry_image_path": empty, "pos_text": ["<|image_1|> Represent the given image."] * ROWS,
        "pos_image_path": [f"images/MSCOCO_t2i/{n}.webp" for n in range(ROWS)],
        "neg_text": empty, "neg_image_path": empty,
    })  # fmt: skip
    (mmeb / "images/MSCOCO_t2i").mkdir(parents=True)
    for n in range(ROWS):
        (mmeb / f"images/MSCOCO_t2i/{n}.webp").write_bytes(png(100 + n))
    pages = [{"bytes": png(200 + n), "path": f"{n}.png"} for n in range(ROWS)]
    questions = [f"what is on page {n}" for n in range(ROWS)]
    write_parquet(folder / "vidore/colpali_train_set/data/train-0.parquet", {
        "query": questions, "image": pages, "answer": [f"answer {n}" for n in range(ROWS)],
    })  # fmt: skip
    write_parquet(folder / "openbmb/VisRAG-Ret-Train-In-domain-data/data/train-0.parquet", {
        "query": questions, "image": pages, "source": ["ChartQA"] * ROWS,
    })  # fmt: skip
    hound = folder / "ShareGPTVideo/train_video_and_instruction"
    (hound / "video_instruction/train").mkdir(parents=True)
    for name, answer in (("caption", "a flag moves"), ("qa", "yes")):
        lines = [{"video": f"v{n}", "conversations": [
            {"from": "human", "value": f"<video>\nquestion {n}"},
            {"from": "gpt", "value": f"{answer} {n}"}]} for n in range(ROWS)]  # fmt: skip
        path = hound / f"video_instruction/train/chatgpt_{name}_240k.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
    for n in range(ROWS):
        (hound / f"train_300k/v{n}").mkdir(parents=True)
        for frame in range(10):
            (hound / f"train_300k/v{n}/c{frame}.png").write_bytes(png(300 + n))
    return folder


def prepare(source: Path, out: Path, *more: str, names: Sequence[str] = NAMES) -> int:
    command = ["mmeb-train", "--source", str(source), "--out", str(out), "--workers", "1"]
    command += ["--validation-share", "0.2", "--gate-share", "0.1", "--calibration-share", "0.1"]
    return main([*command, "--sources", *names, *more])


@pytest.fixture(scope="module")
def root(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mixture")
    assert prepare(source, out) == 0
    return out


def pairs(root: Path, name: str) -> list[Pair]:
    return [SampleReader().pair(row) for row in rows_of(ShardIndex.open(root / "pairs" / name))]


def test_the_mixture_is_the_published_one() -> None:
    assert sum(source.weight for source in MIXTURE) == TOTAL_WEIGHT
    assert len(MIXTURE) == 25
    by_kind = {"mmeb": 0.0, "page": 0.0, "video": 0.0}
    for source in MIXTURE:
        page = source.layout in ("colpali", "visrag")
        by_kind["mmeb" if source.layout == "mmeb" else "page" if page else "video"] += source.weight
    assert by_kind == {"mmeb": 15, "page": 22, "video": 15}
    with pytest.raises(ValueError, match="no source 'ImageNet-1K'"):
        source_named("ImageNet-1K")


def test_every_layout_becomes_pairs(root: Path) -> None:
    voc = pairs(root, "VOC2007")[0]
    assert voc.query.instruction == "Identify the object shown in the image"
    assert voc.query.text == ""
    assert voc.query.media[0].kind == "image"
    assert voc.target.text.startswith("thing")
    assert not voc.target.text.endswith(" ")
    coco = pairs(root, "MSCOCO_t2i")[0]
    assert coco.query.text.startswith("cat")
    assert coco.target.instruction == "Represent the given image."
    assert coco.target.media[0].pixels is not None
    page = pairs(root, "colpali")[0]
    assert page.query.media
    assert page.target.text.startswith("answer")
    visrag = pairs(root, "visrag")[0]
    assert visrag.target.media
    assert visrag.query.instruction.startswith("Find a document image")
    found, asked = pairs(root, "hound-video-retrieval")[0], pairs(root, "hound-qa")[0]
    assert [m.kind for m in found.target.media] == ["frame"] * 8
    assert found.query.text.startswith("a flag moves")
    assert asked.query.text.startswith("question")
    assert len(asked.query.media) == 8


def test_no_picture_lies_on_both_sides_of_the_cut(root: Path) -> None:
    trained = {m.digest for name in NAMES for pair in pairs(root, name)
               for m in (*pair.query.media, *pair.target.media)}  # fmt: skip
    queries, candidates = (ShardIndex.open(root / n) for n in ("queries", "candidates"))
    tested = {d for index in (queries, candidates) for e in index.entries for d in e.media.values()}
    assert tested
    assert not tested & trained
    pictures: dict[str, set[str]] = {"val": set(), "gate": set(), "calibration": set()}
    for entry in queries.entries:
        pictures[entry.meta["split"]] |= set(entry.media.values())
    assert all(pictures.values())
    assert sum(map(len, pictures.values())) == len(set.union(*pictures.values()))
    report = json.loads((root / "reports/VOC2007.json").read_text())
    assert report["pairs"] + report["held_out"] + report["empty"] == ROWS
    assert report["empty"] == 1


def test_the_weights_are_those_of_the_mixture(root: Path) -> None:
    overlay = yaml.safe_load((root / "mixture.yaml").read_text())["data"]["init_args"]
    data = PairDataModule(str(root), overlay["pairs"], 4, 4, overlay["source_weights"], 0)
    seen: dict[str, int] = dict.fromkeys(NAMES, 0)
    stream = data.train_dataloader()
    weights = {name: source_named(name).weight for name in NAMES}
    for _ in range(int(2 * sum(weights.values()))):  # one whole cycle of groups
        (name,) = set(next(stream).sources)
        seen[name] += 1
    assert seen == {name: int(2 * weight) for name, weight in weights.items()}


def test_a_second_run_finds_everything(
    source: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.tar")}
    assert prepare(source, root) == 0
    assert capsys.readouterr().out.count("everything is there") == len(NAMES)
    assert before == {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.tar")}


def test_rows_of_shards_that_were_there_before_a_kill_count(source: Path, tmp_path: Path) -> None:
    assert prepare(source, tmp_path, names=["VOC2007"]) == 0
    report = tmp_path / "reports/VOC2007.json"
    before = report.read_text()
    assert json.loads(before)["pairs"] > 0
    report.unlink()  # the kill came before it
    assert prepare(source, tmp_path, names=["VOC2007"]) == 0
    assert report.read_text() == before


def test_a_source_that_lost_its_shards_is_made_again(source: Path, tmp_path: Path) -> None:
    assert prepare(source, tmp_path, names=["VOC2007"]) == 0
    shard = tmp_path / "pairs/VOC2007/VOC2007-000000.tar"
    before = shard.read_bytes()
    shard.write_bytes(before[:-512])
    assert prepare(source, tmp_path, names=["VOC2007"]) == 0
    assert shard.read_bytes() == before


def test_check_reads_rows_and_writes_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(source, tmp_path / "out", "--check") == 0
    assert "VOC2007: 30 rows of at most 10,000, 1 with an empty side" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert prepare(source, tmp_path, "--check", names=["CIRR"]) == 1
    assert "holds no annotations of it" in capsys.readouterr().err


def test_broken_pictures_and_columns_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "source/TIGER-Lab/MMEB-train"
    columns = {
        "qry": ["one", "two"], "qry_image_path": ["a.webp", "b.webp"],
        "pos_text": ["x", "y"], "pos_image_path": ["", ""],
    }  # fmt: skip
    write_parquet(folder / "CIRR/original-0.parquet", columns)
    (folder / "a.webp").write_bytes(png(0))
    (folder / "b.webp").write_bytes(b"RIFF")
    assert prepare(tmp_path / "source", tmp_path / "out", names=["CIRR"]) == 1
    said = capsys.readouterr().err
    assert "CIRR, row 1" in said
    assert "b.webp cannot be decoded" in said
    more = ("--on-error", "skip", "--validation-share", "0", "--gate-share", "0")
    more += ("--calibration-share", "0")
    assert prepare(tmp_path / "source", tmp_path / "skipped", *more, names=["CIRR"]) == 0
    report = json.loads((tmp_path / "skipped/reports/CIRR.json").read_text())
    assert (report["pairs"], len(report["skipped"])) == (1, 1)
    del columns["pos_text"]
    write_parquet(folder / "CIRR/original-0.parquet", columns)
    assert prepare(tmp_path / "source", tmp_path / "out", "--check", names=["CIRR"]) == 1
    assert "lacks columns: ['pos_text']" in capsys.readouterr().err


def test_rows_that_cannot_be_read_are_named_or_left_out(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same rows are faults in both modes: half of a surrogate pair, turns of another kind."""
    shutil.copytree(source / "ShareGPTVideo", tmp_path / "source/ShareGPTVideo")
    (path,) = (tmp_path / "source").rglob("*qa*.jsonl")
    lines = path.read_text().split("\n")
    lines[3] = lines[3].replace("question", "cut \\ud83d")
    lines[5] = json.dumps({"video": "v5", "conversations": ["a", "b"]})
    lines[7] = json.dumps({"video": "v7", "conversations": [{"value": {}}, {"value": "b"}]})
    lines[9] = lines[9][:-20]
    lines[11] = json.dumps({"video": "../v1", "conversations": [{"value": 0}, {"value": "b"}]})
    lines[13] = json.dumps({"video": "v13", "conversations": [{"value": None}, {"value": "b"}]})
    lines[15] = json.dumps({"video": "v0/../../x", "conversations": [{"value": "a"}] * 2})
    path.write_text("\n".join(lines))

    def run(out: str, *more: str) -> int:
        cut = ("--validation-share", "0", "--gate-share", "0", "--calibration-share", "0")
        return prepare(tmp_path / "source", tmp_path / out, *more, *cut, names=["hound-qa"])

    assert run("a", "--check") == 1
    assert capsys.readouterr().out.count("hound-qa, row ") == 5
    assert run("b") == 1
    assert "hound-qa, row 3: " in capsys.readouterr().err
    assert run("c", "--on-error", "skip") == 0
    report = json.loads((tmp_path / "c/reports/hound-qa.json").read_text())
    said = ["half of a surrogate pair", "an object for each turn", "found dict {}", "no JSON"]
    said += ["found int 0", "leads out of the folder"]
    for text, line in zip(said, report["skipped"], strict=True):
        assert text in line
    assert report["pairs"] == ROWS - 6


def test_a_cap_takes_the_first_rows(source: Path) -> None:
    from dataclasses import replace

    few = replace(source_named("VOC2007"), cap=3)
    rows = list(read_source(few, source / few.repository))
    assert [row.number for row in rows] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_the_mixture_trains_and_its_cut_chooses_checkpoints(root: Path, tmp_path: Path) -> None:
    command = ["fit", "--config", str(CONFIGS / "mmeb_v2/validation.yaml")]
    command += ["--config", str(root / "mixture.yaml"), "--config", str(CONFIGS / "cpu.yaml")]
    command += ["--data_root", str(root), "--runs", str(tmp_path), "--needs.memory_gib", "0.1"]
    command += ["--model.backbone.model", str(CONFIGS / "backbone/clip_tiny.json")]
    command += ["--model.backbone.tokenizer", "bytes", "--data.batch_size", "16"]
    run([*command, "--data.group_size", "8"])
    checkpoints = tmp_path / "mmeb_v2/train/checkpoints"
    assert (checkpoints / "best.ckpt").is_file()
    metrics = json.loads((tmp_path / "mmeb_v2/train/summary.json").read_text())["metrics"]
    assert "val/recall@1" in metrics


def test_a_broken_archive_is_named_by_the_rows_that_miss_it(tmp_path: Path) -> None:
    """One broken archive refused every table of the repository, with zipfile's own words."""
    shown = png(1)
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("images/1.webp", shown)
            archive.writestr(f"images/{name}.webp", shown)
    (tmp_path / "c.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-9])

    store = MediaStore(tmp_path)
    side = TrainSide(picture="images/1.webp")
    assert store.members(side, "q") == {"q0.webp": shown}
    with pytest.raises(UnreadableError, match=r"holds 'images/2\.webp'.*c\.zip cannot be read"):
        store.members(TrainSide(picture="images/2.webp"), "q")

    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("images/1.webp", b"another")
    with pytest.raises(UnreadableError, match=r"another picture in each of .*a\.zip, .*d\.zip"):
        MediaStore(tmp_path).members(side, "q")

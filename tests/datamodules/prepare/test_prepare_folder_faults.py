"""Own data that is wrong: faults with their rows, files that are something else, no tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.decode import decode_image
from datamodules.prepare.folder.rationales import read_rationales
from datamodules.prepare.folder.table import read_table
from mmemb.media.picture_files import encoded_clip, encoded_picture
from mmemb.rationales.writers.pool import read_pool
from tests.datamodules.prepare.test_prepare_folder import prepare
from tests.fixtures.own_table import flag_rows, write_csv, write_lines, write_media, write_parquet
from tests.fixtures.picture_files import tiff
from tests.fixtures.tiny_clips import write_video
from tests.fixtures.tiny_data import picture


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("own") / "media")


def test_a_file_that_is_something_else_opens_nothing(tmp_path: Path) -> None:
    """A playlist would read other files, PostScript would run: by their bytes, not their names."""
    write_video(tmp_path / "secret.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    (tmp_path / "code.bmp").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(ValueError, match=r"list\.mp4 cannot be decoded"):
        encoded_clip(tmp_path / "list.mp4", 2)
    with pytest.raises(ValueError, match=r"code\.bmp cannot be decoded: .* none of these"):
        encoded_picture(tmp_path / "code.bmp")


def test_encoded_pictures_of_other_formats_are_right_rgb(tmp_path: Path) -> None:
    """On white, upright, grey by its range; and what is too wide for WebP becomes PNG."""
    clear = np.array([[[200, 100, 0, 255], [0, 0, 0, 0]]], np.uint8)
    grey = np.array([[[65535], [32896]]], np.uint16)
    (tmp_path / "clear.tif").write_bytes(tiff(clear, 8, 2, extra=(2,), orientation=6))
    (tmp_path / "grey.tif").write_bytes(tiff(grey, 16, 1))
    (tmp_path / "wide.tif").write_bytes(tiff(np.zeros((1, 16384, 1), np.uint8), 8, 1))
    (tmp_path / "depth.tif").write_bytes(tiff(np.array([[[7]]], np.uint32), 32, 1))

    suffix, data = encoded_picture(tmp_path / "clear.tif")
    assert suffix == "webp"
    assert decode_image(data, "x")[:, :, 0].T.tolist() == [[200, 100, 0], [255, 255, 255]]
    assert decode_image(encoded_picture(tmp_path / "grey.tif")[1], "x")[0].tolist() == [[255, 128]]
    suffix, data = encoded_picture(tmp_path / "wide.tif")
    assert (suffix, decode_image(data, "x").shape) == ("png", (3, 1, 16384))
    with pytest.raises(ValueError, match=r"depth\.tif cannot be decoded.*has no white"):
        encoded_picture(tmp_path / "depth.tif")


@pytest.mark.parametrize("name", ["a.jpg", "a.PNG", "a.bmp", "a.tif", "a.jfif", "a.webp"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_is_what_its_bytes_say(tmp_path: Path, name: str, kind: str) -> None:
    kept = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
    Image.new("RGB", (6, 4), "#3c64c8").save(tmp_path / name, kind)
    suffix, data = encoded_picture(tmp_path / name)
    assert suffix == kept.get(kind, "webp")
    assert (data == (tmp_path / name).read_bytes()) == (kind in kept)
    colour = decode_image(data, "x").float().mean((1, 2))
    assert torch.allclose(colour, torch.tensor([60.0, 100.0, 200.0]), atol=3)


def faulty_rows() -> list[dict[str, Any]]:
    rows = flag_rows()
    rows[1]["target_media"] = "flags/99.webp"
    rows[2]["split"] = "training"
    rows[3]["id"] = rows[0]["id"]
    rows[4] |= {"query_text": ""}
    rows[5]["target_media"] = "../secret.webp"
    rows[6] |= {"id": "flag-06", "task": ""}
    rows[7]["target_media"] = "flags/broken.webp"
    rows[20]["query_text"] = rows[0]["query_text"].upper()
    rows[21]["id"] = ["with.dot"]
    rows[22]["negative_text"] = "not this"
    return rows


FAULTS = (
    "row 2: target_media 'flags/99.webp' is missing",
    "row 3: split 'training': expected one of",
    "row 4: id 'flag-00' is that of row 1, too",
    "row 5: an empty side",
    "row 6: target_media '../secret.webp' leads out of the folder",
    "row 7: no task",
    "row 8: target_media: broken.webp cannot be decoded",
    "row 21: its query is that of row 1, which is trained on",
    "row 22: id ['with.dot'] is a list",
    "row 23: task 'flags' has queries with negatives and without",
)


@pytest.fixture
def broken_media(media: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "flags").mkdir()
    for path in (media / "flags").iterdir():
        (folder / "flags" / path.name).write_bytes(path.read_bytes())
    (folder / "flags/broken.webp").write_bytes(b"RIFFjunk")
    (tmp_path / "secret.webp").write_bytes(picture(0))
    return folder


def test_every_fault_is_listed_with_its_row(
    broken_media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_lines(tmp_path / "t.jsonl", faulty_rows())
    assert prepare(table, broken_media, tmp_path / "out") == 1
    said = capsys.readouterr()
    for fault in FAULTS:
        assert fault in said.out, fault
    assert "nothing was written" in said.err
    assert not (tmp_path / "out").exists()
    assert prepare(table, broken_media, tmp_path / "out", "--check") == 1
    assert not (tmp_path / "out").exists()


def test_names_of_frames_cannot_forge_lines_or_end_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Archives from Windows hold names that are no UTF-8; those of others may hold line feeds."""
    rows = [row | {"query_media": name} for row, name in zip(flag_rows(), ["e", "n"], strict=False)]
    for folder, name in (("e", "f\udcff.webp"), ("n", "f\nrow 7: \x1b[2J.webp")):
        (tmp_path / "m" / folder).mkdir(parents=True)
        (tmp_path / "m" / folder / name).write_bytes(b"")
    rows = [row | {"target_media": "", "target_text": row["id"]} for row in rows]
    table = write_csv(tmp_path / "t.csv", rows)
    assert prepare(table, tmp_path / "m", tmp_path / "out") == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "row 1: query_media 'e/f\\udcff.webp' has a name that is no UTF-8: rename it"
    assert told[1].startswith("row 2: query_media: f\\nrow 7: \\x1b[2J.webp cannot be decoded")


def test_only_the_frames_of_a_folder_count(tmp_path: Path) -> None:
    folder = tmp_path / "m/f"
    folder.mkdir(parents=True)
    (folder / "0.webp").write_bytes(picture(1))
    row = {"id": "a", "task": "t", "split": "train", "query_media": "f", "target_text": "x"}
    table = write_csv(tmp_path / "T.CSV", [row])
    assert prepare(table, tmp_path / "m", tmp_path / "out") == 0
    before = (tmp_path / "out/manifest.json").read_text()
    (folder / "Thumbs\udcff.db").write_bytes(b"x")
    assert prepare(table, tmp_path / "m", tmp_path / "out") == 0
    assert (tmp_path / "out/manifest.json").read_text() == before


def test_faulty_rows_may_be_left_out(broken_media: Path, tmp_path: Path) -> None:
    table = write_lines(tmp_path / "t.jsonl", faulty_rows())
    assert prepare(table, broken_media, tmp_path / "out", "--on-error", "skip") == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["partial"] is True
    assert manifest["counts"]["pairs/plain"] == 1
    assert any("flags/99.webp" in line for line in manifest["skipped"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.xlsx", "", "expected a table that ends in"),
        ("t.jsonl", "not json\n", "row 1: no JSON"),
        ("t.jsonl", "[1]\n", "row 1: Expected `object`, got `array`"),
        ("t.jsonl", b'{"id": "\xff"}\n', "row 1: no JSON (Invalid UTF-8"),
        ("t.parquet", "PAR?", "is no whole Parquet file"),
        ("t.csv", "id,task,id\na,b,c\n", "columns occur twice in the heading: ['id']"),
        ("t.csv", "id;task;split\na;b;train\n", "it has the one column 'id;task;split' (expected"),
        ("t.csv", "id,text\na,b\n", "no column for the query and the target: it has 'id', 'text'"),
        ("t.csv", "id,task,split".encode("utf-16"), "is no UTF-8, perhaps UTF-16"),
        ("t.csv", "", "the heading cannot be read: there is none"),
        ("none.csv", None, "not found"),
    ],
    ids=str,
)
def test_a_table_that_is_none(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | bytes | None,
    said: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert prepare(tmp_path / name, tmp_path, tmp_path / "out") == 1
    shown = capsys.readouterr()
    assert said in shown.out + shown.err


def test_a_column_whose_name_is_no_text(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "t.parquet", flag_rows())
    table.write_bytes(table.read_bytes().replace(b"query_text", b"qu\xe5ry_text"))
    with pytest.raises(ValueError, match=r"t\.parquet is no whole Parquet file"):
        list(read_table(table))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"id": "flag-99", "rationales": ["x"]}, "id 'flag-99' is that of no row"),
        ({"id": "flag-01", "rationales": [""]}, "rationales[0]: expected something in thinking"),
        ({"id": "flag-01", "rationales": [{"answer": None}]}, "rationales[0]: expected something"),
        ({"rationales": ["x"]}, "Object missing required field `id`"),
        ({"id": "flag-01", "rationales": "red"}, "Expected `array`, got `str` - at `$.rationales`"),
        ({"id": "flag-01", "rationales": [True]}, "at `$.rationales[0]`"),
        ({"id": "flag-01", "rationales": [["x"]]}, "at `$.rationales[0]`"),
        ({"id": "flag-01", "rationales": [{"text": "x"}]}, "unknown field `text`"),
        ({"id": "flag-01", "rationales": ["a</answer>b"]}, "</answer> stands inside a text"),
        ({"id": "flag-01", "rationales": ["cut \ud83d"]}, "half of a surrogate pair"),
        (["flag-01"], "Expected `object`, got `array`"),
    ],
    ids=str,
)
def test_rationales_that_fit_nothing(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: Any, said: str
) -> None:
    table = write_csv(tmp_path / "t.csv", flag_rows()[:2])
    given = write_lines(tmp_path / "r.jsonl", [{"id": "flag-00", "rationales": []}, line])
    assert prepare(table, media, tmp_path / "out", "--rationales", str(given)) == 1
    told = capsys.readouterr()
    assert "r.jsonl, line 2: " in told.out
    assert said in told.out
    assert "has 1 fault, so nothing was written" in told.err
    assert not (tmp_path / "out").exists()


def test_rationales_of_every_kind_by_id(tmp_path: Path) -> None:
    lines = [
        {"id": 7, "rationales": [0, 2.0, " x ", {"thinking": 0, "answer": None}]},
        {"id": "b", "rationales": ["<think>so</think>\n<answer>red</answer>"]},
    ]
    path = write_lines(tmp_path / "r.jsonl", lines)
    path.write_text(path.read_text().replace("\n", "\n\n"))  # an empty line is none
    given = read_rationales(path, {"7", "b"})
    assert given.faults == ()
    written = {key: [(r.thinking, r.answer) for r in found] for key, found in given.by_id.items()}
    assert written == {"7": [("", "0"), ("", "2"), ("", "x"), ("", "0")], "b": [("so", "red")]}


def test_what_skip_leaves_out_has_no_rationale(media: Path, tmp_path: Path) -> None:
    """A faulty row takes its rationales with it, a faulty line itself, and two equal queries share
    theirs without loss."""
    rows = flag_rows()[:4]
    rows[1]["query_text"] = rows[0]["query_text"]
    rows[2]["target_media"] = "none.png"
    given = [{"id": row["id"], "rationales": [row["id"]]} for row in rows]
    lines = write_lines(tmp_path / "r.jsonl", [*given, {"id": "x"}])
    table = write_csv(tmp_path / "t.csv", rows)
    more = ("--rationales", str(lines), "--on-error", "skip")
    assert prepare(table, media, tmp_path / "out", *more) == 0
    pool = read_pool(tmp_path / "out/rationale_pool.json")
    found = sorted([(r.seed, r.answer) for r in written] for written in pool.values())
    assert found == [[(0, "flag-00"), (1, "flag-01")], [(0, "flag-03")]]

"""MMEB-V2 converters: what is not the published data is one clear error, and nothing is kept."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.prepare.cells import Broken
from datamodules.prepare.mmeb import pictures, plan
from datamodules.prepare.mmeb.folders import Settings
from datamodules.prepare.mmeb.frames import PictureFolder
from datamodules.prepare.mmeb.layouts import plan_task
from datamodules.prepare.mmeb.plan import PlanBuilder
from datamodules.prepare.mmeb.write import write_root
from datamodules.prepare.row_files import json_rows
from mmemb.benchmarks.mmeb_v2 import task_named, tasks_of
from tests.fixtures.mmeb_cases import CASES
from tests.fixtures.mmeb_sources import counted, picture, put, put_rows, repository, write_pages

PARQUET = "test-00000-of-00001.parquet"


def annotations(source: Path, task) -> Path:
    return repository(source, task.source) / (task.config or "data") / PARQUET


def test_no_repository(tmp_path: Path) -> None:
    expected = r"VATEX: .*annotations/VLM2Vec/VATEX is missing: .*`hf download --repo-type dataset"
    (tmp_path / "video-tasks/frames/video_ret/VATEX").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=expected):
        plan_task(task_named("VATEX"), tmp_path)


@pytest.mark.parametrize(
    ("name", "archive"),
    [("N24News", "image-tasks/mmeb_v1.tar.gz"), ("K700", "frames/video_cls.tar.gz")],
)
def test_no_archive(name: str, archive: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{name}: .* is missing: unpack .*{archive}"):
        plan_task(task_named(name), tmp_path)


def test_no_file_of_the_split(tmp_path: Path) -> None:
    case = CASES["image_qa"](tmp_path)
    annotations(tmp_path, case.task).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"holds no data of config 'OK-VQA', split 'test'"):
        plan_task(case.task, tmp_path)


def test_missing_columns(tmp_path: Path) -> None:
    case = CASES["image_qa"](tmp_path)
    put_rows(annotations(tmp_path, case.task), [{"qry_text": "x", "tgt_text": ["y"]}])
    with pytest.raises(ValueError, match=r"parquet lacks columns: \['qry_inst', 'qry_img_p"):
        plan_task(case.task, tmp_path)


def test_missing_field_of_a_json_row(tmp_path: Path) -> None:
    case = CASES["ssv2"](tmp_path)
    path = repository(tmp_path, case.task.source) / "test.jsonl"
    path.write_text(path.read_text().replace("pos_text", "label"))
    with pytest.raises(ValueError, match=r"test\.jsonl, row 0 lacks columns: \['pos_text'\]"):
        plan_task(case.task, tmp_path)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"tgt_text": "y"}, r"row 0: expected a list of texts in 'tgt_text'; found str 'y'"),
        ({"tgt_text": []}, r"expected a list of texts in 'tgt_text'; found an empty one"),
        ({"tgt_text": [3]}, r"expected a list of texts in 'tgt_text'; found int 3"),
        ({"qry_text": 5}, r"expected a text in 'qry_text'; found int 5"),
        ({"qry_img_path": ""}, r"expected an id in 'qry_img_path'; found an empty text"),
        ({"qry_img_path": "../../secret.png"}, r"'\.\./\.\./secret\.png' names no file or folder"),
        ({"qry_img_path": "/etc/passwd"}, r"'/etc/passwd' names no file or folder below it"),
    ],
)
def test_a_row_of_another_kind(row: dict, expected: str, tmp_path: Path) -> None:
    case = CASES["image_qa"](tmp_path)
    good = {"qry_inst": "", "qry_text": "x", "qry_img_path": "a.jpg", "tgt_text": ["y"]}
    put_rows(annotations(tmp_path, case.task), [good | row])
    with pytest.raises(ValueError, match=expected):
        plan_task(case.task, tmp_path)


VATEX = {"videoID": "v", "enCap": ["a"]}
CUT = {"videoID": "v", "enCap": ["cut \ud83d"]}


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.jsonl", [VATEX, CUT], "half of a surrogate pair"),
        ("x.json", [VATEX, CUT], "half of a surrogate pair, or a byte that is no UTF-8"),
        ("x.jsonl", [VATEX, ["v", "a"]], "Expected `object`, got `array`"),
        ("x.json", [VATEX, ["v", "a"]], "['v', 'a']: expected a JSON object"),
        ("x.json", [VATEX, VATEX | {"more": math.nan}], "it holds NaN"),
        ("x.jsonl", [VATEX, VATEX | {"more": math.nan}], "NaN is no number"),
        ("x.jsonl", [VATEX, {"videoID": "v", "enCap": [None]}], "found NoneType None"),
        ("x.parquet", [VATEX, CUT], "is no UTF-8 (byte 0xed"),
    ],
)
def test_a_text_that_is_none_names_its_row(
    name: str, data: list, said: str, tmp_path: Path
) -> None:
    task = counted("VATEX", 1, 1)
    path = repository(tmp_path, task.source) / name
    (tmp_path / "video-tasks/frames/video_ret/VATEX").mkdir(parents=True)
    if name == "x.json":
        put(path, json.dumps(data).encode())
    elif name == "x.jsonl":
        put_rows(path, data)
    else:
        put(path, cut_captions(data))
    with pytest.raises(ValueError, match=rf"{name}, row 1: expected ") as error:
        plan_task(task, tmp_path)
    assert said in str(error.value)


def cut_captions(rows: list[dict]) -> bytes:
    """A table of Parquet whose last caption is no UTF-8, as other writers make it."""
    import pyarrow as pa
    from pyarrow import parquet

    texts = [row["enCap"][0].encode(errors="surrogatepass") for row in rows]
    captions = pa.array([[text] for text in texts], pa.list_(pa.binary()))
    offsets, values = captions.offsets, captions.values.view(pa.string())
    columns = {
        "videoID": [row["videoID"] for row in rows],
        "enCap": pa.ListArray.from_arrays(offsets, values),
    }
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


def test_a_key_that_occurs_twice_names_its_row(tmp_path: Path) -> None:
    rows = list(json_rows(b'[{"a": 1}, {"a": 1, "a": 2}, {"b": {"a": 1, "a": 2}}]'))
    assert rows[0] == {"a": 1}
    assert rows[1] == Broken("the key 'a' occurs twice in one object")
    assert isinstance(rows[2], Broken)


def test_what_is_no_picture_is_never_waited_for(tmp_path: Path) -> None:
    """A pipe, a link to a device, or one out of the folder, among pictures and frames."""
    home = tmp_path / "source/images"
    (home / "clip").mkdir(parents=True)
    put(tmp_path / "secret.jpg", picture(1))
    os.mkfifo(home / "pipe.jpg")
    os.mkfifo(home / "clip/f0.jpg")
    (home / "zero.jpg").symlink_to("/dev/zero")
    (home / "out.jpg").symlink_to("../../secret.jpg")
    put(home / "._good.jpg", b"of macOS")
    put(home / unicodedata.normalize("NFD", "é.jpg"), picture(1))

    folder = PictureFolder(tmp_path / "source", home)
    assert "'pipe.jpg' is a pipe" in folder.image("pipe.jpg").problem
    assert "leads out of images/" in folder.image("zero.jpg").problem
    assert "leads out of images/" in folder.image("out.jpg").problem
    assert "'clip' is a folder" in folder.image("clip").problem
    assert "f0.jpg' is a pipe" in folder.frames("clip").problem
    assert folder.image("é.jpg").pictures[0].size > 0
    with pytest.raises(ValueError, match="names no file or folder below it"):
        folder.image("x" * 300)


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.json"])
def test_a_broken_file(name: str, tmp_path: Path) -> None:
    task = counted("VATEX", 1, 1)
    (tmp_path / "video-tasks/frames/video_ret/VATEX").mkdir(parents=True)
    put(repository(tmp_path, task.source) / name, b'[{"videoID":')
    with pytest.raises(ValueError, match=rf"{name} is (broken|no whole parquet file)"):
        plan_task(task, tmp_path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["image_qa"](tmp_path)
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"reading parquet needs pyarrow; run `pip install"):
        plan_task(case.task, tmp_path)


def test_a_readme_that_points_elsewhere(tmp_path: Path) -> None:
    case = CASES["beir"](tmp_path)
    readme = repository(tmp_path, case.task.source) / "README.md"
    readme.write_text(readme.read_text().replace("corpus-data", "../corpus-data"))
    with pytest.raises(ValueError, match="names files outside its repository"):
        plan_task(case.task, tmp_path)


@pytest.mark.parametrize(
    ("layout", "changes", "expected"),
    [
        ("image_qa", {"num_queries": 3}, r"OK-VQA: 2 queries; expected 3\."),
        ("image_qa", {"num_candidates": 4}, r"3 candidates \(.*row 0\); expected 4\."),
        ("image_cls", {"num_candidates": 3}, r"2 candidates \(.*row 1\); expected 3\."),
        ("vatex", {"num_candidates": 3}, r"VATEX: 2 candidates; expected 3\. Is VLM2Vec/VATEX"),
        ("beir", {"num_candidates": 5}, r"4 candidates; expected 5\."),
        ("video_classification", {"num_candidates": 4}, r"3 candidates; .*go into labels\.txt"),
        ("ssv2", {"num_queries": 3}, r"SmthSmthV2: 2 queries; expected 3"),
    ],
)
def test_other_counts(layout: str, changes: dict, expected: str, tmp_path: Path) -> None:
    task = replace(CASES[layout](tmp_path).task, **changes)
    with pytest.raises(ValueError, match=expected):
        plan_task(task, tmp_path)


def test_a_class_list_that_is_too_short_in_one_row(tmp_path: Path) -> None:
    case = CASES["image_cls"](tmp_path)
    row = {"qry_inst": "", "qry_text": "", "qry_img_path": "VOC/0.jpg", "tgt_text": ["a", "b"]}
    put_rows(annotations(tmp_path, case.task), [row, row | {"tgt_text": ["a"]}])
    with pytest.raises(ValueError, match=r"VOC2007: 1 candidates \(.*row 1\); expected 2"):
        plan_task(case.task, tmp_path)


@pytest.mark.parametrize(
    ("layout", "change", "expected"),
    [
        ("mvbench", {"answer": "left"}, r"expected an answer among \['up', 'down', '0'\]"),
        ("nextqa", {"answer": 5}, r"expected a whole number below 5 in 'answer'; found '5'"),
        ("egoschema", {"answer": "-1"}, r"expected a whole number below 2 in 'answer'"),
        ("videomme", {"answer": "E"}, r"expected an answer among \['A', 'B', 'C', 'D'\]"),
        ("videomme", {"options": ["A", "B. x", "C. y", "D. z"]}, r"options like `A\. text`"),
        ("activitynetqa", {"answer": "maybe"}, r"expected the answer `yes` or `no`"),
        ("ssv2", {"pos_text": "eating"}, r"'eating' is not among its 2 candidates"),
        ("momentseeker", {"negative_frames": ["x"]}, r"`output_path` in 'negative_frames'"),
        ("momentseeker", {"positive_frames": []}, r"none is named of its 1 candidate"),
    ],
)
def test_a_right_answer_that_is_none(
    layout: str, change: dict, expected: str, tmp_path: Path
) -> None:
    case = CASES[layout](tmp_path)
    folder = repository(tmp_path, case.task.source)
    path = next(p for p in sorted(folder.rglob("*")) if p.suffix in (".parquet", ".jsonl", ".json"))
    if layout == "mvbench":
        path = folder / "json/episodic_reasoning.json"
    rows = read_rows_of(path)
    path.unlink()
    put_rows(path.with_suffix(".jsonl"), [rows[0] | change, *rows[1:]])
    with pytest.raises(ValueError, match=expected):
        plan_task(case.task, tmp_path)


def read_rows_of(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return parquet_rows(path)
    text = path.read_text()
    return json.loads(text) if text[0] == "[" else [json.loads(x) for x in text.splitlines()]


def parquet_rows(path: Path) -> list[dict]:
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


def test_a_moment_without_a_right_clip(tmp_path: Path) -> None:
    case = CASES["moment_retrieval"](tmp_path)
    home = tmp_path / "video-tasks/frames/video_mret/Charades_STA/AB.C"
    (home / "positive").rename(home / "negative_3")
    with pytest.raises(ValueError, match=r"Charades-STA: the right candidate of .* is unknown"):
        plan_task(case.task, tmp_path)


@pytest.mark.parametrize(
    ("grades", "expected"),
    [
        ([(7, 9, 1)], r"'9' is not among its 2 candidates"),
        ([(7, 1, 0)], r"none is named of its 2 candidates"),
        ([(7, 1, "1")], r"expected a finite number in 'score'; found '1'"),
        ([(7, 1, float("inf"))], r"expected a finite number in 'score'; found inf"),
    ],
)
def test_grades_that_do_not_fit(grades: list, expected: str, tmp_path: Path) -> None:
    task = counted("ViDoRe_arxivqa", 1, 2)
    write_pages(tmp_path, task, [(7, "q")], [(1, picture(1)), (2, picture(2))], grades)
    with pytest.raises(ValueError, match=expected):
        plan_task(task, tmp_path)


def test_pages_that_are_no_pictures(tmp_path: Path) -> None:
    case = CASES["beir"](tmp_path)
    path = repository(tmp_path, case.task.source) / "corpus-data/part0.parquet"
    put_rows(path, [{"corpus-id": 1, "image": "1.png"}])
    with pytest.raises(ValueError, match=r"column 'image' is string; expected pictures as a"):
        plan_task(case.task, tmp_path)


def test_one_name_and_two_pages(tmp_path: Path) -> None:
    task = counted("ViDoRe_arxivqa", 1, 1)
    pages = [(1, picture(1)), (1, picture(2))]
    write_pages(tmp_path, task, [(7, "q")], pages, [(7, 1, 1)])
    with pytest.raises(ValueError, match=r"rows 0 and 1 of the corpus have one name and two pict"):
        write_root(plan_task(task, tmp_path), tmp_path / "out", Settings(workers=2))
    assert not (tmp_path / "out/tasks.json").exists()


def test_one_name_and_two_contents() -> None:
    builder = PlanBuilder(task_named("VATEX"), Path())
    builder.candidate("row 1", "v0", media=plan.Media((plan.Picture("a.jpg"),)))
    builder.candidate("row 2", "v0", media=plan.Media((plan.Picture("a.jpg"),)))
    with pytest.raises(ValueError, match=r"'v0' of row 3 has other content than in row 1"):
        builder.candidate("row 3", "v0", media=plan.Media((plan.Picture("b.jpg"),)))


@pytest.mark.parametrize(("there", "asked"), [(0, 1), (1, 0)])
def test_the_page_set_of_another_revision(there: int, asked: int, tmp_path: Path) -> None:
    revisions = ("2025-06-03", "2025-11-03")
    rows = [task_named("ViDoSeek-page", tasks_of(revision)) for revision in revisions]
    write_pages(tmp_path, rows[there], [(0, "q")], [(3, picture(3))], [(0, 3, 1)])
    expected = f"holds VLM2Vec/ViDoSeek-page.*page set of {revisions[there]}.*--revision"
    with pytest.raises(ValueError, match=expected):
        plan_task(rows[asked], tmp_path)
    small = replace(rows[there], num_queries=1, num_candidates=1)
    manifest = write_root(plan_task(small, tmp_path), tmp_path / "out", Settings())
    assert manifest["revision"] == revisions[there]


@pytest.mark.parametrize(
    "data",
    [b"junk", b"", picture(1)[:45], picture(1, "JPEG")[:200], picture(1, "GIF")],
    ids=["junk", "empty", "cut png", "cut jpg", "gif"],
)
def test_what_is_no_whole_picture(data: bytes) -> None:
    with pytest.raises(pictures.UnreadableError, match=r"^here cannot be decoded: expected a who"):
        pictures.check_picture(data, "here")


def test_pictures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pictures.check_picture(picture(1), "here") == "png"
    assert pictures.check_picture(picture(1, "WEBP"), "here") == "webp"
    monkeypatch.setattr(pictures.pictures, "MAX_PIXELS", 10)
    with pytest.raises(pictures.UnreadableError, match="9 x 8 pixels, at most 10"):
        pictures.check_picture(picture(1), "here")

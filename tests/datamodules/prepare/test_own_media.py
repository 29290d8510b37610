"""Own media: drawings become pictures, and a wrong folder of media is told in one sentence."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from datamodules.decode import decode_image
from datamodules.prepare.__main__ import main
from datamodules.prepare.folder.media import side_members
from datamodules.prepare.folder.media_folder import check_folder
from datamodules.prepare.folder.table import read_table
from tests.fixtures.own_table import flag_rows, write_csv
from tests.fixtures.tiny_data import picture

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 10">'
    '<rect width="10" height="10" fill="#f00"/>{}</svg>'
)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "media"
    (folder / "flags").mkdir(parents=True)
    for n in range(24):
        (folder / f"flags/{n:02d}.webp").write_bytes(picture(n))
    return folder


def test_a_drawing_is_a_picture_on_white(tmp_path: Path) -> None:
    (tmp_path / "bar.SVG").write_text(SVG.format(""))
    (name, data), *more = side_members(tmp_path, ["bar.SVG"], "q", 8).items()
    assert (name, more) == ("q0.webp", [])
    pixels = decode_image(data, name)
    assert pixels[:, 9, 9].tolist() == [255, 0, 0]
    assert pixels[:, 9, -9].tolist() == [255, 255, 255]


def test_a_drawing_with_letters_is_a_fault_of_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "name.svg").write_text(SVG.format("<text>Peru</text>"))
    row = {"id": "a", "task": "t", "split": "train", "query_text": "x", "target_media": "name.svg"}
    table = write_csv(tmp_path / "t.csv", [row])
    words = [
        "folder",
        "--table",
        str(table),
        "--media",
        str(tmp_path),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--workers", "1"]) == 1
    told = capsys.readouterr()
    assert "row 1: target_media: name.svg holds letters, which need a font" in told.out
    assert "t.csv: 1 row, 1 fault in 1 row\n" in told.out


@pytest.mark.parametrize("place", [".", "flags", "deep/down"])
def test_a_wrong_folder_is_one_sentence_with_the_one_that_fits(
    media: Path, tmp_path: Path, place: str
) -> None:
    rows = list(read_table(write_csv(tmp_path / "t.csv", flag_rows())))
    check_folder(media, rows)

    wrong = {".": media.parent, "flags": media / "flags", "deep/down": tmp_path / "deep/down"}[
        place
    ]
    wrong.mkdir(parents=True, exist_ok=True)
    with pytest.raises(FileNotFoundError, match="^None of the table's media, such as ") as error:
        check_folder(wrong, rows)
    fits = re.findall("give --media (.*)[.]$", str(error.value))
    assert fits == ([] if place == "deep/down" else [str(media)])


def test_one_file_that_is_there_shows_that_the_folder_is_right(tmp_path: Path) -> None:
    (tmp_path / "flags").mkdir()
    (tmp_path / "flags/07.webp").symlink_to("nowhere")
    rows = list(read_table(write_csv(tmp_path / "t.csv", flag_rows())))
    check_folder(tmp_path, rows)


def test_absolute_paths_are_one_sentence(media: Path, tmp_path: Path) -> None:
    rows = [row | {"target_media": f"{media}/{row['target_media']}"} for row in flag_rows()]
    with pytest.raises(FileNotFoundError, match="by absolute paths, such as"):
        check_folder(media, list(read_table(write_csv(tmp_path / "t.csv", rows))))


@pytest.mark.parametrize("program", ["mmemb prepare", "python -m datamodules.prepare"])
def test_the_next_command_is_told_as_it_is_typed(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, program: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("MMEMB_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "my data"
    table = write_csv(tmp_path / "t.csv", flag_rows()[:4])
    words = ["folder", "--table", str(table), "--media", str(media), "--workers", "1"]
    words += ["--check", "--out", str(out)]

    # A check is followed by the same command without its flag, and that by training.
    assert main(words, program) == 0
    [line] = re.findall("^next: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert line.startswith(f"{program} folder --table ")
    again = shlex.split(line)[len(program.split()) :]
    assert main(again, program) == 0
    [line] = re.findall("^next: (.*)$", capsys.readouterr().out, re.MULTILINE)
    start = "mmemb" if program.startswith("mmemb") else "python -m experiments.run"
    training = f"{start} fit --config own/train --data_root '{out}' --encoder "
    assert line == training + "clip_vit_b32 --pretrained laion2b_s34b_b79k"

    # Whoever has the pocket has an encoder that needs no download.
    Path("data/pocket/models").mkdir(parents=True)
    assert main(again, program) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: {training}joint"

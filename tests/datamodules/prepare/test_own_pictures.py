"""A folder of pictures with captions beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules import PairDataModule
from datamodules.prepare.__main__ import main
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.tiny_data import picture


def write_pictures(folder: Path, num: int = 6) -> Path:
    """Pictures in folders of their own, half with `.txt`, half with `.json`."""
    for n in range(num):
        below = folder / f"part{n % 2}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{n:02d}.webp").write_bytes(picture(n))
        if n % 2:
            (below / f"{n:02d}.json").write_text(json.dumps({"text": f"flag {n}", "colour": "red"}))
        else:
            (below / f"{n:02d}.txt").write_text(f"\ufeffflag {n}\r\n")
    return folder


def prepare(folder: Path, out: Path, *more: str) -> int:
    command = ["folder", "--pictures", str(folder), "--out", str(out), "--split", "train"]
    return main([*command, "--workers", "1", *more])


@pytest.mark.parametrize("direction", [None, "text-to-picture", "picture-to-text"])
def test_pictures_with_captions_become_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], direction: str | None
) -> None:
    folder = write_pictures(tmp_path / "photos")
    assert (
        prepare(folder, tmp_path / "out", *(["--direction", direction] if direction else [])) == 0
    )
    assert "'caption' as" in capsys.readouterr().out

    data = PairDataModule(str(tmp_path / "out"), ["pairs/plain"], 6, 6, {}, 0)
    batch = next(iter(data.train_dataloader()))
    is_turned = direction == "picture-to-text"
    texts, pictures = (
        (batch.targets, batch.queries) if is_turned else (batch.queries, batch.targets)
    )
    assert sorted(side.text for side in texts) == [f"flag {n}" for n in range(6)]
    assert all(side.media and not side.text for side in pictures)


def test_other_keys_are_mapped(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos")
    for path in folder.rglob("*.txt"):
        path.with_suffix(".json").write_text('{"colour": "blue"}')
    out = tmp_path / "out"
    assert prepare(folder, out, "--map", "colour=query_text", "picture=target_media") == 0
    assert json.loads((out / "manifest.json").read_text())["counts"]["pairs/plain"] == 6


def test_what_lacks_its_other_half_is_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "photos")
    (folder / "part0/00.txt").unlink()
    (folder / "README.txt").write_text("words")
    (folder / "part1/01.png").write_bytes(picture(1))
    (folder / "part1/03.json").write_text("[1]")
    (folder / "part0/02.txt").write_bytes(b"caf\xe9")
    (folder / "part0/._04.webp").write_bytes(b"of macOS")
    (folder / "part1/05.json").write_text('{"colour": "red"}')
    assert prepare(folder, tmp_path / "out") == 1
    said = capsys.readouterr().out
    for fault in (
        "row 1: 'README.txt' has no picture of its name beside it",
        "row 2: 'part0/00.webp' has no caption: expected '00.txt or 00.json' beside it",
        "row 3: 'part0/02.txt': the .txt is no UTF-8",
        "row 5: 'part1/01.png' and 'part1/01.webp' would share a caption",
        "row 6: 'part1/03.json': Expected `object`, got `array`",
        "row 7: an empty side",
    ):
        assert fault in said, said
    assert prepare(folder, tmp_path / "out", "--on-error", "skip") == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [(("--media", "."), "--media is for --table alone"), ((), "holds no picture")],
)
def test_a_folder_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    (tmp_path / "photos").mkdir()
    assert prepare(tmp_path / "photos", tmp_path / "out", *more) == 1
    assert said in capsys.readouterr().err


def test_a_caption_never_names_another_picture(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos")
    said = {"caption": "flag 1", "picture": "part0/00.webp"}
    (folder / "part1/01.json").write_text(json.dumps(said))
    assert prepare(folder, tmp_path / "out") == 0

    index = ShardIndex.open(tmp_path / "out/candidates")
    assert len(index.entries) == 6, "each picture is a target"


def test_an_id_of_the_json_is_taken(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos")
    for n in range(6):
        (folder / f"part{n % 2}/{n:02d}.txt").unlink(missing_ok=True)
        said = {"caption": f"flag {n}", "number": f"n{n}"}
        (folder / f"part{n % 2}/{n:02d}.json").write_text(json.dumps(said))

    assert prepare(folder, tmp_path / "out", "--map", "number=id") == 0
    keys = {entry.key for entry in ShardIndex.open(tmp_path / "out/pairs/plain").entries}
    assert keys == {f"n{n}" for n in range(6)}


def test_two_captions_of_one_picture_are_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "photos")
    (folder / "part0/00.TXT").write_text("another flag")
    assert prepare(folder, tmp_path / "out") == 1
    assert "are both captions: remove one" in capsys.readouterr().out


@pytest.mark.parametrize("below", [".", "data/own"])
def test_nothing_is_written_into_the_folder_that_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    folder = write_pictures(tmp_path / "photos")
    before = sorted(folder.rglob("*"))
    assert prepare(folder, folder / below) == 1
    assert "which is read" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before

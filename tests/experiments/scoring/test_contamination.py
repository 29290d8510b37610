"""Copies of training data among test queries are found, however they are disguised; others not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.decode import decode_image
from datamodules.prepare.__main__ import main as prepare
from experiments.report.__main__ import main
from experiments.scoring.near_duplicates import looks, most_alike, nearest
from tests.fixtures.own_table import write_lines
from tests.fixtures.tiny_embedder import clip


def painting(number: int, size: int = 96) -> Image.Image:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **settings: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def test_another_size_and_compression_look_the_same() -> None:
    original = looks(decode_image(encoded(painting(0), "PNG"), ""))
    changed = [
        encoded(painting(0), "JPEG", quality=60),
        encoded(painting(0).resize((64, 64)), "PNG"),
        encoded(painting(0, 200), "WEBP", quality=50),
    ]
    copies = torch.stack([looks(decode_image(data, "")) for data in changed])
    others = torch.stack(
        [looks(decode_image(encoded(painting(n), "PNG"), "")) for n in range(1, 200)]
    )
    assert nearest(copies, original[None])[0].max() < 0.02
    assert nearest(others, original[None])[0].min() > 0.1


def test_the_nearest_is_found_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.scoring import near_duplicates

    torch.manual_seed(0)
    items, sources = torch.rand(5, 7), torch.rand(40, 7)
    unit = torch.nn.functional.normalize
    whole = nearest(items, sources), most_alike(unit(items), unit(sources))
    monkeypatch.setattr(near_duplicates, "_BLOCK_NUMBERS", 15)
    parts = nearest(items, sources), most_alike(unit(items), unit(sources))
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one[1], other[1])
        torch.testing.assert_close(one[0], other[0])
    assert torch.equal(whole[0][1], torch.cdist(items, sources).argmin(1))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten trained paintings and six test queries: three copies, a text in capitals, two new."""
    folder = tmp_path_factory.mktemp("contaminated")
    media = folder / "media"
    media.mkdir()
    rows = []
    for n in range(10):
        (media / f"{n}.png").write_bytes(encoded(painting(n), "PNG"))
        rows.append({"id": f"t{n}", "task": "paint", "split": "train", "query_media": f"{n}.png",
                     "query_text": f"who painted number {n}", "target_text": "me"})  # fmt: skip
    copies = {
        "copy": (encoded(painting(3), "PNG"), "a new text"),
        "jpeg": (encoded(painting(4), "JPEG", quality=70), "another"),
        "small": (encoded(painting(5).resize((48, 48)), "PNG"), "a third"),
        "words": (encoded(painting(20), "PNG"), "WHO painted   number 6"),
        "new1": (encoded(painting(21), "PNG"), "one"),
        "new2": (encoded(painting(22), "PNG"), "two"),
    }
    for name, (data, text) in copies.items():
        (media / f"{name}.{'jpg' if name == 'jpeg' else 'png'}").write_bytes(data)
        file = f"{name}.{'jpg' if name == 'jpeg' else 'png'}"
        rows.append({"id": name, "task": "paint", "split": "test", "query_media": file,
                     "query_text": text, "target_text": "me"})  # fmt: skip
    table = write_lines(folder / "t.jsonl", rows)
    command = ["folder", "--table", str(table), "--media", str(media), "--workers", "1"]
    assert prepare([*command, "--out", str(folder / "data")]) == 0
    return folder / "data"


def test_every_planted_copy_is_found_and_nothing_else(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip(tmp_path).save_pretrained(tmp_path / "backbone")
    main(["contamination", str(root), str(root), "--out", str(tmp_path),
          "--embedder", str(tmp_path / "backbone")])  # fmt: skip
    found = json.loads((tmp_path / "contamination.json").read_text())
    copies = {kind: {row["query"].split("/")[-1]: row["pair"].split("/")[-1] for row in rows}
              for kind, rows in found.items() if kind != "thresholds"}  # fmt: skip
    assert copies["same picture"] == {"copy": "t3"}
    assert copies["near picture"] == {"copy": "t3", "jpeg": "t4", "small": "t5"}
    assert copies["same text"] == {"words": "t6"}
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("| paint"))
    assert line.split("|")[2].strip() == "6"


def test_a_candidate_that_was_a_target_is_found(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    for n in range(3):
        (tmp_path / f"media/{n}.png").write_bytes(encoded(painting(n), "PNG"))
    rows = [
        {
            "id": f"r{n}",
            "task": "t",
            "split": split,
            "query_text": f"q{n}",
            "target_media": f"{p}.png",
        }
        for n, (split, p) in enumerate([("train", 0), ("test", 0), ("test", 1)])
    ]  # fmt: skip
    table, out = write_lines(tmp_path / "t.jsonl", rows), tmp_path / "data"
    command = ["folder", "--table", str(table), "--media", str(tmp_path / "media")]
    assert prepare([*command, "--workers", "1", "--out", str(out)]) == 0
    main(["contamination", str(out), str(out), "--out", str(tmp_path)])
    found = json.loads((tmp_path / "contamination.json").read_text())
    assert [row["pair"].split("/")[-1] for row in found["same picture"]] == ["r0"]
    assert "| t (candidates) | 2 " in (tmp_path / "contamination.md").read_text()


def test_wrong_roots_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no shards"):
        main(["contamination", str(tmp_path), str(root)])
    with pytest.raises(SystemExit, match=r"holds no tasks\.json"):
        main(["contamination", str(root), str(tmp_path)])

"""A tiny but complete data set in the pocket layout: made in milliseconds, used by all tests.

24 made-up countries with flags, capitals, continents and a three-frame clip each. Text, image,
image + text and video sides occur; questions have halves; queries exist for every part.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mmemb.files import write_atomically
from mmemb.records import (
    EvaluationTask,
    stable_hash,
    to_json,
)
from mmemb.shard_writer import (
    Sample,
    write_folder,
)
from mmemb.shards import ShardIndex

NUM_COUNTRIES = 24
PART_OF = ["train"] * 8 + ["val"] * 2 + ["gate"] * 4 + ["calibration"] * 4 + ["test"] * 6
CONTINENTS = ("north", "east", "south")
TASKS = (
    EvaluationTask("flag-name", "I-RET", "flags", seen_answer=True),
    EvaluationTask("flag-capital-t2i", "I-RET", "flags", think=True),
    EvaluationTask("flag-continent", "I-CLS", "continents"),
    EvaluationTask("clip-name", "V-RET", "clips", seen_answer=True),
)
FINGERPRINT = "tiny"


def write_tiny(root: Path | str) -> Path:
    """Writes the data set below `root` and returns it."""
    root = Path(root)
    tasks = [to_json(task) for task in TASKS]
    write_atomically(root / "tasks.json", json.dumps(tasks).encode())
    for folder, prefix, samples in (
        ("pairs/plain", "plain", _plain()),
        ("pairs/questions", "questions", _questions()),
        ("queries", "queries", _queries()),
        ("candidates", "candidates", _candidates()),
    ):
        write_folder(
            root / folder, samples, prefix=prefix, samples_per_shard=16, fingerprint=FINGERPRINT
        )
    return root


def write_broken(root: Path, folder: Path) -> Path:
    """A view of the data set in which the picture of query 00000058 is none."""
    (folder / "candidates").symlink_to(root / "candidates")
    (folder / "tasks.json").symlink_to(root / "tasks.json")
    index = ShardIndex.open(root / "queries")
    samples = []
    for entry in index.entries:
        members = index.read(entry)
        if entry.key == "00000058":
            members["q0.webp"] = b"junk"
        samples.append(Sample(entry.key, members, entry.meta))
    write_folder(folder / "queries", samples, prefix="q", samples_per_shard=16, fingerprint="")
    return folder


@cache
def picture(number: int, style: int = 0, frame: int = 0) -> bytes:
    """A flag of a country: two colours; a frame of its clip moves the bar."""
    first, second = (stable_hash(number, i) % 0xFFFFFF for i in range(2))
    image = Image.new("RGB", (24 + style, 16), f"#{first:06x}")
    left = 4 + number % 3 + 4 * frame
    ImageDraw.Draw(image).rectangle((left, 3, left + 6, 12), fill=f"#{second:06x}")
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def _plain() -> Iterator[Sample]:
    for n in range(NUM_COUNTRIES):
        yield _pair(
            f"flag-name-{_code(n)}",
            n,
            ("flag-name", "name", "flags", "flags"),
            text=f"the flag of {_name(n)}",
            target_name=_name(n),
            media={"t0.webp": picture(n)},
        )
        yield _pair(
            f"clip-name-{_code(n)}",
            n,
            ("clip-name", "clip", "clips", "clips"),
            text=f"{_name(n)} moving",
            target_name=_name(n),
            media={f"t0.{i:03d}.webp": picture(n, frame=i) for i in range(3)},
        )
        if PART_OF[n] == "train":
            yield _pair(
                f"flag-continent-{_code(n)}",
                n,
                ("flag-continent", "continent", "continent", "continents"),
                text="Which continent?",
                target_name=_continent(n),
                target_text=_continent(n),
                media={"q0.webp": picture(n)},
            )


def _questions() -> Iterator[Sample]:
    for n in (n for n in range(NUM_COUNTRIES) if PART_OF[n] == "train"):
        for wording, text in enumerate(("the flag of the country of {}", "{} is its capital")):
            yield _pair(
                f"flag-capital-t2i-{_code(n)}-{wording}",
                n,
                ("flag-capital-t2i", "capital", "questions", "flags"),
                text=text.format(_capital(n)),
                target_name=_name(n),
                media={"t0.webp": picture(n)},
                half="ab"[n % 2],
            )


def _queries() -> Iterator[Sample]:
    rows = (row for n in range(NUM_COUNTRIES) if PART_OF[n] != "train" for row in _queries_about(n))
    for number, (n, (task, fact, gallery), text, right, media) in enumerate(rows):
        data = _labels(n, task, fact, PART_OF[n])
        body = {"instruction": "Find it.", "text": text, "relevance": {right: 1.0}}
        meta = data | {"gallery": gallery}
        yield Sample(f"{number:08d}", _members(data | body | {"answers": [_name(n)]}, media), meta)


def _queries_about(n: int) -> Iterator[tuple[int, tuple[str, str, str], str, str, dict]]:
    name, flag = _name(n), {"q0.webp": picture(n, style=1)}
    capital = f"the flag of the country of {_capital(n)}"
    yield n, ("flag-name", "name", "flags"), f"the flag of {name}", name, {}
    yield n, ("flag-capital-t2i", "capital", "flags"), capital, name, {}
    continent = ("flag-continent", "continent", "continents")
    yield n, continent, "Which continent?", _continent(n), flag
    yield n, ("clip-name", "clip", "clips"), f"{name} moving", name, {}


def _candidates() -> Iterator[Sample]:
    rows = [("flags", _name(n), "", {"c0.webp": picture(n, 1)}) for n in range(NUM_COUNTRIES)]
    rows += [("continents", name, name, {}) for name in CONTINENTS]
    rows += [
        ("clips", _name(n), "", {f"c0.{i:03d}.webp": picture(n, 1, i) for i in range(3)})
        for n in range(NUM_COUNTRIES)
    ]
    for number, (gallery, name, text, media) in enumerate(rows):
        data = {"name": name, "gallery": gallery, "instruction": "", "text": text}
        meta = {"gallery": gallery, "name": name}
        yield Sample(f"{number:08d}", _members(data, media), meta)


def _pair(
    key: str,
    n: int,
    labels: tuple[str, str, str, str],
    *,
    text: str,
    target_name: str,
    media: dict[str, bytes],
    target_text: str = "",
    half: str = "",
) -> Sample:
    task, fact, group, gallery = labels
    meta = _labels(n, task, fact, "train") | {"group": group}
    body = {
        "gallery": gallery,
        "instruction": "Find it.",
        "text": text,
        "target_instruction": "",
        "target_text": target_text,
        "target_name": target_name,
        "positives": [target_name],
        "answers": [target_name],
    }
    return Sample(key, _members(meta | body, media), meta | {"half": half})


def _labels(n: int, task: str, fact: str, part: str) -> dict[str, str]:
    concept = f"country:{_code(n)}"
    return {"task": task, "part": part, "concept": concept, "fact": f"{concept}/{fact}"}


def _members(data: dict[str, Any], media: dict[str, bytes]) -> dict[str, bytes]:
    return {"json": json.dumps(data, sort_keys=True).encode(), **media}


def _code(n: int) -> str:
    return f"{n:02d}"


def _name(n: int) -> str:
    return f"country-{_code(n)}"


def _capital(n: int) -> str:
    return f"capital-{_code(n)}"


def _continent(n: int) -> str:
    return CONTINENTS[n % 3]

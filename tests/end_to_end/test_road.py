"""docs/road.md: its commands and scripts, in their order, in a folder that is no checkout.

The pictures are drawings of the prepared pocket. What a command prints as `next:` stands on the
page, so it is run as it was printed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from experiments.bench.first_metric import POCKET, write_pictures
from tests.fixtures.paths import REPO
from tests.fixtures.tiny_backbones import build_worded_clip
from tests.fixtures.wheel import Installed

PAGE = REPO / "docs/road.md"
NUM_PICTURES = 120

NUMBER = re.compile(r"\d[\d.e-]*")


@dataclass(frozen=True)
class Step:
    """A command of the page (one line), or a script (several)."""

    text: str

    @property
    def is_command(self) -> bool:
        return self.text.startswith("mmemb ")


def steps() -> Iterator[Step]:
    """Yields what the page tells to type, from its beginning to its end."""
    pattern = re.compile(r"^    (mmemb [^\n]*)$|^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for match in pattern.finditer(PAGE.read_text(encoding="utf-8")):
        yield Step(match[1] or match[2])


def write_clip(folder: Path) -> None:
    """Writes `clip.yaml`, which describes a small CLIP of random weights, and its architecture."""
    build_worded_clip(folder)
    arguments = {"model": "words.json"}
    backbone = {"class_path": "mmemb.backbones.OpenClipBackbone", "init_args": arguments}
    settings = {"model": {"init_args": {"backbone": backbone}}}
    (folder / "clip.yaml").write_text(yaml.safe_dump(settings))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not (REPO / POCKET / "manifest.json").is_file(), reason="needs the pocket")
def test_the_page_is_a_road(tmp_path: Path) -> None:
    installed = Installed.into(tmp_path / "installed")
    work = tmp_path / "work"
    (work / "data").mkdir(parents=True)
    (work / POCKET).symlink_to((REPO / POCKET).resolve())
    write_pictures(work / "photos", NUM_PICTURES, REPO / POCKET)
    (work / "queries.txt").write_text("".join(f"thing number {n}\n" for n in range(40)))
    write_clip(work)

    def run(step: Step) -> str:
        if step.is_command:
            done = installed.mmemb(shlex.split(step.text)[1:], work)
        else:
            done = subprocess.run(
                [sys.executable, "-P", "-c", step.text],
                cwd=work,
                env=os.environ | {"PYTHONPATH": str(installed.site), "PYTHONSAFEPATH": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, f"{step.text}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    road, printed = list(steps()), {}
    told = []
    for step in road:
        output = printed[step.text] = run(step)
        told += re.findall(r"^next: (.*)$", output, re.MULTILINE)
        if step.text.startswith("mmemb report build"):
            told += json.loads((work / "runs/own/report.json").read_text())["commands"].values()

    # What is told to come next stands on the page as it was printed, so it has been run.
    typed = {step.text for step in road}
    assert len(told) >= 5
    assert {command for command in told if command not in typed} == set()

    # The metric of the page, and the chance level beside it.
    test = next(text for command, text in printed.items() if command.startswith("mmemb test"))
    assert re.search(r"\| pairs +\| +\d+ +\| .* \| +\d+\.\d % ", test), test

    rows = json.loads((work / "runs/own/report.json").read_text())["first"]["rows"]
    assert list(rows) == ["backbone as it came", "trained", "gated"]

    start = "mmemb search --model runs/own/train"
    search, with_picture = (found for typed, found in printed.items() if typed.startswith(start))
    assert "depth: direct" in search
    assert re.search(r"^ +1 +1\.0000 +\S*banana", with_picture, re.MULTILINE), "it finds itself"

    difference = printed[road[-1].text].partition("largest difference:")[2]
    assert float(NUMBER.search(difference)[0]) < 1e-5

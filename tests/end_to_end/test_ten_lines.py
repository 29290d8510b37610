"""The script of docs/python.md, with the wheel installed, in a folder that is no checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.paths import REPO
from tests.fixtures.tiny_clips import write_video
from tests.fixtures.tiny_gated import tiny_backbone, tiny_gated
from tests.fixtures.wheel import Installed

PAGE = REPO / "docs/python.md"
TEXTS = [f"the flag of {name}" for name in ("Peru", "Chile", "Poland")]


@pytest.mark.slow
def test_the_script_gives_the_vectors_of_the_checkout_to_the_bit(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in script.splitlines() if line]) <= 10

    work = tmp_path / "work"
    work.mkdir()
    # The gate wants to reason about every text, and the writer knows Peru alone.
    tiny_gated(tiny_backbone(), tmp_path, TEXTS, bias=9.0).save_pretrained(work / "release")
    Image.effect_noise((40, 30), 64).convert("RGB").save(work / "picture.png")
    write_video(work / "clip.mp4")
    (work / "script.py").write_text(script)

    installed = Installed.into(tmp_path / "installed")
    vectors, printed = [], []
    for home in (installed.site, REPO):
        done = subprocess.run(
            [sys.executable, "-P", "script.py"],
            cwd=work,
            env=os.environ | {"PYTHONPATH": str(home), "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        vectors.append(np.load(work / "vectors.npy"))
        printed.append(re.sub(r"\d+ ms", "", done.stdout))

    assert vectors[0].shape == (4, 64)
    assert np.array_equal(*vectors)
    assert printed[0] == printed[1]
    assert "4 x 64; 3 direct, 1 full" in printed[0], "the budget is spent on the text"

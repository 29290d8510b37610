"""A stage that runs again says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from experiments.cli.earlier_run import made_anew

FORMER = {
    "model": {"class_path": "lightning_modules.ContrastiveEmbedder", "init_args": {"lr": 0.1}},
    "trainer": {"max_steps": 20, "default_root_dir": "runs/own/1"},
}


@pytest.fixture
def link(tmp_path: Path) -> Path:
    run = tmp_path / "1-train"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(FORMER))
    (tmp_path / "train").symlink_to(run.name)
    return tmp_path / "train"


def test_the_settings_that_differ_are_named(link: Path) -> None:
    trainer = {"max_steps": 100, "default_root_dir": "runs/own/2"}
    line = made_anew(link, yaml.safe_dump(FORMER | {"trainer": trainer}))
    assert "(trainer.max_steps 20, now 100), so it is made again" in line
    assert line.endswith("The former run stays in 1-train.")


def test_many_differences_are_counted(link: Path) -> None:
    new = {"model": FORMER["model"], "trainer": {f"k{n}": n for n in range(5)}}
    assert "; and 3 more)" in made_anew(link, yaml.safe_dump(new))


def test_nothing_is_said_where_nothing_differs_or_nothing_was(link: Path) -> None:
    assert made_anew(link, yaml.safe_dump(FORMER)) == ""
    assert made_anew(link.parent / "other", yaml.safe_dump(FORMER)) == ""

"""The wheel, from folders that are no checkout: commands, configs, data, classes of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from experiments.rooms import ROOMS
from tests.fixtures.paths import REPO
from tests.fixtures.tiny_experiment import SMALL, SMALL_FIT, STAGES, merged
from tests.fixtures.wheel import Installed

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("installed")]

OWN_CLASS = """
from lightning.pytorch import Callback


class Hello(Callback):
    def on_train_start(self, trainer, pl_module):
        print(f"hello from rank {trainer.global_rank} in {__file__}")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed.into(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The user's own folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def test_the_wheel_holds_every_file_of_the_rooms_and_no_other(installed: Installed) -> None:
    def files(home: Path) -> set[str]:
        paths = (path for room in ROOMS for path in (home / room).rglob("*.*"))
        return {str(p.relative_to(home)) for p in paths if p.is_file() and p.suffix != ".pyc"}

    assert files(installed.site) == files(REPO)
    tops = {path.name for path in installed.site.iterdir()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {*ROOMS, "bin"}


def test_the_list_of_commands(installed: Installed, work: Path) -> None:
    done = installed.mmemb([], work)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n  search " in done.stdout
    assert installed.mmemb(["--help"], work).stdout == done.stdout


def test_two_ranks_train_at_another_root_with_a_class_of_the_working_folder(
    installed: Installed, tiny_root: Path, work: Path, tmp_path: Path
) -> None:
    (tmp_path / "big/data").mkdir(parents=True)
    (tmp_path / "big/data/pocket").symlink_to(tiny_root)
    (work / "mine.py").write_text(OWN_CLASS)
    own = merged(
        merged(SMALL, SMALL_FIT), {"trainer": {"callbacks+": [{"class_path": "mine.Hello"}]}}
    )
    (work / "small.yaml").write_text(yaml.safe_dump(own))

    configs = ["pocket/trunk", "backbone/clip_tiny", "small", "strategy/ddp"]
    words = [word for name in configs for word in ("--config", name)]
    arguments = ["fit", *words, "--trainer.accelerator", "cpu", "--root", "../big"]
    done = installed.mmemb(arguments, work)

    assert done.returncode == 0, done.stderr[-3000:]
    # Substrings: two ranks may write into one line.
    assert all(f"hello from rank {rank} in {work}/mine.py" in done.stdout for rank in (0, 1))
    assert f"pocket/trunk: {installed.site}/experiments/configs" in done.stderr

    # All that was made lies at the root; the record names no place of the package.
    assert {path.name for path in work.iterdir()} <= {"mine.py", "small.yaml", "__pycache__"}
    run = tmp_path / "big/runs/pocket/trunk"
    assert json.loads((run / "summary.json").read_text())["metrics"]["train/loss"] > 0
    config = (run / "config.yaml").read_text()
    assert "experiments/configs/backbone/clip_tiny.json" in config
    assert str(installed.site) not in config


def test_a_pipeline_of_the_package_runs_from_an_empty_folder(
    installed: Installed, work: Path
) -> None:
    done = installed.mmemb(["pipeline", "pocket/pipeline", "--dry-run"], work)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(f"{name}: would run" in done.stdout for name in STAGES)
    assert not list(work.iterdir())


def test_a_module_of_a_rooms_name_is_refused_in_one_sentence(
    installed: Installed, work: Path
) -> None:
    (work / "experiments").mkdir()
    assert installed.mmemb([], work).returncode == 0, "a plain folder hides nothing"
    (work / "callbacks.py").write_text("")
    done = installed.mmemb(["search"], work)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {work}/callbacks.py has the name of callbacks")
    assert len(done.stderr.splitlines()) == 1

"""Files, folders and links: the old or the new, whole, whoever writes and whenever it is killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import pytest

from experiments.runs.folders import is_published, publish
from mmemb.storage import files
from mmemb.storage.files import (
    is_temporary,
    link_atomically,
    whole_file,
    whole_folder,
    write_atomically,
)
from tests.fixtures.paths import REPO


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed(write: Callable[[], None]) -> None:
    """Runs in a forked process that does not survive it; what it holds is not cleaned up."""
    process = get_context("fork").Process(target=write)
    process.start()
    process.join()
    assert process.exitcode == 9


@contextmanager
def dies_at(function: str, call: int = 1, after: bool = False) -> Iterator[None]:
    """The process ends at the n-th call of `os.FUNCTION`: before it, or after it."""
    usual, calls = getattr(os, function), []

    def cut(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == call and not after:
            os._exit(9)
        usual(*arguments)
        if len(calls) == call:
            os._exit(9)

    with patch.object(os, function, cut):
        yield


def write_often(path: Path, letter: bytes, failures: Path) -> None:
    try:
        for _ in range(40):
            write_atomically(path, letter * 5000)
    except OSError:
        failures.touch()


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    folder, failures = tmp_path / "out", tmp_path / "failed"
    context = get_context("fork")
    writers = [
        context.Process(target=write_often, args=(folder / "a", letter, failures))
        for letter in (b"x", b"y")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures.exists()
    assert names(folder) == ["a"]
    assert (folder / "a").read_bytes() in {b"x" * 5000, b"y" * 5000}


@pytest.mark.parametrize(("after", "found"), [(False, "old"), (True, "new")])
def test_a_killed_writer_leaves_the_old_file_or_the_new(
    tmp_path: Path, after: bool, found: str
) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def write() -> None:
        with dies_at("replace", after=after):
            write_atomically(path, b"new")

    killed(write)
    assert path.read_bytes() == found.encode()
    left = [entry for entry in tmp_path.iterdir() if entry != path]
    assert all(is_temporary(entry) for entry in left)
    files._remove_leftovers.cache_clear()  # as in a process of its own
    write_atomically(tmp_path / "b", b"")
    assert names(tmp_path) == ["a", "b"], "the next writer cleans up"


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as temporary:
        temporary.write_text("a")
        files._remove_leftovers.cache_clear()
        write_atomically(tmp_path / "b", b"")
        assert temporary.exists()
    assert names(tmp_path) == ["a", "b"]


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def fail() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("fold")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    no_space = OSError("no space is left")
    with patch.object(os, "replace", side_effect=no_space), pytest.raises(OSError, match="space"):
        write_atomically(path, b"new")
    assert (names(tmp_path), path.read_bytes()) == (["a"], b"old")


def write_model(folder: Path, value: str, keep_others: bool = False) -> None:
    with whole_folder(folder, keep_others) as fresh:
        (fresh / "weights.pt").write_text(value)
        (fresh / "config.json").write_text(value)


def read_model(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in ("weights.pt", "config.json")}


@pytest.mark.parametrize(
    ("call", "after", "found"),
    [(1, False, "old"), (2, False, "old"), (2, True, None), (3, False, None), (3, True, "new")],
)
def test_files_of_a_folder_never_mix(
    tmp_path: Path, call: int, after: bool, found: str | None
) -> None:
    """The first rename is tried upon the old folder, which moves aside by the second."""
    folder = tmp_path / "gate"
    write_model(folder, "old")

    def write() -> None:
        with dies_at("rename", call, after):
            write_model(folder, "new")

    killed(write)
    assert (read_model(folder) if folder.exists() else None) == (found and {found})
    files._remove_leftovers.cache_clear()
    write_model(folder, "again")
    assert read_model(folder) == {"again"}
    assert names(tmp_path) == ["gate"]


def test_a_folder_keeps_what_its_writer_does_not_know_if_asked(tmp_path: Path) -> None:
    folder = tmp_path / "gate"
    write_model(folder, "old")
    (folder / "notes").mkdir()
    (folder / "notes/a").write_text("mine")
    (tmp_path / "link").symlink_to("gate")
    write_model(tmp_path / "link", "new", keep_others=True)
    assert read_model(folder) == {"new"}
    assert (folder / "notes/a").read_text() == "mine"
    assert (tmp_path / "link").is_symlink()
    write_model(folder, "new")
    assert names(folder) == ["config.json", "weights.pt"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    write_model(tmp_path / "gate", "old")

    def fail() -> None:
        with whole_folder(tmp_path / "gate") as fresh:
            (fresh / "weights.pt").write_text("fold")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert read_model(tmp_path / "gate") == {"old"}
    assert names(tmp_path) == ["gate"]


def test_the_working_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="name a folder below it"), whole_folder("."):
        pass


@pytest.mark.parametrize(("after", "found"), [(False, "old"), (True, "new")])
def test_a_link_points_at_the_old_or_the_new(tmp_path: Path, after: bool, found: str) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    link_atomically(tmp_path / "link", tmp_path / "old")

    def move() -> None:
        with dies_at("replace", after=after):
            link_atomically(tmp_path / "link", tmp_path / "new")

    killed(move)
    assert os.readlink(tmp_path / "link") == found
    link_atomically(tmp_path / "link", tmp_path / "new")
    assert os.readlink(tmp_path / "link") == "new"


REPORT = ("report.md", "report.json")


def publish_value(root: Path, value: str) -> None:
    with whole_folder(root / value) as fresh:
        for name in REPORT:
            (fresh / name).write_text(value)
    publish(root / value, root / "report", REPORT)


@pytest.mark.parametrize(
    ("before", "call", "after"),
    [
        ("a link", 1, False),
        ("a link", 1, True),
        *(("links of their own", call, False) for call in (1, 2, 3)),
        ("links of their own", 3, True),
    ],
)
def test_files_that_are_shown_together_change_together(
    tmp_path: Path, before: str, call: int, after: bool
) -> None:
    """Whenever it is killed: what is not published whole is not taken for the newest."""
    if before == "a link":
        publish_value(tmp_path, "old")
    else:  # as earlier versions made them
        write_model(tmp_path / "old", "")
        for name in REPORT:
            (tmp_path / "old" / name).write_text("old")
            link_atomically(tmp_path / name, tmp_path / "old" / name)
        assert not is_published(tmp_path / "report", REPORT)

    def move() -> None:
        with dies_at("replace", call, after):
            publish_value(tmp_path, "new")

    killed(move)
    if is_published(tmp_path / "report", REPORT):
        assert len({(tmp_path / name).read_text() for name in REPORT}) == 1
    publish_value(tmp_path, "again")
    assert is_published(tmp_path / "report", REPORT)
    assert {(tmp_path / name).read_text() for name in REPORT} == {"again"}


ROOMS = ("mmemb", "datamodules", "lightning_modules", "callbacks", "experiments")
WRITING = re.compile(
    r"write_text\(|write_bytes\(|open\([^)\n]*[\"'][wax]b?[\"']|torch\.save\(|save_file\(|np\.save\("
    r"|savefig\(|os\.(replace|rename|link|symlink)\(|symlink_to\(|copytree\(|copyfile\w*\("
    r"|shutil\.(copy|move)|json\.dump\("
)
WHOLE = re.compile(r"\b(fresh|temporary|buffer)\b")
"""Names of what becomes whole at the end of a block, or stays in memory."""

WRITES_OTHERWISE = {
    "mmemb/storage/files.py": "the one place that renames",
    "mmemb/storage/shard_writer.py": "a tar in `whole_file`",
    "mmemb/backbones/open_clip.py": "within `Backbone.save_pretrained`, or a temporary folder",
    "mmemb/backbones/tower.py": "within `Backbone.save_pretrained`",
    "mmemb/rationales/writers/loading.py": "in `save_pretrained` of AdaptiveEmbedder",
    "datamodules/prepare/pocket/download.py": "a file of `working_folder`, synced, renamed",
    "datamodules/prepare/pocket/models.py": "within `whole_folder`",
    "callbacks/checkpoint_io.py": "the checkpoint before, within `whole_file`",
    "experiments/planted/figure.py": "a picture in memory",
    "experiments/export/published_files.py": "within `whole_folder` of the export",
    "experiments/report/pages/figure.py": "within `whole_folder` of the report",
    "experiments/export/open_clip_folder.py": "within `whole_folder` of the export",
    "experiments/export/sentence_folder.py": "within `whole_folder` of the export",
    "experiments/run.py": "a log in the folder of temporary files",
}
"""File -> why what it writes without a name of `WHOLE` is never half there."""


def test_whatever_is_written_is_whole_or_has_a_reason() -> None:
    wrong, odd = [], set()
    for path in (path for room in ROOMS for path in sorted((REPO / room).rglob("*.py"))):
        name = path.relative_to(REPO).as_posix()
        for line in path.read_text(encoding="utf-8").splitlines():
            if not WRITING.search(line) or WHOLE.search(line) or "/bench" in name:
                continue
            odd.add(name)
            if name not in WRITES_OTHERWISE:
                wrong.append(f"{name}: {line.strip()}")
    assert not wrong, "use mmemb.storage.files, or say why not"
    assert odd == set(WRITES_OTHERWISE)


@pytest.mark.slow
def test_leftovers_of_a_process_that_was_killed_from_outside_go(tmp_path: Path) -> None:
    code = (
        "import os, signal; from mmemb.storage.files import whole_file\n"
        "with whole_file('a') as t: t.write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    (left,) = tmp_path.iterdir()
    assert is_temporary(left)
    write_atomically(tmp_path / "b", b"")
    assert names(tmp_path) == ["b"]

"""Names from data as names of files: nothing escapes, nothing collides, ordinary ones stay."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datamodules.prepare.mmeb_train import sources as mmeb_train
from datamodules.prepare.pocket import full_tasks as pocket_full
from datamodules.prepare.pocket import tasks as pocket
from mmemb.benchmarks import mmeb_v2
from mmemb.records.file_names import check_apart, check_plain, file_name, name_of_file

HARD = [
    "", "%", ".", "..", "../../escape", "/etc/passwd", "docs/x", "docs\\x", "a\0b", "CON", "con.x",
    "COM1 .x", "nul", " a ", "a.", "a ", "-rf", "%2F", "%2f", "50%", "a\nb", "C:x", "caf\xe9",
    "cafe\N{COMBINING ACUTE ACCENT}", "\N{LINE SEPARATOR}", "*?", "~", "$HOME",
]  # fmt: skip
"""Each of them is somewhere no name of a file, or another one."""

NAMES = st.one_of(
    st.sampled_from(HARD),
    st.text("%2Ff.con \\/\0e\xe9\N{COMBINING ACUTE ACCENT}", max_size=12),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=16),
)


@given(name=NAMES)
def test_a_name_comes_back_and_leads_nowhere(name: str) -> None:
    file = file_name(name)
    assert name_of_file(file) == name

    # One component of a path, here and under Windows, that no file system writes otherwise.
    assert os.path.basename(os.path.normpath(f"folder/{file}")) == file
    assert Path("folder", file).parent == Path("folder")
    assert PureWindowsPath("folder", file).parts == ("folder", file)
    assert file.isascii()
    assert file.isprintable()
    assert not set('<>:"/\\|?*') & set(file)
    assert file[0] not in ". "
    assert file[-1] not in ". "
    assert not re.match(r"(con|prn|aux|nul|com\d|lpt\d) *(\.|$)", file, re.IGNORECASE)


@given(one=NAMES, two=NAMES)
@example(one="caf\xe9", two="cafe\N{COMBINING ACUTE ACCENT}")
@example(one="", two="%")
def test_two_names_never_have_one_file(one: str, two: str) -> None:
    files = [unicodedata.normalize("NFC", file_name(name)) for name in (one, two)]
    assert (files[0] == files[1]) == (one == two)


@given(file=st.text("aF%25./", max_size=8))
def test_no_two_files_stand_for_one_name_but_a_foreign_one(file: str) -> None:
    name = name_of_file(file)
    assert name == file or file_name(name) == file


def test_names_of_known_tasks_are_their_files() -> None:
    tasks = [*mmeb_v2.TASKS, *pocket.TASKS, *pocket_full.TASKS]
    names = [task.name for task in tasks] + [source.name for source in mmeb_train.MIXTURE]
    assert [file_name(name) for name in names] == names
    assert file_name("my task, v1.2 (a-b_c)") == "my task, v1.2 (a-b_c)"


def test_a_name_without_a_file_is_refused() -> None:
    assert len(file_name("x" * 200)) == 200
    for name in ("x" * 201, "\xe9" * 34):
        with pytest.raises(ValueError, match="too long for the name of a file"):
            file_name(name)
    with pytest.raises(ValueError, match=r"'a\\ud83d' is no valid Unicode"):
        file_name("a\ud83d")


def test_names_that_differ_in_capitals_alone_are_refused() -> None:
    check_apart(["a", "b", "con", "CON"], "tasks.json")
    with pytest.raises(ValueError, match=r"^tasks.json: 'Docs' and 'docs' differ in capital"):
        check_apart(["Docs", "a", "docs"], "tasks.json")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", ".git", "a\nb", "x" * 201])
def test_a_name_that_leads_to_another_folder_is_not_plain(name: str) -> None:
    with pytest.raises(ValueError, match=r"^name is .*: expected the name of one folder"):
        check_plain(name, "name")
    check_plain("gain-30 k\xf6ln", "name")

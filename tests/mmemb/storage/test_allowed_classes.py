"""No folder has a class of another package imported, but for installed and allowed ones."""

from __future__ import annotations

import json
import site
import sys
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from mmemb.backbones import load_backbone
from mmemb.backbones.base import check_loads_again, saved_spec
from mmemb.gate.heads import MlpDepthHead, check_head, load_head, save_head
from mmemb.rationales import load_saved_writer, load_writer, save_writer
from mmemb.rationales.writers.loading import check_writer
from mmemb.records.inputs import Side
from mmemb.storage.allowed_classes import (
    allowed_classes,
    allowing_classes,
    installed_classes,
)
from mmemb.storage.trust import Permissions
from tests.fixtures.own_package import modules, write_metadata

WORDS, WRITER, HEAD = (
    "hashed_words.HashedWords",
    "longest_word.LongestWordWriter",
    "plain_head.PlainHead",
)
CANARY = "\n\nfrom pathlib import Path\nPath(__file__ + '.ran').touch()\n"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder on the path of Python with modules that leave a mark when they run."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name, text in modules().items():
        (folder / f"{name}.py").write_text(text + CANARY, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in modules():
        sys.modules.pop(name, None)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in place of that where packages are installed."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(folder)])
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    installed_classes.cache_clear()
    yield folder
    installed_classes.cache_clear()


def made(path: str, *arguments: Any) -> Any:
    """An object of an allowed class; its module is as new afterwards."""
    home, _, name = path.rpartition(".")
    thing = getattr(import_module(home), name)(*arguments)
    del sys.modules[home]
    Path(f"{home}.py.ran").unlink()
    return thing


def save_backbone(folder: Path) -> Callable[[], Any]:
    made(WORDS).save_pretrained(folder)
    return lambda: load_backbone(str(folder))


def save_gate(folder: Path) -> Callable[[], Any]:
    save_head(made(HEAD, 4), folder)
    return lambda: load_head(folder)


def save_gates_writer(folder: Path) -> Callable[[], Any]:
    folder.mkdir()
    settings = save_writer(made(WRITER), folder, "writers/1")
    return lambda: load_saved_writer(settings, folder, Permissions(), f"{folder}: writers.full")


@pytest.mark.parametrize(
    ("path", "save"),
    [(WORDS, save_backbone), (HEAD, save_gate), (WRITER, save_gates_writer)],
    ids=["backbone", "head", "writer"],
)
def test_a_class_is_imported_only_if_it_is_allowed(
    path: str, save: Callable[[Path], Callable[[], Any]], elsewhere: Path, tmp_path: Path
) -> None:
    load, ran = save(tmp_path / "saved"), elsewhere / f"{path.partition('.')[0]}.py.ran"
    with pytest.raises(ValueError, match=rf"names '{path}'.*--allow-class {path}\).*entry point"):
        load()
    with allowing_classes(["hashed_words.Other"]), pytest.raises(ValueError, match="--allow-class"):
        load()
    assert not ran.exists()
    assert path.partition(".")[0] not in sys.modules

    with allowing_classes([path]):
        assert type(load()).__name__ == path.partition(".")[2]
    assert ran.exists()
    with pytest.raises(ValueError, match="--allow-class"):
        load()  # it is no longer allowed


def test_loaders_take_it_as_an_argument(elsewhere: Path, tmp_path: Path) -> None:
    save_backbone(tmp_path / "backbone")
    sides = [Side("a red flag"), Side("peru")]
    backbone = load_backbone(str(tmp_path / "backbone"), allow_classes=[WORDS])
    assert allowed_classes() == frozenset()
    own = type(backbone).from_pretrained(tmp_path / "backbone")  # whose caller names the class
    assert torch.equal(own.encode(sides), backbone.encode(sides))
    save_gate(tmp_path / "gate")
    assert load_head(tmp_path / "gate", allow_classes=[HEAD])(torch.ones(1, 4)).shape == (1, 2)


def test_an_installed_package_counts_and_is_not_imported_before(
    elsewhere: Path, places: Path, tmp_path: Path
) -> None:
    load = save_backbone(tmp_path / "saved")
    write_metadata(places, "words-1", "mmemb.backbones", {"W": "hashed_words:HashedWords [extra]"})
    write_metadata(places, "others-1", "console_scripts", {"x": "longest_word:LongestWordWriter"})
    assert installed_classes() == {WORDS}
    assert not list(elsewhere.glob("*.ran"))
    assert type(load()).__name__ == "HashedWords"
    with pytest.raises(ValueError, match="--allow-class"):
        load_writer({"class_path": WRITER})


@pytest.mark.parametrize("kind", ["dist-info", "egg-info"])
def test_metadata_in_the_working_folder_do_not_count(
    kind: str, elsewhere: Path, places: Path, tmp_path: Path
) -> None:
    """A folder that was downloaded could bring them along."""
    load, points = save_backbone(tmp_path / "saved"), {"W": "hashed_words:HashedWords"}
    write_metadata(elsewhere, "words-1", "mmemb.backbones", points)
    (elsewhere / "words-1.dist-info").rename(elsewhere / f"words-1.{kind}")
    if kind == "egg-info":
        (elsewhere / "words-1.egg-info/METADATA").rename(elsewhere / "words-1.egg-info/PKG-INFO")
    assert metadata.entry_points(group="mmemb.backbones"), "Python itself believes them"
    assert installed_classes() == frozenset()
    with pytest.raises(ValueError, match="--allow-class"):
        load()
    assert not list(elsewhere.glob("*.ran"))


@pytest.mark.parametrize("broken", [b"[mmemb.backbones]\nWords\n", b"\xff\xfe[x]\n"])
def test_a_package_with_broken_metadata_concerns_no_other_one(places: Path, broken: bytes) -> None:
    write_metadata(places, "broken-1", "mmemb.backbones", {})
    (places / "broken-1.dist-info/entry_points.txt").write_bytes(broken)
    write_metadata(places, "words-1", "mmemb.backbones", {"W": "hashed_words:HashedWords"})
    assert installed_classes() == {"hashed_words.HashedWords"}


@pytest.mark.parametrize("path", ["Words", "a/b.Words", "a..B", "f.<locals>.B", ""])
def test_what_is_no_path_of_a_class_is_refused(path: str) -> None:
    with (
        pytest.raises(ValueError, match=r"expected package\.module\.Class"),
        allowing_classes([path]),
    ):
        pass


def test_a_class_that_is_gone_is_one_sentence(elsewhere: Path, tmp_path: Path) -> None:
    save_backbone(tmp_path / "saved")
    (elsewhere / "hashed_words.py").unlink()
    with pytest.raises(ValueError, match=rf"'{WORDS}', which is allowed, but cannot be imported"):
        load_backbone(str(tmp_path / "saved"), allow_classes=[WORDS])


def test_a_class_of_another_kind_is_none(tmp_path: Path) -> None:
    save_head(MlpDepthHead(4), tmp_path / "gate")
    (tmp_path / "gate/config.json").write_text(json.dumps({"class": "fractions.Fraction"}))
    with pytest.raises(ValueError, match="names the depth head 'fractions.Fraction'"):
        load_head(tmp_path / "gate", allow_classes=["fractions.Fraction"])
    (tmp_path / "config.json").write_text(json.dumps({"class_path": "fractions.Fraction"}))
    with allowing_classes(["fractions.Fraction"]):
        with pytest.raises(ValueError, match="is no backbone of this version"):
            saved_spec(tmp_path)
        with pytest.raises(ValueError, match="names no rationale writer"):
            load_writer({"class_path": "fractions.Fraction"})


def test_a_fit_can_ask_before_it_begins(elsewhere: Path) -> None:
    backbone, head, writer = made(WORDS), made(HEAD, 4), made(WRITER)
    checks: list[tuple[Callable[[Any], None], Any, str]] = [
        (check_loads_again, backbone, WORDS),
        (check_head, head, HEAD),
        (check_writer, writer, WRITER),
    ]
    for check, thing, path in checks:
        with pytest.raises(ValueError, match=rf"'{path}'.*--allow-class {path}"):
            check(thing)
        with allowing_classes([path]):
            check(thing)


def test_a_class_of_a_function_or_script_is_never_allowed(elsewhere: Path) -> None:
    hashed_words = import_module("hashed_words").HashedWords
    inner = type("Inner", (hashed_words,), {"__qualname__": "f.<locals>.Inner"})
    script = type("Words", (hashed_words,), {"__module__": "__main__"})
    for kind in (inner, script):
        with pytest.raises(ValueError, match=r"move the class to the top of a module of its own"):
            check_loads_again(kind())


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"config": lambda self: None}, r"cannot be saved and loaded again.*TypeError"),
        ({"config": lambda self: {"words": 3}}, r"takes no \['words'\]"),
        ({"config": lambda self: {"embedding_dim": 3}}, r"does not fit .*size mismatch"),
        ({"_save_files": lambda self, folder: None}, "cannot be saved and loaded again"),
        (
            {"_save_files": lambda self, folder: {"num_words": "${folder}/x"}},
            "num_words names a file, so .*sources must list it",
        ),
        ({"sources": ("num_words",)}, "tuple indices must be"),
    ],
)
def test_what_a_class_forgets_is_said_before_it_is_trained(
    members: dict[str, Any], said: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("hashed_words")
    for name, member in members.items():
        monkeypatch.setattr(module.HashedWords, name, member)
    backbone = module.HashedWords(4096)
    with allowing_classes([WORDS]), pytest.raises(ValueError, match=said) as caught:
        check_loads_again(backbone)
    assert "experiments.check backbone" in str(caught.value)


def test_a_file_that_a_folder_would_not_hold_is_said_too(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "table.txt").write_text("a")
    module = import_module("hashed_words")

    class WithTable(module.HashedWords):  # type: ignore[misc, name-defined]
        __qualname__ = "WithTable"

        def __init__(self, table: str = "table.txt") -> None:
            super().__init__()
            self.table = table

        def config(self) -> dict[str, Any]:
            return {"table": self.table}

    WithTable.__module__ = "hashed_words"
    monkeypatch.setattr(module, "WithTable", WithTable, raising=False)
    with allowing_classes(["hashed_words.WithTable"]):
        with pytest.raises(ValueError, match="table is the file or folder 'table.txt', so `sour"):
            check_loads_again(WithTable())
        check_loads_again(WithTable("a word"))

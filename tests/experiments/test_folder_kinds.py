"""Commands that write folders x what lies there: each writes over its own kind alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules.prepare.__main__ import main as prepare
from experiments.adopt import main as adopt
from experiments.cli.run_places import RunKind, check_places
from experiments.runs.origin import made_now, newest_folder
from experiments.score import main as score
from experiments.search.__main__ import main as search
from mmemb.storage.folder_kinds import FolderKind, kind_of
from mmemb.storage.run_folder import ExperimentFolder
from mmemb.storage.shard_writer import Sample, write_shard

FIT = RunKind("fit", "ContrastiveEmbedder")


def write_run(folder: Path, kind: RunKind = FIT, name: str = "train", mark: str = "f") -> Path:
    """The files by which a finished run tells what it was."""
    folder.mkdir(parents=True)
    model = {"class_path": f"lightning_modules.{kind.model}"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model, "name": name}))
    (folder / "fingerprint.json").write_text(json.dumps({"fingerprint": mark}))
    if kind.subcommand == "fit":
        (folder / "fitted.json").write_text('{"facts": []}')
    return folder


def _file(name: str, data: Any) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(data))

    return write


def _shards(folder: Path, mark: str = "f") -> None:
    samples = [Sample("a", {"json": b"[]"})]
    write_shard(folder, "a-000000.tar", samples, fingerprint=mark)


def _adopted(folder: Path) -> None:
    (folder / "backbone").mkdir(parents=True)
    (folder / "fingerprint.json").write_text('{"fingerprint": "a"}')


WRITTEN: dict[FolderKind, Callable[[Path], object]] = {
    FolderKind.RUN: write_run,
    FolderKind.ADOPTED: _adopted,
    FolderKind.EXPERIMENT: lambda folder: write_run(folder / "20260101-000000-train-abc"),
    FolderKind.DATA: _file("manifest.json", {"fingerprint": "d"}),
    FolderKind.SHARDS: _shards,
    FolderKind.RELEASE: _file("adaptive.json", {}),
    FolderKind.BACKBONE: _file("config.json", {"class_path": "mmemb.backbones.JointEncoder"}),
    FolderKind.MODEL: _file("config.json", {"model_type": "clip"}),
    FolderKind.SCORES: _file("image/flags_score.json", {}),
    FolderKind.INDEX: _file("0123456789abcdef/a-000000.tar.npy", 0),
}


def _stage(runs: Path) -> None:
    check_places(runs, ExperimentFolder(runs / "new"), "train", FIT, [])


def _in_experiment(experiment: Path) -> None:
    check_places(experiment.parent, ExperimentFolder(experiment), "other", FIT, [])


def _report(experiment: Path) -> None:
    with newest_folder(experiment, "report", made_now(), ("report.md",)) as fresh:
        (fresh / "report.md").touch()


def _sidecar(folder: Path) -> None:
    experiment = ExperimentFolder(folder.parent / "experiment")
    check_places(folder.parent / "runs", experiment, "x", RunKind("predict", "Any"), [folder])


def _prepare(out: Path) -> None:
    if prepare(["folder", "--table", "no.csv", "--out", str(out)]):
        raise SystemExit(1)


def _adopt(out: Path) -> None:
    config = out.parent / "adopt.yaml"
    config.write_text("backbone: 1")
    if adopt(["--config", str(config), "--out", str(out)]):
        raise SystemExit(1)


def _search(cache: Path) -> None:
    search(["--model", "no", "--index", "no", "--query", "a", "--cache", str(cache)])


COMMANDS: dict[str, tuple[Callable[[Path], object], set[FolderKind]]] = {
    "--runs": (_stage, {FolderKind.EXPERIMENT}),
    "--experiment": (_in_experiment, {FolderKind.EXPERIMENT}),
    "SidecarWriter": (_sidecar, {FolderKind.SHARDS}),
    "prepare": (_prepare, {FolderKind.DATA}),
    "adopt": (_adopt, {FolderKind.ADOPTED}),
    "score": (
        lambda out: score(["--data-root", "no", "--embeddings", "no", "--out", str(out)]),
        {FolderKind.SCORES},
    ),
    "search --cache": (_search, {FolderKind.INDEX}),
    "report": (_report, {FolderKind.EXPERIMENT}),
}
"""Command -> it, with a folder to write, and the kinds that it may write over."""


@pytest.mark.parametrize("kind", FolderKind, ids=lambda kind: kind.name)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_writes_over_its_own_kind_alone(
    tmp_path: Path, command: str, kind: FolderKind, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    WRITTEN[kind](folder)
    assert kind_of(folder) is kind
    before = sorted(path for path in folder.rglob("*"))

    write, own = COMMANDS[command]
    said = ""
    try:
        write(folder)
    except (ValueError, FileNotFoundError, SystemExit) as error:
        said = f"{error}{capsys.readouterr().err}"
    refused = f"{folder} holds {kind}, over which" in said
    assert refused == (kind not in own), said
    if refused:
        assert sorted(path for path in folder.rglob("*")) == before


PLACES = [
    # What lies under the name of the link, the new run, and what is said of it.
    (RunKind("fit", "GatingPolicy"), FIT, "newest run of fit (GatingPolicy)"),
    (RunKind("fit", "ContrastiveEmbedder"), FIT, ""),
    (RunKind("test", "ContrastiveEmbedder"), RunKind("fit", "ContrastiveEmbedder"), "run of test"),
    (RunKind("fit", "ContrastiveEmbedder"), RunKind("test", "ContrastiveEmbedder"), "run of fit"),
]


@pytest.mark.parametrize(("earlier", "later", "said"), PLACES)
def test_a_link_is_taken_from_a_run_of_the_same_kind(
    tmp_path: Path, earlier: RunKind, later: RunKind, said: str
) -> None:
    """A test may be called as its link is, and so could a fit be."""
    experiment = ExperimentFolder(tmp_path / "runs/own")
    run = write_run(experiment.path / "20260101-000000-own-test-abc", earlier, "own-test")
    (experiment.path / "own-test").symlink_to(run.name)
    if not said:
        check_places(tmp_path / "runs", experiment, "own-test", later, [])
        return
    with pytest.raises(ValueError, match="must not take its place: give this run") as error:
        check_places(tmp_path / "runs", experiment, "own-test", later, [])
    assert said in str(error.value)


def test_shards_are_written_over_by_a_run_of_the_same_kind(tmp_path: Path) -> None:
    experiment = ExperimentFolder(tmp_path / "runs/own")
    exporter, embedder = RunKind("predict", "DepthValueExporter"), RunKind("predict", "Other")
    write_run(experiment.path / "20260101-000000-values-predict-abc", exporter, "values", "v")
    _shards(experiment.path / "values", mark="v")
    WRITTEN[FolderKind.DATA](tmp_path / "data")
    _shards(tmp_path / "data/candidates")

    def check(kind: RunKind, folder: Path) -> None:
        check_places(tmp_path / "runs", experiment, "new", kind, [folder])

    check(exporter, experiment.path / "values")
    with pytest.raises(ValueError, match=r"shards of a predict \(DepthValueExporter\), over which"):
        check(embedder, experiment.path / "values")
    with pytest.raises(ValueError, match="holds shards of prepared data"):
        check(exporter, tmp_path / "data/candidates")
    with pytest.raises(ValueError, match="a folder with shards, and a run of fit"):
        check_places(tmp_path / "runs", experiment, "values", FIT, [])

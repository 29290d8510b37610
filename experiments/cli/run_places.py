"""The places that a run writes, its link and its sidecars: taken only from runs of the same kind.

A run's own folder is always new. But its link takes the place of an earlier one when it has
finished, and a sidecar is written over: by the name alone, a test could take the link of a fit, or
embeddings the folder of depth values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, final

from experiments.runs.recorded_config import read_config
from mmemb.storage.folder_kinds import FolderKind, check_kind, kind_of
from mmemb.storage.manifests import INDEX_SUFFIX, read_record
from mmemb.storage.run_folder import MARK, ExperimentFolder, RunFolder, link_name
from mmemb.storage.run_marks import run_mark


@final
class RunKind(NamedTuple):
    """What makes a run: a subcommand, and the name of a model's class."""

    subcommand: str
    model: str

    def __str__(self) -> str:
        return f"{self.subcommand} ({self.model})"


def check_places(
    runs: Path, experiment: ExperimentFolder, name: str, kind: RunKind, sidecars: Sequence[Path]
) -> None:
    """Refuses places that hold what another kind of run, or another command, has made.

    Args:
        runs: folder of all runs.
        experiment: in which the run is.
        name: of its stage.
        kind: of the run.
        sidecars: folders of shards that it writes.

    Raises:
        ValueError: names the place, what it is, and what to do.
    """
    for folder in (runs, experiment.path):
        check_kind(folder, "a run", FolderKind.EXPERIMENT)

    link = experiment.run(name, kind.subcommand).path
    _check_link(link, kind)
    for folder in sidecars:
        _check_sidecar(folder, experiment.path, kind)


def _check_link(link: Path, kind: RunKind) -> None:
    if not link.exists():  # also a link to a run that is gone
        return

    if link.is_symlink() and kind_of(link) is FolderKind.RUN:
        found = kind_of_run(link)
        if found is None or found == kind:
            return
        holds = f"the link to the newest run of {found}"
    else:
        holds = f"a folder with {kind_of(link) or 'other files'}"

    raise ValueError(
        f"{link} is {holds}, and a run of {kind} must not take its place: give this run "
        "another --name."
    )


def _check_sidecar(folder: Path, experiment: Path, kind: RunKind) -> None:
    check_kind(folder, "a sidecar", FolderKind.SHARDS)
    paths = sorted(folder.glob(f"*{INDEX_SUFFIX}")) if folder.is_dir() else []
    if not paths:
        return

    # The run that wrote the shards has their fingerprint, and tells what it was.
    record = read_record(folder, paths[0].name.removesuffix(INDEX_SUFFIX) + ".tar")
    runs = [mark.parent for mark in sorted(experiment.glob(f"*/{MARK}"))]
    writers = (kind_of_run(run) for run in runs if run_mark(run) == record.fingerprint)
    found = next(filter(None, writers), None)

    # Shards of a run that is gone, too, name the command that made them.
    is_prepared = not record.command and _is_in_data(folder)
    if found == kind or (found is None and not is_prepared):
        return
    holds = "shards of prepared data" if found is None else f"the shards of a {found}"
    raise ValueError(
        f"{folder} holds {holds}, over which a {kind} must not write: name another folder in "
        "the SidecarWriter of trainer.callbacks, or move that one away."
    )


def _is_in_data(folder: Path) -> bool:
    return any(kind_of(parent) is FolderKind.DATA for parent in folder.resolve().parents[:2])


def kind_of_run(run: Path) -> RunKind | None:
    """Returns what a run was; None if its folder does not tell, as before its first step.

    Args:
        run: its folder, or a link to it.
    """
    try:
        config = read_config(run)
    except (FileNotFoundError, ValueError):
        return None

    model = str(config["model"].get("class_path", "")).rpartition(".")[2]
    # A fit alone leaves the list of facts that it was trained on.
    if RunFolder(run).facts.is_file():
        return RunKind("fit", model)

    folder = run.resolve().name
    for subcommand in ("test", "predict", "validate"):
        if f"-{link_name(str(config.get('name')), subcommand)}-" in folder:
            return RunKind(subcommand, model)
    return None

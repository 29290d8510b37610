"""The data that an experiment's runs were made from, as their recorded configurations name it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from experiments.runs.recorded_config import read_config
from mmemb.storage.manifests import MANIFEST
from mmemb.storage.run_folder import ExperimentFolder, RunFolder


def data_root_of(experiment: Path, named: Path | None) -> Path:
    """Returns the prepared data of an experiment.

    Args:
        experiment: e.g. `runs/own`.
        named: what the user names; None takes what the newest runs recorded.

    Raises:
        FileNotFoundError: there is no experiment or no run, or their data are not there.
        ValueError: runs were made from several data roots.
    """
    if not experiment.is_dir():
        raise FileNotFoundError(
            f"{experiment} is no experiment: name a folder such as runs/pocket, or train first "
            "(`mmemb fit --config own/train`)."
        )
    if named is not None:
        return named

    runs: dict[str, list[str]] = defaultdict(list)
    for run in finished_runs(experiment):
        if root := read_config(run).get("data_root"):
            runs[root].append(run.name)

    if not runs:
        raise FileNotFoundError(
            f"{experiment} holds no finished run that names its data: run a stage first, or name "
            "the prepared data with --data-root."
        )
    if len(runs) > 1:
        said = "; ".join(f"{root} of {', '.join(names)}" for root, names in sorted(runs.items()))
        raise ValueError(
            f"The runs of {experiment} were made from several data roots ({said}): name one with "
            "--data-root."
        )

    root = Path(next(iter(runs)))
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}, which the runs of {experiment} were made from, is no folder here: name the "
            "prepared data with --data-root, or start the command where the runs were started."
        )
    return root


def finished_runs(experiment: Path) -> Iterator[Path]:
    """Yields the links to the newest finished runs, by name."""
    for path in sorted(experiment.iterdir()):
        if path.is_symlink() and RunFolder(path).config.is_file():
            yield path


def pair_folders(experiment: Path, root: Path) -> list[Path]:
    """Returns the folders of the pairs whose drafts were selected: the setting `data.pairs`.

    Sidecars without a run beside them may be about any folder of pairs.
    """
    folder = ExperimentFolder(experiment)
    for run in (folder.run("selection", "predict"), folder.run("selection")):
        if run.config.is_file():
            pairs = (read_config(run.path).get("data") or {}).get("init_args", {}).get("pairs")
            if pairs:
                return [root / name for name in pairs]

    return sorted(path.parent for path in root.glob(f"pairs/*/{MANIFEST}"))

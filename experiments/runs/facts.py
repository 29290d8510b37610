"""Collects facts from the records of a run, for the model card of its backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from datamodules.sample_json import QueryJson
from experiments.bootstrap import Interval, cluster_bootstrap
from experiments.runs.recorded_config import read_config
from experiments.runs.run_files import read_environment, read_summary
from experiments.runs.saved_backbone import SavedBackbone, is_run
from experiments.runs.saved_report import read_report
from mmemb.benchmarks.score_files import read_scores, read_values
from mmemb.records.schema import Excerpt, read_json
from mmemb.storage.manifests import MANIFEST
from mmemb.storage.run_folder import ExperimentFolder
from mmemb.storage.run_marks import run_mark
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.trust import is_own_run

_MODEL_KEYS = ("text_model", "model", "weights", "pretrained")
_ROWS = {"never": "direct", "gated": "gated (not in this folder)", "always": "always reasoning"}
_METRICS = ("recall@1", "recall@5", "hit@1", "ndcg_linear@5")


@final
@dataclass(frozen=True, slots=True)
class Ingredient:
    """A model or package that something was made of; empty strings where nothing is known."""

    name: str
    version: str = ""
    licence: str = ""

    @property
    def row(self) -> list[str]:
        """A row of a table."""
        return [self.name, self.version or "-", self.licence or "not stated"]


@final
@dataclass(frozen=True, slots=True)
class Figure:
    """A measured share between 0 and 1, with its 95 % interval where there is one."""

    name: str
    value: float
    interval: Interval | None = None

    @property
    def row(self) -> list[str]:
        """A row of a table, in percent."""
        bounds = self.interval.bounds(100, 1) if self.interval else "none"
        return [self.name, f"{100 * self.value:.1f}", bounds]


@final
@dataclass(frozen=True, slots=True)
class RunFacts:
    """Facts about an exported backbone.

    Attributes:
        name: of the run or folder.
        kind: class of the backbone.
        library: `transformers`, `sentence-transformers` or `peft`.
        reads: what the folder can read.
        usage: Python that makes vectors.
        export: the command that wrote the folder.
        notes: what is particular about this folder.
        base: models that training started from.
        hub_base: their ids on a hub, if they are from one.
        data: packages that the training data was made of.
        data_name: name of the data root, with its profile.
        figures: measured on this backbone; those of the direct path first.
        measured: where the figures are from.
        training: the command that trained it.
        commit: of the code.
        dirty: whether there were uncommitted changes.
        fingerprint: of settings and inputs.
        seed: of the run.
        versions: `package version`, of what decides numbers.
    """

    name: str
    kind: str
    library: str
    reads: tuple[str, ...]
    usage: str
    export: str
    notes: tuple[str, ...] = ()
    base: tuple[Ingredient, ...] = ()
    hub_base: tuple[str, ...] = ()
    data: tuple[Ingredient, ...] = ()
    data_name: str = ""
    figures: tuple[Figure, ...] = ()
    measured: str = ""
    training: str = ""
    commit: str = ""
    dirty: bool = False
    fingerprint: str = ""
    seed: str = ""
    versions: tuple[str, ...] = ()


@final
class _IngredientJson(Excerpt):
    """A package that something was made of."""

    package: str = ""
    version: str = ""
    licence: str = ""


@final
class _ManifestJson(Excerpt):
    """The fields of a data root's manifest for a model card; training rows have other sources."""

    sources: tuple[_IngredientJson, ...] | dict[str, Any] = ()
    profile: str = ""


def base_models(saved_backbone: SavedBackbone) -> tuple[list[Ingredient], list[str]]:
    """Returns the models that training started from, and those that are ids of a hub."""
    bases, hub = [], []
    for run, name in _starting_points(saved_backbone.run):
        path = _resolved(run, name)

        # A path on this machine means nothing to a reader of the card: its last part is named.
        if path is None:
            is_id = "/" in name and not Path(name).is_absolute()
            bases.append(Ingredient(name if is_id else Path(name).name))

            # A hub id is OWNER/NAME; the metadata of a card may link no other text.
            hub += [name] if name.count("/") == 1 and not name.startswith((".", "/")) else []
            continue

        record = (path if path.is_dir() else path.parent) / "source.json"
        source = read_json(record, _IngredientJson) if record.is_file() else _IngredientJson()
        bases.append(Ingredient(source.package or path.name, source.version, source.licence))
    return list(dict.fromkeys(bases)), hub


def data_root(saved_backbone: SavedBackbone) -> Path | None:
    """Returns the data root of the run, or None if it is no longer there."""
    data = saved_backbone.config.get("data", {})
    root = (data.get("init_args") or {}).get("root") or saved_backbone.config.get("data_root")
    return _resolved(saved_backbone.run, str(root)) if root and saved_backbone.run else None


def data_sources(saved_backbone: SavedBackbone) -> tuple[list[Ingredient], str]:
    """Returns the packages that the data was made of, and the data's name."""
    root = data_root(saved_backbone)
    path = root / MANIFEST if root else None
    if path is None or not path.is_file():
        return [], root.name if root else ""

    manifest = read_json(path, _ManifestJson)
    rows = manifest.sources if isinstance(manifest.sources, tuple) else ()
    sources = [Ingredient(row.package, row.version, row.licence) for row in rows]

    profile = f", profile {manifest.profile}" if manifest.profile else ""
    return sources, f"{root.name if root else ''}{profile}"


def instructions(saved_backbone: SavedBackbone, texts_only: bool) -> dict[str, str]:
    """Returns task -> instruction of its first query, if any (and a text, with `texts_only`)."""
    root = data_root(saved_backbone)
    if root is None or not (root / "queries" / MANIFEST).is_file():
        return {}

    index = ShardIndex.open(root / "queries", verify=False)
    first = {entry.meta["task"]: entry for entry in reversed(index.entries)}
    queries = {task: index.read_json(entry, QueryJson) for task, entry in first.items()}

    kept = {task: row for task, row in queries.items() if row.text or not texts_only}
    return {task: row.instruction for task, row in kept.items() if row.instruction}


def figures(saved_backbone: SavedBackbone, scores: Path | None) -> tuple[list[Figure], str]:
    """Reads figures measured on this backbone, and their source: score files if they are named,
    else the experiment's report if it is about this backbone, else the run's own validation."""
    if scores is not None:
        return _of_scores(scores), "From the score files of this backbone, split test."
    if saved_backbone.run is None:
        return [], ""

    # A report measures the backbone of its gate; figures of another embedder must not be shown.
    path = ExperimentFolder(saved_backbone.run.parent).report_json
    if path.is_file() and _is_reported(saved_backbone.run):
        report = read_report(path)
        if report["mix"]:  # a report of tests alone has none
            return _of_report(report), (
                f"From the experiment's report: {report['eligible_queries']} eligible queries of "
                "part test, mean over tasks; intervals resample concepts."
            )

    metrics = read_summary(saved_backbone.run).metrics
    measured = {name: value for name, value in metrics.items() if value is not None}
    kept = [Figure(name, value) for name, value in measured.items() if name.startswith("val/")]
    return [f for f in kept if f.name.removeprefix("val/") in _METRICS], "Validation of the run."


def records(saved_backbone: SavedBackbone) -> dict[str, Any]:
    """Returns command, commit, fingerprint, seed and versions, as fields of `RunFacts`."""
    if saved_backbone.run is None:
        return {}
    environment = read_environment(saved_backbone.run)
    return {
        "training": "python -m experiments.run fit "
        f"--config runs/{saved_backbone.name}/config.yaml",
        "commit": environment.git_commit or "",
        "dirty": environment.uncommitted_changes,
        "fingerprint": run_mark(saved_backbone.run) or "",
        "seed": str(saved_backbone.config.get("seed_everything", "")),
        "versions": tuple(f"{name} {version}" for name, version in environment.versions.items()),
    }


def _starting_points(run: Path | None) -> Iterator[tuple[Path, str]]:
    """Yields folders and ids of models, through all runs that this one started from."""
    while run is not None:
        arguments = read_config(run)["model"].get("init_args") or {}

        backbone = arguments.get("backbone")
        if not isinstance(backbone, dict):
            # A gate names its trained embedder in place of a backbone.
            backbone = {"init_args": {"folder": arguments.get("embedder")}}
        init_args = backbone.get("init_args")
        init_args = init_args if isinstance(init_args, dict) else {}

        if not init_args.get("folder"):
            yield from ((run, name) for name in _names(init_args))
            return

        above = _resolved(run, str(init_args["folder"]))
        above = above.resolve() if above is not None else None
        run = next((p for p in (above, above.parent) if is_run(p)), None) if above else None


def _names(arguments: Mapping[str, Any]) -> Iterator[str]:
    for key, value in arguments.items():
        if key in _MODEL_KEYS and isinstance(value, str):
            yield value
        elif isinstance(value, dict) and isinstance(value.get("init_args"), dict):
            yield from _names(value["init_args"])


def _is_reported(run: Path) -> bool:
    """Tells whether the experiment's gate, which its report is about, embeds by this run."""
    gate = ExperimentFolder(run.parent).gate.path
    if not is_run(gate):
        return False

    embedder = (read_config(gate)["model"].get("init_args") or {}).get("embedder")
    path = _resolved(gate, str(embedder))
    return run.resolve() in {gate.resolve(), path.resolve() if path else None}


def _of_report(report: Mapping[str, Any]) -> list[Figure]:
    mix = report["mix"]
    return [
        Figure(f"{label}, {metric}", mix[row][metric]["mean"], Interval.from_row(mix[row][metric]))
        for row, label in _ROWS.items()
        for metric in _METRICS
        if row in mix
    ]


def _of_scores(folder: Path) -> list[Figure]:
    files, values, results = read_scores(folder), read_values(folder), []
    for name, file in files.items():
        metric = file.metric or "hit@1"
        note = f" (partial: {file.partial})" if file.partial else ""
        label, value = f"{name}, {metric}{note}", float(file.scores[metric])

        # Score files written without values for each query have no interval.
        if (query_values := values.get(name)) is None:
            results.append(Figure(label, value))
            continue
        results.append(
            Figure(label, value, cluster_bootstrap(query_values.values, query_values.clusters))
        )
    return results


def _resolved(run: Path | None, name: str) -> Path | None:
    """Returns a path of a run's configuration: as it stands, or from the root of the runs.

    What is read there may be published: a run from elsewhere has no say in what that is.
    """
    if run is not None and not is_own_run(run):
        return None

    roots = [Path(), *(run.resolve().parents[2:3] if run else ())]
    return next((root / name for root in roots if name and (root / name).exists()), None)

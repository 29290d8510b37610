"""The tests of an experiment that ranked queries, and the commands of those that are missing."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.prepare.folder.command import POOL
from datamodules.samples import Row
from experiments.cli.config_files import packaged
from experiments.cli.next_command import command_line
from experiments.cli.settings_sources import read_config_file, value_at
from experiments.report.data.query_table import METRICS
from experiments.report.data.reasoned import check_covers, read_query
from experiments.runs.ranked_test import RankedTest
from experiments.runs.recorded_config import read_config
from experiments.runs.recorded_data import finished_runs
from mmemb.records.ranked_queries import RankedQuery
from mmemb.records.sidecar_json import DecisionJson, DepthValueJson
from mmemb.retrieval.ranking_metrics import chance_recall
from mmemb.storage.run_folder import ExperimentFolder, link_name
from mmemb.storage.shard_index import ShardIndex

UNTRAINED, TRAINED, GATED = "backbone as it came", "trained", "gated"

_LINKS = {UNTRAINED: "untrained-test", TRAINED: "trained-test", GATED: link_name("gate", "test")}
"""Row -> link to the run that it comes from."""

_LOADED = "mmemb.backbones.load_backbone"


def read_tests(experiment: Path, root: Path) -> dict[str, RankedTest]:
    """Returns the newest tests that ranked queries: the three rows of `_LINKS`, then others.

    Where `trained-test` or `gate-test` left no ranks, the sidecars of the gate say the same.

    Args:
        experiment: e.g. `runs/own`.
        root: the prepared data.
    """
    links = _LINKS | {
        path.name.removesuffix("-test"): path.name
        for path in finished_runs(experiment)
        if path.name.endswith("-test") and path.name not in _LINKS.values()
    }
    tests = {row: RankedTest.read(experiment / link) for row, link in links.items()}

    folder = ExperimentFolder(experiment)
    if folder.depth_values.is_dir() and tests[TRAINED] is None:
        tests[TRAINED] = _of_sidecars(folder, root, decided=False)
    if folder.depth_values.is_dir() and folder.decisions.is_dir() and tests[GATED] is None:
        tests[GATED] = _of_sidecars(folder, root, decided=True)
    return {row: test for row, test in tests.items() if test is not None}


def _of_sidecars(folder: ExperimentFolder, root: Path, *, decided: bool) -> RankedTest | None:
    """Returns the test queries as `depth_values/` ranked them: directly, or as the gate decided.

    None where the sidecar holds no test query, or is older than the ranks in it.
    """
    source, depth_values = ShardIndex.open(root / "queries"), ShardIndex.open(folder.depth_values)
    check_covers(source, depth_values)
    decisions = ShardIndex.open(folder.decisions) if decided else None

    names: dict[str, set[str]] = defaultdict(set)
    for entry in ShardIndex.open(root / "candidates").entries:
        names[entry.meta["gallery"]].add(entry.meta["name"])

    ranked = []
    for entry in depth_values.entries:
        query = read_query(Row(source, source.by_key[entry.key]))
        if query.split != "test":
            continue
        values = depth_values.read_json(entry, DepthValueJson)
        if not (values.ranks and values.top):
            return None

        own = query.candidates
        count = len(names[query.gallery]) if own is None else len(set(own))

        depth = 0
        if decisions is not None:
            depth = decisions.read_json(decisions.by_key[entry.key], DecisionJson).depth
        ranked.append(
            RankedQuery(
                key=entry.key,
                task=query.task,
                concept=query.concept,
                gallery=query.gallery,
                candidates=count,
                right=tuple(sorted(query.relevance, key=lambda n: -query.relevance[n])),
                rank=values.ranks[depth],
                metrics={n: v for n, v in values.metrics[depth].items() if n in METRICS}
                | chance_recall(count),
                found=(values.top[depth],),
            )
        )
    run = folder.decisions if decided else folder.depth_values
    ordered = tuple(sorted(ranked, key=lambda query: query.key))
    return RankedTest(run, ordered) if ordered else None


def missing_tests(experiment: Path, root: Path, found: Mapping[str, Any]) -> dict[str, str]:
    """Returns row -> the command that makes it, of the rows that were not found.

    Args:
        experiment: e.g. `runs/own`.
        root: the prepared data.
        found: the rows that are there.
    """
    commands = {
        UNTRAINED: ["--name", _LINKS[UNTRAINED], *_encoder_flags(experiment)],
        TRAINED: _weights_flags(experiment),
    }
    shared = shared_flags(experiment, root, "own/test")
    made = {
        row: command_line(["test", "--config", "own/test", *flags, *shared])
        for row, flags in commands.items()
    }
    made[GATED] = pipeline_command(experiment, root)
    return {row: command for row, command in made.items() if row not in found}


def shared_flags(experiment: Path, root: Path, name: str) -> list[str]:
    """Returns the flags by which a command writes to the same experiment, of the same data.

    Args:
        experiment: e.g. `runs/own`.
        root: the prepared data.
        name: of the packaged configuration, whose own values need no flag.
    """
    stated = read_config_file(packaged(f"{name}.yaml"))
    flags = []
    for key, value in (("experiment", experiment.name), ("data_root", str(root))):
        if stated.get(key) != value:
            flags += [f"--{key}", value]

    runs = str(experiment.parent)
    return flags if runs == os.environ.get("MMEMB_RUNS", "runs") else [*flags, "--runs", runs]


def pipeline_command(experiment: Path, root: Path) -> str:
    """Returns the command that runs all stages: of the pipeline with the experiment's name, or of
    own data's."""
    if packaged(f"{experiment.name}/pipeline.yaml").is_file() and experiment.name != "own":
        name, flags = f"{experiment.name}/pipeline", []
    else:
        # Rationales of others are handed out where they were prepared; else a model writes.
        writer = "file" if (root / POOL).is_file() else "model"
        name, flags = "own/pipeline", [*_encoder_flags(experiment), "--writer", writer]
    return command_line(["pipeline", name, *flags, *shared_flags(experiment, root, name)])


def _weights_flags(experiment: Path) -> list[str]:
    """Returns the flag that names trained weights, where they are not those of `own/train`."""
    folder = ExperimentFolder(experiment)
    for name in ("train", "embedder", "trunk"):
        backbone = folder.run(name).backbone
        if backbone.is_dir():
            return [] if name == "train" else ["--model.backbone.folder", str(backbone)]
    return []


def _encoder_flags(experiment: Path) -> list[str]:
    """Returns the flags that name the backbone which the experiment's training started from."""
    for run in finished_runs(experiment):
        config = read_config(run)
        backbone = value_at(config, "model.backbone")
        if not isinstance(backbone, Mapping) or backbone.get("class_path") in (None, _LOADED):
            continue
        given = backbone.get("init_args") or {}

        for path in sorted(packaged("backbone").glob("*.yaml")):
            shipped = value_at(read_config_file(path), "model.backbone")
            same = shipped.get("class_path") == backbone["class_path"]
            model = (shipped.get("init_args") or {}).get("model")
            if same and model == given.get("model"):
                flags = ["--encoder", path.stem]
                if weights := given.get("pretrained"):
                    flags += ["--pretrained", weights]

                # A flag that the encoder's file does not use would be refused.
                models = config.get("models")
                stated = read_config_file(packaged("own/test.yaml")).get("models")
                if "${models}" in str(shipped) and models not in (None, stated):
                    flags += ["--models", models]
                return flags
    return ["--encoder", "NAME"]

"""Ablations of METHOD 4 to 6: cells that differ in one thing, from one trunk and one set of texts.

`experiments.pipeline` calls it for files with a block `ablations`. A cell is two ordinary stages
(fit, predict) with a sidecar of its own, so finished cells are skipped by their fingerprints.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, final

from experiments.pipelines.reselection import Pool, Reselection, Rule, of_seeds, reselect
from mmemb.records.file_names import check_plain
from mmemb.records.hashing import stable_hash
from mmemb.records.rationales import ScoredJson, scored_to_json
from mmemb.storage.files import publish, whole_folder
from mmemb.storage.fingerprints import fingerprint
from mmemb.storage.json_files import finite
from mmemb.storage.locks import locked, new_folder
from mmemb.storage.manifests import MANIFEST
from mmemb.storage.provenance import git_state, package_versions
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import (
    Sample,
    encode_members,
    existing_shards,
    finish_manifest,
    write_shard,
)
from mmemb.storage.trained_facts import FACTS, read_fitted, write_facts

Paths = Literal["always", "never", "averaged"]
"""What is compared: after the greedy draft, directly, or with several drafts averaged."""


DRAW_SEED = 0
"""Of the stage that drew the rationales, by which the first K of them are told."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One variant; what it does not name is as in the cell `gain-30`.

    Attributes:
        candidates: K, draws per question that selection may choose from; null = all.
        rule: by which contrast.
        keep_share: share of all candidates that is kept.
        hard: whether a pair's best takes all of its weight.
        prior_fraction: share of reasoning rows whose rationale comes from the whole pool.
        direct_weight: a, weight of the direct loss.
    """

    rule: Rule = "gain"
    keep_share: float = 0.3
    hard: bool = False
    candidates: int | None = None
    prior_fraction: float = 0.25
    direct_weight: float = 1.0

    @property
    def choice(self) -> Reselection:
        """How it chooses among the candidates."""
        return Reselection(self.rule, self.keep_share, self.hard)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Left minus right, and what was expected before anything was run."""

    left: str
    right: str
    expected: Literal["higher", "lower", "equal"]
    path: Paths = "always"
    against: Paths | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ablations:
    """The block `ablations` of a pipeline file."""

    fit: str
    predict: str
    cells: Mapping[str, Cell]
    comparisons: tuple[Comparison, ...]
    seeds: tuple[int, ...] = field(default=(0, 1, 2))


def read_ablations(data: Mapping[str, Any], path: Path) -> Ablations:
    """The block as a record; a mistake is one ValueError that names file and key."""
    try:
        cells = {name: Cell(**(cell or {})) for name, cell in data["cells"].items()}
        for cell in cells.values():
            _ = cell.choice  # complains about an unknown rule
        comparisons = tuple(Comparison(**row) for row in data["comparisons"])
        rest = {k: v for k, v in data.items() if k not in ("cells", "comparisons", "seeds")}
        seeds = tuple(data.get("seeds", (0, 1, 2)))
        found = Ablations(**rest, cells=cells, comparisons=comparisons, seeds=seeds)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}, ablations: {type(error).__name__} {error}") from None
    named = {name for row in comparisons for name in (row.left, row.right)}
    if unknown := sorted(named - set(cells)):
        raise ValueError(f"{path}, ablations: comparisons name unknown cell(s) {unknown}")
    for name in found.cells:
        check_plain(str(name), f"{path}, ablations: a cell")
    check_seeds(found.seeds)
    return found


def check_seeds(seeds: Sequence[int]) -> None:
    """Rejects an empty list and repeats: a seed that counts twice narrows no interval."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {list(seeds)}: expected at least one, each once")


def write_cell_sidecar(folder: Path, cell: Cell) -> Path:
    """`selected-HASH` beside `selected/`: the same candidates, chosen as the cell says.

    Cells that choose alike share it.

    Args:
        folder: of the experiment.
        cell: what to choose, and from how many draws.
    """
    source = ShardIndex.open(folder / "selected")
    choice = {"choice": asdict(cell.choice), "candidates": cell.candidates}
    print_of = fingerprint({"source": str(folder / "selected"), **choice})
    target = folder / f"selected-{stable_hash(print_of, bits=32):08x}"

    # What `selected` was made from counts, too: the cell's sidecar is joined with the same pairs.
    origins = {
        shard: (source.origin(shard), *source.records[shard].made_from)
        for shard in source.shard_names
    }

    # Of two ablations at once the second waits, and then finds what the first has written.
    with locked(target):
        if set(source.shard_names) <= set(existing_shards(target, print_of, origins)):
            if not (target / MANIFEST).is_file():  # it was stopped just before
                finish_manifest(target, print_of, source.shard_names)
            return target

        pools = [read_pool(source, entry, cell) for entry in source.entries]
        chosen = dict(
            zip((e.key for e in source.entries), reselect(pools, cell.choice), strict=True)
        )
        for shard in source.shard_names:
            samples = [
                Sample(
                    entry.key,
                    encode_members(
                        {"json": [scored_to_json(scored) for scored in chosen[entry.key]]}
                    ),
                    dict(entry.meta),
                )
                for entry in source.of_shard(shard)
            ]
            write_shard(target, shard, samples, fingerprint=print_of, made_from=origins[shard])
        if (facts := source.folder / FACTS).is_file():
            write_facts(target / FACTS, read_fitted(facts))  # chosen otherwise, written by the same
        finish_manifest(target, print_of, source.shard_names)
    return target


def read_pool(source: ShardIndex, entry: Any, cell: Cell) -> Pool:
    """A pair's candidates, as if only the cell's draws had been made."""
    pool = tuple(row.scored for row in source.read_json(entry, tuple[ScoredJson, ...]))
    if cell.candidates is None:
        return pool
    return of_seeds(pool, {stable_hash(DRAW_SEED, entry.key, k) for k in range(cell.candidates)})


def run_cells(
    ablations: Ablations,
    folder: Path,
    shared: Sequence[str],
    run_stage: Callable[[str, str, Sequence[str]], None],
) -> None:
    """Fits and measures every cell with every seed.

    Args:
        ablations: what to run.
        folder: of the experiment.
        shared: arguments of all stages.
        run_stage: runs subcommand, config and arguments unless that is done.
    """
    averaged = {row.left for row in ablations.comparisons if row.path == "averaged"}
    averaged |= {row.right for row in ablations.comparisons if row.against == "averaged"}
    for seed in ablations.seeds:  # so that whoever stops early has whole seeds
        for name, cell in ablations.cells.items():
            sidecar = write_cell_sidecar(folder, cell)
            own = ["--name", run_name(name, seed)]
            arguments = [
                *own,
                *("--data.sidecar", str(sidecar), "--data.seed", str(seed)),
                *("--data.prior_fraction", str(cell.prior_fraction)),
                *("--data.soft", str(not cell.hard).lower()),
                *("--model.losses.direct", str(cell.direct_weight)),
            ]
            run_stage("fit", ablations.fit, [*arguments, *shared])
            # Reading every draft takes four times as long, so only who is asked for them does.
            draws = [] if name in averaged else ["--model.num_draws", "1"]
            run_stage("predict", ablations.predict, [*own, *draws, *shared])


def run_name(cell: str, seed: int) -> str:
    """The name of a cell's runs."""
    return f"{cell}-seed{seed}"


def in_process(subcommand: str, config: str, arguments: Sequence[str]) -> None:
    """A stage in this process: a hundred short ones would spend most of their time importing."""
    from experiments.cli.experiment_cli import ExperimentCLI

    ExperimentCLI([subcommand, "--config", config, *arguments])


def write_report(folder: Path, text: str, data: Mapping[str, Any], picture: bytes) -> None:
    """`report.{md,json,png}` in a run folder of their own, linked from the experiment's folder.

    Args:
        folder: of the experiment.
        text: the tables, which show `report.png`.
        data: the figures; when, by which commit and with which versions is added.
        picture: a PNG.
    """
    commit, diff = git_state(Path(__file__).parent)
    origin = {
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "git_commit": commit,
        "uncommitted_changes": bool(diff),
        "versions": package_versions(),
    }
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run = new_folder(folder, f"{stamp}-report-{commit or 'nogit'}")
    files = {
        "report.json": json.dumps(
            finite({**origin, **data}), ensure_ascii=False, allow_nan=False, indent=1
        ).encode(),
        "report.png": picture,
        "report.md": text.encode(),
    }
    with whole_folder(run) as fresh:
        for name, content in files.items():
            (fresh / name).write_bytes(content)

    publish(run, folder / "report", files)
    print(f"\n{text}\n{folder}/report.md, report.json, report.png")

"""Ablations: cells that differ in one thing, from one trunk, one set of texts and their scores.

`experiments.pipeline` calls it for files with a block `ablations`. A cell is two ordinary stages
(fit, predict) with a sidecar of its own, so finished cells are skipped by their fingerprints.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch
from msgspec.structs import replace
from torch import Tensor

from datamodules.scores import ScoreTable
from experiments.runs.origin import made_now, newest_folder
from mmemb.records.file_names import check_plain
from mmemb.records.hashing import stable_hash
from mmemb.records.rationales import ScoredJson, ScoredRationale, scored_to_json
from mmemb.selection.fitted_selection import read_selection
from mmemb.selection.keep_rule import Contrast, KeepRule
from mmemb.storage.fingerprints import fingerprint
from mmemb.storage.json_files import write_json
from mmemb.storage.locks import locked
from mmemb.storage.manifests import MANIFEST
from mmemb.storage.run_folder import ExperimentFolder
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
"""Rationales of the compared vectors: the greedy draft, none, or several drafts averaged."""


ROWS = 256
"""Pairs whose scores are read together."""

DRAW_SEED = 0
"""Seed of the stage that drew the rationales, which tells the first K of them."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One variant; what it does not name is as in the cell `gain-30`.

    Attributes:
        contrast: the contrast that decides; `none` keeps all.
        keep_share: share of all drafts that is kept.
        min_placebo_rank: share of placebos that a kept one beats at least.
        hard: whether a pair's best takes all of its weight.
        drafts: K, draws per question that selection may choose from; null = all.
        unselected_fraction: share of reasoning rows whose rationale comes from the whole pool.
        direct_weight: a, weight of the direct loss.
    """

    contrast: Contrast = "gain"
    keep_share: float = 0.3
    min_placebo_rank: float = 0.0
    hard: bool = False
    drafts: int | None = None
    unselected_fraction: float = 0.25
    direct_weight: float = 1.0

    @property
    def rule(self) -> KeepRule:
        """Keep rule of the cell."""
        return KeepRule(
            contrast=self.contrast,
            keep_share=self.keep_share,
            min_placebo_rank=self.min_placebo_rank,
            hard=self.hard,
        )


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
    """Reads the block as a record; a mistake is one ValueError that names file and key."""
    try:
        cells = {name: _read_cell(cell or {}) for name, cell in data["cells"].items()}
        comparisons = tuple(Comparison(**row) for row in data["comparisons"])
        rest = {k: v for k, v in data.items() if k not in ("cells", "comparisons", "seeds")}
        seeds = tuple(data.get("seeds", (0, 1, 2)))
        ablations = Ablations(**rest, cells=cells, comparisons=comparisons, seeds=seeds)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}, ablations: {type(error).__name__} {error}") from None

    named = {name for row in comparisons for name in (row.left, row.right)}
    if unknown := sorted(named - set(cells)):
        raise ValueError(f"{path}, ablations: comparisons name unknown cell(s) {unknown}")

    # Names of cells become names of run folders.
    for name in ablations.cells:
        check_plain(str(name), f"{path}, ablations: a cell")

    check_seeds(ablations.seeds)
    return ablations


def _read_cell(data: Mapping[str, Any]) -> Cell:
    if "rule" in data:
        raise ValueError(
            "the key `rule` of a cell is `contrast` now. `placebo_gain` is `contrast: gain` with "
            "`min_placebo_rank: 0.5`, and `none` needs `keep_share: 1.0`."
        )
    cell = Cell(**data)
    _ = cell.rule  # complains about an unknown contrast
    return cell


def check_seeds(seeds: Sequence[int]) -> None:
    """Rejects an empty list and repeats: a seed that counts twice narrows no interval."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {list(seeds)}: expected at least one, each once")


def write_cell_sidecar(folder: Path, cell: Cell) -> Path:
    """Writes `selected-HASH` beside `selected/`: the same drafts, chosen as the cell states.

    Cells that choose alike share it. Nothing is judged: the selector's scores are read.

    Args:
        folder: of the experiment.
        cell: what to choose, and from how many draws.
    """
    source = ShardIndex.open(ExperimentFolder(folder).selected)
    settings = {"source": str(source.folder), "fitted": str(folder / "selection")}
    settings |= {"rule": asdict(cell.rule), "drafts": cell.drafts}

    print_of = fingerprint(settings)
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

        chosen = choose_again(source, folder, cell)

        # Shard for shard, so that a sidecar shard still names the shard that it was made from.
        for shard in source.shard_names:
            samples = [
                Sample(entry.key, encode_members({"json": chosen[entry.key]}), dict(entry.meta))
                for entry in source.of_shard(shard)
            ]
            write_shard(target, shard, samples, fingerprint=print_of, made_from=origins[shard])

        if (facts := source.folder / FACTS).is_file():
            write_facts(target / FACTS, read_fitted(facts))  # chosen otherwise, written by the same
        finish_manifest(target, print_of, source.shard_names)
    return target


def choose_again(source: ShardIndex, folder: Path, cell: Cell) -> dict[str, list[dict[str, Any]]]:
    """Returns key -> the drafts of a pair as the cell chooses among them, as JSON data.

    Args:
        source: `selected/` of the experiment.
        folder: of the experiment, with the judge's scores and the fitted tau.
        cell: what to choose, and from how many draws.
    """
    fitted, table = read_selection(folder / "selection"), ScoreTable(folder / "judge-scores")
    batches = [source.entries[i : i + ROWS] for i in range(0, len(source.entries), ROWS)]

    pools = {
        entry.key: [row.scored for row in source.read_json(entry, tuple[ScoredJson, ...])]
        for entry in source.entries
    }

    values: list[Tensor] = []
    counts: list[Tensor] = []
    for entries in batches:
        scores = table.read(entry.key for entry in entries)
        value_BK = cell.rule.value(scores.contrasts(fitted.tau, fitted.num_hard_negatives))

        # Columns behind a pair's own drafts keep count 0, so they are no drafts.
        count_BK = torch.zeros_like(value_BK)
        for entry, count_K in zip(entries, count_BK, strict=True):
            drawn = draw_counts(pools[entry.key], _seeds(entry.key, cell))
            count_K[: len(drawn)] = torch.tensor(drawn)

        # A draft that none of the cell's draws gave is no draft.
        values.append(value_BK.masked_fill(count_BK == 0, torch.nan))
        counts.append(count_BK)

    # One threshold for all pairs, so it waits for the last value.
    eta = cell.rule.eta(torch.cat([value_BK.flatten() for value_BK in values]))

    drafts_of: dict[str, list[dict[str, Any]]] = {}
    for entries, value_BK, count_BK in zip(batches, values, counts, strict=True):
        rows = zip(entries, count_BK, *cell.rule.choose(value_BK, count_BK, eta), strict=True)
        for entry, count_K, kept_K, weight_K in rows:
            pool = pools[entry.key]
            numbers = (x[: len(pool)].tolist() for x in (count_K, kept_K, weight_K))
            drafts_of[entry.key] = [
                scored_to_json(_chosen(scored, count, kept, weight))
                for scored, count, kept, weight in zip(pool, *numbers, strict=True)
                if count
            ]
    return drafts_of


def draw_counts(pool: Sequence[ScoredRationale], seeds: Collection[int] | None) -> list[int]:
    """Counts how often each draft was drawn.

    Args:
        pool: drafts of a pair, equal draws merged.
        seeds: of the draws that count; None = all.
    """
    if seeds is None:
        return [scored.rationale.count for scored in pool]

    # A draft that was drawn once has its one seed alone.
    return [
        sum(seed in seeds for seed in scored.rationale.seeds or (scored.rationale.seed,))
        for scored in pool
    ]


def _chosen(scored: ScoredRationale, count: float, kept: bool, weight: float) -> ScoredRationale:
    rationale = replace(scored.rationale, count=int(count))
    return replace(scored, rationale=rationale, kept=kept, weight=weight)


def _seeds(key: str, cell: Cell) -> frozenset[int] | None:
    """Returns seeds of the draws that a cell may choose from; None = all."""
    if cell.drafts is None:
        return None
    return frozenset(stable_hash(DRAW_SEED, key, k) for k in range(cell.drafts))


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
    for seed in ablations.seeds:  # so that an early stop leaves whole seeds
        for name, cell in ablations.cells.items():
            sidecar = write_cell_sidecar(folder, cell)

            name_arguments = ["--name", run_name(name, seed)]
            arguments = [
                *name_arguments,
                *("--data.sidecar", str(sidecar), "--data.seed", str(seed)),
                *("--data.unselected_fraction", str(cell.unselected_fraction)),
                *("--data.sample_by_weight", str(not cell.hard).lower()),
                *("--model.losses.direct", str(cell.direct_weight)),
            ]

            run_stage("fit", ablations.fit, [*arguments, *shared])
            # Reading every draft takes four times as long, so only who is asked for them does.
            draws = [] if name in averaged else ["--model.num_draws", "1"]
            run_stage("predict", ablations.predict, [*name_arguments, *draws, *shared])


def run_name(cell: str, seed: int) -> str:
    """Returns the name of a cell's runs."""
    return f"{cell}-seed{seed}"


def in_process(subcommand: str, config: str, arguments: Sequence[str]) -> None:
    """Runs a stage in this process: a hundred short ones would spend most time importing."""
    from experiments.cli.experiment_cli import ExperimentCLI

    ExperimentCLI([subcommand, "--config", config, *arguments])


def write_report(folder: Path, text: str, data: Mapping[str, Any], picture: bytes) -> None:
    """Writes `report.{md,json,png}` in a run folder, linked from the experiment's folder.

    Args:
        folder: of the experiment.
        text: the tables, which show `report.png`.
        data: the figures; when, by which commit and with which versions is added.
        picture: a PNG.
    """
    origin = made_now()
    with newest_folder(
        folder, "report", origin, ("report.json", "report.png", "report.md")
    ) as fresh:
        write_json(fresh / "report.json", origin | dict(data))
        (fresh / "report.png").write_bytes(picture)
        (fresh / "report.md").write_text(text, encoding="utf-8")

    print(f"\n{text}\n{folder}/report.md, report.json, report.png")

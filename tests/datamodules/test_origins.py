"""What a sidecar was made from: recorded as opened, compared at every join, and made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

import pytest

from callbacks import SidecarWriter
from datamodules import (
    DepthValueDataModule,
    EvaluationDataModule,
    MediaDataModule,
    PairDataModule,
    SelectionDataModule,
    SideDataModule,
)
from datamodules.joins import check_join
from datamodules.loaders import ShardDataModule, by_shard
from datamodules.samples import Row
from experiments.report.data.query_table import read_queries
from mmemb.storage.manifests import Origin, index_path
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import Sample, finish_manifest, write_folder, write_shard
from tests.fixtures.reports import rewrite, write_sidecars
from tests.fixtures.tiny_experiment import Experiment, run
from tests.fixtures.tiny_sidecars import (
    write_sidecar,
    write_tiny_depth_values,
    write_tiny_rationales,
)

COMMAND = "python -m experiments.run predict --config side.yaml"


def write_data(root: Path, text: str = "a", meta: str = "x") -> Path:
    """Queries in two shards and candidates in one; `text` stands in the second shard alone."""
    queries = [
        Sample(f"k{n}", {"json": json.dumps(text if n > 1 else "").encode()}, {"fold": meta})
        for n in range(4)
    ]
    write_folder(
        root / "queries", queries, prefix="q", samples_per_shard=2, fingerprint=text + meta
    )
    write_candidates(root, "first")
    return root


def write_candidates(root: Path, text: str) -> None:
    samples = [Sample("c0", {"json": json.dumps(text).encode()})]
    write_folder(root / "candidates", samples, prefix="c", samples_per_shard=2, fingerprint=text)


def write_side(root: Path, folder: Path, **more: Any) -> ShardIndex:
    """A sidecar of the queries that was also made from all candidates."""
    source, whole = ShardIndex.open(root / "queries"), ShardIndex.open(root / "candidates").origin()
    for name in source.shard_names:
        samples = [Sample(entry.key, {"json": b"[]"}) for entry in source.of_shard(name)]
        origins = {"made_from": (source.origin(name), whole), "command": COMMAND} | more
        write_shard(folder, name, samples, fingerprint="f", **origins)
    finish_manifest(folder, "f", source.shard_names)
    return ShardIndex.open(folder)


def test_a_sidecar_joins_with_what_it_was_made_from_wherever_both_lie(tmp_path: Path) -> None:
    write_side(write_data(tmp_path / "data"), tmp_path / "runs/side")
    text = index_path(tmp_path / "runs/side", "q-000000.tar").read_text()
    assert str(tmp_path) not in text, "an index names no machine"
    shutil.move(tmp_path / "data", tmp_path / "elsewhere/data")
    source = ShardIndex.open(tmp_path / "elsewhere/data/queries")
    sidecar = ShardIndex.open(tmp_path / "runs/side")
    assert check_join(source, sidecar) == {"q-000000.tar", "q-000001.tar"}


@pytest.mark.parametrize("change", [{"text": "b"}, {"meta": "y"}])
def test_equal_keys_of_other_data_name_both_folders_and_the_command(
    tmp_path: Path, change: dict[str, str]
) -> None:
    """The data are prepared again in the same folder; half a folder of them is as it was."""
    sidecar = write_side(write_data(tmp_path / "data"), tmp_path / "side")
    source = ShardIndex.open(write_data(tmp_path / "data", **change) / "queries")
    with pytest.raises(ValueError, match="The keys are equal, the content is not") as caught:
        check_join(source, sidecar)
    said = str(caught.value)
    first = "q-000001.tar" if "text" in change else "q-000000.tar"
    assert str(tmp_path / "side" / first) in said
    assert str(tmp_path / "data/queries" / first) in said
    assert f"Make {tmp_path / 'side'} again with `{COMMAND}`." in said


def test_only_the_shard_that_was_prepared_again_is_stale(tmp_path: Path) -> None:
    sidecar = write_side(write_data(tmp_path / "data"), tmp_path / "side")
    source = ShardIndex.open(write_data(tmp_path / "data", text="b") / "queries")
    same = {
        name: source.origin(name).sha256 == sidecar.records[name].made_from[0].sha256
        for name in source.shard_names
    }
    assert same == {"q-000000.tar": True, "q-000001.tar": False}


def test_equal_bytes_that_were_prepared_again_are_the_same_data(tmp_path: Path) -> None:
    sidecar = write_side(write_data(tmp_path / "data"), tmp_path / "side")
    shutil.rmtree(tmp_path / "data")
    assert check_join(ShardIndex.open(write_data(tmp_path / "data") / "queries"), sidecar)


def test_a_sidecar_that_does_not_tell_is_refused(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    sidecar = write_side(root, tmp_path / "side", made_from=())
    with pytest.raises(
        ValueError, match=r"has no record of what it was made from.*older.*Make .*side"
    ):
        check_join(ShardIndex.open(root / "queries"), sidecar)


def test_candidates_that_changed_beside_the_queries_are_noticed(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    sidecar = write_side(root, tmp_path / "side")
    write_candidates(root, "second")
    with pytest.raises(
        ValueError, match=r"also made from .*candidates .*holds other data.*side.yaml"
    ):
        check_join(ShardIndex.open(root / "queries"), sidecar)


# ---- the data modules record what they opened


def pairs_of(root: str, **given: Any) -> PairDataModule:
    return PairDataModule(root, ["pairs/questions"], 4, 4, {}, 0, **given)


def origins_of(module: ShardDataModule, shard: str) -> list[tuple[str, str]]:
    """Folder and shard of everything that is recorded about a shard."""
    return sorted((origin.folder.name, origin.shard) for origin in module.origins()[shard])


def test_what_each_stage_reads_is_recorded(tiny_root: Path, tmp_path: Path) -> None:
    root, rationales = (
        str(tiny_root),
        str(write_tiny_rationales(tiny_root, tmp_path / "rationales")),
    )
    depth_values = str(write_tiny_depth_values(tiny_root, tmp_path / "depth_values"))
    sides = SideDataModule(root, ["pairs/questions", "queries"], 4)
    assert origins_of(sides, "queries-000000.tar") == [("queries", "queries-000000.tar")]
    media = MediaDataModule(root, ["pairs/plain", "queries"], 4)
    assert origins_of(media, "plain-000000.tar") == [("plain", "plain-000000.tar")]

    name = "questions-000000.tar"
    selection = SelectionDataModule(root, rationales, 4, str(tmp_path / "scores"))
    both = [("candidates", ""), ("questions", name), ("rationales", name)]
    assert origins_of(selection, name) == both
    pairs = pairs_of(root, sidecar=rationales, with_candidates=True)
    assert origins_of(pairs, name) == both

    name = "queries-000000.tar"
    evaluation = EvaluationDataModule(root, 4, rationales=rationales)
    assert origins_of(evaluation, name) == [
        ("candidates", ""), ("queries", name), ("rationales", name),
    ]  # fmt: skip
    gate = DepthValueDataModule(root, depth_values, 4, 0)
    assert origins_of(gate, name) == [("depth_values", name), ("queries", name)]


@final
class Queries(ShardDataModule):
    """Reads the queries of a root and nothing else."""

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        return self.open_rows(["queries"])

    def shard_rows(self) -> Mapping[str, Sequence[Row]]:
        return by_shard(self._rows)


def test_a_source_that_is_prepared_again_meanwhile_is_recorded_as_it_was_opened(
    tmp_path: Path,
) -> None:
    """Otherwise what was made from the old bytes would pass for the new ones' sidecar."""
    root = str(write_data(tmp_path))
    module = Queries(root)
    before = module.origins()
    write_data(tmp_path, text="b")
    assert module.origins() == before
    assert Queries(root).origins() != before


# ---- every join compares


def edited(root: Path, *folders: str) -> Path:
    """Folders of a data root with other texts under the same keys."""
    for folder in folders:
        rewrite(root / folder, lambda entry, data: data | {"text": data["text"] + " again"})
    return root


def selection(root: str, runs: str) -> Any:
    return SelectionDataModule(root, f"{runs}/rationales", 4, f"{runs}/scores").origins()


def tau(root: str, runs: str) -> Any:
    return SelectionDataModule(root, f"{runs}/rationales", 4, f"{runs}/scores").judge_origins()


def embedder(root: str, runs: str) -> Any:
    return pairs_of(root, sidecar=f"{runs}/selected").train_dataloader()


def depth_values(root: str, runs: str) -> Any:
    return EvaluationDataModule(root, 4, rationales=f"{runs}/rationales").predict_dataloader()


def gate(root: str, runs: str) -> Any:
    return DepthValueDataModule(root, f"{runs}/depth_values", 4, 0).train_dataloader()


def gate_test(root: str, runs: str) -> Any:
    module = DepthValueDataModule(
        root, f"{runs}/depth_values", 4, 0, rationales=f"{runs}/rationales"
    )
    return module.test_dataloader()


JOINS = {
    selection: "pairs/questions",
    tau: "queries",
    embedder: "pairs/questions",
    depth_values: "queries",
    gate: "queries",
    gate_test: "queries",
}


@pytest.fixture(scope="module")
def prepared_again(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data with other texts than its sidecars were made from; negatives are older than the
    candidates alone."""
    folder = tmp_path_factory.mktemp("again")
    root, runs = write_sidecars(folder)
    edited(root, "pairs/questions", "queries")
    pairs, whole = root / "pairs/questions", [root / "candidates"]
    write_sidecar([pairs], runs / "negatives", lambda *_: {"json": []}, whole)
    return edited(root, "candidates"), runs


@pytest.mark.parametrize("join", JOINS)
def test_every_stage_refuses_sidecars_of_data_that_were_prepared_again(
    prepared_again: tuple[Path, Path], join: Callable[[str, str], Any]
) -> None:
    root, runs = prepared_again
    with pytest.raises(ValueError, match=rf"was not made from {root / JOINS[join]}/.*Make {runs}"):
        join(str(root), str(runs))


def test_negatives_from_candidates_that_changed_are_refused(
    prepared_again: tuple[Path, Path],
) -> None:
    root, runs = prepared_again
    with pytest.raises(ValueError, match="negatives/.* also made from .*candidates"):
        pairs_of(str(root), negatives=str(runs / "negatives")).train_dataloader()


def test_decisions_about_other_depth_values_are_refused(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    for name in ("depth_values", "decisions"):
        write_side(root, tmp_path / name)
    with pytest.raises(ValueError, match=r"decisions/.* was not made from .*depth_values/"):
        read_queries(tmp_path)


# ---- the stages


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["selection", "embedder", "depth_values", "gate", "gate-test"])
def test_an_edited_table_stops_the_next_stage_with_the_command_that_helps(
    clip_experiment: Experiment, tmp_path: Path, stage: str
) -> None:
    root = tmp_path / "data"
    shutil.copytree(clip_experiment.root, root)
    edited(root, "pairs/questions", "queries")
    command = clip_experiment.command(stage, "--runs", str(clip_experiment.runs))
    command[command.index("--data_root") + 1] = str(root)
    with pytest.raises(SystemExit, match=r"was not made from .*data/.*python -m experiments\.run"):
        run(command)


def test_a_writer_records_the_command(tmp_path: Path) -> None:
    writer = SidecarWriter(str(tmp_path))
    writer.fingerprint, writer.command, writer._shard = "f", COMMAND, "a-000000.tar"
    writer._made_from = {"a-000000.tar": (Origin(tmp_path / "data", "a-000000.tar", "0" * 64),)}
    writer._flush()
    finish_manifest(tmp_path, "f", ["a-000000.tar"])
    assert ShardIndex.open(tmp_path).records["a-000000.tar"].command == COMMAND

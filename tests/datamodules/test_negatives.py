"""Hard negatives: mined by rank, written as a sidecar, drawn for a step, and pushed away."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from callbacks import SidecarWriter
from datamodules import PairDataModule, SelectionDataModule
from datamodules.samples import SampleReader, rows_of
from lightning_modules import HardNegativeMiner
from mmemb.records.batches import PairBatch
from mmemb.records.inputs import Side
from mmemb.records.outputs import CandidateOutput
from mmemb.records.pairs import Pair
from mmemb.retrieval.galleries import Galleries
from mmemb.retrieval.hard_negatives import hardest_negatives
from mmemb.storage.manifests import IndexEntry
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.reports import rewrite
from tests.fixtures.tiny_embedder import clip
from tests.fixtures.tiny_sidecars import write_sidecar, write_tiny_rationales
from tests.fixtures.tiny_trainer import trainer_of


def pair(key: str, gallery: str, target: str, *positives: str) -> Pair:
    side = Side(key)
    return Pair(
        key, "task", "train", "c", "f", "g", gallery, side, side, target, positives, (target,)
    )  # fmt: skip


def galleries() -> Galleries:
    """Gallery x: a to d at 0, 30, 60 and 90 degrees, `a` twice; gallery y: one candidate."""
    angles = torch.tensor([0.0, 30, 0, 60, 90, 10]).deg2rad()
    vectors = torch.stack([angles.cos(), angles.sin()], 1)
    names = ("a", "b", "a", "c", "d", "z")
    return Galleries([CandidateOutput(vectors, names, ("x",) * 5 + ("y",), tuple(range(6)))])


def mined(margin: float | None, num: int = 9) -> list[list[tuple[int, str]]]:
    angles = torch.tensor([50.0, 0.0, 10.0]).deg2rad()
    query = torch.stack([angles.cos(), angles.sin()], 1)
    target = functional.normalize(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
    pairs = [pair("1", "x", "d"), pair("2", "x", "a", "b"), pair("3", "y", "z")]
    found = hardest_negatives(query, target, pairs, galleries(), num, margin)
    return [[(negative.row, negative.name) for negative in row] for row in found]


def test_the_nearest_wrong_candidates_come_first() -> None:
    assert mined(None) == [[(3, "c"), (1, "b"), (0, "a")], [(3, "c"), (4, "d")], []]
    assert mined(None, num=1) == [[(3, "c")], [(3, "c")], []]


def test_what_is_nearer_than_the_target_may_be_right() -> None:
    assert mined(0.0)[0] == [(0, "a")], "c and b are nearer to the query than its target"
    assert mined(0.2)[0] == [(1, "b"), (0, "a")], "c is by more than the margin"


# ---- as a stage


def data(root: Path, **kwargs: Any) -> PairDataModule:
    shared = {"batch_size": 8, "group_size": 4, "source_weights": {}, "seed": 0}
    shared |= {"pairs": ["pairs/plain", "pairs/questions"]}
    return PairDataModule(str(root), **(shared | kwargs))


@pytest.fixture(scope="module")
def negatives(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mined")
    miner = HardNegativeMiner(clip(folder).eval(), num_negatives=3, margin=None)
    trainer = trainer_of(folder, callbacks=[SidecarWriter(str(folder / "negatives"))])
    trainer.predict(miner, data(tiny_root, with_candidates=True), return_predictions=False)
    return folder / "negatives"


def test_every_pair_gets_its_negatives(negatives: Path, tiny_root: Path) -> None:
    index = ShardIndex.open(negatives)
    sources = [ShardIndex.open(tiny_root / "pairs" / name) for name in ("plain", "questions")]
    assert {e.key for e in index.entries} == {e.key for s in sources for e in s.entries}
    table = ShardIndex.open(tiny_root / "candidates")
    for source in sources:
        for entry in source.entries:
            known = json.loads(source.read(entry, {"json"})["json"])
            rows = json.loads(index.read(index.by_key[entry.key], {"json"})["json"])
            scores = [row["score"] for row in rows]
            assert scores == sorted(scores, reverse=True)
            assert not {row["name"] for row in rows} & {known["target_name"], *known["positives"]}
            for row in rows:
                candidate = json.loads(table.read(table.entries[row["row"]], {"json"})["json"])
                assert (candidate["name"], candidate["gallery"]) == (row["name"], known["gallery"])


def steps(root: Path, folder: Path, **kwargs: Any) -> list[PairBatch]:
    module = data(root, negatives=str(folder), **kwargs)
    return list(islice(module.train_dataloader(), 3))


def test_negatives_are_drawn_for_a_step(negatives: Path, tiny_root: Path) -> None:
    batches = steps(tiny_root, negatives, num_negatives=2)
    for batch in batches:
        assert batch.negative_ids_BK.shape == (8, 2)
        assert torch.equal(batch.negative_content_BK >= 0, batch.negative_ids_BK >= 0)
        read_BK = batch.negative_ids_BK >= 0
        assert [len(row) for row in batch.negatives] == read_BK.sum(1).tolist()
        right_BKP = batch.negative_ids_BK[:, :, None] == batch.positive_ids_BP[:, None]
        assert not (right_BKP & read_BK[:, :, None]).any()
    again = steps(tiny_root, negatives, num_negatives=2)
    assert [b.negatives for b in batches] != [b.negatives for b in steps(
        tiny_root, negatives, num_negatives=2, seed=1)]  # fmt: skip
    for one, other in zip(batches, again, strict=True):
        assert torch.equal(one.negative_ids_BK, other.negative_ids_BK)
    assert steps(tiny_root, negatives, num_negatives=5)[0].negative_ids_BK.shape == (8, 5)
    costs = batches[0].costs()
    assert costs[0] > sum(
        side.num_tokens for side in (batches[0].queries[0], batches[0].targets[0])
    )


def test_a_judge_sees_mined_ones_first(tiny_root: Path, tmp_path: Path) -> None:
    """Right ones among them are left out, and others fill up."""
    table = ShardIndex.open(tiny_root / "candidates")
    places = [(e.meta["gallery"], json.loads(table.read(e)["json"])["name"]) for e in table.entries]

    def members(entry: IndexEntry, pair: dict[str, Any]) -> dict[str, Any]:
        own = places.index((pair["gallery"], pair["target_name"]))
        rows = [own, own + 1 if (own + 1) % 8 else own - 1]  # itself, and a neighbour
        return {"json": [{"row": r, "name": places[r][1], "score": 0.5} for r in rows]}

    mined = write_sidecar([tiny_root / "pairs/questions"], tmp_path / "mined", members)
    written = write_tiny_rationales(tiny_root, tmp_path / "rationales")
    judged = SelectionDataModule(
        str(tiny_root), str(written), 4, "", num_negatives=3, negatives=str(mined)
    )
    assert places[7] == ("flags", "country-07")
    reader, entries = SampleReader(), rows_of(table)
    for batch in judged.judge_loader(judged.predict_shards()):
        for pair, sides in zip(batch.pairs, batch.candidates, strict=True):
            own = places.index((pair.gallery, pair.target_name))
            neighbour = entries[own + 1 if (own + 1) % 8 else own - 1]
            assert len(sides) == 4
            assert sides[0].digest == pair.target.digest
            assert sides[1].digest == reader.candidate(neighbour).side.digest
            assert pair.target.digest not in {side.digest for side in sides[1:]}


def test_negatives_from_other_candidates_are_refused(
    negatives: Path, tiny_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(negatives, tmp_path / "negatives")
    rewrite(tmp_path / "negatives", lambda _, rows: [row | {"row": row["row"] + 1} for row in rows])
    with pytest.raises(ValueError, match=r"candidate \d+ should be .*mined from other data"):
        steps(tiny_root, tmp_path / "negatives")
    rewrite(tmp_path / "negatives", lambda _, rows: [{"rows": 1} for _ in rows])
    with pytest.raises(ValueError, match=r"member json: .*unknown field `rows` - at `\$\[0\]`"):
        steps(tiny_root, tmp_path / "negatives")


def test_settings_that_mine_nothing_are_refused(tiny_root: Path, negatives: Path) -> None:
    with pytest.raises(ValueError, match="num_negatives 0: expected 1 or more"):
        HardNegativeMiner(torch.nn.Identity(), num_negatives=0)
    with pytest.raises(ValueError, match="num_negatives 0: expected 1 or more"):
        steps(tiny_root, negatives, num_negatives=0)

"""The stream: resume, workers under every start method, ranks, Lightning, tars without an index."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import shutil
import signal
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.pairs import PairDataModule
from datamodules.unindexed import is_unindexed
from mmemb.records.batches import PairBatch
from tests.fixtures.ranks import run_ranks
from tests.fixtures.tiny_data import write_tiny
from tests.fixtures.tiny_sidecars import write_tiny_rationales
from tests.fixtures.tiny_trainer import rank_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tiny(tmp_path_factory.mktemp("tiny"))
    write_tiny_rationales(root, root / "selected", scored=True)
    return root


def make(root: Path, place: tuple[int, int] | None = None, **changes) -> PairDataModule:
    arguments = {
        "root": str(root),
        "pairs": ["pairs/plain", "pairs/questions"],
        "batch_size": 8,
        "group_size": 4,
        "source_weights": {},
        "seed": 0,
        "sidecar": str(root / "selected"),
    }
    module = PairDataModule(**(arguments | changes))
    if place:
        module.trainer = rank_of(*place)
    return module


def content(batch: PairBatch) -> tuple:
    pixels = [m.pixels.sum().item() for side in batch.targets for m in side.media]
    ids = (batch.query_ids_B.tolist(), batch.positive_ids_BP.tolist())
    return batch.step, batch.keys, batch.rationales, ids, pixels


def take(stream, count: int) -> list[tuple]:
    return [content(batch) for batch in islice(stream, count)]


@pytest.mark.parametrize("stop", [0, 1, 6])
def test_resume_continues_with_the_next_batch(root, stop):
    straight = take(make(root).train_dataloader(), 10)
    first = make(root).train_dataloader()
    assert take(first, stop) == straight[:stop]
    second = make(root).train_dataloader()
    second.load_state_dict(first.state_dict())
    assert first.state_dict() == {"batches": stop}
    assert take(second, 10 - stop) == straight[stop:]


def test_iterating_again_goes_on(root):
    stream = make(root).train_dataloader()
    assert take(iter(stream), 2) + take(iter(stream), 2) == take(make(root).train_dataloader(), 4)


def test_stream_has_no_length(root):
    with pytest.raises(TypeError):
        len(make(root).train_dataloader())


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batches_of_one_process(root, world):
    whole = [batch.keys for batch in islice(make(root).train_dataloader(), 5)]
    parts = [
        [b.keys for b in islice(make(root, place=(rank, world)).train_dataloader(), 5)]
        for rank in range(world)
    ]
    for step, keys in enumerate(whole):
        found = [key for part in parts for key in part[step]]
        assert sorted(found) == sorted(keys), "who gets which is a matter of their tokens"


def test_batch_that_ranks_cannot_share(root):
    with pytest.raises(ValueError, match="cannot be split evenly over 3 ranks"):
        make(root, place=(0, 3)).train_dataloader()


@pytest.mark.parametrize(
    ("start_method", "num_workers"),
    [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.slow)],
)
def test_workers_prefetch_the_same_batches(root, start_method, num_workers):
    expected = take(make(root).train_dataloader(), 6)
    workers = {"num_workers": num_workers, "start_method": start_method}
    stream = make(root, **workers).train_dataloader()
    state = torch.get_rng_state()
    stream.load_state_dict({"batches": 3})
    assert take(stream, 3) == expected[3:]
    assert stream.state_dict() == {"batches": 6}  # not what was prefetched
    assert torch.equal(state, torch.get_rng_state())


def test_a_reading_process_ignores_the_warning_of_a_scheduler(root: Path) -> None:
    """SLURM sends it to all processes of a job, and the one that trains completes its step."""
    before = set(multiprocessing.active_children())
    stream = make(root, num_workers=1).train_dataloader()
    take(stream, 1)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGUSR1)
    assert len(take(stream, 4)) == 4
    assert worker.is_alive()


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps: list[int] = []

    def training_step(self, batch: PairBatch, batch_idx: int) -> torch.Tensor:
        self.steps.append(batch.step)
        return self.weight * len(batch.keys)

    def validation_step(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        raise AssertionError

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path, data: PairDataModule, max_steps: int, resume: Path | None = None
) -> list[int]:
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        limit_train_batches=4,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        ],
    )
    trainer.fit(recorder, datamodule=data, ckpt_path=resume, weights_only=True)
    return recorder.steps


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")  # on purpose
def test_lightning_resumes_in_the_middle_of_an_epoch(root, tmp_path):
    assert fit(tmp_path / "straight", make(root), 10) == list(range(10))
    assert fit(tmp_path / "first", make(root), 6) == list(range(6))
    assert fit(tmp_path / "second", make(root), 10, tmp_path / "first/step=6.ckpt") == [6, 7, 8, 9]


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")  # on purpose
def test_lightning_keeps_the_facts_of_a_stream_in_its_checkpoints(root, tmp_path):
    first, second = (make(root, pairs=tars(root), sidecar=None) for _ in range(2))
    fit(tmp_path / "first", first, 2)
    assert fit(tmp_path / "second", second, 2, tmp_path / "first/step=2.ckpt") == []
    assert first.trained_facts == second.trained_facts != frozenset()


def tars(root: Path) -> list[str]:
    return [str(path) for path in sorted((root / "pairs/plain").glob("*.tar"))]


def test_tars_without_an_index_are_streamed_and_replayed(root, tmp_path, caplog):
    zipped = []
    for path in tars(root):
        zipped.append(str(tmp_path / (Path(path).name + ".gz")))
        Path(zipped[-1]).write_bytes(gzip.compress(Path(path).read_bytes()))
    module = make(root, pairs=zipped, sidecar=None)
    stream = module.train_dataloader()
    straight = take(stream, 12)  # 8 batches are an epoch
    assert "has no index: streaming through webdataset" in caplog.text
    assert len({key for _, keys, *_ in straight[:7] for key in keys}) == 56
    assert stream.state_dict() == {"batches": 12}
    assert "country:20/name" in module.trained_facts
    again = make(root, pairs=zipped, sidecar=None).train_dataloader()
    again.load_state_dict({"batches": 9})
    assert take(again, 3) == straight[9:]


def test_ranks_know_the_facts_of_all_streams_also_after_a_resume_at_the_end(root):
    def read(rank: int, batches: int, state: dict | None = None):
        module = make(root, (rank, 2), pairs=tars(root), sidecar=None)
        if state is not None:
            module.load_state_dict(state)
        list(islice(module.train_dataloader(), batches))
        return module.trained_facts, module.state_dict()

    def read_and_resume(rank: int):
        facts, state = read(rank, 8)
        return facts, state, read(rank, 0, state)  # killed after its last checkpoint

    facts = make(root, pairs=["pairs/plain"], sidecar=None).trained_facts
    expected = (facts, {"facts": sorted(facts)})
    assert run_ranks(read_and_resume) == [(*expected, expected)] * 2
    assert make(root).state_dict() == {}, "an index names the facts of indexed shards"

    indexed = make(root, pairs=["pairs/questions"], sidecar=None)
    own = indexed.trained_facts
    indexed.load_state_dict(expected[1])  # the fit goes on from what a stream has trained
    assert indexed.trained_facts == own | facts != own
    assert indexed.state_dict() == expected[1]


def test_a_tar_that_is_prepared_again_between_epochs_is_one_clear_error(root, tmp_path):
    """A stream has no index that could tell, and would go on with other pairs."""
    tar = tmp_path / "pairs.tar"
    tar.write_bytes(Path(tars(root)[0]).read_bytes())
    stream = make(root, pairs=[str(tar)], sidecar=None).train_dataloader()
    take(stream, 2)  # 16 pairs are an epoch of two batches
    time.sleep(0.01)
    tar.write_bytes(Path(tars(root)[1]).read_bytes())
    with pytest.raises(ValueError, match=r"pairs\.tar was changed while it was being read"):
        take(stream, 2)


def test_a_new_link_to_a_tar_is_no_change(root, tmp_path, caplog):
    tar = tmp_path / "pairs.tar"
    tar.write_bytes(Path(tars(root)[0]).read_bytes())
    stream = make(root, pairs=[str(tar)], sidecar=None).train_dataloader()
    take(stream, 2)
    time.sleep(0.01)
    os.link(tar, tmp_path / "backup.tar")
    take(stream, 2)
    assert "permissions or links of" in caplog.text


def test_pipes(root):
    pipes = [f"pipe:cat {path}" for path in tars(root)]
    found = take(make(root, pairs=pipes, sidecar=None).train_dataloader(), 2)
    assert found == take(make(root, pairs=tars(root), sidecar=None).train_dataloader(), 2)


def test_ranks_split_tars(root):
    keys = []
    for rank in range(2):
        stream = make(root, (rank, 2), pairs=tars(root), sidecar=None).train_dataloader()
        batches = list(islice(stream, 6))
        assert {len(batch.keys) for batch in batches} == {4}
        keys.append({key for batch in batches for key in batch.keys})
    assert not keys[0] & keys[1]


def test_too_few_tars(root):
    with pytest.raises(ValueError, match="at least one tar for each rank"):
        make(root, (0, 8), pairs=tars(root), sidecar=None).train_dataloader()


def test_what_a_stream_cannot_do(root):
    with pytest.raises(ValueError, match="no sidecar can be joined"):
        make(root, pairs=tars(root)).train_dataloader()
    with pytest.raises(ValueError, match="cannot be|not predicted"):
        make(root, pairs=tars(root), sidecar=None).predict_dataloader()
    with pytest.raises(ValueError, match="mix indexed folders with streamed tars"):
        is_unindexed(["pairs/plain", "x.tar"])


def test_copied_shards_are_read_where_they_lie(root, tmp_path):
    shutil.copytree(root / "pairs", tmp_path / "pairs")
    expected = take(make(root).train_dataloader(), 2)
    moved = make(root, pairs=[str(tmp_path / "pairs/plain"), "pairs/questions"])
    assert take(moved.train_dataloader(), 2) == expected

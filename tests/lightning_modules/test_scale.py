"""Strategy x gradient cache x checkpointing x LoRA x compile: the same weights everywhere."""

from __future__ import annotations

import itertools
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from callbacks import InvocationRatio, RecallAtK, RunRecord
from callbacks.training_health import TrainingHealth
from datamodules import EvaluationDataModule
from lightning_modules import ContrastiveEmbedder
from lightning_modules.sharding import gather, shard
from mmemb.backbones import Backbone, load_backbone
from mmemb.llm.lora import LoraSettings
from mmemb.training.gradient_cache import GradientCache
from tests.fixtures.ranks import run_ranks
from tests.fixtures.tiny_embedder import BACKBONES, clip, evaluate
from tests.fixtures.tiny_trainer import Stub, trainer_of
from tests.lightning_modules.test_contrastive_embedder import ROWS, joined, rows

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Found .* eval mode"
    ),  # pretrained splits train without dropout
    pytest.mark.filterwarnings("ignore:The .grad attribute"),  # dynamo looks at every tensor
]

CACHES = (None, GradientCache(micro_batch_tokens=40))  # ranks cut into unequally many parts
CELLS = list(itertools.product(("ddp", "fsdp2"), CACHES, (False, True), (False, True)))
"""Strategy, cache, checkpointing, LoRA."""

SPLITS = [rows(0, 5), rows(ROWS, 0)]  # the second rank reads no rationale and no picture


def module_of(
    backbone: Backbone, cell: Any = CELLS[0], backend: str | None = None, **kwargs: Any
) -> ContrastiveEmbedder:
    _, cache, checkpointing, lora = cell
    return ContrastiveEmbedder(
        backbone,
        partial(torch.optim.SGD, lr=0.1),
        num_warmup_steps=1,
        lora=LoraSettings(2) if lora else None,
        gradient_cache=cache,
        gradient_checkpointing=checkpointing,
        compile_backend=backend,
        **kwargs,
    )


def rank_trainer(rank: int, folder: Path, strategy: str, **kwargs: Any) -> Trainer:
    """Of one of two ranks, as if torchrun had started it; the process group is there already."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    told |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": 0, "MASTER_ADDR": "x", "MASTER_PORT": 1}
    os.environ.update({name: str(value) for name, value in told.items()})
    strategies = {
        "ddp": partial(DDPStrategy, process_group_backend="gloo"),
        "fsdp2": partial(ModelParallelStrategy, 2, 1, save_distributed_checkpoint=False),
    }
    return trainer_of(folder, 2, strategy=strategies[strategy](), **{"max_steps": 2, **kwargs})


def twice(parts: list[Any]) -> Stub:
    return Stub(train=lambda rank, world: [parts[rank], parts[rank]])


def weights(folder: Path) -> dict[str, Tensor]:
    return load_backbone(str(folder / "backbone")).state_dict()


def reference(folder: Path, start: Path, **kwargs: Any) -> dict[str, Tensor]:
    """One process, the whole batch at once."""
    module = module_of(load_backbone(str(start)), **kwargs)
    trainer_of(folder, max_steps=2).fit(module, datamodule=twice([joined(SPLITS)]))
    return weights(folder)


def assert_cells(
    folder: Path, name: str, cells: list[Any], backend: str | None, seconds: float = 90
) -> None:
    """Trained by two ranks and saved by rank 0, every cell leaves what one process leaves."""
    start = folder / "start"
    BACKBONES[name](folder).save_pretrained(start)
    expected = {
        lora: reference(folder / f"lora-{lora}", start, cell=(None, None, False, lora))
        for lora in {cell[3] for cell in cells}
    }

    def train(rank: int) -> None:
        for number, cell in enumerate(cells):
            torch.compiler.reset()
            trainer = rank_trainer(rank, folder / str(number), cell[0])
            module = module_of(load_backbone(str(start)), cell, backend)
            trainer.fit(module, datamodule=twice(SPLITS))

    run_ranks(train, seconds=seconds)
    for number, cell in enumerate(cells):
        found = weights(folder / str(number))
        for key, value in expected[cell[3]].items():
            torch.testing.assert_close(
                found[key], value, atol=1e-5, rtol=1e-4, msg=f"{cell}: {key}"
            )


def test_cells_of_both_strategies_train_the_same_weights(tmp_path: Path) -> None:
    """With everything that saves memory, and with nothing of it."""
    cells = [("ddp", CACHES[0], False, False), ("fsdp2", CACHES[1], True, True)]
    assert_cells(tmp_path, "joint", cells, None)


@pytest.mark.slow
def test_every_cell_trains_the_same_weights(tmp_path: Path) -> None:
    assert_cells(tmp_path, "joint", CELLS, None)


@pytest.mark.slow
def test_a_compiled_backbone_trains_the_same_weights(tmp_path: Path) -> None:
    assert_cells(tmp_path, "joint", [("fsdp2", None, True, False)], "aot_eager")


@pytest.mark.slow
def test_a_dual_encoder_is_sharded_and_recomputed_too(tmp_path: Path) -> None:
    cells = [cell for cell in CELLS if cell[2] and not cell[3]]
    assert_cells(tmp_path, "clip", cells, None)


@pytest.mark.slow
def test_every_cell_may_be_compiled(tmp_path: Path) -> None:
    assert_cells(tmp_path, "joint", CELLS, "aot_eager", seconds=300)


@pytest.mark.slow
def test_the_default_compiler_trains_the_same_weights(tmp_path: Path) -> None:
    cells = [("ddp", None, False, False), ("fsdp2", CACHES[1], True, True)]
    assert_cells(tmp_path, "joint", cells, "inductor", seconds=300)


def test_checkpointing_keeps_less(tmp_path: Path) -> None:
    kept = []
    for checkpointing in (False, True):
        module = module_of(clip(tmp_path), (None, None, checkpointing, False))
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept[-1].append(x.nbytes) or x, lambda x: x
        ):
            kept.append([])
            module.backbone(SPLITS[0].targets)
    assert sum(kept[1]) < 0.7 * sum(kept[0])


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.slow
def test_a_sharded_fit_clips_logs_and_resumes_as_ddp(tmp_path: Path) -> None:
    """Its checkpoint is one file that another strategy goes on from."""
    start, common = tmp_path / "start", {"gradient_clip_val": 0.1, "enable_checkpointing": True}
    clip(tmp_path).save_pretrained(start)

    def fit(trainer: Trainer, parts: list[Any], ckpt_path: str | None = None) -> None:
        module = module_of(load_backbone(str(start)))
        trainer.fit(module, datamodule=twice(parts), ckpt_path=ckpt_path)

    def train(rank: int) -> float:
        saving = partial(ModelCheckpoint, filename="end", every_n_train_steps=1)
        callbacks = [saving(tmp_path / "ckpt"), TrainingHealth()]
        first = rank_trainer(
            rank, tmp_path / "first", "fsdp2", max_steps=1, callbacks=callbacks, **common
        )
        fit(first, SPLITS)
        second = rank_trainer(rank, tmp_path / "second", "ddp", callbacks=[saving()], **common)
        fit(second, SPLITS, str(tmp_path / "ckpt/end.ckpt"))
        return float(first.callback_metrics["train/grad_norm/old"])

    norms = run_ranks(train)
    assert norms[0] == norms[1] > 0
    fit(trainer_of(tmp_path / "one", max_steps=2, **common), [joined(SPLITS)])
    for key, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "second")[key], value, atol=1e-5, rtol=1e-4)


def test_a_sharded_backbone_is_tested_like_a_whole_one(tiny_root: Path, tmp_path: Path) -> None:
    expected = evaluate(tmp_path, tiny_root, 1, clip(tmp_path), reason=False)

    def test(rank: int) -> dict[str, float]:
        trainer = rank_trainer(rank, tmp_path, "fsdp2", callbacks=[RecallAtK(), InvocationRatio()])
        data = EvaluationDataModule(str(tiny_root), batch_size=5, splits=["test"])
        trainer.test(module_of(clip(tmp_path)), datamodule=data, verbose=False)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    assert run_ranks(test) == [pytest.approx(expected)] * 2


def test_one_rank_may_embed_while_the_other_has_nothing(tmp_path: Path) -> None:
    def embed(rank: int) -> int:
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
        backbone = clip(tmp_path)
        shard(backbone, mesh, "32-true")
        gather(backbone)
        with torch.no_grad():
            return len(backbone(SPLITS[0].queries)) if rank == 0 else 0

    assert run_ranks(embed) == [ROWS, 0]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_half_precision_trains_with_a_cache(tmp_path: Path, strategy: str) -> None:
    """Mixed precision moves the weights as full precision does, to the accuracy of bf16."""
    start = tmp_path / "start"
    clip(tmp_path).save_pretrained(start)
    cell = (strategy, CACHES[1], True, False)

    def train(rank: int) -> None:
        trainer = rank_trainer(rank, tmp_path / "fold", strategy, precision="bf16-mixed")
        trainer.fit(module_of(load_backbone(str(start)), cell), datamodule=twice(SPLITS))

    run_ranks(train)
    whole, before = reference(tmp_path / "one", start), load_backbone(str(start)).state_dict()
    found = weights(tmp_path / "fold")
    moved = torch.cat([(whole[k] - before[k]).flatten() for k in whole if whole[k].ndim])
    moved_fold = torch.cat([(found[k] - before[k]).flatten() for k in whole if whole[k].ndim])
    assert torch.cosine_similarity(moved, moved_fold, dim=0) > 0.98


def refusal(tmp_path: Path, backbone: Backbone, **kwargs: Any) -> str:
    def train(rank: int) -> str:
        trainer = rank_trainer(rank, tmp_path, "fsdp2")
        with pytest.raises(ValueError, match=".") as caught:
            trainer.fit(module_of(backbone, **kwargs), datamodule=twice(SPLITS))
        return str(caught.value)

    return run_ranks(train)[0]


def test_a_trained_temperature_is_not_sharded(tmp_path: Path) -> None:
    assert "learn_temperature to false" in refusal(tmp_path, clip(tmp_path), learn_temperature=True)


def test_ranks_with_different_settings_do_not_start(tmp_path: Path) -> None:
    """A batch size of its own on one rank, say: its numbers would be wrong, or it would hang."""

    def train(rank: int) -> str:
        record = RunRecord(str(tmp_path / "run"), "link", "", fingerprint=f"settings-{rank}")
        trainer = rank_trainer(rank, tmp_path, "ddp", callbacks=[record])
        with pytest.raises(ValueError, match="same command") as caught:
            trainer.fit(module_of(clip(tmp_path)), datamodule=twice(SPLITS))
        return str(caught.value)

    assert all("['settings-0', 'settings-1']" in message for message in run_ranks(train))
    assert not (tmp_path / "run").exists()


def test_what_has_nothing_to_recompute_or_changes_by_it_is_refused(tmp_path: Path) -> None:
    backbone = clip(tmp_path)
    backbone.model.visual.norm = nn.BatchNorm2d(3)
    module = module_of(backbone.train(), CELLS[4])
    with pytest.raises(ValueError, match="visual.norm is a batch normalisation"):
        trainer_of(tmp_path, max_steps=1).fit(module, datamodule=twice([SPLITS[0]]))
    backbone.blocks = list
    with pytest.raises(ValueError, match="names no blocks"):
        module_of(backbone, (None, None, True, False))
    with pytest.raises(ValueError, match="compile_backend 'fast' is unknown"):
        module_of(clip(tmp_path), backend="fast")

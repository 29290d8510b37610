"""Distillation: the loss by closed forms and over ranks, and the teacher's sidecar."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from callbacks import SidecarWriter
from datamodules.samples import rows_of
from datamodules.teacher import TeacherTable
from lightning_modules import ContrastiveEmbedder, TeacherEmbedder
from mmemb.losses.distillation import distillation_loss
from mmemb.losses.terms import combine
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.shard_writer import Sample, encode_members, write_folder
from mmemb.training.path_losses import PathLosses
from tests.datamodules.test_negatives import data
from tests.fixtures.ranks import run_ranks
from tests.fixtures.tiny_embedder import clip
from tests.fixtures.tiny_sidecars import write_sidecar
from tests.fixtures.tiny_trainer import trainer_of


def unit(*shape: int, seed: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return functional.normalize(x, dim=-1)


def loss_of(
    query: Tensor, target: Tensor, teacher: tuple[Tensor, Tensor], **kwargs: object
) -> Tensor:
    return combine(
        distillation_loss(
            query,
            target,
            teacher_query_BE=teacher[0],
            teacher_target_BE=teacher[1],
            **{"temperature": 0.2, "teacher_temperature": 0.1, **kwargs},
        )
    )


@given(st.integers(0, 10**6), st.integers(1, 7), st.sampled_from([1, 2, 5, None]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_tiles_equal_torchs_divergence(
    seed: int, B: int, tile: int | None, symmetric: bool
) -> None:
    query, target = unit(B, 4, seed=seed), unit(B, 4, seed=seed + 1)
    teacher = unit(B, 6, seed=seed + 2), unit(B, 6, seed=seed + 3)
    student = [x.clone().requires_grad_() for x in (query, target)]
    ours = loss_of(*student, teacher, symmetric=symmetric, tile=tile)
    ours.backward()
    plain = [x.clone().requires_grad_() for x in (query, target)]
    score, wanted = plain[0] @ plain[1].T / 0.2, teacher[0] @ teacher[1].T / 0.1
    theirs = functional.kl_div(score.log_softmax(1), wanted.softmax(1), reduction="batchmean")
    if symmetric:
        back = functional.kl_div(score.T.log_softmax(1), wanted.T.softmax(1), reduction="batchmean")
        theirs = (theirs + back) / 2
    theirs.backward()
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    for a, b in zip(student, plain, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-10, rtol=1e-10)


def test_a_student_that_agrees_learns_nothing() -> None:
    query, target = unit(5, 4, seed=0).requires_grad_(), unit(5, 4, seed=1)
    loss = loss_of(query, target, (query.detach(), target), temperature=0.1)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert query.grad.abs().max() < 1e-12


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_a_teachers_vector_that_is_none_is_refused(tmp_path: Path, value: float) -> None:
    broken = encode_members({"query.npy": np.ones(3), "target.npy": np.full(3, value)})
    sample = Sample("00000000", broken, {})
    write_folder(tmp_path, [sample], prefix="t", samples_per_shard=1, fingerprint="")
    (row,) = rows_of(ShardIndex.open(tmp_path))
    with pytest.raises(ValueError, match=r"target\.npy: the teacher's vector is zero or not"):
        TeacherTable(tmp_path, []).read(row)


def _on_rank(rank: int, world: int) -> list[Tensor]:
    mine = slice(rank * 6 // world, (rank + 1) * 6 // world)
    weight = torch.eye(4, dtype=torch.float64).requires_grad_()
    x, y = unit(6, 4, seed=0)[mine] @ weight, unit(6, 4, seed=1)[mine] @ weight
    loss_of(x, y, (unit(6, 3, seed=2)[mine], unit(6, 3, seed=3)[mine])).backward()
    if world > 1:
        dist.all_reduce(weight.grad)
        weight.grad /= world
    return [weight.grad]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_process(world: int) -> None:
    (expected,) = _on_rank(0, 1)
    for (found,) in run_ranks(_on_rank, world, world):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


# ---- as a stage


@pytest.fixture(scope="module")
def teacher(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    trainer = trainer_of(folder, callbacks=[SidecarWriter(str(folder / "teacher"))])
    module = TeacherEmbedder(clip(folder).eval())
    trainer.predict(module, data(tiny_root), return_predictions=False)
    return folder / "teacher"


def test_the_sidecar_holds_the_teachers_vectors(teacher: Path, tiny_root: Path) -> None:
    (batch,) = islice(data(tiny_root, teacher=str(teacher)).train_dataloader(), 1)
    backbone = clip(teacher).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            batch.teacher_B2E[:, 0], backbone(batch.queries), atol=2e-3, rtol=0
        )
        torch.testing.assert_close(
            batch.teacher_B2E[:, 1], backbone(batch.targets), atol=2e-3, rtol=0
        )


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teacher(
    teacher: Path, tiny_root: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    student = ContrastiveEmbedder(
        clip(tmp_path),
        lambda groups: torch.optim.AdamW(groups, lr=3e-3),
        losses=PathLosses(direct=0.0, reasoned=0.0),
        distillation_weight=1.0,
        num_warmup_steps=1,
    )
    with torch.no_grad():  # `clip` is seeded, so it starts as the teacher
        for parameter in student.backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    (batch,) = islice(data(tiny_root, teacher=str(teacher)).train_dataloader(), 1)

    def distance() -> float:
        student.eval()
        with torch.no_grad():
            vectors = [student.backbone(sides) for sides in (batch.queries, batch.targets)]
            pair = batch.teacher_B2E.unbind(1)
            return float(loss_of(*vectors, pair, temperature=0.05, teacher_temperature=0.05))

    before = distance()
    trainer = trainer_of(tmp_path, max_steps=12, limit_train_batches=12)
    trainer.fit(student.train(), datamodule=data(tiny_root, teacher=str(teacher)))
    assert distance() < 0.8 * before


def test_what_is_no_teacher_is_refused(teacher: Path, tiny_root: Path, tmp_path: Path) -> None:
    assert ShardIndex.open(teacher).entries
    pairs = [tiny_root / "pairs/questions"]
    questions = str(write_sidecar(pairs, tmp_path / "side", lambda *_: {"json": []}))
    stream = iter(data(tiny_root, teacher=questions, pairs=["pairs/questions"]).train_dataloader())
    with pytest.raises(ValueError, match="lacks query.npy: it is no teacher's sidecar"):
        next(stream)
    both = data(tiny_root, teacher=questions)
    with pytest.raises(ValueError, match="covers no shard of .*plain"):
        both.train_dataloader()
    student = ContrastiveEmbedder(clip(tmp_path), distillation_weight=1.0)
    with pytest.raises(ValueError, match=r"set data\.teacher"):
        trainer_of(tmp_path, max_steps=1, limit_train_batches=1).fit(student, data(tiny_root))

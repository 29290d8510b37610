"""Distillation: a batch's similarities as a stronger embedder sees them.

docs/method.md section 6. The teacher's vectors are read from a sidecar; no teacher is run.
There are no ids and no masks: the teacher sees two equal targets as equally near. Shapes: B rows of
this rank, M rows of all ranks, b rows of a tile, D embedding width, E the teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmemb.distributed import gather_rows
from mmemb.losses.tiled_infonce import TILE_NUMBERS
from mmemb.records.loss_term import LossTerm


def distillation_loss(
    query_BD: Tensor,
    target_BD: Tensor,
    *,
    teacher_query_BE: Tensor,
    teacher_target_BE: Tensor,
    temperature: Tensor | float,
    teacher_temperature: float,
    symmetric: bool = True,
    tile: int | None = None,
) -> LossTerm:
    """KL of the student's in-batch similarities from the teacher's, over the columns of all ranks.

    Runs its collectives on every rank; all ranks pass the same B.

    Args:
        query_BD: the student's unit vectors.
        target_BD: those of the rows' own targets.
        teacher_query_BE: the teacher's unit vectors, without gradient.
        teacher_target_BE: those of the targets.
        temperature: the student's tau.
        teacher_temperature: the teacher's tau.
        symmetric: half query to target, half target to query; False = the former alone.
        tile: rows that meet all columns together; None chooses. No (B, M) tensor is kept.
    """
    taus = temperature, teacher_temperature
    student = query_BD, gather_rows(target_BD)
    teacher = teacher_query_BE, gather_rows(teacher_target_BE)
    total = _divergence(student, teacher, taus, tile)

    if symmetric:
        student = target_BD, gather_rows(query_BD)
        teacher = teacher_target_BE, gather_rows(teacher_query_BE)
        total = (total + _divergence(student, teacher, taus, tile)) / 2
    return LossTerm(total, torch.tensor(len(query_BD), device=query_BD.device))


def _divergence(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    taus: tuple[Tensor | float, float],
    tile: int | None,
) -> Tensor:
    """Sum over rows of KL(teacher, student); each a pair of rows and columns."""
    rows, columns = student
    step = tile or max(1, TILE_NUMBERS // max(1, len(columns)))
    total = rows.new_zeros(())

    # A checkpoint keeps vectors and no scores: the backward pass makes those of a tile again.
    for start in range(0, len(rows), step):
        cut = slice(start, start + step)
        tensors = rows[cut], columns, teacher[0][cut], teacher[1]
        total = total + checkpoint(_tile_divergence, *tensors, *taus, use_reentrant=False)
    return total


def _tile_divergence(
    row_bD: Tensor,
    column_MD: Tensor,
    teacher_row_bE: Tensor,
    teacher_column_ME: Tensor,
    temperature: Tensor | float,
    teacher_temperature: float,
) -> Tensor:
    # Under autocast the products would be bf16: three digits are too few for cosine / tau.
    with torch.autocast(row_bD.device.type, enabled=False):
        student_bM = (row_bD @ column_MD.T / temperature).log_softmax(1)
        teacher_bM = (teacher_row_bE @ teacher_column_ME.T / teacher_temperature).log_softmax(1)
        return (teacher_bM.exp() * (teacher_bM - student_bM)).sum()

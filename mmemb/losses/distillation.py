"""Distillation: a batch's similarities as a stronger embedder sees them (METHOD 6).

The teacher's vectors are read from a sidecar; it is never run in training. Shapes: B rows of this
rank, M rows of all ranks, b rows of a tile, D embedding width, E the teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmemb.distributed import gather_rows
from mmemb.losses.nce_sweeps import TILE_NUMBERS
from mmemb.losses.terms import LossTerm


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
        target_BD: of the rows' own targets.
        teacher_query_BE: the teacher's unit vectors, without gradient.
        teacher_target_BE: of the targets.
        temperature: the student's tau.
        teacher_temperature: the teacher's tau.
        symmetric: half query to target, half target to query; False = the former alone.
        tile: rows that meet all columns together; None chooses. No (B, M) tensor is kept.
    """
    taus = temperature, teacher_temperature
    teacher_ME = gather_rows(teacher_target_BE)
    total = _divergence(
        (query_BD, gather_rows(target_BD)), (teacher_query_BE, teacher_ME), taus, tile
    )
    if symmetric:
        teacher_ME = gather_rows(teacher_query_BE)
        back = _divergence(
            (target_BD, gather_rows(query_BD)), (teacher_target_BE, teacher_ME), taus, tile
        )
        total = (total + back) / 2
    return LossTerm(total, torch.tensor(len(query_BD), device=query_BD.device))


def _divergence(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    taus: tuple[Tensor | float, float],
    tile: int | None,
) -> Tensor:
    """Sum over rows of KL(teacher, student); each a pair of rows and columns."""
    rows, columns = student[0], student[1]
    step = tile or max(1, TILE_NUMBERS // max(1, len(columns)))
    total = rows.new_zeros(())
    for start in range(0, len(rows), step):
        cut = slice(start, start + step)
        total = total + checkpoint(
            _of_tile, rows[cut], columns, teacher[0][cut], teacher[1], *taus, use_reentrant=False
        )
    return total


def _of_tile(
    row_bD: Tensor,
    column_MD: Tensor,
    teacher_row_bE: Tensor,
    teacher_column_ME: Tensor,
    temperature: Tensor | float,
    teacher_temperature: float,
) -> Tensor:
    # Under autocast the products would be bf16: three digits are too few for s / tau.
    with torch.autocast(row_bD.device.type, enabled=False):
        ours_bM = (row_bD @ column_MD.T / temperature).log_softmax(1)
        theirs_bM = (teacher_row_bE @ teacher_column_ME.T / teacher_temperature).log_softmax(1)
        return (theirs_bM.exp() * (theirs_bM - ours_bM)).sum()

"""The training batch of a step on one rank: planned, read, given its rationales, collated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.collate import pair_batch, with_negatives
from datamodules.decode import DecodeError, OnError
from datamodules.negatives import NegativeTable
from datamodules.random_crop import RandomCrop
from datamodules.samples import Row, SampleReader
from datamodules.sidecars import RationaleDraw
from datamodules.stream import Item
from datamodules.teacher import TeacherTable
from mmemb.records.pairs import Candidate, Pair
from mmemb.records.rationales import Rationale
from mmemb.training.batch_plan import BatchPlan, balanced_parts, entry_tokens

_Read = tuple[Pair, Rationale | None, tuple[Candidate, ...], Tensor | None, Rationale | None]


@final
class PairSteps(Dataset[Item]):
    """Step -> the part of the global batch that one rank trains on.

    With `on_error: skip` an undecodable row gives its place to its successor in the same
    candidate space, so every rank keeps its number of rows and groups stay homogeneous.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        plan: BatchPlan,
        reader: SampleReader,
        draw: RationaleDraw | None,
        place: tuple[int, int],
        on_error: OnError,
        negatives: NegativeTable | None = None,
        teacher: TeacherTable | None = None,
        target_draw: RationaleDraw | None = None,
        crop: RandomCrop | None = None,
    ) -> None:
        self._target_draw, self._crop = target_draw, crop
        self._negatives, self._teacher = negatives, teacher
        self._rows, self._plan, self._reader, self._draw = rows, plan, reader, draw
        self._place, self._on_error = place, on_error

    def __getitem__(self, step: int) -> Item:
        problems: list[str] = []
        rank, world = self._place
        batch = self._plan.positions(step)

        # Rows are dealt by their tokens, so that no rank waits long for another one's texts.
        costs = [entry_tokens(self._rows[position].entry) for position in batch]
        positions = balanced_parts(batch, costs, world)[rank]

        samples = [self._read_or_replace(position, step, problems) for position in positions]
        pairs, rationales, negatives, vectors, target_rationales = zip(*samples, strict=True)
        batch = pair_batch(pairs, rationales, step)

        # By what is configured, not by what was read: every rank's batch has the same fields.
        if self._negatives is not None:
            batch = with_negatives(batch, negatives, self._negatives.num)
        if self._teacher is not None:
            batch = replace(batch, teacher_B2E=torch.stack(vectors))
        if self._target_draw is not None:
            batch = replace(batch, target_rationales=tuple(target_rationales))
        if self._crop is not None:
            batch = self._crop.batch(batch)
        return batch, tuple(problems)

    def _read_or_replace(self, position: int, step: int, problems: list[str]) -> _Read:
        try:
            return self._read(position, step)
        except DecodeError as error:
            if self._on_error == "raise":
                raise
            problems.append(error.problem)

        for substitute in self._plan.substitutes(position):
            try:
                return self._read(substitute, step)
            except DecodeError as error:
                problems.append(error.problem)

        raise ValueError(
            f"No sample of source {self._rows[position].meta['source']!r} can be decoded; first: "
            f"{problems[0]}"
        )

    def _read(self, position: int, step: int) -> _Read:
        row = self._rows[position]
        rationale = self._draw.draw(row, step) if self._draw else None
        negatives = self._negatives.draw(row, step) if self._negatives else ()
        teacher = self._teacher.read(row) if self._teacher else None
        target_rationale = self._target_draw.draw(row, step) if self._target_draw else None

        # The pictures come last: a row whose sidecars fail costs no decoding.
        return self._reader.pair(row), rationale, negatives, teacher, target_rationale

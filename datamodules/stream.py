"""The endless, resumable stream: its whole state is one number, the batches handed out.

A batch is a pure function of (seed, step, rank, world), so workers may prefetch in any way.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Literal, final

import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from mmemb.storage.signals import ignore_warnings

StartMethod = Literal["fork", "spawn", "forkserver"]
Item = tuple[Any, tuple[str, ...]]
"""A batch, and one sentence for each sample that was skipped while it was made."""

_LAST_STEP = 2**62
_LOG = logging.getLogger(__name__)


class ResumedStream(ABC):
    """Endless batches; has no length, state as Lightning wants it.

    It is its own iterator and goes on where it stopped, so an epoch has `limit_train_batches`
    batches; with `max_epochs` a data module sets this to one pass over its rows.
    """

    def __init__(self) -> None:
        self._batches = 0
        self._source: Iterator[Item] | None = None
        self._skipped: dict[str, None] = {}

    @property
    def skipped(self) -> tuple[str, ...]:
        """One sentence for each distinct sample skipped so far."""
        return tuple(self._skipped)

    def __iter__(self) -> ResumedStream:
        return self

    def __next__(self) -> Any:
        # Opened by the first batch: a state that is loaded before it decides where to start.
        if self._source is None:
            self._source = self._read_from(self._batches)
        batch, problems = next(self._source)
        self._batches += 1
        self._report(problems)
        return batch

    def state_dict(self) -> dict[str, int]:
        """Equal on all ranks: the number of batches handed out."""
        return {"batches": self._batches}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues with the batch after the last one handed out."""
        self._batches = state["batches"]
        self._source = None

    @abstractmethod
    def _read_from(self, step: int) -> Iterator[Item]:
        """Yields the batches from a step on."""

    def _report(self, problems: Sequence[str]) -> None:
        # A stream meets a broken sample in every epoch, but warns of it once.
        fresh = [problem for problem in dict.fromkeys(problems) if problem not in self._skipped]
        self._skipped |= dict.fromkeys(fresh)
        if fresh:
            warn_skipped(fresh, len(self._skipped))


@final
class StepStream(ResumedStream):
    """Hands out `steps[0], steps[1], ...`.

    `steps` is never shuffled or split: it is made for one rank.

    Args:
        steps: step -> batch of this rank and what was skipped.
        num_workers: processes that prefetch; 0 reads in this one.
        start_method: start method of these processes; None is Python's default.
    """

    def __init__(
        self,
        steps: Dataset[Item],
        num_workers: int = 0,
        start_method: StartMethod | None = None,
    ) -> None:
        super().__init__()
        self._steps, self._num_workers, self._start_method = steps, num_workers, start_method

    @override
    def _read_from(self, step: int) -> Iterator[Item]:
        if self._num_workers == 0:
            return map(self._steps.__getitem__, count(step))
        # A sampler must be finite, so the range has an end, which no training reaches.
        return iter(
            item_loader(self._steps, range(step, _LAST_STEP), self._num_workers, self._start_method)
        )


@final
class RepeatedSteps(Dataset[Item]):
    """The first steps over and over, the same batches in every round, for `overfit_batches`.

    Args:
        steps: step -> batch.
        num: number of steps that are repeated.
    """

    def __init__(self, steps: Dataset[Item], num: int) -> None:
        self._steps, self._num = steps, num

    def __getitem__(self, step: int) -> Item:
        return self._steps[step % self._num]


def item_loader(
    items: Dataset[Item],
    order: range,
    num_workers: int,
    start_method: StartMethod | None,
) -> DataLoader[Item]:
    """A plain DataLoader that fetches `items[i] for i in order`."""
    return DataLoader(
        items,
        batch_size=None,
        sampler=order,
        num_workers=num_workers,
        collate_fn=_as_is,
        worker_init_fn=_start_reading,
        multiprocessing_context=start_method if num_workers else None,
        # Of its own, so that the number of workers leaves the global random numbers alone.
        generator=torch.Generator(),
    )


def _start_reading(worker: int) -> None:
    # The process that trains needs this one for the step that it ends with.
    ignore_warnings()


def warn_skipped(problems: Sequence[str], total: int) -> None:
    """Warns once about skipped samples: their number, and the first ten."""
    _LOG.warning(
        "on_error: skip left out %d sample(s), %d so far: %s",
        len(problems),
        total,
        " | ".join(problems[:10]) + (" | ..." if len(problems) > 10 else ""),
    )


def _as_is(item: Item) -> Item:
    return item

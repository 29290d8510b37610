"""Tars without an index (pipe, gzip, URL): streamed through webdataset, replayed on resume."""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import count, zip_longest
from pathlib import Path
from random import Random
from typing import Any, final

import webdataset as wds
from webdataset.tariterators import group_by_keys, tar_file_expander

from datamodules.collate import pair_batch
from datamodules.decode import DecodeError, OnError
from datamodules.samples import Members, SampleReader
from datamodules.stream import warn_skipped
from mmemb.batches import PairBatch
from mmemb.files import file_identity
from mmemb.records import Pair, stable_hash

SHUFFLE_BUFFER = 1024
_LOG = logging.getLogger(__name__)


def is_unindexed(sources: Sequence[str]) -> bool:
    """Whether these are tars to stream rather than folders of indexed shards.

    >>> is_unindexed(["pipe:cat pairs.tar"]), is_unindexed(["pairs/plain"])
    (True, False)
    """
    found = {
        source.startswith("pipe:") or "://" in source or source.endswith((".tar", ".gz", ".tgz"))
        for source in sources
    }
    if len(found) > 1:
        raise ValueError(f"pairs {list(sources)} mix indexed folders with streamed tars: give one.")
    return found == {True}


@final
class ReplayStream:
    """Endless batches from tars that can only be read front to back.

    Ranks split the tars (here, since a spawned worker does not know its rank); groups of one task
    cannot be planned without an index. To resume, everything before is read again.
    """

    def __init__(
        self,
        urls: Sequence[str],
        batch_size: int,
        seed: int,
        place: tuple[int, int],
        reader: SampleReader,
        on_error: OnError,
    ) -> None:
        self._urls = [tar for url in urls for tar in wds.shardlists.expand_urls(url)]
        self._rank, self._world = place
        if len(self._urls) < self._world or batch_size % self._world:
            raise ValueError(
                f"{len(self._urls)} tars without an index and batch_size {batch_size} on "
                f"{self._world} ranks: expected at least one tar for each rank, and a batch_size "
                f"that the ranks divide."
            )
        self._batch_size, self._seed = batch_size // self._world, seed
        self._reader, self._on_error = reader, on_error
        self._identities: dict[str, tuple[int, ...]] = {}
        self._batches, self._source, self._facts = 0, None, set[str]()
        _LOG.warning(
            "%s has no index: streaming through webdataset; batches are not grouped by task, and "
            "resuming replays the stream from its start.",
            ", ".join(urls),
        )

    @property
    def facts(self) -> frozenset[str]:
        """Facts of the pairs that this rank has read so far."""
        return frozenset(self._facts)

    def __iter__(self) -> ReplayStream:
        return self

    def __next__(self) -> PairBatch:
        if self._source is None:
            self._source = self._read_batches()
            for _ in range(self._batches):
                next(self._source)
        batch = next(self._source)
        self._batches += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """Equal on all ranks: the number of batches handed out."""
        return {"batches": self._batches}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues with the batch after the last one handed out, by replaying all before."""
        self._batches, self._source = state["batches"], None

    def _read_batches(self) -> Iterator[PairBatch]:
        pairs = self._read_pairs()
        for step in count():
            rows = [next(pairs) for _ in range(self._batch_size)]
            self._facts |= {pair.fact for pair in rows}
            yield pair_batch(rows, [None] * len(rows), step)

    def _read_pairs(self) -> Iterator[Pair]:
        for epoch in count():
            num_read = 0
            for sample in self._samples(epoch):
                try:
                    yield self._reader.pair_of(_members(sample))
                    num_read += 1
                except DecodeError as error:
                    if self._on_error == "raise":
                        raise
                    warn_skipped([error.problem], 1)
            if not num_read:
                raise ValueError(f"Not one pair could be read from {self._urls}.")

    def _samples(self, epoch: int) -> Iterator[dict[str, Any]]:
        # The order of the tars is the same on all ranks, so that their shares are disjoint.
        order = Random(stable_hash(self._seed, "tars", epoch)).sample(self._urls, len(self._urls))
        random = Random(stable_hash(self._seed, "samples", epoch, self._rank))
        tars = order[self._rank :: self._world]
        samples = (sample for url in tars for sample in self._read_unchanged(url))
        try:
            yield from wds.shuffle(SHUFFLE_BUFFER, rng=random)(samples)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(
                f"A tar of {tars} cannot be read: expected whole tar "
                f"files. Copy or make it again. {type(error).__name__}: {error}"
            ) from error

    def _read_unchanged(self, url: str) -> Iterator[dict[str, Any]]:
        """The samples of a tar; of a local one as long as it is the file that was read first."""
        self._check_unchanged(url)
        yield from _read_tar(url)
        self._check_unchanged(url)  # it may have been written over while it was read

    def _check_unchanged(self, url: str) -> None:
        """Raises ValueError if a local file was written, or is another one than was first read.

        A new link to the file, or other permissions, set its change time alone: that is a warning.
        """
        identity = _identity(url)
        first = self._identities.setdefault(url, identity)
        if identity == first:
            return

        # Inode numbers of some network mounts change by themselves, so alone they decide nothing.
        same_inode, same_size, same_mtime, same_ctime = (
            a == b for a, b in zip_longest(identity or [None] * 4, first or [None] * 4)
        )
        if not (same_size and same_mtime and (same_inode or same_ctime)):
            raise ValueError(
                f"Tar {url} was changed while it was being read. The data were prepared again "
                "meanwhile: start the command again, which reads the new ones."
            )
        if not same_ctime:
            _LOG.warning("The permissions or links of %s changed while it was being read.", url)
        self._identities[url] = identity


def _identity(url: str) -> tuple[int, ...]:
    """Inode, size and times of a local file; nothing for a pipe or a URL."""
    path = Path(url)
    return file_identity(path) if path.is_file() else ()


def _read_tar(url: str) -> Iterator[dict[str, Any]]:
    # webdataset's own opener leaves files open and the exit status of pipes unread.
    with closing(wds.gopen(url)) as stream:
        yield from group_by_keys(tar_file_expander([{"url": url, "stream": stream}]))


def _members(sample: Mapping[str, Any]) -> Members:
    data = {name: value for name, value in sample.items() if not name.startswith("__")}
    key = sample["__key__"]
    return Members.of_bytes(key, f"Tar {sample.get('__url__')}, sample {key}", data)

"""Tars without an index (pipe, gzip, URL): streamed through webdataset, replayed on resume."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count, islice, zip_longest
from pathlib import Path
from random import Random
from typing import final

import webdataset as wds
from typing_extensions import override

from datamodules.archives import ArchiveError, ArchiveLimits, TarMember, read_tar, words_of
from datamodules.collate import pair_batch
from datamodules.decode import ADVICE, DecodeError, OnError
from datamodules.samples import Members, SampleReader, foreign_names
from datamodules.stream import Item, ResumedStream
from datamodules.tar_samples import ForeignMembers, TarSample, samples_of
from mmemb.records.hashing import stable_hash
from mmemb.records.pairs import Pair
from mmemb.records.text import printable
from mmemb.storage.files import file_identity

SHUFFLE_BUFFER, SHUFFLE_START = 1024, 100
"""Samples that are drawn from, and how many must be there before the first draw."""

SHUFFLE_BYTES = 1 << 30
"""Most bytes of the samples that are drawn from: with large pictures there are fewer samples."""

_LOG = logging.getLogger(__name__)


def is_unindexed(sources: Sequence[str]) -> bool:
    """Tells whether these are tars to stream rather than folders of indexed shards.

    >>> is_unindexed(["pipe:cat pairs.tar"]), is_unindexed(["pairs/plain"])
    (True, False)
    """
    kinds = {
        source.startswith("pipe:") or "://" in source or source.endswith((".tar", ".gz", ".tgz"))
        for source in sources
    }
    if len(kinds) > 1:
        raise ValueError(f"pairs {list(sources)} mix indexed folders with streamed tars: give one.")
    return kinds == {True}


@final
class ReplayStream(ResumedStream):
    """Endless batches from tars that can only be read front to back.

    Ranks split the tars (here, since a spawned process has no rank); groups of one task
    cannot be planned without an index. To resume, everything before is read again.

    With `on_error: skip` a sample that cannot be read is left out, and of a tar that cannot be read
    on the rest; the warning counts its samples that were read. A tar that is not sorted by key
    is an error in any case: when this is noticed, incomplete samples have been handed out.

    Args:
        urls: tars, pipes (`pipe:cat FILE`) or URLs, as WebDataset expands them.
        batch_size: pairs of a batch, over all ranks.
        seed: seed of the order of tars and samples.
        place: this rank, and the number of ranks.
        reader: makes pairs of samples.
        on_error: see above.
        limits: on what a tar may cost.
    """

    def __init__(
        self,
        urls: Sequence[str],
        batch_size: int,
        seed: int,
        place: tuple[int, int],
        reader: SampleReader,
        on_error: OnError,
        limits: ArchiveLimits,
    ) -> None:
        super().__init__()
        self._urls = [tar for url in urls for tar in wds.shardlists.expand_urls(url)]
        self._rank, self._world = place

        if len(self._urls) < self._world or batch_size % self._world:
            raise ValueError(
                f"{len(self._urls)} tars without an index and batch_size {batch_size} on "
                f"{self._world} ranks: expected at least one tar for each rank, and a batch_size "
                f"that the ranks divide."
            )

        self._batch_size, self._seed = batch_size // self._world, seed
        self._reader, self._on_error, self._limits = reader, on_error, limits

        self._looked_at: set[str] = set()
        self._identities: dict[str, tuple[int, ...]] = {}

        self._facts = set[str]()

        _LOG.warning(
            "%s has no index: streaming through webdataset; batches are not grouped by task, and "
            "resuming replays the stream from its start.",
            ", ".join(urls),
        )

    @property
    def facts(self) -> frozenset[str]:
        """Facts of the pairs that this rank has read so far."""
        return frozenset(self._facts)

    @override
    def _read_from(self, step: int) -> Iterator[Item]:
        # No tar can be entered in its middle, so a resumed stream reads all batches again.
        return islice(self._read_batches(), step, None)

    def _read_batches(self) -> Iterator[Item]:
        pairs = self._read_pairs()
        for step in count():
            rows = [next(pairs) for _ in range(self._batch_size)]
            self._facts |= {pair.fact for pair in rows}
            yield pair_batch(rows, [None] * len(rows), step), ()

    def _read_pairs(self) -> Iterator[Pair]:
        for epoch in count():
            num_read = 0
            for sample in self._samples(epoch):
                try:
                    yield self._reader.pair_of(sample)
                    num_read += 1
                except DecodeError as error:
                    self._skip(error)

            # An epoch without a pair would repeat for ever, without a batch or an error.
            if not num_read:
                raise ValueError(
                    f"Not one pair could be read from {', '.join(self._urls)[:300]}: expected "
                    "samples as `python -m datamodules.prepare` writes them. Correct `pairs`."
                )

    def _skip(self, error: DecodeError | ArchiveError, problem: str = "") -> None:
        """Warns once of what is left out, or raises."""
        if self._on_error == "raise":
            raise error
        # Every epoch meets the same fault again; it is reported once.
        self._report([problem or error.problem])

    def _samples(self, epoch: int) -> Iterator[Members]:
        # The order of the tars is the same on all ranks, so that their shares are disjoint.
        order = Random(stable_hash(self._seed, "tars", epoch)).sample(self._urls, len(self._urls))
        random = Random(stable_hash(self._seed, "samples", epoch, self._rank))

        tars = order[self._rank :: self._world]

        samples = ((url, sample) for url in tars for sample in self._read_unchanged(url))
        for url, sample in _shuffled(samples, random):
            where = f"Tar {url}, sample {printable(sample.key)}"
            if sample.problem:
                self._skip(DecodeError(f"{where}: {sample.problem}.", ADVICE))
            else:
                yield Members.of_bytes(sample.key, where, sample.data)

    def _read_unchanged(self, url: str) -> Iterator[TarSample]:
        """The samples of a tar; of a local one as long as it is the file that was read first."""
        self._check_unchanged(url)

        num_read, foreign, is_whole = 0, ForeignMembers(), False
        try:
            members = _read_members(url, self._limits)
            for sample in samples_of(members, f"Tar {url}", self._limits, foreign):
                for name in foreign_names(sample.data):
                    foreign.add(f"{sample.key}.{name}")
                yield sample
                num_read += 1

            is_whole = True
        except ArchiveError as error:
            # A file that was written over while it was read explains the fault better.
            self._check_unchanged(url)
            self._skip(
                error,
                f"{error.problem} Its first {num_read} sample(s) were read, all that follow are "
                "left out",
            )

        self._check_unchanged(url)
        self._warn(url, foreign, is_empty=is_whole and not num_read)

    def _warn(self, url: str, foreign: ForeignMembers, is_empty: bool) -> None:
        """Tells once what was passed over; a crash may leave a tar of zeros, which is an end."""
        if is_empty and url not in self._looked_at:
            _LOG.warning("Tar %s holds no sample: if it should, copy or make it again", url)

        if foreign.count and url not in self._looked_at:
            _LOG.warning(
                "Tar %s: %d member(s) belong to no sample or to none of its sides and are not "
                "read, such as %s",
                *(url, foreign.count, printable(foreign.first)),
            )

        self._looked_at.add(url)

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


def _read_members(url: str, limits: ArchiveLimits) -> Iterator[TarMember]:
    try:
        stream = wds.gopen(url)
    except OSError as error:
        raise ValueError(
            f"Tar {url} cannot be opened: {words_of(error)}. Correct its name in `pairs`, or bring "
            "it back."
        ) from error

    # webdataset's own reader leaves files open and the exit status of pipes unread.
    try:
        yield from read_tar(stream, f"Tar {url}", limits)
        stream.close()
    except OSError as error:
        raise ArchiveError(f"Tar {url} ended with an error: {words_of(error)}.") from None
    finally:
        with suppress(OSError):  # of a pipe that is not read to its end
            stream.close()


def _shuffled(
    samples: Iterator[tuple[str, TarSample]], random: Random
) -> Iterator[tuple[str, TarSample]]:
    """Draws from a buffer, as webdataset's `shuffle` does, which may hold only so many bytes."""
    held: list[tuple[str, TarSample]] = []
    num_bytes = 0

    for sample in samples:
        held.append(sample)
        num_bytes += sample[1].num_bytes
        # Two come in for one that goes out until the buffer is full, as webdataset does it.
        if len(held) < SHUFFLE_BUFFER and num_bytes < SHUFFLE_BYTES:
            held += (more := list(islice(samples, 1)))
            num_bytes += sum(tar_sample.num_bytes for _, tar_sample in more)

        if len(held) >= SHUFFLE_START or num_bytes >= SHUFFLE_BYTES:
            drawn = _draw(held, random)
            num_bytes -= drawn[1].num_bytes
            yield drawn

    while held:
        yield _draw(held, random)


def _draw(held: list[tuple[str, TarSample]], random: Random) -> tuple[str, TarSample]:
    # Swapped with the last one: to delete from the middle would move all that follow.
    number = random.randint(0, len(held) - 1)
    held[number], held[-1] = held[-1], held[number]
    return held.pop()

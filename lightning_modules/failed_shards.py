"""Shards that a server could not be asked about: the others go on, within reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from mmemb.rationales.chat_api.client import ServerError
from mmemb.records.outputs import SidecarOutput

MOST_FAILED = 3
"""Failed shards of one process at which the server itself is taken to be at fault."""


@final
class FailedShards:
    """Remembers failed shards, since the rows of one come in several batches."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def attempt(self, shard: str, make: Callable[[], SidecarOutput]) -> SidecarOutput:
        """Returns the output of `make`, or the reason why it cannot be made now.

        Args:
            shard: name of the shard that the rows belong to.
            make: asks workers.

        Raises:
            ServerError: too many shards have failed.
        """
        # A shard that failed is not asked again: one absent row makes it a hole in any case.
        if shard not in self._said:
            try:
                return make()
            except ServerError as error:
                self._said[shard] = str(error)
                if len(self._said) >= MOST_FAILED:
                    raise
        return SidecarOutput(shard, (), self._said[shard])

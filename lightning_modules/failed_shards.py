"""Shards that a server could not be asked about: the others go on, within reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from mmemb.rationales.chat_api.client import ServerError
from mmemb.records.outputs import SidecarOutput

MOST_FAILED = 3
"""Shards of one process: then it is not the shards."""


@final
class FailedShards:
    """Remembers them, since a failed shard comes in further batches."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def attempt(self, shard: str, make: Callable[[], SidecarOutput]) -> SidecarOutput:
        """What `make` returns, or why it cannot be made now.

        Args:
            shard: what the rows belong to.
            make: asks workers.

        Raises:
            ServerError: too many shards have failed.
        """
        if shard not in self._said:
            try:
                return make()
            except ServerError as error:
                self._said[shard] = str(error)
                if len(self._said) >= MOST_FAILED:
                    raise
        return SidecarOutput(shard, (), self._said[shard])

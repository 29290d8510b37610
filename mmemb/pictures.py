"""Where the pictures of a sample lie in its shard, for those who show them to people."""

from __future__ import annotations

from mmemb.shards import MEDIA_SUFFIXES, IndexEntry, ShardIndex


def first_picture(index: ShardIndex, entry: IndexEntry, side: str) -> tuple[str, bytes] | None:
    """Name and bytes of a sample's first picture of one side, of a clip its first frame.

    Args:
        index: of the sample's folder.
        entry: the sample.
        side: `q`, `t` or `c`, as the members' names begin.
    """
    names = sorted(n for n in entry.members if n[:1] == side and n.endswith(MEDIA_SUFFIXES))
    return (names[0], index.read(entry, {names[0]})[names[0]]) if names else None

"""A hash of texts and numbers that is equal in every process."""

from __future__ import annotations

import hashlib

from mmemb.records.text import check_unicode


def stable_hash(*parts: object, bits: int = 63) -> int:
    """A hash that is equal in every process and run (Python's own is not).

    >>> stable_hash("country:fr") == stable_hash("country:fr")
    True
    """
    # The separator keeps ("ab", "c") and ("a", "bc") apart.
    text = "\x1f".join(map(str, parts))
    check_unicode(text)

    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - bits)

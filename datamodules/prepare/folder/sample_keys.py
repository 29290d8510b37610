"""Keys of samples that stand for ids of any kind: URLs, paths, texts with blanks."""

from __future__ import annotations

import hashlib
import re

PLAIN = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""Ids that are keys themselves."""

_OTHER = re.compile(r"[^A-Za-z0-9]+")
_SHOWN = 40


def sample_key(own_id: str) -> str:
    """Returns the key of the sample of an id: itself if it can be one, else letters and a hash.

    Shards, sidecars and files are named by keys, which are short and hold no dot and no blank.

    >>> sample_key("flag-07"), sample_key("https://a.org/b c.jpg")
    ('flag-07', 'https-a-org-b-c-jpg--f31fd83346910745f197b683')
    """
    if PLAIN.fullmatch(own_id):
        return own_id

    # 96 bits: equal keys of two ids do not happen by chance, and `check` compares them anyway.
    digest = hashlib.sha256(own_id.encode(errors="surrogatepass")).hexdigest()[:24]
    letters = _OTHER.sub("-", own_id)[:_SHOWN].strip("-")
    return f"{letters}--{digest}" if letters else digest

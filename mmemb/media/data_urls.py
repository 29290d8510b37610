"""Pictures inside of a text: `data:image/png;base64,...`."""

from __future__ import annotations

import binascii
from base64 import b64decode

from mmemb.media.pictures import MAX_BYTES, PictureError, check_length

PREFIX = "data:image/"


def picture_of_url(url: str, where: str) -> bytes:
    """Returns the bytes of a picture in a data URL; the kind that the URL states does not count.

    Args:
        url: `data:image/KIND;base64,BYTES`.
        where: names it in errors.

    Raises:
        PictureError: it is another URL, its letters are no base64, or it is too long.
    """
    head, _, body = url.partition(",")
    if not (head.startswith(PREFIX) and head.endswith(";base64")):
        raise PictureError(
            f"{where} begins with {head[:40]!r}: expected data:image/KIND;base64,..."
        )

    # Before it is decoded: four letters are three bytes.
    check_length(len(body) // 4 * 3 if len(body) > MAX_BYTES else 0, where)
    try:
        return b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise PictureError(f"{where} is cut or damaged: its letters are no base64.") from None

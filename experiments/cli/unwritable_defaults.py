"""Defaults that the parser turns into texts, since it cannot write them, e.g. a `torch.device`."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace

MARK = "Unable to serialize instance "
"""Beginning of such a text of jsonargparse."""


def drop_unwritable_defaults(config: Any) -> None:
    """Removes these texts from a parsed configuration, so that each class takes its own default.

    Args:
        config: a Namespace, or a part of one; changed in place.
    """
    if isinstance(config, Namespace):
        values = vars(config)
        for key in [k for k, v in values.items() if isinstance(v, str) and v.startswith(MARK)]:
            del values[key]
        parts = list(values.values())
    else:
        parts = list(config) if isinstance(config, list) else []

    for part in parts:
        drop_unwritable_defaults(part)

"""`python -m experiments.run fit ... --explain KEY`: which file or flag gave a setting its value.

Nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.cli.settings_sources import ABSENT, settings_sources, value_at
from experiments.cli.short_options import SHORT_OPTIONS, implied_settings
from experiments.cli.split_flag import split_flag
from mmemb.records.nearest_name import nearest

FLAG = "--explain"


def asked_for(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Returns the other arguments, and the key behind `--explain`, if there is one."""
    return split_flag(arguments, FLAG)


def explain(arguments: Sequence[str], key: str) -> str:
    """Returns the value of a key, and the files and flags that set it, the last one first.

    Args:
        arguments: of `experiments.run`, without `--explain KEY`.
        key: dotted, or a short option; `init_args` may be left out, as on the command line.

    Raises:
        ValueError: there is no such key.
    """
    from experiments.cli.checkpoint_check import flattened
    from experiments.cli.config_files import find_config, with_configs
    from experiments.cli.encoder import with_encoder
    from experiments.cli.experiment_cli import (  # Lightning: only who asks waits for it
        parse,
        with_base,
    )

    key = SHORT_OPTIONS.get(key, key)
    config = parse(list(arguments)).as_dict()
    full = _spelt_out(config, key)
    value = value_at(config, full)
    if value is ABSENT:
        raise ValueError(f"there is no setting {key}.{nearest(full, flattened(config))}")

    files = with_base(with_configs(with_encoder(arguments), find_config))
    sources = _sources(files, full)
    lines = [f"{full} = {value!r}"]

    if not sources:
        lines.append("set by no file and no flag: the default of its class")

    for place, (source, text) in enumerate(reversed(sources)):
        lines.append(f"{'set by' if place == 0 else 'before that'} {source}: {text}")
    return "\n".join(lines)


def _sources(arguments: Sequence[str], full: str) -> list[tuple[str, str]]:
    """Returns the files and flags that set a key, the last one last, and the values as written."""
    key = full.replace(".init_args", "")
    shorts = [short for short, long in SHORT_OPTIONS.items() if long == key]

    sources = settings_sources(arguments)
    pairs = []
    for source in sources:
        if (value := source.value(key)) is not ABSENT:
            pairs.append((source.label, str(value) if source.text is None else source.text))
        for short in shorts:
            if (value := source.value(short)) is not ABSENT:
                text = str(value) if source.text is None else source.text
                pairs.append((source.label_of(short), text))

    # A short option, and what goes with it, stands behind all others.
    for setting in implied_settings(sources):
        if setting.key == key:
            pairs = [pair for pair in pairs if pair[0] != setting.label]
            pairs.append((setting.label, setting.reason or setting.value))
    return pairs


def _spelt_out(data: Any, key: str) -> str:
    """Returns the key with `init_args` put in where a class stands and the key leaves it out."""
    node, parts = data, []
    for part in key.split("."):
        # On the command line `--model.losses` means `model.init_args.losses`.
        inner = node.get("init_args") if isinstance(node, Mapping) else None
        if isinstance(inner, Mapping) and part not in node:
            parts.append("init_args")
            node = inner

        parts.append(part)
        node = node.get(part) if isinstance(node, Mapping) else None
    return ".".join(parts)

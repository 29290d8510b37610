"""Keys that files link to settings of theirs by `${key}`: of no effect where no file does so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.cli.config_files import find_config, with_configs
from experiments.cli.encoder import with_encoder
from experiments.cli.settings_sources import SettingsSource, settings_sources
from experiments.cli.split_flag import split_flag
from mmemb.storage.json_files import canonical_json

LINKED_KEYS = ("vlm", "models", "server", "group_size")


def check_linked(sources: Sequence[SettingsSource]) -> None:
    """Raises ValueError if a flag sets a linked key that no file uses.

    Args:
        sources: the files and flags of a stage.
    """
    for key in LINKED_KEYS:
        flags = [source for source in sources if source.by_flag and source.label == f"--{key}"]
        if flags and not _is_used(key, sources):
            raise ValueError(
                f"--{key} {flags[-1].text} has no effect here: no file of this command uses "
                f"${{{key}}}. Leave it out, or set the argument of the class by its whole name "
                "(`--config FILE --help` lists them)."
            )


def split_linked(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Returns the other arguments, and linked key -> value of the flags that set one."""
    words, values = list(arguments), {}
    for key in LINKED_KEYS:
        while (found := split_flag(words, f"--{key}"))[1] is not None:
            words, values[key] = found
    return words, values


def used_flags(stage: Sequence[str], values: dict[str, str]) -> list[str]:
    """Returns the flags for the linked keys that a stage uses.

    Args:
        stage: arguments of `experiments.run`.
        values: linked key -> value.
    """
    if not values:
        return []
    sources = settings_sources(with_configs(with_encoder(stage), find_config))
    used = [key for key in values if _is_used(key, sources)]
    return [word for key in used for word in (f"--{key}", values[key])]


def _is_used(key: str, sources: Iterable[SettingsSource]) -> bool:
    return any(f"${{{key}}}" in canonical_json(source.data) for source in sources)

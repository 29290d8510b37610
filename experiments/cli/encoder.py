"""`--encoder NAME`: the backbone of a stage, or of all stages of a pipeline that build one.

NAME is a file of `experiments/configs/backbone`, or the path of a file of one's own. The flag is
replaced by `--config FILE` behind the other files in front of the parser, so that configuration and
fingerprint are those of the long form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.cli.config_check import class_of, names_below
from experiments.cli.config_files import find_config, named_configs, packaged, with_configs
from experiments.cli.settings_sources import (
    ABSENT,
    SettingsSource,
    last_value,
    read_config_file,
    settings_sources,
    value_at,
)
from experiments.cli.split_flag import split_flag
from mmemb.records.nearest_name import nearest
from mmemb.storage.json_files import canonical_json

FLAG = "--encoder"
PRETRAINED = "--pretrained"
"""Short option for the weights of an encoder."""

BACKBONE = "model.backbone"
_SAVED = "mmemb.backbones.load_backbone"
"""Class path of a backbone that an earlier run has saved."""

_FOLDER = "backbone"


def with_encoder(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of a stage with the file of its encoder in place of `--encoder`.

    Raises:
        FileNotFoundError: there is no such encoder; the message lists those that there are.
        ValueError: the flag has no value, or its file names no backbone.
    """
    words, name = _split(arguments)
    if name is None:
        return words

    path = encoder_file(name)
    _encoder_settings(path, name)

    # Behind all files, so that it goes over theirs; in front of the flags that follow.
    place = max((place for place, _ in named_configs(words)), default=0) + 1
    return [*words[:place], "--config", str(path), *words[place:]]


def check_encoder(arguments: Sequence[str], sources: Sequence[SettingsSource]) -> None:
    """Raises ValueError if `--encoder` is given to a stage that takes no backbone.

    Args:
        arguments: of the stage, as they were typed.
        sources: its files and flags.
    """
    _, name = _split(arguments)
    names = names_below("model", sources, FLAG)
    if name is not None and names is not None and "backbone" not in names:
        raise ValueError(
            f"{FLAG} {name}: {class_of('model', sources)} takes no backbone, since its models come "
            "from earlier runs or it needs none. Give the flag to the stages that make them."
        )


def pipeline_arguments(stage: Sequence[str], name: str | None, pretrained: str | None) -> list[str]:
    """Returns what a stage's arguments need more where a pipeline gets another encoder.

    A stage that builds a backbone, or names an encoder of its own, takes the new one. One that
    reads the backbone of another stage keeps it, and takes what the encoder needs of the data.

    Args:
        stage: arguments of `experiments.run`.
        name: of the encoder; None = the stages keep theirs.
        pretrained: weights of the encoder; None = as in its file.
    """
    words, own = _split(stage)
    sources = settings_sources(with_configs(words, find_config))
    backbone = class_of(BACKBONE, sources)

    if own is not None or backbone not in (None, _SAVED):
        weights = [] if pretrained is None else [PRETRAINED, pretrained]
        return [*([] if name is None else [FLAG, name]), *weights]
    return [] if name is None else _data_flags(encoder_file(name), name, sources)


def encoder_file(name: str) -> Path:
    """Returns the file of an encoder.

    Raises:
        FileNotFoundError: there is none.
    """
    # A name of the package never means a file that happens to lie in the working folder.
    shipped = packaged(f"{_FOLDER}/{name}.yaml")
    path = shipped if shipped.is_file() else find_config(name)
    if path.is_file():
        return path

    names = sorted(file.stem for file in packaged(_FOLDER).glob("*.yaml"))
    raise FileNotFoundError(
        f"{FLAG} {name}: there is no such encoder.{nearest(name, names)} There are "
        f"{', '.join(names)}; the path of a YAML file of your own is taken as well."
    )


def _split(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Returns the other arguments and the encoder; the last flag counts, as of other options."""
    words, name = list(arguments), None
    while (found := split_flag(words, FLAG))[1] is not None:
        words, name = found

    if FLAG in words or name == "":
        raise ValueError(f"{FLAG} names no encoder. Write {FLAG} clip_vit_b32, or a YAML file.")
    return words, name


def _encoder_settings(path: Path, name: str) -> Mapping[str, Any]:
    """Returns the settings of an encoder's file."""
    data = read_config_file(path)
    if value_at(data, BACKBONE) in (ABSENT, None):
        raise ValueError(
            f"{FLAG} {name}: {path} has no model.init_args.backbone. Write that key as the files "
            "of experiments/configs/backbone do."
        )
    return data


def _data_flags(path: Path, name: str, sources: Sequence[SettingsSource]) -> list[str]:
    """Returns flags for the arguments of the data that an encoder sets and a stage has, too."""
    arguments = value_at(_encoder_settings(path, name), "data.init_args")
    flags = []
    for key, value in (arguments if isinstance(arguments, Mapping) else {}).items():
        if last_value(sources, f"data.{key}") not in (ABSENT, None, value):
            flags += [f"--data.{key}", value if isinstance(value, str) else canonical_json(value)]
    return flags

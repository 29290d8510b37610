"""Finds mistyped keys and classes before the parser does, and says in which file or flag they are.

jsonargparse names the bad option but neither the file nor the name that was meant.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from omegaconf.errors import GrammarParseError
from omegaconf.grammar_parser import parse as parse_interpolation

from experiments.cli.settings_sources import SettingsSource, config_files, read_config_file
from mmemb.records.nearest_name import nearest
from mmemb.records.old_names import ARGUMENTS, CLASS_PATHS

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_HOMES = (
    "torch.optim", "torch.optim.lr_scheduler", "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers", "lightning_modules", "datamodules", "callbacks", "mmemb.backbones",
    "mmemb.rationales",
)  # fmt: skip
"""Modules whose classes may be named without them."""

NEEDS = ("disk_gib", "memory_gib")


def check_config_files(arguments: list[str], keys: Collection[str]) -> None:
    """Raises ValueError naming key, file and nearest valid name for the first mistake found.

    Args:
        arguments: of the command line.
        keys: that may stand at the top of a file.
    """
    for path in config_files(arguments):
        check_config(read_config_file(path), path, keys)


def check_flags(sources: Sequence[SettingsSource], keys: Collection[str]) -> None:
    """Raises ValueError naming key, flag and nearest valid name for the first mistyped flag.

    Args:
        sources: the files and flags of the command line.
        keys: that may stand at the top of a file.
    """
    for source in sources:
        if not source.by_flag:
            continue
        key = source.label.removeprefix("--")
        check_flag(source.label, key, sources, keys)

        # A class without its arguments: `--model pkg.Class`.
        if key in ("model", "data") and (class_path := class_of(key, [source])):
            _load(class_path, source.label, f"{key}.")


def check_flag(
    flag: str, key: str, sources: Sequence[SettingsSource], keys: Collection[str]
) -> None:
    """Checks the dotted key that a flag sets, as far as the given classes tell its parts.

    Args:
        flag: named in errors.
        key: that it sets, such as `model.optimizer.lr`.
        sources: all files and flags, which say what classes there are.
        keys: that may stand at the top of a file.
    """
    parts = key.replace("-", "_").removesuffix("+").split(".")
    parts = [part for part in parts if part != "init_args"]

    for number, part in enumerate(parts):
        above = ".".join(parts[:number])
        names = names_below(above, sources, flag) if above else list(keys)

        # What stands below other keys, such as a list of callbacks, only the parser knows.
        if names is None or part in CLASS_KEYS:
            return
        _check_keys({part: None}, names, flag, f"{above}." if above else "")


def names_below(key: str, sources: Sequence[SettingsSource], flag: str) -> list[str] | None:
    """Returns the keys that may stand below a key, or None where only the parser knows them."""
    if key == "trainer":
        return _trainer_names()
    if key == "needs":
        return list(NEEDS)

    class_path = class_of(key, sources)
    if class_path is None:
        return None
    target = _load(class_path, flag, f"{key}.")
    return _argument_names(target) if callable(target) else None


def class_of(key: str, sources: Sequence[SettingsSource]) -> str | None:
    """Returns the path of the class that the last file or flag gave a key, or None."""
    for source in reversed(sources):
        value = source.value(key)
        if isinstance(value, Mapping):
            value = value.get("class_path")

        # A flag may name a class without its arguments, or a file of settings: `--model FILE`.
        if isinstance(value, str) and "." in value and not Path(value).is_file():
            return value
    return None


def check_config(data: Mapping[str, Any], path: Path, keys: Collection[str]) -> None:
    """Checks one parsed file: top-level keys, trainer keys, and every class with its arguments."""
    _check_keys(data, keys, path, where="")

    # `callbacks+` is jsonargparse's way to append to the callbacks of an earlier file.
    trainer = [*_trainer_names(), "callbacks+"]
    _check_keys(data.get("trainer") or {}, trainer, path, where="trainer.")

    _check_keys(data.get("needs") or {}, NEEDS, path, where="needs.")
    _check_classes(data, path, where="")


def _trainer_names() -> list[str]:
    return list(inspect.signature(pl.Trainer).parameters)


def _check_classes(node: Any, path: Path, where: str) -> None:
    if isinstance(node, list):
        for position, item in enumerate(node):
            _check_classes(item, path, f"{where}{position}.")

    # An interpolation is parsed here, since the parser would name neither the file nor the key.
    if isinstance(node, str) and "${" in node:
        _check_interpolation(node, path, where)

    if not isinstance(node, Mapping):
        return

    if isinstance(node.get("class_path"), str):
        _check_keys(node, CLASS_KEYS, path, where)
        target = _load(node["class_path"], path, where)

        if inspect.isabstract(target):
            lacking = ", ".join(sorted(target.__abstractmethods__))
            raise ValueError(
                f"{path}: {where}class_path: {node['class_path']} lacks {lacking}, without which "
                "no object can be made of it. Write these methods (docs/extend.md), or choose a "
                "class that has them."
            )

        names = _argument_names(target)
        arguments = node.get("init_args") or {}

        # Arguments that moved get their new place; `nearest` would propose a name that only
        # looks alike.
        for key, place in ARGUMENTS.get(node["class_path"], {}).items():
            if _holds(arguments, key):
                raise ValueError(f"{path}: {where}init_args.{key} is now {place}. Write that.")

        if names is not None:
            _check_keys(arguments, names, path, f"{where}init_args.")

    for key, value in node.items():
        _check_classes(value, path, f"{where}{key}.")


def _holds(arguments: Mapping[str, Any], key: str) -> bool:
    """Tells whether nested arguments hold a key such as `losses.writing`."""
    first, _, rest = key.partition(".")
    inner = arguments.get(first)
    return first in arguments and (not rest or (isinstance(inner, Mapping) and _holds(inner, rest)))


def _check_interpolation(text: str, path: Path, where: str) -> None:
    try:
        parse_interpolation(text)
    except GrammarParseError as error:
        raise ValueError(f"{path}: {where[:-1]}: {text!r} is no interpolation: {error}") from None


def _load(class_path: str, path: Path | str, where: str) -> Any:
    if class_path in CLASS_PATHS:
        raise ValueError(
            f"{path}: {where}class_path: {class_path} is now {CLASS_PATHS[class_path]}. Write that."
        )

    module_name, _, name = class_path.rpartition(".")
    if not module_name:
        return _class_of_short_name(name, path, where)

    try:
        module = import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{path}: {where}class_path is {class_path}, but {module_name} cannot be imported "
            f"({error}). Write the full path of a class, such as "
            "lightning_modules.ContrastiveEmbedder."
        ) from None

    if not hasattr(module, name):
        # `__all__` where there is one: packages that load their names lazily have no others.
        names = getattr(module, "__all__", None) or [n for n in dir(module) if n[:1] != "_"]
        near = nearest(name, names) or f" It has {', '.join(sorted(names)):.300}."
        raise ValueError(f"{path}: {where}class_path: {module_name} has no {name}.{near}")
    return getattr(module, name)


def _class_of_short_name(name: str, path: Path | str, where: str) -> Any:
    """Returns the class that is named without its module, as Lightning allows it."""
    known = {}
    for home in _HOMES:
        module = import_module(home)
        known |= dict.fromkeys(getattr(module, "__all__", None) or dir(module), module)

    if name not in known:
        raise ValueError(
            f"{path}: {where}class_path is {name}, which is no class of Lightning's or of this "
            f"project.{nearest(name, known)} Write the full path of any other class."
        )
    return getattr(known[name], name)


def _argument_names(target: Any) -> list[str] | None:
    """Returns the names that `target` accepts, or None where it takes any."""
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters]


def _check_keys(node: Any, valid: Iterable[str], path: Path | str, where: str) -> None:
    keys = list(valid)

    if not isinstance(node, Mapping):
        raise ValueError(f"{path}: {where[:-1]} is {node!r:.60}; expected keys and values.")
    for key in node:
        if key not in keys:
            raise ValueError(
                f"{path}: unknown key {where}{key}.{nearest(key, keys)} "
                f"Valid here: {', '.join(sorted(keys))}."
            )

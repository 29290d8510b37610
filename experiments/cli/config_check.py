"""Finds mistyped keys and classes in YAML files before the parser does, and says where they are.

jsonargparse names the bad option but neither the file nor the name that was meant.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from omegaconf.errors import GrammarParseError
from omegaconf.grammar_parser import parse as parse_interpolation

from experiments.cli.config_files import config_names, packaged
from mmemb.records.old_names import ARGUMENTS, CLASS_PATHS

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
NEEDS = ("disk_gib", "memory_gib")


def config_files(arguments: list[str]) -> list[Path]:
    """Returns the files named by `--config FILE`, `--config=FILE` and `-c FILE`."""
    return [Path(name) for name in config_names(arguments)]


def check_config_files(arguments: list[str], keys: Collection[str]) -> None:
    """Raises ValueError naming key, file and nearest valid name for the first mistake found.

    Args:
        arguments: of the command line.
        keys: that may stand at the top of a file.
    """
    for path in config_files(arguments):
        if not path.is_file():
            folders = (path.parent, packaged(str(path)).parent)
            files = [file for folder in folders for file in folder.glob("*.yaml")]
            near = nearest(path.name, [f.name if path.suffix else f.stem for f in files])
            raise FileNotFoundError(f"--config {path}: there is no such file.{near}")

        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {error}") from None

        if not isinstance(data, Mapping):
            raise ValueError(f"{path} holds {data!r:.60}; expected keys such as model and data.")
        check_config(data, path, keys)


def check_config(data: Mapping[str, Any], path: Path, keys: Collection[str]) -> None:
    """Checks one parsed file: top-level keys, trainer keys, and every class with its arguments."""
    _check_keys(data, keys, path, where="")

    # `callbacks+` is jsonargparse's way to append to the callbacks of an earlier file.
    trainer = inspect.signature(pl.Trainer.__init__).parameters
    _check_keys(data.get("trainer") or {}, [*trainer, "callbacks+"], path, where="trainer.")

    _check_keys(data.get("needs") or {}, NEEDS, path, where="needs.")
    _check_classes(data, path, where="")


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


def _load(class_path: str, path: Path, where: str) -> Any:
    if class_path in CLASS_PATHS:
        raise ValueError(
            f"{path}: {where}class_path: {class_path} is now {CLASS_PATHS[class_path]}. Write that."
        )

    module_name, _, name = class_path.rpartition(".")
    try:
        module = import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{path}: {where}class_path is {class_path}, but {module_name or 'its module'} cannot "
            f"be imported ({error}). Write the full path of a class, such as "
            "lightning_modules.ContrastiveEmbedder."
        ) from None

    if not hasattr(module, name):
        # `__all__` where there is one: packages that load their names lazily have no others.
        names = getattr(module, "__all__", None) or [n for n in dir(module) if n[:1] != "_"]
        near = nearest(name, names)
        raise ValueError(f"{path}: {where}class_path: {module_name} has no {name}.{near}")
    return getattr(module, name)


def _argument_names(target: Any) -> list[str] | None:
    """Returns the names that `target` accepts, or None where it takes any."""
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters]


def _check_keys(node: Any, valid: Iterable[str], path: Path, where: str) -> None:
    keys = list(valid)

    if not isinstance(node, Mapping):
        raise ValueError(f"{path}: {where[:-1]} is {node!r:.60}; expected keys and values.")
    for key in node:
        if key not in keys:
            raise ValueError(
                f"{path}: unknown key {where}{key}.{nearest(key, keys)} "
                f"Valid here: {', '.join(sorted(keys))}."
            )


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns a hint for an error message: ` Did you mean x?`, or an empty text.

    >>> nearest("temprature", ["temperature", "optimizer"])
    ' Did you mean temperature?'
    """
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""

"""Makes a writer from its saved settings, and writes these: a class of this package, or allowed.

Settings of a folder that may come from anywhere name the folder's own files, and beside them what
the caller allows (`mmemb.storage.trust.Permissions`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from inspect import isabstract
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mmemb.rationales as package
from mmemb.rationales.writers.base import RationaleSource, RationaleWriter
from mmemb.records.schema import check_arguments, convert
from mmemb.storage.allowed_classes import allowed_class, is_allowed
from mmemb.storage.hub import is_hub_id
from mmemb.storage.spec import build, class_paths, is_spec
from mmemb.storage.trust import (
    HERE,
    Permissions,
    check_code,
    in_folder,
    is_in_folder,
    path_in_folder,
)

_OWN_KEY = "MMEMB_API_KEY"
"""The default of `ServerWriter`, which no folder needs to name."""

_ENGINE = {
    "max_model_len", "seed", "quantization", "kv_cache_dtype", "tensor_parallel_size",
    "pipeline_parallel_size", "gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens",
    "cpu_offload_gb", "enforce_eager", "disable_log_stats",
}  # fmt: skip
"""Arguments of vLLM's engine that name neither code nor a place."""


def load_writer(settings: Mapping[str, Any]) -> RationaleWriter:
    """Makes a writer again; the inverse of `RationaleWriter.spec`.

    Args:
        settings: `class_path` (`mmemb.rationales.TableWriter`) and `init_args`.

    Raises:
        ValueError: they name no writer, or do not fit it.
    """
    source = _load(settings)
    if not isinstance(source, RationaleWriter):
        raise ValueError(
            f"{settings['class_path']} writes only inside an AdaptiveEmbedder: choose a writer "
            "that writes by itself, such as mmemb.rationales.VisionLanguageWriter."
        )
    return source


def _load(settings: Mapping[str, Any]) -> RationaleSource:
    _check(settings)
    return build(settings, _class_of)  # type: ignore[no-any-return]


def load_saved_writer(
    settings: Mapping[str, Any], folder: Path, permissions: Permissions, where: str
) -> RationaleSource:
    """Makes a writer as `load_writer` does, from a folder of any origin; also a `SelfWriter`.

    Args:
        settings: see `load_writer`.
        folder: the saved folder, whose files they may name.
        permissions: further places that they may name.
        where: the file and key that hold them, for errors.

    Raises:
        ValueError: they ask for code that comes with a model, or name a file or model outside of
            the folder, a server, or a key that the caller has not allowed.
    """
    check_code(settings, where, permissions.is_own)
    return _load(_checked(settings, folder, permissions, where))


def save_writer(writer: RationaleSource, folder: Path, name: str) -> dict[str, Any]:
    """Returns the settings of a writer for a folder, and copies the files that it read into it.

    Its models stay where they are: they are large, and may have a licence of their own.

    Args:
        writer: the writer to be saved.
        folder: the folder that is being written.
        name: name of the folder in it for the files.
    """
    return _with_files(writer.spec(), folder, name)


def check_writer(writer: RationaleSource) -> None:
    """Refuses a writer of another package that no saved gate could make again.

    Raises:
        ValueError: its class is not allowed, or does not take the arguments of its `config`.
    """
    spec = writer.spec()
    if not all(map(_is_known, class_paths(spec))):
        _check(spec)


def _checked(
    settings: Mapping[str, Any], folder: Path, permissions: Permissions, where: str
) -> dict[str, Any]:
    """Returns the settings with the paths of the folder's files, or raises ValueError."""
    kind = _class_of(str(settings.get("class_path", "")))
    arguments = _arguments(settings)

    for key, value in arguments.items():
        argument = f"{where}.{key}"
        if is_spec(value):
            # A writer behind a writer is of its own class, with its own file arguments.
            arguments[key] = _checked(value, folder, permissions, argument)
        elif key in (*kind.file_arguments, *kind.model_arguments) and value is not None:
            arguments[key] = _place(
                value, folder, permissions, argument, key in kind.model_arguments
            )
        elif key == "engine":
            _check_engine(value or {}, permissions, argument)

    if "url" in arguments:
        arguments["api_key_env"] = allowed_key(arguments, permissions, where)
    return {"class_path": settings["class_path"], "init_args": arguments}


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    where = f"init_args of {settings['class_path']}"
    return dict(convert(settings.get("init_args") or {}, dict[str, Any], where))


def _check(settings: Mapping[str, Any]) -> None:
    """Refuses arguments that a writer, or one in its arguments, does not take."""
    kind, arguments = _class_of(str(settings.get("class_path", ""))), _arguments(settings)
    for value in filter(is_spec, arguments.values()):
        _check(value)
    check_arguments(kind, arguments, f"init_args of {settings['class_path']}")


def _place(value: Any, folder: Path, permissions: Permissions, where: str, is_model: bool) -> str:
    # A path within the folder needs no leave, but it may not lead out of it.
    if is_in_folder(value):
        return path_in_folder(value, folder, where)
    if isinstance(value, str) and permissions.allows_model(value):
        place = permissions.place_of(value)
        # Told at once, and not at the first rationale.
        if is_model and not is_hub_id(place) and not Path(place).exists():
            raise ValueError(
                f"{where} names the model {value!r}, and there is no folder {place} below "
                f"{Path.cwd()}: say where it lies by models={{{value!r}: FOLDER}} (--allow-model "
                f"{value}=FOLDER), or hand over a writer of your own (`writers={{...}}`)."
            )
        return place

    if is_model:
        raise ValueError(
            f"{where} names the model {value!r}, which is not in {folder}: allow it by "
            f"models=[{value!r}] (--allow-model {value}), or by models={{{value!r}: FOLDER}} "
            f"(--allow-model {value}=FOLDER) if it lies elsewhere here, or hand over a writer of "
            "your own (`writers={...}`). A run below the folder of all runs ($MMEMB_RUNS, by "
            "default `runs`) needs no permission."
        )
    raise ValueError(
        f"{where} names {value!r}, which is not in {folder}: a folder may name its own files only. "
        "Save it again, or hand over a writer of your own (`writers={...}`)."
    )


def _check_engine(engine: Any, permissions: Permissions, where: str) -> None:
    unknown = sorted(set(engine) - _ENGINE) if isinstance(engine, Mapping) else [engine]
    if unknown and not permissions.is_own:
        raise ValueError(
            f"{where}: {unknown} may name code or another model, which no folder may: hand over a "
            f"writer of your own (`writers={{...}}`). Allowed are {sorted(_ENGINE)}."
        )


def allowed_key(arguments: Mapping[str, Any], permissions: Permissions, where: str) -> str | None:
    """Returns the variable with a server's key, which the caller alone names; None = no key.

    Raises:
        ValueError: the settings name no server, or a server or key that is not allowed.
    """
    try:
        url = urlsplit(str(arguments["url"]))
        host = url.hostname or ""
    except ValueError:
        host = ""

    if not host:
        raise ValueError(
            f"{where}.url names no server: expected its base, such as http://127.0.0.1:8000/v1."
        )

    # With the port first: a caller may allow one server of a host, with a key of its own.
    matches = [name for name in (url.netloc, host) if name in permissions.servers]
    if not matches and not (permissions.is_own and host in HERE):
        raise ValueError(
            f"{where}.url names the server {host}, which would be sent queries: allow it by "
            f"servers={{{host!r}: None}} (--server {host}; with a key: --server {host}=VARIABLE), "
            "or hand over a writer of your own (`writers={...}`)."
        )

    variable = permissions.servers[matches[0]] if matches else None
    named_key = arguments.get("api_key_env", _OWN_KEY)
    if named_key not in (variable, _OWN_KEY, None):
        raise ValueError(
            f"{where}.api_key_env names the variable {named_key!r}, whose value would be sent to "
            f"{host} as a key: allow it by servers={{{host!r}: {named_key!r}}} (--server "
            f"{host}={named_key}), or hand over a writer of your own (`writers={{...}}`)."
        )
    return variable


def _with_files(settings: Mapping[str, Any], folder: Path, name: str) -> dict[str, Any]:
    path = str(settings.get("class_path", ""))
    if not _is_known(path) and not is_allowed(path):
        return dict(settings)  # the caller who loads the folder has to pass the writer

    kind, arguments = _class_of(settings["class_path"]), dict(settings["init_args"])
    for key, value in arguments.items():
        if is_spec(value):
            arguments[key] = _with_files(value, folder, f"{name}/{key}")
        elif key in kind.file_arguments and value is not None:
            # By the name of the argument, since two files may have the same name.
            place = f"{name}/{key}{Path(value).suffix}"
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(value, folder / place)
            arguments[key] = in_folder(place)

    # The caller that loads the folder names the key.
    arguments.pop("api_key_env", None)
    return {"class_path": settings["class_path"], "init_args": arguments}


def _class_of(path: str) -> type[RationaleSource]:
    """Returns the class that a spec names: a public one of this package, or an allowed one."""
    room = package.__name__
    if _is_known(path):
        kind: Any = getattr(package, path.rpartition(".")[2])
    else:
        is_ours = not path.rpartition(".")[0] or path.startswith(f"{room}.")
        kind = None if is_ours else allowed_class(path, "class_path", "mmemb.writers")

    if kind is None or not issubclass(kind, RationaleSource) or isabstract(kind):
        raise ValueError(
            f"class_path {path!r} names no rationale writer. Expected {room}.NAME with NAME from "
            f"{_names()}, or the class of another package."
        )
    return kind  # type: ignore[no-any-return]


def _is_known(path: str) -> bool:
    home, _, name = path.rpartition(".")
    return home == package.__name__ and name in _names()


def _names() -> list[str]:
    """Returns the public names of writers."""
    return [n for n in package.__all__ if n.endswith("Writer") and n != RationaleWriter.__name__]

"""`python -m experiments.adopt --config FILE --out RUN`: a public embedder as if a run had made it.

A gate asks for the run of its embedder: a saved backbone and the list of facts that it was fitted
on. For a frozen embedder from elsewhere this list is empty as far as our data goes; whether its own
training data held them, its card has to say (`report contamination` looks for it). An embedder that
was exported from a run brings its list along.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from torch import nn

from experiments.cli.allow_class import add_allow_class
from experiments.cli.config_files import find_config
from experiments.cli.input_files import place_inputs
from mmemb.backbones import Backbone
from mmemb.backbones.base import check_loads_again
from mmemb.llm.loading import revision_of
from mmemb.storage.allowed_classes import allowing_classes
from mmemb.storage.folder_kinds import FolderKind, check_kind
from mmemb.storage.json_files import canonical_json, write_json
from mmemb.storage.run_folder import RunFolder
from mmemb.storage.run_marks import run_mark
from mmemb.storage.signals import exit_on_signals
from mmemb.storage.spec import build, class_at
from mmemb.storage.trained_facts import inherited_facts, write_run_facts


@exit_on_signals()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m experiments.adopt"
) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML with `backbone`")
    parser.add_argument("--out", type=Path, required=True, help="e.g. runs/bolt_on/embedder")
    parser.add_argument("--model", help="folder or hub id in place of the one in the file")
    add_allow_class(parser)

    options = parser.parse_args(arguments)
    try:
        with allowing_classes(options.allow_class):
            adopt(find_config(str(options.config)), options.out, options.model)
    except (ValueError, OSError) as error:
        print(f"adopt: {error}", file=sys.stderr)
        return 1
    return 0


def adopt(config: Path, out: Path, model: str | None = None) -> None:
    """Writes `<out>/backbone`, `fitted.json` and, last, `fingerprint.json`.

    Args:
        config: YAML file whose key `backbone` holds `class_path` and `init_args`.
        out: folder of the run; what is there under the same settings stays.
        model: replaces `init_args.model`.

    Raises:
        ValueError: the file holds no backbone.
        FileNotFoundError: there is no such file or model.
    """
    if not config.is_file():
        raise FileNotFoundError(f"{config}: there is no such file.")
    check_kind(out, "an adopted embedder", FolderKind.ADOPTED)

    try:
        data = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is no YAML: {str(error).splitlines()[0]}") from None

    spec = data.get("backbone") if isinstance(data, dict) else None
    if not isinstance(spec, dict) or not isinstance(spec.get("init_args"), dict):
        raise ValueError(f"{config}: expected a key `backbone` with `class_path` and `init_args`.")

    if model:
        spec["init_args"]["model"] = model
    content = revision_of(str(spec["init_args"].get("model", "")), None)  # a folder may be new
    mark = hashlib.sha256(canonical_json(["adopted", spec, content]).encode()).hexdigest()[:16]

    if run_mark(out) == mark:
        print(f"{out}: everything is there")
        return

    try:
        backbone = build(place_inputs(spec), _class_of)
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from None

    if not isinstance(backbone, Backbone):
        raise ValueError(f"{config}: {spec.get('class_path')} is no backbone.")
    check_loads_again(backbone)

    # The mark goes first and returns last: a folder with it is whole.
    run = RunFolder(out)
    run.mark.unlink(missing_ok=True)  # what was there is whole until now

    backbone.save_pretrained(run.backbone)
    write_run_facts(out, inherited_facts(spec))
    write_json(run.mark, {"fingerprint": mark, "finished": True})
    print(f"{out}: {spec['init_args'].get('model', spec.get('class_path'))}, frozen")


def _class_of(path: str) -> type:
    """Returns the class that a file of the user's own names: a backbone, or a part of one."""
    kind = class_at(path)
    if kind is None or not issubclass(kind, nn.Module):
        raise ValueError(f"{path} is no backbone, nor a part of one.")
    return kind

"""Opens the module of a finished run, for notebooks and tests; `mmemb.load` opens its embedder.

Configurations name data and runs relative to the folder that the run was started in, so call these
from there.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentError, ArgumentParser, set_loader

from experiments.cli.input_files import place_inputs
from experiments.cli.messages import innermost
from experiments.runs.recorded_config import read_config
from experiments.runs.recorded_model import check_recorded
from experiments.runs.run_files import read_summary
from lightning_modules.backbone_module import BackboneModule
from mmemb.backbones import load_backbone
from mmemb.storage.allowed_classes import allowing_classes
from mmemb.storage.run_folder import RunFolder
from mmemb.storage.tensor_files import read_weights
from mmemb.storage.trust import Permissions

_PLAIN = "plain"
"""Mode of a parser that takes texts as they are."""


def load_run(
    folder: str | Path,
    checkpoint: str | Path | None = None,
    *,
    models: Collection[str] = (),
    servers: Mapping[str, str | None] | Collection[str] = (),
    packages: Collection[str] = (),
    allow_classes: Collection[str] = (),
    trust_remote_code: bool = False,
) -> pl.LightningModule:
    """Rebuilds the module of a run from its `config.yaml`, with the weights of a checkpoint.

    Args:
        folder: the run, e.g. `runs/pocket/embedder`.
        checkpoint: by default the one whose weights the run has left (`select: best`), or
            `checkpoints/last.ckpt`, else the newest one; a run that saved none (predict, test)
            gives the module as configured.
        models: folders, files and hub ids that the configuration may name outside of the run; a
            run of this checkout may name any (docs/trust.md).
        servers: see `mmemb.load`.
        packages: whose classes it may name, beside those of this project and of `torch.optim`.
        allow_classes: single classes of other packages that it may name, and the backbones that it
            loads (`mmemb.load_backbone`).
        trust_remote_code: whether it may ask for code that comes with a model.

    Returns:
        The module, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: it is no run.
        ValueError: it names what is not allowed, or its weights do not fit.
    """
    folder = Path(folder)
    settings = read_config(folder)["model"]

    permissions = Permissions.for_folder(folder, models, servers)
    check = partial(
        check_recorded,
        folder=folder,
        permissions=permissions,
        packages=packages,
        trust_remote_code=trust_remote_code,
    )

    with allowing_classes(allow_classes):
        module = _build(settings, check, str(RunFolder(folder).config))
    path = Path(checkpoint) if checkpoint else _checkpoint_of(RunFolder(folder))
    step = None if path is None else _load_weights(module, path)

    # The last checkpoint may be older than the weights that the run has left, or there is none. The
    # saved backbone takes its place: low-rank updates are part of its weights already.
    left = None if checkpoint else read_summary(folder).weights
    if left is not None and left.step != step and isinstance(module, BackboneModule):
        with allowing_classes(allow_classes):
            module.backbone = load_backbone(str(RunFolder(folder).backbone))
    return module.eval()


def _build(
    settings: dict[str, Any], check: Callable[[Mapping[str, Any]], None], where: str
) -> pl.LightningModule:
    """Builds the module of checked settings.

    The recorded configuration is resolved, so its texts are taken as they are: none is read as
    YAML, or as the name of a further file.
    """
    set_loader(_PLAIN, _as_it_is)
    parser = ArgumentParser(exit_on_error=False, parser_mode=_PLAIN)
    parser.add_argument("--model", type=pl.LightningModule, required=True)

    check(settings)  # before anything is imported
    try:
        parsed = parser.parse_object({"model": settings})
    except ArgumentError as error:
        reason = innermost(textwrap.dedent(str(error).partition("\n")[2])) or str(error)

        raise ValueError(f"{where} does not fit this version: {reason:.500}") from None
    check(parsed.model.as_dict())  # as the parser understood it

    place_inputs(parsed.model)
    return parser.instantiate(parsed).model


def _as_it_is(text: str) -> str:
    return text


def _checkpoint_of(run: RunFolder) -> Path | None:
    """Returns the checkpoint with the weights that a run has left; None if it saved none."""
    weights = read_summary(run.path).weights
    if weights is not None and weights.checkpoint:
        return run.path / weights.checkpoint

    if run.last_checkpoint.is_file():
        return run.last_checkpoint
    return max(run.checkpoints.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)


def _load_weights(module: pl.LightningModule, path: Path) -> int:
    """Loads a checkpoint, and returns its step."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")

    state = read_weights(path)
    try:
        module.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the {type(module).__name__} of its run's config.yaml: "
            f"{str(error).splitlines()[1].strip():.300} A gate is opened with `mmemb.load`; any "
            "other run was made by another version of the code: train it again."
        ) from None
    return int(state.get("global_step", 0))

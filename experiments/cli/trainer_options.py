"""Options of the trainer that the command line refuses; docs/lightning_options.md has them all."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from mmemb.storage.run_folder import RunFolder

LIMITED = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
"""Subcommand -> the batches that it goes through."""


def check_trainer_options(trainer: Namespace, subcommand: str = "fit") -> None:
    """Refuses what would be ignored, or would switch off what a run needs.

    Args:
        trainer: the configuration of the trainer.
        subcommand: `fit`, `validate`, `test` or `predict`.

    Raises:
        ValueError: names what to use instead.
    """
    folder = trainer.default_root_dir
    # An earlier run's config.yaml may name the folder of that run.
    if folder is not None and not RunFolder(Path(folder)).config.is_file():
        raise ValueError(
            f"trainer.default_root_dir is {folder}, but a run has a folder of its own: name its "
            "parents by --runs and --experiment."
        )

    if trainer.barebones:
        raise ValueError(
            "trainer.barebones switches off the logs and checkpoints of a run: measure speed with "
            "`python -m experiments.bench`."
        )

    # Weights that were never trained would count as a finished fit.
    for key in ("max_steps", "max_epochs"):
        if subcommand == "fit" and trainer.get(key) == 0:
            short = " (--steps)" * (key == "max_steps")
            raise ValueError(
                f"trainer.{key}{short} is 0, so that fit would train nothing: set at least 1, or "
                "measure an encoder as it came with `test`."
            )

    # Without a batch Lightning skips the command and returns as if it were done.
    name = f"limit_{LIMITED[subcommand]}_batches"
    if trainer.get(name) == 0:
        raise ValueError(
            f"trainer.{name} is 0, so that {subcommand} would do nothing: leave it out, or set at "
            "least 1."
        )

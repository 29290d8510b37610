"""Options of the trainer that the command line refuses; docs/lightning_options.md has them all."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace


def check_trainer_options(trainer: Namespace) -> None:
    """Refuses what would be ignored, or would switch off what a run needs.

    Args:
        trainer: the configuration of the trainer.

    Raises:
        ValueError: names what to use instead.
    """
    folder = trainer.default_root_dir
    # An earlier run's config.yaml may name the folder of that run.
    if folder is not None and not (Path(folder) / "config.yaml").is_file():
        raise ValueError(
            f"trainer.default_root_dir is {folder}, but a run has a folder of its own: name its "
            "parents by --runs and --experiment."
        )
    if trainer.barebones:
        raise ValueError(
            "trainer.barebones switches off the logs and checkpoints of a run: measure speed with "
            "`python -m experiments.bench`."
        )

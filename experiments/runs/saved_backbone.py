"""Finds the backbone that a folder holds, and the run that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from experiments.runs.recorded_config import read_config
from mmemb.backbones.base import saved_class
from mmemb.storage.run_folder import RunFolder


@final
@dataclass(frozen=True, slots=True)
class SavedBackbone:
    """A saved backbone.

    Attributes:
        folder: where it lies.
        run: of `experiments.run`, or None.
        kind: the backbone's class.
    """

    folder: Path
    run: Path | None
    kind: str

    @property
    def name(self) -> str:
        """EXPERIMENT/NAME of the run, or the folder's name."""

        parts = [str(self.config[key]) for key in ("experiment", "name") if key in self.config]
        return "/".join(parts) or self.folder.resolve().name

    @property
    def config(self) -> Mapping[str, Any]:
        """Resolved configuration of the run; empty without one."""
        return {} if self.run is None else read_config(self.run)


def find_backbone(folder: Path) -> SavedBackbone:
    """Finds the backbone of a run, of a saved AdaptiveEmbedder, or of the folder itself.

    Raises:
        FileNotFoundError: there is none.
    """
    run = RunFolder(folder)
    for place in (folder, run.backbone, run.adaptive.backbone):
        kind = saved_class(place)
        if kind is not None:
            # A link such as runs/pocket/embedder is followed; the run is at most two folders
            # above.
            above = place.resolve()
            runs = [parent for parent in (above, *above.parents[:2]) if is_run(parent)]
            return SavedBackbone(place, runs[0] if runs else None, kind.rpartition(".")[2])

    raise FileNotFoundError(
        f"{folder} holds no saved backbone: expected a run that trained one "
        "(runs/pocket/embedder), a saved AdaptiveEmbedder (runs/pocket/gate/adaptive), or a "
        "folder of `Backbone.save_pretrained`."
    )


def is_run(folder: Path) -> bool:
    """Tells whether a folder is a run of `experiments.run`."""
    return RunFolder(folder).config.is_file() and RunFolder(folder).mark.is_file()

"""RunRecord: what a run was, beside its results, and the link to the newest finished run."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from mmemb.distributed import gather_objects
from mmemb.files import link_atomically
from mmemb.lineage import read_json, write_json

PACKAGES = ("torch", "lightning", "transformers", "webdataset", "torchmetrics", "open_clip_torch")


def git_state(folder: Path) -> tuple[str, str]:
    """(commit, diff) of the checkout that holds `folder`; empty strings outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    return git("rev-parse", "--short=10", "HEAD").strip(), git("diff", "HEAD")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


HEADLINES = ("val/recall@1", "val/reward", "train/loss")
"""Metrics that the last line of a run shows, where they were logged."""


@final
class RunRecord(Callback):
    """Writes config, commit, diff, versions, fingerprint and fitted facts into the run folder.

    Args:
        run: the run's folder, `<runs>/<experiment>/<time>-<name>-<commit>`.
        link: name of the link to it, made when the run has finished.
        config: the resolved configuration, as YAML text.
        fingerprint: hash of inputs and settings (`mmemb.lineage`).
        inputs: path -> identity of everything that the run reads.
        owner: who started it.
        tags: words to find it by.
        inherited_facts: facts that the models this run starts from were fitted on.
    """

    def __init__(
        self,
        run: str,
        link: str,
        config: str,
        fingerprint: str,
        inherited_facts: frozenset[str] = frozenset(),
        inputs: Mapping[str, str] | None = None,
        owner: str = "",
        tags: Sequence[str] = (),
    ) -> None:
        self.run = Path(run)
        self.link = link
        self.config = config
        self.fingerprint = fingerprint
        self.inherited_facts, self.inputs = inherited_facts, dict(inputs or {})
        self.owner, self.tags = owner, list(tags)
        self._started = time.monotonic()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        marks = gather_objects([self.fingerprint])
        if len(set(marks)) > 1:
            raise ValueError(
                f"Ranks run with different settings or data (fingerprints by rank: {marks}): start "
                "all of them with the same command, on the same files."
            )
        if not trainer.is_global_zero:
            return
        self.run.mkdir(parents=True, exist_ok=True)
        (self.run / "config.yaml").write_text(self.config, encoding="utf-8")
        commit, diff = git_state(Path(__file__).parent)
        (self.run / "uncommitted.diff").write_text(diff, encoding="utf-8")
        environment = {"git_commit": commit, "uncommitted_changes": bool(diff)}
        environment |= {"owner": self.owner, "tags": self.tags}
        write_json(self.run / "environment.json", environment | {"versions": package_versions()})
        self._mark(finished=False)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # On every rank: where facts are known only by reading, the ranks join theirs.
        facts = self.inherited_facts | trainer.datamodule.fitted_facts  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            write_json(self.run / "fitted.json", {"facts": sorted(facts)})
        self._finish(trainer)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        seconds = round(time.monotonic() - self._started, 1)
        write_json(self.run / "summary.json", {"seconds": seconds, "metrics": metrics})
        self._mark(finished=True)
        link_atomically(self.run.parent / self.link, self.run)
        shown = [f", {name} {metrics[name]:.3f}" for name in HEADLINES if name in metrics]
        print(f"{self.run.parent / self.link}: {seconds:.0f} s{''.join(shown)}")

    def _mark(self, finished: bool) -> None:
        record: dict[str, Any] = {"fingerprint": self.fingerprint, "finished": finished}
        record |= {"inputs": self.inputs}
        write_json(self.run / "fingerprint.json", record)


def is_finished(run: Path, fingerprint: str) -> bool:
    """Whether `run` (a folder or a link to one) finished under this fingerprint."""
    return _mark_of(run) == (fingerprint, True)


def is_unfinished(run: Path, fingerprint: str) -> bool:
    """Whether `run` was started under this fingerprint and can be continued."""
    return _mark_of(run) == (fingerprint, False)


def _mark_of(run: Path) -> tuple[Any, Any]:
    path = run / "fingerprint.json"
    mark = read_json(path, "a run's fingerprint") if path.is_file() else {}
    return mark.get("fingerprint"), mark.get("finished")

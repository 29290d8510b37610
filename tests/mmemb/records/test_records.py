"""Facts that a run inherits from what its configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from experiments.cli.experiment_cli import facts_behind
from mmemb.storage.trained_facts import TrainedFacts, write_facts


def config_of(model: tuple[str, Any], data: tuple[str, Any], **more: Any) -> Namespace:
    """As much of a parsed configuration as counts."""
    parts = {
        key: Namespace(class_path=path, init_args=init_args)
        for key, (path, init_args) in (("model", model), ("data", data))
    }
    stage = {"name": "judge", "experiment": "x", "runs": "runs", "seed_everything": 0}
    return Namespace(**stage, **parts, trainer=Namespace(callbacks=[]), **more)


class Sidecars:
    """Folders that each go back to one fact, called like themselves."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, fact: str) -> str:
        folder = self.root / fact
        write_facts(folder / "fitted.json", TrainedFacts(frozenset({fact})))
        return str(folder)


def test_a_model_inherits_the_facts_of_what_teaches_it(tmp_path: Path) -> None:
    made_by = Sidecars(tmp_path)
    config = config_of(
        ("lightning_modules.ContrastiveEmbedder", {"backbone": {"folder": made_by("start")}}),
        (
            "datamodules.PairDataModule",
            {
                "teacher": made_by("teacher"),
                "negatives": made_by("miner"),
                "sidecar": made_by("tuned writer"),
                "val_rationales": made_by("validated"),
            },
        ),
        init=None,
        ckpt_path=made_by("checkpoint"),
    )
    taught = {"start", "teacher", "miner", "tuned writer", "checkpoint"}
    assert facts_behind(config, "fit") == TrainedFacts(frozenset(taught), frozenset({"validated"}))


def test_what_judges_choose_goes_back_to_who_wrote_it(tmp_path: Path) -> None:
    """Else a judge's half would bar the models that are trained on what it chose."""
    made_by = Sidecars(tmp_path)
    judges = {
        "class_path": "mmemb.selection.EmbeddingJudge",
        "init_args": {"judges": {"a": made_by("a"), "b": made_by("b")}},
    }
    config = config_of(
        (
            "lightning_modules.CounterfactualSelector",
            {"judge": judges, "selector_run": made_by("eta")},
        ),
        (
            "datamodules.SelectionDataModule",
            {"rationales": made_by("tuned writer"), "features": made_by("tower")},
        ),
    )
    chosen_by = frozenset({"a", "b", "eta", "tower"})
    expected = TrainedFacts(frozenset({"tuned writer"}), chosen_by)
    assert facts_behind(config, "predict") == expected

"""Facts that a model was trained on, recorded beside it so that it does not judge them.

See docs/method.md section 3.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from mmemb.records.schema import Schema, read_json
from mmemb.storage.fingerprints import marked_parent, named_paths
from mmemb.storage.json_files import write_json
from mmemb.storage.manifests import MANIFEST, read_manifest, read_record
from mmemb.storage.run_folder import FACTS, MARK
from mmemb.storage.run_marks import MarkJson

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@final
@dataclass(frozen=True, slots=True)
class TrainedFacts:
    """Facts behind a model, or behind what a model wrote.

    Attributes:
        trained: facts that weights were trained on: the model may not judge them.
        calibrated: facts that only chose, validated or set a number (tau, eta, a threshold): they
            bar nothing.
        unknown: weights and sidecars that came without a list, so that their facts cannot be told.
    """

    trained: frozenset[str] = frozenset()
    calibrated: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()

    def __or__(self, other: TrainedFacts) -> TrainedFacts:
        return TrainedFacts(
            self.trained | other.trained,
            self.calibrated | other.calibrated,
            self.unknown | other.unknown,
        )

    def as_calibrated(self) -> TrainedFacts:
        """The facts of a model that only chooses data, and on whose output no weight is trained."""
        return TrainedFacts(calibrated=self.trained | self.calibrated)


@final
class _FittedJson(Schema):
    """See `TrainedFacts`."""

    facts: tuple[str, ...]
    calibrated: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def write_facts(path: Path, facts: TrainedFacts) -> None:
    """Writes a `fitted.json`."""
    data = {
        "facts": sorted(facts.trained),
        "calibrated": sorted(facts.calibrated),
        "unknown": sorted(facts.unknown),
    }
    write_json(path, data)


def write_run_facts(run: Path, facts: TrainedFacts) -> None:
    """Writes `fitted.json` into a run and beside all weights in it, so that copies have it, too."""
    weights = (path for path in run.rglob("*") if path.suffix in _WEIGHT_SUFFIXES)
    for folder in sorted({path.parent for path in weights} - {run}):
        write_facts(folder / FACTS, facts)
    write_facts(run / FACTS, facts)


def read_fitted(path: Path) -> TrainedFacts:
    """Reads a `fitted.json`; older ones hold the list `facts` alone."""
    data = read_json(path, _FittedJson, "Train the model again to write it.")
    return TrainedFacts(*map(frozenset, (data.facts, data.calibrated, data.unknown)))


def read_facts(path: Path) -> frozenset[str]:
    """The facts that a model may not judge, by its `fitted.json`.

    Raises:
        FileNotFoundError: there is no list.
        ValueError: the list is broken, or is marked as not whole.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: without the list of facts that this model was fitted on it is not "
            "known which pairs it may judge. Train the model with `experiments.run fit`, which "
            "writes the list."
        )
    return _known(read_fitted(path), str(path))


def trained_facts(model: str, adapter: str | None = None) -> frozenset[str]:
    """The facts that a model may not judge, by its folder; none for the id of a hub.

    Args:
        model: folder or id.
        adapter: folder of low-rank updates on it; they need a list, in it or in their run.

    Raises:
        FileNotFoundError: the adapter has no list.
        ValueError: the model is a backbone of ours without a list.
    """
    facts = _known(inherited_facts(model), model)
    if adapter is None:
        return facts

    beside = Path(adapter) / FACTS
    return facts | read_facts(beside if beside.is_file() else Path(adapter).parent / FACTS)


def inherited_facts(settings: Any, outputs: Collection[Path] = ()) -> TrainedFacts:
    """The facts behind the runs, sidecars and weights that `settings` name.

    Args:
        settings: plain data.
        outputs: may lie there from an earlier time, and hand nothing down.
    """
    facts = TrainedFacts()
    for path in map(Path, named_paths(settings, outputs)):
        # A link to a model elsewhere may lie in no run although the model does.
        record = marked_parent(path, (FACTS,)) or marked_parent(path.resolve(), (FACTS,))
        if record is not None:
            facts |= read_fitted(record)
        elif _was_trained_here(path) or _was_predicted_here(path):
            facts |= TrainedFacts(unknown=frozenset([str(path)]))
    return facts


def _known(facts: TrainedFacts, source: str) -> frozenset[str]:
    if facts.unknown:
        raise ValueError(
            f"{source}: the facts that {min(facts.unknown)} goes back to are unknown, so it cannot "
            f"be told which pairs this model may judge. Copy {FACTS} of the run that trained those "
            "weights, or of the folder that this sidecar was copied from, into it "
            '(`{"facts": []}` if they go back to none of this data) and make what depends on them '
            "again."
        )
    return facts.trained


def _was_trained_here(path: Path) -> bool:
    """True for weights that this project wrote: a model of the hub saw none of our facts."""
    if path.suffix == ".ckpt":
        return True

    # Adapters of other projects have this file, too; the mark is ours alone.
    if (path / "adapter_config.json").is_file():
        return (path / MARK).is_file()

    # Our backbones name their class; configurations of transformers do not.
    config = path / "config.json"
    return config.is_file() and b'"class_path"' in config.read_bytes()


def _was_predicted_here(path: Path) -> bool:
    """True for a sidecar that a run of this project wrote, always with its list of facts.

    Sidecars that `prepare` writes name no command: no model is behind them.
    """
    # A data root has a manifest, too; its shards lie in folders below it.
    if not (path / MANIFEST).is_file() or read_json(path / MANIFEST, MarkJson).shards is None:
        return False
    shards = read_manifest(path).shards
    return bool(shards and read_record(path, shards[0].name).command)

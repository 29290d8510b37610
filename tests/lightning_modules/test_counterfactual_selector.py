"""CounterfactualSelector on planted rationales: it keeps those that help, on any rank."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
from msgspec import structs
from torch import Tensor

from callbacks import SidecarWriter
from datamodules import SelectionDataModule
from datamodules.scores import ScoreTable
from lightning_modules import CounterfactualSelector
from mmemb.records.batches import PairRowBatch
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale, ScoredJson
from mmemb.selection import PairJudge, YesNoJudge
from mmemb.selection.pair_scores import PairScores, judge_pairs
from mmemb.selection.placebos import placebo_donors
from mmemb.storage.shard_index import ShardIndex
from tests.fixtures.reports import rewrite
from tests.fixtures.tiny_sidecars import write_tiny_rationales
from tests.fixtures.tiny_trainer import trainer_of
from tests.fixtures.tiny_vlm import folder as vlm_folder

PAIRS, POOL = 16, 3


@final
class PlantedJudge(PairJudge):
    """Reads the right country off the fact: a rationale that names it helps, others harm.

    Everything is scaled by `tau`, which a fit must find again.
    """

    def __init__(self, tau: float = 0.05) -> None:
        self.tau = tau
        self.num_judged = 0

    def identity(self) -> str:
        return f"planted {self.tau}"

    def score(
        self,
        queries: Sequence[Side],
        candidates: Sequence[Sequence[Side]],
        rationales: Sequence[Sequence[Rationale]],
        facts: Sequence[str],
    ) -> Tensor:
        self.num_judged += len(queries)
        width = max(map(len, candidates))
        score_BCR = torch.full((len(queries), width, 1 + max(map(len, rationales))), torch.nan)
        for row, (sides, pool, fact) in enumerate(zip(candidates, rationales, facts, strict=True)):
            number = fact.split(":")[1].split("/")[0]
            noise = torch.Generator().manual_seed(stable_hash(fact))
            base_C = torch.randn(len(sides), generator=noise)
            base_C[0] += 2.0
            columns = [0.0, *((2.0 if f"country-{number}" in r.plain else -1.0) for r in pool)]
            for column, shift in enumerate(columns):
                shift_C = torch.zeros(len(sides))
                shift_C[0] = shift
                score_BCR[row, : len(sides), column] = (base_C + shift_C) * self.tau
        return score_BCR


@pytest.fixture(scope="module")
def rationales(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_rationales(tiny_root, tmp_path_factory.mktemp("rationales"))


def data_of(root: Path, rationales: Path, folder: Path, batch_size: int) -> SelectionDataModule:
    return SelectionDataModule(
        str(root),
        str(rationales),
        batch_size,
        str(folder / "judge-scores"),
        selected=str(folder / "selected"),
    )


def module_of(folder: Path, **kwargs: float) -> CounterfactualSelector:
    return CounterfactualSelector(PlantedJudge(), str(folder), **{"keep_share": 1 / 3, **kwargs})


def fit(
    folder: Path, root: Path, rationales: Path, world: int = 1, batch_size: int = 5, **kwargs: float
) -> dict[str, float]:
    trainer = trainer_of(folder, world, max_epochs=1)
    trainer.fit(
        module_of(folder, **kwargs), datamodule=data_of(root, rationales, folder, batch_size)
    )
    return json.loads((folder / "selection.json").read_text())


def select(folder: Path, root: Path, rationales: Path) -> ShardIndex:
    writer = SidecarWriter(str(folder / "selected"))
    trainer = trainer_of(folder, callbacks=[writer])
    trainer.predict(
        module_of(folder),
        datamodule=data_of(root, rationales, folder, 5),
        return_predictions=False,
    )
    return ShardIndex.open(folder / "selected")


def test_what_helps_is_kept_and_what_harms_is_not(
    tmp_path: Path, tiny_root: Path, rationales: Path
) -> None:
    fitted = fit(tmp_path, tiny_root, rationales)
    assert fitted["contrast"] == "gain"
    assert fitted["eta"] <= 0
    index = select(tmp_path, tiny_root, rationales)
    assert len(index.entries) == PAIRS
    for entry in index.entries:
        pool = [row.scored for row in index.read_json(entry, tuple[ScoredJson, ...])]
        assert len(pool) == POOL
        assert [scored.kept for scored in pool] == [scored.names_target for scored in pool]
        assert [scored.weight for scored in pool] == [1.0, 0.0, 0.0]
        assert pool[0].scores["gain"] > 0 > pool[1].scores["gain"]
        assert set(pool[0].scores) == {"raw", "gain", "positive", "margin", "placebo_rank"}
        if pool[0].scores["placebo_rank"] is not None:  # the last pair is alone in its batch
            assert pool[0].scores["placebo_rank"] > pool[1].scores["placebo_rank"]
        assert entry.meta["concept"].startswith("country:")


def test_scores_are_calibrated_on_queries_the_judges_do_not_know(
    tmp_path: Path, tiny_root: Path, rationales: Path
) -> None:
    """tau undoes the judge's scale: twice the scale, twice the tau, and the same keeping."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = fit(tmp_path / "one", tiny_root, rationales)
    module = module_of(tmp_path / "two")
    module.judge.tau *= 2
    trainer = trainer_of(tmp_path / "two", max_epochs=1)
    trainer.fit(module, datamodule=data_of(tiny_root, rationales, tmp_path / "two", 5))
    two = json.loads((tmp_path / "two/selection.json").read_text())
    assert two["tau"] == pytest.approx(2 * one["tau"], rel=1e-3)
    assert two["eta"] == pytest.approx(one["eta"], rel=1e-2)


@pytest.mark.parametrize("batch_size", [pytest.param(7, marks=pytest.mark.slow), 16])
def test_two_ranks_fit_what_one_fits(
    tmp_path: Path, tiny_root: Path, rationales: Path, batch_size: int
) -> None:
    """Ranks judge different shards, and all of them fit on all scores."""
    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        found.append(fit(folder, tiny_root, rationales, world, batch_size))
    assert found[0] == found[1]
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / world).glob("judge-scores/*.tar")}
        for world in "12"
    )
    assert len(one) > 1
    assert one == two


def test_a_rank_without_a_shard_does_not_hang(
    tmp_path: Path, tiny_root: Path, rationales: Path
) -> None:
    fit(tmp_path, tiny_root, rationales)
    (tmp_path / "judge-scores/questions-000000.tar").unlink()
    again = fit(tmp_path, tiny_root, rationales, world=2)
    assert again == json.loads((tmp_path / "selection.json").read_text())


@pytest.mark.parametrize("world", [1, 2])
def test_the_test_reports_keeping_and_swapping(
    tmp_path: Path, tiny_root: Path, rationales: Path, world: int
) -> None:
    fit(tmp_path, tiny_root, rationales)
    select(tmp_path, tiny_root, rationales)
    trainer = trainer_of(tmp_path, world)
    data = data_of(tiny_root, rationales, tmp_path, 5)
    trainer.test(module_of(tmp_path), datamodule=data, verbose=False)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert found["test/keep_rate"] == pytest.approx(1 / 3)
    assert found["test/answer_mentioned"] == pytest.approx(1 / 3)
    assert found["test/answer_mentioned_kept"] == pytest.approx(1.0)
    assert found["test/logp_placebo"] < found["test/logp_none"]
    assert len(found) == 6


def test_a_threshold_belongs_to_the_rule_that_it_was_fitted_for(
    tmp_path: Path, tiny_root: Path, rationales: Path
) -> None:
    fit(tmp_path, tiny_root, rationales, contrast="margin")
    with pytest.raises(ValueError, match=r"fitted with contrast 'margin', not 'gain'"):
        select(tmp_path, tiny_root, rationales)


def test_without_calibration_queries_there_is_no_tau(
    tmp_path: Path, tiny_root: Path, rationales: Path
) -> None:
    data = data_of(tiny_root, rationales, tmp_path, 5)
    data._calibration_rows = ()
    trainer = trainer_of(tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match="split `calibration` has no query with a rationale"):
        trainer.fit(module_of(tmp_path), datamodule=data)
    assert not (tmp_path / "selection.json").exists()


def test_no_pair_is_judged_twice(tmp_path: Path, tiny_root: Path, rationales: Path) -> None:
    """Of fit, predict and test the first judges all pairs and calibration queries."""
    judge = PlantedJudge()

    def run(command: str, world: int = 1) -> int:
        """How many pairs and queries were judged."""
        before = judge.num_judged
        module = CounterfactualSelector(judge, str(tmp_path), keep_share=1 / 3)
        writer = SidecarWriter(str(tmp_path / "selected"))
        trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[writer])
        data = data_of(tiny_root, rationales, tmp_path, 5)
        options = {"predict": {"return_predictions": False}, "test": {"verbose": False}}
        getattr(trainer, command)(module, datamodule=data, **options.get(command, {}))
        return judge.num_judged - before

    asked = data_of(tiny_root, rationales, tmp_path, 5)
    num_rows = PAIRS + len(asked._calibration_rows)
    assert [run(command) for command in ("fit", "predict", "test", "fit")] == [num_rows, 0, 0, 0]

    # A shard that is lost is judged again, and gives the same bytes.
    shard = tmp_path / "judge-scores/questions-000000.tar"
    before = shard.read_bytes()
    shard.unlink()
    assert run("predict") == PAIRS
    assert shard.read_bytes() == before

    # Another judge, and other donors, make all scores stale.
    judge.tau *= 2
    assert run("test") == num_rows


def test_scores_are_kept_unrounded(tmp_path: Path, tiny_root: Path, rationales: Path) -> None:
    """With the columns of donors: what is stored is what the judge gave, to the bit."""
    fit(tmp_path, tiny_root, rationales)
    data = data_of(tiny_root, rationales, tmp_path, 5)
    table = ScoreTable(tmp_path / "judge-scores")
    for batch in data.judge_loader(data.predict_shards()):
        judged = PairScores.stack(judge_pairs(PlantedJudge(), batch, 3), "similarity")
        stored = table.read([pair.key for pair in batch.pairs])
        for name in ("own_BCR", "placebo_BCJ", "comparable_BKJ"):
            assert torch.equal(getattr(stored, name), getattr(judged, name)) or (
                torch.allclose(getattr(stored, name), getattr(judged, name), 0, 0, equal_nan=True)
            )


def test_other_rationales_than_were_judged_are_not_tested(
    tmp_path: Path, tiny_root: Path, rationales: Path
) -> None:
    fit(tmp_path, tiny_root, rationales)
    select(tmp_path, tiny_root, rationales)
    rewrite(tmp_path / "selected", lambda _, rows: rows[:1])
    data = data_of(tiny_root, rationales, tmp_path, 5)
    with pytest.raises(ValueError, match=r"has 1 rationales in .*selected, but 3 were judged"):
        trainer_of(tmp_path).test(module_of(tmp_path), datamodule=data, verbose=False)


@pytest.mark.parametrize("command", ["fit", "predict", "test"])
def test_a_development_run_judges_few_pairs_and_keeps_nothing(
    tmp_path: Path, tiny_root: Path, rationales: Path, command: str
) -> None:
    fit(tmp_path, tiny_root, rationales)
    select(tmp_path, tiny_root, rationales)
    shutil.rmtree(tmp_path / "judge-scores")
    judge = PlantedJudge()
    module = CounterfactualSelector(judge, str(tmp_path), keep_share=1 / 3)
    trainer = trainer_of(tmp_path, fast_dev_run=1, callbacks=[SidecarWriter(str(tmp_path / "x"))])
    getattr(trainer, command)(module, datamodule=data_of(tiny_root, rationales, tmp_path, 5))
    assert 0 < judge.num_judged <= 10
    assert not (tmp_path / "judge-scores").exists()


def test_a_share_is_refused_before_anything_is_judged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_share 2: expected a share between 0 and 1"):
        module_of(tmp_path, keep_share=2)


def test_nan_is_the_judges_fault(tiny_root: Path, rationales: Path, tmp_path: Path) -> None:
    module, data = module_of(tmp_path), data_of(tiny_root, rationales, tmp_path, 5)
    module.judge.tau = float("nan")
    with pytest.raises(ValueError, match=r"^flag-.*: scores of the PlantedJudge are not finite"):
        judge_pairs(module.judge, next(iter(data.judge_loader(data.predict_shards()))), 3)


def test_placebos_are_of_the_same_writer(tiny_root: Path, tmp_path: Path) -> None:
    """A model is not praised for beating what a weaker one babbles about other countries."""
    folder = write_tiny_rationales(tiny_root, tmp_path / "rationales")
    data = data_of(tiny_root, folder, tmp_path, 16)
    batch = next(iter(data.judge_loader(data.predict_shards())))
    kinds = ("one", "other")
    pools = tuple(
        tuple(
            structs.replace(
                scored, rationale=structs.replace(scored.rationale, writer=kinds[k % 2])
            )
            for k, scored in enumerate(pool)
        )
        for pool in batch.rationales
    )
    batch = replace(batch, rationales=pools)
    scores = judge_pairs(PlantedJudge(), batch, 2)
    own = [[scored.rationale for scored in pool] for pool in pools]
    for row, pool in enumerate(pools):
        donors = placebo_donors(batch.pairs, own, row, 2)
        assert {donor.writer for donor in donors} == set(kinds)
        for k, scored in enumerate(pool):
            same = [donor.writer == scored.rationale.writer for donor in donors]
            assert scores[row].comparable_KJ[k].tolist() == same
            assert sum(same) <= 2


def test_predicting_before_fitting_says_what_to_do(
    tmp_path: Path, tiny_root: Path, rationales: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"selection\.json is missing.*fit"):
        select(tmp_path, tiny_root, rationales)


def test_a_judge_may_be_shown_some_negatives(
    tiny_root: Path, rationales: Path, tmp_path: Path
) -> None:
    """The same ones always, and the target first."""

    def batches(**settings: Any) -> list[PairRowBatch]:
        data = SelectionDataModule(str(tiny_root), str(rationales), 4, "", **settings)
        return list(data.judge_loader(data.predict_shards()))

    def digests(batch: PairRowBatch) -> list[list[str]]:
        return [[side.digest for side in sides] for sides in batch.candidates]

    whole, some, again = batches(), batches(num_negatives=3), batches(num_negatives=3)
    for every, few, same in zip(whole, some, again, strict=True):
        assert digests(few) == digests(same)
        for pair, all_of_it, shown in zip(every.pairs, digests(every), digests(few), strict=True):
            assert shown[0] == pair.target.digest
            assert len(shown) == 4
            assert set(shown) <= set(all_of_it)
    with pytest.raises(ValueError, match="num_negatives 0"):
        batches(num_negatives=0)
    with pytest.raises(ValueError, match="not num_negatives"):
        batches(negatives="somewhere")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_generative_judge_selects_by_its_margin(
    tiny_root: Path, rationales: Path, tmp_path: Path
) -> None:
    """The whole stage over the real judge: eta keeps the stated share of the margins."""
    scores = str(tmp_path / "judge-scores")
    data = SelectionDataModule(str(tiny_root), str(rationales), 8, scores, num_negatives=2)
    run = tmp_path / "selection"

    def module() -> CounterfactualSelector:
        judge = YesNoJudge(str(vlm_folder("qwen3_vl")))
        return CounterfactualSelector(judge, str(run), contrast="margin", keep_share=0.5)

    trainer_of(run, max_epochs=1).fit(module(), datamodule=data)
    writer = SidecarWriter(str(tmp_path / "selected"))
    writer.fingerprint = "f"
    trainer_of(tmp_path / "p", callbacks=[writer]).predict(
        module(), datamodule=data, return_predictions=False
    )
    index = ShardIndex.open(tmp_path / "selected")
    scored = [
        row.scored
        for entry in index.entries
        for row in index.read_json(entry, tuple[ScoredJson, ...])
    ]
    margins = [s.scores["margin"] for s in scored if s.scores]
    kept = [s.scores["margin"] for s in scored if s.kept]
    assert len(set(margins)) > len(margins) / 2
    assert len(kept) == pytest.approx(len(margins) / 2, abs=1)
    assert min(kept) >= max(m for s, m in zip(scored, margins, strict=True) if not s.kept)

"""ContrastiveEmbedder: gradients and metrics on two ranks equal those of one; what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional

from lightning_modules import ContrastiveEmbedder
from mmemb.backbones import Backbone
from mmemb.backbones.base import load_backbone
from mmemb.records.batches import PairBatch
from mmemb.records.inputs import Media, Side
from mmemb.records.rationales import Rationale
from mmemb.training.gradient_cache import GradientCache
from mmemb.training.path_losses import PathLosses
from tests.fixtures.tiny_embedder import BACKBONES, clip, evaluate, joint
from tests.fixtures.tiny_sidecars import write_tiny_features, write_tiny_rationales
from tests.fixtures.tiny_trainer import Stub, trainer_of

ROWS = 8


# ---- gradients


def picture(n: int) -> Media:
    random = torch.Generator().manual_seed(n)
    pixels = torch.randint(256, (3, 8, 8), dtype=torch.uint8, generator=random)
    return Media("image", f"p{n}", pixels, torch.rand(2, 8, generator=random))


def thought(n: int) -> Rationale:
    text = f"<think>It is country {n:02d}.</think><answer>{n:02d}</answer>"
    return Rationale(text, "w", "m", "1", "p", "d", n, 8)


def rows(first: int, valid: int) -> PairBatch:
    """8 rows of one rank, `valid` of them with a rationale; the second rank has no pictures.

    Rows 0 and 9 share a target, and ranks differ in the number of positives.
    """
    numbers = range(first, first + ROWS)
    width = 2 if first else 1
    target_ids = [100 + (0 if n == 9 else n) for n in numbers]
    others = [-1] * (width - 1)
    return PairBatch(
        keys=tuple(f"k{n}" for n in numbers),
        queries=tuple(Side(f"the flag of {n:02d}", "find it") for n in numbers),
        targets=tuple(
            Side(f"country {n:02d}", media=() if first else (picture(n),)) for n in numbers
        ),
        rationales=tuple(thought(n) if n - first < valid else None for n in numbers),
        query_ids_B=torch.arange(first, first + ROWS),
        target_ids_B=torch.tensor(target_ids),
        positive_ids_BP=torch.tensor([[t, *others] for t in target_ids]),
    )


def joined(parts: Sequence[PairBatch]) -> PairBatch:
    """The global batch in one process."""
    tuples = ("keys", "queries", "targets", "rationales", "negatives", "target_rationales")
    width = max(part.positive_ids_BP.shape[1] for part in parts)
    ids = [part.positive_ids_BP for part in parts]
    padded = [functional.pad(x, (0, width - x.shape[1]), value=-1) for x in ids]
    negatives = [x for part in parts if (x := part.negative_ids_BK) is not None]
    return PairBatch(
        **{name: sum((getattr(part, name) for part in parts), ()) for name in tuples},
        negative_ids_BK=torch.cat(negatives) if negatives else None,
        query_ids_B=torch.cat([part.query_ids_B for part in parts]),
        target_ids_B=torch.cat([part.target_ids_B for part in parts]),
        positive_ids_BP=torch.cat(padded),
    )


@final
class KeepGradients(Callback):
    """Writes rank 0's gradients before the optimiser sees them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        if trainer.is_global_zero:
            found = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.requires_grad}
            torch.save(found, self.path)


def gradients(
    folder: Path, make: Callable[[Path], Backbone], parts: Sequence[PairBatch], **kwargs: Any
) -> dict[str, Tensor]:
    folder.mkdir()
    data = Stub(train=lambda rank, world: [parts[rank]])
    module = ContrastiveEmbedder(make(folder), learn_temperature=True, **kwargs)
    trainer = trainer_of(
        folder, len(parts), max_steps=1, callbacks=[KeepGradients(folder / "g.pt")]
    )
    trainer.fit(module.train(), datamodule=data)
    return torch.load(folder / "g.pt", weights_only=True)


def slow(*values: object) -> Any:
    """A case that takes seconds, of a test that has a quick one."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("clip", (8, 8)),
        *(slow("clip", valid) for valid in ((5, 3), (4, 0), (0, 0))),
        ("joint", (4, 0)),  # its own path is the empty call; the others are those of clip
        *(slow("joint", valid) for valid in ((0, 0), (8, 8), (5, 3))),
    ],
)
def test_gradients_on_two_ranks_equal_those_of_one(
    tmp_path: Path, name: str, valid: tuple[int, int]
) -> None:
    parts = [rows(0, valid[0]), rows(ROWS, valid[1])]
    one = gradients(tmp_path / "one", BACKBONES[name], [joined(parts)])
    two = gradients(tmp_path / "two", BACKBONES[name], parts)
    assert one.keys() == two.keys()
    assert one["log_temperature"].abs() > 1e-4
    for key, expected in one.items():
        torch.testing.assert_close(two[key], expected, atol=1e-5, rtol=1e-4)
    assert sum(bool(g.abs().max() > 1e-4) for g in one.values()) > len(one) / 2


def test_the_logged_losses_of_two_ranks_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    parts, logged = [rows(0, 5), rows(ROWS, 0)], []
    for ranks in ([joined(parts)], parts):
        module = ContrastiveEmbedder(clip(tmp_path))
        trainer = trainer_of(tmp_path, len(ranks), max_steps=1)
        data = Stub(train=lambda rank, world, ranks=ranks: [ranks[rank]])
        trainer.fit(module.train(), datamodule=data)
        logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    assert {"train/loss", "train/reasoned_loss", "train/rationale_fraction"} <= logged[0].keys()
    assert logged[1] == pytest.approx(logged[0], abs=1e-5)


@pytest.mark.parametrize(
    ("retained", "name"), [(0.0, "clip"), (1.0, "joint"), slow(1.0, "clip"), slow(0.0, "joint")]
)
def test_cached_gradients_are_those_of_the_whole_batch(
    tmp_path: Path, name: str, retained: float
) -> None:
    parts = [rows(0, 5), rows(ROWS, 0)]
    cache = GradientCache(micro_batch_size=3, retained_gib=retained)
    one = gradients(tmp_path / "one", BACKBONES[name], [joined(parts)])
    two = gradients(tmp_path / "two", BACKBONES[name], parts, gradient_cache=cache)
    for key, expected in one.items():
        torch.testing.assert_close(two[key], expected, atol=1e-5, rtol=1e-4)


def with_negatives(batch: PairBatch, numbers: Sequence[Sequence[int]]) -> PairBatch:
    """Row b gets the countries `numbers[b]` as hard negatives, at most two."""
    ids = [[500 + n for n in row] + [-1] * (2 - len(row)) for row in numbers]
    sides = tuple(tuple(Side(f"country {n:02d}") for n in row) for row in numbers)
    return replace(batch, negatives=sides, negative_ids_BK=torch.tensor(ids))


def test_hard_negatives_of_all_ranks_push_all_queries(tmp_path: Path) -> None:
    plain = [rows(0, 5), rows(ROWS, 0)]
    numbers = [[[40 + n, 50 + n] for n in range(ROWS)], [[]] * (ROWS - 1) + [[70]]]
    parts = [with_negatives(part, n) for part, n in zip(plain, numbers, strict=True)]
    one = gradients(tmp_path / "one", clip, [joined(parts)])
    cache = GradientCache(micro_batch_size=3)
    two = gradients(tmp_path / "two", clip, parts, gradient_cache=cache)
    without = gradients(tmp_path / "without", clip, [joined(plain)])
    for key, expected in one.items():
        torch.testing.assert_close(two[key], expected, atol=1e-5, rtol=1e-4)
    assert any(not torch.allclose(one[key], without[key], atol=1e-4) for key in one)


def test_without_the_reasoning_term_no_rationale_is_read(tmp_path: Path) -> None:
    parts = [joined([rows(0, 5), rows(ROWS, 3)])]
    silent = [replace(parts[0], rationales=(None,) * len(parts[0].keys))]
    direct = PathLosses(reasoned=0.0)
    off = gradients(tmp_path / "off", clip, parts, losses=direct)
    none = gradients(tmp_path / "none", clip, silent, losses=direct)
    on = gradients(tmp_path / "on", clip, parts)
    for key, expected in none.items():
        torch.testing.assert_close(off[key], expected)
    assert any(not torch.allclose(on[key], off[key], atol=1e-4) for key in on)


def test_new_parameters_learn_at_their_own_rate(tmp_path: Path) -> None:
    module = ContrastiveEmbedder(
        joint(tmp_path),
        lambda groups: torch.optim.AdamW(groups, lr=0.1),
        new_parameters_lr_scale=5.0,
    )
    old, new = module._parameter_groups()
    assert new["lr"] == pytest.approx(0.5)
    assert {id(p) for p in new["params"]} == {id(p) for p in module.backbone.new_parameters()}
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert {id(p) for group in (old, new) for p in group["params"]} == trained


# ---- fit


def test_a_fit_leaves_the_embedder_that_it_trained(tmp_path: Path) -> None:
    backbone = clip(tmp_path)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    data = Stub(train=lambda rank, world: [rows(0, 5)] * 3)
    module = ContrastiveEmbedder(backbone, num_warmup_steps=1)
    trainer_of(tmp_path, max_steps=3).fit(module, datamodule=data)
    saved = dict(load_backbone(str(tmp_path / "backbone")).named_parameters())
    assert saved.keys() == before.keys()
    for name, parameter in backbone.named_parameters():
        assert torch.equal(saved[name], parameter)
    assert any(not torch.equal(saved[name], before[name]) for name in saved)


def test_texts_that_are_cut_are_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = rows(0, 5)
    long = tuple(replace(side, text="a" * 100 * (n == 0)) for n, side in enumerate(batch.targets))
    data = Stub(train=lambda rank, world: [replace(batch, targets=long)] * 3)
    module = ContrastiveEmbedder(clip(tmp_path), num_warmup_steps=1)
    trainer_of(tmp_path, max_steps=3).fit(module, datamodule=data)
    [line] = [x for x in capsys.readouterr().out.splitlines() if x.startswith("note: ")]
    assert "1 of 1 text of targets (100 %)" in line


# ---- evaluation


@pytest.fixture(scope="module")
def rationales(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_rationales(tiny_root, tmp_path_factory.mktemp("rationales"))


@pytest.fixture(scope="module")
def features(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_features(tiny_root, tmp_path_factory.mktemp("features"))


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (True, "joint"),
        *(slow(*case) for case in ((False, "clip"), (True, "clip"), (False, "joint"))),
    ],
)
def test_metrics_on_two_ranks_equal_those_of_one(
    tmp_path: Path, tiny_root: Path, rationales: Path, features: Path, name: str, reason: bool
) -> None:
    backbone = BACKBONES[name](tmp_path)
    data = {"rationales": str(rationales), "features": str(features) if name == "joint" else None}
    one = evaluate(tmp_path, tiny_root, 1, backbone, reason, **data)
    two = evaluate(tmp_path, tiny_root, 2, backbone, reason, **data)
    assert two == pytest.approx(one, abs=1e-6)
    assert 0 < one["test/recall@10"] < 1
    assert one["test/invocation_ratio"] == float(reason)
    assert one["test/invocation_ratio_all"] == pytest.approx(0.25 * reason)  # one task in four
    assert one["test/reasoning_tokens"] == pytest.approx(0.25 * 8 * reason)


def test_an_embedding_that_is_not_a_number_is_refused(tmp_path: Path, tiny_root: Path) -> None:
    """Compared with NaN every rank is perfect: a broken model would look like the best one."""
    backbone = clip(tmp_path)
    with torch.no_grad():
        next(backbone.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"makes a vector that is not finite of side \d"):
        evaluate(tmp_path, tiny_root, 1, backbone, False)

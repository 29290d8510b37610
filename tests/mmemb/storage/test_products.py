"""Products of a run: recorded when it ends, and missed when they are gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmemb.records.schema import parse_json
from mmemb.storage import products
from mmemb.storage.products import Product, lost_product, record_products
from mmemb.storage.shard_writer import Sample, write_folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a file, a folder, and shards beside it."""
    run = tmp_path / "experiment/1-trunk-x"
    (run / "backbone/deep").mkdir(parents=True)
    (run / "selection.json").write_text("{}")
    (run / "backbone/deep/weights.pt").write_bytes(b"123")
    samples = [Sample("a", {"json": b"1"})]
    write_folder(
        run.parent / "rationales", samples, prefix="x", samples_per_shard=1, fingerprint="abc"
    )
    return run


def named(run: Path) -> list[Path]:
    return [run / "selection.json", run / "backbone", run.parent / "rationales"]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "selection.json is gone": lambda run: (run / "selection.json").unlink(),
    "weights.pt is gone": lambda run: shutil.rmtree(run / "backbone"),
    "weights.pt has 2 bytes instead of 3": lambda run: (
        run / "backbone/deep/weights.pt"
    ).write_bytes(b"12"),
    "weights.pt holds other bytes": lambda run: (run / "backbone/deep/weights.pt").write_bytes(
        b"124"
    ),
    "rationales has no manifest": lambda run: (run.parent / "rationales/manifest.json").unlink(),
    "x-000000.tar is gone, cut or of another run": lambda run: (
        run.parent / "rationales/x-000000.tar"
    ).write_bytes(b""),
}


def records_of(run: Path, products: list[Path]) -> tuple[Product, ...]:
    """As they are read back from a run's JSON."""
    return parse_json(json.dumps(record_products(run, products)), tuple[Product, ...], "F")


@pytest.mark.parametrize("words", DAMAGES)
def test_a_lost_product_is_named(run: Path, words: str) -> None:
    recorded = records_of(run, named(run))
    assert lost_product(run, recorded, "abc") is None
    DAMAGES[words](run)
    assert words in str(lost_product(run, recorded, "abc"))


def test_an_experiment_may_be_moved(run: Path, tmp_path: Path) -> None:
    recorded = records_of(run, named(run))
    run.parent.rename(tmp_path / "moved")
    assert lost_product(tmp_path / "moved" / run.name, recorded, "abc") is None


def test_shards_that_another_run_has_made_again_are_lost(run: Path) -> None:
    recorded = records_of(run, named(run))
    assert "of another run" in str(lost_product(run, recorded, "abd"))


def test_of_a_large_file_the_size_counts(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "HASHED_BYTES", 2)
    recorded = records_of(run, [run / "backbone"])
    (run / "backbone/deep/weights.pt").write_bytes(b"124")
    assert lost_product(run, recorded, "abc") is None


@pytest.mark.parametrize("name", ["adapter", "empty"])
def test_a_product_that_was_not_written_is_an_error(run: Path, name: str) -> None:
    (run / "empty").mkdir()
    with pytest.raises(ValueError, match=f"{name} is missing or empty"):
        record_products(run, [run / name])

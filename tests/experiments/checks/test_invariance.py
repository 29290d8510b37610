"""The certificate: noise is counted, a changed ranking is found, and the command says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from experiments.checks.batch_invariance import GAP, Change, change_between
from experiments.checks.invariance import certificate, main
from tests.experiments.scoring.test_benchmark import write_local
from tests.fixtures.tiny_embedder import clip
from tests.fixtures.tiny_experiment import CONFIGS


def vectors(rows: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_equal_embeddings_do_not_change() -> None:
    pair = vectors(20, 0), vectors(50, 1)
    assert change_between(pair, pair) == Change(0.0, 0, 0, 20 * 10)
    lists = [[0, 1, 2]] * 20
    assert change_between(pair, pair, lists).pairs == 20 * 2


def test_noise_is_counted_and_a_swap_is_a_flip() -> None:
    query = torch.tensor([[1.0, 0.0]])
    base = query, torch.tensor([[0.9, 0.0], [0.9 - 0.5 * GAP, 0.0], [0.5, 0.0]])
    near = query, torch.tensor([[0.9 - 0.5 * GAP, 0.0], [0.9, 0.0], [0.5, 0.0]])
    far = query, torch.tensor([[0.9, 0.0], [0.4, 0.0], [0.5, 0.0]])
    assert change_between(base, near) == Change(pytest.approx(0.5 * GAP, rel=0.1), 0, 1, 2)
    changed = change_between(base, far)
    assert (changed.flips, changed.near_flips) == (1, 0)
    assert "1 pairs of candidates change places" in certificate({"far": changed})
    assert "No ranking changes" in certificate({"near": change_between(base, near)})


def test_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the same queries"):
        change_between((vectors(2, 0), vectors(3, 1)), (vectors(2, 0), vectors(4, 1)))


@pytest.mark.slow
def test_the_command_evaluates_in_several_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_local(tmp_path / "data/image/VOC2007")
    clip(tmp_path).save_pretrained(tmp_path / "backbone")
    arguments = ["--config", str(CONFIGS / "mmeb_v2/evaluate.yaml"), "--out", str(tmp_path / "out")]
    arguments += ["--data_root", str(root.parents[1]), "--runs", str(tmp_path / "runs")]
    arguments += ["--needs.memory_gib", "0.1", "--data.num_workers", "0"]
    arguments += ["--model.backbone.init_args.folder", str(tmp_path / "backbone")]
    main([*arguments, "--variant", "batches of 2=--data.batch_size 2"])
    out = capsys.readouterr().out
    assert "| batches of 2 " in out
    assert "| two ranks " in out
    assert "No ranking changes" in out
    assert (tmp_path / "out/invariance.json").is_file()

"""The bench of a GPU, on a tiny model and the CPU: the whole path, and what it writes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from experiments.bench.gpu import RESULTS, main
from experiments.bench.gpu_model import SIZES, peak_tflops
from experiments.bench.gpu_training import CASES
from tests.fixtures.paths import REPO


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench_gpu") / "results.json"
    main(["--device", "cpu", "--size", "tiny", "--peak-tflops", "0.1", "--out", str(out)])
    return json.loads(out.read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
def test_it_says_on_what_it_was_measured(results: dict[str, Any]) -> None:
    machine = {"device", "memory_gib", "peak_tflops", "torch", "cuda", "versions", "git_commit"}
    assert results["machine"].keys() == machine | {"uncommitted_changes", "date"}
    assert results["machine"]["torch"] == torch.__version__
    assert results["size"] == "tiny"
    assert results["parameters"] > 10_000
    assert results["sizes"]["prefix"] == SIZES["tiny"].prefix


@pytest.mark.slow
def test_every_training_has_its_time_its_share_and_its_memory(results: dict[str, Any]) -> None:
    assert [found["name"] for found in results["training"]] == [case.name for case in CASES]
    for found in results["training"]:
        assert not found["fault"]
        assert len(found["seconds"]) == SIZES["tiny"].steps
        assert math.isfinite(found["loss"])
        assert 0 < found["tokens_per_s"] < math.inf
        assert 0 < found["mfu"] < found["hfu"], "blocks and micro-batches run twice"
        ratio = found["planned_gib"] / found["measured_gib"]
        assert found["ratio"] == pytest.approx(ratio)
        # Pixels and a vision tower's passing states, which no plan counts, weigh here.
        assert 0.5 < ratio < 1.5
    plain, reasoned, whole = results["training"]
    assert plain["tokens"] == whole["tokens"] < reasoned["tokens"]
    assert plain["planned_gib"] < whole["planned_gib"]


@pytest.mark.slow
def test_generation_and_judge_stand_beside_their_peers(results: dict[str, Any]) -> None:
    generation, judge = results["lines"]
    assert generation["peer"] == "transformers generate"
    assert judge["name"] == "judge, P = 128, L = 32, K = 3"
    for line in (generation, judge):
        assert line["ours"] > 0 < line["other"]
        assert 0 < line["ratio"] < math.inf
    drawn = SIZES["tiny"].draws * SIZES["tiny"].new_tokens
    rates = results["generation_tokens_per_s"]
    expected = {"ours": drawn / generation["ours"], "transformers": drawn / generation["other"]}
    assert rates == pytest.approx(expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_one_line() -> None:
    with pytest.raises(SystemExit, match="a GPU is needed.*--device cpu --size tiny"):
        main([])
    with pytest.raises(SystemExit, match="add --size tiny"):
        main(["--device", "cpu"])


def test_a_device_that_is_not_known_has_no_peak() -> None:
    assert peak_tflops("NVIDIA A100-SXM4-80GB") == 312
    for name in ("NVIDIA L40", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 4090 D", ""):
        assert peak_tflops(name) is None, name


def test_the_readme_says_so_until_it_was_measured() -> None:
    says = "GPU: not measured" in (REPO / "README.md").read_text(encoding="utf-8")
    assert says != (REPO / RESULTS).is_file()

"""Random crops: boxes of torchvision, by seed, step and pair; ids stay those of the pictures."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from datamodules.pairs import PairDataModule
from datamodules.random_crop import crop_box
from mmemb.records.batches import PairBatch
from mmemb.records.inputs import Media
from tests.fixtures.tiny_data import write_tiny

SCALE = [0.3, 0.8]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def batches(root: Path, count: int = 3, first: int = 0, **changes: Any) -> list[PairBatch]:
    module = PairDataModule(str(root), ["pairs/plain"], 8, 4, {}, 0, **changes)
    stream = module.train_dataloader()
    stream.load_state_dict({"batches": first})
    return list(islice(stream, count))


def media(batch: PairBatch) -> list[Media]:
    return [m for side in (*batch.queries, *batch.targets) for m in side.media]


def pixels(batch: PairBatch) -> list[Tensor]:
    return [m.pixels for m in media(batch)]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_the_box_is_that_of_torchvision() -> None:
    picture, before = torch.zeros(3, 40, 60), torch.get_rng_state()
    for seed in range(20):
        torch.manual_seed(seed)
        expected = RandomResizedCrop.get_params(picture, [0.2, 0.9], [3 / 4, 4 / 3])
        assert crop_box(picture, (0.2, 0.9), seed) == tuple(expected)
    torch.set_rng_state(before)
    crop_box(picture, (0.2, 0.9), 1)
    assert torch.equal(torch.get_rng_state(), before), "the global numbers go on as they were"


def test_boxes_are_spread_evenly() -> None:
    """Area and aspect ratio are uniform and log-uniform; a box lies anywhere in the picture."""
    picture = torch.zeros(3, 600, 600)
    boxes = torch.tensor([crop_box(picture, (0.1, 0.5), n) for n in range(1000)]).double()
    top, left, height, width = boxes.T
    area, ratio = height * width / 360_000, (width / height).log()
    bound = torch.tensor(4 / 3).log().item()

    # Uniform numbers: mean and deviation, to a few standard errors.
    assert area.mean() == pytest.approx(0.3, abs=0.01)
    assert area.std() == pytest.approx(0.4 / 12**0.5, abs=0.005)
    assert ratio.mean() == pytest.approx(0, abs=0.02)
    assert ratio.std() == pytest.approx(2 * bound / 12**0.5, abs=0.01)
    for place, room in ((top, 600 - height), (left, 600 - width)):
        assert (place / room).mean() == pytest.approx(0.5, abs=0.03)


def test_a_crop_depends_on_seed_step_and_pair_alone(root: Path) -> None:
    """Resumed, and read ahead by other processes, the pixels are the same to the bit."""
    whole, crops = batches(root, 4), batches(root, 4, random_crop=SCALE)
    assert not same(
        [p[:, :3, :3] for p in pixels(whole[1])], [p[:, :3, :3] for p in pixels(crops[1])]
    )
    areas = [p.shape[1] * p.shape[2] for p in pixels(crops[0])]
    full = [p.shape[1] * p.shape[2] for p in pixels(whole[0])]
    assert all(0.2 < a / b < 0.9 for a, b in zip(areas, full, strict=True))

    for resumed in (
        batches(root, 2, first=2, random_crop=SCALE),
        batches(root, 2, first=2, random_crop=SCALE, num_workers=2, start_method="fork"),
    ):
        assert all(same(pixels(a), pixels(b)) for a, b in zip(crops[2:], resumed, strict=True))


def test_ids_are_those_of_the_whole_pictures(root: Path) -> None:
    for whole, crop in zip(batches(root), batches(root, random_crop=SCALE), strict=True):
        assert crop.keys == whole.keys
        assert torch.equal(crop.target_content_B, whole.target_content_B)
        assert torch.equal(crop.query_ids_B, whole.query_ids_B)
        assert not {m.digest for m in media(crop)} & {m.digest for m in media(whole)}, (
            "whoever keeps something by digest takes no crop for another one"
        )


def test_frames_of_a_clip_have_one_box(root: Path) -> None:
    clips = [
        [m.pixels.shape for m in side.media]
        for batch in batches(root, 12, random_crop=SCALE)
        for side in batch.targets
        if len(side.media) > 1
    ]
    assert clips
    assert all(len(set(shapes)) == 1 for shapes in clips)


@pytest.mark.parametrize("scale", [[0.9], [0.0, 1.0], [0.9, 0.5], [0.5, 1.1], [0.5, 0.7, 0.9]])
def test_what_is_no_range_is_refused(root: Path, scale: list[float]) -> None:
    with pytest.raises(ValueError, match=r"random_crop \[.*\]: expected the least and the largest"):
        batches(root, random_crop=scale)


def test_cached_features_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"random_crop needs pixels, but data\.features names f"):
        batches(root, random_crop=SCALE, features="f")

"""The training mixture of MMEB-V2 as data: sources, caps, weights (VLM2Vec's `train_alltasks`).

A source is drawn with probability weight / 52. Names are those of the training data, which write
`ImageNet_1K` where the benchmark says `ImageNet-1K`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import final

from mmemb.benchmarks.mmeb_v2 import TASKS


@final
@dataclass(frozen=True, slots=True)
class Source:
    """One row of the mixture.

    Attributes:
        name: also the group that a homogeneous batch is of.
        repository: data-set repository.
        layout: how it is stored; a reader each.
        cap: most rows that are used, from the first; None = all.
        weight: of sampling, out of 52.
    """

    name: str
    repository: str
    layout: str
    cap: int | None
    weight: float


_MMEB, _HOUND = "TIGER-Lab/MMEB-train", "ShareGPTVideo/train_video_and_instruction"

MIXTURE = (
    Source("ImageNet_1K", _MMEB, "mmeb", 100_000, 1),
    Source("N24News", _MMEB, "mmeb", 50_000, 1),
    Source("HatefulMemes", _MMEB, "mmeb", 10_000, 0.5),
    Source("VOC2007", _MMEB, "mmeb", 10_000, 0.5),
    Source("SUN397", _MMEB, "mmeb", 20_000, 0.5),
    Source("OK-VQA", _MMEB, "mmeb", 10_000, 0.5),
    Source("A-OKVQA", _MMEB, "mmeb", 20_000, 0.5),
    Source("DocVQA", _MMEB, "mmeb", 40_000, 1),
    Source("InfographicsVQA", _MMEB, "mmeb", 25_000, 0.5),
    Source("ChartQA", _MMEB, "mmeb", 28_000, 0.5),
    Source("Visual7W", _MMEB, "mmeb", 70_000, 1),
    Source("VisDial", _MMEB, "mmeb", 130_000, 1),
    Source("CIRR", _MMEB, "mmeb", 30_000, 0.5),
    Source("VisualNews_t2i", _MMEB, "mmeb", 100_000, 1),
    Source("VisualNews_i2t", _MMEB, "mmeb", 100_000, 1),
    Source("MSCOCO_t2i", _MMEB, "mmeb", 100_000, 1),
    Source("MSCOCO_i2t", _MMEB, "mmeb", 120_000, 1),
    Source("NIGHTS", _MMEB, "mmeb", 20_000, 0.5),
    Source("WebQA", _MMEB, "mmeb", 20_000, 0.5),
    Source("MSCOCO", _MMEB, "mmeb", 100_000, 1),
    Source("colpali", "vidore/colpali_train_set", "colpali", None, 10),
    Source("visrag", "openbmb/VisRAG-Ret-Train-In-domain-data", "visrag", None, 12),
    Source("hound-caption-retrieval", _HOUND, "caption_retrieval", 300_000, 5),
    Source("hound-video-retrieval", _HOUND, "video_retrieval", 300_000, 5),
    Source("hound-qa", _HOUND, "video_qa", 240_000, 5),
)

TOTAL_WEIGHT = 52

FRAMES = 8

_VG = "Select the portion of the image that isolates the object labeled as"


@cache
def instructions() -> tuple[str, ...]:
    """Instructions that stored texts may begin with, the longest first."""
    # Training rows use the instructions of the benchmark, and `_VG` beside them.
    texts = {t.query_instruction for t in TASKS} | {t.target_instruction for t in TASKS} | {_VG}
    return tuple(sorted(texts - {""}, key=len, reverse=True))


def source_named(name: str) -> Source:
    """The row of a source.

    Raises:
        ValueError: there is none.
    """
    sources = {source.name: source for source in MIXTURE}
    if name not in sources:
        raise ValueError(f"The mixture has no source {name!r}; it has {sorted(sources)}.")
    return sources[name]

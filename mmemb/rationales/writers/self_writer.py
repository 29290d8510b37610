"""The embedder as its own worker: it goes on in the sequence that it embeds (METHOD 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from mmemb.llm.decoding.sampling import Sampling
from mmemb.rationales.writers.base import RationaleWorker
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale


@final
class SelfWorker(RationaleWorker):
    """Stands for a depth at which a `GenerativeBackbone` writes by itself.

    `AdaptiveEmbedder` reads every prompt once, decides, and goes on from the same cache; there is
    no second pass. Rationales for training are written by `VisionLanguageWorker` with the model
    and the style of the backbone (`backbone/model`).

    Args:
        max_new_tokens: longest rationale; a longer one is closed.
        name: of this worker.
    """

    reads = frozenset({"text", "image", "video"})

    def __init__(self, max_new_tokens: int = 256, name: str = "self") -> None:
        self.name = name
        self.sampling = Sampling(max_new_tokens, temperature=1.0, top_p=1.0, top_k=1)

    def settings(self) -> dict[str, Any]:
        arguments = {"max_new_tokens": self.sampling.max_new_tokens, "name": self.name}
        return {"class_path": "mmemb.rationales.SelfWorker", "init_args": arguments}

    def write(self, sides: Sequence[Side], seeds_BK: Tensor) -> list[list[Rationale]]:
        raise ValueError(
            "SelfWorker writes only inside an AdaptiveEmbedder, in the sequence that is embedded. "
            "For stage 1 use VisionLanguageWorker with the backbone's `model` folder and style."
        )

"""The embedder as its own writer: it goes on in the sequence that it embeds.

See docs/method.md section 6.
"""

from __future__ import annotations

from typing import Any, final

from mmemb.llm.decoding.sampling import Sampling
from mmemb.rationales.writers.base import RationaleSource


@final
class SelfWriter(RationaleSource):
    """Names a depth at which a `GenerativeBackbone` writes by itself.

    It writes inside an AdaptiveEmbedder alone (`mmemb.gate.OnePassReasoner`), so stage 1 does not
    take it. Rationales for training are written by `VisionLanguageWriter` with the model and the
    style of the backbone (`backbone/model`).

    Args:
        max_new_tokens: longest rationale; a longer one is closed.
        name: name of this source.
    """

    reads = frozenset({"text", "image", "video"})

    def __init__(self, max_new_tokens: int = 256, name: str = "self") -> None:
        self.name = name
        # With top_k 1 every draw is the greedy one.
        self.sampling = Sampling(max_new_tokens, temperature=1.0, top_p=1.0, top_k=1)

    def config(self) -> dict[str, Any]:
        return {"max_new_tokens": self.sampling.max_new_tokens, "name": self.name}

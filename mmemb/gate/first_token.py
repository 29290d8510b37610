"""The decision as the first generated token: docs/method.md section 7, read at second hand.

A model that decides by itself whether to think does so by the token behind its prompt. Its logits
for the few tokens that open a depth are a linear map of the very state that is the direct
embedding; this head starts as that map and is trained by the gate's estimators (`grpo` for the
paper's reading), so that both variants are measured by the same report. Shapes: B states, D width,
A depths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from mmemb.gate.heads import DepthHead


@final
class FirstTokenHead(DepthHead):
    """Logits of the tokens that open each depth, of a vision-language backbone.

    The gate's state must be `[embedding]` alone: the state at the end of the prompt, of unit
    length. The length that it had is one learned number.

    Args:
        state_dim: D, the width of the embedding.
        num_depths: A.
        backbone: folder of the embedder's backbone (`runs/.../embedder/backbone`), whose head gives
            the first weights; None leaves them at zero, for a head that is loaded.
        tokens: text that opens each depth, the direct one first; the first token of each counts.
    """

    sources: ClassVar[tuple[str, ...]] = ("backbone",)

    def __init__(
        self,
        state_dim: int,
        num_depths: int = 2,
        backbone: str | None = None,
        tokens: list[str] | None = None,
    ) -> None:
        super().__init__()
        tokens = tokens or ["<|im_end|>", "<think>"]
        if len(tokens) != num_depths:
            raise ValueError(
                f"FirstTokenHead has the tokens {tokens} for {num_depths} depths: give one for "
                "each, the direct one first."
            )
        self._settings = {"state_dim": state_dim, "num_depths": num_depths, "tokens": tokens}

        # A final norm leaves states of about this length, which a unit vector has lost.
        self.log_scale = nn.Parameter(torch.tensor(float(state_dim)).sqrt().log())
        self.output = nn.Linear(state_dim, num_depths)
        nn.init.zeros_(self.output.bias)
        nn.init.zeros_(self.output.weight)
        if backbone is not None:
            with torch.no_grad():
                self.output.weight.copy_(_rows_of_head(Path(backbone), tokens, state_dim))

    def forward(self, state_BS: Tensor) -> Tensor:
        scale = self.log_scale.exp()
        return self.output(scale * state_BS.to(self.output.weight.dtype))  # type: ignore[no-any-return]

    def standardise(self, state_NS: Tensor) -> None:
        """Does nothing: the language-model head was trained on states as they are."""

    def config(self) -> dict[str, Any]:
        return dict(self._settings)


def _rows_of_head(folder: Path, tokens: list[str], width: int) -> Tensor:
    """Reads the rows (A, D) of the language-model head that belong to the tokens."""
    from mmemb.backbones import VisionLanguageBackbone

    backbone = VisionLanguageBackbone.from_pretrained(folder)
    encode = backbone.prompts.tokenizer.encode
    first = [encode(token, add_special_tokens=False)[:1] for token in tokens]
    if len({tuple(ids) for ids in first}) < len(tokens) or not all(first):
        raise ValueError(
            f"The tokens {tokens} do not differ in their first token under the tokenizer of "
            f"{folder}: choose others."
        )

    weight_VD = backbone.output_head.weight
    if weight_VD.shape[1] != width:
        raise ValueError(
            f"The gate's state has width {width}, the model's head {weight_VD.shape[1]}: "
            "FirstTokenHead reads `state: [embedding]` of this backbone, and nothing else."
        )
    return weight_VD[[ids[0] for ids in first]]  # type: ignore[no-any-return]

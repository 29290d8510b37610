"""Outputs of a frozen vision tower, computed once for each picture.

With a gradient cache every picture is read twice in a step, and in every epoch again. Shapes: N
pictures of a batch, T tokens of a picture, H width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, final

import torch
from torch import Tensor, nn

_Seen = tuple[Tensor, ...]
"""(T, H) of the last layer, then of the layers that a model feeds in deeper."""


@final
class VisionCache:
    """Keeps the tokens of the pictures seen last, in the memory of the host.

    A picture takes T x H numbers, and as many again for every deeper layer: 17 MB for 1,024 tokens
    of Qwen3-VL-2B in bfloat16.

    Args:
        most: pictures.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    @torch.no_grad()
    def replace_pixels(
        self, model: nn.Module, inputs: dict[str, Any], digests: Sequence[str]
    ) -> dict[str, Any]:
        """Returns the inputs with the tower's output in place of pixels; grids are kept.

        Args:
            model: model of transformers. Only inputs with the grid of each picture's patches
                (`image_grid_thw`), as of all Qwen-VL, are changed.
            inputs: inputs of a batch.
            digests: digests of the N pictures of the batch, in order.
        """
        if "pixel_values" not in inputs or "image_grid_thw" not in inputs:
            return inputs
        pixels, grid_N3 = inputs["pixel_values"], inputs["image_grid_thw"]
        parts = pixels.split(grid_N3.prod(1).tolist())

        # By content: a picture that the batch shows twice is computed once.
        fresh = {d: n for n, d in enumerate(digests) if d not in self._seen}
        layers_of = {
            digest: tuple(x.to(pixels.device) for x in self._seen[digest])
            for digest in digests
            if digest in self._seen
        }

        if fresh:
            places = list(fresh.values())
            features = model.base_model.get_image_features(  # type: ignore[operator,union-attr]
                torch.cat([parts[n] for n in places]), grid_N3[places], return_dict=True
            )
            deep = getattr(features, "deepstack_features", None) or ()
            layers_of |= zip(fresh, zip(features.pooler_output, *deep, strict=True), strict=True)

        self._keep(layers_of)

        kept = {name: value for name, value in inputs.items() if name != "pixel_values"}
        last, *deeper = map(list, zip(*(layers_of[digest] for digest in digests), strict=True))
        image = SimpleNamespace(pooler_output=last, deepstack_features=deeper)
        outputs = {"image": image}

        if "pixel_values_videos" in kept:  # the model takes pixels of neither or of both
            outputs["video"] = model.base_model.get_video_features(  # type: ignore[operator,union-attr]
                kept.pop("pixel_values_videos"), kept["video_grid_thw"], return_dict=True
            )

        return kept | {"mm_encoder_outputs": outputs}

    def _keep(self, layers_of: dict[str, _Seen]) -> None:
        for digest, layers in layers_of.items():
            if digest not in self._seen:  # copies: parts of a batch would keep all of it
                self._seen[digest] = tuple(x.to("cpu", copy=True) for x in layers)
            self._seen.move_to_end(digest)

        while len(self._seen) > self.most:
            self._seen.popitem(last=False)

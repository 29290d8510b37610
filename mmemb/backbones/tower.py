"""A frozen image tower: pictures to a few tokens each, worth caching.

Shapes: B pictures, T tokens a picture, F token width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmemb.media.resampling import resample
from mmemb.storage.tensor_files import read_weights

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_CHUNK = 64


class ImageTower(nn.Module, ABC):
    """A frozen network that turns pictures into tokens, made once and kept in `features/`.

    Attributes:
        feature_dim: F.
        thumbnail_dim: meaningful width of the last token, if that is a thumbnail; else 0.
        sources: see `Backbone`.
    """

    sources: ClassVar[Mapping[str, Sequence[str]]] = {}
    feature_dim: int
    thumbnail_dim: int

    @abstractmethod
    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Tokens (B, T, F) of uint8 (3, H, W) pictures of any sizes, within float16's range."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON data, the file of weights as `weights`."""

    @abstractmethod
    def save_weights(self, path: Path) -> None:
        """Writes the weights in a form that the constructor reads as `weights`."""

    def train(self, mode: bool = True) -> Self:
        """Keeps evaluation mode: the batch statistics are frozen too."""
        return super().train(False)


@final
class EfficientNetTower(ImageTower):
    """EfficientNet-Lite0, frozen, plus a thumbnail: six tokens a picture.

    Token 0 is the mean over the last feature map, tokens 1 to 4 the means over its quadrants
    (row by row), all of width 1280. Token 5 is a 16x16 RGB thumbnail, values in [-1, 1], channel
    by channel: 768 numbers, then zeros up to 1280; ImageNet features are weak on flags, and this
    cures it. Every value fits float16 (features lie in [0, 6]); cached tokens differ
    from fresh ones by rounding only, about 1e-3.

    Pictures are squashed to a square, not cropped: a crop would cut a flag's edges off.

    Args:
        weights: a `.safetensors` or `.pth` file, or a folder that holds exactly one. Tensors are
            matched by timm's names, or in order where the file uses another library's names.
        image_size: side of the square that the network sees.
    """

    sources: ClassVar[Mapping[str, Sequence[str]]] = {"weights": ()}
    feature_dim = 1280
    thumbnail_dim = 768

    def __init__(self, weights: str, image_size: int = 128) -> None:
        super().__init__()
        import timm

        self.weights, self.image_size = weights, image_size
        self.network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        self.network.load_state_dict(_match(_read_weights(Path(weights)), self.network, weights))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Tokens of uint8 (3, H, W) pictures of any sizes: (B, 6, 1280) float32."""
        device = next(self.parameters()).device
        tokens_BTF = torch.empty(len(images), 6, self.feature_dim, device=device)
        for first in range(0, len(images), _CHUNK):
            # Full-size pictures are never held together as floats: 64 from a camera are 9 GB.
            squares, thumbnails = [], []
            for image in images[first : first + _CHUNK]:
                pixels = image.to(device)
                squares.append(_resized(pixels, self.image_size))
                thumbnails.append(_resized(pixels, 16))

            tokens = self._tokens(torch.stack(squares), torch.stack(thumbnails))
            tokens_BTF[first : first + _CHUNK] = tokens
        return tokens_BTF

    def config(self) -> dict[str, Any]:
        """See `ImageTower.config`."""
        return {"weights": self.weights, "image_size": self.image_size}

    def save_weights(self, path: Path) -> None:
        """See `ImageTower.save_weights`."""
        torch.save(self.network.state_dict(), path)

    def _tokens(self, square: Tensor, thumbnail: Tensor) -> Tensor:
        grid = self.network.forward_features(square)
        quadrants = functional.adaptive_avg_pool2d(grid, 2).flatten(2).transpose(1, 2)

        padded = functional.pad(thumbnail.flatten(1), (0, self.feature_dim - self.thumbnail_dim))
        return torch.cat([grid.mean((2, 3))[:, None], quadrants, padded[:, None]], dim=1)


def _resized(pixels: Tensor, size: int) -> Tensor:
    """A uint8 picture squashed to a square of values in [-1, 1]."""
    return resample(
        pixels, (size, size), as_float=lambda lines: lines.float().div_(127.5).sub_(1.0)
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        if len(files) != 1:
            raise FileNotFoundError(
                f"{path} holds {len(files)} weight files ({', '.join(_SUFFIXES)}), expected one; "
                "run `python -m datamodules.prepare pocket`, or name the file itself."
            )
        path = files[0]

    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found: the weights of EfficientNet-Lite0. "
            "Run `python -m datamodules.prepare pocket`, or name another file."
        )

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return read_weights(path)


def _match(loaded: dict[str, Tensor], network: nn.Module, source: str) -> dict[str, Tensor]:
    """`loaded` under the network's names: as they are, or one by one in order.

    The network has no classifier; the file may hold one, as its last tensors.
    """
    tensors = network.state_dict()
    if set(tensors) <= set(loaded):
        return {name: loaded[name] for name in tensors}

    # Other libraries name the same tensors otherwise; equal shapes in order identify them.
    same = [a.shape == b.shape for a, b in zip(loaded.values(), tensors.values(), strict=False)]
    if len(same) < len(tensors) or not all(same):
        raise ValueError(
            f"{source} holds {len(loaded)} tensors that do not fit EfficientNet-Lite0's "
            f"{len(tensors)}, neither by name nor in order; give weights of that network."
        )

    return dict(zip(tensors, loaded.values(), strict=False))

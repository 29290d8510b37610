"""Heads of the gate: from a state to logits of depths; saved and loaded with a class name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from functools import partial
from inspect import isabstract
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from mmemb.records.schema import check_arguments, read_json
from mmemb.records.text import quote
from mmemb.storage.allowed_classes import (
    allowed_class,
    allowing_classes,
    check_allowed,
    hide_from_parsers,
)
from mmemb.storage.files import whole_folder
from mmemb.storage.json_files import write_json
from mmemb.storage.spec import build, class_at, class_path
from mmemb.storage.tensor_files import read_weights
from mmemb.storage.trust import FOLDER

_GROUP = "mmemb.heads"


class DepthHead(nn.Module, ABC):
    """Maps a state to logits over depths; by its signature it never sees a rationale.

    Attributes:
        sources: arguments of the constructor that name files. A saved head needs none of them.
    """

    sources: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward(self, state_BS: Tensor) -> Tensor:
        """(B, S) states to (B, A) logits."""

    @abstractmethod
    def standardise(self, state_NS: Tensor) -> None:
        """Learns location and scale of the states from those it will be trained on."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as JSON data."""


@final
class MlpDepthHead(DepthHead):
    """One hidden layer over standardised states; starts undecided (all logits 0).

    Args:
        state_dim: width of the state.
        num_depths: 2 = direct or full, as in the paper.
        hidden_dim: width of the hidden layer; 0 makes the head linear.
        dropout: on the standardised state and the hidden layer.
    """

    mean_S: Tensor
    scale_S: Tensor

    def __init__(
        self, state_dim: int, num_depths: int = 2, hidden_dim: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self._settings = {"state_dim": state_dim, "num_depths": num_depths}
        self._settings |= {"hidden_dim": hidden_dim, "dropout": dropout}

        # Buffers, so that a saved head standardises as it did in training.
        self.register_buffer("mean_S", torch.zeros(state_dim))
        self.register_buffer("scale_S", torch.ones(state_dim))

        hidden: list[nn.Module] = []
        if hidden_dim:
            hidden = [nn.Linear(state_dim, hidden_dim), nn.GELU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(nn.Dropout(dropout), *hidden)
        self.output = nn.Linear(hidden_dim or state_dim, num_depths)

        # An untrained gate prefers no depth.
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, state_BS: Tensor) -> Tensor:
        state_BS = (state_BS.to(self.mean_S.dtype) - self.mean_S) / self.scale_S
        return self.output(self.hidden(state_BS))

    @torch.no_grad()
    def standardise(self, state_NS: Tensor) -> None:
        assert len(state_NS), "no state has no mean: a gate needs eligible queries"
        self.mean_S.copy_(state_NS.mean(0))
        scale_S = state_NS.std(0, unbiased=False)
        self.scale_S.copy_(torch.where(scale_S > 1e-6, scale_S, 1.0))  # no 0 / 0

    def config(self) -> dict[str, Any]:
        return dict(self._settings)


def save_head(head: DepthHead, folder: str | Path) -> None:
    """Writes `weights.pt` (plain tensors) and `config.json` with class and settings, together."""
    with whole_folder(folder, keep_others=True) as fresh:
        torch.save(head.state_dict(), fresh / "weights.pt")
        write_json(fresh / "config.json", {"class": _name_of(head), **head.config()})


def check_head(head: DepthHead) -> None:
    """Saves a head of another package and loads it, before a gate is fitted.

    Raises:
        ValueError: its class is not allowed, or what was saved does not load.
    """
    name = _name_of(head)
    if name.isidentifier():
        return

    check_allowed(name, f"The folder of this gate would name {name!r}", _GROUP)
    with TemporaryDirectory() as folder:
        try:
            save_head(head, folder)
            load_head(folder)
        except Exception as error:  # a class of another package may raise anything
            reason = f"{type(error).__name__}: {quote(error)}".replace(folder, FOLDER)
            raise ValueError(
                f"{name} cannot be saved and loaded again, so what is trained would be lost "
                f"({reason}). Mend its `config` or `sources`."
            ) from None


@hide_from_parsers
def load_head(folder: str | Path, allow_classes: Collection[str] = ()) -> DepthHead:
    """Reads what `save_head` wrote.

    Args:
        folder: may come from anywhere.
        allow_classes: of other packages that it may name (`load_backbone`).
    """
    with allowing_classes(allow_classes):
        return _load(Path(folder))


def _load(folder: Path) -> DepthHead:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}/config.json is missing: {folder} holds no saved gate.")
    where = f"{folder}/config.json"
    arguments = read_json(folder / "config.json", dict[str, Any])

    name = str(arguments.pop("class", None))
    kind = _class_of(name, where)
    if keys := sorted(arguments.keys() & set(kind.sources)):
        raise ValueError(
            f"{where}: {keys[0]} names {arguments[keys[0]]!r}, and a saved gate needs nothing "
            "but its own files. Remove the key."
        )
    check_arguments(kind, arguments, where, "Fit the gate again.")

    try:
        spec = {"class_path": name, "init_args": arguments}
        head: DepthHead = build(spec, partial(_class_of, where=where), where)
        head.load_state_dict(read_weights(folder / "weights.pt"))
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{folder} holds no whole gate: config.json and weights.pt do not fit "
            f"({quote(error)}). Fit the gate again."
        ) from None
    return head


def _name_of(head: DepthHead) -> str:
    """Returns the class's name if it belongs to this package, else its class path."""
    is_ours = type(head).__module__.startswith(f"{__package__}.")
    return type(head).__name__ if is_ours else class_path(head)


def _class_of(name: str, where: str) -> type[DepthHead]:
    """Returns the class of a saved head: ours by its name, an allowed one by its class path."""
    is_ours = name.isidentifier()
    kind = class_at(f"{__package__}.{name}") if is_ours else allowed_class(name, where, _GROUP)

    if kind is None or not issubclass(kind, DepthHead) or isabstract(kind):
        raise ValueError(
            f"{where} names the depth head {name!r}: expected MlpDepthHead, FirstTokenHead, or the "
            "whole path of a class of another package. Fit the gate again."
        )
    return kind

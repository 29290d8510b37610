"""The promises of every backbone, as checks for a user's own one.

Shapes: B sides, D embedding width.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mmemb.backbones.base import Backbone, load_backbone
from mmemb.records.inputs import Media, Side
from mmemb.records.rationales import Rationale
from mmemb.storage.spec import class_path, class_paths

TOLERANCE = 1e-4
"""Largest difference between vectors that ought to be equal, in float32."""

_LONG = 600
"""Words of a text that is long for a backbone without a bound."""

ROUNDING = 2e-2
"""The same for bfloat16 and float16."""

HELPFUL = Rationale(
    "<think>It is the capital of France.</think><answer>Paris</answer>", "check", "none", "1",
    "none", "none", seed=0, num_tokens=12,
)  # fmt: skip
EMPTY = Rationale("nothing in tags", "check", "none", "1", "none", "none", seed=0, num_tokens=3)


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """One promise: whether it holds, and what was seen."""

    promise: str
    holds: bool
    seen: str


def check_contract(backbone: Backbone) -> Iterator[Finding]:
    """Puts a backbone through every promise, one after the other.

    A promise whose check raises does not hold; the error is what was seen. The backbone itself is
    left as it was.
    """
    sides = sample_sides(backbone)

    checks: dict[str, Callable[[Backbone, list[Side]], tuple[bool, str]]] = {
        "vectors are unit, float32, (B, embedding_dim)": _are_unit,
        "a vector does not depend on its batch": _ignore_the_batch,
        "nor on the padding that a long neighbour brings": _ignore_padding,
        "sides of different content have different vectors": _differ,
        "a rationale changes the vector, an empty one does not": _read_rationales,
        "every trainable parameter joins every call, also an empty one": _join_all,
        "it says which texts it cuts": _tell_cuts,
        "sides that it cannot read are refused": _refuse,
        "it loads from its folder alone, to the same vectors": _load_again,
    }

    # Each check gets a copy: gradients or a mode that one leaves behind must not reach the next.
    for promise, check in checks.items():
        try:
            with torch.set_grad_enabled(check is _join_all):
                holds, seen = check(copy.deepcopy(backbone).eval(), sides)
        except Exception as error:  # noqa: BLE001  (whatever a stranger's code does)
            holds, seen = False, f"{type(error).__name__}: {error}"
        yield Finding(promise, holds, seen)


def sample_sides(backbone: Backbone) -> list[Side]:
    """Sides of every modality that the backbone reads."""
    sides = [Side("paris"), Side("the flag of a country far away", "Find a picture of it.")]
    if "image" in backbone.modalities:
        sides += [
            Side(media=(_picture(0),)),
            Side("a flag", "Find it.", (_picture(1), _picture(2))),
        ]
    if "video" in backbone.modalities:
        sides.append(Side(media=tuple(_picture(n, "frame") for n in range(3, 6))))
    return sides


def _picture(seed: int, kind: str = "image") -> Media:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (3, 64, 64 + seed), dtype=torch.uint8, generator=generator)
    return Media(kind, f"check-{seed}", pixels)  # type: ignore[arg-type]


def _are_unit(backbone: Backbone, sides: list[Side]) -> tuple[bool, str]:
    vectors_BD = backbone.encode(sides)
    shape, dtype = tuple(vectors_BD.shape), vectors_BD.dtype
    off = float((vectors_BD.norm(dim=1) - 1).abs().max())
    right = shape == (len(sides), backbone.embedding_dim) and dtype == torch.float32
    return right and off < TOLERANCE, f"{shape} {dtype}, norms within {off:.1e} of 1"


def _ignore_the_batch(backbone: Backbone, sides: list[Side]) -> tuple[bool, str]:
    rationales = [HELPFUL if row % 2 else None for row in range(len(sides))]
    together = backbone.encode(sides, rationales)
    pairs = zip(sides, rationales, strict=True)
    alone = torch.cat([backbone.encode([side], [rationale]) for side, rationale in pairs])
    return _close(backbone, together, alone)


def _ignore_padding(backbone: Backbone, sides: list[Side]) -> tuple[bool, str]:
    long = Side(" ".join(["a very long text"] * 10))
    return _close(backbone, backbone.encode(sides), backbone.encode([*sides, long])[:-1])


def _differ(backbone: Backbone, sides: list[Side]) -> tuple[bool, str]:
    vectors_BD = backbone.encode(sides)
    most = float((vectors_BD @ vectors_BD.T - 2 * torch.eye(len(sides)).to(vectors_BD)).max())
    return most < 1 - 1e-5, f"highest cosine {most:.5f}"


def _read_rationales(backbone: Backbone, sides: list[Side]) -> tuple[bool, str]:
    direct, reasoned, broken = (
        backbone.encode(sides, [rationale] * len(sides)) for rationale in (None, HELPFUL, EMPTY)
    )

    cosine = float((direct * reasoned).sum(1).max())
    same = torch.equal(direct, broken)
    seen = f"highest cosine of h_r with h_d {cosine:.5f}"
    return cosine < 1 - 1e-5 and same, seen + ("" if same else "; an empty rationale changes it")


def _join_all(backbone: Backbone, sides: list[Side]) -> tuple[bool, str]:
    missing: set[str] = set()

    # Text alone, the last modality, nothing at all: each leaves other parts of a model idle.
    for subset in (sides[:1], sides[-1:], []):
        backbone.zero_grad(set_to_none=True)
        backbone.train()(subset).sum().backward()
        parameters = backbone.named_parameters()
        missing |= {name for name, p in parameters if p.requires_grad and p.grad is None}

    examples = ", ".join(sorted(missing)[:3])
    return not missing, f"no gradient for {examples}" if missing else "gradients for all of them"


def _refuse(backbone: Backbone, sides: list[Side]) -> tuple[bool, str]:
    try:
        backbone.encode([*sides, Side(instruction="Find it.")])
    except ValueError as error:
        return True, f"{str(error)[:60]} ..."
    return False, "a side without content was embedded"


def _tell_cuts(backbone: Backbone, sides: list[Side]) -> tuple[bool, str]:
    told = backbone.text_length(Side("a"))
    # Two texts that differ behind the words that are read, or behind more than most models read.
    words = "word " * (2 * told.most if told else _LONG)
    long = [Side(words + ending) for ending in ("red", "blue")]
    left_D, right_D = backbone.encode(long)

    is_cut = float((left_D - right_D).abs().max()) < 1e-6
    length = backbone.text_length(long[0])
    is_told = length is not None and length.num_cut > 0
    seen = f"{length.most} tokens are read" if length else "it names no bound"
    return is_cut == is_told, f"{seen}; a longer text is {'' if is_cut else 'not '}cut"


def _load_again(backbone: Backbone, sides: list[Side]) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as folder:
        backbone.save_pretrained(folder)

        # The caller made this object, so its classes are allowed.
        spec = {"class_path": class_path(backbone), "init_args": backbone.config()}
        again = load_backbone(folder, allow_classes=list(class_paths(spec)))
        return _close(backbone, backbone.encode(sides), again.encode(sides))


def _close(backbone: Backbone, left: Tensor, right: Tensor) -> tuple[bool, str]:
    most = float((left - right.to(left)).abs().max())
    short = {p.dtype for p in backbone.parameters()} - {torch.float32, torch.float64}
    if not short:
        return most < TOLERANCE, f"largest difference {most:.1e}"

    kinds = ", ".join(sorted(map(str, short)))
    difference = f"largest difference {most:.1e} with weights of {kinds}, of which "
    return most < ROUNDING, difference + "rounding explains 1e-2: check with float32 as well"

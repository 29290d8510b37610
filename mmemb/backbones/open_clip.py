"""OpenClipBackbone: any dual encoder of open_clip, with its parts fused by a weighted sum.

Shapes: B sides, D embedding width, M pictures of a batch, L text length.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import tempfile
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from mmemb.backbones.base import Backbone, TextLength, check_policy, own_source
from mmemb.backbones.clip_tokenizer import ByteTokenizer, ClipTokenizer
from mmemb.backbones.pixels import prepare_pixels
from mmemb.records.inputs import Media, Side
from mmemb.records.rationales import Rationale
from mmemb.records.schema import Excerpt, convert, read_json
from mmemb.records.text import limit_marks
from mmemb.storage.pretrained import reading, unasked
from mmemb.storage.spec import arguments_of
from mmemb.storage.tensor_files import save_quietly
from mmemb.storage.trust import in_folder, is_in_folder, path_in_folder

_CONFIG = "open_clip_config.json"
_TEXT = "hf_model_name"
"""Key of a text tower of transformers: a folder with its configuration, or a hub id."""

_TOKENIZER_KEYS = {"clean", "strip_sep_token", "language", "reduction_mask"}
"""Arguments of open_clip's tokenizers that name neither code nor a place."""

_POLICIES = ("truncate", "drop", "error")

_ROUNDS = 12
"""Texts are counted up to 2^11 times the context, which is 150,000 tokens of a CLIP."""


@final
class OpenClipBackbone(Backbone):
    """A dual encoder; towers that share no layer are fused at their outputs.

    The parts of a side, each a unit vector: its text (the instruction before it), the mean of its
    images, the mean of its frames (their order is not seen), and the rationale's thought and
    answer as a text of its own. The side's vector is the weighted sum of the parts that it has,
    made of unit length. So a rationale moves a vector along a chord towards what it says, and
    takes nothing from the side's own text, however short the tower's context is.

    Long texts: the side's text loses its end. A rationale beyond the context is, by
    `long_rationale`, cut at its beginning, word by word (`truncate`: the answer stands last and
    stays), ignored (`drop`) or refused (`error`).

    Args:
        model: a name of `open_clip.list_models()`, or the path of a JSON config (a bare model
            config, or an `open_clip_config.json`).
        pretrained: path of weights; for a name also a tag, which downloads. None: random weights.
        tokenizer: `default` (open_clip's own choice for the model; a hub id in its config
            downloads), `bytes`, or the folder of a transformers tokenizer.
        text_weight: weight of the text part.
        visual_weight: weight of the image part and of the video part.
        rationale_weight: weight of the rationale part.
        long_rationale: see above.
        read_instruction: whether the instruction is read; off is right for an encoder that was
            never trained on instructions, since a picture would gain a text part by it.
    """

    sources: ClassVar[Mapping[str, Sequence[str]]] = {
        "model": (),
        "pretrained": (),
        "tokenizer": ("default", "bytes"),
    }
    modalities = frozenset({"text", "image", "video"})

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        tokenizer: str = "default",
        text_weight: float = 1.0,
        visual_weight: float = 1.0,
        rationale_weight: float = 1.0,
        long_rationale: str = "truncate",
        read_instruction: bool = True,
    ) -> None:
        super().__init__()
        self.long_rationale = check_policy(long_rationale, _POLICIES, "long_rationale")

        self.name, self.pretrained, self.tokenizer_name = model, pretrained, tokenizer
        self.text_weight, self.visual_weight = text_weight, visual_weight
        self.rationale_weight, self.read_instruction = rationale_weight, read_instruction

        self.model, self.spec = _load_model(model, pretrained)
        self.embedding_dim = self.spec["model_cfg"]["embed_dim"]
        self.tokenizer = _load_tokenizer(tokenizer, self.spec["model_cfg"]["text_cfg"])
        _check_end(self.tokenizer, self.spec["model_cfg"]["text_cfg"])

        # The temperature belongs to the loss; here it would wait for a gradient for ever.
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in ("logit_scale", "logit_bias"))

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of both towers; a convolutional one has none."""
        block_name = re.compile(r"(^|\.)(resblocks|blocks|layer)\.\d+$")
        return [m for name, m in self.model.named_modules() if block_name.search(name)]

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON data."""
        return arguments_of(self, model=self.name, tokenizer=self.tokenizer_name)

    @classmethod
    def check_saved(cls, arguments: Mapping[str, Any], folder: Path) -> None:
        """See `Backbone.check_saved`: the JSON config must not send open_clip to a hub."""
        path = Path(arguments["model"])
        model_cfg = _read_config(path)["model_cfg"]
        text, timm = model_cfg["text_cfg"], model_cfg["vision_cfg"].get("timm_model_name")
        sources = {_TEXT: text.get(_TEXT)}

        # A tokenizer of its own replaces the config's, which is then never read.
        if arguments.get("tokenizer", "default") == "default":
            sources["hf_tokenizer_name"] = text.get("hf_tokenizer_name")
        if re.search("[:/]", str(timm)):  # else an architecture of timm, built without weights
            sources["timm_model_name"] = timm

        for key, value in sources.items():
            if value:
                own_source(value, folder, f"{path}: {key}")

    def _save_files(self, folder: Path) -> dict[str, Any]:
        spec = copy.deepcopy(self.spec)

        # open_clip builds such a text tower from its configuration, so the folder must hold it too.
        if _TEXT in spec["model_cfg"]["text_cfg"]:
            save_quietly(folder / "text_config", self.model.text.config)
            spec["model_cfg"]["text_cfg"][_TEXT] = in_folder("text_config")

        (folder / _CONFIG).write_text(json.dumps(spec, indent=2, allow_nan=False) + "\n")
        init_args = {"model": in_folder(_CONFIG), "pretrained": None}

        if _uses_transformers(self.tokenizer_name, self.spec["model_cfg"]["text_cfg"]):
            self.tokenizer.save_pretrained(str(folder / "tokenizer"))
            init_args["tokenizer"] = in_folder("tokenizer")
        return init_args

    def _encode(self, sides: Sequence[Side], rationales: Sequence[Rationale | None]) -> Tensor:
        texts = [self._text(side) for side in sides]
        rationale_texts = self._fit(
            [limit_marks(rationale.plain) if rationale else "" for rationale in rationales]
        )
        fused_BD = torch.zeros(len(sides), self.embedding_dim, device=self.device) + self._join()

        # Texts and rationales share one pass through the text tower; empty ones take no part.
        text_MD = self._encode_texts([text for text in (*texts, *rationale_texts) if text])

        rows = [i for i, text in enumerate(texts) if text]
        fused_BD = _add(fused_BD, rows, self.text_weight * text_MD[: len(rows)])

        rationale_rows = [i for i, rationale_text in enumerate(rationale_texts) if rationale_text]
        fused_BD = _add(fused_BD, rationale_rows, self.rationale_weight * text_MD[len(rows) :])

        picture_MD = self._encode_pictures([m for side in sides for m in side.media])

        # Two parts of the sum, each a mean: a clip of many frames does not outweigh an image.
        for kind in ("image", "frame"):
            mean_BD = self._mean_by_side(picture_MD, sides, kind)
            fused_BD = fused_BD + self.visual_weight * mean_BD
        return fused_BD

    def describe(self, side: Side, rationale: Rationale | None = None) -> str:
        """The parts that are fused, and whether the context cuts one."""
        plain = limit_marks(rationale.plain) if rationale is not None else ""
        rationale_texts = self._fit([plain]) if plain else []

        texts = [text for text in (self._text(side), *rationale_texts) if text]
        cut = ["" if fits else " [cut]" for fits in (self._fits(texts) if texts else ())]
        parts = [f"{text}{mark}" for text, mark in zip(texts, cut, strict=True)]
        return " + ".join([*parts, *(f"<{m.kind}>" for m in side.media)])

    def text_length(self, side: Side) -> TextLength:
        """See `Backbone.text_length`; the two tokens around a text count."""
        text, length = self._text(side), self.tokenizer.context_length
        # Tokenizers that pad to a length have no other way to count; few texts need a second round.
        for room in (length, *(length << step for step in range(2, _ROUNDS))):
            # One more, so that a text that just fits has padding behind it.
            tokens_L = self.tokenizer(["", text], context_length=room + 1)
            padding = tokens_L[0, -1]
            if tokens_L[1, -1] == padding:
                break

        # The end of a text is no padding, whatever stands inside of it.
        num_tokens = int((tokens_L[1] != padding).nonzero().max()) + 1
        return TextLength(num_tokens, length)

    def _text(self, side: Side) -> str:
        instruction = side.instruction if self.read_instruction else ""
        return limit_marks(f"{instruction} {side.text}".strip())

    def _mean_by_side(self, picture_MD: Tensor, sides: Sequence[Side], kind: str) -> Tensor:
        """Unit mean (B, D) of each side's pictures of one kind; zeros where it has none."""
        owners = [(i, m.kind) for i, side in enumerate(sides) for m in side.media]
        rows = [row for row, (_, media_kind) in enumerate(owners) if media_kind == kind]
        empty_BD = picture_MD.new_zeros(len(sides), self.embedding_dim)
        sum_BD = _add(empty_BD, [owners[row][0] for row in rows], picture_MD[rows])
        return nn.functional.normalize(sum_BD, dim=-1)

    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.embedding_dim, device=self.device)
        tokens_ML = self.tokenizer(list(texts)).to(self.device)
        return nn.functional.normalize(self.model.encode_text(tokens_ML).float(), dim=-1)

    def _encode_pictures(self, media: Sequence[Media]) -> Tensor:
        if not media:
            return torch.zeros(0, self.embedding_dim, device=self.device)
        if blind := [m.digest for m in media if m.pixels is None]:
            raise ValueError(
                f"picture {blind[0]} came without pixels: open_clip's towers read no cached "
                "features; remove the features folder from the data's settings."
            )

        settings = self.spec["preprocess_cfg"]
        pixels = (m.pixels for m in media if m.pixels is not None)
        images = torch.stack([prepare_pixels(image.to(self.device), settings) for image in pixels])
        return nn.functional.normalize(self.model.encode_image(images).float(), dim=-1)

    def _fit(self, rationale_texts: Sequence[str]) -> list[str]:
        """The rationales' texts after the policy for long ones; empty is none."""
        fits = self._fits(rationale_texts)
        return [
            rationale_text if fit else self._shorten(rationale_text)
            for rationale_text, fit in zip(rationale_texts, fits, strict=True)
        ]

    def _shorten(self, rationale_text: str) -> str:
        if self.long_rationale == "error":
            raise ValueError(
                f"a rationale is longer than the context of {self.name} "
                f"({self.tokenizer.context_length} tokens): {rationale_text[:60]!r}. Choose "
                "long_rationale: truncate or drop."
            )
        if self.long_rationale == "drop":
            return ""
        words = rationale_text.split()

        def is_long(number: int) -> bool:
            return not self._fits([" ".join(words[-number:])])[0]

        # A suffix that fits is looked for from the end, in steps that double: what is read follows
        # the context, not the rationale.
        reach = self.tokenizer.context_length
        while reach < len(words) and not is_long(reach):
            reach *= 2
        kept = bisect_left(range(1, min(reach, len(words))), True, key=is_long)

        # A single word beyond the context is left to the tokenizer, which cuts its end.
        return " ".join(words[-max(kept, 1) :])

    def _fits(self, texts: Sequence[str]) -> list[bool]:
        """Tells whether a text keeps all its tokens, even if there were room for one more."""
        length = self.tokenizer.context_length
        roomy = self.tokenizer(["", *texts], context_length=length + 1)
        cut = self.tokenizer(list(texts), context_length=length)
        padding = roomy[0, -1]
        whole = (roomy[1:, :length] == cut).all(1) & (roomy[1:, -1] == padding)
        return whole.tolist()


def _add(total_BD: Tensor, rows: Sequence[int], vector_MD: Tensor) -> Tensor:
    """Adds vectors to rows of `total_BD`; a row may occur several times, or none at all."""
    index = torch.tensor(rows, dtype=torch.long, device=total_BD.device)
    return total_BD.index_add(0, index, vector_MD)


def _load_model(name: str, pretrained: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """The model and `{model_cfg, preprocess_cfg}`, from which it can be built again."""
    import open_clip

    if not name.endswith(".json"):
        model_cfg = open_clip.get_model_config(name)
        if model_cfg is None:
            raise ValueError(
                f"open_clip knows no model {name!r}; see open_clip.list_models(), or give the "
                "path of a JSON config."
            )
        place = open_clip.get_pretrained_cfg(name, pretrained).get("hf_hub") if pretrained else None
        with reading("/".join(place.split("/")[:2])) if place else unasked():
            model = open_clip.create_model(name, pretrained=pretrained, pretrained_text=False)
        return model, {"model_cfg": model_cfg, "preprocess_cfg": model.visual.preprocess_cfg}

    spec = read_spec(Path(name))
    text = spec["model_cfg"]["text_cfg"].get(_TEXT)

    # open_clip takes configs by folder; its other way would change its global table of names.
    read = reading(text) if text else nullcontext()

    with tempfile.TemporaryDirectory() as folder, _without_warnings(), read:
        (Path(folder) / _CONFIG).write_text(json.dumps(spec, allow_nan=False))
        model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)

    if pretrained is not None:
        if not Path(pretrained).is_file():
            raise FileNotFoundError(f"{pretrained} not found: weights for {name}.")

        # Strictly: a tensor that the file lacks would keep its random values without a word.
        open_clip.load_checkpoint(model, pretrained, strict=True, weights_only=True)
    return model, spec | {"preprocess_cfg": model.visual.preprocess_cfg}


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences "no weights found": they are loaded a moment later, and not by open_clip."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@final
class _ModelJson(Excerpt):
    """The keys that every model config of open_clip has."""

    embed_dim: int
    vision_cfg: dict[str, Any]
    text_cfg: dict[str, Any]


@final
class _SpecJson(Excerpt):
    """A saved config of open_clip."""

    model_cfg: _ModelJson
    preprocess_cfg: dict[str, Any] = {}


def read_spec(path: Path) -> dict[str, Any]:
    """`{model_cfg, preprocess_cfg}` of a JSON config, with the paths of files beside it."""
    spec = _read_config(path)
    text_cfg = spec["model_cfg"]["text_cfg"]
    if is_in_folder(text_cfg.get(_TEXT)):
        text_cfg[_TEXT] = path_in_folder(text_cfg[_TEXT], path.parent, f"{path}: {_TEXT}")
    return spec


def _read_config(path: Path) -> dict[str, Any]:
    """Reads the `{model_cfg, preprocess_cfg}` of a JSON config."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: the JSON config of an open_clip model.")
    advice = "Give an open_clip model config."
    data = read_json(path, dict[str, Any], advice)
    spec = data if "model_cfg" in data else {"model_cfg": data}
    convert(spec, _SpecJson, f"{path} is no open_clip model config", advice)
    return {"preprocess_cfg": {}, **spec}


def _load_tokenizer(name: str, text_cfg: Mapping[str, Any]) -> Any:
    length = text_cfg.get("context_length", 77)
    if name == "bytes":
        return ByteTokenizer(length)
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    settings = dict(text_cfg.get("tokenizer_kwargs", {}))
    if unknown := sorted(set(settings) - _TOKENIZER_KEYS):
        raise ValueError(
            f"tokenizer_kwargs of this open_clip model ask for {unknown}, which is refused: a "
            "config may bring settings, no path and no code. Remove the key."
        )

    if not _uses_transformers(name, text_cfg):
        if settings.get("reduction_mask"):
            raise ValueError(
                "tokenizer_kwargs of this open_clip model ask for a reduction_mask, by which words "
                "are left out at random as a training once did: vectors would differ from call to "
                "call. Remove the key."
            )
        return ClipTokenizer(SimpleTokenizer(context_length=length, **settings))

    source = text_cfg["hf_tokenizer_name"] if name == "default" else name
    mode = text_cfg.get("tokenizer_mode")
    with reading(source) as local:
        return HFTokenizer(
            source,
            context_length=length,
            tokenizer_mode=mode,
            # Last in the merge, so that no config can set them otherwise.
            **settings | local | {"trust_remote_code": False, "split_special_tokens": True},
        )


def _check_end(tokenizer: Any, text_cfg: Mapping[str, Any]) -> None:
    """Refuses a tokenizer whose texts end with another token than the one that the model reads out.

    CLIP does so at the largest number; if an ordinary word has that, all behind it is hidden.
    """
    inner = getattr(tokenizer, "tokenizer", None)  # of transformers; the others end with it
    if inner is None or _TEXT in text_cfg or text_cfg.get("pool_type", "argmax") != "argmax":
        return

    end, largest = int(tokenizer([""]).max()), max(inner.get_vocab().values())
    if end != largest:
        raise ValueError(
            f"the tokenizer {inner.name_or_path} ends no text with its largest number, {largest}, "
            "where this open_clip model reads out, so that words would be hidden: give the "
            "tokenizer that the model was trained with, or set `pool_type` in the model's config."
        )


def _uses_transformers(name: str, text_cfg: Mapping[str, Any]) -> bool:
    """Tells whether the tokenizer is one of transformers, whose files must be saved along."""
    return name != "bytes" and (name != "default" or bool(text_cfg.get("hf_tokenizer_name")))

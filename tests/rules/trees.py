"""Syntax trees of the source, made once for all rules."""

from __future__ import annotations

import ast
import gc
from functools import cache
from pathlib import Path


@cache
def parse(path: Path) -> ast.Module:
    gc.disable()  # else it walks all trees that are kept, again and again: three times the work
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()


@cache
def nodes_of(path: Path, *kinds: type[ast.AST]) -> list[ast.AST]:
    """All nodes of a file, or those of some kinds: every rule asks for some, the walk is slow."""
    if kinds:
        return [node for node in nodes_of(path) if isinstance(node, kinds)]
    return list(ast.walk(parse(path)))

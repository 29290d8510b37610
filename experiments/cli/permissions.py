"""Options for what a saved embedder may use elsewhere: servers and models of its writers."""

from __future__ import annotations

import argparse


def add_permissions(parser: argparse.ArgumentParser) -> None:
    """Adds `--server` and `--allow-model`, by which the caller allows what a folder may not."""
    parser.add_argument(
        "--server",
        type=_server,
        action="append",
        default=[],
        metavar="HOST[=VARIABLE]",
        help="a host that a saved ServerWriter may ask, and the variable with its key",
    )
    parser.add_argument(
        "--allow-model",
        type=_model,
        action="append",
        default=[],
        metavar="NAME[=PLACE]",
        help="a model that a saved writer of others may run, and where it lies if not at NAME",
    )


def _server(text: str) -> tuple[str, str | None]:
    host, _, variable = text.partition("=")
    return host, variable or None


def _model(text: str) -> tuple[str, str]:
    name, _, place = text.partition("=")
    return name, place or name

"""Pages out of jinja2 templates: `*.j2` files beside the module that fills them.

A template is named by its path below `experiments`. Modules prepare plain data, templates hold the
words. Texts of data and of models are not trusted: HTML escapes every value that no template made.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from experiments.tables import effect, percent, points

STYLE = "report/pages/style.css"


def markdown_page(template: str, **values: Any) -> str:
    """Fills a template of Markdown; values enter as they are."""
    return _environment(autoescape=False).get_template(template).render(values).strip() + "\n"


def html_page(template: str, *, script: str = "", **values: Any) -> bytes:
    """Fills a template of a whole HTML page that needs no network.

    Args:
        template: extends `report/pages/page.html.j2`, whose content policy lets nothing run but
            `script`.
        script: path of the page's own script below `experiments`, if it has one.
        values: escaped where they enter the page.
    """
    code = _asset(script) if script else ""
    page = (
        _environment(autoescape=True)
        .get_template(template)
        .render(
            values,
            style=Markup(_asset(STYLE)),
            script=Markup(code),
            script_digest=base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
        )
    )
    return page.encode(errors="replace")  # a text of JSON may hold half a character


def unwrapped(text: str) -> str:
    """Returns a paragraph of a template in one line; a template wraps its sentences."""
    return " ".join(text.split())


@cache
def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("experiments", "."),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "points": points,
        "effect": effect,
        "percent": percent,
        "unwrapped": unwrapped,
    }
    # JSON within a page (`tojson`) keeps the order of its keys, and has no NaN.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _asset(name: str) -> str:
    """Reads a style sheet or a script as it is: braces in it are no fields of a template."""
    environment = _environment(autoescape=False)
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]

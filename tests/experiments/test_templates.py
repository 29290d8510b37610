"""Pages out of templates: values are escaped, one script may run, and packages hold all files."""

from __future__ import annotations

import configparser
import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from experiments.tables import Table, effect, percent, points
from experiments.templates import _environment as environment
from experiments.templates import unwrapped
from tests.fixtures.paths import REPO
from tests.fixtures.reports import HOSTILE, INTERVAL, PageParts


def html(template: str, **values: object) -> str:
    return environment(autoescape=True).from_string(template).render(values)


def test_values_are_text_in_an_element_and_in_an_attribute() -> None:
    made = html('<p title="{{ text }}">{{ text }}</p>', text=HOSTILE)
    parts = PageParts(made.encode())
    assert parts.tags == [("p", {"title": HOSTILE})]
    assert parts.text == HOSTILE


def test_a_table_of_a_page_escapes_its_cells() -> None:
    grid = '{% from "report/pages/parts.html.j2" import grid %}{{ grid(table) }}'
    parts = PageParts(html(grid, table=Table([HOSTILE, "x"], [[HOSTILE, HOSTILE]])).encode())
    assert [len(parts.of_tag(tag)) for tag in ("table", "tr", "th", "td")] == [1, 2, 3, 1]
    assert not parts.of_tag("b")
    assert parts.text.count(HOSTILE) == 3


def test_embedded_data_cannot_end_its_element() -> None:
    made = html("<script>{{ data | tojson }}</script>", data={HOSTILE: [HOSTILE]})
    assert made.count("<") == 2, "its own two tags"
    assert made.isascii()
    assert json.loads(PageParts(made.encode()).scripts[0]) == {HOSTILE: [HOSTILE]}
    with pytest.raises(ValueError, match="JSON compliant"):
        html("{{ data | tojson }}", data=float("nan"))


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="recal"):
        html("{{ row.recal }}", row={"recall": 1})


def test_a_paragraph_of_a_template_becomes_one_line() -> None:
    assert unwrapped("\n one\ntwo  three\n") == "one two three"


def test_columns_of_a_table_line_up() -> None:
    table = Table(("", "x"), [("flags", "1.5"), ("a", "")])
    assert table.markdown().split("\n") == [
        "|       | x   |",
        "| ----- | --- |",
        "| flags | 1.5 |",
        "| a     |     |",
    ]
    with pytest.raises(ValueError, match="shorter"):
        Table(("a", "b"), [("1",)]).markdown()


def test_figures_as_text() -> None:
    assert points(INTERVAL) == "25.0 [12.5, 50.0]"
    assert (effect(0.025), effect(None)) == ("2.5", "-")
    assert (percent(0.123), percent(0.5, 0), percent(None)) == ("12.3 %", "50 %", "–")


def test_files_beside_modules_are_package_data() -> None:
    """Whichever room is packaged brings its templates."""
    config = configparser.ConfigParser()
    config.read(REPO / "setup.cfg")
    patterns = config["options.package_data"]["*"].split()
    others = [
        path
        for path in (REPO / "experiments").rglob("*")
        if path.is_file() and path.suffix != ".py" and (path.parent / "__init__.py").is_file()
    ]
    assert others
    assert [path for path in others if not any(fnmatch(path.name, p) for p in patterns)] == []


def test_templates_lie_beside_a_module() -> None:
    templates = sorted((REPO / "experiments").rglob("*.j2"))
    assert templates
    assert [path for path in templates if not Path(path.parent, "__init__.py").is_file()] == []

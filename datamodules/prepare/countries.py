"""Countries with their facts, and which clues name exactly one of them."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, final

FUND_CODES = frozenset({"BOV", "CHE", "CHW", "CLF", "COU", "MXV", "USN", "UYI"})
"""Units of account that the source lists as currencies; nobody pays with them."""

SHARED_FLAGS = (frozenset({"bv", "no", "sj"}),)
"""Equal flags that the gallery draws a little differently; others are found by their pixels."""

NUM_CITIES = 2

MEMBERS = {
    "countries": "countries.min.json",
    "currencies": "currencies.all.min.json",
    "languages": "languages.all.min.json",
    "codes": "minimal/countries.2to3.min.json",
    "continents": "continents.min.json",
}


@final
@dataclass(frozen=True)
class Country:
    """One country or territory with a flag; lists hold names, not codes."""

    code: str
    name: str
    aliases: tuple[str, ...]
    capital: str
    continents: tuple[str, ...]
    currencies: tuple[str, ...]
    languages: tuple[str, ...]
    native: str
    calling: tuple[str, ...]
    code3: str
    cities: tuple[str, ...] = ()

    @property
    def concept(self) -> str:
        """What parts are cut by."""
        return f"country:{self.code}"

    @property
    def answers(self) -> tuple[str, ...]:
        """Names under which a text can name this country; for scoring only."""
        return (self.name, *self.aliases)

    def clues(self, fact: str) -> tuple[str, ...]:
        """What a question about this fact could hold."""
        known = {
            "capital": (self.capital,),
            "code": (self.code3,),
            "native": (self._foreign_name,),
            "language": self.languages,
            "currency": self.currencies,
            "calling": self.calling,
            "continent": self.continents,
            "city": self.cities,
        }
        return tuple(clue for clue in known[fact] if clue)

    @property
    def _foreign_name(self) -> str:
        # A native name that is also a trained name or alias would not be a question.
        known = {fold(name) for name in self.answers}
        return "" if fold(self.native) in known else self.native

    def facts(self) -> dict[str, Any]:
        """The row of the table of facts."""
        return {name: value for name, value in asdict(self).items() if name != "cities" or value}


def fold(text: str) -> str:
    """Lower case without accents.

    >>> fold("Curaçao")
    'curacao'
    """
    plain = unicodedata.normalize("NFKD", text)
    return "".join(c for c in plain if not unicodedata.combining(c)).casefold().strip()


def read_countries(members: Mapping[str, bytes]) -> list[Country]:
    """Countries of the source, sorted by code."""
    tables = {name: json.loads(members[path]) for name, path in MEMBERS.items()}
    return [_country(code, tables) for code in sorted(tables["countries"])]


def with_cities(countries: Iterable[Country], cities: bytes) -> list[Country]:
    """The countries with their largest cities that are no capital, at most `NUM_CITIES`.

    Args:
        countries: without cities.
        cities: JSON object whose values hold `name`, `alternatenames`, `countrycode`, `population`.
    """
    found: dict[str, list[str]] = defaultdict(list)
    capitals = {country.code: fold(country.capital) for country in countries}
    for city in sorted(json.loads(cities).values(), key=lambda c: (-c["population"], c["name"])):
        code = city["countrycode"].lower()
        names = {fold(name) for name in (city["name"], *city["alternatenames"])}
        if len(found[code]) < NUM_CITIES and capitals.get(code, "") not in names:
            found[code].append(city["name"])
    return [replace(country, cities=tuple(found[country.code])) for country in countries]


def unique_clues(countries: Iterable[Country], fact: str) -> list[tuple[Country, str]]:
    """Clues that one country alone has, with that country.

    A clue of two countries that lie in two parts would carry an answer from one to the other.
    """
    pairs = [(country, clue) for country in countries for clue in country.clues(fact)]
    holders = Counter(fold(clue) for _, clue in pairs)
    return [(country, clue) for country, clue in pairs if holders[fold(clue)] == 1]


def same_flags(pixels: Mapping[str, bytes]) -> dict[str, tuple[str, ...]]:
    """Code -> codes of all countries with the same picture, itself first.

    >>> same_flags({"fr": b"tricolour", "mf": b"tricolour", "de": b"other"})["mf"]
    ('mf', 'fr')
    """
    return {
        code: (code, *(o for o in pixels if o != code and _same(code, o, pixels)))
        for code in pixels
    }


def _same(one: str, other: str, pixels: Mapping[str, bytes]) -> bool:
    return pixels[one] == pixels[other] or any({one, other} <= shared for shared in SHARED_FLAGS)


def _country(code: str, tables: Mapping[str, Any]) -> Country:
    row = tables["countries"][code]
    used = [c for c in row["currency"] if c not in FUND_CODES]
    continents = row.get("continents", [row["continent"]])
    return Country(
        code=code.lower(),
        name=row["name"],
        aliases=tuple(row.get("alias", ())),
        capital=row["capital"],
        continents=tuple(tables["continents"][c] for c in continents),
        currencies=tuple(tables["currencies"][c]["name"] for c in used),
        languages=tuple(tables["languages"][c]["name"] for c in row["languages"]),
        native=_visible(row["native"]),
        calling=tuple(str(number) for number in row["phone"]),
        code3=tables["codes"][code],
    )


def _visible(text: str) -> str:
    return "".join(c for c in text if unicodedata.category(c) != "Cf").strip()

"""Countries with their facts, and the clues that name exactly one of them."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, final

from mmemb.records.schema import Excerpt, parse_json

FUND_CODES = frozenset({"BOV", "CHE", "CHW", "CLF", "COU", "MXV", "USN", "UYI"})
"""Units of account that the source lists as currencies, although no country pays with them."""

SHARED_FLAGS = (frozenset({"bv", "no", "sj"}),)
"""Equal flags that the gallery draws a little differently; others are found by their pixels."""

NUM_CITIES = 2


@final
class _CountryJson(Excerpt):
    name: str
    native: str
    capital: str
    continent: str
    phone: tuple[str | int, ...]
    currency: tuple[str, ...]
    languages: tuple[str, ...]
    continents: tuple[str, ...] | None = None
    alias: tuple[str, ...] = ()


@final
class _NamedJson(Excerpt):
    name: str


@final
class _CityJson(Excerpt):
    name: str
    alternatenames: tuple[str, ...]
    countrycode: str
    population: int


MEMBERS: Mapping[str, Any] = {
    "countries.min.json": dict[str, _CountryJson],
    "currencies.all.min.json": dict[str, _NamedJson],
    "languages.all.min.json": dict[str, _NamedJson],
    "minimal/countries.2to3.min.json": dict[str, str],
    "continents.min.json": dict[str, str],
}
"""The tables of the package, and what is read of each."""


class _Tables(NamedTuple):
    """The content of `MEMBERS`, in their order."""

    countries: dict[str, _CountryJson]
    currencies: dict[str, _NamedJson]
    languages: dict[str, _NamedJson]
    codes: dict[str, str]
    continents: dict[str, str]


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
        """Key by which the splits are cut."""
        return f"country:{self.code}"

    @property
    def answers(self) -> tuple[str, ...]:
        """Names under which a text can name this country; for scoring only."""
        return (self.name, *self.aliases)

    def labels(self, task: str, fact: str) -> dict[str, str]:
        """Fields that name task, concept and fact in every row about it."""
        return {"task": task, "concept": self.concept, "fact": f"{self.concept}/{fact}"}

    def clues(self, fact: str) -> tuple[str, ...]:
        """Clues that a question about this fact could hold."""
        clues_of = {
            "capital": (self.capital,),
            "code": (self.code3,),
            "native": (self._foreign_name,),
            "language": self.languages,
            "currency": self.currencies,
            "calling": self.calling,
            "continent": self.continents,
            "city": self.cities,
        }

        return tuple(clue for clue in clues_of[fact] if clue)

    @property
    def _foreign_name(self) -> str:
        # A native name that is also a trained name or alias would not be a question.
        names = {fold(name) for name in self.answers}
        return "" if fold(self.native) in names else self.native

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
    tables = _Tables(*(parse_json(members[path], kind, path) for path, kind in MEMBERS.items()))
    return [_country(code, tables) for code in sorted(tables.countries)]


def with_cities(countries: Iterable[Country], cities: bytes) -> list[Country]:
    """The countries with their largest cities that are no capital, at most `NUM_CITIES`.

    Args:
        countries: without cities.
        cities: JSON object whose values hold `name`, `alternatenames`, `countrycode`, `population`.
    """
    cities_of: dict[str, list[str]] = defaultdict(list)
    capitals = {country.code: fold(country.capital) for country in countries}
    rows = parse_json(cities, dict[str, _CityJson], "The table of cities")
    # By population, then name: a tie must not depend on the order of the source.
    for city in sorted(rows.values(), key=lambda row: (-row.population, row.name)):
        code = city.countrycode.lower()
        names = {fold(name) for name in (city.name, *city.alternatenames)}
        # A city may stand under another spelling of the capital's name.
        if len(cities_of[code]) < NUM_CITIES and capitals.get(code, "") not in names:
            cities_of[code].append(city.name)

    return [replace(country, cities=tuple(cities_of[country.code])) for country in countries]


def unique_clues(countries: Iterable[Country], fact: str) -> list[tuple[Country, str]]:
    """Clues that one country alone has, with that country.

    A clue of two countries that lie in two splits would carry an answer from one to the other.
    """
    pairs = [(country, clue) for country in countries for clue in country.clues(fact)]
    # Folded: two spellings that differ by an accent would be the same question.
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


def _country(code: str, tables: _Tables) -> Country:
    row = tables.countries[code]

    used = [c for c in row.currency if c not in FUND_CODES]
    continents = (row.continent,) if row.continents is None else row.continents

    return Country(
        code=code.lower(),
        name=row.name,
        aliases=row.alias,
        capital=row.capital,
        continents=tuple(tables.continents[c] for c in continents),
        currencies=tuple(tables.currencies[c].name for c in used),
        languages=tuple(tables.languages[c].name for c in row.languages),
        native=_visible(row.native),
        calling=tuple(str(number) for number in row.phone),
        code3=tables.codes[code],
    )


def _visible(text: str) -> str:
    return "".join(c for c in text if unicodedata.category(c) != "Cf").strip()

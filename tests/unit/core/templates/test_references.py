"""Static checks of templates: a certain failure is an error, a possible one is a warning, anything else is not reported."""

from __future__ import annotations

import dataclasses
import enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel

from chainette.core.templates.expression_types import TemplateFinding
from chainette.core.templates.references import template_problems


class Color(enum.Enum):
    RED = "red"


class Item(BaseModel):
    title: str
    price: float | None = None


class Product(BaseModel):
    name: str
    brand: str | None = None
    items: list[Item] = []
    pairs: tuple[Item, int] | None = None
    attrs: dict[str, int] = {}
    stock: dict[str, Item] = {}
    best: Item | None = None
    color: Color = Color.RED
    kind: Literal["a", "b"] = "a"
    long_name: str = Field("", alias="longName")

    @property
    def shout(self) -> str:
        return self.name.upper()

    def top(self) -> Item:
        return self.items[0]


class Fault(BaseModel):
    code: int


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    known: str


class Names(RootModel[list[str]]):
    pass


@dataclasses.dataclass
class Size:
    width: int


class Input(BaseModel):
    text: str
    size: int = 0


SCOPE: dict[str, Any] = {
    "chain_input": Input,
    "extract": Product,
    "input": Input,
    "row_id": str,
    "many": list[Product],
    "maybe": Product | None,
    "either": Product | Fault,
    "extract_reasoning": str | None,
    "anything": Any,
    "unknown": None,
    "open": Open,
    "names": Names,
    "measured": Annotated[Size, "in cm"],
}
ELSEWHERE = {"fr": "it is inside branch 'fr'; use .join('alias') to bring its result out"}


def findings(source: str, bare: type[BaseModel] | None = Input) -> list[TemplateFinding]:
    return template_problems(source, SCOPE, bare, ELSEWHERE)


def errors(source: str) -> list[str]:
    return [finding.message for finding in findings(source) if not finding.warning]


def warnings(source: str) -> list[str]:
    assert errors(source) == []
    return [finding.message for finding in findings(source)]


@pytest.mark.parametrize(
    "source",
    [
        "no names at all",
        "{{ text }} {{ input.text }} {{ chain_input.text }} {{ row_id }} {{ input }}",
        "{{ extract.name | upper }} {{ extract.shout.strip() }} {{ extract['name'] }} {{ extract.long_name }}",
        "{% for i in extract.items %}{{ loop.index }} {{ i.title }}{% if not loop.last %},{% endif %}{% else %}-{% endfor %}",
        "{% for k, v in extract.attrs.items() %}{{ k.upper() }}={{ v }}{% endfor %}",
        "{% for k, v in extract.stock.items() %}{{ v.title }}{% endfor %}{{ extract.stock.lamp.title }}",
        "{% for k in extract.stock %}{{ extract.stock[k].title }}{% endfor %}",
        "{% for v in extract.stock.values() %}{{ v.title }}{% endfor %}",
        "{{ extract.attrs['x'] }} {{ extract.attrs.foo }} {{ extract.attrs.get('x') }} {{ extract.attrs['items'] }}",
        "{{ extract.items | map(attribute='title') | join(', ') }} {{ extract.items | join(', ', attribute='title') }}",
        "{{ extract.items[0].title }} {{ extract.items | length }} {{ (extract.items | first).title }}",
        "{{ many[0]['items'][0].title }} {{ (many | map(attribute='name') | list)[0].upper() }}",
        "{% if extract.best %}{{ extract.best.title }}{% endif %}",
        "{% if not extract.best %}-{% else %}{{ extract.best.title }}{% endif %}",
        "{% if a is defined %}{{ a }}{% elif extract.best %}{{ extract.best.title }}{% endif %}",
        "{{ extract.best.title if extract.best else '' }}",
        "{% if extract.best is not none and extract.best.title %}{{ extract.best.title }}{% endif %}",
        "{{ extract.best and extract.best.title }} {{ (extract.best or extract.items[0]).title }}",
        "{{ extract.brand or 'none' }} {{ extract.brand }}",
        "{% set p = many[0] %}{{ p.name }}{% set x %}abc{% endset %}{{ x.upper() }}{% set a, b = 1, text %}{{ b.upper() }}",
        "{% macro m(a, b=1) %}{{ a.foo }} {{ text }} {{ later }}{% endmacro %}{% set later = 1 %}{{ m(extract) }}",
        "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{{ text }}{% endcall %}",
        "{{ foo | default('x') }} {{ extract.nme | default('x') }}{% if foo is defined %}{{ foo }}{% endif %}",
        "{{ anything.foo.bar[0]() }}{% for x in anything %}{{ x.y }}{% endfor %}{{ unknown.foo }}",
        "{{ extract.top().title }} {{ extract.name.split(',')[0].strip() }} {{ text[:10].upper() }} {{ text[0] }}",
        "{{ many | selectattr('best') | map(attribute='best.title') | list }}",
        "{% for p in many | selectattr('best') %}{{ p.best.title }}{% endfor %}",
        "{% for p in many if p.best %}{{ p.best.title }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for x in many %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ extract.color.value }} {{ extract.color }} {{ extract.kind.upper() }} {{ measured.width }}",
        "{% for a in range(3) %}{{ a }}{% endfor %} {{ dict(a=1) }}",
        "{{ extract }} {{ extract.model_dump_json() }} {{ many | tojson }}",
        "{% with a = extract %}{{ a.name }}{% endwith %}{% filter upper %}{{ extract.name }}{% endfilter %}",
        "{% for i in extract.items | sort(attribute='price,title') %}{{ i.title }}{% endfor %}",
        "{% for g, xs in extract.items | groupby('title') %}{{ g }}{% for x in xs %}{{ x.title }}{% endfor %}{% endfor %}",
        "{% for row in extract.items | batch(2) %}{% for i in row %}{{ i.title }}{% endfor %}{% endfor %}",
        "{% raw %}{{ nope }}{% endraw %}{# {{ nope }} #}",
        "{% if either.name is defined %}{{ either.name }}{% endif %}",
        "{% if text %}{% set y = 1 %}{% else %}{% set y = extract %}{% endif %}{{ y.name }}",
        "{% for i in (maybe.items if maybe else []) %}{{ i.title }}{% endfor %}",
        "{{ open.known }} {{ open.other.thing }} {{ names.root[0].upper() }}",
        "{% if extract.pairs %}{% set one, two = extract.pairs %}{{ one.title }}{{ two }}{% endif %}",
        "{% for x in many recursive %}{{ x.name }}{{ loop.depth0 }}{{ loop.cycle('a', 'b') }}{% endfor %}",
        "{% block a %}{{ text }}{% endblock %}",
        "{% for text in many %}{{ text.name }}{% endfor %}{{ text.upper() }}",
        "{{ {'a': text}['a'] }} {{ [text, extract][0] }} {{ (1, 2) | sum }}",
    ],
)
def test_a_template_that_fits_its_types_has_no_finding(source: str) -> None:
    assert findings(source) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{extract.nme}}", "'extract' (Product) has no field 'nme'; did you mean 'name'?"),
        ("{{ extract['nme'] }}", "'extract' (Product) has no field 'nme'; did you mean 'name'?"),
        ("{{ extract.zzz }}", "has no field 'zzz'; it has: attrs, best, brand, color, items, kind, long_name, name, ..."),
        ("{{ extract.shut }}", "did you mean 'shout'?"),
        ("{{ extract.longName }}", "'longName' is an alias, templates use the field's own name: 'long_name'"),
        ("{{ txt }}", "'txt' is not in scope; did you mean 'text'?"),
        ("{{ name }}", "'name' is not in scope; did you mean 'extract.name'?"),
        ("{{ quite_else }}", "'quite_else' is not in scope; in scope are: anything, "),
        ("{{ fr.text }}", "'fr' is not in scope here: it is inside branch 'fr'; use .join('alias')"),
        ("{{ many.name }}", "'many' is a list of Product and has no 'name'; use a loop, or an index like [0]"),
        ("{{ many[0].nme }}", "'many[0]' (Product) has no field 'nme'"),
        ("{{ extract.items.0.nope }}", "'extract.items[0]' (Item) has no field 'nope'; it has: price, title"),
        ("{{ (extract.items | first).nope }}", "'extract.items|first' (Item) has no field 'nope'"),
        ("{% for i in extract.items %}{{ i.titl }}{% endfor %}", "'i' (Item) has no field 'titl'; did you mean 'title'?"),
        ("{% for i in many %}{{ loop.indx }}{% endfor %}", "'loop' (LoopVariable) has no field 'indx'; did you mean 'index'?"),
        ("{% for i in many %}{% for j in i.items %}{{ j.name }}{% endfor %}{% endfor %}", "'j' (Item) has no field 'name'"),
        ("{% for i in many %}{% endfor %}{{ i }}", "'i' is not in scope"),
        ("{% for k, v in extract.stock.items() %}{{ v.foo }}{% endfor %}", "'v' (Item) has no field 'foo'"),
        ("{% for v in extract.stock.values() %}{{ v.foo }}{% endfor %}", "'v' (Item) has no field 'foo'"),
        ("{{ extract.stock.lamp.foo }}", "'extract.stock.lamp' (Item) has no field 'foo'"),
        ("{{ extract.attrs.items }}", "'extract.attrs.items' is a method; call it: extract.attrs.items(), or"),
        ("{% for k, v in extract.attrs.items %}{% endfor %}", "'extract.attrs.items' is a method; call it: .items()"),
        ("{{ extract.top }}", "'extract.top' is a method; call it: extract.top()"),
        ("{{ extract.top().nope }}", "'extract.top()' (Item) has no field 'nope'"),
        ("{{ extract.name.foo }}", "'extract.name' is a str and has no 'foo'"),
        ("{{ input.size.foo }}", "'input.size' is an int and has no 'foo'"),
        ("{{ extract.color.foo }}", "(Color) has no 'foo'; an enum has name and value"),
        ("{{ measured.widht }}", "'measured' (Size) has no field 'widht'; did you mean 'width'?"),
        ("{{ extract.__class__ }}", "templates cannot use names that start with '_'"),
        ("{% for x in input.size %}{% endfor %}", "'input.size' is an int and cannot be looped over"),
        ("{{ many | map(attribute='nme') | join }}", "map(attribute='nme'): an item (Product) has no field 'nme'"),
        ("{{ many | map(attribute='best.titel') | join }}", "an item (Item) has no field 'titel'"),
        ("{{ many | selectattr('bst') | list }}", "an item (Product) has no field 'bst'"),
        ("{{ many | sort(attribute='name,nme') }}", "an item (Product) has no field 'nme'"),
        ("{{ many | join(', ', attribute='nme') }}", "an item (Product) has no field 'nme'"),
        ("{% if extrct %}{% endif %}", "'extrct' is not in scope; did you mean 'extract'?"),
        ("{% if extract.nme == 'x' %}{% endif %}", "has no field 'nme'"),
        ("{{ text if extract.nme else '' }}", "has no field 'nme'"),
        ("{{ extract.name and extract.nme }}", "has no field 'nme'"),
        ("{{ {'a': extract.nme} }}", "has no field 'nme'"),
        ("{{ [extract.nme] }}", "has no field 'nme'"),
        ("{{ 'a' ~ extract.nme }}", "has no field 'nme'"),
        ("{{ extract.nme.foo | default('x') | upper ~ extract.nme }}", "has no field 'nme'"),
        ("{{ text.replace(extract.nme, '') }}", "has no field 'nme'"),
        ("{% set a = extract %}{{ a.nme }}", "'a' (Product) has no field 'nme'"),
        ("{% with a = extract %}{{ a.nme }}{% endwith %}", "'a' (Product) has no field 'nme'"),
        ("{% macro m(a) %}{{ nowhere }}{% endmacro %}", "'nowhere' is not in scope"),
        ("{% block b %}{{ extract.nme }}{% endblock %}", "has no field 'nme'"),
        ("{% filter upper %}{{ extract.nme }}{% endfilter %}", "has no field 'nme'"),
        ("{{ maybe.nme }}", "'maybe' (Product) has no field 'nme'"),
        ("{{ either.foo }}", "'either' (Product) has no field 'foo'"),
        ("{{ json }}", "'json' is not in scope"),
        ("{{ text | shout }}", "No filter named 'shout'"),
        ("{{ text | uper }}", "No filter named 'uper'; did you mean 'upper'?"),
        ("{{ text", "unexpected end of template"),
        ("{% include 'x' %}", "{% include %} is not available; a prompt is one template"),
        ("{% import 'x' as y %}", "{% import %} is not available"),
    ],
)
def test_an_access_that_cannot_work_is_an_error_with_the_reason(source: str, message: str) -> None:
    found = errors(source)
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ extract.best.title }}", "'extract.best' may be None, which has no 'title'; test it first: {% if extract.best %}"),
        ("{% for p in many %}{{ p.best.title }}{% endfor %}", "'p.best' may be None"),
        ("{{ maybe.name }}", "'maybe' may be None, which has no 'name'"),
        ("{% for i in maybe.items or [] %}{% endfor %}", "'maybe' may be None"),
        ("{% if text %}{{ extract.best.title }}{% endif %}", "'extract.best' may be None"),
        ("{% if extract.best %}{% endif %}{{ extract.best.title }}", "'extract.best' may be None"),
        ("{{ extract_reasoning.upper() }}", "'extract_reasoning' may be None"),
        (
            "{% set one, two = extract.pairs %}{% for x in extract.pairs %}{% endfor %}",
            "may be None, which cannot be looped over",
        ),
        (
            "{{ either.name }}",
            "'either' may be Fault, which has no field 'name'; test it first: {% if either.name is defined %}",
        ),
    ],
)
def test_an_access_that_may_fail_for_some_rows_is_a_warning(source: str, message: str) -> None:
    found = warnings(source)
    assert len(found) == 1, found
    assert message in found[0]


def test_a_name_that_is_an_id_and_a_field_is_the_id_with_a_warning() -> None:
    class Clash(BaseModel):
        extract: str
        row_id: int

    found = findings("{{ extract.nme }} {{ extract.name }} {{ row_id }}", Clash)
    assert [finding.warning for finding in found] == [True, False, True]
    assert "write input.extract for the field" in found[0].message
    assert "'extract' (Product) has no field 'nme'" in found[1].message


def test_a_clash_that_the_template_does_not_use_is_silent() -> None:
    class Clash(BaseModel):
        extract: str
        text: str

    assert findings("{{ text }}", Clash) == []


def test_an_input_that_takes_any_field_may_have_any_name() -> None:
    assert findings("{{ whatever }}", Open) == []


def test_without_an_input_model_only_ids_that_exist_elsewhere_are_reported() -> None:
    assert findings("{{ whatever }}", None) == []
    assert len(findings("{{ fr }}", None)) == 1


def test_findings_carry_their_line_and_come_once() -> None:
    found = findings("first\n{{ extract.nme }}\n{{ extract.nme }}\n\n{{ txt }}")
    assert [(finding.line, finding.warning) for finding in found] == [(2, False), (5, False)]


def test_a_syntax_error_is_one_finding_with_its_line() -> None:
    assert [finding.line for finding in findings("a\nb {% if %}")] == [2]


def test_a_field_of_the_input_model_that_is_a_property_can_be_used_bare() -> None:
    assert findings("{{ shout.strip() }} {{ name }}", Product) == []
    assert "is a method; call it: top()" in findings("{{ top }}", Product)[0].message

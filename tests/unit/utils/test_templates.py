"""Templates: output, refusals and error messages."""

from __future__ import annotations

import threading
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel, Field

from chainette.errors import TemplateError
from chainette.utils.templates import Template, render


class Color(Enum):
    RED = "red"


class Part(BaseModel):
    title: str
    color: Color = Color.RED


class Product(BaseModel):
    name: str = Field(alias="Name")
    parts: list[Part] = []
    maker: str | None = None
    in_stock: bool = True
    tags: set[str] = set()

    @property
    def broken(self) -> str:
        raise LookupError("no such shelf")


PRODUCT = Product(Name="Lamp", parts=[Part(title="Base"), Part(title="Über")], tags={"b", "a", "c"})


def shown(source: str, **context: Any) -> str:
    return render(source, {"product": PRODUCT, **context})


def failure(source: str, **context: Any) -> str:
    with pytest.raises(TemplateError) as caught:
        Template(source, "step 'x', user_prompt").render({"product": PRODUCT, **context})
    return str(caught.value)


def test_fields_and_items_print_as_they_are() -> None:
    assert shown("{{ product.name }}, {{ product['name'] }}, {{ n }}, {{ x }}", n=3, x=1.5) == "Lamp, Lamp, 3, 1.5"


def test_a_model_printed_whole_is_json_by_alias() -> None:
    assert shown("{{ part }}", part=PRODUCT.parts[0]) == '{"title":"Base","color":"red"}'
    assert shown("{{ p }}", p=Product(Name="x")).startswith('{"Name":"x"')


def test_lists_dicts_and_generators_print_as_json() -> None:
    assert shown("{{ product.parts }}") == '[{"title":"Base","color":"red"},{"title":"Über","color":"red"}]'
    assert shown("{{ d }}", d={"a": [1, None]}) == '{"a":[1,null]}'
    assert shown("{{ product.parts | map(attribute='title') }}") == '["Base","Über"]'
    assert shown("{{ [1, 2] | reverse }}") == "[2,1]"


def test_a_set_prints_sorted_so_that_every_process_prints_the_same() -> None:
    assert shown("{{ product.tags }}") == '["a","b","c"]'


def test_none_and_booleans_print_as_in_json() -> None:
    assert shown("{{ product.maker }} {{ product.in_stock }}") == "null true"


def test_an_enum_is_its_value_in_filters_and_concatenation_too() -> None:
    source = "{{ c }} {{ c | upper }} {{ 'is ' ~ c }} {{ [c, c] | join('+') }} {{ c | replace('r', 'R') }}"
    assert shown(source, c=Color.RED) == "red RED is red red+red Red"


def test_tojson_takes_models_and_escapes_nothing() -> None:
    assert shown("{{ part | tojson }}", part=Part(title="<a>")) == '{"title":"<a>","color":"red"}'
    assert shown("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"


def test_join_by_attribute_works() -> None:
    assert shown("{{ product.parts | join(', ', attribute='title') }}") == "Base, Über"


def test_text_is_kept_to_the_last_newline_and_not_escaped() -> None:
    assert shown("a < b\n\n{{ t }}\n", t="<&>") == "a < b\n\n<&>\n"


def test_names_are_those_taken_from_the_context() -> None:
    template = Template("{% set a = b.c %}{{ a }}{% for i in items %}{{ i }}{{ loop.index }}{% endfor %}")
    assert template.names == {"b", "items"}


@pytest.mark.parametrize(
    ("source", "line", "found"),
    [
        ("\n{{ product.nme }}", 2, "Product has no field 'nme'"),
        ("{{ nothing }}", 1, "'nothing' is not in scope"),
        ("{{ nothing | tojson }}", 1, "'nothing' is not in scope"),
        ("{{ [nothing] }}", 1, "'nothing' is not in scope"),
        ("{{ 'a' ~ nothing }}", 1, "'nothing' is not in scope"),
        ("{{ [product.nme] | join }}", 1, "Product has no field 'nme'"),
        ("{% if nothing %}{% endif %}", 1, "'nothing' is not in scope"),
        ("{{ product.maker.name }}", 1, "the value is None and has no 'name'"),
        ("{% for p in product.parts %}\n\n{{ p.foo }}{% endfor %}", 3, "Part has no field 'foo'"),
        ("{{ product.name.upper }}", 1, "'upper' is a method; call it with ()"),
        ("{{ 1 / 0 }}", 1, "ZeroDivisionError"),
        ("{% macro m(a) %}\n{{ a.foo }}{% endmacro %}\n\n{{ m(product) }}", 2, "Product has no field 'foo'"),
    ],
)
def test_an_error_names_the_label_the_line_and_the_cause(source: str, line: int, found: str) -> None:
    message = failure(source)
    assert message.startswith(f"step 'x', user_prompt, line {line}: ")
    assert found in message


def test_an_error_in_the_code_of_a_model_is_a_template_error() -> None:
    assert "LookupError: no such shelf" in failure("{{ product.broken }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ product.__class__.__init__.__globals__ }}",
        "{{ product['__class__'].__mro__ }}",
        "{{ (product | attr('__class__')).__mro__ }}",
        "{{ '{0.__class__}'.format(product) }}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_the_sandbox_lets_no_template_out(source: str) -> None:
    assert "line 1" in failure(source)


def test_text_that_a_model_keeps_under_a_private_name_is_not_printed() -> None:
    part = Part(title="Base")
    vars(part)["_secret"] = "sesame"
    assert "sesame" not in failure("{{ part._secret }}", part=part)


@pytest.mark.parametrize(
    ("source", "line", "found"),
    [
        ("a\n{{ b", 2, "unexpected end of template"),
        ("{% if x %}", 1, "Unexpected end of template"),
        ("\n{{ x | shout }}", 2, "No filter named 'shout'"),
        ("{% if x is lovely %}{% endif %}", 1, "No test named 'lovely'"),
        ("{% include 'other' %}", 1, "{% include %} is not available"),
        ("{% extends 'other' %}", 1, "{% extends %} is not available"),
        ("{% from 'other' import x %}", 1, "{% from ... import %} is not available"),
    ],
)
def test_a_template_that_cannot_compile_says_where(source: str, line: int, found: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(source, "system_prompt")
    assert str(caught.value).startswith(f"system_prompt, line {line}: ")
    assert found in str(caught.value)


def test_a_template_draws_no_random_numbers() -> None:
    assert "No filter named 'random'" in failure("{{ [1, 2] | random }}")
    assert "'lipsum' is not in scope" in failure("{{ lipsum() }}")


def test_a_template_that_is_not_text_is_refused() -> None:
    with pytest.raises(TemplateError, match="a template is a string, found None"):
        Template(None)  # type: ignore[arg-type]


def test_one_template_renders_from_many_threads() -> None:
    template = Template("{% for i in range(n) %}{{ i }},{% endfor %}")
    results: dict[int, str] = {}

    def fill(n: int) -> None:
        results[n] = template.render({"n": n})

    threads = [threading.Thread(target=fill, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: "".join(f"{i}," for i in range(n)) for n in range(20)}

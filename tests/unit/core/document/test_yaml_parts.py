"""YAML 1.2 as plain data with lines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from chainette.core.document.yaml_parts import parts_of
from chainette.errors import LoadError


def read(text: str, name: str = "chain.yml") -> Any:
    return parts_of(Path(name), text.encode()).plain


def fault(text: str) -> str:
    with pytest.raises(LoadError) as caught:
        read(text)
    return str(caught.value)


def test_words_of_yaml_1_1_are_text() -> None:
    words = ["on", "off", "yes", "no", "y", "n", "Yes", "NO", "12:30", "1_000", "2026-11-29", "0o8", "0b1", "<<"]
    assert read("".join(f"- {word}\n" for word in words)) == words
    assert read("on: no") == {"on": "no"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("017", 17),
        ("0o17", 15),
        ("0xFf", 255),
        ("-3", -3),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("'true'", "true"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        (r'"\ud83d\ude00"', "😀"),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, value: Any) -> None:
    found = read(f"a: {text}")["a"]
    assert found == value and type(found) is type(value)


def test_a_part_knows_its_line() -> None:
    document = parts_of(Path("/x/chain.yml"), b"a: 1\nb:\n  - c: 2\n")
    assert str(document.value["b"].value[0].value["c"].place) == "/x/chain.yml:3"


def test_a_json_file_is_read_with_its_tabs() -> None:
    assert read('{\n\t"a": ["b",\t1]\n}', "schema.json") == {"a": ["b", 1]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "chain.yml:2: the key 'a' is given twice, first on line 1"),
        ("1: a", "chain.yml:1: the key 1 is not text; put it in quotes"),
        ("? [a]\n: b", "chain.yml:1: a list cannot be a key"),
        ("a: !!python/object/apply:os.system [id]", "chain.yml:1: the tag '!!python/object/apply:os.system' is not read"),
        ("a: !!timestamp 2026-11-29", "chain.yml:1: the tag '!!timestamp' is not read"),
        ("a: !secret b", "chain.yml:1: the tag '!secret' is not read"),
        ("!!set {a: }", "the tag '!!set' is not read"),
        ("a: !!int b", "chain.yml:1: 'b' is no int"),
        ("a: [1\nb: 2", "chain.yml:2: cannot be read as YAML: "),
        ("a: &x [*x]", "chain.yml:1: this value contains itself"),
        ("a: *x", "chain.yml:1: cannot be read as YAML: "),
        ("--- a\n--- b", "chain.yml:2: cannot be read as YAML: "),
        ("", "chain.yml: is empty"),
        ("a: " + "9" * 5000, "chain.yml:1: the number is too long"),
        ("[" * 90 + "1" * 1 + "]" * 90, ""),
        ("a: " + "[" * 200 + "]" * 200, "nested too deeply"),
        ("a: " + "[" * 50_000, "nested too deeply"),
        (r'a: "\ud83d"', "chain.yml:1: the text has half of a surrogate pair"),
    ],
)
def test_anything_but_plain_data_is_refused_at_its_line(text: str, said: str) -> None:
    if said:
        assert said in fault(text)
    else:
        read(text)


def test_a_few_lines_of_aliases_do_not_become_millions_of_values() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "has more than 50,000 values" in fault("\n".join(lines))


def test_a_syntax_error_quotes_no_secret() -> None:
    assert "hunter2" not in fault("api_key: 'hunter2-secret\nb: [")


def test_bytes_that_are_no_utf_8_are_refused() -> None:
    with pytest.raises(LoadError, match="is not UTF-8"):
        parts_of(Path("chain.yml"), b"a: \xff")

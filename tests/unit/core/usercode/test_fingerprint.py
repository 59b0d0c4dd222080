"""Fingerprints change with the code and with nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import create_model

from chainette.core.usercode.fingerprint import fingerprint_code, fingerprint_model
from chainette.core.usercode.importer import PrivateImporter

BASE = '''
import json
import re
from enum import Enum
from functools import wraps
from pydantic import BaseModel, field_validator
import helpers
from helpers import clean as tidy, Splitter

LIMIT = 3
WORDS = ["a", "b"]
SEEN = set()
PATTERN = re.compile("a+")
splitter = Splitter(5)

class Mode(Enum):
    FAST = 1

def second(x):
    return first(x) if x > LIMIT else x

def first(x):
    return second(x - 1)

class Item(BaseModel):
    """An item."""

    text: str

    @field_validator("text")
    @classmethod
    def strip(cls, value: str) -> str:
        return value.strip()

class Special(Item):
    n: int = 0

def traced(fn):
    @wraps(fn)
    def inner(item):
        return fn(item)
    return inner

@traced
def decorated(item):
    return item

def made(words):
    def inner(item):
        return [word for word in words if word in item.text]
    return inner

closed = made(["x"])
add, double = (lambda x: x + 1), (lambda x: x * 2)

def work(item: Item) -> list[Item]:
    """Splits an item."""
    # by hand
    SEEN.add(item.text)
    return [Item(text=part) for part in splitter.split(tidy(item.text), WORDS) if PATTERN.match(part) and second(1)]

def by_module(item):
    return helpers.clean(item) + json.dumps(Mode.FAST.value)

class Caller:
    def __init__(self, size):
        self.size = size
    def __call__(self, item):
        return self.shorten(item)
    def shorten(self, item):
        return item[: self.size]

caller = Caller(3)
'''

HELPERS = """
class Splitter:
    def __init__(self, size): self.size = size
    def split(self, text, words): return [text[: self.size]]

def clean(text):
    return deeper(text)

def deeper(text):
    return text.strip()

def unused(text):
    return text
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    """Imports the two modules with edits, under new names each time."""

    def loader(*edits: tuple[str, str], name: str = "chain.py", folder: str = "a") -> Any:
        (tmp_path / folder).mkdir(exist_ok=True)
        chain, helpers = BASE, HELPERS
        for old, new in edits:
            assert old in chain + helpers
            chain, helpers = chain.replace(old, new), helpers.replace(old, new)
        (tmp_path / folder / "helpers.py").write_text(helpers)
        (tmp_path / folder / name).write_text(chain)
        return PrivateImporter(name, [tmp_path / folder]).run_file(tmp_path / folder / name)

    return loader


@pytest.mark.parametrize(
    "edit",
    [
        ("# by hand", "# with care"),
        ('    """Splits an item."""\n', ""),
        ("LIMIT = 3", "LIMIT   =   3  # at most"),
        ("def second(x):", "\n\n\ndef second( x ) :"),
        ("    return second(x - 1)", '    """Down."""\n    return second((x - 1))'),
        ("def unused(text):\n    return text", "def unused(text):\n    return text * 2"),
        (
            "    def __init__(self, size): self.size = size\n    def split",
            "    def __init__(self, size):\n        self.size = size\n    def split",
        ),
        ("json.dumps(", "json.dumps( "),
    ],
)
def test_edits_that_change_nothing_keep_the_fingerprint(load: Callable[..., Any], edit: tuple[str, str]) -> None:
    before, after = load(), load(edit)
    assert fingerprint_code(before.work) == fingerprint_code(after.work)
    assert fingerprint_code(before.by_module) == fingerprint_code(after.by_module)


@pytest.mark.parametrize(
    "edit",
    [
        ("and second(1)", "and second(2)"),
        ("LIMIT = 3", "LIMIT = 4"),
        ("second(x - 1)", "second(x - 2)"),
        ('["a", "b"]', '["a", "c"]'),
        ('re.compile("a+")', 're.compile("a*")'),
        ("Splitter(5)", "Splitter(6)"),
        ("[text[: self.size]]", "[text[self.size :]]"),
        ("text.strip()", "text.rstrip()"),
        ("value.strip()", "value.lstrip()"),
        ("text: str\n", "text: str\n    more: str = ''\n"),
    ],
)
def test_code_and_data_that_a_function_uses_change_its_fingerprint(load: Callable[..., Any], edit: tuple[str, str]) -> None:
    assert fingerprint_code(load().work) != fingerprint_code(load(edit).work)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("by_module", ("text.strip()", "text.rstrip()")),
        ("by_module", ("FAST = 1", "FAST = 2")),
        ("closed", ('made(["x"])', 'made(["y"])')),
        ("closed", ("if word in item.text", "if word not in item.text")),
        ("decorated", ("    return item\n\ndef made", "    return [item]\n\ndef made")),
        ("decorated", ("return fn(item)", "return [fn(item)]")),
        ("add", ("x + 1", "x + 2")),
        ("double", ("x * 2", "x * 3")),
        ("caller", ("item[: self.size]", "item[self.size :]")),
        ("caller", ("Caller(3)", "Caller(4)")),
        ("first", ("LIMIT = 3", "LIMIT = 4")),
    ],
)
def test_every_kind_of_callable_changes_with_its_code(load: Callable[..., Any], name: str, edit: tuple[str, str]) -> None:
    assert fingerprint_code(getattr(load(), name)) != fingerprint_code(getattr(load(edit), name))


def test_lambdas_on_one_line_are_told_apart(load: Callable[..., Any]) -> None:
    before, after = load(), load(("x + 1", "x + 2"))
    assert fingerprint_code(before.add) != fingerprint_code(before.double)
    assert fingerprint_code(before.double) == fingerprint_code(after.double)


def test_a_partial_and_a_method_count_with_their_arguments_and_objects(load: Callable[..., Any]) -> None:
    module, other = load(), load(("Caller(3)", "Caller(4)"))
    assert fingerprint_code(partial(module.second, 1)) != fingerprint_code(partial(module.second, 2))
    assert fingerprint_code(module.caller.shorten) != fingerprint_code(other.caller.shorten)


def test_state_that_a_run_leaves_behind_keeps_the_fingerprint(load: Callable[..., Any]) -> None:
    module = load()
    before = fingerprint_code(module.work)
    module.SEEN.add("something")
    module.WORDS.append("else")
    module.splitter.cache = {}
    assert fingerprint_code(module.work) == before


def test_another_file_name_or_folder_keeps_the_fingerprint(load: Callable[..., Any]) -> None:
    before, after = load(), load(name="renamed.py", folder="b")
    for name in ("work", "by_module", "caller", "closed", "decorated"):
        assert fingerprint_code(getattr(before, name)) == fingerprint_code(getattr(after, name))
    assert fingerprint_model(before.Special) == fingerprint_model(after.Special)


def test_an_edit_after_the_import_does_not_change_what_was_loaded(load: Callable[..., Any]) -> None:
    before = load()
    expected = fingerprint_code(before.work)
    edited = load(("def second(x):", "\n\ndef second(x):"), ("and second(1)", "and second(2)"))
    assert edited.__file__ == before.__file__
    assert fingerprint_code(before.work) == expected != fingerprint_code(edited.work)


def test_the_fingerprint_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text(HELPERS)
    (tmp_path / "chain.py").write_text(BASE + "\nNAMES = {'x', 'y', 'z', 'w'}\nF = frozenset(NAMES)\ndef g(x): return x in F\n")
    code = (
        "import sys, json; from pathlib import Path; from chainette.core.usercode.importer import PrivateImporter as P;"
        "from chainette.core.usercode.fingerprint import *;"
        "m = P('x', [Path(sys.argv[1])]).run_file(Path(sys.argv[1]) / 'chain.py');"
        "print(json.dumps([*map(fingerprint_code, [m.work, m.g, m.caller]), fingerprint_model(m.Item)]))"
    )
    found = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert len(set(found[0])) == 4
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in found[0])


@pytest.mark.parametrize("edit", [("text: str\n", "text: int\n"), ("value.strip()", "value.lstrip()")])
def test_a_models_fields_and_validators_change_it_and_its_subclass(load: Callable[..., Any], edit: tuple[str, str]) -> None:
    before, after = load(), load(edit)
    assert fingerprint_model(before.Item) != fingerprint_model(after.Item)
    assert fingerprint_model(before.Special) != fingerprint_model(after.Special)


def test_a_models_docstring_changes_it_since_the_engine_reads_it(load: Callable[..., Any]) -> None:
    edit = ('"""An item."""', '"""A thing."""')
    assert fingerprint_model(load().Item) != fingerprint_model(load(edit).Item)


def test_a_validator_inside_a_nested_model_changes_the_outer_one(load: Callable[..., Any]) -> None:
    before, after = load(), load(("value.strip()", "value.lstrip()"))
    items: list[Any] = [list[before.Item], list[after.Item]]  # type: ignore[name-defined]
    outer = [create_model("Outer", items=(item, ...)) for item in items]
    assert fingerprint_model(outer[0]) != fingerprint_model(outer[1])


def test_a_base_class_counts_for_a_model_that_has_no_source(load: Callable[..., Any]) -> None:
    before, after = load(), load(("value.strip()", "value.lstrip()"))
    made = [create_model("Made", __base__=module.Item, n=(int, 0)) for module in (before, after)]
    assert fingerprint_model(made[0]) != fingerprint_model(made[1])


def test_code_of_installed_packages_counts_by_name(load: Callable[..., Any]) -> None:
    assert fingerprint_code(json.dumps) != fingerprint_code(json.loads)
    assert fingerprint_code(len) != fingerprint_code(max)


def test_a_function_without_source_counts_by_name() -> None:
    space: dict[str, Any] = {"__name__": "typed_in"}
    exec("def one(x): return x\ndef two(x): return x", space)
    assert fingerprint_code(space["one"]) != fingerprint_code(space["two"])


def chosen(item: str) -> Literal["x", "y"]:
    return "x" if item else "y"


def test_a_fingerprint_is_the_same_in_every_version_of_python() -> None:
    """Python 3.13 renamed the class of `Literal`. The value was written down under Python 3.11."""
    assert fingerprint_code(chosen) == "81c47d3cf9156dd5"

"""Data that code uses count as they were after the import, wherever they came from; traces of a run do not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chainette.core.usercode.fingerprint import fingerprint_code, fingerprint_model
from chainette.core.usercode.importer import PrivateImporter

HEAD = """
import collections, dataclasses, functools, json, os, random, tempfile, time, types
from enum import Enum
from pathlib import Path
from typing import Literal, NamedTuple
from pydantic import BaseModel, field_validator

HERE = Path(__file__).parent

def read():
    return json.loads((HERE / "labels.json").read_text())
"""

HELPERS = HEAD + "\nLABELS = read()\n"

#: How a module gets its labels from a file, and a function or a model that uses them.
READING = {
    "a list": "LABELS = read()\ndef f(x): return x in LABELS",
    "a list read below the function": "def f(x): return x in LABELS\nLABELS = read()",
    "a tuple": "LABELS = tuple(read())\ndef f(x): return x in LABELS",
    "a set": "LABELS = set(read())\ndef f(x): return x in LABELS",
    "a dict": "LABELS = {name: 1 for name in read()}\ndef f(x): return LABELS[x]",
    "a dict of lists": "LABELS = {'a': [read()]}\ndef f(x): return LABELS[x]",
    "a default dict": "LABELS = collections.defaultdict(int, {n: 1 for n in read()})\ndef f(x): return LABELS[x]",
    "a counter": "LABELS = collections.Counter(read())\ndef f(x): return LABELS[x]",
    "a deque": "LABELS = collections.deque(read())\ndef f(x): return x in LABELS",
    "a mapping proxy": "LABELS = types.MappingProxyType({n: 1 for n in read()})\ndef f(x): return x in LABELS",
    "a text": "LABELS = ' '.join(read())\ndef f(x): return x in LABELS",
    "a number": "LABELS = len(read()[0])\ndef f(x): return x + LABELS",
    "a list that a loop fills": "LABELS = []\nfor name in read():\n    LABELS.append(name)\ndef f(x): return x in LABELS",
    "a list that a function fills": (
        "LABELS = []\ndef fill():\n    LABELS.extend(read())\nfill()\ndef f(x): return x in LABELS"
    ),
    "a list that a function fills for another": (
        "LABELS = []\ndef fill():\n    LABELS.extend(read())\ndef setup():\n    fill()\nsetup()\ndef f(x): return x in LABELS"
    ),
    "a global that a function sets": (
        "LABELS = None\ndef fill():\n    global LABELS\n    LABELS = read()\nfill()\ndef f(x): return x in LABELS"
    ),
    "models": (
        "class Shot(BaseModel):\n    text: str\nLABELS = [Shot(text=name) for name in read()]\ndef f(x): return x in LABELS"
    ),
    "a dataclass": (
        "@dataclasses.dataclass\nclass Shot:\n    text: str\nLABELS = Shot(read()[0])\ndef f(x): return x == LABELS.text"
    ),
    "named tuples": (
        "class Shot(NamedTuple):\n    text: str\nLABELS = [Shot(name) for name in read()]\ndef f(x): return x in LABELS"
    ),
    "an imported name": "from helpers import LABELS\ndef f(x): return x in LABELS",
    "a name of an imported module": "import helpers\ndef f(x): return x in helpers.LABELS",
    "a name of a module in a package": "import package.helpers\ndef f(x): return x in package.helpers.LABELS",
    "a class attribute": "class Labels:\n    all = read()\ndef f(x): return x in Labels.all",
    "a default": "def f(x, labels=read()): return x in labels",
    "a keyword default": "def f(x, *, labels=read()): return x in labels",
    "a closure": "def make(labels):\n    def g(x): return x in labels\n    return g\nf = make(read())",
    "a partial": "def g(labels, x): return x in labels\nf = functools.partial(g, read())",
    "an object": (
        "class Finder:\n    def __init__(self, labels):\n        self.labels = labels\n"
        "    def __call__(self, x): return x in self.labels\nf = Finder(read())"
    ),
    "an enum": "Label = Enum('Label', {name: name for name in read()})\ndef f(x): return [*Label]",
    "a used function's": "LABELS = read()\ndef g(x): return x in LABELS\ndef f(x): return g(x)",
    "a drawn sample with a seed": "LABELS = random.Random(3).sample(read(), 1)\ndef f(x): return x in LABELS",
    "a validator's": (
        "LABELS = read()\nclass Model(BaseModel):\n    text: str\n    @field_validator('text')\n    @classmethod\n"
        "    def known(cls, value):\n        assert value in LABELS\n        return value"
    ),
    "an array": "import numpy\nLABELS = numpy.array(read())\ndef f(x): return x in LABELS",
    "an array of objects": "import numpy\nLABELS = numpy.array(read(), dtype=object)\ndef f(x): return x in LABELS",
    "a pandas frame": "import pandas\nLABELS = pandas.DataFrame({'name': read()})\ndef f(x): return x in LABELS.name",
    "a pandas column": "import pandas\nLABELS = pandas.Series(read())\ndef f(x): return x in LABELS",
    "a polars frame": "import polars\nLABELS = polars.DataFrame({'name': read()})\ndef f(x): return x in LABELS",
    "an Arrow table": "import pyarrow\nLABELS = pyarrow.table({'name': read()})\ndef f(x): return x in LABELS",
    "a byte array": "LABELS = bytearray(read()[0].encode())\ndef f(x): return x in LABELS",
    "a view of bytes": "LABELS = memoryview(read()[0].encode())\ndef f(x): return x in LABELS",
    "a namespace": "LABELS = types.SimpleNamespace(all=read())\ndef f(x): return x in LABELS.all",
    "a chain of dicts": "LABELS = collections.ChainMap({'all': read()})\ndef f(x): return x in LABELS['all']",
    "a subclass of str": "class Word(str): pass\nLABELS = Word(read()[0])\ndef f(x): return x in LABELS",
    "the keys of a dict": "LABELS = dict.fromkeys(read()).keys()\ndef f(x): return x in LABELS",
    "a jinja template": "import jinja2\nLABELS = jinja2.Template(read()[0])\ndef f(x): return LABELS.render()",
    "a bound method of a dict": "find = dict.fromkeys(read(), 1).get\ndef f(x): return find(x)",
    "a bound method of an expression": "import re\ncut = re.compile(read()[0]).sub\ndef f(x): return cut('', x)",
    "a partial that is a global": "def g(all, x): return x in all\nh = functools.partial(g, read())\ndef f(x): return h(x)",
    "closures in a list": (
        "def make(label):\n    return lambda x: x in label\nCHECKS = [make(label) for label in read()]\n"
        "def f(x): return CHECKS[0](x)"
    ),
    "functions in a dict, chosen by the file": (
        "def g(x): return 1\ndef h(x): return 2\nCHECKS = {'check': g if read()[0] == 'old' else h}\n"
        "def f(x): return CHECKS['check'](x)"
    ),
    "a dict of data and functions": "RULES = {'labels': read(), 'change': str.upper}\ndef f(x): return x in RULES['labels']",
    "a dict of data and paths": "RULES = {'labels': read(), 'place': HERE}\ndef f(x): return x in RULES['labels']",
    "an object that is a global": (
        "class Config:\n    def __init__(self):\n        self._load()\n    def _load(self):\n        self.labels = read()\n"
        "CONFIG = Config()\ndef f(x): return x in CONFIG.labels"
    ),
    "an object with slots": (
        "class Config:\n    __slots__ = ('labels',)\n    def __init__(self):\n        self.labels = read()\n"
        "CONFIG = Config()\ndef f(x): return x in CONFIG.labels"
    ),
    "objects in a dict": (
        "class Config:\n    def __init__(self):\n        self.labels = read()\n"
        "ALL = {'a': Config()}\ndef f(x): return x in ALL['a'].labels"
    ),
    "an attribute of a function": "def f(x): return x in f.labels\nf.labels = read()",
    "a literal's": "class Model(BaseModel):\n    text: Literal[tuple(read())]",
}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    """Imports a module with its labels in a file beside it."""

    def loader(code: str, labels: list[str], folder: str = "project") -> Any:
        root = tmp_path / folder
        (root / "package").mkdir(parents=True, exist_ok=True)
        for place in (root, root / "package"):
            (place / "labels.json").write_text(json.dumps(labels))
            (place / "helpers.py").write_text(HELPERS)
        (root / "package/__init__.py").write_text("")
        (root / "chain.py").write_text(HEAD + code)
        return PrivateImporter("chain", [root]).run_file(root / "chain.py")

    return loader


def fingerprint(module: Any) -> str:
    return fingerprint_code(module.f) if hasattr(module, "f") else fingerprint_model(module.Model)


@pytest.mark.parametrize("kind", READING)
def test_data_that_an_import_reads_from_a_file_count(load: Callable[..., Any], kind: str) -> None:
    before, same, after = (load(READING[kind], labels) for labels in (["old"], ["old"], ["other"]))
    assert fingerprint(before) == fingerprint(same) != fingerprint(after)


#: State that a function leaves behind: the module, and the effect of two calls.
STATE = {
    "a cache": "cache = {}\ndef f(x):\n    cache[x] = 1\n    return x",
    "a list": "seen = []\ndef f(x):\n    seen.append(x)\n    return x",
    "a counter": "count = 0\ndef f(x):\n    global count\n    count += 1\n    return x",
    "a global that is made at the first call": "model = None\ndef f(x):\n    global model\n    model = [x]\n    return x",
    "counts by name": "seen = collections.Counter()\ndef f(x):\n    seen[x] += 1\n    return x",
    "lists by name": "seen = collections.defaultdict(list)\ndef f(x):\n    seen[x].append(x)\n    return x",
    "a remembered result": "@functools.lru_cache\ndef f(x): return x",
    "a default": "def f(x, cache={}):\n    cache[x] = 1\n    return x",
    "a closure": (
        "def make():\n    seen = set()\n    def g(x):\n        seen.add(x)\n        return x\n    return g\nf = make()"
    ),
    "an object": (
        "class F:\n    def __init__(self):\n        self.n = 0\n        self.cache = {}\n"
        "    def __call__(self, x):\n        self.n += 1\n        self.cache[x] = self.late = 1\n        return x\nf = F()"
    ),
    "a class attribute": "class F:\n    cache = {}\ndef f(x):\n    F.cache[x] = 1\n    return x",
    "a random generator": "rng = random.Random()\ndef f(x):\n    rng.random()\n    return x",
    "an object that is a global": (
        "class Cache:\n    def __init__(self):\n        self.kept = {}\n        self.n = 0\n    def put(self, x):\n"
        "        self.kept[x] = 1\n        self.n += 1\nCACHE = Cache()\ndef f(x):\n    CACHE.put(x)\n    return x"
    ),
    "an attribute of a function": "def f(x):\n    f.calls += 1\n    return x\nf.calls = 0",
    "a registry": "made = {}\ndef f(x):\n    made[x] = lambda y: y\n    return x",
    "a numpy generator": "import numpy\nrng = numpy.random.default_rng()\ndef f(x):\n    rng.random()\n    return x",
    "data that are read and then changed": "data = read()\ndef f(x):\n    data.append(x)\n    return x",
}


@pytest.mark.parametrize("kind", STATE)
def test_state_that_calls_leave_behind_does_not_count(load: Callable[..., Any], kind: str) -> None:
    module = load(STATE[kind], ["old"])
    before = fingerprint(module)
    module.f("a")
    module.f("b")
    assert fingerprint(module) == before == fingerprint(load(STATE[kind], ["old"]))


#: Functions that keep their state in a file, which the next process reads at its import.
KEPT = {
    "a list": "kept = read()\ndef f(x): kept.append(x)",
    "an item": "kept = {'names': read()}\ndef f(x): kept[x] = 1",
    "an inner item": "kept = {'names': read()}\ndef f(x): kept['names'].append(x)",
    "an update": "kept = {'names': read()}\nasync def f(x): kept.update(x=1)",
    "a deleted item": "kept = read()\ndef f(x): del kept[0]",
    "an attribute": "class S(BaseModel):\n    names: list[str]\nkept = S(names=read())\ndef f(x): kept.names = [x]",
    "a name set anew": "kept = read()\ndef f(x):\n    global kept\n    kept = [*kept, x]",
    "a used function's": "kept = read()\ndef g(x): kept.append(x)\ndef f(x): return g(x) or kept",
    "an object's": (
        "class Cache:\n    def __init__(self):\n        self.names = read()\n    def put(self, x): self.names.append(x)\n"
        "CACHE = Cache()\ndef f(x): CACHE.put(x)"
    ),
    "a method's": "kept = read()\nclass F:\n    def __call__(self, x): kept.append(x)\nf = F()",
}


@pytest.mark.parametrize("kind", KEPT)
def test_state_that_a_file_keeps_between_processes_does_not_count(load: Callable[..., Any], kind: str) -> None:
    assert fingerprint(load(KEPT[kind], ["old"])) == fingerprint(load(KEPT[kind], ["old", "new"]))


@pytest.mark.parametrize(
    "code", ["def f(x):\n    words = []\n    words.append(x)\n    return words", "def f(words): words.append(1)"]
)
def test_a_functions_own_name_makes_no_state_of_a_global(load: Callable[..., Any], code: str) -> None:
    code = f"words = read()\ndef g(x): return x in words\n{code}"
    assert fingerprint_code(load(code, ["old"]).g) != fingerprint_code(load(code, ["new"]).g)


#: Values that differ in every process, and change no row by themselves.
PER_PROCESS = {
    "a time": "began = time.time()\ndef f(x): return time.time() - began",
    "a dict with a time": "stats = {'began': time.time(), 'rows': 0}\ndef f(x): return stats",
    "a process id": "pid = os.getpid()\ndef f(x): return pid",
    "a temporary folder": "scratch = tempfile.mkdtemp()\ndef f(x): return scratch",
    "the order of a set": "words = list({'a', 'b', 'c', 'd', 'e', 'f'})\ndef f(x): return x in words",
    "a dict out of a set": "words = {w: 1 for w in set('abcdefgh')}\ndef f(x): return x in words",
    "a time in two steps": "t = time.time()\nstats = {'began': t}\ndef f(x): return stats",
    "a number that a function draws": "import uuid\ndef draw(): return uuid.uuid4().hex\nrun = draw()\ndef f(x): return run",
    "an object with a time": (
        "class Stats:\n    def __init__(self):\n        self.began = time.time()\nstats = Stats()\ndef f(x): return stats.began"
    ),
    "the order of a set in two steps": "all = {'a', 'b', 'c', 'd', 'e'}\nwords = list(all)\ndef f(x): return x in words",
    "the order of a set in a text": "word = '|'.join({'a', 'b', 'c', 'd'})\ndef f(x): return x in word",
    "the order of a set of a function": "def make(): return {'a', 'b', 'c', 'd'}\nwords = list(make())\ndef f(x): return words",
    "the order of a set of functions": "def g(x): return 1\ndef h(x): return 2\nall = {g, h}\ndef f(x): return len(all)",
    "the environment": "from os import environ\ndef f(x): return environ['PYTHONHASHSEED']",
    "an object": "class A: pass\na = [A()]\ndef f(x): return a",
}


@pytest.mark.parametrize("kind", PER_PROCESS)
def test_the_fingerprint_is_the_same_in_every_process(load: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    load(PER_PROCESS[kind], ["old"])
    code = (
        "import sys; from pathlib import Path; from chainette.core.usercode.importer import PrivateImporter as P;"
        "from chainette.core.usercode.fingerprint import fingerprint_code; root = Path(sys.argv[1]);"
        "print(fingerprint_code(P('chain', [root]).run_file(root / 'chain.py').f))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "project")],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


#: How code comes to use a function of `helpers.py`.
USING = {
    "an import inside": "def f(x):\n    import helpers\n    return helpers.g(x)",
    "a name imported inside": "def f(x):\n    from helpers import g\n    return g(x)",
    "an import inside of a used function": "def h(x):\n    from helpers import g\n    return g(x)\ndef f(x): return h(x)",
    "an import inside of a package": "def f(x):\n    from package import helpers\n    return helpers.g(x)",
    "a module under another name": "import helpers\ndef f(x):\n    h = helpers\n    return h.g(x)",
    "a name as text": "import helpers\ndef f(x): return getattr(helpers, 'g')(x)",
    "a module that is passed on": "import helpers\ndef h(module, x): return module.g(x)\ndef f(x): return h(helpers, x)",
    "a registry": "import helpers\nALL = {}\nhelpers.fill(ALL)\ndef f(x): return ALL['g'](x)",
    "cases": (
        "import helpers\n@functools.singledispatch\ndef h(x): return x\nh.register(str)(helpers.g)\ndef f(x): return h(x)"
    ),
}


@pytest.mark.parametrize("kind", USING)
def test_code_counts_however_a_function_comes_to_use_it(tmp_path: Path, kind: str) -> None:
    (tmp_path / "project/package").mkdir(parents=True)

    def of(word: str) -> str:
        (tmp_path / "project/chain.py").write_text(HEAD + USING[kind])
        (tmp_path / "project/package/__init__.py").write_text("")
        for folder in (tmp_path / "project", tmp_path / "project/package"):
            (folder / "helpers.py").write_text(f"def g(x): return x + {word!r}\ndef fill(all): all['g'] = g\n")
        return fingerprint(PrivateImporter("chain", [tmp_path / "project"]).run_file(tmp_path / "project/chain.py"))

    assert of("old") == of("old") != of("new")


#: Types in `helpers.py` that hold a function, and those that hold none.
TYPES = """
from typing import Annotated, Literal, NewType
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, TypeAdapter, create_model
from typing_extensions import TypeAliasType
def g(x): return x + LIMIT
Plain = Annotated[int, Field(ge=0)]
Kind = Literal["a", "b"]
After = Annotated[int, AfterValidator(g)]
Before = Annotated[int, BeforeValidator(lambda x: g(x))]
Optional = After | None
Many = list[After]
Named = TypeAliasType("Named", After)
New = NewType("New", After)
Check = AfterValidator(g)
Default = Field(default_factory=lambda: g(1))
Adapter = TypeAdapter(After)
Made = create_model("Made", n=(After, 0))
ALL = {"after": After}
class Late(BaseModel): pass
Late.limit = LIMIT
"""

#: How code comes to use a type of `helpers.py`.
USING_TYPES = {
    **{
        f"a field of {name}": f"from helpers import {name}\nclass Model(BaseModel):\n    n: {name}"
        for name in ("After", "Before", "Optional", "Many", "Named", "New")
    },
    "a quoted type": "from helpers import After\nclass Model(BaseModel):\n    n: 'list[After]'",
    "a quoted type of the same file": "import helpers\nT = list[helpers.After]\nclass Model(BaseModel):\n    n: 'T'",
    "a star": "from helpers import *\nclass Model(BaseModel):\n    n: After",
    "a validator": "from helpers import Check\nclass Model(BaseModel):\n    n: Annotated[int, Check]",
    "a field": "from helpers import Default\nclass Model(BaseModel):\n    n: int = Default",
    "a made model": "from helpers import Made as Model",
    "a type in a dict": "from helpers import ALL\nclass Model(BaseModel):\n    n: ALL['after']",
    "an adapter": "from helpers import Adapter\ndef f(x): return Adapter.validate_python(x)",
    "a type in a function": "from helpers import Many\ndef f(x): return TypeAdapter(Many).validate_python(x)",
    "an attribute set after the class": "from helpers import Late\ndef f(x): return Late.limit",
}


@pytest.fixture
def with_types(tmp_path: Path) -> Callable[[str, int], str]:
    """The fingerprint of code that uses the types, with a number in their module."""

    def fingerprint_with(code: str, limit: int) -> str:
        head = "from typing import Annotated\nfrom pydantic import BaseModel, TypeAdapter\n"
        (tmp_path / "chain.py").write_text(head + code)
        (tmp_path / "helpers.py").write_text(TYPES.replace("LIMIT", str(limit)))
        return fingerprint(PrivateImporter("chain", [tmp_path]).run_file(tmp_path / "chain.py"))

    return fingerprint_with


@pytest.mark.parametrize("kind", USING_TYPES)
def test_the_code_inside_an_imported_type_counts(with_types: Callable[[str, int], str], kind: str) -> None:
    code = USING_TYPES[kind]
    assert with_types(code, 1) == with_types(code, 1) != with_types(code, 2)


@pytest.mark.parametrize(
    ("name", "known"),
    [("Plain", "044e512b72758267"), ("Kind", "0a791b7442b267a2"), ("After", "fa45ddabccec48ad")],
)
def test_fingerprints_of_imported_types_are_the_same_in_every_version(
    with_types: Callable[[str, int], str], name: str, known: str
) -> None:
    """The values were written down under Python 3.11, those without code inside before such code counted."""
    assert with_types(f"from helpers import {name}\nclass Model(BaseModel):\n    n: {name}", 1) == known


def test_functions_in_a_registry_of_the_same_file_count(load: Callable[..., Any]) -> None:
    code = "ALL = {}\ndef known(fn):\n    ALL[fn.__name__] = fn\n    return fn\n"
    code += "@known\ndef g(x): return x + WORD\ndef f(x): return ALL['g'](x)"
    assert fingerprint(load(code.replace("WORD", "'old'"), [])) != fingerprint(load(code.replace("WORD", "'new'"), []))


@pytest.mark.parametrize(
    "code",
    [
        "ROOT = str(HERE)\ndef f(x): return ROOT",
        "DATA = str(HERE.parent / 'data.db')\ndef f(x): return DATA",
        "FILES = [str(file) for file in sorted(HERE.glob('*.json'))]\ndef f(x): return FILES",
    ],
)
def test_a_project_that_moved_keeps_its_fingerprints(load: Callable[..., Any], tmp_path: Path, code: str) -> None:
    before = fingerprint(load(code, ["old"], "a/project"))
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert fingerprint(load(code, ["old"], "b/project")) == before


def test_data_are_told_apart_by_how_they_are_nested(load: Callable[..., Any]) -> None:
    code = "DATA = read()\ndef f(x): return DATA"
    nested: list[Any] = [[["a"], ["b"]], [["a", ["b"]]], [["a", "b"]], ["a", "b"], ["a,b"], []]
    assert len({fingerprint(load(code, data)) for data in nested}) == len(nested)


def test_data_that_hold_themselves_count_by_their_source(load: Callable[..., Any]) -> None:
    code = "DATA = []\nDATA.append(DATA)\ndef f(x): return DATA"
    assert fingerprint(load(code, [])) == fingerprint(load(code, ["a"]))


def test_a_container_that_raises_counts_by_its_source(load: Callable[..., Any]) -> None:
    code = "class L(list):\n    def __iter__(self): raise KeyError('no')\nDATA = L(read())\ndef f(x): return DATA"
    assert fingerprint(load(code, ["a"])) == fingerprint(load(code, ["b"]))

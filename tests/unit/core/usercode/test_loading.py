"""Loading chain files: references, isolation, digests and errors."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chainette.core.chain import Chain
from chainette.core.usercode.loading import LoadedChain, load_chain
from chainette.engine.config import current_registry
from chainette.errors import LoadError

CHAIN = """
from chainette import Chain, apply, register_engine
from models import Item

register_engine("engine", "m", "simulated")

@apply
def work(item: Item) -> list[Item]:
    return [Item(text=item.text + MARK)]

MARK = "!"
chain = Chain(name="{name}", steps=[work])
"""

MODELS = """
from __future__ import annotations
from pydantic import BaseModel

class Item(BaseModel):
    text: str = "{text}"
    later: Later | None = None

class Later(BaseModel):
    n: int
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def project(folder: Path, name: str = "demo", text: str = "") -> Path:
    return write(folder, {"chain.py": CHAIN.replace("{name}", name), "models.py": MODELS.replace("{text}", text)})


def function(loaded: LoadedChain) -> Any:
    return loaded.chain.steps[0].fn  # type: ignore[union-attr]


def model(loaded: LoadedChain) -> Any:
    return loaded.chain.steps[0].output_model  # type: ignore[union-attr]


def failure(reference: str, root: Path) -> str:
    before, path = set(sys.modules), list(sys.path)
    with pytest.raises(LoadError) as caught:
        load_chain(reference, root)
    assert sys.path == path
    assert not {name for name in sys.modules if name.startswith("_chainette")} - before
    return str(caught.value)


# -- references


def test_a_file_with_one_chain_needs_no_name(tmp_path: Path) -> None:
    loaded = load_chain("chain.py", project(tmp_path))
    assert isinstance(loaded.chain, Chain)
    assert loaded.reference == "chain.py:chain"
    assert [file.name for file in loaded.files] == ["chain.py", "models.py"]


def test_a_chain_is_named_by_its_variable_or_by_its_own_name(tmp_path: Path) -> None:
    two = "a = Chain(name='first', steps=[work])\nb = Chain(name='second', steps=[work])\n"
    write(project(tmp_path), {"two.py": CHAIN.replace("{name}", "zero") + two})
    assert load_chain("two.py:a", tmp_path).chain.name == "first"
    by_name = load_chain("two.py:second", tmp_path)
    assert (by_name.chain.name, by_name.reference) == ("second", "two.py:b")


def test_references_are_normalised_to_the_chain_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path / "a" / "b")
    expected = "a/b/chain.py:chain"
    assert load_chain(str(tmp_path / "a/b/chain.py"), tmp_path).reference == expected
    assert load_chain("a/../a/b/chain.py", tmp_path).reference == expected
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert load_chain("chain.py", tmp_path).reference == expected


def test_a_reference_loads_the_same_chain_again(tmp_path: Path) -> None:
    first = load_chain("chain.py", project(tmp_path))
    again = load_chain(first.reference, tmp_path)
    assert (again.reference, again.digest) == (first.reference, first.digest)
    assert again.chain is not first.chain


def test_a_file_outside_of_the_root_is_named_by_its_path_and_keeps_its_digest(tmp_path: Path) -> None:
    outside, root = project(tmp_path / "outside"), tmp_path / "root"
    root.mkdir()
    loaded = load_chain(str(outside / "chain.py"), root)
    assert loaded.reference == f"{(outside / 'chain.py').as_posix()}:chain"
    assert loaded.digest == load_chain("chain.py", outside).digest


def test_a_module_below_the_root_is_named_with_dots(tmp_path: Path) -> None:
    chain = CHAIN.replace("{name}", "x").replace("from models", "from .models")
    write(tmp_path, {"pkg/__init__.py": "", "pkg/sub/chains.py": chain, "pkg/sub/models.py": MODELS})
    loaded = load_chain("pkg.sub.chains:chain", tmp_path)
    assert loaded.reference == "pkg.sub.chains:chain"
    assert [file.relative_to(tmp_path).as_posix() for file in loaded.files] == [
        "pkg/__init__.py",
        "pkg/sub/chains.py",
        "pkg/sub/models.py",
    ]
    assert load_chain("pkg.sub.chains", tmp_path).reference == "pkg.sub.chains:chain"


def test_an_installed_package_can_hold_chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = CHAIN.replace("{name}", "x").replace("from models", "from mychains.models")
    site = write(
        tmp_path / "site",
        {"mychains/__init__.py": "", "mychains/main.py": chain, "mychains/models.py": MODELS, "json.py": "1/0"},
    )
    monkeypatch.syspath_prepend(str(site))
    root = tmp_path / "root"
    root.mkdir()
    loaded = load_chain("mychains.main:chain", root)
    assert [file.relative_to(site).as_posix() for file in loaded.files] == [
        "mychains/__init__.py",
        "mychains/main.py",
        "mychains/models.py",
    ]
    assert "mychains" not in sys.modules


def test_a_chain_that_another_module_declared_gives_way_to_the_files_own(tmp_path: Path) -> None:
    project(tmp_path)
    base = "from chainette import Chain\nfrom chain import chain as base\n"
    write(tmp_path, {"derived.py": base + "derived = Chain(name='derived', steps=base.steps)\n", "same.py": base})
    assert load_chain("derived.py", tmp_path).chain.name == "derived"
    assert load_chain("same.py", tmp_path).reference == "same.py:base"


# -- isolation


def test_two_chains_with_a_sibling_of_one_name_get_their_own(tmp_path: Path) -> None:
    project(tmp_path / "a", text="from a")
    project(tmp_path / "b", text="from b")
    a, b = load_chain("a/chain.py", tmp_path), load_chain("b/chain.py", tmp_path)
    assert (model(a)().text, model(b)().text) == ("from a", "from b")
    assert model(a) is not model(b)
    assert a.digest != b.digest
    assert function(a)(model(a)())[0].text == "from a!"


def test_public_names_and_the_path_are_left_as_they_were(tmp_path: Path) -> None:
    before, path = dict(sys.modules), list(sys.path)
    load_chain("chain.py", project(tmp_path))
    added = {name for name in sys.modules.keys() - before.keys() if not name.startswith("_chainette_")}
    assert not {"models", "chain"} & added
    assert sys.path == path
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_public_module_of_the_same_name_is_neither_used_nor_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = type(sys)("models")
    monkeypatch.setitem(sys.modules, "models", other)
    loaded = load_chain("chain.py", project(tmp_path, text="own"))
    assert model(loaded)().text == "own"
    assert sys.modules["models"] is other


def test_imports_inside_functions_find_the_chains_own_modules_later(tmp_path: Path) -> None:
    body = (
        "from chainette import Chain, apply\nfrom pydantic import BaseModel\n"
        "class Item(BaseModel):\n    text: str\n"
        "@apply\ndef work(item: Item) -> list[Item]:\n    import late\n    from late import WORD\n    import tools.inner as t\n"
        "    return [Item(text=late.WORD + WORD + t.X)]\n"
        "chain = Chain(name='x', steps=[work])\n"
    )
    for name in ("a", "b"):
        write(tmp_path / name, {"chain.py": body, "late.py": f"WORD = {name!r}", "tools/inner.py": f"X = {name!r}"})
    a, b = load_chain("a/chain.py", tmp_path), load_chain("b/chain.py", tmp_path)
    assert [function(one)(None)[0].text for one in (a, b)] == ["aaa", "bbb"]


def test_forward_references_and_pickle_work_after_the_load(tmp_path: Path) -> None:
    item = model(load_chain("chain.py", project(tmp_path)))
    made = item.model_validate_json('{"text": "x", "later": {"n": 3}}')
    assert made.later.n == 3
    assert pickle.loads(pickle.dumps(made)) == made


def test_modules_may_import_each_other_in_a_circle_and_below_the_root(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "chains/chain.py": CHAIN.replace("{name}", "x").replace("from models", "import left\nfrom lib.models"),
            "chains/left.py": "import right\nNAME = 'left'\n",
            "chains/right.py": "import left\ndef name(): return left.NAME\n",
            "lib/models.py": MODELS,
        },
    )
    loaded = load_chain("chains/chain.py", tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in loaded.files] == [
        "chains/chain.py",
        "chains/left.py",
        "chains/right.py",
        "lib/models.py",
    ]


def test_a_data_folder_does_not_hide_an_installed_package(tmp_path: Path) -> None:
    project(tmp_path)
    write(tmp_path, {"yaml/rows.txt": "", "pydantic/__init__.py": "raise RuntimeError", "chainette/__init__.py": "1/0"})
    chain = tmp_path / "chain.py"
    chain.write_text("import yaml\nyaml.safe_load\n" + chain.read_text())
    assert load_chain("chain.py", tmp_path).chain.name == "{name}".replace("{name}", "demo")


def test_every_file_has_its_own_engines(tmp_path: Path) -> None:
    for name, engine_model in (("a", "one"), ("b", "two")):
        project(tmp_path / name)
        chain = tmp_path / name / "chain.py"
        chain.write_text(chain.read_text().replace('"m"', repr(engine_model)))
    a, b = load_chain("a/chain.py", tmp_path), load_chain("b/chain.py", tmp_path)
    assert (a.registry.get("engine").model, b.registry.get("engine").model) == ("one", "two")
    assert a.registry is a.chain.registry
    assert "engine" not in {config.name for config in current_registry()}


def test_an_edited_file_runs_as_edited_even_within_the_same_second(tmp_path: Path) -> None:
    project(tmp_path, text="aaa")
    first = load_chain("chain.py", tmp_path)
    project(tmp_path, text="bbb")
    second = load_chain("chain.py", tmp_path)
    assert (model(first)().text, model(second)().text) == ("aaa", "bbb")
    assert first.digest != second.digest


# -- the digest


def test_the_digest_does_not_depend_on_the_machines_path_or_the_process(tmp_path: Path) -> None:
    first = load_chain("chain.py", project(tmp_path / "one"))
    project(tmp_path / "two")
    code = (
        "import sys; from pathlib import Path; from chainette.core.usercode.loading import load_chain;"
        "print(load_chain('chain.py', Path(sys.argv[1])).digest)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "two")], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert other.stdout.strip() == first.digest


@pytest.mark.parametrize("name", ["prompts/system.txt", "engines.yml", "settings.yaml", "models.py"])
def test_the_digest_covers_files_that_the_chain_reads_while_it_loads(tmp_path: Path, name: str) -> None:
    project(tmp_path)
    chain = tmp_path / "chain.py"
    reads = (
        "from pathlib import Path\nfrom chainette import load_engines\nHERE = Path(__file__).parent\n"
        "PROMPT = (HERE / 'prompts' / 'system.txt').read_text()\nload_engines(HERE / 'settings.yaml')\n"
    )
    chain.write_text(reads + chain.read_text())
    engines = "engines: [{name: other, model: m, backend: simulated}]\n"
    write(tmp_path, {"prompts/system.txt": "Hi", "engines.yml": engines, "settings.yaml": engines, "unread.txt": "x"})
    before = load_chain("chain.py", tmp_path)
    (tmp_path / "unread.txt").write_text("y")
    assert load_chain("chain.py", tmp_path).digest == before.digest
    with (tmp_path / name).open("a") as stream:
        stream.write("\n# edited")
    after = load_chain("chain.py", tmp_path)
    assert after.digest != before.digest
    assert tmp_path / name in after.files


def test_a_prompt_file_is_part_of_the_code(tmp_path: Path) -> None:
    project(tmp_path)
    chain = tmp_path / "chain.py"
    step = "Step(id='ask', output_model=Item, engine_name='engine', user_prompt=Path('prompts/ask.txt'))"
    head = "from pathlib import Path\nfrom chainette import Step\n"
    chain.write_text(head + chain.read_text().replace("[work]", f"[work, {step}]"))
    write(tmp_path, {"prompts/ask.txt": "Name in: {{ text }}"})
    before = load_chain("chain.py", tmp_path)
    assert before.chain.steps[1].user_prompt == "Name in: {{ text }}"  # type: ignore[union-attr]
    assert tmp_path / "prompts" / "ask.txt" in before.files
    write(tmp_path, {"prompts/ask.txt": "Names in: {{ text }}"})
    assert load_chain("chain.py", tmp_path).digest != before.digest


def test_hidden_files_and_files_outside_of_the_root_are_not_covered(tmp_path: Path) -> None:
    root = project(tmp_path / "root")
    write(tmp_path, {"root/.env": "A=1", "outside.txt": "x"})
    chain = root / "chain.py"
    reads = f"open({str(root / '.env')!r}).close()\nopen({str(tmp_path / 'outside.txt')!r}).close()\n"
    chain.write_text(reads + chain.read_text())
    assert [file.name for file in load_chain("chain.py", root).files] == ["chain.py", "models.py"]


# -- errors


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    project(tmp_path / "demo")
    message = failure("demo/chian.py", tmp_path)
    assert message == f"demo/chian.py does not exist (looked below {tmp_path}); did you mean 'demo/chain.py'?"


def test_a_directory_is_refused_with_the_files_in_it(tmp_path: Path) -> None:
    project(tmp_path / "demo")
    expected = "demo/ is a directory; name the chain's file, such as demo/chain.py or demo/models.py"
    assert failure("demo/", tmp_path) == expected


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("chain.yml", "chain.yml: is empty"),
        ("notes.txt", "notes.txt is not a chain; expected chain.py, chain.py:name, chain.yml or package.module:name"),
        ("chain.py:", "ends in ':'"),
        ("no_such_package.chains:x", "no module 'no_such_package' below"),
    ],
)
def test_an_invalid_reference_to_a_chain_is_refused_with_the_valid_forms(tmp_path: Path, reference: str, message: str) -> None:
    write(project(tmp_path), {"chain.yml": "", "notes.txt": ""})
    assert message in failure(reference, tmp_path)


def test_two_chains_in_a_file_are_listed_with_the_references_to_use(tmp_path: Path) -> None:
    write(project(tmp_path), {"two.py": CHAIN + "other = Chain(name='other', steps=[work])\nalias = other\n"})
    write(tmp_path, {"two.py": (tmp_path / "two.py").read_text().replace("{name}", "x")})
    assert failure("two.py", tmp_path) == "two.py has 2 chains; say which: two.py:chain, two.py:other"


def test_two_chains_of_one_name_are_told_apart_by_variable(tmp_path: Path) -> None:
    write(project(tmp_path), {"two.py": CHAIN.replace("{name}", "x") + "other = Chain(name='x', steps=[work])\n"})
    assert failure("two.py:x", tmp_path) == "two.py has 2 chains named 'x'; say which: two.py:chain, two.py:other"


def test_a_file_without_a_chain_is_refused(tmp_path: Path) -> None:
    project(tmp_path)
    assert failure("models.py", tmp_path).startswith("models.py declares no Chain; it needs one at module level")
    assert failure("models.py:x", tmp_path) == "models.py has no chain 'x'; it declares no Chain"


def test_a_name_that_is_missing_or_no_chain_lists_the_chains(tmp_path: Path) -> None:
    project(tmp_path)
    assert failure("chain.py:nope", tmp_path) == "chain.py has no chain 'nope'; it has: chain.py:chain"
    assert failure("chain.py:work", tmp_path) == "chain.py: 'work' is a ApplyNode, not a Chain; it has: chain.py:chain"


def test_an_error_on_import_is_told_with_the_users_own_line(tmp_path: Path) -> None:
    write(
        tmp_path, {"chain.py": "import helper\nhelper.go()\n", "helper.py": "import json\n\ndef go():\n    json.loads('{')\n"}
    )
    message = failure("chain.py", tmp_path)
    assert message.startswith(f"{tmp_path / 'helper.py'}:4: JSONDecodeError: Expecting property name")
    assert "Traceback" not in message


def test_a_syntax_error_is_told_with_file_and_line(tmp_path: Path) -> None:
    write(tmp_path, {"chain.py": "import helper\n", "helper.py": "x = 1\ndef go(:\n    pass\n"})
    assert failure("chain.py", tmp_path) == f"{tmp_path / 'helper.py'}:2: syntax error: invalid syntax"


def test_a_file_that_is_not_utf8_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "chain.py").write_bytes(b"x = '\xff\xfe'\n")
    message = failure("chain.py", tmp_path)
    assert message.startswith(f"{tmp_path / 'chain.py'}:1: syntax error: ")
    assert "utf-8" in message


def test_missing_modules_and_names_are_told_without_private_names(tmp_path: Path) -> None:
    write(
        project(tmp_path),
        {"a.py": "import nowhere.at_all", "b.py": "\nfrom models import Nothing", "c.py": "import models.sub"},
    )
    assert failure("a.py", tmp_path).startswith(f"{tmp_path / 'a.py'}:1: ModuleNotFoundError: No module named 'nowhere'")
    assert failure("b.py", tmp_path).startswith(
        f"{tmp_path / 'b.py'}:2: ImportError: cannot import name 'Nothing' from 'models'"
    )
    assert "No module named 'models.sub'; 'models' is not a package" in failure("c.py", tmp_path)


def test_a_declaration_error_keeps_its_own_place(tmp_path: Path) -> None:
    write(tmp_path, {"chain.py": "from chainette import Chain\n\nchain = Chain(name='x', steps=[])\n"})
    message = failure("chain.py", tmp_path)
    assert message.startswith(f"{tmp_path / 'chain.py'}:3: 'x': steps must be a non-empty list")
    assert message.count("chain.py") == 1


def test_an_engine_error_gets_the_line_that_caused_it(tmp_path: Path) -> None:
    write(tmp_path, {"chain.py": "from chainette import register_engine\nregister_engine('e', 'm', 'vlm')\n"})
    assert failure("chain.py", tmp_path).startswith(f"{tmp_path / 'chain.py'}:2: engine 'e': unknown backend 'vlm'")


def test_a_file_that_ends_the_program_does_not_end_ours(tmp_path: Path) -> None:
    write(tmp_path, {"chain.py": "import sys\nsys.exit('bye')\n"})
    expected = f"{tmp_path / 'chain.py'}:2: the chain's file ended the program (SystemExit: bye)"
    assert failure("chain.py", tmp_path) == expected

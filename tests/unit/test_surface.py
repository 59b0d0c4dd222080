"""The surface of the package: the names of `import chainette`, and every module's docstring."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

import chainette

PACKAGE = Path(chainette.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))

#: SEMANTICS, Declaring a chain.
PUBLIC = [
    "ApplyNode",
    "AsyncExecutor",
    "BatchApply",
    "Branch",
    "Chain",
    "ChainetteError",
    "Engine",
    "EngineConfig",
    "Executor",
    "JoinBranch",
    "Message",
    "Loop",
    "Node",
    "Route",
    "Row",
    "RunOptions",
    "RunResult",
    "SamplingParams",
    "Step",
    "apply",
    "get_engine_config",
    "load_engines",
    "open_run",
    "register_engine",
    "release_engine",
]


def named(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def declared(path: Path) -> list[str] | None:
    """The `__all__` of a module; None where it has none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
        if target is not None and ast.unparse(target) == "__all__":
            names: list[str] = ast.literal_eval(ast.unparse(node).partition("=")[2].strip())
            return names
    return None


def test_the_public_names_are_those_that_are_promised_and_sorted() -> None:
    assert chainette.__all__ == sorted(chainette.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_imported_when_it_is_used_and_is_what_it_says(name: str) -> None:
    found = getattr(chainette, name)
    assert found.__name__ == name
    assert found.__module__.startswith("chainette.")
    assert (found.__doc__ or "").strip()


def test_a_type_checker_sees_the_names_that_are_imported_lazily() -> None:
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    (guarded,) = (node for node in body if isinstance(node, ast.If))
    seen = [alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(seen) == sorted(PUBLIC)


def test_dir_lists_the_public_names_and_the_version() -> None:
    assert chainette.__version__ == metadata.version("chainette")
    assert [name for name in dir(chainette) if not name.startswith("__")] == sorted(PUBLIC)
    assert {"__version__", "__all__", "__doc__"} <= {*dir(chainette)}


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Chian'"):
        _ = chainette.Chian


def test_a_star_import_brings_every_public_name_and_no_other() -> None:
    program = "from chainette import *; print(*sorted(name for name in globals() if not name.startswith('__')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stdout.split() == sorted(PUBLIC)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_says_first_what_it_is_for(path: Path) -> None:
    assert (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=named)
def test_a_module_lists_its_names_sorted_and_has_them(path: Path) -> None:
    names = declared(path)
    assert names is not None
    assert names == sorted(set(names), key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    module = import_module(".".join(["chainette", *path.relative_to(PACKAGE).with_suffix("").parts]))
    assert all(hasattr(module, name) for name in names)


def test_a_package_inside_re_exports_nothing() -> None:
    for path in PACKAGE.rglob("*/__init__.py"):
        assert len(ast.parse(path.read_text()).body) == 1, path


def test_the_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()

"""Fingerprints of the user's code: equal where it computes the same, different where it was changed.

A fingerprint is a hash of syntax trees without positions, comments, docstrings and file names, of everything that
the code refers to by global name, and of the data among it (`core.data_text`), also if an import read them from a file.
It is the same in every process. Not followed: imports inside functions, attributes looked up by string, and the insides
of installed packages.
"""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from enum import Enum
from types import CodeType, FunctionType, ModuleType
from typing import Any, get_args

from pydantic import BaseModel

from chainette.core.usercode.data_text import (
    attributes_at_first,
    differs_by_process,
    from_a_set,
    is_constant,
    names_of_state,
    text_at_first,
    types_within,
)
from chainette.core.usercode.importer import public_name
from chainette.core.usercode.source import is_library, source_tree

__all__ = ["fingerprint_code", "fingerprint_model"]

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def fingerprint_code(fn: Callable[..., Any]) -> str:
    """16 hex digits that change when the function, or user code that it uses, changes.

    Without source (a function typed into a prompt) it is only as good as the qualified name.
    """
    trace = _Trace(fn)
    trace.add(fn)
    return trace.digest()


def fingerprint_model(model: type[BaseModel]) -> str:
    """16 hex digits that change when the model's JSON Schema, validators or methods change, nested models included."""
    trace = _Trace(model)
    trace.note("schema", _schema(model))
    trace.add(model)
    return trace.digest()


def _schema(model: type[BaseModel]) -> str:
    try:
        return public_name(json.dumps(model.model_json_schema(), sort_keys=True))
    except Exception:  # the plan's check reports it; here any text will do
        return repr(sorted(model.model_fields))


class _Trace:
    """Collects what a definition consists of, each part once, in an order that depends on the code alone."""

    def __init__(self, root: Any) -> None:
        self._lines: list[str] = []
        self._seen: dict[int, Any] = {}
        self._assigned: set[str] = set()
        #: (module, node): attributes of modules that were followed for a node.
        self._modules: set[tuple[int, ast.AST]] = set()
        package = _module_name(root).partition(".")[0]
        #: The top package of the root: its own code is user code, wherever it is installed.
        self._package = "" if package in sys.stdlib_module_names or package == "chainette" else package

    def digest(self) -> str:
        return hashlib.sha256("\n".join(self._lines).encode()).hexdigest()[:16]

    def note(self, label: str, text: str) -> None:
        self._lines.append(f"{label}: {text}")

    def add(self, value: Any) -> None:
        """Takes in a value and what it refers to."""
        text = text_at_first(value)
        if text is not None:
            self.note("value", text)
            for kind in types_within(value):
                self.add(kind)
        elif id(value) not in self._seen:
            self._seen[id(value)] = value
            self._add_object(value)

    def _add_object(self, value: Any) -> None:
        if isinstance(value, functools.partial):
            self._add_all(
                "partial", [value.func, *value.args, *(part for item in sorted(value.keywords.items()) for part in item)]
            )
        elif inspect.ismethod(value):
            self._add_all("method", [value.__func__, value.__self__])
        elif isinstance(value, (staticmethod, classmethod)):
            self.add(value.__func__)
        elif isinstance(value, FunctionType):
            self._add_function(value)
        elif isinstance(value, type):
            self._add_class(value)
        elif value is os.environ:
            self.note("library", "os.environ")
        elif isinstance(value, (list, tuple)):
            self._add_all("items", value)
        elif isinstance(value, Set):
            self._add_all("items", sorted(value, key=_qualified))
        elif isinstance(value, Mapping):
            self._add_all("entries", [part for item in value.items() for part in item])
        elif hasattr(value, "__wrapped__"):
            self.add(value.__wrapped__)
        elif inspect.isroutine(value):
            self.note("library", _qualified(value))
        else:
            self._add_instance(value)

    def _add_all(self, label: str, values: Iterable[Any]) -> None:
        self.note(label, "")
        for value in values:
            self.add(value)

    def _add_function(self, fn: FunctionType) -> None:
        if not self._is_users(fn):
            self.note("library", _qualified(fn))
            return
        tree = source_tree(fn.__code__.co_filename, fn.__globals__)
        node = _function_node(tree, fn.__code__) if tree is not None else None
        if node is None:
            self.note("no source", fn.__qualname__)
            return
        self.note(fn.__name__, _dump(node))
        for cell in fn.__closure__ or ():
            self.add(_contents(cell))
        for default in [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]:
            self.add(default)
        names = _global_names(fn.__code__) | _names_outside_body(node)
        self._follow(names, node, fn.__globals__)
        if hasattr(fn, "__wrapped__"):
            self.add(fn.__wrapped__)

    def _add_class(self, cls: type) -> None:
        if not self._is_users(cls):
            self.note("library", _qualified(cls))
            return
        module = _globals_of(cls)
        tree = source_tree(str(module.get("__file__", "")), module)
        node = _class_node(tree, cls.__qualname__) if tree is not None else None
        if node is None:
            self.note("no source", cls.__qualname__)
        else:
            self.note(cls.__name__, _dump(node))
            self._follow({name.id for name in ast.walk(node) if isinstance(name, ast.Name)}, node, module)
            self._add_class_data(cls, node)
        if issubclass(cls, Enum):
            self._add_all("members", cls)
        for base in cls.__bases__:
            self.add(base)
        for nested in _models_inside(cls):
            self.add(nested)

    def _add_class_data(self, cls: type, node: ast.ClassDef) -> None:
        """Data that the body of a class sets: `labels = json.loads(...)`."""
        for statement in node.body:
            for name in sorted(_targets(statement) & vars(cls).keys()):
                text = None if differs_by_process([statement]) else text_at_first(vars(cls)[name])
                if text is not None:
                    self.note(name, text)

    def _add_instance(self, value: Any) -> None:
        """An object: its class, and what it was set up with."""
        self.add(type(value))
        if self._is_users(type(value)):
            for name, attribute in attributes_at_first(value):
                self.note("attribute", name)
                self.add(attribute)

    def _follow(self, names: Set[str], node: ast.AST, module: Mapping[str, Any]) -> None:
        """The globals behind names, if they are user code or data."""
        for name in sorted(names & module.keys()):
            value = module[name]
            if isinstance(value, ModuleType):
                self._follow_module(name, value, node)
            elif not name.startswith("__"):
                self.note("name", name)
                self._add_global(name, value, module)

    def _add_global(self, name: str, value: Any, module: Mapping[str, Any]) -> None:
        """Data count by their value after the import; state, and objects that may hold some, by their source."""
        if isinstance(value, type) or inspect.isroutine(value) or type(value).__module__.startswith("chainette."):
            self.add(value)
            return
        file = str(module.get("__file__", ""))
        tree = source_tree(file, module)
        statements = _assignments(tree, name) if tree is not None else []
        is_state = tree is not None and name in names_of_state(tree)
        if not is_state and not differs_by_process(statements):
            text = text_at_first(value, ordered=not from_a_set(statements), file=file)
            self.note("value", text or "")
            if text is not None and is_constant(value):
                return
        if not self._add_assignments(statements, module):
            self.add(value)

    def _add_assignments(self, statements: Iterable[ast.AST], module: Mapping[str, Any]) -> bool:
        """The statements at the top of a module that set a name; False if there are none."""
        for statement in statements:
            text = _dump(statement)
            if text not in self._assigned:
                self._assigned.add(text)
                self.note("set", text)
                self._follow({part.id for part in ast.walk(statement) if isinstance(part, ast.Name)}, statement, module)
        return bool(statements)

    def _follow_module(self, name: str, module: ModuleType, node: ast.AST) -> None:
        """`helpers.f`: what the code takes from a module of the user's."""
        if not self._is_users(module) or (id(module), node) in self._modules:
            return
        self._modules.add((id(module), node))
        used = {
            part.attr
            for part in ast.walk(node)
            if isinstance(part, ast.Attribute) and name in (getattr(part.value, "id", None), getattr(part.value, "attr", None))
        }
        self._follow(used, node, vars(module))

    def _is_users(self, thing: Any) -> bool:
        name = _module_name(thing)
        if not name or name == "builtins":
            return False
        if self._package and name.partition(".")[0] == self._package:
            return True
        if isinstance(thing, FunctionType):
            return not is_library(thing.__code__.co_filename)
        file = getattr(thing if isinstance(thing, ModuleType) else sys.modules.get(name), "__file__", None)
        return file is not None and not is_library(file)


def _module_name(thing: Any) -> str:
    return str(thing.__name__ if isinstance(thing, ModuleType) else getattr(inspect.unwrap(thing), "__module__", "") or "")


def _qualified(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _globals_of(cls: type) -> Mapping[str, Any]:
    """The globals of the module that made a class, also where the module is not importable any more."""
    for member in vars(cls).values():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(function, FunctionType) and function.__module__ == cls.__module__:
            return function.__globals__
    module = sys.modules.get(cls.__module__)
    return vars(module) if module is not None else {}


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _models_inside(cls: type) -> Iterator[type]:
    if issubclass(cls, BaseModel):
        for _, field in sorted(cls.model_fields.items()):
            yield from _classes_in(field.annotation)


def _classes_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and issubclass(annotation, (BaseModel, Enum)):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes_in(argument)


# -- syntax trees


def _function_node(tree: ast.Module, code: CodeType) -> ast.AST | None:
    """The node that `code` was compiled from."""
    if code.co_name == "<lambda>":
        return _lambda_node(tree, code)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == code.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
    return None


def _lambda_node(tree: ast.Module, code: CodeType) -> ast.AST | None:
    """The innermost lambda whose body holds every position of `code`; several may share a line."""
    spans = [(start, left, end, right) for start, end, left, right in code.co_positions() if right]
    fitting = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Lambda)
        and node.lineno == code.co_firstlineno
        and all(_inside(span, node.body) for span in spans)
    ]
    return min(fitting, key=lambda node: (node.body.end_lineno or 0, -node.body.col_offset), default=None)


def _inside(span: tuple[int | None, int | None, int | None, int | None], body: ast.expr) -> bool:
    start, left, end, right = (value or 0 for value in span)
    return (body.lineno, body.col_offset) <= (start, left) and (end, right) <= (body.end_lineno or 0, body.end_col_offset or 0)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below a node that is not inside a function or class of its own."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, _DEFINITIONS):
            yield from _statements(child)


def _class_node(tree: ast.AST, qualname: str) -> ast.ClassDef | None:
    """The class of that name; where it is defined twice, the last."""
    head, _, rest = qualname.replace(".<locals>", "").partition(".")
    found = [node for node in _statements(tree) if isinstance(node, _DEFINITIONS) and node.name == head]
    for node in reversed(found):
        inner = _class_node(node, rest) if rest else node
        if isinstance(inner, ast.ClassDef):
            return inner
    return None


def _assignments(tree: ast.Module, name: str) -> list[ast.AST]:
    return [node for node in _statements(tree) if name in _targets(node)]


def _targets(statement: ast.AST) -> set[str]:
    """The names that an assignment sets."""
    if not isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        return set()
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def _global_names(code: CodeType) -> set[str]:
    """Globals that the code and the functions inside it load."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _global_names(constant)
    return names


def _names_outside_body(node: ast.AST) -> set[str]:
    """Names in decorators, which run where the function is made."""
    parts = getattr(node, "decorator_list", [])
    return {name.id for part in parts for name in ast.walk(part) if isinstance(name, ast.Name)}


def _dump(node: Any) -> str:
    """A tree as text without positions, docstrings and empty fields: the same for every version of Python."""
    if isinstance(node, list):
        return "[" + ",".join(map(_dump, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, []) and name != "kind"]
    inner = ",".join(f"{name}={_dump(_without_docstring(node) if name == 'body' else value)}" for name, value in fields)
    return f"{type(node).__name__}({inner})"


def _without_docstring(node: Any) -> Any:
    if isinstance(node, _DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
        return node.body[1:]
    return node.body

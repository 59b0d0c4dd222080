"""Fingerprints of the user's code, which change whenever the code may compute something else.

A fingerprint is a hash of syntax trees without positions, comments, docstrings and file names. It covers everything
that the code refers to by global name, including data (`data_text.py`, `object_text.py`), even if an import read them
from a file. It is the same in every process. A module that a function imports when it is called is covered as a whole,
by its source. Installed packages are not covered.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from enum import Enum
from types import FunctionType, ModuleType
from typing import Annotated, Any, get_args

from pydantic import BaseModel

from chainette.core.usercode.data_text import (
    attributes_at_first,
    code_at_first,
    instance_attributes,
    is_constant,
    parts_of_type,
    text_at_first,
    types_within,
)
from chainette.core.usercode.importer import public_name
from chainette.core.usercode.lazy_imports import files_imported
from chainette.core.usercode.object_text import Counted, held_at_first, same_name
from chainette.core.usercode.source import is_library, source_tree
from chainette.core.usercode.syntax import (
    assignments,
    attributes_set,
    class_node,
    code_text,
    dump,
    function_node,
    global_names,
    is_passed_on,
    names_outside_body,
    quoted_names,
    targets,
)
from chainette.core.usercode.volatile_data import differs_by_process, from_a_set, names_of_own_state, names_of_state, origins_of
from chainette.utils.json_schema import json_schema_of

__all__ = ["fingerprint_code", "fingerprint_model"]

#: Packages whose objects describe types.
_OF_TYPES = frozenset({"annotated_types", "pydantic", "types", "typing", "typing_extensions"})


def fingerprint_code(fn: Callable[..., Any]) -> str:
    """16 hex digits that change when the function, or user code that it uses, changes.

    For a function without source (typed into a prompt), they depend only on the qualified name.
    """
    trace = _Trace(fn)
    trace.add(fn)
    return trace.digest()


def fingerprint_model(model: type[BaseModel]) -> str:
    """16 hex digits that change when the JSON Schema, validators or methods of the model, or of a nested one, change."""
    trace = _Trace(model)
    trace.note("schema", _schema(model))
    trace.add(model)
    return trace.digest()


def _schema(model: type[BaseModel]) -> str:
    try:
        return public_name(json.dumps(json_schema_of(model), sort_keys=True))
    except Exception:  # the check of the plan reports it, so any text will do
        return repr(sorted(model.model_fields))


class _Trace:
    """Collects the parts of a definition, each once, in an order that depends only on the code."""

    def __init__(self, root: Any) -> None:
        self._lines: list[str] = []
        self._seen: dict[int, Any] = {}
        self._assigned: set[str] = set()
        #: (module, node): the modules whose attributes were followed for a node.
        self._modules: set[tuple[int, ast.AST]] = set()
        #: Types of libraries, models without source and objects of pydantic: the user's code inside is added last.
        self._types: list[Any] = []
        package = _module_name(root).partition(".")[0]
        #: The top-level package of the root: its code is user code, even if the package is installed.
        self._package = "" if package in {*sys.stdlib_module_names, "chainette", "pydantic"} else package
        self._counted = Counted(self._package, self._attributes)

    def digest(self) -> str:
        for described in self._types:  # the list may grow meanwhile
            self._add_inside_type(described)
        self._types.clear()
        return hashlib.sha256("\n".join(self._lines).encode()).hexdigest()[:16]

    def note(self, label: str, text: str) -> None:
        self._lines.append(f"{label}: {text}")

    def add(self, value: Any) -> None:
        """Adds a value and everything it refers to."""
        text = text_at_first(value)
        if text is not None:
            self.note("value", text)
            for kind in types_within(value):
                self.add(kind)
        elif id(value) not in self._seen:
            self._seen[id(value)] = value
            self._add_object(value)

    def _add_object(self, value: Any) -> None:
        if value is Annotated:  # a class before Python 3.13, and an object since
            self.note("library", "typing.Annotated")
        elif isinstance(value, functools.partial):
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
            self.note("of", held_at_first(value, self._counted))
        else:
            self._add_instance(value)

    def _add_all(self, label: str, values: Iterable[Any]) -> None:
        self.note(label, "")
        for value in values:
            self.add(value)

    def _add_function(self, fn: FunctionType) -> None:
        if not self._is_users(fn):
            self._add_library_function(fn)
            return
        tree = source_tree(fn.__code__.co_filename, fn.__globals__)
        node = function_node(tree, fn.__code__) if tree is not None else None
        if node is None:
            self.note("no source", fn.__qualname__)
            return
        self.note(fn.__name__, dump(node))
        for cell in fn.__closure__ or ():
            self.add(_contents(cell))
        for default in [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]:
            self.add(default)
        names = global_names(fn.__code__) | names_outside_body(node)
        self._follow(names, node, fn.__globals__)
        self._add_imports(node, fn.__globals__)
        self._add_attached(fn)

    def _add_imports(self, node: ast.AST, module: Mapping[str, Any]) -> None:
        """Adds the whole current source of modules that a function imports when it is called."""
        for name, file in files_imported(node, module).items():
            tree = source_tree(file, {})
            self.note("imports", f"{name} {dump(tree) if tree is not None else ''}")

    def _add_attached(self, fn: FunctionType) -> None:
        """Adds a function's attributes, such as `f.limit = 3` or the cases of `singledispatch`."""
        for name, value in attributes_at_first(fn):
            self.note("attribute", name)
            self.add(value)

    def _add_library_function(self, fn: FunctionType) -> None:
        """Adds a package's function by its name, and the user's functions that it wraps (as a decorator does)."""
        self.note("library", _qualified(fn))
        if fn.__code__.co_filename.startswith("<"):
            self.note("code", code_text(fn.__code__))
        if hasattr(fn, "__wrapped__"):
            self._add_attached(fn)

    def _add_class(self, cls: type) -> None:
        if not self._is_users(cls):
            self.note("library", _qualified(cls))
            return
        module, node = _globals_of(cls), _node_of(cls)
        if node is None:
            self.note("no source", cls.__qualname__)
            self._types.append(cls)
        else:
            self.note(cls.__name__, dump(node))
            self._follow({name.id for name in ast.walk(node) if isinstance(name, ast.Name)}, node, module)
            self._add_class_data(cls, node)
            self._add_set_later(cls, module)
            quoted = [module[name] for name in sorted(quoted_names(node) & module.keys())]
            self._types += [value for value in quoted if type(value).__module__.partition(".")[0] in _OF_TYPES]
        if issubclass(cls, Enum):
            self._add_all("members", cls)
        for base in cls.__bases__:
            self.add(base)
        for nested in _models_inside(cls):
            self.add(nested)

    def _add_class_data(self, cls: type, node: ast.ClassDef) -> None:
        """Adds data that the body of a class sets, such as `labels = json.loads(...)`."""
        for statement in node.body:
            for name in sorted(targets(statement) & vars(cls).keys()):
                text = None if differs_by_process([statement]) else text_at_first(vars(cls)[name])
                if text is not None:
                    self.note(name, text)

    def _add_set_later(self, cls: type, module: Mapping[str, Any]) -> None:
        """Adds module-level statements that set attributes of a class, such as `Item.limit = 3`."""
        tree = source_tree(str(module.get("__file__", "")), module)
        if tree is not None:
            self._add_assignments(attributes_set(tree, cls.__qualname__), module)

    def _add_instance(self, value: Any) -> None:
        """Adds an object: its class, and its initial attributes."""
        self.add(type(value))
        if not self._is_users(type(value)):
            self.note("holds", held_at_first(value, self._counted))
            self._types.append(value)
            return
        for name, attribute in attributes_at_first(value):
            self.note("attribute", name)
            self.add(attribute)

    def _add_inside_type(self, described: Any) -> None:
        """Adds validators and other code of the user inside a type, by the statements that give the type its name."""
        inside = _own_parts(described) if isinstance(described, type) else described
        try:
            code = [part for part in parts_of_type(inside) if self._is_code(part)]
        except Exception:  # foreign objects may raise anything on access
            return
        if code and not any(self._add_assignments(*found) for found in self._statements_of(described)):
            self._add_all("inside", code)

    def _is_code(self, part: Any) -> bool:
        """Whether a part of a type is code of the user; classes that were added already do not count."""
        if inspect.ismethod(part):
            return self._is_code(part.__self__)
        if isinstance(part, type):
            return self._is_users(part) and id(part) not in self._seen
        return not is_constant(part) and self._is_users(part if inspect.isroutine(part) else type(part))

    def _statements_of(self, value: Any) -> Iterator[tuple[list[ast.AST], Mapping[str, Any]]]:
        """The module-level statements of the user that set a name to this very object, with their module."""
        for module in [*sys.modules.values()]:
            names = [name for name, held in vars(module).items() if held is value] if isinstance(module, ModuleType) else []
            if names and self._is_users(module):
                tree = source_tree(str(vars(module).get("__file__", "")), vars(module))
                yield from ((assignments(tree, name), vars(module)) for name in names if tree is not None)

    def _attributes(self, value: Any) -> Mapping[str, Any] | None:
        """The attributes of a user's object that its methods do not change and that do not depend on the process."""
        if not self._is_users(type(value)):
            return None
        kinds = [kind for kind in type(value).__mro__ if self._is_users(kind)]
        nodes = [node for kind in kinds if (node := _node_of(kind)) is not None]
        left_out = {name for node in nodes for name in names_of_own_state(node)}
        return {name: attribute for name, attribute in instance_attributes(value).items() if name not in left_out}

    def _follow(self, names: Set[str], node: ast.AST, module: Mapping[str, Any]) -> None:
        """Adds the globals of these names, if they are user code or data."""
        for name in sorted(names & module.keys()):
            value = module[name]
            if isinstance(value, ModuleType):
                self._follow_module(name, value, node)
            elif not name.startswith("__"):
                self.note("name", name)
                self._add_global(name, value, module)

    def _add_global(self, name: str, value: Any, module: Mapping[str, Any]) -> None:
        """Adds data by its value after the import; adds state, and objects that may hold state, by source."""
        if (
            isinstance(value, type)
            or inspect.isroutine(value)
            or value is Annotated
            or type(value).__module__.startswith("chainette.")
        ):
            self.add(value)
            return
        file = str(module.get("__file__", ""))
        tree = source_tree(file, module)
        statements = assignments(tree, name) if tree is not None else []
        is_state = tree is not None and name in names_of_state(tree)
        origins = origins_of(tree, statements) if tree is not None else []
        for code in code_at_first(value):
            self.add(code)
        if not is_state and not differs_by_process(origins):
            ordered = not from_a_set(origins)
            text = text_at_first(value, ordered=ordered, file=file)
            self.note("value", text or (held_at_first(value, self._counted, file) if ordered else ""))
            if text is not None and is_constant(value):
                return
        if not self._add_assignments(statements, module):
            self.add(value)

    def _add_assignments(self, statements: Iterable[ast.AST], module: Mapping[str, Any]) -> bool:
        """Adds the module-level statements that set a name; False if there are none."""
        for statement in statements:
            text = dump(statement)
            if text not in self._assigned:
                self._assigned.add(text)
                self.note("set", text)
                self._follow({part.id for part in ast.walk(statement) if isinstance(part, ast.Name)}, statement, module)
        return bool(statements)

    def _follow_module(self, name: str, module: ModuleType, node: ast.AST) -> None:
        """Adds the parts of a user's module that the code uses, such as `helpers.f`."""
        if not self._is_users(module) or (id(module), node) in self._modules:
            return
        self._modules.add((id(module), node))
        used = {
            part.attr
            for part in ast.walk(node)
            if isinstance(part, ast.Attribute) and name in (getattr(part.value, "id", None), getattr(part.value, "attr", None))
        }
        if is_passed_on(node, name):
            used = {
                key for key, value in vars(module).items() if not key.startswith("__") and not isinstance(value, ModuleType)
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
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    return f"{getattr(thing, '__module__', '')}.{same_name(name)}"


def _globals_of(cls: type) -> Mapping[str, Any]:
    """The globals of the module that defined a class, even if it can no longer be imported."""
    for member in vars(cls).values():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(function, FunctionType) and function.__module__ == cls.__module__:
            return function.__globals__
    module = sys.modules.get(cls.__module__)
    return vars(module) if module is not None else {}


def _node_of(cls: type) -> ast.ClassDef | None:
    module = _globals_of(cls)
    tree = source_tree(str(module.get("__file__", "")), module)
    return class_node(tree, cls.__qualname__) if tree is not None else None


def _own_parts(cls: type) -> list[Any]:
    """The fields and methods of a model, without those that it inherits."""
    if not issubclass(cls, BaseModel):
        return []
    fields = [field for name, field in cls.model_fields.items() if name in inspect.get_annotations(cls)]
    return [*fields, *(part for part in vars(cls).values() if isinstance(part, (FunctionType, staticmethod, classmethod)))]


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

"""The jinja2 environment: sandboxed, strict about missing names, and JSON for everything but text.

The only file that sets up jinja2. It is imported when the first template is compiled, because importing
jinja2 costs a tenth of the start-up budget. Nothing in it is random: a template gives the same text for
the same values.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Iterator, Mapping, Set
from enum import Enum
from typing import Any

from jinja2 import StrictUndefined, TemplateRuntimeError, TemplateSyntaxError, Undefined, meta, nodes
from jinja2 import Template as JinjaTemplate
from jinja2.sandbox import SandboxedEnvironment
from jinja2.utils import missing
from jinja2.visitor import NodeTransformer
from pydantic import BaseModel
from pydantic_core import to_json

from chainette.utils.argument_advice import nearest

__all__ = ["as_text", "assigned", "compile_tree", "defined", "environment", "lone_expression", "names_of", "parse"]

#: Types that the sandbox need not check.
_PLAIN = frozenset({str, int, float, bool, type(None)})

#: Filters that first turn their arguments into text.
_TEXT_FILTERS = frozenset(
    {"capitalize", "center", "e", "escape", "forceescape", "indent", "lower", "replace", "striptags", "title", "trim"}
    | {"truncate", "upper", "urlencode", "urlize", "wordcount", "wordwrap"}
)

_LOADS = {"Include": "include", "Import": "import", "FromImport": "from ... import", "Extends": "extends"}


def as_text(value: Any) -> Any:
    """The text that `{{ value }}` prints.

    Text and numbers stay as they are; an enum becomes its value, a model or a collection JSON, None
    `null`, True `true`, as inside that JSON.

    Raises:
        TemplateRuntimeError: the value is a method that was not called.
    """
    kind = type(value)
    if kind is str or kind is int or kind is float:
        return value
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if isinstance(value, Enum):
        return as_text(value.value)
    if isinstance(value, (str, Undefined)):
        return value
    if isinstance(value, bytes):
        return value.decode()
    if inspect.isroutine(value):
        raise TemplateRuntimeError(f"{value.__name__!r} is a method; call it with ()")
    return _as_json(value) if _is_structure(value) else value


def _is_structure(value: Any) -> bool:
    return isinstance(value, (BaseModel, Mapping, list, tuple, Set, Iterator)) or dataclasses.is_dataclass(value)


def _as_json(value: Any, indent: int | None = None) -> str:
    """JSON by alias, without HTML escapes; sets are sorted, so that the text does not depend on hashes."""
    if isinstance(value, Undefined):
        return str(value)
    if isinstance(value, BaseModel):
        return value.model_dump_json(by_alias=True, indent=indent)
    if isinstance(value, Set) and not isinstance(value, Mapping):
        value = sorted(value, key=repr)
    return to_json(value, by_alias=True, indent=indent, fallback=_refused).decode()


def _refused(value: Any) -> str:
    """Raises TypeError for an item that JSON cannot hold; a missing name raises its own error."""
    if isinstance(value, Undefined):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be printed as JSON")


def _joined(values: Any, d: str = "", attribute: str | int | None = None) -> str:
    """jinja2's `join`, with every item as `{{ item }}` would print it."""
    if attribute is not None:
        from jinja2.filters import make_attrgetter

        values = map(make_attrgetter(environment(), attribute), values)
    return str(d).join(str(as_text(value)) for value in values)


class _Missing(StrictUndefined):
    """A missing name: raises when it is used, with a message in terms of the user's models."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        if self._undefined_hint:
            return self._undefined_hint
        if isinstance(self._undefined_obj, BaseModel):
            return f"{type(self._undefined_obj).__name__} has no field {self._undefined_name!r}"
        if isinstance(self._undefined_obj, Mapping):
            return f"there is no {self._undefined_name!r}{nearest(str(self._undefined_name), map(str, self._undefined_obj))}"
        if self._undefined_obj is None:
            return f"the value is None and has no {self._undefined_name!r}"
        if self._undefined_obj is missing:
            return f"{self._undefined_name!r} is not in scope"
        return str(super()._undefined_message)


class _Environment(SandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        """As in the base class, but without its slow checks (ten times the time) for plain data in fields of models."""
        if isinstance(obj, BaseModel) and attribute in obj.__dict__ and not attribute.startswith("_"):
            value = getattr(obj, attribute)
            if type(value) in _PLAIN:
                return value
        return super().getattr(obj, attribute)


@functools.cache
def environment() -> SandboxedEnvironment:
    """The environment of every prompt."""
    env = _Environment(undefined=_Missing, autoescape=False, keep_trailing_newline=True, finalize=as_text)
    env.filters |= {"tojson": _as_json, "join": _joined, "string": _string}
    del env.filters["random"], env.globals["lipsum"]
    return env


def _string(value: Any) -> str:
    return str(as_text(value))


def parse(source: str) -> nodes.Template:
    """The syntax tree of a template.

    Raises:
        TemplateSyntaxError: it cannot be parsed, loads another template, or names a filter or a test that does not
            exist (inside an `if`, jinja2 itself would raise only at rendering).
    """
    tree = environment().parse(source)
    for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        statement = _LOADS[type(node).__name__]
        raise TemplateSyntaxError(f"{{% {statement} %}} is not available; a prompt is one template", node.lineno)
    for use in tree.find_all((nodes.Filter, nodes.Test)):
        kind, known = ("filter", environment().filters) if isinstance(use, nodes.Filter) else ("test", environment().tests)
        if use.name not in known:
            close = difflib.get_close_matches(use.name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TemplateSyntaxError(f"No {kind} named {use.name!r}{hint}", use.lineno)
    return tree


def names_of(tree: nodes.Template) -> frozenset[str]:
    """The names a template takes from its context, including jinja2's own globals, which may be field names."""
    loaded = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
    return frozenset(meta.find_undeclared_variables(tree) | (loaded & environment().globals.keys()))


def lone_expression(tree: nodes.Template) -> nodes.Expr | None:
    """The expression of a template that is one `{{ x }}` and nothing else; None for another template."""
    match tree.body:
        case [nodes.Output(nodes=[only])] if not isinstance(only, nodes.TemplateData):
            return only
    return None


def assigned(name: str, value: nodes.Expr) -> nodes.Template:
    """A template that only sets a variable."""
    target = nodes.Name(name, "store", lineno=value.lineno)
    tree = nodes.Template([nodes.Assign(target, value, lineno=value.lineno)], lineno=value.lineno)
    tree.set_environment(environment())
    return tree


def defined(value: Any) -> Any:
    """Returns the value, or raises the error of a missing name."""
    if isinstance(value, Undefined):
        str(value)
    return value


def compile_tree(tree: nodes.Template) -> JinjaTemplate:
    """A template that is ready to render. This changes the tree."""
    return environment().from_string(_TextFirst().visit(tree))


class _TextFirst(NodeTransformer):
    """Makes `~` and the text filters see the text that `{{ }}` would print: "red", never "Color.RED"."""

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        self.generic_visit(node)
        if node.name in _TEXT_FILTERS and node.node is not None:
            node.node = _stringed(node.node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_stringed(part) for part in node.nodes]
        return node


def _stringed(node: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, "string", [], [], None, None, lineno=node.lineno)

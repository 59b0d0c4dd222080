"""The types of expressions in a template, and the problems found while deriving them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from chainette.core.annotations import NONE, list_of, mapping_types, members, tuple_of, tuple_types, union_of
from chainette.core.templates.expressions import paths_in, root_of, text_of
from chainette.core.templates.filters import filtered
from chainette.core.templates.types import (
    Access,
    Method,
    attribute,
    has_member,
    item_type,
    nearest,
    result_of,
    same_or_any,
    value_type,
    without_none,
)

if TYPE_CHECKING:
    from jinja2 import nodes

__all__ = ["ExpressionTypes", "TemplateFinding"]


@dataclass(frozen=True)
class TemplateFinding:
    """One problem of a template."""

    message: str
    #: The line in the template, from 1.
    line: int
    #: Whether the template may work for some rows.
    warning: bool = False


class ExpressionTypes:
    """Derives the types of expressions with `type_of`, and collects their problems."""

    def __init__(
        self, scope: Mapping[str, Any], bare: type[BaseModel] | None, elsewhere: Mapping[str, str], built_in: Mapping[str, Any]
    ) -> None:
        self.scope, self.bare, self.elsewhere, self.built_in = scope, bare, elsewhere, built_in
        self.found: list[TemplateFinding] = []
        self.assigned: frozenset[str] = frozenset()
        self.bound: dict[str, Any] = {}
        #: Expressions that the surrounding statements test.
        self.guarded: frozenset[str] = frozenset()
        self._quiet = False

    # -- scopes

    def assign(self, target: nodes.Node, kind: Any) -> None:
        """Binds the names of a target, unpacking tuples of known length."""
        from jinja2 import nodes

        if isinstance(target, nodes.Name):
            self.bound[target.name] = kind
            self.guarded = frozenset(path for path in self.guarded if root_of(path) != target.name)
        elif isinstance(target, nodes.Tuple):
            parts = None if isinstance(kind, Method) else tuple_types(kind)
            if parts is None or len(parts) != len(target.items):
                parts = (Any,) * len(target.items)
            for item, part in zip(target.items, parts, strict=True):
                self.assign(item, part)

    @contextmanager
    def inner(self) -> Iterator[None]:
        """A scope: names bound inside the block are dropped at its end."""
        kept, guarded = self.bound, self.guarded
        self.bound = dict(kept)
        try:
            yield
        finally:
            self.bound, self.guarded = kept, guarded

    @contextmanager
    def guarding(self, *tests: nodes.Node) -> Iterator[None]:
        """Inside the block, all values that `tests` mention count as present."""
        kept = self.guarded
        self.guarded = kept | {path for test in tests for path in paths_in(test)}
        try:
            yield
        finally:
            self.guarded = kept

    @contextmanager
    def quietly(self) -> Iterator[None]:
        kept, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = kept

    # -- expressions

    def type_of(self, node: nodes.Node) -> Any:
        """The type of an expression, or Any; reports its problems."""
        handler = getattr(self, f"type_{type(node).__name__}", None)
        if handler is not None:
            return handler(node)
        for child in node.iter_child_nodes():
            self.type_of(child)
        return Any

    def type_Const(self, node: nodes.Const) -> Any:
        return type(node.value)

    def type_Concat(self, node: nodes.Concat) -> Any:
        for child in node.nodes:
            self.type_of(child)
        return str

    def type_List(self, node: nodes.List) -> Any:
        return list_of(union_of(value_type(self.type_of(item)) for item in node.items))

    def type_Tuple(self, node: nodes.Tuple) -> Any:
        kinds = tuple(value_type(self.type_of(item)) for item in node.items)
        return tuple_of(kinds) if kinds else Any

    def type_Name(self, node: nodes.Name) -> Any:
        name = node.name
        if name in self.bound:
            return self.bound[name]
        if name in self.scope:
            self.warn_of_clash(node)
            return Any if self.scope[name] is None else self.scope[name]
        if self.bare is not None and has_member(self.bare, name):
            return attribute(self.bare, name).type
        if name in self.built_in:
            return Any
        self.report_unknown(node)
        return Any

    def type_Getattr(self, node: nodes.Getattr) -> Any:
        return self.access(node, node.node, node.attr)

    def type_Getitem(self, node: nodes.Getitem) -> Any:
        from jinja2 import nodes

        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return self.access(node, node.node, node.arg.value, item=True)
        kind = self.type_of(node.node)
        self.type_of(node.arg)
        if isinstance(kind, Method):
            return Any
        if isinstance(node.arg, nodes.Slice):
            return kind
        return union_of(item_type(part) for part in members(kind) if part is not NONE)

    def access(self, node: nodes.Expr, owner: nodes.Expr, name: str, *, item: bool = False) -> Any:
        kind = self.type_of(owner)
        if item and not isinstance(kind, Method):
            values = [mapping_types(part) for part in members(kind) if part is not NONE]
            if all(values):
                return union_of(pair[1] for pair in values if pair)
        found = attribute(kind, name)
        if text_of(node) not in self.guarded or not found.problem:
            self.report_access(owner, found)
        return found.type

    def type_Call(self, node: nodes.Call) -> Any:
        called = self.type_of(node.node)
        arguments = [*node.args, *(keyword.value for keyword in node.kwargs), node.dyn_args, node.dyn_kwargs]
        for argument in arguments:
            if argument is not None:
                self.type_of(argument)
        return result_of(called, node.args)

    def type_Compare(self, node: nodes.Compare) -> Any:
        self.type_of(node.expr)
        for operand in node.ops:
            self.type_of(operand.expr)
        return bool

    def type_Not(self, node: nodes.Not) -> Any:
        self.type_of(node.node)
        return bool

    def type_And(self, node: nodes.And) -> Any:
        left = self.type_of(node.left)
        with self.guarding(node.left):
            return same_or_any(left, self.type_of(node.right))

    def type_Or(self, node: nodes.Or) -> Any:
        left = self.type_of(node.left)
        with self.guarding(node.left):
            right = self.type_of(node.right)
        return same_or_any(without_none(left), right)

    def type_CondExpr(self, node: nodes.CondExpr) -> Any:
        self.type_of(node.test)
        with self.guarding(node.test):
            chosen = self.type_of(node.expr1)
            return same_or_any(chosen, self.type_of(node.expr2)) if node.expr2 is not None else Any

    def type_Test(self, node: nodes.Test) -> Any:
        from jinja2 import nodes

        for child in node.iter_child_nodes():
            if node.name in ("defined", "undefined") and child is node.node:
                with self.quietly():
                    self.type_of(child)
            elif isinstance(child, nodes.Expr):
                self.type_of(child)
        return bool

    # -- filters

    def type_Filter(self, node: nodes.Filter) -> Any:
        if node.node is None:
            return str
        if node.name in ("default", "d"):
            with self.quietly():
                self.type_of(node.node)
            for argument in node.args:
                self.type_of(argument)
            return Any
        kind = self.type_of(node.node)
        for child in [*node.args, *(keyword.value for keyword in node.kwargs)]:
            self.type_of(child)
        if isinstance(kind, Method):
            return Any
        result, problem = filtered(node, kind)
        if problem:
            self.report(node, problem)
        return result

    # -- findings

    def report(self, node: nodes.Node, message: str, *, warning: bool = False) -> None:
        finding = TemplateFinding(message, node.lineno, warning)
        if not self._quiet and all(other.message != message for other in self.found):
            self.found.append(finding)

    def report_access(self, owner: nodes.Node, found: Access) -> None:
        text = text_of(owner)
        if found.problem and not (found.sometimes and text in self.guarded):
            hint = f"; test it first: {{% if {text}{found.test} %}}" if found.sometimes else ""
            self.report(owner, f"{text!r} {found.problem}{hint}", warning=found.sometimes)

    def warn_of_clash(self, node: nodes.Name) -> None:
        name = node.name
        if self.bare is not None and name in self.bare.model_fields and name != "input":
            self.report(
                node,
                f"{name!r} is both a name in scope and a field of the input ({self.bare.__name__}); "
                f"here it means the name in scope; write input.{name} for the field",
                warning=True,
            )

    def report_unknown(self, node: nodes.Name) -> None:
        name = node.name
        if name in self.guarded or name in self.assigned:
            return
        if name in self.elsewhere:
            self.report(node, f"{name!r} is not in scope here: {self.elsewhere[name]}")
        elif self.bare is not None and attribute(self.bare, "no_such_name").problem:
            self.report(node, f"{name!r} is not in scope{self.suggestion(name)}")

    def suggestion(self, name: str) -> str:
        """Suggests a name in scope, or a value that has such a field."""
        fields = self.bare.model_fields if self.bare is not None else {}
        owners = [
            f"{owner}.{name}"
            for owner, kind in self.scope.items()
            if name in getattr(kind, "model_fields", {}) and owner != "input"
        ]
        known = [*self.bound, *self.scope, *fields]
        if owners:
            return f"; did you mean {owners[-1]!r}?"
        return nearest(name, known).replace("it has", "in scope are")

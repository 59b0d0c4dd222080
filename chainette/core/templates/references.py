"""Resolves every name and field of a prompt against the types in scope, before any row is read.

An error fails for every row that reaches it; if only some rows may fail, it is a warning. Nothing is reported about
unknown types, and a value the template tests (`{% if x %}`, `x is defined`) counts as present inside that
test's branches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from chainette.core.annotations import NONE, list_of, mapping_types, members, tuple_of, tuple_types, union_of
from chainette.core.templates.expressions import names_set_in, paths_in, root_of, text_of
from chainette.core.templates.filters import filtered
from chainette.core.templates.literal_braces import tag_hint
from chainette.core.templates.types import (
    Access,
    LoopVariable,
    Method,
    attribute,
    has_member,
    item_type,
    iterated,
    nearest,
    result_of,
    same_or_any,
    value_type,
    without_none,
)

if TYPE_CHECKING:
    from jinja2 import nodes

__all__ = ["TemplateFinding", "expression_type", "template_problems"]


@dataclass(frozen=True)
class TemplateFinding:
    """One problem of a template."""

    message: str
    #: 1-based, in the template.
    line: int
    #: Whether it may work for some rows.
    warning: bool = False


def template_problems(
    source: str,
    scope: Mapping[str, Any],
    bare: type[BaseModel] | None,
    elsewhere: Mapping[str, str] | None = None,
) -> list[TemplateFinding]:
    """The problems of a template, each once, in reading order.

    `scope` maps names to types, `bare` is the model whose fields are names too (`scope` wins), and `elsewhere`
    says why an id that exists is not in scope here. If `bare` is None, unknown names are not reported.
    """
    from jinja2 import TemplateSyntaxError

    from chainette.utils import sandbox

    try:
        sandbox.compile_tree(sandbox.parse(source))
    except TemplateSyntaxError as error:
        known = {*scope, *(bare.model_fields if bare is not None else ())}
        return [TemplateFinding(f"{error.message}{tag_hint(str(error.message), known)}", error.lineno)]
    checker = _Checker(scope, bare, elsewhere or {}, sandbox.environment().globals)
    tree = sandbox.parse(source)
    checker.assigned = names_set_in(tree)
    checker.visit_all(tree.body)
    return checker.found


def expression_type(source: str, scope: Mapping[str, Any], bare: type[BaseModel] | None) -> Any:
    """The type of the value of a lone `{{ x }}`; text for any other template."""
    from chainette.utils import sandbox

    lone = sandbox.lone_expression(sandbox.parse(source.strip()))
    return str if lone is None else value_type(_Checker(scope, bare, {}, sandbox.environment().globals).type_of(lone))


class _Checker:
    """Walks the statements of one template; `type_of` gives the type of an expression."""

    def __init__(
        self, scope: Mapping[str, Any], bare: type[BaseModel] | None, elsewhere: Mapping[str, str], built_in: Mapping[str, Any]
    ) -> None:
        self.scope, self.bare, self.elsewhere, self.built_in = scope, bare, elsewhere, built_in
        self.found: list[TemplateFinding] = []
        self.assigned: frozenset[str] = frozenset()
        self._locals: dict[str, Any] = {}
        #: Expressions the template tested around here.
        self._guarded: frozenset[str] = frozenset()
        self._quiet = False

    # -- statements

    def visit_all(self, statements: Sequence[nodes.Node]) -> None:
        for statement in statements:
            visit = getattr(self, f"visit_{type(statement).__name__}", None)
            if visit is None:
                self.visit_other(statement)
            else:
                visit(statement)

    def visit_other(self, node: nodes.Node) -> None:
        """Any other statement: its expressions, then its body in an inner scope."""
        from jinja2 import nodes

        with self.inner():
            for child in node.iter_child_nodes():
                if isinstance(child, nodes.Expr):
                    self.type_of(child)
                else:
                    self.visit_all([child])

    def visit_Output(self, node: nodes.Output) -> None:
        for expression in node.nodes:
            kind = self.type_of(expression)
            if isinstance(kind, Method):
                entry = f", or {text_of(expression, item=True)} for the entry" if mapping_types(kind.owner) else ""
                self.report(expression, f"{text_of(expression)!r} is a method; call it: {text_of(expression)}(){entry}")

    def visit_TemplateData(self, node: nodes.TemplateData) -> None:
        pass

    def visit_If(self, node: nodes.If) -> None:
        self.type_of(node.test)
        before = self._locals
        ends = []
        with self.guarding(node.test):
            for body in (node.body, node.elif_, node.else_):
                self._locals = dict(before)
                self.visit_all(body)
                ends.append(self._locals)
        self._locals = {
            name: ends[0].get(name) if all(end.get(name) == ends[0].get(name) for end in ends) else Any
            for name in {name for end in ends for name in end}
        }

    def visit_For(self, node: nodes.For) -> None:
        given = self.type_of(node.iter)
        items = iterated(given)
        self.report_access(node.iter, items)
        with self.inner():
            self.assign(node.target, items.type)
            if node.test is not None:
                self.type_of(node.test)
            self._locals["loop"] = LoopVariable
            with self.guarding(*([node.test] if node.test is not None else [])):
                self.visit_all(node.body)
        with self.inner():
            self.visit_all(node.else_)

    def visit_Assign(self, node: nodes.Assign) -> None:
        self.assign(node.target, self.type_of(node.node))

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> None:
        with self.inner():
            self.visit_all(node.body)
        self.assign(node.target, str)

    def visit_With(self, node: nodes.With) -> None:
        kinds = [self.type_of(value) for value in node.values]
        with self.inner():
            for target, kind in zip(node.targets, kinds, strict=True):
                self.assign(target, kind)
            self.visit_all(node.body)

    def visit_Macro(self, node: nodes.Macro) -> None:
        self._locals[node.name] = Any
        self.body_with_arguments(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> None:
        self.type_of(node.call)
        self.body_with_arguments(node)

    def body_with_arguments(self, node: nodes.Macro | nodes.CallBlock) -> None:
        for default in node.defaults:
            self.type_of(default)
        with self.inner():
            self._locals |= dict.fromkeys(("caller", "varargs", "kwargs"), Any)
            for argument in node.args:
                self.assign(argument, Any)
            self.visit_all(node.body)

    def assign(self, target: nodes.Node, kind: Any) -> None:
        """Binds the names of a target, unpacking tuples of known length."""
        from jinja2 import nodes

        if isinstance(target, nodes.Name):
            self._locals[target.name] = kind
            self._guarded = frozenset(path for path in self._guarded if root_of(path) != target.name)
        elif isinstance(target, nodes.Tuple):
            parts = None if isinstance(kind, Method) else tuple_types(kind)
            if parts is None or len(parts) != len(target.items):
                parts = (Any,) * len(target.items)
            for item, part in zip(target.items, parts, strict=True):
                self.assign(item, part)

    # -- scopes

    @contextmanager
    def inner(self) -> Iterator[None]:
        """Names bound inside are forgotten at the end."""
        kept, guarded = self._locals, self._guarded
        self._locals = dict(kept)
        try:
            yield
        finally:
            self._locals, self._guarded = kept, guarded

    @contextmanager
    def guarding(self, *tests: nodes.Node) -> Iterator[None]:
        """All values that `tests` mention count as present inside."""
        kept = self._guarded
        self._guarded = kept | {path for test in tests for path in paths_in(test)}
        try:
            yield
        finally:
            self._guarded = kept

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
        if name in self._locals:
            return self._locals[name]
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
        if text_of(node) not in self._guarded or not found.problem:
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
        if found.problem and not (found.sometimes and text in self._guarded):
            hint = f"; test it first: {{% if {text}{found.test} %}}" if found.sometimes else ""
            self.report(owner, f"{text!r} {found.problem}{hint}", warning=found.sometimes)

    def warn_of_clash(self, node: nodes.Name) -> None:
        name = node.name
        if self.bare is not None and name in self.bare.model_fields and name != "input":
            self.report(
                node,
                f"{name!r} is both a name in scope and a field of the input ({self.bare.__name__}); "
                f"the field is left out here, write input.{name} for it",
                warning=True,
            )

    def report_unknown(self, node: nodes.Name) -> None:
        name = node.name
        if name in self._guarded or name in self.assigned:
            return
        if name in self.elsewhere:
            self.report(node, f"{name!r} is not in scope here: {self.elsewhere[name]}")
        elif self.bare is not None and attribute(self.bare, "no_such_name").problem:
            self.report(node, f"{name!r} is not in scope{self.suggestion(name)}")

    def suggestion(self, name: str) -> str:
        """The name that was probably meant: one in scope, or a value with such a field."""
        fields = self.bare.model_fields if self.bare is not None else {}
        owners = [
            f"{owner}.{name}"
            for owner, kind in self.scope.items()
            if name in getattr(kind, "model_fields", {}) and owner != "input"
        ]
        known = [*self._locals, *self.scope, *fields]
        if owners:
            return f"; did you mean {owners[-1]!r}?"
        return nearest(name, known).replace("it has", "in scope are")

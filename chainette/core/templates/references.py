"""Resolves every name and field of a prompt against the types in scope, before any row is read.

A problem that affects every row that reaches it is an error; if it may affect only some rows, it is a warning. Unknown
types are not checked, and a value that the template tests (`{% if x %}`, `x is defined`) counts as present in the
branches of that test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from chainette.core.annotations import mapping_types
from chainette.core.templates.expression_types import ExpressionTypes, TemplateFinding
from chainette.core.templates.expressions import names_set_in, text_of
from chainette.core.templates.literal_braces import tag_hint
from chainette.core.templates.types import LoopVariable, Method, iterated, value_type

if TYPE_CHECKING:
    from jinja2 import nodes

__all__ = ["expression_type", "template_problems"]


def template_problems(
    source: str,
    scope: Mapping[str, Any],
    bare: type[BaseModel] | None,
    elsewhere: Mapping[str, str] | None = None,
) -> list[TemplateFinding]:
    """The problems of a template, each once, in reading order.

    `scope` maps names to types, `bare` is the model whose fields are names too (`scope` takes precedence), and
    `elsewhere` says why an existing id is not in scope here. If `bare` is None, unknown names are not reported.
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
    return str if lone is None else value_type(ExpressionTypes(scope, bare, {}, sandbox.environment().globals).type_of(lone))


class _Checker(ExpressionTypes):
    """Walks the statements of one template."""

    def visit_all(self, statements: Sequence[nodes.Node]) -> None:
        for statement in statements:
            visit = getattr(self, f"visit_{type(statement).__name__}", None)
            if visit is None:
                self.visit_other(statement)
            else:
                visit(statement)

    def visit_other(self, node: nodes.Node) -> None:
        """Checks any other statement: its expressions, then its body in an inner scope."""
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
        before = self.bound
        ends = []
        with self.guarding(node.test):
            for body in (node.body, node.elif_, node.else_):
                self.bound = dict(before)
                self.visit_all(body)
                ends.append(self.bound)
        self.bound = {
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
            self.bound["loop"] = LoopVariable
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
        self.bound[node.name] = Any
        self.body_with_arguments(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> None:
        self.type_of(node.call)
        self.body_with_arguments(node)

    def body_with_arguments(self, node: nodes.Macro | nodes.CallBlock) -> None:
        for default in node.defaults:
            self.type_of(default)
        with self.inner():
            self.bound |= dict.fromkeys(("caller", "varargs", "kwargs"), Any)
            for argument in node.args:
                self.assign(argument, Any)
            self.visit_all(node.body)

"""Resolves every name and field of a prompt against the types in scope, before any row is read.

What it reports as an error fails for every row that gets there; what may fail for some rows is a warning.
Where a type cannot be told it is silent, and a value that the template tests (`{% if x %}`, `x is defined`)
counts as present inside that test's branches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from chainette.core.annotations import NONE, element_type, mapping_types, members, tuple_types, union_of
from chainette.core.template_types import Access, Method, attribute, iterated, nearest, result_of

if TYPE_CHECKING:
    from jinja2 import nodes

__all__ = ["TemplateFinding", "template_problems"]

_TEXT = frozenset(
    {"capitalize", "center", "e", "escape", "forceescape", "format", "indent", "join", "lower", "pprint", "replace", "safe"}
    | {"string", "striptags", "title", "tojson", "trim", "truncate", "upper", "urlencode", "urlize", "wordwrap", "xmlattr"}
)
_NUMBERS: Mapping[str, Any] = {"length": int, "count": int, "int": int, "wordcount": int, "float": float, "round": float}
_ONE_OF = frozenset({"first", "last", "min", "max"})
_SAME = frozenset({"list", "sort", "reverse", "unique", "select", "reject", "selectattr", "rejectattr"})
#: Filters that name a field of the items: keyword, and position where it may be given without.
_BY_FIELD: Mapping[str, int | None] = {
    "map": None,
    "selectattr": 0,
    "rejectattr": 0,
    "groupby": 0,
    "sort": None,
    "unique": None,
    "min": None,
    "max": None,
    "sum": 0,
    "join": 1,
}
#: Filters after which a field that may be None is there, since the template looked.
_SELECTS = frozenset({"select", "selectattr", "reject", "rejectattr"})


@dataclass(frozen=True)
class TemplateFinding:
    """One thing that is wrong with a template."""

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
    """What is wrong with a template, each thing once, in reading order.

    `scope` maps names to types, `bare` is the model whose fields are names too (`scope` wins), and `elsewhere`
    says why an id that exists is not in scope here. Where `bare` is None, unknown names are not reported.
    """
    from jinja2 import TemplateSyntaxError

    from chainette.utils import sandbox

    try:
        sandbox.compile_tree(sandbox.parse(source))
    except TemplateSyntaxError as error:
        return [TemplateFinding(str(error.message), error.lineno)]
    checker = _Checker(scope, bare, elsewhere or {}, sandbox.environment().globals)
    tree = sandbox.parse(source)
    checker.assigned = _assigned(tree)
    checker.visit_all(tree.body)
    return checker.found


def _assigned(tree: nodes.Template) -> frozenset[str]:
    """Names that the template sets anywhere: macros and blocks may see them before or after."""
    from jinja2 import nodes

    names = {node.name for node in tree.find_all(nodes.Macro)}
    for node in tree.find_all((nodes.Assign, nodes.AssignBlock)):
        names |= {name.name for name in [node.target, *node.target.find_all(nodes.Name)] if isinstance(name, nodes.Name)}
    return frozenset(names)


class _Checker:
    """Walks the statements of one template; `type_of` gives the type of an expression."""

    def __init__(
        self, scope: Mapping[str, Any], bare: type[BaseModel] | None, elsewhere: Mapping[str, str], built_in: Mapping[str, Any]
    ) -> None:
        self.scope, self.bare, self.elsewhere, self.built_in = scope, bare, elsewhere, built_in
        self.found: list[TemplateFinding] = []
        self.assigned: frozenset[str] = frozenset()
        self._locals: dict[str, Any] = {}
        #: Expressions that the template tested around here.
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
        """A statement without rules of its own: its expressions, then its body in a scope of its own."""
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
                entry = f", or {_text(expression, item=True)} for the entry" if mapping_types(kind.owner) else ""
                self.report(expression, f"{_text(expression)!r} is a method; call it: {_text(expression)}(){entry}")

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
            self._locals["loop"] = Any
            self.assign(node.target, items.type)
            if node.test is not None:
                self.type_of(node.test)
            with self.guarding(*([node.test] if node.test is not None else [])), self.loop_names():
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
            self._guarded = frozenset(path for path in self._guarded if _root(path) != target.name)
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
        """Everything that `tests` mention counts as present inside."""
        kept = self._guarded
        self._guarded = kept | {path for test in tests for path in _paths(test)}
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

    @contextmanager
    def loop_names(self) -> Iterator[None]:
        from jinja2.runtime import LoopContext

        self._locals["loop"] = LoopContext
        yield

    # -- expressions

    def type_of(self, node: nodes.Node) -> Any:
        """The type of an expression, or Any; reports what is wrong in it."""
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
        element = union_of(_value_type(self.type_of(item)) for item in node.items)
        return list[element]

    def type_Tuple(self, node: nodes.Tuple) -> Any:
        kinds = tuple(_value_type(self.type_of(item)) for item in node.items)
        return tuple[kinds] if kinds else Any  # type: ignore[valid-type]

    def type_Name(self, node: nodes.Name) -> Any:
        name = node.name
        if name in self._locals:
            return self._locals[name]
        if name in self.scope:
            self.warn_of_clash(node)
            return self.scope[name]
        if self.bare is not None and (name in self.bare.model_fields or hasattr(self.bare, name)):
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
        return union_of(_item_type(part) for part in members(kind) if part is not NONE)

    def access(self, node: nodes.Expr, owner: nodes.Expr, name: str, *, item: bool = False) -> Any:
        kind = self.type_of(owner)
        if item and not isinstance(kind, Method):
            values = [mapping_types(part) for part in members(kind) if part is not NONE]
            if all(values):
                return union_of(pair[1] for pair in values if pair)
        found = attribute(kind, name)
        if _text(node) not in self._guarded or not found.problem:
            self.report_access(owner, found)
        return found.type

    def type_Call(self, node: nodes.Call) -> Any:
        called = self.type_of(node.node)
        arguments = [*node.args, *(keyword.value for keyword in node.kwargs), node.dyn_args, node.dyn_kwargs]
        for argument in arguments:
            if argument is not None:
                self.type_of(argument)
        return result_of(called, node.args)

    def type_And(self, node: nodes.And) -> Any:
        left = self.type_of(node.left)
        with self.guarding(node.left):
            return _same(left, self.type_of(node.right))

    def type_Or(self, node: nodes.Or) -> Any:
        left = self.type_of(node.left)
        with self.guarding(node.left):
            right = self.type_of(node.right)
        return _same(_without_none(left), right)

    def type_CondExpr(self, node: nodes.CondExpr) -> Any:
        self.type_of(node.test)
        with self.guarding(node.test):
            chosen = self.type_of(node.expr1)
            return _same(chosen, self.type_of(node.expr2)) if node.expr2 is not None else Any

    def type_Test(self, node: nodes.Test) -> Any:
        from jinja2 import nodes

        for child in node.iter_child_nodes():
            if node.name in ("defined", "undefined") and child is node.node:
                with self.quietly():
                    self.type_of(child)
            elif isinstance(child, nodes.Expr):
                self.type_of(child)
        return bool

    def type_Compare(self, node: nodes.Compare) -> Any:
        self.type_of(node.expr)
        for operand in node.ops:
            self.type_of(operand.expr)
        return bool

    def type_Not(self, node: nodes.Not) -> Any:
        self.type_of(node.node)
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
        return Any if isinstance(kind, Method) else self.filtered(node, kind)

    def filtered(self, node: nodes.Filter, kind: Any) -> Any:
        """What the filter makes of a value of type `kind`; checks the field that it names."""
        field = self.field_type(node, kind)
        if node.name in _TEXT:
            return str
        if node.name in _NUMBERS:
            return _NUMBERS[node.name]
        if node.name == "map":
            return list[field] if _field_of(node) is not None else Any
        items = iterated(kind)
        if items.problem or items.type is Any:
            return Any
        if node.name in _ONE_OF:
            return items.type
        if node.name in _SAME and kind is not str:
            return list[_unchecked(items.type) if node.name in _SELECTS else items.type]  # type: ignore[misc]
        return list[list[items.type]] if node.name in ("batch", "slice") else Any  # type: ignore[name-defined]

    def field_type(self, node: nodes.Filter, kind: Any) -> Any:
        """The type of the items' field that a filter such as map(attribute='a.b') names."""
        named = _field_of(node)
        found = iterated(kind)
        if named is None or found.problem:
            return Any
        result = found.type
        for path in named.split(",") if node.name == "sort" else [named]:
            result = found.type
            for name in path.split("."):
                step = Access(_item_type(result)) if name.isdigit() else attribute(result, name)
                has_default = any(keyword.key == "default" for keyword in node.kwargs)
                if step.problem and not step.sometimes and not has_default:
                    self.report(node, f"{node.name}(attribute={named!r}): an item {step.problem}")
                result = step.type
        return Any if isinstance(result, Method) else result

    # -- findings

    def report(self, node: nodes.Node, message: str, *, warning: bool = False) -> None:
        finding = TemplateFinding(message, node.lineno, warning)
        if not self._quiet and all(other.message != message for other in self.found):
            self.found.append(finding)

    def report_access(self, owner: nodes.Expr, found: Access) -> None:
        text = _text(owner)
        if found.problem and not (found.sometimes and text in self._guarded):
            hint = f"; test it first: {{% if {text} %}}" if found.sometimes else ""
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
        elif self.bare is not None and not self.may_hold_any_name():
            self.report(node, f"{name!r} is not in scope{self.suggestion(name)}")

    def may_hold_any_name(self) -> bool:
        return self.bare is not None and not attribute(self.bare, "no_such_name").problem

    def suggestion(self, name: str) -> str:
        """The name that was probably meant: one in scope, or the value that has such a field."""
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


def _root(path: str) -> str:
    return path.partition(".")[0].partition("[")[0]


def _text(node: nodes.Node, *, item: bool = False) -> str:
    """An expression as the user wrote it, as far as it is a path."""
    from jinja2 import nodes

    match node:
        case nodes.Name():
            return node.name
        case nodes.Getattr():
            return f"{_text(node.node)}[{node.attr!r}]" if item else f"{_text(node.node)}.{node.attr}"
        case nodes.Getitem() if isinstance(node.arg, nodes.Const):
            plain_name = isinstance(node.arg.value, str) and node.arg.value.isidentifier()
            return f"{_text(node.node)}.{node.arg.value}" if plain_name else f"{_text(node.node)}[{node.arg.value!r}]"
        case nodes.Getitem():
            return f"{_text(node.node)}[...]"
        case nodes.Call():
            return f"{_text(node.node)}({'...' if node.args or node.kwargs else ''})"
        case nodes.Filter() if node.node is not None:
            return f"{_text(node.node)}|{node.name}"
    return "this expression"


def _paths(test: nodes.Node) -> set[str]:
    """Every path that a test mentions."""
    from jinja2 import nodes

    kinds = (nodes.Name, nodes.Getattr, nodes.Getitem)
    inside = {_text(node) for node in test.find_all(kinds)}
    return inside | ({_text(test)} if isinstance(test, kinds) else set())


def _field_of(node: nodes.Filter) -> str | None:
    """The field that a filter names, where it is written out."""
    from jinja2 import nodes

    if node.name not in _BY_FIELD:
        return None
    position = _BY_FIELD[node.name]
    given = [keyword.value for keyword in node.kwargs if keyword.key == "attribute"]
    if not given and position is not None:
        given = node.args[position : position + 1]
    if given and isinstance(given[0], nodes.Const) and isinstance(given[0].value, str):
        return given[0].value
    return None


def _item_type(kind: Any) -> Any:
    """What `value[i]` gives."""
    mapping = mapping_types(kind)
    if mapping is not None:
        return mapping[1]
    if kind is str:
        return str
    element = element_type(kind)
    return Any if element is None else element


def _value_type(kind: Any) -> Any:
    return Any if isinstance(kind, Method) else kind


def _unchecked(kind: Any) -> Any:
    """Items that a filter selected: their fields may have been tested, so nothing is said about them."""
    return kind if all(getattr(part, "model_fields", None) is None for part in members(kind)) else Any


def _without_none(kind: Any) -> Any:
    if isinstance(kind, Method):
        return kind
    return union_of(part for part in members(kind) if part is not NONE)


def _same(left: Any, right: Any) -> Any:
    return left if left == right else Any

"""Finds definitions and names in syntax trees."""

from __future__ import annotations

import ast
import dis
import re
from collections.abc import Iterator
from types import CodeType
from typing import Any

__all__ = [
    "assignments",
    "attributes_set",
    "class_node",
    "code_text",
    "dump",
    "function_node",
    "global_names",
    "is_passed_on",
    "names_outside_body",
    "quoted_names",
    "targets",
]

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def function_node(tree: ast.Module, code: CodeType) -> ast.AST | None:
    """The node from which `code` was compiled; None if it is not in the tree."""
    if code.co_name == "<lambda>":
        return _lambda_node(tree, code)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == code.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
    return None


def _lambda_node(tree: ast.Module, code: CodeType) -> ast.AST | None:
    """The innermost lambda whose body contains every position of `code`; a line may hold several lambdas."""
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
    """All nodes below a node, except expressions and the contents of nested functions and classes."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield child
            if not isinstance(child, _DEFINITIONS):
                yield from _statements(child)


def class_node(tree: ast.AST, qualname: str) -> ast.ClassDef | None:
    """The class of that name; the last one if it is defined twice."""
    head, _, rest = qualname.replace(".<locals>", "").partition(".")
    found = [node for node in _statements(tree) if isinstance(node, _DEFINITIONS) and node.name == head]
    for node in reversed(found):
        inner = class_node(node, rest) if rest else node
        if isinstance(inner, ast.ClassDef):
            return inner
    return None


def assignments(tree: ast.Module, name: str) -> list[ast.AST]:
    return [node for node in _statements(tree) if name in targets(node)]


def attributes_set(tree: ast.Module, name: str) -> list[ast.AST]:
    """The assignments to attributes of a name, such as `Item.limit = 3`."""
    return [
        node
        for node in assignments(tree, name)
        if any(
            isinstance(part, ast.Attribute) and getattr(part.value, "id", "") == name and not isinstance(part.ctx, ast.Load)
            for part in ast.walk(node)
        )
    ]


def targets(statement: ast.AST) -> set[str]:
    """The names that an assignment sets."""
    if not isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        return set()
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def is_passed_on(node: ast.AST, name: str) -> bool:
    """Whether a name is used anywhere without a dot after it, as in `getattr(helpers, ...)` or `h = helpers`."""
    dotted = {id(part.value) for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    return any(isinstance(part, ast.Name) and part.id == name and id(part) not in dotted for part in ast.walk(node))


def code_text(code: CodeType) -> str:
    constants = [code_text(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {','.join(constants)}"


def global_names(code: CodeType) -> set[str]:
    """The globals that the code and its nested functions load."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= global_names(constant)
    return names


def names_outside_body(node: ast.AST) -> set[str]:
    """Names in decorators, which run when the function is defined."""
    parts = getattr(node, "decorator_list", [])
    return {name.id for part in parts for name in ast.walk(part) if isinstance(name, ast.Name)}


def quoted_names(node: ast.ClassDef) -> set[str]:
    """Names in annotations that are written as text, such as `"list[Score]"`."""
    annotations = [part.annotation for part in ast.walk(node) if isinstance(part, ast.AnnAssign)]
    texts = [part.value for one in annotations for part in ast.walk(one) if isinstance(part, ast.Constant)]
    return {name for text in texts if isinstance(text, str) for name in re.findall(r"\w+", text)}


def dump(node: Any) -> str:
    """A tree as text without positions, docstrings and empty fields, so that it is the same in every version of Python."""
    if isinstance(node, list):
        return "[" + ",".join(map(dump, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, []) and name != "kind"]
    inner = ",".join(f"{name}={dump(_without_docstring(node) if name == 'body' else value)}" for name, value in fields)
    return f"{type(node).__name__}({inner})"


def _without_docstring(node: Any) -> Any:
    if isinstance(node, _DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
        return node.body[1:]
    return node.body

"""Expressions of a template as the user wrote them (`extract.items[0].name`), and the names it binds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import nodes

__all__ = ["names_set_in", "paths_in", "root_of", "text_of"]


def root_of(path: str) -> str:
    return path.partition(".")[0].partition("[")[0]


def text_of(node: nodes.Node, *, item: bool = False) -> str:
    """The path of an expression, as the user wrote it; without a path, `this expression`."""
    from jinja2 import nodes

    match node:
        case nodes.Name():
            return node.name
        case nodes.Getattr():
            return f"{text_of(node.node)}[{node.attr!r}]" if item else f"{text_of(node.node)}.{node.attr}"
        case nodes.Getitem() if isinstance(node.arg, nodes.Const):
            plain_name = isinstance(node.arg.value, str) and node.arg.value.isidentifier()
            return f"{text_of(node.node)}.{node.arg.value}" if plain_name else f"{text_of(node.node)}[{node.arg.value!r}]"
        case nodes.Getitem():
            return f"{text_of(node.node)}[...]"
        case nodes.Call():
            return f"{text_of(node.node)}({'...' if node.args or node.kwargs else ''})"
        case nodes.Filter() if node.node is not None:
            return f"{text_of(node.node)}|{node.name}"
    return "this expression"


def paths_in(test: nodes.Node) -> set[str]:
    """All paths that a test mentions."""
    from jinja2 import nodes

    kinds = (nodes.Name, nodes.Getattr, nodes.Getitem)
    inside = {text_of(node) for node in test.find_all(kinds)}
    return inside | ({text_of(test)} if isinstance(test, kinds) else set())


def names_set_in(tree: nodes.Template) -> frozenset[str]:
    """The names that the template sets anywhere: macros and blocks may see them before or after."""
    from jinja2 import nodes

    names = {node.name for node in tree.find_all(nodes.Macro)}
    names |= {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
    loops = [node.target for node in tree.find_all(nodes.For)]
    return frozenset(
        names
        - {name.name for target in loops for name in [target, *target.find_all(nodes.Name)] if isinstance(name, nodes.Name)}
    )

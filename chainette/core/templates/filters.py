"""The result types of filters, and checks of the fields that filters name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chainette.core.annotations import list_of, members
from chainette.core.templates.types import Access, Method, attribute, item_type, iterated

if TYPE_CHECKING:
    from jinja2 import nodes

__all__ = ["filtered"]

_TEXT = frozenset(
    {"capitalize", "center", "e", "escape", "forceescape", "format", "indent", "join", "lower", "pprint", "replace", "safe"}
    | {"string", "striptags", "title", "tojson", "trim", "truncate", "upper", "urlencode", "urlize", "wordwrap", "xmlattr"}
)
_NUMBERS: Mapping[str, Any] = {"length": int, "count": int, "int": int, "wordcount": int, "float": float, "round": float}
_ONE_OF = frozenset({"first", "last", "min", "max"})
_SAME = frozenset({"list", "sort", "reverse", "unique", "select", "reject", "selectattr", "rejectattr"})
#: Filters that name a field of the items -> the keyword, and its position if it may be positional.
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
#: Filters after which an optional field counts as present, because the template has tested it.
_SELECTS = frozenset({"select", "selectattr", "reject", "rejectattr"})


def filtered(node: nodes.Filter, kind: Any) -> tuple[Any, str]:
    """(the type of `value | filter`, the reason why it cannot work or "") for a value of type `kind`."""
    field, problem = _field_type(node, kind)
    return _result(node, kind, field), problem


def _result(node: nodes.Filter, kind: Any, field: Any) -> Any:
    if node.name in _TEXT:
        return str
    if node.name in _NUMBERS:
        return _NUMBERS[node.name]
    if node.name == "map":
        return Any if _field_of(node) is None else list_of(field)
    items = iterated(kind)
    if items.problem or items.type is Any:
        return Any
    if node.name in _ONE_OF:
        return items.type
    if node.name in _SAME and kind is not str:
        return list_of(_unchecked(items.type) if node.name in _SELECTS else items.type)
    return list_of(list_of(items.type)) if node.name in ("batch", "slice") else Any


def _field_type(node: nodes.Filter, kind: Any) -> tuple[Any, str]:
    """The type of the field that a filter such as map(attribute='a.b') names, and the reason why it cannot work or ""."""
    named, found = _field_of(node), iterated(kind)
    if named is None or found.problem:
        return Any, ""
    result, problem = Any, ""
    for path in named.split(",") if node.name == "sort" else [named]:
        result, problem = _walk(found.type, path)
        if problem:
            break
    if any(keyword.key == "default" for keyword in node.kwargs):
        problem = ""
    return result, f"{node.name}(attribute={named!r}): an item {problem}" if problem else ""


def _walk(kind: Any, path: str) -> tuple[Any, str]:
    for name in path.split("."):
        step = Access(item_type(kind)) if name.isdigit() else attribute(kind, name)
        if step.problem and not step.sometimes:
            return Any, step.problem
        kind = step.type
    return (Any if isinstance(kind, Method) else kind), ""


def _field_of(node: nodes.Filter) -> str | None:
    """The field that a filter names with a literal; None if there is none."""
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


def _unchecked(kind: Any) -> Any:
    """The type of items that a filter selected: it may have tested their fields, so they are not checked."""
    return kind if all(getattr(part, "model_fields", None) is None for part in members(kind)) else Any

"""The data in objects, as text: tables, arrays, bound methods, partials, the user's objects, and containers of them.

Objects without data are represented by the name of their type, and so are objects that differ in every process: locks,
clients, paths, random number generators.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections import deque
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, Set, ValuesView
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from chainette.core.usercode.data_text import IdentityKey, canonical, without_places

__all__ = ["Counted", "held_at_first", "same_name"]

#: Classes of the standard library that Python 3.13 renamed -> their old names, so that a run can be resumed with either.
_RENAMED = {"_TypedCacheSpecialForm": "_LiteralSpecialForm"}

_PLAIN = (str, int, float, bytes, bytearray)
_ORDERED = (list, tuple, deque, KeysView, ValuesView, ItemsView)

#: Modules whose objects reveal all their data through the copy protocol.
_COPIED = frozenset(
    {"array", "builtins", "collections", "configparser", "ipaddress", "markupsafe", "operator", "string", "types", "_operator"}
    | {"xml"}
)

#: Methods by which a table or a column of a library returns its values.
_LISTED = ("to_pydict", "to_pylist", "to_list", "tolist")


def same_name(name: str) -> str:
    """The name of a class, which is the same in every version of Python."""
    return _RENAMED.get(name, name)


@dataclass(frozen=True)
class Counted:
    """Tells which objects are the user's."""

    package: str
    #: The relevant attributes of an object; None if its class is not the user's.
    attributes: Callable[[Any], Mapping[str, Any] | None] = field(compare=False)


def held_at_first(value: Any, counted: Counted, file: str = "") -> str:
    """All data that can be reached from a value, as text, as they were at the first call."""
    return _held_at_first(IdentityKey(value), counted, file)


@lru_cache(maxsize=4096)
def _held_at_first(held: IdentityKey, counted: Counted, file: str) -> str:
    try:
        text = _ObjectWalk(counted).text(held.value)
    except Exception:  # foreign objects may raise anything on access
        return type(held.value).__qualname__
    return hashlib.sha256(without_places(text, file).encode(errors="surrogatepass")).hexdigest()


class _ObjectWalk:
    """One walk over objects; an object that contains itself is visited once."""

    def __init__(self, counted: Counted) -> None:
        self._counted = counted
        self._open: set[int] = set()

    def text(self, value: Any) -> str:
        if id(value) in self._open:
            return "itself"
        self._open.add(id(value))
        try:
            known = canonical(value)
            return self._of_object(value) if known is None else known
        finally:
            self._open.discard(id(value))

    def _all(self, kind: str, values: Iterable[Any]) -> str:
        return f"{kind}({','.join(self.text(value) for value in values)})"

    def _of_object(self, value: Any) -> str:
        kind = same_name(type(value).__qualname__)
        if isinstance(value, functools.partial):
            return self._all(kind, [value.func, value.args, value.keywords])
        if isinstance(value, FunctionType):
            return self._all(value.__qualname__, [_contents(cell) for cell in value.__closure__ or ()])
        if inspect.isroutine(value):
            return self._all(value.__qualname__, [getattr(value, "__self__", None)])
        if isinstance(value, (type, ModuleType)):
            return value.__name__.rpartition(".")[2]
        for plain in _PLAIN:
            if isinstance(value, plain):
                return f"{kind} {plain.__repr__(value)}"
        if isinstance(value, _ORDERED):
            return self._all(kind, value)
        if isinstance(value, Set):
            return f"{kind}{{{','.join(sorted(self.text(part) for part in value))}}}"
        if isinstance(value, dict):
            return self._all(kind, value.items())
        attributes = self._counted.attributes(value)
        if attributes is not None:
            return self._all(kind, sorted(attributes.items()))
        return self._of_library(kind, value)

    def _of_library(self, kind: str, value: Any) -> str:
        top = type(value).__module__.partition(".")[0]
        if top in ("numpy", "pandas", "polars", "pyarrow"):
            return self._of_table(kind, value)
        if kind == "Template" and top == "jinja2":
            return f"{kind} {_constants(value.root_render_func.__code__)}"
        if kind == "memoryview":
            return f"{kind} {bytes(value)!r}"
        if top not in _COPIED:
            return kind
        try:
            return self._all(kind, [list(part) if hasattr(part, "__next__") else part for part in value.__reduce_ex__(4)[1:]])
        except TypeError:  # it cannot be copied
            return kind

    def _of_table(self, kind: str, value: Any) -> str:
        if hasattr(value, "tobytes") and hasattr(value, "dtype") and not value.dtype.hasobject:
            return f"{kind} {value.dtype.str} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
        if kind == "DataFrame" and hasattr(value, "iloc"):
            columns = (value.iloc[:, place].to_numpy() for place in range(value.shape[1]))
            return self._all(kind, [value.columns.tolist(), value.index.tolist(), *columns])
        if kind == "DataFrame":
            return self._all(kind, [value.to_dict(as_series=False)])
        for method in _LISTED:
            if hasattr(value, method):
                return self._all(kind, [getattr(value, method)()])
        return kind


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _constants(code: CodeType) -> str:
    return ",".join(_constants(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts)

"""Route: every row takes one of several ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import isfinite
from typing import Any

import msgspec

from chainette.core.branch import Element, checked_elements
from chainette.core.condition import Condition, Given
from chainette.core.decision import Undecided, Way
from chainette.core.node import Joinable, check_name
from chainette.errors import DeclarationError, Place
from chainette.records import Reason
from chainette.utils.argument_advice import explained
from chainette.utils.call_site import caller_place

__all__ = ["Chooser", "Route", "RouteWay", "case_key"]

#: The name of the way of `default=`.
DEFAULT = "default"


@dataclass(frozen=True)
class RouteWay:
    """One way of a route."""

    #: The text of its case's key, "then" or "default".
    name: str
    #: The key's JSON; "" without `on=`.
    key: str
    #: Its own condition, if the route has no `on=`.
    when: Condition | None
    steps: tuple[Element, ...]


_HINTS = {
    "by": "on={value}",
    "condition": "when={value}",
    "else_": "default={value}",
    "id": "name={value}",
    "otherwise": "default={value}",
    "routes": "cases={value}",
    "steps": "then={value}",
    "switch": "on={value}",
    "ways": "cases={value}",
}


@explained(_HINTS)
@dataclass(frozen=True, eq=False, init=False)
class Route(Joinable):
    """Sends every row one way: that of the first case which fits, else `default`.

        Route("handle", on="{{ classify.kind }}",
              cases={"refund": [check_order, offer], "bug": [reproduce]}, default=[answer]).join("handled")
        Route("big_only", when=lambda row: row.amount > 100, then=[review])

    `on` is a template, whose lone `{{ x }}` gives the value itself, or a function of (item) or (item, history). `when`
    is one such condition with `then=`, or one for each of the `cases`, tried in the written order. A way may be `[]`. A row
    that fits no `when` and has no `default` passes by; a value of `on` outside the cases rejects the row (`no_case`).

    The decisions are durable before anything follows from them, and are written to `<name>/` (`row_id`, `_way`). Like a
    branch, a route works on a copy of the row: later nodes see the row before it, and the last output of the way that
    was taken if the route is joined: `.join(alias)`. Rows that take no way, or an empty one, have None there. If any way
    expands rows, the alias is a list for every way.

    Raises:
        DeclarationError: arguments that do not fit together, at the line that declares the route.
    """

    on: Condition | None
    ways: tuple[RouteWay, ...]

    def __init__(
        self,
        name: str,
        *,
        on: Given | None = None,
        when: Given | Mapping[str, Given] | None = None,
        cases: Mapping[Any, Sequence[Element]] | None = None,
        then: Sequence[Element] | None = None,
        default: Sequence[Element] | None = None,
        emoji: str = "",
    ) -> None:
        place = caller_place()
        check_name("route name", name)
        label = f"route {name!r}"
        _require_arguments(f"{place}: {label}", on, when, cases, then)
        chosen = Condition.of(f"{label}, on", on, place) if on is not None else None
        found = _cases(name, cases, place) if chosen is not None else _conditions(name, when, cases, then, place)
        if default is not None:
            found.append(RouteWay(DEFAULT, "", None, _steps(name, default, place)))
        _require_names(f"{place}: {label}", [way.name for way in found])
        self._set(id=name, name=name, emoji=emoji, place=place, on=chosen, ways=tuple(found), alias="")

    @property
    def default(self) -> RouteWay | None:
        """The way of rows that fit no case."""
        return next((way for way in self.ways if way.key == "" and way.when is None), None)

    @property
    def passes(self) -> bool:
        """Whether rows that fit no case pass by."""
        return self.on is None and self.default is None


@dataclass(frozen=True, eq=False)
class Chooser:
    """The function that decides for each row of a route."""

    route: Route

    def __call__(self, item: Any, history: Mapping[str, Any]) -> Way:
        """The way of one row.

        Raises: Undecided: no way is possible.
        """
        if self.route.on is not None:
            return Way(way=self._by_value(self.route.on.value(item, history)))
        for way in self.route.ways:
            if way.when is None or way.when.holds(item, history):
                return Way(way=way.name)
        return Way(way=None)

    def _by_value(self, value: Any) -> str:
        key = case_key(value)
        for way in self.route.ways:
            if key and way.key == key:
                return way.name
        if self.route.default is None:
            known = ", ".join(way.key for way in self.route.ways)
            raise Undecided(Reason.NO_CASE, f"route {self.route.id!r}: {value!r:.200} is none of the cases {known}")
        return self.route.default.name


def case_key(value: Any) -> str:
    """The value as a case compares it: its JSON, an enum by its value; "" if it is no single value, or no JSON."""
    while isinstance(value, Enum):
        value = value.value
    if isinstance(value, float) and not isfinite(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return msgspec.json.encode(value).decode()
    return ""


def _cases(name: str, cases: Any, place: Place) -> list[RouteWay]:
    """The ways of `on=`."""
    found = []
    for key, steps in cases.items():
        encoded = case_key(key)
        if not encoded:
            kinds = "text, a number, a bool, None or an enum's member"
            raise DeclarationError(f"{place}: route {name!r}: the case {key!r} must be {kinds}")
        way = msgspec.json.decode(encoded) if encoded.startswith('"') else encoded
        found.append(RouteWay(way, encoded, None, _steps(name, steps, place)))
    return found


def _conditions(name: str, when: Any, cases: Any, then: Any, place: Place) -> list[RouteWay]:
    """The ways of `when=`, in the order of their conditions."""
    if not isinstance(when, Mapping):
        when, cases = {"then": when}, {"then": then}
    conditions = {way: Condition.of(f"route {name!r}, when {way!r}", given, place) for way, given in when.items()}
    return [RouteWay(way, "", one, _steps(name, cases[way], place)) for way, one in conditions.items()]


def _steps(name: str, steps: Any, place: Place) -> tuple[Element, ...]:
    empty = isinstance(steps, Sequence) and not isinstance(steps, str) and not steps
    return () if empty else checked_elements(name, steps, place)


def _require_arguments(where: str, on: Any, when: Any, cases: Any, then: Any) -> None:
    problem = ""
    if (on is None) == (when is None):
        problem = "give either on= with cases=, or when= with then= (or one when per case)"
    elif isinstance(when, Mapping) and cases is not None and {*when} != {*cases}:
        problem = f"when= and cases= must have the same keys; only one has {', '.join(map(repr, {*when} ^ {*cases}))}"
    elif on is None and not isinstance(when, Mapping):
        if then is None or cases is not None:
            problem = "one when= goes with then=[...]; for several ways give when={way: condition} and cases={way: [...]}"
    elif not isinstance(cases, Mapping) or not cases or then is not None:
        problem = "cases= must map each case to its steps: cases={'refund': [...], 'bug': [...]}"
    if problem:
        raise DeclarationError(f"{where}: {problem}")


def _require_names(where: str, names: list[Any]) -> None:
    for name in names:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise DeclarationError(f"{where}: the way {name!r} must have a name that can be printed")
        if names.count(name) > 1:
            raise DeclarationError(f"{where}: two ways would be called {name!r}; name one differently")

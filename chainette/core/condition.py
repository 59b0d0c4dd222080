"""Conditions and other values a route or a loop takes from each row: a template, or a function of the row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chainette.core.decision import Undecided
from chainette.core.function_signature import hints_of, positional
from chainette.core.prompt import is_field
from chainette.errors import DeclarationError, Place, TemplateError
from chainette.records import Reason
from chainette.utils.call_site import caller_frame
from chainette.utils.templates import Expression
from chainette.utils.user_errors import RAISED, told

__all__ = ["Condition", "Given"]

#: A template, whose lone `{{ x }}` gives the value itself, or a function of (item) or (item, history).
Given = str | Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Condition:
    """One value per row."""

    #: Names it in messages: `route 'handle', on`.
    label: str
    given: Given
    expression: Expression | None
    #: Parameter (and "return") -> annotation, of a function.
    hints: Mapping[str, Any]
    #: The parameters a call gives: (item) or (item, history).
    parameters: tuple[str, ...]

    @classmethod
    def of(cls, label: str, given: Any, place: Place) -> Condition:
        """A condition as declared.

        Raises:
            DeclarationError: it is neither a template nor a function of (item) or (item, history).
        """
        if isinstance(given, str):
            try:
                return cls(label, given, Expression(given, label), {}, ())
            except TemplateError as error:
                raise DeclarationError(f"{place}: {error}") from error
        if not callable(given):
            raise DeclarationError(f"{place}: {label} is {given!r}; give a template like '{{{{ x.field }}}}' or a function")
        if inspect.iscoroutinefunction(given):
            raise DeclarationError(
                f"{place}: {label}: an async function cannot decide; call it in an apply(...) before, and read its row here"
            )
        taken = positional(given)
        if not 1 <= len(taken) <= 2:
            raise DeclarationError(f"{place}: {label} must take (item) or (item, history), it takes {len(taken)} parameters")
        return cls(label, given, None, hints_of(given, caller_frame().f_locals), tuple(taken))

    def value(self, item: Any, history: Mapping[str, Any]) -> Any:
        """The value for one row.

        Raises:
            Undecided: the template cannot be rendered, or the function raised.
        """
        if self.expression is not None:
            try:
                return self.expression.value(_context(self.expression.names, item, history))
            except TemplateError as error:
                raise Undecided(Reason.TEMPLATE_ERROR, str(error)) from error
        assert callable(self.given)
        try:
            return self.given(item, history) if len(self.parameters) > 1 else self.given(item)
        except RAISED as error:
            raise Undecided(Reason.APPLY_ERROR, f"{self.label} raised {told(error)}") from error

    def holds(self, item: Any, history: Mapping[str, Any]) -> bool:
        """Whether it is true for one row.

        Raises:
            Undecided: as `value`, or the value is neither True nor False.
        """
        found = self.value(item, history)
        if not isinstance(found, bool):
            reason = Reason.APPLY_ERROR if self.expression is None else Reason.TEMPLATE_ERROR
            raise Undecided(reason, f"{self.label} gave {found!r:.200}, neither True nor False")
        return found


def _context(names: frozenset[str], item: Any, history: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a template's names, as in a prompt: ids and aliases, `input` and its fields, `row_id`."""
    found = {name: history[name] for name in names if name in history}
    found |= {"input": item, "row_id": getattr(history, "row_id", "")}
    return found | {name: getattr(item, name) for name in names - found.keys() if is_field(item, name)}

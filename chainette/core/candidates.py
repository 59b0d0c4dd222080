"""Candidates: the answers of a step to one question asked several times (`Step(n=...)`), and the choice among them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import BaseModel

from chainette.core.annotations import NONE, type_name
from chainette.core.apply import Cardinality
from chainette.core.decision import Undecided
from chainette.core.dump import dump_model
from chainette.core.function_signature import hints_of, model_of, name_of, positional, row_of, without_none
from chainette.records import Reason
from chainette.utils.argument_advice import nearest
from chainette.utils.user_errors import RAISED, told

if TYPE_CHECKING:
    from chainette.core.history import History
    from chainette.core.step import Step

__all__ = [
    "MAJORITY",
    "MAX_CANDIDATES",
    "PASSED",
    "Enough",
    "Picker",
    "candidates_of",
    "invalid_candidate",
    "is_invalid",
    "pick_problem",
    "reason_of",
    "valid_list",
]

#: `pick=` of the most frequent candidate; `majority:field` compares one field.
MAJORITY = "majority"

#: Candidates of one row.
MAX_CANDIDATES = 1000

#: The output of a row that passes as it is.
PASSED = b"{}"

#: The beginning of an invalid candidate's value; no row of a model has such a field.
_INVALID = b'{"_reason":'

_encode = msgspec.json.encode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Invalid(msgspec.Struct, forbid_unknown_fields=True):
    reason: str = msgspec.field(name="_reason")
    message: str = msgspec.field(name="_message")


_invalid = msgspec.json.Decoder(_Invalid).decode


class Enough(BaseModel):
    """The value of a row that keeps all its candidates: enough of them are valid."""


def candidates_of(step: str) -> str:
    """The id and the folder of a step's candidates."""
    return f"{step}_candidates"


def invalid_candidate(reason: str, message: str) -> bytes:
    """The value of a candidate without a valid answer."""
    return _encode(_Invalid(reason, message))


def is_invalid(value: bytes) -> bool:
    """Whether a candidate's value is the reason for its lack of an answer."""
    return value.startswith(_INVALID)


def reason_of(value: bytes) -> tuple[str, str]:
    """(reason, message) of an invalid candidate.

    Raises:
        msgspec.MsgspecError: `invalid_candidate` did not write it.
    """
    found = _invalid(value)
    return found.reason, found.message


def valid_list(candidates: bytes) -> bytes:
    """The list of all candidates without the invalid ones, as JSON."""
    return b"[" + b",".join(bytes(value) for value in _items(candidates) if not is_invalid(bytes(value))) + b"]"


@dataclass(frozen=True, eq=False)
class Picker:
    """The function that chooses among the candidates of a row, or says that enough of them are valid."""

    step: Step[Any, Any]

    @property
    def cardinality(self) -> Cardinality:
        return Cardinality.OPTIONAL if callable(self.step.pick) else Cardinality.ONE

    @property
    def said(self) -> str:
        """The choice in a few words."""
        chosen = f"picks by {self.chosen}" if self.chosen else "keeps all valid ones"
        return f"{chosen}, at least {self.step.min_valid} valid" if self.step.min_valid > 1 else chosen

    @property
    def chosen(self) -> str:
        """`pick=` as text."""
        pick = self.step.pick
        return name_of(pick) if callable(pick) else pick or ""

    def __call__(self, _item: Any, history: History) -> Any:
        """The chosen row; None drops.

        Raises:
            Undecided: too few candidates are valid, or the function raised.
        """
        values = [bytes(value) for value in _items(history.received)]
        valid = [value for value in values if not is_invalid(value)]
        if len(valid) < self.step.min_valid:
            raise self._too_few(values, len(valid))
        if self.step.pick is None:
            return Enough()
        models = [self.step.output_model.model_validate_json(value) for value in valid]
        if not callable(self.step.pick):
            return _most_frequent(models, self.step.pick.partition(":")[2])
        try:
            return self.step.pick(models)
        except RAISED as error:
            raise Undecided(Reason.APPLY_ERROR, f"pick of step {self.step.id!r} raised {told(error)}") from error

    def _too_few(self, values: Collection[bytes], valid: int) -> Undecided:
        """The rejection: with the last candidate's reason if none is valid."""
        reasons = [reason_of(value) for value in values if is_invalid(value)]
        reason, message = reasons[-1]
        if not valid:
            return Undecided(Reason(reason), f"none of the {len(values)} candidates is valid; the last: {message}")
        wanted = f"min_valid is {self.step.min_valid}"
        return Undecided(Reason.TOO_FEW, f"{valid} of {len(values)} candidates valid, {wanted}; the last invalid: {message}")


def _most_frequent(models: list[Any], name: str) -> Any:
    """The first model of the largest group of equal ones, by the JSON of one field or of the whole; the earliest of equals."""
    groups: dict[bytes, list[Any]] = {}
    for model in models:
        groups.setdefault(_canonical(model, name), []).append(model)
    return max(groups.values(), key=len)[0]


def _canonical(model: BaseModel, name: str) -> bytes:
    """The JSON that says whether two models are equal, whatever the order of their keys."""
    value = msgspec.json.decode(dump_model(model))
    if name:
        value = value.get(_written_as(type(model), name))
    return _encode(value, order="deterministic")


def _written_as(model: type[BaseModel], name: str) -> str:
    """The key of a field in a row's JSON."""
    info = model.model_fields[name]
    return info.serialization_alias or info.alias or name


# -- checks


def pick_problem(pick: object, model: type[BaseModel], local: Mapping[str, Any]) -> str:
    """Why `pick=` cannot choose among answers of this model; "" if it can. `local`: names of the calling function."""
    if isinstance(pick, str):
        kind, separator, name = pick.partition(":")
        if kind != MAJORITY or (separator and not name):
            return f"pick is {pick!r}; give 'majority', 'majority:field' or a function of the list of candidates"
        if name and name not in model.model_fields:
            return f"pick is {pick!r}, but {model.__name__} has no field {name!r}{nearest(name, model.model_fields)}"
        return ""
    if not callable(pick):
        return f"pick is {pick!r}; give 'majority', 'majority:field' or a function of the list of candidates"
    return _function_problem(pick, model, local)


def _function_problem(pick: Callable[..., Any], model: type[BaseModel], local: Mapping[str, Any]) -> str:
    name, parameters, hints = f"pick={name_of(pick)}", positional(pick), hints_of(pick, local)
    if inspect.iscoroutinefunction(pick):
        return f"{name} is async; leave pick out, and choose in an apply(...) after the step"
    if len(parameters) != 1:
        return f"{name} must take (candidates), it takes {len(parameters)} parameters"
    taken, given = hints.get(parameters[0]), hints.get("return")
    one, (kept, _) = model_of(row_of(taken)), without_none(given)
    if model_of(taken) is not None or (one is not None and not issubclass(model, one)):
        return f"{name} takes {type_name(taken)}, but the candidates are list[{model.__name__}]"
    wrong = isinstance(kept, type) and kept not in (Any, NONE) and not (issubclass(kept, model) or issubclass(model, kept))
    if wrong or row_of(given) is not None:
        return f"{name} gives {type_name(given)}, not {model.__name__} or None"
    return ""

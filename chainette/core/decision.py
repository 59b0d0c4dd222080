"""Decisions: the way that a row takes, as it is written and read back."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from chainette.records import Reason

__all__ = ["Undecided", "Way", "decision_fault", "way_branch", "way_of"]


class Way(BaseModel):
    """A row of a route's folder."""

    model_config = ConfigDict(validate_by_name=True)

    #: None: no case holds, and the row passes by.
    way: str | None = Field(alias="_way")


class Undecided(Exception):
    """Nothing can be decided for a row, which is rejected for this reason."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Decision(msgspec.Struct, forbid_unknown_fields=True):
    way: str | None = msgspec.field(name="_way")


_decode = msgspec.json.Decoder(_Decision).decode


def way_of(decision: bytes) -> str:
    """The way in a decision's JSON; "" if the row passes by."""
    return _decode(decision).way or ""


def way_branch(decision: str, way: str) -> str:
    """The name of a way among the branches of a plan; no id can clash with it."""
    return f"{decision}:{way}"


def decision_fault(value: bytes, ways: Collection[str]) -> str:
    """Why these bytes are no decision for one of the ways; "" if they are."""
    try:
        found = _decode(value)
    except msgspec.MsgspecError as error:
        return f"a row is no decision ({error})"
    if value != msgspec.json.encode(found) or (found.way or "") not in ways or found.way == "":
        return "a row is no decision as a route writes it"
    return ""

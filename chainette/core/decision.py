"""Decisions: the way that a row takes, as it is written and read back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from chainette.records import Reason

__all__ = ["LastRound", "RoundEnd", "Undecided", "Way", "decision_fault", "round_end_of", "way_branch", "way_of"]


class Way(BaseModel):
    """A row of a route's folder."""

    model_config = ConfigDict(validate_by_name=True)

    #: None: no case holds, and the row passes by.
    way: str | None = Field(alias="_way")


class RoundEnd(BaseModel):
    """A row of a loop's folder, one for each round; "again", "ended", or "kept" although no round satisfied the loop."""

    model_config = ConfigDict(validate_by_name=True)

    way: Literal["again", "ended", "kept"] = Field(alias="_way")
    #: The round whose result the row has if it ends here, and the number by which it was chosen.
    taken: int = Field(alias="_taken")
    score: float | None = Field(alias="_score")


class LastRound(BaseModel):
    """The round whose result a row has, as a column of `flattened/`."""

    model_config = ConfigDict(validate_by_name=True)

    round: int = Field(alias="_round")


class Undecided(Exception):
    """No decision is possible for a row; it is rejected for this reason."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Decision(msgspec.Struct, forbid_unknown_fields=True):
    way: str | None = msgspec.field(name="_way")
    taken: int | msgspec.UnsetType = msgspec.field(name="_taken", default=msgspec.UNSET)
    score: float | msgspec.UnsetType | None = msgspec.field(name="_score", default=msgspec.UNSET)


_decode = msgspec.json.Decoder(_Decision).decode


def way_of(decision: bytes) -> str:
    """The way in a decision's JSON; "" if the row passes by."""
    return _decode(decision).way or ""


def round_end_of(decision: bytes) -> tuple[int, float | None]:
    """The round a loop's decision takes, and its number."""
    found = _decode(decision)
    return int(found.taken or 0), found.score if isinstance(found.score, float) else None


def way_branch(decision: str, way: str) -> str:
    """The name of a way among the branches of a plan; no id can clash with it."""
    return f"{decision}:{way}"


def decision_fault(value: bytes, ways: Collection[str], round: int | None) -> str:
    """The reason why these bytes decide for none of the ways; "" if they do. `round`: the round of a loop."""
    try:
        found = _decode(value)
    except msgspec.MsgspecError as error:
        return f"a row is no decision ({error})"
    known = found.taken is msgspec.UNSET if round is None else found.taken in range(1, round + 1)
    if not known or (found.way or "") not in ways or found.way == "" or b"\n" in value or value[:1] + value[-1:] != b"{}":
        return "a row is not a decision of a route or a loop"
    return ""

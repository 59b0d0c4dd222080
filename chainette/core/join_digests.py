"""Digests of the values that joins gave to rows.

A worker sends with each result the digest of the joined values that it worked on. The sink computes the same digest from the
durable rows. So if a join lacked a row of its branches, the sink notices before it writes anything that follows from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from chainette.core.plan import Plan
from chainette.records import Row

__all__ = ["digest_of_all", "given_by_joins", "joined_digest"]

_BYTES = 16

_pack = msgspec.msgpack.Encoder().encode


def given_by_joins(plan: Plan, rows: Iterable[Row]) -> bytes:
    """The digest of the joined values of these rows, in any order; b"" if no join gave them any."""
    names = _names(plan)
    return digest_of_all({row.row_id: joined_digest(plan, row) for row in rows}) if names else b""


def joined_digest(plan: Plan, row: Row) -> bytes:
    """The digest of one row's joined values; b"" if it has none."""
    values = [(name, row.values[name]) for name in _names(plan) if name in row.values]
    return hashlib.blake2b(_pack(values), digest_size=_BYTES).digest() if values else b""


def digest_of_all(digests: Mapping[str, bytes]) -> bytes:
    """One digest of the rows' digests, in the order of their ids."""
    given = sorted((row_id, digest) for row_id, digest in digests.items() if digest)
    return hashlib.blake2b(_pack(given), digest_size=_BYTES).digest() if given else b""


def _names(plan: Plan) -> tuple[str, ...]:
    """The aliases of all joins."""
    found: tuple[str, ...] | None = plan.memo.get(("aliases", ""))
    if found is None:
        found = tuple(sorted({join.alias for fork in plan.forks.values() for join in fork.joins}))
        plan.memo["aliases", ""] = found
    return found

"""Fields of Redis hashes: each is read by itself, and garbage in one costs that one alone."""

from __future__ import annotations

import msgspec
import pytest

from chainette.fleet.protocol.member_fields import Member, listed
from chainette.fleet.protocol.run_fields import Counts, RunInfo
from tests.support.fleet import record

GARBAGE = [
    b"",
    b"\xff\xfe",
    b"many",
    b"-7",
    b"1e999",
    b"nan",
    b"9" * 400,
    b"[" * 100_000,
    b'{"a":' + b"[" * 100_000,
    b"{",
    b"null",
    b'{"nodes": {"n": [1]}}',
    b"x" * (5 << 20),
]

TYPED = [field.encode_name for field in msgspec.structs.fields(RunInfo) if field.type is not str]


def read(**fields: bytes) -> RunInfo:
    found = {b"state": b"running", b"epoch": b"0"} | {name.encode(): value for name, value in fields.items()}
    info = RunInfo.of("r1", found, found.get(b"order"))
    assert info is not None
    return info


@pytest.mark.parametrize("name", sorted({*TYPED, "reason"} - {"run", "refusals", "wrong"}))
def test_garbage_in_one_field_costs_that_field_alone_whatever_it_is(name: str) -> None:
    for garbage in GARBAGE:
        info = read(**{"cursor": b"3", "chain_ref": b"chain.py:chain", name: garbage})
        assert set(info.wrong) <= {name}
        assert name == "cursor" or info.cursor == 3


def test_a_field_with_the_name_of_the_run_or_of_what_is_wrong_is_not_believed() -> None:
    info = read(run=b"another", wrong=b'["x"]', refusals=b'{"w": "x"}')
    assert (info.run, info.wrong, info.refusals) == ("r1", (), {})


def test_fields_that_are_written_read_back_the_same() -> None:
    counts = Counts(3, None, {"first": (3, 2, 1, 0)})
    words = RunInfo.words(counts=counts, simulate=True, seed=-4, engines={"a": "d"}, window=7, order={"x": 1})
    assert words["simulate"] == 1 and words["window"] == 7
    info = read(**{name: str(value).encode() for name, value in words.items()})
    assert (info.counts, info.simulate, info.seed, info.engines, info.window) == (counts, True, -4, {"a": "d"}, 7)
    assert info.order == '{"x":1}' and info.wrong == ()


def test_only_fields_that_are_declared_can_be_written() -> None:
    with pytest.raises(AssertionError, match="Member has no field colour"):
        Member.words(colour="red")


def test_a_run_without_a_state_is_closed() -> None:
    assert RunInfo.of("r1", {b"epoch": b"0"}) is None


def test_what_members_refuse_is_kept_by_member_and_cut() -> None:
    info = read(**{"refused:w-1": b"no such chain", "refused:w-2": b"", "refused:w-3": b"\xff" * 9000})
    assert info.refusals["w-1"] == "no such chain" and "w-2" not in info.refusals and len(info.refusals["w-3"]) <= 2000


def test_a_record_is_damaged_by_what_is_missing_or_garbage_unless_it_is_written_all_the_time() -> None:
    assert record("r1").damage == ""
    assert record("r1", counts="[", still="-1").damage == ""
    assert record("r1", window="-1", state="dancing").damage == "state, window"
    assert "cursor" in read().damage and "seed" in read().damage, "they are missing"


def test_engines_of_a_member_are_read_as_they_were_listed() -> None:
    names = ["gpt-4.1", "meta/llama 3, v1", "python"]
    assert Member.read({b"engines": listed(names).encode()}).engines == names
    assert Member.read({b"engines": b"\xff", b"pid": b"x", b"swapping": b"inf"}) == Member(wrong=("engines", "swapping", "pid"))

"""`--reuse` in a fleet: workers ask the sink of their run, and whatever gets lost between them costs no answer.

Coordinator, sink and worker are the real ones, in threads over a real Valkey.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any, cast
from unittest import mock

import pytest
from chainette_workers.sink import reused_answers
from chainette_workers.worker import asked_answers
from chainette_workers.worker.configuration import WorkerConfig

from chainette import Chain
from chainette.core.usercode.loading import load_chain
from chainette.errors import DamagedRun, InputError
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.seals import FleetKey, NoKey, Unsealed
from chainette.fleet.redis.answer_lookups import Found, Lookups, Question
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.io.rundir.result import RunResult
from chainette.run.answer_sources import AnswerSources
from chainette.run.stored_answers import StoredAnswers
from tests.integration.test_fleet_trouble import Driven
from tests.support.cli import Project
from tests.support.serving import serving
from tests.support.valkey import Database, connect

ROWS = 24


class Site:
    """A chain of two steps, a function and branches, and a finished run of it."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url
        Project(path, rows=ROWS)
        self.chain: Chain = load_chain("chain.py", path).chain
        self.first = self.chain.run(path / "in.jsonl", path / "first")

    def run(self) -> RunResult:
        """The same run through a worker, with the answers of the first."""
        config = WorkerConfig(self.url, ["writer", "judge"], str(self.path), 64)
        with serving(config):
            return self.chain.run(
                self.path / "in.jsonl",
                self.path / "out",
                chain_ref="chain.py",
                chain_root=str(self.path),
                drive=Driven(self.url),
                reuse=self.path / "first",
            )

    def require_nothing_asked(self, result: RunResult) -> None:
        """Every row of every step is there, and none was asked for."""
        assert names(result) == names(self.first) and len(names(result)) == ROWS
        usage, counts = result.metadata["usage"], result.counts
        assert (usage["requests"], usage["prompt_tokens"]) == (0, 0)
        assert [counts[step]["reused"] for step in ("extract", "split", "side", "grade")] == [ROWS] * 4
        assert result.metadata["balanced"]


def names(result: RunResult) -> dict[str, str]:
    return {row["row_id"]: row["name"] for row in result.rows("extract")}


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Iterator[Site]:
    with mock.patch.object(asked_answers, "_ANEW", 0.1):
        yield Site(tmp_path, database.url)


@contextmanager
def loses(method: str, times: int) -> Iterator[list[Any]]:
    """The first calls of a method of Lookups have no effect; gives the arguments of all calls."""
    calls: list[Any] = []
    kept = getattr(Lookups, method)

    def call(self: Lookups, *arguments: Any) -> Any:
        calls.append(arguments)
        return kept(self, *arguments) if len(calls) > times else None

    with mock.patch.object(Lookups, method, call):
        yield calls


def test_questions_and_replies_that_are_lost_or_too_long_cost_no_answer(site: Site) -> None:
    with mock.patch.object(reused_answers, "_FULL", 40), loses("ask", 2), loses("reply", 2) as replies:
        site.require_nothing_asked(site.run())
    assert any(len(found.outputs) < 8 for _, _, found in replies[2:])  # of units of 8 rows


def test_a_unit_goes_back_while_its_sink_does_not_look_and_costs_no_answer(site: Site) -> None:
    kept, failed = FleetQueue.fail, list[str]()

    def fail(self: FleetQueue, claim: Any, incarnation: str, delay: float, message: str) -> bool:
        failed.append(message)
        return kept(self, claim, incarnation, 0.01, message)

    with mock.patch.object(FleetQueue, "fail", fail), loses("next", 40):
        site.require_nothing_asked(site.run())
    assert failed and all("does not look for rows of earlier runs" in message for message in failed)


def test_a_damaged_earlier_run_ends_the_run_that_takes_from_it(site: Site, database: Database) -> None:
    database.may_leave("*")  # the run may go on
    shard = site.path / "first" / "extract" / "0.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b"row_id", b"row_if"))
    with pytest.raises(DamagedRun, match=r"extract/0\.jsonl"):
        site.run()


def test_a_run_that_is_interrupted_does_not_wait_until_its_earlier_runs_are_indexed() -> None:
    begun, may_end, ended = Event(), Event(), Event()

    def slow(_sources: AnswerSources) -> StoredAnswers:
        begun.set()
        may_end.wait(60)
        ended.set()
        raise InputError("too late for anybody")

    unused = cast("Any", None)
    with mock.patch.object(StoredAnswers, "open", slow), mock.patch.object(reused_answers, "_LEAVE", 0.01):
        with reused_answers.answering(AnswerSources((), ""), unused, mock.Mock(), unused):
            begun.wait()
        assert not ended.is_set()
        may_end.set()
        ended.wait()


def test_only_questions_and_replies_of_our_own_are_heard(database: Database) -> None:
    keys = RunKeys("20261130-1", 3)
    with connect(database.url) as client:
        lookups = Lookups(client, NoKey())
        client.set(keys.asked, "a text")
        lookups.ask(keys, Question("t", "ask", {}))  # is lost
        assert lookups.next(keys) is None and not client.exists(keys.asked)
        lookups.ask(keys, Question("t", "ask", {"0": b"k" * 16}))
        assert 0 < client.ttl(keys.asked) <= 60
        assert lookups.next(keys) == Question("t", "ask", {"0": b"k" * 16}) and lookups.next(keys) is None
        client.rpush(keys.found("t"), "a list")
        assert lookups.found(keys, "t") is None
        client.set(keys.found("u"), b"\xc1")
        assert lookups.found(keys, "u") is None
        lookups.reply(keys, "v", Found({"0": []}))
        assert 0 < client.ttl(keys.found("v")) <= 60
        assert lookups.found(keys, "v") == Found({"0": []}) and lookups.found(keys, "v") is None
        client.delete(keys.found("t"))


def test_with_a_key_only_sealed_questions_and_replies_are_heard(database: Database) -> None:
    keys, question, found = RunKeys("20261130-1", 3), Question("t", "ask", {"0": b"k" * 16}), Found({"0": []})
    with connect(database.url) as client:
        plain, sealed = (Lookups(client, seals) for seals in (NoKey(), FleetKey("a long fleet key, for a test")))
        plain.ask(keys, question)
        with pytest.raises(Unsealed):
            sealed.next(keys)
        sealed.ask(keys, question)
        assert sealed.next(keys) == question
        plain.reply(keys, "t", found)
        assert sealed.found(keys, "t") is None
        sealed.reply(keys, "t", found)
        client.rename(keys.found("t"), keys.found("u"))
        assert sealed.found(keys, "u") is None
        sealed.reply(keys, "t", found)
        assert sealed.found(keys, "t") == found

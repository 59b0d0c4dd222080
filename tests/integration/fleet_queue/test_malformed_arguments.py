"""Every script refuses every malformed argument before it writes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
import redis

from chainette.engine.budget import Amounts
from chainette.fleet.protocol.messages import Aside
from chainette.fleet.protocol.queue_values import EngineAccount, Lost
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board, Order, Role
from chainette.fleet.redis.script_calls import SCRIPTS, Scripts
from chainette.io.rundir.event_types import EngineReleased
from tests.support.claims import claim_one
from tests.support.fleet import QueueRun, snapshot
from tests.support.outcomes import process


def valid_arguments(run: QueueRun) -> dict[str, dict[str, Any]]:
    """A call of each script that would write."""
    claim = run.take("w1")
    calls: dict[str, dict[str, Any]] = {}

    class Spy(FleetQueue):
        def _call(self, name: str, **arguments: Any) -> Any:
            calls[name] = arguments
            replies = {"claim": [b"OK"], "install": [b"BEHIND", 1], "reconcile": b"1", "close": b"NOT NOW"}
            return {**replies, "reserve": [b"OK", 1, 0, b"0 0 0 0", b"0 0 0 0"], "share_answers": [b"OK", 1]}.get(name, b"OK")

    spy = Spy(run.client)
    with pytest.raises(Lost):
        run.install(spy)
    calls["install"]["epoch"] = 1
    run.admit(k=1, queue=spy)
    spy.attach(run.keys.run, 0, run.owner, run.anchor)
    spy.ack(run.keys, run.owner, run.anchor, [0])
    with pytest.raises(Lost):
        spy.close(run.keys.run, 0, run.owner, run.queues)
    spy.set_state(run.keys.run, "paused")
    spy.bar(run.keys, run.owner, run.queues)
    spy.end_of_input(run.keys, 1)
    spy.missing(run.keys, [0])
    spy.note(run.keys.run, EngineReleased(engine="e"))
    claim_one(spy, "w1", "t", run.pairs)
    spy.beat("w1", {"engines": "e"})
    part = anyio.run(process, run.plan, claim.piece(["0"]), None)
    spy.commit(claim, "w1", run.plan, part, "t", ["0"])
    spy.split(claim, "w1", run.plan)
    calls["stage"] = {key: calls["split"][key] for key in ("job", "token", "incarnation", "scope")}
    calls["stage"] |= {"entry": "t", "number": 0, "seconds": 1.0, "body": b"x"}
    spy.start(claim, "w1")
    spy.fail(claim, "w1", 1.0, "why")
    spy.release(claim, "w1")
    spy.bury(claim, "w1", "why")
    run.client.hset(run.keys.state, "used", "0 0 0 0")
    spy.reserve(run.keys, "w1", "t", (1, 1, 1, 1), Amounts(), 0, [Amounts(1)], EngineAccount("e", "d", (1, 1, 1, 1)))
    spy.share(run.keys, "w1", [16 * b"q"], [(16 * b"r", b"answer")], [16 * b"s"])
    spy.reconcile("w1", [claim])
    spy.leave("w1")
    board = Board(run.client)
    board._scripts = cast("Scripts", SimpleNamespace(call=spy._call))
    board.ask("run-c", Order(chain_ref="c", digest="d", inputs=("i",), directory="o"))
    board.beat("s1", {"kind": "sink"})
    board.take(run.keys.run, Role.SINK, "s1")
    board.drop(run.keys.run, Role.SINK, run.owner)
    board.say(run.keys.run, {"counts": "1"})
    board.revive(run.keys.run)
    spy.put_aside(run.keys.run, [Aside("why", "1-1", b"x")], 0)
    return calls


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be wrong: every argument, and everything inside of it."""
    if path:
        yield path
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list):
        for index, part in enumerate(value[:1]):
            yield from places(part, (*path, index))


#: Values that no argument takes, but for those that `harmless` names.
WRONG: tuple[Any, ...] = (None, {}, [[]], True, float("nan"))


#: Arguments a script takes unchecked: truth values, and a worker's description of itself.
FREE = {("claim", "alone"), ("claim", "ahead")}


@pytest.mark.long
def spoiled(value: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    if not path:
        return wrong
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = spoiled(value[path[0]], path[1:], wrong)
    return copy


def test_every_script_refuses_every_malformed_argument_before_it_writes(run: QueueRun) -> None:
    calls = valid_arguments(run)
    assert set(calls) == set(SCRIPTS) - {"reap", "mend"}
    tried = 0
    for name, arguments in calls.items():
        for path in places(arguments):
            for wrong in WRONG:
                if (name, path[0]) in FREE or harmless(name, path, wrong):
                    continue
                before = snapshot(run.client)
                with pytest.raises(redis.ResponseError):
                    print(name, path, wrong, run.queue._call(name, **spoiled(arguments, path, wrong)))
                assert snapshot(run.client) == before, (name, path, wrong)
                tried += 1
    assert tried > 300


def harmless(name: str, path: tuple[Any, ...], wrong: Any) -> bool:
    """An empty list or map where one is expected, and a number that equals nothing."""
    if (
        len(path) > 1
        and path[0] in ("fields", "known", "about")
        and path[1] != "window"
        and (wrong is None or isinstance(wrong, float))
    ):
        return True  # the name is not there, or has another value
    if wrong is None and isinstance(path[-1], int):
        return True  # a list ends there
    if wrong is True and path[-1] == "as_admitted":
        return True  # the other truth value
    if wrong is None and name == "commit" and path == ("rows",):
        return True  # all rows that are left, which the unit does not allow
    lists = ("units", "scopes", "partials", "stopped", "roots", "words", "asides", "entries", "needs", "wanted", "answers")
    container = path[-1] in ("given_up", "about", "queues", "fields", "effects", "known", *lists)
    return wrong == {} and container and path[-1] != "effects"

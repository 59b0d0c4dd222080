"""A run whose Redis fails it: calls that did not arrive, lost replies, data that are gone, a server that dies.

Coordinator, sink and workers are the real ones, in threads; the rows are always those of a local run.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import redis
from chainette_workers.sink.drive import DriveLoop
from chainette_workers.sink.redis_fleet import RedisFleet
from chainette_workers.worker.configuration import WorkerConfig

from chainette import Chain
from chainette.core.durable import Durable
from chainette.core.plan import Plan
from chainette.core.usercode.loading import load_chain
from chainette.errors import RunDirectoryInUse, RunStopped
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.queue_values import Entry
from chainette.fleet.redis.connect import connect
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.writer import RunWriter
from chainette.run.session import Session
from tests.support.chains import content
from tests.support.cli import Project, logged, until
from tests.support.patience import LONG
from tests.support.proxy import FaultProxy
from tests.support.serving import serving
from tests.support.valkey import Database, Server

ROWS = 96


class Site:
    """A chain file, an input of twelve roots, and the rows it must come to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.project = Project(path, rows=ROWS)
        with (path / "in.jsonl").open("a") as file:
            file.write("{bad\n")
        self.chain: Chain = load_chain("chain.py", path).chain
        self.expected = content(self.chain.run(path / "in.jsonl", path / "local"))

    def run(self, drive: Any, *, resume: bool = False) -> RunResult:
        return self.chain.run(
            self.path / "in.jsonl",
            self.path / "out",
            chain_ref="chain.py",
            chain_root=str(self.path),
            drive=drive,
            resume=resume,
        )

    def require_whole(self, result: RunResult) -> None:
        assert content(result) == self.expected
        assert result.metadata["balanced"] and result.metadata["records"] == ROWS + 1

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in logged(self.path / "out") if event["type"] == kind]

    @contextmanager
    def worker(self, url: str) -> Iterator[None]:
        """A worker that serves everything, until the end of the block."""
        config = WorkerConfig(url, ["writer", "judge"], str(self.path), 64)
        with serving(config):
            yield


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


class Failing(FleetQueue):
    """Of each call, the first does not arrive, and the second happens without a reply."""

    CALLS = ("install", "attach", "admit", "end_of_input", "progress", "record", "read", "ack", "bar", "notes", "close")

    def __init__(self, connection: redis.Redis) -> None:
        super().__init__(connection)
        self.made: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return partial(self._fail, name, found) if name in Failing.CALLS else found

    def _fail(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        self.made[name] += 1
        if self.made[name] == 1:
            raise redis.ConnectionError(f"{name} did not arrive")
        found = call(*arguments)
        if self.made[name] == 2:
            raise redis.TimeoutError(f"the reply to {name} is lost")
        return found


class Driven:
    """A drive with a queue of the test's, that stops by itself after so many moves."""

    attaches: ClassVar[bool] = True
    way: ClassVar[dict[str, str]] = {}

    def check(self, _plan: Plan, /) -> None:
        """Nothing keeps it."""

    def __init__(self, url: str, kind: type[FleetQueue] = FleetQueue, *, window: int = 64, moves: int | None = None) -> None:
        self.url, self.kind, self.window, self.left = url, kind, window, moves
        self.queue: FleetQueue | None = None

    def __call__(self, session: Session) -> None:
        with connect(self.url) as client:
            self.queue = self.kind(client)
            DriveLoop(session, self.queue, Board(client), {}, self.window, tend=self.tend).run()

    def clean(self, run: str) -> None:
        raise AssertionError(f"nothing is left of {run}")

    def tend(self, moved: bool) -> None:
        if self.left is not None and moved:
            self.left -= 1
            if self.left < 0:
                raise RunStopped("enough for now")


@pytest.mark.long
def test_calls_that_do_not_arrive_and_replies_that_are_lost_cost_nothing(site: Site, database: Database) -> None:
    drive = Driven(database.url, Failing)
    with site.worker(database.url):
        result = site.run(drive)
    site.require_whole(result)
    assert isinstance(drive.queue, Failing)
    assert {name for name in Failing.CALLS if drive.queue.made[name] > 2} >= set(Failing.CALLS) - {
        "attach",
        "install",
        "close",
        "bar",
    }


class LettingGo(Driven):
    """Counts the units that are durable, and the ends of the run, when it needs its workers no more."""

    def __init__(self, url: str, site: Site) -> None:
        super().__init__(url)
        self.site, self.seen = site, list[tuple[int, int]]()

    def __call__(self, session: Session) -> None:
        with connect(self.url) as client:
            DriveLoop(session, FleetQueue(client), Board(client), {}, self.window, let_go=self.look).run()

    def look(self) -> None:
        self.seen.append((len(self.site.events("unit_committed")), len(self.site.events("run_finished"))))


@pytest.mark.long
def test_workers_may_go_once_every_row_is_durable_and_before_the_run_is_finished(site: Site, database: Database) -> None:
    drive = LettingGo(database.url, site)
    with site.worker(database.url):
        result = site.run(drive)
    site.require_whole(result)
    assert drive.seen == [(len(site.events("unit_committed")), 0)] and len(site.events("run_finished")) == 1


class Forgetful(FleetQueue):
    """A Redis that dies after an acknowledgement and comes back without it, as one that syncs once a second may."""

    acks = 0

    def ack(self, *arguments: Any) -> None:
        self.acks += 1
        if self.acks != 3:
            super().ack(*arguments)

    def notes(self, *arguments: Any) -> Any:
        if self.acks == 3:
            self.acks += 1
            raise redis.ConnectionError("it was away for a moment")
        return super().notes(*arguments)


@pytest.mark.long
def test_a_redis_that_comes_back_without_the_last_acknowledgement_gives_the_credit_back_all_the_same(
    site: Site, database: Database
) -> None:
    drive = Driven(database.url, Forgetful, window=16)
    with site.worker(database.url):
        result = site.run(drive)
    site.require_whole(result)
    assert isinstance(drive.queue, Forgetful) and drive.queue.acks > 4


@pytest.mark.long
@pytest.mark.parametrize("moves", [1, 3, 6])
@pytest.mark.parametrize("kind", [FleetQueue, Failing])
def test_a_driver_that_stops_anywhere_is_gone_on_with_where_it_was(
    site: Site, database: Database, moves: int, kind: type[FleetQueue]
) -> None:
    with site.worker(database.url):
        with pytest.raises(RunStopped, match="enough"):
            site.run(Driven(database.url, window=24, moves=moves))
        result = site.run(Driven(database.url, kind, window=24), resume=True)
    site.require_whole(result)
    assert {event.get("epoch", 0) for event in site.events("unit_committed")} == {0}, "work was thrown away"


@pytest.mark.long
def test_a_raised_setting_begins_an_epoch_of_the_fleet(site: Site, database: Database) -> None:
    with site.worker(database.url), pytest.raises(RunStopped, match="enough"):
        site.run(Driven(database.url, window=24, moves=6))
    file = site.path / "chain.py"
    file.write_text(file.read_text().replace("max_attempts=1", "max_attempts=2"))
    site.chain = load_chain("chain.py", site.path).chain
    with site.worker(database.url):
        result = site.run(Driven(database.url, window=24), resume=True)
    site.require_whole(result)
    [resumed] = site.events("run_resumed")
    assert resumed["epoch"] == 1
    assert resumed["graph"]["nodes"][-1]["rescue"] == {"max_attempts": 2, "escalate": [], "max_tokens": 1024}


class StoppedEarly(Driven):
    """Stops once a root has durable rows and is not complete."""

    def __call__(self, session: Session) -> None:
        self.roots = session.writer.state.roots
        super().__call__(session)

    def tend(self, moved: bool) -> None:
        if moved and self.roots.lines:
            raise RunStopped("enough for now")


@pytest.mark.long
def test_the_coordinator_and_the_sink_read_an_incomplete_root_once_each(site: Site, database: Database) -> None:
    with serving(WorkerConfig(database.url, ["writer"], str(site.path), 64)), pytest.raises(RunStopped, match="enough"):
        site.run(StoppedEarly(database.url))  # no root is complete without the judge
    database.client.flushdb()
    reads, read = Counter[int](), RunWriter.durable

    def durable(self: RunWriter, root: int) -> Durable | None:
        found = read(self, root)
        reads[root] += found is not None
        return found

    with site.worker(database.url), mock.patch.object(RunWriter, "durable", durable):
        result = site.run(Driven(database.url, window=24), resume=True)
    site.require_whole(result)
    assert {*(+reads).values()} == {2}


@pytest.mark.long
def test_a_link_that_breaks_all_the_time_costs_nothing(site: Site, database: Database, proxy: FaultProxy) -> None:
    over = threading.Event()
    chance = random.Random(7)

    def break_it() -> None:
        while not over.wait(0.05):
            proxy.lose_reply_to(b"")  # every other call gets through, however rare calls are
            match chance.randrange(4):
                case 0:
                    proxy.reset()
                case 1 | 2:
                    proxy.lose_reply_to(b"EVALSHA")

    thread = threading.Thread(target=break_it)
    thread.start()
    try:
        with site.worker(proxy.url):
            result = site.run(RedisFleet(proxy.url))
            over.set()
            thread.join()
            proxy.heal()
    finally:
        over.set()
        thread.join()
    site.require_whole(result)


class Background:
    """A run in a thread of its own."""

    def __init__(self, site: Site, drive: Any) -> None:
        self.found: list[RunResult | BaseException] = []

        def run() -> None:
            try:
                self.found.append(site.run(drive))
            except Exception as error:
                self.found.append(error)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def end(self) -> RunResult | BaseException:
        self._thread.join(LONG)
        assert not self._thread.is_alive()
        return self.found[0]


@pytest.mark.long
@pytest.mark.parametrize("loss", ["payload", "garbage", "stream", "everything"])
def test_data_that_are_gone_from_redis_come_again_out_of_what_is_durable(site: Site, database: Database, loss: str) -> None:
    client = database.client
    run = Background(site, Driven(database.url))
    [payload] = until(lambda: list(client.scan_iter("chainette:*:u:*"))[:1])
    match loss:
        case "payload":
            client.delete(payload)
        case "garbage":
            client.set(payload, b"\xc1\xc1")
        case "stream":
            database.may_leave("chainette:aside:*")
            [stream] = client.scan_iter("chainette:*:0:stream")
            client.xadd(stream, {"k": "unit", "t": "x", "r": "0", "e": b"\xc1"})
        case "everything":
            client.flushall()
    with site.worker(database.url):
        result = run.end()
    assert isinstance(result, RunResult)
    site.require_whole(result)
    assert len(site.events("run_resumed")) == 1
    if loss in ("payload", "garbage"):
        [said] = site.events("worker_refused")
        assert "buried" in said["reason"]


def test_a_run_knows_its_workers_and_engines_also_where_those_were_loaded_for_another(site: Site, database: Database) -> None:
    with site.worker(database.url):
        site.run(RedisFleet(database.url))
        again = site.chain.run(
            site.path / "in.jsonl",
            site.path / "again",
            chain_ref="chain.py",
            chain_root=str(site.path),
            drive=RedisFleet(database.url),
        )
    site.require_whole(again)
    assert again.metadata["simulated"] and set(again.metadata["engines"]) == {"writer", "judge"}
    assert all(engine["deterministic"] for engine in again.metadata["engines"].values())
    [worker] = again.metadata["workers"]
    assert worker.startswith("w-")


@pytest.mark.long
def test_a_worker_that_ends_in_good_order_says_so_to_the_runs_that_it_worked_for(tmp_path: Path, database: Database) -> None:
    site = Site(tmp_path)
    run, log = Background(site, RedisFleet(database.url)), site.path / "out/events.jsonl"
    with site.project.kept_open():
        with site.worker(database.url):
            until(lambda: log.exists() and log.read_bytes().count(b"unit_committed") > 4)
        until(lambda: site.events("worker_left"))
    with site.worker(database.url):
        result = run.end()
    assert isinstance(result, RunResult)
    site.require_whole(result)
    [left] = site.events("worker_left")
    assert left["worker"] in {joined["worker"] for joined in site.events("worker_joined")}


@pytest.mark.long
def test_a_run_that_another_process_has_taken_is_left_to_it_as_long_as_that_lives(
    site: Site, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chainette_workers.sink.drive.LEASE", 0.2)
    board, client = Board(database.client), database.client
    run = Background(site, RedisFleet(database.url))
    [info] = until(lambda: [info for info in board.runs() if info.counts.nodes])
    board.beat("enqueue-other", {"kind": "enqueue"})
    client.zadd("chainette:lease", {"enqueue-other": 9e12})  # it lives, however long this takes
    client.hset(f"chainette:run:{info.run}", mapping={"owner": "other", "sink": "enqueue-other"})
    with site.worker(database.url):
        stopped = run.end()
        assert isinstance(stopped, RunDirectoryInUse) and "another process writes run" in str(stopped), stopped
        board.leave("enqueue-other")
        result = site.run(RedisFleet(database.url), resume=True)
    site.require_whole(result)


class Dying(FleetQueue):
    """Its process dies before the run is taken out of Redis."""

    def close(self, *arguments: Any) -> None:
        raise RuntimeError("killed")


@pytest.mark.long
def test_a_finished_run_whose_sink_died_before_it_was_out_of_redis_is_taken_out_when_it_is_resumed(
    site: Site, database: Database
) -> None:
    with site.worker(database.url), pytest.raises(RuntimeError, match="killed"):
        site.run(Driven(database.url, Dying))
    assert Board(database.client).runs() != [] and site.events("run_finished")
    site.require_whole(site.run(RedisFleet(database.url), resume=True))
    assert Board(database.client).runs() == []


@pytest.mark.long
def test_data_that_nobody_can_ever_read_end_the_run_with_the_reason(
    site: Site, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chainette.fleet.protocol.messages.MAX_BYTES", 0)
    monkeypatch.setattr("chainette_workers.sink.failed_epochs.LEASE", 0.1)
    with site.worker(database.url), pytest.raises(RunStopped, match=r"given up after 3 new epochs.*at most 0 bytes"):
        site.run(Driven(database.url))
    monkeypatch.undo()
    with site.worker(database.url):
        result = site.run(Driven(database.url), resume=True)
    site.require_whole(result)


@pytest.mark.long
def test_a_server_that_is_killed_and_comes_back_costs_nothing(site: Site, server: Server) -> None:
    run = Background(site, RedisFleet(server.url))
    until((site.path / "out/events.jsonl").exists)
    with site.worker(server.url):
        for _ in range(2):
            before = len(site.events("unit_committed"))
            until(lambda before=before: len(site.events("unit_committed")) > before or run.found)  # type: ignore[misc]
            server.kill()
            server.start()
        result = run.end()
    assert isinstance(result, RunResult), result
    site.require_whole(result)
    assert {event.get("epoch", 0) for event in site.events("unit_committed")} == {0}
    assert server.client().keys("*") == []


@pytest.mark.long
def test_a_server_that_is_no_longer_the_master_is_waited_for(
    site: Site, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a failover: it serves reads, refuses every write, and is the master again later."""
    monkeypatch.setattr("chainette_workers.sink.drive._STILL", 0.0)
    client = server.client()

    def refused() -> int:
        return int(client.info("errorstats").get("errorstat_READONLY", {}).get("count", 0))

    run = Background(site, RedisFleet(server.url))
    until((site.path / "out/events.jsonl").exists)
    with site.worker(server.url):
        with site.project.kept_open():
            until(lambda: site.events("unit_committed"))
            client.replicaof("127.0.0.1", "1")
        until(lambda: refused() > 5 and "nothing moves: Redis fails (" in caplog.text)
        client.replicaof("NO", "ONE")
        client.client_pause(700)  # and slow, for a while
        result = run.end()
    assert isinstance(result, RunResult), result
    site.require_whole(result)
    assert {event.get("epoch", 0) for event in site.events("unit_committed")} == {0}, "work was thrown away"
    assert client.keys("*") == []


class OneByOne(FleetQueue):
    """Gives the sink nothing before the workers are done, and then one entry at a time."""

    complete = False

    def read(self, keys: RunKeys, position: tuple[str, str], count: int = 256) -> list[Entry]:
        del count
        if not self.complete:
            self.complete = len(super().read(keys, position)) == 20
        return super().read(keys, position, 1) if self.complete else []


class Drained(Driven):
    """The rows its workers have committed are kept when it stops."""

    def __call__(self, session: Session) -> None:
        with connect(self.url) as client:
            drive = DriveLoop(session, self.kind(client), Board(client), {}, self.window, tend=self.tend)
            drive.drain()  # Ctrl-C before there was an epoch
            try:
                drive.run()
            finally:
                drive.drain()


REJECTING = """
from chainette import Chain, apply
from pydantic import BaseModel


class Text(BaseModel):
    text: str


@apply
def refuse(item: Text) -> Text:
    raise ValueError("never")


chain = Chain(name="rejecting", batch_size=20, steps=[refuse])
"""


@pytest.mark.long
def test_a_run_that_stops_for_its_rejections_keeps_all_that_was_committed(tmp_path: Path, database: Database) -> None:
    Project(tmp_path, rows=400)
    (tmp_path / "chain.py").write_text(REJECTING)
    chain = load_chain("chain.py", tmp_path).chain
    database.may_leave("*")
    with (
        serving(WorkerConfig(database.url, ["python"], str(tmp_path))),
        pytest.raises(RunStopped, match="rejected 200 of 200 rows"),
    ):
        chain.run(
            tmp_path / "in.jsonl",
            tmp_path / "out",
            chain_ref="chain.py",
            chain_root=str(tmp_path),
            max_reject_rate=0.5,
            drive=Drained(database.url, OneByOne, window=1000),
        )
    rejected = [line for file in (tmp_path / "out/rejected").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(rejected) == 400

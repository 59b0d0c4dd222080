"""Any single key of Redis may be lost at any time: the run goes on, in a new epoch at worst, and its rows are all there.

As by an evicting maxmemory-policy, or a neighbour that cleans up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chainette_workers.sink.redis_fleet import RedisFleet
from redis import Redis

from chainette.errors import RunStopped
from chainette.fleet.redis.connect import connect
from chainette.io.rundir.result import RunResult
from tests.integration.test_fleet_trouble import ROWS, Background, Driven, Site
from tests.support.cli import Project, until
from tests.support.tools import crossed, some
from tests.support.valkey import Database

#: The keys before any worker has come; `*` stands for the run, its epoch, a root, a unit, ...
ADMITTED = [
    "chainette:run:*[0-9a-f]",
    "chainette:runs",
    "chainette:*:0:live",
    "chainette:*:0:out",
    "chainette:*:0:r:*",
    "chainette:*:0:s:*",
    "chainette:*:0:u:*",
    "chainette:*:0:stream",
    "rq:job:*",
    "rq:queue:*",
    "rq:queues",
    "chainette:lease",
    "chainette:worker:enqueue-*",
    "chainette:workers",
]

#: The keys while workers are busy.
AT_WORK = [
    *ADMITTED,
    "chainette:*:0:f:*",
    "chainette:run:*:notes",
    "chainette:held:*",
    "chainette:worker:w*",
    "rq:worker:*",
    "rq:workers",
    "rq:workers:*",
    "rq:wip:*",
]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    for module in ("drive", "failed_epochs"):
        monkeypatch.setattr(f"chainette_workers.sink.{module}.LEASE", 1.0)
    (tmp_path / "latency").write_text("0.05")
    return Site(tmp_path)


def keys(client: Redis, pattern: str) -> Iterator[str]:
    """Keys of that kind, in order; `chainette:run:ID` is another kind than the keys below it."""
    found = sorted(key.decode() for key in client.scan_iter(pattern, count=1000))
    return (key for key in found if pattern != ADMITTED[0] or key.count(":") == 2)


def lose_one(client: Redis, pattern: str, which: int = 0) -> bool:
    found = list(keys(client, pattern))
    return bool(found) and bool(client.delete(found[which % len(found)]))


def spoil_one(client: Redis, pattern: str, which: int = 0) -> bool:
    """Puts a value into a key that has a type unused there, and is not UTF-8."""
    found = list(keys(client, pattern))
    if not found:
        return False
    key = found[which % len(found)]
    kind = client.type(key)
    client.delete(key)
    if kind == b"string":
        client.rpush(key, b"\xff\xfe")
    else:
        client.set(key, b"\xff\xfe")
    return True


#: The fates of a key: the test says which key, counted from the first.
LOSSES: dict[str, Callable[[Redis, str, int], bool]] = {"lost": lose_one, "spoiled": spoil_one}


def require_whole(site: Site, run: Background) -> None:
    result = run.end()
    assert isinstance(result, RunResult), result
    site.require_whole(result)


@pytest.mark.parametrize("pattern", some(ADMITTED, 8, 3))
def test_a_key_that_is_lost_before_any_worker_comes_costs_no_row(site: Site, database: Database, pattern: str) -> None:
    client = database.client
    database.may_leave("rq:worker*", "chainette:aside:*")
    run = Background(site, RedisFleet(database.url))
    until(lambda: list(client.scan_iter("rq:queue:*")) and lose_one(client, pattern))
    with site.worker(database.url):
        require_whole(site, run)


class Losing(Driven):
    """A drive without workers. Something is lost when nothing moves for the first time; it stops a few idle turns later."""

    def __init__(self, url: str, lose: Callable[[Redis], object]) -> None:
        super().__init__(url, window=2 * ROWS)
        self.lose, self.idle = lose, 0

    def tend(self, moved: bool) -> None:
        self.idle += not moved
        if self.idle == 1 and not moved:
            with connect(self.url) as client:
                assert self.lose(client), "there was nothing to lose"
        if self.idle > 5:
            raise RunStopped("enough for now")


@pytest.fixture
def impatient(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Its sink looks for what is lost whenever nothing moves."""
    for module in ("drive", "failed_epochs"):
        monkeypatch.setattr(f"chainette_workers.sink.{module}.LEASE", 0.0)
    return site


def test_units_that_are_lost_while_nothing_moves_are_looked_for_and_admitted_again(impatient: Site, database: Database) -> None:
    client = database.client
    with pytest.raises(RunStopped, match="enough"):
        impatient.run(Losing(database.url, lambda client: client.delete(*client.scan_iter("rq:queue:*"))))
    assert impatient.events("run_resumed"), "no new epoch began"
    assert list(client.scan_iter("rq:queue:*"))
    client.flushall()


def test_an_end_of_the_input_that_is_lost_while_nothing_moves_is_said_again(impatient: Site, database: Database) -> None:
    client = database.client
    with pytest.raises(RunStopped, match="enough"):
        impatient.run(Losing(database.url, lambda client: client.hdel(*keys(client, ADMITTED[0]), "total")))
    [key] = keys(client, ADMITTED[0])
    assert client.hget(key, "total") == b"13"
    client.flushall()


def spoil(client: Redis, field: str, value: str | int) -> bool:
    """Overwrites a field of the run's record; whether it was there."""
    [key] = keys(client, ADMITTED[0])
    return client.hset(key, field, value) == 0


#: A field of the run's record, a value that this process did not write, and the epoch that follows epoch 0.
FOREIGN = [("owner", "x", 1), ("epoch", "x", 1), ("epoch", "1e300", 1), ("epoch", 2**50, 1), ("epoch", 500, 501)]


@pytest.mark.parametrize(("field", "value", "epoch"), FOREIGN)
def test_an_epoch_or_an_owner_of_nobody_costs_one_epoch(
    impatient: Site, database: Database, monkeypatch: pytest.MonkeyPatch, field: str, value: str | int, epoch: int
) -> None:
    client = database.client
    monkeypatch.setattr("chainette_workers.sink.drive._LOOK", 0.0)
    with pytest.raises(RunStopped, match="enough"):
        impatient.run(Losing(database.url, lambda client: spoil(client, field, value)))
    [resumed] = impatient.events("run_resumed")
    [key] = keys(client, ADMITTED[0])
    assert (resumed["epoch"], client.hget(key, "epoch")) == (epoch, str(epoch).encode())
    client.flushall()


class Spoiling(Driven):
    """A drive without workers. A field of the run's record is overwritten whenever nothing moves, a hundred times."""

    def __init__(self, url: str, field: str, value: str | int) -> None:
        super().__init__(url, window=2 * ROWS)
        self.field, self.value, self.idle = field, value, 0

    def tend(self, moved: bool) -> None:
        self.idle += not moved
        if not moved:
            with connect(self.url) as client:
                spoil(client, self.field, self.value)
        if self.idle > 100:
            raise RunStopped("enough for now")


@pytest.mark.parametrize(("field", "value", "_epoch"), FOREIGN)
def test_an_epoch_or_an_owner_of_nobody_costs_one_epoch_a_lease_however_often_it_comes(
    impatient: Site, database: Database, monkeypatch: pytest.MonkeyPatch, field: str, value: str | int, _epoch: int
) -> None:
    monkeypatch.setattr("chainette_workers.sink.drive._LOOK", 0.0)
    monkeypatch.setattr("chainette_workers.sink.failed_epochs.LEASE", 9e9)
    with pytest.raises(RunStopped, match="enough"):
        impatient.run(Spoiling(database.url, field, value))
    assert len(impatient.events("run_resumed")) == 1
    database.client.flushall()


@pytest.mark.long
@pytest.mark.parametrize(("pattern", "loss"), crossed(AT_WORK, [*LOSSES], 8, 2))
def test_a_key_that_is_lost_or_spoiled_while_workers_are_at_it_costs_no_row(
    site: Site, database: Database, pattern: str, loss: str
) -> None:
    client = database.client
    database.may_leave("rq:worker*", "chainette:aside:*")
    log = site.path / "out/events.jsonl"
    run = Background(site, RedisFleet(database.url))
    with site.worker(database.url):
        with site.project.kept_open():
            until(log.exists)
            until(lambda: log.read_bytes().count(b"unit_committed") > 8)
            until(lambda: run.found or LOSSES[loss](client, pattern, 3))
            assert not run.found, "there was no such key"
        require_whole(site, run)


@pytest.mark.long
@pytest.mark.parametrize(
    ("field", "value"),
    crossed(
        ["digest", "batch_size", "simulate", "seed", "engines", "parameters", "marks", "reuse", "queues", "outline", "cursor"],
        [b"\xff\xfe", None],
        ci=2,
    ),
)
def test_a_field_of_the_run_that_is_garbage_or_lost_costs_no_row(
    site: Site, database: Database, field: str, value: bytes | None
) -> None:
    client, log = database.client, site.path / "out/events.jsonl"
    database.may_leave("chainette:aside:*")
    run = Background(site, RedisFleet(database.url))
    with site.worker(database.url):
        with site.project.kept_open():
            until(log.exists)
            until(lambda: log.read_bytes().count(b"unit_committed") > 8)
            [key] = keys(client, ADMITTED[0])
            assert client.hset(key, field, value) == 0 if value else client.hdel(key, field), "there was no such field"
        require_whole(site, run)


@pytest.mark.parametrize("field", ["epoch", "state", "window", "live_rows", "counts", "outline", "order", "queues"])
def test_status_shows_a_run_whose_record_in_redis_is_garbage_without_an_internal_error(
    tmp_path: Path, database: Database, field: str
) -> None:
    client, project = database.client, Project(tmp_path)
    client.sadd("chainette:runs", "run-a", b"\xff")
    client.zadd("chainette:lease", {b"\xfe": 9e12, b"w-1": 9e12})
    client.set("chainette:worker:w-1", b"\xff")
    client.hset(
        "chainette:run:run-a", mapping={"epoch": "0", "state": "running", "chain_ref": "c", "digest": "d", field: b"\xff\xfe"}
    )
    for words in (["status", "run-a"], ["status"], ["runs"]):
        said = project.chainette(*words, "--redis", database.url)
        assert "internal error" not in said.stderr and "Traceback" not in said.stderr, said.stderr
    client.flushall()

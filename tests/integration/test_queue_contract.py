"""The promises of the leased queue's contract, kept alike by the one on Redis and the one in memory.

Each transition once more, late (the lease is lost), in an old epoch, and by another owner.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import anyio
import pytest

from chainette.core.flow import frontier
from chainette.core.plan import Plan
from chainette.engine.budget import NO_LIMITS, Amounts, Reserved
from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.messages import BadMessage, Result, RootRecord
from chainette.fleet.protocol.queue_values import (
    ANCHOR,
    AdmissionResult,
    Asker,
    Cancelled,
    Claim,
    Drain,
    EngineAccount,
    Lost,
    Turn,
)
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.io.rundir.event_types import EngineReleased, UnitRetried
from chainette.records import CHAIN_INPUT, Outcome, Reason, Rejection, Row, Unfinished, Usage
from chainette.run.process import poisoned
from tests.support.claims import claim_one
from tests.support.fleet import forked, straight
from tests.support.outcomes import process
from tests.support.valkey import Database

OWNER = "owner-1"


class Site:
    """One run in a queue; its workers' leases end when the test says so."""

    def __init__(
        self, queue: LeasedQueue, end_lease: Callable[[str], None], plan: Plan, window: int = 1000, **more: int | str
    ) -> None:
        self.queue, self.end_lease, self.plan = queue, end_lease, plan
        self.fields: dict[str, str | int] = {"window": window, "seed": 7, **more}
        self.keys = RunKeys("run-a", 0)
        self.position = (ANCHOR, "anchor-0")
        self.results: list[Result] = []
        self._claims = 0
        self.install()

    @property
    def queues(self) -> list[str]:
        depth = self.plan.depths
        return [self.keys.queue(self.plan.engine_of(name), name) for name in sorted(depth, key=lambda name: -depth[name])]

    def install(self, owner: str = OWNER) -> None:
        token = f"anchor-{self.keys.epoch}"
        self.queue.install(self.keys.run, self.keys.epoch, owner, token, self.queues, self.fields)

    def raise_epoch(self) -> None:
        self.keys = RunKeys(self.keys.run, self.keys.epoch + 1)
        self.position = (ANCHOR, f"anchor-{self.keys.epoch}")
        self.results = []
        self.install()

    def admit(self, texts: Sequence[str] = ("a", "b", "c", "d"), *, k: int | None = None, bad: int = 0) -> AdmissionResult:
        number = self.queue.progress(self.keys).cursor if k is None else k
        rows = [
            Row(str(4 * number + index), {CHAIN_INPUT: json.dumps({"text": text}).encode()}) for index, text in enumerate(texts)
        ]
        rejected = [Rejection(f"{number}~{index}", CHAIN_INPUT, Reason.INVALID_INPUT, "bad", 0, "{", 1) for index in range(bad)]
        record, effects = RootRecord(rows, len(rows) + bad), frontier(self.plan, number, rows)
        return self.queue.admit(self.keys, self.plan, number, number, record, rejected, effects, secrets.token_hex(4))

    def claim(self, me: str = "w1", *, alone: bool = True, ahead: bool = False) -> Claim | Drain | None:
        self.queue.beat(me, {}, 3600)
        self._claims += 1
        pairs = [(self.keys.run, name) for name in self.queues]
        return claim_one(self.queue, me, f"{me}-{self._claims}", pairs, alone=alone, ahead=ahead)

    def take(self, me: str = "w1", *, ahead: bool = False) -> Claim:
        found = self.claim(me, ahead=ahead)
        assert isinstance(found, Claim)
        return found

    def commit(self, claim: Claim, me: str = "w1", rows: Collection[str] | None = None, token: str = "") -> bool:
        outcome: Outcome = anyio.run(process, self.plan, claim.piece(rows), None)
        return self.queue.commit(claim, me, self.plan, outcome, token or secrets.token_hex(4), rows)

    def commit_part(self, claim: Claim, *rows: str) -> Claim:
        """Commits some of a claim's rows, and returns the rest."""
        assert self.commit(claim, rows=rows)
        rest = claim.rest(rows)
        assert rest is not None
        return rest

    def lose(self, me: str) -> None:
        self.end_lease(me)
        assert self.queue.reap() == [me]

    def work_off(self, me: str = "w1") -> None:
        while isinstance(claim := self.claim(me), Claim):
            assert self.commit(claim, me)

    def drain(self) -> list[int]:
        """Reads new entries and acknowledges them; returns the roots they finish."""
        entries = self.queue.read(self.keys, self.position)
        self.results += [entry.message for entry in entries if isinstance(entry.message, Result)]
        done = [entry.root for entry in entries if entry.done]
        if entries:
            self.position = (entries[-1].id, entries[-1].token)
            self.queue.ack(self.keys, OWNER, self.position, done)
        return done

    def rows(self, node: str) -> list[str]:
        return sorted(output.row_id for result in self.results if result.node == node for output in result.outputs)


@pytest.fixture(params=["database", "redis_database", "memory"])
def open_site(request: pytest.FixtureRequest) -> Iterator[Callable[..., Site]]:
    """Opens sites on Valkey, Redis, and the twin in memory; they are closed at the end, their workers gone."""
    opened: list[Site] = []
    database = None if request.param == "memory" else request.getfixturevalue(request.param)

    def build(plan: Plan | None = None, window: int = 1000, **more: int | str) -> Site:
        queue: LeasedQueue
        if isinstance(database, Database):
            client, queue = database.client, FleetQueue(database.client)

            def end_lease(me: str) -> None:
                client.zadd("chainette:lease", {me: 1})
        else:
            memory = queue = MemoryQueue()

            def end_lease(me: str) -> None:
                memory._workers[me].until = 0.0

        opened.append(Site(queue, end_lease, plan or straight(), window, **more))
        return opened[-1]

    yield build
    for site in opened:
        epochs = {info.run: info.epoch for info in site.queue.runs()}
        site.queue.close(site.keys.run, epochs.get(site.keys.run, 0), OWNER, site.queues)
        for name in site.queue.workers():
            site.queue.reconcile(name)
            assert site.queue.leave(name)
        assert site.queue.runs() == [] and site.queue.waiting(site.queues) == {}


@pytest.fixture
def site(open_site: Callable[..., Site]) -> Site:
    """A run of two Apply nodes whose first root waits."""
    site = open_site()
    assert site.admit() is AdmissionResult.OK
    return site


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(Lost):
        call()


# -- the run


def test_an_epoch_is_installed_once_and_only_a_later_one_replaces_it(site: Site) -> None:
    site.install()
    refused(lambda: site.install("owner-2"))
    assert [(info.run, info.epoch, info.state) for info in site.queue.runs()] == [("run-a", 0, "running")]
    claim = site.take()
    old = site.keys
    assert site.queue.latest_epoch(old) == 0 and site.queue.latest_epoch(RunKeys("run-b", 0)) == -1
    site.raise_epoch()
    assert site.queue.latest_epoch(old) == 1
    assert not site.commit(claim)
    refused(lambda: site.queue.read(old, (ANCHOR, "anchor-0")))
    refused(lambda: site.queue.end_of_input(old, 1))
    refused(lambda: site.queue.ack(old, OWNER, (ANCHOR, "anchor-0"), []))
    progress = site.queue.progress(site.keys)
    assert (progress.cursor, progress.live, progress.total) == (0, set(), None)
    assert site.claim() is None


def test_a_sink_attaches_where_the_stream_continues_and_the_other_is_refused(site: Site) -> None:
    for epoch, position in ((0, (ANCHOR, "wrong")), (0, ("7-1", "anchor-0")), (1, (ANCHOR, "anchor-0"))):
        refused(lambda e=epoch, p=position: site.queue.attach("run-a", e, "owner-2", p))  # type: ignore[misc]
    site.queue.attach("run-a", 0, "owner-2", (ANCHOR, "anchor-0"))
    site.queue.attach("run-a", 0, "owner-2", (ANCHOR, "anchor-0"))
    refused(lambda: site.queue.ack(site.keys, OWNER, (ANCHOR, "anchor-0"), []))
    refused(lambda: site.queue.close("run-a", 0, OWNER, site.queues))
    site.queue.attach("run-a", 0, OWNER, (ANCHOR, "anchor-0"))


def test_a_closed_run_may_be_closed_again_and_nothing_comes_back_of_it(site: Site) -> None:
    claim = site.take()
    refused(lambda: site.queue.close("run-a", 1, OWNER, site.queues))
    for _ in range(2):
        site.queue.close("run-a", 0, OWNER, site.queues)
    assert not site.commit(claim) and not site.queue.release(claim, "w1") and not site.queue.fail(claim, "w1", 0.0, "late")
    site.lose("w1")
    assert site.claim("w2") is None and site.queue.runs() == []


def test_a_held_run_gives_no_units_and_takes_commits_and_a_given_up_one_neither(site: Site) -> None:
    site.admit()
    one, other = site.take(), site.take()
    site.queue.set_state("run-a", "paused")
    assert site.claim() is None and site.admit() is AdmissionResult.PAUSED
    assert site.commit(one)
    site.queue.set_state("run-a", "cancelled")
    assert not site.commit(other) and site.claim() is None and site.admit() is AdmissionResult.CANCELLED
    refused(lambda: site.queue.set_state("run-a", "running"))
    with pytest.raises(Cancelled):
        site.raise_epoch()
    assert site.queue.runs()[0].state == "cancelled"
    site.queue.close("run-a", 1, "another", site.queues)
    assert site.queue.runs() == []
    refused(lambda: site.queue.set_state("nowhere", "paused"))


def test_a_cancelled_run_can_still_be_drained_and_its_epoch_is_not_installed_again(site: Site) -> None:
    assert site.commit(site.take())
    site.queue.set_state("run-a", "cancelled")
    with pytest.raises(Cancelled):
        site.install()
    assert site.drain() == [] and site.rows("first") == ["0", "1", "2", "3"]
    assert site.queue.progress(site.keys).live == {0}


# -- roots


def test_bytes_are_bounded_as_rows_are_and_one_root_is_always_admitted(open_site: Callable[..., Site]) -> None:
    site = open_site(window_bytes=1000)
    assert site.admit(["a"]) is AdmissionResult.OK
    assert site.admit(["b" * 2000]) is AdmissionResult.OK
    assert site.admit(["c"]) is AdmissionResult.FULL
    site.work_off()
    site.drain()
    assert site.admit(["c" * 2000]) is AdmissionResult.OK
    assert site.admit(["d"]) is AdmissionResult.FULL
    site.raise_epoch()
    assert [site.admit(["a"]), site.admit(["b"])] == [AdmissionResult.OK, AdmissionResult.OK]


def test_a_root_is_admitted_once_while_there_is_credit(open_site: Callable[..., Site]) -> None:
    site = open_site(window=8)
    assert [site.admit(), site.admit(k=0), site.admit(k=5), site.admit(), site.admit()] == [
        AdmissionResult.OK,
        AdmissionResult.BEHIND,
        AdmissionResult.BEHIND,
        AdmissionResult.OK,
        AdmissionResult.FULL,
    ]
    assert len(site.queue.record(site.keys, 1).rows) == 4
    site.work_off()
    assert site.admit() is AdmissionResult.FULL  # done is not durable yet
    assert sorted(site.drain()) == [0, 1]
    with pytest.raises(BadMessage):
        site.queue.record(site.keys, 1)
    assert [site.admit() for _ in range(3)] == [AdmissionResult.OK, AdmissionResult.OK, AdmissionResult.FULL]
    assert not site.queue.end_of_input(site.keys, 3) and site.queue.progress(site.keys).total is None
    assert site.queue.end_of_input(site.keys, 4) and site.queue.end_of_input(site.keys, 4)
    assert not site.queue.progress(site.keys).complete
    site.work_off()
    site.drain()
    assert site.queue.progress(site.keys).complete


def test_bad_lines_come_with_the_admission_and_a_root_of_them_alone_is_done(site: Site) -> None:
    assert site.admit([], bad=2) is AdmissionResult.OK and site.admit([]) is AdmissionResult.OK
    entries = site.queue.read(site.keys, site.position)
    assert [(entry.root, entry.done, len(entry.message.rejected)) for entry in entries] == [(1, True, 2), (2, True, 0)]


def test_a_root_may_be_acknowledged_again(site: Site) -> None:
    site.work_off()
    assert site.drain() == [0]
    site.queue.ack(site.keys, OWNER, site.position, [0])
    assert site.queue.progress(site.keys).live == set()


# -- phases


def test_units_of_a_barred_queue_wait_for_another_epoch_and_their_root_leaves_the_window(
    open_site: Callable[..., Site],
) -> None:
    site = open_site(window=4)
    second = site.keys.queue("python", "second")
    for owner, keys in (("another", site.keys), (OWNER, RunKeys("run-a", 1))):
        refused(lambda o=owner, k=keys: site.queue.bar(k, o, [second]))  # type: ignore[misc]
    site.queue.bar(site.keys, OWNER, [second])
    assert [site.admit(), site.admit()] == [AdmissionResult.OK, AdmissionResult.FULL]
    assert site.commit(site.take()) and site.claim() is None
    [entry] = site.queue.read(site.keys, site.position)
    assert entry.suspended and not entry.done
    assert site.admit() is AdmissionResult.FULL and site.queue.progress(site.keys).live == {0}  # not durable yet
    assert site.drain() == []
    progress = site.queue.progress(site.keys)
    assert (progress.live, progress.suspended) == (set(), 1)
    site.queue.bar(site.keys, OWNER, [])
    assert site.admit() is AdmissionResult.OK
    site.work_off()
    assert site.drain() == [1] and site.rows("second") == ["4", "5", "6", "7"]
    assert site.queue.end_of_input(site.keys, 2) and site.queue.progress(site.keys).complete
    site.raise_epoch()
    assert site.queue.progress(site.keys).suspended == 0


def test_a_root_with_units_of_a_later_phase_only_is_suspended_as_it_is_admitted(open_site: Callable[..., Site]) -> None:
    site = open_site(barred="python.first.run-a python.second.run-a")
    assert site.admit(bad=1) is AdmissionResult.OK
    [entry] = site.queue.read(site.keys, site.position)
    assert entry.suspended and len(entry.message.rejected) == 1
    assert site.claim() is None and site.drain() == [] and site.queue.progress(site.keys).live == set()


@pytest.mark.parametrize("barred", ["louder", "no_x", "loud", "second"])
def test_branches_go_as_far_as_a_phase_lets_them_and_no_join_is_cut_short(open_site: Callable[..., Site], barred: str) -> None:
    site = open_site(forked())
    site.queue.bar(site.keys, OWNER, [site.keys.queue("python", barred)])
    site.admit(["ab", "x", "", "c"])
    site.admit(["d"])
    site.work_off()
    entries = site.queue.read(site.keys, site.position)
    assert [entry.root for entry in entries if entry.suspended] == [0, 1] and not any(entry.done for entry in entries)
    assert site.drain() == []
    depth = {node.id: node.depth for node in site.plan.nodes.values()}
    done = {result.node for result in site.results}
    assert {name for name in depth if depth[name] < depth[barred]} <= done and barred not in done
    assert (site.queue.progress(site.keys).live, site.queue.progress(site.keys).suspended) == (set(), 2)


def test_a_unit_that_lay_in_a_queue_before_it_was_barred_is_worked_on_also_cut_in_two(site: Site) -> None:
    site.queue.bar(site.keys, OWNER, [site.keys.queue("python", "first")])
    assert site.queue.split(site.take(), "w1", site.plan)
    site.work_off()
    assert site.drain() == [0]


def test_a_sink_that_comes_back_lets_go_of_what_is_suspended_and_durable_and_of_nothing_else(site: Site) -> None:
    site.admit()
    site.queue.bar(site.keys, OWNER, [site.keys.queue("python", "second")])
    site.work_off()
    first, other = site.queue.read(site.keys, site.position)
    assert first.suspended and other.suspended
    site.queue.attach("run-a", 0, "owner-2", (first.id, first.token))
    site.queue.ack(site.keys, "owner-2", (first.id, first.token), [])
    assert site.queue.progress(site.keys).live == {other.root}
    assert len(site.queue.record(site.keys, other.root).rows) == 4
    site.queue.attach("run-a", 0, OWNER, (first.id, first.token))
    site.position = first.id, first.token
    assert site.drain() == [] and site.queue.progress(site.keys).live == set()


# -- units


def test_units_come_deepest_first_and_what_they_lead_to_is_read_in_order(site: Site) -> None:
    site.admit()
    assert site.commit(site.take())
    assert [(claim.unit.node, claim.unit.root) for claim in (site.take(), site.take())] == [("second", 0), ("first", 1)]
    assert site.claim() is None
    assert site.queue.reconcile("w1") == 2
    site.work_off()
    assert sorted(site.drain()) == [0, 1]
    assert site.rows("first") == site.rows("second") == [str(number) for number in range(8)]


def test_a_worker_without_a_lease_claims_nothing(site: Site) -> None:
    refused(lambda: claim_one(site.queue, "nobody", "t", [("run-a", name) for name in site.queues]))


@pytest.mark.parametrize("how", ["commit", "release", "fail", "split", "bury", "start"])
def test_a_transition_happens_once_and_never_with_a_claim_that_does_not_hold(site: Site, how: str) -> None:
    calls: dict[str, Callable[[Claim], bool]] = {
        "commit": site.commit,
        "release": lambda claim: site.queue.release(claim, "w1"),
        "fail": lambda claim: site.queue.fail(claim, "w1", 0.0, "away"),
        "split": lambda claim: site.queue.split(claim, "w1", site.plan),
        "bury": lambda claim: site.queue.bury(claim, "w1", "bad"),
        "start": lambda claim: site.queue.start(claim, "w1"),
    }
    late = site.take()
    site.lose("w1")
    assert not calls[how](late)
    again = site.take()
    assert again.job == late.job and again.token != late.token
    assert not calls[how](late)
    assert calls[how](again)
    assert calls[how](again) is (how == "start")
    site.raise_epoch()
    assert not calls[how](again)
    assert site.claim() is None


def test_the_halves_of_a_unit_run_alone_and_lose_no_row(site: Site) -> None:
    assert site.queue.split(site.take(), "w1", site.plan)
    halves = [site.take(), site.take()]
    assert [claim.turn for claim in halves] == [Turn.SOLO] * 2
    assert [[row.row_id for row in claim.unit.rows] for claim in halves] == [["0", "1"], ["2", "3"]]
    for claim in halves:
        assert site.commit(claim)
    site.work_off()
    assert site.drain() == [0] and site.rows("second") == ["0", "1", "2", "3"]


def test_a_unit_that_was_put_off_comes_when_it_is_due(site: Site) -> None:
    assert site.queue.fail(site.take(), "w1", 3600.0, "away")
    assert site.claim() is None
    site.admit()
    assert site.queue.fail(site.take(), "w1", 0.0, "away")
    assert site.take().unit.root == 1


def test_a_buried_unit_damages_the_run_until_the_next_epoch(site: Site) -> None:
    assert site.queue.bury(site.take(), "w1", "nobody can read it")
    assert site.queue.progress(site.keys).damaged == "nobody can read it"
    refused(lambda: site.queue.attach("run-a", 0, OWNER, (ANCHOR, "anchor-0")))
    site.raise_epoch()
    assert site.queue.progress(site.keys).damaged == ""


def test_units_of_a_lost_reply_are_handed_back_in_front_and_no_others(site: Site) -> None:
    site.admit()
    known = site.take()
    unseen = site.take()
    assert site.queue.reconcile("w1", [known]) == 1
    assert site.queue.reconcile("w1", [known]) == 0
    assert site.take("w2").job == unseen.job
    assert site.commit(known)


def test_nested_forks_join_once_with_all_that_their_branches_gave(open_site: Callable[..., Site]) -> None:
    site = open_site(forked())
    site.admit(["ab", "xy", "c", "d"])
    joins = []
    while isinstance(claim := site.claim(), Claim):
        if claim.unit.node in site.plan.forks:
            joins.append(claim.unit)
        assert site.commit(claim)
    inner, outer = joins
    assert (set(inner.partials), set(outer.partials)) == ({"deep", "wide"}, {"split", "nested"})
    assert inner.stopped == ["1"] == outer.stopped
    letters = ["0~0", "0~1", "1~0", "1~1", "2~0", "3~0"]
    assert sorted(row.row_id for row in outer.partials["split"]) == letters
    assert site.drain() == [0]


# -- parts


def ids(claim: Claim) -> list[str]:
    return [row.row_id for row in claim.unit.rows]


def test_rows_go_on_as_their_parts_are_committed_and_the_last_part_ends_the_unit(site: Site) -> None:
    rest = site.commit_part(site.commit_part(site.take(), "2"), "0", "3")
    assert (ids(rest), rest.part) == (["1"], 2)
    assert [ids(site.take("w2")) for _ in range(2)] == [["2"], ["0", "3"]]
    assert site.queue.reconcile("w2") == 2
    assert site.commit(rest)
    assert site.queue.leave("w1") and not site.commit(rest)
    site.work_off()
    assert site.drain() == [0]
    assert site.rows("first") == site.rows("second") == ["0", "1", "2", "3"]
    parts = [(result.part, result.taken) for result in site.results if result.node == "first"]
    assert parts == [("+0", 1), ("+1", 2), ("+2", 1)]


def test_a_part_that_is_committed_again_is_committed_once(site: Site) -> None:
    claim = site.take()
    for _ in range(2):
        assert site.commit(claim, rows=["2"], token="the same")
    assert site.drain() == [] and [result.taken for result in site.results] == [1]


def test_a_part_with_another_number_than_the_next_writes_nothing_and_the_unit_goes_round(site: Site) -> None:
    claim = site.take()
    rest = site.commit_part(claim, "2")
    for late in (claim, replace(rest, part=2)):
        assert not site.commit(late, rows=["1"])
    assert not site.queue.split(claim, "w1", site.plan)
    site.drain()
    assert len(site.results) == 1 and not site.queue.progress(site.keys).damaged
    assert site.queue.reconcile("w1", [replace(rest, part=2)]) == 1
    site.work_off()
    assert site.drain() == [0] and site.rows("first") == ["0", "1", "2", "3"]


def test_a_unit_that_is_taken_over_holds_only_what_is_left(site: Site) -> None:
    rest = site.commit_part(site.take("w1"), "2")
    site.lose("w1")
    assert not site.commit(rest)
    for hand_back in (site.queue.release, lambda claim, me: site.queue.fail(claim, me, 0.0, "away")):
        left = next(claim for claim in (site.take("w2"), site.take("w2")) if claim.unit.node == "first")
        assert (left.job, ids(left), left.part) == (rest.job, ["0", "1", "3"], 1)
        assert hand_back(left, "w2")
        site.queue.reconcile("w2")
    site.work_off()
    assert site.drain() == [0] and site.rows("second") == ["0", "1", "2", "3"]


def test_only_the_rows_that_are_left_are_cut_in_two(site: Site) -> None:
    rest = site.commit_part(site.take(), "0")
    assert site.queue.split(rest, "w1", site.plan)
    site.work_off()
    assert site.drain() == [0] and site.rows("second") == ["0", "1", "2", "3"]
    assert [result.part for result in site.results if result.node == "first"] == ["+0", "<", ">"]


def test_deaths_are_held_against_the_rows_that_are_left(site: Site) -> None:
    site.commit_part(site.take("v"), "0", "1", "2")
    site.lose("v")
    site.commit(site.take("w9"), "w9")  # the three go on
    assert turns(site, 3) == [Turn.JOB, Turn.SOLO, Turn.SOLO]
    claim = site.take("w9")
    assert (claim.turn, ids(claim)) == (Turn.MEND, ["3"])


def test_a_join_has_no_parts_and_a_part_has_rows(open_site: Callable[..., Site]) -> None:
    site = open_site(forked())
    site.admit(["ab", "x", "c", "d"])
    with pytest.raises(ValueError, match="a part has rows"):
        site.commit(site.take("w9"), "w9", rows=[])
    site.queue.reconcile("w9")
    while (claim := site.take()).unit.node not in site.plan.forks:
        assert site.commit(claim)
    with pytest.raises(ValueError, match="a join has no parts"):
        site.commit(claim, rows=["0"])


def test_forks_that_are_reached_in_parts_join_each_of_their_rows_once(open_site: Callable[..., Site]) -> None:
    site = open_site(forked())
    site.admit(["ab", "xy", "c", "d"])
    while isinstance(claim := site.claim(), Claim):
        if claim.unit.node not in site.plan.forks and len(ids(claim)) > 1:
            claim = site.commit_part(claim, ids(claim)[-1])
        assert site.commit(claim)
    assert site.drain() == [0] or site.drain() == [0]
    assert site.rows("second") == ["0", "2", "3"]


def test_rows_that_go_in_parts_give_back_their_credit(open_site: Callable[..., Site]) -> None:
    site = open_site(forked(), window=4)
    for _ in range(3):
        assert site.admit(["abcdef", "b", "c", "d"]) is AdmissionResult.OK
        assert site.admit() is AdmissionResult.FULL
        while isinstance(claim := site.claim(), Claim):
            if claim.unit.node not in site.plan.forks and len(ids(claim)) > 1:
                claim = site.commit_part(claim, ids(claim)[0])
            assert site.commit(claim)
        assert len(site.drain()) == 1


# -- several units at once


def take_rows(site: Site, room: int, me: str = "w1", node: str = "first") -> list[Claim]:
    site.queue.beat(me, {}, 3600)
    found = site.queue.claim_rows(me, secrets.token_hex(4), [("run-a", site.keys.queue("python", node), room)])
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(("room", "units"), [(0, 1), (4, 1), (7, 1), (8, 2), (100, 3)])
def test_units_behind_the_first_come_with_it_as_far_as_there_is_room(site: Site, room: int, units: int) -> None:
    site.admit()
    site.admit()
    claims = take_rows(site, room)
    assert [claim.unit.root for claim in claims] == [0, 1, 2][:units]
    assert len({claim.token for claim in claims}) == units
    assert take_rows(site, 100, node="second") == []
    for claim in claims:
        assert site.commit(claim)
    site.work_off()
    assert sorted(site.drain()) == [0, 1, 2]


def test_a_unit_that_runs_alone_comes_by_itself(site: Site) -> None:
    site.admit()
    turns(site, 2)
    site.queue.beat("w9", {}, 3600)
    queues = [("run-a", name, 100) for name in site.queues]
    found = site.queue.claim_rows("w9", "t", queues, alone=True)
    assert isinstance(found, list) and [claim.turn for claim in found] == [Turn.SOLO]


def in_fragments(site: Site) -> list[Claim]:
    """The rows of a root at its second node, a unit each."""
    claim: Claim | None = site.take("w9")
    for row_id in ("3", "1", "0", "2"):
        assert claim is not None and site.commit(claim, "w9", rows=[row_id])
        claim = claim.rest([row_id])
    return take_rows(site, 4, node="second")


def test_fragments_of_one_root_and_scope_are_one_unit_again_when_they_are_claimed(open_site: Callable[..., Site]) -> None:
    site = open_site(batch_size=4)
    site.admit()
    [claim] = in_fragments(site)
    assert ids(claim) == ["3", "1", "0", "2"]
    assert site.queue.missing(site.keys, [0]) == ""
    rest = site.commit_part(claim, "1")
    assert site.commit(rest)
    assert site.drain() == [0]
    assert [result.taken for result in site.results if result.node == "second"] == [1, 3]


@pytest.mark.parametrize("how", ["release", "die", "split", "reconcile"])
def test_what_has_grown_together_stays_one_unit_whoever_takes_it(open_site: Callable[..., Site], how: str) -> None:
    site = open_site(batch_size=4)
    site.admit()
    [claim] = in_fragments(site)
    match how:
        case "release":
            assert site.queue.release(claim, "w1")
        case "die":
            site.lose("w1")
        case "split":
            assert site.queue.split(claim, "w1", site.plan)
        case "reconcile":
            assert site.queue.reconcile("w1") == 1
    again = site.take("w2")
    assert ids(again) == (["3", "1"] if how == "split" else ["3", "1", "0", "2"])
    assert site.commit(again, "w2") and not site.commit(claim)
    site.work_off("w2")
    assert site.drain() == [0] and site.rows("second") == ["0", "1", "2", "3"]


def test_fragments_grow_to_the_size_of_a_batch_and_no_further(open_site: Callable[..., Site]) -> None:
    site = open_site(batch_size=3)
    site.admit()
    assert [ids(claim) for claim in in_fragments(site)] == [["3", "1", "0"], ["2"]]


def test_units_of_two_roots_stay_two(open_site: Callable[..., Site]) -> None:
    site = open_site(batch_size=100)
    site.admit()
    site.admit()
    assert [ids(claim) for claim in take_rows(site, 100)] == [["0", "1", "2", "3"], ["4", "5", "6", "7"]]


@pytest.mark.parametrize("why", ["its worker died", "a part was taken"])
def test_a_unit_that_is_suspected_or_of_which_a_part_was_taken_stays_by_itself(
    open_site: Callable[..., Site], why: str
) -> None:
    site = open_site(batch_size=4)
    site.admit()
    assert site.commit(site.commit_part(site.take(), "3", "1"))
    [claim] = take_rows(site, 0, node="second")
    if why == "a part was taken":
        claim = site.commit_part(claim, "3")
        assert site.queue.release(claim, "w1")
    else:
        site.lose("w1")
    claims = take_rows(site, 4, "w2", node="second")
    assert [ids(one) for one in claims] == [ids(claim), ["0", "2"]]
    for one in claims:
        assert site.commit(one, "w2")
    assert site.drain() == [0] and site.rows("second") == ["0", "1", "2", "3"]


def test_joins_do_not_become_one(open_site: Callable[..., Site]) -> None:
    site = open_site(forked(), batch_size=4)
    site.admit(["ab", "xy", "c", "d"])
    inner = next(fork.id for fork in site.plan.forks.values() if fork.path)
    for node in ("first", "loud", "no_x", "letters_too"):  # two joins of the inner fork in one scope
        while claims := take_rows(site, 0, "w9", node):
            if node == "loud":
                assert site.commit(claims[0], "w9", rows=["0", "2"])
                rest = claims[0].rest(["0", "2"])
                assert rest is not None and site.commit(rest, "w9")
            else:
                assert site.commit(claims[0], "w9")
    joins = take_rows(site, 100, node=inner)
    assert [ids(claim) for claim in joins] == [["0", "2"], ["1", "3"]]
    for claim in joins:
        assert site.commit(claim)
    [grown] = take_rows(site, 4, node="louder")
    assert sorted(ids(grown)) == ["0", "2", "3"]
    assert site.commit(grown)
    site.work_off()
    assert site.drain() == [0] and site.rows("second") == ["0", "2", "3"]


# -- workers, and which deaths count


def test_a_worker_beats_hears_that_it_is_asked_to_stop_and_leaves_with_empty_hands(site: Site) -> None:
    assert not site.queue.beat("w1", {"engines": "a,b", "rows_in_flight": 3}, 3600)
    assert site.queue.beat("w1", {"rows_in_flight": 4}, 3600)
    assert site.queue.workers()["w1"] == Member(names="a,b", rows_in_flight=4)
    assert site.queue.ask_to_stop("c") == [] and not site.queue.is_asked_to_stop("w1")
    assert site.queue.ask_to_stop("b") == ["w1"] and site.queue.is_asked_to_stop("w1")
    claim = site.take()
    assert not site.queue.leave("w1") and site.queue.is_held(site.keys)
    assert not site.queue.is_held(RunKeys(site.keys.run, site.keys.epoch + 1))
    assert site.queue.release(claim, "w1") and not site.queue.is_held(site.keys)
    assert site.queue.leave("w1") and site.queue.leave("w1")
    assert site.queue.workers() == {} and site.queue.reap() == []


def test_a_unit_of_a_dead_worker_is_held_by_nobody(site: Site) -> None:
    site.take()
    assert site.queue.is_held(site.keys)
    site.end_lease("w1")
    assert not site.queue.is_held(site.keys)
    assert site.queue.reap() == ["w1"]


def turns(site: Site, deaths: int, *, ahead: bool = False, lives: bool = False) -> list[Turn]:
    """How a unit is given out, one worker after the other losing its lease with it."""
    found = []
    for number in range(deaths):
        claim = site.take(f"w{number}", ahead=ahead)
        found.append(claim.turn)
        site.lose(f"w{number}")
        if lives:
            assert site.queue.beat(f"w{number}", {}, 3600) is False
    return found


def test_a_unit_runs_again_then_alone_then_is_mended(site: Site) -> None:
    assert turns(site, 4) == [Turn.JOB, Turn.JOB, Turn.SOLO, Turn.MEND]


def test_a_row_that_kills_alone_twice_is_mended_and_rejected(open_site: Callable[..., Site]) -> None:
    site = open_site()
    site.admit(["deadly"])
    assert turns(site, 4) == [Turn.JOB, Turn.JOB, Turn.SOLO, Turn.SOLO]
    claim = site.take()
    assert claim.turn is Turn.MEND
    assert site.queue.commit(claim, "w1", site.plan, poisoned(site.plan, claim.unit), "t")
    assert site.drain() == [0]
    assert [rejection.reason for result in site.results for rejection in result.rejected] == [Reason.POISON]


def test_one_worker_at_a_time_drains_for_a_unit_that_runs_alone(site: Site) -> None:
    site.admit()
    turns(site, 2)
    site.queue.beat("w8", {}, 3600)
    assert isinstance(site.claim("w9", alone=False), Drain)
    other = site.claim("w8")
    assert isinstance(other, Claim) and other.turn is Turn.JOB and other.unit.root == 1
    assert site.take("w9").turn is Turn.SOLO


def test_units_that_were_claimed_ahead_and_not_begun_get_no_strike(site: Site) -> None:
    assert turns(site, 5, ahead=True) == [Turn.JOB] * 5
    begun = site.take("w8", ahead=True)
    assert site.queue.start(begun, "w8") and site.queue.start(begun, "w8")
    site.lose("w8")
    assert turns(site, 2) == [Turn.JOB, Turn.SOLO]


def test_a_unit_that_must_run_alone_is_never_claimed_ahead(site: Site) -> None:
    turns(site, 2)
    assert isinstance(site.claim("w9", ahead=True), Drain)
    assert site.take("w9").turn is Turn.SOLO


def test_a_worker_that_lives_costs_no_strike_but_for_a_unit_that_stalls_it_again_and_again(site: Site) -> None:
    assert turns(site, 7, lives=True) == [Turn.JOB] * 5 + [Turn.SOLO, Turn.MEND]


# -- work already spent on rows that have not finished


DONE = {row: Unfinished(1, 2, Usage(3, 30, 15), (("bad", "again"),)) for row in ("0", "1", "3")}


def test_what_was_done_for_rows_stays_with_their_unit_when_it_is_handed_back(site: Site) -> None:
    claim = replace(site.take(), unfinished=DONE)
    assert site.queue.release(claim, "w1")
    again = site.take("w2")
    assert again.unfinished == DONE
    assert site.queue.fail(replace(again, unfinished={"1": Unfinished(failures=4)}), "w2", 0.0, "away")
    assert site.take("w3").unfinished == {"1": Unfinished(failures=4)}


def test_a_part_leaves_with_the_unit_only_what_was_done_for_the_rows_that_remain(site: Site) -> None:
    claim = replace(site.take(), unfinished=DONE)
    rest = site.commit_part(claim, "0", "2")
    assert rest.unfinished == {row: DONE[row] for row in ("1", "3")}
    site.lose("w1")
    claims = {claim.unit.node: claim for claim in (site.take("w2"), site.take("w2"))}
    assert claims["first"].unfinished == rest.unfinished


def test_a_unit_whose_rows_failed_comes_after_those_that_nobody_has_tried(site: Site) -> None:
    site.admit()
    failed = site.take()
    assert site.queue.fail(replace(failed, unfinished={"0": Unfinished(failures=1)}), "w1", 0.0, "500")
    assert [site.take().unit.root, site.take().unit.root] == [1, 0]


# -- notes


def test_notes_are_read_in_order_and_once(site: Site) -> None:
    first = UnitRetried(node="first", root=0, unit="", message="away", delay=1.0)
    site.queue.note("run-a", EngineReleased(engine="a"))
    site.queue.note("run-a", first)
    site.queue.note("nowhere", EngineReleased(engine="b"))
    after, events = site.queue.notes("run-a", "0-0")
    assert events == [EngineReleased(engine="a"), first]
    assert site.queue.notes("run-a", after) == (after, [])
    site.queue.note("run-a", first)
    assert site.queue.notes("run-a", after)[1] == [first]


# -- lost keys


def lose(site: Site, kind: str) -> None:
    """All queues, members of scopes, or jobs of the run are gone, and nothing else."""
    if isinstance(site.queue, FleetQueue):
        client = site.queue._redis
        members = f"{site.keys.prefix}s:*"
        patterns = {"members": [members], "jobs": ["rq:job:*"], "hands": ["chainette:held:*"]}
        for pattern in patterns.get(kind, ["rq:queue:*", "rq:scheduled:*"]):
            for key in list(client.scan_iter(pattern)):
                client.delete(key)
    else:
        assert isinstance(site.queue, MemoryQueue)
        run = site.queue._runs[site.keys.run]
        lost: list[dict[str, Any]]
        match kind:
            case "members":
                lost = [root.members for root in run.roots.values()]
            case "hands":
                lost = [worker.held for worker in site.queue._workers.values()]
            case _:
                lost = [getattr(run, kind)]
        for kept in lost:
            kept.clear()


def test_units_that_are_in_no_queue_and_in_no_workers_hands_are_found(site: Site) -> None:
    assert site.queue.missing(site.keys, [0]) == ""
    claim = site.take("w1")
    lose(site, "queues")
    assert site.queue.missing(site.keys, [0]) == "", "a live worker has it"
    assert site.queue.release(claim, "w1")
    assert site.queue.missing(site.keys, [0]) == ""
    lose(site, "queues")
    assert "unit " in site.queue.missing(site.keys, [0])
    lose(site, "members")
    assert "root 0" in site.queue.missing(site.keys, [0])


def test_a_delayed_unit_whose_queue_is_gone_is_found(site: Site) -> None:
    assert site.queue.fail(site.take("w1"), "w1", 3600.0, "away")
    assert site.queue.missing(site.keys, [0]) == ""
    lose(site, "queues")
    assert "unit " in site.queue.missing(site.keys, [0])


def test_a_unit_that_its_live_worker_no_longer_holds_is_found(site: Site) -> None:
    site.take("w1")
    assert site.queue.missing(site.keys, [0]) == ""
    lose(site, "hands")
    assert "unit " in site.queue.missing(site.keys, [0])


@pytest.mark.parametrize("kind", ["members", "jobs"])
def test_a_commit_whose_scope_or_job_is_gone_writes_nothing_and_is_damage(site: Site, kind: str) -> None:
    claim = site.take("w1")
    lose(site, kind)
    assert not site.commit(claim)
    assert site.queue.progress(site.keys).damaged
    assert site.drain() == [] and site.results == []


def test_a_commit_that_is_repeated_is_no_damage(site: Site) -> None:
    claim = site.take("w1")
    assert site.commit(claim) and not site.commit(claim)
    assert not site.queue.progress(site.keys).damaged


def test_a_unit_is_not_cut_in_two_whose_scope_is_gone(site: Site) -> None:
    claim = site.take("w1")
    lose(site, "members")
    assert not site.queue.split(claim, "w1", site.plan)
    assert site.queue.progress(site.keys).damaged
    assert site.queue.leave("w1") and site.queue.waiting(site.queues) == {}


# -- the budget

NO_LIMIT = -1

#: An engine without a budget.
LLM = EngineAccount("llm", "d1", NO_LIMITS)


def reserve(
    site: Site, token: str, needs: int, *, me: str = "w1", settled: int = 0, ended: int = 0, limit: int = 10
) -> tuple[int, int, bool]:
    """(granted, requests used, exhausted) for requests that count one each."""
    limits = (limit, NO_LIMIT, NO_LIMIT, NO_LIMIT)
    reply = site.queue.reserve(site.keys, me, token, limits, Amounts(settled), ended, [Amounts(1, 5)] * needs, LLM)
    return reply.granted, reply.used.requests, reply.exhausted


@pytest.fixture
def budgeted(site: Site) -> Site:
    """A run with a budget, of which earlier sessions have used four requests."""
    site.fields = {**site.fields, "used": "4 0 0 0"}
    site.raise_epoch()
    for me in ("w1", "w2"):
        site.queue.beat(me, {}, 3600)
    return site


def test_requests_are_granted_in_their_order_as_far_as_they_fit(budgeted: Site) -> None:
    assert reserve(budgeted, "t1", 4) == (4, 8, False)
    assert reserve(budgeted, "t2", 4, me="w2") == (2, 10, False)
    assert budgeted.queue.progress(budgeted.keys).used == Amounts(10, 30)
    assert reserve(budgeted, "t3", 1, settled=-3, ended=4) == (1, 8, False)  # three were never answered


def test_a_repeated_reservation_reserves_once(budgeted: Site) -> None:
    assert reserve(budgeted, "t1", 3) == reserve(budgeted, "t1", 3) == (3, 7, False)
    assert reserve(budgeted, "t2", 0, settled=-1, ended=1) == reserve(budgeted, "t2", 0, settled=-1, ended=1) == (0, 6, False)


def test_a_run_is_exhausted_only_once_nothing_is_in_flight(budgeted: Site) -> None:
    budgeted.admit()
    assert reserve(budgeted, "t1", 6, me="w2") == (6, 10, False)
    assert reserve(budgeted, "t2", 1) == (0, 10, False)
    assert reserve(budgeted, "t3", 0, me="w2", ended=6) == (0, 10, False)
    assert not budgeted.queue.progress(budgeted.keys).exhausted
    assert reserve(budgeted, "t4", 1) == (0, 10, True)
    assert budgeted.queue.progress(budgeted.keys).exhausted
    assert budgeted.queue.claim_rows("w1", "c1", [(budgeted.keys.run, queue, 0) for queue in budgeted.queues]) == []


def test_what_a_dead_worker_reserved_stays_spent_and_holds_up_nobody(budgeted: Site) -> None:
    assert reserve(budgeted, "t1", 6, me="w2") == (6, 10, False)
    budgeted.end_lease("w2")
    assert reserve(budgeted, "t2", 1) == (0, 10, True)
    budgeted.queue.reap()
    budgeted.raise_epoch()  # of a session with a larger budget: what is reserved counts on
    assert reserve(budgeted, "t3", 5, limit=12) == (2, 12, False)


#: An engine of which all runs together may ask ten requests.
SCARCE = EngineAccount("scarce", "d2", (10, NO_LIMIT, NO_LIMIT, NO_LIMIT))


def reserve_scarce(
    site: Site, token: str, needs: int, *, run: str = "run-a", me: str = "w1", settled: int = 0, ended: int = 0
) -> Reserved:
    keys = site.keys if run == "run-a" else RunKeys(run, 0)
    return site.queue.reserve(keys, me, token, NO_LIMITS, Amounts(settled), ended, [Amounts(1)] * needs, SCARCE)


@pytest.fixture
def scarce(site: Site) -> Iterator[Site]:
    """Two runs that ask an engine with a budget; the one has used four of its requests before, the other one."""
    site.fields = {**site.fields, "used": "4 0 0 0", "used:d2": "4 0 0 0"}
    site.raise_epoch()
    other = {**site.fields, "used": "1 0 0 0", "used:d2": "1 0 0 0"}
    site.queue.install("run-b", 0, OWNER, "anchor-b", [], other)
    for me in ("w1", "w2"):
        site.queue.beat(me, {}, 3600)
    yield site
    site.queue.close("run-b", max(info.epoch for info in site.queue.runs() if info.run == "run-b"), OWNER, [])


def test_the_budget_of_an_engine_holds_over_all_runs(scarce: Site) -> None:
    assert reserve_scarce(scarce, "t1", 3).granted == 3
    second = reserve_scarce(scarce, "t1", 4, run="run-b", me="w2")
    assert (second.granted, second.of_engine) == (2, Amounts(3))
    assert reserve_scarce(scarce, "t1", 4, run="run-b", me="w2").granted == 2  # repeated
    waiting = reserve_scarce(scarce, "t2", 1)
    assert (waiting.granted, waiting.exhausted) == (0, False)  # those in flight may leave something over
    assert not reserve_scarce(scarce, "t3", 0, ended=3).exhausted
    assert not reserve_scarce(scarce, "t4", 1).exhausted  # the other run has two in flight
    reserve_scarce(scarce, "t2", 0, run="run-b", me="w2", ended=2)
    assert reserve_scarce(scarce, "t5", 1).exhausted
    progress = scarce.queue.progress(scarce.keys, ["d2", "another"])
    assert (progress.exhausted, progress.exhausted_by, progress.of_all_runs) == (True, "d2", Amounts(10))
    assert progress.of_engines == {"d2": Amounts(7)}
    other = scarce.queue.reserve(scarce.keys, "w2", "t6", NO_LIMITS, Amounts(), 0, [Amounts(1)], LLM)
    assert (other.granted, other.exhausted) == (0, True)  # its answers would be thrown away
    assert not scarce.queue.progress(RunKeys("run-b", 0), ["d2"]).exhausted  # it notices when it wants more


def test_what_closed_runs_have_spent_of_an_engine_counts_on_and_once(scarce: Site) -> None:
    begun_again = {**scarce.fields, "used": "1 0 0 0", "used:d2": "1 0 0 0"}
    scarce.queue.close("run-b", 0, OWNER, [])
    scarce.queue.close("run-b", 0, OWNER, [])  # again, after a lost reply
    assert reserve_scarce(scarce, "t1", 9).granted == 5  # beside four of before, and one of the closed run
    for epoch in (1, 2):  # it is no closed run any more
        scarce.queue.install("run-b", epoch, OWNER, "anchor-b", [], begun_again)
    assert reserve_scarce(scarce, "t2", 2, settled=-1, ended=1).granted == 1


def test_nothing_is_reserved_in_an_epoch_that_is_over(budgeted: Site) -> None:
    old = budgeted.keys
    budgeted.raise_epoch()
    with pytest.raises(Lost):
        budgeted.queue.reserve(old, "w1", "t", (10, -1, -1, -1), Amounts(), 0, [Amounts(1)], LLM)
    assert budgeted.queue.progress(budgeted.keys).used == Amounts(4)


# -- questions that rows share

ONE, TWO = b"1" * 16, b"2" * 16


@pytest.fixture
def shared(site: Site) -> Site:
    """A run with two live workers."""
    for me in ("w1", "w2"):
        site.queue.beat(me, {}, 3600)
    return site


def share(site: Site, me: str, *wanted: bytes, **news: Any) -> list[bytes | Asker]:
    return site.queue.share(site.keys, me, wanted, **news)


def test_one_worker_asks_and_the_other_gets_its_answer(shared: Site) -> None:
    assert share(shared, "w1", ONE, TWO) == [Asker.HERE, Asker.HERE] == share(shared, "w1", ONE, TWO)
    assert share(shared, "w2", ONE) == [Asker.ELSEWHERE]
    assert share(shared, "w1", answers=[(ONE, b"answer")]) == []
    assert share(shared, "w2", ONE, TWO) == [b"answer", Asker.ELSEWHERE]


def test_a_question_that_is_given_up_is_the_next_workers_and_nobody_else_gives_it_up(shared: Site) -> None:
    assert share(shared, "w1", ONE) == [Asker.HERE]
    assert share(shared, "w2", ONE, given_up=[ONE]) == [Asker.ELSEWHERE]
    share(shared, "w1", given_up=[ONE])
    assert share(shared, "w2", ONE) == [Asker.HERE]


def test_a_dead_worker_asks_nothing_more(shared: Site) -> None:
    assert share(shared, "w1", ONE) == [Asker.HERE]
    shared.end_lease("w1")
    assert share(shared, "w2", ONE) == [Asker.HERE]
    shared.queue.reap()


def test_answers_end_with_their_epoch_and_old_ones_make_room(shared: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainette.fleet.redis.redis_queue.MOST_ANSWERS", 8)
    monkeypatch.setattr("chainette.fleet.memory.memory_run.MOST_ANSWERS", 8)
    old = shared.keys
    shared.raise_epoch()
    answers = [(b"%-16d" % number, b"answer") for number in range(40)]
    for pair in answers:
        share(shared, "w1", answers=[pair])
    known = [reply == b"answer" for reply in share(shared, "w2", *(question for question, _ in answers))]
    assert all(known[-4:]) and sum(known) <= 8 and not any(known[:32])
    with pytest.raises(Lost):
        shared.queue.share(old, "w1", [ONE])


def test_large_answers_come_one_after_another(shared: Site) -> None:
    """The queue in memory hands them over at once."""
    large = b"x" * (3 << 20)
    for question in (ONE, TWO):
        share(shared, "w1", answers=[(question, large)])
    assert share(shared, "w2", ONE, TWO) in ([large, Asker.ELSEWHERE], [large, large])
    assert share(shared, "w2", TWO) == [large]

"""The leased queue as coordinator, sink and workers see it: each transition happens whole or not at all.

Callers may repeat any call, and do after a lost reply. A claim holds while the unit carries its token, its epoch is the
run's and the run was not cancelled; a call with a claim that no longer holds changes nothing (docs/protocol.md).
`fleet/redis/redis_queue.py` implements the contract on Redis, `fleet/memory/memory_queue.py` in plain Python.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

from chainette.core.plan import Plan
from chainette.engine.budget import Amounts, BudgetLimits, Reserved
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.messages import Aside, RootRecord
from chainette.fleet.protocol.queue_values import (
    LEASE,
    AdmissionProgress,
    AdmissionResult,
    Asker,
    Claim,
    Drain,
    EngineAccount,
    Entry,
)
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.io.rundir.event_types import Event, Note
from chainette.records import Effects, Outcome, Rejection

__all__ = ["MOST_ANSWERS", "MOST_ANSWER_BYTES", "LeasedQueue"]

#: Shared answers of one epoch a queue remembers, and their bytes.
MOST_ANSWERS, MOST_ANSWER_BYTES = 1_000_000, 128 << 20


class LeasedQueue(ABC):
    """Runs, their roots, units and results, and the workers that hold leases on units."""

    # -- runs

    @abstractmethod
    def install(
        self, run: str, epoch: int, owner: str, token: str, queues: Sequence[str], fields: Mapping[str, str | int | float]
    ) -> None:
        """Makes an epoch current; its stream begins with the anchor `(ANCHOR, token)`. Everything older is refused and
        deleted. An epoch that `latest_epoch` takes for garbage is replaced.

        Raises:
            Lost: this epoch has another owner or anchor, or a later epoch exists.
            Cancelled: the run was cancelled meanwhile.
        """

    @abstractmethod
    def latest_epoch(self, keys: RunKeys) -> int:
        """The run's epoch in the queue, which may be later than that of the keys; -1 if there is none, or garbage: no process
        can have begun it since then."""

    @abstractmethod
    def attach(self, run: str, epoch: int, owner: str, position: tuple[str, str]) -> None:
        """Takes an epoch over for a sink.

        Raises:
            Lost: the stream does not continue the durable results.
        """

    @abstractmethod
    def close(self, run: str, epoch: int, owner: str, queues: Sequence[str]) -> None:
        """Removes a run and all its data; does nothing if there is no such run.

        Raises:
            Lost: the run has another owner or epoch.
        """

    @abstractmethod
    def set_state(self, run: str, state: str, reason: str = "") -> None:
        """Pauses ("paused"), continues ("running") or cancels ("cancelled") a run, and records the reason. Cancelling is final:
        its units are deleted, and a sink that comes back within a week learns of it.

        Raises:
            Lost: there is no such run, or it was cancelled.
        """

    @abstractmethod
    def bar(self, keys: RunKeys, owner: str, queues: Sequence[str]) -> None:
        """Makes new units of these queues (RQ's names) wait for a later phase; units already queued are unaffected.

        Barred units are not stored: a later epoch admits their rows again. A root with only barred units is suspended, as
        its last entry says, and leaves the window when that entry is acknowledged.

        Raises:
            Lost: the run has another owner or epoch.
        """

    @abstractmethod
    def runs(self) -> list[RunInfo]:
        """Runs that are not closed."""

    @abstractmethod
    def waiting(self, queues: Sequence[str]) -> dict[str, int]:
        """The number of waiting units in each non-empty queue (RQ's names)."""

    # -- roots

    @abstractmethod
    def admit(
        self,
        keys: RunKeys,
        plan: Plan,
        k: int,
        root: int,
        record: RootRecord,
        bad: list[Rejection],
        effects: Effects,
        token: str,
    ) -> AdmissionResult:
        """Admits a root: its rows, its bad lines, its first units. `k` is the number of roots this epoch admitted before.

        Raises:
            TooLarge: its rows have too many bytes.
            Lost: the epoch is over.
        """

    @abstractmethod
    def end_of_input(self, keys: RunKeys, total: int) -> bool:
        """Sets the total number of roots of this epoch; False if it has admitted another number.

        Raises:
            Lost: the epoch is over.
        """

    @abstractmethod
    def record(self, keys: RunKeys, root: int) -> RootRecord:
        """The rows of a live root as they were admitted.

        Raises:
            Missing: there are none.
            BadMessage: they are malformed, or have no seal.
        """

    @abstractmethod
    def progress(self, keys: RunKeys, engines: Sequence[str] = ()) -> AdmissionProgress:
        """The progress of admission, and the live roots."""

    @abstractmethod
    def missing(self, keys: RunKeys, roots: Sequence[int]) -> str:
        """Describes units of live roots nobody can ever claim; "" if there are none.

        Such a unit is in no queue, not scheduled, and held by no live worker, because a key that named it is gone. The
        cost grows with the outstanding units, so call this only if nothing moves.
        """

    # -- workers

    @abstractmethod
    def beat(
        self,
        incarnation: str,
        fields: Mapping[str, str | int | float],
        lease: float = LEASE,
        *,
        queues: Sequence[tuple[str, str]] = (),
    ) -> bool:
        """Renews a worker's lease for `lease` seconds; False if it had none: it is new, or its claims are gone.
        Strikes of units that were taken from it are undone, since it lives. RQ's tools show the worker at
        `queues`, each with its run."""

    @abstractmethod
    def leave(self, incarnation: str) -> bool:
        """Unregisters a worker; False while it holds units."""

    @abstractmethod
    def reap(self) -> list[str]:
        """Takes units back from workers whose lease has expired; returns those workers. Anyone may call it at any time.

        A unit that was begun gets a strike: after two it runs alone, and if it then kills a worker it is mended (`Turn`)."""

    @abstractmethod
    def workers(self) -> dict[str, Member]:
        """The live workers, as they describe themselves."""

    @abstractmethod
    def is_held(self, keys: RunKeys) -> bool:
        """Whether a live worker has a unit of this epoch in its hands; once none has, all that they committed can be read."""

    @abstractmethod
    def ask_to_stop(self, engine: str | None) -> list[str]:
        """Asks the workers of an engine, or all workers, to hand back their units and end; returns the workers asked."""

    @abstractmethod
    def is_asked_to_stop(self, incarnation: str) -> bool:
        """Whether somebody asked a worker to end."""

    # -- units

    @abstractmethod
    def claim_rows(
        self,
        incarnation: str,
        token: str,
        queues: Sequence[tuple[str, str, int]],
        *,
        alone: bool = False,
        ahead: bool = False,
    ) -> list[Claim] | Drain:
        """Claims the next units of the first non-empty queue; [] if all are empty. `alone` says that the worker holds nothing.

        `queues` are (run, queue, room), tried in order. The first unit is claimed whatever its size, and the next ones
        as long as all together have at most `room` rows, so that many small units cost one call. Fragments of one root
        and scope become one unit again, as far as the run's batch_size allows, unless a part of one was committed or a
        worker died with it. A unit that must run alone is claimed by itself. Each claim has its own token, made of `token`.

        A unit claimed `ahead` is not worked on before `start`: until then the worker's death does not count against
        it. Units that must run alone are never claimed ahead.

        Raises:
            Lost: the worker's lease has expired.
        """

    @abstractmethod
    def start(self, claim: Claim, incarnation: str) -> bool:
        """Marks a unit that was claimed ahead as begun; False if the claim does not hold. Called before the work."""

    @abstractmethod
    def commit(
        self,
        claim: Claim,
        incarnation: str,
        plan: Plan,
        outcome: Outcome,
        token: str,
        rows: Collection[str] | None = None,
    ) -> bool:
        """Commits the outcome of a unit, or of some of its rows: result, successors and the step of its scope at once.

        `rows` are the ids of the rows that end with this part (None: all remaining ones), and `outcome` is that of
        `claim.piece(rows)`. The worker keeps `claim.rest(rows)`; a unit without remaining rows is gone. `token` names the
        part: repeat the call with the same arguments until a reply comes, and commit no other part of the unit meanwhile. A
        join has no parts. False if the claim does not hold, or if the queue does not know the earlier parts: then drop
        the claim with all its rows, and `reconcile` puts the unit back.

        Raises:
            TooLarge: it has too many bytes; nothing happened, and the claim still holds.
        """

    @abstractmethod
    def split(self, claim: Claim, incarnation: str, plan: Plan) -> bool:
        """Cuts the rest of a unit into two that run alone; False if the claim does not hold, as in `commit`."""

    @abstractmethod
    def fail(self, claim: Claim, incarnation: str, delay: float, message: str) -> bool:
        """Delays a unit whose engine did not answer by `delay` seconds; False if the claim does not hold."""

    @abstractmethod
    def release(self, claim: Claim, incarnation: str) -> bool:
        """Hands a unit back without a strike, to the front; False if the claim does not hold."""

    @abstractmethod
    def bury(self, claim: Claim, incarnation: str, reason: str) -> bool:
        """Removes an invalid unit. If it was one of the run's, the run's sink begins a new epoch, so that its rows
        come back. False if the claim does not hold."""

    @abstractmethod
    def reconcile(self, incarnation: str, known: Sequence[Claim] = ()) -> int:
        """Returns every unit the queue thinks this worker holds, except `known`, to its queue: claims whose reply was
        lost, and commits a restored Redis has forgotten. Returns the number of units."""

    # -- the budget

    @abstractmethod
    def reserve(
        self,
        keys: RunKeys,
        incarnation: str,
        token: str,
        limits: BudgetLimits,
        settled: Amounts,
        ended: int,
        needs: Sequence[Amounts],
        engine: EngineAccount,
    ) -> Reserved:
        """Reserves requests of an engine, in their order, as far as the `limits` of the run and those of the engine go; before
        that, settles earlier ones. The limits of an engine hold for all runs together, also for those that are closed.

        `settled` is the difference between the usage and the reservations of the `ended` requests. A reservation that its
        worker never settles, because it died, stays spent. If none fits and no live worker has a request in flight (of the run;
        or of the engine, in any run), the run is exhausted: no more of its units are claimed in this epoch. `token` names the
        call, which is repeated until a reply comes.

        Raises:
            Lost: the epoch is over.
        """

    # -- questions that rows share

    @abstractmethod
    def share(
        self,
        keys: RunKeys,
        incarnation: str,
        wanted: Sequence[bytes],
        answers: Sequence[tuple[bytes, bytes]] = (),
        given_up: Sequence[bytes] = (),
    ) -> list[bytes | Asker]:
        """Tells other workers answers, and questions this one no longer asks; then returns for each `wanted` question its
        answer, or who asks it. A worker that dies asks no more.

        Answers are forgotten with their epoch, and before that if there are more than `MOST_ANSWERS`: the last half of
        these is remembered at least. Then a question is asked again.

        Raises:
            Lost: the epoch is over.
        """

    # -- results

    @abstractmethod
    def read(self, keys: RunKeys, position: tuple[str, str], count: int = 256) -> list[Entry]:
        """Entries after a position, oldest first; [] if there are none yet. Fewer than `count` if they are large.

        Raises:
            Lost: the entry at the position is not the durable one: the queue does not continue the log.
            PutAside: an entry does not decode, or has no seal.
        """

    @abstractmethod
    def put_aside(self, run: str, asides: Sequence[Aside], epoch: int | None = None) -> None:
        """Keeps invalid messages for a week (at least the last ones), and notes their number in the run's record. With an
        epoch, they are taken out of its stream."""

    @abstractmethod
    def ack(self, keys: RunKeys, owner: str, position: tuple[str, str], roots: Sequence[int]) -> None:
        """Records that everything up to a position is durable: returns the credit of roots that are finished or
        suspended by then, and trims the stream.

        Raises:
            Lost: the run has another owner or epoch, or the position is not in the stream.
        """

    # -- notes

    @abstractmethod
    def note(self, run: str, event: Event) -> None:
        """Sends the run's sink an event that may get lost, for example that an engine was loaded or a unit is retried."""

    @abstractmethod
    def notes(self, run: str, after: str) -> tuple[str, list[Note]]:
        """The events noted after a stream id, and the id to continue from. Skips notes that do not decode."""

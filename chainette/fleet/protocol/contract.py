"""The leased queue as coordinator, sink and workers see it: transitions, each of which happens whole or not at all.

Every call may be repeated, and is after a lost reply. A claim holds while its token stands at the unit, its epoch is the
run's and the run was not cancelled; what is done with a claim that does not hold changes nothing (PROTOCOL).
`fleet/redis/queue.py` keeps the contract on Redis, `fleet/memory/memory_queue.py` in plain Python.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

from chainette.core.plan import Plan
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.messages import RootRecord
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.fleet.protocol.states import LEASE, Admitted, Claim, Drain, Entry, Progress
from chainette.io.rundir.events import AnyEvent, Event
from chainette.records import Effects, Outcome, Rejection

__all__ = ["LeasedQueue"]


class LeasedQueue(ABC):
    """Runs, their roots, units and results, and the workers that hold leases on units."""

    # -- runs

    @abstractmethod
    def install(
        self, run: str, epoch: int, owner: str, token: str, queues: Sequence[str], fields: Mapping[str, str | int | float]
    ) -> None:
        """Makes an epoch current; its stream begins with the anchor `(ANCHOR, token)`. Everything older is refused, and
        deleted.

        Raises:
            Lost: this epoch is known from another owner or anchor, or a later one is.
            Cancelled: the run was given up meanwhile.
        """

    @abstractmethod
    def attach(self, run: str, epoch: int, owner: str, position: tuple[str, str]) -> None:
        """A sink takes an epoch over.

        Raises:
            Lost: the stream does not continue what is durable.
        """

    @abstractmethod
    def close(self, run: str, epoch: int, owner: str, queues: Sequence[str]) -> None:
        """Takes a run out; nothing of it stays. A run that is not there is closed.

        Raises:
            Lost: another owner, or another epoch.
        """

    @abstractmethod
    def set_state(self, run: str, state: str, reason: str = "") -> None:
        """Pauses ("paused"), continues ("running") or gives up ("cancelled") a run, and keeps why. Giving up is for good: its
        units are deleted, and a sink that comes back within a week learns of it.

        Raises:
            Lost: there is no such run, or it was given up.
        """

    @abstractmethod
    def bar(self, keys: RunKeys, owner: str, queues: Sequence[str]) -> None:
        """Units that come for these queues (RQ's names) wait for a later phase from now on; those in them already do not.

        They are not kept: their rows come back when an epoch admits what is durable by then. A root that has none but such
        units is suspended, which its last entry says; it leaves the window once that is acknowledged.

        Raises:
            Lost: another owner, or another epoch.
        """

    @abstractmethod
    def runs(self) -> list[RunInfo]:
        """Runs that are not closed."""

    @abstractmethod
    def waiting(self, queues: Sequence[str]) -> dict[str, int]:
        """Those of the queues (RQ's names) in which units wait, and how many."""

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
    ) -> Admitted:
        """Puts a root in: its rows, its bad lines, its first units. `k` is how many this epoch has admitted before.

        Raises:
            TooLarge: its rows have too many bytes.
            Lost: the epoch is over.
        """

    @abstractmethod
    def end_of_input(self, keys: RunKeys, total: int) -> bool:
        """Says how many roots this epoch admits in all; False where it has admitted another number.

        Raises:
            Lost: the epoch is over.
        """

    @abstractmethod
    def record(self, keys: RunKeys, root: int) -> RootRecord:
        """The rows of a live root as they were admitted.

        Raises:
            BadMessage: they are not there, or not what they must be.
        """

    @abstractmethod
    def progress(self, keys: RunKeys) -> Progress:
        """How far admission is, and which roots are live."""

    @abstractmethod
    def missing(self, keys: RunKeys, roots: Sequence[int]) -> str:
        """What is outstanding of live roots and can never be claimed, in words; "" if nothing is.

        It is in no queue, does not wait for a time, and no live worker has it: a key that named it is gone. Its cost
        grows with the units outstanding, so it is for runs in which nothing moves.
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
        """Renews a worker's lease of that many seconds; False where it had none: it is its first, or its claims are gone.
        The units that were taken from it get their strikes back: it lives. RQ's tools show it at
        `queues`, each with its run."""

    @abstractmethod
    def leave(self, incarnation: str) -> bool:
        """Signs a worker off; False while it holds units."""

    @abstractmethod
    def reap(self) -> list[str]:
        """Takes units back from workers whose lease is over; returns those workers. Anybody may call it at any time.

        A unit that was begun gets a strike: after the second it runs alone, and after a death alone it is mended (`Turn`)."""

    @abstractmethod
    def workers(self) -> dict[str, Member]:
        """What live workers say about themselves."""

    @abstractmethod
    def ask_to_stop(self, engine: str | None) -> list[str]:
        """Asks the workers of an engine, or all, to hand back what they have and end; returns whom."""

    @abstractmethod
    def is_asked_to_stop(self, incarnation: str) -> bool:
        """Whether somebody asked a worker to end."""

    # -- units

    def claim(
        self, incarnation: str, token: str, queues: Sequence[tuple[str, str]], *, alone: bool = False, ahead: bool = False
    ) -> Claim | Drain | None:
        """One unit, as `claim_rows` gives it."""
        found = self.claim_rows(incarnation, token, [(*pair, 0) for pair in queues], alone=alone, ahead=ahead)
        return found if isinstance(found, Drain) else next(iter(found), None)

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
        """The next units out of the first queue that has some; [] if none has. `alone` says that the worker holds nothing.

        `queues` are (run, queue, room), tried in order. The first unit comes whatever its size; the units behind it come too
        as long as all of them together have `room` rows at most, so that many small units cost one call. Fragments of one root
        and scope become one unit again, as far as the run's batch_size allows, unless a part was taken from one of them or a
        worker died of it. A unit that must run alone comes by itself. Each claim has its own token, made of `token`.

        A unit that is claimed `ahead` is not worked on before `start`: until then the worker's death does not count against
        it. Units that must run alone are never claimed ahead.

        Raises:
            Lost: the worker's lease is over.
        """

    @abstractmethod
    def start(self, claim: Claim, incarnation: str) -> bool:
        """Work on a unit that was claimed ahead begins; False where the claim does not hold. Called before the work."""

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

        `rows` are the ids of the rows that end with this part (None: all that are left), and `outcome` is that of
        `claim.piece(rows)`. `claim.rest(rows)` stays in hand; a unit without rows left is gone. `token` names the part: call
        again with the same arguments until an answer comes, and commit no other part of the unit meanwhile. A join never goes
        in parts. False if the claim does not hold, or if the queue does not know of the parts before: then drop the claim
        with all its rows, and `reconcile` makes the unit go round.

        Raises:
            TooLarge: it has too many bytes; nothing happened, and the claim is as it was.
        """

    @abstractmethod
    def split(self, claim: Claim, incarnation: str, plan: Plan) -> bool:
        """Cuts what is left of a unit in two that run alone; False where the claim does not hold, as in `commit`."""

    @abstractmethod
    def fail(self, claim: Claim, incarnation: str, delay: float, message: str) -> bool:
        """Puts a unit off for some seconds: its engine did not answer. False where the claim does not hold."""

    @abstractmethod
    def release(self, claim: Claim, incarnation: str) -> bool:
        """Hands a unit back unharmed, to the front; False where the claim does not hold."""

    @abstractmethod
    def bury(self, claim: Claim, incarnation: str, reason: str) -> bool:
        """Takes a unit out of the run that cannot be what it says. Where it was one of the run's, the run's sink begins
        a new epoch, so that its rows come back. False where the claim does not hold."""

    @abstractmethod
    def reconcile(self, incarnation: str, known: Sequence[Claim] = ()) -> int:
        """Hands back what the worker holds but for `known`: what a claim took whose reply was lost, and commits that a
        Redis which went back does not know of. Returns how many units."""

    # -- results

    @abstractmethod
    def read(self, keys: RunKeys, position: tuple[str, str], count: int = 256) -> list[Entry]:
        """Entries behind a position, oldest first; [] where there are none yet. Fewer than `count` where they are large.

        Raises:
            Lost: the entry at the position is not the one that is durable: the queue does not continue the log.
            BadMessage: an entry does not decode.
        """

    @abstractmethod
    def ack(self, keys: RunKeys, owner: str, position: tuple[str, str], roots: Sequence[int]) -> None:
        """Everything up to a position is durable: gives back the credit of finished roots, and of those that are
        suspended by then, and trims the stream.

        Raises:
            Lost: another owner, another epoch, or the position is not in the stream.
        """

    # -- notes

    @abstractmethod
    def note(self, run: str, event: Event) -> None:
        """Tells the run's sink something that may get lost: an engine was loaded, a unit goes round again."""

    @abstractmethod
    def notes(self, run: str, after: str) -> tuple[str, list[AnyEvent]]:
        """What was noted behind a stream id, and the id to go on from. What does not read as an event is passed over."""

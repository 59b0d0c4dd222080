"""Driving a run over Redis: admission and durability in one loop; any workers will do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio.from_thread
import redis

from chainette.core.usercode.loading import load_chain
from chainette.errors import ChainetteError, NotFinished, RunCancelled, RunDirectoryInUse, RunStopped
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.messages import Aside, BadMessage, Missing, PutAside
from chainette.fleet.protocol.queue_values import LEASE, Cancelled, Lost
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.fleet.protocol.seals import Seals, seals_of
from chainette.fleet.redis.connect import is_damage, is_passing
from chainette.fleet.redis.run_registry import Board, Role
from chainette.fleet.redis.stall_reasons import reasons
from chainette.io.rundir.chain_marks import marks_of
from chainette.io.rundir.event_types import AnswersDiscarded, EngineProbed, Note, UnitRetried, UnitSplit
from chainette.run.limits import RejectWatch
from chainette.run.session import Session
from chainette.run.window import window_for
from chainette_workers.sink.admission import Admitting, Pace, coordinated_here
from chainette_workers.sink.failed_epochs import FailedEpochs
from chainette_workers.sink.note_filter import NoteFilter
from chainette_workers.sink.patience import Patience
from chainette_workers.sink.phases import Phases
from chainette_workers.sink.reused_answers import answering
from chainette_workers.sink.scouting import Scouting
from chainette_workers.sink.sink import Sink
from chainette_workers.sink.status_fields import counts_of, outline_of

__all__ = ["DriveLoop"]

_log = logging.getLogger("chainette")

#: Bytes of admitted rows that may be live.
_WINDOW_BYTES = 128 << 20

#: Seconds between two looks at the run's record and notes.
_LOOK = 0.5

#: Notes that count, or that stop a run.
_COUNTED = (AnswersDiscarded, EngineProbed, UnitRetried, UnitSplit)

#: Seconds without movement before it is explained, and before that is said again.
_STILL, _AGAIN = 3.0, 30.0

#: Seconds between two looks when nothing moves: at first, and later.
_IDLE, _LAZY = 0.02, 0.2

#: Seconds between two looks while the workers have only one root.
_EAGER = 0.003

#: Seconds in which results gather, so that one group of calls and fsyncs serves several: as many as it took to make the last
#: ones durable, within these bounds.
_GATHER, _GATHER_LONG = 0.01, 0.04

#: Seconds between two looks at the notes while rows become durable.
_HEAR = 0.05


@dataclass
class DriveLoop:
    """One run's coordinator and sink in one loop of plain verbs.

    Raises (from `run`):
        RunStopped: an engine does not answer for too long, or too many rows are rejected.
        BudgetSpent: the next request does not fit; all that was answered is durable.
        RunCancelled: somebody gave the run up.
        RunDirectoryInUse: another process has taken the run over.
    """

    session: Session
    queue: LeasedQueue
    board: Board
    #: Fields of the run's record: the processes that serve it, and everything that others must know about it.
    fields: Mapping[str, str | int | float]
    #: The most live rows; None: as many as the workers need.
    window: int | None = None
    seals: Seals = field(default_factory=seals_of)
    coordinated: Callable[[Session, Sink], Admitting] = coordinated_here
    #: The number of the order that it follows, if it was handed over.
    order: int = 0
    #: Called when something became durable (True), and when nothing moves (False).
    tend: Callable[[bool], None] = lambda _moved: None
    #: Called when every row is durable, and the files of the run are still to be written: workers may end meanwhile.
    let_go: Callable[[], None] = lambda: None
    #: Whether the workers are children of this process.
    own_workers: bool = False
    _phases: Phases = field(init=False)
    _notes: NoteFilter = field(init=False)
    _patience: Patience = field(init=False)
    _scouting: Scouting = field(init=False)
    _at_work: Sink | None = None
    _looked_at: float = 0.0
    _pace: Pace = field(default_factory=Pace)
    _failed_epochs: FailedEpochs = field(init=False)
    _searched_at: float = 0.0
    _moved_at: float = field(default_factory=time.monotonic)
    _explained_at: float = -_AGAIN
    _noted: str = "0-0"
    _heard_at: float = 0.0
    _caught_up: bool = False

    def __post_init__(self) -> None:
        writer = self.session.writer
        self._failed_epochs = FailedEpochs(self.tend)
        self._notes = NoteFilter(self.session.plan)
        self._patience = Patience(self.session.plan, self.session.options.engine_patience)
        self._scouting = Scouting(self.session.plan)
        number = writer.state.phase if not writer.reopened.is_longer else 0  # new rows need the earlier phases
        self._phases = Phases(self.session.plan, number, begun=number > 0)

    @property
    def _done(self) -> int:
        """The number of complete roots."""
        return self.session.writer.state.roots.done_count

    def run(self) -> None:
        sink = self._at_work = self._sink()
        with answering(self.session.sources, self.session.plan, self.board, lambda: sink.keys) as require_answers:
            self._run(sink, require_answers)

    def _run(self, sink: Sink, require_answers: Callable[[], None]) -> None:
        session = self.session
        expected = session.source.count()
        attaches = self._has_its_key(sink)
        begin: Callable[[int | None], None] | None = sink.open if attaches else sink.begin
        coordinator: Admitting | None = None
        while True:
            anyio.from_thread.check_cancelled()
            trouble: redis.RedisError | None = None
            began = time.monotonic()
            try:
                if begin is not None:
                    self._catch_up(sink)
                    self._phases.begun |= self._went_in_phases(sink)
                    begin(expected)
                    begin = coordinator = None
                if coordinator is None:
                    self.board.say(sink.run, {**self.fields, "window": sink.fields["window"]})
                    coordinator = self.coordinated(session, sink)
                self._look(sink)
                require_answers()
                moved = self._move(sink, coordinator)
                if session.has_enough:
                    self._finish(sink)
                    return
                if not moved and self._search(sink) and coordinator.finished and sink.progress.total is None:
                    coordinator = None  # Redis went back to before it knew the end of the input
                elif coordinator.finished and (progress := sink.progress).complete:
                    if not progress.suspended:
                        self._finish(sink)
                        return
                    self._enter_next_phase(sink)
                    begin = sink.raise_epoch
            except Cancelled as error:
                if self._is_cancelled(sink):
                    raise self._cancelled(sink) from error
                continue
            except Lost as error:
                self._yield_to_another(sink)
                self._failed_epochs.wait(f"Redis does not continue the log of run {sink.run} ({error})", self._done)
                self._moved_at, begin = time.monotonic(), sink.raise_epoch
                continue
            except (BadMessage, NotFinished) as error:
                self._put_aside(sink, error)
                self._wait_out(error)
                begin = sink.raise_epoch
                continue
            except redis.RedisError as error:
                if is_damage(error):
                    self._wait_out(Missing(f"a key of run {sink.run} in Redis holds a value that is not Chainette's: {error}"))
                    begin = sink.raise_epoch
                    continue
                if not is_passing(error):
                    raise RunStopped(f"Redis refuses a command: {error}") from error
                sink.doubt()
                moved, trouble = False, error
            self._rest(sink, began, moved, trouble)
            self.tend(moved)

    def _move(self, sink: Sink, coordinator: Admitting) -> bool:
        """Admits rows and makes results durable, as far as there are any; whether there were.

        Raises:
            BudgetSpent: the budget is spent, and nothing more comes.
        """
        spent = sink.count_budget()
        ahead = self._scouting.admit(coordinator.step)
        moved = self._pace.admit(coordinator, self._done) if ahead is None else ahead
        if sink.step():
            moved = True
            self._scouting.answered()
        elif spent is not None:
            self._hear(sink)
            raise spent
        if not moved or self.session.has_enough or time.monotonic() > self._heard_at + _HEAR:
            self._hear(sink)
        return moved

    def _wait_out(self, error: ChainetteError) -> None:
        """Waits until a new epoch may replace one that is damaged."""
        self._failed_epochs.wait_after_damage(error, self._done)
        self._moved_at = time.monotonic()

    def _rest(self, sink: Sink, began: float, moved: bool, trouble: redis.RedisError | None) -> None:
        """Waits until there may be more to do: longer if nothing moves, which is explained after a while."""
        now = time.monotonic()
        if moved:
            self._patience.renew()
            self._moved_at = now
            seconds = min(_GATHER_LONG, max(_GATHER, now - began))
        else:
            self._explain(sink, trouble)
            seconds = min(_LAZY, max(_IDLE, (now - self._moved_at) / 20))
        time.sleep(_EAGER if self._scouting.is_out else seconds)

    def _has_its_key(self, sink: Sink) -> bool:
        """Whether the epoch in Redis, if there is one, is sealed as this process seals.

        Raises:
            RunStopped: it is sealed, and this process has no key.
        """
        try:
            info = self.board.run(sink.run)
        except redis.RedisError:
            return True  # then the rows that are there are refused one by one
        fault = info.seal_fault(self.seals) if info is not None and info.epoch >= 0 else ""
        if fault and not self.seals.fingerprint:
            raise RunStopped(f"run {sink.run} {fault}")
        return not fault

    def drain(self) -> None:
        """Makes committed rows durable after `run` was stopped, if the queue ends with this process."""
        sink = self._at_work
        if sink is None or self.session.writer.state.position is None:  # stopped before there was an epoch to read
            return
        sink.rejects = RejectWatch(None)  # the run has stopped, maybe for its rejections; the rest is kept all the same
        with suppress(redis.RedisError, Lost, ChainetteError):
            while sink.step():
                pass
            self._hear(sink)
            sink.count_budget()

    def _look(self, sink: Sink) -> None:
        """Looks whether others cancelled the run or lost a unit of it, and publishes its progress."""
        now = time.monotonic()
        if now < self._looked_at + _LOOK:
            return
        self._looked_at = now
        progress = sink.progress
        if words := sink.damage(progress):
            raise Missing(words)
        if progress.state == "cancelled":
            raise Cancelled
        by_name = self.board.members()
        if (info := self.board.run(sink.run)) is not None:
            self._mend(sink, info)
            self._patience.require_servers(info, by_name)
        members = list(by_name.values())
        self._scouting.see(members)
        sink.fields = {**sink.fields, "window": self._window(members)}
        begun = self._phases.begun
        self._phases.look(members)
        if self._phases.begun and not begun:
            _log.warning("%s", self._phases.words)
        sink.bar(self._phases.barred)
        counts, still = counts_of(self.session.writer.state), int(now - self._moved_at)
        self.board.say(sink.run, RunInfo.words(counts=counts, window=sink.fields["window"], still=still))

    def _mend(self, sink: Sink, info: RunInfo) -> None:
        """Fields of the run's record that no longer decode are written anew.

        Raises:
            Missing: workers cannot do without one of them; a new epoch writes it.
        """
        if info.wrong or ("order" in self.fields and not info.order):
            self.board.say(sink.run, self.fields)
        if info.damage:
            raise Missing(f"the record of run {sink.run} in Redis is damaged ({info.damage})")

    def _search(self, sink: Sink) -> bool:
        """Looks for units that no worker can ever take, once a lease while nothing moves; whether it looked.

        Raises:
            Missing: there is one; its rows come back with the next epoch.
        """
        now = time.monotonic()
        if now < max(self._moved_at, self._searched_at) + LEASE:
            return False
        self._searched_at = now
        if words := sink.missing():
            raise Missing(sink.damage(sink.progress) or words)  # the worker that removed the unit may have said why
        sink.doubt()  # Redis may have gone back without an error, and hold credit that was returned
        return True

    def _went_in_phases(self, sink: Sink) -> bool:
        """Whether an earlier sink, or this one in the previous epoch, put the run into phases."""
        info = self.board.run(sink.run)
        return info is not None and bool(info.barred)

    def _enter_next_phase(self, sink: Sink) -> None:
        self._phases.look(self.board.members().values())
        self._phases.go_on()
        sink.phase, sink.barred = self._phases.number, self._phases.barred

    def _is_cancelled(self, sink: Sink) -> bool:
        """Whether the run was cancelled by somebody who may do that; otherwise it goes on."""
        try:
            if not self.board.revive(sink.run):
                return True
        except redis.RedisError:
            return False  # it is asked again
        self._put_aside(sink, BadMessage(f"run {sink.run} was called cancelled, and nobody who may do that did"))
        return False

    def _cancelled(self, sink: Sink) -> RunCancelled:
        with suppress(redis.RedisError, Lost):
            sink.close()
        directory = self.session.writer.directory
        return RunCancelled(
            f"run {sink.run} was cancelled; its rows so far are in {directory}; to go on all the same: "
            f"`chainette resume {directory}`"
        )

    def _yield_to_another(self, sink: Sink) -> None:
        """Two processes may write the same run (say, its directory was copied). They must not steal it back and forth, so
        the one that lost it ends, unless the other has died.

        Raises:
            RunDirectoryInUse: the other lives.
        """
        end, moved = time.monotonic() + 1.5 * LEASE, False
        while other := self._other_sink(sink):
            anyio.from_thread.check_cancelled()
            if time.monotonic() > end:
                raise RunDirectoryInUse(
                    f"another process writes run {sink.run} now ({other}), maybe into a copy of this directory; the rows here "
                    f"stay as they are: `chainette resume {self.session.writer.directory}` goes on once the other is done"
                )
            time.sleep(_LOOK)
            self.tend(moved)

    def _other_sink(self, sink: Sink) -> str:
        """The live sink that has taken the run over; "" if there is none, or if Redis does not say."""
        try:
            info, members = self.board.run(sink.run), self.board.members()
        except redis.RedisError:
            return ""
        found = info.sink if info is not None else ""
        return found if found != self.fields.get(Role.SINK, "") and found in members else ""

    def _finish(self, sink: Sink) -> None:
        self._hear(sink)  # notes that came with the last results
        self.let_go()
        self.session.finish()
        self._close(sink)

    def _close(self, sink: Sink) -> None:
        """Takes the finished run out of Redis, as soon as that answers."""
        closed = False
        while not closed:
            anyio.from_thread.check_cancelled()
            try:
                sink.close()
                closed = True
            except Lost:
                closed = True  # somebody else's, or not there
            except redis.RedisError as error:
                if not (is_passing(error) or is_damage(error)):  # a key of another type is deleted, so the next try works
                    raise
                time.sleep(_LOOK)
            self.tend(closed)

    def _put_aside(self, sink: Sink, error: ChainetteError) -> None:
        """Keeps invalid messages for an investigation, and counts them."""
        if not isinstance(error, BadMessage) or isinstance(error, Missing):
            return
        asides = error.asides if isinstance(error, PutAside) else [Aside(str(error))]
        self.session.hook.on_aside(len(asides))
        with suppress(redis.RedisError):
            self.queue.put_aside(sink.run, asides)

    def _explain(self, sink: Sink, trouble: redis.RedisError | None) -> None:
        """Says why nothing moves, if the reason is known; repeated after a while."""
        now = time.monotonic()
        if now < max(self._moved_at + _STILL, self._explained_at + _AGAIN):
            return
        said = self._reasons(sink, trouble)
        self._explained_at = now if said else now + _STILL - _AGAIN
        for reason in said:
            _log.warning("nothing moves: %s", reason)

    def _reasons(self, sink: Sink, trouble: redis.RedisError | None) -> list[str]:
        try:
            live = self.board.live(sink.run) if trouble is None else None
        except redis.RedisError as error:
            trouble, live = error, None
        if trouble is not None:
            return [f"Redis fails ({trouble}); waiting for it"]
        return reasons(live, own_workers=self.own_workers) if live is not None else []

    def _window(self, members: Iterable[Member]) -> int:
        return window_for(sum(member.rows_budget for member in members), self.window or self.session.options.window)

    def _sink(self) -> Sink:
        session, options = self.session, self.session.options
        state = session.writer.state
        claim = options.chain_claim or load_chain(options.chain_ref, Path(options.chain_root)).claim
        fields = {**self.fields} | RunInfo.words(
            window=self._window(()),
            window_bytes=_WINDOW_BYTES,
            seed=options.seed,
            chain_ref=options.chain_ref,
            digest=claim.digest,
            files=claim.files,
            parameters=session.plan.parameters,
            marks=marks_of(session.plan),
            batch_size=session.plan.batch_size,
            simulate=options.simulate,
            reuse=session.sources is not None,
            dedupe=options.dedupe,
            engines={name: config.digest for name, config in session.plan.engines.items()},
            outline=outline_of(session.plan),
            **({"budget": budget} if (budget := session.writer.budget) is not None else {}),
        )
        watch = RejectWatch(options.max_reject_rate)
        redis = options.way.get("redis", "")
        phase = self._phases.number
        return Sink(
            self.queue,
            session.writer,
            session.plan,
            state.run.run_id,
            fields,
            session.hook,
            watch,
            session.source,
            phase,
            redis,
            self.order,
        )

    def _catch_up(self, sink: Sink) -> None:
        """Passes on notes from before this sink, except those that an earlier sink counted, or that may have stopped it."""
        while not self._caught_up:
            before = self._noted
            self._noted, events = self.queue.notes(sink.run, before)
            self._pass_on(event for event in events if not isinstance(event, _COUNTED))
            self._caught_up = self._noted == before

    def _hear(self, sink: Sink) -> None:
        """Passes workers' notes to the log and to the hooks."""
        self._heard_at = time.monotonic()
        self._noted, events = self.queue.notes(sink.run, self._noted)
        self._pass_on(events)

    def _pass_on(self, events: Iterable[Note]) -> None:
        state = self.session.writer.state
        for event in self.session.writer.record(self._notes.passing(events, state.workers, state.engines.loaded_from)):
            self.session.hook.on_event(event)
            if isinstance(event, UnitRetried):
                self._patience.spend(event)

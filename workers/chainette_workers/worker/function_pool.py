"""Runs functions (Apply): in the worker's process, or in child processes that may hang and die.

A unit whose process died is run row by row; a row that ends a process twice is rejected as `poison`, and its neighbours
finish.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import anyio
import msgspec
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from chainette.core.usercode.parameters import Offered
from chainette.errors import EngineUnavailable
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.fleet.redis.connect import VARIABLE
from chainette.records import Reason, Rejection, Row, Unit
from chainette.run.process import fill
from chainette.run.unit_result import UnitResult
from chainette_workers.worker.enqueued_chains import ChainDiffers, Reference
from chainette_workers.worker.function_messages import (
    HEAD,
    Began,
    Call,
    Differs,
    Failed,
    PartialAnswer,
    Reply,
    UnitAnswer,
    frame,
    length_of,
    open_reply,
)

__all__ = ["Children", "Functions", "InLoop"]

#: Processes a row may end.
_DEATHS = 2

#: Variables a user's function has no use for.
_SECRETS = frozenset({VARIABLE, "CHAINETTE_FLEET_KEY"})

#: Seconds for a process to end by itself, and for its last message.
_LAST_WORDS = 0.2

#: Seconds that another process takes to start on a busy machine.
_START = 1.0

#: Errors of reading from a process that ends, or writes nonsense.
_BROKEN = (
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.IncompleteRead,
    anyio.EndOfStream,
    OSError,
    msgspec.MsgspecError,
)


class Functions(Protocol):
    """Runs units of functions."""

    #: Units side by side.
    width: int

    async def run(self, info: RunInfo, result: UnitResult, unit: Unit, /) -> None:
        """Puts each row of the unit into the result soon after it has finished.

        Raises:
            ChainDiffers: the chain's files are no longer those of the plan.
            EngineUnavailable: it cannot be run now, through no fault of its own.
        """
        ...

    async def aclose(self) -> None:
        """Ends all units that run."""
        ...


class InLoop:
    """Runs them in this process: coroutines on its event loop, others in threads."""

    width = 4

    async def run(self, _info: RunInfo, result: UnitResult, unit: Unit, /) -> None:
        await fill(result, unit.rows, None)

    async def aclose(self) -> None:
        """Nothing runs."""


class _Died(Exception):
    """The process ended before it answered; the message says how."""


@dataclass
class _Child:
    """One process, which runs one unit at a time."""

    process: Process
    replies: BufferedByteReceiveStream
    #: Whether it has begun to run the unit.
    began: bool = False

    async def ask(self, call: Call, take: Callable[[UnitAnswer], None]) -> Reply:
        """The reply about the rows that are left when it ends; `take` gets those that finish before.

        Raises:
            _Died: it ended before it answered.
        """
        found: list[Reply] = []
        self.began = False

        async def listen() -> None:
            with suppress(*_BROKEN):  # bytes a function wrote to our descriptors end it too
                found.append(await self._answer(frame(call), take))
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            await self.process.wait()  # processes the function started may hold the pipe open
            await anyio.sleep(_LAST_WORDS)
            group.cancel_scope.cancel()
        if not found:
            raise _Died(await self.end())
        return found[0]

    async def _answer(self, call: bytes, take: Callable[[UnitAnswer], None]) -> Reply:
        assert self.process.stdin is not None
        await self.process.stdin.send(call)
        while True:
            head = await self.replies.receive_exactly(HEAD)
            reply = open_reply(await self.replies.receive_exactly(length_of(head)))
            match reply:
                case Began():
                    self.began = True
                case PartialAnswer(answer):
                    take(answer)
                case _:
                    return reply

    async def end(self) -> str:
        """Ends it, if it does not end by itself; returns how it ended, in words."""
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(_LAST_WORDS):
                await self.process.wait()
            with suppress(ProcessLookupError):
                self.process.kill()
            code = await self.process.wait()
            await self.process.aclose()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@dataclass
class Children:
    """Runs them in processes: none before the first unit, and another one only if all are busy for a while."""

    root: Path
    engines_file: str | None = None
    parameters: Offered = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    width: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    _idle: list[_Child] = field(default_factory=list)
    _all: list[_Child] = field(default_factory=list)
    _room: anyio.Semaphore | None = None
    _freed: anyio.Event = field(default_factory=anyio.Event)

    async def run(self, info: RunInfo, result: UnitResult, unit: Unit, /) -> None:
        reference, left = Reference.of(info), {row.row_id: row for row in unit.rows}

        def take(answer: UnitAnswer) -> None:
            result.add(left, answer.outputs, answer.rejected, answer.dropped)

        try:
            await self._ask(Call(reference, unit), take)
        except _Died as error:
            for row in [*left.values()]:
                await self._alone(reference, unit, row, str(error), take)

    async def _alone(self, reference: Reference, unit: Unit, row: Row, how: str, take: Callable[[UnitAnswer], None]) -> None:
        """One row of a unit whose process died. A row that was alone then has one death behind it."""
        one = msgspec.structs.replace(unit, rows=[row])
        for _ in range(_DEATHS - (len(unit.rows) == 1)):
            try:
                return await self._ask(Call(reference, one), take)
            except _Died as error:
                how = str(error)
        words = f"the function ended its process {_DEATHS} times with this row alone ({how})"
        return take(UnitAnswer([], [Rejection(row.row_id, unit.node, Reason.POISON, words, 0, None, row.line, row.key)], []))

    async def _ask(self, call: Call, take: Callable[[UnitAnswer], None]) -> None:
        async with self._child() as child:
            reply = await child.ask(call, take)
        match reply:
            case UnitAnswer():
                take(reply)
            case Differs(words):
                raise ChainDiffers(words)
            case Failed(words):
                raise RuntimeError(words)

    @asynccontextmanager
    async def _child(self) -> AsyncIterator[_Child]:
        """A process nobody else uses; the one used last comes first. One that did not answer is gone afterwards."""
        self._room = self._room or anyio.Semaphore(self.width)
        async with self._room:
            child = await self._idle_or_new()
            try:
                yield child
            except _Died as error:
                self._all.remove(child)
                if not child.began:  # not because of the unit
                    raise EngineUnavailable(f"a process for functions did not come up ({error})") from error
                raise
            except BaseException:
                self._all.remove(child)
                await child.end()
                raise
            self._idle.append(child)
            self._freed.set()
            self._freed = anyio.Event()

    async def _idle_or_new(self) -> _Child:
        """Waits a moment for a busy process, since short units end sooner than another process starts."""
        if self._all:
            with anyio.move_on_after(_START):
                while not self._idle:
                    await self._freed.wait()
        return self._idle.pop() if self._idle else await self._start()

    async def _start(self) -> _Child:
        command = [sys.executable, "-P", "-m", "chainette_workers.worker.function_child", str(os.getpid()), str(self.root)]
        command += [self.engines_file or "", msgspec.json.encode(self.parameters).decode(), *self.modules]
        environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        with anyio.CancelScope(shield=True):  # a process that nobody knows would never be ended
            process = await anyio.open_process(command, stderr=None, env=environment)
        assert process.stdout is not None
        child = _Child(process, BufferedByteReceiveStream(process.stdout))
        self._all.append(child)
        return child

    async def aclose(self) -> None:
        """Ends every process."""
        with anyio.CancelScope(shield=True):
            for child in self._all:
                await child.end()
        self._all.clear()
        self._idle.clear()

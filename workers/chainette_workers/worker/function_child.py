"""A process that runs functions (Apply) for a worker.

`python -m chainette_workers.worker.function_child PARENT ROOT ENGINES PARAMETERS MODULE...`: the worker's process id, its
--chain-root, its --engines or "", its --set as JSON, and each --chain-module.

Units come through standard input and answers go through standard output, which the functions do not get: their prints
go to the worker's log. It loads chains by reference, from the same disk as its worker, and ends when its worker does.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, NoReturn, TypeVar

import anyio
import anyio.to_thread
import msgspec

from chainette.core.plan import Plan
from chainette.errors import ChainetteError
from chainette.hooks import Hook
from chainette.records import PYTHON, Unit
from chainette.run.process import fill
from chainette.run.unit_result import UnitResult
from chainette.utils.user_errors import told
from chainette_workers.worker.enqueued_chains import ChainDiffers, Chains
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
    open_call,
)

__all__ = ["main"]

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1

#: Seconds between two looks at which rows have finished.
_LOOK = 0.25


def main() -> None:
    """Answers calls until standard input ends."""
    _, parent, root, engines_file, parameters, *modules = sys.argv
    _die_with(int(parent))
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the worker, which ends this process
        signal.signal(number, signal.SIG_IGN)
    calls, replies = _taken_pipes()
    offered = msgspec.json.decode(parameters, type=dict[str, list[str]])
    chains = Chains(Path(root), (PYTHON,), engines_file or None, parameters=offered, modules=tuple(modules))
    main_thread = _MainThread()
    threading.Thread(target=_answer, args=(calls, replies, chains, main_thread), daemon=True).start()
    main_thread.serve()


@dataclass(frozen=True)
class _MainThread:
    """Runs functions in the main thread, the only one that may handle signals (`signal.alarm`), and without an event loop."""

    _tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = field(default_factory=SimpleQueue)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Runs `work` there, from another thread's event loop."""
        future: Future[T] = Future()
        self._tasks.put((future, partial(copy_context().run, work, *arguments)))
        return await asyncio.wrap_future(future)

    def serve(self) -> NoReturn:
        while True:
            with suppress(BaseException):  # of a signal handler a function left behind
                _settle(*self._tasks.get())


def _settle(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        try:
            found = work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm must not outlive the unit whose row set it
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(found)


def _answer(calls: BinaryIO, replies: BinaryIO, chains: Chains, main_thread: _MainThread) -> None:
    try:
        anyio.run(_answer_all, calls, replies, chains, main_thread)
    except BaseException:
        traceback.print_exc()
    os._exit(1)  # also out of a function that goes on


def _die_with(parent: int) -> None:
    """On Linux the kernel ends this process with its worker, whatever a function does with the interpreter."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _taken_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the worker. Functions read nothing, and print to stderr."""
    calls, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return calls, replies


async def _answer_all(calls: BinaryIO, replies: BinaryIO, chains: Chains, main_thread: _MainThread) -> None:
    async with anyio.create_task_group() as group:
        while True:
            call = await anyio.to_thread.run_sync(_next, calls, abandon_on_cancel=True)
            if call is None:
                os._exit(0)  # also out of a function that goes on
            group.start_soon(_reply, call, replies, chains, main_thread)


def _next(calls: BinaryIO) -> Call | None:
    head = calls.read(HEAD)
    body = calls.read(length_of(head)) if len(head) == HEAD else b""
    return open_call(body) if body and len(body) == length_of(head) else None  # a worker that died may have written half of one


async def _reply(call: Call, replies: BinaryIO, chains: Chains, main_thread: _MainThread) -> None:
    await anyio.to_thread.run_sync(_send, replies, await _run(call, replies, chains, main_thread))


def _send(replies: BinaryIO, reply: Began | PartialAnswer | Reply) -> None:
    replies.write(frame(reply))
    replies.flush()


async def _run(call: Call, replies: BinaryIO, chains: Chains, main_thread: _MainThread) -> Reply:
    try:
        plan = await main_thread.run(chains.plan, call.chain)
        _send(replies, Began())
        answer = await _outcome(plan, call.unit, replies, main_thread)
    except ChainDiffers as error:
        return Differs(str(error))
    except ChainetteError as error:
        return Differs(f"cannot be loaded here: {error}")
    except Exception as error:
        return Failed(told(error))
    return answer


async def _outcome(plan: Plan, unit: Unit, replies: BinaryIO, main_thread: _MainThread) -> UnitAnswer:
    """Runs a unit; rows that finish early are sent while the others go on."""
    result = UnitResult(plan, plan.nodes[unit.node], Hook())

    async def send_parts() -> None:
        while True:
            await anyio.sleep(_LOOK)
            if result.finished():
                _send(replies, PartialAnswer(_answered(result, unit)))

    sending = asyncio.create_task(send_parts())
    try:
        await fill(result, unit.rows, None, away=main_thread.run)
    finally:
        sending.cancel()
    return _answered(result, unit)


def _answered(result: UnitResult, unit: Unit) -> UnitAnswer:
    outcome = result.take(unit)
    return UnitAnswer(outcome.outputs, outcome.rejected, outcome.dropped)


if __name__ == "__main__":
    main()

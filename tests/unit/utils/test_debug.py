"""The debugger passes events, prompts, answers and times to its callable."""

from __future__ import annotations

from chainette.engine.base import Completion, Request, SamplingParams
from chainette.io.rundir.event_types import RunStarted, UnitCommitted
from chainette.records import Message, Usage
from chainette.utils.debug import ChainDebugger


def clock() -> float:
    times.append(times[-1] + 0.5)
    return times[-1]


times = [0.0]


def debugger(told: list[str]) -> ChainDebugger:
    times[:] = [0.0]
    return ChainDebugger(told.append, clock)


def test_an_event_is_one_line_with_its_fields() -> None:
    told: list[str] = []
    hook = debugger(told)
    hook.on_event(RunStarted(expected=3, seq=1, at="now"))
    hook.on_event(UnitCommitted(node="a", root=0, taken=2, given=2, off={"a/0": (0, 0, 9, 2)}, seq=2))
    assert told[0] == "[    0.500] run_started expected=3"
    assert told[1].startswith("[    1.000] unit_committed node=a taken=2 given=2")
    assert "a/0" not in told[1] and "\n" not in told[1]


def test_an_exchange_is_shown_whole() -> None:
    told: list[str] = []
    request = Request((Message("system", "be\nbrief"),), SamplingParams(), 9, {}, "x", label="a/7/1")
    completion = Completion("{}", reasoning="hm", usage=Usage(1, 10, 2, 0.25))
    debugger(told).on_answers("a", [request, request], [completion, completion])
    assert len(told) == 2
    assert told[0].splitlines() == [
        "[    0.500] a a/7/1 seed=9",
        "    system:",
        "        be",
        "        brief",
        "    reasoning:",
        "        hm",
        "    answer (stop):",
        "        {}",
        "    10 + 2 tokens in 0.250 s",
    ]

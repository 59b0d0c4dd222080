"""warm_up: opens an engine, asks it once and measures the cost. Behind `chainette warmup`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from chainette.engine.base import Cause, Completion, Delta, Engine, Request, SamplingParams
from chainette.engine.config import EngineConfig
from chainette.engine.lifecycle import Engines, create_engine
from chainette.engine.probe import ANSWERED, QUESTION
from chainette.errors import EngineError, EngineRefused
from chainette.records import Message

__all__ = ["GpuMemory", "Warmth", "process_tree_memory", "warm_up"]

_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 120}},
    "required": ["answer"],
    "additionalProperties": False,
}


class GpuMemory(msgspec.Struct, frozen=True):
    """Memory of one device, in bytes, whichever process uses it."""

    used: int
    total: int


class Warmth(msgspec.Struct, frozen=True):
    """The cost of one answer of an engine. Times in seconds, memory in bytes."""

    open_seconds: float
    #: From the question to the first piece of the answer.
    first_seconds: float
    answer_seconds: float
    completion: Completion
    capacity: int
    described: dict[str, Any]
    #: Resident memory of this process and its descendants; None if unknown.
    memory: int | None
    gpus: list[GpuMemory]


async def warm_up(config: EngineConfig, patience: float) -> Warmth:
    """Opens an engine, asks it once, and closes it. A remote one may be silent for `patience` seconds.

    Raises:
        EngineError: it does not open, or does not answer.
    """
    began = time.perf_counter()
    async with Engines({config.name: config}, create=lambda config: create_engine(config, patience)) as engines:
        engine = await engines.get(config.name)
        opened = time.perf_counter() - began
        first, seconds, completion = await _ask(engine)
        if completion.finish not in ANSWERED:
            said = "; ".join(filter(None, (completion.error, completion.hint))) or "no reason given"
            kind = EngineRefused if completion.cause is Cause.DENIED else EngineError
            raise kind(f"engine {config.name!r} opened, and did not answer ({completion.finish}): {said}")
        memory, gpus = process_tree_memory(), _gpus()
        return Warmth(opened, first, seconds, completion, engine.capacity, engine.describe(), memory, gpus)


async def _ask(engine: Engine) -> tuple[float, float, Completion]:
    """Seconds to the first piece and to the last, and the answer."""
    request = Request((Message("user", QUESTION),), SamplingParams(max_tokens=64), 1, _SCHEMA, "warmup", "warmup")
    pieces: list[float] = []

    def tell(_delta: Delta) -> None:
        pieces.append(time.perf_counter())

    began = time.perf_counter()
    completion = await engine.stream(request, tell)
    ended = time.perf_counter()
    return (pieces[0] if pieces else ended) - began, ended - began, completion


def process_tree_memory(proc: Path = Path("/proc"), root: str = "self") -> int | None:
    """Resident bytes of a process and its descendants, summed; shared pages count in each."""
    try:
        top = (proc / root).resolve().name
        parents = {path.name: _parent(path) for path in proc.iterdir() if path.name.isdigit()}
        return sum(_resident(proc / pid) for pid in parents if _descends(pid, top, parents.get))
    except OSError:
        return None


def _descends(pid: str, top: str, parent_of: Callable[[str], str | None]) -> bool:
    seen: str | None = pid
    while seen not in (top, None):
        seen = parent_of(seen)
    return seen == top


def _parent(process: Path) -> str | None:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[1]
    except OSError:  # it has just ended
        return None


def _resident(process: Path) -> int:
    import resource

    try:
        return int((process / "statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # it has just ended
        return 0


def _gpus() -> list[GpuMemory]:
    """The devices the engine's own torch sees; torch is not imported for it."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    pairs = [torch.cuda.mem_get_info(device) for device in range(torch.cuda.device_count())]
    return [GpuMemory(total - free, total) for free, total in pairs]

"""Typed LLM pipelines over millions of rows, on your own GPUs, exactly once.

Names are imported when they are first used, so that the command line starts without them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chainette.core.apply import ApplyNode, apply
    from chainette.core.batch_apply import BatchApply
    from chainette.core.branch import Branch, JoinBranch
    from chainette.core.chain import Chain
    from chainette.core.loop import Loop
    from chainette.core.node import Node
    from chainette.core.route import Route
    from chainette.core.step import Step
    from chainette.engine.base import Engine, SamplingParams
    from chainette.engine.config import EngineConfig
    from chainette.engine.lifecycle import release_engine
    from chainette.engine.registry import get_engine_config, load_engines, register_engine
    from chainette.errors import ChainetteError
    from chainette.io.rundir.result import RunResult, open_run
    from chainette.records import Message, Row
    from chainette.run.executor import AsyncExecutor, Executor
    from chainette.run.options import RunOptions

    __version__: str

__all__ = [
    "ApplyNode",
    "AsyncExecutor",
    "BatchApply",
    "Branch",
    "Chain",
    "ChainetteError",
    "Engine",
    "EngineConfig",
    "Executor",
    "JoinBranch",
    "Loop",
    "Message",
    "Node",
    "Route",
    "Row",
    "RunOptions",
    "RunResult",
    "SamplingParams",
    "Step",
    "apply",
    "get_engine_config",
    "load_engines",
    "open_run",
    "register_engine",
    "release_engine",
]

_HOMES = {
    "core.apply": ("ApplyNode", "apply"),
    "core.batch_apply": ("BatchApply",),
    "core.branch": ("Branch", "JoinBranch"),
    "core.chain": ("Chain",),
    "core.loop": ("Loop",),
    "core.node": ("Node",),
    "core.route": ("Route",),
    "core.step": ("Step",),
    "engine.base": ("Engine", "SamplingParams"),
    "engine.config": ("EngineConfig",),
    "engine.registry": ("get_engine_config", "load_engines", "register_engine"),
    "engine.lifecycle": ("release_engine",),
    "errors": ("ChainetteError",),
    "run.executor": ("AsyncExecutor", "Executor"),
    "run.options": ("RunOptions",),
    "io.rundir.result": ("RunResult", "open_run"),
    "records": ("Message", "Row"),
}


def __dir__() -> list[str]:
    """The public names; modules and helpers that are loaded by now are no part of them."""
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__, "__version__"})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("chainette")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"chainette.{home}"), name)
    raise AttributeError(f"module 'chainette' has no attribute {name!r}")

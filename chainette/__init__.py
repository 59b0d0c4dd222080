"""Typed LLM pipelines over millions of rows, on your own GPUs, exactly once."""

from chainette.core.apply import ApplyNode, apply
from chainette.core.branch import Branch, JoinBranch
from chainette.core.chain import Chain
from chainette.core.node import Node
from chainette.core.step import Step
from chainette.engine.base import Engine, SamplingParams
from chainette.engine.config import EngineConfig, get_engine_config, load_engines, register_engine
from chainette.engine.lifecycle import release_engine
from chainette.errors import ChainetteError
from chainette.executor import AsyncExecutor, Executor
from chainette.io.result import RunResult
from chainette.records import Row

__all__ = [
    "ApplyNode",
    "AsyncExecutor",
    "Branch",
    "Chain",
    "ChainetteError",
    "Engine",
    "EngineConfig",
    "Executor",
    "JoinBranch",
    "Node",
    "Row",
    "RunResult",
    "SamplingParams",
    "Step",
    "apply",
    "get_engine_config",
    "load_engines",
    "register_engine",
    "release_engine",
]

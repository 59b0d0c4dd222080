"""The identity of a node's rows: its fingerprint, and beside it the settings that can only rescue rejected rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from pydantic import BaseModel

from chainette.core.apply import ApplyNode
from chainette.core.candidates import Picker
from chainette.core.condition import Condition
from chainette.core.loop import Judge
from chainette.core.route import Chooser
from chainette.core.setting_changes import SETTINGS, Settings, settings_of_engine
from chainette.core.step import Step
from chainette.core.usercode.fingerprint import fingerprint_code, fingerprint_model
from chainette.engine.base import SamplingParams
from chainette.engine.config import EngineConfig

__all__ = ["deciding_engine_settings", "deciding_sampling", "fingerprint_of", "rescue_of"]


def fingerprint_of(
    node: Step[Any, Any] | ApplyNode[Any, Any],
    input_type: type[BaseModel] | None,
    engine: EngineConfig | None,
    *,
    dedupe: bool = False,
) -> str:
    """Changes when anything that decides the node's rows changes."""
    parts: list[Any] = [node.id, type(node).__name__]
    parts += [fingerprint_model(model) if model is not None else None for model in (input_type, node.output_model)]
    if isinstance(node, ApplyNode):
        parts += _decides(node.fn) or [fingerprint_code(node.fn), node.cardinality]
    else:
        builder = fingerprint_code(node.prompt_builder) if callable(node.prompt_builder) else None
        parts += [node.system_prompt, node.user_prompt, node.output_format_instruction, builder]
        parts += [deciding_sampling(node.sampling), deciding_engine_settings(engine)]
        parts += [node.n] if node.n > 1 else []
        parts += ["dedupe"] if dedupe and node.sampling.temperature > 0 else []  # at 0, only seeds differ, which do nothing
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:16]


def _decides(fn: Any) -> list[Any]:
    """The settings that decide a route's ways, a loop's rounds or the choice among candidates; steps are nodes in their own
    right."""
    match fn:
        case Chooser(route):
            conditions = [route.on, *(way.when for way in route.ways)]
            return [[_given(one) for one in conditions], [(way.name, way.key) for way in route.ways]]
        case Judge(loop):
            return [_given(loop.until), _given(loop.best), loop.result]
        case Picker(step):
            return [fingerprint_code(step.pick) if callable(step.pick) else step.pick]
    return []


def _given(condition: Condition | None) -> str | None:
    if condition is None:
        return None
    return condition.given if isinstance(condition.given, str) else fingerprint_code(condition.given)


def rescue_of(node: Step[Any, Any] | ApplyNode[Any, Any], engines: Sequence[EngineConfig | None]) -> dict[str, Any]:
    """The settings of a node that can only rescue rejected rows; `engines` are those that it may ask."""
    if isinstance(node, ApplyNode):
        return _rescue_of_function(node.fn)
    declared = [
        (SETTINGS["Step"], {name: value for name, value in vars(node).items() if name != "min_valid"}),
        (SETTINGS["SamplingParams"], msgspec.structs.asdict(node.sampling)),
        _engine_settings(engines[0]),
    ]
    rescues = {name: found[name] for settings, found in declared for name in settings.rescue if name in found}
    return rescues | {"escalate": [_marked(engine) for engine in engines[1:] if engine is not None]}


def _rescue_of_function(fn: Any) -> dict[str, Any]:
    match fn:
        case Judge(loop):
            return {"max_rounds": f"{loop.max_rounds} under {loop.on_exhausted}", "on_exhausted": loop.on_exhausted}
        case Picker(step):
            return {"min_valid": step.min_valid}
    return {}


def _marked(engine: EngineConfig) -> str:
    """The name of a further engine, with a digest of its settings that decide rows or rescue them."""
    settings, found = _engine_settings(engine)
    parts = {name: value for name, value in found.items() if name not in settings.free}
    return f"{engine.name} ({hashlib.sha256(msgspec.json.encode(parts, order='deterministic')).hexdigest()[:8]})"


def _engine_settings(engine: EngineConfig | None) -> tuple[Settings, dict[str, Any]]:
    """The classes of an engine's settings, and their values."""
    if engine is None:
        return SETTINGS["engine"], {}
    plain = engine.describe()
    options: dict[str, Any] = plain.pop("options")
    return settings_of_engine(plain["backend"]), plain | options


def deciding_sampling(sampling: SamplingParams) -> dict[str, Any]:
    """The sampling parameters that decide accepted answers."""
    return _deciding(SETTINGS["SamplingParams"], msgspec.to_builtins(sampling))


def deciding_engine_settings(engine: EngineConfig | None) -> dict[str, Any]:
    """The settings of an engine that decide its answers; its name and endpoints do not."""
    return _deciding(*_engine_settings(engine))


def _deciding(settings: Settings, declared: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in declared.items() if name in settings.decide}

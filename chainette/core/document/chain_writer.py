"""A chain as YAML: everything that a chain file can express, and a list of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from chainette.core.apply import ApplyNode
from chainette.core.batch_apply import BatchApply
from chainette.core.branch import Branch, Element, JoinBranch
from chainette.core.chain import DEFAULT_BATCH_SIZE, Chain
from chainette.core.condition import Condition
from chainette.core.document.chain_keys import MODELS, function_parameters, parameters_of
from chainette.core.document.code_names import reference_to
from chainette.core.document.dumper import Inline, dumped
from chainette.core.document.model_writer import ModelWriter
from chainette.core.loop import Loop
from chainette.core.route import Route
from chainette.core.step import Step
from chainette.engine.base import SamplingParams
from chainette.engine.config import EngineConfig, make_config, public_url

__all__ = ["as_yaml"]


def as_yaml(chain: Chain) -> tuple[str, list[str]]:
    """(the chain as the text of a chain file beside its Python file, the parts that such a file cannot express).

    Such a part is null in the text, which then does not load.
    """
    writer = _Writer(chain)
    document = writer.document()
    return dumped(document), writer.unsaid


@dataclass
class _Writer:
    chain: Chain
    unsaid: list[str] = field(default_factory=list)
    models: ModelWriter = field(init=False)

    def __post_init__(self) -> None:
        self.models = ModelWriter(self.unsaid)

    def document(self) -> dict[str, Any]:
        chain = self.chain
        steps = self.elements(chain.steps)
        found: dict[str, Any] = {"name": chain.name}
        found |= _changed({"emoji": chain.emoji}, {"emoji": ""})
        found |= _changed({"batch_size": chain.batch_size}, {"batch_size": DEFAULT_BATCH_SIZE})
        found |= _changed({"accept": chain.accept}, {"accept": None})
        if chain.input_model is not None:
            found["input_model"] = self.models.model(chain.input_model)
        engines = {config.name: self.engine(config) for config in chain.registry}
        found |= {key: value for key, value in {"models": self.models.models, "engines": engines}.items() if value}
        return found | {"steps": steps}

    def code(self, value: Any, what: str, node: object = None) -> str | None:
        """module:name of a function; None, which no chain file loads with, if no module of the user has it."""
        reference, _ = reference_to(value, node)
        if not reference:
            self.unsaid.append(f"{what} is not a function at the top of a module; define it there")
        return reference or None

    # -- nodes

    def elements(self, elements: Sequence[Element]) -> list[dict[str, Any]]:
        return [self.element(element) for element in elements]

    def element(self, element: Element) -> dict[str, Any]:
        if isinstance(element, Step):
            return self.step(element)
        if isinstance(element, ApplyNode):
            return self.function(element)
        if isinstance(element, Sequence):
            branches = [self.branch(branch) for branch in element]
            return branches[0] if len(branches) == 1 else {"branches": branches}
        if isinstance(element, Route):
            return self.route(element)
        if isinstance(element, Loop):
            return self.loop(element)
        kind = type(element).__name__
        self.unsaid.append(f"{kind} {element.id!r}")
        return {kind.lower(): None}

    def route(self, route: Route) -> dict[str, Any]:
        found: dict[str, Any] = {"route": route.id}
        ways = [way for way in route.ways if way is not route.default]
        conditions = {way.name: self.condition(way.when) for way in ways if way.when is not None}
        if route.on is not None:
            found |= {"on": self.condition(route.on)}
            found |= {"cases": {msgspec.json.decode(way.key): self.elements(way.steps) for way in ways}}
        elif [*conditions] == ["then"]:
            found |= {"when": conditions["then"], "then": self.elements(ways[0].steps)}
        else:
            found |= {"when": conditions, "cases": {way.name: self.elements(way.steps) for way in ways}}
        if route.default is not None:
            found["default"] = self.elements(route.default.steps)
        return found | _changed({"join": route.alias, "emoji": route.emoji}, {"join": "", "emoji": ""})

    def loop(self, loop: Loop) -> dict[str, Any]:
        found: dict[str, Any] = {"loop": loop.id, "steps": self.elements(loop.steps), "until": self.condition(loop.until)}
        found |= {"best": self.condition(loop.best)} if loop.best is not None else {}
        found |= {"max_rounds": loop.max_rounds}
        more = {"on_exhausted": loop.on_exhausted, "result": loop.result, "join": loop.alias, "emoji": loop.emoji}
        usual = {"on_exhausted": "best" if loop.best is not None else "reject", "result": None, "join": "", "emoji": ""}
        return found | _changed(more, usual)

    def condition(self, condition: Condition) -> str | None:
        given = condition.given
        return given if isinstance(given, str) else self.code(given, f"the function of {condition.label}")

    def branch(self, branch: Branch) -> dict[str, Any]:
        found: dict[str, Any] = {"branch": branch.id}
        found |= {"join": branch.alias} if isinstance(branch, JoinBranch) else {}
        return found | _changed({"emoji": branch.emoji}, {"emoji": ""}) | {"steps": self.elements(branch.steps)}

    def step(self, step: Step[Any, Any]) -> dict[str, Any]:
        plain = Step(id=step.id, output_model=step.output_model, engine_name=step.engine_name)
        found: dict[str, Any] = {"step": step.id}
        for key in parameters_of(Step):
            value = getattr(step, key)
            if key == "id" or (value == getattr(plain, key) and key not in ("output_model", "engine_name")):
                continue
            if key in MODELS:
                found[key] = self.models.model(value)
            elif isinstance(value, SamplingParams):
                found[key] = _sampling(value)
            elif callable(value):
                found[key] = self.code(value, f"{key} of step {step.id!r}")
            else:
                found[key] = list(value) if isinstance(value, tuple) else value
        return found

    def function(self, node: ApplyNode[Any, Any]) -> dict[str, Any]:
        kind = "batch_apply" if isinstance(node, BatchApply) else "apply"
        reference = self.code(node.fn, f"the function of {node.id!r}", node)
        if reference is None:
            return {kind: None, "id": node.id}
        _, found = reference_to(node.fn, node)
        usual = found if isinstance(found, ApplyNode) else type(node)(node.fn, id=reference.rpartition(":")[2])
        changed = _changed(function_parameters(node), function_parameters(usual))
        return {kind: reference} | {key: self.models.model(value) if key in MODELS else value for key, value in changed.items()}

    # -- engines

    def engine(self, config: EngineConfig) -> dict[str, Any]:
        plain = make_config(config.name, config.model, config.backend)
        found: dict[str, Any] = {"model": config.model, "backend": config.backend}
        found |= _changed(_settings(config), _settings(plain))
        for key in ("headers", "extra", "trust_remote_code"):
            if found.pop(key, None):
                self.unsaid.append(f"{key} of engine {config.name!r}; declare it in a file for --engines")
        if "endpoint" in found and any(public_url(url) != url for url in found["endpoint"]):
            self.unsaid.append(f"secrets in the endpoint of engine {config.name!r}; declare it in a file for --engines")
            found["endpoint"] = [public_url(url) for url in found["endpoint"]]
        return found


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value != defaults.get(key)}


def _sampling(params: SamplingParams) -> Inline:
    """The settings that differ from the defaults, with the types a file's numbers get."""
    same = msgspec.convert(msgspec.to_builtins(params), SamplingParams)
    changed = _changed(msgspec.structs.asdict(same), msgspec.structs.asdict(SamplingParams()))
    return Inline({key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()})


def _settings(config: EngineConfig) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(config)
    options: dict[str, Any] = plain.pop("options")
    return plain | options

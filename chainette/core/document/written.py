"""A chain as YAML: everything that a chain file can say, and a list of the rest."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml
from pydantic import BaseModel

from chainette.core.apply import ApplyNode
from chainette.core.batch_apply import BatchApply
from chainette.core.branch import Branch, Element, JoinBranch
from chainette.core.chain import DEFAULT_BATCH_SIZE, Chain
from chainette.core.condition import Condition
from chainette.core.document.declarations import declared
from chainette.core.document.keys import MODELS, parameters_of
from chainette.core.document.model_notation import Inline, Unsayable, fields_of, is_data
from chainette.core.document.models import JSON_SCHEMA, Models
from chainette.core.document.parts import IMPLICIT, Part, parts_of
from chainette.core.route import Route
from chainette.core.step import Step
from chainette.core.usercode.importer import is_private, public_name
from chainette.engine.base import SamplingParams
from chainette.engine.config import EngineConfig, make_config, public_url
from chainette.errors import LoadError

__all__ = ["as_yaml"]


def as_yaml(chain: Chain) -> tuple[str, list[str]]:
    """(the chain as the text of a chain file beside its Python file, what such a file cannot say).

    A model is written by its fields if nothing of it gets lost, and else as module:Class.
    """
    writer = _Writer(chain)
    document = writer.document()
    return _dumped(document), writer.unsaid


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as something else than text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (the base's signature)
        return True


_Dumper.yaml_implicit_resolvers = {
    first: [*IMPLICIT.get(first, ()), *yaml.SafeDumper.yaml_implicit_resolvers.get(first, ())]
    for first in {*IMPLICIT, *yaml.SafeDumper.yaml_implicit_resolvers}
}
_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
)
_Dumper.add_representer(Inline, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=True))
_Dumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", data, flow_style=not any(isinstance(item, dict | list) for item in data)
    ),
)


def _dumped(document: Any) -> str:
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


@dataclass
class _Writer:
    chain: Chain
    unsaid: list[str] = field(default_factory=list)
    #: Name -> fields, or module:Class.
    models: dict[str, Any] = field(default_factory=dict)
    _names: dict[type[BaseModel], str] = field(default_factory=dict)
    #: The models that are written as module:Class, by that.
    _classes: dict[str, type[BaseModel]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        chain = self.chain
        steps = self.elements(chain.steps)
        found: dict[str, Any] = {"name": chain.name}
        found |= _changed(
            {"emoji": chain.emoji, "batch_size": chain.batch_size}, {"emoji": "", "batch_size": DEFAULT_BATCH_SIZE}
        )
        if chain.input_model is not None:
            found["input_model"] = self.model(chain.input_model)
        engines = {config.name: self.engine(config) for config in chain.registry}
        return (
            found
            | {key: value for key, value in {"models": self.models, "engines": engines}.items() if value}
            | {"steps": steps}
        )

    def cannot(self, words: str) -> None:
        self.unsaid.append(words)

    # -- nodes

    def elements(self, elements: Sequence[Element]) -> list[dict[str, Any]]:
        written = [self.element(element) for element in elements]
        return [entry for entry in written if entry is not None]

    def element(self, element: Element) -> dict[str, Any] | None:
        if isinstance(element, Step):
            return self.step(element)
        if isinstance(element, ApplyNode):
            return self.function(element)
        if isinstance(element, Sequence):
            branches = [self.branch(branch) for branch in element]
            return branches[0] if len(branches) == 1 else {"branches": branches}
        if isinstance(element, Route):
            return self.route(element)
        self.cannot(f"{type(element).__name__} {element.id!r}")
        return None

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

    def condition(self, condition: Condition) -> str:
        if isinstance(condition.given, str):
            return condition.given
        reference, _ = _reference(condition.given)
        if not reference:
            self.cannot(f"the function of {condition.label} is no function of a module; give it a name at the top of one")
        return reference or "{{ false }}"

    def branch(self, branch: Branch) -> dict[str, Any]:
        more = {"join": branch.alias} if isinstance(branch, JoinBranch) else {}
        return {
            "branch": branch.id,
            **more,
            **_changed({"emoji": branch.emoji}, {"emoji": ""}),
            "steps": self.elements(branch.steps),
        }

    def step(self, step: Step[Any, Any]) -> dict[str, Any]:
        plain = Step(id=step.id, output_model=step.output_model, engine_name=step.engine_name)
        found: dict[str, Any] = {"step": step.id}
        for key in parameters_of(Step):
            value = getattr(step, key)
            if key == "id" or (value == getattr(plain, key) and key not in ("output_model", "engine_name")):
                continue
            if key in MODELS:
                found[key] = self.model(value)
            elif isinstance(value, SamplingParams):
                found[key] = _sampling(value)
            elif callable(value):
                found |= self.code(key, value, step)
            else:
                found[key] = list(value) if isinstance(value, tuple) else value
        return found

    def function(self, node: ApplyNode[Any, Any]) -> dict[str, Any] | None:
        kind = "batch_apply" if isinstance(node, BatchApply) else "apply"
        reference, found = _reference(node.fn, node)
        if not reference:
            self.cannot(f"the function of {node.id!r} is no function of a module; give it a name at the top of one")
            return None
        usual = declared(found if isinstance(found, ApplyNode) else type(node)(node.fn, id=reference.rpartition(":")[2]))
        changed = _changed(declared(node), usual)
        return {kind: reference} | {key: self.model(value) if key in MODELS else value for key, value in changed.items()}

    def code(self, key: str, value: Any, step: Step[Any, Any]) -> dict[str, str]:
        """`key: module:name`; nothing if no module of the user has it."""
        reference, _ = _reference(value)
        if not reference:
            self.cannot(f"{key} of step {step.id!r} is no function of a module; give it a name at the top of one")
        return {key: reference} if reference else {}

    # -- engines

    def engine(self, config: EngineConfig) -> dict[str, Any]:
        plain = make_config(config.name, config.model, config.backend)
        found: dict[str, Any] = {"model": config.model, "backend": config.backend}
        found |= _changed(_settings(config), _settings(plain))
        for key in ("headers", "extra", "trust_remote_code"):
            if found.pop(key, None):
                self.cannot(f"{key} of engine {config.name!r}; declare it in a file for --engines")
        if "endpoint" in found and any(public_url(url) != url for url in found["endpoint"]):
            self.cannot(f"secrets in the endpoint of engine {config.name!r}; declare it in a file for --engines")
            found["endpoint"] = [public_url(url) for url in found["endpoint"]]
        return found

    # -- models

    def model(self, model: type[BaseModel]) -> str:
        """The name of a model, which is then among those of the file."""
        if model not in self._names:
            name = self._names[model] = _free(model.__name__, self.models)
            self.models[name] = None
            self.models[name] = self.data(name, model) or self.named(model) or self.schema(name, model)
        return self._names[model]

    def named(self, model: type[BaseModel]) -> str:
        reference, _ = _reference(model)
        self._classes[reference] = model
        return reference

    def data(self, name: str, model: type[BaseModel]) -> Any:
        """The model's fields, if the same model comes back when they are read."""
        models, names = dict(self.models), dict(self._names)
        try:
            fields = fields_of(model, self.model)
            if self.is_same(self.models | {name: fields}, name, model):
                return fields
        except Unsayable:
            pass
        self.models, self._names = models, names  # without those that only its fields use
        return None

    def schema(self, name: str, model: type[BaseModel]) -> Any:
        """The model's JSON Schema, if it says everything."""
        schema = {JSON_SCHEMA: model.model_json_schema()}
        return schema if is_data(model) and self.is_same({name: schema}, name, model) else self.lost(model)

    def is_same(self, models: Mapping[str, Any], name: str, model: type[BaseModel]) -> bool:
        """Whether the model comes back when it is read."""
        finished = {key: value for key, value in models.items() if value is not None}
        declared = parts_of(Path("models"), _dumped(finished).encode()).value

        def refuse(part: Part) -> Part:
            raise part.fault("nothing is read while a chain is written")

        try:
            again = Models(declared, lambda part: self._classes[part.value], refuse).made()[name]
        except LoadError:
            return False
        return again.model_json_schema() == model.model_json_schema()

    def lost(self, model: type[BaseModel]) -> dict[str, Any]:
        self.cannot(f"the model {model.__name__}, which has more than fields and is not at the top of a module")
        return {"unknown": "any"}


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value != defaults.get(key)}


def _sampling(params: SamplingParams) -> Inline:
    """What differs from the defaults, with the types that a file's numbers get."""
    same = msgspec.convert(msgspec.to_builtins(params), SamplingParams)
    changed = _changed(msgspec.structs.asdict(same), msgspec.structs.asdict(SamplingParams()))
    return Inline({key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()})


def _settings(config: EngineConfig) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(config)
    options: dict[str, Any] = plain.pop("options")
    return plain | options


def _free(name: str, taken: Mapping[str, Any]) -> str:
    count = 1
    while (found := name if count == 1 else f"{name}{count}") in taken:
        count += 1
    return found


def _reference(value: Any, node: object = None) -> tuple[str, Any]:
    """(module:name of a function or class of the user, what it leads to: the thing itself, or a node around it); "" if no
    module has it."""
    inner = value
    while isinstance(inner, functools.partial):
        inner = inner.func
    home = str(getattr(inner, "__module__", "") or "")
    if not is_private(home):
        return "", None
    package = home.partition(".")[0]
    modules = [home, *(name for name in sorted(sys.modules) if name.startswith(f"{package}.") and name != home)]
    named = [
        (f"{public_name(module)}:{name}", found) for module in modules for name, found in vars(sys.modules[module]).items()
    ]
    around = [each for each in named if node is not None and each[1] is node]
    itself = [each for each in named if each[1] is value]
    inside = [each for each in named if isinstance(each[1], ApplyNode) and each[1].fn is value]
    return next(iter([*around, *itself, *inside]), ("", None))

"""From the parts of a chain file to a Chain. The keys are the parameters of the classes that chains in Python use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from pydantic import TypeAdapter, ValidationError

from chainette.core.apply import ApplyNode
from chainette.core.batch_apply import BatchApply
from chainette.core.branch import Branch, Element
from chainette.core.chain import Chain
from chainette.core.document.chain_keys import (
    FUNCTION_KEYS,
    MODELS,
    PROMPTS,
    function_parameters,
    parameter_type,
    parameters_of,
)
from chainette.core.document.code import Code, is_reference
from chainette.core.document.faults import Faults
from chainette.core.document.models import Models, missing_model
from chainette.core.document.yaml_parts import Part
from chainette.core.loop import Loop
from chainette.core.route import Route
from chainette.core.step import Step
from chainette.engine.backends import backend_class
from chainette.engine.base import SamplingParams
from chainette.engine.config import EngineConfig, current_registry, make_config
from chainette.engine.registry import load_engines
from chainette.errors import ChainetteError, LoadError, LoadErrors
from chainette.utils.argument_advice import advice
from chainette.utils.call_site import declared_at

__all__ = ["chain_of"]

#: Keys that people expect, and ours.
_HINTS = {"engine": "engine_name", "input": "input_model", "model": "output_model", "output": "output_model"}
_HINTS |= {"prompt": "user_prompt", "system": "system_prompt", "user": "user_prompt", "as": "join", "alias": "join"}


def chain_of(document: Part, code: Code) -> Chain:
    """The chain a file declares; its engines are registered.

    Raises:
        LoadError: the file is wrong, at its line.
    """
    keys = document.keys("a chain", [*parameters_of(Chain), "models", "engines"], ["name", "steps"])
    faults, given, steps = Faults(), dict[str, Any](), list[Element]()
    if "engines" in keys:
        with faults.caught():
            _register(keys["engines"], code)
    with faults.caught():
        declared = keys["models"].mapping("models") if "models" in keys else {}
        given, steps = _Reader(code, Models(declared, code.model, code.parts).made()).chain(keys)
    faults.end()
    with _at(document):
        return Chain(steps=steps, **given)


@contextmanager
def _at(part: Part) -> Iterator[None]:
    """Nodes and errors within belong to the part's line."""
    try:
        with declared_at(part.place):
            yield
    except LoadErrors:
        raise
    except ChainetteError as error:
        words = str(error)
        raise LoadError(words if words.startswith(f"{part.place.file}:") else f"{part.place}: {words}") from error


def _register(part: Part, code: Code) -> None:
    """Registers the engines: settings by name, or `{file: engines.yml}`."""
    entries = part.mapping("engines")
    with _at(part):
        if entries.keys() == {"file"} and isinstance(entries["file"].value, str):
            for config in load_engines(code.path(part, "engines")):
                _require_no_code(config)
            return
    faults = Faults()
    for name, entry in entries.items():
        with faults.caught():
            _register_one(name, entry)
    faults.end()


def _register_one(name: str, entry: Part) -> None:
    keys = dict(entry.mapping(f"engine {name!r}"))
    if "model" not in keys or "name" in keys:
        raise entry.fault(
            f"engine {name!r} needs the key 'model'" if "model" not in keys else "the engine's name is given twice"
        )
    if "backend" in keys:
        keys["backend"].text(f"engine {name!r}: backend")
    with _at(entry):
        config = make_config(name, **{key: each.plain for key, each in keys.items()})
        _require_no_code(config)
        current_registry().add(config)


def _require_no_code(config: EngineConfig) -> None:
    """Raises LoadError for settings with which a backend in this process would run code of others."""
    if not backend_class(config.backend).remote and (config.extra or getattr(config.options, "trust_remote_code", False)):
        raise LoadError(
            f"engine {config.name!r}: `extra` and `trust_remote_code` of backend {config.backend!r} can name code, so no chain "
            "file takes them; give this engine by --engines FILE, or declare the chain in Python"
        )


def _names_code(pick: object) -> bool:
    """Whether `pick` names a function; `majority:field` does not."""
    return isinstance(pick, str) and is_reference(pick) and not pick.startswith("majority:")


class _Reader:
    """Reads nodes, whose models are known."""

    def __init__(self, code: Code, models: Mapping[str, Any]) -> None:
        self.code, self.models = code, models
        self.kinds: Mapping[str, Callable[[Part], Element]] = {
            "step": self.step,
            "apply": self.apply,
            "batch_apply": self.batch_apply,
            "branch": self.branch,
            "branches": self.branches,
            "route": self.route,
            "loop": self.loop,
        }

    def chain(self, keys: Mapping[str, Part]) -> tuple[dict[str, Any], list[Element]]:
        """The chain's own settings, and its elements."""
        faults, given, steps = Faults(), dict[str, Any](), list[Element]()
        with faults.caught():
            given |= self.settings(Chain, keys, ("models", "engines", "steps"), "the chain")
        with faults.caught():
            steps += self.elements(keys["steps"])
        faults.end()
        return given, steps

    def elements(self, part: Part) -> list[Element]:
        faults, elements = Faults(), list[Element]()
        for item in part.items("steps"):
            with faults.caught():
                elements.append(self.element(item))
        faults.end()
        return elements

    def element(self, part: Part) -> Element:
        keys = part.mapping(f"an entry of steps (with one of the keys {', '.join(self.kinds)})")
        kinds = [kind for kind in self.kinds if kind in keys]
        if len(kinds) != 1:
            found = " and ".join(map(repr, kinds)) or ", ".join(map(repr, keys)) or "nothing"
            raise part.fault(f"an entry of steps has one of the keys {', '.join(self.kinds)}, found {found}")
        return self.kinds[kinds[0]](part)

    def step(self, part: Part) -> Element:
        keys = self.keys(part, "step", parameters_of(Step), "id", ["output_model", "engine_name"])
        name = keys["step"].text("step (the id)")
        given = self.settings(Step, keys, ("step",), f"step {name!r}")
        with _at(part):
            return Step(id=name, **given)

    def apply(self, part: Part) -> Element:
        return self.function(part, "apply", ApplyNode)

    def batch_apply(self, part: Part) -> Element:
        return self.function(part, "batch_apply", BatchApply)

    def function(self, part: Part, kind: str, make: type[ApplyNode[Any, Any]]) -> Element:
        keys = self.keys(part, kind, FUNCTION_KEYS)
        fn = self.code.named(keys[kind], kind)
        if isinstance(fn, ApplyNode) and type(fn) is not make:
            right = "batch_apply" if make is ApplyNode else "apply"
            raise keys[kind].fault(f"{keys[kind].value!r} is a {type(fn).__name__}; write {right}: ...")
        given = self.settings(Step, keys, (kind,), kind)
        if isinstance(fn, ApplyNode):  # decorated
            given = function_parameters(fn) | given
            fn = fn.fn
        with _at(part):
            return make(fn, **given)

    def branch(self, part: Part) -> Branch:
        keys = self.keys(part, "branch", ("steps", "join", "emoji"), "", ["steps"])
        steps = self.elements(keys["steps"])
        emoji = keys["emoji"].text("emoji") if "emoji" in keys else ""
        with _at(part):
            branch = Branch(keys["branch"].text("branch (its name)"), steps, emoji=emoji)
            return branch.join(keys["join"].text("join (the alias)")) if "join" in keys else branch

    def branches(self, part: Part) -> Element:
        keys = self.keys(part, "branches", ())
        return tuple(self.branch(item) for item in keys["branches"].items("branches"))

    def route(self, part: Part) -> Element:
        keys = self.keys(part, "route", ("on", "when", "cases", "then", "default", "join", "emoji"))
        name = keys["route"].text("route (its name)")
        given: dict[str, Any] = {key: self.way(keys[key]) for key in ("then", "default") if key in keys}
        given |= {"on": self.condition(keys["on"])} if "on" in keys else {}
        given |= {"emoji": keys["emoji"].text("emoji")} if "emoji" in keys else {}
        if "when" in keys:
            several = isinstance(keys["when"].value, dict)
            conditions = keys["when"].mapping("when").items() if several else ()
            given["when"] = {way: self.condition(each) for way, each in conditions} if several else self.condition(keys["when"])
        if "cases" in keys:
            given["cases"] = {case: self.way(each) for case, each in keys["cases"].cases("cases").items()}
        with _at(part):
            route = Route(name, **given)
            return route.join(keys["join"].text("join (the alias)")) if "join" in keys else route

    def loop(self, part: Part) -> Element:
        known = ("steps", "until", "max_rounds", "on_exhausted", "best", "result", "join", "emoji")
        keys = self.keys(part, "loop", known, "", ["steps", "until", "max_rounds"])
        name = keys["loop"].text("loop (its name)")
        given: dict[str, Any] = {key: self.condition(keys[key]) for key in ("until", "best") if key in keys}
        plain = [key for key in ("max_rounds", "on_exhausted", "result", "emoji") if key in keys]
        given |= {key: self.setting(Loop, key, keys[key], f"loop {name!r}") for key in plain}
        steps = self.elements(keys["steps"])
        with _at(part):
            loop = Loop(name, steps=steps, **given)
            return loop.join(keys["join"].text("join (the alias)")) if "join" in keys else loop

    def way(self, part: Part) -> list[Element]:
        """The steps of a way, which may have none."""
        return [] if part.value == [] else self.elements(part)

    def condition(self, part: Part) -> Any:
        """A template, or the function that module:name names."""
        text = part.text("a condition (a template like '{{ a.b }}', or module:function)")
        return self.code.named(part, "a condition") if is_reference(text) else text

    def keys(self, part: Part, kind: str, known: Any, own: str = "", needed: Any = ()) -> Mapping[str, Part]:
        """The entry's keys: `kind`, and those that are known; `own` is given by the kind's value."""
        known = [kind, *(key for key in known if key != own)]
        found = part.mapping(kind)
        label = f"{kind} {found[kind].shown}" if kind in found else kind
        for key, each in found.items():
            if key not in known:
                hint = {key: _HINTS[key]} if _HINTS.get(key) in known else {}
                raise each.fault(f"{label}: {advice({key: each.shown}, known, hint, kind='no key')}")
        return part.keys(kind, known, [kind, *needed])

    def settings(self, owner: type, keys: Mapping[str, Part], others: Collection[str], what: str) -> dict[str, Any]:
        """The values of all keys but `others`."""
        faults, given = Faults(), dict[str, Any]()
        for key in (key for key in keys if key not in others):
            with faults.caught():
                given[key] = self.setting(owner, key, keys[key], what)
        faults.end()
        return given

    def setting(self, owner: type, key: str, part: Part, what: str) -> Any:
        """The value of a parameter, as its class takes it."""
        what = f"{what}: {key}"
        if key in MODELS:
            return self.model(part, what)
        if key in PROMPTS:
            return self.code.path(part, what) if isinstance(part.value, dict) else part.text(what)
        if key == "sampling":
            return self.sampling(part)
        if key == "prompt_builder" or (key == "pick" and _names_code(part.value)):
            return self.code.named(part, what)
        try:
            return TypeAdapter(parameter_type(owner, key)).validate_python(part.plain, strict=True)
        except ValidationError as error:
            raise part.fault(f"{what} is {part.shown}: {error.errors()[0]['msg']}") from error

    def model(self, part: Part, what: str) -> Any:
        """A model by its name, or module:Class."""
        name = part.text(what)
        if is_reference(name):
            return self.code.model(part)
        if name not in self.models:
            raise missing_model(part, name, self.models)
        return self.models[name]

    def sampling(self, part: Part) -> SamplingParams:
        keys = part.keys("sampling", SamplingParams.__struct_fields__)
        with _at(part):
            try:
                return msgspec.convert({key: each.plain for key, each in keys.items()}, SamplingParams)
            except msgspec.ValidationError as error:
                raise part.fault(f"sampling: {error}") from error

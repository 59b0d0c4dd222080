"""Every setting is in the table once, and a change of it has the effect in the table."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from chainette import ApplyNode, BatchApply, Branch, Chain, JoinBranch, Loop, Route, SamplingParams, Step, register_engine
from chainette.core.compile import compile_chain
from chainette.core.setting_changes import SETTINGS, Settings, appended, kept, lowered, more_rounds, raised, settings_of_engine
from chainette.engine.backends import BUILT_IN, backend_class
from chainette.engine.config import EngineConfig, EngineRegistry, using_registry
from chainette.io.rundir.chain_changes import Changes, changes_between
from chainette.io.rundir.graph import Graph
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.run.options import RunOptions

BACKENDS = {name: backend_class(name).options for name in BUILT_IN}
EVERY = [settings_of_engine(name) for name in BUILT_IN]

#: The table of the page: an engine's row has the keys of all built-in backends.
TABLE = {**SETTINGS} | {
    "engine": Settings(
        frozenset().union(*(settings.decide for settings in EVERY)),
        {name: rescues for settings in EVERY for name, rescues in settings.rescue.items()},
        frozenset().union(*(settings.free for settings in EVERY)),
    )
}

PAGE = Path(__file__).parents[3] / "docs" / "semantics.md"

#: Fields of a declaration beside the user's settings.
OURS = {"place", "registry", "annotated", "options"}

#: How a process runs or finds a chain: no settings of the run.
SESSION = {
    "run_id",
    "chain_ref",
    "chain_root",
    "resume",
    "hooks",
    "progress",
    "drive",
    "parameters",
    "chain_claim",
    "inputs",
    "more",
    "select",
    "source",
}


class Item(BaseModel):
    text: str


def declared(of: str) -> set[str]:
    if of == "engine":
        options = {key for backend in BACKENDS.values() for key in backend.__struct_fields__}
        return {*EngineConfig.__struct_fields__, *options} - OURS
    if of == "SamplingParams":
        return {*SamplingParams.__struct_fields__}
    kinds: dict[str, tuple[Any, ...]] = {
        "Chain": (Chain,),
        "Step": (Step,),
        "ApplyNode": (ApplyNode,),
        "BatchApply": (BatchApply,),
        "Branch": (Branch, JoinBranch),
        "Route": (Route,),
        "Loop": (Loop,),
        "run": (RunOptions,),
    }
    return {field.name for kind in kinds[of] for field in dataclasses.fields(kind)} - OURS - SESSION


@pytest.mark.parametrize("of", TABLE)
def test_every_setting_is_in_one_class(of: str) -> None:
    classes = (TABLE[of].decide, TABLE[of].rescue.keys(), TABLE[of].free)
    assert set().union(*classes) == declared(of)
    assert sum(map(len, classes)) == len(declared(of))


def test_a_setting_that_rescues_has_one_meaning() -> None:
    names = [name for settings in TABLE.values() for name in settings.rescue]
    assert len(names) == len(set(names))


def test_the_page_shows_the_table() -> None:
    directions: dict[Any, str] = {raised: "raised", lowered: "lowered", appended: "appended to"}
    directions |= {more_rounds: "raised under `reject`", kept: "from `reject` to `keep`"}
    for of, settings in TABLE.items():
        rescue = ", ".join(f"`{name}` {directions[rescues]}" for name, rescues in settings.rescue.items())
        cells = [f"`{of}`" if of[0].isupper() else of, code(settings.decide), rescue, code(settings.free)]
        assert f"| {' | '.join(cells)} |" in PAGE.read_text().splitlines(), f"| {' | '.join(cells)} |"


def code(names: frozenset[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


# -- the effect of a change


def changes(step: dict[str, Any], engine: dict[str, Any]) -> Changes | None:
    """The differences of a step and its engine with these keys from those without any."""
    backend = engine.pop("backend", "simulated")
    graphs: list[Graph] = []
    for keys, own in (({}, {}), (step, engine)):
        with using_registry(EngineRegistry()) as registry:
            register_engine("e", "model", backend, **own)
            node = Step(id="s", input_model=Item, output_model=Item, engine_name="e", **keys)
            graphs.append(graph_of(compile_chain(Chain(name="c", steps=[node]), registry=registry)))
    return changes_between(graphs[0], graphs[1])


def backend_of(key: str) -> str:
    """A backend that knows a key."""
    return next((name for name, options in BACKENDS.items() if key in options.__struct_fields__), "openai")


def another(value: Any, key: str) -> Any:
    """A valid value that differs from a default."""
    special: dict[str, Any] = {
        "endpoint": ["http://other/v1"],
        "gpu_ids": (1,),
        "response_format": "none",
        "extra": {"a": 1},
        "price": {"in": 1},
        "budget": "5req",
    }
    if key in special:
        return special[key]
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case {}:
            return {"x": "y"}
        case None if key in NUMBERS:
            return 3
        case None if key in ("strict", "enforce_eager", "exclusive"):
            return True
        case _:
            return "other"


NUMBERS = {"capacity", "num_ctx", "max_model_len", "max_num_seqs", "tensor_parallel_size", "seed", "threads"}
COMMON = {name: parameter.default for name, parameter in inspect.signature(register_engine).parameters.items()}


def engine_keys(names: Any) -> list[str]:
    return sorted({*names} - {"name", "model", "backend"})


def changed_engine(key: str) -> Changes | None:
    backend = backend_of(key)
    options = BACKENDS[backend]()
    default = getattr(options, key) if hasattr(options, key) else COMMON[key]
    return changes({}, {"backend": backend, key: another(default, key)})


@pytest.mark.parametrize("key", engine_keys(TABLE["engine"].free))
def test_an_operational_setting_of_an_engine_is_free(key: str) -> None:
    assert changed_engine(key) is None


@pytest.mark.parametrize("key", engine_keys(TABLE["engine"].decide))
def test_a_deciding_setting_of_an_engine_makes_its_rows_stale(key: str) -> None:
    found = changed_engine(key)
    assert found is not None and found.stale == ("s",) and found.by_node == {"s": found.sentences}
    assert [words.partition(":")[0] for words in found.sentences] == [f"{key} of engine e"]


@pytest.mark.parametrize("key", sorted(SETTINGS["SamplingParams"].decide))
def test_a_deciding_setting_of_the_sampling_makes_rows_stale(key: str) -> None:
    values: dict[str, Any] = {"stop": ("end",), "extra": {"a": 1}, "top_k": 3, "seed": 3}
    found = changes({"sampling": msgspec.convert({key: values.get(key, 0.5)}, SamplingParams)}, {})
    assert found is not None and found.stale == ("s",)
    assert [words.partition(":")[0] for words in found.sentences] == [f"{key} of s"]


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({"max_attempts": 4}, {"max_attempts": 2}),
        ({"sampling": SamplingParams(max_tokens=2048)}, {"sampling": SamplingParams(max_tokens=512)}),
    ],
)
def test_a_setting_that_rescues_rows_is_free_one_way_and_refused_the_other(more: dict[str, Any], less: dict[str, Any]) -> None:
    assert changes(more, {}) is None
    found = changes(less, {})
    assert found is not None and found.stale == ("s",)
    assert "with which rows were accepted)" in found.sentences[0]


def test_a_longer_timeout_is_free_and_a_shorter_one_refused() -> None:
    assert changes({}, {"backend": "openai", "request_timeout": 900.0}) is None
    found = changes({}, {"backend": "openai", "request_timeout": 60.0})
    assert found is not None
    assert found.sentences == ("s has request_timeout=60.0 now (was 600.0, with which rows were accepted)",)

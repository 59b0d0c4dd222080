"""A chain whose shape changed: a plain resume refuses, and the `--from` it prints gives the rows of a fresh run."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chainette import Branch, Chain, Step, apply, register_engine
from chainette.core.branch import Element
from chainette.core.run_settings import Format
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import ChainChanged
from chainette.hooks import Hook
from chainette.io.rundir.chain_changes import changes_between
from chainette.io.rundir.event_types import Event, UnitCommitted
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.io.rundir.result import RunResult
from chainette.run.executor import resume
from chainette.run.options import RunOptions
from chainette.run.planning import compile_plan
from tests.support.chains import Facts, Text, content, write_inputs
from tests.support.replay import replay
from tests.support.tools import crossed, some

FORMATS = ("jsonl", "parquet", "csv")


class Numbered(Text):
    number: int = 0


def pieces(facts: Facts) -> list[Facts]:
    return [Facts(name=letter, score=facts.score) for letter in facts.name[: facts.score % 3]]


def odd(facts: Facts) -> Facts | None:
    return facts if facts.score % 2 else None


def chain(*elements: Element, input_model: type[Text] | None = None) -> Chain:
    with using_registry(EngineRegistry()):
        register_engine("sure", "none", "simulated")
        register_engine("shaky", "none", "simulated", invalid_rate=0.2)
        return Chain(name="shape", batch_size=4, steps=elements, input_model=input_model)


def step(id: str, **keys: Any) -> Step[Any, Any]:
    return Step(id=id, output_model=Facts, engine_name="sure", **keys)


def a(**keys: Any) -> Step[Any, Any]:
    return step("a", input_model=Text, user_prompt="{{ text }}", **keys)


def p() -> Step[Any, Any]:
    """Rejects about a fifth of its rows."""
    return Step(id="p", output_model=Facts, engine_name="shaky", max_attempts=1)


def joined(name: str = "b", alias: str = "x") -> Branch:
    return Branch(name, [p(), apply(pieces)]).join(alias)


def unjoined(name: str = "c") -> Branch:
    return Branch(name, [apply(odd), step("q")])


def base() -> Chain:
    return chain(a(), [joined(), unjoined()], step("f"), step("g"))


def ending(side: str = "c") -> Chain:
    return chain(a(), [joined(), unjoined(side)])


Change = tuple[Callable[[], Chain], Callable[[], Chain], str, str]

#: name -> the old chain, the new one, the message, the printed steps.
CHANGES: dict[str, Change] = {
    "a step is hidden": (
        base,
        lambda: chain(a(yield_output=False), [joined(), unjoined()], step("f"), step("g")),
        "a has yield_output=False now",
        "a",
    ),
    "a step is hidden no more": (
        lambda: chain(a(), step("f", yield_output=False), step("g")),
        lambda: chain(a(), step("f"), step("g")),
        "f has yield_output=True now",
        "f",
    ),
    "an alias is renamed": (
        base,
        lambda: chain(a(), [joined(alias="y"), unjoined()], step("f"), step("g")),
        "branch b is joined as y now (was joined as x)",
        "f",
    ),
    "a branch is unjoined": (
        base,
        lambda: chain(a(), [Branch("b", [p(), apply(pieces)]), unjoined()], step("f"), step("g")),
        "branch b is not joined now (was joined as x)",
        "f",
    ),
    "a branch is joined": (
        base,
        lambda: chain(a(), [joined(), Branch("c", [apply(odd), step("q")]).join("z")], step("f"), step("g")),
        "branch c is joined as z now (was not joined)",
        "f",
    ),
    "branches are swapped": (
        base,
        lambda: chain(a(), [unjoined(), joined()], step("f"), step("g")),
        "the order on the main flow is a, [c, b], f, g now (was a, [b, c], f, g)",
        "flattened",
    ),
    "a joined branch is renamed": (
        base,
        lambda: chain(a(), [joined("d"), unjoined()], step("f"), step("g")),
        "branch b is called d now",
        "flattened",
    ),
    "a side branch is renamed": (
        base,
        lambda: chain(a(), [joined(), unjoined("d")], step("f"), step("g")),
        "branch c is called d now",
        "flattened",
    ),
    "an ending branch is renamed": (ending, lambda: ending("d"), "branch c is called d now", "flattened"),
    "an ending branch ends the chain no more": (ending, lambda: chain(a(), [joined(), unjoined()], step("f")), "f is new", "f"),
    "a list of branches is split": (
        base,
        lambda: chain(a(), [joined()], [unjoined()], step("f"), step("g")),
        "the order on the main flow is a, [b], [c], f, g now (was a, [b, c], f, g)",
        "odd",
    ),
    "a branch is split": (
        base,
        lambda: chain(a(), [joined(), Branch("c", [apply(odd)]), Branch("d", [step("q")])], step("f"), step("g")),
        "q moved from branch c to branch d",
        "q",
    ),
    "a node moves into a branch": (
        base,
        lambda: chain(a(), [joined(), Branch("c", [apply(odd), step("q"), step("f")])], step("g")),
        "f moved from the main flow to branch c",
        "f g",
    ),
    "a node moves out of a branch": (
        base,
        lambda: chain(a(), [joined(), Branch("c", [apply(odd)])], step("q"), step("f"), step("g")),
        "q moved from branch c to the main flow",
        "q",
    ),
    "a branch moves into a branch": (
        base,
        lambda: chain(a(), [Branch("b", [p(), [unjoined()], apply(pieces)]).join("x")], step("f"), step("g")),
        "branch c moved from the main flow to branch b",
        "odd",
    ),
    "branches move past a node": (
        base,
        lambda: chain(a(), step("f"), [joined(), unjoined()], step("g")),
        "the order on the main flow is a, f, [b, c], g now (was a, [b, c], f, g)",
        "f",
    ),
    "nodes are reordered": (
        base,
        lambda: chain(a(), [joined(), unjoined()], step("g"), step("f")),
        "the order on the main flow is a, [b, c], g, f now (was a, [b, c], f, g)",
        "g",
    ),
    "the last node is gone": (
        base,
        lambda: chain(a(), [joined(), unjoined()], step("f")),
        "g is gone (its rows would be dropped)",
        "flattened",
    ),
    "a side branch is gone": (base, lambda: chain(a(), [joined()], step("f"), step("g")), "branch c is gone", "flattened"),
    "a node is added": (
        base,
        lambda: chain(a(), [joined(), unjoined()], step("f"), apply(odd, id="h"), step("g")),
        "h is new",
        "h",
    ),
    "the records have another model": (
        base,
        lambda: chain(a(), [joined(), unjoined()], step("f"), step("g"), input_model=Numbered),
        "the input model changed",
        "chain_input",
    ),
}


class StopsAfter(Hook):
    """Ends the run once that many units are durable."""

    def __init__(self, units: int) -> None:
        self.left = units

    def on_event(self, event: Event) -> None:
        if isinstance(event, UnitCommitted):
            self.left -= 1
            if self.left < 0:
                raise KeyError("enough")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return write_inputs(tmp_path / "inputs.jsonl", 18, bad=(7,))


def begun(chain: Chain, inputs: Path, directory: Path, format: Format) -> Path:
    """A run that was stopped: some roots are complete, others half done, others not begun."""
    with pytest.raises(KeyError, match="enough"):
        chain.run(inputs, directory, format=format, max_rows_per_file=4, window=8, hooks=(StopsAfter(14),))
    return directory


def digests(folder: Path) -> dict[str, str]:
    """Every file below a folder, by its content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def counts(result: RunResult) -> dict[str, dict[str, Any]]:
    steps = result.metadata["steps"].items()
    return {name: {key: value for key, value in found.items() if key not in ("usage", "asked_again")} for name, found in steps}


def columns(result: RunResult) -> set[tuple[str, ...]]:
    return {tuple(row) for row in result.rows("flattened")}


@pytest.mark.parametrize(("change", "format"), crossed([*CHANGES], FORMATS))
def test_a_changed_shape_is_refused_untouched_and_recomputed_as_printed(
    tmp_path: Path, inputs: Path, change: str, format: Format
) -> None:
    old, new, words, steps = CHANGES[change]
    run = begun(old(), inputs, tmp_path / "runs" / "run", format)
    before = digests(tmp_path / "runs")
    with pytest.raises(ChainChanged) as refused:
        resume(run, new())
    assert words in str(refused.value)
    assert digests(tmp_path / "runs") == before
    printed = re.findall(r"--from (\w+)", str(refused.value))
    assert " ".join(printed) == steps

    shutil.copytree(run, tmp_path / "kept")
    as_before = resume(tmp_path / "kept", old())
    assert content(as_before) == content(old().run(inputs, tmp_path / "old", format=format))
    assert as_before.metadata["balanced"]

    again = resume(run, new(), from_step=printed)
    fresh = new().run(inputs, tmp_path / "new", format=format, max_rows_per_file=4)
    assert content(again) == content(fresh)
    assert columns(again) == columns(fresh)
    assert counts(again) == counts(fresh)
    assert again.metadata["balanced"] and again.metadata["fingerprint"] == fresh.metadata["fingerprint"]
    graph, metadata = replay(run / "events.jsonl")
    assert ((run / "graph.json").read_bytes(), (run / "metadata.json").read_bytes()) == (graph, metadata)


@pytest.mark.parametrize("format", some(FORMATS))
def test_a_finished_run_gets_other_names_without_asking_any_engine(tmp_path: Path, inputs: Path, format: Format) -> None:
    run = ending().run(inputs, tmp_path / "run", format=format)
    asked = run.metadata["usage"]["requests"]
    again = resume(run.dir, ending("d"), from_step="flattened")
    fresh = ending("d").run(inputs, tmp_path / "fresh", format=format)
    assert content(again) == content(fresh) and columns(again) == columns(fresh)
    assert again.metadata["usage"]["requests"] == asked


def test_hidden_rows_that_a_finished_run_deleted_are_among_what_is_recomputed(tmp_path: Path, inputs: Path) -> None:
    def hiding(name: str) -> Chain:
        return chain(a(), step("f", yield_output=False), [joined(name)])

    run = hiding("b").run(inputs, tmp_path / "run")
    with pytest.raises(ChainChanged, match=r"branch b is called d now.*--from f`"):
        resume(run.dir, hiding("d"))
    again = resume(run.dir, hiding("d"), from_step="f")
    assert content(again) == content(hiding("d").run(inputs, tmp_path / "fresh"))


def test_records_of_another_model_cannot_be_taken_from_a_step(tmp_path: Path, inputs: Path) -> None:
    run = base().run(inputs, tmp_path / "run")
    with pytest.raises(ChainChanged, match=r"chain_input.*use `--from chain_input`"):
        resume(run.dir, CHANGES["the records have another model"][1](), from_step="a")


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_of_a_plan_tells_every_change_of_shape(change: str) -> None:
    old, new, _, _ = CHANGES[change]
    plans = [compile_plan(make(), RunOptions()) for make in (old, new, new)]
    assert plans[0].fingerprint != plans[1].fingerprint == plans[2].fingerprint
    assert changes_between(graph_of(plans[0]), graph_of(plans[1])) is not None
    assert changes_between(graph_of(plans[1]), graph_of(plans[2])) is None

"""Output fields without a limit: text, lists and maps a model can go on filling."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, RootModel, create_model

from chainette import Chain, Step, apply, register_engine
from chainette.core.compile import compile_chain
from chainette.core.unbounded_fields import unbounded_fields, unbounded_outputs
from chainette.core.usercode.loading import load_chain
from chainette.engine.config import EngineRegistry, using_registry

ROOT = Path(__file__).parents[3]

Short = Annotated[str, Field(max_length=9)]


class Color(Enum):
    RED = "red"


class Inner(BaseModel):
    name: str
    tag: Short = ""


class Tree(BaseModel):
    label: Short
    children: list[Tree] = []


class Facts(BaseModel):
    name: str
    parts: list[Inner]


class Prices(RootModel[dict[str, int]]):
    pass


def one(annotation: Any) -> type[BaseModel]:
    model: type[BaseModel] = create_model("One", x=(annotation, ...))
    return model


@pytest.mark.parametrize(
    "annotation",
    [
        int,
        float | None,
        bool,
        Decimal,
        Short,
        Short | None,
        Literal["a", "b"],
        Color,
        datetime,
        UUID,
        Annotated[str, Field(pattern="^[a-z]{1,9}$")],
        Annotated[list[Short], Field(max_length=3)],
        tuple[int, Short],
        Annotated[dict[str, int], Field(max_length=3)],
    ],
)
def test_a_field_with_a_limit_is_left_alone(annotation: Any) -> None:
    assert unbounded_fields(one(annotation)) == []


@pytest.mark.parametrize(
    ("annotation", "fields"),
    [
        (str, ["x"]),
        (str | None, ["x"]),
        (Any, ["x"]),
        (list[int], ["x"]),
        (set[Short], ["x"]),
        (tuple[Short, ...], ["x"]),
        (dict[str, int], ["x"]),
        (list[str], ["x", "x[]"]),
        (Annotated[list[str], Field(max_length=3)], ["x[]"]),
        (Inner, ["x.name"]),
        (list[Inner], ["x", "x[].name"]),
        (Tree, ["x.children"]),
        (Path, ["x"]),
    ],
)
def test_a_field_without_a_limit_is_named_with_its_path(annotation: Any, fields: list[str]) -> None:
    assert unbounded_fields(one(annotation)) == fields


def test_a_model_that_is_a_map_is_named_itself() -> None:
    assert unbounded_fields(Prices) == ["Prices"]


def test_there_is_one_warning_for_each_model_and_none_for_functions() -> None:
    @apply
    def cut(item: Facts) -> Facts:
        return item

    keys: dict[str, Any] = {"output_model": Facts, "engine_name": "llm"}
    with using_registry(EngineRegistry()):
        register_engine("llm", "m", "simulated")
        steps = [Step(id="a", input_model=Facts, **keys), cut, Step(id="b", **keys)]
        plan = compile_chain(Chain(name="c", steps=steps))
    [problem] = unbounded_outputs(plan)
    assert problem.warning and problem.message == (
        "step 'a', step 'b': Facts has no limit on name, parts, parts[].name; an answer that does not stop fills max_tokens "
        "and is rejected: Field(max_length=...) sets a limit"
    )
    assert problem.place is not None and problem.place.file == __file__
    assert plan.warnings == ()


def test_many_fields_are_counted() -> None:
    many: dict[str, Any] = {f"f{number}": (str, ...) for number in range(9)}
    model = create_model("Many", **many)
    with using_registry(EngineRegistry()):
        register_engine("llm", "m", "simulated")
        step: Step[Any, Any] = Step(id="a", input_model=Facts, output_model=model, engine_name="llm")
        plan = compile_chain(Chain(name="c", steps=[step]))
    assert "no limit on f0, f1, f2, f3, f4, f5 and 3 more;" in unbounded_outputs(plan)[0].message


def test_the_chains_of_the_examples_and_of_the_readme_have_limits(tmp_path: Path) -> None:
    [code] = re.findall(r"```python[^\n]*\n(from typing .*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[
        :1
    ]
    (tmp_path / "chain.py").write_text(code, encoding="utf-8")
    for file in [*ROOT.glob("examples/*/chain.py"), ROOT / "deploy" / "k8s" / "base" / "chain.py", tmp_path / "chain.py"]:
        plan = compile_chain(load_chain(file.name, file.parent).chain)
        assert [*plan.warnings, *unbounded_outputs(plan)] == [], file

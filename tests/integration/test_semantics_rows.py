"""Rows, rejections, re-asks, seeds and accounting (docs/semantics.md)."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from pydantic import BaseModel, ConfigDict

from chainette import Branch, Chain, RunResult, SamplingParams, apply, register_engine
from chainette.core.run_settings import Format
from chainette.engine.base import Completion, Request
from chainette.engine.config import EngineRegistry, using_registry
from chainette.records import Reason, Usage, row_order
from chainette.run.steps import row_seed
from tests.support.chains import content, everything, write_inputs
from tests.support.priced_rows import Text, answered, ask, by_id, only_rejection, plain
from tests.support.scripted import ask_of, row_of, scripted

# -- ids, lines, columns


def test_bad_lines_take_a_row_id_and_blank_lines_do_not(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n\n{"txt": 1}\n   \nnot json\n{"text": "b"}\n')
    result = plain(tmp_path, path)
    assert {row_id: row["text"] for row_id, row in by_id(result, "same").items()} == {"0": "a", "3": "b"}
    assert {row_id: row["line"] for row_id, row in by_id(result, "rejected").items()} == {"1": 3, "2": 5}


def test_a_bad_line_is_rejected_at_chain_input_with_its_text(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": 5}\n')
    rejection = only_rejection(plain(tmp_path, path))
    assert (rejection["step_id"], rejection["reason"], rejection["attempts"]) == ("chain_input", Reason.INVALID_INPUT, 0)
    assert rejection["raw"] == '{"text": 5}'
    assert "text" in rejection["message"] and "5" in rejection["message"]


def test_a_rejection_names_the_line_that_its_row_came_from(tmp_path: Path) -> None:
    def refuse(item: Text) -> list[Text]:
        raise ValueError(item.text)

    path = tmp_path / "in.jsonl"
    path.write_text('\n{"text": "a"}\n')
    result = Chain(name="plain", steps=[apply(refuse)]).run(path, tmp_path / "run")
    assert only_rejection(result)["line"] == 2


@pytest.mark.parametrize(
    ("format", "plain"), [("jsonl", [7, True, [1]]), ("parquet", ["7", "true", "[1]"]), ("csv", ["7", "true", "[1]"])]
)
def test_key_copies_an_input_column_into_every_shard(tmp_path: Path, format: Format, plain: list[Any]) -> None:
    def split(item: Text) -> list[Text]:
        if item.text == "bad":
            raise ValueError("bad")
        return [item, item]

    path = tmp_path / "in.jsonl"
    path.write_text(
        '{"text": "a", "sku": "A-1"}\n{"text": "b"}\n{"text": "bad", "sku": 7}\n{"sku": "C"}\n'
        '{"text": "bad", "sku": true}\n{"text": "bad", "sku": [1]}\n{"text": "bad", "sku": "7"}\n'
    )
    result = Chain(name="keyed", steps=[apply(split)]).run(path, tmp_path / "run", key="sku", format=format)
    keys = {
        folder: {row_id: row["_key"] for row_id, row in by_id(result, folder).items()}
        for folder in ("split", "flattened", "rejected")
    }
    assert keys["split"] == keys["flattened"] == {"0~0": "A-1", "0~1": "A-1", "1~0": None, "1~1": None}
    assert [keys["rejected"][row_id] for row_id in ("2", "4", "5", "6")] == [*plain, "7"]
    [feature] = [
        one for one in json.loads((tmp_path / "run/graph.json").read_text())["features"]["split"] if one["name"] == "_key"
    ]
    assert feature["dtype"] == "json"  # JSON Lines keep each as it is
    if format == "parquet":
        table = pyarrow.parquet.read_table(tmp_path / "run/split/0.parquet")
        assert table["_key"].to_pylist() == ["A-1", "A-1", None, None]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_usage_says_what_each_row_took_over_all_its_asks(tmp_path: Path, format: Format) -> None:
    def answer(request: Request) -> Completion:
        asked, number = row_of(request), ask_of(request)
        text = '{"price": 1}' if (asked, number) in {("0", 1), ("1", 2)} else '{"price": -1}'
        return Completion(text, usage=Usage(1, 10, number, 0.5, 0.25))

    with scripted(llm=answer):
        chain, rows = Chain(name="rows", steps=[ask()]), [Text(text=text) for text in "abc"]
        plain = chain.run(rows, tmp_path / "plain", format=format)
        result = chain.run(rows, tmp_path / "run", format=format, usage=True)
    names = ("_prompt_tokens", "_completion_tokens", "_queued", "_seconds")
    found = {
        row_id: tuple(row[name] for name in names)
        for folder in ("ask", "rejected")
        for row_id, row in by_id(result, folder).items()
    }
    assert found == {"0": (10, 1, 0.25, 0.5), "1": (20, 3, 0.5, 1.0), "2": (30, 6, 0.75, 1.5)}
    usage = result.metadata["usage"]
    assert [sum(row[at] for row in found.values()) for at in range(4)] == [
        usage[name] for name in ("prompt_tokens", "completion_tokens", "queued", "seconds")
    ]
    assert not {*names} & {*next(plain.rows("ask"))} and not {*names} & {*next(plain.rows("rejected"))}
    assert "_seconds" in result.dataset()["ask"].column_names


def test_unknown_columns_follow_the_models_extra(tmp_path: Path) -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        text: str

    class Closed(BaseModel):
        model_config = ConfigDict(extra="forbid")
        text: str

    def inputs(model: type[BaseModel], folder: str) -> RunResult:
        chain = Chain(name="extra", steps=[apply(lambda item: [item], id="same", output_model=model)], input_model=model)
        return chain.run([{"text": "a", "more": 1}], tmp_path / folder)

    assert next(inputs(Open, "allow").rows("same"))["more"] == 1
    assert "more" not in next(inputs(Text, "ignore").rows("same"))
    assert "more" in only_rejection(inputs(Closed, "forbid"))["message"]


def test_an_input_field_named_row_id_is_safe(tmp_path: Path) -> None:
    class Record(BaseModel):
        row_id: str

    def keep(item: Record) -> Text:
        return Text(text=item.row_id)

    result = Chain(name="ids", steps=[apply(keep)]).run([Record(row_id="mine")], tmp_path / "run")
    assert list(result.rows("flattened")) == [{"row_id": "0", "chain_input.row_id": "mine", "keep.text": "mine"}]


def test_an_empty_csv_cell_is_missing(tmp_path: Path) -> None:
    class Maybe(BaseModel):
        text: str
        note: str | None = "none given"

    def keep(item: Maybe) -> Maybe:
        return item

    path = tmp_path / "in.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "note"], ["a", ""], ["", "b"]])
    result = Chain(name="csv", steps=[apply(keep)]).run(path, tmp_path / "run")
    assert [(row["text"], row["note"]) for row in result.rows("keep")] == [("a", "none given")]
    assert only_rejection(result)["row_id"] == "1"


def test_limit_takes_records_from_the_start(tmp_path: Path) -> None:
    result = plain(tmp_path, [Text(text=str(number)) for number in range(9)], limit=3)
    assert sorted(by_id(result, "flattened")) == ["0", "1", "2"]


# -- seeds


def seeds(path: Path, rows: int = 7, **options: Any) -> dict[str, int]:
    """row id -> seed of the first ask, and the run is checked to have asked each row once."""
    with scripted(llm=lambda request: '{"price": 1}') as scripts:
        sampling = options.pop("sampling", SamplingParams())
        Chain(name="seeds", steps=[ask(sampling=sampling)]).run([Text(text=f"t{n}") for n in range(rows)], path, **options)
    found = {row_of(request): request.seed for request in scripts["llm"].requests}
    assert len(scripts["llm"].requests) == len(found) == rows
    return found


def test_a_seed_follows_from_run_seed_step_row_and_ask_alone(tmp_path: Path) -> None:
    expected = {str(number): row_seed(5, "ask", str(number), 1) for number in range(7)}
    for number, size in enumerate((1, 3, 64)):
        assert seeds(tmp_path / str(number), batch_size=size, seed=5) == expected
    assert all(0 <= seed < 2**31 for seed in expected.values()) and len(set(expected.values())) == 7


def test_the_run_seed_changes_every_seed(tmp_path: Path) -> None:
    one, two = seeds(tmp_path / "1", seed=1), seeds(tmp_path / "2", seed=2)
    assert all(one[row] != two[row] for row in one)


def test_a_seed_in_the_sampling_replaces_the_run_seed_for_its_step(tmp_path: Path) -> None:
    fixed = SamplingParams(seed=9)
    one, two = seeds(tmp_path / "1", seed=1, sampling=fixed), seeds(tmp_path / "2", seed=2, sampling=fixed)
    assert one == two == {str(number): row_seed(9, "ask", str(number), 1) for number in range(7)}


def test_each_ask_has_a_seed_of_its_own(tmp_path: Path) -> None:
    _, script = answered(tmp_path, lambda request: "no")
    assert [request.seed for request in script.requests] == [row_seed(0, "ask", "0", number) for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("batch_size", "window", "capacity", "latency"),
    [(1, None, 1, 0.0), (3, 2, 2, 0.0), (5, 1, 64, 0.001), (64, None, 3, 0.001)],
)
def test_rows_do_not_depend_on_sizes_capacity_or_the_order_of_answers(
    tmp_path: Path, batch_size: int, window: int | None, capacity: int, latency: float
) -> None:
    inputs = write_inputs(tmp_path / "in.jsonl", 20, bad=(3, 11))
    expected = content(everything().run(inputs, tmp_path / "plain"))
    chain = everything(batch_size=batch_size, capacity=capacity, latency=latency)
    result = chain.run(inputs, tmp_path / "run", window=window)
    assert content(result) == expected
    assert result.metadata["balanced"]


# -- accounting


def test_every_node_gives_back_what_it_took(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in.jsonl", 30, bad=(0, 29))
    counts = everything().run(inputs, tmp_path / "run").counts
    for node, count in counts.items():
        assert count["in"] == count["out"] + count["rejected"] + count["dropped"] + count["stopped"] - count["expanded"], node
    assert counts["chain_input"]["in"] == 30 and counts["chain_input"]["rejected"] == 2
    assert counts["extract"]["in"] == counts["chain_input"]["out"]


def test_counts_agree_with_the_rows_on_disk(tmp_path: Path) -> None:
    result = everything().run(write_inputs(tmp_path / "in.jsonl", 30, bad=(4,)), tmp_path / "run")
    rejected = [row["step_id"] for row in result.rows("rejected")]
    for node in ("extract", "pieces_of", "split", "touchy", "touchy_too", "odd_only", "count", "twice", "closing"):
        assert result.counts[node]["out"] == sum(1 for _ in result.rows(node)), node
        assert result.counts[node]["rejected"] == rejected.count(node), node
    assert result.metadata["rows_finished"] == sum(1 for _ in result.rows("flattened"))
    assert result.metadata["rows_rejected"] == len(rejected)


def test_a_row_is_recorded_in_rejected_once_per_node_and_never_in_its_output_too(tmp_path: Path) -> None:
    result = everything().run(write_inputs(tmp_path / "in.jsonl", 40), tmp_path / "run")
    rejected = [(row["step_id"], row["row_id"]) for row in result.rows("rejected")]
    assert rejected and len(rejected) == len(set(rejected))
    for node in {step for step, _ in rejected}:
        outputs = {row["row_id"] for row in result.rows(node)}
        assert outputs.isdisjoint(row_id for step, row_id in rejected if step == node)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_every_format_holds_the_same_rows(tmp_path: Path, format: Format) -> None:
    inputs = write_inputs(tmp_path / "in.jsonl", 20, bad=(3,))
    plain_rows, other = (everything().run(inputs, tmp_path / name, format=name) for name in ("jsonl", format))
    for folder in ("extract", "touchy", "count", "closing", "rejected", "flattened"):
        rows = [
            sorted(result.rows(folder), key=lambda row: (row_order(row["row_id"]), row.get("step_id", "")))
            for result in (plain_rows, other)
        ]
        assert rows[0] == rows[1], folder
    for folder in ("rejected", "flattened", "extract"):
        assert {path.suffix for path in (other.dir / folder).iterdir()} == {f".{format}"}


def test_prompts_see_the_scope_that_semantics_promise(tmp_path: Path) -> None:
    with scripted(llm=lambda request: '{"price": 4}') as scripts:
        prompt = "{{ row_id }}|{{ chain_input.text }}|{{ text }}|{{ input.text }}|{{ input }}|{{ pieces[0].text }}|{{ pieces }}"
        branch = Branch("b", [apply(lambda item: [item], id="p", input_model=Text, output_model=Text)]).join("pieces")
        Chain(name="scope", steps=[branch, ask(user_prompt=prompt)]).run([Text(text="hi")], tmp_path / "run")
    assert scripts["llm"].requests[0].messages[-1].content == '0|hi|hi|hi|{"text":"hi"}|hi|[{"text":"hi"}]'


def test_the_json_instruction_is_appended_to_the_system_prompt_unless_replaced(tmp_path: Path) -> None:
    def system(folder: str, **keys: Any) -> str | None:
        messages = answered(tmp_path / folder, lambda request: '{"price": 1}', **keys)[1].requests[0].messages
        return messages[0].content if messages[0].role == "system" else None

    own = system("own", system_prompt="You price things.")
    assert own is not None and own.startswith("You price things.\n\n") and '"price"' in own
    assert system("replaced", system_prompt="A", output_format_instruction="B") == "A\n\nB"
    assert system("left_out", output_format_instruction="") is None


def test_an_engine_that_simulates_is_named_as_such(tmp_path: Path) -> None:
    with using_registry(EngineRegistry()):
        register_engine("llm", "none", "simulated")
        result = Chain(name="sim", steps=[ask()]).run([Text(text="t")], tmp_path / "run")
    assert result.metadata["simulated"] is True
    assert result.metadata["engines"]["llm"]["deterministic"] is True

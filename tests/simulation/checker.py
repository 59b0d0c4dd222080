"""Decides from an input and a run directory whether the run kept every promise. It asks nobody who took part."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.simulation.scenario import Scenario
from tests.support.drawn import Choice, Node, Repeat, choices_of, nodes_of, ways_of
from tests.support.meaning import Accepted, Meaning
from tests.support.readers import rows_of

__all__ = ["check"]


def check(scenario: Scenario, meaning: Meaning, directory: Path) -> None:
    """Raises AssertionError with the first promise that was broken."""
    events = list(_log(directory / "events.jsonl"))
    for index, number in enumerate(scenario.numbers):
        if number is not None:
            meaning.read(scenario.elements, str(index), number)
    accepted = Accepted.of(meaning, scenario.elements, scenario.accept[-1] if scenario.accept else 1 << 60)
    _check_rows(scenario, meaning, accepted, directory)
    _check_rejected(scenario, meaning, accepted, directory)
    _check_flattened(scenario, meaning, accepted, directory)
    _check_log(scenario, meaning, accepted, events)
    _check_rebuild(directory)
    if scenario.accept:
        _check_counts(scenario, meaning, accepted, directory)


def _log(path: Path) -> Iterator[dict[str, Any]]:
    """Every line, whole and in its place."""
    data = path.read_bytes()
    assert data.endswith(b"\n"), "the log ends in a torn line"
    for number, line in enumerate(data.splitlines()):
        body, crc = line[:-18] + b"}", line[-10:-2]
        assert b"%08x" % zlib.crc32(body) == crc, f"line {number} of the log is damaged"
        event = json.loads(line)
        assert event["seq"] == number, f"line {number} of the log says that it is {event['seq']}"
        yield event


def _rows(scenario: Scenario, folder: Path) -> Iterator[dict[str, Any]]:
    return rows_of(sorted(folder.glob(f"*.{scenario.format}"), key=lambda file: int(file.stem)))


def _require_equal(what: str, found: list[Any], expected: list[Any], surplus: list[Any] | None = None) -> None:
    """Raises AssertionError unless everything expected is there once, and nothing else but some of the surplus."""
    more, less = Counter(found) - Counter(expected) - Counter(surplus), Counter(expected) - Counter(found)
    if more or less:
        raise AssertionError(f"{what}: there are {[*more.elements()][:5]}, missing are {[*less.elements()][:5]}")


def _parted(accepted: Accepted, node: str, rows: list[tuple[Any, ...]]) -> tuple[list[Any], list[Any]]:
    """Rows of a node, by their ids, without the surplus; and the surplus."""
    return [row for row in rows if accepted.has(node, row[0])], [row for row in rows if not accepted.has(node, row[0])]


def _check_rows(scenario: Scenario, meaning: Meaning, accepted: Accepted, directory: Path) -> None:
    for node in nodes_of(scenario.elements):
        if node.hidden:
            assert not (directory / node.id).exists(), f"{node.id} is hidden, and has a folder"
            continue
        found = [
            (row["row_id"], int(row["v"]), int(row.get("_attempts") or 0), _rounds(row))
            for row in _rows(scenario, directory / node.id)
        ]
        _require_equal(f"rows of {node.id}", found, *_parted(accepted, node.id, meaning.outputs.get(node.id, [])))
    for choice in choices_of(scenario.elements):
        decided = [(row["row_id"], row["_way"] or None, _rounds(row)) for row in _rows(scenario, directory / choice.id)]
        expected = meaning.decided.get(choice.id, [])
        _require_equal(f"decisions of {choice.id}", decided, *_parted(accepted, choice.id, expected))


def _rounds(row: dict[str, Any]) -> str:
    return str(row.get("_round") or "")


def _check_rejected(scenario: Scenario, meaning: Meaning, accepted: Accepted, directory: Path) -> None:
    found = [
        (row["step_id"], row["row_id"], row["reason"], int(row["attempts"]), _rounds(row))
        for row in _rows(scenario, directory / "rejected")
    ]
    bad = [
        ("chain_input", str(index), "invalid_input", 0, "") for index, number in enumerate(scenario.numbers) if number is None
    ]
    known: list[tuple[Any, ...]] = bad + meaning.rejected
    _require_equal("rejections", found, *([row for row in known if accepted.has(*row[:2]) is has] for has in (True, False)))


def _check_flattened(scenario: Scenario, meaning: Meaning, accepted: Accepted, directory: Path) -> None:
    found = [_line(row) for row in _rows(scenario, directory / "flattened")]
    hidden = {node.id for node in nodes_of(scenario.elements) if node.hidden}
    way = {choice.id: "_round" if isinstance(choice, Repeat) else "_way" for choice in choices_of(scenario.elements)}
    whole = {choice.alias or choice.id for choice in choices_of(scenario.elements) if not _has_fields(choice)}
    expected = []
    for row_id in accepted.ids:
        history = meaning.finished[row_id]
        ways = {f"{choice}.{way[choice]}": taken for choice, taken in meaning.ways[row_id].items()}
        expected.append(_line({"row_id": row_id} | dict(_flat(history, hidden, whole)) | ways))
    _require_equal("finished rows", found, expected)
    if scenario.accept:
        assert found == expected, "the accepted rows are not in the order of the input"


def _has_fields(choice: Choice | Repeat) -> bool:
    """Whether a row without a value has an empty column for each field; it has one column for a list, or for nothing."""
    steps = [step for way in ways_of(choice) for step in way.steps]
    return bool(steps) and not any(isinstance(step, Node) and step.kind == "many" for step in steps)


def _flat(history: Any, hidden: set[str], whole: set[str]) -> Iterator[tuple[str, Any]]:
    for name, value in history.items():
        if name in hidden:
            continue
        if isinstance(value, list):
            yield name, [item.model_dump() for item in value]
        elif name in whole:
            yield name, None
        else:
            yield f"{name}.v", None if value is None else value.v


def _line(row: dict[str, Any]) -> str:
    """A row as text in which the formats do not differ: CSV knows no numbers and no null."""
    cells = {name: json.loads(value) if isinstance(value, str) and value[:1] == "[" else value for name, value in row.items()}
    plain = {
        name: None if value == "" else str(value) if not isinstance(value, list) else value for name, value in cells.items()
    }
    return json.dumps({name: None if value == "None" else value for name, value in plain.items()}, sort_keys=True)


def _check_log(scenario: Scenario, meaning: Meaning, accepted: Accepted, events: list[dict[str, Any]]) -> None:
    assert events[-1]["type"] == "run_finished", f"the log ends with {events[-1]['type']}"
    epochs = [event.get("epoch", 0) for event in events]
    assert epochs == sorted(epochs), "epochs go back"
    done = {event["root"]: event["root_done"] for event in events if event.get("root_done")}
    records = int(accepted.ids[-1].partition("~")[0]) + 1 if accepted.enough else len(scenario.numbers)
    _require_equal("complete roots", [*done], list(range(-(-records // scenario.batch_size))))
    if not scenario.accept:
        assert len(done) == sum("root_done" in event for event in events), "a root was complete twice"
    last = [root["last"]["row_id"] for root in done.values() if root.get("last")][-1:]
    assert last == accepted.ids[-1:] * accepted.enough, f"the log says that {last} is the last accepted row"
    asked: Counter[str] = Counter()
    for event in events:
        if event["type"] == "unit_committed":
            asked[event["node"].partition("#")[0]] += event.get("usage", {}).get("requests", 0)
    for node in nodes_of(scenario.elements):
        kept = sum(asks for _, _, asks, _ in meaning.outputs.get(node.id, []))
        lost = sum(asks for step, _, _, asks, _ in meaning.rejected if step == node.id)
        if node.kind == "ask" and (scenario.accept or scenario.dedupe):
            assert asked[node.id] <= kept + lost, f"{node.id}: {asked[node.id]} asks, and all rows would take {kept + lost}"
        elif node.kind == "ask":
            assert asked[node.id] == kept + lost, (
                f"{node.id}: the log counts {asked[node.id]} asks, and its rows took {kept + lost}"
            )


def _check_counts(scenario: Scenario, meaning: Meaning, accepted: Accepted, directory: Path) -> None:
    """The counts leave the surplus out, and say how much it is."""
    metadata = json.loads((directory / "metadata.json").read_text())
    assert metadata["accept"]["certain"] == metadata["rows_finished"] == len(accepted.ids)
    for node in nodes_of(scenario.elements):
        if node.hidden or node.id not in metadata["steps"]:
            continue
        counts, rows = metadata["steps"][node.id], meaning.outputs.get(node.id, [])
        kept, _ = _parted(accepted, node.id, rows)
        assert counts["out"] == len(kept), f"{node.id}: the metadata counts {counts['out']} rows of {len(kept)}"
        lost = [row for row in meaning.rejected if row[0] == node.id and accepted.has(*row[:2])]
        assert counts["rejected"] == len(lost), f"{node.id}: the metadata counts {counts['rejected']} of {len(lost)} rejections"
        written = sum(1 for _ in _rows(scenario, directory / node.id))
        surplus = counts.get("surplus", {}).get("out", 0)
        assert surplus == written - len(kept), f"{node.id}: {surplus} rows of surplus, and {written - len(kept)} are written"


def _check_rebuild(directory: Path) -> None:
    """The derived files are those that the log implies."""
    from chainette.io.rundir.derived_files import render_files
    from chainette.io.rundir.open import read_state
    from chainette.io.rundir.paths import RunDir

    state, _ = read_state(RunDir(directory))
    for name, data in render_files(state).items():
        assert (directory / name).read_bytes() == data, f"{name} is not what the log implies"
    metadata = json.loads((directory / "metadata.json").read_text())
    assert metadata["status"] == "finished", f"metadata.json says {metadata['status']}"
    assert metadata["balanced"], "the steps do not balance"

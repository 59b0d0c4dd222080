"""The writer's calls for the entries of a run's stream."""

from __future__ import annotations

from collections.abc import Sequence

from chainette.fleet.protocol.messages import Result
from chainette.fleet.protocol.queue_values import Entry
from chainette.io.rundir.live_roots import Commit, Item
from chainette.records import Output, Usage
from chainette.run.stream_commits import commit_of, items_of


def _entry(number: int, node: str, root: int, *rows: str, done: bool = False) -> Entry:
    outputs = [Output(row, b"{}") for row in rows]
    result = Result(node, root, "", len(rows), outputs, [], [], Usage(len(rows)), "w")
    return Entry(f"{number}-0", f"token-{number}", result, root, done=done)


def _seen(items: Sequence[Item]) -> list[tuple[str, int, list[str], int | None, bool, str]]:
    commits = [item for item in items if isinstance(item, Commit)]
    assert len(commits) == len(items)
    return [
        (one.unit.node, one.unit.root, [row.row_id for row in one.outcome.outputs], one.taken, one.done, (one.pos or ("",))[0])
        for one in commits
    ]


def _items(entries: Sequence[Entry]) -> Sequence[Item]:
    return items_of([], ((entry, commit_of(entry, (entry.id, entry.token))) for entry in entries))


def test_adjacent_results_of_one_root_and_node_are_one_line_with_the_last_position() -> None:
    entries = [_entry(1, "ask", 0, "0", "1"), _entry(2, "ask", 0, "2"), _entry(3, "ask", 0, "3", done=True)]
    [merged] = _items(entries)
    assert _seen([merged]) == [("ask", 0, ["0", "1", "2", "3"], 4, True, "3-0")]
    assert isinstance(merged, Commit) and merged.outcome.usage.requests == 4


def test_results_with_another_between_them_stay_apart_since_a_crash_may_keep_the_first_lines_only() -> None:
    entries = [_entry(1, "ask", 0, "0"), _entry(2, "ask", 1, "4"), _entry(3, "ask", 0, "1"), _entry(4, "sum", 0, "0")]
    assert [line[:3] for line in _seen(_items(entries))] == [
        ("ask", 0, ["0"]),
        ("ask", 1, ["4"]),
        ("ask", 0, ["1"]),
        ("sum", 0, ["0"]),
    ]

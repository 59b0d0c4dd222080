"""graph.json as structs: the bytes that were read are written, and a graph whose walk would never end is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from chainette.core.compile import compile_chain
from chainette.io.rundir.derived_files import pretty
from chainette.io.rundir.graph import Graph, GraphFork, GraphNode
from chainette.io.rundir.graph_of_plan import graph_of
from tests.support.chains import everything
from tests.support.fleet import forked

GOLDEN = Path(__file__).parents[3] / "golden"


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graph_of(compile_chain(everything()))


@pytest.mark.parametrize("file", sorted(GOLDEN.rglob("graph.json")), ids=lambda path: path.parent.name)
def test_a_graph_of_an_earlier_version_is_written_as_it_was_read(file: Path) -> None:
    assert pretty(msgspec.json.decode(file.read_bytes(), type=Graph)) == file.read_bytes()


def test_a_graph_equals_the_graph_that_is_read_back(graph: Graph) -> None:
    assert msgspec.json.decode(msgspec.json.encode(graph), type=Graph) == graph


def test_a_line_goes_past_forks_and_their_branches_are_lines_too(graph: Graph) -> None:
    seen: list[str] = []
    lines = [graph.first]
    while lines:
        for element in graph.line(lines.pop()):
            seen.append(element.id)
            lines += [branch.first for branch in element.branches] if isinstance(element, GraphFork) else []
    assert sorted(seen) == sorted([*graph.by_id, *graph.forks_by_id])
    assert all(isinstance(element, GraphNode | GraphFork) for element in graph.line(graph.first))


def test_the_source_of_a_node_is_the_origin_of_its_rows() -> None:
    graph = graph_of(compile_chain(everything()))
    for node in graph.nodes:
        source = graph.source(node.id)
        assert source is None or source in graph.by_id or graph.forks_by_id[source].joins
    assert graph.source(graph.nodes[0].id) is None
    assert graph_of(forked()).source("second") not in ("first", None), "the join gives it its rows"


CIRCLE = b"""{"first": {"to": "ToNode", "node": "a"}, "nodes": [
    {"id": "a", "kind": "step", "engine": "e", "path": [], "next": {"to": "ToNode", "node": "b"}},
    {"id": "b", "kind": "step", "engine": "e", "path": [], "next": {"to": "ToNode", "node": "NEXT"}}]}"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CIRCLE.replace(b"NEXT", b"a"), "'a' is reached twice"),
        (CIRCLE.replace(b"NEXT", b"c"), "an edge leads to 'c', which does not exist"),
        (CIRCLE.replace(b'{"to": "ToNode", "node": "a"}', b'{"to": "End"}'), "a node or a fork cannot be reached"),
        (b'{"nodes": [{}]}', "missing required field `id`"),
    ],
)
def test_a_graph_that_a_walk_would_never_leave_is_refused(text: bytes, words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.json.decode(text, type=Graph)

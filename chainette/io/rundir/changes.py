"""Compares the chain that a directory was written with and the chain as it is now.

Both are compared as graphs (graph.json), because the log keeps nothing else of the old chain. A row depends on
everything that its node receives: a change at one node makes the rows of all later nodes stale, but a change of
only names or joins makes only `flattened/` and the counts stale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from chainette.core.setting_changes import SETTINGS, Settings, settings_of_engine
from chainette.errors import EngineConfigError
from chainette.io.rundir.graph import Edge, Graph, GraphChoice, GraphJoin, GraphNode, GraphRounds
from chainette.records import CHAIN_INPUT, declared_of

__all__ = ["FLATTENED", "PARTS", "Changes", "changes_between", "different_models", "rescues_between"]

#: Stands for `flattened/` and the counts if no node is stale.
FLATTENED = "flattened"

_SAME: Mapping[str, Sequence[str]] = MappingProxyType({})

#: Names in sentences of the parts of a step in graph.json.
PARTS = {
    "input_model": "input model",
    "output_schema": "output model",
    "system_prompt": "system prompt",
    "user_prompt": "prompt",
    "output_format_instruction": "output instruction",
    "cardinality": "return annotation",
    "samples": "number of candidates (n)",
    "pick": "pick",
}


@dataclass(frozen=True)
class Changes:
    """Differences, each as a sentence, and the nodes that must be computed again."""

    sentences: tuple[str, ...]
    #: Nodes whose rows the chain would not make now, in its order; `chain_input` and `flattened` count as nodes.
    stale: tuple[str, ...]


def different_models(engine: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Describes files and revisions of an engine that changed; unknown ones count as the same."""
    return [f"the {part} of engine {engine} changed" for part in sorted(old.keys() & new.keys()) if old[part] != new[part]]


def changes_between(old: Graph, new: Graph, models: Mapping[str, Sequence[str]] = _SAME) -> Changes | None:
    """The changes; None if the new chain would produce the same rows and files.

    `models`: sentences about engines whose model changed behind the same settings.
    """
    stale = [*_stale(old, new, models)]
    sentences = [*_sentences(old, new), *(words for found in models.values() for words in found)]
    if not stale and not sentences and old.shape() == new.shape():
        return None
    return Changes(tuple(sentences or ["the columns of flattened have changed"]), tuple(stale or [FLATTENED]))


def _stale(old: Graph, new: Graph, models: Collection[str]) -> Iterator[str]:
    if old.input_fingerprint != new.input_fingerprint:
        yield CHAIN_INPUT
    before, now = _lineages(old), _lineages(new)
    recorded = old.by_id
    for node in new.nodes:
        name = node.id
        if name not in recorded and declared_of(name) in recorded:  # a round that no row has had
            continue
        if (
            any(engine in models for engine in node.engines)
            or before.get(name) != now[name]
            or recorded[name].hidden != node.hidden
            or [*_worse(recorded[name], node, _engine_of(new, name)[0])]
        ):
            yield name


def _worse(old: GraphNode, new: GraphNode, engine: Settings) -> Iterator[str]:
    """Changed settings of a node that could reject accepted rows: those that rescue rows, changed the other way."""
    rescues = {name: rescues for settings in (*SETTINGS.values(), engine) for name, rescues in settings.rescue.items()}
    known = old.rescues
    for name, value in new.rescues.items():
        if name in known and not rescues[name](known[name], value):
            yield name


def rescues_between(old: Graph, new: Graph) -> Iterator[tuple[str, str]]:
    """(node, sentence) for every change of a setting that can rescue rejected rows."""
    recorded = {node.id: node.rescues for node in old.nodes}
    for node in new.steps:
        known = recorded.get(node.id, {})
        for name, value in node.rescues.items():
            if name in known and known[name] != value:
                yield node.id, f"{node.id} has {name}={value} now (was {known[name]})"


def _lineages(graph: Graph) -> dict[str, str]:
    """Node -> a digest of everything that decides its rows: its fingerprint, and the lineage of its input."""
    found: dict[str, str] = {}

    def follow(target: Edge, came: str) -> str:
        for element in graph.line(target):
            if isinstance(element, GraphNode):
                came = found[element.id] = _digest(came, element.id, element.fingerprint)
                continue
            if isinstance(element, GraphRounds):
                first, *others = element.branches
                start = end = follow(first.first, came)
                for branch in others:
                    end = follow(branch.first, end)
                joined = [(join.alias, start) for join in element.joins[:1]]  # one lineage, whatever the number of rounds
                came = _digest(came, joined) if joined else came
                continue
            start = follow(element.entry, came) if isinstance(element, GraphChoice) else came
            for side in element.sides:
                follow(side.first, start)
            joined = [(join.alias, follow(join.first, start)) for join in element.joins]
            came = _digest(came, joined) if joined else came
        return came

    follow(graph.first, "")
    return found


def _digest(*parts: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


# -- in words


@dataclass(frozen=True)
class _Branch:
    """A branch as its chain declares it."""

    #: The branch around it; "" for the main flow.
    inside: str
    alias: str | None
    nodes: tuple[str, ...]


def _sentences(old: Graph, new: Graph) -> Iterator[str]:
    if old.input_fingerprint != new.input_fingerprint:
        yield "the input model changed"
    before, now = ({node.id: node for node in graph.steps} for graph in (old, new))
    renamed = _renamed_branches(old, new)
    for name, node in now.items():
        if name not in before:
            yield f"{name} is new"
        else:
            yield from _node_sentences(before[name], node, renamed, _engine_words(old, new, name), _engine_of(new, name)[0])
    for name in (name for name in before if name not in now):
        yield f"{name} is gone (its rows would be dropped)"
    yield from _branch_sentences(old, new, renamed)
    yield from _order_sentences(old, new, renamed)


def _engine_words(old: Graph, new: Graph, name: str) -> list[str]:
    """Describes changed engine settings that decide rows."""
    (was, before), (is_now, now) = (_engine_of(graph, name) for graph in (old, new))
    deciding = sorted(key for key in {*before, *now} if key in was.decide | is_now.decide)
    return [f"{key} of its engine" for key in deciding if before.get(key) != now.get(key)]


def _engine_of(graph: Graph, name: str) -> tuple[Settings, dict[str, Any]]:
    """The classes of a node's engine settings, and their values; if a plugin is no longer installed, all of them decide."""
    config = graph.engines.get(graph.by_id[name].engine, {})
    found = config | config.get("options", {})
    try:
        return settings_of_engine(config["backend"]) if config else SETTINGS["engine"], found
    except EngineConfigError:
        common = SETTINGS["engine"]
        return Settings(frozenset(found.keys() - common.free), free=common.free), found


def _node_sentences(
    old: GraphNode, new: GraphNode, renamed: Mapping[str, str], engine: Sequence[str], settings: Settings
) -> Iterator[str]:
    name = new.id
    if old.fingerprint != new.fingerprint:
        parts = [words for part, words in PARTS.items() if old.part(part) != new.part(part)]
        parts += ["sampling"] if _without_rescue(old) != _without_rescue(new) else []
        parts += engine
        yield f"{name} has another {' and another '.join(parts)}" if parts else f"{name} has other code, or uses other data"
    for setting in _worse(old, new, settings):
        was, found = old.rescues[setting], new.rescues[setting]
        yield f"{name} has {setting}={found} now (was {was}, with which rows were accepted)"
    if old.hidden != new.hidden and old.pick == new.pick:
        yield f"{name} has yield_output={not new.hidden} now"
    inside = [renamed.get(branch, branch) for branch in old.path][-1:]
    if inside != new.path[-1:]:
        yield f"{name} moved from {_line(''.join(old.path[-1:]))} to {_line(''.join(new.path[-1:]))}"


def _without_rescue(node: GraphNode) -> dict[str, Any]:
    return {name: value for name, value in (node.sampling or {}).items() if name not in node.rescues}


def _line(branch: str) -> str:
    return _named(branch) if branch else "the main flow"


def _named(branch: str) -> str:
    """`branch b`, or `way refund of route handle`."""
    route, is_way, way = branch.partition(":")
    return f"way {way or '(no case)'} of route {route}" if is_way else f"branch {branch}"


def _branches(graph: Graph) -> dict[str, _Branch]:
    found = {}
    for fork in graph.declared_forks:
        for branch in fork.branches:
            nodes = tuple(node.id for node in graph.steps if branch.branch in node.path)
            alias = branch.alias if isinstance(branch, GraphJoin) else None
            found[branch.branch] = _Branch("".join(fork.path[-1:]), alias, nodes)
    return found


def _renamed_branches(old: Graph, new: Graph) -> dict[str, str]:
    """Old name -> new name of branches that hold the same nodes under another name."""
    before, now = _branches(old), _branches(new)
    return {
        name: other
        for name, branch in before.items()
        for other, candidate in now.items()
        if name not in now and other not in before and branch.nodes == candidate.nodes != ()
    }


def _branch_sentences(old: Graph, new: Graph, renamed: Mapping[str, str]) -> Iterator[str]:
    before, now = _branches(old), _branches(new)
    for name, branch in before.items():
        found = now.get(renamed.get(name, name))
        if found is None:
            yield f"{_named(name)} is gone"
            continue
        if name in renamed:
            yield f"{_named(name)} is called {renamed[name]} now"
        if found.alias != branch.alias:
            yield f"{_named(renamed.get(name, name))} is {_joined(found.alias)} now (was {_joined(branch.alias)})"
        if found.inside != renamed.get(branch.inside, branch.inside):
            yield f"{_named(renamed.get(name, name))} moved from {_line(branch.inside)} to {_line(found.inside)}"
    for name in (name for name in now if name not in before and name not in renamed.values()):
        yield f"{_named(name)} is new"


def _joined(alias: str | None) -> str:
    return "not joined" if alias is None else f"joined as {alias}"


def _order_sentences(old: Graph, new: Graph, renamed: Mapping[str, str]) -> Iterator[str]:
    """Describes elements of both chains that are in another order or in other lists of branches."""
    before, now = _lines(old, renamed), _lines(new, {})
    for line in (line for line in now if line in before):
        common = {*_flat(before[line])} & {*_flat(now[line])}
        was, found = (_written(elements, common) for elements in (before[line], now[line]))
        if was != found:
            yield f"the order on {_line(line)} is {found} now (was {was})"


Elements = list[tuple[str, ...]]


def _lines(graph: Graph, renamed: Mapping[str, str]) -> dict[str, Elements]:
    """The elements of the main flow ("") and of every branch: a node is (id,), a list of branches ("", names...)."""
    found: dict[str, Elements] = {}

    def follow(line: str, target: Edge) -> None:
        elements = found[renamed.get(line, line)] = []
        for element in graph.line(target):
            if isinstance(element, GraphNode):
                elements.append((element.id,))
                continue
            elements.append(("", *(renamed.get(branch.branch, branch.branch) for branch in element.branches)))
            for branch in element.branches:
                follow(branch.branch, branch.first)

    follow("", graph.first)
    return found


def _flat(elements: Elements) -> Iterator[str]:
    return (name for element in elements for name in element if name)


def _written(elements: Elements, common: Iterable[str]) -> str:
    """The elements as a chain writes them, without names that only one chain has."""
    words = []
    for first, *names in elements:
        kept = [name for name in names if name in common]
        if first in common:
            words.append(first)
        elif kept:
            words.append(f"[{', '.join(kept)}]")
    return ", ".join(words)

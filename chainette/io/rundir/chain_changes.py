"""Compares the chain with which a directory was written with the current chain.

Both are compared as graphs (graph.json), because the log keeps nothing else of the old chain. A row depends on
everything that its node receives: a change at one node makes the rows of all later nodes stale, but if only names or
joins change, only `flattened/` and the counts are stale.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from types import MappingProxyType
from typing import Any

import msgspec

from chainette.core.setting_changes import SETTINGS, Settings, settings_of_engine
from chainette.errors import EngineConfigError
from chainette.io.rundir.graph import Edge, Graph, GraphChoice, GraphJoin, GraphNode, GraphRounds
from chainette.records import CHAIN_INPUT, declared_of
from chainette.utils.plurals import counted

__all__ = ["FLATTENED", "PARTS", "Changes", "changes_between", "different_models", "rescues_between"]

#: Represents `flattened/` and the counts if no node is stale.
FLATTENED = "flattened"

_SAME: Mapping[str, Sequence[str]] = MappingProxyType({})

#: The most characters of a value in a sentence.
_SHOWN = 40

#: Part of a step in graph.json -> its name in sentences.
PARTS = {
    "input_model": "input model",
    "output_schema": "output model",
    "system_prompt": "system prompt",
    "user_prompt": "prompt",
    "output_format_instruction": "output instruction",
    "cardinality": "return annotation",
    "samples": "number of candidates (n)",
    "pick": "pick",
    "dedupe": "dedupe",
}


@dataclass(frozen=True)
class Changes:
    """Differences, each as a sentence, and the nodes that must be computed again."""

    sentences: tuple[str, ...]
    #: Nodes whose rows differ in the current chain, in its order; `chain_input` and `flattened` count as nodes.
    stale: tuple[str, ...]
    #: Node -> the sentences about it and its engine; a node without any depends on a changed one.
    by_node: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)


def different_models(engine: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Describes changed files and revisions of an engine; unknown ones count as unchanged."""
    return [f"the {part} of engine {engine} changed" for part in sorted(old.keys() & new.keys()) if old[part] != new[part]]


def changes_between(old: Graph, new: Graph, models: Mapping[str, Sequence[str]] = _SAME) -> Changes | None:
    """The changes; None if the new chain would produce the same rows and files.

    `models` has sentences about engines whose model changed under the same settings.
    """
    stale = [*_stale(old, new, models)]
    told = [*_sentences(old, new), *((engine, words) for engine, found in models.items() for words in found)]
    if not stale and not told and old.shape() == new.shape():
        return None
    sentences = [*dict.fromkeys(words for _, words in told)] or ["the columns of flattened have changed"]
    by_node: dict[str, list[str]] = defaultdict(list)
    for about, words in told:
        for name in [about] if about not in models else [node.id for node in new.steps if about in node.engines]:
            by_node[name].append(words)
    return Changes(tuple(sentences), tuple(stale or [FLATTENED]), {name: tuple(words) for name, words in by_node.items()})


def _stale(old: Graph, new: Graph, models: Collection[str]) -> Iterator[str]:
    if old.input_fingerprint != new.input_fingerprint:
        yield CHAIN_INPUT
    before, now = _lineages(old), _lineages(new)
    recorded = old.by_id
    for node in new.nodes:
        name = node.id
        if name not in recorded and declared_of(name) in recorded:  # a round that no row has reached
            continue
        if (
            any(engine in models for engine in node.engines)
            or before.get(name) != now[name]
            or recorded[name].hidden != node.hidden
            or [*_worse(recorded[name], node, _engine_of(new, name)[0])]
        ):
            yield name


def _worse(old: GraphNode, new: GraphNode, engine: Settings) -> Iterator[str]:
    """Changed settings of a node that could reject accepted rows: settings that can rescue rows, changed in the opposite
    direction."""
    rescues = {name: rescues for settings in (*SETTINGS.values(), engine) for name, rescues in settings.rescue.items()}
    known = old.rescues
    for name, value in new.rescues.items():
        if name in known and not rescues[name](known[name], value):
            yield name


def rescues_between(old: Graph, new: Graph) -> Iterator[tuple[str, str]]:
    """(node, sentence) for every changed setting that can rescue rejected rows."""
    recorded = {node.id: node.rescues for node in old.nodes}
    for node in new.steps:
        known = recorded.get(node.id, {})
        for name, value in node.rescues.items():
            if name in known and known[name] != value:
                yield node.id, f"{node.id} has {name}={value} now (was {known[name]})"


def _lineages(graph: Graph) -> dict[str, str]:
    """Node -> a digest of everything that determines its rows: its fingerprint, and the lineage of its input."""
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
                joined = [(join.alias, start) for join in element.joins[:1]]  # one lineage for any number of rounds
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


# -- sentences


@dataclass(frozen=True)
class _Branch:
    """A branch, as its chain declares it."""

    #: The enclosing branch; "" for the main flow.
    inside: str
    alias: str | None
    nodes: tuple[str, ...]


def _sentences(old: Graph, new: Graph) -> Iterator[tuple[str, str]]:
    """(node, sentence) for each change; the node is "" if the sentence is about branches or their order."""
    if old.input_fingerprint != new.input_fingerprint:
        yield CHAIN_INPUT, "the input model changed"
    before, now = ({node.id: node for node in graph.steps} for graph in (old, new))
    renamed = _renamed_branches(old, new)
    for name, node in now.items():
        if name not in before:
            yield name, f"{name} is new"
            continue
        engine = _engine_words(old, new, name)
        for words in _node_sentences(before[name], node, renamed, engine, _engine_of(new, name)[0]):
            yield name, words
    for name in (name for name in before if name not in now):
        yield name, f"{name} is gone (its rows would be dropped)"
    for words in (*_branch_sentences(old, new, renamed), *_order_sentences(old, new, renamed)):
        yield "", words


def _engine_words(old: Graph, new: Graph, name: str) -> list[str]:
    """Describes changed engine settings that affect rows: `model of engine llama: 8B -> 70B`."""
    (was, before), (is_now, now) = (_engine_of(graph, name) for graph in (old, new))
    deciding = sorted(key for key in {*before, *now} if key in was.decide | is_now.decide)
    return _differences(
        f"engine {new.by_id[name].engine}", *({key: found.get(key) for key in deciding} for found in (before, now))
    )


def _differences(of: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A sentence for every value that differs."""
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return [f"{name} of {of}: {_shown(old.get(name))} -> {_shown(new.get(name))}" for name in names]


def _shown(value: Any) -> str:
    """A value, as a sentence shows it."""
    text = " ".join((value if isinstance(value, str) else "not set" if value is None else repr(value)).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _engine_of(graph: Graph, name: str) -> tuple[Settings, dict[str, Any]]:
    """The classes of a node's engine settings, and their values; if its plugin is no longer installed, all affect rows."""
    node = graph.by_id[name]
    config = graph.engines.get(node.instead_of or node.engine, {})
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
        follows = "output_format_instruction" if old.part("output_schema") != new.part("output_schema") else ""
        parts = [words for part in PARTS if part != follows for words in _part_words(part, old, new)]
        parts += [*_differences(name, *({"temperature": 0.0} | _without_rescue(node) for node in (old, new)))]
        parts += engine
        yield from parts or [f"{name} has different code, or uses different data"]
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


def _part_words(part: str, old: GraphNode, new: GraphNode) -> Iterator[str]:
    """Describes the change of a part of a step: `prompt of extract: 2 lines changed`."""
    was, found = old.part(part), new.part(part)
    if was == found:
        return
    subject = f"{PARTS[part]} of {new.id}"
    if part.endswith(("prompt", "instruction")):
        changed = _changed_lines(was or "", found or "")
        yield f"{subject}: {counted(changed, 'line')} changed"
    elif part == "output_schema":
        yield f"{subject}: {_changed_fields(was or {}, found or {})}"
    else:
        yield f"{subject}: {_shown(was)} -> {_shown(found)}"


def _changed_lines(old: str, new: str) -> int:
    """The number of lines that were replaced, inserted or deleted."""
    matcher = SequenceMatcher(None, old.splitlines(), new.splitlines(), autojunk=False)
    edits = ((last - first, end - start) for kind, first, last, start, end in matcher.get_opcodes() if kind != "equal")
    return max(1, sum(map(max, edits)))


def _changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describes the changed fields of an output model."""
    before, now = (schema.get("properties", {}) for schema in (old, new))
    words = [f"{name} is new" for name in now if name not in before]
    words += [f"{name} is gone" for name in before if name not in now]
    words += [f"{name} changed" for name in now if name in before and before[name] != now[name]]
    return " and ".join(words) or "changed"


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
    """Old name -> new name of branches with the same nodes but another name."""
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
    """Describes elements of both chains whose order, or list of branches, has changed."""
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
    """The elements in the notation of a chain, without names that only one chain has."""
    words = []
    for first, *names in elements:
        kept = [name for name in names if name in common]
        if first in common:
            words.append(first)
        elif kept:
            words.append(f"[{', '.join(kept)}]")
    return ", ".join(words)

"""The meaning of a drawn chain, one row at a time: no units, no scopes, no queue, no disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from tests.support.drawn import (
    Choice,
    Element,
    Item,
    Node,
    Refused,
    Repeat,
    Verdict,
    Way,
    choices_of,
    chosen_of,
    judged,
    nodes_of,
    prompt_of,
    value_of,
    way_of,
    ways_of,
)

__all__ = ["Meaning", "after"]


@dataclass(frozen=True)
class _End:
    """A row at the end of some elements. `round`: the number of retries it took to come here."""

    row_id: str
    value: Item
    history: dict[str, Any]
    round: int
    #: Joined route on the row's own line -> way.
    ways: Mapping[str, str | None] = field(default_factory=dict)
    #: Rounds of the loops around it, outermost first: `2~1`; "" outside.
    rounds: str = ""


@dataclass
class Meaning:
    """Reads rows through the elements, and notes all that each comes to.

    Rejected rows are asked again `retries` times. A node in `anew` was recomputed after so many of them.
    """

    retries: int = 0
    anew: Mapping[str, int] = field(default_factory=dict)
    #: (node, value) of rows that kill whoever takes them.
    deadly: tuple[str, int] | None = None
    #: Node -> (row id, number, asks, rounds).
    outputs: dict[str, list[tuple[str, int, int, str]]] = field(default_factory=dict)
    #: Route or loop -> (row id, way, rounds).
    decided: dict[str, list[tuple[str, str | None, str]]] = field(default_factory=dict)
    #: (node, row id, reason, asks, rounds).
    rejected: list[tuple[str, str, str, int, str]] = field(default_factory=list)
    #: Row id -> the row's history.
    finished: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    #: Row id -> route on the main flow -> way.
    ways: dict[str, Mapping[str, str | None]] = field(default_factory=dict)

    def read(self, elements: Sequence[Element], row_id: str, v: int) -> None:
        start = Item(v=v)
        ends, _ = self.flow(elements, _End(row_id, start, {"chain_input": start}, 0))
        self.finished |= {end.row_id: end.history for end in ends}
        self.ways |= {end.row_id: end.ways for end in ends}

    def flow(self, elements: Sequence[Element], row: _End) -> tuple[list[_End], bool]:
        """Rows at the end of the elements; and whether none was rejected or stopped on the way."""
        if not elements:
            return [row], True
        head, rest = elements[0], elements[1:]
        if isinstance(head, Choice):
            return self.choice(head, rest, row)
        if isinstance(head, Repeat):
            return self.repeat(head, rest, row)
        if not isinstance(head, Node):
            return self.fork(head, rest, row)
        children = self.node(head, row)
        found = [self.flow(rest, child) for child in children or []]
        return [end for ends, _ in found for end in ends], children is not None and all(whole for _, whole in found)

    def fork(self, ways: Sequence[Way], rest: Sequence[Element], row: _End) -> tuple[list[_End], bool]:
        aliases: dict[str, Any] = {}
        last, stopped = row.round, False
        for way in ways:
            ends, whole = self.flow(way.steps, row)
            many = any(isinstance(node, Node) and node.kind == "many" for node in way.steps)
            given = [end.value for end in ends] if many else ends[0].value if ends else None
            if way.alias:
                stopped |= not whole or given is None
                last = max([last, *(end.round for end in ends)])
                aliases[way.alias] = given
            elif not rest:
                aliases[way.name] = given
        history = {**row.history, **aliases}
        return ([], False) if stopped else self.flow(rest, replace(row, history=history, round=last))

    def choice(self, choice: Choice, rest: Sequence[Element], row: _End) -> tuple[list[_End], bool]:
        """The row goes one way, and on from there as it was before."""
        many = any(isinstance(node, Node) and node.kind == "many" for way in choice.ways for node in way.steps)
        try:
            name = way_of(choice, row.value)
        except Refused as refused:
            reason = "no_case" if str(refused) == "no_case" else "apply_error"
            self.rejected.append((choice.id, row.row_id, reason, 0, row.rounds))
            return self.passed(choice, rest, row, row.round)
        self.decided.setdefault(choice.id, []).append((row.row_id, name, row.rounds))
        steps = next((way.steps for way in choice.ways if way.name == name), ())
        ends, whole = self.flow(steps, row) if steps else ([], True)
        given = [end.value for end in ends] if many else ends[0].value if ends else None
        last = max([row.round, *(end.round for end in ends)])
        stopped = not whole or bool(steps and not many and not ends)
        return self.passed(choice, rest, row, last, stopped=stopped, given=given, way=name)

    def repeat(self, repeat: Repeat, rest: Sequence[Element], row: _End) -> tuple[list[_End], bool]:
        """The row goes through the steps until it is done, and on from there as it was before."""
        best: tuple[int, _End] | None = None
        start, at, before = {*row.history}, row.round, dict[str, Any]()
        for number in range(1, repeat.rounds + 1):
            seen = {"round": number, "previous": SimpleNamespace(**before)}
            rounds = f"{row.rounds}~{number}".lstrip("~")
            ends, _ = self.flow(repeat.steps, replace(row, history=row.history | seen, round=at, rounds=rounds))
            if not ends:
                return self.passed(repeat, rest, row, at)
            [end] = ends
            at, before = (
                max(end.round, self.anew.get(repeat.id, 0)),
                {name: value for name, value in end.history.items() if name not in start | {*seen}},
            )
            done = repeat.ends(end.value, number)
            if not done and number == repeat.rounds and repeat.ending == "reject":
                self.rejected.append((repeat.id, row.row_id, "exhausted", 0, rounds))
                return self.passed(repeat, rest, row, at)
            way = "ended" if done else "kept" if number == repeat.rounds else "again"
            self.decided.setdefault(repeat.id, []).append((row.row_id, way, rounds))
            if best is None or repeat.ending != "best" or done or repeat.score(end.value) > repeat.score(best[1].value):
                best = number, end
            if done:
                break
        assert best is not None
        return self.passed(repeat, rest, row, at, stopped=False, given=best[1].value, way=str(best[0]))

    def passed(
        self,
        element: Choice | Repeat,
        rest: Sequence[Element],
        row: _End,
        at: int,
        *,
        stopped: bool = True,
        given: Any = None,
        way: str | None = None,
    ) -> tuple[list[_End], bool]:
        """The row goes on behind a route or a loop, with what it gave."""
        name = element.alias or element.id
        known = replace(row, history={**row.history, name: given}, ways={**row.ways, element.id: way})
        if element.alias:
            return ([], False) if stopped else self.flow(rest, replace(known, round=at))
        return self.flow(rest, row if rest else known)

    def node(self, node: Node, row: _End) -> list[_End] | None:
        """The rows a node makes of one; None if it rejects it."""
        if node.kind == "vote":
            return self.vote(node, row)
        try:
            if (node.id, row.value.v) == self.deadly:
                raise Refused("poison")
            numbers, asks, at = self.numbers(node, row)
        except Refused as refused:
            reason, asks = (*refused.args, 0)[:2]
            self.rejected.append((node.id, row.row_id, "apply_error" if reason == "no" else reason, asks, row.rounds))
            return None
        ids = [f"{row.row_id}~{index}" for index in range(len(numbers))] if node.kind == "many" else [row.row_id]
        rows = [
            replace(row, row_id=child, value=Item(v=v), history={**row.history, node.id: Item(v=v)}, round=at)
            for child, v in zip(ids, numbers, strict=False)
        ]
        self.outputs.setdefault(node.id, []).extend((child.row_id, child.value.v, asks, row.rounds) for child in rows)
        return rows

    def vote(self, node: Node, row: _End) -> list[_End] | None:
        """The row with the candidate that is chosen; no row if none is, and None if too few are valid."""
        prompt = prompt_of(node, row.value, row.history)
        verdicts = [self.candidate(node, f"{prompt}, sample {sample}") for sample in range(node.samples)]
        numbers = [-1 if verdict.reason else int(verdict.text[6:-1]) for verdict in verdicts]
        every = self.outputs.setdefault(f"{node.id}_candidates", [])
        every.extend((f"{row.row_id}~{sample}", number, 0, row.rounds) for sample, number in enumerate(numbers))
        valid = [number for number in numbers if number >= 0]
        if len(valid) < node.enough:
            reason = "too_few" if valid else verdicts[-1].reason
            self.rejected.append((node.id, row.row_id, reason, 0, row.rounds))
            return None
        most = max(map(valid.count, valid))
        majority = next(number for number in valid if valid.count(number) == most)
        chosen = majority if node.salt % 3 else chosen_of(node, valid)
        if chosen is None:
            return []
        self.outputs.setdefault(node.id, []).append((row.row_id, chosen, 0, row.rounds))
        return [replace(row, value=Item(v=chosen), history={**row.history, node.id: Item(v=chosen)})]

    def candidate(self, node: Node, prompt: str) -> Verdict:
        """The last answer of one candidate."""
        for attempt in range(1, node.attempts + 1):
            verdict = judged(node.id, prompt, attempt)
            if not verdict.reason or not verdict.may_be_asked_again:
                break
        return verdict

    def numbers(self, node: Node, row: _End) -> tuple[list[int], int, int]:
        """The numbers, the asks that they took, and the retry in which they came."""
        at = max(row.round, self.anew.get(node.id, 0))
        if node.kind != "ask":
            return value_of(node, row.value, row.history), 0, at
        ask, prompt = 0, prompt_of(node, row.value, row.history)
        # each engine has its attempts; a retry goes on at the last one
        turns = [*[at] * node.escalates, *range(at, self.retries + 1)]
        for now in turns:
            for attempt in range(1, node.attempts + 1):
                ask += 1
                verdict = judged(node.id, prompt, ask)
                if not verdict.reason:
                    return [int(verdict.text[6:-1])], ask, now
                if not verdict.may_be_asked_again or attempt == node.attempts:
                    break
        raise Refused(verdict.reason, ask)


def after(elements: Sequence[Element], start: str) -> set[str]:
    """The node and all nodes that depend on it; of a loop, those that do in its first round."""
    for place, element in enumerate(elements):
        rest = {node.id for node in nodes_of(elements[place + 1 :])}
        if isinstance(element, Node):
            if element.id == start:
                return {start} | rest
            continue
        for way in ways_of(element):
            found = after(way.steps, start)
            if not found and isinstance(element, Choice | Repeat) and element.id == start:
                inside = [node.id for way in ways_of(element) for node in nodes_of(way.steps)]
                found = {start, *(inside if isinstance(element, Choice) else ())}
            if found:
                return found | rest if way.alias or getattr(element, "alias", "") else found
    return set()


@dataclass(frozen=True)
class Accepted:
    """The first rows of a reading that reach the end, in the order of the input."""

    #: Their ids.
    ids: list[str]
    #: Whether there are as many as were wanted.
    enough: bool
    #: Node, route or loop -> how often the main flow was expanded up to it.
    expansions: Mapping[str, int]

    @classmethod
    def of(cls, meaning: Meaning, elements: Sequence[Element], wanted: int) -> Accepted:
        ids = sorted(meaning.finished, key=_order)
        return cls(ids[:wanted], len(ids) >= wanted, dict(_expansions(elements)))

    def has(self, node: str, row_id: str) -> bool:
        """Whether a row of a node is no surplus: it is not behind the last accepted one."""
        depth = self.expansions.get(node, 0)
        return not self.enough or _order(row_id)[: depth + 1] <= _order(self.ids[-1])


def _order(row_id: str) -> list[int]:
    return [int(part) for part in row_id.split("~")]


def _expansions(elements: Sequence[Element]) -> Iterator[tuple[str, int]]:
    depth = 0
    for element in elements:
        depth += isinstance(element, Node) and element.kind == "many"
        inside = [*nodes_of([element]), *choices_of([element])]
        yield from ((each.id, depth) for each in inside)

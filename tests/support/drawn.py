"""Random chains: first as plain data, which can be read, cut down and interpreted; then as a Chain."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from zlib import crc32

from pydantic import BaseModel

from chainette import BatchApply, Branch, Loop, Route, Step, apply
from chainette.core import branch as core

__all__ = [
    "Choice",
    "Drawing",
    "Element",
    "Item",
    "Kind",
    "Node",
    "Refused",
    "Repeat",
    "Verdict",
    "Way",
    "built",
    "choices_of",
    "chosen_of",
    "judged",
    "nodes_of",
    "value_of",
    "way_of",
    "ways_of",
]

Kind = Literal["one", "optional", "many", "back", "batch", "ask", "vote"]


class Item(BaseModel):
    v: int


@dataclass(frozen=True)
class Node:
    """A function, or a step that asks an engine."""

    id: str
    kind: Kind
    salt: int
    #: Of a step: asks per row, and whether its rows are kept to itself.
    attempts: int = 1
    hidden: bool = False

    @property
    def samples(self) -> int:
        """Candidates per row, of a step that chooses among several."""
        return 2 + self.salt % 4

    @property
    def enough(self) -> int:
        return 1 + self.salt % 2

    @property
    def escalates(self) -> bool:
        """Whether a second engine is asked for rows the first gave no good answer for."""
        return self.kind == "ask" and self.salt % 3 == 0


@dataclass(frozen=True)
class Way:
    """One branch of a fork; joined if it has an alias."""

    name: str
    alias: str
    steps: Sequence[Element]


@dataclass(frozen=True)
class Choice:
    """A route: each row takes one way, or passes by; joined if it has an alias.

    With `on`, a function gives the number of the way; else each way but a `default` has its own condition.
    """

    id: str
    alias: str
    salt: int
    on: bool
    #: Whether the last way is for rows that fit no case.
    default: bool
    ways: tuple[Way, ...]


@dataclass(frozen=True)
class Repeat:
    """A loop whose alias holds the value of its last step; joined if it has an alias."""

    id: str
    alias: str
    salt: int
    rounds: int
    ending: Literal["reject", "keep", "best"]
    steps: tuple[Element, ...]

    def ends(self, item: Item, number: int) -> bool:
        """Whether a row is done after a round."""
        return (item.v + number * self.salt) % 3 == 0

    def score(self, item: Item) -> int:
        return (item.v * 5 + self.salt) % 4


Element = Node | tuple[Way, ...] | Choice | Repeat


class Refused(ValueError):
    """A function refuses its row."""


def value_of(node: Node, item: Item, history: Mapping[str, Any]) -> list[int]:
    """The numbers a function makes of an item; no number drops it.

    Raises:
        Refused: the row is rejected.
    """
    if (item.v * 31 + node.salt) % 7 == 0:
        raise Refused("no")
    v = (item.v * 17 + node.salt) % 1000
    match node.kind:
        case "optional" | "batch":
            return [v] if v % 3 else []
        case "many":
            return [v + index for index in range(v % 4)]
        case "back":
            return [(v + _seen(history)) % 1000]
        case _:
            return [v]


def _seen(history: Mapping[str, Any]) -> int:
    """A number that depends on every value of a history, and on those of the round before."""
    own = {name: value for name, value in history.items() if not name.endswith("_reasoning")}
    before = vars(own.pop("previous")) if "previous" in own else {}
    known = {name: value for name, value in before.items() if value is not None and not name.endswith("_reasoning")}
    return sum(len(str(value)) for value in own.values()) + sum(2 * len(str(value)) for value in known.values())


def way_of(choice: Choice, item: Item) -> str | None:
    """The name of the way that a row takes; None if it passes by.

    Raises:
        Refused: no case fits, or the function refuses the row.
    """
    drawn = (item.v * 13 + choice.salt) % 23
    if drawn == 0:
        raise Refused("no")
    cases = len(choice.ways) - choice.default
    number = drawn % (cases + 1)
    if number < cases:
        return choice.ways[number].name
    if choice.default:
        return "default"
    if choice.on:
        raise Refused("no_case")
    return None


@dataclass(frozen=True)
class Verdict:
    """An answer of an engine, and the reason why it cannot be used."""

    text: str
    reason: str = ""

    @property
    def may_be_asked_again(self) -> bool:
        return self.reason in ("not_json", "invalid_output")


def judged(node: str, prompt: str, ask: int) -> Verdict:
    """The answer to one ask. It follows from the question alone, so that no schedule changes it."""
    drawn = crc32(f"{node} {prompt} {ask}".encode())
    match drawn % 12:
        case 0:
            return Verdict("I would rather not say.", "not_json")
        case 1:
            return Verdict('{"v": "many"}', "invalid_output")
        case 2:
            return Verdict('{"v": 1', "truncated")
        case 3 if drawn % 5:
            return Verdict("", "refused")
        case _:
            return Verdict(f'{{"v": {drawn % 1000}}}')


def chosen_of(node: Node, numbers: Sequence[int]) -> int | None:
    """The candidate a step's own function chooses; None drops the row."""
    return None if sum(numbers) % 5 == 0 else max(numbers)


def prompt_of(node: Node, item: Item, history: Mapping[str, Any]) -> str:
    """The question of a step, as its template renders it."""
    where = f" in round {history['round']}" if "round" in history else ""
    return f"{node.id}: {item.v} of {history['chain_input'].v}{where}"


class Drawing:
    """Draws the elements of a chain; with steps among them if `asks`, with routes if `routes`, and with steps that choose
    among candidates if `votes`."""

    def __init__(self, seed: int, *, asks: bool = False, routes: bool = False, votes: bool = False) -> None:
        self.rng = random.Random(seed)
        self.asks = asks
        self.routes = routes
        self.votes = votes
        self.names = 0

    def name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def elements(self, depth: int, longest: int) -> list[Element]:
        return [self.element(depth) for _ in range(self.rng.randint(1, longest))]

    def element(self, depth: int) -> Element:
        if self.routes and depth < 2 and self.rng.random() < 0.35:
            return self.choice(depth) if self.rng.random() < 0.6 else self.repeat(depth)
        if depth < 2 and self.rng.random() < 0.4:
            return tuple(self.way(depth) for _ in range(self.rng.randint(1, 3)))
        if self.votes and self.rng.random() < 0.4:
            return Node(self.name("n"), "vote", self.rng.randrange(1000), self.rng.randint(1, 2))
        if self.asks and self.rng.random() < 0.5:
            return Node(self.name("n"), "ask", self.rng.randrange(1000), self.rng.randint(1, 3), self.rng.random() < 0.2)
        kinds: list[Kind] = ["one", "one", "optional", "many", "back", "batch"]
        return Node(self.name("n"), self.rng.choice(kinds), self.rng.randrange(1000))

    def way(self, depth: int) -> Way:
        name, steps = self.name("b"), self.elements(depth + 1, 2)
        return Way(name, self.name("j") if self.rng.random() < 0.6 else "", steps)

    def choice(self, depth: int) -> Choice:
        name, on, default = self.name("r"), self.rng.random() < 0.5, self.rng.random() < 0.5
        ways = [
            Way(str(number) if on else f"w{number}", "", self.elements(depth + 1, 2) if self.rng.random() < 0.85 else [])
            for number in range(self.rng.randint(1, 3) + default)
        ]
        if default:
            ways[-1] = Way("default", "", ways[-1].steps)
        alias = self.name("j") if self.rng.random() < 0.7 else ""
        return Choice(name, alias, self.rng.randrange(1000), on, default, tuple(ways))

    def repeat(self, depth: int) -> Repeat:
        """A loop: no step on its own line expands rows."""
        name, alias = self.name("r"), self.name("j") if self.rng.random() < 0.7 else ""
        drawn = self.elements(depth + 1, 2)
        kinds: list[Kind] = ["one", "optional", "back"]
        last = Node(self.name("n"), self.rng.choice(kinds), self.rng.randrange(1000))
        steps = [element for element in drawn if not (isinstance(element, Node) and element.kind == "many")]
        ending: Any = self.rng.choice(("reject", "keep", "best"))
        return Repeat(name, alias, self.rng.randrange(1, 1000), self.rng.randint(1, 4), ending, (*steps, last))


def ways_of(element: tuple[Way, ...] | Choice | Repeat) -> tuple[Way, ...]:
    """The elements inside an element; a loop counts as one branch."""
    if isinstance(element, Repeat):
        return (Way(element.id, element.alias, element.steps),)
    return element.ways if isinstance(element, Choice) else element


def choices_of(elements: Sequence[Element]) -> list[Choice | Repeat]:
    """Every route and loop, in the order of the chain."""
    found: list[Choice | Repeat] = []
    for element in elements:
        if not isinstance(element, Node):
            found += [element] if isinstance(element, Choice | Repeat) else []
            found += [choice for way in ways_of(element) for choice in choices_of(way.steps)]
    return found


def nodes_of(elements: Sequence[Element]) -> list[Node]:
    """Every node, in the order of the chain."""
    found: list[Node] = []
    for element in elements:
        found += [element] if isinstance(element, Node) else [node for way in ways_of(element) for node in nodes_of(way.steps)]
    return found


def built(elements: Sequence[Element], engines: Sequence[str] = (), call: Callable[[Node, Item], object] = lambda *_: 0) -> Any:
    """The elements as `Chain(steps=...)` takes them. `call` is told of every call of a function."""
    return _Builder(engines, call).elements(elements)


@dataclass(frozen=True)
class _Builder:
    engines: Sequence[str]
    call: Callable[[Node, Item], object]
    #: Whether the elements are inside a loop.
    looped: bool = False

    def elements(self, elements: Sequence[Element]) -> Any:
        return [self.element(element) for element in elements]

    def element(self, element: Element) -> Any:
        match element:
            case Node(kind="ask" | "vote"):
                return _step(element, self.engines, " in round {{ round }}" if self.looped else "")
            case Node():
                return _function(element, self.call)
            case Repeat():
                return _loop(element, replace(self, looped=True).elements(element.steps))
            case Choice():
                return _route(element, [self.elements(way.steps) for way in element.ways])
            case _:
                return [_branch(way, self.elements(way.steps)) for way in element]


def _route(choice: Choice, sequences: list[Any]) -> Route:
    numbers = range(len(choice.ways) - choice.default)

    def on(item: Item) -> Any:
        way = way_of(choice, item) if choice.default else _even_outside(choice, item)
        return next((number for number in numbers if choice.ways[number].name == way), len(numbers))

    on.__annotations__["return"] = Literal[tuple(numbers)] if not choice.default else int

    def condition(number: int) -> Callable[[Item], bool]:
        return lambda item: way_of(choice, item) == choice.ways[number].name

    names: list[Any] = [number if choice.on else choice.ways[number].name for number in numbers]
    cases = dict(zip(names, sequences, strict=False))
    default = sequences[-1] if choice.default else None
    chosen = {"on": on} if choice.on else {"when": {choice.ways[number].name: condition(number) for number in numbers}}
    route = Route(choice.id, cases=cases, default=default, **chosen)
    return route.join(choice.alias) if choice.alias else route


def _loop(repeat: Repeat, steps: list[Any]) -> Loop:
    def until(item: Item, history: Mapping[str, Any]) -> bool:
        return repeat.ends(item, history["round"])

    best = repeat.score if repeat.ending == "best" else None
    loop = Loop(
        repeat.id,
        steps=steps,
        until=until,
        max_rounds=repeat.rounds,
        on_exhausted=repeat.ending,
        best=best,
        result=steps[-1].id,
    )
    return loop.join(repeat.alias) if repeat.alias else loop


def _even_outside(choice: Choice, item: Item) -> str | None:
    """The way; None for a value outside the cases, which its function gives although it declares a Literal."""
    try:
        return way_of(choice, item)
    except Refused as refused:
        if str(refused) == "no_case":
            return None
        raise


def _branch(way: Way, steps: list[core.Element]) -> Branch:
    branch = Branch(way.name, steps)
    return branch.join(way.alias) if way.alias else branch


def _step(node: Node, engines: Sequence[str], more: str) -> Step[Any, Any]:
    return Step(
        id=node.id,
        input_model=Item,
        output_model=Item,
        engine_name=engines[node.salt % len(engines)],
        escalate=[engines[(node.salt + 1) % len(engines)]] if node.escalates else [],
        user_prompt=node.id + ": {{ input.v }} of {{ chain_input.v }}" + more,
        max_attempts=node.attempts,
        yield_output=not node.hidden,
        **_choosing(node),
    )


def _choosing(node: Node) -> dict[str, Any]:
    if node.kind != "vote":
        return {}

    def chosen(candidates: list[Item]) -> Item | None:
        number = chosen_of(node, [candidate.v for candidate in candidates])
        return None if number is None else Item(v=number)

    return {"n": node.samples, "min_valid": node.enough, "pick": "majority" if node.salt % 3 else chosen}


def _function(node: Node, call: Callable[[Node, Item], object]) -> Any:
    def numbers(item: Item, history: Mapping[str, Any]) -> list[Item]:
        call(node, item)
        return [Item(v=number) for number in value_of(node, item, history)]

    def one(item: Item) -> Item:
        return numbers(item, {})[0]

    def optional(item: Item) -> Item | None:
        return next(iter(numbers(item, {})), None)

    def many(item: Item) -> list[Item]:
        return numbers(item, {})

    def back(item: Item, history: Mapping[str, Any]) -> Item:
        return numbers(item, history)[0]

    def batch(items: list[Item]) -> list[Item | None]:
        return [optional(item) for item in items]

    if node.kind == "batch":
        return BatchApply(batch, id=node.id)
    made: dict[str, Callable[..., Any]] = {"one": one, "optional": optional, "many": many, "back": back}
    return apply(made[node.kind], id=node.id)

"""Makes a failing scenario smaller while it still fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from tests.simulation.scenario import Scenario
from tests.support.drawn import Choice, Element, Node, Repeat, Way, choices_of, nodes_of, ways_of

__all__ = ["shrunk"]

T = TypeVar("T")

#: Scenarios that are tried.
_TRIES = 300


def shrunk(scenario: Scenario, fails: Callable[[Scenario], bool]) -> Scenario:
    """The smallest scenario found by leaving out one thing after the other."""
    tries = 0
    while True:
        for smaller in _smaller(scenario):
            tries += 1
            if tries > _TRIES:
                return scenario
            if fails(smaller):
                scenario = smaller
                break
        else:
            return scenario


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    for faults in _without_one(scenario.faults):
        yield replace(scenario, faults=faults)
    for then in _without_one(scenario.then):
        yield replace(scenario, then=then)
    if scenario.accept:
        yield replace(scenario, accept=scenario.accept[1:])
    for numbers in _without_one(scenario.numbers):
        if numbers:
            yield replace(scenario, numbers=numbers)
    for elements in _fewer(scenario.elements):
        names = {element.id for element in (*nodes_of(elements), *choices_of(elements))}
        if names and all(operation.partition(" ")[2] in {"", *names} for operation in scenario.then):
            yield replace(scenario, elements=elements)
    if scenario.workers > 1:
        yield replace(scenario, workers=1)
    if scenario.format != "jsonl":
        yield replace(scenario, format="jsonl")


def _without_one(values: Sequence[T]) -> Iterator[tuple[T, ...]]:
    for place in range(len(values)):
        yield (*values[:place], *values[place + 1 :])


def _fewer(elements: Sequence[Element]) -> Iterator[list[Element]]:
    """The elements without one of them, or with a smaller one in its place."""
    for place, element in enumerate(elements):
        before, after = list(elements[:place]), list(elements[place + 1 :])
        if before or after:
            yield [*before, *after]
        if isinstance(element, Node):
            continue
        if isinstance(element, Repeat):
            yield from ([*before, replace(element, rounds=rounds), *after] for rounds in range(1, element.rounds))
            yield from ([*before, replace(element, steps=tuple(steps)), *after] for steps in _fewer(element.steps))
            continue
        if not isinstance(element, Choice):
            yield from ([*before, ways, *after] for ways in _without_one(element) if ways)
        for number, way in enumerate(ways_of(element)):
            for steps in _fewer(way.steps):
                ways = (*ways_of(element)[:number], Way(way.name, way.alias, steps), *ways_of(element)[number + 1 :])
                yield [*before, replace(element, ways=ways) if isinstance(element, Choice) else ways, *after]

"""From the rows of steps to requests, tokens, time and money, by the numbers of earlier runs and samples for each step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from chainette.core.answer_length import longest_answer
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind, PlanNode
from chainette.core.prompt import prompter
from chainette.core.step import Step
from chainette.engine.base import Engine
from chainette.engine.price import Rate
from chainette.io.rundir.chain_changes import Changes, changes_between
from chainette.io.rundir.graph import Graph
from chainette.io.rundir.run_state import RunState
from chainette.records import Usage, declared_of
from chainette.run.forecast import Forecast, Prompts, Repeats
from chainette.run.session import rates_of

__all__ = ["EarlierRuns", "StepEstimate", "StepEstimates"]


class StepEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of a step to one engine."""

    step: str
    engine: str
    #: Rows that are asked.
    rows: float
    #: Of these, rows nobody has counted: they follow from answers that are not known yet.
    guessed: float = 0.0
    #: Whether no such rows can come, so that `rows` is certain.
    exact: bool = True
    #: Rows whose answers are taken from earlier runs.
    reused: int = 0
    #: Rows that take the answers of others, since their requests are equal; and rows that would, with `dedupe`.
    shared: float = 0.0
    repeated: float = 0.0
    requests: float
    #: None if nobody has counted them.
    prompt_tokens: float | None
    #: How the prompts were counted: "tokenizer" (the engine's own), "answers" (of the sample or the earlier run), "bytes",
    #: or "" if they were not.
    counted_by: str = ""
    completion_tokens: float
    usd: float
    gpu_hours: float
    #: Seconds with the engine full, if its answers take as long as those that are known; None if none are.
    seconds: float | None
    #: Why its rows are asked again although there are some; "" if there are none.
    why: str = ""


@dataclass(frozen=True)
class EarlierRuns:
    """Runs from which the numbers of a step follow: the first one that has it."""

    states: tuple[RunState, ...]
    #: For each of them, its changes.
    changes: tuple[Changes | None, ...]

    @classmethod
    def of(cls, states: Sequence[RunState], graph: Graph) -> EarlierRuns:
        return cls(tuple(states), tuple(changes_between(state.graph, graph) for state in states))

    def share(self, node: str, way: str | None) -> float:
        """The rows that leave a node, or take one of its ways, for each row that comes; 1 if unknown."""
        for state in self.states:
            counts = state.nodes.get(declared_of(node))
            if counts is not None and counts.taken:
                return (counts.given if way is None else counts.ways.get(way, 0)) / counts.taken
        return 1.0

    def shared(self, node: PlanNode) -> float:
        """The rows that take the answer of another, for each row that comes to a step; 0 if unknown, and at its later engines,
        whose estimate has only rows that are asked."""
        if node.rank or (found := self.billed(node.id)) is None:
            return 0.0
        counts = found[0].node(node.id)
        return counts.engines.get(node.engine, counts).shared / (counts.taken - counts.reused)

    def billed(self, step: str) -> tuple[RunState, bool] | None:
        """The first run in which a step was asked, and whether the step itself has changed since."""
        for state, changes in zip(self.states, self.changes, strict=True):
            counts = state.nodes.get(step)
            if counts is not None and counts.taken > counts.reused + counts.shared and counts.usage.requests:
                return state, changes is not None and step in changes.by_node
        return None


@dataclass
class _Arrivals:
    """Rows that come to a node beyond those that are known: they follow from answers nobody has yet."""

    graph: Graph
    found: Forecast
    known: EarlierRuns
    _rows: dict[str, float] = field(default_factory=dict)
    _may_come: dict[str, bool] = field(default_factory=dict)

    def may_come(self, name: str) -> bool:
        """Whether there can be such rows."""
        if name not in self._may_come:
            source = self.graph.source(name)
            self._may_come[name] = source is not None and (self.found.waiting[source] > 0 or self.may_come(source))
        return self._may_come[name]

    def at(self, name: str) -> float:
        if name not in self._rows:
            source = self.graph.source(name)
            behind = 0.0 if source is None else self._behind(source, self.graph.way_to(name))
            self._rows[name] = behind * self.graph.copies(name)
        return self._rows[name]

    def _behind(self, name: str, way: str | None) -> float:
        return (self.found.waiting[name] + self.at(name)) * self.known.share(name, way)


@dataclass
class StepEstimates:
    """From rows to requests, tokens, time and money."""

    plan: Plan
    graph: Graph
    found: Forecast
    known: EarlierRuns
    engines: Mapping[str, Engine]
    #: Of engines that are open, or were.
    capacities: Mapping[str, int]
    rates: Mapping[str, Rate] = field(init=False)

    def __post_init__(self) -> None:
        self.rates = rates_of(self.plan)

    async def each(self, why: Callable[[str], str]) -> AsyncIterator[StepEstimate]:
        """The steps in their order, each with its engines; `why` says why a step is asked again."""
        arrivals = _Arrivals(self.graph, self.found, self.known)
        for node in self.plan.steps:
            if node.kind is not NodeKind.STEP:
                continue
            rounds = [one for one in self.plan.nodes.values() if declared_of(one.id) == node.id]
            guessed = sum(arrivals.at(one.id) for one in rounds)
            first = 0.0
            for rank in range(len(node.engines)):
                stations = [one.at(rank).station for one in rounds]
                asked = [found for station in stations if (found := self.found.asked.get(station))]
                repeats = [self.found.repeats[station] for station in stations if station in self.found.repeats]
                behind = guessed if rank == 0 else first * self._escalated(node.at(rank))
                step = await self._step(node.at(rank), asked, behind, repeats)
                first = first or step.rows
                if rank == 0 or step.rows:
                    exact = rank == 0 and not any(arrivals.may_come(one.id) for one in rounds)
                    reused, shared = (self.found.reused[node.id], self.found.shared[node.id]) if rank == 0 else (0, 0)
                    told = why(node.id) if step.rows else ""
                    yield msgspec.structs.replace(step, exact=exact, reused=reused, shared=step.shared + shared, why=told)

    def _escalated(self, node: PlanNode) -> float:
        """The rows that come to a later engine of a step, for each row that comes to the step."""
        billed = self.known.billed(node.id)
        if billed is None:
            return 0.0
        counts = billed[0].node(node.id)
        return _answers(billed[0], node)[0] / (counts.taken - counts.reused - counts.shared)

    async def _step(self, node: PlanNode, asked: Sequence[Prompts], guessed: float, repeats: Sequence[Repeats]) -> StepEstimate:
        """The requests of a step to one of its engines, for the rows that wait there and others."""
        name, exact, billed = node.engine, sum(prompts.count for prompts in asked), self.known.billed(node.id)
        known, again = sum(one.asked for one in repeats), sum(one.count for one in repeats)
        seen = sum(one.rows for one in repeats)
        repeated = known + guessed * (again / seen if seen else self.known.shared(node))
        shared = repeated if node.dedupe else 0.0
        if node.dedupe:
            exact, guessed = exact - known, guessed - (repeated - known)
        rows = exact + guessed
        usage, per_row, changed = Usage(), 1.0, False
        if billed is not None:
            answers, usage = _answers(billed[0], node)
            per_row, changed = 1 / max(1, answers), billed[1]
        share = rows * per_row
        requests = usage.requests * share if usage.requests else rows
        prompts, counted_by = await self._prompts(node, asked, usage, requests, changed=changed, rather=guessed > exact)
        answer = usage.completion_tokens * share if usage.requests else rows * _largest(self.plan, node)
        width = self.capacities.get(name) or self.engines[name].capacity
        seconds = usage.seconds * share / width if usage.requests else None if rows else 0.0
        cached = usage.cached_tokens * (prompts or 0) / usage.prompt_tokens if usage.prompt_tokens else 0.0
        busy = seconds or usage.busy * share
        spent = Usage(round(requests), round(prompts or 0), round(answer), cached_tokens=round(cached), busy=busy)
        cost = self.rates.get(name, Rate()).cost(spent)
        return StepEstimate(
            step=node.id,
            engine=name,
            rows=rows,
            guessed=guessed,
            shared=shared,
            repeated=repeated - shared,
            requests=requests,
            prompt_tokens=prompts,
            counted_by=counted_by,
            completion_tokens=answer,
            usd=cost.usd,
            gpu_hours=cost.gpu_hours,
            seconds=seconds,
        )

    async def _prompts(
        self, node: PlanNode, asked: Sequence[Prompts], usage: Usage, requests: float, *, changed: bool, rather: bool
    ) -> tuple[float | None, str]:
        """The tokens of all prompts, and how they were counted. With `rather`, the answers of an earlier run to the same prompt
        are preferred."""
        count, answered = sum(prompts.count for prompts in asked), None
        if usage.requests:
            answered = usage.prompt_tokens * requests / usage.requests, "answers"
            if not count or (rather and not changed):
                return answered
        if not count:
            return (None, "") if requests else (0.0, "")
        counted = [await prompts.tokens(self.engines[node.engine]) for prompts in asked]
        if None not in counted:
            return sum(tokens or 0.0 for tokens in counted) * requests / count, "tokenizer"
        if answered is not None and not changed:
            return answered
        return sum(prompts.estimated for prompts in asked) * requests / count, "bytes"


def _answers(state: RunState, node: PlanNode) -> tuple[int, Usage]:
    """The rows a step's engine was asked for in an earlier run, and their cost."""
    counts = state.node(node.id)
    asked = counts.engines.get(node.engine)
    if asked is not None:
        return asked.given + asked.rejected + asked.escalated - asked.shared, asked.usage
    if counts.engines or node.rank:
        return 0, Usage()
    return counts.taken - counts.reused - counts.shared, counts.usage


def _largest(plan: Plan, node: PlanNode) -> int:
    """The tokens of the longest answer: `max_tokens`, or fewer if its model bounds it, at a character for each token. Thoughts
    are bounded by nothing else."""
    assert isinstance(node.node, Step)
    most = node.node.sampling.max_tokens
    if getattr(plan.engines[node.engine].options, "reasoning_parser", None):
        return most
    length = longest_answer(prompter(plan, node).schema)
    return most if length is None else min(most, length)

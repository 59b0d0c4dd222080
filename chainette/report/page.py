"""Renders the report of a run as one HTML file that runs no code and fetches nothing.

The template escapes all text from rows and models, including control characters. The page's Content-Security-Policy also
forbids scripts and requests.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import msgspec

from chainette.engine.price import Price, Rate
from chainette.io.rundir.costs import Bill
from chainette.io.rundir.metadata import metadata_of
from chainette.io.rundir.statistics import COMPLETION, PROMPT, Figures
from chainette.report.charts import COLOURS, Series, Span, render_lines, render_spans
from chainette.report.drawing import draw
from chainette.utils.plurals import counted
from chainette.utils.terminal_text import visible

__all__ = ["Chart", "Rejects", "StepLine", "render_page"]

#: The width of charts in pixels, on a desktop and on a phone.
_WIDE, _NARROW = 960, 270
_COUNTS = ("in", "out", "rejected", "dropped", "stopped", "expanded")
_AMOUNTS = (
    *_COUNTS,
    "surplus",
    "invalid_candidates",
    "reused",
    "shared",
    "asked_again",
    "discarded",
    "prompt_tokens",
    "answer_tokens",
)
#: The most characters shown of an answer or a message.
_RAW, _MESSAGE = 1500, 600


@dataclass(frozen=True)
class StepLine:
    """One line in the table of steps."""

    name: str
    title: str
    #: Engine -> the usage of its answers.
    engines: Mapping[str, Mapping[str, Any]]
    counts: Mapping[str, Any]
    #: Name of a column -> its number.
    amounts: Mapping[str, int]
    #: The share of all seconds inside engines, 0 to 1.
    share: float = 0.0
    #: None if an engine has no price.
    cost: float | None = None

    def unpriced(self, priced: Collection[str]) -> list[str]:
        """The engines without a price, if other engines have one."""
        used = (name for name, usage in self.engines.items() if usage.get("prompt_tokens"))
        return [name for name in used if priced and name not in priced]

    @property
    def engine(self) -> str:
        """The engine; if the step may ask several engines, each with the number of rows it answered."""
        by_engine = self.counts.get("engines")
        if by_engine is None:
            return ", ".join(self.engines)
        return ", ".join(f"{name} ({counted(found['out'], 'row')})" for name, found in by_engine.items())


@dataclass(frozen=True)
class Chart:
    """One chart in two widths, as SVG text."""

    title: str
    wide: str
    narrow: str
    #: (colour number, name)
    legend: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Rejects:
    """The rows that a step rejected for one reason."""

    step: str
    reason: str
    rows: int
    #: The share of all rejected rows, 0 to 1.
    share: float
    examples: list[dict[str, Any]]


def render_page(
    figures: Figures,
    examples: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    prices: Mapping[str, Price] = MappingProxyType({}),
    *,
    directory: str,
    working: bool,
    written_at: str,
    plan: str = "",
) -> str:
    """The whole HTML page.

    `prices` replace those of the run. `working` says that a process writes to the directory now; `plan` is a sentence that
    compares the run with its plan.

    Raises:
        RunError: the package that draws charts is not installed.
    """
    import jinja2
    from markupsafe import Markup

    loader = jinja2.PackageLoader("chainette.report", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_finalized
    )
    environment.filters |= {
        "count": _count,
        "counted": counted,
        "short": _short,
        "duration": _duration,
        "seconds": _seconds,
        "money": _money,
    }
    environment.filters |= {"percent": _percent, "when": _when}
    metadata, bill = metadata_of(figures.state), _bill(figures, prices)
    priced = {name for name, rate in bill.rates.items() if rate.price is not None}
    steps = list(_steps(figures, metadata, bill, priced))
    return environment.get_template("page.html.j2").render(
        figures=figures,
        metadata=metadata,
        standing=_standing(metadata["status"], working=working),
        wide_drawing=draw(figures.state, lean=0.5),
        narrow_drawing=draw(figures.state, lean=0),
        steps=steps,
        columns=_columns(steps),
        costs=[step.cost for step in steps if step.cost is not None],
        gpu_hours=bill.cost().gpu_hours,
        unpriced=sorted({name for step in steps for name in step.unpriced(priced)}),
        slowest=max(steps, key=lambda step: step.share, default=None),
        charts=list(_charts(figures)),
        rejects=list(_rejects(figures, examples)),
        directory=directory,
        plan=plan,
        written_at=written_at,
        style=Markup(files("chainette.report").joinpath("style.css").read_text("utf-8")),  # noqa: S704 - our own file
        svg=Markup,
    )


def _finalized(value: Any) -> Any:
    return visible(value) if type(value) is str else value  # Markup is a subclass


def _standing(status: str, *, working: bool) -> str:
    return "killed" if status == "running" and not working else status


# -- numbers


def _bill(figures: Figures, prices: Mapping[str, Price]) -> Bill:
    """The bill of the run, with these prices in place of its own."""
    bill = figures.state.bill
    return bill.at({name: msgspec.structs.replace(bill.rates.get(name, Rate()), price=price) for name, price in prices.items()})


def _steps(figures: Figures, metadata: Mapping[str, Any], bill: Bill, priced: Collection[str]) -> Iterator[StepLine]:
    engines = {node.id: node.engine for node in figures.state.graph.steps}
    joins = {fork.id: f"join of {', '.join(fork.aliases)}" for fork in figures.state.graph.forks}
    whole = metadata["usage"]["seconds"] or 1.0
    for name, counts in metadata["steps"].items():
        engine, usage = engines.get(name, ""), counts.get("usage")
        by_engine = counts.get("engines", {engine: {"usage": usage or {}}})
        asked = {other: found["usage"] for other, found in by_engine.items()}
        amounts = dict.fromkeys(_AMOUNTS, 0) | {column: counts[column] for column in _COUNTS}
        amounts["reused"] = counts.get("reused", 0)
        amounts["shared"] = counts.get("shared", 0)
        amounts["invalid_candidates"] = counts.get("invalid_candidates", 0)
        amounts["surplus"] = counts.get("surplus", {}).get("in", 0)
        line = StepLine(name, joins.get(name, name), asked, counts, amounts)
        if usage is not None:
            tokens = {"prompt_tokens": usage["prompt_tokens"], "answer_tokens": usage["completion_tokens"]}
            cost = bill.cost([name]).usd if asked.keys() <= {*priced} else None
            amounts |= {"asked_again": counts["asked_again"], **tokens}
            amounts["discarded"] = counts.get("discarded", {}).get("requests", 0)
            line = replace(line, amounts=amounts, share=usage["seconds"] / whole, cost=cost)
        yield line


def _columns(steps: Sequence[StepLine]) -> list[str]:
    """The columns of the table: rows in, out and rejected, then further counts."""
    always = {"in", "out", "rejected"}
    return [name for name in _AMOUNTS if name in always or any(step.amounts[name] for step in steps)]


def _rejects(figures: Figures, examples: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> Iterator[Rejects]:
    groups = [
        (step, reason, rows) for step, counts in figures.state.nodes.items() for reason, rows in counts.reasons.items() if rows
    ]
    whole = sum(rows for _, _, rows in groups)
    for step, reason, rows in sorted(groups, key=lambda group: (-group[2], group[0], group[1])):
        shown = [_example(row) for row in examples.get((step, reason), ())]
        yield Rejects(step, reason, rows, rows / whole, shown)


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    raw = row["raw"] or ""
    return {
        "row_id": row["row_id"],
        "line": int(row["line"]),
        "attempts": int(row["attempts"]),
        "message": _cut(row["message"], _MESSAGE),
        "raw": _cut(raw, _RAW),
    }


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"


# -- charts


def _charts(figures: Figures) -> Iterator[Chart]:
    """Charts of throughput per node, tokens, and seconds per request; those without data are left out."""
    rules, timeline = figures.resumes(), figures.timeline
    nodes = [node.id for node in figures.state.graph.steps if any(node.id in found for found in timeline.bins)]
    if nodes:
        title = "Rows per second, by step"
        if len(nodes) > COLOURS:
            nodes, title = nodes[-COLOURS:], f"Rows per second, the last {COLOURS} steps"
        rows = [Series(visible(name), timeline.rates(name)) for name in nodes]
        yield _chart(title, lambda width: render_lines(rows, rules, width=width), nodes)
    if any(PROMPT in found or COMPLETION in found for found in timeline.bins):
        tokens = [Series(name, timeline.rates(name)) for name in (PROMPT, COMPLETION)]
        names = [PROMPT, COMPLETION]
        yield _chart("Tokens per second", lambda width: render_lines(tokens, rules, width=width, stacked=True), names)
    if figures.latencies:
        order = [node.id for node in figures.state.graph.steps if node.id in figures.latencies]
        spans = [Span(visible(name), found.median, found.p95, found.slowest) for name, found in _in_order(figures, order)]
        yield _chart("Seconds per request: median, 95th percentile, slowest", lambda width: render_spans(spans, width=width))


def _in_order(figures: Figures, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        yield name, figures.latencies[name]


def _chart(title: str, render: Callable[[int], str], names: Sequence[str] = ()) -> Chart:
    return Chart(title, render(_WIDE), render(_NARROW), [(number + 1, name) for number, name in enumerate(names)])


# -- words


def _short(number: float) -> str:
    """A number in a few characters: 0.42, 994, 12.3k, 1.2M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit * 10 or (number >= limit and unit != "k"):
            return f"{number / limit:.1f}{unit}"
    return f"{number:,.0f}" if number >= 100 or number == round(number) else f"{number:.3g}"


def _duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def _count(number: int) -> str:
    return f"{number:,}"


def _seconds(number: float) -> str:
    return f"{number * 1000:.3g} ms" if number < 1 else f"{number:.3g} s"


def _money(number: float) -> str:
    return f"{number:,.2f}" if number >= 0.01 or number == 0 else f"{number:.2g}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{share:.1%}" if share >= 0.00095 else "<0.1%"


def _when(at: str) -> str:
    return datetime.fromisoformat(at).strftime("%d %b %Y, %H:%M UTC") if at else ""

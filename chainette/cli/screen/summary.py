"""The result or the state of a run as a table and a few lines; the same for `run`, `resume` and `status`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from chainette.cli.printing import command_line
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import Status
from chainette.records import CHAIN_INPUT
from chainette.screen.numbers import amount, clock, dollars
from chainette.utils.plurals import counted

__all__ = [
    "accept_lines",
    "accounting_line",
    "ahead_line",
    "candidate_lines",
    "cost_line",
    "engine_lines",
    "escalation_lines",
    "next_lines",
    "plan_line",
    "reuse_line",
    "row_name",
    "summary_lines",
    "time_line",
    "token_line",
    "way_lines",
]


def row_name(step: str) -> str:
    """A line of the accounting for people: a fork, `+answer`, counts the rows that came together after it."""
    return f"{step.removeprefix('+')} joined" if "+" in step else step


def ahead_line(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Why the first step of a run that is not finished may have had more rows than the input has given."""
    first = [*metadata["steps"].values()][1:2]
    if metadata["status"] != Status.FINISHED and first and first[0]["in"] > metadata["steps"][CHAIN_INPUT]["out"]:
        size = metadata["settings"]["batch_size"]
        yield f"chain_input counts groups of {counted(size, 'record')} whose rows are all done; the steps are ahead of it"


def accounting_line(metadata: Mapping[str, Any]) -> str:
    """Whether in = out + rejected + dropped + stopped - expanded holds at every step, and down the plan's edges."""
    wrong = "; ".join(metadata.get("imbalances", ()))
    return "accounting: balanced" if metadata["balanced"] else f"accounting: NOT balanced: {wrong}"


def accept_lines(metadata: Mapping[str, Any], directory: str | os.PathLike[str]) -> Iterator[str]:
    """The number of accepted rows among the wanted ones, and the surplus that was computed after the last one."""
    accept = metadata.get("accept")
    if accept is None:
        return
    ended = metadata["status"] == Status.FINISHED and not accept["last"]
    missing = "; the input has no more records" if ended else ""
    last = f", the last is row {accept['last']}" if accept["last"] else ""
    yield f"accepted: {accept['certain']:,} of {counted(accept['wanted'], 'row')}{last}{missing}"
    surplus = {step: counts["surplus"]["in"] for step, counts in metadata["steps"].items() if "surplus" in counts}
    if rows := ", ".join(f"{step} {count:,}" for step, count in surplus.items() if count):
        yield f"surplus after it, which a raised --accept uses ({command_line('resume', directory, '--accept', 'N')}): {rows}"


def way_lines(metadata: Mapping[str, Any]) -> Iterator[str]:
    """One line per route and loop: how many rows took each way, and how many none; or how many rounds began anew."""
    for step, counts in metadata["steps"].items():
        if "ways" in counts:
            ways = counts["ways"] | ({"passed by": counts["passed"]} if counts["passed"] else {})
            yield f"{step}: {', '.join(f'{way} {rows:,}' for way, rows in ways.items())}"


def reuse_line(metadata: Mapping[str, Any]) -> Iterator[str]:
    """The rows that were taken from earlier runs, and those that took the answers of others, by step; nothing if there are
    none."""
    for name, words in (("reused", "reused from earlier runs"), ("shared", "answered with equal requests")):
        rows = [
            f"{counts[name]:,} of {counted(counts['in'], 'row')} of {step}"
            for step, counts in metadata["steps"].items()
            if counts.get(name)
        ]
        if rows:
            yield f"{words}: {', '.join(rows)}"


def escalation_lines(metadata: Mapping[str, Any]) -> Iterator[str]:
    """One line per step that may ask several engines: how many rows each of them answered."""
    for step, counts in metadata["steps"].items():
        if engines := counts.get("engines"):
            answered = (f"{counted(found['out'], 'row')} answered by {name}" for name, found in engines.items())
            yield f"{step}: {', '.join(answered)}"


def candidate_lines(metadata: Mapping[str, Any]) -> Iterator[str]:
    """One line per step whose candidates are not all valid."""
    for step, counts in metadata["steps"].items():
        if invalid := counts.get("invalid_candidates"):
            yield f"{step}: {invalid:,} of {counted(counts['out'], 'candidate')} invalid"


def engine_lines(metadata: Mapping[str, Any]) -> Iterator[str]:
    """One line per engine that was loaded."""
    for name, engine in metadata["engines"].items():
        times = "once" if engine["loads"] == 1 else f"{engine['loads']} times"
        yield f"engine {name}: {engine['backend']}, {engine['model']}, loaded {times} in {engine['load_seconds']:.1f} s"


def token_line(metadata: Mapping[str, Any]) -> Iterator[str]:
    """The tokens and requests, if engines were asked, and whether the answers are simulated."""
    usage = metadata["usage"]
    if usage["requests"]:
        yield (
            f"tokens: {usage['prompt_tokens']:,} in prompts, {usage['completion_tokens']:,} in answers, "
            f"{counted(usage['requests'], 'request')}"
        )
    yield from cost_line(metadata)
    if discarded := metadata.get("discarded"):
        yield (
            f"discarded: {counted(discarded['requests'], 'request')} whose unit was stopped, at least "
            f"{counted(discarded['completion_tokens'], 'token')} in answers; their rows are asked again"
        )
    if metadata["simulated"]:
        engines = metadata["engines"]
        simulated = [name for name, engine in engines.items() if engine.get("simulated")]
        whose = f" of {', '.join(simulated)}" if len(simulated) < len(engines) else ""
        yield f"answers{whose}: simulated, not those of a model"


def cost_line(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Money and GPU-hours so far, in all and by step, if an engine has a price or GPUs; and the budget."""
    if cost := metadata.get("cost"):
        parts = {step: found for step, counts in metadata["steps"].items() if (found := counts.get("cost"))}
        steps = f" ({', '.join(f'{step} {amount(found)}' for step, found in parts.items())})" if len(parts) > 1 else ""
        yield f"cost: {amount(cost)}{steps}"
    if budget := metadata.get("budget"):
        yield f"budget: {', '.join(budget)}"


def plan_line(metadata: Mapping[str, Any], directory: str | os.PathLike[str]) -> Iterator[str]:
    """How far off the plan of a finished run was, if one was made for its directory (`chainette plan -o DIR`)."""
    path = RunDir(Path(directory)).estimate
    if metadata["status"] != Status.FINISHED or not path.exists():
        return
    plan = msgspec.json.decode(path.read_bytes())
    if plan["fingerprint"] != metadata["fingerprint"]:  # it was made for another chain
        return
    usages = [usage for name in ("usage", "taken_back") if (usage := metadata.get(name))]
    asked = sum(usage["requests"] for usage in usages) - plan["asked"]
    share, part = 1.0, ""
    if metadata["records"] < plan["records"] and not plan["resumed"]:
        share = metadata["records"] / plan["records"]
        part = f", {metadata['records']:,} of its {counted(plan['records'], 'record')}"
    planned = share * sum(step["requests"] for step in plan["steps"])
    parts = [f"{counted(planned, 'request')}, and {asked:,} were asked"]
    usd = share * sum(step["usd"] for step in plan["steps"])
    if usd and (cost := metadata.get("cost")):
        spent = cost["usd"] - plan["spent"]["usd"]
        parts.append(f"{dollars(usd)}, and {dollars(spent)} were spent: {_against(spent / usd)}")
    yield f"plan ({plan['basis']}{part}): {'; '.join(parts)}"


def _against(ratio: float) -> str:
    """A sum for one that was planned, in words."""
    if f"{abs(ratio - 1):.1%}" == "0.0%":
        return "as planned"
    return f"{abs(ratio - 1):.1%} {'more' if ratio > 1 else 'less'} than planned"


def summary_lines(metadata: Mapping[str, Any], directory: str | os.PathLike[str]) -> Iterator[str]:
    """The lines below the table at the end of a run."""
    yield from ahead_line(metadata)
    yield accounting_line(metadata)
    yield from accept_lines(metadata, directory)
    yield from way_lines(metadata)
    yield from escalation_lines(metadata)
    yield from reuse_line(metadata)
    yield from candidate_lines(metadata)
    yield from token_line(metadata)
    yield from time_line(metadata)
    yield from plan_line(metadata, directory)
    yield f"directory: {directory}"
    yield from next_lines(metadata, directory)


def next_lines(metadata: Mapping[str, Any], directory: str | os.PathLike[str], *, working: bool = False) -> Iterator[str]:
    """The commands that may come next. `working`: a process writes to the directory."""
    match Status(metadata["status"]):
        case Status.RUNNING if working:
            pass
        case Status.RUNNING | Status.PAUSED:
            yield f"go on: {command_line('resume', directory, *metadata.get('resume_flags', ()))}"
        case Status.CANCELLED | Status.FINISHED:
            pass
    if metadata["rows_rejected"]:
        yield f"rejected rows: {command_line('rejected', directory)}"


def time_line(metadata: Mapping[str, Any]) -> Iterator[str]:
    """The time in which the run was worked on; and, if it paused, the time since it began."""
    if not (metadata["started_at"] and metadata["ended_at"]):
        return
    began, ended = (datetime.fromisoformat(metadata[name]) for name in ("started_at", "ended_at"))
    worked, since = metadata["seconds_at_work"], (ended - began).total_seconds()
    yield f"time: {clock(worked)}" + (f" at work, {clock(since)} since the start" if since > worked + 1 else "")

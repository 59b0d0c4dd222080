"""Live runs and the processes of a fleet as JSON, for `runs --json` and `status --json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.redis.fleet_view import Fleet, LiveRun
from chainette.fleet.redis.stall_reasons import reasons
from chainette.io.rundir.costs import plain_cost

__all__ = ["fleet_json", "run_json"]


def fleet_json(fleet: Fleet) -> dict[str, Any]:
    """Every live process, and every run."""
    members = [_member(name, member) for name, member in sorted(fleet.members.items())]
    return {"members": members, "runs": [run_json(run) for run in fleet.runs]}


def run_json(run: LiveRun) -> dict[str, Any]:
    """A run that is not closed: durable rows by step, queues, and the reasons if it does not move."""
    info, state = run.info, run.state()
    columns = ("in", "out", "rejected", "completion_tokens")
    return {
        "run": info.run,
        "state": info.state,
        "chain": info.chain_ref,
        "epoch": info.epoch,
        "records": state.records,
        "expected": state.expected,
        "roots_admitted": info.cursor,
        "roots": info.total,
        "live_rows": info.live_rows,
        "window": info.window,
        "results_to_write": run.results,
        "steps": {name: dict(zip(columns, counts, strict=True)) for name, counts in info.counts.nodes.items()},
        "queues": [asdict(queue) for queue in run.queues],
        "cost": plain_cost(info.counts.cost),
        "put_aside": info.aside,
        "sealed": bool(info.key),
        "why": reasons(run),
    }


def _member(name: str, member: Member) -> dict[str, Any]:
    return {
        "name": name,
        "kind": member.kind,
        "engines": member.engines,
        "host": member.host,
        "pid": member.pid,
        "started": member.started,
        "metrics": member.metrics,
        "rows_in_flight": member.rows_in_flight,
        "units_in_flight": member.units_in_flight,
        "swaps": member.swaps,
    }

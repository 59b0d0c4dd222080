"""metadata.json: the numbers of a run, from its state alone."""

from __future__ import annotations

from typing import Any

import msgspec

from chainette.engine.budget import limit_words
from chainette.io.rundir.accepted_rows import AcceptedRows
from chainette.io.rundir.accounting import plain_usage
from chainette.io.rundir.costs import plain_cost
from chainette.io.rundir.run_state import RunState, Status
from chainette.records import CHAIN_INPUT, Usage

__all__ = ["metadata_of"]


def metadata_of(state: RunState) -> dict[str, Any]:
    """The content of metadata.json."""
    run = state.run
    order = [CHAIN_INPUT, *(node.id for node in state.graph.steps)]
    order += [node for node in state.nodes if node not in order]
    usage = sum((counts.usage for counts in state.nodes.values()), Usage())
    discarded = sum((counts.discarded for counts in state.nodes.values()), Usage())
    probes = sum((counts.probes for counts in state.nodes.values()), Usage())
    reused = sum(counts.reused for counts in state.nodes.values())
    shared = sum(counts.shared for counts in state.nodes.values())
    imbalances = state.imbalances()
    return {
        "run_id": run.run_id,
        "chain": run.chain,
        "status": state.status,
        "reason": state.reason if state.status is Status.PAUSED else "",
        **({"resume_flags": [*state.flags]} if state.status is Status.PAUSED and state.flags else {}),
        "created_at": run.at,
        "started_at": state.started_at,
        "ended_at": state.ended_at,
        "seconds_at_work": round(state.work_time.total, 3),
        "epoch": state.epoch,
        "seed": run.settings.get("seed", 0),
        "settings": run.settings | {"limit": state.limit} | ({"accept": state.accepted.wanted} if state.accepted else {}),
        "chain_ref": run.chain_ref,
        "parameters": state.parameters,
        "fingerprint": state.graph.fingerprint,
        "git": run.git,
        "versions": run.versions,
        "input": state.input | {"digest": state.input_digest},
        "records": state.records - state.node(CHAIN_INPUT).surplus.taken,
        "rows_finished": state.finished_rows,
        **({"rows_reused": reused} if reused else {}),
        **({"rows_shared": shared} if shared else {}),
        **({"accept": _acceptance(state.accepted)} if state.accepted else {}),
        "rows_rejected": sum(counts.rejected for counts in state.nodes.values()),
        "balanced": not imbalances,
        **({"imbalances": imbalances} if imbalances else {}),
        "simulated": state.engines.simulated,
        "usage": plain_usage(usage),
        **_costs(state),
        **({"discarded": plain_usage(discarded)} if discarded.requests else {}),
        **({"probes": plain_usage(probes)} if probes.requests else {}),
        **({"taken_back": plain_usage(state.taken_back)} if state.taken_back.requests else {}),
        "units_retried": state.retries,
        "engines": state.engines.described,
        "workers": sorted(state.workers),
        "steps": {node: state.node(node).plain() | _cost_of(state, node) for node in order},
    }


def _costs(state: RunState) -> dict[str, Any]:
    """The cost of the run, if any engine has a rate."""
    rates = state.bill.rates
    costs = {"cost": plain_cost(state.bill.cost()), "rates": msgspec.to_builtins(rates)} if rates else {}
    of_run = [text for text in state.budget if "=" not in text]
    of_engines = [f"{name}={text}" for name, limits in state.engine_budgets.items() for text in limit_words(limits)]
    return costs | ({"budget": of_run + of_engines} if of_run or of_engines else {})


def _cost_of(state: RunState, step: str) -> dict[str, Any]:
    """The cost of a step, if one of its engines has a rate."""
    engines = {engine for name, engine, _ in state.bill.lines() if name == step}
    return {"cost": plain_cost(state.bill.cost([step]))} if engines & state.bill.rates.keys() else {}


def _acceptance(accepted: AcceptedRows) -> dict[str, Any]:
    """The numbers of wanted and of accepted rows, and the id of the last accepted row once it is certain."""
    return {"wanted": accepted.wanted, "certain": accepted.certain, "last": accepted.last or None}

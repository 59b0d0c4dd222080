"""A worker that follows the protocol to the letter and gives rows that no shard could hold; messages are not sealed."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from chainette import Chain, RunResult
from chainette.core.compile import compile_chain
from chainette.core.flow import advance, row_of
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.queue_values import Claim
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.records import Outcome, Output, Usage
from tests.integration.test_fleet_trouble import Driven, Site
from tests.support.claims import claim_one
from tests.support.patience import LONG
from tests.support.valkey import Database, connect

pytestmark = pytest.mark.long

FORGED = {
    "parquet": b'{"nome":"a field that the model has not"}',
    "csv": b'{"name":"a","more":1}',
    "jsonl": b'{"name":"one","name":"another"}',
}


def forge(url: str, chain: Chain, value: bytes) -> bool:
    """Claims the first unit of the only run, and commits this value for each of its rows."""
    plan = compile_chain(chain)
    with connect(url) as client:
        queue = FleetQueue(client)
        while not (infos := queue.runs()):
            anyio.from_thread.run(anyio.sleep, 0.02)
        queue.beat("evil", {})
        pairs = [(infos[0].run, RunKeys(infos[0].run, 0).queue("writer", "extract"))]
        while not isinstance(claim := claim_one(queue, "evil", secrets.token_hex(4), pairs), Claim):
            anyio.from_thread.run(anyio.sleep, 0.02)
            queue.beat("evil", {})
        node = plan.stations["extract"]
        outputs = [Output(row.row_id, value, 1) for row in claim.unit.rows]
        rows = [row_of(node, *pair) for pair in zip(claim.unit.rows, outputs, strict=True)]
        outcome = Outcome(outputs, [], [], Usage(), advance(plan, claim.unit, rows, node.next, []))
        committed = queue.commit(claim, "evil", plan, outcome, secrets.token_hex(8), None)
        queue.leave("evil")
        return committed


@pytest.mark.parametrize("format", FORGED)
def test_rows_that_no_shard_could_hold_are_put_aside_and_computed_again(
    tmp_path: Path, database: Database, format: str
) -> None:
    database.may_leave("chainette:aside:*")
    site = Site(tmp_path)
    results: list[RunResult] = []

    def run() -> None:
        options: dict[str, Any] = {"chain_ref": "chain.py", "chain_root": str(tmp_path), "format": format}
        results.append(site.chain.run(tmp_path / "in.jsonl", tmp_path / "out", drive=Driven(database.url), **options))

    async def attack() -> None:
        with anyio.fail_after(LONG):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.to_thread.run_sync, run)
                assert await anyio.to_thread.run_sync(forge, database.url, site.chain, FORGED[format])
                with site.worker(database.url):
                    while not results:  # noqa: ASYNC110 - it comes from a thread
                        await anyio.sleep(0.05)

    anyio.run(attack)
    site.require_whole(results[0])
    [aside] = database.client.scan_iter("chainette:aside:*")
    assert all(b'"why":"root 0' in message for message in database.client.lrange(aside, 0, -1))

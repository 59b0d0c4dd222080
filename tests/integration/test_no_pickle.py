"""No pickle: no code around Redis imports it, nothing in Redis is one, and no hostile one is opened."""

from __future__ import annotations

import ast
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

import chainette
from chainette.fleet.protocol.messages import BadMessage, Result, RootRecord, open_message
from chainette.records import Unit
from tests.support.fleet import forked, opened, snapshot
from tests.support.valkey import Database

#: Modules that turn bytes into objects of any class, or code.
FORBIDDEN = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle"}

FLEET = Path(chainette.__file__).parent / "fleet"


def imported(path: Path) -> set[str]:
    """Names of the modules a file imports, at their top."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_nothing_that_is_shipped_imports_a_pickle_nor_rqs_worker() -> None:
    files = [*FLEET.parent.rglob("*.py"), *(FLEET.parents[1] / "workers").rglob("*.py")]
    assert len(files) > 100
    assert {path.name: found for path in files if (found := imported(path) & FORBIDDEN)} == {}
    assert {path.name for path in FLEET.rglob("*.py") if "rq" in imported(path)} == set()


def test_nothing_that_is_put_into_redis_is_a_pickle(database: Database) -> None:
    with opened(database.client, forked()) as run:
        run.admit(["ab", "xy", "c", "d"])
        for _ in range(4):
            run.commit(run.take())
        run.take()
        run.queue.beat("w1", {"engines": "python"}, 3600)
        found = list(blobs(snapshot(database.client)))
    assert len(found) > 50
    assert [blob for blob in found if blob[:1] == b"\x80" and blob[-1:] == b"."] == []
    assert any(blob.startswith(b'["chainette.run.process"') for blob in found)


def blobs(value: Any) -> list[bytes]:
    """Every string in there."""
    if isinstance(value, bytes):
        return [value]
    if isinstance(value, dict):
        return [blob for pair in value.items() for blob in blobs(list(pair))]
    return [blob for part in value for blob in blobs(part)] if isinstance(value, list | tuple | set) else []


@pytest.mark.parametrize("kind", [Unit, Result, RootRecord, list[str]])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_no_message_whatever_it_holds(kind: Any, protocol: int) -> None:
    found: list[str] = []
    watching = [True]
    sys.addaudithook(lambda name, _: found.append(name) if watching[0] and name.startswith("pickle.") else None)
    try:
        values: list[Any] = [["a"], "text", {"a": 1}, Path("/"), ("node", 0, "", "", [])]
        for data in values:
            with pytest.raises(BadMessage):
                open_message(pickle.dumps(data, protocol), kind)
    finally:
        watching[0] = False
    assert found == []

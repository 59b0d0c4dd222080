"""The key of an answer: a digest of everything that decides it, by which a later run finds it again (`--reuse`).

It covers neither ids of steps and rows, nor the text of templates: only the request they lead to counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from chainette.core.apply import ApplyNode
from chainette.core.identity import deciding_engine_settings, deciding_sampling
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind, PlanNode
from chainette.core.step import Step
from chainette.core.usercode.fingerprint import fingerprint_code, fingerprint_model
from chainette.records import Message, Row
from chainette.utils.json_schema import json_schema_of

__all__ = ["KEY_BYTES", "KeyMaker", "key_of_call", "step_keys"]

#: Bytes of a key.
KEY_BYTES = 16

_pack = msgspec.msgpack.Encoder().encode


class KeyMaker:
    """Makes the keys of one node's answers: a digest of their common part, continued with the rest."""

    def __init__(self, parts: list[Any]) -> None:
        self._shared = hashlib.blake2b(msgspec.json.encode(parts), digest_size=KEY_BYTES)

    def of_all(self, requests: Iterable[tuple[Message, ...]] | Iterable[list[bytes | None]]) -> list[bytes]:
        """The keys of the answers to the messages of first asks, or of a function's values for the values it gets, as JSON."""
        found = []
        for request in requests:
            digest = self._shared.copy()
            digest.update(_pack(request))
            found.append(digest.digest())
        return found


def step_keys(plan: Plan, node: PlanNode, seed: int, identity: Mapping[str, str]) -> KeyMaker:
    """The keys of a step, at the engine its node names; `seed` is the run's, `identity` that of the open engine."""
    memo = ("answer keys", f"{node.station} {node.engine} {seed} {sorted(identity.items())}")
    made: KeyMaker | None = plan.memo.get(memo)
    if made is None:
        step = node.node
        assert isinstance(step, Step)
        sampling = deciding_sampling(step.sampling)
        own = sampling.pop("seed", None)
        made = plan.memo[memo] = KeyMaker(
            [
                "step",
                json_schema_of(step.output_model),
                fingerprint_model(step.output_model),
                sorted(sampling.items()),
                sorted(deciding_engine_settings(plan.engines[node.engine]).items()),
                sorted(identity.items()),
                seed if own is None else own,
            ]
        )
    return made


def _function_keys(plan: Plan, node: PlanNode) -> KeyMaker:
    """The keys of a function."""
    made: KeyMaker | None = plan.memo.get(("answer keys", node.id))
    if made is None:
        apply, models = node.node, (node.input_type, node.node.output_model)
        assert isinstance(apply, ApplyNode)
        code = [fingerprint_model(model) if model is not None else None for model in models]
        # in a loop, a function with a history sees the round
        around = node.round.number if node.round is not None and apply.wants_history else None
        shared = ["function", type(apply).__name__, fingerprint_code(apply.fn), code, apply.cardinality, around]
        made = plan.memo["answer keys", node.id] = KeyMaker(shared)
    return made


def _received_values(node: PlanNode, row: Row) -> list[bytes | None]:
    """Everything a function can see of a row: its input, and with a history every name and value in scope."""
    found: list[bytes | None] = [row.values.get(node.source)]
    apply = node.node
    if isinstance(apply, ApplyNode) and apply.wants_history:
        previous = node.round.previous if node.round is not None else {}
        for name in sorted(node.scope):
            found += [name.encode(), row.values.get(node.key_of(name))]
        for name, key in sorted(previous.items()):
            found += [name.encode(), row.values.get(key)]
    return found


def key_of_call(plan: Plan, node: PlanNode, row: Row) -> bytes:
    """The key of a function's value for a row; b"" for a decision or a choice, which every run makes anew."""
    if node.kind in (NodeKind.DECISION, NodeKind.PICK):
        return b""
    [key] = _function_keys(plan, node).of_all([_received_values(node, row)])
    return key

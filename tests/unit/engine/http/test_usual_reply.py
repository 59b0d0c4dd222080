"""The usual reply is read in one call, and as the reader of every other form would read it."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from itertools import product
from typing import Any

import pytest

from chainette.engine.http.chat_reply import Reading, read
from chainette.engine.http.error_replies import NoAnswer
from chainette.engine.http.usual_reply import usual_reply

GOOD = '{"label": "ok"}'


def reply(message: dict[str, Any], choice: dict[str, Any], usage: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    said = {"role": "assistant", "content": GOOD, **message}
    counts = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6, **usage}
    chosen = {"index": 0, "message": said, "finish_reason": "stop", **choice}
    return {"id": "x", "object": "chat.completion", "model": "served", "choices": [chosen], "usage": counts, **rest}


DETAILS = {"prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 0}}
VLLM: dict[str, Any] = {
    "refusal": None,
    "annotations": None,
    "function_call": None,
    "tool_calls": [],
    "reasoning_content": None,
}
SERVERS = {
    "OpenAI": reply({"refusal": None, "annotations": []}, {"logprobs": None}, DETAILS, {"service_tier": "default"}),
    "vLLM": reply(VLLM, {"stop_reason": None, "token_ids": None}, {"prompt_tokens_details": None}, {"prompt_logprobs": None}),
    "llama.cpp": reply({}, {}, {}, {"system_fingerprint": "b1", "timings": {"prompt_ms": 1.5}}),
}


@pytest.mark.parametrize("body", SERVERS.values(), ids=SERVERS)
def test_the_replies_of_common_servers_are_usual(body: dict[str, Any]) -> None:
    found = usual_reply(json.dumps(body).encode(), 1.5)
    assert found is not None
    assert found[0].text == GOOD


#: The part of a reply, and fields there whose value decides the form.
FIELDS = [
    (0, ["content", "refusal", "reasoning_content", "reasoning", "thinking", "tool_calls", "function_call"]),
    (1, ["index", "finish_reason", "error", "message", "text", "delta"]),
    (2, ["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"]),
    (2, ["prompt_tokens_details", "input_tokens_details"]),
    (2, ["cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens"]),
    (3, ["model", "error", "usage", "choices", "message", "done", "done_reason", "eval_count", "prompt_eval_count"]),
]
NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0}
CALL = {"function": {"name": "answer", "arguments": GOOD}}
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    3,
    -1,
    1.0,
    1.5,
    1 << 53,
    10**400,
    float("nan"),
    "",
    "stop",
    "length",
    "STOP",
    "safety",
]
VALUES += [
    GOOD,
    "\ufffe",
    "\ud83d",
    "m" * 300,
    "0",
    [],
    {},
    [CALL],
    CALL["function"],
    [{"index": 1, "message": {"content": "hm"}}],
]
VALUES += [{"cached_tokens": 3}, {"cached_tokens": 400}, {"cached_tokens": -1}, {"cached_tokens": None}]


@pytest.mark.parametrize(("place", "names"), FIELDS)
@pytest.mark.parametrize("usage", [NO_TOKENS, DETAILS], ids=["no tokens", "cached tokens"])
@pytest.mark.parametrize("content", [GOOD, "hm"], ids=["an object", "no object"])
def test_both_readers_give_the_same(place: int, names: list[str], usage: dict[str, Any], content: str) -> None:
    for name, value in product(names, VALUES):
        parts: list[dict[str, Any]] = [{"content": content}, {}, usage, {}]
        parts[place] = parts[place] | {name: value}
        body = json.dumps(reply(*parts)).encode()
        assert told(body) == told(BOM_UTF8 + body)  # a byte order mark makes the form an unusual one


def told(body: bytes) -> Reading | str:
    try:
        return read(body, 1.5)
    except NoAnswer as error:
        return str(error)

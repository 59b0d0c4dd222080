"""Bodies as servers send them, one line of a table each, and as no server should."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainette.engine.base import Delta, Finish
from chainette.engine.http.carrier import MOST_BYTES
from chainette.engine.http.chat_reply import Pieces, read
from chainette.engine.http.error_replies import NoAnswer
from chainette.records import Usage

GOOD = '{"label": "ok"}'


def reply(content: Any = GOOD, finish: Any = "stop", /, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    return {"id": "x", "model": "served", "choices": [choice], "usage": usage}


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "answer", "arguments": arguments}}


def ollama(content: Any = GOOD, **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    counts = {"prompt_eval_count": 4, "eval_count": 2}
    return {"model": "served", "message": message, "done": True, "done_reason": "stop", **counts, **fields}


#: Name -> a body that gives GOOD, without thoughts.
ANSWERS: dict[str, Any] = {
    "plain": reply(),
    "content as a list of parts": reply([{"type": "text", "text": GOOD}]),
    "content in two parts": reply([{"type": "text", "text": GOOD[:5]}, {"type": "output_text", "text": GOOD[5:]}]),
    "content as a list of texts": reply([GOOD[:5], GOOD[5:]]),
    "content as one part": reply({"type": "text", "text": GOOD}),
    "content as the object itself": reply({"label": "ok"}),
    "message as text": reply() | {"choices": [{"message": GOOD, "finish_reason": "stop"}]},
    "the older completions": reply() | {"choices": [{"text": GOOD, "finish_reason": "stop"}]},
    "a delta in place of the message": reply() | {"choices": [{"delta": {"content": GOOD}, "finish_reason": "stop"}]},
    "the arguments of a tool call": reply(None, "tool_calls", tool_calls=[call(GOOD)]),
    "arguments as an object": reply(None, "tool_calls", tool_calls=[call({"label": "ok"})]),
    "a tool call announced in words": reply("I will call the tool.", "tool_calls", tool_calls=[call(GOOD)]),
    "a function call": reply("", "function_call", function_call={"name": "answer", "arguments": GOOD}),
    "an answer beside a tool call": reply(GOOD, tool_calls=[call("{}")]),
    "an answer among the thoughts": reply(None, reasoning_content=GOOD),
    "an answer among the thoughts, in text": reply("", reasoning=GOOD),
    "refusal is false": reply(refusal=False),
    "refusal is empty": reply(refusal=""),
    "thoughts are false": reply(reasoning=False, reasoning_content=0),
    "tool calls are null": reply(tool_calls=None, function_call=None),
    "tool calls are an object": reply(tool_calls={}),
    "usage is a list": reply() | {"usage": []},
    "usage is text": reply() | {"usage": "none"},
    "model is a number": reply() | {"model": 7},
    "choices are numbered from 1": reply() | {"choices": [reply()["choices"][0] | {"index": 1}]},
    "index is text": reply() | {"choices": [reply()["choices"][0] | {"index": "0"}]},
    "several choices": reply() | {"choices": reply()["choices"] + reply("{}")["choices"]},
    "an error that is null": reply() | {"error": None},
    "an error beside a complete answer": reply() | {"error": {"code": 0}},
    "a number out of range": json.dumps(reply()).replace('"x"', "1" + "0" * 400),
    "a float out of range": json.dumps(reply()).replace('"x"', "1e999"),
    "NaN": json.dumps(reply() | {"timings": {"per_second": float("nan")}}),
    "Infinity, and NaN in a text": json.dumps(reply() | {"x": [float("inf"), -float("inf"), 'Na"N']}),
    "half a character beside the answer": json.dumps(reply() | {"x": "\ud83d"}),
    "bytes that are not UTF-8 beside the answer": json.dumps(reply()).encode().replace(b'"x"', b'"\xf0\x9f"'),
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(reply()).encode(),
    "blanks before": b" \r\n" * 1000 + json.dumps(reply()).encode(),
    "many lines": json.dumps(reply(), indent=2),
    "an unknown end of a complete answer": reply(GOOD, "other"),
    "no end of a complete answer": reply(GOOD, None),
    "the end as an object": reply(GOOD, {"type": "stop", "matched": 2}),
    "Ollama": ollama(),
    "Ollama without an end": {"message": {"content": GOOD}},
    "very many log probabilities": reply() | {"logprobs": [[0.5, {}]] * 500_000},
}


def encoded(body: Any) -> bytes:
    return body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()


@pytest.mark.parametrize("body", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_found_in_every_form(body: Any) -> None:
    completion = read(encoded(body), 1.5).completion
    assert json.loads(completion.text) == {"label": "ok"}
    assert (completion.finish, completion.reasoning) == (Finish.STOP, None)


#: Name -> a body that gives GOOD, and thoughts "hm".
THOUGHTS = {
    "reasoning_content": reply(reasoning_content="hm"),
    "reasoning": reply(reasoning="hm"),
    "reasoning as an object": reply(reasoning={"text": "hm"}),
    "thinking": ollama() | {"message": {"content": GOOD, "thinking": "hm"}},
    "a part": reply([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": GOOD}]),
    "parts of a part": reply(
        [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": GOOD}]
    ),
    "a summary": reply(reasoning={"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}),
}


@pytest.mark.parametrize("body", THOUGHTS.values(), ids=THOUGHTS)
def test_thoughts_are_found_in_every_form(body: Any) -> None:
    completion = read(encoded(body), 1.5).completion
    assert (completion.text, completion.reasoning) == (GOOD, "hm")


CUT = '{"label": "o'


@pytest.mark.parametrize(
    ("name", "finish"),
    [
        *((name, Finish.STOP) for name in ("stop", "eos", "eos_token", "end_turn", "STOP", "COMPLETE", "tool_calls")),
        *((name, Finish.LENGTH) for name in ("length", "max_tokens", "MAX_TOKENS", "model_length", "max_output_tokens")),
        *((name, Finish.LENGTH) for name in ("FINISH_REASON_MAX_TOKENS", "max-tokens", "model_context_window_exceeded")),
        *((name, Finish.REFUSED) for name in ("content_filter", "SAFETY", "RECITATION", "refusal", "sensitive")),
    ],
)
def test_the_end_of_an_answer_is_known_by_every_name(name: str, finish: Finish) -> None:
    assert read(encoded(reply(CUT, name)), 0.0).completion.finish is finish
    assert read(encoded(ollama(CUT, done_reason=name)), 0.0).completion.finish is finish
    assert read(stream(piece(CUT), piece(finish=name)), 0.0).completion.finish is finish


@pytest.mark.parametrize(
    "name", ["abort", "error", "insufficient_system_resource", "cancelled", "OTHER", "load", "network_error"]
)
def test_an_end_by_any_other_name_is_no_answer_unless_it_is_complete(name: str) -> None:
    for body in (reply(CUT, name), ollama(CUT, done_reason=name)):
        with pytest.raises(NoAnswer, match=f"it ended as '{name}'"):
            read(encoded(body), 0.0)
    assert read(encoded(reply(GOOD, name)), 0.0).completion.finish is Finish.STOP


def test_a_refusal_is_told_with_its_words() -> None:
    refusal = read(encoded(reply(None, refusal="I will not")), 0.0).completion
    assert (refusal.finish, refusal.error) == (Finish.REFUSED, "I will not")
    filtered = read(encoded({"choices": [{"index": 0, "finish_reason": "content_filter"}]}), 0.0).completion
    assert (filtered.finish, filtered.error) == (Finish.REFUSED, "stopped by the provider's content filter")


@pytest.mark.parametrize("content", ["", None, []])
def test_an_empty_answer_is_an_answer_that_can_be_asked_for_again(content: Any) -> None:
    assert read(encoded(reply(content)), 0.0).completion.text == ""


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 5.0, "completion_tokens": 2.5}, (5, 2)),
        ({"prompt_tokens": None, "completion_tokens": "2"}, (0, 0)),
        ({"prompt_tokens": -1, "completion_tokens": 10**30}, (0, 0)),
        ({"prompt_tokens": True, "completion_tokens": [2]}, (0, 0)),
        ({"input_tokens": 4, "output_tokens": 2}, (4, 2)),
        (None, (0, 0)),
    ],
)
def test_tokens_are_counted_as_far_as_they_are_counts(usage: Any, counts: tuple[int, int]) -> None:
    assert read(encoded(reply() | {"usage": usage}), 1.5).completion.usage == Usage(1, *counts, 1.5)


def test_ollama_counts_tokens_under_names_of_its_own() -> None:
    assert read(encoded(ollama()), 1.5).completion.usage == Usage(1, 4, 2, 1.5)


DEEP = 100_000

UNUSABLE = {
    "nothing": b"",
    "HTML": "<html>welcome</html>",
    "an error object": {"error": {"code": 400, "message": "Provider returned error"}},
    "an error as text": {"error": "no"},
    "an error behind a part": reply(CUT, "stop") | {"error": "no"},
    "an error in the choice": {
        "choices": [{"error": {"message": "no"}, "message": {"content": CUT}, "finish_reason": "error"}]
    },
    "no choices": reply() | {"choices": []},
    "choices are null": reply() | {"choices": None},
    "choices are an object": reply() | {"choices": {}},
    "choices are texts": reply() | {"choices": [GOOD]},
    "no message": reply() | {"choices": [{"index": 0, "finish_reason": "stop"}]},
    "message is null": reply() | {"choices": [{"message": None, "finish_reason": "stop"}]},
    "another object": {"hello": "world"},
    "a list": [reply()],
    "text": json.dumps(GOOD),
    "cut": json.dumps(reply())[:-9],
    "not UTF-8": json.dumps(reply("X")).encode().replace(b'"X"', b'"{\\"label\\":\\"ok \xf0\x9f\\"}"'),
    "UTF-16": json.dumps(reply()).encode("utf-16"),
    "half a character": json.dumps(reply('{"label":"ok \ud83d"}')),
    "deep": b'{"choices":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep beside the answer": json.dumps(reply()).encode()[:-1] + b',"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "Ollama, unfinished": ollama(CUT, done=False, done_reason=None),
    "Ollama, only loaded": ollama("", done_reason="load"),
    "NaN alone": b"NaN",
}


@pytest.mark.parametrize("body", UNUSABLE.values(), ids=UNUSABLE)
def test_a_body_without_a_usable_answer_is_told_as_such(body: Any) -> None:
    with pytest.raises(NoAnswer):
        read(encoded(body), 0.0)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (encoded(reply(CUT, "abort")), "it ended as 'abort'"),
        (encoded(reply(CUT, "stop") | {"error": "no"}), "an error: no"),
        (encoded(reply('{"label":"ok \ud83d"}')), "a broken character"),
        (b'data: {"usage": {"prompt_tokens": 4, "completion_tokens": 2}}\n\ndata: {\n\n', "truncated"),
    ],
    ids=["an unknown end", "an error behind a part", "half a character", "a broken event"],
)
def test_an_unusable_answer_has_the_usage_that_its_body_states(body: bytes, words: str) -> None:
    with pytest.raises(NoAnswer, match=words) as found:
        read(body, 1.5)
    assert found.value.usage == Usage(1, 4, 2, 1.5)
    with pytest.raises(NoAnswer) as found:
        read(b"{}", 1.5)
    assert found.value.usage == Usage()


@pytest.mark.parametrize(
    ("words", "finish"),
    [("This model's maximum context length is 512 tokens", Finish.TOO_LONG), ("blocked by the content filter", Finish.REFUSED)],
)
def test_an_error_with_status_200_may_concern_the_request(words: str, finish: Finish) -> None:
    completion = read(encoded({"error": {"code": 400, "message": words}}), 0.0).completion
    assert (completion.finish, completion.error) == (finish, words)


@pytest.mark.parametrize("filler", [b"{},", b"[],", b'"",', b"0,"])
def test_a_body_of_64_mib_takes_little_more_memory_than_its_size(filler: bytes) -> None:
    import tracemalloc

    for body in (b'{"choices":[' + filler * (MOST_BYTES // len(filler) - 9) + b"{}]}",):
        tracemalloc.start()
        with pytest.raises(NoAnswer):
            read(body, 0.0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * MOST_BYTES


# -- streams


def piece(content: Any = None, finish: Any = None, **delta: Any) -> dict[str, Any]:
    delta = delta if content is None else {"content": content, **delta}
    return {"model": "served", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def stream(*pieces: Any, end: bytes = b"\n\n") -> bytes:
    return b"".join(b"data: " + encoded(each) + end for each in (*pieces, b"[DONE]"))


PIECES = (piece('{"label"'), piece(': "ok"}'), piece(finish="stop"))
PRETTY = b"".join(b"data: " + line + b"\n" for line in json.dumps(piece(GOOD), indent=1).encode().splitlines()) + b"\n"
LINES = (*({"message": {"content": part}, "done": False} for part in (GOOD[:5], GOOD[5:])), ollama(""))

STREAMS: dict[str, bytes] = {
    "plain": stream(*PIECES),
    "without a blank": stream(*PIECES).replace(b"data: ", b"data:"),
    "CRLF": stream(*PIECES, end=b"\r\n\r\n"),
    "CR": stream(*PIECES, end=b"\r\r"),
    "no blank lines": stream(*PIECES, end=b"\n"),
    "no end of the last line": stream(*PIECES).rstrip(),
    "comments": b": keep-alive\n\n" + stream(*PIECES).replace(b"\n\n", b"\n\n: ping\n\n"),
    "names and numbers of events": stream(*PIECES).replace(b"data: ", b"event: message\nid: 7\nretry: 10\ndata: "),
    "a byte order mark": b"\xef\xbb\xbf" + stream(*PIECES),
    "data over several lines": PRETTY + stream(piece(finish="stop")),
    "data over several lines, CRLF": PRETTY.replace(b"\n", b"\r\n") + stream(piece(finish="stop")),
    "an empty event": b"data:\n\ndata: \n\n" + stream(*PIECES),
    "an event that is not an object": b"data: ping\n\ndata: null\n\ndata: []\n\n" + stream(*PIECES),
    "a null delta": stream(*PIECES[:2], {"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]}),
    "null content": stream(piece(None, role="assistant"), {"choices": [{"delta": {"content": None}}]}, *PIECES),
    "usage without choices": stream(*PIECES, {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}),
    "usage with null choices": stream(*PIECES, {"choices": None, "usage": {"prompt_tokens": 4, "completion_tokens": 2}}),
    "usage alone": stream(*PIECES, {"usage": {"prompt_tokens": 4, "completion_tokens": 2}}),
    "the end in lower case": stream(*PIECES).replace(b"[DONE]", b"[done]"),
    "no end": stream(*PIECES).replace(b"data: [DONE]\n\n", b""),
    "no reason to finish": stream(*PIECES[:2]),
    "neither": stream(*PIECES[:2]).replace(b"data: [DONE]\n\n", b""),
    "an empty reason to finish": stream(piece(PIECES[0]["choices"][0]["delta"]["content"], ""), *PIECES[1:]),
    "content as parts": stream(piece([{"type": "text", "text": GOOD}]), PIECES[2]),
    "a message in place of deltas": stream(reply()),
    "pieces of another choice": stream(PIECES[0], {"choices": [piece("x")["choices"][0] | {"index": 1}]}, *PIECES[1:]),
    "a tool call": stream(
        *(piece(tool_calls=[{"index": 0, **call(part)}]) for part in (GOOD[:5], GOOD[5:])), piece(finish="tool_calls")
    ),
    "an error that is null": stream(*(each | {"error": None} for each in PIECES)),
    "not streamed": encoded(reply()),
    "not streamed, many lines": json.dumps(reply(), indent=1).encode(),
    "lines": b"\n".join(map(encoded, LINES)),
    "lines with CRLF": b"\r\n".join(map(encoded, LINES)) + b"\r\n",
    "lines of pieces": b"\n".join(map(encoded, PIECES)),
}


def told(body: bytes) -> Delta:
    pieces = Pieces()
    deltas = [pieces.of(line.rstrip(b"\r")) for line in body.split(b"\n")]
    return Delta("".join(delta.text for delta in deltas), "".join(delta.reasoning for delta in deltas))


@pytest.mark.parametrize("body", STREAMS.values(), ids=STREAMS)
def test_a_streamed_answer_is_put_together(body: bytes) -> None:
    completion = read(body, 0.0).completion
    assert (completion.text, completion.finish, completion.reasoning) == (GOOD, Finish.STOP, None)


@pytest.mark.parametrize(
    "name", sorted(STREAMS.keys() - {"CR", "a byte order mark", "a tool call", "not streamed, many lines"})
)
def test_the_pieces_of_a_streamed_answer_are_told_as_they_come(name: str) -> None:
    assert told(STREAMS[name]) == Delta(GOOD)


@pytest.mark.parametrize("last", [None, {}, {"prompt_tokens": 0, "completion_tokens": 0}, {"cost": 0.1}])
def test_the_usage_of_a_stream_is_the_last_one_told(last: Any) -> None:
    counts = [{"usage": {"prompt_tokens": 4, "completion_tokens": number}} for number in (1, 2)]
    assert read(stream(*PIECES, *counts, {"choices": [], "usage": last}), 0.0).completion.usage == Usage(1, 4, 2, 0.0)


BROKEN_STREAMS: dict[str, bytes] = {
    "an error": stream(PIECES[0], {"error": {"message": "overloaded"}}),
    "an error event": stream(PIECES[0]) + b'event: error\ndata: {"message": "overloaded"}\n\n',
    "an error in a line": encoded(LINES[0]) + b'\n{"error": "overloaded"}\n',
    "cut behind an event": stream(PIECES[0]).replace(b"data: [DONE]\n\n", b""),
    "cut in an event": stream(*PIECES)[:120],
    "cut in a line": b"\n".join(map(encoded, LINES))[:200],
    "an end without an answer": stream(PIECES[0]),
    "an event that is not JSON": stream(PIECES[0], b'{"choices":[}', *PIECES[1:]),
    "lines without an end": encoded(LINES[0]),
    "nothing but its end": stream(),
    "nothing but comments": b": ping\n\n" * 9,
}


@pytest.mark.parametrize("body", BROKEN_STREAMS.values(), ids=BROKEN_STREAMS)
def test_a_stream_that_breaks_off_is_no_answer(body: bytes) -> None:
    with pytest.raises(NoAnswer):
        read(body, 0.0)


# -- anything

NAMES = ["choices", "message", "delta", "content", "text", "type", "finish_reason", "reasoning", "error", "usage", "index"]
NAMES += ["tool_calls", "function", "arguments", "refusal", "done", "done_reason", "model", "prompt_tokens", "eval_count", "x"]
VALUES = st.recursive(
    st.sampled_from(
        [None, True, False, 0, -1, 1.5, float("nan"), 10**400, "", "stop", "text", "thinking", GOOD, CUT, "\ud83d"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5), VALUES, VALUES)
def test_no_value_of_any_field_raises_anything_but_no_answer(fields: dict[str, Any], choice: Any, message: Any) -> None:
    for body in (
        fields,
        {**fields, "choices": [choice]},
        reply() | fields,
        {"choices": [{"message": message, "delta": message}]},
    ):
        check(encoded(body))
        check(stream(body))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400), st.sampled_from([*STREAMS.values()]))
def test_no_bytes_raise_anything_but_no_answer(junk: bytes, at: int, body: bytes) -> None:
    check(junk)
    check(body[:at] + junk + body[at:])
    check(body[:at] + junk)


def check(body: bytes) -> None:
    told(body)
    try:
        reading = read(body, 0.0)
    except NoAnswer:
        return
    completion = reading.completion
    for text in (completion.text, completion.reasoning or "", completion.error, reading.model):
        assert "\ufffe" not in text
        text.encode()
    assert all(0 <= count < 1 << 53 for count in (completion.usage.prompt_tokens, completion.usage.completion_tokens))


@pytest.mark.parametrize(
    "counts",
    [
        {"prompt_tokens_details": {"cached_tokens": 3}},
        {"input_tokens_details": {"cached_tokens": 3}},
        {"prompt_tokens_details": None, "prompt_cache_hit_tokens": 3, "prompt_cache_miss_tokens": 1},
        {"prompt_tokens_details": {"cached_tokens": 0}, "cached_tokens": 3},
        {"prompt_tokens_details": [], "cache_read_input_tokens": 3.0},
    ],
)
def test_cached_tokens_are_read_under_each_name(counts: dict[str, Any]) -> None:
    body = reply()
    body["usage"] |= counts
    assert read(json.dumps(body).encode(), 0.0).completion.usage == Usage(1, 4, 2, 0.0, cached_tokens=3)


def test_more_cached_tokens_than_the_prompt_has_are_a_mistake() -> None:
    body = reply()
    body["usage"]["prompt_tokens_details"] = {"cached_tokens": 400}
    assert read(json.dumps(body).encode(), 0.0).completion.usage.cached_tokens == 4

"""Parameters a server refuses by name: which are changed, and which setting a refusal is about."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from aiohttp import web

from chainette.engine.base import Completion, Finish, Request, SamplingParams
from chainette.engine.http.adaptation import CHANGES, adapted, advice, remedy
from chainette.records import Message
from tests.support.patience import LONG

if TYPE_CHECKING:
    from tests.unit.engine.conftest import Http

BODY = {
    "model": "m",
    "messages": (Message("system", "Be brief."), Message("user", "Hello")),
    "temperature": 0.0,
    "seed": 7,
    "max_tokens": 64,
    "response_format": {"type": "json_schema", "json_schema": {}},
    "stream_options": {"include_usage": True},
}


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("400: Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value", "temperature"),
        ("400: `temperature` is deprecated for this model.", "temperature"),
        (
            "400: Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "max_completion_tokens",
        ),
        ("400: Unrecognized request argument supplied: seed", "seed"),
        ("422: Extra inputs are not permitted (body.seed)", "seed"),
        ("400: This response_format type is unavailable now", "json_object"),
        ("400: Invalid schema for response_format 'ask'", "json_object"),
        ("400: json_schema is not supported by this model", "json_object"),
        ("400: System role not supported", "system"),
        ("400: Developer instruction is not enabled for models/gemma", "system"),
        ("400: stream_options is not supported", "stream_options"),
        ("400: messages[0] is odd", None),
        ("400: top_p is not supported", None),
    ],
)
def test_a_refusal_by_name_is_met_by_one_change(words: str, name: str | None) -> None:
    assert remedy(words, SamplingParams(), BODY, [], []) == name
    if name is not None:
        assert adapted(BODY, [name]) != BODY


SCHEMA = {
    "type": "object",
    "properties": {
        "pattern": {"type": "string", "pattern": "a(?=b)", "maxLength": 9},
        "n": {"type": "integer", "multipleOf": 7},
    },
}
SENT = msgspec.Raw(msgspec.json.encode({"type": "json_schema", "json_schema": {"name": "ask", "schema": SCHEMA}}))


@pytest.mark.parametrize("sent", [SENT, msgspec.json.decode(SENT)])
@pytest.mark.parametrize(
    "words",
    [
        "400: The provided JSON schema contains features not supported by xgrammar.",
        "400: Invalid schema for response_format 'ask': In context=('properties', 'n'), 'multipleOf' is not permitted.",
        "400: Failed to compile grammar: unsupported lookahead",
    ],
)
def test_a_schema_that_a_servers_grammar_cannot_hold_is_sent_without_those_keywords(words: str, sent: Any) -> None:
    body = BODY | {"response_format": sent}
    assert remedy(words, SamplingParams(), body, [], []) == "looser_schema"
    looser = adapted(body, ["looser_schema"])
    kept = {"pattern": {"type": "string", "maxLength": 9}, "n": {"type": "integer"}}
    assert looser["response_format"]["json_schema"]["schema"] == {"type": "object", "properties": kept}
    assert sent == SENT or sent["json_schema"]["schema"] == SCHEMA, "other requests share it"
    if "grammar:" not in words:
        assert remedy(words, SamplingParams(), body, ["looser_schema"], []) == "json_object"


def test_what_the_step_or_the_engine_set_itself_is_not_changed() -> None:
    temperature, seed = "'temperature' is not supported", "seed is not supported"
    assert remedy(temperature, SamplingParams(temperature=0.7), BODY | {"temperature": 0.7}, [], []) is None
    assert remedy(temperature, SamplingParams(), BODY, [], ["temperature"]) is None
    assert remedy(seed, SamplingParams(seed=7), BODY, [], []) is None


def test_a_change_that_leads_back_to_a_refused_request_is_not_made() -> None:
    words = "'max_tokens' is not supported. Use 'max_completion_tokens' instead."
    assert remedy(words, SamplingParams(), BODY, ["max_completion_tokens"], []) is None


def test_a_system_message_becomes_part_of_the_first_user_message() -> None:
    assert adapted(BODY, ["system"])["messages"] == (Message("user", "Be brief.\n\nHello"),)


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ("max_tokens is too large", "SamplingParams(max_tokens=...)"),
        ("temperature must be at most 1", "SamplingParams(temperature=...)"),
        ("Invalid schema for response_format", "response_format='json_object'"),
        ("System role not supported", "system_prompt=''"),
        ("presence_penalty is not supported", "SamplingParams"),
    ],
)
def test_a_refusal_is_answered_with_the_setting_to_change(words: str, setting: str) -> None:
    assert setting in advice(words)


@pytest.mark.parametrize("key", ["temperature", "seed", "response_format", "max_tokens"])
def test_a_refused_parameter_is_changed_once_for_all_requests_and_said_once(
    http: Http, serve: Any, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    async def main() -> None:
        async def picky(asked: Any) -> web.Response:
            return http.bad(400, f"Unsupported parameter: '{key}' is not supported") if key in asked.body else http.good("yes")

        async with serve(picky) as server:
            engine = http.make(server.url)
            await engine.open()
            for _ in range(3):
                completions = await engine.generate([http.ask(), http.ask()])
                assert [completion.text for completion in completions] == ["yes", "yes"]
            await engine.close()
        assert set(engine.adaptations) <= set(CHANGES) and engine.adaptations
        refused = [asked for asked in server.asked if key in asked.body]
        assert len(refused) <= 2 * len(engine.adaptations)

    with caplog.at_level(logging.WARNING, logger="chainette"):
        asyncio.run(asyncio.wait_for(main(), LONG))
    said = [record.getMessage() for record in caplog.records if "since its server refuses it" in record.getMessage()]
    assert len(said) == len(set(said))


def test_a_refusal_of_one_request_of_an_accepted_step_changes_nothing(http: Http, serve: Any) -> None:
    async def main() -> Completion:
        async def picky(asked: Any) -> web.Response:
            return http.bad(400, "temperature is not supported") if asked.text == "odd" else http.good("yes")

        async with serve(picky) as server:
            engine = http.make(server.url)
            await engine.open()
            await engine.generate([http.ask("fine")])
            [odd] = await engine.generate([http.ask("odd")])
            await engine.close()
        assert engine.adaptations == {}
        return odd

    odd = asyncio.run(asyncio.wait_for(main(), LONG))
    assert odd.finish is Finish.ERROR and "SamplingParams(temperature=...)" in odd.hint


def test_requests_are_adapted_without_touching_their_fields() -> None:
    request = Request(BODY["messages"], SamplingParams(), 7, {}, "ask")  # type: ignore[arg-type]
    adapted(BODY, list(CHANGES))
    assert BODY["messages"] == request.messages and "seed" in BODY

"""Rows with equal requests are asked once: in flight and afterwards, whatever happens to the row that asks."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from chainette import Chain, RunResult, SamplingParams, Step, open_run
from chainette.engine.base import Completion, Finish, Request
from chainette.errors import DeclarationError
from chainette.io.rundir.run_state import Status
from tests.support.scripted import Script, ask_of, row_of, scripted, user_text


class Text(BaseModel):
    text: str


class Word(BaseModel):
    word: str


def chain(**keys: Any) -> Chain:
    settings: dict[str, Any] = {"dedupe": True} | keys
    ask = Step(id="ask", input_model=Text, output_model=Word, engine_name="llm", user_prompt="{{ text }}", **settings)
    return Chain(name="dedupe", batch_size=16, steps=[ask])


def repeated(rows: int, distinct: int) -> list[Text]:
    """Rows of which the n-th asks the same as the n + `distinct`-th."""
    return [Text(text=f"question {number % distinct}") for number in range(rows)]


def word(request: Request) -> Word:
    return Word(word=user_text(request).upper())


def asked(script: Script) -> Counter[str]:
    return Counter(map(user_text, script.requests))


def by_id(result: RunResult) -> dict[str, dict[str, Any]]:
    return {row["row_id"]: row for row in result.rows("ask")}


def test_equal_requests_are_asked_once_and_counted_apart(tmp_path: Path) -> None:
    with scripted(llm=word) as scripts:
        result = chain().run(repeated(200, 10), tmp_path / "out")
        plain = chain(dedupe=False).run(repeated(200, 10), tmp_path / "plain")
    assert len(scripts["llm"].requests) == 10 + 200
    assert by_id(result) == by_id(plain) and len(by_id(plain)) == 200
    counts, metadata = result.counts["ask"], open_run(tmp_path / "out").metadata
    assert (counts["shared"], counts["asked_again"], counts["usage"]["requests"]) == (190, 0, 10)
    assert metadata["rows_shared"] == 190 and metadata["balanced"] and metadata["usage"]["prompt_tokens"] == 100
    assert "rows_shared" not in open_run(tmp_path / "plain").metadata


def test_rows_wait_for_the_answer_to_a_question_in_flight_and_leave_room_for_others(tmp_path: Path) -> None:
    """The first answer comes once four questions are in flight; without that room, two units would fill the engine."""
    held: list[str] = []
    ready = asyncio.Event()

    async def answer(request: Request) -> Word:
        held.append(user_text(request))
        if len(held) == 4:
            ready.set()
        await ready.wait()
        return word(request)

    rows = [Text(text=f"question {number // 16 % 4}") for number in range(128)]
    with scripted({"capacity": 2}, llm=answer) as scripts:
        result = chain().run(rows, tmp_path / "out")
    assert len(by_id(result)) == 128 and asked(scripts["llm"]) == dict.fromkeys(held, 1)


def test_without_dedupe_every_row_asks_and_a_step_may_say_otherwise_than_the_run(tmp_path: Path) -> None:
    with scripted(llm=word) as scripts:
        chain(dedupe=None).run(repeated(20, 2), tmp_path / "plain")
        chain(dedupe=None).run(repeated(20, 2), tmp_path / "run", dedupe=True)
        chain(dedupe=False).run(repeated(20, 2), tmp_path / "step", dedupe=True)
    assert len(scripts["llm"].requests) == 20 + 2 + 20


def test_the_seed_comes_from_the_request_and_not_from_the_row(tmp_path: Path) -> None:
    hot = SamplingParams(temperature=1.0)
    with scripted(llm=word) as scripts:
        for name, rows in (("one", repeated(8, 4)), ("two", repeated(8, 4)[::-1])):
            chain(sampling=hot).run(rows, tmp_path / name)
    seeds = {(user_text(request), request.seed) for request in scripts["llm"].requests}
    assert len(scripts["llm"].requests) == 8 and len(seeds) == 4 == len({seed for _, seed in seeds})


def test_a_bad_answer_is_shared_with_all_its_asks(tmp_path: Path) -> None:
    def answer(request: Request) -> Word | str:
        return "no JSON" if user_text(request) != "question 1" else word(request)

    with scripted(llm=answer) as scripts:
        result = chain().run(repeated(40, 2), tmp_path / "out")
    assert Counter(map(ask_of, scripts["llm"].requests)) == {1: 2, 2: 1, 3: 1}
    assert len(by_id(result)) == 20
    rejected = [*result.rejected]
    assert len(rejected) == 20 and {(one["reason"], one["attempts"], one["raw"]) for one in rejected} == {("not_json", 3, "no JSON")}
    assert result.counts["ask"]["shared"] == 38 and result.counts["ask"]["asked_again"] == 2

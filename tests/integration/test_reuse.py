"""`--reuse`: answers to equal requests are taken from earlier runs, and nothing that decides them is overlooked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from pydantic import BaseModel, Field, field_validator

from chainette import ApplyNode, BatchApply, Chain, SamplingParams, Step, apply
from chainette.core.run_settings import Format
from chainette.engine.base import Completion, Engine, Finish, Request
from chainette.errors import DamagedRun, InputError, RunDirectoryError, RunStopped
from chainette.io.rundir.answer_collection import build, index_of
from chainette.io.rundir.event_log import EventLog
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.run_state import Status
from chainette.run.answer_sources import AnswerSources
from chainette.run.executor import resume, retry_rejected
from chainette.run.stored_answers import StoredAnswers
from tests.support.chains import Text
from tests.support.cli import REPOSITORY
from tests.support.scripted import Script, row_of, scripted, user_text


class Word(BaseModel):
    word: str


class Stricter(BaseModel):
    word: str = Field(max_length=40)


def checked() -> type[BaseModel]:
    """A model of the same name and schema as the other `Word`, with a validator."""

    class Word(BaseModel):
        word: str

        @field_validator("word")
        @classmethod
        def lower(cls, word: str) -> str:
            return word.lower()

    return Word


def loud() -> type[BaseModel]:
    class Said(BaseModel):
        text: str

        def say(self) -> str:
            return self.text.upper()

    return Said


def quiet() -> type[BaseModel]:
    class Said(BaseModel):
        text: str

        def say(self) -> str:
            return self.text.lower()

    return Said


HOT = SamplingParams(temperature=0.7)


def echo(request: Request) -> Word:
    """An answer that tells the question and the row."""
    return Word(word=f"{user_text(request)} for {row_of(request)}")


def chain_of(*nodes: Any, batch_size: int = 4) -> Chain:
    return Chain(name="words", batch_size=batch_size, input_model=Text, steps=list(nodes))


def ask(id: str = "ask", **changes: Any) -> Step[Any, Any]:
    settings: dict[str, Any] = {"output_model": Word, "engine_name": "llm", "user_prompt": "Say {{ chain_input.text }}"}
    return Step(id=id, **(settings | changes))


def texts(*words: str) -> list[dict[str, str]]:
    return [{"text": word} for word in words]


ABC = texts("a", "b", "c")


def words(result: RunResult, step: str = "ask") -> dict[str, str]:
    return {row["row_id"]: row["word"] for row in result.rows(step)}


def origins(result: RunResult, step: str = "ask") -> dict[str, str | None]:
    """Row -> the row of the earlier run it was taken from."""
    found = {row["row_id"]: row.get("_reused_from") for row in result.rows(step)}
    return {row: origin and origin.rpartition("/")[2] for row, origin in found.items()}


@pytest.fixture
def llm() -> Any:
    with scripted(llm=echo, other=echo) as scripts:
        yield scripts["llm"]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_an_unchanged_chain_asks_nothing_and_leaves_the_same_rows(tmp_path: Path, llm: Script, format: Format) -> None:
    chain = chain_of(ask(), ask("again", user_prompt="Repeat {{ ask.word }}"))
    first = chain.run(ABC, tmp_path / "first", format=format)
    asked = len(llm.requests)
    second = chain.run(ABC, tmp_path / "second", format=format, reuse=tmp_path / "first")
    assert len(llm.requests) == asked == 6
    assert words(second) == words(first) and words(second, "again") == words(first, "again")
    assert list(second.rows("flattened")) == list(first.rows("flattened"))
    assert origins(second) == {"0": "0", "1": "1", "2": "2"}
    assert second.metadata["rows_reused"] == 6 and second.metadata["balanced"]
    assert second.metadata["usage"]["requests"] == second.metadata["usage"]["prompt_tokens"] == 0
    assert second.counts["ask"] | {"reused": 3, "in": 3, "out": 3} == second.counts["ask"]
    third = chain.run(ABC, tmp_path / "third", format="jsonl", reuse=tmp_path / "second")  # of what was reused itself
    assert len(llm.requests) == asked and words(third) == words(first)


def test_a_changed_last_step_asks_only_that_step(tmp_path: Path, llm: Script) -> None:
    chain_of(ask(), ask("again", user_prompt="Repeat {{ ask.word }}")).run(ABC, tmp_path / "first")
    llm.requests.clear()
    changed = chain_of(ask(), ask("again", user_prompt="Repeat twice {{ ask.word }}"))
    result = changed.run(ABC, tmp_path / "second", reuse=tmp_path / "first")
    assert {request.label.partition("/")[0] for request in llm.requests} == {"again"}
    assert (result.counts["ask"]["reused"], "reused" in result.counts["again"]) == (3, False)


@pytest.mark.parametrize("workers_of_rows", [1, 4])
def test_rows_that_moved_are_found_and_only_new_ones_are_asked(tmp_path: Path, llm: Script, workers_of_rows: int) -> None:
    chain_of(ask(sampling=HOT)).run(ABC, tmp_path / "first")
    llm.requests.clear()
    moved = chain_of(ask(sampling=HOT), batch_size=workers_of_rows)
    result = moved.run(texts("c", "new", "a", "b"), tmp_path / "second", reuse=tmp_path / "first")
    assert [row_of(request) for request in llm.requests] == ["1"]
    assert origins(result) == {"0": "2", "1": None, "2": "0", "3": "1"}
    assert words(result)["2"] == "Say a for 0"


MUTATIONS: dict[str, dict[str, Any]] = {
    "the user prompt": {"user_prompt": "Speak {{ chain_input.text }}"},
    "the system prompt": {"system_prompt": "Be brief."},
    "the instruction": {"output_format_instruction": "JSON!"},
    "the schema": {"output_model": Stricter},
    "the code of the output model": {"output_model": checked()},
    "the temperature": {"sampling": HOT},
    "top_p": {"sampling": SamplingParams(top_p=0.5)},
    "a stop string": {"sampling": SamplingParams(stop=("x",))},
    "a parameter of the backend": {"sampling": SamplingParams(extra={"min_p": 0.1})},
    "the step's seed": {"sampling": SamplingParams(seed=7)},
    "a lower max_tokens": {"sampling": SamplingParams(max_tokens=1023)},
    "the model": {"engine_name": "other"},
}

INNOCENT: dict[str, dict[str, Any]] = {
    "the step's id": {"id": "tell"},
    "the step's name": {"name": "Tell"},
    "the text of a template that renders alike": {"user_prompt": "Say {{ chain_input.text }}{# a comment #}"},
    "max_attempts": {"max_attempts": 7},
    "a higher max_tokens": {"sampling": SamplingParams(max_tokens=2048)},
}


@pytest.mark.parametrize("what", [*MUTATIONS, *INNOCENT])
def test_a_row_is_asked_again_if_anything_that_decides_its_answer_differs(tmp_path: Path, what: str) -> None:
    with scripted(llm=echo, other=echo) as scripts:
        chain_of(ask()).run(ABC, tmp_path / "first")
        before = sum(len(script.requests) for script in scripts.values())
        changed = chain_of(ask(**(MUTATIONS | INNOCENT)[what]))
        changed.run(ABC, tmp_path / "second", reuse=tmp_path / "first")
        asked = sum(len(script.requests) for script in scripts.values()) - before
    assert asked == (3 if what in MUTATIONS else 0)


def test_another_seed_of_the_run_and_another_revision_of_the_model_ask_again(tmp_path: Path, llm: Script) -> None:
    chain = chain_of(ask())
    chain.run(ABC, tmp_path / "first")
    chain.run(ABC, tmp_path / "second", seed=1, reuse=tmp_path / "first")
    assert len(llm.requests) == 6
    with mock.patch.object(Engine, "revisions", lambda _engine: {"revision": "newer"}):
        chain.run(ABC, tmp_path / "third", reuse=tmp_path / "first")
    assert len(llm.requests) == 9


def test_above_temperature_zero_an_answer_serves_one_row_and_its_own_first(tmp_path: Path, llm: Script) -> None:
    chain = chain_of(ask(sampling=HOT), batch_size=1)
    chain.run(texts("same", "same"), tmp_path / "first")
    llm.requests.clear()
    result = chain.run(texts("same", "same", "same"), tmp_path / "second", reuse=tmp_path / "first")
    assert origins(result) == {"0": "0", "1": "1", "2": None}
    assert len(llm.requests) == 1
    moved = chain.run(texts("x", "y", "same", "same", "same"), tmp_path / "third", reuse=tmp_path / "first")
    assert sorted(str(origin) for origin in origins(moved).values()) == ["0", "1", "None", "None", "None"]


def test_at_temperature_zero_an_answer_serves_every_equal_row(tmp_path: Path, llm: Script) -> None:
    chain = chain_of(ask())
    chain.run(texts("same"), tmp_path / "first")
    result = chain.run(texts("x", "same", "same"), tmp_path / "second", reuse=tmp_path / "first")
    assert origins(result) == {"0": None, "1": "0", "2": "0"}
    assert len(llm.requests) == 2


def test_processes_that_look_side_by_side_never_take_an_answer_twice(tmp_path: Path, llm: Script) -> None:
    chain = chain_of(ask(sampling=HOT))
    result = chain.run(texts(*["same"] * 40), tmp_path / "first")
    key = next(event.keys[:16] for event in committed(tmp_path / "first"))
    node = _planned(chain)
    sources = AnswerSources((str(result.dir),), str(tmp_path / "answers"))
    one, two = StoredAnswers.open(sources), StoredAnswers.open(sources)
    found = [shelf.find(node, str(row), key) for row in range(100, 130) for shelf in [one if row % 2 else two]]
    taken = [outputs[0].reused_from for outputs in found if outputs]
    assert len(taken) == len({*taken}) == 30
    one.close()
    two.close()
    later = StoredAnswers.open(sources)  # a resume: rows that have an answer get it again, and ten are left
    assert {str((later.find(node, str(row), key) or [])[0].reused_from) for row in range(100, 130)} == {*taken}
    assert sum(later.find(node, str(row), key) is not None for row in range(200, 250)) == 10
    later.close()


def _planned(chain: Chain) -> Any:
    from chainette.core.compile import compile_chain

    return compile_chain(chain).nodes["ask"]


def committed(directory: Path) -> list[Any]:
    from chainette.io.rundir.event_log import read_log

    return [event for _, event in read_log(directory / "events.jsonl") if getattr(event, "keys", b"")]


def test_rejected_rows_are_asked_again(tmp_path: Path) -> None:
    def refuse_b(request: Request) -> Completion | Word:
        return Completion("no", finish=Finish.REFUSED) if "b" in user_text(request) else echo(request)

    with scripted(llm=refuse_b) as scripts:
        chain = chain_of(ask())
        chain.run(ABC, tmp_path / "first")
        scripts["llm"].requests.clear()
        scripts["llm"].answer = echo
        result = chain.run(ABC, tmp_path / "second", reuse=tmp_path / "first")
    assert [row_of(request) for request in scripts["llm"].requests] == ["1"]
    assert result.status is Status.FINISHED and origins(result) == {"0": "0", "1": None, "2": "2"}


def test_rejected_rows_are_asked_again_even_if_the_earlier_run_is_gone(
    tmp_path: Path, llm: Script, caplog: pytest.LogCaptureFixture
) -> None:
    chain = chain_of(ask())
    chain.run(texts("a"), tmp_path / "first")
    llm.answer = lambda _request: Completion("no", finish=Finish.REFUSED)
    result = chain.run(ABC, tmp_path / "second", reuse=tmp_path / "first", no_reuse="ask")
    assert result.metadata["rows_rejected"] == 3
    shutil.rmtree(tmp_path / "first")
    llm.answer = echo
    result = retry_rejected(tmp_path / "second", chain)
    assert origins(result) == {"0": None, "1": None, "2": None}
    assert "there is no longer a run in it; nothing is taken from it" in caplog.text


# -- functions


CALLS: list[str] = []


def letters(text: Text) -> list[Word]:
    CALLS.append(text.text)
    return [Word(word=letter) for letter in text.text]


def known(word: Word) -> Word | None:
    CALLS.append(word.word)
    return word if word.word != "x" else None


def beside(word: Word, history: Mapping[str, Any]) -> Word:
    CALLS.append(word.word)
    return Word(word=f"{word.word} of {history['chain_input'].text}")


def louder(rows: list[Word]) -> list[Word]:
    CALLS.extend(row.word for row in rows)
    return [Word(word=row.word.upper()) for row in rows]


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def test_functions_are_called_only_for_rows_that_no_earlier_run_has(tmp_path: Path) -> None:
    chain = chain_of(apply(letters), apply(known), apply(beside), BatchApply(louder))
    first = chain.run(texts("ab", "c"), tmp_path / "first")
    CALLS.clear()
    second = chain.run(texts("new", "c", "ab"), tmp_path / "second", reuse=tmp_path / "first")
    assert sorted(CALLS) == sorted(["new", *"new", *"new", *["n of new", "e of new", "w of new"]])
    assert words(second, "letters") == {"0~0": "n", "0~1": "e", "0~2": "w", "1~0": "c", "2~0": "a", "2~1": "b"}
    assert origins(second, "louder")["2~1"] == "0~1" and second.metadata["balanced"]
    assert (second.counts["letters"]["reused"], second.counts["known"]["reused"]) == (2, 3)
    assert {row["louder.word"] for row in first.rows("flattened")} < {row["louder.word"] for row in second.rows("flattened")}


def test_a_function_with_a_history_sees_everything_in_scope(tmp_path: Path) -> None:
    chain = chain_of(apply(letters), apply(beside))
    chain.run(texts("ab"), tmp_path / "first")
    CALLS.clear()
    chain.run(texts("ba"), tmp_path / "second", reuse=tmp_path / "first")
    assert CALLS == ["ba", "b", "a"]  # the letters are the same, the text they come from is not


def test_another_function_of_the_same_name_is_called(tmp_path: Path) -> None:
    chain_of(apply(letters)).run(ABC, tmp_path / "first")

    def shout(text: Text) -> list[Word]:
        CALLS.append(text.text)
        return [Word(word=text.text.upper())]

    CALLS.clear()
    chain_of(apply(shout, id="letters")).run(ABC, tmp_path / "second", reuse=tmp_path / "first")
    assert CALLS == ["a", "b", "c"]


def test_a_function_is_called_again_if_the_code_of_its_input_model_differs(tmp_path: Path) -> None:
    def plain(item):  # type: ignore[no-untyped-def]
        CALLS.append(item.say())
        return [Word(word=item.say())]

    for number, model in enumerate([loud(), loud(), quiet()]):
        chain = Chain(name="words", input_model=model, steps=[ApplyNode(plain)])
        chain.run(texts("Aa"), tmp_path / str(number), reuse=[tmp_path / "0"] if number else ())
    assert CALLS == ["AA", "aa"]


def test_a_row_that_a_function_dropped_is_passed_to_it_again(tmp_path: Path) -> None:
    chain = chain_of(apply(letters), apply(known))
    chain.run(texts("ax"), tmp_path / "first")
    CALLS.clear()
    chain.run(texts("ax"), tmp_path / "second", reuse=tmp_path / "first")
    assert CALLS == ["x"]


def test_a_step_may_be_left_out(tmp_path: Path, llm: Script) -> None:
    chain = chain_of(apply(letters), ask(user_prompt="Say {{ word }}"))
    chain.run(ABC, tmp_path / "first")
    CALLS.clear()
    chain.run(ABC, tmp_path / "second", reuse=tmp_path / "first", no_reuse="letters")
    assert CALLS == ["a", "b", "c"] and len(llm.requests) == 3
    with pytest.raises(InputError, match="--no-reuse lettres: the chain has no such step; it has letters, ask"):
        chain.run(ABC, tmp_path / "third", reuse=tmp_path / "first", no_reuse="lettres")
    with pytest.raises(InputError, match="--no-reuse leaves out steps of --reuse, which is not given"):
        chain.run(ABC, tmp_path / "third", no_reuse="letters")


# -- which directories


def test_directories_count_in_the_order_given(tmp_path: Path, llm: Script) -> None:
    chain = chain_of(ask())
    chain.run(texts("z", "a"), tmp_path / "first")
    chain.run(texts("b", "a"), tmp_path / "second")
    result = chain.run(ABC, tmp_path / "third", reuse=[tmp_path / "second", tmp_path / "first"])
    assert words(result)["0"] == "Say a for 1"
    runs = [json.loads((tmp_path / name / "metadata.json").read_text())["run_id"] for name in ("first", "second")]
    assert [row.get("_reused_from") for row in result.rows("ask")] == [f"{runs[1]}/1", f"{runs[1]}/0", None]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_an_unfinished_run_counts_by_what_is_durable_without_its_lock(tmp_path: Path, llm: Script, format: Format) -> None:
    def stop(request: Request) -> Word:
        if "c" in user_text(request):
            raise RunStopped("enough")
        return echo(request)

    llm.answer = stop
    chain = chain_of(ask(yield_output=False), ask("again", user_prompt="Repeat {{ ask.word }}"), batch_size=1)
    with pytest.raises(RunStopped, match="enough"):
        chain.run(ABC, tmp_path / "first", format=format, window=1)
    llm.answer, before = echo, len(llm.requests)
    with closing(EventLog(tmp_path / "first" / "events.jsonl")):  # somebody goes on with it
        result = chain.run(ABC, tmp_path / "second", format=format, reuse=tmp_path / "first")
    assert result.counts["ask"]["reused"] == 2
    assert len(llm.requests) - before == 6 - result.metadata["rows_reused"]


def test_a_resumed_run_takes_from_the_same_directories(tmp_path: Path, llm: Script) -> None:
    chain = chain_of(ask(sampling=HOT), batch_size=1)
    chain.run(texts("a", "a", "c"), tmp_path / "first")
    llm.requests.clear()
    chain.run(texts("a", "b"), tmp_path / "second", reuse=tmp_path / "first", limit=1)
    more = chain.run(texts("a", "b"), tmp_path / "third", reuse=tmp_path / "first", limit=1)
    assert origins(more) == {"0": "0"}
    source = tmp_path / "more.jsonl"
    source.write_text("".join(f'{{"text": "{text}"}}\n' for text in "xaaac"))
    begun = chain.run(source, tmp_path / "fourth", reuse=tmp_path / "first", limit=2)
    assert origins(begun) == {"0": None, "1": "1"}
    whole = chain.run(source, tmp_path / "fourth", limit=5, resume=True)
    assert origins(whole) == {"0": None, "1": "1", "2": "0", "3": None, "4": "2"}
    with pytest.raises(RunDirectoryError, match="the run takes no answers from others"):
        chain.run(source, tmp_path / "first", resume=True, reuse=tmp_path / "second")


def test_a_resume_may_name_the_directory_anew_if_it_has_moved(tmp_path: Path, llm: Script) -> None:
    chain, source = chain_of(ask(), batch_size=1), tmp_path / "in.jsonl"
    source.write_text('{"text": "a"}\n{"text": "b"}\n')
    chain.run(ABC, tmp_path / "first")
    chain.run(source, tmp_path / "second", reuse=tmp_path / "first", limit=1)
    (tmp_path / "first").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="there is no run in it"):
        resume(tmp_path / "second", chain, limit=2)
    assert origins(resume(tmp_path / "second", chain, limit=2, reuse=tmp_path / "moved")) == {"0": "0", "1": "1"}


def test_a_directory_of_an_older_version_has_no_keys_and_that_is_said(
    tmp_path: Path, llm: Script, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(REPOSITORY / "tests" / "golden" / "finished", tmp_path / "old")
    chain_of(ask()).run(ABC, tmp_path / "new", reuse=tmp_path / "old")
    assert len(llm.requests) == 3
    assert "an older Chainette wrote them, without keys" in caplog.text


def test_a_directory_without_a_run_is_refused_before_anything_is_written(tmp_path: Path, llm: Script) -> None:
    with pytest.raises(InputError, match=r"--reuse .*empty: there is no run in it"):
        chain_of(ask()).run(ABC, tmp_path / "out", reuse=tmp_path / "empty")
    assert not (tmp_path / "out").exists()


# -- the index


def test_the_index_is_made_once_and_again_if_the_run_went_on_or_the_file_is_damaged(tmp_path: Path, llm: Script) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a"}\n{"text": "b"}\n')
    chain = chain_of(ask(), batch_size=1)
    chain.run(source, tmp_path / "first", limit=1)
    index = tmp_path / "first" / ".index" / "index"

    def reuse(name: str) -> int:
        before = len(llm.requests)
        chain.run(texts("a", "b"), tmp_path / name, reuse=tmp_path / "first")
        return len(llm.requests) - before

    assert reuse("second") == 1
    made = index.stat().st_ino
    assert reuse("third") == 1 and index.stat().st_ino == made
    chain.run(source, tmp_path / "first", limit=2, resume=True)
    assert reuse("fourth") == 0 and index.stat().st_ino != made
    content = bytearray(index.read_bytes())
    content[3] ^= 1
    index.unlink()
    index.write_bytes(content)
    assert reuse("fifth") == 0 and index.read_bytes() != content
    assert index.stat().st_mode & 0o077 == 0


def test_a_directory_that_cannot_be_written_has_its_index_in_the_new_run(tmp_path: Path, llm: Script) -> None:
    chain = chain_of(ask())
    chain.run(ABC, tmp_path / "first", format="parquet")
    (tmp_path / "first" / ".index").write_text("in the way")  # root may write anywhere, so a file stands for the refusal
    chain.run(ABC, tmp_path / "second", reuse=tmp_path / "first")
    assert len(llm.requests) == 3
    assert len([*(tmp_path / "second" / ".answers").glob("*.index*")]) == 2


def test_a_damaged_shard_is_named_and_nothing_is_taken_from_it(tmp_path: Path, llm: Script) -> None:
    chain = chain_of(ask())
    chain.run(ABC, tmp_path / "first")
    shard = tmp_path / "first" / "ask" / "0.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b"Say b", b"Say X"))
    with pytest.raises(DamagedRun, match="are not those that were written"):
        chain.run(ABC, tmp_path / "second", reuse=tmp_path / "first")


def test_rows_of_a_directory_that_was_replaced_meanwhile_are_not_read(tmp_path: Path, llm: Script) -> None:
    chain = chain_of(ask(sampling=HOT))
    chain.run(ABC, tmp_path / "first")
    stored = StoredAnswers.open(AnswerSources((str(tmp_path / "first"),), str(tmp_path / "answers")))
    key = committed(tmp_path / "first")[0].keys[:16]
    resume(tmp_path / "first", chain, from_step="ask")
    assert stored.find(_planned(chain), "0", key) is None
    stored.close()


def test_a_directory_that_is_forked_keeps_its_claims(tmp_path: Path, llm: Script) -> None:
    chain = chain_of(ask(sampling=HOT), ask("again", user_prompt="Repeat {{ ask.word }}"), batch_size=1)
    chain.run(texts("same", "x"), tmp_path / "first")
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "y"}\n{"text": "same"}\n{"text": "same"}\n')
    chain.run(source, tmp_path / "second", limit=2, reuse=tmp_path / "first")
    (tmp_path / "second" / ".answers" / "making-1").mkdir()  # left by a crash
    resume(tmp_path / "second", chain, from_step="again")
    result = resume(tmp_path / "second", chain, limit=3)
    assert origins(result) == {"0": None, "1": "0", "2": None}
    assert origins(result, "again") == {"0": None, "1": "0", "2": None}


def test_a_lookup_finds_every_entry_of_a_large_index_and_nothing_else(tmp_path: Path, llm: Script) -> None:
    chain = chain_of(apply(letters), batch_size=500)
    rows = [f"{number:x}" * 3 for number in range(1500)] + ["same"] * 300
    chain.run(texts(*rows), tmp_path / "first")
    with mock.patch("chainette.io.rundir.answer_collection._HELD", 100):  # every part goes over the disk
        (tmp_path / "made").mkdir()
        build(RunDir(tmp_path / "first"), tmp_path / "made" / "index")
    index = index_of(RunDir(tmp_path / "first"), tmp_path / "pinned" / "index")
    assert (tmp_path / "made" / "index").read_bytes() == (tmp_path / "pinned" / "index").read_bytes()
    keys = [event.keys[at : at + 16] for event in committed(tmp_path / "first") for at in range(0, len(event.keys), 16)]
    assert len(index) == len(keys)
    counted = {key: keys.count(key) for key in {*keys}}
    assert {key: len([*index.of_key(key)]) for key in counted} == counted
    assert not [*index.of_key(bytes(16))] and not [*index.of_key(b"\xff" * 16)]
    index.close()


def test_an_answer_of_a_later_engine_is_found_at_that_engine(tmp_path: Path) -> None:
    with scripted(llm=lambda _request: "no", other=echo) as scripts:
        chain = chain_of(ask(escalate=["other"], max_attempts=1))
        chain.run(ABC, tmp_path / "first")
        result = chain.run(ABC, tmp_path / "second", reuse=tmp_path / "first")
        assert (len(scripts["llm"].requests), len(scripts["other"].requests)) == (6, 3)
    assert origins(result) == {"0": "0", "1": "1", "2": "2"}
    assert {row["_engine"] for row in result.rows("ask")} == {"other"}
    assert result.metadata["balanced"] and result.counts["ask"]["usage"]["requests"] == 3

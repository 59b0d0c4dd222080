"""`--select`: rows of a run are computed again in the words of dbt, by the path of `--from` and `--retry`."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainette import Chain, Node, Step, apply, open_run
from chainette.engine.base import Request
from chainette.errors import EngineUnavailable, InputError, RunDirectoryError, RunStopped
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.versions import version_numbers
from chainette.run.executor import resume, retry_rejected, rollback
from tests.support.chains import Text, Word, content, texts
from tests.support.scripted import Script, row_of, scripted

ROWS = 6


def loud(item: Word) -> Word:
    return Word(word=item.word.upper())


def chain(second: str = "{{ first.word }}", third: str = "{{ loud.word }}") -> Chain:
    """first -> second -> loud -> third; each asks once."""
    steps: list[Node] = [
        Step(id="first", input_model=Text, output_model=Word, engine_name="llm", max_attempts=1),
        Step(id="second", output_model=Word, engine_name="llm", max_attempts=1, user_prompt=second),
        apply(loud),
        Step(id="third", output_model=Word, engine_name="llm", max_attempts=1, user_prompt=third),
    ]
    return Chain(name="selected", batch_size=2, steps=steps)


def good(request: Request) -> Word:
    return Word(word=f"{request.schema_name} {request.messages[-1].content[-40:]}")


def bad_in_second(request: Request) -> Word | str:
    return "no" if request.schema_name == "second" and row_of(request) in ("1", "4") else good(request)


def asked(script: Script, since: int) -> dict[str, int]:
    """Requests by step."""
    found: dict[str, int] = {}
    for request in script.requests[since:]:
        found[request.schema_name] = found.get(request.schema_name, 0) + 1
    return found


def test_changed_computes_every_changed_step_and_all_that_follow(tmp_path: Path) -> None:
    with scripted(llm=good) as scripts:
        before = content(chain().run(texts(ROWS), tmp_path / "out"))
        since = len(scripts["llm"].requests)
        edited = chain(third="Say {{ loud.word }}")
        again = edited.run(texts(ROWS), tmp_path / "out", resume=True, select="changed+")
        assert asked(scripts["llm"], since) == {"third": ROWS}
        assert content(again) == content(edited.run(texts(ROWS), tmp_path / "fresh"))
        since = len(scripts["llm"].requests)
        two = resume(tmp_path / "out", chain(second="Now {{ first.word }}"), select="changed+")
        assert asked(scripts["llm"], since) == {"second": ROWS, "third": ROWS} and two.metadata["balanced"]
        rollback(tmp_path / "out")
        rollback(tmp_path / "out")
    assert version_numbers(RunDir(tmp_path / "out")) == [1, 4]
    assert before["first"] == content(two)["first"] and before["second"] != content(two)["second"]


def test_changed_of_an_unchanged_chain_asks_nothing_and_keeps_no_version(tmp_path: Path) -> None:
    with scripted(llm=good) as scripts:
        run = chain().run(texts(ROWS), tmp_path / "out")
        since, log = len(scripts["llm"].requests), (run.dir / "events.jsonl").read_bytes()
        resume(run.dir, chain(), select=["changed+"])
        assert not asked(scripts["llm"], since)
    assert (run.dir / "events.jsonl").read_bytes() == log and not version_numbers(RunDir(run.dir))


def test_a_step_with_a_plus_is_from_and_without_one_only_the_last(tmp_path: Path) -> None:
    with scripted(llm=good) as scripts:
        run = chain().run(texts(ROWS), tmp_path / "out")
        since = len(scripts["llm"].requests)
        resume(run.dir, chain(), select="third")
        assert asked(scripts["llm"], since) == {"third": ROWS}
        resume(run.dir, chain(), select="second+")
        assert asked(scripts["llm"], since) == {"second": ROWS, "third": 2 * ROWS}
        log = (run.dir / "events.jsonl").read_bytes()
        with pytest.raises(InputError, match=r"loud, third would have to be recomputed too; write --select second\+"):
            resume(run.dir, chain(), select="second")
        with pytest.raises(InputError, match=r"loud, third would .*; write --select changed\+"):
            resume(run.dir, chain(second="Now {{ first.word }}", third="!"), select=["changed"])
        with pytest.raises(RunDirectoryError, match="no step 'secnod'"):
            resume(run.dir, chain(), select="secnod+")
        with pytest.raises(InputError, match=r"write changed\+, STEP\+, rejected"):
            resume(run.dir, chain(), select="+second")
        with pytest.raises(InputError, match="resume=True"):
            chain().run(texts(ROWS), tmp_path / "other", select="changed+")
    assert (run.dir / "events.jsonl").read_bytes() == log and not (tmp_path / "other").exists()


def test_however_often_a_selection_breaks_off_rollback_brings_back_the_rows_before_the_first(tmp_path: Path) -> None:
    def down_for_the_last_rows(request: Request) -> Word:
        if request.schema_name == "third" and row_of(request) in ("4", "5"):
            raise EngineUnavailable("not today")
        return good(request)

    with scripted(llm=good) as scripts:
        edited = chain(third="Say {{ loud.word }}")
        before = content(chain().run(texts(ROWS), tmp_path / "out"))
        scripts["llm"].answer = down_for_the_last_rows
        for _ in range(3):
            with pytest.raises(RunStopped):
                resume(tmp_path / "out", edited, select="third", engine_patience=0)
            assert version_numbers(RunDir(tmp_path / "out")) == [1]
        rollback(tmp_path / "out")
        assert content(open_run(tmp_path / "out")) == before
        rollback(tmp_path / "out")
        scripts["llm"].answer = good
        assert content(resume(tmp_path / "out", edited))["third"] != before["third"]
        resume(tmp_path / "out", edited, select="third")
    assert version_numbers(RunDir(tmp_path / "out")) == [3, 4]


def test_rejected_is_the_retry_and_goes_together_with_steps(tmp_path: Path) -> None:
    with scripted(llm=bad_in_second) as scripts:
        for name in ("selected", "retried", "both"):
            chain().run(texts(ROWS), tmp_path / name)
        scripts["llm"].answer = good
        since = len(scripts["llm"].requests)
        selected = resume(tmp_path / "selected", chain(), select="rejected")
        assert asked(scripts["llm"], since) == {"second": 2, "third": 2}
        assert content(selected) == content(retry_rejected(tmp_path / "retried", chain()))
        since = len(scripts["llm"].requests)
        both = resume(tmp_path / "both", chain(third="Say {{ loud.word }}"), select=["changed+", "rejected"])
        assert asked(scripts["llm"], since) == {"second": 2, "third": ROWS}
        with pytest.raises(RunDirectoryError, match="no rejected rows"):
            resume(tmp_path / "both", chain(third="Say {{ loud.word }}"), select="rejected")
    assert len([*both.rows("third")]) == ROWS and both.metadata["balanced"]

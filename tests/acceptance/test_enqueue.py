"""`chainette enqueue` and `chainette worker` as processes of their own, over a real Valkey."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Project, lines, until
from tests.support.patience import LONG
from tests.support.valkey import LEASES, Database, Server, assert_no_keys_left


class Site:
    """A project, a Redis, and processes that are gone at the end."""

    def __init__(self, project: Project, url: str, stack: ExitStack) -> None:
        self.project, self.url, self._stack = project, url, stack

    def start(self, *words: str, **keys: Any) -> subprocess.Popen[str]:
        process = self.project.start(*words, "--redis", self.url, **keys)
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        if words[0] == "worker":
            assert process.stderr is not None
            assert "serving" in next(process.stderr)  # from here on SIGTERM is an order, not an accident
        return process

    def workers(self, number: int = 1, *words: str) -> list[subprocess.Popen[str]]:
        return [self.start("worker", "--engine", "writer", "--engine", "judge", *words) for _ in range(number)]

    def committed(self, directory: str) -> int:
        """Lines of the log."""
        log = self.project.path / directory / "events.jsonl"
        return log.read_bytes().count(b"unit_committed") if log.exists() else 0

    def run_id(self, directory: str) -> str:
        return str(next(self.project.events(directory))["run_id"])


@contextmanager
def stopped(*processes: subprocess.Popen[str]) -> Iterator[None]:
    """SIGTERM at the end: a worker hands back its units, and signs off."""
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            assert process.wait(LONG) == 0


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(Project(tmp_path, rows=96, latency=0.1), database.url, stack)


def test_a_run_through_two_workers_is_that_of_one_process(site: Site) -> None:
    assert site.project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet").returncode == 0
    workers = site.workers(2)
    with stopped(*workers):
        done = site.project.chainette("enqueue", "chain.py", "in.jsonl", "-o", "fleet", "--redis", site.url)
        assert done.returncode == 0, done.stderr
    assert "accounting: balanced" in done.stdout
    assert lines(site.project, "fleet") == lines(site.project, "local")
    said = "".join(line for worker in workers for line in worker.stderr or ())
    assert "engine writer: loading writer-model (simulated)\n" in said
    shares = re.findall(rf"^run {site.run_id('fleet')}: (?:over|left to others); from this worker: (.*)$", said, re.MULTILINE)
    assert sum(int(units) for share in shares for units in re.findall(r"extract (\d+) unit", share)) == 96 / 8
    assert sum(int(answers) for share in shares for answers in re.findall(r"extract \d+ units? with (\d+)", share)) == 96


@pytest.mark.long
def test_two_runs_share_the_workers(site: Site) -> None:
    with stopped(*site.workers(2)):
        runs = [site.start("enqueue", "chain.py", "in.jsonl", "-o", name) for name in ("one", "two")]
        assert [run.wait(LONG) for run in runs] == [0, 0]
    assert lines(site.project, "one") == lines(site.project, "two")


@pytest.mark.long
def test_an_enqueue_that_is_killed_is_gone_on_with_in_the_same_epoch(site: Site, database: Database) -> None:
    database.may_leave("chainette:lease", "chainette:worker*")  # until somebody reaps it
    site.project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet")
    with stopped(*site.workers(2)):
        first = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet")
        until(lambda: site.committed("fleet") > 5)
        first.kill()
        first.wait()
        again = site.project.chainette("resume", "fleet", "--redis", site.url)
        assert again.returncode == 0 and "stays there" not in again.stderr, again.stderr
    assert lines(site.project, "fleet") == lines(site.project, "local")
    assert {event.get("epoch", 0) for event in site.project.events("fleet")} == {0}


@pytest.mark.long
def test_a_worker_that_is_killed_costs_nothing(site: Site, database: Database) -> None:
    database.may_leave("chainette:lease", "chainette:worker*", "chainette:held:*", "rq:worker*")  # until somebody reaps it
    site.project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet")
    victim, other = site.workers(2)
    with stopped(other):
        run = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet")
        until(lambda: site.committed("fleet") > 5)
        victim.kill()
        assert run.wait(LONG) == 0
    assert lines(site.project, "fleet") == lines(site.project, "local")


def interrupted(site: Site) -> str:
    """The message of an enqueue that Ctrl-C ends half-way."""
    with site.project.kept_open():
        run = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet", "--window", "16")
        until(lambda: site.committed("fleet") > 2)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=LONG)
    assert run.returncode == 130
    return str(out + err)


@pytest.mark.long
def test_ctrl_c_stops_the_enqueue_and_a_plain_resume_goes_on_over_the_same_redis(site: Site) -> None:
    with stopped(*site.workers(1)):
        assert "go on: chainette resume fleet\n" in interrupted(site)
        assert site.url.partition("://:")[2].partition("@")[0] not in (site.project.path / "fleet/events.jsonl").read_text()
        refused = site.project.chainette("resume", "fleet")
        assert refused.returncode == 1 and "CHAINETTE_REDIS_URL" in refused.stderr and "Traceback" not in refused.stderr
        assert site.project.chainette("resume", "fleet", CHAINETTE_REDIS_URL=site.url).returncode == 0
    assert {event.get("epoch", 0) for event in site.project.events("fleet")} == {0}


@pytest.mark.long
def test_resume_local_does_the_work_here_and_takes_the_run_out_of_redis(site: Site, database: Database) -> None:
    with stopped(*site.workers(1)):
        interrupted(site)
    assert any(database.client.scan_iter("chainette:run:*"))
    both = site.project.chainette("resume", "fleet", "--local", "--workers", "2")
    assert both.returncode == 2 and "leave out --workers" in both.stderr
    done = site.project.chainette("resume", "fleet", "--local", CHAINETTE_REDIS_URL=site.url)
    assert done.returncode == 0, done.stderr
    assert_no_keys_left(database.client)


@pytest.mark.long
def test_a_run_that_goes_on_elsewhere_is_taken_out_of_the_redis_that_it_was_begun_with(site: Site, database: Database) -> None:
    with stopped(*site.workers(1)):
        interrupted(site)
    done = site.project.chainette("resume", "fleet", "--workers", "1", CHAINETTE_REDIS_URL=site.url)
    assert done.returncode == 0, done.stderr
    assert_no_keys_left(database.client)


@pytest.mark.long
def test_workers_let_go_of_a_run_as_soon_as_it_goes_on_elsewhere(site: Site, database: Database) -> None:
    with stopped(*site.workers(1)):
        interrupted(site)
        (site.project.path / "latency").write_text("600")  # it cannot end here
        with site.project.start(
            "resume", "fleet", "--local", env={**site.project.environment, "CHAINETTE_REDIS_URL": site.url}
        ) as here:
            until(lambda: not any(database.client.scan_iter("chainette:run:*")))
            here.send_signal(signal.SIGINT)
            here.communicate(timeout=LONG)
    assert here.returncode == 130


@pytest.mark.long
def test_a_run_is_taken_out_of_every_redis_that_it_was_resumed_over(site: Site, database: Database) -> None:
    database.may_leave(*LEASES)
    (site.project.path / "latency").write_text("600")  # it cannot end before the signal comes
    with site.project.start("run", "chain.py", "in.jsonl", "-o", "fleet") as run:
        until(lambda: site.committed("fleet") > 2)
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=LONG)
    assert run.returncode == 130
    (site.project.path / "latency").write_text("0.1")
    with stopped(*site.workers(1)):
        over = site.start("resume", "fleet", "--window", "16")
        before = site.committed("fleet")
        until(lambda: site.committed("fleet") > before)
        over.kill()
        over.wait()
    done = site.project.chainette("resume", "fleet", CHAINETTE_REDIS_URL=site.url)  # as it was begun: in one process
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert not [*database.client.scan_iter("chainette:run*"), *database.client.scan_iter("rq:queue*")]


@pytest.mark.long
def test_two_that_write_the_same_run_do_not_take_it_from_each_other_again_and_again(site: Site, database: Database) -> None:
    database.may_leave(*LEASES)
    assert site.project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet").returncode == 0
    with stopped(*site.workers(1)):
        first = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet", "--window", "16")
        until(lambda: site.committed("fleet") > 2)
        first.send_signal(signal.SIGSTOP)  # a log that is copied after its shards may know of rows that the copies have not
        shutil.copytree(site.project.path / "fleet", site.project.path / "copy")
        first.send_signal(signal.SIGCONT)
        second = site.start("resume", "copy")
        ends = {name: process.communicate(timeout=LONG)[1] for name, process in (("fleet", first), ("copy", second))}
    for name, process in (("fleet", first), ("copy", second)):
        if process.returncode:
            assert "another process writes run" in ends[name] and f"chainette resume {name}" in ends[name]
        else:
            assert lines(site.project, name) == lines(site.project, "local")
    assert 0 in (first.returncode, second.returncode)
    epochs = {event.get("epoch", 0) for name in ends for event in site.project.events(name)}
    assert len(epochs) < 8, epochs


@pytest.mark.long
def test_a_plain_resume_whose_redis_is_gone_says_how_to_do_without(tmp_path: Path, server: Server) -> None:
    with ExitStack() as stack:
        site = Site(Project(tmp_path, rows=96, latency=0.1), server.url, stack)
        with stopped(*site.workers(1)):
            interrupted(site)
        server.stop()
        durable = lines(site.project, "fleet")
        for words in ((), ("--from", "grade"), ("--input", "in.jsonl")):
            refused = site.project.chainette("resume", "fleet", *words, CHAINETTE_REDIS_URL=server.url)
            hint = f"chainette {' '.join(['resume', 'fleet', *words, '--local'])}"
            assert refused.returncode == 1 and refused.stderr.rstrip().endswith(hint), refused.stderr
            assert lines(site.project, "fleet") == durable
        done = site.project.chainette("resume", "fleet", "--local", CHAINETTE_REDIS_URL=server.url)
        assert done.returncode == 0 and "stays there" in done.stderr, done.stderr
        again = site.project.chainette("resume", "fleet", CHAINETTE_REDIS_URL=server.url)
        assert again.returncode == 0 and again.stderr == ""  # a finished run needs nobody


def test_a_directory_that_a_crash_left_between_two_names_is_gone_on_with_over_a_redis_too(site: Site) -> None:
    project = site.project
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet").returncode == 0
    expected = lines(project, "out")
    (project.path / "out").rename(project.path / ".out.old")  # as `--from` does, one step before its end
    shutil.copytree(project.path / ".out.old", project.path / ".out.fork")
    done = project.chainette("resume", "out", "--redis", site.url)
    assert done.returncode == 0, done.stderr
    assert lines(project, "out") == expected
    assert not (project.path / ".out.old").exists() and not (project.path / ".out.fork").exists()


@pytest.mark.long
def test_a_paused_run_is_held_until_it_is_continued(site: Site) -> None:
    with stopped(*site.workers(1)):
        with site.project.kept_open():
            run = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet", "--window", "16")
            until(lambda: site.committed("fleet") > 2)
            name = site.run_id("fleet")
            assert "paused" in site.project.chainette("pause", name, "--redis", site.url).stdout
        assert "paused" in site.project.chainette("runs", "--redis", site.url).stdout
        told = site.project.chainette("status", "fleet", CHAINETTE_REDIS_URL=site.url).stdout
        assert f"paused: chainette unpause {name} goes on\n" in told.splitlines(keepends=True)[0]
        members = json.loads(site.project.chainette("status", "--redis", site.url, "--json").stdout)["members"]
        assert all(member["pid"] and member["host"] for member in members), "what one kills has a process id"
        site.project.chainette("unpause", name, "--redis", site.url)
        assert run.wait(LONG) == 0
    over = site.project.chainette("status", name, "--watch", "--redis", site.url)
    assert over.returncode == 0 and f"run {name} of chain facts: finished\n" in over.stdout, over.stderr


@pytest.mark.long
def test_a_cancelled_run_leaves_nothing_in_redis_and_says_so_in_its_directory(site: Site) -> None:
    with stopped(*site.workers(1)):
        with site.project.kept_open():
            run = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet", "--window", "16")
            until(lambda: site.committed("fleet") > 2)
            assert site.project.chainette("cancel", site.run_id("fleet"), "--redis", site.url).returncode == 0
        _, errors = run.communicate(timeout=LONG)
        assert run.returncode == 1 and "was cancelled" in errors
        assert [event["type"] for event in site.project.events("fleet")][-1] == "run_cancelled"
        assert "no live runs" in site.project.chainette("runs", "--redis", site.url).stdout


@pytest.mark.long
def test_a_worker_with_another_chain_takes_nothing_and_names_both_digests(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    Project(other, latency=0.1)
    text = (other / "chain.py").read_text()
    (other / "chain.py").write_text(text.replace("Name in:", "Name it:"))
    [wrong] = site.workers(1, "--chain-root", str(other))
    with stopped(wrong):
        run = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet")
        assert wrong.stderr is not None
        said = next(line for line in wrong.stderr if "takes nothing" in line)
        assert "has digest" in said and "where it was enqueued" in said
        assert site.committed("fleet") == 0
        with stopped(*site.workers(1)):
            assert run.wait(LONG) == 0


@pytest.mark.long
def test_workers_that_are_asked_to_end_do_and_hand_back_what_they_have(site: Site) -> None:
    asked, other = site.start("worker", "--engine", "judge"), site.start("worker", "--engine", "writer")
    run = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet")
    with stopped(other):
        until(lambda: site.committed("fleet") > 5)
        assert "asked 1 worker of 'judge'" in site.project.chainette("kill", "--engine", "judge", "--redis", site.url).stdout
        assert asked.wait(LONG) == 0
        with stopped(site.start("worker", "--engine", "judge")):
            assert run.wait(LONG) == 0


@pytest.mark.long
def test_a_worker_that_hangs_is_killed_and_its_units_run_elsewhere(site: Site, database: Database) -> None:
    database.may_leave(*LEASES)
    hung, other = site.start("worker", "--engine", "judge"), site.start("worker", "--engine", "writer")
    run = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet")
    with stopped(other):
        until(lambda: site.committed("fleet") > 5)
        hung.send_signal(signal.SIGSTOP)
        done = site.project.chainette("kill", "--engine", "judge", "--grace", "1", "--redis", site.url)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"(process {hung.pid}) did not end in 1 s and was killed" in done.stdout
        assert hung.wait(LONG) == -signal.SIGKILL
        assert other.poll() is None
        with stopped(site.start("worker", "--engine", "judge")):
            assert run.wait(LONG) == 0


@pytest.mark.long
def test_a_run_that_no_worker_serves_says_so_with_the_command_that_helps(site: Site) -> None:
    with stopped(site.start("worker", "--engine", "writer")):
        run = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet")
        assert run.stderr is not None
        said = next(line for line in run.stderr if "nothing moves" in line)
        assert "no live worker serves 'judge'; start: chainette worker --engine judge" in said
        with stopped(site.start("worker", "--engine", "judge")):
            assert run.wait(LONG) == 0


def test_a_run_id_that_is_not_live_is_said_with_those_that_are(site: Site) -> None:
    done = site.project.chainette("pause", "nothing", "--redis", site.url)
    assert done.returncode == 1 and "no live run 'nothing'; live runs: none" in done.stderr


def test_a_redis_that_does_not_answer_is_named_without_its_password(site: Site) -> None:
    done = site.project.chainette(
        "enqueue", "chain.py", "in.jsonl", "-o", "fleet", "--redis", "redis://:hushhush@127.0.0.1:1/0"
    )
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr and "hushhush" not in done.stdout + done.stderr


YAML = """\
name: facts
models:
  Text: {text: str}
  Fact: {name: {type: str, max_length: 9}}
engines:
  writer: {model: any, backend: simulated}
steps:
  - step: extract
    input_model: Text
    output_model: Fact
    engine_name: writer
    user_prompt: {file: ask.txt}
  - batch_apply: functions:louder
"""

FUNCTIONS = """
from pydantic import BaseModel

class Named(BaseModel):
    name: str

def louder(items: list[Named]) -> list[Named]:
    return [Named(name=item.name.upper()) for item in items]
"""


def test_workers_serve_a_chain_in_yaml(site: Site) -> None:
    project = site.project
    for name, text in {"chain.yml": YAML, "functions.py": FUNCTIONS, "ask.txt": "Name in: {{ text }}"}.items():
        (project.path / name).write_text(text)
    assert project.chainette("run", "chain.yml", "in.jsonl", "-o", "local", "--quiet").returncode == 0
    with stopped(site.start("worker", "--engine", "writer")):
        done = project.chainette("enqueue", "chain.yml", "in.jsonl", "-o", "fleet", "--redis", site.url)
        assert done.returncode == 0, done.stderr
    found = lines(project, "fleet")
    assert found == lines(project, "local") and len(found["flattened"]) == 96

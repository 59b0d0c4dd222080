"""`chainette coordinator` and `chainette sink` as processes, over a real Valkey, with runs that are handed over to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest

from chainette.fleet.redis.connect import shown
from chainette.fleet.redis.fleet_view import look
from chainette.fleet.redis.run_registry import Board, Order
from tests.support.cli import Project, lines, until
from tests.support.patience import LONG
from tests.support.tools import some
from tests.support.valkey import LEASES, Database, Server, assert_no_keys_left, connect


class Site:
    """A project, a Redis, and a fleet that is gone at the end."""

    def __init__(self, project: Project, url: str, stack: ExitStack) -> None:
        self.project, self.url, self._stack = project, url, stack
        self.client = stack.enter_context(connect(url))
        self.board = Board(self.client)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A process that serves, from the moment when it says so."""
        process = self.project.start(*words, "--redis", self.url)
        self._stack.callback(process.communicate)
        self._stack.callback(process.kill)
        assert process.stderr is not None
        assert "serving" in next(process.stderr)
        return process

    @contextmanager
    def fleet(self, *services: str) -> Iterator[list[subprocess.Popen[str]]]:
        """Services and a worker; SIGTERM at the end."""
        words = [(service,) for service in services] + [("worker", "--engine", "writer", "--engine", "judge")]
        processes = [self.start(*each) for each in words]
        yield processes
        for process in processes:
            process.terminate()
        assert {process.wait(LONG) for process in processes if process.poll() in (None, 0)} <= {0}

    def detach(self, directory: str, *words: str) -> str:
        """Hands a run over; its id."""
        call = ("enqueue", "chain.py", "in.jsonl", "-o", directory, "--detach", "--quiet", *words, "--redis", self.url)
        done = self.project.chainette(*call)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    def committed(self, directory: str) -> int:
        log = self.project.path / directory / "events.jsonl"
        return log.read_bytes().count(b"unit_committed") if log.exists() else 0

    def finished(self, run: str) -> None:
        """Waits until a run is out of Redis."""
        until(lambda: self.board.run(run) is None)

    def order(self, run: str) -> Order:
        """The order of a run as it lies in Redis."""
        info = self.board.run(run)
        order = None if info is None else self.board.order(info)
        assert order is not None
        return order

    def local(self) -> dict[str, list[str]]:
        assert self.project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet").returncode == 0
        return lines(self.project, "local")

    def epochs(self, directory: str) -> set[int]:
        return {event.get("epoch", 0) for event in self.project.events(directory)}

    def why(self, run: str) -> str:
        return self.project.chainette("status", run, "--redis", self.url).stdout


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(Project(tmp_path, rows=96, latency=0.1), database.url, stack)


@pytest.mark.long
def test_runs_that_are_handed_over_are_those_of_one_process_and_leave_nothing(site: Site) -> None:
    expected = site.local()
    with site.fleet("coordinator", "sink"):
        runs = [site.detach(name) for name in ("one", "runs/two")]
        for run in runs:
            site.finished(run)
    assert lines(site.project, "one") == lines(site.project, "runs/two") == expected
    assert "run_finished" in (site.project.path / "one" / "events.jsonl").read_text()


@pytest.mark.long
def test_several_inputs_are_handed_over_as_one_run(site: Site) -> None:
    whole = (site.project.path / "in.jsonl").read_text().splitlines(keepends=True)
    (site.project.path / "shards").mkdir()
    for number in (9, 10):
        (site.project.path / f"shards/{number}.jsonl").write_text("".join(whole[32 * (number - 9) :][:32]))
    (site.project.path / "rest.jsonl").write_text("".join(whole[64:]))
    with site.fleet("coordinator", "sink"):
        call = ("enqueue", "chain.py", "shards", "rest.jsonl", "-o", "out", "--detach", "--quiet", "--redis", site.url)
        done = site.project.chainette(*call)
        assert done.returncode == 0, done.stderr
        site.finished(done.stdout.splitlines()[-1])
    assert lines(site.project, "out") == site.local()


@pytest.mark.long
def test_a_link_out_of_the_inputs_root_is_not_read(site: Site, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.jsonl"
    outside.write_text('{"text": "secret"}\n')
    (site.project.path / "shards").mkdir()
    (site.project.path / "shards/0.jsonl").symlink_to(outside)
    with site.fleet("coordinator", "sink"):
        call = ("enqueue", "chain.py", "shards", "-o", "out", "--detach", "--quiet", "--redis", site.url)
        run = site.project.chainette(*call).stdout.splitlines()[-1]
        until(lambda: "leads out of" in str(site.board.run(run)))
        site.project.chainette("cancel", run, "--redis", site.url)
        site.finished(run)
    assert not (site.project.path / "out").exists()


@pytest.mark.long
def test_rows_may_be_admitted_here_and_written_by_a_sink(site: Site) -> None:
    expected = site.local()
    call = ("enqueue", "chain.py", "in.jsonl", "-o", "fleet", "--no-sink", "--redis", site.url)
    alone = site.project.chainette(*call)
    assert alone.returncode == 1 and "start `chainette sink`, or leave out --no-sink" in alone.stderr
    with site.fleet("sink"):
        done = site.project.chainette(*call)
    assert done.returncode == 0, done.stderr
    assert "accounting: balanced" in done.stdout, done.stdout
    assert lines(site.project, "fleet") == expected


def test_without_a_live_service_nothing_is_handed_over_and_the_command_that_helps_is_said(site: Site) -> None:
    call = ("enqueue", "chain.py", "in.jsonl", "-o", "fleet", "--detach", "--redis", site.url)
    done = site.project.chainette(*call)
    assert done.returncode == 1
    assert "`chainette coordinator` and `chainette sink`" in done.stderr
    assert site.board.runs() == []


@pytest.mark.long
def test_a_path_that_leads_elsewhere_is_not_handed_over(site: Site) -> None:
    with site.fleet("coordinator", "sink"):
        for words in (
            ("/etc/passwd", "-o", "fleet"),
            ("in.jsonl", "-o", "../fleet"),
            ("-", "-o", "fleet"),
            ("hf:ann/reviews/train", "-o", "fleet"),
        ):
            done = site.project.chainette("enqueue", "chain.py", *words, "--detach", "--redis", site.url)
            assert done.returncode == 1 and "services take relative paths below their roots only" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1], ids=["coordinator", "sink"])
def test_a_service_that_is_killed_is_replaced_in_the_same_epoch(site: Site, database: Database, victim: int) -> None:
    database.may_leave(*LEASES)
    expected = site.local()
    with site.fleet("coordinator", "sink") as fleet:
        run = site.detach("fleet", "--window", "16")
        until(lambda: site.committed("fleet") > 5)
        fleet[victim].kill()
        fleet[victim].wait()
        next_one = site.start(("coordinator", "sink")[victim])
        site.finished(run)
        next_one.terminate()
        assert next_one.wait(LONG) == 0
    assert lines(site.project, "fleet") == expected
    assert site.epochs("fleet") == {0}


@pytest.mark.long
@pytest.mark.parametrize("victim", some([1, 0, None]), ids={None: "none", 0: "coordinator", 1: "sink"}.get)
def test_a_run_in_phases_goes_on_whichever_service_is_killed_when_one_begins(
    site: Site, database: Database, victim: int | None
) -> None:
    database.may_leave(*LEASES)
    chain = site.project.path / "chain.py"
    chain.write_text(chain.read_text().replace('"simulated"', '"simulated", exclusive=True, load=0.5'))
    expected = site.local()
    with site.fleet("coordinator", "sink") as fleet:
        run = site.detach("fleet", "--window", "16")
        until(lambda: site.committed("fleet") and 1 in site.epochs("fleet"))
        if victim is not None:
            fleet[victim].kill()
            fleet[victim].wait()
            fleet.append(site.start(("coordinator", "sink")[victim]))
        site.finished(run)
    assert lines(site.project, "fleet") == expected
    phases = [event.get("phase", 0) for event in site.project.events("fleet") if event["type"] == "run_resumed"]
    assert phases[0] == phases[-1] == 1


@pytest.mark.long
def test_two_coordinators_admit_every_row_once_and_the_one_that_lives_goes_on(site: Site, database: Database) -> None:
    database.may_leave(*LEASES)
    expected = site.local()
    with site.fleet("coordinator", "coordinator", "sink") as fleet:
        with site.project.kept_open():
            run = site.detach("fleet", "--window", "16")
            until(lambda: site.committed("fleet") > 3)
            info = site.board.run(run)
            assert info is not None
            pid = site.board.members()[info.coordinator].pid
            os.kill(pid, signal.SIGKILL)
        site.finished(run)
        assert sum(process.poll() is None for process in fleet) == 3
    assert lines(site.project, "fleet") == expected
    assert site.epochs("fleet") == {0}


@pytest.mark.long
def test_a_run_that_cannot_go_on_says_why_and_costs_another_nothing(site: Site) -> None:
    (site.project.path / "other.jsonl").write_text('{"text": "x"}\n')
    with site.fleet("coordinator", "sink"):
        call = ("enqueue", "chain.py", "gone.jsonl", "-o", "bad", "--detach", "--quiet", "--redis", site.url)
        bad = site.project.chainette(*call).stdout.splitlines()[-1]
        site.finished(site.detach("good"))
        until(lambda: "no such file" in site.why(bad))
        said = site.why(bad)
        assert "is paused: sink on" in said and f"chainette unpause {bad}" in said
        (site.project.path / "gone.jsonl").write_text('{"text": "x"}\n')
        assert site.project.chainette("unpause", bad, "--redis", site.url).returncode == 0
        site.finished(bad)


@pytest.mark.long
def test_a_service_with_another_chain_names_both_digests(site: Site, tmp_path: Path) -> None:
    with site.fleet("coordinator", "sink"):
        chain = site.project.path / "chain.py"
        text = chain.read_text()
        run = site.detach("fleet", "--window", "16")
        chain.write_text(text.replace("Name in:", "Name it:"))
        other = site.detach("other")
        chain.write_text(text)
        until(lambda: "below" in site.why(other) and "where it was enqueued" in site.why(other))
        assert site.project.chainette("cancel", other, "--redis", site.url).returncode == 0
        for each in (run, other):
            site.finished(each)


@pytest.mark.long
def test_a_cancelled_run_is_not_begun_again_by_a_sink_that_comes_back(site: Site, database: Database) -> None:
    database.may_leave(*LEASES)
    with site.fleet("coordinator", "sink") as fleet:
        run = site.detach("fleet", "--window", "16")
        until(lambda: site.committed("fleet") > 2)
        fleet[1].kill()
        fleet[1].wait()
        assert site.project.chainette("cancel", run, "--redis", site.url).returncode == 0
        sink = site.start("sink")
        site.finished(run)
        until(lambda: [event["type"] for event in site.project.events("fleet")][-1] == "run_cancelled")
        sink.terminate()
        assert sink.wait(LONG) == 0


@pytest.mark.long
def test_a_redis_that_comes_back_empty_costs_a_handed_over_run_an_epoch_and_no_row(tmp_path: Path, server: Server) -> None:
    with ExitStack() as stack:
        site = Site(Project(tmp_path, rows=96, latency=0.1), server.url, stack)
        expected = site.local()
        with site.fleet("coordinator", "sink"):
            run = site.detach("fleet", "--window", "16")
            until(lambda: site.committed("fleet") > 5)
            with site.project.kept_open():
                server.restart_empty()
                until(lambda: site.board.run(run))
            site.finished(run)
        assert_no_keys_left(site.client)
    assert lines(site.project, "fleet") == expected
    assert site.epochs("fleet") == {0, 1}


@pytest.mark.long
def test_steps_are_recomputed_by_the_sink_that_has_the_run_and_what_is_before_them_is_kept(site: Site) -> None:
    with site.fleet("coordinator", "sink") as [*_, worker]:
        run = site.detach("fleet", "--window", "16")
        until(lambda: site.committed("fleet") > 12)
        worker.terminate()  # so that the run cannot end before the command below is read
        assert worker.wait(LONG) == 0
        until(lambda: not look(site.client, run).runs[0].results)  # the sink has written all of it
        before = set(lines(site.project, "fleet")["extract"])
        chain = site.project.path / "chain.py"
        chain.write_text(chain.read_text().replace('user_prompt="{{ pieces }}"', 'user_prompt="Grade: {{ pieces }}"'))
        done = site.project.chainette("resume", "fleet", "--select", "changed+", "--redis", site.url)
        assert done.returncode == 0 and "asked the sink" in done.stdout, done.stderr
        with site.fleet():
            site.finished(run)
    events = [*site.project.events("fleet")]
    assert events[-1]["type"] == "run_finished" and {event.get("epoch", 0) for event in events} == {0, 1}
    units = [event for event in events if event["type"] == "unit_committed"]
    assert {event.get("epoch", 0) for event in units if event["node"] == "grade"} == {1}
    assert before <= set(lines(site.project, "fleet")["extract"])
    assert site.project.ids("fleet", "grade") == sorted(str(number) for number in range(96))


@pytest.mark.long
def test_an_order_that_somebody_puts_back_computes_nothing_anew_a_second_time(site: Site) -> None:
    with site.fleet("coordinator", "sink") as [_, sink, worker]:
        run = site.detach("fleet", "--window", "16")
        until(lambda: site.committed("fleet") > 12)
        worker.terminate()  # so that the run cannot end meanwhile
        assert worker.wait(LONG) == 0
        assert site.project.chainette("resume", "fleet", "--from", "grade", "--redis", site.url).returncode == 0
        until(lambda: (order := site.order(run)).number == 1 and not order.from_steps)
        sink.kill()
        sink.wait(LONG)
        followed = site.order(run)
        site.board.say(run, msgspec.structs.replace(followed, from_steps=("grade",)).fields)
        with site.fleet("sink"):
            with site.project.kept_open():
                until(lambda: site.order(run) == followed)
            site.finished(run)
    assert site.epochs("fleet") == {0, 1}
    assert site.project.ids("fleet", "grade") == sorted(str(number) for number in range(96))


@pytest.mark.long
def test_a_held_run_is_gone_on_with_by_its_sink_when_its_directory_is_resumed(site: Site) -> None:
    with site.fleet("coordinator", "sink"):
        with site.project.kept_open():
            run = site.detach("fleet", "--window", "16")
            until(lambda: site.committed("fleet") > 2)
            assert site.project.chainette("pause", run, "--redis", site.url).returncode == 0
        assert f"run {run} is paused; go on: chainette unpause {run}" in site.why(run)
        assert "is paused" in site.project.chainette("runs", "--redis", site.url).stdout
        assert "sink sink-" in site.project.chainette("status", "--redis", site.url).stdout
        assert next(site.project.events("fleet"))["way"] == {"redis": shown(site.url)}
        done = site.project.chainette("resume", "fleet", CHAINETTE_REDIS_URL=site.url)
        assert done.returncode == 0 and "asked the sink" in done.stdout, done.stderr
        site.finished(run)


@pytest.mark.long
def test_an_input_that_changes_while_a_coordinator_reads_it_holds_the_run_until_the_old_file_is_back(site: Site) -> None:
    expected, path = site.local(), site.project.path / "in.jsonl"
    old = path.read_bytes()
    with site.fleet("coordinator", "sink"):
        with site.project.kept_open():
            run = site.detach("fleet", "--window", "8")
            until(lambda: site.committed("fleet") > 1)
            path.write_bytes(old.replace(b"row", b"new"))
        until(lambda: "in.jsonl changed while the run was reading it" in site.why(run))
        assert site.project.chainette("resume", "fleet", "--redis", site.url).returncode == 0
        until(lambda: "has changed since the run in" in site.why(run))
        path.write_bytes(old)
        assert site.project.chainette("resume", "fleet", "--redis", site.url).returncode == 0
        site.finished(run)
    assert lines(site.project, "fleet") == expected


@pytest.mark.long
def test_rows_that_wait_in_redis_are_not_mixed_with_those_of_a_file_that_changed_meanwhile(
    site: Site, database: Database
) -> None:
    database.may_leave(*LEASES)
    path = site.project.path / "in.jsonl"
    rows = [f"row {number} " + "x" * 100_000 for number in range(40)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    call = ("enqueue", "chain.py", "in.jsonl", "-o", "fleet", "--window", "16", "--quiet", "--redis", site.url)
    first = site.project.start(*call)
    until(lambda: any(info.epoch >= 0 and info.cursor == 2 for info in site.board.runs()))
    first.kill()
    first.communicate()
    path.write_bytes(path.read_bytes().replace(b"row 14 ", b"new 14 "))  # behind the first MiB
    with site.fleet():
        done = site.project.chainette("resume", "fleet", "--quiet", "--redis", site.url)
        assert done.returncode == 0, done.stderr
    found = lines(site.project, "fleet")
    assert found == site.local()  # nothing of the old file was durable
    assert any("new 14 " in line for line in found["flattened"])


@pytest.mark.long
def test_a_raised_limit_goes_to_the_sink_that_has_the_run(site: Site) -> None:
    with site.fleet("coordinator", "sink") as [*_, worker]:
        run = site.detach("fleet", "--limit", "60", "--window", "8")
        until(lambda: site.committed("fleet") > 3)
        worker.terminate()  # so that the run cannot end before the commands below are read
        assert worker.wait(LONG) == 0
        lower = site.project.chainette("resume", "fleet", "--limit", "50", "--redis", site.url)
        assert lower.returncode == 1 and "not lowered to 50" in lower.stderr
        raised = site.project.chainette("resume", "fleet", "--limit", "70", "--redis", site.url)
        assert raised.returncode == 0 and "asked the sink" in raised.stdout, raised.stderr
        with site.fleet():
            site.finished(run)
            assert len(lines(site.project, "fleet")["flattened"]) == 70
            done = site.project.chainette("resume", "fleet", "--limit", "80", "--redis", site.url)  # a finished run
            assert done.returncode == 0, done.stderr
    assert site.project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--limit", "80", "-q").returncode == 0
    assert lines(site.project, "fleet") == lines(site.project, "local")


@pytest.mark.long
def test_services_accept_the_rows_that_one_process_accepts_and_leave_nothing(site: Site) -> None:
    project = site.project
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--accept", "30", "--quiet")
    assert done.returncode == 0, done.stderr
    with site.fleet("coordinator", "sink") as [_, sink, _]:
        run = site.detach("fleet", "--accept", "30", "--window", "24")
        until(lambda: site.committed("fleet") > 3)
        sink.kill()
        sink.wait(LONG)
        with site.fleet("sink"):
            site.finished(run)
    one, other = ((project.path / name / "flattened/0.jsonl").read_text() for name in ("local", "fleet"))
    assert one == other and one.count("\n") == 30

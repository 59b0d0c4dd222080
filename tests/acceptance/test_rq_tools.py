"""RQ's own tools beside a live run: `rq info` and rq-dashboard show the truth, and their cleanups change nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Queue, Worker
from rq.registry import clean_registries
from rq.serializers import JSONSerializer

from chainette.fleet.redis.redis_queue import FleetQueue
from tests.support.cli import Project, lines, until
from tests.support.patience import LONG
from tests.support.proxy import FaultProxy
from tests.support.valkey import Database, connect


class Tools:
    """The commands installed with RQ, over the test's Redis."""

    def __init__(self, url: str, client: Redis, web: str) -> None:
        self.client, self._web = client, web
        self._environment = os.environ | {"RQ_REDIS_URL": url}

    def info(self) -> list[str]:
        """The lines of `rq info`."""
        code = "import sys; from rq.cli import main; sys.argv = ['rq', 'info', '--raw']; main()"
        done = subprocess.run([sys.executable, "-c", code], env=self._environment, capture_output=True, text=True, timeout=LONG)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def page(self, path: str) -> bytes:
        """A page of the dashboard."""
        with urllib.request.urlopen(f"{self._web}{path}", timeout=LONG) as reply:
            found: bytes = reply.read()
        return found

    def data(self, path: str) -> dict[str, Any]:
        """The data of the dashboard's pages."""
        found: dict[str, Any] = json.loads(self.page(f"/0/data/{path}.json"))
        return found

    def queues(self) -> list[Queue]:
        return Queue.all(connection=self.client, serializer=JSONSerializer)

    def workers(self) -> list[str]:
        return [worker.name for worker in Worker.all(self.client, serializer=JSONSerializer)]


@pytest.fixture
def tools(database: Database, proxy: FaultProxy) -> Iterator[Tools]:
    """The dashboard runs until the end of the test; the connection is over TCP, since it knows no Unix sockets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from rq_dashboard.cli import main; main()"
    command = [sys.executable, "-c", code, "-j", "--bind", "127.0.0.1", "--port", str(port), "--disable-delete"]
    environment = os.environ | {"RQ_DASHBOARD_REDIS_URL": proxy.url}
    with connect(proxy.url) as client, subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as dashboard:
        try:
            until(lambda: answers(port))
            yield Tools(proxy.url, client, f"http://127.0.0.1:{port}")
        finally:
            dashboard.kill()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, rows=40)


@contextmanager
def started(project: Project, *words: str) -> Iterator[subprocess.Popen[str]]:
    with project.start(*words) as process:
        try:
            if words[0] == "worker":
                assert process.stderr is not None and "serving" in next(process.stderr)
            yield process
        finally:
            process.kill()


@pytest.mark.long
def test_rqs_tools_show_the_truth_of_a_live_run_and_change_nothing_of_it(
    project: Project, database: Database, tools: Tools
) -> None:
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet").returncode == 0
    serve = ("worker", "--engine", "writer", "--engine", "judge", "--rows-in-flight", "16", "--redis", database.url)
    with ExitStack() as stack, cleaning_all_the_time(tools):
        with project.kept_open():  # units are in hand for as long as the tools need
            victim = stack.enter_context(started(project, *serve))
            run = stack.enter_context(
                started(project, "enqueue", "chain.py", "in.jsonl", "-o", "fleet", "--redis", database.url)
            )
            working = until(lambda: next((queue for queue in tools.queues() if busy(tools, queue)), None))
            pid = shown(tools, working)

            victim.kill()
            victim.wait()
            assert pid in {
                worker.pid for worker in Worker.all(tools.client, serializer=JSONSerializer)
            }  # as far as anybody knows
            [name] = tools.workers()
            database.client.zadd("chainette:lease", {name: 1})  # its lease is over
            assert FleetQueue(database.client).reap() == [name]
            assert tools.workers() == [] == tools.data("workers")["workers"]
            assert not any(line.startswith("worker ") for line in tools.info())
            assert working.started_job_registry.count == 0 and working.count > 0
            assert working.failed_job_registry.count == 0

        other = stack.enter_context(started(project, *serve))
        assert run.wait(LONG) == 0
        assert [name] != tools.workers() != []
        other.terminate()
        assert other.wait(LONG) == 0
    assert tools.workers() == [] == tools.queues()
    assert lines(project, "fleet") == lines(project, "local")


def busy(tools: Tools, queue: Queue) -> bool:
    """Whether units of the held function are in hand, and the worker has said so."""
    if not queue.name.startswith("python.") or not queue.started_job_registry.count:
        return False
    return any(worker.get_state() == "busy" for worker in Worker.all(tools.client, queue=queue, serializer=JSONSerializer))


def shown(tools: Tools, working: Queue) -> int:
    """Everything the tools say while the worker works; its process id."""
    [worker] = Worker.all(tools.client, queue=working, serializer=JSONSerializer)
    assert worker.pid is not None and worker.hostname == socket.gethostname()
    assert working.name in worker.queue_names()
    told = tools.info()
    [line] = [line for line in told if line.startswith(f"queue {working.name} ")]
    assert "executing, 0 finished, 0 failed" in line and " 0 executing" not in line
    [line] = [line for line in told if line.startswith("worker ")]
    assert f"{worker.name} ({worker.hostname}" in line and str(worker.pid) in line and "busy" in line and working.name in line

    [seen] = tools.data("workers")["workers"]
    assert (seen["name"], seen["pid"], seen["state"]) == (worker.name, worker.pid, "busy")
    assert working.name in seen["queues"]
    found = {queue["name"]: queue for queue in tools.data("queues")["queues"]}
    assert set(found) == {queue.name for queue in tools.queues()}
    assert found[working.name]["started_job_registry_count"] > 0
    jobs = tools.data(f"jobs/{working.name}/started/8/asc/1")["jobs"]
    assert jobs and all(job["description"].startswith("split root ") for job in jobs)
    job = tools.data(f"job/{jobs[0]['id']}")
    assert (job["origin"], job["status"]) == (working.name, "started")
    for page in ("/", "/0/view/workers", "/0/view/jobs", f"/0/view/jobs/{working.name}/started/8/asc/1"):
        assert b"RQ" in tools.page(page)
    return worker.pid


@contextmanager
def cleaning_all_the_time(tools: Tools) -> Iterator[None]:
    """The calls that `rq info`, dashboards and exporters repeat while they look."""
    over, failed = threading.Event(), list[BaseException]()

    def clean() -> None:
        try:
            while not over.wait(0.02):
                for queue in tools.queues():
                    clean_registries(queue)
                tools.workers()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=clean)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert failed == []

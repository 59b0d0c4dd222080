"""`chainette worker`'s flags as a user meets them: GPUs, draining, engines of a file, chains that are mended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.test_enqueue import Site, stopped
from tests.support.cli import Project, lines, until
from tests.support.patience import LONG
from tests.support.processes import children
from tests.support.server_project import ServerProject
from tests.support.slow_server import SlowServer
from tests.support.valkey import Database


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(Project(tmp_path, rows=48, latency=0.02), database.url, stack)


def two_gpus(site: Site) -> dict[str, str]:
    """An environment in which nvidia-smi tells of two GPUs."""
    tools = site.project.path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    (tools / "nvidia-smi").chmod(0o755)
    environment = site.project.environment | {"PATH": f"{tools}:{os.environ['PATH']}"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return environment


_TELLS_ITS_GPU = """
import os, pathlib
pathlib.Path(f"gpu-{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
"""


def gpus_of(project: Path, pids: list[int]) -> list[str]:
    """The GPUs of workers, as a chain sees them that they serve."""
    files = [project / f"gpu-{pid}" for pid in pids]
    return sorted(file.read_text() for file in files if file.exists())


def workers_of(parent: int) -> list[int]:
    """The two workers of a process, once both live."""
    found: list[int] = until(lambda: len(found := children(parent)) == 2 and found)
    return found


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.long
def test_gpu_all_is_one_worker_for_each_that_comes_back_when_it_dies_and_ends_with_its_parent(
    site: Site, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    database.may_leave("chainette:lease", "chainette:worker*", "rq:worker*", "chainette:held:*")  # of the one that is killed
    environment = two_gpus(site)
    open_ = asyncio.Event()

    async def answer(_asked: str) -> str:
        await open_.wait()
        return json.dumps({"word": "w"})

    with SlowServer(answer) as server:
        project = ServerProject(tmp_path_factory.mktemp("project"), rows=8)
        project.url = server.url
        with (project.path / "chain.py").open("a") as chain:
            chain.write(_TELLS_ITS_GPU)
        words = ("worker", "--engine", "server", "--gpu", "all", "--redis", site.url)
        with (
            project.start(*words, env=project.environment | environment) as parent,
            stopped(parent),
            project.start("enqueue", "chain.py", "in.jsonl", "-o", "out", "--redis", site.url) as run,
            stopped(run),
        ):
            pids = workers_of(parent.pid)
            until(lambda: gpus_of(project.path, pids) == ["0", "1"])
            os.kill(pids[0], signal.SIGKILL)
            again = until(lambda: pids[0] not in (found := workers_of(parent.pid)) and found)
            until(lambda: gpus_of(project.path, again) == ["0", "1"])
            server.call(open_.set)
            assert run.wait(LONG) == 0
            parent.terminate()
            assert parent.wait(LONG) == 0 and gone(again)

    parent = site.start("worker", "--engine", "writer", "--gpu", "all", env=environment)
    pids = workers_of(parent.pid)
    parent.kill()
    until(lambda: gone(pids))


@pytest.mark.parametrize(
    ("gpu", "visible", "said"),
    [
        ("0", "", "this machine has no GPU (CUDA_VISIBLE_DEVICES names none)"),
        ("all", "", "this machine has no GPU"),
        ("0,2", "5,7", "there is no GPU number 2; CUDA_VISIBLE_DEVICES names 5, 7"),
    ],
)
def test_a_gpu_that_is_not_there_is_one_clear_line(site: Site, gpu: str, visible: str, said: str) -> None:
    environment = site.project.environment | {"CUDA_VISIBLE_DEVICES": visible}
    worker = site.project.start("worker", "--engine", "writer", "--gpu", gpu, "--redis", site.url, env=environment)
    _, errors = worker.communicate(timeout=LONG)
    assert worker.returncode == 1 and said in errors and len(errors.splitlines()) == 1


def test_gpus_are_counted_in_those_that_are_visible(site: Site) -> None:
    environment = site.project.environment | {"CUDA_VISIBLE_DEVICES": "5,7"}
    with stopped(site.start("worker", "--engine", "writer", "--gpu", "1", env=environment)):
        pass


@pytest.mark.long
def test_a_worker_that_drains_finishes_what_it_has_and_ends(site: Site) -> None:
    site.project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet")
    drained = site.start("worker", "--engine", "writer", "--engine", "judge", "--drain-after", "2")
    run = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet")
    assert drained.wait(LONG) == 0
    with stopped(*site.workers(1)):
        assert run.wait(LONG) == 0
    assert lines(site.project, "fleet") == lines(site.project, "local")


@pytest.mark.long
def test_engines_of_a_file_must_be_the_same_on_both_sides(site: Site) -> None:
    (site.project.path / "engines.yaml").write_text("engines: {writer: {model: other, backend: simulated}}\n")
    [without] = site.workers(1)
    with stopped(without):
        run = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet", "--engines", "engines.yaml")
        assert without.stderr is not None
        said = next(line for line in without.stderr if "takes nothing" in line)
        assert "engine 'writer' has digest" in said and "give the worker the same --engines FILE" in said
        with stopped(*site.workers(1, "--engines", "engines.yaml")):
            assert run.wait(LONG) == 0


def test_a_chain_that_is_mended_on_the_workers_disk_is_served_without_a_restart(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    Project(other, latency=0.02)
    right = (other / "chain.py").read_text()
    (other / "chain.py").write_text(right.replace("Name in:", "Name it:"))
    [worker] = site.workers(1, "--chain-root", str(other))
    with stopped(worker):
        run = site.start("enqueue", "chain.py", "in.jsonl", "-o", "fleet")
        assert worker.stderr is not None
        next(line for line in worker.stderr if "takes nothing" in line)
        (other / "chain.py").write_text(right)
        assert run.wait(LONG) == 0


@pytest.mark.long
def test_a_row_that_ends_the_process_of_its_function_is_rejected_and_the_worker_lives(site: Site) -> None:
    chain = site.project.path / "chain.py"
    text = chain.read_text().replace(
        "    return [item, item]", "    return [item, item] if item.name[0] != 'e' else os._exit(9)"
    )
    chain.write_text("import os\n" + text)
    [worker] = site.workers(1)
    with stopped(worker):
        done = site.project.chainette("enqueue", "chain.py", "in.jsonl", "-o", "fleet", "--redis", site.url)
    assert done.returncode in (0, 3), done.stderr
    names = [line for line in lines(site.project, "fleet")["rejected"] if '"poison"' in line]
    named = [line for line in lines(site.project, "fleet")["extract"] if '"name":"e' in line]
    assert len(names) == len(named) > 0
    assert all("exit code 9" in line for line in names)

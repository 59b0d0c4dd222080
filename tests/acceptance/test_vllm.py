"""Chains on vLLM as processes see them: a run to its end, the model's process killed, the run itself killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chainette_workers.worker.entry import WORKER_NAME

from tests.support.cli import Project, until
from tests.support.patience import LONG
from tests.support.processes import children
from tests.support.vllm import SMOL, needs_vllm, tiny_model

pytestmark = needs_vllm

CHAIN = """
from pydantic import BaseModel, Field

from chainette import Chain, SamplingParams, Step, register_engine


class Text(BaseModel):
    text: str


class Thing(BaseModel):
    name: str = Field(max_length=12)
    size: int = Field(ge=0, le=9)


register_engine("model", MODEL, threads=1, **KEYS)
sampling = SamplingParams(max_tokens=48)
thing = Step(id="thing", input_model=Text, output_model=Thing, engine_name="model", user_prompt="{{ text }}", sampling=sampling)
chain = Chain(name="things", steps=[thing], batch_size=16)
"""

#: A script that runs its own chain, as people write it: nothing keeps a child process from running it again.
SCRIPT = (
    CHAIN
    + """
print("the script runs")
print(chain.run("in.jsonl", "out").status)
"""
)


#: How the tiny model is loaded.
TINY = {"load_format": "dummy", "max_model_len": 512, "max_num_seqs": 16}


class ModelProject(Project):
    """A folder with a chain on vLLM."""

    def write(self, text: str, model: Path, **keys: Any) -> None:
        (self.path / "chain.py").write_text(text.replace("MODEL", repr(str(model))).replace("KEYS", repr(keys)))

    def told(self, kind: str) -> int:
        """How many lines of a kind the log has."""
        log = self.path / "out/events.jsonl"
        return log.read_bytes().count(f'"{kind}"'.encode()) if log.exists() else 0

    def committed(self) -> int:
        return self.told("unit_committed")


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return False


@pytest.fixture
def tiny(tmp_path: Path) -> ModelProject:
    """160 rows for a model that answers at random."""
    tiny_model(tmp_path / "tiny")
    project = ModelProject(tmp_path, rows=160)
    project.write(CHAIN, tmp_path / "tiny", **TINY)
    return project


def test_a_chain_runs_to_its_end_and_rejects_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = ModelProject(tmp_path, rows=6)
    project.write(CHAIN, SMOL, max_model_len=300)
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write(json.dumps({"text": "word " * 400}) + "\n")
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out")
        hub.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody asked the hub about a model that is a folder
            hub.accept()
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr and "WARNING" not in done.stdout + done.stderr
    assert len(project.ids("out", "thing")) == 6
    [rejected] = [json.loads(line) for line in (tmp_path / "out/rejected/0.jsonl").read_text().splitlines()]
    assert (rejected["row_id"], rejected["reason"]) == ("6", "prompt_too_long")
    assert "tokens, and max_model_len=300 must hold one more" in rejected["message"]
    metadata = json.loads((tmp_path / "out/metadata.json").read_text())
    assert metadata["usage"]["completion_tokens"] > 30 and 0 <= metadata["usage"]["queued"] <= metadata["usage"]["seconds"]
    engine = metadata["engines"]["model"]
    assert (engine["backend"], engine["dtype"], engine["max_model_len"]) == ("vllm", "float32", 300)


def test_a_model_that_is_killed_is_loaded_again_and_every_row_is_done_once(tiny: ModelProject) -> None:
    tiny.write(SCRIPT, tiny.path / "tiny", **TINY)
    command = [sys.executable, "chain.py"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tiny.path, env=tiny.environment, stdout=pipe, stderr=pipe, text=True) as run:
        for loads, sent in enumerate((signal.SIGTERM, signal.SIGKILL), 1):  # the first lets it abort its requests
            until(lambda: tiny.told("engine_loaded") == loads or run.poll() is not None)  # noqa: B023
            before = tiny.committed()
            until(lambda: tiny.committed() > before or run.poll() is not None)  # noqa: B023
            [core] = children(run.pid, "EngineCore")
            os.kill(core, sent)
            until(lambda: not is_alive(core))  # noqa: B023
        out, errors = run.communicate(timeout=LONG)
    assert run.returncode == 0, errors
    assert out.split("\n")[:2] == ["the script runs", "finished"] and "Traceback" not in errors
    assert tiny.ids("out", "thing") == sorted(map(str, range(160)))
    kinds = [event["type"] for event in tiny.events("out")]
    assert kinds.count("engine_loaded") == 3 and "unit_retried" in kinds
    assert json.loads((tiny.path / "out/metadata.json").read_text())["rows_rejected"] == 0


def test_a_worker_that_is_killed_leaves_no_model_behind_and_another_goes_on(tiny: ModelProject) -> None:
    with tiny.start("run", "chain.py", "in.jsonl", "-o", "out", "--workers", "1") as run:
        until(lambda: tiny.committed() or run.poll() is not None)
        [worker] = children(run.pid, WORKER_NAME)
        [core] = children(worker, "EngineCore")
        os.kill(worker, signal.SIGKILL)
        until(lambda: not is_alive(core))
        _, errors = run.communicate(timeout=LONG)
    assert run.returncode == 0, errors
    assert tiny.ids("out", "thing") == sorted(map(str, range(160)))


@pytest.mark.parametrize("words", [(), ("--workers", "1")])
def test_the_next_rows_wait_inside_the_model_ready_to_be_computed(tiny: ModelProject, words: tuple[str, ...]) -> None:
    done = tiny.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--usage", *words)
    assert done.returncode in (0, 3), done.stderr
    files = [tiny.path / "out" / folder / "0.jsonl" for folder in ("thing", "rejected")]
    rows = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    assert len(rows) == 160 and all(row["_completion_tokens"] > 0 and row["_prompt_tokens"] > 0 for row in rows)
    # a row that was rendered only when there is room for it would be computed at once
    waited = [row["_queued"] / (row["_seconds"] - row["_queued"]) for row in rows]
    assert statistics.median(waited) > 0.2, sorted(waited)


def test_a_model_that_cannot_be_loaded_is_one_line(tiny: ModelProject) -> None:
    tiny.write(CHAIN, tiny.path / "tiny", load_format="dummy", max_model_len=8192, extra={"kv_cache_memory_bytes": 1 << 20})
    done = tiny.chainette("run", "chain.py", "in.jsonl", "-o", "out")
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "engine 'model': vllm cannot load" in line and "KV cache" in line
    assert "Traceback" not in done.stderr

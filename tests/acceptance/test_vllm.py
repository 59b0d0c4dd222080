"""Chains on vLLM as processes see them: a run to its end, the model's process killed, the run itself killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Project, until
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


class ModelProject(Project):
    """A folder with a chain on vLLM."""

    def write(self, text: str, model: Path, **keys: Any) -> None:
        (self.path / "chain.py").write_text(text.replace("MODEL", repr(str(model))).replace("KEYS", repr(keys)))

    def children(self, process: subprocess.Popen[str]) -> list[int]:
        """Process ids of the models that it has loaded."""
        return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if is_core_of(entry, process.pid)]

    def committed(self) -> int:
        log = self.path / "out/events.jsonl"
        return log.read_bytes().count(b'"unit_committed"') if log.exists() else 0


def is_core_of(entry: Path, parent: int) -> bool:
    try:
        told = (entry / "cmdline").read_bytes()
        return b"EngineCore" in told and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent
    except OSError:
        return False


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return False


@pytest.fixture
def tiny(tmp_path: Path) -> ModelProject:
    """160 rows for a model that answers at random."""
    project = ModelProject(tmp_path, rows=160)
    project.write(SCRIPT, tiny_model(tmp_path / "tiny"), load_format="dummy", max_model_len=512, max_num_seqs=16)
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
    command = [sys.executable, "chain.py"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tiny.path, env=tiny.environment, stdout=pipe, stderr=pipe, text=True) as run:
        for sent in (signal.SIGTERM, signal.SIGKILL):  # the first lets it abort what it computes
            before = tiny.committed()
            until(lambda: tiny.committed() > before or run.poll() is not None, 120)  # noqa: B023
            [core] = tiny.children(run)
            os.kill(core, sent)
            until(lambda: not is_alive(core), 20)  # noqa: B023
        out, errors = run.communicate(timeout=200)
    assert run.returncode == 0, errors
    assert out.split("\n")[:2] == ["the script runs", "finished"] and "Traceback" not in errors
    assert tiny.ids("out", "thing") == sorted(map(str, range(160)))
    kinds = [event["type"] for event in tiny.events("out")]
    assert kinds.count("engine_loaded") == 3 and "unit_retried" in kinds
    assert json.loads((tiny.path / "out/metadata.json").read_text())["rows_rejected"] == 0


def test_a_run_that_is_killed_leaves_no_model_behind(tiny: ModelProject) -> None:
    run = tiny.start("run", "chain.py:chain", "in.jsonl", "-o", "killed")
    with run:
        [core] = until(lambda: tiny.children(run), 120)
        run.kill()
        run.communicate()
    until(lambda: not is_alive(core), 20)


def test_a_model_that_cannot_be_loaded_is_one_line(tiny: ModelProject) -> None:
    tiny.write(CHAIN, tiny.path / "tiny", load_format="dummy", max_model_len=8192, extra={"kv_cache_memory_bytes": 1 << 20})
    done = tiny.chainette("run", "chain.py", "in.jsonl", "-o", "out")
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "engine 'model': vllm cannot load" in line and "KV cache" in line
    assert "Traceback" not in done.stderr

"""`inspect`, `inspect-dag`, `engines`, and the command itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import CHAIN, Project
from tests.support.patience import LONG

#: Without a warning of its own.
BOUNDED = CHAIN.replace("import BaseModel", "import BaseModel, Field").replace("name: str", "name: str = Field(max_length=9)")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    (tmp_path / "chain.py").write_text(BOUNDED)
    return made


def test_inspect_lists_nodes_with_models_and_engines(project: Project) -> None:
    done = project.chainette("inspect", "chain.py")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["extract", "Text", "Fact", "writer"] in rows
    assert ["split", "pieces_of", "Fact", "list[Fact]", "python", "expands", "rows"] in rows
    assert ["grade", "Fact", "Grade", "judge"] in rows
    assert rows[-1] == ["no", "problems"]


def test_inspect_names_every_problem_with_its_line_and_exits_with_2(project: Project) -> None:
    broken = CHAIN.replace("{{ text }}", "{{ texx }}").replace('engine_name="judge"', 'engine_name="jugde"')
    (project.path / "chain.py").write_text(broken)
    lines = broken.splitlines()
    done = project.chainette("inspect", "chain.py")
    assert done.returncode == 2
    head, *problems = done.stderr.splitlines()
    assert head == "error: chain 'facts' cannot run: 2 problems"
    for word, start in (("texx", "extract = "), ("jugde", "grade = ")):
        line = next(number for number, text in enumerate(lines, 1) if text.startswith(start))
        assert any(problem.startswith(f"  chain.py:{line}: ") and word in problem for problem in problems)


def test_warnings_go_to_stderr_and_do_not_fail(project: Project) -> None:
    (project.path / "chain.py").write_text(CHAIN.replace("def split(item: Fact) -> list[Fact]:", "def split(item: Fact):"))
    done = project.chainette("inspect", "chain.py")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: chain.py:")
    assert "warning" in done.stdout.splitlines()[-1]


def test_only_inspect_warns_of_output_fields_without_a_limit(project: Project) -> None:
    (project.path / "chain.py").write_text(CHAIN)
    [warning] = project.chainette("inspect", "chain.py").stderr.splitlines()
    assert re.match(r"warning: chain\.py:\d+: step 'extract': Fact has no limit on name; ", warning)
    assert "no limit" not in project.chainette("run", "chain.py", "in.jsonl", "--limit", "1").stderr


def test_a_prompt_without_a_value_is_a_warning_wherever_the_chain_is_checked(project: Project) -> None:
    (project.path / "chain.py").write_text(BOUNDED.replace("{{ text }}", "{text}"))
    for words in (["inspect", "chain.py"], ["run", "chain.py", "in.jsonl", "--limit", "1"]):
        done = project.chainette(*words)
        assert done.returncode == 0
        assert "user_prompt: {text} is sent literally; write {{ text }} for the value" in done.stderr


def test_a_chain_file_that_raises_is_said_with_its_line(project: Project) -> None:
    (project.path / "chain.py").write_text("x = 1\nraise ValueError('no such thing')\n")
    done = project.chainette("inspect", "chain.py")
    assert done.returncode == 2
    assert "chain.py:2" in done.stderr and "no such thing" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_chain_is_found_below_the_chain_root(project: Project) -> None:
    folder = project.path / "chains"
    folder.mkdir()
    (project.path / "chain.py").rename(folder / "other.py")
    done = project.chainette("inspect", "other.py", "--chain-root", "chains")
    assert done.returncode == 0, done.stderr


def test_inspect_dag_draws_ascii_unicode_and_mermaid(project: Project) -> None:
    unicode = project.chainette("inspect-dag", "chain.py").stdout
    assert "├─ 🤖 extract  Text → Fact  [writer]" in unicode
    plain = project.chainette("inspect-dag", "chain.py", "--no-icons", "--max-branches", "1").stdout
    assert plain.isascii()
    assert "+1 more" in plain
    assert project.chainette("inspect-dag", "chain.py", "--mermaid").stdout.splitlines()[1] == "flowchart TD"


def test_engines_without_a_chain_lists_backends(project: Project) -> None:
    done = project.chainette("engines")
    assert done.returncode == 0
    assert [word for word in ("openai", "ollama", "llama_cpp", "simulated", "vllm") if word not in done.stdout] == []


def test_engines_of_a_chain_tells_who_uses_them_and_no_secret(project: Project) -> None:
    (project.path / "engines.yml").write_text(
        "engines:\n"
        "  judge:\n"
        "    model: gpt\n"
        "    backend: openai\n"
        "    endpoint: https://me:hunter2@host/v1?key=hunter2\n"
        "    api_key_env: JUDGE_KEY\n"
        "    headers: {X-Secret: hunter2}\n"
        "    extra: {token: hunter2}\n"
    )
    done = project.chainette("engines", "chain.py", "--engines", "engines.yml")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["judge", "openai", "gpt", "https://host/v1", "auto", "$JUDGE_KEY", "grade"] in rows
    assert any(row[:1] == ["writer"] and row[-2:] == ["extract,", "side"] for row in rows)
    alone = project.chainette("engines", "--engines", "engines.yml")
    assert "https://host/v1" in alone.stdout
    assert "hunter2" not in done.stdout + done.stderr + alone.stdout + alone.stderr


def test_a_file_whose_engines_the_chain_does_not_have_is_a_warning(project: Project) -> None:
    (project.path / "engines.yml").write_text("engines: {judges: {model: m, backend: simulated}}\n")
    done = project.chainette("inspect", "chain.py", "--engines", "engines.yml")
    assert done.returncode == 0
    assert "warning: engines.yml has no engine of the chain: it has judges, the chain uses writer, judge" in done.stderr
    (project.path / "engines.yml").write_text("engines: {judge: {model: m, backend: simulated}, other: {model: m}}\n")
    assert "no engine of the chain" not in project.chainette("inspect", "chain.py", "--engines", "engines.yml").stderr


@pytest.mark.parametrize(
    "words",
    [
        ["worker", "--engine", "judge", "--chain-root", "nowhere"],
        ["worker", "--engine", "judge", "--engines", "nowhere"],
        ["coordinator", "--inputs-root", "nowhere"],
        ["sink", "--runs-root", "nowhere"],
        ["run", "chain.py", "in.jsonl", "--engines", "nowhere"],
    ],
)
def test_a_path_that_is_not_there_is_said_at_once(project: Project, words: list[str]) -> None:
    done = project.chainette(*words)
    assert done.returncode == 2 and f"'{words[-2]}'" in done.stderr and "'nowhere' does not exist" in done.stderr


def test_the_help_of_enqueue_has_the_flags_that_it_takes(project: Project) -> None:
    text = project.chainette("enqueue", "--help").stdout
    assert [flag for flag in ("--workers", "--show ", "--stream ") if flag in text] == []
    assert [flag for flag in ("--redis", "--detach", "--json-logs", "--usage") if flag not in text] == []
    refused = project.chainette("enqueue", "chain.py", "in.jsonl", "--workers", "2")
    assert refused.returncode == 2 and "starts a Redis of its own" in refused.stderr


def test_help_and_version_answer(project: Project) -> None:
    done = project.chainette("--help")
    assert done.returncode == 0
    commands = ("run", "resume", "inspect", "inspect-dag", "engines", "status", "rejected", "rollback", "rebuild")
    assert [name for name in commands if f"\n  {name} " not in done.stdout] == []
    assert "--stream-writer" in (text := project.chainette("run", "--help").stdout)
    assert "always on" in text.lower()
    assert project.chainette("--version").stdout.startswith("chainette ")


def test_an_unknown_command_is_a_usage_error(project: Project) -> None:
    done = project.chainette("fly")
    assert done.returncode == 2
    assert "fly" in done.stderr


def test_what_would_keep_an_engine_from_opening_here_is_a_warning(project: Project) -> None:
    (project.path / "engines.yml").write_text(
        "engines:\n  writer: {model: /nowhere/x.gguf}\n  judge: {model: m, backend: openai, api_key_env: NO_SUCH_KEY}\n"
    )
    done = project.chainette("inspect", "chain.py", "--engines", "engines.yml")
    assert done.returncode == 0
    assert "warning: engine 'writer': there is no model file /nowhere/x.gguf" in done.stderr
    assert "warning: engine 'judge': the environment variable NO_SUCH_KEY is not set here" in done.stderr
    assert "no problems, 2 warnings" in done.stdout


def test_python_m_chainette_is_the_command(project: Project) -> None:
    command = [sys.executable, "-m", "chainette", "inspect", "chain.py"]
    done = subprocess.run(command, cwd=project.path, capture_output=True, text=True, timeout=LONG)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no problems" in done.stdout

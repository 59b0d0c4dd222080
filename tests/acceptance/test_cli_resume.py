"""Stopping and going on: Ctrl-C, kill -9, `resume`, `resume --from`, `status` in between."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import Project
from tests.support.patience import LONG

EVERY_ROW = sorted(map(str, range(200)))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, rows=200, latency=0.02)


def stop_in_the_middle(project: Project, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Starts a run and sends it a signal once graded rows are durable; what is left is done fast."""
    (project.path / "latency").write_text("1")  # it cannot end before the signal comes
    process = project.start("run", "chain.py", "in.jsonl", "-o", "out", "--json-logs")
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("node") == "grade":
            break
    process.send_signal(number)
    out, said = process.communicate(timeout=LONG)
    (project.path / "latency").unlink()
    return subprocess.CompletedProcess([], process.returncode, out, said)


def test_ctrl_c_exits_with_130_and_prints_the_command_that_goes_on(project: Project) -> None:
    stopped = stop_in_the_middle(project, signal.SIGINT)
    assert stopped.returncode == 130
    assert stopped.stderr.splitlines()[-2:] == ["interrupted", "go on: chainette resume out"]
    assert "Traceback" not in stopped.stderr
    assert json.loads(stopped.stdout.splitlines()[-1])["type"] == "run_paused"
    status = project.chainette("status", "out")
    assert "paused: interrupted" in status.stdout
    assert "go on: chainette resume out" in status.stdout
    before = project.ids("out", "grade")
    assert 0 < len(before) < 200
    resumed = project.chainette("resume", "out")
    assert resumed.returncode == 0, resumed.stderr
    assert "chain facts resumed, 200 rows" in resumed.stdout
    assert project.ids("out", "grade") == EVERY_ROW == project.ids("out", "flattened")


def test_a_killed_run_is_called_so_and_goes_on(project: Project) -> None:
    assert stop_in_the_middle(project, signal.SIGKILL).returncode == -9
    status = project.chainette("status", "out")
    assert "killed (no process works on it)" in status.stdout
    assert "go on: chainette resume out" in status.stdout
    resumed = project.chainette("resume", "out", "--json-logs")
    assert resumed.returncode == 0, resumed.stderr
    events = [json.loads(line) for line in resumed.stdout.splitlines()]
    assert (events[0]["type"], events[-1]["type"]) == ("run_resumed", "run_finished")
    assert project.ids("out", "grade") == EVERY_ROW


def test_a_run_at_work_is_running_and_a_second_process_is_refused(project: Project) -> None:
    (project.path / "latency").write_text("30")
    process = project.start("run", "chain.py", "in.jsonl", "-o", "out", "--json-logs")
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["type"] == "run_created"
        status = project.chainette("status", "out")
        assert ": running" in status.stdout
        assert "resume" not in status.stdout
        second = project.chainette("resume", "out")
        assert second.returncode == 1
        assert "in use" in second.stderr
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LONG)


def test_a_finished_run_has_nothing_to_resume(project: Project) -> None:
    project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--limit", "8")
    size = (project.path / "out/events.jsonl").stat().st_size
    assert project.chainette("resume", "out").returncode == 0
    assert (project.path / "out/events.jsonl").stat().st_size == size


def test_a_changed_prompt_is_refused_with_the_from_that_takes_it(project: Project) -> None:
    project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--limit", "8")
    chain = project.path / "chain.py"
    chain.write_text(chain.read_text().replace("{{ pieces }}", "Grade {{ pieces }}"))
    refused = project.chainette("resume", "out")
    assert refused.returncode == 1
    assert "prompt of grade: 1 line changed" in refused.stderr and "chainette resume out --from grade" in refused.stderr
    resumed = project.chainette("resume", "out", "--select", "changed+", "--json-logs")
    assert resumed.returncode == 0, resumed.stderr
    nodes = {json.loads(line).get("node") for line in resumed.stdout.splitlines()}
    assert "grade" in nodes and "extract" not in nodes


def test_a_step_hidden_after_a_kill_is_refused_and_recomputed_as_told(project: Project) -> None:
    assert stop_in_the_middle(project, signal.SIGKILL).returncode == -9
    chain = project.path / "chain.py"
    text = chain.read_text()
    chain.write_text(text.replace('{{ text }}"', '{{ text }}", yield_output=False'))
    log = (project.path / "out/events.jsonl").read_bytes()
    refused = project.chainette("resume", "out")
    assert refused.returncode == 1
    assert "extract has yield_output=False now" in refused.stderr and "chainette resume out --from extract" in refused.stderr
    assert (project.path / "out/events.jsonl").read_bytes() == log
    resumed = project.chainette("resume", "out", "--from", "extract")
    assert resumed.returncode == 0, resumed.stderr
    assert not (project.path / "out/extract").exists()
    assert project.ids("out", "grade") == EVERY_ROW == project.ids("out", "flattened")


@pytest.mark.long
def test_a_label_list_in_a_file_and_a_variable_of_the_environment_are_noticed(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=16)
    chain = tmp_path / "chain.py"
    text = chain.read_text().replace("return [item, item]", "return [Fact(name=LABELS[0])]")
    text = text.replace('"Name in: {{ text }}"', 'os.environ["TONE"] + " name in: {{ text }}"')
    chain.write_text(
        "import json, os\n" + text.replace("@apply\n", 'LABELS = json.loads(Path("labels.json").read_text())\n\n\n@apply\n')
    )
    (tmp_path / "labels.json").write_text('["old"]')
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out", TONE="kind").returncode == 0
    assert project.chainette("resume", "out", TONE="kind").returncode == 0
    (tmp_path / "labels.json").write_text('["new"]')
    refused = project.chainette("resume", "out", TONE="kind")
    assert "split has different code, or uses different data" in refused.stderr and "--from split" in refused.stderr
    refused = project.chainette("resume", "out", TONE="stern")
    assert "prompt of extract: 1 line changed" in refused.stderr and "--from extract" in refused.stderr
    assert project.chainette("resume", "out", "--from", "extract", TONE="stern").returncode == 0
    assert '"stern name in' in (tmp_path / "out/graph.json").read_text()
    assert '"old"' not in (tmp_path / "out/split/0.jsonl").read_text()


@pytest.mark.parametrize("way", [(), pytest.param(("--workers", "1"), marks=pytest.mark.long)])
def test_a_renamed_branch_costs_no_question(tmp_path: Path, way: tuple[str, ...]) -> None:
    project = Project(tmp_path, rows=20)
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out", *way).returncode == 0
    chain = project.path / "chain.py"
    chain.write_text(chain.read_text().replace('"pieces_of"', '"parts_of"'))
    refused = project.chainette("resume", "out")
    assert "branch pieces_of is called parts_of now" in refused.stderr and "--from flattened" in refused.stderr
    before = json.loads((tmp_path / "out/metadata.json").read_text())
    resumed = project.chainette("resume", "out", "--from", "flattened")
    assert resumed.returncode == 0, resumed.stderr
    after = json.loads((tmp_path / "out/metadata.json").read_text())
    assert after["balanced"] and after["usage"] == before["usage"]
    assert after["steps"].keys() == before["steps"].keys() - {"pieces_of+aside"} | {"parts_of+aside"}


@pytest.mark.parametrize("flag", ["--seed=3", "--format", "--simulate", "--engines", "-o"])
def test_resume_refuses_what_the_log_fixes(project: Project, flag: str) -> None:
    done = project.chainette("resume", "out", flag)
    assert done.returncode == 2
    assert "is fixed by the log" in done.stderr


@pytest.mark.parametrize(
    "words, said", [(["--nonsense"], "No such option"), (["a", "b"], "unexpected"), ([], "Missing argument")]
)
def test_resume_refuses_other_words_as_every_command_does(project: Project, words: list[str], said: str) -> None:
    done = project.chainette("resume", *([*words] if not words or words[0] == "a" else ["out", *words]))
    assert done.returncode == 2
    assert said in done.stderr


def test_a_folder_without_a_run_is_an_error(project: Project) -> None:
    (project.path / "empty").mkdir()
    for command in ("resume", "status", "rejected", "rebuild"):
        done = project.chainette(command, "empty")
        assert done.returncode == 1
        assert "holds no run" in done.stderr


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_finished_run_whose_shard_is_gone_or_cut_is_not_called_whole(project: Project, damage: str) -> None:
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet").returncode == 0
    shard = project.path / "out/grade/0.jsonl"
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-5])
    done = project.chainette("resume", "out")
    lost = "is missing, but the log lists 200 rows in it" if damage == "gone" else "rows were lost"
    assert done.returncode == 1 and "out/grade/0.jsonl" in done.stderr, done.stderr
    assert f"{lost}. Restore the file from a backup" in done.stderr, done.stderr
    if damage == "gone":
        rows = project.chainette("rows", "out", "--step", "grade")
        assert rows.returncode == 1 and "grade/0.jsonl is missing" in rows.stderr, rows.stderr


def test_status_prints_the_budget_with_which_a_run_goes_on(project: Project) -> None:
    stopped = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--budget", "10req", "--quiet")
    assert "the next request reserves 1 req" in stopped.stderr, stopped.stderr
    (command,) = (line.removeprefix("go on: ") for line in stopped.stderr.splitlines() if line.startswith("go on: "))
    assert f"go on: {command}\n" in project.chainette("status", "out").stdout
    assert "20 of 20 req used" in project.chainette(*command.split()[1:]).stderr

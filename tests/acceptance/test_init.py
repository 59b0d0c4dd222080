"""`chainette init`: every project runs as it is written."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chainette import open_run
from chainette.cli.commands.init import ProjectTemplate
from tests.support.cli import REPOSITORY, Project
from tests.support.models import needs_model


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A folder with one project of each template."""
    project = Project(tmp_path_factory.mktemp("projects"))
    for template in ProjectTemplate:
        done = project.chainette("init", template, "--template", template)
        assert (done.returncode, done.stderr) == (0, "") and f"cd {template}" in done.stdout
    return project


def paths(template: str) -> tuple[str, str]:
    return f"{template}/chain.py", f"{template}/rows.jsonl"


@pytest.mark.parametrize("template", ProjectTemplate)
def test_a_new_project_checks_without_a_warning_and_runs_simulated(projects: Project, template: ProjectTemplate) -> None:
    done = projects.chainette("run", *paths(template), "--simulate", "-o", f"{template}/try")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    result = open_run(projects.path / template / "try")
    assert result.metadata["balanced"] and result.metadata["records"] >= 4 and result.metadata["rows_rejected"] == 0


@pytest.mark.long
def test_the_projects_pass_mypy_strict(projects: Project, tmp_path: Path) -> None:
    for template in ProjectTemplate:  # one call of mypy takes no two modules of one name
        shutil.copy(projects.path / template / "chain.py", tmp_path / f"{template}_chain.py")
    files = sorted(map(str, tmp_path.glob("*_chain.py")))
    assert len(files) == len(ProjectTemplate)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", str(REPOSITORY / "pyproject.toml"), *files],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout


@needs_model
@pytest.mark.long
def test_the_first_project_runs_on_the_small_model(projects: Project) -> None:
    done = projects.chainette("run", *paths("extract"), "-o", "extract/out")
    assert done.returncode == 0, done.stderr
    assert len(list(open_run(projects.path / "extract/out").rows("extract"))) == 6


def test_a_project_for_a_server_declares_it(tmp_path: Path) -> None:
    project = Project(tmp_path)
    done = project.chainette("init", "mine", "--endpoint", "http://127.0.0.1:9/v1", "--model", 'a "b"')
    assert done.returncode == 0 and "smollm2" not in done.stdout
    shown = project.chainette("engines", "mine/chain.py")
    assert shown.returncode == 0 and "http://127.0.0.1:9/v1" in shown.stdout and 'a "b"' in shown.stdout


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    done = project.chainette("init", "mine")
    assert (done.returncode, done.stderr) == (1, "error: mine exists and is not an empty folder; name a new one\n")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    half = project.chainette("init", "other", "--endpoint", "http://127.0.0.1:9/v1")
    assert half.returncode == 2 and "--endpoint and --model go together" in half.stderr


def test_the_defaults_of_a_new_project_count_once_their_sign_is_gone_and_a_file_above_counts_as_it_is(tmp_path: Path) -> None:
    project = Project(tmp_path)
    assert project.chainette("init", "mine").returncode == 0
    file = tmp_path / "mine/chainette.toml"
    prose, section, keys = file.read_text().partition("[run]\n")
    file.write_text(prose + section + re.sub("^# ", "", keys, flags=re.MULTILINE))
    assert project.chainette("init", "mine/inner").returncode == 0 and not (tmp_path / "mine/inner/chainette.toml").exists()
    done = subprocess.run(
        [sys.executable, "-m", "chainette", "config"],
        cwd=tmp_path / "mine/inner",
        env=project.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.count("chainette.toml:") == keys.count("\n"), done.stdout + done.stderr

"""chainette.toml as a user meets it: runs with its values."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.cli import Project


def test_a_run_takes_its_defaults_from_the_file_and_flags_take_them_back(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=4)
    (tmp_path / "chainette.toml").write_text('[run]\nruns = "results"\nlimit = 3\nseed = 7\nflattened = false\nusage = true\n')
    done = project.chainette("run", "chain.py", "in.jsonl", "--quiet", "--seed", "8", "--no-usage", CHAINETTE_LIMIT="2")
    assert done.returncode == 0, done.stderr
    [directory] = (tmp_path / "results").iterdir()
    settings = next(project.events(f"results/{directory.name}"))["settings"]
    assert (settings["limit"], settings["seed"], settings["usage"], settings["flattened"]) == (2, 8, False, False)
    assert json.loads(project.chainette("ls", "--json").stdout)["directory"] == f"results/{directory.name}"
    assert project.chainette("rows", f"results/{directory.name}", "--step", "extract", "--json").stdout.count("\n") == 2


def test_a_wrong_file_is_a_usage_error_and_help_is_answered_all_the_same(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=0)
    (tmp_path / "chainette.toml").write_text("[run]\nsede = 7\n")
    refused = project.chainette("ls")
    assert refused.returncode == 2 and "did you mean 'seed'?" in " ".join(refused.stderr.split())
    assert project.chainette("--help").returncode == 0


def test_config_hides_the_password_of_a_redis(tmp_path: Path) -> None:
    shown = Project(tmp_path, rows=0).chainette("config", "--json", CHAINETTE_REDIS_URL="redis://me:secret@127.0.0.1:7/0")
    rows = {row["key"]: row for row in map(json.loads, shown.stdout.splitlines())}
    assert rows["redis"]["value"] == "redis://127.0.0.1:7/0" and rows["redis"]["from"] == "$CHAINETTE_REDIS_URL"
    assert "secret" not in shown.stdout + shown.stderr

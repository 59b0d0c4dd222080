"""A project that moves between two sessions of a run, and code of the user's that moves the process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.cli import Project, lines

#: A function that stops the run once the file `stop` is there.
STOPPING = """

@apply
def stop(item: Grade) -> Grade:
    if Path(__file__).with_name("stop").exists():
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return item


chain = Chain(name="facts", batch_size=8, steps=[*chain.steps, stop])
"""


def killed(path: Path, *words: str, stdin: str | None = None) -> Project:
    """A project with a run that was killed before any root was complete."""
    path.mkdir()
    project = Project(path)
    (path / "chain.py").write_text((path / "chain.py").read_text() + STOPPING)
    (path / "stop").touch()
    sources = words or ("in.jsonl",)
    done = project.chainette("run", "chain.py", *sources, "-o", "out", "--quiet", stdin=stdin)
    assert done.returncode == -9
    (path / "stop").unlink()
    return project


def moved(project: Project, to: Path) -> Project:
    project.path.rename(to)
    there = object.__new__(Project)
    there.path = to
    return there


def whole(project: Project, *words: str, stdin: str | None = None) -> dict[str, list[str]]:
    assert (
        project.chainette("run", "chain.py", *(words or ("in.jsonl",)), "-o", "whole", "--quiet", stdin=stdin).returncode == 0
    )
    return lines(project, "whole")


def test_a_project_that_moved_as_a_whole_resumes_as_it_is(tmp_path: Path) -> None:
    project = moved(killed(tmp_path / "old"), tmp_path / "new")
    done = project.chainette("resume", "out", "--quiet")
    assert done.returncode == 0, done.stderr
    assert lines(project, "out") == whole(project)
    assert not (tmp_path / "old").exists()


@pytest.mark.parametrize("words", [("a.jsonl", "b.jsonl"), ("parts",), ("parts/*.jsonl",), ("-",)])
def test_so_does_one_with_several_inputs_a_folder_a_pattern_or_standard_input(tmp_path: Path, words: tuple[str, ...]) -> None:
    old = tmp_path / "old"
    rows = "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(30))
    (tmp_path / "parts").mkdir()
    for name in ("a.jsonl", "b.jsonl", "parts/1.jsonl", "parts/2.jsonl"):
        (tmp_path / name).write_text(rows)

    class Prepared(Project):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            for name in ("a.jsonl", "b.jsonl"):
                shutil.copy(tmp_path / name, path / name)
            shutil.copytree(tmp_path / "parts", path / "parts")

    old.mkdir()
    project = Prepared(old)
    (old / "chain.py").write_text((old / "chain.py").read_text() + STOPPING)
    (old / "stop").touch()
    stdin = rows if words == ("-",) else None
    assert project.chainette("run", "chain.py", *words, "-o", "out", "--quiet", stdin=stdin).returncode == -9
    (old / "stop").unlink()
    there = moved(project, tmp_path / "new")
    done = there.chainette("resume", "out", "--quiet")
    assert done.returncode == 0, done.stderr
    assert lines(there, "out") == whole(there, *words, stdin=stdin)


def test_a_run_directory_that_moved_alone_finds_its_chain_and_its_input_where_they_were(tmp_path: Path) -> None:
    project = killed(tmp_path / "old")
    (project.path / "out").rename(tmp_path / "elsewhere")
    done = project.chainette("resume", "../elsewhere", "--quiet")
    assert done.returncode == 0, done.stderr
    assert {folder: len(found) for folder, found in lines(project, "../elsewhere").items()}["flattened"] == 40


def test_an_engine_file_moves_with_its_project(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "engines.yml").write_text("engines:\n  judge: {model: other, backend: simulated}\n")
    project = Project(old)
    (old / "chain.py").write_text((old / "chain.py").read_text() + STOPPING)
    (old / "stop").touch()
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--engines", "engines.yml").returncode == -9
    (old / "stop").unlink()
    there = moved(project, tmp_path / "new")
    done = there.chainette("resume", "out", "--quiet")
    assert done.returncode == 0, done.stderr
    assert json.loads((there.path / "out/metadata.json").read_text())["settings"]["engines_file"] == "engines.yml"


def test_an_input_that_moved_is_named_by_a_flag_and_remembered(tmp_path: Path) -> None:
    project = killed(tmp_path / "old")
    (project.path / "in.jsonl").rename(tmp_path / "away.jsonl")
    refused = project.chainette("resume", "out", "--quiet")
    assert refused.returncode == 1 and "if the input has moved: `chainette resume out --input PATH`" in refused.stderr
    (project.path / "stop").touch()
    assert project.chainette("resume", "out", "--input", "../away.jsonl", "--quiet").returncode == -9
    (project.path / "stop").unlink()
    done = project.chainette("resume", "out", "--quiet")
    assert done.returncode == 0, done.stderr
    metadata = json.loads((project.path / "out/metadata.json").read_text())
    assert metadata["input"]["path"] == str(tmp_path / "away.jsonl") and metadata["records"] == 40


def test_so_does_one_whose_chain_is_named_as_a_module(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    project = Project(old)
    (old / "chains").mkdir()
    (old / "chains/__init__.py").touch()
    (old / "chains/facts.py").write_text((old / "chain.py").read_text() + STOPPING)
    (old / "chain.py").unlink()
    (old / "chains/stop").touch()
    assert project.chainette("run", "chains.facts", "in.jsonl", "-o", "out", "--quiet").returncode == -9
    (old / "chains/stop").unlink()
    there = moved(project, tmp_path / "new")
    done = there.chainette("resume", "out", "--quiet")
    assert done.returncode == 0, done.stderr
    assert len(lines(there, "out")["flattened"]) == 40


def test_an_input_that_moved_must_be_the_same(tmp_path: Path) -> None:
    project = killed(tmp_path / "old")
    (project.path / "other.jsonl").write_text((project.path / "in.jsonl").read_text().replace("row", "new"))
    refused = project.chainette("resume", "out", "--input", "other.jsonl")
    assert refused.returncode == 1 and "other.jsonl has changed since the run in out began" in refused.stderr


@pytest.mark.parametrize("where", ["at import", "in a function"])
@pytest.mark.parametrize("more", [(), pytest.param(("--workers", "1"), marks=pytest.mark.long)], ids=["local", "workers"])
def test_code_that_changes_the_folder_moves_no_file_of_the_run(tmp_path: Path, where: str, more: tuple[str, ...]) -> None:
    path, away = tmp_path / "project", tmp_path / "away"
    path.mkdir()
    away.mkdir()
    project = Project(path)
    move = f"import os, tempfile, locale; os.chdir({str(away)!r}); tempfile.tempdir = {str(away / 'none')!r}; os.umask(0o077)"
    if where == "at import":
        text = f"{move}\n" + (path / "chain.py").read_text()
    else:
        text = (path / "chain.py").read_text().replace("    return [item, item]", f"    {move}\n    return [item, item]")
    (path / "chain.py").write_text(text)
    (path / "engines.yml").write_text("engines:\n  judge: {model: judge-model, backend: simulated}\n")
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--engines", "engines.yml", *more)
    assert done.returncode == 0, done.stderr
    assert not [file for file in away.rglob("*") if file.is_file()]
    assert len(lines(project, "out")["flattened"]) == 40
    again = project.chainette("resume", "out", *more)
    assert again.returncode == 0, again.stderr


def test_code_that_removes_the_folder_it_went_to_costs_nothing(tmp_path: Path) -> None:
    project = Project(tmp_path)
    lost = "import os, tempfile; folder = tempfile.mkdtemp(); os.chdir(folder); os.rmdir(folder)"
    chain = tmp_path / "chain.py"
    chain.write_text(chain.read_text().replace("    return [item, item]", f"    {lost}\n    return [item, item]"))
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert len(lines(project, "out")["flattened"]) == 40


#: Process state that a user's code may change for itself.
DEEDS = (
    "os.chdir('/'); os.environ.clear(); os.environ['TMPDIR'] = '/nowhere'; locale.setlocale(locale.LC_ALL, 'C'); "
    "random.seed(0); logging.disable(logging.CRITICAL); decimal.getcontext().prec = 1; socket.setdefaulttimeout(0.001); "
    "warnings.simplefilter('error'); sys.setrecursionlimit(400)"
)


@pytest.mark.parametrize(
    ("deeds", "more"),
    [(DEEDS, ()), (f"{DEEDS}; sys.path[:] = []; sys.stdout.close()", ("--workers", "1"))],
    ids=["local", "workers"],
)
def test_other_settings_of_the_process_that_a_function_changes_cost_no_row(
    tmp_path: Path, deeds: str, more: tuple[str, ...]
) -> None:
    project = Project(tmp_path)
    changed = f"import decimal, locale, logging, os, random, socket, sys, warnings; {deeds}"
    chain = tmp_path / "chain.py"
    chain.write_text(chain.read_text().replace("    return [item, item]", f"    {changed}\n    return [item, item]"))
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", *more)
    assert done.returncode == 0, done.stderr
    assert len(lines(project, "out")["flattened"]) == 40

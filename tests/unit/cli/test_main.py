"""The table of commands: fast starts, and help, completion and typing errors without a command's module."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from chainette.cli.main import COMMANDS, app

HEAVY = {"aiohttp", "anyio", "datasets", "jinja2", "msgspec", "pyarrow", "pydantic", "redis", "rich", "xllamacpp", "yaml"}


def started(*words: str, **variables: str) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """The modules that `chainette WORDS` imported, and its output."""
    code = (
        "import atexit, sys; atexit.register(lambda: print('\\nmodules:', *sys.modules, file=sys.stderr));"
        f"sys.argv = {['chainette', *words]}; from chainette.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | variables)
    return {*done.stderr.rpartition("modules:")[2].split()}, done


def commands(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("chainette.cli.commands.")}


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_no_command_and_nothing_heavy_is_imported_before_a_command_is_chosen(word: str) -> None:
    names, _ = started(word)
    assert "chainette.cli.main" in names
    assert not names & HEAVY and not commands(names)


def test_help_lists_every_command_with_its_whole_line() -> None:
    _, done = started("--help", COLUMNS="80")
    for name, command in COMMANDS.items():
        assert f"  {name:11}  {command.help}\n" in done.stdout


def test_a_mistyped_command_is_answered_with_the_nearest() -> None:
    names, done = started("resum")
    assert not commands(names)
    assert done.returncode == 2 and "No such command 'resum'. Did you mean 'resume'" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "a", "b", "--sample", "50"), "chainette plan CHAIN INPUTS --sample N"),
        (("run", "a", "b", "--max-requests=9"), "; --budget 1000req"),
        (("resume", "dir", "--temperature", "1"), "; it belongs to a step"),
        (("run", "a", "b", "--bugdet", "9req"), "(Possible options: --budget"),
    ],
)
def test_a_flag_of_other_tools_is_answered_with_the_one_that_does_it_here(words: tuple[str, ...], said: str) -> None:
    _, done = started(*words, COLUMNS="200")
    assert done.returncode == 2 and "No such option: --" in done.stderr and said in done.stderr


@pytest.mark.parametrize(
    ("typed", "offered"), [("re", {"resume", "rebuild", "rejected", "report"}), ("run --no-fl", {"--no-flattened"})]
)
def test_a_shell_completes_commands_and_their_flags(typed: str, offered: set[str]) -> None:
    words = f"chainette {typed}"
    asked = {"_CHAINETTE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    names, done = started(**asked)
    assert {*done.stdout.split()} == offered
    assert ("chainette.cli.commands.run" in names) == ("run" in typed)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there_and_says_what_it_does(name: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    context = typer.Context(group, info_name="chainette")
    found, command, rest = group.resolve_command(context, [name, "--help"])
    assert command is not None and (found, command.name, rest) == (name, name, ["--help"])
    assert command.callback is not None and command.help and "--debug" in command.get_help(context)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_prints_something_to_read_prints_it_as_json_too(name: str) -> None:
    module = import_module(f"chainette.cli.commands.{COMMANDS[name].module}")
    takes_json = "as_json" in inspect.signature(getattr(module, name.replace("-", "_"))).parameters
    if name == "schema":  # it is JSON in any case
        assert not takes_json and COMMANDS[name].objects
    else:
        assert takes_json == bool(COMMANDS[name].objects)
    siblings = [other for other, command in COMMANDS.items() if command.module == COMMANDS[name].module]
    shows = {"console", "new_table"} & {
        alias.name
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert not shows or any(COMMANDS[other].objects for other in siblings), f"{name} draws on a screen, and has no --json"


def test_standard_streams_that_are_closed_are_opened_on_nothing() -> None:
    """As `chainette run ... <&- >&-` begins: its event loop would take a descriptor, and abort the process as it closes it."""
    code = (
        "import atexit, os, sys; sys.argv = ['chainette', '--version']; from chainette.cli import main\n"
        "def say():\n"
        "    is_nothing = [os.path.samestat(os.fstat(n), os.stat(os.devnull)) for n in (0, 1)]\n"
        "    print(is_nothing, None in (sys.stdin, sys.stdout), file=sys.stderr)\n"
        "atexit.register(say); main.main()"
    )
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&-', sys.executable, code]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "[True, True] False\n")


def test_a_command_waits_for_a_thread_that_a_chain_began() -> None:
    code = (
        "import sys, threading; from chainette.cli import main\n"
        "def late(): threading.main_thread().join(); print('late')\n"
        "def app(**_): threading.Thread(target=late).start(); sys.exit(3)\n"
        "main.app = app; main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (3, "late\n", "")

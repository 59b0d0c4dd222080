"""Pages of docs/ as tests: files are written, commands and code are run, and their output is compared.

Blocks of a page, fenced by ``` at the start of a line:

    ```python title="chain.py"      becomes a file
    ```console                      each line after `$ ` is run, and must print the lines below it
    ```sh                           each line is run
    ```python                       is executed, in one program with those that follow before the next command

Blocks in an HTML comment are followed like the others, and no reader sees them. A block that cannot be run here has a
line above it: `<!-- not run: needs Docker (test_name) -->`, with one of `REASONS` and the test that checks it instead.

Commands have `$CHECKOUT`, the folder of this repository, and find the plugins that are installed into `site-packages` of
the page's folder (`tests/support/plugin.py`).
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import warm
from tests.support.cli import REPOSITORY, until
from tests.support.patience import LONG
from tests.support.processes import free_port

__all__ = ["REASONS", "Block", "blocks", "follow"]

#: Why a block may stay unrun.
REASONS = frozenset(
    {
        "a drawing",
        "changes this checkout",
        "needs Docker",
        "needs a GPU",
        "needs a cluster",
        "needs a key",
        "needs a model server",
        "needs a package index",
        "needs another machine",
        "takes minutes",
    }
)

_FENCE = re.compile(r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?$')
_NOT_RUN = re.compile(r"^<!-- not run: (?P<reason>.+) \((?P<test>test_\w+)\) -->$")
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_LINE = r"(?:.*\\\n)*.*\n"
_COMMAND = re.compile(rf"^\$ ({_LINE})((?:(?!\$ ).*\n)*)", re.MULTILINE)
#: Commands that run until somebody ends them.
_SERVICE = re.compile(r"(?:\w+=\S* )*chainette (?:coordinator|sink|valkey|worker)\b")
_EXPORT = re.compile(r"export (\w+)=(\S*)")
_RUN_ID = re.compile(r"\b\d{8}-\d{6}-[0-9a-f]{8}\b")
_PORT = re.compile(r"--metrics-port ([1-9]\d*)")
#: Figures that depend on the clock and the machine: times, rates and memory.
_FIGURES = re.compile(r"(?<![\w.:])\d+:\d\d(?::\d\d)?(?!\d)|\d[\d.]*(?= (?:s|MB|rows/s|tokens/s)\b)|\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Block:
    """One block of a page."""

    language: str
    title: str
    text: str
    #: Of its first fence.
    line: int
    #: Why it is not run, and the test that checks it instead; "" if it is run.
    reason: str = ""
    test: str = ""

    def commands(self) -> Iterator[tuple[str, str | None]]:
        """Each command with the output shown below it; None if the page shows none."""
        if self.language == "console":
            yield from ((command.strip(), output) for command, output in _COMMAND.findall(self.text))
        elif self.language == "sh":
            yield from ((line.strip(), None) for line in re.findall(_LINE, self.text) if line.strip())


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in their order, those in HTML comments too.

    Raises:
        ValueError: if there is code that readers see and this function cannot read: an indented block or an odd fence.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    start = 0
    for number, line in enumerate(lines):
        if start:
            if line == "```":
                yield _block(lines, start, number)
                start = 0
        elif _FENCE.match(line):
            start = number + 1
        elif line.lstrip().startswith(("```", "~~~")) or (line.startswith("    ") and not lines[number - 1].strip()):
            raise ValueError(f"{page.name}:{number + 1}: code must stand between ``` at the start of a line")
    if start:
        raise ValueError(f"{page.name}:{start}: this block has no end")


def _block(lines: list[str], start: int, end: int) -> Block:
    """The block of the lines from `start` on; the fence is above."""
    found = _FENCE.match(lines[start - 1])
    assert found
    mark = _NOT_RUN.match(lines[start - 2]) if start > 1 else None
    text = "".join(f"{line}\n" for line in lines[start:end])
    return Block(found["language"], found["title"] or "", text, start, *(mark.groups() if mark else ()))


def follow(page: Path, folder: Path) -> int:
    """Does a page as its reader would, in a folder; returns the number of commands.

    The lines below a command are its output (standard error first), in which `...` stands for any text. A service runs
    until the page ends; its output is awaited. `export NAME=...` takes the value that a service printed for that name, and
    a run's id in a command is that of the run whose id stands in the same place of an earlier screen.
    A file must be named by a command, a program or another file.

    Raises:
        ValueError: if a block is neither followed nor marked.
    """
    followed = [block for block in blocks(page) if not block.reason]
    with _Reader(page.name, folder) as reader:
        for block in followed:
            reader.do(block)
    words = [block.text for block in followed if not block.title]
    for file in (block for block in followed if block.title):
        others = [block.text for block in followed if block.title not in ("", file.title)]
        names = (Path(file.title).stem, *Path(file.title).parent.parts)
        assert any(name in text for text in (*words, *others) for name in names), f"{page.name}: nothing uses {file.title}"
    return reader.commands


class _Reader:
    """The folder, the environment and the services of somebody who follows a page."""

    def __init__(self, page: str, folder: Path) -> None:
        self.commands = 0
        self._page, self._folder = page, folder
        self._program = ""
        #: The ids of runs on the page, and those of the same runs here.
        self._ids: dict[str, str] = {}
        #: The ports that the page chooses, and free ones in their place.
        self._ports: dict[str, str] = {}
        self._services: list[_Service] = []
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._plugins = folder / "site-packages"
        python = f"{REPOSITORY}{os.pathsep}{self._plugins}"
        self._environment = os.environ | {"PATH": path, "COLUMNS": "120", "PYTHONPATH": python, "PYTHONUTF8": "1"}
        self._environment["CHECKOUT"] = str(REPOSITORY)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        """Ends the services, the last first; each must end well unless the page has failed already."""
        try:
            if not failed:
                self._execute()
        finally:
            codes = [(service.command, service.end()) for service in reversed(self._services)]
        assert failed or all(code == 0 for _, code in codes), codes

    def do(self, block: Block) -> None:
        """Writes, runs or keeps for later what the block shows."""
        if block.title:
            path = self._folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self._program += block.text + "\n"
        elif block.language in ("console", "sh"):
            for command, expected in block.commands():
                self._command(command, expected)
        else:
            raise ValueError(f"{self._page}:{block.line}: this block is neither run nor marked: a title makes it a file")

    def _command(self, command: str, expected: str | None) -> None:
        self._execute()
        self.commands += 1
        self._ports |= {port: str(free_port()) for port in _PORT.findall(command) if port not in self._ports}
        command = self._translated(command)
        if exported := _EXPORT.match(command):
            name, value = exported.groups()
            self._environment[name] = next((url for each in self._services if (url := each.exported(name))), value)
        elif command.startswith("cd "):
            self._folder /= command.removeprefix("cd ").strip()
        elif _SERVICE.match(command) and "--help" not in command:
            self._services.append(service := _Service(command, self._folder, self._environment))
            service.wait(expected)
        else:
            done = self._run(command)
            told = re.search(r"error:|failed", expected or "")
            assert done.returncode in (0, 3) or told, f"{self._page}: $ {command}\n{done.stderr}"
            self._compare(command, expected, done.stderr + done.stdout)

    def _compare(self, command: str, expected: str | None, found: str) -> None:
        """Fails unless the screen is that of the page, and learns the ids of runs it has."""
        if expected is not None:
            known = {*self._ids.values()}
            new = (name for name in _RUN_ID.findall(found) if name not in known)
            shown = (name for name in _RUN_ID.findall(expected) if name not in self._ids)
            self._ids = dict(zip(shown, new, strict=False)) | self._ids
            expected = self._translated(expected)
            assert _equal(expected, found), f"{self._page}: $ {command}\nexpected:\n{expected}\nfound:\n{found}"

    def _translated(self, text: str) -> str:
        """The text with the run ids and ports of this machine in place of those of the page."""
        here = self._ids | self._ports
        return re.sub(r"[\w-]+", lambda found: here.get(found[0], found[0]), text)

    def _execute(self) -> None:
        """Runs the code that has come since the last command."""
        if self._program:
            (self._folder / "page.py").write_text(self._program, encoding="utf-8")
            self._program = ""
            done = self._run("python page.py")
            assert done.returncode == 0, f"{self._page}: {done.stderr}"

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        warmed = not self._plugins.exists()  # a forked process finds no plugins
        if warmed and command.startswith("chainette ") and not {*command} & {*"|&;<>$*\\"}:
            return warm.run(shlex.split(command, comments=True)[1:], self._folder, self._environment, None)
        shell = ["bash", "-c", command]
        return subprocess.run(
            shell, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=LONG, check=False
        )


class _Service:
    """A command in a terminal of its own."""

    def __init__(self, command: str, folder: Path, environment: dict[str, str]) -> None:
        self.command = command
        self._output = folder / f".terminal-{os.urandom(4).hex()}"
        shell = ["bash", "-c", f"exec env {command}"]
        with self._output.open("w") as output:
            self._process: subprocess.Popen[str] = subprocess.Popen(
                shell, cwd=folder, env=environment, text=True, stdout=output, stderr=output, start_new_session=True
            )

    def wait(self, expected: str | None) -> None:
        """Waits until it has printed these lines, whatever it prints afterwards; if None, any line."""
        try:
            until(lambda: self._has_printed(expected) or self._ended())
        except AssertionError as never:
            raise AssertionError(f"$ {self.command}\nexpected:\n{expected}\nfound:\n{self._said()}") from never

    def _has_printed(self, expected: str | None) -> bool:
        said = self._said()
        if expected is None:
            return "\n" in said and not said.startswith("error:")
        return _equal(expected, said) or _equal(f"{expected}...\n", said)

    def _ended(self) -> bool:
        code = self._process.poll()
        assert code in (None, 0), self._said()
        return code is not None

    def exported(self, name: str) -> str:
        """The value that it told its reader to export under this name; "" if none."""
        found = re.search(rf"^export {name}=(\S+)$", self._said(), re.MULTILINE)
        return found[1] if found else ""

    def _said(self) -> str:
        return self._output.read_text(encoding="utf-8")

    def end(self) -> int:
        """Ends it as Ctrl-C or systemd would; its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(LONG)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise


def _equal(expected: str, found: str) -> bool:
    expected, found = (_FIGURES.sub("#", text) for text in (expected, found))
    expected = re.sub(r"\s*\.\.\.\s*", "...", expected)  # any text, and none
    return doctest.OutputChecker().check_output(expected, found, _OPTIONS)

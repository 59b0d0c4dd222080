"""The progress of runs that Python starts: on a real terminal, and nowhere else."""

from __future__ import annotations

import io
import os
import pty
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chainette import Chain, apply
from chainette.errors import RunStopped
from chainette.screen.display_choice import shown
from tests.support.chains import Text


def loud(item: Text) -> Text:
    print("said", item.text)
    return item


CHAIN = Chain(name="loud", steps=[apply(loud)])
ROWS = [Text(text="a"), Text(text="b")]


class Terminal:
    """The other end of stderr."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w")
        self._read = io.BytesIO()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        try:
            while piece := os.read(self._master, 4096):
                self._read.write(piece)
        except OSError:  # the last writer is gone
            pass

    @contextmanager
    def as_stderr(self) -> Iterator[None]:
        """Within a test, since pytest puts its own streams in place between fixture and test."""
        before, sys.stderr = sys.stderr, self.stream
        try:
            yield
            assert sys.stderr is self.stream
        finally:
            sys.stderr = before

    def text(self) -> str:
        """All that was written; it is closed by this."""
        self.stream.close()
        self._thread.join()
        return self._read.getvalue().decode()

    def close(self) -> None:
        self.text()
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    found = Terminal()
    yield found
    found.close()


def test_a_terminal_shows_the_run_and_keeps_its_last_line(tmp_path: Path, terminal: Terminal) -> None:
    with terminal.as_stderr():
        CHAIN.run(ROWS, tmp_path / "out")
    written = terminal.text()
    assert "loud" in written and "rejected" in written  # the bars, with their heads
    last = written.rstrip().rpartition("\n")[2]
    assert "2 of 2 rows done" in last and str(tmp_path / "out") in last and "left" not in last


def test_prints_of_the_user_stay_on_a_stdout_that_is_no_terminal(
    tmp_path: Path, terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.as_stderr():
        CHAIN.run(ROWS, tmp_path / "out")
    assert sorted(capsys.readouterr().out.split("\n")) == ["", "said a", "said b"]
    assert "said" not in terminal.text()


def test_progress_false_and_rows_that_the_caller_takes_are_silent(tmp_path: Path, terminal: Terminal) -> None:
    with terminal.as_stderr():
        CHAIN.run(ROWS, tmp_path / "out", progress=False)
        assert [len(rows) for rows in CHAIN.run_iter(ROWS, tmp_path / "iterated")] == [2]
        assert list(CHAIN.stream(ROWS[0]))
    assert terminal.text() == ""


def test_without_a_terminal_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    CHAIN.run(ROWS, tmp_path / "out")
    assert capfd.readouterr().err == ""


def test_of_runs_at_the_same_time_one_is_shown(tmp_path: Path, terminal: Terminal) -> None:
    with terminal.as_stderr(), shown(tmp_path / "x") as first, shown(tmp_path / "y") as second:
        assert len(first) == 1 and second == ()
        CHAIN.run(ROWS, tmp_path / "z")
    with terminal.as_stderr(), shown(tmp_path / "later") as later:
        assert len(later) == 1
    written = terminal.text()
    assert [str(tmp_path / name) in written for name in ("x", "y", "z", "later")] == [True, False, False, True]


def test_a_run_that_stops_leaves_its_last_line_and_the_terminal_as_it_was(tmp_path: Path, terminal: Terminal) -> None:
    def fail(item: Text) -> Text:
        raise ValueError(item.text)

    chain = Chain(name="failing", steps=[apply(fail, id="fail")])
    with terminal.as_stderr(), pytest.raises(RunStopped, match="max-reject-rate"):
        chain.run([Text(text=str(at)) for at in range(300)], tmp_path / "out", max_reject_rate=0.5)
    written = terminal.text()
    assert "rejected" in written.rstrip().rpartition("\n")[2] and "\x1b[?25h" in written  # the cursor is back


def test_warnings_about_a_chain_go_to_the_log_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chain = Chain(name="bare", steps=[apply(lambda item: item, id="bare", input_model=Text)])
    chain.run(ROWS, tmp_path / "out")
    said = [record.getMessage() for record in caplog.records if record.name == "chainette"]
    assert len(said) == 2 and all(line.startswith(f"{__file__}:") and "'bare'" in line for line in said)

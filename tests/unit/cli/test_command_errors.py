"""How a command ends: one clear message and the right exit code, whatever happened inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from chainette.cli.command_errors import error_lines, guarded
from chainette.errors import DiskError, InputError, Place, PlanError, Problem


def end_of(command: Callable[..., None], **keys: object) -> int:
    with pytest.raises(typer.Exit) as caught:
        guarded(command)(**keys)
    return caught.value.exit_code


def raising(error: BaseException) -> Callable[..., None]:
    def command() -> None:
        raise error

    return command


def test_a_plan_error_lists_every_problem_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = Place(str(tmp_path / "chain.py"), 31)
    error = PlanError("c", [Problem("step 'a' is wrong", here), Problem("so is 'b'", Place("/elsewhere/x.py", 2))])
    assert error_lines(error) == [
        "error: chain 'c' cannot run: 2 problems",
        "  chain.py:31: step 'a' is wrong",
        "  /elsewhere/x.py:2: so is 'b'",
    ]


def test_our_errors_say_their_message_and_give_their_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(raising(InputError("in.jsonl is gone"))) == 1
    assert capsys.readouterr().err == "error: in.jsonl is gone\n"
    assert end_of(raising(PlanError("c", [Problem("wrong", None)]))) == 2


def test_an_unknown_exception_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(raising(ValueError("odd\n  thing"))) == 1
    assert capsys.readouterr().err == "internal error: ValueError: odd thing; run with --debug for the traceback\n"


@pytest.mark.parametrize("error", [DiskError("full"), ValueError("odd")])
def test_debug_brings_the_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    end_of(raising(error), debug=True)
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    end_of(raising(error))
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("error", [typer.Exit(3), typer.BadParameter("no"), typer.Abort()])
def test_what_typer_understands_passes(error: BaseException) -> None:
    with pytest.raises(type(error)):
        guarded(raising(error))()


def test_a_command_gets_debug_only_where_it_asks_for_it() -> None:
    seen: list[bool] = []

    @guarded
    def asks(debug: bool = False) -> None:
        seen.append(debug)

    @guarded
    def does_not() -> None:
        seen.append(False)

    asks(debug=True)
    does_not(debug=True)
    assert seen == [True, False]


def test_an_error_names_a_path_below_the_current_folder_as_a_user_types_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_lines(DiskError(f"no space left for {tmp_path}/out/a b.jsonl")) == ["error: no space left for out/a b.jsonl"]
    assert error_lines(DiskError(f"{tmp_path}2/out is full")) == [f"error: {tmp_path}2/out is full"]

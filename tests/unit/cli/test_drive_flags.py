"""How `resume` goes on: as it is told, else as the run was begun."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import typer

from chainette.cli.drive_flags import ResumedDriveFlags
from chainette.io.rundir.event_types import RunCreated
from chainette.io.rundir.open import read_created
from chainette.io.rundir.paths import RunDir


def begun(run: Any, **way: str) -> RunCreated:
    return msgspec.structs.replace(read_created(RunDir(run.path)), way=way)


def test_a_log_that_does_not_say_how_is_of_a_run_in_one_process(run: Any) -> None:
    assert begun(run).way == {} and ResumedDriveFlags().or_as_begun(begun(run)) == ResumedDriveFlags()


def test_the_flags_of_a_run_are_kept(run: Any) -> None:
    assert ResumedDriveFlags().or_as_begun(begun(run, workers="a=2,b=1")).flags == ("--workers", "a=2,b=1")
    assert ResumedDriveFlags().or_as_begun(begun(run, redis="redis://other:1/0")).flags == ("--redis", "redis://other:1/0")


def test_a_password_comes_from_the_environment_and_is_not_said_again(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINETTE_REDIS_URL", "redis://:secret@host:1/0")
    way = ResumedDriveFlags().or_as_begun(begun(run, redis="redis://host:1/0"))
    assert way.redis == "redis://:secret@host:1/0" and way.flags == ("--redis", "redis://host:1/0")
    assert ResumedDriveFlags().or_as_begun(begun(run, redis="redis://other:1/0")).redis == "redis://other:1/0"


def test_local_excludes_the_others() -> None:
    assert ResumedDriveFlags(local=True).flags == ("--local",) and ResumedDriveFlags().flags == ()
    with pytest.raises(typer.BadParameter, match="leave out --workers and --redis"):
        ResumedDriveFlags(local=True, workers="2")

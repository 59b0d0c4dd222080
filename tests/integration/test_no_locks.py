"""A run directory on a file system that has no locks."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from chainette import Chain, apply
from chainette.cli.directory_status import can_go_on, is_working
from chainette.errors import RunDirectoryError
from chainette.run import executor


class Text(BaseModel):
    text: str


@apply
def same(item: Text) -> Text:
    return item


CHAIN = Chain(name="case", steps=[same])


@pytest.fixture(params=[errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL], ids=errno.errorcode.get)
def refuse(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_arguments: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("refuse")
def test_a_directory_that_cannot_be_locked_is_refused_by_name_and_left_empty(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"out cannot be locked .*Put the run directory on a local disk"):
        CHAIN.run([{"text": "a"}], tmp_path / "out")
    assert not [*(tmp_path / "out").iterdir()]


def test_a_run_that_was_copied_to_such_a_file_system_is_refused_and_kept(tmp_path: Path) -> None:
    CHAIN.run([{"text": "a"}], tmp_path / "out")
    log = tmp_path / "out/events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2]))
    before = log.read_bytes()

    def flock(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        assert not is_working(tmp_path / "out") and can_go_on(tmp_path / "out")
        with pytest.raises(RunDirectoryError, match="cannot be locked"):
            executor.resume(tmp_path / "out", CHAIN)
    assert log.read_bytes() == before
    assert executor.resume(tmp_path / "out", CHAIN).status == "finished"

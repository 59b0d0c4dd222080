"""New files are readable by their owner only, and are never written through a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from chainette.errors import DiskError
from chainette.utils.private_files import VARIABLE, beside, make_folder, new_file, open_file, permitted


@pytest.fixture(autouse=True)
def usual_umask() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("umask", "file", "folder"), [(None, 0o600, 0o700), ("027", 0o640, 0o750), ("022", 0o644, 0o755)])
def test_the_modes_of_new_files_and_folders_follow_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: str | None, file: int, folder: int
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if umask is not None:
        monkeypatch.setenv(VARIABLE, umask)
    make_folder(tmp_path / "a/b")
    with new_file(tmp_path / "a/b/c") as opened:
        opened.write(b"x")
    assert (mode(tmp_path / "a"), mode(tmp_path / "a/b"), mode(tmp_path / "a/b/c")) == (folder, folder, file)


def test_a_umask_that_is_not_an_octal_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "u=rwx")
    with pytest.raises(DiskError, match="must be an octal number such as 077"):
        permitted(0o666)


def test_a_folder_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(0o755)
    make_folder(tmp_path / "open")
    assert mode(tmp_path / "open") == 0o755


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(precious)
    with pytest.raises(FileExistsError), new_file(link):
        pass
    with pytest.raises(OSError):
        open_file(link, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    assert precious.read_text() == "mine" and link.is_symlink()


def test_a_failure_leaves_no_file_and_temporary_names_differ(tmp_path: Path) -> None:
    with pytest.raises(ValueError), new_file(tmp_path / "x"):
        raise ValueError
    assert not (tmp_path / "x").exists()
    assert beside(tmp_path / "x") != beside(tmp_path / "x")

"""The layout of a run directory, and functions that make files durable."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from chainette.errors import DiskError
from chainette.utils.private_files import beside, make_folder, new_file

__all__ = ["RunDir", "disk_errors", "fsync_dir", "publish", "publish_all", "publish_blocks", "published", "write_all"]


class RunDir:
    """The paths in a run directory."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        #: The absolute path, which stays valid if the user's code changes the working directory.
        self.path = Path(path).absolute()
        self._shown = str(path)

    def __str__(self) -> str:
        """The path as the user gave it."""
        return self._shown

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def log(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def plan(self) -> Path:
        """The folder of `chainette plan`."""
        return self.path / ".plan"

    @property
    def estimate(self) -> Path:
        """The estimate of a plan, with which the summary of the run compares the result."""
        return self.plan / "plan.json"

    @property
    def sample(self) -> Path:
        """The run of a plan's sample, whose answers the run in this directory reuses."""
        return self.plan / "sample"

    @property
    def graph(self) -> Path:
        return self.path / "graph.json"

    @property
    def metadata(self) -> Path:
        return self.path / "metadata.json"

    @property
    def card(self) -> Path:
        return self.path / "README.md"

    @property
    def inputs(self) -> Path:
        """Inputs that are not the user's files: standard input, Python iterables."""
        return self.path / "inputs"

    @property
    def journals(self) -> Path:
        """JSONL journals of shards that become Parquet or CSV, and their temporary files."""
        return self.path / ".journal"

    @property
    def fleet(self) -> Path:
        """Files of a local fleet, while it is running."""
        return self.path / ".fleet"

    @property
    def held(self) -> Path:
        """Rows of steps with `yield_output=False`, until the run finishes."""
        return self.path / ".held"

    @property
    def answers(self) -> Path:
        """The indexes of the runs whose answers this run reuses, and its claims on them."""
        return self.path / ".answers"

    @property
    def own_answers(self) -> Path:
        """The index of this run's own answers, once another run reuses some."""
        return self.path / ".index"

    @property
    def versions(self) -> Path:
        """Earlier states of the directory; see `io/rundir/versions.py`."""
        return self.path / ".versions"

    def exists(self) -> bool:
        """Whether the directory holds a run."""
        return self.log.exists()


def fsync_dir(path: Path) -> None:
    """Makes creations and renames in a directory durable.

    Raises:
        DiskError: the disk is full, or a write failed.
    """
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_all(file: int, data: bytes) -> None:
    """Writes all bytes to a file descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def publish(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: writes a temporary file, fsyncs it, renames it, and fsyncs the directory."""
    publish_blocks(path, (data,))


def publish_blocks(path: Path, blocks: Iterable[bytes]) -> None:
    """Like `publish`, for blocks that are produced while they are written."""
    with published(path) as file:
        file.writelines(blocks)


def publish_all(files: Mapping[Path, bytes]) -> None:
    """Like `publish`, for several files: all are renamed, then each of their directories is fsynced once."""
    for path, data in files.items():
        with _replaced(path) as file:
            file.write(data)
    for folder in dict.fromkeys(path.parent for path in files):
        fsync_dir(folder)


@contextlib.contextmanager
def published(path: Path) -> Iterator[IO[bytes]]:
    """Yields the file that `publish` writes; an error inside the block leaves nothing at `path`."""
    with _replaced(path) as file:
        yield file
    fsync_dir(path.parent)


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[IO[bytes]]:
    """Yields a file that is fsynced and renamed at the end; the renaming is not durable yet."""
    aside = beside(path)
    with disk_errors(path):
        make_folder(path.parent)
        with new_file(aside) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            aside.replace(path)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Converts an OSError of a write below `path` to an error with advice.

    Raises:
        DiskError: the write failed.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent if path.parent.exists() else Path()).free
            raise DiskError(
                f"no space left for {path} ({free >> 20} MiB free). Nothing that was logged is lost; free space, then resume"
            ) from error
        raise DiskError(f"cannot write {path}: {error.strerror}") from error

"""Earlier states of a run directory, kept whole inside it as `.versions/<n>`.

A version is a tree of hard links. No linked file is ever written in place: logs, journals and open shards are not
shared (`fork` copies those that the new directory continues), and derived files are replaced by renaming.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from chainette.io.rundir.paths import RunDir, fsync_dir
from chainette.utils.private_files import make_folder, permitted

__all__ = ["KEPT", "copy", "copy_tree", "keep_versions", "link", "link_tree", "link_versions", "version_numbers"]

#: The most versions of one directory.
KEPT = 2


def version_numbers(directory: RunDir) -> list[int]:
    """The versions of a directory, the newest last."""
    if not directory.versions.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.versions.iterdir() if entry.name.isdecimal())


def link_versions(source: RunDir, target: RunDir, numbers: Sequence[int]) -> None:
    """Links versions of a directory into another one."""
    for number in numbers:
        link_tree(source.versions / str(number), target.versions / str(number))


def keep_versions(source: RunDir, target: RunDir, numbers: Sequence[int]) -> None:
    """Links versions into a replacement directory: the newest of `numbers`, and the replaced directory as the newest one."""
    link_versions(source, target, numbers[1 - KEPT :])
    number = max(version_numbers(source), default=0) + 1
    apart = {folder.name for folder in (source.versions, source.fleet, source.answers, source.own_answers)}
    link_tree(source.path, target.versions / str(number), but=apart)


def copy_tree(source: Path, target: Path) -> None:
    """Copies a tree, durable on return."""
    _tree(source, target, (), copy)


def link_tree(source: Path, target: Path, but: Container[str] = ()) -> None:
    """Links all files of a tree into a second tree, durable on return."""
    _tree(source, target, but, link)


def _tree(source: Path, target: Path, but: Container[str], take: Callable[[Path, Path], None]) -> None:
    make_folder(target.parent)
    target.mkdir(permitted(0o777))
    for entry in sorted(source.iterdir()):
        if entry.name in but:
            continue
        if entry.is_dir():
            _tree(entry, target / entry.name, (), take)
        else:
            take(entry, target / entry.name)
    fsync_dir(target)
    fsync_dir(target.parent)


def link(source: Path, target: Path) -> None:
    """Creates a hard link, or a copy if the file system does not support links."""
    try:
        os.link(source, target)
    except OSError:
        copy(source, target)


def copy(source: Path, target: Path) -> None:
    """Copies a file; the copy is durable on return."""
    shutil.copy2(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())

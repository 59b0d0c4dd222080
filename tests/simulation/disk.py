"""The disk under the run directory: calls fail, writes are torn, and a power cut takes away unsynced data.

The files are real, and so is the code above `os`. Every file below the root counts as lost beyond the bytes an fsync
has covered; creations, renames and deletions, in their order, beyond the last fsync of their directory.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from tests.simulation.world import CURRENT, Dead, Fault, World

__all__ = ["Disk"]

_REAL = {
    name: getattr(os, name)
    for name in ("open", "close", "write", "fsync", "ftruncate", "truncate", "replace", "rename", "mkdir", "unlink", "link")
}


@dataclass
class _Change:
    """A change of a directory that is not on the platter yet."""

    folders: tuple[Path, ...]
    undo: Callable[[], object]


@dataclass
class Disk:
    """Stands for `os` while a simulation runs."""

    world: World | None = None
    #: Inode -> bytes an fsync has covered.
    synced: dict[int, int] = field(default_factory=dict)
    changes: list[_Change] = field(default_factory=list)
    #: Whether changes of directories are kept, to be undone by a power cut.
    journals: bool = False
    #: Files that were renamed over or deleted, kept out of the way of the run.
    graves: int = 0

    def install(self) -> None:
        for name in _REAL:
            setattr(os, name, getattr(self, f"_{name}"))

    def begin(self, world: World, *, journals: bool) -> None:
        self.world, self.journals = world, journals
        self.synced.clear()
        self.changes.clear()

    def end(self) -> None:
        self.world = None

    # -- calls

    def _around(self, call: Callable[[], Any], torn: Callable[[Fault], object] = lambda _fault: None) -> Any:
        """One call that changes the disk."""
        process = CURRENT.get()
        if self.world is None or process is None:
            return call()
        process.check()
        fault = self.world.fate("disk")
        if fault is None:
            return call()
        self.world.happen(fault.kind)
        match fault.kind:
            case "disk error":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            case "disk full":
                torn(fault)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case "killed before a disk call":
                pass
            case "killed within a disk call":
                torn(fault)
            case "killed after a disk call":
                call()
            case "power cut":
                torn(fault)
                self.cut_power(fault)
            case "slow disk":
                found = call()
                self.world.clock.sleep(20 * fault.amount)
                process.check()
                return found
        process.kill()
        raise Dead(process.name)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        process = CURRENT.get()
        reads = not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if process is None or self.world is None or dir_fd is not None or reads or self._is_elsewhere(path):
            return int(_REAL["open"](path, flags, mode, dir_fd=dir_fd))
        new = self.journals and not Path(path).exists()
        file = int(self._around(lambda: _REAL["open"](path, flags, mode)))
        process.files[file] = os.fstat(file).st_ino
        if new:
            self._note((Path(path).parent,), lambda: _REAL["unlink"](path))
        return file

    def _is_elsewhere(self, path: Any) -> bool:
        """Whether a file is none of the run's: a temporary one, which goes with its process."""
        return self.world is not None and not Path(path).absolute().is_relative_to(self.world.root)

    def _close(self, file: int) -> None:
        process = CURRENT.get()
        if process is not None:
            process.files.pop(file, None)
        _REAL["close"](file)

    def _write(self, file: int, data: Any) -> int:
        def tear(fault: Fault) -> None:
            _REAL["write"](file, bytes(data)[: int(len(data) * fault.amount)])

        return int(self._around(lambda: _REAL["write"](file, data), tear))

    def _fsync(self, file: Any) -> None:
        self._around(lambda: self._sync(file if isinstance(file, int) else file.fileno()))

    def _sync(self, file: int) -> None:
        if self.world is None:
            return
        found = os.fstat(file)
        self.synced[found.st_ino] = found.st_size
        if self.changes and S_ISDIR(found.st_mode):
            folder = Path(f"/proc/self/fd/{file}").readlink()
            self.changes = [change for change in self.changes if folder not in change.folders]

    def _ftruncate(self, file: int, size: int) -> None:
        self._around(lambda: _REAL["ftruncate"](file, size))
        if self.world is not None:
            inode = os.fstat(file).st_ino
            self.synced[inode] = min(size, self.synced.get(inode, 0))

    def _truncate(self, path: Any, size: int) -> None:
        self._around(lambda: _REAL["truncate"](path, size))
        if self.world is not None:
            inode = Path(path).stat().st_ino
            self.synced[inode] = min(size, self.synced.get(inode, 0))

    def _replace(self, source: Any, target: Any, **keys: Any) -> None:
        self._move("replace", source, target, keys)

    def _rename(self, source: Any, target: Any, **keys: Any) -> None:
        self._move("rename", source, target, keys)

    def _move(self, name: str, source: Any, target: Any, keys: dict[str, Any]) -> None:
        grave = self._grave(target)
        self._around(lambda: _REAL[name](source, target, **keys))

        def undo() -> None:
            _REAL["rename"](target, source)
            if grave is not None:
                _REAL["link"](grave, target)

        self._note((Path(source).parent, Path(target).parent), undo)

    def _grave(self, path: Any) -> Path | None:
        """A second name for a file that is about to lose this one."""
        if self.world is None or not self.journals or CURRENT.get() is None or not Path(path).is_file():
            return None
        self.graves += 1
        grave = self.world.root / f"grave-{self.graves}"
        _REAL["link"](path, grave)
        return grave

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._around(lambda: _REAL["mkdir"](path, mode, dir_fd=dir_fd))
        self._note((Path(path).parent,), lambda: shutil.rmtree(path))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        grave = self._grave(path) if dir_fd is None else None
        self._around(lambda: _REAL["unlink"](path, dir_fd=dir_fd))
        if grave is not None:
            self._note((Path(path).parent,), lambda: _REAL["link"](grave, path))

    def _link(self, source: Any, target: Any, **keys: Any) -> None:
        self._around(lambda: _REAL["link"](source, target, **keys))
        self._note((Path(target).parent,), lambda: _REAL["unlink"](target))

    def _note(self, folders: tuple[Path, ...], undo: Callable[[], object]) -> None:
        if self.journals and self.world is not None and CURRENT.get() is not None:
            self.changes.append(_Change(folders, undo))

    # -- power

    def cut_power(self, fault: Fault) -> None:
        """The machine of the run directory goes down: everybody on it dies, and unsynced data may be gone."""
        assert self.world is not None
        rng = self.world.rng
        for process in [*self.world.processes]:
            if process.name.startswith("main"):
                process.kill()
        kept = rng.randint(0, len(self.changes))
        for change in reversed(self.changes[kept:]):
            try:
                change.undo()
            except OSError:
                continue  # a change of something that went with another
        self.changes.clear()
        for folder, _, names in os.walk(self.world.root):
            for name in names if "run" in folder else ():
                self._forget(Path(folder, name), rng.random())

    def _forget(self, path: Path, share: float) -> None:
        found = path.stat()
        safe = self.synced.get(found.st_ino, 0)
        if found.st_size > safe:
            _REAL["truncate"](path, safe + int((found.st_size - safe + 1) * share))
            self.synced[found.st_ino] = path.stat().st_size

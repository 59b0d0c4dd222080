"""Several files as one input: finds the files of a folder or a pattern, and reads them one after another."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Collection, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

from chainette.errors import InputError
from chainette.io.inputs.compression import PACKED
from chainette.io.inputs.input_digest import Trail
from chainette.io.inputs.readers import InputFile, Record
from chainette.io.inputs.sniff import KINDS

__all__ = ["SeveralFiles", "by_number", "expand", "has_kind"]

_log = logging.getLogger("chainette")

#: The number of files whose counts represent all files of a large input.
_COUNTED = 8
#: An input of at most this size, in bytes, is counted file by file.
_COUNTED_BYTES = 64 << 20


class SeveralFiles(InputFile):
    """Files that are read in the given order; record numbers continue from one file to the next."""

    def __init__(self, sources: Sequence[Path], parts: Sequence[InputFile], limit: int | None) -> None:
        super().__init__(sources[0], limit, [stamp for part in parts for stamp in part.stamps])
        self.kind = parts[0].kind
        self._sources = sources
        self._parts = parts

    def parts(self) -> Sequence[InputFile]:
        return self._parts

    def columns(self) -> list[str] | None:
        """The columns of all files, those of the first file first."""
        found = [part.columns() for part in self._parts]
        known = [columns for columns in found if columns is not None]
        return list(dict.fromkeys(name for columns in known for name in columns)) if len(known) == len(found) else None

    def leave_out(self, columns: Collection[str]) -> None:
        for part in self._parts:
            part.leave_out(columns)

    def identity(self) -> dict[str, Any]:
        """As for one file, with `sources` if the user named several."""
        found = super().identity()
        return found if len(self._sources) == 1 else found | {"sources": [str(path.absolute()) for path in self._sources]}

    def _records(self, start: int, first: int, trail: Trail) -> Generator[Record, None, int]:
        for part in self._parts:
            first = yield from part.read(start, first, trail)
        return first

    def _count(self) -> int | None:
        sizes = [file.stat().st_size for file in self.files()]
        every = 1 if self.kind == "parquet" or sum(sizes) <= _COUNTED_BYTES else -(-len(sizes) // _COUNTED)
        counts = [part.count() for part in self._parts[::every]]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        return sum(known) if every == 1 else round(sum(known) * sum(sizes) / max(1, sum(sizes[::every])))


def expand(source: Path) -> list[Path]:
    """The files of a path: those in a folder, those that match a pattern, or the path itself.

    Files of folders and patterns are sorted by path, 9.jsonl before 10.jsonl; hidden files are left out.

    Raises:
        InputError: the folder or the pattern has no files.
    """
    if source.is_dir():
        return _files_of(source)
    if source.exists() or not glob.has_magic(str(source)):
        return [source]
    found = [Path(name) for name in glob.glob(str(source), recursive=True)]  # noqa: PTH207 - it leaves hidden files out
    files = sorted((path for path in found if not path.is_dir()), key=by_number)
    if not files:
        raise InputError(f"{source}: no file matches this pattern (the current folder is {Path.cwd()})")
    return files


def _files_of(folder: Path) -> list[Path]:
    try:
        entries = sorted((path for path in folder.iterdir() if not path.name.startswith((".", "_"))), key=by_number)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}") from error
    if "events.jsonl" in (entry.name for entry in entries):
        steps = [str(entry) for entry in entries if entry.is_dir() and entry.name not in ("rejected", "inputs")]
        raise InputError(f"{folder}: a run directory; give the rows of one step: {', '.join(steps) or 'it has none yet'}")
    files = [entry for entry in entries if not entry.is_dir() and has_kind(entry)]
    others = [entry for entry in entries if entry not in files]
    if not files:
        deeper = next((entry for entry in others if entry.is_dir()), None)
        hint = f"; to read the folders below it: '{folder}/**/*.jsonl'" if deeper else ""
        raise InputError(f"{folder}: a folder without JSONL, CSV, TSV or Parquet files (found: {_names(others)}){hint}")
    if others:
        _log.warning("%s: read without %s, which are not JSONL, CSV, TSV or Parquet files", folder, _names(others))
    return files


def has_kind(path: Path) -> bool:
    """Whether a name has an extension of inputs: `.jsonl`, `.csv.gz`, ..."""
    name = Path(path.name.lower())
    return (Path(name.stem) if name.suffix in PACKED else name).suffix in KINDS


def _names(paths: Iterable[Path]) -> str:
    names = [f"{path.name}/" if path.is_dir() else path.name for path in paths]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"


def by_number(path: Path) -> list[list[tuple[int, str]]]:
    """Sorts 2.parquet before 10.parquet, folder by folder."""
    return [
        [(int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)] for name in path.parts
    ]

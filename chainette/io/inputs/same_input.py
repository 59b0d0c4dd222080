"""Checks that an input is still the one that a run has read."""

from __future__ import annotations

from typing import Any

from chainette.errors import InputError
from chainette.io.inputs.input_digest import Stamp, digest_of
from chainette.io.inputs.readers import InputFile
from chainette.records import Read
from chainette.utils.plurals import counted

__all__ = ["require_same_beginning", "require_same_input"]


def require_same_input(source: InputFile, recorded: dict[str, Any], read: Read | None, run: str) -> bool:
    """Checks an input against the log of a run: sizes, ends, and every byte that was read.

    If the times are equal, nothing is read. Returns true if sizes and times are equal.

    Raises:
        InputError: it is a different input; the message names the difference.
    """
    if recorded.get("growing"):
        if read is not None and digest_of(source.files(), read.upto) != read.digest:
            raise InputError(
                f"{source.path}: the beginning has changed since it was read ({counted(read.upto, 'byte')}); begin a new run"
            )
        return True
    equal, settled = _stamps(source, recorded)
    if equal and settled:
        return True
    what = f"{source.path} has changed since the run in {run} began"
    if problem := _difference(source, recorded, read):
        raise InputError(f"{what}: {problem}. Restore the old file, or begin a new run for this one")
    return equal


def require_same_beginning(source: InputFile, recorded: dict[str, Any], read: Read | None, run: str) -> None:
    """Checks that an input begins with every byte that a run has read; it may have grown.

    Raises:
        InputError: it begins with different bytes.
    """
    if not all(_stamps(source, recorded)) and not _begins_alike(source, read):
        raise InputError(
            f"{source.path} is not the input of the run in {run}: it does not begin with the bytes that the run has read. "
            "Give the input of that run, or choose a directory without a run"
        )


def _stamps(source: InputFile, recorded: dict[str, Any]) -> tuple[bool, bool]:
    """Whether sizes and times are the recorded ones, and whether every later change would show in them."""
    known = [Stamp(*stamp) for stamp in recorded.get("files", ())]
    return [stamp[:3] for stamp in known] == [stamp[:3] for stamp in source.stamps], all(stamp.settled for stamp in known)


def _begins_alike(source: InputFile, read: Read | None) -> bool:
    return read is None or digest_of(source.files(), read.upto) == read.digest


def _difference(source: InputFile, recorded: dict[str, Any], read: Read | None) -> str:
    """A description of the difference; "" if there is none."""
    size = source.size
    begins_alike = _begins_alike(source, read)
    if size > recorded["size"] and begins_alike:
        grown = f"{counted(recorded['size'], 'byte')} then, {size:,} now; its beginning is unchanged, so it seems to have grown"
        return f"{grown} (new rows go into a file of their own, for --more, or into a new run with --reuse)"
    if size != recorded["size"]:
        return f"{counted(recorded['size'], 'byte')} then, {size:,} now"
    if not begins_alike:
        assert read is not None
        return f"its size is the same ({counted(size, 'byte')}), but the first {read.upto:,}, which were read, are not"
    if [stamp[0] for stamp in recorded.get("files", source.stamps)] != [stamp.size for stamp in source.stamps]:
        return "its files have other sizes"
    if source.identity()["sample"] != recorded["sample"]:
        return f"its size is the same ({counted(size, 'byte')}), but its first or last MiB is not"
    return ""

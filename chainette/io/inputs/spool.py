"""Spooling: writes to a file an input that can be read only once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

from chainette.core.dump import NotRoundTrip, dump_model
from chainette.errors import InputError
from chainette.io.inputs.remote_text import RemoteText
from chainette.io.rundir.paths import publish_blocks

__all__ = ["blocks_of", "spool"]

_BLOCK = 1 << 20


def spool(source: IO[bytes] | IO[str] | Iterable[BaseModel | Mapping[str, Any]], path: Path) -> Path:
    """Writes a stream unchanged, or models and dicts as JSON lines, to `path`: whole and fsynced, or not at all.

    A model that cannot be read back from its dump, or a value with NaN in it, becomes a line that is rejected like any
    other bad line.

    Raises:
        InputError: an item is neither a model nor a dict, or JSON cannot hold it.
        DiskError: the disk is full, or a write failed.
    """
    publish_blocks(path, blocks_of(source))
    return path


def blocks_of(
    source: IO[bytes] | IO[str] | RemoteText | Iterable[BaseModel | Mapping[str, Any]], *, at_once: bool = False
) -> Iterator[bytes]:
    """The bytes that `spool` writes, in pieces. With `at_once`, a piece of a stream is only the part that has arrived."""
    if not hasattr(source, "read"):
        return _dumps(cast("Iterable[Any]", source))
    stream = cast("IO[Any]", source)
    return _blocks(getattr(stream, "raw", stream) if at_once else stream)  # a buffer would wait until it is full


def _blocks(stream: IO[Any]) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block.encode() if isinstance(block, str) else block


def _dumps(items: Iterable[Any]) -> Iterator[bytes]:
    for index, item in enumerate(items):
        if not isinstance(item, (BaseModel, Mapping)):
            raise InputError(f"item {index} of the input is {type(item).__name__}; give models, dicts, or a list of paths")
        try:
            yield _dump(item) + b"\n"
        except PydanticSerializationError as error:
            raise InputError(f"item {index} of the input cannot be written as JSON: {error}") from error


def _dump(item: BaseModel | Mapping[str, Any]) -> bytes:
    if isinstance(item, BaseModel):
        try:
            return dump_model(item)
        except NotRoundTrip:
            item = item.model_dump(by_alias=True, round_trip=True, warnings=False)
    return to_json(item, by_alias=True, round_trip=True, inf_nan_mode="constants")

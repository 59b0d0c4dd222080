"""The fields of a Redis hash as a typed struct. Each is decoded separately, so garbage in one does not affect the others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Self

import msgspec

__all__ = ["Count", "HashFields", "Seconds"]

#: A count: whole, not negative, and exact in the doubles of a Lua script.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]

#: The most bytes of one field that are decoded, unless a struct says otherwise.
_MOST = 4 << 20


class HashFields(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded hash. A field that is missing or does not decode has its default."""

    longest: ClassVar[int] = _MOST
    #: Fields that did not decode.
    wrong: tuple[str, ...] = ()

    @classmethod
    def read(cls, found: Mapping[bytes, bytes], **known: Any) -> Self:
        """Decodes a hash; the fields in `known` are set as given and not looked up. Never raises."""
        values, wrong = dict(known), []
        for field in _fields_of(cls):
            raw = found.get(field.encode_name.encode())
            if raw is None or field.name in known or field.name == "wrong":
                continue
            try:
                values[field.name] = _value(raw, field.type, cls.longest)
            except (ValueError, RecursionError):
                wrong.append(field.encode_name)
        return cls(**values, wrong=tuple(wrong))

    @classmethod
    def words(cls, **values: Any) -> dict[str, str | int | float]:
        """Encodes some fields for a hash: flags as 0 or 1, everything but text and numbers as JSON."""
        names = {field.encode_name for field in _fields_of(cls)}
        assert values.keys() <= names, f"{cls.__name__} has no field {', '.join(values.keys() - names)}"
        return {name: _word(value) for name, value in values.items()}


@cache
def _fields_of(kind: type[HashFields]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a class; msgspec evaluates their annotations anew with every call."""
    return msgspec.structs.fields(kind)


def _value(raw: bytes, kind: Any, most: int) -> Any:
    if len(raw) > most:
        raise ValueError(f"{len(raw):,} bytes")
    if kind is not str and raw[:1] in (b"{", b"["):
        return msgspec.json.decode(raw, type=kind)
    return msgspec.convert(raw.decode(), kind, strict=False)


def _word(value: Any) -> str | int | float:
    if isinstance(value, str | int | float):
        return int(value) if isinstance(value, bool) else value
    return msgspec.json.encode(value).decode()

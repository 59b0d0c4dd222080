"""Random text, numbers and dates that are valid under one JSON Schema type.

The leaves of `chainette.engine.simulated.draw`; same guarantee.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any

from chainette.engine.simulated.date_times import moment
from chainette.engine.simulated.patterns import compile_pattern

__all__ = ["as_json", "choice", "count", "scalar", "text"]

Draw = Callable[[Random], Any]

#: The range of values if only one bound is given.
_SPREAD = 100
_WORDS = (
    *("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "harbor", "island", "juniper", "kettle", "lantern"),
    *("meadow", "north", "ocean", "pepper", "quarry", "river", "saddle", "timber", "umber", "valley", "willow", "yarrow"),
)
_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


def scalar(kind: str, schema: Mapping[str, Any]) -> Draw:
    """Draws a string, a number, a boolean or null."""
    match kind:
        case "integer":
            return _integer(schema)
        case "number":
            return _number(schema)
        case "boolean":
            return lambda rng: rng.random() < 0.5
        case "null":
            return lambda _rng: None
        case _:
            return _string(schema)


def choice(values: Sequence[Any]) -> Draw:
    """Draws one of the values."""
    size = len(values)
    return (lambda _rng: values[0]) if size == 1 else (lambda rng: values[int(rng.random() * size)])


def count(least: int, most: int | None, spread: int) -> Callable[[Random], int]:
    """Draws a count: `least` to `least + spread`, at most `most`."""
    choices = max(0, (least + spread if most is None else min(most, least + spread)) - least) + 1
    return lambda rng: least + int(rng.random() * choices)


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def text(shortest: int, longest: int | None) -> Draw:
    """Draws a few words, cut or repeated to fit."""

    def draw_text(rng: Random) -> str:
        words = [_WORDS[int(rng.random() * len(_WORDS))] for _ in range(1 + int(rng.random() * 3))]
        drawn = " ".join(words)
        while len(drawn) < shortest:
            drawn += " " + _WORDS[int(rng.random() * len(_WORDS))]
        if longest is None or len(drawn) <= longest:
            return drawn
        # A space at the end would be lost to `strip_whitespace` and leave the text too short.
        return drawn[: longest - 1] + "s" if longest else ""

    return draw_text


def _string(schema: Mapping[str, Any]) -> Draw:
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength")
    if "pattern" in schema:
        pattern = schema["pattern"]
        matching = compile_pattern(pattern, shortest, longest)
        return lambda rng: matching(rng) or ("" if shortest == 0 and not pattern else f"<no text drawn for {pattern}>")
    kind = schema.get("format", "")
    if any(key.startswith("x-") for key in schema):
        return _url(schema["x-scheme"]) if "x-scheme" in schema else moment(kind, schema)
    return _FORMATS.get(kind) or text(shortest, longest)


def _bounds(schema: Mapping[str, Any], step: float) -> tuple[float, float]:
    """The closed interval, `step` away from an exclusive bound."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        low = max(schema["exclusiveMinimum"] + step, -math.inf if low is None else low)
    if "exclusiveMaximum" in schema:
        high = min(schema["exclusiveMaximum"] - step, math.inf if high is None else high)
    if low is None:
        low = 0 if high is None or high >= 0 else high - _SPREAD
    return low, max(low, high) if high is not None else low + _SPREAD


def _integer(schema: Mapping[str, Any]) -> Draw:
    low, high = (int(bound) for bound in (math.ceil(_bounds(schema, 1)[0]), math.floor(_bounds(schema, 1)[1])))
    step = int(schema.get("multipleOf", 1)) or 1
    first = -(-low // step)
    choices = max(high // step - first, 0) + 1
    return lambda rng: (first + int(rng.random() * choices)) * step


def _number(schema: Mapping[str, Any]) -> Draw:
    if "multipleOf" in schema:
        return _multiple(schema)
    low, high = _bounds(schema, 0)
    low = math.nextafter(low, math.inf) if schema.get("exclusiveMinimum") == low else low
    high = math.nextafter(high, -math.inf) if schema.get("exclusiveMaximum") == high else high

    def draw_number(rng: Random) -> float:
        drawn = low + rng.random() * (high - low)
        short = round(drawn, 1)
        return short if low <= short <= high else min(max(drawn, low), high)

    return draw_number


def _multiple(schema: Mapping[str, Any]) -> Draw:
    """Whole steps, written with as many decimals as the step has: 0.3, not 0.30000000000000004."""
    from decimal import Decimal

    step = Decimal(str(schema["multipleOf"]))
    low, high = _bounds(schema, float(step))
    first = math.ceil(Decimal(str(low)) / step)
    choices = max(math.floor(Decimal(str(high)) / step) - first, 0) + 1
    return lambda rng: float((first + int(rng.random() * choices)) * step)


def _moment(rng: Random) -> datetime:
    return _EPOCH + timedelta(seconds=int(rng.random() * 150_000_000))


def _date(rng: Random) -> str:
    return (date(2020, 1, 1) + timedelta(days=int(rng.random() * 1700))).isoformat()


def _word(rng: Random) -> str:
    return _WORDS[int(rng.random() * len(_WORDS))]


def _octets(rng: Random) -> str:
    return ".".join(str(1 + int(rng.random() * 254)) for _ in range(4))


def _uuid(version: int) -> Draw:
    """Sets the bits of the version by hand, since Python knows versions above 5 from 3.14 on."""

    def draw_uuid(rng: Random) -> str:
        bits = rng.getrandbits(128) & ~(0xF000 << 64 | 0xC000 << 48)
        return str(uuid.UUID(int=bits | version << 76 | 0x8000 << 48))

    return draw_uuid


def _url(scheme: str) -> Draw:
    host = "" if scheme == "file" else "example.com"
    return lambda rng: f"{scheme}://{host}/{_word(rng)}"


def _encoded(encode: Callable[[bytes], bytes]) -> Draw:
    return lambda rng: encode(_word(rng).encode()).decode()


_FORMATS: Mapping[str, Draw] = {
    "date": _date,
    "date-time": lambda rng: _moment(rng).strftime("%Y-%m-%dT%H:%M:%SZ"),
    "time": lambda rng: _moment(rng).strftime("%H:%M:%SZ"),
    "duration": lambda rng: f"PT{int(rng.random() * 24)}H{int(rng.random() * 60)}M",
    "email": lambda rng: f"{_word(rng)}.{_word(rng)}@example.com",
    "name-email": lambda rng: f"{_word(rng).title()} <{_word(rng)}@example.com>",
    "uri": lambda rng: f"https://example.com/{_word(rng)}/{_word(rng)}",
    "multi-host-uri": lambda rng: f"https://example.com/{_word(rng)}",
    "hostname": lambda rng: f"{_word(rng)}.example.com",
    "ipv4": _octets,
    "ipvanyaddress": _octets,
    "ipv4network": lambda rng: f"{_octets(rng)}/32",
    "ipvanynetwork": lambda rng: f"{_octets(rng)}/32",
    "ipv4interface": lambda rng: f"{_octets(rng)}/24",
    "ipvanyinterface": lambda rng: f"{_octets(rng)}/24",
    "ipv6": lambda rng: ":".join(f"{int(rng.random() * 65536):x}" for _ in range(8)),
    "ipv6network": lambda rng: ":".join(f"{int(rng.random() * 65536):x}" for _ in range(8)) + "/128",
    "ipv6interface": lambda rng: ":".join(f"{int(rng.random() * 65536):x}" for _ in range(8)) + "/64",
    "uuid": _uuid(4),
    **{f"uuid{version}": _uuid(version) for version in range(1, 9)},
    "base64": _encoded(base64.b64encode),
    "base64url": _encoded(base64.urlsafe_b64encode),
    "hex": _encoded(binascii.hexlify),
    "complex": lambda rng: f"{int(rng.random() * 10)}+{int(rng.random() * 10)}j",
    "zoneinfo": lambda _rng: "UTC",
    "file-path": lambda _rng: "/etc/hosts",
    "directory-path": lambda _rng: "/",
    "json-string": lambda rng: as_json(_word(rng)),
    "regex": _word,
    "color": lambda rng: f"#{rng.getrandbits(24):06x}",
}

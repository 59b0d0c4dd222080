"""Turns a JSON Schema into a grammar for llama.cpp's constrained decoding (llguidance).

Guarantee: the grammar allows every answer that the schema allows, except properties that the schema does not name, which
models only invent. If it allows more than the schema, validation decides.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["compact_grammar", "grammar_holds", "marked_grammar"]

#: No blanks between tokens; keywords it does not know are skipped instead of giving up.
_GUIDANCE = {"whitespace_flexible": False, "lenient": True, "coerce_one_of": True}


#: Opens an answer to a probe: no model begins with it unless a grammar makes it.
_MARK = "~"


def compact_grammar(schema: dict[str, Any]) -> str:
    """The grammar for answers that are JSON of this schema without blanks."""
    return f"%llguidance {{}}\nstart: {_json_rule(schema)}"


def marked_grammar(schema: dict[str, Any]) -> str:
    """The same grammar after a mark, which shows whether llama.cpp follows it."""
    return f'%llguidance {{}}\nstart: "{_MARK}" answer\nanswer: {_json_rule(schema)}'


def grammar_holds(first_token: str) -> bool:
    """Whether the answer to a probe began as `marked_grammar` requires.

    llama.cpp silently drops a grammar it cannot compile.
    """
    return first_token.startswith(_MARK)


def _json_rule(schema: dict[str, Any]) -> str:
    return "%json " + msgspec.json.encode({**_closed(schema), "x-guidance": _GUIDANCE}).decode()


def _closed(schema: Any) -> Any:
    """The schema with objects that name their properties closed to others, or small models would never stop."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed_member(key, part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and "$ref" not in schema and "allOf" not in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def _closed_member(key: str, part: Any) -> Any:
    """`properties` and `$defs` map names to schemas; `enum`, `const` and `default` hold values."""
    if key in ("properties", "$defs", "patternProperties") and isinstance(part, dict):
        return {name: _closed(inner) for name, inner in part.items()}
    return part if key in ("enum", "const", "default", "examples") else _closed(part)

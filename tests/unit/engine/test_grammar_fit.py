"""Schemas lose as little as a grammar backend makes them lose."""

from __future__ import annotations

from typing import Any

from chainette.engine.grammar_fit import fitted


def without(*keywords: str) -> Any:
    """A backend that knows everything but these keywords."""

    def fits(schema: Any) -> str:
        if isinstance(schema, list):
            return next(filter(None, map(fits, schema)), "")
        if not isinstance(schema, dict):
            return ""
        found = [key for key in schema if key in keywords]
        return f"no {found[0]}" if found else next(filter(None, map(fits, schema.values())), "")

    return fits


SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "multipleOf": 3, "minimum": 0},
        "code": {"type": "string", "pattern": "^a(?!b)", "maxLength": 9},
        "pattern": {"$ref": "#/$defs/When"},
    },
    "required": ["n", "pattern"],
    "$defs": {"When": {"type": "string", "format": "strange", "default": {"pattern": 1}}},
}


def test_a_schema_that_fits_is_left_alone() -> None:
    assert fitted(SCHEMA, without()) == (SCHEMA, "")


def test_only_the_keyword_that_does_not_fit_is_lost() -> None:
    found, problem = fitted(SCHEMA, without("multipleOf"))
    assert found is not None and problem == "no multipleOf"
    assert found["properties"]["n"] == {"type": "integer", "minimum": 0}
    assert found["properties"]["code"] == SCHEMA["properties"]["code"]  # type: ignore[index]


def test_names_and_values_are_not_taken_for_keywords() -> None:
    found, _ = fitted(SCHEMA, lambda schema: "no pattern" if "pattern" in schema["properties"]["code"] else "")
    assert found is not None
    assert found["properties"]["code"] == {"type": "string", "maxLength": 9}
    assert found["properties"]["pattern"] == {"$ref": "#/$defs/When"} and found["required"] == ["n", "pattern"]
    assert found["$defs"]["When"]["default"] == {"pattern": 1}


def test_several_misfits_are_lost_together() -> None:
    found, _ = fitted(SCHEMA, lambda schema: without("multipleOf")(schema) or without("format")(schema))
    assert found is not None
    assert found["properties"]["n"] == {"type": "integer", "minimum": 0} and "format" not in found["$defs"]["When"]


def test_at_the_end_any_object_will_do_or_nothing() -> None:
    assert fitted(SCHEMA, without("properties"))[0] == {"type": "object"}
    assert fitted(SCHEMA, lambda _: "never") == (None, "never")

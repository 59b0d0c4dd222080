"""Values drawn at random that are valid under a JSON Schema as pydantic writes it.

Guarantee: the same schema and the same state of the generator give the same value, and the value passes the
schema, but not necessarily custom validators, which are not in it. If a pattern cannot be drawn, the text names it, so the
rejected row explains itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from chainette.engine.simulated import scalars

__all__ = ["compile_schema", "draw"]

#: References followed before only the smallest alternative is taken, and before a value is abandoned.
_DEEP, _DEEPEST = 4, 40
#: Items and keys drawn beyond the minimum if a schema sets no upper bound.
_SPREAD = 3
#: The probability that an optional property is present.
_PRESENT = 0.8
_ENDLESS = 10_000

Node = Callable[[Random, int], Any]
Schema = Mapping[str, Any]


def draw(schema: Schema, rng: Random) -> Any:
    """Draws one value; use `compile_schema` for many."""
    return compile_schema(schema)(rng)


def compile_schema(schema: Schema) -> Callable[[Random], Any]:
    """A function that draws values of a schema. The schema is read once, now."""
    node = _SchemaCompiler(schema).node(schema)
    return lambda rng: node(rng, 0)


class _SchemaCompiler:
    """Turns one document, with its `$defs`, into closures."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self.nodes: dict[str, Node] = {}

    def node(self, schema: Any) -> Node:
        if schema is True or schema == {}:
            return _plain(scalars.text(0, None))
        if schema is False:
            return _plain(lambda _rng: None)
        if "allOf" in schema:
            return self.node(self.merged(schema))
        if "$ref" in schema:
            return self.reference(schema)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self.alternatives([self.beside(schema, key, option) for option in schema[key]])
        if "const" in schema:
            return _plain(scalars.choice([schema["const"]]))
        if "enum" in schema:
            return _plain(scalars.choice(schema["enum"]))
        return self.typed(schema)

    def typed(self, schema: Schema) -> Node:
        kind = schema.get("type") or _implied_type(schema)
        if isinstance(kind, list):
            return self.alternatives([{**schema, "type": option} for option in kind])
        match kind:
            case "object":
                return self.object(schema)
            case "array":
                return self.array(schema)
            case "string" if "contentSchema" in schema:
                inner = self.node(schema["contentSchema"])
                return lambda rng, depth: scalars.as_json(inner(rng, depth))
            case _:
                return _plain(scalars.scalar(kind, schema))

    def resolve(self, reference: str) -> Schema:
        found: Any = self.root
        for part in reference.removeprefix("#").strip("/").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")] if part else found
        resolved: Schema = found
        return resolved

    def reference(self, schema: Schema) -> Node:
        """Compiled when first drawn, so that a schema may contain itself."""
        name = schema["$ref"]
        if schema.keys() - {"$ref"} & _CONSTRAINTS:
            return self.node(self.merged({"allOf": [schema]}))

        def draw_reference(rng: Random, depth: int) -> Any:
            if depth > _DEEPEST:
                return None
            node = self.nodes.get(name)
            if node is None:
                node = self.nodes[name] = self.node(self.resolve(name))
            return node(rng, depth + 1)

        return draw_reference

    def merged(self, schema: Schema) -> Schema:
        """One schema from `allOf` and the keywords beside it; the later of two bounds wins."""
        result: dict[str, Any] = {}
        parts = [*schema.get("allOf", ()), {key: value for key, value in schema.items() if key != "allOf"}]
        for part in parts:
            flat = self.merged(self.resolve(part["$ref"])) | part if "$ref" in part else part
            flat = self.merged(flat) if "allOf" in flat and part is not parts[-1] else flat
            properties = {**result.get("properties", {}), **flat.get("properties", {})}
            required = [*result.get("required", ()), *flat.get("required", ())]
            result |= {key: value for key, value in flat.items() if key != "$ref"}
            result |= ({"properties": properties} if properties else {}) | ({"required": required} if required else {})
        return result

    def beside(self, schema: Schema, key: str, option: Any) -> Any:
        """The alternative, with the constraints beside the list of alternatives."""
        around = {name: schema[name] for name in _CONSTRAINTS & schema.keys() - {key}}
        return {"allOf": [around, option]} if around and isinstance(option, Mapping) else option

    def alternatives(self, options: list[Any]) -> Node:
        options = _without_decimal_text(options)
        nodes = [self.node(option) for option in options]
        heights = [self.height(option, ()) for option in options]
        smallest = nodes[heights.index(min(heights))]
        count = len(nodes)

        def draw_alternative(rng: Random, depth: int) -> Any:
            return nodes[int(rng.random() * count)](rng, depth) if depth < _DEEP else smallest(rng, depth)

        return draw_alternative

    def height(self, schema: Any, above: tuple[str, ...]) -> int:
        """References the smallest value of a schema must follow."""
        if not isinstance(schema, Mapping):
            return 0
        if "$ref" in schema:
            name = schema["$ref"]
            return _ENDLESS if name in above else min(_ENDLESS, 1 + self.height(self.resolve(name), (*above, name)))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return min((self.height(option, above) for option in schema[key]), default=0)
        must = [schema["properties"].get(name) for name in schema.get("required", ()) if "properties" in schema]
        must += schema.get("allOf", [])
        if schema.get("minItems"):
            must += [schema.get("items"), *schema.get("prefixItems", ())]
        return max((self.height(part, above) for part in must), default=0)

    def object(self, schema: Schema) -> Node:
        required = frozenset(schema.get("required", ()))
        properties = schema.get("properties", {})
        fields = [(name, self.node(part), name not in required, self.height(part, ()) > 0) for name, part in properties.items()]
        extra = self.extra_keys(schema)

        def draw_object(rng: Random, depth: int) -> Any:
            value = {
                name: node(rng, depth)
                for name, node, optional, nested in fields
                if not optional or ((depth < _DEEP or not nested) and rng.random() < _PRESENT)
            }
            return extra(rng, depth, value) if extra else value

        return draw_object

    def extra_keys(self, schema: Schema) -> Callable[[Random, int, dict[str, Any]], dict[str, Any]] | None:
        """Draws the entries of a mapping such as `dict[str, X]`."""
        by_pattern = schema.get("patternProperties", {})
        values = next(iter(by_pattern.values()), schema.get("additionalProperties"))
        least, most = schema.get("minProperties", 0), schema.get("maxProperties")
        if not isinstance(values, Mapping) and not (values is not False and least):
            return None
        names: Any = (
            {"type": "string", "pattern": next(iter(by_pattern))} if by_pattern else {"type": "string", "maxLength": 12}
        )
        key = self.node(schema.get("propertyNames", names))
        node = self.node(values if isinstance(values, Mapping) else True)
        count = scalars.count(least, most, _SPREAD)
        nested = self.height(values, ()) > 0

        def fill(rng: Random, depth: int, value: dict[str, Any]) -> dict[str, Any]:
            wanted = least if nested and depth >= _DEEP else count(rng)
            for _ in range(10 * wanted):
                if len(value) >= wanted:
                    break
                name = key(rng, depth)
                value[name if isinstance(name, str) else scalars.as_json(name)] = node(rng, depth)
            return value

        return fill

    def array(self, schema: Schema) -> Node:
        prefix = [self.node(part) for part in schema.get("prefixItems", ())]
        items = schema.get("items", True)
        least = max(schema.get("minItems", 0), len(prefix))
        most = len(prefix) if items is False or (prefix and "items" not in schema) else schema.get("maxItems")
        node, count = self.node(items), scalars.count(least, most, _SPREAD)
        nested, unique = self.height(items, ()) > 0, schema.get("uniqueItems", False)

        def draw_array(rng: Random, depth: int) -> Any:
            wanted = least if nested and depth >= _DEEP else count(rng)
            values = [part(rng, depth) for part in prefix]
            for _ in range(10 * wanted if unique else wanted - len(values)):
                if len(values) >= wanted:
                    break
                item = node(rng, depth)
                if not unique or item not in values:
                    values.append(item)
            return values

        return draw_array


#: Keywords that narrow a value if they are beside `$ref` or `anyOf`.
_CONSTRAINTS = frozenset(
    {"type", "properties", "required", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
    | {"minLength", "maxLength", "pattern", "format", "minItems", "maxItems", "items", "anyOf", "oneOf", "enum", "const"}
)


def _plain(draw_scalar: Callable[[Random], Any]) -> Node:
    return lambda rng, _depth: draw_scalar(rng)


def _without_decimal_text(options: list[Any]) -> list[Any]:
    """pydantic writes a Decimal as "number or string" without describing the strings, so the number is taken."""
    kinds = [option.get("type") if isinstance(option, Mapping) else None for option in options]
    if "number" not in kinds:
        return options
    return [option for option, kind in zip(options, kinds, strict=True) if kind != "string"]


def _implied_type(schema: Schema) -> str:
    for kind, keys in _IMPLIES.items():
        if keys & schema.keys():
            return kind
    return "string"


_IMPLIES = {
    "object": {"properties", "additionalProperties", "patternProperties", "required"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}

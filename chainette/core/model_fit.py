"""Checks whether one model's rows fit another, and whether a model can carry rows at all.

A row travels as the JSON its model dumps by alias, so that JSON must fit.
Only certain misfits are reported: custom serializers, `before` validators and unknown types count as fitting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import AliasChoices, AliasPath, BaseModel, RootModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic.functional_serializers import PlainSerializer, WrapSerializer
from pydantic.functional_validators import BeforeValidator, PlainValidator, WrapValidator

from chainette.core.annotations import (
    NONE,
    allowed_values,
    element_type,
    is_model,
    mapping_types,
    members,
    plain,
    tuple_types,
    type_name,
)
from chainette.core.dump import schema_nodes
from chainette.utils.json_schema import json_schema_of
from chainette.utils.user_errors import first_line

__all__ = ["fills_defaults_only", "json_kind", "misfits", "model_problems", "same_but_for_case"]

_SCALARS = (str, int, float, bool)
#: (given, wanted) that pydantic accepts although the types differ.
_WIDER = {(int, float), (bool, int), (bool, float)}
_CHANGES_INPUT = (BeforeValidator, PlainValidator, WrapValidator)
_CHANGES_OUTPUT = (PlainSerializer, WrapSerializer)

#: Pairs being compared further up: models that contain themselves.
_Seen = frozenset[tuple[Any, Any]]


def misfits(given: Any, wanted: type[BaseModel]) -> list[str]:
    """Why a row of type `given` cannot be the input of a node that declares `wanted`; [] if it can, or if `given` is unknown
    (None or Any)."""
    if given is None or plain(given) is Any:
        return []
    if not is_model(given):
        return _misfits("", given, wanted, frozenset())
    return _model_misfits("", given, wanted, frozenset())


def fills_defaults_only(given: Any, wanted: type[BaseModel]) -> bool:
    """Whether a row of type `given` has no field of `wanted`, so that all of them get their defaults."""
    if given is None or not is_model(given) or issubclass(given, wanted) or _reshaped(given, wanted) or _open(given):
        return False
    dumped = _dumped(given)
    keys = [key for name, field in wanted.model_fields.items() for key in _accepted(wanted, name, field)[0]]
    return bool(dumped) and bool(keys) and dumped.keys().isdisjoint(keys)


def _model_misfits(where: str, given: type[BaseModel], wanted: type[BaseModel], seen: _Seen) -> list[str]:
    if issubclass(given, wanted) or (given, wanted) in seen or _reshaped(given, wanted):
        return []
    seen |= {(given, wanted)}
    dumped = _dumped(given)
    found, used = [], set()
    for name, field in wanted.model_fields.items():
        keys, whole = _accepted(wanted, name, field)
        key = next((key for key in keys if key in dumped), None)
        if key is None:
            if field.is_required() and not _open(given):
                found.append(f"field {where + keys[0]!r} is missing")
            continue
        used.add(key)
        if whole and not _converted(given, *dumped[key], wanted, name):
            found += _misfits(where + key, dumped[key][1].annotation, field.annotation, seen)
    if wanted.model_config.get("extra") == "forbid":
        found += [
            f"field {where + key!r} is not expected, since {wanted.__name__} forbids extra fields"
            for key in dumped
            if key not in used
        ]
    return found


def _misfits(path: str, given: Any, wanted: Any, seen: _Seen) -> list[str]:
    """The same for two annotations; goes into models and lists to name the innermost field.

    An empty `path` is the row itself.
    """
    if _fits(given, wanted, seen):
        return []
    given, wanted = plain(given), plain(wanted)
    if is_model(given) and is_model(wanted):
        return _model_misfits(f"{path}.", given, wanted, seen)
    inner = element_type(given), element_type(wanted)
    if None not in inner:
        deeper = _misfits(f"{path}[]", *inner, seen)
        if deeper:
            return deeper
    label = f"field {path!r}" if path else "it"
    kept = [member for member in members(given) if member is not NONE]
    if len(kept) < len(members(given)) and all(_fits(member, wanted, seen) for member in kept):
        return [f"{label} may be None, not {type_name(wanted)}"]
    return [f"{label} is {type_name(given)}, not {type_name(wanted)}"]


def _fits(given: Any, wanted: Any, seen: _Seen) -> bool:
    """Whether every value of `given` is taken by some member of `wanted`."""
    if _has(given, _CHANGES_OUTPUT) or _has(wanted, _CHANGES_INPUT):
        return True
    wanted_members = members(wanted)
    return all(any(_member_fits(part, one, seen) for one in wanted_members) for part in members(given))


def _member_fits(given: Any, wanted: Any, seen: _Seen) -> bool:
    if given is Any or wanted is Any or given == wanted:
        return True
    if NONE in (given, wanted):
        return False
    if isinstance(given, type) and isinstance(wanted, type) and issubclass(given, wanted):
        return True
    by_value = _values_fit(given, wanted, seen)
    if by_value is not None:
        return by_value
    if given in _SCALARS and wanted in _SCALARS:
        return (given, wanted) in _WIDER
    kinds = _kind(given), _kind(wanted)
    if kinds == ("list", "list"):
        return _elements_fit(given, wanted, seen)
    if kinds == ("object", "object"):
        return _objects_fit(given, wanted, seen)
    return kinds[0] == kinds[1] or "unknown" in kinds


def _values_fit(given: Any, wanted: Any, seen: _Seen) -> bool | None:
    """Compares literals and enums by value; None if neither side is one."""
    values, allowed = allowed_values(given), allowed_values(wanted)
    if values is None and allowed is None:
        return None
    if values is None:
        if given is bool:
            values = [True, False]
        else:
            return given not in _SCALARS and _kind(given) not in ("list", "object")
    if allowed is None:
        return all(_member_fits(type(value), wanted, seen) for value in values)
    return all(value in allowed for value in values)


def _elements_fit(given: Any, wanted: Any, seen: _Seen) -> bool:
    ours, theirs = tuple_types(given), tuple_types(wanted)
    if ours is not None and theirs is not None:
        return len(ours) == len(theirs) and all(_fits(a, b, seen) for a, b in zip(ours, theirs, strict=True))
    return _fits(element_type(given), element_type(wanted), seen)


def _objects_fit(given: Any, wanted: Any, seen: _Seen) -> bool:
    if is_model(given) and is_model(wanted):
        return not _model_misfits("", given, wanted, seen)
    pair = mapping_types(given), mapping_types(wanted)
    if pair[0] is not None and pair[1] is not None:
        return _fits(pair[0][1], pair[1][1], seen)
    return True


def _kind(annotation: Any) -> str:
    """The kind of JSON for a type: "scalar", "list", "object", or "unknown" for types that pydantic writes in its own way."""
    if annotation in _SCALARS:
        return "scalar"
    if element_type(annotation) is not None:
        return "list"
    if mapping_types(annotation) is not None:
        return "object"
    if is_model(annotation):
        return "unknown" if _is_root(annotation) or annotation.__pydantic_decorators__.model_serializers else "object"
    return "unknown"


def _is_root(model: type[BaseModel]) -> bool:
    return issubclass(model, RootModel)


def _has(annotation: Any, kinds: tuple[type, ...]) -> bool:
    return any(isinstance(item, kinds) for item in getattr(annotation, "__metadata__", ()))


def _reshaped(given: type[BaseModel], wanted: type[BaseModel]) -> bool:
    """Whether custom code shapes the dump or the accepted input, or one of them is not a JSON object."""
    validators = wanted.__pydantic_decorators__.model_validators.values()
    return (
        any(validator.info.mode in ("before", "wrap") for validator in validators)
        or bool(given.__pydantic_decorators__.model_serializers)
        or _is_root(given)
        or _is_root(wanted)
    )


def _converted(given: type[BaseModel], name: str, field: FieldInfo, wanted: type[BaseModel], wanted_name: str) -> bool:
    """Whether code between the two models may change the value of a field."""
    serializers = given.__pydantic_decorators__.field_serializers.values()
    validators = wanted.__pydantic_decorators__.field_validators.values()
    metadata = [*field.metadata, *wanted.model_fields[wanted_name].metadata]
    return (
        any(isinstance(item, _CHANGES_INPUT + _CHANGES_OUTPUT) for item in metadata)
        or any({name, "*"} & {*serializer.info.fields} for serializer in serializers)
        or any({wanted_name, "*"} & {*one.info.fields} and one.info.mode != "after" for one in validators)
        or bool(wanted.model_config.get("coerce_numbers_to_str"))
    )


def _open(model: type[BaseModel]) -> bool:
    return model.model_config.get("extra") == "allow"


def _dumped(model: type[BaseModel]) -> dict[str, tuple[str, FieldInfo]]:
    """Key in the JSON -> (field name, field)."""
    fields = model.model_fields.items()
    return {field.serialization_alias or name: (name, field) for name, field in fields if not field.exclude}


def _accepted(model: type[BaseModel], name: str, field: FieldInfo) -> tuple[list[str], bool]:
    """(keys under which the model reads a field, whether the field is the whole value under the key)."""
    config = model.model_config
    alias = field.validation_alias if config.get("validate_by_alias", True) else None
    choices = alias.choices if isinstance(alias, AliasChoices) else [] if alias is None else [alias]
    keys = [str(choice.path[0]) if isinstance(choice, AliasPath) else choice for choice in choices]
    if alias is None or config.get("validate_by_name") or config.get("populate_by_name"):
        keys.append(name)
    return keys, not any(isinstance(choice, AliasPath) and len(choice.path) > 1 for choice in choices)


def model_problems(model: type[BaseModel]) -> list[str]:
    """Why rows of `model` would not survive from one node to the next; [] if they do.

    Covers nested models. Rows travel as their dump: values missing from it are lost, values that cannot be
    read back are rejected.
    """
    unresolved = _unresolved(model)
    if unresolved:
        return [unresolved]
    found = []
    for owner, prefix in _models(model):
        for name, field in owner.model_fields.items():
            found += [f"field {prefix + name!r} {problem}" for problem in _field_problems(owner, name, field)]
        found += _shared_keys(owner, prefix)
    if _writes_constants(model):
        found.append(
            "it writes infinity and NaN as the constants Infinity and NaN, which are not JSON and which few readers take; "
            "set ser_json_inf_nan='strings' in its model_config"
        )
    try:
        json_schema_of(model)
    except Exception as error:  # pydantic and the user's types may raise anything
        found.append(f"it has no JSON Schema: {first_line(error)}")
    return found


def json_kind(model: type[BaseModel]) -> str:
    """The JSON type a model reads and writes: "object" unless one of the two is certain to be another."""
    for mode in ("validation", "serialization"):
        with contextlib.suppress(Exception):  # the user's serializers have no schema, or raise when it is made
            kind = str(json_schema_of(model, mode).get("type", "object"))
            if kind != "object":
                return kind
    return "object"


def _writes_constants(model: type[BaseModel]) -> bool:
    """Whether a possible float is dumped with `ser_json_inf_nan="constants"`."""
    nodes = list(schema_nodes(model))
    constants = any((node.get("config") or {}).get("ser_json_inf_nan") == "constants" for node in nodes)
    return constants and any(node.get("type") in ("float", "any") for node in nodes)


def _unresolved(model: type[BaseModel]) -> str | None:
    try:
        model.model_rebuild()
    except Exception as error:
        return f"its annotations cannot be resolved: {first_line(error)}"
    return None


def _field_problems(model: type[BaseModel], name: str, field: FieldInfo) -> Iterator[str]:
    key = field.serialization_alias or name
    if field.exclude:
        yield "has exclude=True and would be lost between nodes; remove it"
    elif key not in _accepted(model, name, field)[0]:
        read = _accepted(model, name, field)[0][0]
        yield (
            f"is written as {key!r} but read as {read!r}; use one alias=... for both, "
            f"or, if {read!r} is a column of the input, no alias and --columns {name}={read}"
        )
    if key.startswith("_"):
        yield f"is written as {key!r}; names that start with '_' are Chainette's own columns, choose another alias"
    if any(part in (SecretStr, SecretBytes) for part in _parts(field.annotation)):
        yield "is a secret type, which is written as asterisks; use str"


def _shared_keys(model: type[BaseModel], prefix: str) -> list[str]:
    names: dict[str, list[str]] = {}
    for name, field in model.model_fields.items():
        names.setdefault(field.serialization_alias or name, []).append(prefix + name)
    return [
        f"fields {' and '.join(map(repr, same))} are both written as {key!r}; give one another alias"
        for key, same in names.items()
        if len(same) > 1
    ]


def same_but_for_case(model: type[BaseModel]) -> list[tuple[str, str]]:
    """Pairs of names in one object that differ only in case; the column `row_id` counts as one."""
    found = []
    for owner, prefix in _models(model):
        seen = {} if prefix else {"row_id": "row_id"}
        for name, field in owner.model_fields.items():
            key = field.serialization_alias or name
            first = seen.setdefault(key.lower(), key)
            if first != key:
                found.append((prefix + first, prefix + key))
    return found


def _models(model: type[BaseModel]) -> list[tuple[type[BaseModel], str]]:
    """The model and every model inside it, each once, with the path to it."""
    found: dict[type[BaseModel], str] = {model: ""}
    queue = [model]
    while queue:
        owner = queue.pop()
        for name, field in owner.model_fields.items():
            for part in _parts(field.annotation):
                if is_model(part) and part not in found:
                    found[part] = f"{found[owner]}{name}."
                    queue.append(part)
    return list(found.items())


def _parts(annotation: Any) -> Iterator[Any]:
    """The annotation and everything inside its brackets."""
    annotation = plain(annotation)
    yield annotation
    for argument in get_args(annotation):
        if not isinstance(argument, (str, int, bytes)):
            yield from _parts(argument)

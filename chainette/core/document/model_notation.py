"""A model in the short notation, if it has only fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from chainette.core.annotations import NONE, is_model, members
from chainette.core.document.dumper import Inline
from chainette.core.document.notation import CONSTRAINTS, SIMPLE

__all__ = ["Unsayable", "fields_of", "is_data"]

_CODE = (property, classmethod, staticmethod)

#: Settings of a model that change nothing here.
_HARMLESS = {"protected_namespaces", "validate_default", "title"}

_NAMES = {kind: name for name, kind in SIMPLE.items() if kind is not None}


class Unsayable(Exception):
    """The short notation cannot express it."""


def is_data(model: type[BaseModel]) -> bool:
    """Whether a model is fields and settings that JSON Schema can express, without code."""
    code = [name for name, value in vars(model).items() if callable(value) or isinstance(value, _CODE)]
    settings = {key for key in model.model_config if key != "extra"} - _HARMLESS
    return model.__bases__ == (BaseModel,) and not settings and all(name.startswith("_") for name in code)


def fields_of(model: type[BaseModel], named: Callable[[type[BaseModel]], str]) -> dict[str, Any]:
    """The fields as a chain file has them. `named` gives the name of another model.

    Raises:
        Unsayable: the model has code, a description, settings or types the notation has no words for.
    """
    if not is_data(model) or model.__doc__ or model.model_config.get("extra", "ignore") != "ignore":
        raise Unsayable
    return {key: _field(info, named) for key, info in model.model_fields.items()}


def _field(info: FieldInfo, named: Callable[[type[BaseModel]], str]) -> Any:
    if info.alias or info.default_factory or info.exclude:
        raise Unsayable
    more = {"description": info.description} if info.description else {}
    more |= {key: value for meta in info.metadata for key, value in _limits(meta).items()}
    if not info.is_required():
        more["default"] = info.default
    kind = _kind(info.annotation, named)
    return Inline(type=kind, **more) if more else kind


def _limits(meta: Any) -> dict[str, Any]:
    found = {key: getattr(meta, key, None) for key in CONSTRAINTS if key not in ("description", "default")}
    given = {key: value for key, value in found.items() if value is not None}
    if not given:
        raise Unsayable
    return given


def _kind(annotation: Any, named: Callable[[type[BaseModel]], str]) -> Any:
    """A list of values, or a type as text."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return " | ".join(_member(member, named) for member in members(annotation))


def _member(annotation: Any, named: Callable[[type[BaseModel]], str]) -> str:
    if annotation is NONE:
        return "null"
    if annotation in _NAMES:
        return _NAMES[annotation]
    if is_model(annotation):
        return named(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal and all(isinstance(value, str) and "'" not in value for value in arguments):
        return " | ".join(f"'{value}'" for value in arguments)
    if origin is list:
        return f"list[{_nested(arguments[0], named)}]"
    if origin is dict and arguments[0] is str:
        return f"dict[str, {_nested(arguments[1], named)}]"
    raise Unsayable


def _nested(annotation: Any, named: Callable[[type[BaseModel]], str]) -> str:
    return " | ".join(_member(member, named) for member in members(annotation))

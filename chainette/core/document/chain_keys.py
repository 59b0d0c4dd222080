"""The keys of a chain file: parameters of the classes that Python chains use, read off these classes."""

from __future__ import annotations

import dataclasses
import sys
from types import SimpleNamespace
from typing import Any, get_type_hints

from chainette.core.apply import ApplyNode

__all__ = ["FUNCTION_KEYS", "MODELS", "PROMPTS", "function_parameters", "parameter_type", "parameters_of"]

#: Parameters that take a model, by its name in the file or as module:Class.
MODELS = frozenset({"input_model", "output_model"})

#: Parameters that take text or `{file: name}`.
PROMPTS = frozenset({"system_prompt", "user_prompt"})

#: Parameters of a function's node, besides the function.
FUNCTION_KEYS = ("id", "name", "emoji", "input_model", "output_model")


def parameters_of(kind: type) -> list[str]:
    """The parameters of a declaration."""
    return [each.name for each in dataclasses.fields(kind) if each.init]


def parameter_type(owner: type, key: str) -> Any:
    """The type of one parameter."""
    kind = next(kind for kind in owner.__mro__ if key in vars(kind).get("__annotations__", {}))
    alone = SimpleNamespace(__annotations__={key: vars(kind)["__annotations__"][key]})
    return get_type_hints(alone, vars(sys.modules[kind.__module__]))[key]


def function_parameters(node: ApplyNode[Any, Any]) -> dict[str, Any]:
    """The parameters of a decorated function, which hold unless a file gives others."""
    found = {key: getattr(node, key) for key in FUNCTION_KEYS}
    return found if node.name != node.id else found | {"name": ""}

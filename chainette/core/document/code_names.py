"""The names of functions and classes in the user's modules."""

from __future__ import annotations

import functools
import sys
from typing import Any

from chainette.core.apply import ApplyNode
from chainette.core.usercode.importer import is_private, public_name

__all__ = ["reference_to"]


def reference_to(value: Any, node: object = None) -> tuple[str, Any]:
    """(module:name of a function or class of the user, the object itself or a node around it); "" if no
    module has it."""
    inner = value
    while isinstance(inner, functools.partial):
        inner = inner.func
    home = str(getattr(inner, "__module__", "") or "")
    if not is_private(home):
        return "", None
    package = home.partition(".")[0]
    modules = [home, *(name for name in sorted(sys.modules) if name.startswith(f"{package}.") and name != home)]
    named = [
        (f"{public_name(module)}:{name}", found) for module in modules for name, found in vars(sys.modules[module]).items()
    ]
    around = [each for each in named if node is not None and each[1] is node]
    itself = [each for each in named if each[1] is value]
    inside = [each for each in named if isinstance(each[1], ApplyNode) and each[1].fn is value]
    return next(iter([*around, *itself, *inside]), ("", None))
